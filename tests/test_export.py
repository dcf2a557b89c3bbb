"""Exported models: they do what the originals do, and hostile ones are refused without running anything in them."""

import hashlib
import json
import os
import pickle
import struct
import subprocess
import sys
import textwrap
import zipfile
from collections.abc import Callable
from copy import deepcopy
from datetime import timedelta
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import safetensors.torch
import torch as th
from algos import ALL_ALGOS, make_model
from commands import Command
from envs import CatchEnv, RandomEnv
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, CombinedExtractor, FlattenExtractor
from stable_baselines3.common.utils import ConstantSchedule, FloatSchedule, LinearSchedule, set_random_seed
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack, VecNormalize
from torch import nn

from sb3_dapo import DAPO, DIVERGENCES, AdaptiveController, Divergence, DualController
from sb3_dapo.buffers import RolloutRing
from sb3_dapo.divergences import Tsallis
from sb3_dapo.export import DESCRIPTION, PARAMETERS, STATISTICS, ExportError, load_vec_normalize
from sb3_dapo.export.description import decode_space, encode_space
from sb3_dapo.export.folder import parse_json

FLOATS = spaces.Box(-1, 1, (3,))
TWO = spaces.Discrete(2)
IMAGE = spaces.Box(0, 255, (36, 36, 3), np.uint8)
MIXED = spaces.Dict(
    [  # not in alphabetical order, which Gymnasium would bring a dict into
        ("vector", spaces.Box(np.array([-1, -np.inf], np.float32), np.array([np.inf, 2.5], np.float32))),
        ("image", IMAGE),
        ("choice", spaces.Discrete(3)),
        ("bits", spaces.MultiBinary(4)),
        ("choices", spaces.MultiDiscrete([2, 3])),
    ]
)


class OwnBox(spaces.Box):
    """As packages of environments define them, with methods of their own."""


class OwnDict(spaces.Dict):
    """Likewise."""


# --- round trips --------------------------------------------------------------------------------------


def trained(algo: type[DAPO], policy: str | type[ActorCriticPolicy], env: Any, **kwargs: Any) -> DAPO:
    """A model after one update."""
    model = make_model(algo, policy, env, **kwargs)  # type: ignore[arg-type]
    return model.learn(model.n_steps * model.n_envs)


def sample_observations(model: DAPO, n: int = 16) -> Any:
    samples = [model.observation_space.sample() for _ in range(n)]
    if isinstance(samples[0], dict):
        return {key: np.stack([sample[key] for sample in samples]) for key in samples[0]}
    return np.stack(samples)


def predictions(model: DAPO, observations: Any) -> list[np.ndarray]:
    """Deterministic actions, random actions, values and log-probs."""
    set_random_seed(0)
    if model.use_sde:
        model.policy.reset_noise(
            len(next(iter(observations.values())) if isinstance(observations, dict) else observations)
        )
    best, _ = model.predict(observations, deterministic=True)
    drawn, _ = model.predict(observations, deterministic=False)
    tensors = model.policy.obs_to_tensor(observations)[0]
    with th.no_grad():
        values = model.policy.predict_values(tensors)
        log_probs = model.policy.get_distribution(tensors).log_prob(th.as_tensor(drawn))
    return [best, drawn, values.numpy(), log_probs.numpy()]


def assert_same(model: DAPO, other: DAPO) -> None:
    """Everything about the policies is the same, bit for bit."""
    state, other_state = model.policy.state_dict(), other.policy.state_dict()
    assert list(state) == list(other_state)
    assert all(th.equal(state[name], other_state[name]) for name in state)
    assert model.observation_space == other.observation_space
    assert model.action_space == other.action_space
    observations = sample_observations(model)
    for mine, others in zip(predictions(model, observations), predictions(other, observations), strict=True):
        np.testing.assert_array_equal(mine, others)


def scores(model: DAPO, env: Any) -> tuple[Any, Any]:
    env.seed(1)
    return evaluate_policy(model, env, n_eval_episodes=4, return_episode_rewards=True, warn=False)


SPACES = {
    "discrete": ("MlpPolicy", FLOATS, spaces.Discrete(4), {}),
    "box": ("MlpPolicy", FLOATS, spaces.Box(np.array([-1, 0], np.float32), np.array([1, 3], np.float32)), {}),
    "multi_discrete": ("MlpPolicy", FLOATS, spaces.MultiDiscrete([2, 3]), {}),
    "multi_binary": ("MlpPolicy", FLOATS, spaces.MultiBinary(3), {}),
    "discrete_observations": ("MlpPolicy", spaces.Discrete(5), TWO, {}),
    "multi_discrete_observations": ("MlpPolicy", spaces.MultiDiscrete([2, 5]), TWO, {}),
    "multi_binary_observations": ("MlpPolicy", spaces.MultiBinary([2, 3]), TWO, {}),
    "float64_observations": ("MlpPolicy", spaces.Box(-1, 1, (2, 3), np.float64), TWO, {}),
    "bool_observations": ("MlpPolicy", spaces.Box(0, 1, (4, 4, 2), np.bool_), TWO, {}),
    "int8_observations": ("MlpPolicy", spaces.Box(-3, 5, (3,), np.int8), TWO, {}),
    "float16_observations": ("MlpPolicy", spaces.Box(-1, 1, (3,), np.float16), TWO, {}),
    "uint32_observations": ("MlpPolicy", spaces.Box(0, 2**31, (3,), np.uint32), TWO, {}),
    "own_boxes": ("MlpPolicy", OwnBox(-1, 1, (3,)), OwnBox(-1, 1, (2,)), {}),
    "own_discretes": (
        "MlpPolicy",
        type("OwnMultiBinary", (spaces.MultiBinary,), {})(3),
        type("OwnDiscrete", (spaces.Discrete,), {})(2),
        {},
    ),
    "own_dict": (
        "MultiInputPolicy",
        OwnDict({"b": spaces.Box(0, 1, (2,), np.bool_), "a": OwnBox(-1, 1, (2,))}),
        type("OwnMultiDiscrete", (spaces.MultiDiscrete,), {})([2, 3]),
        {},
    ),
    "bool_actions": ("MlpPolicy", FLOATS, spaces.Box(0, 1, (2,), np.bool_), {}),
    "int_actions": ("MlpPolicy", FLOATS, spaces.Box(0, 5, (2,), np.int64), {}),
    "dict": ("MultiInputPolicy", MIXED, TWO, {}),
    "image": ("CnnPolicy", IMAGE, TWO, {}),
    "image_not_shared": (
        "CnnPolicy",
        spaces.Box(0, 255, (3, 36, 36), np.uint8),
        spaces.Box(-1, 1, (2,)),
        {"policy_kwargs": {"share_features_extractor": False, "features_extractor_kwargs": {"features_dim": 8}}},
    ),
    "sde": ("MlpPolicy", FLOATS, spaces.Box(-2, 2, (2,)), {"use_sde": True, "sde_sample_freq": 4}),
    "sde_squashed": (
        "MlpPolicy",
        FLOATS,
        spaces.Box(-2, 2, (2,)),
        {"use_sde": True, "policy_kwargs": {"squash_output": True, "full_std": False, "use_expln": True}},
    ),
}


@pytest.mark.parametrize("policy, observation_space, action_space, kwargs", SPACES.values(), ids=SPACES)
def test_the_loaded_model_does_what_the_original_does(
    algo: type[DAPO],
    policy: str,
    observation_space: spaces.Space,
    action_space: spaces.Space,
    kwargs: dict[str, Any],
    tmp_path: Path,
) -> None:
    def make_env() -> DummyVecEnv:
        return make_vec_env(lambda: RandomEnv(observation_space, action_space), n_envs=2, seed=0)

    model = trained(algo, policy, make_env(), **deepcopy(kwargs))
    model.export(tmp_path / "model")

    alone = algo.load_exported(tmp_path / "model")
    assert_same(model, alone)
    assert alone.get_env() is None
    loaded = algo.load_exported(tmp_path / "model", make_env())
    assert_same(model, loaded)
    assert scores(model, model.get_env()) == scores(loaded, loaded.get_env())
    # and it goes on to learn
    before = deepcopy(loaded.policy.state_dict())
    loaded.learn(loaded.n_steps * loaded.n_envs)
    assert any(not th.equal(before[name], tensor) for name, tensor in loaded.policy.state_dict().items())


def test_minatar(command: Command, tmp_path: Path) -> None:
    """An agent of this package's own settings for MinAtar, as `sb3-dapo train` leaves it."""
    pytest.importorskip("minatar.gym").register_envs()
    small = ("--hyperparams", "n_envs:2", "n_steps:32", "batch_size:64", "n_epochs:1")
    command("train", "--env", "MinAtar/Breakout-v1", "-n", "128", "--eval-freq", "-1", "--verbose", "0", *small)
    env = make_vec_env("MinAtar/Breakout-v1", n_envs=2)
    model = DAPO.load("logs/dapo/MinAtar-Breakout-v1_1/MinAtar-Breakout-v1.zip", env, device="cpu")
    model.export(tmp_path / "model")
    description = description_of(tmp_path / "model")
    assert description["observation_space"]["dtype"] == "bool"
    assert description["policy_kwargs"]["features_extractor_class"] == "MinAtarCnn"
    assert description["not_exported"] == []
    loaded = DAPO.load_exported(tmp_path / "model", make_vec_env("MinAtar/Breakout-v1", n_envs=2), device="cpu")
    assert_same(model, loaded)
    assert scores(model, model.get_env()) == scores(loaded, loaded.get_env())


