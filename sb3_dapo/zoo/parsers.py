"""Arguments of the Zoo's commands, with what this package changes in them, and the runs that they name."""

import argparse
import difflib
import re
from argparse import ArgumentParser
from collections.abc import Iterable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

import gymnasium as gym
import yaml
from huggingface_sb3 import EnvironmentName
from rl_zoo3.utils import ALGOS, StoreDict

from sb3_dapo.cli import DEFAULT_ALGO, LOG_FOLDER
from sb3_dapo.presets import PRESETS
from sb3_dapo.zoo.registration import CONF_FILES

# The Zoo's: `enjoy --load-checkpoint` looks for files of this name
CHECKPOINT_PREFIX = "rl_model"
CHECKPOINTS = f"{CHECKPOINT_PREFIX}_*_steps.zip"
BEST_MODEL = "best_model.zip"


def numbered_runs(log_path: Path, env_name: str) -> dict[int, Path]:
    """The folders of an algorithm's runs in an environment, by their numbers in ascending order."""
    named = re.compile(rf"{re.escape(env_name)}_(\d+)")
    matches = {path: named.fullmatch(path.name) for path in log_path.glob("*") if path.is_dir()}
    return dict(sorted((int(match[1]), path) for path, match in matches.items() if match))


def find_run(log_path: Path, env_name: str, exp_id: int, file: str, hint: str) -> Path:
    """
    The folder of run number `exp_id` of an algorithm; 0: of the latest with the file that is needed, in whose name `*`
    stands for anything, -1: `log_path` itself. Refused if there is none, with the hint what to do.
    """
    numbered = numbered_runs(log_path, env_name)
    if exp_id != 0:
        run = log_path if exp_id < 0 else log_path / f"{env_name}_{exp_id}"
        if not run.is_dir():
            others = f"of {env_name} there are: {', '.join(map(str, numbered)) or 'none'}"
            raise ValueError(f"there is no run in {run}: choose another --exp-id ({others})")
        if not any(run.glob(file)):
            raise ValueError(f"there is no {file} in {run}: {hint}")
        return run
    if not numbered:
        raise ValueError(f"there is no run of {env_name} in {log_path}: begin one with 'sb3-dapo train'")
    for run in reversed(numbered.values()):
        if any(run.glob(file)):
            return run
        print(f"Skipping {run}, which has no {file}")
    raise ValueError(f"there is no {file} in any run of {env_name} in {log_path}: {hint}")


def read_saved(run: Path, env_name: str, name: str) -> dict[str, Any]:
    """What a run says of itself: `args` of its command, `config` as it was given; none if it was not trained by one."""
    path = run / env_name / f"{name}.yml"
    return dict(yaml.unsafe_load(path.read_text())) if path.is_file() else {}  # the Zoo saves objects


def checkpoint_steps(checkpoint: Path) -> int:
    """Steps at which a checkpoint of a run was written."""
    return int(checkpoint.stem.split("_")[-2])


def check_env(env_id: str, packages: Iterable[str] = ()) -> None:
    """Import modules that register environments, and refuse an environment that is not registered."""
    for name in packages:
        try:
            import_module(name)
        except ModuleNotFoundError as error:
            if error.name != name.split(".")[0]:
                raise
            raise ValueError(f"--gym-packages: there is no module {name!r}; PYTHONPATH says where they lie") from error
    if env_id not in gym.registry:
        ids = {name.lower(): name for name in gym.registry}
        close = no_frameskip_id(env_id) or ids.get(next(iter(difflib.get_close_matches(env_id.lower(), ids)), ""))
        hint = f"did you mean {close}? " if close else ""
        message = f"there is no environment {env_id!r}: {hint}--gym-packages names modules that register your own"
        raise ValueError(message)


def no_frameskip_id(env_id: str) -> str | None:
    """The version of an Atari game, in any spelling, that the hyperparameters are made for, if there is one."""
    game = env_id.lower().removeprefix("ale/").split("-")[0].removesuffix("deterministic").removesuffix("noframeskip")
    return {name.lower(): name for name in gym.registry}.get(f"{game}noframeskip-v4")


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
                hint = f'must be name:value, with text in quotes: did you mean "{expected}"? ({error})'
                raise argparse.ArgumentError(self, f"{text!r} {hint}") from error
            given.update(getattr(namespace, self.dest))
        setattr(namespace, self.dest, given)


def algo_options(text: str, algos: list[str]) -> dict[str, Any]:
    """How `--algo` is declared: the algorithms are listed once, and not in every usage and heading."""
    text = f"{text} (default: {DEFAULT_ALGO}): {', '.join(algos)}"
    return {"help": text, "metavar": "ALGO", "choices": algos, "default": DEFAULT_ALGO}


