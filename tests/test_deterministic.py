"""The same seed gives the same run."""

from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch as th
from algos import make_model
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import FakeImageEnv

from sb3_dapo import DAPO, AdaptiveController

RUNS: dict[str, tuple[str, dict[str, Any]]] = {
    "CartPole": ("CartPole-v1", {"n_rollouts": 3}),
    "Pendulum": ("Pendulum-v1", {"n_rollouts": 2, "divergence_coef": AdaptiveController()}),
    "gSDE": ("Pendulum-v1", {"use_sde": True, "sde_sample_freq": 4}),
    "exact": ("CartPole-v1", {"exact_targets": True, "policy_loss": "plain"}),
}


@pytest.mark.parametrize("name", RUNS)
def test_deterministic(algo: type[DAPO], name: str) -> None:
    env_id, settings = RUNS[name]

    def run(seed: int) -> tuple[list[Any], list[Any], dict[str, th.Tensor]]:
        model = make_model(algo, "MlpPolicy", make_vec_env(env_id, n_envs=2), **deepcopy({**settings, "seed": seed}))
        model.learn(512)
        env, actions, rewards = model.get_env(), [], []
        observations = env.reset()
        for _ in range(50):
            action, _ = model.predict(observations, deterministic=False)
            observations, reward, _, _ = env.step(action)
            actions.append(action)
            rewards.append(reward)
        return actions, rewards, model.policy.state_dict()

    (actions, rewards, parameters), (other_actions, other_rewards, others), (_, _, different) = map(run, (3, 3, 4))
    np.testing.assert_array_equal(actions, other_actions)
    np.testing.assert_array_equal(rewards, other_rewards)
    assert all(th.equal(parameter, others[key]) for key, parameter in parameters.items())
    assert not all(th.equal(parameter, different[key]) for key, parameter in parameters.items())


def test_deterministic_on_images(algo: type[DAPO]) -> None:
    def run() -> dict[str, th.Tensor]:
        env = FakeImageEnv(screen_height=36, screen_width=36, n_channels=3)
        env.observation_space.seed(0)
        model = make_model(algo, "CnnPolicy", env, n_steps=32, n_rollouts=2)
        model.learn(96)
        return model.policy.state_dict()

    parameters, others = run(), run()
    assert all(th.equal(parameter, others[key]) for key, parameter in parameters.items())
