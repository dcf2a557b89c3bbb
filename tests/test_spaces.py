"""All spaces that SB3 supports, and what is done with those that it does not."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from algos import make_model
from envs import RandomEnv
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import FakeImageEnv
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack

from sb3_dapo import DAPO

FLOATS = spaces.Box(-1, 1, (3,))
OBSERVATION_SPACES = {
    "Box float32": FLOATS,
    "Box float64": spaces.Box(-1, 1, (3,), np.float64),
    "Box float16": spaces.Box(-1, 1, (3,), np.float16),
    "Box of two dimensions": spaces.Box(-1, 1, (2, 3)),
    "Box of one number": spaces.Box(-1, 1, (1,)),
    **{f"Box {dtype}": spaces.Box(0, 9, (3,), dtype) for dtype in ("uint8", "int8", "uint16", "int16", "int32")},
    **{f"Box {dtype}": spaces.Box(0, 9, (3,), dtype) for dtype in ("uint32", "int64", "uint64")},
    "Discrete": spaces.Discrete(4),
    "MultiDiscrete": spaces.MultiDiscrete([3, 2]),
    "MultiBinary": spaces.MultiBinary(4),
    "MultiBinary of two dimensions": spaces.MultiBinary([2, 3]),
    "Dict": spaces.Dict({"a": FLOATS, "b": spaces.Discrete(3), "c": spaces.MultiBinary(2), "d": FLOATS}),
    "Dict of floats": spaces.Dict({"a": FLOATS, "b": spaces.Box(-1, 1, (2,), np.float64)}),
}
ACTION_SPACES = {
    "Discrete": spaces.Discrete(3),
    "Discrete with one action": spaces.Discrete(1),
    "MultiDiscrete": spaces.MultiDiscrete([3, 1, 2]),
    "MultiBinary": spaces.MultiBinary(3),
    "Box": spaces.Box(-2, 2, (2,)),
    "Box float64": spaces.Box(-1, 1, (2,), np.float64),
    "Box of two dimensions": spaces.Box(-1, 1, (2, 2)),
    "Box with bounds of its own": spaces.Box(np.array([-1, 0], np.float32), np.array([3, 5], np.float32)),
}


def check_runs(algo: type[DAPO], env: gym.Env, policy: str = "MlpPolicy", **settings: Any) -> None:
    """Learns from rollouts that are reused, and acts within the space."""
    vec_env = make_vec_env(lambda: env, n_envs=1, seed=0)
    model = make_model(algo, policy, vec_env, n_steps=32, n_rollouts=2, **settings)
    model.learn(96)
    observation, _ = env.reset(seed=0)
    for deterministic in (True, False):
        action, _ = model.predict(observation, deterministic=deterministic)
        assert env.action_space.contains(action if action.shape else action.item())
        if isinstance(env.action_space, spaces.Box):
            assert action.dtype == env.action_space.dtype
    assert all(parameter.isfinite().all() for parameter in model.policy.parameters())


@pytest.mark.parametrize("name", OBSERVATION_SPACES)
def test_observation_spaces(algo: type[DAPO], name: str) -> None:
    space = OBSERVATION_SPACES[name]
    policy = "MultiInputPolicy" if isinstance(space, spaces.Dict) else "MlpPolicy"
    check_runs(algo, RandomEnv(space, spaces.Discrete(2)), policy)


@pytest.mark.parametrize("name", ACTION_SPACES)
def test_action_spaces(algo: type[DAPO], name: str) -> None:
    check_runs(algo, RandomEnv(FLOATS, ACTION_SPACES[name]))


@pytest.mark.parametrize("observation_space", [FLOATS, OBSERVATION_SPACES["Box float64"]], ids=str)
@pytest.mark.parametrize("action_space", [ACTION_SPACES["Box"], ACTION_SPACES["Box float64"]], ids=str)
def test_floats_of_both_sizes(algo: type[DAPO], observation_space: spaces.Space, action_space: spaces.Space) -> None:
    check_runs(algo, RandomEnv(observation_space, action_space))


def test_env_with_discrete_observations(algo: type[DAPO]) -> None:
    model = make_model(algo, "MlpPolicy", make_vec_env("Taxi-v4", n_envs=2, seed=0), n_epochs=1)
    model.learn(256)


class SubclassedBox(spaces.Box):
    """What a library of environments might define."""


def test_subclassed_spaces(algo: type[DAPO]) -> None:
    check_runs(algo, RandomEnv(SubclassedBox(-1, 1, (2,)), SubclassedBox(-1, 1, (2,))))


@pytest.mark.parametrize("share_features_extractor", [True, False])
@pytest.mark.parametrize("discrete", [True, False])
@pytest.mark.parametrize("size", [36, 41])
def test_images(algo: type[DAPO], size: int, discrete: bool, share_features_extractor: bool, tmp_path) -> None:
    """Channels last, as environments give them, and saved and loaded."""
    env = FakeImageEnv(screen_height=size, screen_width=size, n_channels=1, discrete=discrete)
    settings = {"features_extractor_kwargs": {"features_dim": 16}, "share_features_extractor": share_features_extractor}
    model = make_model(algo, "CnnPolicy", env, n_steps=32, n_rollouts=2, policy_kwargs=settings)
    model.learn(96)
    assert model.observation_space.shape == (1, size, size)
    observation = np.stack([env.observation_space.sample() for _ in range(3)])
    actions, _ = model.predict(observation, deterministic=True)
    model.save(tmp_path / "model")
    loaded = algo.load(tmp_path / "model", env=env)
    np.testing.assert_allclose(loaded.predict(observation, deterministic=True)[0], actions, rtol=1e-4, atol=1e-7)
    loaded.learn(64)


def test_images_with_channels_first(algo: type[DAPO]) -> None:
    env = FakeImageEnv(screen_height=36, screen_width=36, n_channels=4, channel_first=True)
    model = make_model(algo, "CnnPolicy", env, n_steps=32)
    model.learn(64)
    assert model.observation_space.shape == (4, 36, 36)


def test_stacked_images(algo: type[DAPO]) -> None:
    env = VecFrameStack(DummyVecEnv([lambda: FakeImageEnv(screen_height=36, screen_width=36, n_channels=1)]), 4)
    model = make_model(algo, "CnnPolicy", env, n_steps=32)
    model.learn(64)
    evaluate_policy(model, env, n_eval_episodes=1, warn=False)
    assert model.observation_space.shape == (4, 36, 36)


@pytest.mark.parametrize("normalize_images", [True, False])
def test_image_like_floats(algo: type[DAPO], normalize_images: bool) -> None:
    """Images that are floats already are not divided by 255."""
    space = spaces.Box(0.0 if normalize_images else -1.0, 1.0, (3, 36, 36))
    settings = {"normalize_images": False, "features_extractor_kwargs": {"normalized_image": True}}
    model = make_model(algo, "CnnPolicy", RandomEnv(space, spaces.Discrete(2)), n_steps=32, policy_kwargs=settings)
    model.learn(64)
    with pytest.raises((AssertionError, ValueError), match="You should use NatureCNN only with images"):
        make_model(algo, "CnnPolicy", RandomEnv(space, spaces.Discrete(2)))


def test_multi_dimensional_binary_actions_are_refused(algo: type[DAPO]) -> None:
    with pytest.raises(ValueError, match=r"[Mm]ulti-dimensional MultiBinary\(.*\) action space is not supported"):
        make_model(algo, "MlpPolicy", RandomEnv(FLOATS, spaces.MultiBinary([2, 3])))
