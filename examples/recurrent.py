"""Memory: RecurrentDAPO on a task whose answer is shown at the first step only.

A cue, left or right, is shown when an episode begins. Some steps later the agent is asked for it. A policy that knows
only the newest observation can but guess; one with an LSTM learns to remember. Afterwards it plays by `predict`, which
is handed the state of the LSTM from step to step.
"""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from sb3_dapo import DAPO, RecurrentDAPO


class CueEnv(gym.Env[np.ndarray, np.int64]):
    """
    :param delay: steps between the cue and the question
    """

    def __init__(self, delay: int = 10) -> None:
        self.delay = delay
        self.observation_space = spaces.Box(-1, 1, (2,))
        self.action_space = spaces.Discrete(2)

    def observation(self) -> np.ndarray:
        """The cue, -1 or 1, at the first step; whether the question is asked."""
        cue = 2 * self.cue - 1 if self.n_steps == 0 else 0
        return np.array([cue, self.n_steps == self.delay], dtype=np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.n_steps, self.cue = 0, int(self.np_random.integers(2))
        return self.observation(), {}

    def step(self, action: np.int64) -> Any:
        is_asked = self.n_steps == self.delay
        reward = (1.0 if action == self.cue else -1.0) if is_asked else 0.0
        self.n_steps += 1
        return self.observation(), reward, is_asked, False, {}


def main(steps: int = 15_000, delay: int = 10) -> None:
    """
    :param steps: environment steps for each agent
    :param delay: steps between the cue and the question
    """
    env = make_vec_env(lambda: CueEnv(delay), n_envs=8, seed=0)
    common: dict[str, Any] = {"n_steps": 64, "batch_size": 128, "learning_rate": 3e-3, "seed": 0, "device": "cpu"}
    plain = DAPO("MlpPolicy", env, **common)
    recurrent = RecurrentDAPO("MlpLstmPolicy", env, policy_kwargs={"lstm_hidden_size": 32}, **common)
    for model in (plain, recurrent):
        model.learn(steps)
        score, _ = evaluate_policy(model, env, n_eval_episodes=100)
        print(f"{type(model).__name__:13}  score {score:+.2f} of 1")

    observations, state, starts = env.reset(), None, np.ones(8, dtype=bool)
    right, total = 0, 0
    for _ in range(10 * (delay + 1)):
        actions, state = recurrent.predict(observations, state, episode_start=starts, deterministic=True)
        observations, rewards, starts, _ = env.step(actions)
        right, total = right + int((rewards > 0).sum()), total + int(starts.sum())
    print(f"Played by predict: {right} of {total} answers are right")


if __name__ == "__main__":
    main()
