"""Environments saved in mid-episode, where that is possible without a loss."""

import io
import multiprocessing.process
import pickle
import warnings
from collections import Counter
from collections.abc import Iterable
from importlib import import_module
from itertools import chain, zip_longest
from multiprocessing.connection import Connection
from types import ModuleType
from typing import Any, NamedTuple, cast

import gymnasium as gym
from gymnasium.utils import EzPickle
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

import sb3_dapo.checkpoint.settings as settings
from sb3_dapo.checkpoint.settings import LARGE, Layer, Made, Setting, attributes, class_names, layers_of

OTHERWISE = "they are made otherwise"  # a reason that set_env_state has warned of


class EnvState(NamedTuple):
    """
    State of a vectorized environment; all of it can be pickled. The attributes of each layer are saved by themselves,
    as pickling the objects would not do: VecNormalize leaves out its running returns, and an EzPickle environment keeps
    only the arguments of its constructor.
    """

    wrappers: list[str]  # classes of the wrappers of the VecEnv, from the outside
    wrappers_state: bytes
    envs: list[list[str]]  # the same per environment, and its own class. Empty if they cannot be saved
    envs_state: bytes
    reason: str  # why the environments cannot be saved; empty if they are
    # What the wrappers, and then each environment, were made with. Empty in files of version 0.1.0
    made: list[Made] = []  # noqa: RUF012
    large: str = ""  # attributes that take much space


class NotRestorableError(ValueError):
    """An environment has state that cannot be saved and restored."""


def get_env_state(venv: VecEnv, without_constants: bool = False) -> EnvState:
    """
    :param venv: a vectorized environment
    :param without_constants: leave out large attributes of the environments that are as they were made
    :return: the state of its wrappers and, where it can be saved without a loss, of its environments
    :raises NotRestorableError: if a wrapper of the ``VecEnv`` cannot be saved
    """
    *wrappers, base = layers_of(venv)
    names = {id(layer): name for name, layer in _named_layers(venv).items()}
    wrapper_states = [_get_state(wrapper) for wrapper in wrappers]
    try:
        _measure(wrappers, wrapper_states, names)
    except NotRestorableError as error:
        raise NotRestorableError(f"a VecEnv wrapper cannot be saved in a checkpoint: {error}") from error
    made, now = settings.made_with(venv)
    pairs = zip_longest(made, now, fillvalue=settings.Made())
    changed = {k for a, b in pairs for k in a.keys() | b.keys() if a.get(k) != b.get(k)}
    constants = [{k: text for k, text in noted.items() if k.is_argument or k not in changed} for noted in made]
    state = EnvState(class_names(wrappers), _dump(wrapper_states, names), [], b"", "", constants)
    if not isinstance(base, DummyVecEnv):
        return state._replace(reason=f"{type(base).__name__} does not hold them in this process")
    envs = [layers_of(env) for env in base.envs]
    base_state, states = _get_state(base), [[_get_state(layer) for layer in layers] for layers in envs]
    for setting, text in made[-1].items() if made and without_constants else ():
        if text.startswith("<") and setting not in changed:
            for env_state in states:
                env_state[setting.place].pop(setting.name, None)
    try:
        sizes = _measure([base, *chain(*envs)], [base_state, *chain(*states)], names)
    except NotRestorableError as error:
        return state._replace(reason=str(error))
    envs_state = _dump((base_state, states), names)
    # What layers share is written once, but counts for each of them
    large = [f"{name} ({size / 2**20:.1f} MB)" for name, size in sizes.items() if size >= LARGE <= len(envs_state)]
    return state._replace(envs=[class_names(layers) for layers in envs], envs_state=envs_state, large=", ".join(large))


def set_env_state(venv: VecEnv, state: EnvState) -> str:
    """
    Bring a vectorized environment into a state. What it was made with stays as it is, and a warning says what differs
    from the one that was saved. Environments that were given other arguments are left as they are.

    :param venv: the vectorized environment, made like the one whose state it is
    :param state: its state
    :return: why the environments were left as they are; empty if they were not
    :raises ValueError: if the environment has other wrappers
    """
    *wrappers, base = layers_of(venv)
    if class_names(wrappers) != state.wrappers:
        raise ValueError(
            f"`env` must be made like the environment of the checkpoint, whose VecEnv wrappers are {state.wrappers}, "
            f"got {class_names(wrappers)}"
        )
    reason = state.reason or ("" if isinstance(base, DummyVecEnv) else f"they are in a {type(base).__name__} now")
    envs = [] if reason else [layers_of(env) for env in base.envs]
    pairs = zip_longest(map(class_names, envs), [] if reason else state.envs, fillvalue="none")
    for index, (names, expected) in enumerate(pairs):
        if names != expected:
            raise ValueError(
                f"`env` must be made like the environment of the checkpoint: number {index} is {expected} there, got "
                f"{names}"
            )
    settings.note_made(venv)
    made, n = settings.made_with(venv)[0], len(wrappers)
    of_wrappers = [settings.find_differences(state.made[i : i + 1], made[i : i + 1]) for i in range(n)]
    of_envs = settings.find_differences(state.made[n:], made[n:])
    texts = [text for differing in (*of_wrappers, of_envs) for text in differing.values()]
    for text in texts:
        if text.startswith("VecNormalize `norm_obs_keys`"):
            raise ValueError(f"`env` must normalize the same parts of observations as in the checkpoint, got {text}")
    is_otherwise = any(setting.is_argument for setting in of_envs)
    if texts:
        warnings.warn(
            f"The environment is made otherwise than that of the checkpoint: {', '.join(texts)}. The new values are "
            f"used{' and new episodes begin' if is_otherwise else ''}, so the run may differ from an uninterrupted one",
            stacklevel=4,
        )
    wrapper_states = StateUnpickler(state.wrappers_state, venv).load()
    for wrapper, saved, kept in zip(wrappers, wrapper_states, of_wrappers, strict=True):
        _set_states([wrapper], [saved], kept)
    if reason or is_otherwise:
        return reason or OTHERWISE
    base_state, envs_state = StateUnpickler(state.envs_state, venv).load()
    _set_states([base], [base_state])
    for layers, saved in zip(envs, envs_state, strict=True):
        _set_states(layers, saved, of_envs)
    return ""


