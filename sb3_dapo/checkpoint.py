"""Checkpoints: all that a run needs to go on, after an interruption, as if there had been none."""

import io
import os
import pickle
import random
import re
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

import numpy as np
import torch as th
from stable_baselines3.common.callbacks import BaseCallback, CallbackList
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback
from stable_baselines3.common.utils import set_random_seed
from stable_baselines3.common.vec_env import VecEnv

from sb3_dapo.env_state import EnvState, NotRestorableError, get_env_state, set_env_state

if TYPE_CHECKING:
    from sb3_dapo.dapo import DAPO

ModelT = TypeVar("ModelT", bound="DAPO")

FORMAT = 1
# Beside the entries of SB3's own file, whose loader takes every *.pth for parameters
TRAINING_ENTRY = "training.pt"  # tensors, numbers and text: read without running a pickle
ENVIRONMENTS_ENTRY = "environments.pkl"

# What SB3's callbacks count and remember, so that they trigger at the same steps after a resume
CALLBACK_STATE = (
    "n_calls",
    "last_time_trigger",
    "n_episodes",
    "best_mean_reward",
    "last_mean_reward",
    "evaluations_results",
    "evaluations_timesteps",
    "evaluations_length",
    "evaluations_successes",
    "last_best_mean_reward",
    "no_improvement_evals",
)


@dataclass
class RolloutStart:
    """
    The moment between an update and the next rollout, when a checkpoint is exact.

    :param num_timesteps: steps so far
    :param random_states: states of the random generators
    """

    num_timesteps: int
    random_states: dict[str, Any]


@dataclass
class Resumption:
    """
    What a loaded checkpoint has still to restore when the next rollout begins.

    :param num_timesteps: steps at which the checkpoint was written
    :param random_states: states of the random generators
    :param log: what was recorded but not yet written to the log
    :param callbacks: states of the callbacks
    """

    num_timesteps: int
    random_states: dict[str, Any]
    log: dict[str, Any]
    callbacks: dict[str, dict[str, Any]]


@contextmanager
def collecting(model: "DAPO", callback: BaseCallback) -> Iterator[None]:
    """
    Surrounds the collection of a rollout: completes a resume at its beginning, and tells :func:`save_checkpoint` where
    it is called.

    :param model: the model that collects
    :param callback: the callback of the run
    """
    resumption, model._resumption = model._resumption, None
    # Anything may have drawn random numbers since the checkpoint was loaded, so the generators are set only now
    if resumption is not None and resumption.num_timesteps == model.num_timesteps:
        set_random_states(resumption.random_states, model.device)
        for name, entries in resumption.log.items():
            getattr(model.logger, name).update(entries)
        _set_callback_states(callback, resumption.callbacks)
    # Before SB3 draws the noise of gSDE
    model._rollout_start = RolloutStart(model.num_timesteps, get_random_states(model.device))
    try:
        yield
    finally:
        model._rollout_start = None


# --- saving ---------------------------------------------------------------------------------------


def save_checkpoint(model: "DAPO", path: str | Path, reset_envs: bool = False) -> None:
    """
    Write a checkpoint. A crash at any moment leaves either the complete new file or what was there before.

    :param model: the model, between an update and the next rollout: outside of ``learn``, or in a callback's
        ``_on_rollout_start``
    :param path: the file, with or without ``.zip``
    :param reset_envs: start new episodes in all environments, here and on resume, with a seed that depends on
        ``model.seed`` and the number of steps: then a resume is exact also where the environments cannot be saved
    :raises ValueError: at any other moment, or if a ``VecEnv`` wrapper cannot be saved
    """
    reason = _save_checkpoint(model, path, reset_envs)
    if reason:
        warnings.warn(_inexact(reason), stacklevel=3)