def test_files_of_an_earlier_version() -> None:
    expected = np.load(Path(__file__).parent / "fixtures/0.1.0/expected.npz")
    loaded = DAPO.load_exported(Path(__file__).parent / "fixtures/0.1.0/pendulum_export", "Pendulum-v1", device="cpu")
    actions, _ = loaded.predict(expected["pendulum observations"], deterministic=True)
    np.testing.assert_allclose(actions, expected["pendulum actions"], rtol=1e-5)
    np.testing.assert_array_equal(loaded.get_vec_normalize_env().obs_rms.mean, expected["pendulum mean"])
    assert loaded.divergence_coef.coefficient == 0.0078125
    loaded.learn(64)


def test_steps_go_on_from_those_of_the_original(algo: type[DAPO], tmp_path: Path) -> None:
    model = trained(algo, "MlpPolicy", "CartPole-v1")
    model.export(tmp_path / "model")
    loaded = algo.load_exported(tmp_path / "model", gym.make("CartPole-v1"))
    assert loaded.num_timesteps == model.num_timesteps == 64
    loaded.learn(64, reset_num_timesteps=False)
    assert loaded.num_timesteps == 128


def test_another_number_of_environments(algo: type[DAPO], tmp_path: Path) -> None:
    trained(algo, "MlpPolicy", make_vec_env("CartPole-v1", n_envs=3)).export(tmp_path / "model")
    loaded = algo.load_exported(tmp_path / "model", make_vec_env("CartPole-v1", n_envs=2))
    assert loaded.n_envs == 2
    loaded.learn(128)


def test_a_model_without_environment_can_be_given_one(algo: type[DAPO], tmp_path: Path) -> None:
    trained(algo, "MlpPolicy", make_vec_env("CartPole-v1", n_envs=3)).export(str(tmp_path / "model"))
    loaded = algo.load_exported(str(tmp_path / "model"))
    loaded.set_env(make_vec_env("CartPole-v1", n_envs=1))
    loaded.learn(64)


def test_shared_parameters_are_stored_once(algo: type[DAPO], tmp_path: Path) -> None:
    model = make_model(algo, "CnnPolicy", CatchEnv())
    model.export(tmp_path / "model")
    n_bytes = sum(parameter.numel() * 4 for parameter in model.policy.parameters())
    assert n_bytes < (tmp_path / "model" / PARAMETERS).stat().st_size < n_bytes + 4096


def test_keys_of_a_dict_in_another_order(algo: type[DAPO], tmp_path: Path) -> None:
    """The network is that of the exported model, also where the environment orders its keys otherwise."""
    parts = [("b", spaces.Box(-1, 1, (2,))), ("a", spaces.Box(-1, 1, (2,)))]
    model = trained(algo, "MultiInputPolicy", RandomEnv(spaces.Dict(parts), TWO))
    model.export(tmp_path / "model")
    loaded = algo.load_exported(tmp_path / "model", RandomEnv(spaces.Dict(parts[::-1]), TWO))
    assert_same(model, loaded)
    loaded.learn(64)


# --- what is described --------------------------------------------------------------------------------


def description_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / DESCRIPTION).read_text())


def test_description(algo: type[DAPO], tmp_path: Path) -> None:
    model = make_model(algo, "MlpPolicy", "Pendulum-v1", divergence="hellinger", tensorboard_log="/home/someone/logs")
    model.export(tmp_path / "model")
    description = description_of(tmp_path / "model")
    assert description["algorithm"] == algo.__name__
    assert description["versions"]["torch"] == th.__version__
    assert description["observation_space"] == {
        "type": "Box",
        "shape": [3],
        "dtype": "float32",
        "low": [-1.0, -1.0, -8.0],
        "high": [1.0, 1.0, 8.0],
    }
    assert description["action_space"] == {"type": "Box", "shape": [1], "dtype": "float32", "low": -2.0, "high": 2.0}
    assert description["policy"] == "MlpPolicy"
    assert description["policy_kwargs"] == {"net_arch": [16]}
    assert description["hyperparameters"]["learning_rate"] == 3e-4
    assert description["hyperparameters"]["divergence"] == "hellinger"
    assert description["not_exported"] == []
    assert {path.name for path in (tmp_path / "model").iterdir()} == {DESCRIPTION, PARAMETERS}
    text = (tmp_path / "model" / DESCRIPTION).read_text()
    assert '"low": [-1.0, -1.0, -8.0]' in text  # numbers of a list on one line
    assert "someone" not in text


HYPERPARAMETERS: dict[str, Any] = {
    "learning_rate": LinearSchedule(1e-3, 1e-5, 0.5),
    "n_steps": 32,
    "batch_size": 16,
    "n_epochs": 3,
    "gamma": 0.9,
    "gae_lambda": 0.8,
    "clip_range": FloatSchedule(LinearSchedule(0.3, 0.1, 1.0)),
    "clip_range_vf": ConstantSchedule(0.5),
    "normalize_advantage": "rms",
    "ent_coef": 0.01,
    "vf_coef": 0.25,
    "max_grad_norm": float("inf"),
    "target_kl": 0.1,
    "stats_window_size": 7,
    "divergence_steps": 3,
    "divergence_lambda": 0.5,
    "divergence_c_bar": 0.75,
    "rho_bar": float("inf"),
    "c_bar": np.float32(1.5),
    "n_rollouts": np.int64(2),
    "advantage": "vtrace",
    "policy_loss": "clip_augmented",
    "exact_targets": True,
}


def test_hyperparameters(algo: type[DAPO], tmp_path: Path) -> None:
    model = make_model(algo, "MlpPolicy", "CartPole-v1", **HYPERPARAMETERS)
    model.export(tmp_path / "model")
    loaded = algo.load_exported(tmp_path / "model", "CartPole-v1")
    for name, value in HYPERPARAMETERS.items():
        mine = getattr(loaded, "_stats_window_size" if name == "stats_window_size" else name)
        if callable(value):
            assert [mine(progress) for progress in (1.0, 0.3, 0.0)] == [value(progress) for progress in (1.0, 0.3, 0.0)]
        else:
            assert mine == value
    assert loaded.rollout_buffer.n_rollouts == 2
    loaded.learn(64)


@pytest.mark.parametrize(
    "divergence", [*DIVERGENCES, Tsallis(order=1.5), Tsallis(order=0.5)], ids=lambda divergence: str(divergence)
)
def test_divergences(divergence: str | Divergence, tmp_path: Path) -> None:
    model = make_model(ALL_ALGOS[0], "MlpPolicy", "CartPole-v1", divergence=divergence)
    model.export(tmp_path / "model")
    loaded = DAPO.load_exported(tmp_path / "model")
    assert type(loaded.divergence) is type(model.divergence)
    assert vars(loaded.divergence) == vars(model.divergence)


@pytest.mark.parametrize("controller", [AdaptiveController(0.02, 2.0), DualController(0.03, 2.0, 0.2, 1e-3, 1e3)])
def test_controllers_go_on_from_where_they_are(controller: AdaptiveController | DualController, tmp_path: Path) -> None:
    model = make_model(ALL_ALGOS[0], "MlpPolicy", "CartPole-v1", divergence_coef=controller)
    model.divergence_coef.update(0.5)
    model.export(tmp_path / "model")
    loaded = DAPO.load_exported(tmp_path / "model")
    assert type(loaded.divergence_coef) is type(controller)
    assert vars(loaded.divergence_coef) == vars(model.divergence_coef)
    assert loaded.divergence_coef.coefficient != 2.0


def test_schedules_of_the_zoo(tmp_path: Path) -> None:
    utils = pytest.importorskip("rl_zoo3.utils")
    model = make_model(
        ALL_ALGOS[0],
        "MlpPolicy",
        "CartPole-v1",
        learning_rate=utils.linear_schedule(3e-4),
        clip_range=utils.linear_schedule(0.1),
    )
    model.export(tmp_path / "model")
    loaded = DAPO.load_exported(tmp_path / "model")
    for progress in (1.0, 0.7, 0.0):
        assert loaded.learning_rate(progress) == pytest.approx(model.learning_rate(progress), rel=1e-12)
        assert loaded.clip_range(progress) == pytest.approx(model.clip_range(progress), rel=1e-12)


