"""Puts DAPO where RL Zoo looks for its algorithms: it has no hook for others, but keeps them in dictionaries."""

import importlib.util

import gymnasium as gym
import rl_zoo3.train
from rl_zoo3.hyperparams_opt import HYPERPARAMS_CONVERTER, HYPERPARAMS_SAMPLER, convert_onpolicy_params
from rl_zoo3.utils import ALGOS

from sb3_dapo import DAPO
from sb3_dapo.zoo.exp_manager import ExperimentManager
from sb3_dapo.zoo.hyperparams_opt import sample_dapo_params


def register() -> None:
    """Register DAPO, and the MinAtar games if `minatar` is installed. Calling it again changes nothing."""
    ALGOS["dapo"] = DAPO
    HYPERPARAMS_SAMPLER["dapo"] = sample_dapo_params
    HYPERPARAMS_CONVERTER["dapo"] = convert_onpolicy_params
    # The name that the Zoo's `train()` looks up
    setattr(rl_zoo3.train, "ExperimentManager", ExperimentManager)  # noqa: B010
    if importlib.util.find_spec("minatar") is not None and "MinAtar/Asterix-v1" not in gym.registry:
        import minatar.gym

        minatar.gym.register_envs()