def _save_checkpoint(model: "DAPO", path: str | Path, reset_envs: bool, callback: BaseCallback | None = None) -> str:
    """
    Parameters as above.

    :param callback: the callback of the run, if the states of SB3's callbacks are to be kept
    :return: why a resume will not be exact; empty if it will
    """
    _check_moment(model)
    env = model.get_env()
    if env is None:
        raise ValueError("`env` must be set to write a checkpoint: without one there is nothing to resume")
    resumption, start = model._resumption, model._rollout_start
    if start is not None:
        random_states = start.random_states
    else:
        random_states = get_random_states(model.device) if resumption is None else resumption.random_states
    env_state = _get_env_state(env)
    reset_seed = None
    if reset_envs:
        reset_seed = _derive_seed(model.seed, model.num_timesteps)
        _reset_envs(model, reset_seed)
    if callback is not None:
        callbacks = _get_callback_states(callback, reset_seed)
    else:
        callbacks = {} if resumption is None else resumption.callbacks

    training = {
        "format": FORMAT,
        "num_timesteps": model.num_timesteps,
        "has_trained": model._policy_version > 0,
        "random_states": random_states,
        "reset_seed": reset_seed,
        "strides": _map_observations(lambda array: array.strides, model._last_obs),
        "log": _get_log(model) if resumption is None else resumption.log,
        "ring": model.rollout_buffer.state_dict(),
    }

    def write(file: BinaryIO) -> None:
        model.save(file)  # type: ignore[arg-type]
        with zipfile.ZipFile(file, "a") as archive:
            with archive.open(TRAINING_ENTRY, "w", force_zip64=True) as entry:
                th.save(training, entry)
            archive.writestr(ENVIRONMENTS_ENTRY, pickle.dumps((env_state, callbacks)))

    _write_atomically(_with_suffix(path), write)
    return "" if reset_envs else env_state.reason


def _get_env_state(env: VecEnv) -> EnvState:
    try:
        return get_env_state(env)
    except NotRestorableError as error:
        raise ValueError(f"a VecEnv wrapper cannot be saved in a checkpoint: {error}") from error


def _check_moment(model: "DAPO") -> None:
    ring = model.rollout_buffer
    start = model._rollout_start
    if start is not None and start.num_timesteps != model.num_timesteps:
        moment = "while a rollout is being collected"
    elif start is None and ring.full and ring.acting_version >= model._policy_version:
        moment = "with a rollout that has not been trained on"
    else:
        return
    raise ValueError(
        f"a checkpoint written {moment} could not be resumed exactly: call `save_checkpoint` outside of `learn`, or "
        "in a callback's `_on_rollout_start`, as CheckpointCallback does"
    )


