"""Small recurrent models, and environments whose episodes end at any step."""

from typing import Any

import torch as th
from envs import RandomEnv
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_dapo import RecurrentDAPO
from sb3_dapo.recurrent import MlpLstmPolicy

FLOATS = spaces.Box(-1, 1, (3,))
ACTION_SPACES = {
    "Discrete": spaces.Discrete(3),
    "Box": spaces.Box(-1, 1, (2,)),
    "MultiDiscrete": spaces.MultiDiscrete([2, 3]),
    "MultiBinary": spaces.MultiBinary(2),
}
# How the critic remembers
CRITICS: dict[str, dict[str, Any]] = {
    "own LSTM": {},
    "own LSTM and features": {"share_features_extractor": False},
    "actor's LSTM": {"shared_lstm": True, "enable_critic_lstm": False},
    "no LSTM": {"enable_critic_lstm": False},
    "two layers": {"n_lstm_layers": 2},
}
SMALL: dict[str, Any] = {"n_steps": 32, "batch_size": 32, "n_epochs": 2, "sequence_length": 8, "device": "cpu"}


def make_env(n_envs: int = 3, p_terminated: float = 0.1, p_truncated: float = 0.15, **kwargs: Any) -> DummyVecEnv:
    settings = {"observation_space": FLOATS, "action_space": ACTION_SPACES["Discrete"], **kwargs}
    env = DummyVecEnv(
        [lambda: RandomEnv(p_terminated=p_terminated, p_truncated=p_truncated, **settings) for _ in range(n_envs)]
    )
    for i, each in enumerate(env.envs):
        each.reset(seed=100 + i)
    return env


def make_recurrent(env: Any = None, cls: type[RecurrentDAPO] = RecurrentDAPO, **settings: Any) -> RecurrentDAPO:
    policy = settings.pop("policy", "MlpLstmPolicy")
    policy_kwargs = {"lstm_hidden_size": 6, "net_arch": [5], **settings.pop("policy_kwargs", {})}
    env = make_env() if env is None else env
    return cls(policy, env, **{"seed": 0, **SMALL, "policy_kwargs": policy_kwargs, **settings})


class Forgetful(MlpLstmPolicy):
    """Its state is always zero."""

    def forward(self, obs: Any, lstm_states: Any, episode_starts: th.Tensor, deterministic: bool = False) -> Any:
        return super().forward(obs, lstm_states, th.ones_like(episode_starts), deterministic)

    def evaluate_actions(self, obs: Any, actions: Any, lstm_states: Any, episode_starts: th.Tensor) -> Any:
        return super().evaluate_actions(obs, actions, lstm_states, th.ones_like(episode_starts))

    def predict_values(self, obs: Any, lstm_states: Any, episode_starts: th.Tensor) -> th.Tensor:
        return super().predict_values(obs, lstm_states, th.ones_like(episode_starts))


def assert_same_parameters(first: Any, second: Any) -> None:
    pairs = zip(first.policy.parameters(), second.policy.parameters(), strict=True)
    assert all(th.equal(x, y) for x, y in pairs)
