"""Scores of whole games, unclipped, of trained agents and of the uniform random policy."""

import argparse
import os
import shutil
import sys
from contextlib import redirect_stdout
from copy import deepcopy
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from huggingface_sb3 import EnvironmentName
from matplotlib.figure import Figure
from rl_zoo3.utils import ALGOS, create_test_env, get_model_path, get_saved_hyperparams
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.type_aliases import PolicyPredictor
from stable_baselines3.common.utils import set_random_seed
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from sb3_dapo.zoo.exp_manager import ExperimentManager
from sb3_dapo.zoo.parsers import Assignments, RunParser
from sb3_dapo.zoo.runs import check_env, import_packages, read_train_args

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


def make_env(
    env_id: str,
    hyperparams: dict[str, Any],
    env_kwargs: dict[str, Any],
    n_envs: int,
    seed: int,
    stats_path: str | None = None,
) -> VecEnv:
    """
    The environment as `enjoy` makes it, without a window.

    :param env_id: environment
    :param hyperparams: hyperparameters of the run, of which the wrappers are used
    :param env_kwargs: arguments for the environment
    :param n_envs: number of copies
    :param seed: seed of the first copy
    :param stats_path: folder with the statistics of `VecNormalize`
    :return: vectorized environment
    """
    return create_test_env(
        env_id,
        n_envs=n_envs,
        stats_path=stats_path,
        seed=seed,
        should_render=False,
        hyperparams=deepcopy(hyperparams),  # the Zoo empties it
        env_kwargs=env_kwargs,
        vec_env_cls=DummyVecEnv,
    )


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


def positive(text: str) -> int:
    """
    :param text: argument of the command line
    :return: the number, at least 1
    """
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


def random() -> None:
    """The command `sb3-dapo random`."""
    parser = argparse.ArgumentParser(
        description="Score of a uniform random policy over whole games, under the same wrappers as `enjoy`."
    )
    parser.add_argument("--env", help="environment ID", type=EnvironmentName, default="CartPole-v1")
    parser.add_argument("-n", "--n-episodes", help="number of episodes (default: 20)", type=positive, default=20)
    parser.add_argument("--seed", help="random generator seed (default: 0)", type=int, default=0)
    parser.add_argument("--n-envs", help="number of environments (default: 1)", type=positive, default=1)
    parser.add_argument("--algo", help="use this algorithm's wrappers", default="dapo", choices=list(ALGOS))
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
    parser = RunParser(
        description="Play whole games with a trained agent, compare its score with the uniform random policy's, and "
        "draw its learning curve from the evaluations made during training."
    )
    parser.add_argument("--env", help="environment ID", type=EnvironmentName, default="CartPole-v1")
    parser.add_argument("--algo", help="RL algorithm", default="dapo", choices=list(ALGOS))
    parser.add_argument("-f", "--folder", help="log folder", default="logs")
    parser.add_argument("--exp-id", help="experiment ID (default: 0: latest, -1: no exp folder)", type=int, default=0)
    parser.add_argument("-n", "--n-episodes", help="number of episodes (default: 20)", type=positive, default=20)
    parser.add_argument("--n-envs", help="number of environments (default: 8)", type=positive, default=8)
    parser.add_argument("--seed", help="random generator seed (default: 0)", type=int, default=0)
    args = parser.parse_args()
    env_id = args.env.gym_id

    _, model_path, log_path = get_model_path(args.exp_id, args.folder, args.algo, args.env)
    hyperparams, stats_path = get_saved_hyperparams(os.path.join(log_path, args.env), test_mode=True)
    saved_args = read_train_args(Path(log_path), args.env)
    env_kwargs = saved_args.get("env_kwargs") or hyperparams.pop("env_kwargs", {})
    is_stochastic = ExperimentManager.is_atari(env_id) or ExperimentManager.is_minigrid(env_id)

    set_random_seed(args.seed)
    model = ALGOS[args.algo].load(model_path)
    env = make_env(env_id, hyperparams, env_kwargs, args.n_envs, args.seed, stats_path)
    scores = evaluate(model, env, args.n_episodes, deterministic=not is_stochastic)
    random = random_scores(env_id, hyperparams, env_kwargs, args.n_envs, args.seed, args.n_episodes)

    name = args.algo.upper()
    curve = learning_curve(Path(log_path), f"{name} on {env_id}", scores, random, model.num_timesteps)
    curve_path = Path(log_path, "learning_curve.png")
    curve.savefig(curve_path, dpi=150)

    agent = f"--algo {args.algo} --env {env_id} -f {args.folder}"
    print(f"\n{env_id} after {model.num_timesteps:,} steps, score of whole games")
    print(f"  {name:15} {summary(scores)}")
    print(f"  {'random policy':15} {summary(random)}")
    print(f"\n  {'model':15} {model_path}")
    print(f"  {'learning curve':15} {curve_path}")
    if saved_args.get("tensorboard_log"):
        print(f"  {'TensorBoard':15} {program('tensorboard')} --logdir {saved_args['tensorboard_log']}")
    print("\nWatch it play:")
    print(f"  {program('sb3-dapo')} enjoy {agent} -n 5000")
    print(f"  {program('sb3-dapo')} record-video {agent} -n 2000\n")


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