# --- the state of a layer -------------------------------------------------------------------------


def _get_state(layer: Layer) -> dict[str, Any]:
    state = attributes(layer)
    if _is_atari(layer):
        # The emulator cannot be pickled, but clones its state, random generator included
        state["ale"] = cast(Any, layer).clone_state(include_rng=True)
    return state


def _set_states(layers: list[Any], states: list[dict[str, Any]], kept: Iterable[Setting] = ()) -> None:
    for place, (layer, saved) in enumerate(zip(layers, states, strict=True)):
        names = {setting.name for setting in kept if setting.place == place}
        state = {name: value for name, value in saved.items() if name not in names}
        if _is_atari(layer):
            layer.restore_state(state.pop("ale"))
        vars(layer).update(state)


def _is_atari(layer: Layer) -> bool:
    return "ale" in vars(layer) and hasattr(layer, "clone_state")


class _Pickler(pickle.Pickler):
    """Pickles attributes of layers: references to layers stay references, and what would lose state is refused."""

    def __init__(self, file: io.BytesIO, names: dict[int, str]) -> None:
        super().__init__(file, protocol=pickle.HIGHEST_PROTOCOL)
        self.names = names  # of layers, by their id

    def persistent_id(self, obj: Any) -> tuple[str, str] | None:
        # Modules in C may hold state of their own, as PyBullet does
        if isinstance(obj, ModuleType) and str(getattr(obj, "__file__", "")).endswith(".py"):
            return "module", obj.__name__
        name = self.names.get(id(obj))
        return None if name is None else ("layer", name)

    def reducer_override(self, obj: Any) -> Any:
        hides_state = isinstance(obj, gym.Env | VecEnv | EzPickle | Connection | multiprocessing.process.BaseProcess)
        if hides_state or settings.package(obj).startswith("pybullet"):
            raise NotRestorableError(f"a {type(obj).__name__} would lose its state")
        return NotImplemented


class StateUnpickler(pickle.Unpickler):
    """Reads what a checkpoint says of environments, also one of version 0.1; references only with the environments."""

    def __init__(self, content: bytes, venv: VecEnv | None = None) -> None:
        super().__init__(io.BytesIO(content))
        self.layers = None if venv is None else _named_layers(venv)

    def find_class(self, module: str, name: str) -> Any:
        return EnvState if (module, name) == ("sb3_dapo.env_state", "EnvState") else super().find_class(module, name)

    def persistent_load(self, pid: tuple[str, str]) -> Any:
        kind, name = pid
        if self.layers is None:
            return None
        return import_module(name) if kind == "module" else self.layers[name]


def _named_layers(venv: VecEnv) -> dict[str, Layer]:
    """Layers by names that are the same in another vectorized environment that was made in the same way."""
    vec_layers = layers_of(venv)
    layers: dict[str, Layer] = {f"wrapper {i}": layer for i, layer in enumerate(vec_layers)}
    for i, env in enumerate(vec_layers[-1].envs if isinstance(vec_layers[-1], DummyVecEnv) else ()):
        layers |= {f"environment {i}, wrapper {j}": layer for j, layer in enumerate(layers_of(env))}
    return layers


def _dump(value: Any, names: dict[int, str]) -> bytes:
    file = io.BytesIO()
    _Pickler(file, names).dump(value)
    return file.getvalue()


def _measure(layers: list[Layer], states: list[dict[str, Any]], names: dict[int, str]) -> Counter[str]:
    """:return: bytes that attributes of layers take. One that cannot be pickled is refused"""
    sizes: Counter[str] = Counter()
    for layer, state in zip(layers, states, strict=True):
        for name, value in state.items():
            try:
                sizes[f"`{name}` of {type(layer).__name__}"] += len(_dump(value, names))
            except Exception as error:  # anything may be raised by objects that were not made to be pickled
                raise NotRestorableError(f"the attribute `{name}` cannot be saved: {error}") from error
    return sizes
