"""Environments saved in mid-episode, where that is possible without a loss."""

import hashlib
import io
import multiprocessing.process
import pickle
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import PurePath
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any, NamedTuple, cast

import gymnasium as gym
import numpy as np
from gymnasium.utils import EzPickle
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv, VecEnvWrapper, VecMonitor

# A VecEnv, a wrapper of one, a gymnasium.Env or a wrapper of one. The attributes of each are saved by themselves, as
# pickling the objects would not do: VecNormalize leaves out its running returns, and an EzPickle environment keeps only
# the arguments of its constructor.
Layer = VecEnv | gym.Env[Any, Any]

MADE = "_made_with"  # attribute of a VecEnv that keeps what it was made with
LARGE = 2**20  # bytes of an attribute that is worth a word
OTHERWISE = "they are made otherwise"  # a reason that set_env_state has warned of


class Setting(NamedTuple):
    """
    Name of something that an environment was made with.

    :param place: of the layer, from the outside
    :param owner: class of the layer
    :param name: of the attribute, or of an argument that is kept in none
    :param is_argument: whether it was given to the constructor. Other attributes may follow from what was
    """

    place: int
    owner: str
    name: str
    is_argument: bool


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
    made: list[Made] = []  # noqa: RUF012
    """What the wrappers, and then each environment, were made with. Empty in files of version 0.1.0."""
    large: str = ""
    """Attributes that take much space; empty if there are none."""


class NotRestorableError(ValueError):
    """An environment has state that cannot be saved and restored."""


def get_env_state(venv: VecEnv, without_constants: bool = False) -> EnvState:
    """
    :param venv: a vectorized environment
    :param without_constants: leave out large attributes of the environments that are as they were made
    :return: the state of its wrappers and, where it can be saved without a loss, of its environments
    :raises NotRestorableError: if a wrapper of the ``VecEnv`` cannot be saved
    """
    *wrappers, base = _vec_layers(venv)
    try:
        wrappers_state = _dump(venv, [_get_state(wrapper) for wrapper in wrappers])
    except NotRestorableError as error:
        raise NotRestorableError(f"a VecEnv wrapper cannot be saved in a checkpoint: {error}") from error
    made = _made_with(venv)
    now = [*(_describe([wrapper]) for wrapper in wrappers), *_describe_envs(base)] if made else []
    pairs = list(zip(made, now, strict=False))
    unchanged = {k for a, b in pairs for k in a.keys() & b.keys() if all(x.get(k) == y.get(k) for x, y in pairs)}
    envs: list[list[str]] = []
    envs_state, reason, large = b"", "", ""
    try:
        if not isinstance(base, DummyVecEnv):
            raise NotRestorableError(f"{type(base).__name__} does not hold them in this process")
        chains = [list(_env_layers(env)) for env in base.envs]
        states = [[_get_state(layer) for layer in chain] for chain in chains]
        for setting in unchanged if without_constants else ():
            if made[-1].get(setting, "").startswith("<"):
                for chain_state in states:
                    chain_state[setting.place].pop(setting.name, None)
        envs_state = _dump(venv, (_get_state(base), states))
        envs = [_class_names(chain) for chain in chains]
        if len(envs_state) >= LARGE:
            large = _describe_large(venv, chains, states)
    except NotRestorableError as error:
        reason = str(error)
    constants = [{k: text for k, text in chain.items() if k.is_argument or k in unchanged} for chain in made]
    return EnvState(_class_names(wrappers), wrappers_state, envs, envs_state, reason, constants, large)


def _describe_large(venv: VecEnv, chains: list[list[Any]], states: list[list[dict[str, Any]]]) -> str:
    sizes: Counter[str] = Counter()
    for chain, chain_state in zip(chains, states, strict=True):
        for layer, state in zip(chain, chain_state, strict=True):
            for name, value in state.items():
                sizes[f"`{name}` of {type(layer).__name__}"] += len(_try_dump(venv, value))
    return ", ".join(f"{name} ({size / 2**20:.1f} MB)" for name, size in sizes.items() if size >= LARGE)


