"""With ``divergence_coef=0``, ``n_rollouts=1`` and ``advantage="gae"`` DAPO is SB3's PPO, bit for bit."""

import inspect
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from envs import RandomEnv
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import FakeImageEnv, SimpleMultiObsEnv
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.utils import LinearSchedule, set_random_seed
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from sb3_dapo import DAPO

pytestmark = [
    pytest.mark.filterwarnings("ignore:The last minibatch of every epoch"),
    pytest.mark.filterwarnings("ignore:.*parameter of CUDA"),
]

PPO_CASE: dict[str, Any] = {"divergence_coef": 0.0, "n_rollouts": 1, "advantage": "gae"}
N_ITERATIONS = 2
FLOATS = spaces.Box(-1, 1, (3,))


class NoisyExtractor(BaseFeaturesExtractor):
    """Batch normalization and dropout: differs between training and evaluation."""

    def __init__(self, observation_space: spaces.Box) -> None:
        super().__init__(observation_space, 8)
        n_inputs = observation_space.shape[0]
        self.layers = th.nn.Sequential(th.nn.BatchNorm1d(n_inputs), th.nn.Linear(n_inputs, 8), th.nn.Dropout(0.5))

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return self.layers(observations)


def random_env(action_space: spaces.Space, observation_space: spaces.Space = FLOATS) -> Callable[[], VecEnv]:
    return lambda: make_vec_env(lambda: RandomEnv(observation_space, action_space), n_envs=2, seed=0)


def many(env_id: str, n_envs: int) -> Callable[[], VecEnv]:
    return lambda: make_vec_env(env_id, n_envs=n_envs, seed=0)


CARTPOLE: Callable[[], gym.Env] = lambda: gym.make("CartPole-v1")  # noqa: E731
PENDULUM: Callable[[], gym.Env] = lambda: gym.make("Pendulum-v1", max_episode_steps=50)  # noqa: E731
NET: dict[str, Any] = {"net_arch": [16]}

