"""Generalized state-dependent exploration."""

import gymnasium as gym
import numpy as np
import pytest
from algos import make_model
from envs import RandomEnv
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env

from sb3_dapo import DAPO


class ActionsSeen(gym.Wrapper):
    """Keeps the actions that an environment is sent."""

    def __init__(self, env: gym.Env) -> None:
        super().__init__(env)
        self.actions: list[np.ndarray] = []

    def step(self, action: np.ndarray):
        self.actions.append(action)
        return super().step(action)


@pytest.mark.parametrize("use_expln", [False, True])
@pytest.mark.parametrize("squash_output", [False, True])
def test_gsde(algo: type[DAPO], squash_output: bool, use_expln: bool) -> None:
    """Squashed actions are kept in [-1, 1] and sent to the environment in its own units."""
    env = ActionsSeen(gym.make("Pendulum-v1"))
    policy_kwargs = {"log_std_init": -2.0, "use_expln": use_expln, "squash_output": squash_output}
    model = make_model(algo, "MlpPolicy", env, use_sde=True, n_rollouts=2, policy_kwargs=policy_kwargs)
    model.learn(3 * 64)
    kept = np.concatenate([samples.actions for samples in model.rollout_buffer.get(64)])
    sent = np.array(env.actions)[-2 * 64 :]
    assert np.abs(kept).max() <= (1 if squash_output else 2)
    scale = 2 if squash_output else 1
    np.testing.assert_allclose(np.sort(kept.flatten()) * scale, np.sort(sent.flatten()), rtol=1e-5)
    model.policy.reset_noise()


@pytest.mark.parametrize("sde_sample_freq", [-1, 1, 8])
def test_noise_is_kept_for_some_steps(algo: type[DAPO], sde_sample_freq: int) -> None:
    model = make_model(algo, "MlpPolicy", "Pendulum-v1", use_sde=True, sde_sample_freq=sde_sample_freq)
    n_resets = 0
    reset_noise = model.policy.reset_noise

    def count(n_envs: int = 1) -> None:
        nonlocal n_resets
        n_resets += 1
        reset_noise(n_envs)

    model.policy.reset_noise = count  # type: ignore[method-assign]
    model.learn(64)
    assert n_resets == 1 + (64 // sde_sample_freq if sde_sample_freq > 0 else 0)


def test_many_dimensions_and_envs(algo: type[DAPO]) -> None:
    env = make_vec_env(lambda: RandomEnv(spaces.Box(-1, 1, (3,)), spaces.Box(-1, 1, (2, 2))), n_envs=3, seed=0)
    model = make_model(algo, "MlpPolicy", env, use_sde=True, n_rollouts=2)
    model.learn(3 * 3 * 64)
    assert all(parameter.isfinite().all() for parameter in model.policy.parameters())


def test_only_gsde_squashes(algo: type[DAPO]) -> None:
    with pytest.raises((AssertionError, ValueError), match="use_sde=True"):
        make_model(algo, "MlpPolicy", "Pendulum-v1", policy_kwargs={"squash_output": True})
