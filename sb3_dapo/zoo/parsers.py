"""Arguments of the Zoo's commands, and what this package changes in them."""

import argparse
from argparse import ArgumentParser
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from huggingface_sb3 import EnvironmentName
from rl_zoo3.utils import ALGOS, StoreDict

from sb3_dapo.cli import DEFAULT_ALGO, LOG_FOLDER
from sb3_dapo.zoo.registration import CONF_FILES
from sb3_dapo.zoo.runs import check_env, checkpoint_steps, find_run, import_packages, read_config, read_train_args

# The Zoo's: `enjoy --load-checkpoint` looks for files of this name
CHECKPOINT_PREFIX = "rl_model"
CHECKPOINTS = f"{CHECKPOINT_PREFIX}_*_steps.zip"
BEST_MODEL = "best_model.zip"


class Assignments(StoreDict):
    """The Zoo's `name:value`, with the value in Python, and a message that says so. Adds to what was given before."""

    def __call__(self, parser: ArgumentParser, namespace: Any, values: Any, option_string: str | None = None) -> None:
        given: dict[str, Any] = dict(getattr(namespace, self.dest) or {})
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


# Options of `train` that say what actors are like
ACTOR_OPTIONS = {"ray_address", "cpus_per_actor", "sync", "rollout_timeout"}
# Options of the Zoo's `train` that are others here
CHANGED_OPTIONS: dict[str, dict[str, Any]] = {
    "--vec-env": {
        "default": "auto",
        "choices": ["auto", "dummy", "subproc", "native"],
        "help": "VecEnv type; native: Atari games in C++ threads; auto: native where it can be had, else dummy",
    },
    "--tensorboard-log": {"help": "TensorBoard log dir (default: tensorboard in the log folder; '' for none)"},
    "--verbose": {"type": int, "help": "verbose mode (0: no output, 1: INFO, default: 1, with --progress 0)"},
    "--progress": {
        "action": "store_true",
        "help": "display a progress bar, instead of tables unless --verbose asks for them",
    },
}


class TrainParser(Parser):
    """Arguments of the Zoo's `train`, with one more kind of vectorized environment and a default TensorBoard log."""

    def add_argument(self, *names: str, **kwargs: Any) -> argparse.Action:
        if "--env" in names:
            kwargs["help"] += " (default: %(default)s)"
        return super().add_argument(*names, **CHANGED_OPTIONS.get(names[-1], kwargs))

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        super().add_argument(
            "--resume",
            action="store_true",
            help="go on with the latest run of --env from its newest checkpoint (see --save-freq), to the same total "
            "and with the same arguments unless others are given",
        )
        self._add_actors()
        given, _ = self.parse_known_args(args)
        if given.resume:
            run = self._find_run_to_resume(given)
        parsed = super().parse_args(args, namespace)
        if given.resume:
            parsed.resume = str(run)
            # Hyperparameters are those of the run, unless they shall be read anew
            parsed.keep_config = given.conf_file is None and given.trial_id is None
        if parsed.actors is None and vars(parsed).keys() & ACTOR_OPTIONS:
            self.error("--ray-address, --cpus-per-actor, --sync and --rollout-timeout are for runs with --actors")
        if parsed.actors is not None and (parsed.algo not in CONF_FILES or parsed.optimize_hyperparameters):
            self.error(f"--actors trains an algorithm of this package, {' or '.join(CONF_FILES)}, without -optimize")
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

    def _add_actors(self) -> None:
        # Those that are not given are left out, for the defaults of ActorVecEnv
        add = partial(super().add_argument, default=argparse.SUPPRESS)
        super().add_argument("--actors", type=positive, help="collect on so many actors of a Ray cluster")
        add("--ray-address", metavar="HOST:PORT", help="address of a Ray cluster (default: one of this machine only)")
        add("--cpus-per-actor", type=float, help="CPUs of each actor (default: 1)")
        add("--sync", action="store_true", help="actors wait for the newest weights: the same seed is the same run")
        add("--rollout-timeout", type=float, help="seconds after which an actor is replaced (default: 300)")

    def _find_run_to_resume(self, given: argparse.Namespace) -> Path:
        """Make the arguments of the run the defaults, to which those that are given are added."""
        if given.algo not in CONF_FILES:
            self.error(f"--resume needs checkpoints of this package: --algo must be {' or '.join(CONF_FILES)}")
        for name, is_given in (("-i", given.trained_agent != ""), ("-optimize", given.optimize_hyperparameters)):
            if is_given:
                self.error(f"{name} begins anew: it cannot be given with --resume")
        env_name = EnvironmentName(given.env)
        hint = "`--resume` needs a run with checkpoints (--save-freq)"
        run = find_run(Path(given.log_folder, given.algo), env_name, 0, CHECKPOINTS, hint)
        saved = read_train_args(run, env_name)
        if given.seed >= 0 and given.seed != saved.get("seed"):
            self.error(
                f"--seed must be that of the run with --resume, {saved.get('seed')}: the state of random generators "
                f"is in the checkpoint, got {given.seed}"
            )
        saved["env_kwargs"] = saved.get("env_kwargs") or read_config(run, env_name).get("env_kwargs")
        if "n_timesteps" in (given.hyperparams or {}):
            saved.pop("n_timesteps", None)
        new = {"resume", "log_folder"} | ({"verbose"} if given.progress else set())
        self.set_defaults(**{name: value for name, value in saved.items() if name not in new})
        return run


