"""A divergence of one's own: Pearson's chi-squared.

A divergence is a callable that gives f, its derivative with respect to pi(a|s), from two log-probabilities. It must be
0 where they agree. Chi-squared is the sum over the actions of (pi - mu)^2 / mu, and its derivative 2 (pi / mu - 1).
"""

import torch as th
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from sb3_dapo import DAPO, DIVERGENCES, Divergence


class ChiSquared(Divergence):
    """Pearson's chi-squared divergence, which charges more than KL for what the acting policy hardly ever did."""

    def __call__(self, log_prob: th.Tensor, behavior_log_prob: th.Tensor) -> th.Tensor:
        # Clamped as the importance ratios are, so that one odd action cannot overflow
        return 2 * th.expm1((log_prob - behavior_log_prob).clamp(-10, 10))


def main(steps: int = 20_000) -> None:
    """
    :param steps: environment steps for each divergence
    """
    divergences = {"KL": DIVERGENCES["kl"], "chi-squared": ChiSquared()}
    ratios = th.tensor([0.5, 0.9, 1.0, 1.1, 2.0])
    print(f"{'pi / mu':17}", *(f"{ratio:6.2f}" for ratio in ratios))
    for name, divergence in divergences.items():
        print(f"{'f of ' + name:17}", *(f"{f:6.2f}" for f in divergence(ratios.log(), th.zeros(5))))

    for name, divergence in divergences.items():
        env = make_vec_env("CartPole-v1", n_envs=8, seed=0)
        model = DAPO(
            "MlpPolicy",
            env,
            n_steps=64,
            batch_size=256,
            n_rollouts=4,
            n_epochs=2,
            learning_rate=1e-3,
            divergence=divergence,
            divergence_coef=0.5,
            seed=0,
            device="cpu",
        )
        model.learn(steps)
        score, _ = evaluate_policy(model, env, n_eval_episodes=10)
        kl = model.logger.name_to_value["train/behavior_kl"]
        print(f"Trained with {name}: score {score:.0f}, at a KL divergence of {kl:.4f} from its data")


if __name__ == "__main__":
    main()