CASES: dict[str, tuple[str, Callable[[], gym.Env | VecEnv], dict[str, Any]]] = {
    "Discrete": ("MlpPolicy", CARTPOLE, {}),
    "Box, truncations": ("MlpPolicy", PENDULUM, {}),
    "many environments": ("MlpPolicy", many("CartPole-v1", 4), {"n_steps": 32}),
    "many environments, Box": ("MlpPolicy", many("Pendulum-v1", 3), {"n_steps": 75}),
    "clip_range_vf": ("MlpPolicy", CARTPOLE, {"clip_range_vf": 0.05}),
    "clip_range_vf, Box": ("MlpPolicy", PENDULUM, {"clip_range_vf": 0.2, "gamma": 0.9}),
    "target_kl": ("MlpPolicy", CARTPOLE, {"target_kl": 1e-3, "learning_rate": 1e-2}),
    "target_kl, Box": ("MlpPolicy", PENDULUM, {"target_kl": 1e-3, "learning_rate": 1e-2}),
    "all at once": (
        "MlpPolicy",
        many("Pendulum-v1", 2),
        {"clip_range_vf": LinearSchedule(0.3, 0.1, 1.0), "target_kl": 0.05, "ent_coef": 0.01, "vf_coef": 0.3},
    ),
    "schedules": (
        "MlpPolicy",
        CARTPOLE,
        {"learning_rate": LinearSchedule(1e-2, 0.0, 1.0), "clip_range": LinearSchedule(0.3, 0.0, 1.0)},
    ),
    "advantages not normalized": ("MlpPolicy", PENDULUM, {"normalize_advantage": False}),
    "minibatches of one": (
        "MlpPolicy",
        CARTPOLE,
        {"normalize_advantage": False, "batch_size": 1, "n_steps": 16, "ent_coef": 0.1},
    ),
    # where the rounding of the mean of squares could differ
    "minibatches of 100, vf_coef 0.58": ("MlpPolicy", CARTPOLE, {"n_steps": 150, "batch_size": 100, "vf_coef": 0.58}),
    "last minibatch of one": ("MlpPolicy", CARTPOLE, {"n_steps": 65, "batch_size": 32, "vf_coef": 0.7}),
    "one minibatch": ("MlpPolicy", PENDULUM, {"n_steps": 70, "batch_size": 1000}),
    "MultiDiscrete": ("MlpPolicy", random_env(spaces.MultiDiscrete([3, 2])), {"ent_coef": 0.01}),
    "MultiBinary": ("MlpPolicy", random_env(spaces.MultiBinary(3)), {"ent_coef": 0.01}),
    "Box of two dimensions": ("MlpPolicy", random_env(spaces.Box(-1, 1, (2, 3))), {}),
    "float64": (
        "MlpPolicy",
        random_env(spaces.Box(-1, 1, (2,), np.float64), spaces.Box(-1, 1, (2,), np.float64)),
        {},
    ),
    "Discrete observations": ("MlpPolicy", random_env(spaces.Discrete(2), spaces.Discrete(5)), {}),
    "MultiDiscrete observations": ("MlpPolicy", random_env(spaces.Discrete(2), spaces.MultiDiscrete([2, 4])), {}),
    "MultiBinary observations": ("MlpPolicy", random_env(spaces.Discrete(2), spaces.MultiBinary(4)), {}),
    "images": (
        "CnnPolicy",
        lambda: FakeImageEnv(screen_height=40, screen_width=40, n_channels=1, discrete=True),
        {"policy_kwargs": {"features_extractor_kwargs": {"features_dim": 16}}},
    ),
    "images, Box": (
        "CnnPolicy",
        lambda: FakeImageEnv(screen_height=40, screen_width=40, n_channels=3, discrete=False),
        {"policy_kwargs": {"features_extractor_kwargs": {"features_dim": 16}, "share_features_extractor": False}},
    ),
    "Dict observations": (
        "MultiInputPolicy",
        lambda: SimpleMultiObsEnv(random_start=True),
        {"policy_kwargs": {**NET, "features_extractor_kwargs": {"cnn_output_dim": 8}}},
    ),
    "gSDE": ("MlpPolicy", PENDULUM, {"use_sde": True}),
    "gSDE, new noise every 4 steps": ("MlpPolicy", PENDULUM, {"use_sde": True, "sde_sample_freq": 4}),
    "gSDE, squashed": (
        "MlpPolicy",
        PENDULUM,
        {"use_sde": True, "policy_kwargs": {**NET, "squash_output": True, "full_std": False}},
    ),
    "VecNormalize": ("MlpPolicy", lambda: VecNormalize(many("Pendulum-v1", 2)()), {"n_steps": 110}),
    "dropout and batch normalization": (
        "MlpPolicy",
        CARTPOLE,
        {"policy_kwargs": {**NET, "features_extractor_class": NoisyExtractor}},
    ),
    "another optimizer": (
        "MlpPolicy",
        CARTPOLE,
        {
            "max_grad_norm": 0.05,
            "policy_kwargs": {
                "net_arch": {"pi": [8], "vf": [16, 8]},
                "activation_fn": th.nn.ReLU,
                "optimizer_class": th.optim.RMSprop,
                "optimizer_kwargs": {"alpha": 0.9},
            },
        },
    ),
    "no discount": ("MlpPolicy", PENDULUM, {"gamma": 1.0, "gae_lambda": 1.0}),
    "one step": ("MlpPolicy", PENDULUM, {"gamma": 0.5, "gae_lambda": 0.0}),
}


def trained(
    model_class: type[BaseAlgorithm], policy: str, make_env: Callable[[], Any], **settings: Any
) -> BaseAlgorithm:
    """A model after some iterations; the same random numbers whatever the class."""
    settings = {"n_steps": 128, "batch_size": 32, "n_epochs": 3, "policy_kwargs": NET, **settings}
    set_random_seed(7)
    env = make_env()
    env.observation_space.seed(7)
    model = model_class(policy, env, seed=7, device="cpu", **settings)
    model.learn(N_ITERATIONS * model.n_steps * model.n_envs)
    return model


def check_equal_parameters(model: BaseAlgorithm, other: BaseAlgorithm) -> None:
    parameters, others = model.policy.state_dict(), other.policy.state_dict()
    assert parameters.keys() == others.keys()
    for name, parameter in parameters.items():
        assert th.equal(parameter, others[name]), f"{name} differs by {(parameter - others[name]).abs().max()}"
    for state, other_state in zip(
        model.policy.optimizer.state_dict()["state"].values(),
        other.policy.optimizer.state_dict()["state"].values(),
        strict=True,
    ):
        assert all(th.equal(state[key], other_state[key]) for key in state)


