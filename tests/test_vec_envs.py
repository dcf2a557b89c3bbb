"""Wrappers of vectorised environments."""

import gymnasium as gym
import numpy as np
import pytest
from algos import make_model
from envs import RandomEnv
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    VecCheckNan,
    VecEnvWrapper,
    VecExtractDictObs,
    VecFrameStack,
    VecMonitor,
    VecNormalize,
    VecVideoRecorder,
)

from sb3_dapo import DAPO

N_STEPS = 64


def test_a_gym_env_is_wrapped(algo: type[DAPO]) -> None:
    model = make_model(algo, "MlpPolicy", gym.make("CartPole-v1"))
    assert isinstance(model.get_env(), DummyVecEnv)
    model.learn(N_STEPS)
    assert len(model.ep_info_buffer) > 0  # by a Monitor


def test_the_env_stays_as_it_was_given(algo: type[DAPO]) -> None:
    """Nothing of what the algorithm puts around it stays there, so that a saved model and callbacks see the user's."""
    env = VecNormalize(make_vec_env("CartPole-v1", n_envs=2))
    model = make_model(algo, "MlpPolicy", env)
    model.learn(2 * N_STEPS)
    assert model.get_env() is env
    assert model.get_vec_normalize_env() is env
    assert model.env.env_method("get_wrapper_attr", "gravity") == [9.8, 9.8]


def test_vec_normalize(algo: type[DAPO]) -> None:
    """What is learned from are the normalized observations and rewards, of terminal observations too."""
    env = VecNormalize(make_vec_env("Pendulum-v1", n_envs=2, seed=0, env_kwargs={"max_episode_steps": 10}))
    model = make_model(algo, "MlpPolicy", env, n_rollouts=2)
    model.learn(6 * N_STEPS)
    observations = np.concatenate([samples.observations for samples in model.rollout_buffer.get(32)])
    np.testing.assert_allclose(observations.mean(axis=0), 0, atol=0.5)
    np.testing.assert_allclose(observations.std(axis=0), 1, atol=0.5)
    ends = np.concatenate([batch.observations for batch in model.rollout_buffer.bootstrap_batches(10)])
    n_truncated = 2 * 2 * (N_STEPS // 10)
    assert 2 * 2 + n_truncated <= len(ends) <= 2 * 2 + n_truncated + 4
    # Pendulum's own observations are cosine and sine, on a circle of radius 1, and a speed
    assert (np.abs(np.hypot(ends[:, 0], ends[:, 1]) - 1) > 0.01).mean() > 0.9
    evaluate_policy(model, env, n_eval_episodes=2, warn=False)


@pytest.mark.parametrize("norm_reward", [True, False])
def test_kept_rewards_are_those_of_the_env(algo: type[DAPO], norm_reward: bool) -> None:
    """V-trace asks the current network for the value of truncated episodes: nothing is added to the reward."""
    env = VecNormalize(
        make_vec_env("Pendulum-v1", n_envs=2, seed=0, env_kwargs={"max_episode_steps": 7}), norm_reward=norm_reward
    )
    rewards = []

    class Rewards(BaseCallback):
        def _on_step(self) -> bool:
            rewards.append(self.locals["rewards"].copy())
            return True

    model = make_model(algo, "MlpPolicy", env)
    model.learn(2 * N_STEPS, callback=Rewards())
    np.testing.assert_array_equal(model.rollout_buffer.kept_rewards[0].T, rewards)


class Spoiled(gym.Wrapper):
    """Gives bad numbers after some steps."""

    def __init__(self, env: gym.Env, bad: float) -> None:
        super().__init__(env)
        self.bad, self.n_steps = bad, 0

    def step(self, action):
        observation, reward, terminated, truncated, info = super().step(action)
        self.n_steps += 1
        return observation * (self.bad if self.n_steps > 80 else 1), reward, terminated, truncated, info


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_vec_check_nan(algo: type[DAPO], bad: float) -> None:
    env = VecCheckNan(DummyVecEnv([lambda: Spoiled(gym.make("Pendulum-v1"), bad)]), raise_exception=True)
    model = make_model(algo, "MlpPolicy", env)
    model.learn(N_STEPS)
    with pytest.raises(ValueError, match="found"):
        model.learn(2 * N_STEPS)
    assert all(parameter.isfinite().all() for parameter in model.policy.parameters())


def test_vec_monitor(algo: type[DAPO], tmp_path) -> None:
    env = VecMonitor(DummyVecEnv([lambda: gym.make("CartPole-v1")] * 2), str(tmp_path / "monitor"))
    model = make_model(algo, "MlpPolicy", env)
    model.learn(4 * N_STEPS)
    assert len(model.ep_info_buffer) > 2
    assert len((tmp_path / "monitor.monitor.csv").read_text().splitlines()) > 3


def test_extracted_and_stacked(algo: type[DAPO]) -> None:
    space = spaces.Dict({"used": spaces.Box(-1, 1, (2,)), "unused": spaces.Discrete(2)})
    env = make_vec_env(lambda: RandomEnv(space, spaces.Discrete(2)), n_envs=2, seed=0)
    model = make_model(algo, "MlpPolicy", VecFrameStack(VecExtractDictObs(env, "used"), 3), n_rollouts=2)
    model.learn(6 * N_STEPS)
    assert model.observation_space.shape == (6,)


def test_video(algo: type[DAPO], tmp_path) -> None:
    pytest.importorskip("moviepy")
    env = VecVideoRecorder(
        DummyVecEnv([lambda: gym.make("CartPole-v1", render_mode="rgb_array")]),
        str(tmp_path),
        record_video_trigger=lambda step: step == 0,
        video_length=10,
    )
    make_model(algo, "MlpPolicy", env).learn(N_STEPS)
    env.close()
    assert [path.suffix for path in tmp_path.iterdir()] == [".mp4"]


class OwnWrapper(VecEnvWrapper):
    """Halves the rewards."""

    def reset(self):
        return self.venv.reset()

    def step_wait(self):
        observations, rewards, dones, infos = self.venv.step_wait()
        return observations, rewards / 2, dones, infos


def test_own_wrapper(algo: type[DAPO]) -> None:
    model = make_model(algo, "MlpPolicy", OwnWrapper(make_vec_env("CartPole-v1", n_envs=2)), advantage="gae")
    model.learn(2 * N_STEPS)
    assert set(model.rollout_buffer.kept_rewards.flatten().tolist()) == {0.5}