def set_env_state(venv: VecEnv, state: EnvState) -> str:
    """
    Bring a vectorized environment into a state. What it was made with stays as it is, and a warning says what differs
    from the one that was saved. Environments that were given other arguments are left as they are.

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
    note_made(venv)
    made, n = _made_with(venv), len(wrappers)
    of_wrappers = [_find_differences(state.made[i : i + 1], made[i : i + 1]) for i in range(n)]
    of_envs = _find_differences(state.made[n:], made[n:])
    for setting, text in ((setting, text) for differing in of_wrappers for setting, text in differing.items()):
        if (setting.owner, setting.name) == ("VecNormalize", "norm_obs_keys"):
            raise ValueError(f"`env` must normalize the same parts of observations as in the checkpoint, got {text}")
    is_otherwise = any(setting.is_argument for setting in of_envs)
    texts = [text for differing in (*of_wrappers, of_envs) for text in differing.values()]
    if texts:
        warnings.warn(
            f"The environment is made otherwise than that of the checkpoint: {', '.join(texts)}. The new values are "
            f"used{' and new episodes begin' if is_otherwise else ''}, so the run may differ from an uninterrupted one",
            stacklevel=4,
        )
    for wrapper, saved, kept in zip(wrappers, _load(venv, state.wrappers_state), of_wrappers, strict=True):
        _set_states([wrapper], [saved], kept)
    if not is_restorable:
        return state.reason or f"they are in a {type(base).__name__} now"
    if is_otherwise:
        return OTHERWISE
    base_state, envs_state = _load(venv, state.envs_state)
    _set_states([base], [base_state], {})
    for chain, saved in zip(chains, envs_state, strict=True):
        _set_states(chain, saved, of_envs)
    return ""


# --- what environments are made with --------------------------------------------------------------


def note_made(venv: VecEnv) -> None:
    """
    Remember what an environment was made with, at the first look at it. What changes from then on is its state.

    :param venv: a vectorized environment, best a new one
    """
    *wrappers, base = _vec_layers(venv)
    for wrapper in wrappers:
        if MADE not in vars(wrapper):
            vars(wrapper)[MADE] = _describe([wrapper])
    if MADE not in vars(base):
        vars(base)[MADE] = _describe_envs(base)


def _made_with(venv: VecEnv) -> list[Made]:
    """What was noted of each wrapper, and then of each environment; nothing if that was not done."""
    *wrappers, base = _vec_layers(venv)
    chains: list[Made] = vars(base).get(MADE, [])
    return [*(vars(wrapper).get(MADE, {}) for wrapper in wrappers), *chains] if chains else []


def _describe_envs(base: VecEnv) -> list[Made]:
    """Nothing if they are in other processes and busy."""
    if isinstance(base, DummyVecEnv):
        return [_describe(_env_layers(env), with_large=True) for env in base.envs]
    if not isinstance(base, SubprocVecEnv):
        return [_describe([base])]
    is_idle = not base.waiting and not base.closed
    return base.get_attr(MADE) if is_idle and all(base.env_is_wrapped(_Question())) else []  # type: ignore[arg-type]


class _Question:
    """
    Asks environments in other processes what they were made with. A worker that is asked for an attribute dies if this
    cannot be sent; but ``env_is_wrapped`` calls ``isinstance`` there, which calls this.
    """

    def __instancecheck__(self, env: Any) -> bool:
        try:
            vars(env)[MADE] = _describe(_env_layers(env))
        except Exception:  # would end the process
            return False
        return True


def _describe(layers: Iterable[Layer], with_large: bool = False) -> Made:
    made = {}
    for place, layer in enumerate(layers):
        codes = [getattr(cls.__init__, "__code__", None) for cls in type(layer).__mro__]  # type: ignore[misc]
        names = {name for c in codes if c for name in c.co_varnames[: c.co_argcount + c.co_kwonlyargcount]}
        values = _attributes(layer)
        given = dict(values.pop("_saved_kwargs", {}))  # as wrappers of Gymnasium keep their arguments
        if not isinstance(layer, gym.Wrapper | VecEnv):
            spec_kwargs = getattr(getattr(layer, "spec", None), "kwargs", None) or {}
            given = {name: value for name, value in spec_kwargs.items() if name != "render_mode"}
        given = {name: value for name, value in given.items() if not {name, f"_{name}"} & values.keys()}
        for name, value in (given | values).items():
            text = _as_text(value)
            if text is None and with_large:
                text = _digest(value)
            if text is not None:
                # Where a file lies changes from machine to machine, and makes no other environment
                is_argument = (name in given or name.lstrip("_") in names) and not ("'" in text and "/" in text)
                made[Setting(place, _class_names([layer])[0], name, is_argument)] = text
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


def _digest(value: Any) -> str | None:
    """Large objects as a text to compare; None for others, for environments, and for MuJoCo, which pickles slowly."""
    if isinstance(value, gym.Env | VecEnv) or _package(value) == "mujoco":
        return None
    buffers: list[pickle.PickleBuffer] = []
    try:
        content = pickle.dumps(value, 5, buffer_callback=buffers.append)
        parts = [memoryview(content), *(buffer.raw() for buffer in buffers)]
    except Exception:  # anything may be raised by objects that were not made to be pickled
        return None
    size, sha = sum(part.nbytes for part in parts), hashlib.sha256()
    for part in parts if size >= LARGE else ():
        sha.update(part)
    return f"<{size / 2**20:.1f} MB, SHA-256 {sha.hexdigest()[:12]}>" if size >= LARGE else None


def _find_differences(old: list[Made], new: list[Made]) -> dict[Setting, str]:
    """What environments were made with otherwise, each with a text that says how."""
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


# --- layers ---------------------------------------------------------------------------------------


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


def _attributes(layer: Layer) -> dict[str, Any]:
    excluded = frozenset[str]().union(*(names for cls, names in NOT_STATE if isinstance(layer, cls)))
    return {
        name: value
        for name, value in getattr(layer, "__dict__", {}).items()
        if name not in excluded and not isinstance(value, FUNCTIONS) and _package(value) != "pygame"
    }


def _get_state(layer: Layer) -> dict[str, Any]:
    state = _attributes(layer)
    if _is_atari(layer):
        # The emulator cannot be pickled, but clones its state, random generator included
        state["ale"] = cast(Any, layer).clone_state(include_rng=True)
    return state


def _set_states(layers: Sequence[Layer], states: list[dict[str, Any]], kept: Iterable[Setting]) -> None:
    for place, (layer, saved) in enumerate(zip(layers, states, strict=True)):
        names = {setting.name for setting in kept if setting.place == place}
        state = {name: value for name, value in saved.items() if name not in names}
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
