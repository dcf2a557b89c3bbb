"""Environments saved in mid-episode, where that is possible without a loss."""

import io
import multiprocessing.process
import pickle
from collections.abc import Iterator
from multiprocessing.connection import Connection
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any, NamedTuple, cast

import gymnasium as gym
from gymnasium.utils import EzPickle
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecEnvWrapper, VecMonitor

# A VecEnv, a wrapper of one, a gymnasium.Env or a wrapper of one. The attributes of each are saved by themselves, as
# pickling the objects would not do: VecNormalize leaves out its running returns, and an EzPickle environment keeps only
# the arguments of its constructor.
Layer = VecEnv | gym.Env[Any, Any]

# Attributes that lead to another layer, belong to the process, or are written anew at every step
NOT_STATE: tuple[tuple[type, frozenset[str]], ...] = (
    (VecEnv, frozenset({"reset_infos", "metadata", "render_mode"})),
    (VecEnvWrapper, frozenset({"venv", "class_attributes"})),
    (VecMonitor, frozenset({"results_writer"})),
    (DummyVecEnv, frozenset({"envs", "buf_obs", "buf_rews", "buf_dones", "buf_infos", "actions"})),
    (gym.Env, frozenset({"spec", "_cached_spec", "metadata", "_metadata", "render_mode"})),
    (gym.Wrapper, frozenset({"env"})),
    (Monitor, frozenset({"results_writer"})),
)
# Values that say how to compute rather than what is the case: those of the new environment are kept
FUNCTIONS = (FunctionType, BuiltinFunctionType, MethodType)


class EnvState(NamedTuple):
    """State of a vectorized environment; all of it can be pickled."""

    wrappers: list[str]
    """Classes of the wrappers of the ``VecEnv``, from the outside."""
    wrappers_state: bytes
    envs: list[list[str]]
    """Per environment the classes of its wrappers, from the outside, and its own. Empty if they cannot be saved."""
    envs_state: bytes
    reason: str
    """Why the environments cannot be saved; empty if they are."""


class NotRestorableError(Exception):
    """An environment has state that cannot be saved and restored."""


def get_env_state(venv: VecEnv) -> EnvState:
    """
    :param venv: a vectorized environment
    :return: the state of its wrappers and, where it can be saved without a loss, of its environments
    :raises NotRestorableError: if a wrapper of the ``VecEnv`` cannot be saved
    """
    *wrappers, base = _vec_layers(venv)
    wrappers_state = _dump(venv, [_get_state(wrapper) for wrapper in wrappers])
    envs: list[list[str]] = []
    envs_state, reason = b"", ""
    try:
        if not isinstance(base, DummyVecEnv):
            raise NotRestorableError(f"{type(base).__name__} does not hold them in this process")
        chains = [list(_env_layers(env)) for env in base.envs]
        state = _get_state(base), [[_get_state(layer) for layer in chain] for chain in chains]
        envs_state = _dump(venv, state)
        envs = [_class_names(chain) for chain in chains]
    except NotRestorableError as error:
        reason = str(error)
    return EnvState(_class_names(wrappers), wrappers_state, envs, envs_state, reason)


def set_env_state(venv: VecEnv, state: EnvState) -> str:
    """
    Bring a vectorized environment into a state.

    :param venv: the vectorized environment, made like the one whose state it is
    :param state: its state
    :return: why the environments were left as they are; empty if they were not
    :raises ValueError: if the environment has other wrappers
    """
    *wrappers, base = _vec_layers(venv)
    if _class_names(wrappers) != state.wrappers:
        raise ValueError(
            f"`env` must be made like the environment of the checkpoint, whose VecEnv wrappers are {state.wrappers}, "
            f"got {_class_names(wrappers)}"
        )
    chains = [list(_env_layers(env)) for env in base.envs] if isinstance(base, DummyVecEnv) else []
    is_restorable = not state.reason and isinstance(base, DummyVecEnv)
    if is_restorable:
        _check_same_envs([_class_names(chain) for chain in chains], state.envs)
    for wrapper, saved in zip(wrappers, _load(venv, state.wrappers_state), strict=True):
        _set_state(wrapper, saved)
    if not is_restorable:
        return state.reason or f"they are in a {type(base).__name__} now"
    base_state, envs_state = _load(venv, state.envs_state)
    _set_state(base, base_state)
    for chain, saved_chain in zip(chains, envs_state, strict=True):
        for layer, saved in zip(chain, saved_chain, strict=True):
            _set_state(layer, saved)
    return ""


