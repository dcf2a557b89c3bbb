"""
Time limits are not ends: in an environment without end and with reward 1 every value is 1 / (1 - gamma), wherever
episodes are cut, and however often rollouts are reused.
"""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from algos import make_model
from envs import EndlessEnv
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecNormalize

from sb3_dapo import DAPO

pytestmark = pytest.mark.filterwarnings("ignore:The last minibatch of every epoch")

GAMMA = 0.9
TRUE_VALUE = 1 / (1 - GAMMA)
# K = 4: every transition is used 4 * 15 times
SETTINGS: dict[str, Any] = {
    "gamma": GAMMA,
    "n_rollouts": 4,
    "n_epochs": 15,
    "n_steps": 32,
    "batch_size": 128,
    "learning_rate": lambda progress: 0.04 * progress,
}
N_ROLLOUTS = 20


def make_env(limits: list[int], as_dict: bool = False) -> VecEnv:
    """Environments of which each has its own time limit."""

    def limited(limit: int) -> gym.Env:
        return gym.wrappers.TimeLimit(EndlessEnv(as_dict=as_dict), limit)

    return DummyVecEnv([lambda limit=limit: limited(limit) for limit in limits])


def learned_values(algo: type[DAPO], env: VecEnv, **settings: Any) -> np.ndarray:
    """Values of all states that the environments show."""
    policy = "MultiInputPolicy" if isinstance(env.observation_space, gym.spaces.Dict) else "MlpPolicy"
    model = make_model(algo, policy, env, **{**SETTINGS, **settings})
    model.learn(N_ROLLOUTS * model.n_steps * model.n_envs)
    values = []
    observations = env.reset()
    for _ in range(8):
        with th.no_grad():
            values.append(model.policy.predict_values(model.policy.obs_to_tensor(observations)[0]).flatten().numpy())
        observations, _, _, _ = env.step(np.zeros(env.num_envs, dtype=int))
    return np.concatenate(values)


@pytest.mark.parametrize("limits", [[8], [1, 3, 100]], ids=str)
@pytest.mark.parametrize("as_dict", [False, True], ids=["Box", "Dict"])
def test_endless_env(algo: type[DAPO], limits: list[int], as_dict: bool) -> None:
    values = learned_values(algo, make_env(limits, as_dict))
    np.testing.assert_allclose(values, TRUE_VALUE, rtol=0.05)


@pytest.mark.parametrize("limits", [[8], [1, 3, 100]], ids=str)
@pytest.mark.parametrize("as_dict", [False, True], ids=["Box", "Dict"])
def test_endless_env_with_normalized_observations(algo: type[DAPO], limits: list[int], as_dict: bool) -> None:
    """Terminal observations are normalized like the others, or their values would be those of strange states."""
    env = VecNormalize(make_env(limits, as_dict), norm_reward=False)
    np.testing.assert_allclose(learned_values(algo, env), TRUE_VALUE, rtol=0.05)


@pytest.mark.parametrize(
    "settings",
    [
        {"exact_targets": True},
        {"policy_loss": "plain", "divergence_coef": 1.0},
        {"gae_lambda": 1.0},
        {"gae_lambda": 0.0},
        {"n_rollouts": 1},
        {"n_rollouts": 1, "advantage": "gae"},
    ],
    ids=str,
)
def test_endless_env_whatever_is_set(algo: type[DAPO], settings: dict[str, Any]) -> None:
    np.testing.assert_allclose(learned_values(algo, make_env([3, 8]), **settings), TRUE_VALUE, rtol=0.05)


class Terminating(gym.Wrapper):
    """Ends after some steps for good."""

    def __init__(self, env: gym.Env, limit: int) -> None:
        super().__init__(env)
        self.limit = limit

    def reset(self, **kwargs: Any):
        self.n_steps = 0
        return super().reset(**kwargs)

    def step(self, action: Any):
        self.n_steps += 1
        observation, reward, _, truncated, info = super().step(action)
        return observation, reward, self.n_steps == self.limit, truncated, info


def test_termination_is_an_end(algo: type[DAPO]) -> None:
    """The other side: where episodes of 4 steps do end, the values are sums of the rewards that are left."""
    env = DummyVecEnv([lambda: Terminating(EndlessEnv(random_start=False), 4)] * 2)
    left = np.array([4, 3, 2, 1, 4, 3, 2, 1]).repeat(2)
    expected = (1 - GAMMA**left) / (1 - GAMMA)
    np.testing.assert_allclose(learned_values(algo, env), expected, rtol=0.05)
