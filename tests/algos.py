"""The one list of algorithms that every behaviour test runs over, and small models of them."""

from typing import Any

import torch as th

from sb3_dapo import DAPO

ALL_ALGOS: list[type[DAPO]] = [DAPO]

# Enough to go through every line of an update, in a fraction of a second
SMALL: dict[str, Any] = {"n_steps": 64, "batch_size": 32, "n_epochs": 2, "seed": 0, "device": "cpu"}
SMALL_NET: dict[str, Any] = {"net_arch": [16]}


def make_model(algo: type[DAPO], policy: str, env: Any, **settings: Any) -> DAPO:
    """
    :param algo: one of ALL_ALGOS
    :param policy: MlpPolicy, CnnPolicy, MultiInputPolicy, or a class
    :param env: environment, or its id
    :param settings: in place of, or in addition to, those of a small model
    :return: the model
    """
    policy_kwargs = {**SMALL_NET, **settings.pop("policy_kwargs", {})}
    return algo(policy, env, **{**SMALL, "policy_kwargs": policy_kwargs, **settings})


def flat_parameters(model: DAPO) -> th.Tensor:
    """
    :param model: a model
    :return: a copy of its policy's parameters, in one vector
    """
    return th.as_tensor(model.policy.parameters_to_vector())
