"""The `sb3-dapo` command: RL Zoo's commands with DAPO as their default algorithm."""

import argparse
import os
import runpy
import subprocess
import sys
import traceback
from argparse import ArgumentParser
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.metadata import version
from types import SimpleNamespace
from typing import Any
from unittest import mock

import gymnasium as gym

from sb3_dapo.zoo.parsers import RecordVideoParser, RunParser, TrainParser

LOG_FOLDER = "logs"
ALGO = ("--algo", "dapo")
# Packages whose errors, before training begins, say what is wrong with the arguments
REFUSING = {"sb3_dapo", "rl_zoo3", "stable_baselines3", "gymnasium"}


@dataclass(frozen=True)
class Command:
    """
    :param run: parses `sys.argv` and does the work
    :param help: what it does, in one line
    :param defaults: arguments put before the user's, so that the user's win
    """

    run: Callable[[], None]
    help: str
    defaults: tuple[str, ...] = ()


def replaced_parser(function: Callable[[], None], parser: Callable[..., ArgumentParser]) -> Any:
    """
    :param function: a function of the Zoo that creates a parser and reads the command line with it
    :param parser: what it shall create instead of an `ArgumentParser`
    :return: context in which it does so
    """
    return mock.patch.dict(function.__globals__, argparse=SimpleNamespace(ArgumentParser=parser))


def call(module: str, function: str) -> Callable[[], None]:
    """
    :param module: name of a module
    :param function: name of a function in it that parses `sys.argv`
    :return: a function that imports the module and calls the function
    """
    return lambda: getattr(import_module(module), function)()


def train() -> None:
    """The Zoo's `train`."""
    from rl_zoo3.train import train as zoo_train

    with replaced_parser(zoo_train, TrainParser):
        zoo_train()


def enjoy() -> None:
    """The Zoo's `enjoy`, which says nothing where it cannot open a window."""
    has_display = not sys.platform.startswith("linux") or "DISPLAY" in os.environ or "WAYLAND_DISPLAY" in os.environ
    if not has_display and not {"--no-render", "-h", "--help"} & set(sys.argv):
        print("There is no display to watch on: 'sb3-dapo record-video' writes a video, --no-render only prints scores")
    from rl_zoo3.enjoy import enjoy as zoo_enjoy

    with replaced_parser(zoo_enjoy, RunParser):
        zoo_enjoy()


def record_video() -> None:
    """The Zoo's `record_video`, which is a script. Its workers import the real `__main__`, so that stays in place."""
    from sb3_dapo.zoo.video import VideoRecorder

    recorder = partial(VideoRecorder, gif="--gif" in sys.argv)
    with (
        mock.patch.dict(
            sys.modules, argparse=SimpleNamespace(**{**vars(argparse), "ArgumentParser": RecordVideoParser})
        ),
        mock.patch("stable_baselines3.common.vec_env.VecVideoRecorder", recorder),
    ):
        runpy.run_module("rl_zoo3.record_video", run_name="__main__")


def benchmark() -> None:
    """The Zoo's `benchmark`, a script that runs `python enjoy.py`, a file of the Zoo's checkout, for every agent."""
    subprocess_call = subprocess.call

    def enjoy(command: list[str], *args: Any, **kwargs: Any) -> int:
        return subprocess_call([sys.executable, "-m", "sb3_dapo.zoo", "enjoy", *command[2:]], *args, **kwargs)

    # Own agents unless the user names a folder: the Zoo would first download all of its agents from the Hub
    if not any(argument.startswith("--log-dir") for argument in sys.argv):
        sys.argv += ["--log-dir", LOG_FOLDER, "--no-hub"]
    with mock.patch("subprocess.call", enjoy):
        runpy.run_module("rl_zoo3.benchmark", run_name="__main__")