def _write_atomically(path: Path, write: Callable[[BinaryIO], None]) -> None:
    """
    :param path: the file
    :param write: writes its content to a file object that is open for reading and writing
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    try:
        with open(temporary, "w+b") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if os.name == "posix":  # make the new name itself survive a power failure
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.tmp")


def _with_suffix(path: str | Path) -> Path:
    path = Path(path)
    return path if path.suffix else path.with_suffix(".zip")


def _inexact(reason: str) -> str:
    return (
        f"The environments cannot be saved in mid-episode ({reason}): on resume they are reset, and the run does not "
        "equal an uninterrupted one. With `reset_envs=True` it does: new episodes begin at every checkpoint"
    )


# --- loading --------------------------------------------------------------------------------------


def load_checkpoint(
    cls: type[ModelT],
    path: str | Path,
    env: GymEnv,
    device: th.device | str = "auto",
    custom_objects: dict[str, Any] | None = None,
    **kwargs: Any,
) -> ModelT:
    """
    Load a checkpoint, to go on training. Like every file of SB3 it holds pickles: load only what you trust.

    :param cls: class of the model
    :param path: the file, with or without ``.zip``
    :param env: new environments, made like those of the run; their states are restored
    :param device: PyTorch device
    :param custom_objects: as in SB3's ``load``
    :param kwargs: attributes to change, as in SB3's ``load``
    :return: the model
    :raises ValueError: if the file is damaged, is no checkpoint, or does not fit ``env``
    """
    path = Path(path)
    path = path if path.exists() else _with_suffix(path)
    training, env_state, callbacks = _read(path)
    model = cls.load(path, env=env, device=device, custom_objects=custom_objects, force_reset=False, **kwargs)
    model.rollout_buffer.load_state_dict(training["ring"])
    if training["has_trained"]:
        # As the last update did: the next rollout must be collected in the same form
        model._set_form()
    assert model.env is not None
    # Pickling loses the order of axes in memory, by which PyTorch chooses between convolutions that round differently
    model._last_obs = _map_observations(_with_strides, model._last_obs, training["strides"])
    reason = set_env_state(model.env, env_state)
    if training["reset_seed"] is not None:
        expected = model._last_obs
        _reset_envs(model, training["reset_seed"])
        if not _equal_observations(model._last_obs, expected):
            warnings.warn(
                "The environments begin with other observations than when the checkpoint was written: they are not "
                "deterministic given their seed, or are made otherwise. The resume is not exact",
                stacklevel=3,
            )
    elif reason:
        warnings.warn(_inexact(reason), stacklevel=3)
        # SB3 resets environments when there is no last observation; not again with the seeds of the run's beginning
        model._last_obs = None
        model.env.seed(_derive_seed(model.seed, model.num_timesteps))
    model._resumption = Resumption(training["num_timesteps"], training["random_states"], training["log"], callbacks)
    return model


def _read(path: Path) -> tuple[dict[str, Any], EnvState, dict[str, dict[str, Any]]]:
    """
    :param path: of a checkpoint
    :return: its entries: training, environments, callbacks
    :raises ValueError: if it is damaged, or no checkpoint
    """
    with open(path, "rb") as file:
        try:
            archive = zipfile.ZipFile(file)
            damaged = archive.testzip()  # compares the checksums of all entries
            if damaged is not None:
                raise ValueError(f"the checksum of {damaged} is wrong")
            if not {TRAINING_ENTRY, ENVIRONMENTS_ENTRY} <= set(archive.namelist()):
                raise ValueError("it holds no checkpoint; if it is a model, use `load`")
            training = th.load(io.BytesIO(archive.read(TRAINING_ENTRY)), map_location="cpu", weights_only=True)
            if training["format"] != FORMAT:
                raise ValueError(f"its format is {training['format']!r}, this version reads {FORMAT}")
            env_state, callbacks = pickle.loads(archive.read(ENVIRONMENTS_ENTRY))
        except Exception as error:  # whatever a parser may make of a damaged file
            raise ValueError(f"{path} cannot be resumed from: {error}") from error
    return training, env_state, callbacks


def latest_checkpoint(folder: str | Path, name_prefix: str = "checkpoint") -> Path | None:
    """
    :param folder: where a :class:`CheckpointCallback` writes
    :param name_prefix: its ``name_prefix``
    :return: the checkpoint with the most steps that is not damaged, ``None`` if there is none. A damaged one that is
        newer is reported by a warning
    """
    for path in reversed(_list_checkpoints(Path(folder), name_prefix)):
        try:
            _read(path)
        except ValueError as error:
            warnings.warn(f"{error}. An earlier checkpoint is used", stacklevel=2)
        else:
            return path
    return None


def _list_checkpoints(folder: Path, name_prefix: str) -> list[Path]:
    """Checkpoints by their number of steps, the latest last."""
    pattern = re.compile(rf"{re.escape(name_prefix)}_(\d+)_steps\.zip")
    found = [(int(match[1]), path) for path in folder.glob("*.zip") if (match := pattern.fullmatch(path.name))]
    return [path for _, path in sorted(found)]


# --- callbacks ------------------------------------------------------------------------------------


class CheckpointCallback(BaseCallback):
    """
    Writes a checkpoint every ``save_freq`` steps, rounded up to whole rollouts, and when training ends::

        path = latest_checkpoint("checkpoints")
        model = DAPO.load_checkpoint(path, env) if path else DAPO("MlpPolicy", env, seed=0)
        learn_until(model, 1_000_000, CheckpointCallback(50_000, "checkpoints"))

    :param save_freq: environment steps between two checkpoints, all environments together
    :param save_path: folder of the checkpoints
    :param keep_last: how many checkpoints to keep, ``None`` for all
    :param name_prefix: the files are named ``{name_prefix}_{num_timesteps}_steps.zip``
    :param reset_envs: see :func:`save_checkpoint`; ``None``: only if the environments cannot be saved in mid-episode
    :param verbose: 2 to print the path of each checkpoint
    :raises ValueError: if an argument is out of range
    """

    model: "DAPO"

    def __init__(
        self,
        save_freq: int,
        save_path: str | Path,
        keep_last: int | None = 3,
        name_prefix: str = "checkpoint",
        reset_envs: bool | None = False,
        verbose: int = 0,
    ) -> None:
        super().__init__(verbose)
        if not isinstance(save_freq, int) or save_freq < 1:
            raise ValueError(f"`save_freq` must be an integer of at least 1, got {save_freq!r}")
        if keep_last is not None and (not isinstance(keep_last, int) or keep_last < 1):
            raise ValueError(f"`keep_last` must be an integer of at least 1 or None, got {keep_last!r}")
        self.save_freq = save_freq
        self.save_path = Path(save_path)
        self.keep_last = keep_last
        self.name_prefix = name_prefix
        self.reset_envs = reset_envs
        self.has_warned = False

    def _init_callback(self) -> None:
        if not hasattr(self.model, "save_checkpoint"):
            raise ValueError(f"`model` must be one of this package, got a {type(self.model).__name__}")
        self.save_path.mkdir(parents=True, exist_ok=True)
        for left_over in self.save_path.glob(_temporary(self._path("*")).name):
            left_over.unlink()

    def _on_training_start(self) -> None:
        # A resumed run and an uninterrupted one write at the same steps, as both count from step 0
        self.last_start = self.last_saved = self.model.num_timesteps
        existing = latest_checkpoint(self.save_path, self.name_prefix) if self.model.num_timesteps == 0 else None
        if existing is not None:
            raise ValueError(
                f"`save_path` must be a folder without checkpoints for a new run, but there is {existing}: load it "
                "with `load_checkpoint` to go on, or name another folder"
            )
        reason = _get_env_state(self.training_env).reason
        if self.reset_envs is None:
            self.reset_envs = bool(reason)
        if not self.reset_envs:
            self._warn_once(reason)  # now rather than after hours of training

    def _on_rollout_start(self) -> None:
        num_timesteps = self.model.num_timesteps
        is_due = num_timesteps // self.save_freq > self.last_start // self.save_freq
        self.last_start = num_timesteps
        if is_due:
            self._save()

    def _on_step(self) -> bool:
        return True

    def _on_training_end(self) -> None:
        ring = self.model.rollout_buffer
        # Not in the middle of a rollout, where an interrupt or another callback may have ended training
        is_updated = ring.full and ring.acting_version < self.model._policy_version
        if is_updated and self.model.num_timesteps > self.last_saved:
            self._save()

    def _save(self) -> None:
        path = self._path(self.model.num_timesteps)
        reason = _save_checkpoint(self.model, path, bool(self.reset_envs), self.locals["callback"])
        self._warn_once(reason)
        self.last_saved = self.model.num_timesteps
        if self.verbose >= 2:
            print(f"Saved checkpoint {path}")
        if self.keep_last is not None:
            # Of a run that was resumed from one of several checkpoints, those with more steps are not touched
            existing = _list_checkpoints(self.save_path, self.name_prefix)
            for old in existing[: existing.index(path) + 1][: -self.keep_last]:
                old.unlink()

    def _warn_once(self, reason: str) -> None:
        if reason and not self.has_warned:
            warnings.warn(_inexact(reason), stacklevel=2)
            self.has_warned = True

    def _path(self, num_timesteps: int | str) -> Path:
        return self.save_path / f"{self.name_prefix}_{num_timesteps}_steps.zip"


def learn_until(model: ModelT, total_timesteps: int, callback: MaybeCallback = None, **kwargs: Any) -> ModelT:
    """
    Train until a number of steps, counted from the beginning of the run: the same call starts a run and, on a model
    from :func:`load_checkpoint`, goes on with it, with the same schedules.

    :param model: a new model, or one from a checkpoint
    :param total_timesteps: steps of the whole run
    :param callback: callback(s) of the run
    :param kwargs: further arguments of ``learn``
    :return: the trained model
    """
    is_new = model.num_timesteps == 0
    return model.learn(total_timesteps - model.num_timesteps, callback, reset_num_timesteps=is_new, **kwargs)


def _get_callback_states(callback: BaseCallback, reset_seed: int | None) -> dict[str, dict[str, Any]]:
    """
    :param callback: the callback of the run
    :param reset_seed: seed for environments that evaluate, ``None`` to save their states
    :return: what the callbacks count and remember, by class and place among those of the class
    """
    states = {}
    for name, child in _named_callbacks(callback).items():
        state = {key: value for key, value in vars(child).items() if key in CALLBACK_STATE}
        eval_env = getattr(child, "eval_env", None)
        # Evaluation of a policy that acts at random draws from the generators that training draws from, as often as
        # there are steps: so the episodes must be the same too
        if isinstance(eval_env, VecEnv):
            if reset_seed is None:
                with suppress(NotRestorableError):
                    state["eval_env"] = get_env_state(eval_env)
            else:
                state["eval_seed"] = reset_seed
                _seed_envs(eval_env, reset_seed)
        states[name] = state
    return states


def _set_callback_states(callback: BaseCallback, states: dict[str, dict[str, Any]]) -> None:
    """
    :param callback: the callback of the run
    :param states: what :func:`_get_callback_states` gave. Callbacks that did not take part then are left as they are
    """
    for name, child in _named_callbacks(callback).items():
        state = dict(states.get(name, {}))
        eval_state, eval_seed = state.pop("eval_env", None), state.pop("eval_seed", None)
        eval_env = getattr(child, "eval_env", None)
        if isinstance(eval_env, VecEnv):
            if eval_state is not None:
                try:
                    set_env_state(eval_env, eval_state)
                except ValueError as error:
                    warnings.warn(f"{name} evaluates on other environments than before: {error}", stacklevel=2)
            if eval_seed is not None:
                _seed_envs(eval_env, eval_seed)
        vars(child).update(state)


def _named_callbacks(callback: BaseCallback) -> dict[str, BaseCallback]:
    named: dict[str, BaseCallback] = {}
    count: Counter[str] = Counter()
    for child in _walk_callbacks(callback):
        kind = type(child).__name__
        named[f"{kind} {count[kind]}"] = child
        count[kind] += 1
    return named


def _walk_callbacks(callback: BaseCallback) -> Iterator[BaseCallback]:
    yield callback
    children: list[Any] = list(callback.callbacks) if isinstance(callback, CallbackList) else []
    children += [getattr(callback, name, None) for name in ("callback", "callback_on_new_best")]
    for child in children:
        if isinstance(child, BaseCallback):
            yield from _walk_callbacks(child)


# --- random generators, log, environments ---------------------------------------------------------


def get_random_states(device: th.device) -> dict[str, Any]:
    """
    :param device: the model's device
    :return: states of the global random generators: tensors and numbers
    """
    name, keys, *others = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": [name, th.from_numpy(np.asarray(keys, dtype=np.int64)), *others],
        "torch": th.get_rng_state(),
        "cuda": th.cuda.get_rng_state(device) if device.type == "cuda" else None,
    }


def set_random_states(states: dict[str, Any], device: th.device) -> None:
    """
    :param states: what :func:`get_random_states` gave
    :param device: the model's device
    """
    random.setstate(states["python"])
    name, keys, *others = states["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *others))
    th.set_rng_state(states["torch"])
    if device.type == "cuda" and states["cuda"] is not None:
        th.cuda.set_rng_state(states["cuda"], device)


def _get_log(model: "DAPO") -> dict[str, Any]:
    """What was recorded since the log was last written: the losses of the newest update."""
    if not hasattr(model, "_logger"):
        return {}
    values = {
        name: value.item() if isinstance(value, np.number) else value
        for name, value in model.logger.name_to_value.items()
        if isinstance(value, int | float | str | np.number)
    }
    return {
        "name_to_value": values,
        "name_to_count": {name: model.logger.name_to_count[name] for name in values},
        "name_to_excluded": {name: model.logger.name_to_excluded[name] for name in values},
    }


def _derive_seed(seed: int | None, num_timesteps: int) -> int:
    """A seed for environments that depends on both, or on chance if the run has no seed."""
    entropy = None if seed is None else [seed, num_timesteps]
    return int(np.random.SeedSequence(entropy).generate_state(1)[0]) >> 1  # emulators take 31 bits


def _seed_envs(venv: VecEnv, seed: int) -> None:
    """Have the next reset begin new games with this seed."""
    venv.seed(seed)
    if venv.has_attr("was_real_done"):
        # EpisodicLifeEnv: its reset would go on with the game that is under way
        venv.env_method("set_wrapper_attr", "was_real_done", True)


def _reset_envs(model: "DAPO", seed: int) -> None:
    """New episodes in all environments, which depend on nothing but the seed."""
    assert model.env is not None
    states = get_random_states(model.device)
    set_random_seed(seed)  # for environments that draw from the global generators
    _seed_envs(model.env, seed)
    model._last_obs = model.env.reset()  # type: ignore[assignment]
    set_random_states(states, model.device)
    model._last_episode_starts = np.ones(model.n_envs, dtype=bool)
    if model._vec_normalize_env is not None:
        model._last_original_obs = model._vec_normalize_env.get_original_obs()


def _map_observations(function: Callable[..., Any], *observations: Any) -> Any:
    """Apply a function to arrays, dicts of them, or None."""
    first = observations[0]
    if isinstance(first, dict):
        return {key: function(*(obs[key] for obs in observations)) for key in first}
    return None if first is None else function(*observations)


def _with_strides(array: np.ndarray, strides: tuple[int, ...]) -> np.ndarray:
    """A copy of an array with these strides, or the array if they run backwards."""
    if min(strides, default=0) < 0:
        return array
    size = array.itemsize + sum((n - 1) * stride for n, stride in zip(array.shape, strides, strict=True))
    copy: np.ndarray = np.ndarray(array.shape, array.dtype, np.zeros(size, np.uint8), strides=strides)
    copy[...] = array
    return copy


def _equal_observations(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(np.array_equal(a[key], b[key]) for key in a)
    return np.array_equal(a, b)