class RunParser(Parser):
    """Arguments that name an agent: that of the latest run that has one, and the environments known to that run."""

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        parsed = super().parse_args(args, namespace)
        if "rl-trained-agents" in parsed.folder:  # what is not there, the Zoo's `enjoy` downloads
            return parsed
        file, hint = f"{parsed.env}.zip", "see --load-best and --load-last-checkpoint"
        if parsed.load_best:
            file, hint = BEST_MODEL, "evaluations (--eval-freq) leave it"
        elif parsed.load_checkpoint is not None:
            file = f"{CHECKPOINT_PREFIX}_{parsed.load_checkpoint}_steps.zip"
        elif parsed.load_last_checkpoint:
            file, hint = CHECKPOINTS, "--save-freq leaves them"
        run = find_run(Path(parsed.folder, parsed.algo), parsed.env, parsed.exp_id, file, hint)
        parsed.run_path = run
        parsed.model_path = run / file
        if file == CHECKPOINTS:
            parsed.model_path = max(run.glob(file), key=checkpoint_steps)
        if parsed.exp_id == 0:
            parsed.exp_id = int(run.name.rpartition("_")[2])
        import_packages(
            [*vars(parsed).get("gym_packages", ()), *read_train_args(run, parsed.env).get("gym_packages", ())]
        )
        check_env(parsed.env.gym_id)
        return parsed


def positive(text: str) -> int:
    """A number of at least 1, for argparse."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


def add_run_arguments(
    parser: ArgumentParser, env_id: str | None = "CartPole-v1", algos: Iterable[str] = (), exp_id: str = "latest"
) -> None:
    """Arguments that name a run. `env_id` None: the environment must be given; no `algos`: all of the Zoo."""
    parser.add_argument("--env", help="environment ID", type=EnvironmentName, default=env_id, required=env_id is None)
    parser.add_argument("--algo", help="RL algorithm", default=DEFAULT_ALGO, choices=list(algos or ALGOS))
    parser.add_argument("-f", "--folder", help="log folder", default=LOG_FOLDER)
    parser.add_argument("--exp-id", help=f"experiment ID (default: 0: {exp_id}, -1: no folder)", type=int, default=0)


def agent_parser(
    description: str, n_envs: int = 1, env_id: str | None = "CartPole-v1", algos: Iterable[str] = ()
) -> RunParser:
    """Parser of a command that plays with a trained agent, with the Zoo's arguments; defaults as above."""
    parser = RunParser(description=description)
    add_run_arguments(parser, env_id, algos)
    parser.add_argument("--load-best", help="take the best model instead of the last", action="store_true")
    parser.add_argument("--load-checkpoint", help="take the checkpoint after this number of steps", type=int)
    parser.add_argument("--load-last-checkpoint", help="take the last checkpoint", action="store_true")
    parser.add_argument("--n-envs", help="number of environments (default: %(default)s)", type=positive, default=n_envs)
    parser.add_argument("--seed", help="random generator seed (default: 0)", type=int, default=0)
    parser.add_argument("--deterministic", help="play the most likely actions", action="store_true")
    parser.add_argument("--stochastic", help="draw actions (default: on Atari and MiniGrid)", action="store_true")
    parser.add_argument("--env-kwargs", help="arguments for the environment", nargs="+", action=Assignments)
    parser.add_argument("--gym-packages", help="packages that register environments", nargs="+", default=[])
    parser.add_argument("--device", help="PyTorch device (default: auto)", default="auto")
    return parser
