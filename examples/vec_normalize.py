"""VecNormalize on MuJoCo: train with normalized observations and rewards, save, load, evaluate."""

import tempfile
from pathlib import Path

from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecNormalize

from sb3_dapo import DAPO

ENV = "InvertedPendulum-v5"


def main(steps: int = 40_000) -> None:
    """
    :param steps: environment steps
    """
    env = VecNormalize(make_vec_env(ENV, n_envs=4, seed=0), gamma=0.99)
    model = DAPO(
        "MlpPolicy",
        env,
        n_steps=256,
        batch_size=256,
        n_rollouts=2,
        n_epochs=4,
        learning_rate=1e-3,
        seed=0,
        device="cpu",
    )
    model.learn(steps)

    with tempfile.TemporaryDirectory() as folder:
        # The agent is of no use without the statistics that its observations were normalized with: save both
        model.save(Path(folder, "model"))
        env.save(str(Path(folder, "vec_normalize.pkl")))

        eval_env = VecNormalize.load(str(Path(folder, "vec_normalize.pkl")), make_vec_env(ENV, n_envs=4, seed=1))
        eval_env.training = False  # the statistics stay as they are
        eval_env.norm_reward = False  # scores are those of the environment
        loaded = DAPO.load(Path(folder, "model"), env=eval_env)
        score, std = evaluate_policy(loaded, eval_env, n_eval_episodes=10)

    print(f"Observations were centred at {env.obs_rms.mean.round(3)}")
    print(f"{ENV} after {model.num_timesteps:,} steps: {score:.0f} +/- {std:.0f} of 1000")


if __name__ == "__main__":
    main()
