"""DAPO's search space for `sb3-dapo train -optimize`."""

from typing import Any

import optuna
from rl_zoo3.hyperparams_opt import sample_ppo_params


def sample_dapo_params(
    trial: optuna.Trial, n_actions: int, n_envs: int, additional_args: dict[str, Any]
) -> dict[str, Any]:
    """
    PPO's search space of the Zoo and the settings that only DAPO has. These are sampled as they are used, so the
    Zoo's converter of PPO's parameters serves DAPO too.

    :param trial: Optuna's trial
    :param n_actions: number of action dimensions
    :param n_envs: number of environments
    :param additional_args: what the Zoo passes to every sampler
    :return: arguments for DAPO
    """
    return {
        **sample_ppo_params(trial, n_actions, n_envs, additional_args),
        "divergence_coef": trial.suggest_float("divergence_coef", 0.01, 2.0, log=True),
        "divergence_steps": trial.suggest_categorical("divergence_steps", [None, 0, 1, 3]),
        "divergence_lambda": trial.suggest_float("divergence_lambda", 0.5, 1.0),
        "divergence_c_bar": trial.suggest_float("divergence_c_bar", 0.5, 1.0),
        "advantage": trial.suggest_categorical("advantage", ["vtrace", "vtrace_gae"]),
        "n_rollouts": trial.suggest_categorical("n_rollouts", [1, 2, 4]),
        "policy_loss": trial.suggest_categorical("policy_loss", ["clip", "plain", "clip_augmented"]),
        "normalize_advantage": trial.suggest_categorical("normalize_advantage", [True, "rms"]),
    }
