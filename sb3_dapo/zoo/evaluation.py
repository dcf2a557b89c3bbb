"""Scores of whole games, unclipped, of trained agents and of the uniform random policy."""

import argparse
import os
import shutil
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from huggingface_sb3 import EnvironmentName
from matplotlib.figure import Figure
from rl_zoo3.utils import ALGOS
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.type_aliases import PolicyPredictor
from stable_baselines3.common.utils import set_random_seed
from stable_baselines3.common.vec_env import VecEnv

from sb3_dapo.cli import DEFAULT_ALGO
from sb3_dapo.zoo.agents import Agent, make_env
from sb3_dapo.zoo.exp_manager import ExperimentManager
from sb3_dapo.zoo.parsers import Assignments, agent_parser, positive
from sb3_dapo.zoo.runs import check_env, import_packages

Scores = npt.NDArray[np.float64]  # (n_episodes,)


class RandomPolicy:
    """
    Uniform random actions, with the interface of a trained model.

    :param action_space: where the actions are drawn from
    :param seed: seed of the draws
    """

    def __init__(self, action_space: gym.Space[Any], seed: int) -> None:
        self.action_space = action_space
        self.action_space.seed(seed)

    def predict(
        self,
        observation: npt.NDArray[Any] | dict[str, npt.NDArray[Any]],
        state: tuple[npt.NDArray[Any], ...] | None = None,
        episode_start: npt.NDArray[Any] | None = None,
        deterministic: bool = False,
    ) -> tuple[npt.NDArray[Any], tuple[npt.NDArray[Any], ...] | None]:
        """
        :param observation: observation of each environment
        :param state: returned as it is
        :param episode_start: whether an episode starts, for each environment
        :param deterministic: without effect
        :return: an action for each environment, and the state
        """
        first = next(iter(observation.values())) if isinstance(observation, dict) else observation
        return np.array([self.action_space.sample() for _ in range(len(first))]), state


def evaluate(model: PolicyPredictor, env: VecEnv, n_episodes: int, deterministic: bool) -> Scores:
    """
    Play whole games. `Monitor` lies inside all wrappers, so the scores are those of the game itself.

    :param model: chooses the actions
    :param env: vectorized environment; it is closed
    :param n_episodes: number of games
    :param deterministic: play the most likely actions
    :return: score of each game
    """
    scores, _ = evaluate_policy(model, env, n_episodes, deterministic=deterministic, return_episode_rewards=True)
    env.close()
    return np.array(scores)


def summary(scores: Scores) -> str:
    """
    :param scores: score of each game
    :return: mean, standard deviation and number of games
    """
    return f"{scores.mean():.2f} +/- {scores.std():.2f} ({len(scores)} episodes)"


def random() -> None:
    """The command `sb3-dapo random`."""
    parser = argparse.ArgumentParser(
        description="Score of a uniform random policy over whole games, under the same wrappers as `enjoy`."
    )
    parser.add_argument("--env", help="environment ID", type=EnvironmentName, default="CartPole-v1")
    parser.add_argument("-n", "--n-episodes", help="number of episodes (default: 20)", type=positive, default=20)
    parser.add_argument("--seed", help="random generator seed (default: 0)", type=int, default=0)
    parser.add_argument("--n-envs", help="number of environments (default: 1)", type=positive, default=1)
    parser.add_argument("--algo", help="use this algorithm's wrappers", default=DEFAULT_ALGO, choices=list(ALGOS))
    parser.add_argument("-conf", "--conf-file", help="use the wrappers in this hyperparameter file")
    parser.add_argument("--env-kwargs", help="arguments for the environment", nargs="+", action=Assignments, default={})
    parser.add_argument("--gym-packages", help="packages that register environments", nargs="+", default=[])
    args = parser.parse_args()
    import_packages(args.gym_packages)
    check_env(args.env.gym_id)

    hyperparams = read_hyperparameters(args.algo, args.env.gym_id, args.conf_file)
    env_kwargs = {**hyperparams.pop("env_kwargs", {}), **args.env_kwargs}
    scores = random_scores(args.env.gym_id, hyperparams, env_kwargs, args.n_envs, args.seed, args.n_episodes)
    print(f"Random policy on {args.env.gym_id}: {summary(scores)}")


