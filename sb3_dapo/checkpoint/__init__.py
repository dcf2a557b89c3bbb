"""Checkpoints: all that a run needs to go on, after an interruption, as if there had been none."""

from sb3_dapo.checkpoint.callback import CheckpointCallback, latest_checkpoint, learn_until
from sb3_dapo.checkpoint.checkpoints import Checkpoints, vec_normalize_of
from sb3_dapo.checkpoint.states import get_random_states, set_random_states

save_checkpoint = Checkpoints.save_checkpoint
load_checkpoint = Checkpoints.load_checkpoint.__func__  # type: ignore[attr-defined]

__all__ = ["CheckpointCallback", "get_random_states", "latest_checkpoint", "learn_until", "load_checkpoint"]
__all__ += ["save_checkpoint", "set_random_states", "vec_normalize_of"]