@pytest.mark.parametrize(
    "policy, observation_space, policy_kwargs",
    [
        ("MlpPolicy", FLOATS, {"net_arch": {"pi": [8, 4], "vf": (6,)}, "activation_fn": nn.ReLU, "ortho_init": False}),
        ("MlpPolicy", FLOATS, {"net_arch": [], "log_std_init": -1.0, "features_extractor_class": FlattenExtractor}),
        ("MlpPolicy", FLOATS, {"optimizer_class": th.optim.RMSprop, "optimizer_kwargs": {"alpha": 0.9, "eps": 1e-6}}),
        ("MlpPolicy", FLOATS, {"optimizer_kwargs": {"betas": (0.8, 0.9), "weight_decay": 1e-4}}),
        ("CnnPolicy", spaces.Box(0, 1, (1, 36, 36)), {"normalize_images": False}),
        ("MultiInputPolicy", MIXED, {"features_extractor_kwargs": {"cnn_output_dim": 8}}),
        ("MultiInputPolicy", MIXED, {"features_extractor_class": CombinedExtractor, "activation_fn": nn.Mish}),
    ],
)
def test_policy_kwargs(
    policy: str, observation_space: spaces.Space, policy_kwargs: dict[str, Any], tmp_path: Path
) -> None:
    env = RandomEnv(observation_space, spaces.Box(-1, 1, (2,)))
    model = make_model(ALL_ALGOS[0], policy, env, policy_kwargs=policy_kwargs)
    model.export(tmp_path / "model")
    loaded = DAPO.load_exported(tmp_path / "model")
    assert_same(model, loaded)
    assert str(loaded.policy) == str(model.policy)
    mine, others = loaded.policy.optimizer.defaults, model.policy.optimizer.defaults
    assert type(loaded.policy.optimizer) is type(model.policy.optimizer) and mine == others


@pytest.mark.parametrize(
    "net_arch",
    [[dict(pi=[8, 4], vf=[6])], [dict(pi=(8, 4), vf=[np.int64(6)])], dict(pi=[8, 4], vf=[6], qf=[5])],
    ids=["old_form", "old_form_with_other_numbers", "more_than_there_is"],
)
@pytest.mark.filterwarnings("ignore:As shared layers")
def test_networks_are_taken_as_sb3_takes_them(net_arch: Any, tmp_path: Path) -> None:
    model = trained(ALL_ALGOS[0], "MlpPolicy", RandomEnv(FLOATS, TWO), policy_kwargs={"net_arch": net_arch})
    model.export(tmp_path / "model")
    assert description_of(tmp_path / "model")["policy_kwargs"] == {"net_arch": {"pi": [8, 4], "vf": [6]}}
    assert_same(model, DAPO.load_exported(tmp_path / "model"))


class Sibling(DAPO):
    """An algorithm that has an argument more, and the policies and arguments of its base."""

    def __init__(self, policy: Any, env: Any, *args: Any, patience: int = 3, **kwargs: Any) -> None:
        self.patience = patience
        super().__init__(policy, env, *args, **kwargs)


def test_a_sibling_declares_itself(tmp_path: Path) -> None:
    model = trained(Sibling, "MlpPolicy", "CartPole-v1", patience=7, n_rollouts=2)
    model.export(tmp_path / "model")
    description = description_of(tmp_path / "model")
    assert description["algorithm"] == "Sibling" and description["not_exported"] == []
    assert description["hyperparameters"]["patience"] == 7 and description["hyperparameters"]["n_rollouts"] == 2
    loaded = Sibling.load_exported(tmp_path / "model", "CartPole-v1")
    assert type(loaded) is Sibling and loaded.patience == 7
    assert_same(model, loaded)
    assert Sibling.load_exported(tmp_path / "model", patience=5).patience == 5
    with pytest.raises(ExportError, match="it is a model of 'Sibling', not of DAPO"):
        DAPO.load_exported(tmp_path / "model")
    write(tmp_path / "model", changed(description, "hyperparameters.patience", "long"))
    with pytest.raises(ExportError, match="`hyperparameters.patience` must be int"):
        Sibling.load_exported(tmp_path / "model")


# --- what cannot be described -------------------------------------------------------------------------


def falling(progress_remaining: float) -> float:
    return 1e-3 * progress_remaining


class OwnDivergence(Divergence):
    def __call__(self, log_prob: th.Tensor, behavior_log_prob: th.Tensor) -> th.Tensor:
        return log_prob - behavior_log_prob


class OwnRing(RolloutRing):
    pass


class ReLU(nn.Module):
    """Of the same name as PyTorch's."""

    def forward(self, x: th.Tensor) -> th.Tensor:
        return x.clamp(min=0)


