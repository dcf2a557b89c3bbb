"""Train an agent in five lines, and see what it scores."""

from stable_baselines3.common.evaluation import evaluate_policy

from sb3_dapo import DAPO

model = DAPO("MlpPolicy", "CartPole-v1", n_steps=512, n_rollouts=2, n_epochs=4, learning_rate=1e-3, seed=0)
model.learn(15_000)
print("The pole stands for {:.0f} +/- {:.0f} steps of 500".format(*evaluate_policy(model, model.get_env())))
