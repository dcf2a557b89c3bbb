"""What environments are made with: noted when a model gets them, and compared at a resume."""

import hashlib
import io
import pickle
from collections.abc import Iterable
from pathlib import PurePath
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any, NamedTuple, cast

import gymnasium as gym
import numpy as np
from gymnasium.utils import EzPickle
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv, VecEnvWrapper, VecMonitor

# A VecEnv, a wrapper of one, a gymnasium.Env or a wrapper of one
Layer = VecEnv | gym.Env[Any, Any]

MADE = "_made_with"  # attribute of a VecEnv that keeps what it was made with
LARGE = 2**20  # bytes of an attribute that is worth a word


class Setting(NamedTuple):
    """Name of something that an environment was made with."""

    place: int  # of the layer, from the outside
    owner: str  # class of the layer
    name: str  # of the attribute, or of an argument that is kept in none
    is_argument: bool  # given to the constructor. Other attributes may follow from what was


Made = dict[Setting, str]  # what a chain of layers was made with, as texts that can be compared

# Attributes that lead to another layer, belong to the process, or are written anew at every step
NOT_STATE: tuple[tuple[type, frozenset[str]], ...] = (
    (VecEnv, frozenset({"reset_infos", "metadata", "render_mode", MADE})),
    (VecEnvWrapper, frozenset({"venv", "class_attributes"})),
    (VecMonitor, frozenset({"results_writer"})),
    (DummyVecEnv, frozenset({"envs", "buf_obs", "buf_rews", "buf_dones", "buf_infos", "actions"})),
    (gym.Env, frozenset({"spec", "_cached_spec", "metadata", "_metadata", "render_mode"})),
    (gym.Wrapper, frozenset({"env"})),
    (Monitor, frozenset({"results_writer"})),
    (EzPickle, frozenset({"_ezpickle_args", "_ezpickle_kwargs"})),
)
# Values that say how to compute rather than what is the case: those of the new environment are kept
FUNCTIONS = (FunctionType, BuiltinFunctionType, MethodType)


def layers_of(env: Any) -> list[Any]:
    """:return: the wrappers of a ``VecEnv`` or of an environment, from the outside, and what they wrap"""
    layers = [env]
    while isinstance(env, VecEnvWrapper | gym.Wrapper):
        env = env.venv if isinstance(env, VecEnvWrapper) else env.env
        layers.append(env)
    return layers


def class_names(layers: Iterable[Layer]) -> list[str]:
    # RL Zoo, where it is imported, makes gymnasium use its PatchedTimeLimit for TimeLimit
    return [type(layer).__name__.removeprefix("Patched") for layer in layers]


def attributes(layer: Layer) -> dict[str, Any]:
    """:return: what a layer itself was made with, or has become"""
    excluded = frozenset[str]().union(*(names for cls, names in NOT_STATE if isinstance(layer, cls)))
    return {
        name: value
        for name, value in getattr(layer, "__dict__", {}).items()
        if name not in excluded and not isinstance(value, FUNCTIONS) and package(value) != "pygame"
    }


def package(value: Any) -> str:
    # Types made in C may have no module
    return str(getattr(type(value), "__module__", "")).partition(".")[0]


def note_made(venv: VecEnv) -> None:
    """Remember what an environment was made with, at the first look at it. What changes from then on is its state."""
    for layer in layers_of(venv):
        if MADE not in vars(layer):
            vars(layer)[MADE] = _describe_layer(layer)


def made_with(venv: VecEnv) -> tuple[list[Made], list[Made]]:
    """:return: what was noted of each wrapper and then of each environment, and the same now; nothing without a note"""
    layers = layers_of(venv)
    if not all(MADE in vars(layer) for layer in layers):
        return [], []
    made = [made for layer in layers for made in vars(layer)[MADE]]
    return made, [now for layer in layers for now in _describe_layer(layer)]


def _describe_layer(layer: VecEnv) -> list[Made]:
    """What a wrapper has, or each environment: nothing if they are in other processes and busy."""
    if isinstance(layer, DummyVecEnv):
        return [_describe(layers_of(env), with_large=True) for env in layer.envs]
    if not isinstance(layer, SubprocVecEnv):
        return [_describe([layer])]
    is_idle = not layer.waiting and not layer.closed
    return layer.get_attr(MADE) if is_idle and all(layer.env_is_wrapped(_Question())) else []  # type: ignore[arg-type]


