"""The methods that write checkpoints and load them, and the file that a checkpoint is."""

import io
import os
import pickle
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeVar

import numpy as np
import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.utils import set_random_seed
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

import sb3_dapo.checkpoint.states as states
from sb3_dapo.buffers import RolloutRing
from sb3_dapo.checkpoint.env_state import OTHERWISE, EnvState, StateUnpickler, get_env_state, set_env_state
from sb3_dapo.checkpoint.settings import note_made
from sb3_dapo.checkpoint.states import get_random_states, map_observations, set_random_states

ModelT = TypeVar("ModelT", bound="Checkpoints")

FORMAT = 1
# Beside the entries of SB3's own file, whose loader takes every *.pth for parameters
TRAINING_ENTRY = "training.pt"  # tensors, numbers and text: read without running a pickle
ENVIRONMENTS_ENTRY = "environments.pkl"
INEXACT = (
    "The environments cannot be saved in mid-episode ({}): on resume they are reset, and the run does not equal an "
    "uninterrupted one. With `reset_envs=True` it does: new episodes begin at every checkpoint"
)


class Moment(NamedTuple):
    """Between an update and the next rollout, when a checkpoint is exact: what is restored when the rollout begins."""

    num_timesteps: int
    random_states: dict[str, Any]
    log: dict[str, Any]  # what was recorded but not yet written
    callbacks: dict[str, dict[str, Any]]