COMMANDS = {
    "train": Command(train, "train an agent, or search hyperparameters (-optimize)", ALGO),
    "enjoy": Command(enjoy, "watch a trained agent", (*ALGO, "--folder", LOG_FOLDER)),
    "record-video": Command(record_video, "record a trained agent as mp4 or GIF", (*ALGO, "--folder", LOG_FOLDER)),
    "plot": Command(call("sb3_dapo.zoo.plot", "plot"), "draw score, divergence, KL, ratios and reuse of a run"),
    "plot-train": Command(
        call("sb3_dapo.zoo.zoo_plots", "plot_train"),
        "plot the scores of training episodes",
        (*ALGO, "--exp-folder", LOG_FOLDER),
    ),
    "all-plots": Command(
        call("sb3_dapo.zoo.zoo_plots", "all_plots"),
        "plot and tabulate the evaluations of several runs",
        ("--algos", "dapo", "--exp-folders", LOG_FOLDER),
    ),
    "plot-from-file": Command(
        call("sb3_dapo.zoo.zoo_plots", "plot_from_file"), "plot results saved by all-plots (rliable included)"
    ),
    "benchmark": Command(benchmark, "evaluate every trained agent and write a table"),
    "random": Command(call("sb3_dapo.zoo.evaluation", "random"), "score of a uniform random policy, for reference"),
    "report": Command(
        call("sb3_dapo.zoo.evaluation", "report"),
        "score of a trained agent beside the random policy's, and its learning curve",
    ),
    "push-to-hub": Command(
        call("sb3_dapo.zoo.hub", "push_to_hub"), "upload a trained agent to the Hugging Face Hub, with a model card"
    ),
    "load-from-hub": Command(
        call("sb3_dapo.zoo.hub", "load_from_hub"), "download an agent from the Hugging Face Hub into the log folder"
    ),
}


def build_parser() -> ArgumentParser:
    """
    :return: parser of the command's name
    """
    width = max(map(len, COMMANDS)) + 3
    parser = ArgumentParser(
        prog="sb3-dapo",
        usage="sb3-dapo COMMAND [arguments]",
        description="Divergence-Augmented Policy Optimization in RL Zoo.",
        epilog="commands:\n" + "".join(f"  {name:{width}}{command.help}\n" for name, command in COMMANDS.items()) + """
'sb3-dapo COMMAND --help' lists a command's arguments, which are those of RL Zoo. The algorithm is dapo unless --algo
names another, the hyperparameters come from the file of this package unless --conf-file names another, and agents are
kept in the folder 'logs'.

examples:
  sb3-dapo train --env CartPole-v1 --progress
  sb3-dapo enjoy --env CartPole-v1
  sb3-dapo train --env BreakoutNoFrameskip-v4 -n 500000 --hyperparams divergence_coef:0.1 n_rollouts:2
  sb3-dapo train --env BreakoutNoFrameskip-v4 --algo ppo
""",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", metavar="COMMAND", choices=COMMANDS, help=argparse.SUPPRESS)
    parser.add_argument("--version", action="version", version=f"sb3-dapo {version('sb3-dapo')}")
    return parser


def is_refusal(error: Exception) -> bool:
    """
    :param error: what a command raised
    :return: whether this package, or a library that it calls, refuses what the user asked for, and says why. What goes
        wrong in training, or in the user's own code, is none: there one needs to know where
    """
    from sb3_dapo.zoo.exp_manager import ExperimentManager

    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    packages = [frame.f_globals.get("__name__", "").partition(".")[0] for frame in frames]
    is_told = isinstance(error, (ValueError, FileNotFoundError, AssertionError, gym.error.Error)) and str(error) != ""
    # "__main__" is a script of the Zoo
    is_ours = packages[-1] in REFUSING and set(packages) <= REFUSING | sys.stdlib_module_names | {"__main__"}
    is_training = ExperimentManager.learn.__code__ in [frame.f_code for frame in frames]
    return is_told and is_ours and not is_training


def main() -> None:
    """Run the command that `sys.argv` names."""
    parser = build_parser()
    name = parser.parse_args(sys.argv[1:2]).command
    command = COMMANDS[name]
    # argparse takes the program's name in its messages from here
    sys.argv = [f"sb3-dapo {name}", *command.defaults, *sys.argv[2:]]
    try:
        command.run()
    except Exception as error:
        if not is_refusal(error):
            raise
        parser.exit(2, f"{sys.argv[0]}: error: {' '.join(str(error).split())}\n")


if __name__ == "__main__":
    main()
