"""``predict`` and ``evaluate_policy``."""

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from algos import make_model
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.utils import get_device

from sb3_dapo import DAPO

DEVICES = ["auto", "cpu", pytest.param("cuda", marks=pytest.mark.skipif(not th.cuda.is_available(), reason="no GPU"))]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1"])
def test_predict(algo: type[DAPO], env_id: str, device: str) -> None:
    """One observation or many."""
    model = make_model(algo, "MlpPolicy", env_id, device=device)
    assert model.policy.device.type == get_device(device).type
    env, vec_env = gym.make(env_id), make_vec_env(env_id, n_envs=3)
    observation, _ = env.reset(seed=0)
    for deterministic in (True, False):
        action, state = model.predict(observation, deterministic=deterministic)
        assert isinstance(action, np.ndarray)
        assert state is None
        assert env.action_space.contains(action if action.shape else action.item())
        actions, _ = model.predict(vec_env.reset(), deterministic=deterministic)
        assert actions.shape == (3, *env.action_space.shape)
        vec_env.step(actions)


def test_deterministic_or_not(algo: type[DAPO]) -> None:
    model = make_model(algo, "MlpPolicy", "Pendulum-v1")
    observations = np.zeros((1, 3), dtype=np.float32)
    assert len({model.predict(observations, deterministic=True)[0].item() for _ in range(5)}) == 1
    assert len({model.predict(observations, deterministic=False)[0].item() for _ in range(5)}) == 5


def test_actions_are_clipped_to_the_space(algo: type[DAPO]) -> None:
    model = make_model(algo, "MlpPolicy", "Pendulum-v1", policy_kwargs={"log_std_init": 3.0})
    actions, _ = model.predict(np.zeros((100, 3), dtype=np.float32))
    assert (np.abs(actions) <= 2).all()
    assert (np.abs(actions) == 2).any()


def test_mixing_apis_is_explained(algo: type[DAPO]) -> None:
    env = gym.make("CartPole-v1")
    with pytest.raises(ValueError, match="mixing Gym API"):
        make_model(algo, "MlpPolicy", env).predict(env.reset())


def test_wrong_observation_shape(algo: type[DAPO]) -> None:
    with pytest.raises(ValueError, match="Unexpected observation shape"):
        make_model(algo, "MlpPolicy", "CartPole-v1").predict(np.zeros(7))


@pytest.mark.parametrize("n_envs", [1, 2, 3])
def test_evaluate_policy(algo: type[DAPO], n_envs: int) -> None:
    model = make_model(algo, "MlpPolicy", "CartPole-v1")
    env = make_vec_env("CartPole-v1", n_envs=n_envs, seed=0)
    rewards, lengths = evaluate_policy(model, env, n_eval_episodes=5, return_episode_rewards=True)
    assert len(rewards) == len(lengths) == 5
    assert rewards == lengths  # CartPole gives 1 per step
    mean, std = evaluate_policy(model, env, n_eval_episodes=5, deterministic=False)
    assert mean > 0 <= std
    with pytest.raises(AssertionError, match="below threshold"):
        evaluate_policy(model, env, n_eval_episodes=2, reward_threshold=1e6)


def test_policy_can_be_evaluated_alone(algo: type[DAPO]) -> None:
    model = make_model(algo, "MlpPolicy", "CartPole-v1")
    observations = th.zeros(5, 4)
    values, log_prob, entropy = model.policy.evaluate_actions(observations, th.ones(5))
    distribution = model.policy.get_distribution(observations)
    th.testing.assert_close(distribution.log_prob(th.ones(5)), log_prob)
    th.testing.assert_close(distribution.entropy(), entropy)
    th.testing.assert_close(model.policy.predict_values(observations), values)
