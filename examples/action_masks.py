"""Illegal actions: an environment that tells what is allowed, and MaskableDAPO."""

from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from sb3_contrib.common.maskable.evaluation import evaluate_policy
from stable_baselines3.common.env_util import make_vec_env

from sb3_dapo import MaskableDAPO


class Tour(gym.Env[np.ndarray, np.int64]):
    """
    Go to each of 8 places once, by a short way: the reward is minus the distance. One cannot go where one has been.
    """

    N = 8

    def __init__(self) -> None:
        self.observation_space = spaces.Box(-1.0, 1.0, (3 * self.N,), np.float32)
        self.action_space = spaces.Discrete(self.N)

    def action_masks(self) -> np.ndarray:
        return ~self.seen

    def _observation(self) -> np.ndarray:
        # as seen from where one is
        offsets = (self.places - self.places[self.place]) * ~self.seen[:, None]
        return np.concatenate([offsets.ravel(), self.seen]).astype(np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.places = self.np_random.random((self.N, 2))
        self.place = 0
        self.seen = np.arange(self.N) == self.place
        return self._observation(), {}

    def step(self, action: np.int64) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        if self.seen[action]:
            raise ValueError(f"one has been at {action}")  # masks see to it that this does not happen
        distance = np.linalg.norm(self.places[action] - self.places[self.place])
        self.place = int(action)
        self.seen[action] = True
        # The last state allows nothing: the episode has ended, and nobody asks
        return self._observation(), -float(distance), bool(self.seen.all()), False, {}


def main(steps: int = 60_000) -> None:
    """
    :param steps: environment steps
    """
    env = make_vec_env(Tour, n_envs=16, seed=0)
    model = MaskableDAPO(
        "MlpPolicy",
        env,
        n_steps=64,
        batch_size=256,
        n_rollouts=2,
        n_epochs=4,
        learning_rate=3e-3,
        gamma=1.0,
        policy_kwargs={"net_arch": [128, 128], "activation_fn": th.nn.ReLU},
        seed=0,
    )
    before, _ = evaluate_policy(model, env, n_eval_episodes=200, deterministic=False)  # sb3-contrib's, with masks
    model.learn(steps)
    after, _ = evaluate_policy(model, env, n_eval_episodes=200)
    print(f"Way before training {-before:.2f}, after {model.num_timesteps:,} steps {-after:.2f}")

    # To play by oneself, masks are passed
    tour = Tour()
    observation, _ = tour.reset(seed=1)
    terminated, order = False, [0]
    while not terminated:
        action, _ = model.predict(observation, deterministic=True, action_masks=tour.action_masks())
        observation, _, terminated, _, _ = tour.step(action)
        order.append(int(action))
    print("A tour:", order)


if __name__ == "__main__":
    main()
