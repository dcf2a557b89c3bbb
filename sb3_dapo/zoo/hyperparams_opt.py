"""Search spaces of DAPO and RecurrentDAPO for `sb3-dapo train -optimize`."""

from typing import Any

import optuna
from rl_zoo3.hyperparams_opt import convert_onpolicy_params, sample_ppo_params


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


def sample_dapo_lstm_params(*args: Any) -> dict[str, Any]:
    """
    The same with the settings of the LSTM.

    :param args: of :func:`sample_dapo_params`
    :return: arguments for RecurrentDAPO
    """
    trial: optuna.Trial = args[0]
    sample_dapo_params(*args)
    trial.suggest_categorical("sequence_length", [8, 16, 32, 64])
    trial.suggest_categorical("lstm_hidden_size", [16, 32, 64, 128, 256])
    trial.suggest_categorical("enable_critic_lstm", [False, True])
    return convert_dapo_lstm_params(trial.params)


def convert_dapo_lstm_params(sampled: dict[str, Any]) -> dict[str, Any]:
    """
    :param sampled: parameters of a trial
    :return: arguments for RecurrentDAPO
    """
    of_policy = {name: sampled[name] for name in ("lstm_hidden_size", "enable_critic_lstm")}
    hyperparams = convert_onpolicy_params({name: sampled[name] for name in sampled if name not in of_policy})
    hyperparams["policy_kwargs"] |= of_policy
    # Powers of two, as batch sizes and the steps of a rollout are: the smaller is a factor of the larger
    hyperparams["sequence_length"] = min(hyperparams["sequence_length"], hyperparams["batch_size"])
    return hyperparams