@pytest.mark.parametrize("name", CASES)
def test_equals_ppo(name: str) -> None:
    policy, make_env, settings = CASES[name]
    ppo = trained(PPO, policy, make_env, **settings)
    dapo = trained(DAPO, policy, make_env, **settings, **PPO_CASE)
    check_equal_parameters(dapo, ppo)
    assert dapo._n_updates == ppo._n_updates
    if "target_kl" in name:
        assert ppo._n_updates < N_ITERATIONS * ppo.n_epochs, "no update was stopped: the case tests nothing"


@pytest.mark.parametrize(
    "settings",
    [
        {"divergence": "hellinger", "divergence_steps": 0},
        {"divergence": "sparse", "divergence_lambda": 0.3, "divergence_c_bar": 2.0},
        {"policy_loss": "clip_augmented"},
        {"exact_targets": True},
    ],
    ids=str,
)
def test_equals_ppo_whatever_else_is_set(settings: dict[str, Any]) -> None:
    """Where the divergence weighs nothing, its settings don't matter."""
    dapo = trained(DAPO, "MlpPolicy", CARTPOLE, **settings, **PPO_CASE)
    check_equal_parameters(dapo, trained(PPO, "MlpPolicy", CARTPOLE))


@pytest.mark.parametrize("settings", [{"divergence_coef": 0.1}, {"n_rollouts": 2}, {"advantage": "vtrace"}], ids=str)
def test_differs_from_ppo_otherwise(settings: dict[str, Any]) -> None:
    dapo = trained(DAPO, "MlpPolicy", CARTPOLE, **{**PPO_CASE, **settings})
    with pytest.raises(AssertionError, match="differs"):
        check_equal_parameters(dapo, trained(PPO, "MlpPolicy", CARTPOLE))


@pytest.mark.parametrize("name", ["Discrete", "Box, truncations", "many environments, Box"])
def test_lambda_in_the_first_step_makes_advantages_of_new_data_gae(name: str) -> None:
    """As long as the policy is the one that acted: for one epoch of one minibatch."""
    policy, make_env, settings = CASES[name]
    settings = {**settings, "n_epochs": 1, "batch_size": 10_000, "gae_lambda": 0.5, "learning_rate": 3e-3}
    ppo = trained(PPO, policy, make_env, **settings).policy.state_dict()
    same, other = (
        trained(DAPO, policy, make_env, **settings, **{**PPO_CASE, "advantage": advantage}).policy.state_dict()
        for advantage in ("vtrace_gae", "vtrace")
    )
    for key, parameter in ppo.items():
        th.testing.assert_close(same[key], parameter, rtol=1e-3, atol=1e-5)
    assert any((other[key] - parameter).abs().max() > 1e-4 for key, parameter in ppo.items())


@pytest.mark.parametrize("name", ["clip_range_vf", "Box, truncations"])
def test_logs_what_ppo_logs(name: str) -> None:
    policy, make_env, settings = CASES[name]
    ppo, dapo = (
        trained(model_class, policy, make_env, **settings, **extra).logger.name_to_value
        for model_class, extra in ((PPO, {}), (DAPO, PPO_CASE))
    )
    assert ppo.keys() <= dapo.keys()
    for key in ("explained_variance", "n_updates", "clip_range", "clip_range_vf", "std", "learning_rate"):
        if f"train/{key}" in ppo:
            assert dapo[f"train/{key}"] == pytest.approx(ppo[f"train/{key}"], abs=1e-5)
    # means over all minibatches in both
    for key in ("entropy_loss", "policy_gradient_loss", "value_loss", "clip_fraction"):
        assert dapo[f"train/{key}"] == pytest.approx(ppo[f"train/{key}"], rel=1e-4, abs=1e-6)


def test_takes_every_argument_of_ppo_with_its_default() -> None:
    """In their order too: ``PPO(...)`` becomes ``DAPO(...)`` by changing one word."""
    theirs = list(inspect.signature(PPO.__init__).parameters.values())
    ours = list(inspect.signature(DAPO.__init__).parameters.values())
    assert [(x.name, x.default, x.kind) for x in ours[: len(theirs)]] == [(x.name, x.default, x.kind) for x in theirs]
    assert all(x.kind is inspect.Parameter.KEYWORD_ONLY for x in ours[len(theirs) :])
