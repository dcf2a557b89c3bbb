"""SB3's rollout buffer, of which a :class:`Rollout` comes when SB3 is done with it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs

from sb3_dapo.buffers.rollout import PLAIN, Rollout, observation_spaces, parts, storage
from sb3_dapo.buffers.stores import ArrayRecord, FrameStackRecord, FrameStacks
from sb3_dapo.faults import check_finite


@dataclass
class Truncation:
    """An episode that was cut off, whose last observation's value is asked of the current network."""

    env: int
    step: int
    reward: float
    """As callbacks left it, without SB3's bootstrap."""
    observation: dict[str, np.ndarray]
    folded_reward: float = 0.0
    """The same with the bootstrap."""


class RolloutRecorder(RolloutBuffer):
    """
    Records a rollout. For SB3, and for whoever collects by himself, it is SB3's ``RolloutBuffer``: ``rewards``,
    ``values``, ``log_probs``, ``episode_starts``, ``advantages`` and ``returns`` are NumPy arrays ``(T, N)``, where
    ``rewards`` have SB3's bootstrap of truncated episodes folded in, as GAE wants it.

    :meth:`record_step` tells it besides what an environment answered. Without it, as when steps are only added, the
    end of every episode is taken for a termination, as SB3 takes it.

    :param buffer_size: T, steps per rollout and environment
    :param observation_space: observation space, Dict included
    :param action_space: action space
    :param device: PyTorch device
    :param gae_lambda: lambda of GAE
    :param gamma: discount factor
    :param n_envs: N, number of parallel environments
    :param optimize_memory_usage: keep each frame of stacked images once
    :raises ValueError: if there are no images whose memory could be optimized
    """

    def __init__(
        self,
        buffer_size: int,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        device: th.device | str = "auto",
        gae_lambda: float = 1,
        gamma: float = 0.99,
        n_envs: int = 1,
        optimize_memory_usage: bool = False,
    ) -> None:
        # RolloutBuffer's own __init__ would call reset() before the rest is there
        super(RolloutBuffer, self).__init__(buffer_size, observation_space, action_space, device, n_envs)
        self.gae_lambda = gae_lambda
        self.gamma = gamma
        self.optimize_memory_usage = optimize_memory_usage
        self.obs_spaces = observation_spaces(observation_space)
        shape = () if isinstance(action_space, spaces.Discrete) else (self.action_dim,)
        is_integer = isinstance(action_space, spaces.Discrete | spaces.MultiDiscrete)
        self.action_storage = shape, np.dtype(np.int64 if is_integer else np.float32)
        self.acting_version = 0
        self.nonfinite_observations = False

    def keeps_frames(self, key: str) -> bool:
        """:return: whether the frames of a part of the observations are kept once each"""
        return self.optimize_memory_usage and is_image_space(self.obs_spaces[key])

    def reset(self) -> None:
        """Begin a new rollout, of as many steps as ``buffer_size`` says now."""
        if self.optimize_memory_usage and not any(map(self.keeps_frames, self.obs_spaces)):
            raise ValueError(
                f"`optimize_memory_usage` must be False for observations without images, {self.observation_space}"
            )
        shape = (self.buffer_size, self.n_envs)
        self.rewards, self.values, self.log_probs, self.episode_starts, self.advantages, self.returns = (
            np.zeros(shape, dtype=np.float32) for _ in range(6)
        )
        self._observations = {
            key: (FrameStackRecord if self.keeps_frames(key) else ArrayRecord)(*shape, *storage(space))
            for key, space in self.obs_spaces.items()
        }
        self._actions = ArrayRecord(*shape, *self.action_storage)
        self.truncations: list[Truncation] = []
        """The episodes that were truncated so far, in the order in which SB3 asks for the values that end them."""
        self._answer: VecEnvObs | None = None  # to the actions that are about to be added
        self._last_answer: VecEnvObs | None = None  # to those that were added last
        self._bootstrap_observations: dict[str, np.ndarray] = {}
        self._inputs: dict[str, list[np.ndarray]] = {}
        self._bootstrap_inputs: dict[str, list[np.ndarray]] = {}
        self.pos = 0
        self.full = False
        self.is_open = False  # begun, and not handed on yet
        self.is_collected = False  # complete, with advantages, and not handed on yet

    @property
    def observations(self) -> Any:  # type: ignore[override]
        """Observations as far as they are collected: ``(T, N, *obs_shape)``, or a dict of them."""
        columns = {key: record.column for key, record in self._observations.items()}
        arrays = {key: x.whole() if isinstance(x, FrameStacks) else x for key, x in columns.items()}
        return arrays if isinstance(self.observation_space, spaces.Dict) else arrays[PLAIN]

    @property
    def actions(self) -> np.ndarray:  # type: ignore[override]
        """Actions as far as they are collected, ``(T, N, action_dim)``."""
        return self._actions.column.reshape(self.buffer_size, self.n_envs, self.action_dim)

    def record_step(
        self, new_obs: VecEnvObs, rewards: np.ndarray, dones: np.ndarray, infos: Sequence[dict[str, Any]]
    ) -> None:
        """
        Record what the environments answered, and callbacks made of it, before SB3 folds the value of truncated
        episodes into the rewards.

        :param new_obs: observations that follow, of the next episode where one ended
        :param rewards: rewards, shape ``(N,)``
        :param dones: whether the episodes ended, shape ``(N,)``
        :param infos: info dicts; ``TimeLimit.truncated`` and ``terminal_observation`` are read
        """
        self._answer = new_obs
        for n in np.flatnonzero(dones).tolist():
            # the condition by which SB3 bootstraps
            terminal_observation = infos[n].get("terminal_observation")
            if infos[n].get("TimeLimit.truncated", False) and terminal_observation is not None:
                # copied, as an environment may go on writing into its array
                copies = {key: np.array(obs) for key, obs in parts(terminal_observation)}
                self.truncations.append(Truncation(n, self.pos, float(rewards[n]), copies))

    def record_inputs(self, **inputs: np.ndarray) -> None:
        """
        Record what the policy is given besides observations, at every step or at the first of each sequence.

        :param inputs: arrays ``(N, ...)`` by name
        """
        for name, array in inputs.items():
            self._inputs.setdefault(name, []).append(np.array(array))

    def record_bootstrap_inputs(self, **inputs: np.ndarray) -> None:
        """
        Record the same for a value that ends a truncated episode, and for those after the last step.

        :param inputs: arrays by name, ``(1, ...)`` for each episode in turn, then ``(N, ...)``
        """
        for name, array in inputs.items():
            self._bootstrap_inputs.setdefault(name, []).append(np.array(array))

    def add(
        self,
        obs: VecEnvObs,
        action: np.ndarray,
        reward: np.ndarray,
        episode_start: np.ndarray,
        value: th.Tensor,
        log_prob: th.Tensor,
    ) -> None:
        """Add one step of all environments. Parameters as in SB3's ``RolloutBuffer``."""
        for key, observations in parts(obs):
            self._observations[key].write(self.pos, observations)
        self._actions.write(self.pos, action)
        self.rewards[self.pos] = reward
        self.episode_starts[self.pos] = episode_start
        self.values[self.pos] = value.numpy(force=True).ravel()
        self.log_probs[self.pos] = log_prob.numpy(force=True).ravel()
        for truncation in reversed(self.truncations):
            if truncation.step < self.pos:
                break
            truncation.folded_reward = self.rewards[self.pos, truncation.env]
        self._last_answer, self._answer = self._answer, None
        self.is_open = True
        self.pos += 1
        self.full = self.pos == self.buffer_size

    def compute_returns_and_advantage(self, last_values: th.Tensor, dones: np.ndarray) -> None:
        """
        Compute SB3's GAE of the rollout. It may be called again, by who has changed the rewards.

        :param last_values: values of the observations after the last step, shape ``(N,)``
        :param dones: whether the last step ended an episode, shape ``(N,)``
        """
        super().compute_returns_and_advantage(last_values, dones)
        self._last_values = last_values.numpy(force=True).flatten()
        self._last_dones = np.array(dones, dtype=bool)
        if self._last_answer is not None:
            for key, following in parts(self._last_answer):
                shape, dtype = storage(self.obs_spaces[key])
                terminal = [truncation.observation[key].reshape(1, *shape) for truncation in self.truncations]
                self._bootstrap_observations[key] = np.concatenate(
                    [following.reshape(-1, *shape), *terminal], dtype=dtype, casting="unsafe"
                )
        self.is_collected = self.full

    def rollout(self) -> Rollout:
        """
        :return: the rollout that has been collected
        :raises ValueError: if it is not complete
        """
        if not self.is_collected:
            hint = ": `compute_returns_and_advantage` has not been called" if self.full else ""
            raise ValueError(f"the rollout is not complete: {self.pos} of {self.buffer_size} steps{hint}")
        rewards = self.rewards.copy()
        truncated = np.zeros(rewards.shape, dtype=bool)
        for x in self.truncations:
            truncated[x.step, x.env] = True
            # Without the bootstrap, and with what somebody may have changed in the buffer
            rewards[x.step, x.env] = x.reward + (rewards[x.step, x.env] - x.folded_reward)
        ends = np.vstack([self.episode_starts[1:] > 0, self._last_dones])
        return Rollout(
            observations={key: record.column for key, record in self._observations.items()},
            actions=self._actions.column,
            rewards=rewards,
            terminated=ends & ~truncated,
            truncated=truncated,
            log_probs=self.log_probs,
            values=self.values,
            advantages=self.advantages,
            returns=self.returns,
            last_values=self._last_values,
            bootstrap_observations=self._bootstrap_observations,
            truncations=np.array([x.env * self.buffer_size + x.step for x in self.truncations], dtype=np.int64),
            inputs={name: np.stack(arrays) for name, arrays in self._inputs.items()},
            bootstrap_inputs={
                name: np.concatenate([last, *truncated]) for name, (*truncated, last) in self._bootstrap_inputs.items()
            },
            version=self.acting_version,
        )

    def check_observations(self, observations: Any) -> None:
        """
        :param observations: of all environments, at the current step of the rollout
        :raises NonFiniteError: if they are not finite, or those of an earlier step are not
        """
        if not self.nonfinite_observations:
            for key, array in parts(observations):
                if not self.keeps_frames(key):  # which are integers
                    check_finite(key, np.asarray(self._observations[key].column)[: self.pos])
                check_finite(key, array[None], self.pos)