class Parser(ArgumentParser):
    """Says what is wrong in one line: the Zoo's commands have too many arguments to list them every time."""

    def add_argument(self, *names: str, **kwargs: Any) -> argparse.Action:
        if kwargs.get("action") is StoreDict:
            kwargs["action"] = Assignments
        if "--algo" in names and "choices" in kwargs:
            kwargs |= algo_options(kwargs["help"], list(kwargs["choices"]))
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
        self.description = "Train an agent, or search hyperparameters with -optimize. Most runs need only --env, -n, "
        self.description += "--seed, --hyperparams or --preset, --eval-freq and --progress."
        text = "continue the latest run of --env from its newest checkpoint (see --save-freq), to the same total and "
        text += "with the same arguments unless others are given"
        super().add_argument("--resume", action="store_true", help=text)
        text = "hyperparameters that go together, chosen by the kind of environment. scarce: for few steps, old "
        text += "rollouts are used again. --hyperparams win. PPO takes those that it shares with DAPO"
        super().add_argument("--preset", choices=list(PRESETS), help=text)
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
            self.error(f"-n must be at least 1, or -1 for the number in the hyperparameter file: {parsed.n_timesteps}")
        if parsed.trial_id is not None and not (parsed.storage and parsed.study_name):
            self.error("--trial-id needs the --storage and the --study-name that the trial belongs to")
        check_env(parsed.env, parsed.gym_packages)
        return parsed

    def _add_actors(self) -> None:
        # Those that are not given are left out, for the defaults of ActorVecEnv
        add = partial(super().add_argument, default=argparse.SUPPRESS)
        super().add_argument("--actors", type=positive, help="number of processes that collect rollouts")
        add("--ray-address", metavar="HOST:PORT", help="Ray cluster of the actors (default: this machine)")
        add("--cpus-per-actor", type=float, help="CPUs of each actor (default: 1)")
        add("--sync", action="store_true", help="actors wait for the newest weights: the same seed is the same run")
        add("--rollout-timeout", type=float, help="seconds after which an actor is replaced (default: 300)")

    def _find_run_to_resume(self, given: argparse.Namespace) -> Path:
        """Make the arguments of the run the defaults, to which those that are given are added."""
        if given.algo not in CONF_FILES:
            self.error(f"--resume needs checkpoints of this package: --algo must be {' or '.join(CONF_FILES)}")
        new = {"-i": given.trained_agent, "-optimize": given.optimize_hyperparameters, "--preset": given.preset}
        for name in [name for name, value in new.items() if value]:
            self.error(f"{name} begins anew: it cannot be given with --resume")
        env_name = EnvironmentName(given.env)
        hint = "`--resume` needs a run with checkpoints (--save-freq)"
        run = find_run(Path(given.log_folder, given.algo), env_name, 0, CHECKPOINTS, hint)
        saved = read_saved(run, env_name, "args")
        seed = saved.get("seed")
        if given.seed >= 0 and given.seed != seed:
            reason = f"the state of random generators is in the checkpoint, got {given.seed}"
            self.error(f"--seed must be that of the run with --resume, {seed}: {reason}")
        saved["env_kwargs"] = saved.get("env_kwargs") or read_saved(run, env_name, "config").get("env_kwargs")
        changed = {"resume", "log_folder"} | ({"verbose"} if given.progress else set())
        changed |= {"n_timesteps"} & set(given.hyperparams or {})
        self.set_defaults(**{name: value for name, value in saved.items() if name not in changed})
        return run


class RunParser(Parser):
    """Arguments that name an agent: that of the latest run that has one, and the environments known to that run."""

    parsed: argparse.Namespace

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        parsed = self.parsed = super().parse_args(args, namespace)
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
        parsed.model_path = max(run.glob(file), key=checkpoint_steps) if file == CHECKPOINTS else run / file
        # How its videos are named, and the option that names it
        parsed.kind, parsed.option = ("best-model", " --load-best") if parsed.load_best else ("final-model", "")
        if file.startswith(f"{CHECKPOINT_PREFIX}_"):
            steps = checkpoint_steps(parsed.model_path)
            parsed.kind, parsed.option = f"checkpoint-{steps}", f" --load-checkpoint {steps}"
        if parsed.exp_id == 0:
            parsed.exp_id = int(run.name.rpartition("_")[2])
        packages = read_saved(run, parsed.env, "args").get("gym_packages", ())
        check_env(parsed.env.gym_id, [*parsed.gym_packages, *packages])
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
    text = "environment ID" + ("" if env_id is None else " (default: %(default)s)")
    parser.add_argument("--env", help=text, type=EnvironmentName, default=env_id, required=env_id is None)
    parser.add_argument("--algo", **algo_options("algorithm", list(algos or ALGOS)))
    parser.add_argument("-f", "--folder", help="log folder (default: %(default)s)", default=LOG_FOLDER)
    parser.add_argument("--exp-id", help=f"experiment ID (default: 0: {exp_id}, -1: no folder)", type=int, default=0)


def add_env_arguments(parser: ArgumentParser, n_envs: int = 1) -> None:
    """Arguments that environments are made with."""
    parser.add_argument("--n-envs", help="number of environments (default: %(default)s)", type=positive, default=n_envs)
    parser.add_argument("--seed", help="random generator seed (default: 0)", type=int, default=0)
    parser.add_argument(
        "--env-kwargs", help="arguments of the environment, name:value", nargs="+", action=Assignments, default={}
    )
    parser.add_argument("--gym-packages", help="packages that register environments", nargs="+", default=[])


def agent_parser(
    description: str, n_envs: int = 1, env_id: str | None = "CartPole-v1", algos: Iterable[str] = ()
) -> RunParser:
    """Parser of a command that plays with a trained agent, with the Zoo's arguments; defaults as above."""
    parser = RunParser(description=description)
    add_run_arguments(parser, env_id, algos)
    parser.add_argument("--load-best", help="take the best model instead of the last", action="store_true")
    parser.add_argument("--load-checkpoint", help="take the checkpoint after this number of steps", type=int)
    parser.add_argument("--load-last-checkpoint", help="take the last checkpoint", action="store_true")
    parser.add_argument("--deterministic", help="play the most likely actions", action="store_true")
    parser.add_argument("--stochastic", help="sample actions (default on Atari and MiniGrid)", action="store_true")
    parser.add_argument("--device", help="PyTorch device (default: auto)", default="auto")
    add_env_arguments(parser, n_envs)
    return parser
