"""Connect Four against a random player, as an environment that tells which columns are open."""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

ROWS, COLUMNS = 6, 7


class ConnectFour(gym.Env):
    """
    The observation has a plane of 42 for the stones of each player, one's own first; the action is a column. A game
    that is won gives 1, one that is lost -1, a draw 0. The other player begins half of the games.

    :param illegal: what a move into a full column costs, which ends the game
    """

    observation_space = spaces.Box(0, 1, (2 * ROWS * COLUMNS,), np.float32)
    action_space = spaces.Discrete(COLUMNS)

    def __init__(self, illegal: float = -1.0) -> None:
        self.illegal = illegal

    def action_masks(self) -> np.ndarray:
        """Columns that are not full."""
        return self.heights < ROWS

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.stones = np.zeros((2, ROWS, COLUMNS), dtype=bool)
        self.heights = np.zeros(COLUMNS, dtype=int)
        if self.np_random.random() < 0.5:
            self._drop(1, int(self.np_random.integers(COLUMNS)))
        return self._observation(), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        column = int(action)
        if self.heights[column] == ROWS:
            return self._observation(), self.illegal, True, False, {}
        if self._drop(0, column):
            return self._observation(), 1.0, True, False, {}
        if self.action_masks().any() and self._drop(1, int(self.np_random.choice(np.flatnonzero(self.action_masks())))):
            return self._observation(), -1.0, True, False, {}
        return self._observation(), 0.0, not self.action_masks().any(), False, {}

    def _drop(self, player: int, column: int) -> bool:
        """:return: whether the stone makes four in a row"""
        row = int(self.heights[column])
        self.heights[column] += 1
        stones = self.stones[player]
        stones[row, column] = True
        return any(
            1 + self._run(stones, row, column, dr, dc) + self._run(stones, row, column, -dr, -dc) >= 4
            for dr, dc in ((0, 1), (1, 0), (1, 1), (1, -1))
        )

    @staticmethod
    def _run(stones: np.ndarray, row: int, column: int, dr: int, dc: int) -> int:
        """:return: stones that follow one in a direction without a gap"""
        length = 0
        row, column = row + dr, column + dc
        while 0 <= row < ROWS and 0 <= column < COLUMNS and stones[row, column]:
            length += 1
            row, column = row + dr, column + dc
        return length

    def _observation(self) -> np.ndarray:
        return self.stones.reshape(-1).astype(np.float32)