class _Question:
    """
    Asks environments in other processes what they were made with. A worker that is asked for an attribute dies if this
    cannot be sent; but ``env_is_wrapped`` calls ``isinstance`` there, which calls this.
    """

    def __instancecheck__(self, env: Any) -> bool:
        try:
            vars(env)[MADE] = _describe(layers_of(env))
        except Exception:  # would end the process
            return False
        return True


def _describe(layers: Iterable[Layer], with_large: bool = False) -> Made:
    made = {}
    for place, layer in enumerate(layers):
        codes = [getattr(cls.__init__, "__code__", None) for cls in type(layer).__mro__]  # type: ignore[misc]
        names = {name for c in codes if c for name in c.co_varnames[: c.co_argcount + c.co_kwonlyargcount]}
        values = attributes(layer)
        given = dict(values.pop("_saved_kwargs", {}))  # as wrappers of Gymnasium keep their arguments
        if not isinstance(layer, gym.Wrapper | VecEnv):
            given = dict(getattr(getattr(layer, "spec", None), "kwargs", None) or {})
            given.pop("render_mode", None)
        given = {name: value for name, value in given.items() if not {name, f"_{name}"} & values.keys()}
        for name, value in (given | values).items():
            text = _as_text(value)
            if text is None and with_large:
                text = _digest(value)
            if text is not None:
                # Where a file lies changes from machine to machine, and makes no other environment
                is_argument = (name in given or name.lstrip("_") in names) and not ("'" in text and "/" in text)
                made[Setting(place, class_names([layer])[0], name, is_argument)] = text
    return made


def _as_text(value: Any) -> str | None:
    """Numbers, texts, paths and small collections of these as a text to compare; None for all else."""
    if isinstance(value, np.generic | np.ndarray) and value.size <= 20 and value.dtype.kind in "biuf":
        value = value.tolist()
    if value is None or type(value) in (bool, int, str) or isinstance(value, PurePath):
        return repr(value)
    if type(value) is float:
        return None if 1e9 < value < 1e10 else repr(value)  # a reading of the clock
    if type(value) in (tuple, list, dict) and len(value) <= 20:
        texts = [_as_text(element) for element in (value.items() if isinstance(value, dict) else value)]
        return None if None in texts else f"[{', '.join(cast(list[str], texts))}]"
    return None


class _DataPickler(pickle.Pickler):
    """Refuses environments, and what holds a model of MuJoCo, which is no data set and pickles slowly."""

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, gym.Env | VecEnv) or package(obj) == "mujoco":
            raise TypeError
        return NotImplemented


def _digest(value: Any) -> str | None:
    """Large objects as a text to compare; None for others."""
    file, buffers = io.BytesIO(), list[pickle.PickleBuffer]()
    try:
        _DataPickler(file, 5, buffer_callback=buffers.append).dump(value)
        parts = [file.getbuffer(), *(buffer.raw() for buffer in buffers)]
    except Exception:  # anything may be raised by objects that were not made to be pickled
        return None
    size, sha = sum(part.nbytes for part in parts), hashlib.sha256()
    if size < LARGE:
        return None
    for part in parts:
        sha.update(part)
    return f"<{size / 2**20:.1f} MB, SHA-256 {sha.hexdigest()[:12]}>"


def find_differences(old: list[Made], new: list[Made]) -> dict[Setting, str]:
    """:return: what environments were made with otherwise, each with a text that says how"""
    differing = {}
    for setting in sorted(set[Setting]().union(*old, *new) if old else ()):
        pairs = [(a.get(setting), b.get(setting)) for a, b in zip(old, new, strict=False)]
        before, now = next((pair for pair in pairs if pair[0] != pair[1]), (None, None))
        # Numbers that differ from one environment to the next were drawn by chance, and are state
        is_by_chance = len(set(pairs)) > 1 and "'" not in f"{before}{now}"
        if before != now and (setting.is_argument or not (is_by_chance or before is None or now is None)):
            differing[setting] = (
                f"{setting.owner} `{setting.name}` {now or 'not given'} instead of {before or 'not given'}"
            )
    return differing
