"""Networks that act differently in training and in evaluation: dropout and batch normalization."""

import numpy as np
import pytest
import torch as th
from algos import make_model
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor

from sb3_dapo import DAPO

ENV_IDS = ["CartPole-v1", "Pendulum-v1"]


class NoisyExtractor(BaseFeaturesExtractor):
    """Dropout after batch normalization."""

    def __init__(self, observation_space) -> None:
        n_inputs = observation_space.shape[0]
        super().__init__(observation_space, n_inputs)
        self.batch_norm, self.dropout = th.nn.BatchNorm1d(n_inputs), th.nn.Dropout(0.5)
        self.modes: list[bool] = []

    def forward(self, observations: th.Tensor) -> th.Tensor:
        self.modes.append(self.training)
        return self.dropout(self.batch_norm(observations))

    def statistics(self) -> tuple[th.Tensor, ...]:
        return tuple(x.clone() for x in (self.batch_norm.bias, self.batch_norm.running_mean))


def make_noisy(algo: type[DAPO], env_id: str, n_envs: int = 1, **settings) -> DAPO:
    return make_model(
        algo,
        "MlpPolicy",
        make_vec_env(env_id, n_envs=n_envs, seed=0),
        policy_kwargs={"features_extractor_class": NoisyExtractor},
        **settings,
    )


@pytest.mark.parametrize("settings", [{}, {"n_rollouts": 3}, {"advantage": "gae"}, {"exact_targets": True}], ids=str)
@pytest.mark.parametrize("n_envs", [1, 2])
@pytest.mark.parametrize("env_id", ENV_IDS)
def test_learning_changes_the_statistics(algo: type[DAPO], env_id: str, n_envs: int, settings: dict) -> None:
    model = make_noisy(algo, env_id, n_envs, **settings)
    before = model.policy.features_extractor.statistics()
    model.learn(192 * n_envs)
    for x, y in zip(before, model.policy.features_extractor.statistics(), strict=True):
        assert not th.isclose(x, y).any()
    assert all(parameter.isfinite().all() for parameter in model.policy.parameters())


@pytest.mark.parametrize("env_id", ENV_IDS)
def test_collecting_does_not_change_the_statistics(algo: type[DAPO], env_id: str) -> None:
    model = make_noisy(algo, env_id)
    before = model.policy.features_extractor.statistics()
    _, callback = model._setup_learn(128)
    for _ in range(2):
        model.collect_rollouts(model.get_env(), callback, model.rollout_buffer, n_rollout_steps=model.n_steps)
    assert not any(model.policy.features_extractor.modes)
    for x, y in zip(before, model.policy.features_extractor.statistics(), strict=True):
        assert th.equal(x, y)


@pytest.mark.parametrize("env_id", ENV_IDS)
def test_predicting_does_not_change_the_statistics(algo: type[DAPO], env_id: str) -> None:
    model = make_noisy(algo, env_id)
    model.learn(64)
    before = model.policy.features_extractor.statistics()
    observations = model.get_env().reset()
    predictions = [model.predict(observations, deterministic=True)[0] for _ in range(5)]
    for prediction in predictions[1:]:
        np.testing.assert_allclose(prediction, predictions[0])
    for x, y in zip(before, model.policy.features_extractor.statistics(), strict=True):
        assert th.equal(x, y)


def test_only_what_is_differentiated_is_in_training_mode(algo: type[DAPO]) -> None:
    """
    The values that end the trajectories are asked in evaluation mode, like all targets: a state alone has no batch
    statistics, and should not change those of the network.
    """
    model = make_noisy(algo, "CartPole-v1", n_epochs=1)
    model.learn(64)
    n_minibatches = 2
    assert sum(model.policy.features_extractor.modes) == n_minibatches
