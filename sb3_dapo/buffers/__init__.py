"""Rollouts: how one is recorded, and how the newest are kept for reuse."""

from sb3_dapo.buffers.recorder import RolloutRecorder
from sb3_dapo.buffers.ring import BootstrapSamples, Observations, RolloutRing, RolloutRingSamples
from sb3_dapo.buffers.rollout import Rollout
from sb3_dapo.buffers.stores import FrameStacks

__all__ = [
    "BootstrapSamples",
    "FrameStacks",
    "Observations",
    "Rollout",
    "RolloutRecorder",
    "RolloutRing",
    "RolloutRingSamples",
]
