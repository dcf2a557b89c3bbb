"""Reuse with K = 4: learn from the last four rollouts instead of the newest one.

All agents play the same number of steps. The first uses each of them twice. The others use them eight times: by eight
passes over the newest rollout, as PPO would, or by two passes over the last four, so that every minibatch holds data of
several policies.
"""

import numpy as np
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from sb3_dapo import DAPO


def main(steps: int = 15_000, seeds: int = 3) -> None:
    """
    :param steps: environment steps for each agent
    :param seeds: agents of each kind
    """
    print(f"Scores on CartPole-v1 after {steps:,} steps, and the data of the last update")
    for n_rollouts, n_epochs in ((1, 2), (1, 8), (4, 2)):
        scores = []
        for seed in range(seeds):
            env = make_vec_env("CartPole-v1", n_envs=8, seed=seed)
            model = DAPO(
                "MlpPolicy",
                env,
                n_steps=32,
                batch_size=256,
                n_rollouts=n_rollouts,
                n_epochs=n_epochs,
                learning_rate=3e-4,
                seed=seed,
                device="cpu",
            )
            model.learn(steps)
            scores.append(evaluate_policy(model, env, n_eval_episodes=20)[0])
        age, kl = (model.logger.name_to_value[f"train/{key}"] for key in ("policy_lag", "behavior_kl"))
        print(f"\nK = {n_rollouts}, {n_epochs} epochs: each step is used {n_rollouts * n_epochs} times")
        print(f"  score  {np.mean(scores):.0f}, of the agents: {', '.join(f'{score:.0f}' for score in scores)}")
        print(f"  data   {age:.1f} updates old on average, at a KL divergence of {kl:.4f} from the policy")
    print("\nA few seeds on one easy task are an example, not a comparison: for that, see docs/zoo.md")


if __name__ == "__main__":
    main()
