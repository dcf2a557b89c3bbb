"""Trained agents: the model that a command names, the run that it comes from, and the environment to play in."""

import argparse
import pickle
import warnings
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_sb3 import EnvironmentName
from rl_zoo3.utils import ALGOS, create_test_env, get_saved_hyperparams
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.utils import set_random_seed
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecFrameStack, VecNormalize, unwrap_vec_normalize

from sb3_dapo.checkpoint import vec_normalize_of
from sb3_dapo.zoo.callbacks import BEST_STATISTICS
from sb3_dapo.zoo.exp_manager import ExperimentManager
from sb3_dapo.zoo.parsers import BEST_MODEL, CHECKPOINT_PREFIX
from sb3_dapo.zoo.runs import checkpoint_steps, read_config, read_train_args


@dataclass(frozen=True)
class Agent:
    """A trained agent, and what its run left."""

    env: EnvironmentName
    algo: str
    """Name of the algorithm in the Zoo."""
    folder: Path
    """Folder of the run."""
    model_path: Path
    config: dict[str, Any]
    """Hyperparameters as they were given."""
    hyperparams: dict[str, Any]
    """Hyperparameters as the Zoo reads them for a test."""
    train_args: dict[str, Any]
    """Arguments of the command that trained."""
    env_kwargs: dict[str, Any]
    """Arguments of the environment, those for this command included."""
    is_deterministic: bool
    """Whether it shall play its most likely actions."""

    @classmethod
    def of(cls, args: argparse.Namespace) -> "Agent":
        """
        :param args: what :func:`~sb3_dapo.zoo.parsers.agent_parser` gave
        :return: the agent that they name. The global random generators are seeded
        """
        set_random_seed(args.seed)
        env, folder = args.env, args.run_path
        hyperparams, _ = get_saved_hyperparams(str(folder / env), test_mode=True)
        hyperparams.pop("env_kwargs", None)
        config, train_args = read_config(folder, env), read_train_args(folder, env)
        env_kwargs = train_args.get("env_kwargs") or config.get("env_kwargs") or {}
        is_stochastic = ExperimentManager.is_atari(env.gym_id) or ExperimentManager.is_minigrid(env.gym_id)
        return cls(
            env,
            args.algo,
            folder,
            args.model_path,
            config,
            hyperparams,
            train_args,
            {**env_kwargs, **(args.env_kwargs or {})},
            not args.stochastic and (args.deterministic or not is_stochastic),
        )

    @property
    def algo_class(self) -> type[BaseAlgorithm]:
        """Its class."""
        return ALGOS[self.algo]

    def make_env(self, args: argparse.Namespace, **env_kwargs: Any) -> VecEnv:
        """
        :param args: arguments of the command
        :param env_kwargs: more arguments for the environment
        :return: the environment that it was trained in, with the statistics of `VecNormalize` that belong to it
        """
        return make_env(
            self.env.gym_id,
            self.hyperparams,
            {**self.env_kwargs, **env_kwargs},
            args.n_envs,
            args.seed,
            str(self.folder / self.env),
            model_path=self.model_path,
        )

    def load(self, args: argparse.Namespace, env: VecEnv) -> BaseAlgorithm:
        """
        :param args: arguments of the command
        :param env: environment that it shall play in
        :return: its model
        """
        kwargs: dict[str, Any] = {}
        if issubclass(self.algo_class, OffPolicyAlgorithm):  # nothing is learned, so nothing is kept
            kwargs = {"buffer_size": 1, "optimize_memory_usage": False}
            if "HerReplayBuffer" in str(self.hyperparams.get("replay_buffer_class")):
                kwargs["env"] = env
        # Otherwise without it, as a model may be bound to the kind of environment that it was trained in
        model = self.algo_class.load(self.model_path, seed=args.seed, device=args.device, **kwargs)
        model._vec_normalize_env = unwrap_vec_normalize(env)
        return model


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
    should_render: bool = False,
    vec_env_cls: type[VecEnv] | None = DummyVecEnv,
    log_dir: str | None = None,
) -> VecEnv:
    """
    The environment as the Zoo's `enjoy` makes it, without a window, and with the statistics of the model's own.

    :param env_id: environment
    :param hyperparams: hyperparameters of the run, of which the wrappers are used
    :param env_kwargs: arguments for the environment
    :param n_envs: number of copies
    :param seed: seed of the first copy
    :param stats_path: folder of the run's hyperparameters and statistics; `None`: neither normalized nor stacked
    :param model_path: the model that will play, if it is not that of the run's end
    :param norm_reward: normalize rewards too
    :param should_render: show it in a window
    :param vec_env_cls: class of the `VecEnv`, `None` for the Zoo's choice
    :param log_dir: folder for files of `Monitor`
    :return: vectorized environment
    """
    env = create_test_env(
        env_id,
        n_envs=n_envs,
        seed=seed,
        log_dir=log_dir,
        should_render=should_render,
        hyperparams=deepcopy(hyperparams),  # the Zoo empties it
        env_kwargs=env_kwargs,
        vec_env_cls=vec_env_cls,
    )
    if stats_path is not None and hyperparams.get("normalize"):
        print("Loading running average")
        statistics = read_statistics(Path(stats_path), model_path)
        statistics.set_venv(env)
        statistics.training, statistics.norm_reward = False, norm_reward
        env = statistics
    if stats_path is not None and hyperparams.get("frame_stack"):
        env = VecFrameStack(env, hyperparams["frame_stack"])
    return env


def read_statistics(folder: Path, model_path: Path | None) -> VecNormalize:
    """
    :param folder: folder of a run's hyperparameters and statistics
    :param model_path: model of that run, `None` for that of its end
    :return: `VecNormalize` as it was when that model was saved
    :raises ValueError: if there is none
    """
    path = folder / "vecnormalize.pkl"  # of the end; of the best model until then
    if model_path is not None and model_path.name.startswith(f"{CHECKPOINT_PREFIX}_"):
        statistics = vec_normalize_of(model_path)
        if statistics is not None:
            return statistics
        # What SB3 writes beside its checkpoints, for the Zoo's other algorithms
        own = model_path.with_name(f"{CHECKPOINT_PREFIX}_vecnormalize_{checkpoint_steps(model_path)}_steps.pkl")
    else:
        own = folder / BEST_STATISTICS if model_path is not None and model_path.name == BEST_MODEL else path
    if not own.is_file() and path.is_file():
        warnings.warn(f"{model_path} has no statistics of VecNormalize, those of {path} are used", stacklevel=2)
        own = path
    if not own.is_file():
        raise ValueError(f"there are no statistics of VecNormalize for {model_path}: {own} does not exist")
    with own.open("rb") as file:
        read: VecNormalize = pickle.load(file)
    return read