class Checkpoints(OnPolicyAlgorithm):
    """Methods of an algorithm that keeps its rollouts in a :class:`~sb3_dapo.buffers.RolloutRing`."""

    rollout_buffer: RolloutRing
    _policy_version: int
    _bfloat16_pays: bool | None = None  # as a trial on the machine where training began has shown
    _rollout_start: Moment | None = None  # of the rollout that is being collected
    _resumption: Moment | None = None  # of a loaded checkpoint, until the next rollout begins

    def _set_form(self) -> None:
        """Put the policy into the form that updates compute in, where there are several."""

    @staticmethod
    def _wrap_env(env: GymEnv, *args: Any, **kwargs: Any) -> VecEnv:
        venv = OnPolicyAlgorithm._wrap_env(env, *args, **kwargs)
        note_made(venv)
        return venv

    def save_checkpoint(self, path: str | Path, reset_envs: bool = False) -> None:
        """
        Write all that training needs to go on exactly. A crash at any moment leaves either the complete new file or
        what was there before.

        To be called between an update and the next rollout: outside of ``learn``, or in a callback's
        ``_on_rollout_start``.

        :param path: the file, with or without ``.zip``; ``load`` reads it too
        :param reset_envs: start new episodes in all environments, here and on resume, with a seed that depends on the
            model's seed and the number of steps: then a resume is exact also where the environments cannot be saved
        :raises ValueError: at any other moment, or if a ``VecEnv`` wrapper cannot be saved
        """
        for text in self._save_checkpoint(path, reset_envs):
            warnings.warn(text, stacklevel=2)

    def _save_checkpoint(self, path: str | Path, reset_envs: bool, callback: BaseCallback | None = None) -> list[str]:
        """:return: what to warn of. With the callback of the run, the states of SB3's callbacks are kept"""
        self._check_moment()
        env = self.get_env()
        if env is None:
            raise ValueError("`env` must be set to write a checkpoint: without one there is nothing to resume")
        moment = self._rollout_start or self._resumption or self._moment()
        env_state = get_env_state(env, without_constants=reset_envs)
        reset_seed = states.derive_seed(self.seed, self.num_timesteps) if reset_envs else None
        if reset_seed is not None:
            self._reset_envs(reset_seed)
        callbacks = moment.callbacks if callback is None else states.get_callback_states(callback, reset_seed)
        training = {
            "format": FORMAT,
            "num_timesteps": self.num_timesteps,
            "has_trained": self._policy_version > 0,
            "bfloat16_pays": self._bfloat16_pays,
            "frozen": [name for name, value in self.policy.named_parameters() if not value.requires_grad],
            "random_states": moment.random_states,
            "reset_seed": reset_seed,
            "strides": map_observations(lambda array: array.strides, self._last_obs),
            "log": moment.log,
            "ring": self.rollout_buffer.state_dict(),
        }

        def write(file: BinaryIO) -> None:
            self.save(file)  # type: ignore[arg-type]
            with zipfile.ZipFile(file, "a") as archive:
                with archive.open(TRAINING_ENTRY, "w", force_zip64=True) as entry:
                    th.save(training, entry)
                archive.writestr(ENVIRONMENTS_ENTRY, pickle.dumps((env_state, callbacks)))

        _write_atomically(_with_suffix(path), write)
        return warnings_of(env_state, reset_envs)

    def _moment(self) -> Moment:
        return Moment(
            self.num_timesteps, get_random_states(self.device), states.get_log(getattr(self, "_logger", None)), {}
        )

    def _check_moment(self) -> None:
        start, ring = self._rollout_start, self.rollout_buffer
        if start is not None and start.num_timesteps != self.num_timesteps:
            raise ValueError(
                "a checkpoint written while a rollout is being collected could not be resumed exactly: call it outside "
                "of `learn`, or in a callback's `_on_rollout_start`, as CheckpointCallback does"
            )
        if start is None and ring.full and ring.acting_version >= self._policy_version:
            raise ValueError(
                "a checkpoint written with a rollout that has not been trained on, or not to the end, could not be "
                "resumed exactly, as when the update was interrupted: keep the model by `save` or `export`, or go on "
                "from the checkpoint before"
            )

    @classmethod
    def load_checkpoint(
        cls: type[ModelT],
        path: str | Path,
        env: GymEnv,
        device: th.device | str = "auto",
        custom_objects: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> ModelT:
        """
        Load a checkpoint, to go on training with ``learn(..., reset_num_timesteps=False)``, or with
        :func:`~sb3_dapo.checkpoint.learn_until`. Like every file of SB3 it holds pickles: load only what you trust.

        :param path: the file, with or without ``.zip``
        :param env: new environments, made like those of the run; their states are restored
        :param device: PyTorch device
        :param custom_objects: as in ``load``
        :param kwargs: attributes to change, as in ``load``
        :return: the model
        :raises ValueError: if the file is damaged, is no checkpoint, or does not fit ``env``
        """
        path = Path(path)
        path = path if path.exists() else _with_suffix(path)
        training, env_state, callbacks = read_checkpoint(path)
        model = cls.load(path, env=env, device=device, custom_objects=custom_objects, force_reset=False, **kwargs)
        model._restore(training, env_state, callbacks)
        return model

    def _restore(self, training: dict[str, Any], env_state: EnvState, callbacks: dict[str, dict[str, Any]]) -> None:
        """Parameters: the entries of the checkpoint that the model was loaded from."""
        self.rollout_buffer.load_state_dict(training["ring"])
        self._bfloat16_pays = training.get("bfloat16_pays")  # not in files of version 0.1.0
        if training["has_trained"]:
            # As the last update did: the next rollout must be collected in the same form
            self._set_form()
        if "frozen" in training:  # not in files of version 0.1.0
            for name, parameter in self.policy.named_parameters():
                parameter.requires_grad_(name not in training["frozen"])
        assert self.env is not None
        # Pickling loses the order of axes in memory, by which PyTorch chooses between convolutions that round
        # differently
        self._last_obs = map_observations(states.with_strides, self._last_obs, training["strides"])
        reason = set_env_state(self.env, env_state)
        if training["reset_seed"] is not None:
            expected = self._last_obs
            self._reset_envs(training["reset_seed"])
            equal = map_observations(np.array_equal, self._last_obs, expected)
            if not (all(equal.values()) if isinstance(equal, dict) else equal):
                warnings.warn(
                    "The environments begin with other observations than when the checkpoint was written: they are not "
                    "deterministic given their seed, or are made otherwise. The resume is not exact",
                    stacklevel=3,
                )
        elif reason:
            if reason != OTHERWISE:
                warnings.warn(INEXACT.format(reason), stacklevel=3)
            # SB3 resets environments when there is no last observation; not again with the seeds of the run's beginning
            self._last_obs = None
            self.env.seed(states.derive_seed(self.seed, self.num_timesteps))
        self._resumption = Moment(training["num_timesteps"], training["random_states"], training["log"], callbacks)

    @contextmanager
    def _collecting(self, callback: BaseCallback) -> Iterator[None]:
        """Surrounds the collection of a rollout: completes a resume, and tells :meth:`save_checkpoint` the moment."""
        resumption, self._resumption = self._resumption, None
        # Anything may have drawn random numbers since the checkpoint was loaded, so the generators are set only now
        if resumption is not None and resumption.num_timesteps == self.num_timesteps:
            set_random_states(resumption.random_states, self.device)
            for name, entries in resumption.log.items():
                getattr(self.logger, name).update(entries)
            states.set_callback_states(callback, resumption.callbacks)
        for _, _, eval_env in states.walk_callbacks(callback):
            if eval_env is not None:
                note_made(eval_env)
        # Before SB3 draws the noise of gSDE
        self._rollout_start = self._moment()
        try:
            yield
        finally:
            self._rollout_start = None

    def _reset_envs(self, seed: int) -> None:
        """:param seed: what the new episodes that begin in all environments depend on, and on nothing else"""
        assert self.env is not None
        random_states = get_random_states(self.device)
        set_random_seed(seed)  # for environments that draw from the global generators
        states.seed_envs(self.env, seed)
        self._last_obs = self.env.reset()  # type: ignore[assignment]
        set_random_states(random_states, self.device)
        self._last_episode_starts = np.ones(self.n_envs, dtype=bool)

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "_bfloat16_pays", "_rollout_start", "_resumption"]


