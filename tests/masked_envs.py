"""Environments that tell which actions are allowed, and insist on them."""

from collections.abc import Callable
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
from envs import RandomEnv
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecEnv

SPACES: dict[str, spaces.Space] = {
    "Discrete": spaces.Discrete(6),
    "MultiDiscrete": spaces.MultiDiscrete([3, 5, 2]),
    "MultiBinary": spaces.MultiBinary(4),
}
FLOATS = spaces.Box(-1, 1, (3,))


def sizes_of(space: Any) -> list[int]:
    """:return: alternatives of each choice"""
    if isinstance(space, spaces.Discrete):
        return [int(space.n)]
    return [2] * int(space.n) if isinstance(space, spaces.MultiBinary) else list(space.nvec)


class MaskedEnv(RandomEnv):
    """
    A :class:`RandomEnv` with random masks, which refuses what they do not allow.

    :param action_space: action space
    :param observation_space: observation space
    :param refuses: raise an error for an action that is not allowed
    """

    def __init__(
        self, action_space: spaces.Space, observation_space: spaces.Space = FLOATS, refuses: bool = True
    ) -> None:
        super().__init__(observation_space, action_space)
        self.refuses = refuses

    def draw(self) -> None:
        masks = []
        for size in sizes_of(self.action_space):
            allowed = self.np_random.random(size) < 0.4
            allowed[self.np_random.integers(size)] = True
            masks.append(allowed)
        self.masks = masks

    def action_masks(self) -> np.ndarray:
        return np.concatenate(self.masks)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        observation, info = super().reset(seed=seed)
        self.draw()
        return observation, info

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        choices = np.atleast_1d(action).astype(int)
        is_allowed = all(allowed[choice] for allowed, choice in zip(self.masks, choices, strict=True))
        if self.refuses and not is_allowed:
            raise AssertionError(f"{action} is not allowed: {self.masks}")
        answer = super().step(action)
        self.draw()
        return answer


def masked(
    action_space: spaces.Space, observation_space: spaces.Space = FLOATS, n_envs: int = 2, refuses: bool = True
) -> Callable[[], VecEnv]:
    """:return: makes such environments"""
    return lambda: make_vec_env(lambda: MaskedEnv(action_space, observation_space, refuses), n_envs=n_envs, seed=0)


class MaskedGame(MaskedEnv):
    """A :class:`MaskedEnv` of 20 steps that can be watched, under the name ``MaskedGame-v0``."""

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array"], "render_fps": 30}

    def __init__(self, kind: str = "Discrete", render_mode: str | None = None) -> None:
        super().__init__(SPACES[kind])
        self.render_mode = render_mode

    def render(self) -> np.ndarray:  # type: ignore[override]
        return np.zeros((32, 32, 3), np.uint8)


gym.register("MaskedGame-v0", MaskedGame, max_episode_steps=20)
