"""Dict observations, with images and without."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from algos import make_model
from envs import RandomEnv
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import BitFlippingEnv, SimpleMultiObsEnv
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecFrameStack, VecNormalize

from sb3_dapo import DAPO

SMALL_CNN: dict[str, Any] = {"features_extractor_kwargs": {"cnn_output_dim": 8}}


def make_dict_env(channel_last: bool = True, discrete: bool = True) -> gym.Env:
    """Two images, a vector and a number."""
    shape = (36, 36, 1) if channel_last else (1, 36, 36)
    observation_space = spaces.Dict(
        {
            "vector": spaces.Box(-1, 1, (2,)),
            "image": spaces.Box(0, 255, shape, np.uint8),
            "other image": spaces.Box(0, 255, shape, np.uint8),
            "number": spaces.Discrete(4),
        }
    )
    return RandomEnv(observation_space, spaces.Discrete(3) if discrete else spaces.Box(-1, 1, (2,)))


@pytest.mark.parametrize("discrete", [True, False])
@pytest.mark.parametrize("channel_last", [True, False])
def test_dict_spaces(algo: type[DAPO], channel_last: bool, discrete: bool) -> None:
    env = make_vec_env(lambda: make_dict_env(channel_last, discrete), n_envs=2, seed=0)
    model = make_model(algo, "MultiInputPolicy", env, n_steps=32, n_rollouts=2, policy_kwargs=SMALL_CNN)
    model.learn(192)
    evaluate_policy(model, env, n_eval_episodes=2, warn=False)


@pytest.mark.parametrize("fast", [False, None])
def test_dict_equals_flat(algo: type[DAPO], fast: bool | None) -> None:
    """A Dict of one vector is learned from exactly as the vector. Of the two only the vector has a faster form."""

    def parameters(as_dict: bool) -> dict[str, th.Tensor]:
        env: gym.Env = RandomEnv(spaces.Dict({"x": spaces.Box(-1, 1, (3,))}), spaces.Discrete(2))
        policy = "MultiInputPolicy"
        if not as_dict:
            env, policy = gym.wrappers.FlattenObservation(env), "MlpPolicy"
        model = make_model(algo, policy, make_vec_env(lambda: env, seed=0), n_rollouts=2, fast=fast)
        model.learn(256)
        return model.policy.state_dict()

    for (name, x), (other_name, y) in zip(parameters(True).items(), parameters(False).items(), strict=True):
        assert name == other_name
        assert th.equal(x, y) if fast is False else th.allclose(x, y, rtol=1e-3, atol=1e-5), name


class AsDict(gym.ObservationWrapper):
    """Puts an image into a Dict."""

    def __init__(self, env: gym.Env) -> None:
        super().__init__(env)
        self.observation_space = spaces.Dict({"image": env.observation_space})

    def observation(self, observation: np.ndarray) -> dict[str, np.ndarray]:
        return {"image": observation}


def test_dict_of_an_image_equals_the_image(algo: type[DAPO]) -> None:
    def parameters(as_dict: bool) -> list[th.Tensor]:
        env: gym.Env = RandomEnv(spaces.Box(0, 255, (36, 36, 1), np.uint8), spaces.Discrete(2))
        policy, policy_kwargs = "CnnPolicy", {"features_extractor_kwargs": {"features_dim": 8}}
        if as_dict:
            env, policy, policy_kwargs = AsDict(env), "MultiInputPolicy", SMALL_CNN
        model = make_model(
            algo,
            policy,
            make_vec_env(lambda: env, seed=0),
            n_steps=32,
            n_rollouts=2,
            autocast=False,
            policy_kwargs=policy_kwargs,
        )
        model.learn(96)
        return list(model.policy.state_dict().values())

    for x, y in zip(parameters(True), parameters(False), strict=True):
        th.testing.assert_close(x, y, rtol=1e-3, atol=1e-5)


def test_goal_env(algo: type[DAPO]) -> None:
    model = make_model(algo, "MultiInputPolicy", BitFlippingEnv(n_bits=4))
    model.learn(128)
    evaluate_policy(model, model.get_env(), n_eval_episodes=2)


@pytest.mark.parametrize("channel_last", [True, False])
def test_frame_stack(algo: type[DAPO], channel_last: bool) -> None:
    env = VecFrameStack(
        DummyVecEnv([lambda: SimpleMultiObsEnv(channel_last=channel_last)]),
        n_stack=3,
        channels_order={"vec": None, "img": "last" if channel_last else "first"},
    )
    model = make_model(algo, "MultiInputPolicy", env, n_steps=32, policy_kwargs=SMALL_CNN)
    model.learn(64)
    evaluate_policy(model, env, n_eval_episodes=1, warn=False)


def test_vec_normalize(algo: type[DAPO]) -> None:
    env = VecNormalize(make_vec_env(make_dict_env, n_envs=2, seed=0), norm_obs_keys=["vector"])
    model = make_model(algo, "MultiInputPolicy", env, n_steps=32, n_rollouts=2, policy_kwargs=SMALL_CNN)
    model.learn(192)
    evaluate_policy(model, env, n_eval_episodes=2, warn=False)


def test_subprocesses(algo: type[DAPO]) -> None:
    env = make_vec_env(make_dict_env, n_envs=2, seed=0, vec_env_cls=SubprocVecEnv)
    make_model(algo, "MultiInputPolicy", env, n_steps=32, policy_kwargs=SMALL_CNN).learn(128)
    env.close()


def test_subprocesses_equal_one_process(algo: type[DAPO]) -> None:
    parameters = []
    for vec_env_cls in (DummyVecEnv, SubprocVecEnv):
        env = make_vec_env("CartPole-v1", n_envs=2, seed=0, vec_env_cls=vec_env_cls)
        model = make_model(algo, "MlpPolicy", env, n_rollouts=2)
        model.learn(384)
        env.close()
        parameters.append(model.policy.state_dict())
    assert all(th.equal(parameter, parameters[1][name]) for name, parameter in parameters[0].items())


@pytest.mark.parametrize("policy", ["MlpPolicy", "CnnPolicy"])
def test_wrong_policy(algo: type[DAPO], policy: str) -> None:
    with pytest.raises(ValueError, match="MultiInputPolicy"):
        make_model(algo, policy, BitFlippingEnv(n_bits=4))


def test_nested_dicts_are_refused(algo: type[DAPO]) -> None:
    space = spaces.Dict({"outer": spaces.Dict({"inner": spaces.Discrete(2)})})
    with pytest.raises(NotImplementedError, match="[Nn]ested"):
        make_model(algo, "MultiInputPolicy", RandomEnv(space, spaces.Discrete(2)))
