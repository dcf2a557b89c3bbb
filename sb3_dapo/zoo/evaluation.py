"""Trained agents, and scores of whole games, unclipped, of them and of policies that have learned nothing."""

import argparse
import os
from contextlib import redirect_stdout
from copy import deepcopy
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from huggingface_sb3 import EnvironmentName
from rl_zoo3.utils import ALGOS, create_test_env
from sb3_contrib.common.maskable.utils import get_action_masks, is_masking_supported
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.type_aliases import PolicyPredictor
from stable_baselines3.common.utils import set_random_seed
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecFrameStack, unwrap_vec_normalize

from sb3_dapo import DAPO
from sb3_dapo.maskable.acting import choice_sizes
from sb3_dapo.zoo.exp_manager import ExperimentManager, native_kwargs, read_statistics
from sb3_dapo.zoo.parsers import add_env_arguments, algo_options, check_env, positive, read_saved

# Constant actions are tried where there are not more of them. Who does nothing may lose nothing: their games count as
# they stand after so many steps
MAX_CONSTANTS, MAX_CONSTANT_STEPS = 18, 5000

Scores = npt.NDArray[np.float64]  # (n_episodes,)


class Agent:
    """
    A trained agent, and what its run left. The global random generators are seeded.

    :param args: arguments of `agent_parser`
    """

    def __init__(self, args: argparse.Namespace) -> None:
        set_random_seed(args.seed)
        self.args = args
        self.env: EnvironmentName = args.env
        self.algo: str = args.algo
        self.algo_class = ALGOS[args.algo]
        self.folder: Path = args.run_path
        self.model_path: Path = args.model_path
        self.config = read_saved(self.folder, self.env, "config")  # hyperparameters as they were given
        self.hyperparams = {name: value for name, value in self.config.items() if name != "env_kwargs"}
        self.train_args = read_saved(self.folder, self.env, "args")  # of the command that trained
        env_kwargs = self.train_args.get("env_kwargs") or self.config.get("env_kwargs") or {}
        self.env_kwargs: dict[str, Any] = {**env_kwargs, **args.env_kwargs}
        # Whether it shall play its most likely actions
        is_stochastic = ExperimentManager.is_atari(self.env.gym_id) or ExperimentManager.is_minigrid(self.env.gym_id)
        self.is_deterministic: bool = not args.stochastic and (args.deterministic or not is_stochastic)

    def make_env(self, **env_kwargs: Any) -> VecEnv:
        """The environment that it was trained in, with the statistics of `VecNormalize` that belong to it."""
        settings = (self.env.gym_id, self.hyperparams, {**self.env_kwargs, **env_kwargs})
        stats_path = str(self.folder / self.env)
        return make_env(*settings, self.args.n_envs, self.args.seed, stats_path, model_path=self.model_path)

    def load(self, env: VecEnv) -> BaseAlgorithm:
        """Its model, to play in `env`."""
        kwargs: dict[str, Any] = {"_vec_normalize_env": unwrap_vec_normalize(env)}
        if issubclass(self.algo_class, OffPolicyAlgorithm):  # nothing is learned, so nothing is kept
            kwargs |= {"buffer_size": 1, "optimize_memory_usage": False}
            if "HerReplayBuffer" in str(self.hyperparams.get("replay_buffer_class")):
                kwargs["env"] = env
        # Otherwise without it, as a model may be bound to the kind of environment that it was trained in
        return self.algo_class.load(self.model_path, seed=self.args.seed, device=self.args.device, **kwargs)


def make_env(
    env_id: str,
    hyperparams: dict[str, Any],
    env_kwargs: dict[str, Any],
    n_envs: int,
    seed: int,
    stats_path: str | None = None,
    *,
    model_path: Path | None = None,
    norm_reward: bool = False,
    **kwargs: Any,
) -> VecEnv:
    """
    The Zoo's `create_test_env`, without a window, and with the statistics of the model that will play, by default the
    run's last. Without `stats_path`, the folder of the run's hyperparameters, neither normalized nor stacked. Atari
    games that are not rendered run in ale_py's C++ threads.
    """
    native = None if kwargs or hyperparams.get("normalize") else native_kwargs(env_id, hyperparams, set(env_kwargs))
    if native is not None:
        from sb3_dapo.atari_vec_env import AtariVecEnv

        return AtariVecEnv(env_id, n_envs, seed, **native, **env_kwargs)
    kwargs = {"should_render": False, "vec_env_cls": DummyVecEnv, "env_kwargs": env_kwargs, **kwargs}
    # The Zoo empties the hyperparameters
    env = create_test_env(env_id, n_envs, None, seed, hyperparams=deepcopy(hyperparams), **kwargs)
    if stats_path is not None and hyperparams.get("normalize"):
        print("Loading running average")
        env = statistics = read_statistics(env, Path(stats_path), model_path)
        statistics.training, statistics.norm_reward = False, norm_reward
    if stats_path is not None and hyperparams.get("frame_stack"):
        env = VecFrameStack(env, hyperparams["frame_stack"])
    return env


