"""Checkpoints during training: written by a callback, found again after an interruption."""

import re
import warnings
from pathlib import Path
from typing import Any

from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.type_aliases import MaybeCallback

from sb3_dapo.arguments import Range, check, check_arguments
from sb3_dapo.checkpoint.checkpoints import Checkpoints, ModelT, read_checkpoint, temporary_of, warnings_of
from sb3_dapo.checkpoint.env_state import get_env_state


def latest_checkpoint(folder: str | Path, name_prefix: str = "checkpoint") -> Path | None:
    """
    :param folder: where a :class:`CheckpointCallback` writes
    :param name_prefix: its ``name_prefix``
    :return: the checkpoint with the most steps that is not damaged, ``None`` if there is none. A damaged one that is
        newer is reported by a warning
    """
    for path in reversed(_list_checkpoints(Path(folder), name_prefix)):
        try:
            read_checkpoint(path)
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


class CheckpointCallback(BaseCallback):
    """
    Writes a checkpoint every ``save_freq`` steps, rounded up to whole rollouts, and when training ends. A run goes on
    from the one that :func:`latest_checkpoint` finds, by ``load_checkpoint`` and :func:`learn_until`.

    :param save_freq: environment steps between two checkpoints, all environments together
    :param save_path: folder of the checkpoints
    :param keep_last: how many checkpoints to keep, ``None`` for all
    :param name_prefix: the files are named ``{name_prefix}_{num_timesteps}_steps.zip``
    :param reset_envs: as in ``save_checkpoint``; ``None``: only if the environments cannot be saved in mid-episode
    :param verbose: 2 to print the path of each checkpoint
    :raises ValueError: if an argument is out of range
    """

    model: Checkpoints

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
        at_least_one = Range(1, is_integer=True)
        check_arguments(CheckpointCallback, locals(), {"save_freq": at_least_one, "keep_last": at_least_one})
        is_name = isinstance(name_prefix, str) and Path(name_prefix).name == name_prefix
        check("name_prefix", name_prefix, is_name, "a name without folders")
        # Small integers of NumPy would overflow
        self.save_freq = int(save_freq)
        self.save_path = Path(save_path)
        self.keep_last = None if keep_last is None else int(keep_last)
        self.name_prefix = name_prefix
        self.reset_envs = reset_envs
        self.has_warned = False

    def _init_callback(self) -> None:
        if not hasattr(self.model, "save_checkpoint"):
            raise ValueError(f"`model` must be one of this package, got a {type(self.model).__name__}")
        self.save_path.mkdir(parents=True, exist_ok=True)
        for left_over in self.save_path.glob(temporary_of(self._path("*")).name):
            left_over.unlink()

    def _on_training_start(self) -> None:
        self.run_callback = self.locals.get("callback")  # that this one is part of
        # A resumed run and an uninterrupted one write at the same steps, as both count from step 0
        self.last_start = self.last_saved = self.model.num_timesteps
        existing = latest_checkpoint(self.save_path, self.name_prefix) if self.model.num_timesteps == 0 else None
        if existing is not None:
            raise ValueError(
                f"`save_path` must be a folder without checkpoints for a new run, but there is {existing}: load it "
                "with `load_checkpoint` to go on, or name another folder"
            )
        state = get_env_state(self.training_env, without_constants=bool(self.reset_envs))
        if self.reset_envs is None:
            self.reset_envs = bool(state.reason)
        self._warn_once(warnings_of(state, self.reset_envs))  # now rather than after hours of training

    def _on_rollout_start(self) -> None:
        last_start, self.last_start = self.last_start, self.model.num_timesteps
        if self.last_start // self.save_freq > last_start // self.save_freq:
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
        self._warn_once(self.model._save_checkpoint(path, bool(self.reset_envs), self.run_callback))
        self.last_saved = self.model.num_timesteps
        if self.verbose >= 2:
            print(f"Saved checkpoint {path}")
        if self.keep_last is not None:
            # Of a run that was resumed from one of several checkpoints, those with more steps are not touched
            existing = _list_checkpoints(self.save_path, self.name_prefix)
            for old in existing[: existing.index(path) + 1][: -self.keep_last]:
                old.unlink()

    def _warn_once(self, texts: list[str]) -> None:
        for text in texts if not self.has_warned else []:
            warnings.warn(text, stacklevel=3)
            self.has_warned = True

    def _path(self, num_timesteps: int | str) -> Path:
        return self.save_path / f"{self.name_prefix}_{num_timesteps}_steps.zip"


def learn_until(model: ModelT, total_timesteps: int, callback: MaybeCallback = None, **kwargs: Any) -> ModelT:
    """
    Train until a number of steps, counted from the beginning of the run: the same call starts a run and, on a model
    from ``load_checkpoint``, goes on with it, with the same schedules.

    :param model: a new model, or one from a checkpoint
    :param total_timesteps: steps of the whole run
    :param callback: callback(s) of the run
    :param kwargs: further arguments of ``learn``
    :return: the trained model
    """
    n_done = model.num_timesteps
    return model.learn(total_timesteps - n_done, callback, reset_num_timesteps=n_done == 0, **kwargs)
