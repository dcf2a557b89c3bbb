"""Small environments to test on."""

from copy import deepcopy
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces


class RandomEnv(gym.Env):
    """
    Random observations of any space, and a reward for actions that are far from the middle.

    :param observation_space: observation space
    :param action_space: action space
    :param p_terminated: probability that a step terminates the episode
    :param p_truncated: probability that a step truncates it
    """

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        p_terminated: float = 0.05,
        p_truncated: float = 0.05,
    ) -> None:
        # Spaces have random generators of their own
        self.observation_space, self.action_space = deepcopy(observation_space), deepcopy(action_space)
        self.p_terminated, self.p_truncated = p_terminated, p_truncated

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        terminated, truncated = self.np_random.random(2) < (self.p_terminated, self.p_truncated)
        reward = float(np.mean(np.square(action)))
        return self.observation_space.sample(), reward, bool(terminated), bool(truncated), {}


class EndlessEnv(gym.Env):
    """
    A walk around a circle of states without end, with reward 1 at every step: all values are 1 / (1 - gamma).

    :param n_states: number of states
    :param as_dict: give the observation in two parts
    :param random_start: begin in any state, or in the first
    """

    def __init__(self, n_states: int = 4, as_dict: bool = False, random_start: bool = True) -> None:
        self.n_states = n_states
        self.as_dict, self.random_start = as_dict, random_start
        coordinate = spaces.Box(-1, 1, (1,))
        self.observation_space = spaces.Dict({"x": coordinate, "y": coordinate}) if as_dict else spaces.Box(-1, 1, (2,))
        self.action_space = spaces.Discrete(2)
        self.state = 0

    def observation(self) -> Any:
        angle = 2 * np.pi * self.state / self.n_states
        position = np.array([np.cos(angle), np.sin(angle)], dtype=np.float32)
        return {"x": position[:1], "y": position[1:]} if self.as_dict else position

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.state = int(self.np_random.integers(self.n_states)) if self.random_start else 0
        return self.observation(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.state = (self.state + 1) % self.n_states
        return self.observation(), 1.0, False, False, {}


class CatchEnv(gym.Env):
    """
    A ball falls, and a paddle at the bottom is moved below it: reward 1 if it is caught, -1 if not.

    The screen is an image as CnnPolicy wants it. An episode has several balls.

    :param n_columns: width and height of the board, in cells
    :param cell: width and height of a cell, in pixels
    :param n_balls: balls per episode
    """

    def __init__(self, n_columns: int = 6, cell: int = 6, n_balls: int = 5) -> None:
        self.n_columns, self.cell, self.n_balls = n_columns, cell, n_balls
        self.observation_space = spaces.Box(0, 255, (n_columns * cell, n_columns * cell, 1), np.uint8)
        self.action_space = spaces.Discrete(3)

    def drop(self) -> None:
        self.row, self.column = 0, int(self.np_random.integers(self.n_columns))

    def observation(self) -> np.ndarray:
        board = np.zeros((self.n_columns, self.n_columns), dtype=np.uint8)
        board[-1, self.paddle] = 128
        board[self.row, self.column] = 255
        return board.repeat(self.cell, axis=0).repeat(self.cell, axis=1)[..., None]

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.balls_left, self.paddle = self.n_balls, self.n_columns // 2
        self.drop()
        return self.observation(), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.paddle = int(np.clip(self.paddle + int(action) - 1, 0, self.n_columns - 1))
        self.row += 1
        reward = 0.0
        if self.row == self.n_columns - 1:
            reward = 1.0 if self.column == self.paddle else -1.0
            self.balls_left -= 1
            self.drop()
        return self.observation(), reward, self.balls_left == 0, False, {}
