"""Divergence-Augmented Policy Optimization for Stable-Baselines3."""

from sb3_dapo.controllers import AdaptiveController, Controller, DualController
from sb3_dapo.dapo import DAPO
from sb3_dapo.divergences import DIVERGENCES, Divergence
from sb3_dapo.faults import NonFiniteError
from sb3_dapo.policies import CnnPolicy, MlpPolicy, MultiInputPolicy

__version__ = "0.1.0"

__all__ = [
    "DAPO",
    "DIVERGENCES",
    "AdaptiveController",
    "CnnPolicy",
    "Controller",
    "Divergence",
    "DualController",
    "MlpPolicy",
    "MultiInputPolicy",
    "NonFiniteError",
]
