"""DAPO learns: on SB3's identity environments, in classic control and from pixels, with rollouts that are reused."""

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import pytest
from envs import CatchEnv
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import IdentityEnv, IdentityEnvBox, IdentityEnvMultiBinary, IdentityEnvMultiDiscrete
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.utils import LinearSchedule

from sb3_dapo import DAPO


def score(
    algo: type[DAPO], policy: str, env: str | Callable[[], gym.Env], total_timesteps: int, **settings: Any
) -> float:
    """Mean return of the deterministic policy after training, on environments of other seeds."""
    n_envs = settings.pop("n_envs")
    model = algo(policy, make_vec_env(env, n_envs, seed=0), seed=0, device="cpu", **settings)
    model.learn(total_timesteps)
    mean, _ = evaluate_policy(model, make_vec_env(env, 8, seed=1000), n_eval_episodes=40, warn=False)
    return float(mean)


IDENTITY_ENVS: dict[str, tuple[Callable[[], gym.Env], dict[str, Any]]] = {
    "Discrete": (lambda: IdentityEnv(4), {"gamma": 0.4, "learning_rate": 2e-3}),
    "MultiDiscrete": (lambda: IdentityEnvMultiDiscrete(4), {"gamma": 0.4, "learning_rate": 2e-3}),
    "MultiBinary": (lambda: IdentityEnvMultiBinary(4), {"gamma": 0.4, "learning_rate": 2e-3}),
    "Box": (lambda: IdentityEnvBox(eps=0.5), {"learning_rate": 1e-3}),
}


@pytest.mark.parametrize("n_rollouts", [1, 2])
@pytest.mark.parametrize("name", IDENTITY_ENVS)
def test_identity(algo: type[DAPO], name: str, n_rollouts: int) -> None:
    """To do what is seen: the largest return is 100."""
    env, settings = IDENTITY_ENVS[name]
    settings = {"n_envs": 1, "n_steps": 256, "n_epochs": 4, "n_rollouts": n_rollouts, **settings}
    assert score(algo, "MlpPolicy", env, 1536, **settings) >= 90


CARTPOLE: dict[str, Any] = {
    "n_envs": 8,
    "n_steps": 32,
    "batch_size": 256,
    "n_epochs": 10,
    "n_rollouts": 2,
    "gae_lambda": 0.8,
    "gamma": 0.98,
    "learning_rate": LinearSchedule(1e-3, 0.0, 1.0),
    "clip_range": LinearSchedule(0.2, 0.0, 1.0),
}


@pytest.mark.slow
def test_cartpole(algo: type[DAPO]) -> None:
    assert score(algo, "MlpPolicy", "CartPole-v1", 40_000, **CARTPOLE) >= 475


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    "settings",
    [
        {"n_rollouts": 1, "n_epochs": 20},
        {"n_rollouts": 4, "n_epochs": 5},
        {"policy_loss": "plain", "divergence_coef": 0.5},
        {"policy_loss": "clip_augmented"},
        {"divergence": "hellinger"},
        {"divergence": "sparse"},
        {"divergence_steps": 0},
        {"exact_targets": True},
        {"normalize_advantage": "rms"},
    ],
    ids=str,
)
def test_cartpole_whatever_is_set(algo: type[DAPO], settings: dict[str, Any]) -> None:
    assert score(algo, "MlpPolicy", "CartPole-v1", 80_000, **{**CARTPOLE, **settings}) >= 475


@pytest.mark.slow
def test_pendulum(algo: type[DAPO]) -> None:
    """Its episodes never terminate: each is truncated after 200 steps. A random policy has about -1200."""
    settings = {"n_envs": 4, "n_steps": 512, "batch_size": 256, "n_epochs": 5, "n_rollouts": 2, "gamma": 0.9}
    settings |= {"learning_rate": 1e-3, "use_sde": True, "sde_sample_freq": 4}
    assert score(algo, "MlpPolicy", "Pendulum-v1", 50_000, **settings) > -300


def test_catch(algo: type[DAPO]) -> None:
    """Five balls seen as pixels. A policy that catches by chance has about -3.3."""
    settings = {"n_envs": 8, "n_steps": 64, "batch_size": 256, "n_epochs": 4, "n_rollouts": 2, "gamma": 0.95}
    settings |= {"learning_rate": 1e-3, "ent_coef": 0.01}
    policy_kwargs = {"features_extractor_kwargs": {"features_dim": 64}}
    assert score(algo, "CnnPolicy", CatchEnv, 12_000, policy_kwargs=policy_kwargs, **settings) >= 4.5