class RandomPolicy:
    """Uniform random actions in an action space, of those that masks allow, with the interface of a trained model."""

    def __init__(self, action_space: gym.Space[Any], seed: int, masking_env: VecEnv | None = None) -> None:
        self.action_space, self.masking_env = action_space, masking_env
        self.action_space.seed(seed)

    def predict(self, observation: Any, *args: Any, **kwargs: Any) -> tuple[npt.NDArray[Any], None]:
        """An action for each environment, whatever it observes."""
        first = next(iter(observation.values())) if isinstance(observation, dict) else observation
        if self.masking_env is not None:
            return np.array([self._sample(mask) for mask in get_action_masks(self.masking_env)]), None
        return np.array([self.action_space.sample() for _ in range(len(first))]), None

    def _sample(self, mask: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
        """An action that a mask allows."""
        choices = np.split(mask.ravel(), np.cumsum(choice_sizes(self.action_space))[:-1])
        action = [self.action_space.np_random.choice(np.flatnonzero(allowed)) for allowed in choices]
        return np.reshape(action, self.action_space.shape)  # type: ignore[arg-type]


def player(model: Any, env: VecEnv) -> Any:
    """What plays in an environment: the model, or for one of this package, what it plays there by."""
    return model.predictor_for(env) if isinstance(model, DAPO) else model


def evaluate(model: PolicyPredictor, env: VecEnv, n_episodes: int, deterministic: bool) -> Scores:
    """Play whole games and close the environment. `Monitor` lies inside all wrappers: the scores are the game's own."""
    scores, _ = evaluate_policy(player(model, env), env, n_episodes, deterministic, return_episode_rewards=True)
    env.close()
    return np.array(scores)


def random() -> None:
    """The command `sb3-dapo random`."""
    text = "Score of a uniform random policy over whole games, under the same wrappers as `enjoy`."
    parser = argparse.ArgumentParser(description=text)
    parser.add_argument("--env", help="environment ID", type=EnvironmentName, default="CartPole-v1")
    parser.add_argument("-n", "--n-episodes", help="number of episodes (default: 20)", type=positive, default=20)
    parser.add_argument("--algo", **algo_options("use this algorithm's wrappers", list(ALGOS)))
    parser.add_argument("-conf", "--conf-file", help="use the wrappers in this hyperparameter file")
    add_env_arguments(parser)
    args = parser.parse_args()
    env_id = args.env.gym_id
    check_env(env_id, args.gym_packages)
    hyperparams = read_hyperparameters(args.algo, env_id, args.conf_file)
    env_kwargs = {**hyperparams.pop("env_kwargs", {}), **args.env_kwargs}
    scores = random_scores(env_id, hyperparams, env_kwargs, args.n_envs, args.seed, args.n_episodes)
    print(f"Random policy on {env_id}: {scores.mean():.2f} +/- {scores.std():.2f} ({len(scores)} episodes)")


def read_hyperparameters(algo: str, env_id: str, config: str | None) -> dict[str, Any]:
    """Entry of an environment in the file that the user named, or else in the algorithm's own."""
    manager = ExperimentManager(argparse.Namespace(), algo, env_id, log_folder="", config=config)
    with open(os.devnull, "w") as devnull, redirect_stdout(devnull):
        hyperparams, _ = manager.read_hyperparameters()
    return hyperparams


def random_scores(
    env_id: str, hyperparams: dict[str, Any], env_kwargs: dict[str, Any], n_envs: int, seed: int, n_episodes: int
) -> Scores:
    """Scores of the uniform random policy in whole games, under the wrappers of some hyperparameters."""
    set_random_seed(seed)
    env = make_env(env_id, hyperparams, env_kwargs, n_envs, seed)
    policy = RandomPolicy(env.action_space, seed, env if is_masking_supported(env) else None)
    return evaluate(policy, env, n_episodes, deterministic=False)


def constant_scores(
    env_id: str, hyperparams: dict[str, Any], env_kwargs: dict[str, Any], n_envs: int, seed: int
) -> tuple[str, Scores] | None:
    """
    The best action to take all the time, and its scores in `n_envs` games, others than those that chose it. None where
    actions are not single choices, or more than Atari's 18, or masked.
    """
    env = make_env(env_id, hyperparams, env_kwargs, 1, seed)
    space, is_masked = env.action_space, is_masking_supported(env)
    meanings = env.env_method("get_action_meanings")[0] if env.has_attr("get_action_meanings") else None
    env.close()
    if not isinstance(space, gym.spaces.Discrete) or space.n > MAX_CONSTANTS or is_masked:
        return None

    def play(actions: npt.NDArray[Any], seed: int) -> Scores:
        """Score of a game with each of the actions."""
        env = make_env(env_id, hyperparams, env_kwargs, len(actions), seed)
        env.reset()
        scores = np.full(len(actions), np.nan)
        for _ in range(MAX_CONSTANT_STEPS):
            infos = env.step(actions)[3]
            ended = [i for i, info in enumerate(infos) if "episode" in info and np.isnan(scores[i])]
            scores[ended] = [infos[i]["episode"]["r"] for i in ended]
            if not np.isnan(scores).any():
                break
        is_native = env.has_attr("episode_return")
        so_far = env.get_attr("episode_return") if is_native else [sum(own) for own in env.get_attr("rewards")]
        env.close()
        return np.where(np.isnan(scores), so_far, scores)

    best = space.start + np.argmax(play(np.arange(space.start, space.start + space.n), seed))
    return (str(best) if meanings is None else meanings[best]), play(np.full(n_envs, best), seed + 1000)
