"""The `sb3-dapo` command: RL Zoo's commands with DAPO as their default algorithm."""

import argparse
import os
import runpy
import subprocess
import sys
from argparse import ArgumentParser
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

LOG_FOLDER = "logs"
ALGO = ("--algo", "dapo")


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


class TrainParser(ArgumentParser):
    """Arguments of the Zoo's `train`, with one more kind of vectorized environment and a default TensorBoard log."""

    def add_argument(self, *names: str, **kwargs: Any) -> argparse.Action:
        if "--vec-env" in names:
            kwargs = {
                "default": "auto",
                "choices": ["auto", "dummy", "subproc", "native"],
                "help": "VecEnv type; native: Atari games in C++ threads; auto: native where it can be had, else dummy",
            }
        if "--tensorboard-log" in names:
            kwargs = {"help": "TensorBoard log dir (default: tensorboard in the log folder; '' for none)"}
        return super().add_argument(*names, **kwargs)

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        super().add_argument(
            "--resume",
            action="store_true",
            help="go on with the latest run of --env from its newest checkpoint (see --save-freq), to the same total "
            "and with the same arguments unless others are given",
        )
        given, _ = self.parse_known_args(args)
        if given.resume:
            self.set_defaults(**saved_args(given))
        parsed = super().parse_args(args, namespace)
        if parsed.tensorboard_log is None:
            parsed.tensorboard_log = str(Path(parsed.log_folder, "tensorboard"))
        return parsed


def saved_args(given: argparse.Namespace) -> dict[str, Any]:
    """
    :param given: arguments that name a run
    :return: the arguments of its latest run
    """
    import yaml

    from sb3_dapo.zoo.exp_manager import latest_run

    run = latest_run(f"{given.log_folder}/{given.algo}/", given.env)
    saved: dict[str, Any] = yaml.unsafe_load((run / given.env / "args.yml").read_text())  # the Zoo saves objects
    return {name: value for name, value in saved.items() if name not in ("resume", "log_folder")}


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

    zoo_enjoy()


class RecordVideoParser(ArgumentParser):
    """Arguments of the Zoo's `record_video`, and one of ours."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.add_argument("--gif", action="store_true", help="write a GIF as well")


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
  sb3-dapo train --env BreakoutNoFrameskip-v4 -n 500000 --hyperparams divergence_coef:0.1 n_rollouts:4
  sb3-dapo train --env BreakoutNoFrameskip-v4 --algo ppo
""",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", metavar="COMMAND", choices=COMMANDS, help=argparse.SUPPRESS)
    parser.add_argument("--version", action="version", version=f"sb3-dapo {version('sb3-dapo')}")
    return parser


def main() -> None:
    """Run the command that `sys.argv` names."""
    name = build_parser().parse_args(sys.argv[1:2]).command
    command = COMMANDS[name]
    # argparse takes the program's name in its messages from here
    sys.argv = [f"sb3-dapo {name}", *command.defaults, *sys.argv[2:]]
    command.run()


if __name__ == "__main__":
    main()
