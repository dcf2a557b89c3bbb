"""The runs that commands name, and the environments in them."""

import difflib
from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from typing import Any

import gymnasium as gym
import yaml

# File beside config.yml with the hyperparameters of the checkpoint that a run was resumed from
BEFORE_FILE = "config_before_resume.yml"


def list_runs(log_path: Path, env_name: str) -> list[Path]:
    """Folders of an environment's runs, the latest first."""
    numbered = []
    for path in log_path.iterdir() if log_path.is_dir() else ():
        name, _, number = path.name.rpartition("_")
        if name == env_name and number.isdecimal() and path.is_dir():
            numbered.append((int(number), path))
    return [path for _, path in sorted(numbered, reverse=True)]


def find_run(log_path: Path, env_name: str, exp_id: int, file: str, hint: str) -> Path:
    """
    The folder of run number `exp_id` of an algorithm; 0: of the latest with the file that is needed, in whose name `*`
    stands for anything, -1: `log_path` itself. Refused if there is none, with the hint what to do.
    """
    runs = list_runs(log_path, env_name)
    if exp_id != 0:
        path = log_path if exp_id < 0 else log_path / f"{env_name}_{exp_id}"
        if not path.is_dir():
            existing = ", ".join(run.name.rpartition("_")[2] for run in reversed(runs)) or "none"
            others = f"choose another --exp-id (of {env_name} there are: {existing})"
            raise ValueError(f"there is no run in {path}: {others}")
        if not any(path.glob(file)):
            raise ValueError(f"there is no {file} in {path}: {hint}")
        return path
    if not runs:
        raise ValueError(f"there is no run of {env_name} in {log_path}: begin one with 'sb3-dapo train'")
    usable = [run for run in runs if any(run.glob(file))]
    if not usable:
        raise ValueError(f"there is no {file} in any run of {env_name} in {log_path}: {hint}")
    for run in runs[: runs.index(usable[0])]:
        print(f"Skipping {run}, which has no {file}")
    return usable[0]


def read_train_args(run: Path, env_name: str) -> dict[str, Any]:
    """Arguments of the command that trained a run, none if it was not this one."""
    return _read_yaml(run / env_name / "args.yml")


def read_config(run: Path, env_name: str) -> dict[str, Any]:
    """Hyperparameters of a run as they were given, none if it was not trained by the Zoo."""
    return _read_yaml(run / env_name / "config.yml")


def read_before(run: Path, env_name: str) -> dict[str, Any]:
    """Steps of the checkpoint that a run was resumed from last, and the hyperparameters that it was written with."""
    return _read_yaml(run / env_name / BEFORE_FILE)


def _read_yaml(path: Path) -> dict[str, Any]:
    return dict(yaml.unsafe_load(path.read_text())) if path.is_file() else {}  # the Zoo saves objects


def checkpoint_steps(checkpoint: Path) -> int:
    """Steps at which a checkpoint of a run was written."""
    return int(checkpoint.stem.split("_")[-2])


def import_packages(names: Iterable[str]) -> None:
    """Import modules that register environments."""
    for name in names:
        try:
            import_module(name)
        except ModuleNotFoundError as error:
            if error.name != name.split(".")[0]:
                raise
            raise ValueError(f"--gym-packages: there is no module {name!r}; PYTHONPATH says where they lie") from error


def check_env(env_id: str) -> None:
    """Refuse an environment that is not registered."""
    if env_id in gym.registry:
        return
    ids = {name.lower(): name for name in gym.registry}
    suggestion = no_frameskip_id(env_id) or ids.get(next(iter(difflib.get_close_matches(env_id.lower(), ids)), ""))
    hint = f"did you mean {suggestion}? " if suggestion else ""
    raise ValueError(f"there is no environment {env_id!r}: {hint}--gym-packages names modules that register your own")


def no_frameskip_id(env_id: str) -> str | None:
    """
    The version of an Atari game, in any spelling, that the hyperparameters are made for; None if there is no such game.
    """
    game = env_id.lower().removeprefix("ale/").split("-")[0].removesuffix("deterministic").removesuffix("noframeskip")
    ids = {name.lower(): name for name in gym.registry}
    return ids.get(f"{game}noframeskip-v4")
