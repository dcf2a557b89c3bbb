"""
The `sb3-dapo` command: RL Zoo's commands with DAPO as their default algorithm.

Nothing but Python's own modules is imported before a command is chosen, so that `--help` and `--version` take no time.
"""

import argparse
import sys
import traceback
from argparse import ArgumentParser
from dataclasses import dataclass
from importlib import import_module

from sb3_dapo import __version__

LOG_FOLDER = "logs"
DEFAULT_ALGO = "dapo"
# Packages whose errors, before training begins, say what is wrong with the arguments
REFUSING = {"sb3_dapo", "rl_zoo3", "stable_baselines3", "gymnasium"}


@dataclass(frozen=True)
class Command:
    """
    :param function: module of `sb3_dapo.zoo` and name of the function in it that parses `sys.argv` and does the work
    :param help: what it does, in one line
    :param defaults: arguments put before the user's, so that the user's win
    """

    function: tuple[str, str]
    help: str
    defaults: tuple[str, ...] = ()

    def run(self) -> None:
        """Import what it needs, and do the work."""
        import sb3_dapo.zoo

        sb3_dapo.zoo.register()
        module, name = self.function
        getattr(import_module(f"sb3_dapo.zoo.{module}"), name)()


ALGO = ("--algo", DEFAULT_ALGO)
COMMANDS = {
    "train": Command(("commands", "train"), "train an agent, or search hyperparameters (-optimize)", ALGO),
    "enjoy": Command(("commands", "enjoy"), "watch a trained agent", (*ALGO, "--folder", LOG_FOLDER)),
    "record-video": Command(("video", "record_video"), "record a trained agent as mp4 or GIF"),
    "plot": Command(("plot", "plot"), "draw score, divergence, KL, ratios and reuse of a run"),
    "plot-train": Command(
        ("zoo_plots", "plot_train"), "plot the scores of training episodes", (*ALGO, "--exp-folder", LOG_FOLDER)
    ),
    "all-plots": Command(
        ("zoo_plots", "all_plots"),
        "plot and tabulate the evaluations of several runs",
        ("--algos", DEFAULT_ALGO, "--exp-folders", LOG_FOLDER),
    ),
    "plot-from-file": Command(("zoo_plots", "plot_from_file"), "plot results saved by all-plots (rliable included)"),
    "benchmark": Command(("commands", "benchmark"), "evaluate every trained agent and write a table"),
    "random": Command(("evaluation", "random"), "score of a uniform random policy, for reference"),
    "report": Command(
        ("evaluation", "report"), "score of a trained agent beside the random policy's, and its learning curve"
    ),
    "push-to-hub": Command(("hub", "push_to_hub"), "upload a trained agent to the Hugging Face Hub, with a model card"),
    "load-from-hub": Command(
        ("hub", "load_from_hub"), "download an agent from the Hugging Face Hub into the log folder"
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
    parser.add_argument("--version", action="version", version=f"sb3-dapo {__version__}")
    return parser


def is_refusal(error: Exception) -> bool:
    """
    :param error: what a command raised
    :return: whether this package, or a library that it calls, refuses what the user asked for, and says why. What goes
        wrong in training, or in the user's own code, is none: there one needs to know where
    """
    import gymnasium as gym

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
