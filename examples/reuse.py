"""Reuse with K = 2: learn from the last two rollouts instead of the newest one.

All agents play the same number of steps. The first uses each of them twice. The others use them eight times: by eight
passes over the newest rollout, as PPO would, or by four passes over the last two, so that every minibatch holds data of
two policies. The last has the settings of docs/settings.md for scarce data, without the clip.
"""

from typing import Any

import numpy as np
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.utils import LinearSchedule

from sb3_dapo import DAPO

SCARCE: dict[str, Any] = {
    "n_rollouts": 2,
    "n_epochs": 4,
    "policy_loss": "plain",
    "divergence_coef": 1.0,
    "advantage": "vtrace_gae",
    "gae_lambda": 0.8,
    "learning_rate": LinearSchedule(0.003, 0.0, end_fraction=1.0),  # 0.005 on MinAtar: tune it
}
AGENTS: dict[str, dict[str, Any]] = {
    "few uses": {"n_epochs": 2},
    "the newest rollout": {"n_epochs": 8},
    "two rollouts": {"n_rollouts": 2, "n_epochs": 4},
    "two rollouts, settings for scarce data": SCARCE,
}


def main(steps: int = 15_000, seeds: int = 3) -> None:
    """
    :param steps: environment steps for each agent
    :param seeds: agents of each kind
    """
    print(f"Scores on CartPole-v1 after {steps:,} steps, and the data of the last update")
    for name, settings in AGENTS.items():
        scores = []
        for seed in range(seeds):
            env = make_vec_env("CartPole-v1", n_envs=8, seed=seed)
            model = DAPO("MlpPolicy", env, n_steps=32, batch_size=256, seed=seed, device="cpu", **settings)
            model.learn(steps)
            scores.append(evaluate_policy(model, env, n_eval_episodes=20)[0])
        age, kl = (model.logger.name_to_value[f"train/{key}"] for key in ("policy_lag", "behavior_kl"))
        uses = model.n_rollouts * model.n_epochs
        print(f"\nK = {model.n_rollouts}, {model.n_epochs} epochs: each step is used {uses} times ({name})")
        print(f"  score  {np.mean(scores):.0f}, of the agents: {', '.join(f'{score:.0f}' for score in scores)}")
        print(f"  data   {age:.1f} updates old on average, at a KL divergence of {kl:.4f} from the policy")
    print("\nA few seeds on one easy task are an example, not a comparison: for that, see docs/zoo.md")


if __name__ == "__main__":
    main()
