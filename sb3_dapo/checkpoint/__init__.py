"""Checkpoints: all that a run needs to go on, after an interruption, as if there had been none."""

from sb3_dapo.checkpoint.callback import CheckpointCallback, latest_checkpoint, learn_until
from sb3_dapo.checkpoint.checkpoints import ENVIRONMENTS_ENTRY, Checkpoints, load_checkpoint
from sb3_dapo.checkpoint.states import get_random_states, set_random_states
from sb3_dapo.checkpoint.statistics import vec_normalize_of

save_checkpoint = Checkpoints.save_checkpoint

__all__ = [
    "ENVIRONMENTS_ENTRY",
    "CheckpointCallback",
    "Checkpoints",
    "get_random_states",
    "latest_checkpoint",
    "learn_until",
    "load_checkpoint",
    "save_checkpoint",
    "set_random_states",
    "vec_normalize_of",
]
