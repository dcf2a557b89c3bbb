"""Callbacks and TensorBoard: evaluate, keep the best agent, log a value of one's own, lay out panels."""

from pathlib import Path

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback
from stable_baselines3.common.env_util import make_vec_env

from sb3_dapo import DAPO
from sb3_dapo.panels import TensorBoardPanels


class ActionShare(BaseCallback):
    """Logs how often the agent pushes to the right: SB3's callbacks see the rollout as PPO's do."""

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        actions = self.locals["rollout_buffer"].actions  # of the newest rollout, shape (n_steps, n_envs, 1)
        self.logger.record("rollout/share_right", float(np.mean(actions)))


def main(steps: int = 25_000, folder: str = "logs/callbacks") -> None:
    """
    :param steps: environment steps
    :param folder: where to log
    """
    env = make_vec_env("CartPole-v1", n_envs=8, seed=0)
    evaluation = EvalCallback(
        make_vec_env("CartPole-v1", seed=1000),
        best_model_save_path=folder,
        log_path=folder,
        eval_freq=max(steps // 80, 1),  # calls, each of which is a step of all eight environments
        n_eval_episodes=5,
        verbose=0,
    )
    model = DAPO(
        "MlpPolicy",
        env,
        n_steps=64,
        batch_size=256,
        n_rollouts=2,
        n_epochs=4,
        gamma=0.98,
        gae_lambda=0.8,
        learning_rate=1e-3,
        tensorboard_log=folder,
        seed=0,
        device="cpu",
    )
    model.learn(steps, callback=[evaluation, ActionShare(), TensorBoardPanels()])

    for num_timesteps, results in zip(evaluation.evaluations_timesteps, evaluation.evaluations_results, strict=True):
        print(f"{num_timesteps:>8,} steps: score {np.mean(results):.0f}")
    print(f"The best agent, which scored {evaluation.best_mean_reward:.0f}, is {Path(folder, 'best_model.zip')}")
    print(f"Curves: tensorboard --logdir {folder}, with the panels under 'Custom Scalars'")


if __name__ == "__main__":
    main()
