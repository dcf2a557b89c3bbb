"""The runs that commands name, and the environments in them."""

import difflib
from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from typing import Any

import gymnasium as gym
import yaml


def list_runs(log_path: Path, env_name: str) -> list[Path]:
    """
    :param log_path: folder of an algorithm's runs
    :param env_name: environment
    :return: folders of its runs, the latest first
    """
    numbered = []
    for path in log_path.iterdir() if log_path.is_dir() else ():
        name, _, number = path.name.rpartition("_")
        if name == env_name and number.isdecimal() and path.is_dir():
            numbered.append((int(number), path))
    return [path for _, path in sorted(numbered, reverse=True)]


def find_run(log_path: Path, env_name: str, exp_id: int, file: str, hint: str) -> Path:
    """
    :param log_path: folder of an algorithm's runs
    :param env_name: environment
    :param exp_id: number of the run; 0: the latest with the file, -1: `log_path` itself
    :param file: what the command needs, `*` standing for anything
    :param hint: what to do if it is missing
    :return: folder of the run
    :raises ValueError: if there is none
    """
    runs = list_runs(log_path, env_name)
    if exp_id != 0:
        path = log_path if exp_id < 0 else log_path / f"{env_name}_{exp_id}"
        if not path.is_dir():
            existing = ", ".join(run.name.rpartition("_")[2] for run in reversed(runs)) or "none"
            raise ValueError(
                f"there is no run in {path}: choose another --exp-id (of {env_name} there are: {existing})"
            )
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
    """
    :param run: folder of a run
    :param env_name: its environment
    :return: arguments of the command that trained, none if it was not this one
    """
    path = run / env_name / "args.yml"
    args: dict[str, Any] = dict(yaml.unsafe_load(path.read_text())) if path.is_file() else {}  # the Zoo saves objects
    return args


def read_config(run: Path, env_name: str) -> dict[str, Any]:
    """
    :param run: folder of a run
    :param env_name: its environment
    :return: its hyperparameters as they were given, none if it was not trained by the Zoo
    """
    path = run / env_name / "config.yml"
    config: dict[str, Any] = dict(yaml.unsafe_load(path.read_text())) if path.is_file() else {}  # as above
    return config


def checkpoint_steps(checkpoint: Path) -> int:
    """
    :param checkpoint: a checkpoint of a run
    :return: steps at which it was written
    """
    return int(checkpoint.stem.split("_")[-2])


def import_packages(names: Iterable[str]) -> None:
    """
    :param names: modules that register environments
    :raises ValueError: if one does not exist
    """
    for name in names:
        try:
            import_module(name)
        except ModuleNotFoundError as error:
            if error.name != name.split(".")[0]:
                raise
            raise ValueError(f"--gym-packages: there is no module {name!r}; PYTHONPATH says where they lie") from error


def check_env(env_id: str) -> None:
    """
    :param env_id: environment
    :raises ValueError: if it is not registered
    """
    if env_id in gym.registry:
        return
    ids = {name.lower(): name for name in gym.registry}
    suggestion = no_frameskip_id(env_id) or ids.get(next(iter(difflib.get_close_matches(env_id.lower(), ids)), ""))
    hint = f"did you mean {suggestion}? " if suggestion else ""
    raise ValueError(f"there is no environment {env_id!r}: {hint}--gym-packages names modules that register your own")


def no_frameskip_id(env_id: str) -> str | None:
    """
    :param env_id: game of Atari, in any version and spelling
    :return: its version that the hyperparameters are made for, None if there is no such game
    """
    game = env_id.lower().removeprefix("ale/").split("-")[0].removesuffix("deterministic").removesuffix("noframeskip")
    ids = {name.lower(): name for name in gym.registry}
    return ids.get(f"{game}noframeskip-v4")
