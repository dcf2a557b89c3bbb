"""A repository on the Hugging Face Hub: its files, its upload, and what it says of the environment."""

import importlib
import json
import pickle
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gymnasium as gym
from stable_baselines3.common.vec_env import SubprocVecEnv, VecEnv

from sb3_dapo.export import DESCRIPTION, PARAMETERS, STATISTICS, ExportError

EXPORT, CARD, RESULTS, STATISTICS_PICKLE = "export", "README.md", "results.json", "vec_normalize.pkl"
# Other files that RL Zoo uploads and reads
METRICS, VIDEO, CURVE = "train_eval_metrics.zip", "replay.mp4", "learning_curve.png"
CONFIGS = ("args.yml", "config.yml", "env_kwargs.yml")
EXPORT_FILES = (DESCRIPTION, PARAMETERS, STATISTICS)
# What an upload replaces, or removes if it brings no such file: of another agent, it would be misleading
GENERATED = [f"{EXPORT}/*", RESULTS, STATISTICS_PICKLE, *CONFIGS, METRICS, VIDEO, CURVE]

# Extras of this package by the beginning of an environment's entry point
EXTRAS = {"gymnasium.envs.box2d": "box2d", "gymnasium.envs.mujoco": "mujoco", "ale_py": "atari", "minatar": "minatar"}


def client() -> Any:
    """:return: the module ``huggingface_hub``"""
    try:
        return importlib.import_module("huggingface_hub")
    except ModuleNotFoundError as error:
        if error.name != "huggingface_hub":
            raise
        message = "the Hugging Face Hub needs its client: pip install 'sb3-dapo[hub]'"
        raise ModuleNotFoundError(message, name=error.name) from error


def upload(api: Any, repo_id: str, folder: Path, message: str) -> Any:
    """Upload by the Hub's client what a repository shall hold, and return what it says of the commit."""
    patterns = [*GENERATED, f"{repo_id.split('/')[-1]}/*"]
    return api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message=message, delete_patterns=patterns)


@contextmanager
def copied_export(folder: Path, repo_id: str) -> Iterator[Path]:
    """:return: the exported model in a folder that was downloaded, without the links that the client's cache has"""
    if not (folder / EXPORT / DESCRIPTION).is_file():
        raise ValueError(
            f"`repo_id` must name a repository with an exported model, a folder {EXPORT!r} with {DESCRIPTION}, got "
            f"{repo_id!r}, which has none. If it has a zip file, and you trust its author with running code on this "
            f"machine, pass `trust_pickle=True`"
        )
    with tempfile.TemporaryDirectory() as temporary:
        copy = shutil.copytree(folder / EXPORT, Path(temporary, EXPORT))
        try:
            yield copy
        except ExportError as error:
            raise ExportError(str(error).replace(str(copy), f"{repo_id}/{EXPORT}")) from error


def read_description(folder: Path) -> dict[str, Any]:
    """:return: the description of an own exported model, in a folder with what a repository shall hold"""
    return dict(json.loads((folder / EXPORT / DESCRIPTION).read_text()))


# --- the environment ----------------------------------------------------------------------------------


class PlainSpec:
    """
    ``env_is_wrapped(PlainSpec())`` tells whether a ``spec`` can be sent from one process to another: a
    ``SubprocVecEnv`` would lose a worker that is asked for one that cannot.
    """

    def __instancecheck__(self, env: Any) -> bool:
        try:
            return bool(pickle.dumps(env.spec))
        except Exception:
            return False


def find_env_id(env: VecEnv | None) -> str | None:
    """:return: what ``gymnasium.make`` calls an environment, which may be closed; None if that is not known"""
    try:
        is_remote = env is not None and isinstance(env.unwrapped, SubprocVecEnv)
        if env is None or (is_remote and not env.env_is_wrapped(PlainSpec(), 0)[0]):  # type: ignore[arg-type]
            return None
        return str(env.get_attr("spec", 0)[0].id)
    except Exception:  # whatever comes of an environment that is closed, or knows no such attribute
        return None


def entry_point(env_id: str | None) -> str:
    """:return: the module that an environment comes from, empty if that is not known"""
    point = None if env_id is None or env_id not in gym.registry else gym.spec(env_id).entry_point
    return point.partition(":")[0] if isinstance(point, str) else getattr(point, "__module__", "")


def foreign_module(env_id: str | None) -> str:
    """:return: package that an environment comes from, empty if that is not known, or installed with this one"""
    package = entry_point(env_id).partition(".")[0]
    return "" if package in ("gymnasium", "ale_py", "minatar", "__main__") else package


def requirement(env_id: str | None, *extras: str) -> str:
    """:return: what to install to play in an environment, as pip's argument, with the Hub's extra and others"""
    module = entry_point(env_id)
    of_env = [extra for prefix, extra in EXTRAS.items() if module.startswith(prefix)]
    return f"sb3-dapo[{','.join(['hub', *extras, *of_env])}]"