def warnings_of(env_state: EnvState, reset_envs: bool) -> list[str]:
    """What the user of a checkpoint should know, which holds such a state and was written with this ``reset_envs``."""
    texts = [INEXACT.format(env_state.reason)] if env_state.reason and not reset_envs else []
    if env_state.large:
        advice = "" if reset_envs else ". With `reset_envs=True` what never changes is left out"
        texts.append(f"The environments take much space in every checkpoint: {env_state.large}{advice}")
    return texts


# --- the file -------------------------------------------------------------------------------------


def read_checkpoint(path: Path) -> tuple[dict[str, Any], EnvState, dict[str, dict[str, Any]]]:
    """:return: entries of a checkpoint: training, environments, callbacks. One that is damaged, or none, is refused"""
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
            env_state, callbacks = StateUnpickler(archive.read(ENVIRONMENTS_ENTRY)).load()
        except Exception as error:  # whatever a parser may make of a damaged file
            raise ValueError(f"{path} cannot be resumed from: {error}") from error
    return training, env_state, callbacks


def vec_normalize_of(path: str | Path, venv: VecEnv | None = None) -> VecNormalize | None:
    """
    :param path: a checkpoint, or a file of SB3's ``save``. It holds pickles: read only what you trust
    :param venv: vectorized environment to wrap, ``None`` to leave that to ``set_venv``
    :return: ``VecNormalize`` as it was when the checkpoint was written, with its statistics and settings; ``None`` if
        the file is no checkpoint, or its environment was not normalized
    """
    with zipfile.ZipFile(path) as archive:
        if ENVIRONMENTS_ENTRY not in archive.namelist():
            return None
        env_state, _ = StateUnpickler(archive.read(ENVIRONMENTS_ENTRY)).load()
    for state in StateUnpickler(env_state.wrappers_state).load():
        if "ret_rms" in state:
            vec_normalize = VecNormalize.__new__(VecNormalize)
            vec_normalize.__setstate__(state)
            vec_normalize.class_attributes = {}  # which SB3 expects when it pickles one
            if venv is not None:
                vec_normalize.set_venv(venv)
            return vec_normalize
    return None


def _write_atomically(path: Path, write: Callable[[BinaryIO], None]) -> None:
    """:param write: writes the content to a file object that is open for reading and writing"""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_of(path)
    try:
        with open(temporary, "w+b") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    if os.name == "posix":  # make the new name itself survive a power failure
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def temporary_of(path: Path) -> Path:
    """The file that becomes a checkpoint when it is complete."""
    return path.with_name(f".{path.name}.tmp")


def _with_suffix(path: str | Path) -> Path:
    path = Path(path)
    return path if path.suffix else path.with_suffix(".zip")
