"""Environments saved in mid-episode, where that is possible without a loss."""

import io
import multiprocessing.process
import pickle
import warnings
from collections import Counter
from collections.abc import Iterable
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
    try:
        wrappers_state = _dump(venv, [_get_state(wrapper) for wrapper in wrappers])
    except NotRestorableError as error:
        raise NotRestorableError(f"a VecEnv wrapper cannot be saved in a checkpoint: {error}") from error
    made, now = settings.made_with(venv)
    pairs = list(zip(made, now, strict=False))
    unchanged = {k for a, b in pairs for k in a.keys() & b.keys() if all(x.get(k) == y.get(k) for x, y in pairs)}
    constants = [{k: text for k, text in noted.items() if k.is_argument or k in unchanged} for noted in made]
    state = EnvState(class_names(wrappers), wrappers_state, [], b"", "", constants)
    if not isinstance(base, DummyVecEnv):
        return state._replace(reason=f"{type(base).__name__} does not hold them in this process")
    envs = [layers_of(env) for env in base.envs]
    states = [[_get_state(layer) for layer in layers] for layers in envs]
    for setting in unchanged if without_constants else ():
        if made[-1].get(setting, "").startswith("<"):
            for env_state in states:
                env_state[setting.place].pop(setting.name, None)
    try:
        envs_state = _dump(venv, (_get_state(base), states))
    except NotRestorableError as error:
        return state._replace(reason=str(error))
    sizes: Counter[str] = Counter()
    if len(envs_state) >= LARGE:
        for layer, values in zip(chain(*envs), chain(*states), strict=True):
            for name, value in values.items():
                sizes[f"`{name}` of {type(layer).__name__}"] += len(_try_dump(venv, value))
    large = ", ".join(f"{name} ({size / 2**20:.1f} MB)" for name, size in sizes.items() if size >= LARGE)
    return state._replace(envs=[class_names(layers) for layers in envs], envs_state=envs_state, large=large)


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
    for wrapper, saved, kept in zip(wrappers, _load(venv, state.wrappers_state), of_wrappers, strict=True):
        _set_states([wrapper], [saved], kept)
    if reason or is_otherwise:
        return reason or OTHERWISE
    base_state, envs_state = _load(venv, state.envs_state)
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

    def __init__(self, file: io.BytesIO, venv: VecEnv) -> None:
        super().__init__(file, protocol=pickle.HIGHEST_PROTOCOL)
        self.names = {id(layer): name for name, layer in _named_layers(venv).items()}

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


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, venv: VecEnv) -> None:
        super().__init__(file)
        self.layers = _named_layers(venv)

    def persistent_load(self, pid: tuple[str, str]) -> Any:
        kind, name = pid
        return __import__(name, fromlist=["__name__"]) if kind == "module" else self.layers[name]


def _named_layers(venv: VecEnv) -> dict[str, Layer]:
    """Layers by names that are the same in another vectorized environment that was made in the same way."""
    vec_layers = layers_of(venv)
    layers: dict[str, Layer] = {f"wrapper {i}": layer for i, layer in enumerate(vec_layers)}
    for i, env in enumerate(vec_layers[-1].envs if isinstance(vec_layers[-1], DummyVecEnv) else ()):
        layers |= {f"environment {i}, wrapper {j}": layer for j, layer in enumerate(layers_of(env))}
    return layers


def _dump(venv: VecEnv, states: Any) -> bytes:
    try:
        return _try_dump(venv, states)
    except Exception as error:  # anything may be raised by objects that were not made to be pickled
        raise NotRestorableError(f"{_find_culprit(venv, states)} cannot be saved: {error}") from error


def _try_dump(venv: VecEnv, value: Any) -> bytes:
    file = io.BytesIO()
    _Pickler(file, venv).dump(value)
    return file.getvalue()


def _find_culprit(venv: VecEnv, states: Any) -> str:
    """The first attribute that cannot be pickled."""
    if not isinstance(states, dict):
        return next(filter(None, (_find_culprit(venv, state) for state in states)), "")
    for name, value in states.items():
        try:
            _try_dump(venv, value)
        except Exception:
            return f"the attribute `{name}`"
    return ""


def _load(venv: VecEnv, content: bytes) -> Any:
    return _Unpickler(io.BytesIO(content), venv).load()
