"""
The `sb3-dapo` command: RL Zoo's commands with DAPO as their default algorithm.

Nothing but Python's own modules is imported before a command is chosen, so that `--help` and `--version` take no time.
"""

import argparse
import sys
from argparse import ArgumentParser
from importlib import import_module, reload
from importlib.metadata import version
from typing import NamedTuple

LOG_FOLDER = "logs"
DEFAULT_ALGO = "dapo"


class Command(NamedTuple):
    """A command, which a function of its name in a module of `sb3_dapo.zoo` runs as `sys.argv` says."""

    module: str
    help: str
    defaults: tuple[str, ...] = ()  # put before the user's, so that the user's win


PLOT = ("--algo", DEFAULT_ALGO, "--exp-folder", LOG_FOLDER)
PLOTS = ("--algos", DEFAULT_ALGO, "--exp-folders", LOG_FOLDER)
COMMANDS = {
    "train": Command("cli", "train an agent, or search hyperparameters (-optimize)"),
    "report": Command("report", "compare an agent with random actions and a human; draw its curve, record a video"),
    "compare": Command("compare", "compare algorithms and settings: curves and scores, with intervals over seeds"),
    "enjoy": Command("cli", "watch a trained agent", ("--folder", LOG_FOLDER)),
    "record-video": Command("video", "record a trained agent as mp4 or GIF"),
    "plot": Command("plot", "draw score, divergence, KL, ratios and reuse of a run"),
    "plot-train": Command("zoo_plots", "plot the scores of training episodes", PLOT),
    "all-plots": Command("zoo_plots", "plot and tabulate the evaluations of several runs", PLOTS),
    "plot-from-file": Command("zoo_plots", "plot results saved by all-plots (rliable included)"),
    "benchmark": Command("cli", "evaluate every trained agent and write a table"),
    "random": Command("evaluation", "score a uniform random policy"),
    "push-to-hub": Command("hub", "upload a trained agent to the Hugging Face Hub, with a model card"),
    "load-from-hub": Command("hub", "download an agent from the Hugging Face Hub into the log folder"),
}


EPILOG = """
'sb3-dapo COMMAND --help' lists the arguments of a command. They are RL Zoo's, with a few more. The algorithm is dapo
unless --algo names another. Hyperparameters come from a file in this package unless --conf-file names another. Agents
are saved in the folder 'logs'.

examples:
  sb3-dapo train --env CartPole-v1 --eval-freq 5000 --progress
  sb3-dapo report --env CartPole-v1
  sb3-dapo train --env CartPole-v1 --eval-freq 5000 --progress --algo ppo
  sb3-dapo compare --env CartPole-v1
  sb3-dapo train --env BreakoutNoFrameskip-v4 -n 500000 --preset scarce --hyperparams n_rollouts:4 n_epochs:2
"""


def build_parser() -> ArgumentParser:
    """:return: parser of the command's name"""
    width = max(map(len, COMMANDS)) + 3
    commands = "\n".join(f"  {name:{width}}{command.help}" for name, command in COMMANDS.items())
    parser = ArgumentParser(
        prog="sb3-dapo",
        usage="sb3-dapo COMMAND [arguments]",
        description="Divergence-Augmented Policy Optimization in RL Zoo.",
        epilog=f"commands:\n{commands}\n{EPILOG}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", metavar="COMMAND", choices=COMMANDS, help=argparse.SUPPRESS)
    parser.add_argument("--version", action="version", version=f"sb3-dapo {version('sb3-dapo')}")
    return parser


def main() -> None:
    """Run the command that `sys.argv` names."""
    parser = build_parser()
    name = parser.parse_args(sys.argv[1:2]).command
    command = COMMANDS[name]
    # argparse takes the program's name in its messages from here
    sys.argv = [f"sb3-dapo {name}", *command.defaults, *sys.argv[2:]]
    zoo = import_module("sb3_dapo.zoo")
    if not hasattr(zoo, "register"):
        reload(zoo)
    try:
        getattr(import_module(f"sb3_dapo.zoo.{command.module}"), name.replace("-", "_"))()
    except Exception as error:
        if not import_module("sb3_dapo.zoo.cli").is_refusal(error):
            raise
        parser.exit(2, f"{sys.argv[0]}: error: {' '.join(str(error).split())}\n")


if __name__ == "__main__":
    main()