def read_hyperparameters(algo: str, env_id: str, config: str | None) -> dict[str, Any]:
    """
    :param algo: name of the algorithm
    :param env_id: environment
    :param config: hyperparameter file that the user named
    :return: entry of the environment in the hyperparameter file
    """
    manager = ExperimentManager(argparse.Namespace(), algo, env_id, log_folder="", config=config)
    with open(os.devnull, "w") as devnull, redirect_stdout(devnull):
        hyperparams, _ = manager.read_hyperparameters()
    return hyperparams


def random_scores(
    env_id: str, hyperparams: dict[str, Any], env_kwargs: dict[str, Any], n_envs: int, seed: int, n_episodes: int
) -> Scores:
    """
    :param env_id: environment
    :param hyperparams: hyperparameters, of which the wrappers are used
    :param env_kwargs: arguments for the environment
    :param n_envs: number of copies
    :param seed: seed of the environments and of the actions
    :param n_episodes: number of games
    :return: scores of the uniform random policy
    """
    set_random_seed(seed)
    env = make_env(env_id, hyperparams, env_kwargs, n_envs, seed)
    return evaluate(RandomPolicy(env.action_space, seed), env, n_episodes, deterministic=False)


def report() -> None:
    """The command `sb3-dapo report`."""
    parser = agent_parser(
        "Play whole games with a trained agent, compare its score with the uniform random policy's, and draw its "
        "learning curve from the evaluations made during training.",
        n_envs=8,
    )
    parser.add_argument("-n", "--n-episodes", help="number of episodes (default: 20)", type=positive, default=20)
    args = parser.parse_args()
    agent = Agent.of(args)
    env_id = agent.env.gym_id
    env = agent.make_env(args)
    model = agent.load(args, env)
    scores = evaluate(model, env, args.n_episodes, agent.is_deterministic)
    random = random_scores(env_id, agent.hyperparams, agent.env_kwargs, args.n_envs, args.seed, args.n_episodes)

    name = args.algo.upper()
    curve = learning_curve(agent.folder, f"{name} on {env_id}", scores, random, model.num_timesteps)
    curve_path = agent.folder / "learning_curve.png"
    curve.savefig(curve_path, dpi=150)

    named = f"--algo {args.algo} --env {env_id} -f {args.folder}"
    print(f"\n{env_id} after {model.num_timesteps:,} steps, score of whole games")
    print(f"  {name:15} {summary(scores)}")
    print(f"  {'random policy':15} {summary(random)}")
    print(f"\n  {'model':15} {agent.model_path}")
    print(f"  {'learning curve':15} {curve_path}")
    if agent.train_args.get("tensorboard_log"):
        print(f"  {'TensorBoard':15} {program('tensorboard')} --logdir {agent.train_args['tensorboard_log']}")
    print("\nWatch it play:")
    print(f"  {program('sb3-dapo')} enjoy {named} -n 5000")
    print(f"  {program('sb3-dapo')} record-video {named} -n 2000\n")


def program(name: str) -> str:
    """
    :param name: a command of this Python's environment
    :return: how to call it from here
    """
    return name if shutil.which(name) else os.path.relpath(Path(sys.executable).with_name(name))


def learning_curve(log_path: Path, title: str, scores: Scores, random: Scores, num_timesteps: int) -> Figure:
    """
    :param log_path: folder of the run
    :param title: title of the figure
    :param scores: scores of the trained agent
    :param random: scores of the random policy
    :param num_timesteps: steps it was trained for
    :return: mean and standard deviation of the score, in the evaluations during training and at the end
    """
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    path = log_path / "evaluations.npz"
    if path.is_file():
        evaluations = np.load(path)
        steps = evaluations["timesteps"]  # (n_evaluations,)
        results = evaluations["results"]  # (n_evaluations, n_episodes)
        mean, std = results.mean(axis=1), results.std(axis=1)
        axes.plot(steps, mean, marker="o", label=f"evaluation during training, {results.shape[1]} episodes")
        axes.fill_between(steps, mean - std, mean + std, alpha=0.2)
    axes.errorbar(
        num_timesteps, scores.mean(), scores.std(), marker="s", capsize=4, label=f"at the end, {len(scores)} episodes"
    )
    axes.axhline(random.mean(), color="grey", linestyle="--", label="uniform random policy")
    axes.set(title=title, xlabel="Timesteps", ylabel="Score", xlim=(0, None))
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.grid(alpha=0.3)
    axes.legend()
    return figure
