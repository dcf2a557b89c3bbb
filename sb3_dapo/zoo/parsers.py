"""Arguments of the Zoo's commands, and what this package changes in them."""

import argparse
from argparse import ArgumentParser
from pathlib import Path
from typing import Any, NoReturn

from huggingface_sb3 import EnvironmentName
from rl_zoo3.utils import StoreDict

from sb3_dapo.zoo.runs import check_env, find_run, import_packages, read_train_args

# The Zoo's: `enjoy --load-checkpoint` looks for files of this name
CHECKPOINT_PREFIX = "rl_model"
CHECKPOINTS = f"{CHECKPOINT_PREFIX}_*_steps.zip"


class Assignments(StoreDict):
    """The Zoo's `name:value`, with the value in Python, and a message that says so."""

    def __call__(self, parser: ArgumentParser, namespace: Any, values: Any, option_string: str | None = None) -> None:
        given: dict[str, Any] = {}
        for text in values:
            try:
                super().__call__(parser, namespace, [text], option_string)  # type: ignore[no-untyped-call]
            except Exception as error:  # the value may be any code
                name, _, value = text.replace("=", ":", 1).partition(":")
                expected = f"{name}:'{value}'" if ":" in text or value[:1].isalpha() else f"{name}:{value}"
                raise argparse.ArgumentError(
                    self, f'{text!r} must be name:value, with text in quotes: did you mean "{expected}"? ({error})'
                ) from error
            given.update(getattr(namespace, self.dest))
        setattr(namespace, self.dest, given)


class Parser(ArgumentParser):
    """Says what is wrong in one line: the Zoo's commands have too many arguments to list them every time."""

    def add_argument(self, *names: str, **kwargs: Any) -> argparse.Action:
        if kwargs.get("action") is StoreDict:
            kwargs["action"] = Assignments
        return super().add_argument(*names, **kwargs)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}\n")


class TrainParser(Parser):
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
        if "--env" in names:
            kwargs["help"] += " (default: %(default)s)"
        if "--verbose" in names:
            kwargs["default"] = None
            kwargs["help"] = "verbose mode (0: no output, 1: INFO, default: 1, with --progress 0)"
        if "--progress" in names:
            kwargs["help"] = "display a progress bar, instead of tables unless --verbose asks for them"
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
        if parsed.verbose is None:
            parsed.verbose = 0 if parsed.progress else 1
        if parsed.n_timesteps < 1 and parsed.n_timesteps != -1:
            self.error(
                f"-n must be at least 1, or -1 for the number in the file of hyperparameters: {parsed.n_timesteps}"
            )
        if parsed.trial_id is not None and not (parsed.storage and parsed.study_name):
            self.error("--trial-id needs the --storage and the --study-name that the trial belongs to")
        import_packages(parsed.gym_packages)
        check_env(parsed.env)
        return parsed


def find_checkpoints(log_path: Path, env_name: str, tell: bool = True) -> Path:
    """
    :param log_path: folder of an algorithm's runs
    :param env_name: environment
    :param tell: print which later runs are skipped
    :return: folder of the run to resume
    :raises ValueError: if there is none
    """
    hint = "`--resume` needs a run with checkpoints (--save-freq)"
    return find_run(log_path, env_name, 0, CHECKPOINTS, hint, tell)


def saved_args(given: argparse.Namespace) -> dict[str, Any]:
    """
    :param given: arguments that name a run
    :return: the arguments of its latest run with checkpoints
    """
    env_name = EnvironmentName(given.env)
    saved = read_train_args(find_checkpoints(Path(given.log_folder, given.algo), env_name, tell=False), env_name)
    new = {"resume", "log_folder"} | ({"verbose"} if given.progress else set())
    return {name: value for name, value in saved.items() if name not in new}


class RunParser(Parser):
    """Arguments that name an agent: that of the latest run that has one, and the environments known to that run."""

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        parsed = super().parse_args(args, namespace)
        if "rl-trained-agents" in parsed.folder:  # what is not there, the Zoo's `enjoy` downloads
            return parsed
        file, hint = f"{parsed.env}.zip", "see --load-best and --load-last-checkpoint"
        options = vars(parsed)
        if options.get("load_best"):
            file, hint = "best_model.zip", "evaluations (--eval-freq) leave it"
        elif options.get("load_checkpoint") is not None:
            file = f"{CHECKPOINT_PREFIX}_{parsed.load_checkpoint}_steps.zip"
        elif options.get("load_last_checkpoint"):
            file, hint = CHECKPOINTS, "--save-freq leaves them"
        run = find_run(Path(parsed.folder, parsed.algo), parsed.env, parsed.exp_id, file, hint)
        if parsed.exp_id == 0:
            parsed.exp_id = int(run.name.rpartition("_")[2])
        import_packages([*options.get("gym_packages", ()), *read_train_args(run, parsed.env).get("gym_packages", ())])
        check_env(parsed.env.gym_id)
        return parsed


class RecordVideoParser(RunParser):
    """Arguments of the Zoo's `record_video`, and one of ours."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.add_argument("--gif", action="store_true", help="write a GIF as well")
