"""Observations of several parts: a Dict space and MultiInputPolicy."""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.wrappers import TimeLimit
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from sb3_dapo import DAPO


class Courier(gym.Env[dict[str, Any], np.int64]):
    """
    Walk to the parcel, then carry it home to the middle of a 7 x 7 field: reward 1 for each.

    The observation has three parts: where one stands, where the parcel was put, and whether one carries it.
    """

    SIZE = 7
    MOVES = np.array([[0, 1], [0, -1], [1, 0], [-1, 0]])

    def __init__(self) -> None:
        place = spaces.Box(-1.0, 1.0, (2,), np.float32)
        self.observation_space = spaces.Dict({"position": place, "parcel": place, "carries": spaces.Discrete(2)})
        self.action_space = spaces.Discrete(len(self.MOVES))

    def _observation(self) -> dict[str, Any]:
        middle = self.SIZE // 2
        return {
            "position": ((self.position - middle) / middle).astype(np.float32),
            "parcel": ((self.parcel - middle) / middle).astype(np.float32),
            "carries": int(self.carries),
        }

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        super().reset(seed=seed)
        self.position, self.parcel = self.np_random.integers(self.SIZE, size=(2, 2))
        self.carries = False
        return self._observation(), {}

    def step(self, action: np.int64) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        self.position = np.clip(self.position + self.MOVES[action], 0, self.SIZE - 1)
        is_home = bool(self.carries and (self.position == self.SIZE // 2).all())
        picks_up = bool(not self.carries and (self.position == self.parcel).all())
        self.carries |= picks_up
        return self._observation(), float(picks_up or is_home), is_home, False, {}


def main(steps: int = 60_000) -> None:
    """
    :param steps: environment steps
    """
    env = make_vec_env(lambda: TimeLimit(Courier(), max_episode_steps=30), n_envs=16, seed=0)
    print("An observation:", {name: value[0].tolist() for name, value in env.reset().items()})
    model = DAPO(
        "MultiInputPolicy", env, n_steps=64, batch_size=512, n_rollouts=4, n_epochs=2, learning_rate=1e-3, seed=0
    )
    before, _ = evaluate_policy(model, env, n_eval_episodes=50, deterministic=False)
    model.learn(steps)
    after, _ = evaluate_policy(model, env, n_eval_episodes=50, deterministic=False)
    print(f"Score before training {before:.2f}, after {model.num_timesteps:,} steps {after:.2f} (the best is 2)")


if __name__ == "__main__":
    main()
