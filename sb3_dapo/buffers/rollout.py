"""A rollout: all that learning needs of T steps of N environments."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.preprocessing import get_obs_shape

from sb3_dapo.buffers.stores import Column, FrameStacks
from sb3_dapo.faults import check_finite

# Observations are dicts here; those of a space that is not Dict have this one key
PLAIN = "observation"


@dataclass
class Rollout:
    """
    A value: it can be pickled, and given to :meth:`RolloutRing.append <sb3_dapo.buffers.RolloutRing.append>` in another
    process. Arrays are time-major, ``(T, N, ...)``; numbers are float32.
    """

    observations: dict[str, Column]
    """What the policy acted on, by key of a Dict space, else of the one key "observation"."""
    actions: np.ndarray
    rewards: np.ndarray
    """What callbacks left of the environments' rewards, without any bootstrap, ``(T, N)``."""
    terminated: np.ndarray
    """Whether an episode ended for good, ``(T, N)``, bool."""
    truncated: np.ndarray
    """Whether an episode was cut off, ``(T, N)``, bool."""
    log_probs: np.ndarray
    """log mu(a|s) of the policy that acted, ``(T, N)``."""
    values: np.ndarray
    """Its V(s), ``(T, N)``."""
    advantages: np.ndarray
    """GAE, with which ``advantage="gae"`` learns, ``(T, N)``."""
    returns: np.ndarray
    """Likewise, the targets of the values, ``(T, N)``."""
    last_values: np.ndarray
    """Values of the observations after the last step, ``(N,)``, for rollouts without ``bootstrap_observations``."""
    bootstrap_observations: dict[str, np.ndarray] = field(default_factory=dict)
    """
    The observations after the last step, followed by those that truncated episodes ended with, ``(N + M, *shape)``.
    Empty if they are not known: the rollout must not have truncated episodes then.
    """
    truncations: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    """Where these M episodes were truncated, as ``n * T + t``."""
    inputs: dict[str, np.ndarray] = field(default_factory=dict)
    """What the policy is given besides observations, by name: ``(T, N, ...)``, or ``(T / L, N, ...)`` of sequences."""
    bootstrap_inputs: dict[str, np.ndarray] = field(default_factory=dict)
    """The same for ``bootstrap_observations``, ``(N + M, ...)``."""
    infos: list[list[dict[str, Any]]] = field(default_factory=list)
    """Of every step and environment, what callbacks shall see, for a rollout from elsewhere; `[]` where none."""
    version: int = 0
    """Updates that the policy that acted had seen."""
    source: int = 0
    """Number of the collector, of several."""

    def check(self, nonfinite_observations: bool = False, nonfinite_rewards: bool = False) -> None:
        """
        :param nonfinite_observations: allow NaN and infinity in observations
        :param nonfinite_rewards: allow them in rewards, and in the advantages and returns that are made of these
        :raises ValueError: if an array has another shape than the rewards
        :raises NonFiniteError: naming the first number that is NaN or infinite, its environment and step
        """
        shape = self.rewards.shape
        for name in ("actions", "terminated", "truncated", "log_probs", "values", "advantages", "returns"):
            array = getattr(self, name)
            if array.shape[:2] != shape:
                raise ValueError(f"`{name}` of a rollout must begin with (T, N) = {shape}, got {array.shape}")
        if not nonfinite_observations:
            self._check_observations()
        check_finite("value", self.values)
        check_finite("log-prob", self.log_probs)
        if not nonfinite_rewards:
            check_finite("reward", self.rewards)
            check_finite("advantage", self.advantages)
            check_finite("return", self.returns)

    def _check_observations(self) -> None:
        n_steps, n_envs = self.rewards.shape
        for key, column in self.observations.items():
            check_finite(key, column.frames if isinstance(column, FrameStacks) else column)
        for key, observations in self.bootstrap_observations.items():
            check_finite(key, observations[None, :n_envs], n_steps)
            for position, terminal in zip(self.truncations, observations[n_envs:], strict=True):
                env, step = divmod(int(position), n_steps)
                check_finite(f"terminal {key}", terminal[None, None], step, env)


def observation_spaces(space: spaces.Space[Any]) -> dict[str, spaces.Space[Any]]:
    """:return: the parts of an observation space by key"""
    return dict(space.spaces) if isinstance(space, spaces.Dict) else {PLAIN: space}


def parts(observations: Any) -> Iterator[tuple[str, np.ndarray]]:
    """:return: keys and arrays of observations, which are an array or a dict"""
    items = observations.items() if isinstance(observations, dict) else [(PLAIN, observations)]
    return ((key, np.asarray(array)) for key, array in items)


def storage(space: spaces.Space[Any]) -> tuple[tuple[int, ...], np.dtype]:
    """:return: shape and dtype that the elements of a part of an observation space are kept in"""
    # Policies compute in float32: to keep more would only take memory
    return get_obs_shape(space), np.dtype(np.float32 if space.dtype == np.float64 else space.dtype)  # type: ignore[return-value]