class OwnPolicy(ActorCriticPolicy):
    def __init__(self, *args: Any, scale: float = 1.0, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.register_buffer("scale", th.tensor(scale, dtype=th.float64))


class OwnExtractor(BaseFeaturesExtractor):
    """As in SB3's guide: the size of the output is found out by a forward pass."""

    def __init__(self, observation_space: spaces.Box, n_channels: int = 4) -> None:
        super().__init__(observation_space, 1)
        self.cnn = nn.Sequential(
            nn.Conv2d(observation_space.shape[0], n_channels, 5, stride=2), nn.ReLU(), nn.Flatten()
        )
        with th.no_grad():
            self._features_dim = self.cnn(th.as_tensor(observation_space.sample()[None]).float()).shape[1]

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return self.cnn(observations)


@pytest.mark.parametrize(
    "name, value",
    [
        ("learning_rate", falling),
        ("divergence_coef", falling),
        ("divergence", OwnDivergence()),
        ("rollout_buffer_class", OwnRing),
    ],
)
def test_training_arguments_that_cannot_be_described_are_asked_for(
    algo: type[DAPO], name: str, value: Any, tmp_path: Path
) -> None:
    model = make_model(algo, "MlpPolicy", "CartPole-v1", **{name: value})
    with pytest.warns(UserWarning, match=f"{name} cannot be described"):
        model.export(tmp_path / "model")
    assert description_of(tmp_path / "model")["not_exported"] == [name]
    with pytest.raises(ExportError, match=f"'{name}' was left out.*load_exported\\(path, {name}=...\\)"):
        algo.load_exported(tmp_path / "model")
    loaded = algo.load_exported(tmp_path / "model", "CartPole-v1", **{name: value})
    assert_same(model, loaded)
    loaded.learn(64)


@pytest.mark.parametrize(
    "policy, kwargs, name",
    [
        ("MlpPolicy", {"max_grad_norm": 10**30}, "max_grad_norm"),
        ("MlpPolicy", {"sde_sample_freq": 4.0}, "sde_sample_freq"),
        ("MlpPolicy", {"policy_kwargs": {"ortho_init": 1}}, "policy_kwargs.ortho_init"),
        ("MlpPolicy", {"policy_kwargs": {"net_arch": [2] * 257}}, "policy_kwargs.net_arch"),
        ("own", {"policy_kwargs": {"net_arch": "small"}}, "policy_kwargs.net_arch"),
        ("own", {"policy_kwargs": {"table": [0.5] * 300_000}}, "policy_kwargs.table"),
        ("own", {"policy_kwargs": {"table": [[[[[[[[[[[[[[[[3]]]]]]]]]]]]]]]]}}, "policy_kwargs.table"),
    ],
)
def test_what_would_not_be_read_is_left_out(policy: Any, kwargs: dict[str, Any], name: str, tmp_path: Path) -> None:
    """At the end of a run an unusual argument is no reason to refuse the model."""

    class NamedSizes(ActorCriticPolicy):
        def __init__(self, *args: Any, net_arch: Any = None, table: Any = None, **kwargs: Any) -> None:
            super().__init__(*args, net_arch=[4] if net_arch == "small" else net_arch, **kwargs)

    own = {"policy": NamedSizes} if policy == "own" else {}
    model = trained(ALL_ALGOS[0], own.get("policy", policy), "CartPole-v1", **deepcopy(kwargs))
    with pytest.warns(UserWarning, match=f"{name} cannot be described"):
        model.export(tmp_path / "model")
    with pytest.raises(ExportError, match=f"'{name}' was left out"):
        DAPO.load_exported(tmp_path / "model", **own)
    assert_same(model, DAPO.load_exported(tmp_path / "model", **own, **kwargs))


class Remembering(FlattenExtractor):
    """State that is no tensor."""

    def get_extra_state(self) -> Any:
        return {"seen": 3}

    def set_extra_state(self, state: Any) -> None:
        pass


class FirstOnly(BaseFeaturesExtractor):
    """Reads one part of the observations."""

    def __init__(self, observation_space: spaces.Dict) -> None:
        super().__init__(observation_space, 2)

    def forward(self, observations: Any) -> th.Tensor:
        return observations[1]


UNEVEN = np.linspace(1, 2, 60_000, dtype=np.float32)


@pytest.mark.parametrize(
    "policy, space, own, match",
    [
        ("MlpPolicy", FLOATS, {"features_extractor_class": Remembering}, "_extra_state' must be a tensor"),
        ("MlpPolicy", spaces.Box(-UNEVEN, UNEVEN), {"net_arch": [2]}, "description would be larger than"),
        (
            "MultiInputPolicy",
            spaces.Dict({1: spaces.Box(-1, 1, (2,))}),
            {"features_extractor_class": FirstOnly},
            "keys",
        ),
    ],
    ids=["state", "bounds", "keys"],
)
def test_models_that_cannot_be_exported_say_so_at_the_start(
    policy: str, space: spaces.Space, own: dict[str, Any], match: str, tmp_path: Path
) -> None:
    model = make_model(ALL_ALGOS[0], policy, RandomEnv(space, TWO), policy_kwargs=own)
    with pytest.warns(UserWarning, match=f"can be trained and saved, but not exported: .*{match}"):
        model.learn(64)
    with pytest.raises(ExportError, match=match):
        model.export(tmp_path / "model")
    model.save(tmp_path / "model.zip")


@pytest.mark.parametrize("kwargs", [{}, {"learning_rate": falling}, {"policy_kwargs": {"activation_fn": ReLU}}])
def test_others_say_nothing(kwargs: dict[str, Any], recwarn: pytest.WarningsRecorder) -> None:
    make_model(ALL_ALGOS[0], "MlpPolicy", "CartPole-v1", **kwargs).learn(64)
    assert not [warning for warning in recwarn if "export" in str(warning.message)]


def test_own_policy(algo: type[DAPO], tmp_path: Path) -> None:
    model = trained(algo, OwnPolicy, "CartPole-v1", policy_kwargs={"scale": 3.0})
    with pytest.warns(UserWarning, match="policy cannot be described"):
        model.export(tmp_path / "model")
    with pytest.raises(ExportError, match=r"'policy' was left out.*policy=\.\.\."):
        algo.load_exported(tmp_path / "model")
    with pytest.raises(ExportError, match="scale"):
        algo.load_exported(tmp_path / "model", policy="MlpPolicy")
    loaded = algo.load_exported(tmp_path / "model", policy=OwnPolicy)
    assert loaded.policy.scale.item() == 3.0
    assert_same(model, loaded)


@pytest.mark.parametrize(
    "policy, space, own",
    [
        ("MlpPolicy", FLOATS, {"activation_fn": ReLU}),
        ("CnnPolicy", IMAGE, {"features_extractor_class": OwnExtractor}),
    ],
)
def test_own_parts_of_a_policy(policy: str, space: spaces.Space, own: dict[str, Any], tmp_path: Path) -> None:
    policy_kwargs = {**own, "net_arch": [8]}
    if policy == "CnnPolicy":
        policy_kwargs["features_extractor_kwargs"] = {"n_channels": 6}
    model = trained(ALL_ALGOS[0], policy, RandomEnv(space, TWO), policy_kwargs=policy_kwargs)
    (name,) = own
    with pytest.warns(UserWarning, match=f"policy_kwargs.{name}"):
        model.export(tmp_path / "model")
    with pytest.raises(ExportError, match=f"policy_kwargs={{'{name}': ...}}"):
        DAPO.load_exported(tmp_path / "model")
    assert_same(model, DAPO.load_exported(tmp_path / "model", policy_kwargs=own))


def test_arguments_that_are_passed_come_first(tmp_path: Path) -> None:
    make_model(ALL_ALGOS[0], "MlpPolicy", "CartPole-v1").export(tmp_path / "model")
    loaded = DAPO.load_exported(tmp_path / "model", gamma=0.5, verbose=0, seed=3, divergence=OwnDivergence())
    assert (loaded.gamma, loaded.seed, type(loaded.divergence)) == (0.5, 3, OwnDivergence)
    for name in ("gama", "_init_setup_model"):
        with pytest.raises(ValueError, match=f"`{name}` is not an argument of DAPO"):
            DAPO.load_exported(tmp_path / "model", **{name: 0.5})
    with pytest.raises(ValueError, match="`gamma` must be"):
        DAPO.load_exported(tmp_path / "model", gamma=1.5)


@pytest.mark.parametrize(
    "space",
    [
        spaces.Tuple([FLOATS]),
        spaces.Text(3),
        spaces.MultiDiscrete([[2, 3], [2, 3]]),
        spaces.Dict({"a": spaces.Text(3)}),
    ],
    ids=str,
)
def test_spaces_that_cannot_be_described(space: spaces.Space) -> None:
    with pytest.raises(ExportError, match="cannot be described"):
        encode_space(space)


@pytest.mark.parametrize(
    "space",
    [
        MIXED,
        spaces.Box(0.1, 0.7, (2, 2), np.float16),
        spaces.Box(np.array([0.1, -np.inf]), np.array([1 / 3, np.inf]), dtype=np.float64),
        spaces.Box(np.array([-(2**63), 5]), np.array([2**63 - 1, 7]), dtype=np.int64),
        spaces.Box(0, 2**64 - 1, (2,), np.uint64),
        spaces.Box(-1, 1, ()),
        spaces.Box(-1, 1, (0,)),
        spaces.Discrete(3, start=-1),
        spaces.MultiDiscrete([2, 3], start=[-1, 4], dtype=np.int8),
        spaces.MultiBinary([2, 3]),
        spaces.Box(0, 1, (2, 3), np.bool_),
        spaces.Box(np.array([False, True]), np.array([True, True]), dtype=np.bool_),
        OwnBox(-1, 1, (2,)),
    ],
    ids=str,
)
def test_spaces_are_the_same_to_the_bit(space: spaces.Space) -> None:
    description = json.loads(json.dumps(encode_space(space), allow_nan=False))
    decoded = decode_space(description, "space")
    assert decoded == space and decoded.dtype == space.dtype
    if isinstance(space, spaces.Box):
        np.testing.assert_array_equal(decoded.low, space.low)
        np.testing.assert_array_equal(decoded.high, space.high)
    if isinstance(space, spaces.Dict):
        assert list(decoded) == list(space)


# --- VecNormalize -------------------------------------------------------------------------------------


def normalized(make_env: Callable[[], gym.Env], **kwargs: Any) -> VecNormalize:
    return VecNormalize(make_vec_env(make_env, n_envs=2, seed=0), **kwargs)


def assert_same_normalization(mine: VecNormalize, other: VecNormalize) -> None:
    for name in ("norm_obs", "norm_reward", "clip_obs", "clip_reward", "gamma", "epsilon", "norm_obs_keys"):
        assert getattr(mine, name) == getattr(other, name)
    rewards = np.linspace(-3, 3, 7)
    np.testing.assert_array_equal(mine.normalize_reward(rewards), other.normalize_reward(rewards))


NORMALIZED = {
    "box": ("MlpPolicy", FLOATS, {"clip_obs": 1.5, "gamma": 0.9}),
    "rewards": ("MlpPolicy", FLOATS, {"norm_obs": False, "clip_reward": float("inf")}),
    "dict": ("MultiInputPolicy", MIXED, {"norm_obs_keys": ["vector"], "norm_reward": False}),
    "image": ("MlpPolicy", IMAGE, {"epsilon": 1e-4}),
    "rewards_of_images": ("CnnPolicy", IMAGE, {"norm_obs": False}),
}


@pytest.mark.parametrize("policy, space, kwargs", NORMALIZED.values(), ids=NORMALIZED)
def test_vec_normalize(policy: str, space: spaces.Space, kwargs: dict[str, Any], tmp_path: Path) -> None:
    def make_env() -> gym.Env:
        return RandomEnv(space, TWO)

    model = trained(ALL_ALGOS[0], policy, normalized(make_env, **kwargs))
    model.export(tmp_path / "model")
    original = model.get_vec_normalize_env()
    original.training = False
    raw = [space.sample() for _ in range(2)]
    raw = {key: np.stack([x[key] for x in raw]) for key in raw[0]} if isinstance(space, spaces.Dict) else np.stack(raw)

    # With an environment that is not normalized, of any kind
    for env in (make_env(), make_vec_env(make_env, n_envs=2, seed=0)):
        loaded = DAPO.load_exported(tmp_path / "model", env)
        assert_same(model, loaded)
        mine = loaded.get_vec_normalize_env()
        assert mine is not original and not mine.training
        assert_same_normalization(mine, original)
        np.testing.assert_equal(mine.normalize_obs(raw), original.normalize_obs(raw))
    assert scores(model, model.get_env()) == scores(loaded, loaded.get_env())
    count = mine.ret_rms.count
    loaded.learn(128)
    assert mine.ret_rms.count == count

    # With one that is normalized already, which is left as it is
    own = normalized(make_env, **kwargs)
    loaded = DAPO.load_exported(tmp_path / "model", own)
    assert loaded.get_vec_normalize_env() is own and own.training

    # Without
    loaded = DAPO.load_exported(tmp_path / "model")
    mine = loaded.get_vec_normalize_env()
    assert_same_normalization(mine, original)
    np.testing.assert_equal(mine.normalize_obs(raw), original.normalize_obs(raw))
    assert_same(model, loaded)


def test_vec_normalize_inside_of_other_wrappers(tmp_path: Path) -> None:
    """As RL Zoo has it: frames are stacked after they are normalized."""

    def make_env() -> DummyVecEnv:
        return make_vec_env("CartPole-v1", n_envs=2, seed=0)

    model = trained(ALL_ALGOS[0], "MlpPolicy", VecFrameStack(VecNormalize(make_env()), 3))
    model.export(tmp_path / "model")
    with pytest.raises(ValueError, match="Observation spaces do not match"):
        DAPO.load_exported(tmp_path / "model", make_env())
    with pytest.raises(ExportError, match=r"of shape \(4,\), the observations of \(12,\).*load_vec_normalize"):
        DAPO.load_exported(tmp_path / "model", VecFrameStack(make_env(), 3))

    env = VecFrameStack(load_vec_normalize(tmp_path / "model", make_env()), 3)
    loaded = DAPO.load_exported(tmp_path / "model", env)
    assert_same(model, loaded)
    model.get_vec_normalize_env().training = False
    assert scores(model, model.get_env()) == scores(loaded, loaded.get_env())
    alone = DAPO.load_exported(tmp_path / "model").get_vec_normalize_env()
    raw = np.ones((2, 4), np.float32)
    np.testing.assert_array_equal(alone.normalize_obs(raw), model.get_vec_normalize_env().normalize_obs(raw))


def test_statistics_are_asked_for_where_there_are_none(tmp_path: Path) -> None:
    make_model(ALL_ALGOS[0], "MlpPolicy", "CartPole-v1").export(tmp_path / "model")
    with pytest.raises(ExportError, match="without VecNormalize"):
        load_vec_normalize(tmp_path / "model", make_vec_env("CartPole-v1"))


def test_other_normalizations_are_not_exported(tmp_path: Path) -> None:
    class OwnNormalize(VecNormalize):
        pass

    env = make_vec_env("CartPole-v1")
    for wrapped in (OwnNormalize(env), VecNormalize(VecNormalize(env))):
        with pytest.raises(ExportError, match="must be wrapped in VecNormalize itself, and once"):
            make_model(ALL_ALGOS[0], "MlpPolicy", wrapped).export(tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_environments_that_do_not_fit(tmp_path: Path) -> None:
    make_model(ALL_ALGOS[0], "MlpPolicy", "CartPole-v1").export(tmp_path / "model")
    with pytest.raises(ValueError, match="Observation spaces do not match"):
        DAPO.load_exported(tmp_path / "model", "Pendulum-v1")
    with pytest.raises(ValueError, match="Action spaces do not match"):
        box = gym.make("CartPole-v1").observation_space
        DAPO.load_exported(tmp_path / "model", RandomEnv(box, spaces.Discrete(3)))


# --- writing ------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An exported model."""
    make_model(ALL_ALGOS[0], "MlpPolicy", "CartPole-v1").export(tmp_path / "model")
    return tmp_path / "model"


def test_replaces_exported_models_only(folder: Path) -> None:
    model = make_model(ALL_ALGOS[0], "MlpPolicy", "CartPole-v1", seed=5)
    model.export(folder)
    assert_same(model, DAPO.load_exported(folder))
    empty = folder.parent / "new" / "empty"
    empty.mkdir(parents=True)
    model.export(empty)
    assert_same(model, DAPO.load_exported(empty))

    (folder / "thesis.tex").touch()
    file, other = folder.parent / "file", folder.parent / "other"
    file.touch()
    other.mkdir()
    (other / DESCRIPTION).write_text('{"format": "mine"}')
    before = sorted(folder.parent.rglob("*"))
    for path in (folder, file, other):
        with pytest.raises(ExportError, match="is not replaced"):
            model.export(path)
    assert sorted(folder.parent.rglob("*")) == before


@pytest.mark.parametrize("failing", ["write", "rename", "check"])
def test_a_failure_leaves_the_previous_model(folder: Path, failing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    rename, n_renamed = Path.rename, 0

    def fail(*args: Any, **kwargs: Any) -> None:
        raise OSError("no space left on device")

    def fail_at_second(path: Path, target: Path) -> Path:
        nonlocal n_renamed
        n_renamed += 1
        return fail() if n_renamed == 2 else rename(path, target)

    if failing == "write":
        monkeypatch.setattr(os, "fsync", fail)
    elif failing == "rename":
        monkeypatch.setattr(Path, "rename", fail_at_second)
    else:
        monkeypatch.setattr("sb3_dapo.export.folder.check_tensors", fail)
    with pytest.raises(OSError, match="no space left"):
        make_model(ALL_ALGOS[0], "MlpPolicy", "CartPole-v1", seed=5).export(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert list(folder.parent.iterdir()) == [folder]


def test_killed_while_writing(folder: Path) -> None:
    code = """
        import os, sys
        from sb3_dapo import DAPO
        model = DAPO("MlpPolicy", "CartPole-v1", n_steps=64)
        fsync, calls = os.fsync, []
        def kill_at_second(file):
            calls.append(file)
            if len(calls) == 2:
                os.kill(os.getpid(), 9)
            fsync(file)
        os.fsync = kill_at_second
        model.export(sys.argv[1])
    """
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    result = subprocess.run([sys.executable, "-c", textwrap.dedent(code), str(folder)], capture_output=True)
    assert result.returncode == -9, result.stderr
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert len(list(folder.parent.iterdir())) == 2  # what was written until then is under another name


# --- hostile folders ----------------------------------------------------------------------------------


def write(folder: Path, description: Any, **files: bytes) -> None:
    """
    :param folder: exported model
    :param description: written into it
    :param files: contents of other files, whose checksums are made to fit
    """
    for name, data in files.items():
        name = {"parameters": PARAMETERS, "statistics": STATISTICS}[name]
        (folder / name).write_bytes(data)
        description["sha256"][name] = hashlib.sha256(data).hexdigest()
    (folder / DESCRIPTION).write_text(json.dumps(description))


def changed(value: Any, path: str, new: Any) -> Any:
    """
    :param value: a value of JSON
    :param path: names of entries, with points in between
    :param new: what to put there; ``...`` to delete it
    :return: a changed copy
    """
    value = deepcopy(value)
    *parents, last = path.split(".")
    at = value
    for name in parents:
        at = at[name]
    if new is ...:
        del at[last]
    else:
        at[last] = new
    return value


def refused(folder: Path, match: str) -> None:
    with pytest.raises(ExportError, match=match):
        DAPO.load_exported(folder)


BOX = {"type": "Box", "shape": [4], "dtype": "float32", "low": -1, "high": 1}
LINEAR = {"type": "LinearSchedule", "start": 1e-3, "end": 0.0, "end_fraction": 1.0}
HOSTILE: list[tuple[str, Any, str]] = [
    # the file as a whole
    ("format", "other", "does not describe a model of sb3-dapo"),
    ("format", ..., "does not describe a model of sb3-dapo"),
    ("format_version", 2, "newer sb3-dapo is needed"),
    ("format_version", 0, "at least 1"),
    ("format_version", "1", "must be an integer"),
    ("format_version", True, "must be an integer"),
    ("algorithm", "PPO", "it is a model of 'PPO', not of DAPO"),
    ("algorithm", ["DAPO"], "`algorithm` must be str"),
    ("versions", [], "`versions` must be dict"),
    ("versions.torch", 2, "`versions.torch` must be str"),
    ("num_timesteps", -1, "`num_timesteps`"),
    ("num_timesteps", 1.0, "`num_timesteps` must be int"),
    ("is_fast", 1, "`is_fast` must be bool"),
    ("weights", "../../etc/passwd", "must have the entries"),
    ("__class__", "builtins.exec", "must have the entries"),
    ("hyperparameters", ..., "must have the entries"),
    # paths
    ("sha256", {"../policy.safetensors": "0"}, "`sha256` must have the entries"),
    ("sha256", {"/etc/passwd": "0", PARAMETERS: "0"}, "`sha256` must have the entries"),
    ("sha256", {PARAMETERS: "0"}, "is damaged"),
    ("policy", "../MlpPolicy", "`policy` must be one of"),
    # names of classes and functions
    ("policy", "os.system", "`policy` must be one of"),
    ("policy", None, "`policy` must be one of"),
    ("policy", "MultiInputPolicy", "`policy` must suit the observations"),
    ("policy", 3, "`policy` must be"),
    ("policy_kwargs.activation_fn", "__import__('os').system", "`policy_kwargs.activation_fn` must be one of"),
    ("policy_kwargs.activation_fn", "Linear", "`policy_kwargs.activation_fn` must be one of"),
    ("policy_kwargs.features_extractor_class", "os.system", "features_extractor_class` must be one of"),
    ("policy_kwargs.features_extractor_class", "ReLU", "features_extractor_class` must be one of"),
    ("policy_kwargs.features_extractor_class", "NatureCNN", "the policy cannot be built"),
    ("policy_kwargs.features_extractor_kwargs", {"features_dim": 3}, "an entry that is not known"),
    ("policy_kwargs.optimizer_class", "LBFGS", "optimizer_class` must be one of"),
    ("policy_kwargs.optimizer_kwargs", {"betas": [0.9]}, "betas"),
    ("policy_kwargs.optimizer_kwargs", {"eps": "1"}, "eps` must be float"),
    ("policy_kwargs.optimizer_kwargs", {"eps": -1}, "the policy cannot be built"),
    ("policy_kwargs.optimizer_kwargs", {"lr": 1}, "the policy cannot be built"),
    ("policy_kwargs.use_sde", False, "an entry that is not known"),
    ("policy_kwargs.observation_space", BOX, "an entry that is not known"),
    ("policy_kwargs.__class__", 3, "an entry that is not known"),
    ("hyperparameters.env", "CartPole-v1", "an entry that is not known"),
    ("hyperparameters.tensorboard_log", "/tmp", "an entry that is not known"),
    ("hyperparameters.rollout_buffer_class", "RolloutRing", "an entry that is not known"),
    ("hyperparameters.policy_kwargs", {}, "an entry that is not known"),
    ("hyperparameters._init_setup_model", False, "an entry that is not known"),
    # other types and values
    ("hyperparameters.gamma", "0.99", "`hyperparameters.gamma` must be float"),
    ("hyperparameters.gamma", True, "`hyperparameters.gamma` must be float"),
    ("hyperparameters.gamma", 2.0, "`gamma` must be"),
    ("hyperparameters.gamma", "-inf", "`gamma` must be"),
    ("hyperparameters.n_steps", 64.0, "`hyperparameters.n_steps` must be int"),
    ("hyperparameters.n_steps", -64, "`n_steps` must be"),
    ("hyperparameters.use_sde", "no", "`hyperparameters.use_sde` must be bool"),
    ("hyperparameters.use_sde", True, "gSDE|cannot be built"),
    ("hyperparameters.advantage", "exec", "`hyperparameters.advantage` must be"),
    ("hyperparameters.normalize_advantage", 1, "`hyperparameters.normalize_advantage` must be"),
    ("hyperparameters.divergence", "unknown", "`divergence` must be"),
    ("hyperparameters.divergence", {"type": "KL"}, "`hyperparameters.divergence` must be"),
    ("hyperparameters.divergence", {"type": "Tsallis", "order": -1}, "`order`"),
    ("hyperparameters.divergence", {"type": "Tsallis"}, "must have the entries"),
    ("hyperparameters.divergence", LINEAR, "`hyperparameters.divergence` must be"),
    ("hyperparameters.learning_rate", {"type": "AdaptiveController"}, "`hyperparameters.learning_rate` must be"),
    ("hyperparameters.learning_rate", {"type": "exec", "code": "1"}, "`hyperparameters.learning_rate` must be"),
    ("hyperparameters.learning_rate", {**LINEAR, "end_fraction": 0}, "ZeroDivisionError"),
    ("hyperparameters.learning_rate", {**LINEAR, "start": "inf"}, "must be finite"),
    ("hyperparameters.learning_rate", {**LINEAR, "start": "1"}, "start` must be float"),
    ("hyperparameters.learning_rate", {**LINEAR, "__call__": "1"}, "must have the entries"),
    ("hyperparameters.divergence_coef", {"type": "DualController", "target": 0}, "must have the entries"),
    ("not_exported", ["learning_rate"], "'learning_rate' was left out"),
    ("not_exported", "policy", "`not_exported` must be list"),
    ("not_exported", [["policy"]], r"`not_exported\[0\]` must be str"),
    # a network that does not fit, or is too large
    ("policy_kwargs.net_arch", [17], r"'action_net.weight' must be of shape \(2, 17\)"),
    ("policy_kwargs.net_arch", [16, 16], "lacks tensors"),
    ("policy_kwargs.net_arch", {"pi": [16]}, "lacks tensors"),
    ("policy_kwargs.net_arch", {"pi": [16], "qf": [16]}, "must have the entries 'pi' and 'vf'"),
    ("policy_kwargs.net_arch", "16", "net_arch` must be"),
    ("policy_kwargs.net_arch", [16.0], r"net_arch\[0\]` must be int"),
    ("policy_kwargs.net_arch", [-16], "the policy cannot be built"),
    ("policy_kwargs.net_arch", [2**15, 2**15], "would hold 8 GiB"),
    ("policy_kwargs.net_arch", [2**62, 2**62], "the policy cannot be built"),
    ("policy_kwargs.net_arch", [1] * 100_000, "at most 256 layers"),
    ("hyperparameters.n_steps", 2**40, "the rollouts would take"),
    ("hyperparameters.n_rollouts", 2**40, "the rollouts would take"),
    ("hyperparameters.n_rollouts", 10**6, "the rollouts would take"),
    # spaces
    ("observation_space", "Box", "`observation_space` must be of a type in"),
    ("observation_space", {**BOX, "type": ["Box"]}, "`observation_space` must be of a type in"),
    ("observation_space", {**BOX, "type": "Text"}, "`observation_space` must be of a type in"),
    ("observation_space", {**BOX, "seed": 3}, "must have the entries"),
    ("observation_space", {**BOX, "shape": [5]}, "must be of shape"),
    ("observation_space", {**BOX, "shape": [-4]}, "negative"),
    ("observation_space", {**BOX, "shape": [2**40]}, "too large"),
    ("observation_space", {**BOX, "shape": [2**20, 2**20]}, "too large"),
    ("observation_space", {**BOX, "shape": [1] * 100}, "not a space"),
    ("observation_space", {**BOX, "shape": 4}, "`observation_space.shape` must be list"),
    ("observation_space", {**BOX, "shape": [True]}, r"`observation_space.shape\[0\]` must be int"),
    ("observation_space", {**BOX, "dtype": "object"}, "`observation_space.dtype` must be"),
    ("observation_space", {**BOX, "dtype": "O,O"}, "`observation_space.dtype` must be"),
    ("observation_space", {**BOX, "dtype": "bool"}, "must have numbers of type bool, got -1"),
    ("observation_space", {**BOX, "dtype": "bool", "low": False}, "`observation_space.low` must be"),
    ("observation_space", {**BOX, "low": 2}, "not a space"),
    ("observation_space", {**BOX, "low": [0, 0]}, "must have 4 numbers, got 2"),
    ("observation_space", {**BOX, "low": 1e300}, "must have numbers of type float32"),
    ("observation_space", {**BOX, "low": "nan"}, "`observation_space.low` must be"),
    ("observation_space", {**BOX, "dtype": "uint8"}, "`observation_space"),
    ("observation_space", {**BOX, "dtype": "int64", "low": 0.5}, "must have numbers of type int64"),
    ("observation_space", {"type": "Dict", "spaces": {"a": BOX}}, "`policy` must suit the observations"),
    ("observation_space", {"type": "Dict", "spaces": {"a": {"type": "Dict", "spaces": {}}}}, "Dict in a Dict"),
    ("observation_space", {"type": "Dict", "spaces": {str(i): BOX for i in range(300)}}, "at most 256 entries"),
    (
        "observation_space",
        {"type": "Dict", "spaces": {str(i): {**BOX, "shape": [2**20]} for i in range(5)}},
        "spaces.4` is too large",
    ),
    ("action_space", {"type": "Discrete", "n": 2**40, "start": 0, "dtype": "int64"}, "too large"),
    ("action_space", {"type": "Discrete", "n": 0, "start": 0, "dtype": "int64"}, "not a space"),
    ("action_space", {"type": "Discrete", "n": 3, "start": 0, "dtype": "int64"}, "must be of shape"),
    ("action_space", {"type": "MultiDiscrete", "nvec": [2**21] * 3, "start": [0] * 3, "dtype": "int64"}, "too large"),
    ("action_space", {"type": "MultiDiscrete", "nvec": [300], "start": [0], "dtype": "int8"}, "not a space"),
    ("action_space", {"type": "MultiBinary", "n": [2, 2]}, "the policy cannot be built"),
    ("action_space", {**BOX, "high": "inf"}, "`action_space` must be bounded"),
    ("action_space", {"type": "Dict", "spaces": {"a": BOX}}, "`action_space` must be bounded and not a Dict"),
    # statistics that are not there
    ("vec_normalize", {"norm_obs": True}, "`sha256` must have the entries"),
]


@pytest.mark.parametrize("path, value, match", HOSTILE, ids=[f"{path}={str(value)[:40]}" for path, value, _ in HOSTILE])
def test_descriptions_that_do_not_fit(folder: Path, path: str, value: Any, match: str) -> None:
    write(folder, changed(description_of(folder), path, value))
    refused(folder, match)


def nested(opening: str, closing: str, depth: int) -> str:
    return opening * depth + "1" + closing * depth


JSON_BOMBS = {
    "empty": (b"", "not JSON"),
    "truncated": (b'{"format": "sb3-dapo"', "not JSON"),
    "not_unicode": (b'{"format": "\xff"}', "not JSON"),
    "list": (b"[]", "does not describe a model"),
    "number": (b"3", "does not describe a model"),
    "nan": (b'{"format": NaN}', "not finite"),
    "infinity": (b'{"format": -Infinity}', "not finite"),
    "overflow": (b'{"format": 1e999}', "not finite"),
    "digits": (b'{"format": ' + b"9" * 900_000 + b"}", "too long"),
    "large": (b'{"format": 36893488147419103232}', "too large"),
    "decimals": (b'{"format": 0.' + b"1" * 900_000 + b"}", "too long"),
    "twice": (b'{"format": "sb3-dapo", "format": "sb3-dapo"}', "twice"),
    "deep_lists": (nested("[", "]", 100_000).encode(), "not JSON|nested deeper"),
    "deep_dicts": (nested('{"a":', "}", 100_000).encode(), "not JSON|nested deeper"),
    "rather_deep": (nested("[", "]", 17).encode(), "nested deeper than 16"),
    "unclosed": (b"[" * 1_000_000, "not JSON"),
    "many_keys": (("{" + ",".join(f'"{i}":0' for i in range(90_000)) + "}").encode(), "does not describe a model"),
    "oversized": (b'{"format": "' + b"a" * 2**20 + b'"}', "larger than the 1048576 bytes"),
    "pickle": (pickle.dumps({"format": "sb3-dapo"}), "not JSON"),
}


@pytest.mark.parametrize("data, match", JSON_BOMBS.values(), ids=JSON_BOMBS)
def test_json_bombs(folder: Path, data: bytes, match: str) -> None:
    (folder / DESCRIPTION).write_bytes(data)
    refused(folder, match)


def test_many_unknown_hyperparameters(folder: Path) -> None:
    entries = {f"key{i}": 0 for i in range(60_000)}
    write(folder, changed(description_of(folder), "hyperparameters", entries))
    refused(folder, "an entry that is not known")


# --- hostile tensors ----------------------------------------------------------------------------------


def tensor_file(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    """A file of safetensors, of parts that need not fit."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def split(data: bytes) -> tuple[dict[str, Any], bytes]:
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def tampered(data: bytes, case: str) -> bytes:  # noqa: C901
    """
    :param data: a good file of safetensors
    :param case: what to do to it
    :return: a bad one
    """
    header, tensors = split(data)
    names = [name for name in header if name != "__metadata__"]
    first, last = names[0], max(names, key=lambda name: header[name]["data_offsets"][1])
    entry = header[first]
    if case == "empty":
        return b""
    if case == "truncated":
        return data[:-1]
    if case == "truncated_header":
        return data[:40]
    if case == "padded":
        return data + b"\0" * 64
    if case == "long_header":
        return tensor_file(json.dumps(header).encode(), tensors, length=2**62)
    if case == "header_is_no_json":
        return tensor_file(b"\x80\x04" * 20, tensors)
    if case == "deep_header":
        return tensor_file(nested("[", "]", 100_000).encode(), tensors)
    if case == "huge_shape":
        entry["shape"] = [2**31, 2**31]
    elif case == "overflowing_shape":
        entry["shape"] = [2**63, 2**63]
    elif case == "negative_shape":
        entry["shape"] = [-1, 4]
    elif case == "beyond_the_end":
        header[last]["data_offsets"][1] += 2**40
        header[last]["shape"] = [2**38]
    elif case == "overlapping":
        header[last]["data_offsets"] = entry["data_offsets"]
    elif case == "other_dtype":
        entry["dtype"] = "I32"
    elif case == "unknown_dtype":
        entry["dtype"] = "PICKLE"
    elif case == "other_name":
        header["../../policy"] = header.pop(first)
    elif case == "transposed":
        name = next(name for name in names if len(header[name]["shape"]) == 2)
        header[name]["shape"].reverse()
    elif case == "one_less":
        n_bytes = header[last]["data_offsets"][1] - header[last]["data_offsets"][0]
        del header[last]
        return tensor_file(header, tensors[:-n_bytes])
    elif case == "one_more":
        header["more"] = {"dtype": "U8", "shape": [4], "data_offsets": [len(tensors), len(tensors) + 4]}
        return tensor_file(header, tensors + b"1234")
    elif case == "larger_than_it_may_be":
        header["more"] = {"dtype": "U8", "shape": [2**21], "data_offsets": [len(tensors), len(tensors) + 2**21]}
        return tensor_file(header, tensors + b"\0" * 2**21)
    return tensor_file(header, tensors)


TAMPERED = (
    *("empty", "truncated", "truncated_header", "padded", "long_header", "header_is_no_json", "deep_header"),
    *("huge_shape", "overflowing_shape", "negative_shape", "beyond_the_end", "overlapping", "other_dtype"),
    *("unknown_dtype", "other_name", "transposed", "one_less", "one_more", "larger_than_it_may_be"),
)


@pytest.mark.parametrize("case", TAMPERED)
def test_tampered_parameters(folder: Path, case: str) -> None:
    data = tampered((folder / PARAMETERS).read_bytes(), case)
    description = description_of(folder)
    (folder / PARAMETERS).write_bytes(data)
    refused(folder, "damaged|larger than")  # the checksum tells
    write(folder, description, parameters=data)
    refused(folder, r"policy\.safetensors")  # and so do the contents, where the checksum has been made to fit


def test_tampered_parameters_are_the_only_reason(folder: Path) -> None:
    """The tests above would pass if all folders were refused."""
    header, tensors = split((folder / PARAMETERS).read_bytes())
    write(folder, description_of(folder), parameters=tensor_file(header, tensors))
    DAPO.load_exported(folder)


class Bomb:
    """A pickle that makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def test_pickles_are_not_run(folder: Path) -> None:
    marker = folder.parent / "exploded"
    th.save({"a": Bomb(marker)}, folder / "bomb.pt")
    zipped = folder / "bomb.zip"
    with zipfile.ZipFile(zipped, "w") as archive:
        archive.writestr("data", json.dumps({"policy_class": {":serialized:": "gASV"}}))
    bombs = [pickle.dumps(Bomb(marker)), (folder / "bomb.pt").read_bytes(), zipped.read_bytes()]
    description = description_of(folder)
    for data in bombs:
        write(folder, description, parameters=data)
        refused(folder, "not a file of safetensors")
        (folder / DESCRIPTION).write_bytes(data)
        refused(folder, "not JSON")
        refused(folder / "bomb.zip", "not a folder")
    assert not marker.exists()
    with pytest.raises(FileExistsError):  # it would have exploded
        marker.mkdir()
        pickle.loads(bombs[0])


@pytest.mark.parametrize("name", [DESCRIPTION, PARAMETERS])
def test_what_is_not_a_file(folder: Path, name: str) -> None:
    outside = folder.parent / "outside"
    (folder / name).rename(outside)
    refused(folder, f"there is no {name}")
    (folder / name).symlink_to(outside)
    refused(folder, f"{name} is a symbolic link.*local_dir")
    (folder / name).unlink()
    (folder / name).mkdir()
    refused(folder, f"{name} is not a file")
    (folder / name).rmdir()
    os.mkfifo(folder / name)  # opening it would wait for ever
    refused(folder, f"{name} is not a file")
    (folder / name).unlink()
    with (folder / name).open("wb") as file:
        file.truncate(2**40)  # takes no room on the disk
    refused(folder, f"{name} is larger than")
    refused(folder / "nowhere", "not a folder")


@pytest.fixture
def normalized_folder(tmp_path: Path) -> Path:
    """An exported model with statistics of VecNormalize."""
    trained(ALL_ALGOS[0], "MlpPolicy", VecNormalize(make_vec_env("CartPole-v1"))).export(tmp_path / "normalized")
    return tmp_path / "normalized"


@pytest.mark.parametrize("case", [case for case in TAMPERED if case not in ("larger_than_it_may_be", "transposed")])
def test_tampered_statistics(normalized_folder: Path, case: str) -> None:
    data = tampered((normalized_folder / STATISTICS).read_bytes(), case)
    write(normalized_folder, description_of(normalized_folder), statistics=data)
    refused(normalized_folder, r"vec_normalize\.safetensors")


@pytest.mark.parametrize(
    "name, value",
    [("obs_rms.var", -1.0), ("obs_rms.mean", float("nan")), ("ret_rms.var", float("inf")), ("ret_rms.count", -1.0)],
)
def test_statistics_that_are_no_statistics(normalized_folder: Path, name: str, value: float) -> None:
    statistics = safetensors.torch.load_file(normalized_folder / STATISTICS)
    statistics[name] = th.full_like(statistics[name], value)
    write(normalized_folder, description_of(normalized_folder), statistics=safetensors.torch.save(statistics))
    refused(normalized_folder, f"{name}' must be finite, and not negative unless")


@pytest.mark.parametrize(
    "path, value, match",
    [
        ("vec_normalize.norm_obs", False, "has others"),
        ("vec_normalize.norm_obs", "yes", "must be bool"),
        ("vec_normalize.norm_obs_keys", ["x"], "lacks tensors"),
        ("vec_normalize.clip_obs", None, "must be float"),
        ("vec_normalize.clip_obs", ..., "must have the entries"),
        ("vec_normalize.venv", "CartPole-v1", "must have the entries"),
        ("vec_normalize", None, "`sha256` must have the entries"),
    ],
)
def test_settings_of_vec_normalize(normalized_folder: Path, path: str, value: Any, match: str) -> None:
    write(normalized_folder, changed(description_of(normalized_folder), path, value))
    refused(normalized_folder, match)


def test_statistics_of_other_shape(normalized_folder: Path) -> None:
    statistics = safetensors.torch.load_file(normalized_folder / STATISTICS)
    statistics |= {name: th.ones(5, dtype=th.float64) for name in ("obs_rms.mean", "obs_rms.var")}
    write(normalized_folder, description_of(normalized_folder), statistics=safetensors.torch.save(statistics))
    with pytest.raises(ExportError, match=r"of shape \(5,\), the observations of \(4,\)"):
        DAPO.load_exported(normalized_folder, "CartPole-v1")


# --- in a process of its own --------------------------------------------------------------------------


def test_loading_runs_nothing_and_reads_three_files(normalized_folder: Path) -> None:
    """Python tells of every file that is opened, and of all code that is compiled, imported or started."""
    code = """
        import sys
        from sb3_dapo import DAPO
        DAPO.load_exported(sys.argv[1])  # what is imported at first use is imported now
        events = []
        sys.addaudithook(lambda event, args: events.append((event, args)))
        DAPO.load_exported(sys.argv[1])
        told = list(events)
        opened = {str(args[0]) for event, args in told if event == "open"}
        kinds = {event for event, _ in told}
        print(sorted(path.rpartition("/")[2] for path in opened))
        print(sorted(kind for kind in kinds if kind.startswith(("pickle", "exec", "compile", "import", "marshal",
              "code", "os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess", "socket", "ctypes.dlopen"))))
    """
    command = [sys.executable, "-c", textwrap.dedent(code), str(normalized_folder)]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert output == [str([DESCRIPTION, PARAMETERS, STATISTICS]), "[]"]


def test_hostile_folders_take_little_memory_and_time(folder: Path) -> None:
    large = {**BOX, "shape": [2**22], "dtype": "float64"}
    changes = [
        ("policy_kwargs.net_arch", [2**15, 2**15]),
        ("policy_kwargs.net_arch", [2**14, 2**14]),
        ("policy_kwargs.net_arch", [64] * 256),
        ("hyperparameters.n_steps", 2**30),
        ("hyperparameters.n_rollouts", 2**20),
        ("observation_space", large),
        ("observation_space", {**large, "shape": [2**30]}),
        ("action_space", {"type": "Discrete", "n": 2**22, "start": 0, "dtype": "int64"}),
        ("action_space", {"type": "MultiDiscrete", "nvec": [2] * 100_000, "start": [0] * 100_000, "dtype": "int64"}),
    ]
    description = description_of(folder)
    (folder / "hostile.json").write_text(json.dumps([changed(description, path, value) for path, value in changes]))
    code = """
        import json, resource, sys, time
        from pathlib import Path
        from sb3_dapo import DAPO
        folder = Path(sys.argv[1])
        DAPO.load_exported(folder)
        before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
        for description in json.loads((folder / "hostile.json").read_text()):
            (folder / "model.json").write_text(json.dumps(description))
            try:
                DAPO.load_exported(folder)
                print("loaded")
            except ValueError:
                pass
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, time.process_time() - began)
    """
    command = [sys.executable, "-c", textwrap.dedent(code), str(folder)]
    output = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
    n_kilobytes, seconds = map(float, output.split())
    assert n_kilobytes < 400_000  # networks and rollouts of up to 80 GB were asked for
    assert seconds < 30


# --- fuzzing ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exported model with everything in it that a description may have."""
    folder = tmp_path_factory.mktemp("fuzzed") / "model"
    space = spaces.Dict(
        {"vector": spaces.Box(-1, 1, (2,)), "choice": spaces.Discrete(3), "bits": spaces.MultiBinary(2)}
    )
    model = make_model(
        ALL_ALGOS[0],
        "MultiInputPolicy",
        VecNormalize(make_vec_env(lambda: RandomEnv(space, spaces.MultiDiscrete([2, 3]))), norm_obs_keys=["vector"]),
        learning_rate=LinearSchedule(1e-3, 0, 1),
        divergence=Tsallis(1.5),
        divergence_coef=AdaptiveController(),
        policy_kwargs={
            "net_arch": {"pi": [4], "vf": [4]},
            "activation_fn": nn.ReLU,
            "optimizer_kwargs": {"betas": (0.9, 0.99)},
            "features_extractor_kwargs": {"cnn_output_dim": 4},
        },
    )
    model.export(folder)
    return folder


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """:return: the paths of all values inside of a value of JSON"""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, child in items for place in places(child, (*path, key)))]


NAMES = st.sampled_from(
    ["type", "Box", "Dict", "LinearSchedule", "CnnPolicy", "ReLU", "inf", "learning_rate", "..", "é"]
)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.sampled_from([0, -1, 1, 2, 3, 255, 2**31, 2**63, 10**400])
    | st.floats()
    | NAMES
    | st.text(max_size=20)
)
VALUES = st.recursive(
    SCALARS,
    lambda children: st.lists(children, max_size=5)
    | st.dictionaries(NAMES | st.text(max_size=9), children, max_size=5),
    max_leaves=12,
)


def load_or_refuse(folder: Path) -> bool:
    """:return: whether the folder was loaded; nothing but a refusal may happen otherwise"""
    try:
        model = DAPO.load_exported(folder)
    except ExportError:
        return False
    assert sum(parameter.numel() for parameter in model.policy.parameters()) < 1000
    return True


FUZZING = settings(deadline=timedelta(seconds=20), max_examples=max(250, settings.default.max_examples))


@FUZZING
@given(data=st.data())
def test_fuzzed_descriptions(exported: Path, data: st.DataObject) -> None:
    description = json.loads((exported / DESCRIPTION).read_text())
    intact = deepcopy(description)
    for _ in range(data.draw(st.integers(1, 3))):
        *parents, last = data.draw(st.sampled_from(places(description)[1:] or [("format",)]))
        at = description
        for key in parents:
            at = at[key]
        what = data.draw(st.sampled_from(["replace", "replace", "delete", "insert", "move"]))
        if what == "delete" and len(description) > 1:
            del at[last]
        elif what == "insert" and isinstance(at, dict):
            at[data.draw(NAMES | st.text(max_size=9))] = data.draw(VALUES)
        elif what == "move":
            place = data.draw(st.sampled_from(places(intact)))
            other = intact
            for key in place:
                other = other[key]
            at[last] = deepcopy(other)
        else:
            at[last] = data.draw(VALUES)
    fuzzed = exported.parent / "description"
    fuzzed.mkdir(exist_ok=True)
    for name in (PARAMETERS, STATISTICS):
        (fuzzed / name).write_bytes((exported / name).read_bytes())
    (fuzzed / DESCRIPTION).write_text(json.dumps(description))
    load_or_refuse(fuzzed)


@FUZZING
@given(data=st.data())
def test_fuzzed_text(exported: Path, data: st.DataObject) -> None:
    text = (exported / DESCRIPTION).read_bytes()
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, min(len(text), start + 30)))
    piece = data.draw(
        st.binary(max_size=8) | st.sampled_from([b"[" * 50, b'"', b"{", b"1e400", b"NaN", b"\\ud800", b"-"])
    )
    fuzzed = exported.parent / "text"
    fuzzed.mkdir(exist_ok=True)
    for name in (PARAMETERS, STATISTICS):
        (fuzzed / name).write_bytes((exported / name).read_bytes())
    (fuzzed / DESCRIPTION).write_bytes(text[:start] + piece + text[end:])
    load_or_refuse(fuzzed)


@FUZZING
@given(data=st.data())
def test_fuzzed_tensors(exported: Path, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from([PARAMETERS, STATISTICS]))
    good = (exported / name).read_bytes()
    bad = bytearray(good)
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(0, min(len(bad) - 1, 600)))  # the header for the most part
        bad[position : position + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    cut = data.draw(st.none() | st.integers(0, len(bad)))
    fuzzed = exported.parent / "tensors"
    fuzzed.mkdir(exist_ok=True)
    for other in (DESCRIPTION, PARAMETERS, STATISTICS):
        (fuzzed / other).write_bytes((exported / other).read_bytes())
    kind = {PARAMETERS: "parameters", STATISTICS: "statistics"}[name]
    write(fuzzed, description_of(fuzzed), **{kind: bytes(bad[:cut])})
    load_or_refuse(fuzzed)


def test_fuzzing_begins_with_a_good_folder(exported: Path) -> None:
    assert load_or_refuse(exported)


@given(st.binary(max_size=200))
def test_any_bytes_are_json_or_refused(data: bytes) -> None:
    try:
        parse_json(data)
    except ExportError:
        pass
