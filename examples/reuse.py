"""Reuse with K = 4: learn from the last four rollouts instead of the newest one. About half a minute.

Both agents play the same number of steps and use each of them eight times. The one with K = 1 makes eight passes over
the newest rollout; the one with K = 4 makes two passes over the last four, so that every minibatch holds data of
several policies.
"""

from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from sb3_dapo import DAPO


def main(steps: int = 25_000) -> None:
    """
    :param steps: environment steps for each agent
    """
    for n_rollouts, n_epochs in ((1, 8), (4, 2)):
        env = make_vec_env("CartPole-v1", n_envs=8, seed=0)
        model = DAPO(
            "MlpPolicy",
            env,
            n_steps=32,
            batch_size=256,
            n_rollouts=n_rollouts,
            n_epochs=n_epochs,
            learning_rate=1e-3,
            seed=0,
            device="cpu",
        )
        model.learn(steps)
        score, _ = evaluate_policy(model, env, n_eval_episodes=10)
        lag, kl = (model.logger.name_to_value[f"train/{key}"] for key in ("policy_lag", "behavior_kl"))
        print(f"K = {n_rollouts}, {n_epochs} epochs: score {score:.0f} after {model.num_timesteps:,} steps")
        print(f"  its data are {lag:.1f} updates old on average, at a KL divergence of {kl:.4f} from the policy")


if __name__ == "__main__":
    main()