def _check_same_envs(envs: list[list[str]], expected: list[list[str]]) -> None:
    if len(envs) != len(expected):
        raise ValueError(f"`env` must hold {len(expected)} environments, as that of the checkpoint, got {len(envs)}")
    for index, (names, expected_names) in enumerate(zip(envs, expected, strict=True)):
        if names != expected_names:
            raise ValueError(
                f"`env` must be made like the environment of the checkpoint: number {index} is {expected_names} there, "
                f"got {names}"
            )


def _vec_layers(venv: VecEnv) -> Iterator[VecEnv]:
    while isinstance(venv, VecEnvWrapper):
        yield venv
        venv = venv.venv
    yield venv


def _env_layers(env: gym.Env[Any, Any]) -> Iterator[gym.Env[Any, Any]]:
    while isinstance(env, gym.Wrapper):
        yield env
        env = env.env
    yield env


def _class_names(layers: list[Any]) -> list[str]:
    # RL Zoo, where it is imported, makes gymnasium use its PatchedTimeLimit for TimeLimit
    return [type(layer).__name__.removeprefix("Patched") for layer in layers]


def _get_state(layer: Layer) -> dict[str, Any]:
    excluded = frozenset[str]().union(*(names for cls, names in NOT_STATE if isinstance(layer, cls)))
    state = {
        name: value
        for name, value in vars(layer).items()
        if name not in excluded and not isinstance(value, FUNCTIONS) and _package(value) != "pygame"
    }
    if _is_atari(layer):
        # The emulator cannot be pickled, but clones its state, random generator included
        state["ale"] = cast(Any, layer).clone_state(include_rng=True)
    return state


def _set_state(layer: Layer, state: dict[str, Any]) -> None:
    state = dict(state)
    if _is_atari(layer):
        cast(Any, layer).restore_state(state.pop("ale"))
    vars(layer).update(state)


def _package(value: Any) -> str:
    # Types made in C may have no module
    return str(getattr(type(value), "__module__", "")).partition(".")[0]


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
        if hides_state or _package(obj).startswith("pybullet"):
            raise NotRestorableError(f"a {type(obj).__name__} would lose its state")
        return NotImplemented


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, venv: VecEnv) -> None:
        super().__init__(file)
        self.layers = _named_layers(venv)

    def persistent_load(self, pid: tuple[str, str]) -> Any:
        kind, name = pid
        if kind == "module":
            return __import__(name, fromlist=["__name__"])
        return self.layers[name]


def _named_layers(venv: VecEnv) -> dict[str, Layer]:
    """Layers by names that are the same in another vectorized environment that was made in the same way."""
    vec_layers = list(_vec_layers(venv))
    layers: dict[str, Layer] = {f"wrapper {i}": layer for i, layer in enumerate(vec_layers)}
    if isinstance(vec_layers[-1], DummyVecEnv):
        for i, env in enumerate(vec_layers[-1].envs):
            layers |= {f"environment {i}, wrapper {j}": layer for j, layer in enumerate(_env_layers(env))}
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
    if isinstance(states, dict):
        for name, value in states.items():
            try:
                _try_dump(venv, value)
            except Exception:
                return f"the attribute `{name}`"
        return ""
    return next(filter(None, (_find_culprit(venv, state) for state in states)), "")


def _load(venv: VecEnv, content: bytes) -> Any:
    return _Unpickler(io.BytesIO(content), venv).load()
