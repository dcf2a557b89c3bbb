"""RL Zoo's experiment manager with our hyperparameter files, scheduled arguments, checks and resumed runs."""

import argparse
import difflib
import os
import shutil
import sys
import warnings
from collections import OrderedDict
from contextlib import closing
from copy import copy
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np
import rl_zoo3.exp_manager
import yaml
from rl_zoo3.callbacks import SaveVecNormalizeCallback
from rl_zoo3.utils import ALGOS, SimpleLinearSchedule
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback
from stable_baselines3.common.callbacks import CheckpointCallback as SB3CheckpointCallback
from stable_baselines3.common.logger import TensorBoardOutputFormat, configure
from stable_baselines3.common.vec_env import VecEnv, VecNormalize
from tensorboard.compat.proto.event_pb2 import Event, SessionLog

from sb3_dapo.arguments import SCHEDULED, arguments_of, check_int
from sb3_dapo.checkpoint import CheckpointCallback, latest_checkpoint, learn_until, vec_normalize_of
from sb3_dapo.panels import TensorBoardPanels
from sb3_dapo.presets import PRESETS, kind_of, parse_schedule
from sb3_dapo.zoo.parsers import (
    ACTOR_OPTIONS,
    BEST_MODEL,
    CHECKPOINT_PREFIX,
    check_env,
    checkpoint_steps,
    no_frameskip_id,
    read_saved,
)
from sb3_dapo.zoo.registration import CONF_FILES

# Arguments that the Zoo gives to every algorithm itself
GIVEN = {"env", "tensorboard_log", "seed", "verbose", "device", "_init_setup_model"}
ATARI_WRAPPER = "stable_baselines3.common.atari_wrappers.AtariWrapper"
# Arguments of AtariWrapper, and of the environment, that AtariVecEnv has too
NATIVE_WRAPPER_KWARGS = {"noop_max", "frame_skip", "screen_size", "terminal_on_life_loss", "clip_reward"}
NATIVE_ENV_KWARGS = {"repeat_action_probability", "full_action_space", "max_num_frames_per_episode"}

# Files in the folder of a run: where its TensorBoard log is, as the Zoo numbers the two independently; the episodes
TENSORBOARD_FILE, EPISODES_FILE = "tensorboard.txt", "episodes.csv"
# File beside the Zoo's statistics of VecNormalize, which those of the run's end replace
BEST_STATISTICS = "best_vecnormalize.pkl"
# File beside config.yml with steps and hyperparameters of the checkpoint that a run was resumed from last
BEFORE_RESUME = "config_before_resume"

# Arguments that the Zoo takes for noise, and gives to the algorithm as `action_noise`
NOISE = {"noise_type", "noise_std"}
# Hyperparameters that the state in a checkpoint depends on: network, kept rollouts, statistics of episodes
FIXED_BY_CHECKPOINT = (
    *("policy", "policy_kwargs", "use_sde", "n_envs", "n_steps", "n_rollouts"),
    *("optimize_memory_usage", "rollout_buffer_class", "rollout_buffer_kwargs", "stats_window_size"),
)


def preset_hyperparams(name: str, algo: str, env_id: str, env_kwargs: dict[str, Any]) -> dict[str, Any]:
    """A preset's hyperparameters in an environment; for PPO those that it shares, and each step is used as often."""
    with closing(gym.make(env_id, **env_kwargs)) as env:
        kind = kind_of(env)
    hyperparams = dict(PRESETS[name][kind])
    if algo in CONF_FILES:
        return hyperparams
    allowed = {"n_envs", "normalize", *arguments_of(ALGOS[algo])}
    if not {"n_epochs", "gae_lambda"} <= allowed:
        raise ValueError(f"`--preset` is for ppo and {', '.join(CONF_FILES)}, got `--algo` {algo}")
    # The clip range is SB3's default, as an entry for more steps may let it fall to 0
    hyperparams |= {"n_epochs": hyperparams["n_epochs"] * hyperparams["n_rollouts"], "clip_range": 0.2}
    return {name: value for name, value in hyperparams.items() if name in allowed}


def check_keywords(algo_class: type, names: set[str], source: str) -> None:
    """Refuse names of arguments that an algorithm does not have; `source` tells where they were read."""
    allowed = set(arguments_of(algo_class)) - GIVEN
    for name in sorted(names - allowed):
        close = difflib.get_close_matches(name, allowed, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        hint += f"allowed are {', '.join(sorted(allowed))}"
        raise ValueError(f"{algo_class.__name__} has no hyperparameter {name!r} (in {source}); {hint}")


def wrappers_of(hyperparams: dict[str, Any]) -> list[tuple[Any, dict[str, Any]]]:
    """Names, or classes, and arguments of the wrappers in hyperparameters."""
    wrappers = hyperparams.get("env_wrapper") or []
    listed = wrappers if isinstance(wrappers, list) else [wrappers]
    return [next(iter(wrapper.items())) if isinstance(wrapper, dict) else (wrapper, {}) for wrapper in listed]


def atari_wrapper_kwargs(hyperparams: dict[str, Any]) -> dict[str, Any] | None:
    """Arguments of SB3's `AtariWrapper` if hyperparameters name no other wrapper, otherwise None."""
    wrappers = wrappers_of(hyperparams)
    return wrappers[0][1] if [name for name, _ in wrappers] == [ATARI_WRAPPER] else None


def native_kwargs(env_id: str, hyperparams: dict[str, Any], env_kwargs: set[str]) -> dict[str, Any] | None:
    """Arguments of the `AtariVecEnv` that hyperparameters ask for, None if it cannot be had; names of `env_kwargs`."""
    wrapper_kwargs = atari_wrapper_kwargs(hyperparams)
    if wrapper_kwargs is None or gym.spec(env_id).kwargs.get("frameskip") != 1:
        return None
    has_others = bool(hyperparams.get("vec_env_wrapper") or hyperparams.get("monitor_kwargs"))
    if has_others or not (set(wrapper_kwargs) <= NATIVE_WRAPPER_KWARGS and env_kwargs <= NATIVE_ENV_KWARGS):
        return None
    return {**wrapper_kwargs, "n_stack": hyperparams.get("frame_stack") or 1}


def changes(algo_class: type, old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Hyperparameters that a resumed run gets others of. They are printed, or refused if they cannot change."""
    defaults = {"n_envs": 1, **{name: argument.default for name, argument in arguments_of(algo_class).items()}}
    old, new = defaults | old, defaults | new
    changed = sorted(name for name in {*old, *new} if old.get(name) != new.get(name))
    for name in changed:
        before, after = old.get(name), new.get(name)
        if name in FIXED_BY_CHECKPOINT:
            needed = f"it must be {before!r}, got {after!r}"
            raise ValueError(f"`{name}` cannot change with `--resume`, as the checkpoint depends on it: {needed}")
        print(f"Resuming with {name}: {after!r} instead of {before!r}")
    return changed


def keep_monitor_files(run_path: Path, steps: int) -> list[tuple[Path, Path]]:
    """Rename the files of `Monitor`, so that new ones can be written; returns old and new paths."""
    number = len({path.name.split("_")[1] for path in run_path.glob("before_*.monitor.csv")}) + 1
    prefix = f"before_{number}_{CHECKPOINT_PREFIX}_{steps}_steps_"
    return [(path, path.rename(path.with_name(prefix + path.name))) for path in [*run_path.glob("[0-9]*.monitor.csv")]]


def read_tensorboard_path(run_path: str | Path) -> str:
    """Folder of a run's TensorBoard log."""
    return os.path.normpath(Path(run_path, Path(run_path, TENSORBOARD_FILE).read_text().strip()))


def episode_of(info: Any) -> tuple[Any, Any] | None:
    """Score and length of the episode that ended, None if none did: some simulators send entries of their own."""
    try:
        return (np.asarray(info["episode"]["r"]).item(), np.asarray(info["episode"]["l"]).item())
    except (IndexError, KeyError, TypeError, ValueError):
        return None


def read_statistics(env: VecEnv, folder: Path, model_path: Path | None) -> VecNormalize:
    """An environment in `VecNormalize` as it was when a model of a run was saved, by default the last one."""
    own = path = folder / "vecnormalize.pkl"  # of the end; of the best model until then
    if model_path is not None and model_path.name == BEST_MODEL:
        own = folder / BEST_STATISTICS
    elif model_path is not None and model_path.name.startswith(f"{CHECKPOINT_PREFIX}_"):
        statistics = vec_normalize_of(model_path, env)
        if statistics is not None:
            return statistics
        # What SB3 writes beside its checkpoints, for the Zoo's other algorithms
        own = model_path.with_name(f"{CHECKPOINT_PREFIX}_vecnormalize_{checkpoint_steps(model_path)}_steps.pkl")
    if not own.is_file() and path.is_file():
        warnings.warn(f"{model_path} has no statistics of VecNormalize, those of {path} are used", stacklevel=2)
        own = path
    if not own.is_file():
        raise ValueError(f"there are no statistics of VecNormalize for {model_path}: {own} does not exist")
    return VecNormalize.load(str(own), env)


def create_in_actor(manager: "ExperimentManager", n_envs: int, seed: int) -> VecEnv:
    """The environments of an actor, which only the learner keeps a log of."""
    check_env(manager.env_name.gym_id, vars(manager.args).get("gym_packages", ()))
    manager.seed = seed
    return manager.create_envs(n_envs, no_log=True)


class RunLog(BaseCallback):
    """
    Writes down where a run's TensorBoard log is, and when each episode ended, which `Monitor` does not know: it counts
    frames, and those of whole episodes only. Of a resumed run, what came after the checkpoint is taken out of both.
    """

    def __init__(self, run_path: str) -> None:
        super().__init__()
        self.run_path, self.path = run_path, Path(run_path, EPISODES_FILE)

    def _on_training_start(self) -> None:
        header, *rows = self.path.read_text().splitlines() if self.path.is_file() else ["timesteps,score,length"]
        kept = [row for row in rows if int(row.split(",")[0]) <= self.model.num_timesteps]
        self.path.write_text("\n".join([header, *kept, ""]))
        outputs = [output for output in self.logger.output_formats if isinstance(output, TensorBoardOutputFormat)]
        if outputs:
            # Relative to the run, so that the folder of all logs may be moved
            path = os.path.relpath(str(self.logger.dir), self.run_path)
            Path(self.run_path, TENSORBOARD_FILE).write_text(f"{path}\n")
        for output in outputs if self.model.num_timesteps > 0 else ():
            # TensorBoard then leaves out what was logged after the checkpoint, before the run was interrupted
            start = Event(session_log=SessionLog(status=SessionLog.START))
            output.writer._get_file_writer().add_event(start, self.model.num_timesteps + 1)

    def _on_step(self) -> bool:
        episodes = [episode for info in self.locals.get("infos") or () if (episode := episode_of(info)) is not None]
        if episodes:
            with self.path.open("a") as file:
                file.writelines(f"{self.num_timesteps},{score},{length}\n" for score, length in episodes)
        return True


class BestStatistics(SaveVecNormalizeCallback):
    """The Zoo's, which writes the statistics of `VecNormalize` that the best model has, under a lasting name too."""

    def _on_step(self) -> bool:
        vec_normalize = self.model.get_vec_normalize_env()
        if vec_normalize is not None:
            vec_normalize.save(os.path.join(self.save_path, BEST_STATISTICS))
        return bool(super()._on_step())


class ExperimentManager(rl_zoo3.exp_manager.ExperimentManager):
    """
    RL Zoo's experiment manager. For an algorithm of this package it reads our hyperparameter file if the user names
    none, understands schedules of our arguments, and refuses arguments that do not exist before anything is created.
    For every algorithm it has one more `vec_env_type`, "native": Atari games in ale_py's C++ threads. "auto" chooses it
    where it can be had.

    :param args: parsed command line
    :param algo: name of the algorithm; this and the other arguments are as in the Zoo
    :raises ValueError: if a run shall be resumed that has no checkpoint
    """

    def __init__(self, args: argparse.Namespace, algo: str, *zoo_args: Any, **zoo_kwargs: Any) -> None:
        self.vec_env_type = zoo_kwargs.get("vec_env_type", "dummy")
        if self.vec_env_type in ("native", "auto"):
            zoo_kwargs["vec_env_type"] = "dummy"
        super().__init__(args, algo, *zoo_args, **zoo_kwargs)
        self.native_kwargs: dict[str, Any] | None = None  # arguments of AtariVecEnv, if it is used
        self.is_new_folder = False
        self.kept_monitor_files: list[tuple[Path, Path]] = []
        if self.trial_id is not None:
            self.trial_id = str(self.trial_id)  # type: ignore[assignment]  # the Zoo takes trial 0 for none
        self.is_own_algo = algo in CONF_FILES
        if self.is_own_algo and zoo_kwargs.get("config") is None:
            self.config = CONF_FILES[algo]
        self.keep_config = vars(args).pop("keep_config", False)
        if getattr(args, "preset", None) is not None and not self.keep_config:
            preset = preset_hyperparams(args.preset, algo, self.env_name.gym_id, self.env_kwargs)
            self.custom_hyperparams = preset | (self.custom_hyperparams or {})
        self.changed: list[str] = []
        self.checkpoint: Path | None = None
        resume: str = getattr(args, "resume", "")
        if resume:  # go on in the folder of this run instead of a new one
            self.save_path, self.params_path = resume, f"{resume}/{self.env_name}"
            self.checkpoint = latest_checkpoint(resume, CHECKPOINT_PREFIX)
            if self.checkpoint is None:
                raise ValueError(f"`--resume` needs a checkpoint that is not damaged, there is none in {resume}")
            self.continue_training = True
        # Steps of the run so far
        self.n_done = 0 if self.checkpoint is None else checkpoint_steps(self.checkpoint)

    def setup_experiment(self) -> tuple[BaseAlgorithm, dict[str, Any]] | None:
        """The Zoo's; a run that cannot begin leaves no folder, one that cannot go on leaves its own as it was."""
        try:
            experiment = super().setup_experiment()
        except BaseException:
            self._discard_folder()
            for path, kept in self.kept_monitor_files:
                kept.replace(path)
            raise
        if experiment is None:
            self._discard_folder()
        return experiment

    def read_hyperparameters(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """The Zoo's. Of a resumed run: its own with what is given, or those of a file or trial if one is given."""
        if self.checkpoint is None:
            return self._read_hyperparameters()
        written, before = (read_saved(Path(self.save_path), self.env_name, name) for name in ("config", BEFORE_RESUME))
        # What a resumed run has written down, and not used when it was killed before its first checkpoint
        self.config_of_checkpoint = before["config"] if before.get("steps") == self.n_done else written
        if self.keep_config:
            hyperparams = {**written, **(self.custom_hyperparams or {})}
            if "env_kwargs" in hyperparams and self.env_kwargs:
                hyperparams["env_kwargs"] = self.env_kwargs
        else:
            hyperparams, _ = self._read_hyperparameters()
        self.changed = changes(ALGOS[self.algo], self.config_of_checkpoint, hyperparams)
        return hyperparams, OrderedDict(sorted(hyperparams.items()))

    def _save_config(self, saved_hyperparams: dict[str, Any]) -> None:
        if self.checkpoint is not None:
            before = {"steps": self.n_done, "config": self.config_of_checkpoint}
            Path(self.params_path, f"{BEFORE_RESUME}.yml").write_text(yaml.dump(before))
        super()._save_config(saved_hyperparams)

    def _read_hyperparameters(self) -> tuple[dict[str, Any], dict[str, Any]]:
        try:
            return super().read_hyperparameters()
        except (FileNotFoundError, ModuleNotFoundError, yaml.YAMLError) as error:
            message = f"`--conf-file` must be a YAML or Python file or a module, got {self.config}: {error}"
            raise ValueError(message) from error
        except KeyError as error:
            raise ValueError(f"{self.config} has no entry {error}, which {self.env_name.gym_id} needs") from error

    def load_trial(self, storage: str, study_name: str, trial_id: Any = None, convert: bool = True) -> dict[str, Any]:
        """The Zoo's, for trial 0 too."""
        try:
            return super().load_trial(storage, study_name, None if trial_id is None else int(trial_id), convert)
        except KeyError as error:
            raise ValueError(f"`--study-name` must be one of {storage}, got {study_name!r}") from error
        except IndexError as error:
            raise ValueError(f"`--trial-id` must be that of a trial of {study_name}, got {trial_id}") from error

    def create_log_folder(self) -> None:
        """Create the folder of the run, unless it is resumed. Here the Zoo knows the number of steps."""
        if self.checkpoint is not None and self.n_done >= self.n_timesteps:
            print(f"{self.save_path} is already at {self.n_done} timesteps: give -n for more")
            sys.exit()
        self.is_new_folder = not Path(self.save_path).exists()
        super().create_log_folder()  # type: ignore[no-untyped-call]

    def _discard_folder(self) -> None:
        """Remove the folder of a run that has not begun, which would be taken for the latest."""
        if self.is_new_folder:
            shutil.rmtree(self.save_path, ignore_errors=True)

    def create_callbacks(self) -> None:
        """The Zoo's, with this package's checkpoints for its algorithms, and what `sb3-dapo plot` needs."""
        save_freq = self.save_freq
        if self.is_own_algo:
            self.save_freq = -1
        super().create_callbacks()  # type: ignore[no-untyped-call]
        if self.is_own_algo and save_freq > 0:
            # Actors that are not waited for have no run to equal, and need not begin anew
            is_async = getattr(self.args, "actors", None) and not vars(self.args).get("sync")
            reset_envs = False if is_async else None
            self.callbacks.append(CheckpointCallback(save_freq, self.save_path, None, CHECKPOINT_PREFIX, reset_envs))
        for callback in self.callbacks:
            if isinstance(callback, SB3CheckpointCallback):
                callback.save_vecnormalize = True
            elif isinstance(callback, EvalCallback):
                callback.callback_on_new_best = BestStatistics(1, self.params_path)
                callback.callback_on_new_best.parent = callback
        self.callbacks.append(RunLog(self.save_path))
        if self.tensorboard_log is not None and self.is_own_algo:
            self.callbacks.append(TensorBoardPanels())

    def _load_pretrained_agent(self, hyperparams: dict[str, Any], env: VecEnv) -> BaseAlgorithm:
        if self.checkpoint is None:
            return super()._load_pretrained_agent(hyperparams, env)
        print(f"Resuming from {self.checkpoint}")
        algo_class: Any = ALGOS[self.algo]
        arguments = arguments_of(algo_class)
        given = {"tensorboard_log": self.tensorboard_log, "verbose": self.verbose}
        given |= {name: hyperparams.get(name, arguments[name].default) for name in self.changed if name in arguments}
        model: BaseAlgorithm = algo_class.load_checkpoint(self.checkpoint, env, self.device, **given)
        if self.tensorboard_log is not None and Path(self.save_path, TENSORBOARD_FILE).is_file():
            # SB3 would take the environment's latest log, which may be that of another run
            folder = read_tensorboard_path(self.save_path)
            if Path(folder).resolve().parent == Path(self.tensorboard_log).resolve():
                model.set_logger(configure(folder, ["stdout", "tensorboard"] if model.verbose else ["tensorboard"]))
        return model

    def learn(self, model: BaseAlgorithm) -> None:
        """The Zoo's. A resumed model is trained to the same total."""
        # What the Zoo asks of a model here
        resumed: Any = SimpleNamespace(learn=partial(learn_until, model), env=model.env)
        try:
            super().learn(model if self.checkpoint is None else resumed)
        except BaseException:
            if model.num_timesteps == 0:
                self._discard_folder()
            raise

    def _preprocess_hyperparams(self, hyperparams: dict[str, Any]) -> Any:
        check_int("n_envs", hyperparams.get("n_envs", 1), 1)
        given, wrapper_kwargs = dict(hyperparams), atari_wrapper_kwargs(hyperparams)
        # The Zoo alone would pass the text of the divergence's coefficient on as it is
        names = [name for name in SCHEDULED if self.is_own_algo and isinstance(hyperparams.get(name), str)]
        schedules = {name: parse_schedule(name, hyperparams[name], SimpleLinearSchedule) for name in names}
        hyperparams, env_wrapper, callbacks, vec_env_wrapper = super()._preprocess_hyperparams(hyperparams)
        check_keywords(ALGOS[self.algo], set(hyperparams) - NOISE, source=f"{self.config} or --hyperparams")
        if self._eval_env_kwargs_args is None:
            self.eval_env_kwargs = self.env_kwargs  # also those of the file, which the Zoo leaves out
        if wrapper_kwargs is not None and self._is_atari:
            self._warn_of_frame_skips()
        if self.vec_env_type in ("native", "auto"):
            self.native_kwargs = native_kwargs(self.env_name.gym_id, given, {*self.env_kwargs, *self.eval_env_kwargs})
        if self.native_kwargs is None and self.vec_env_type == "native":
            allowed = ", ".join(sorted(NATIVE_WRAPPER_KWARGS | NATIVE_ENV_KWARGS))
            raise ValueError(
                f"`--vec-env` must be auto, dummy or subproc for {self.env_name.gym_id} as {self.config} wraps it, got "
                f"'native', which plays NoFrameskip games under AtariWrapper alone, with the arguments {allowed}"
            )
        return {**hyperparams, **schedules}, env_wrapper, callbacks, vec_env_wrapper

    def _warn_of_frame_skips(self) -> None:
        """Tell if a game under `AtariWrapper` skips frames, and maybe repeats actions, too."""
        env_id = self.env_name.gym_id
        kwargs = {"frameskip": 1, "repeat_action_probability": 0.0, **gym.spec(env_id).kwargs, **self.env_kwargs}
        if kwargs["frameskip"] != 1:
            skips = ", ".join(f"{name}={kwargs[name]}" for name in ("frameskip", "repeat_action_probability"))
            warning = f"Warning: {env_id} skips frames itself ({skips}) and AtariWrapper skips frames again"
            made_for = no_frameskip_id(env_id) or "NoFrameskip-v4 games"
            print(f"{warning}. The hyperparameters are made for {made_for}", file=sys.stderr)

    def create_envs(self, n_envs: int, eval_env: bool = False, no_log: bool = False) -> VecEnv:
        """The Zoo's, with all wrappers, or an AtariVecEnv."""
        if self.checkpoint is not None and not eval_env and not no_log:
            # Otherwise new ones would take their place
            self.kept_monitor_files = keep_monitor_files(Path(self.save_path), self.n_done)
        if getattr(self.args, "actors", None) and not eval_env and not no_log:
            return self._maybe_normalize(self._create_actors(n_envs), eval_env)
        if self.native_kwargs is None:
            return super().create_envs(n_envs, eval_env, no_log)
        from sb3_dapo.atari_vec_env import AtariVecEnv

        kwargs = {**self.native_kwargs, **(self.eval_env_kwargs if eval_env else self.env_kwargs)}
        kwargs["monitor_dir"] = None if eval_env or no_log else self.save_path
        return self._maybe_normalize(AtariVecEnv(self.env_name.gym_id, n_envs, self.seed, **kwargs), eval_env)

    def _create_actors(self, n_envs: int) -> VecEnv:
        from sb3_dapo.distributed import ActorVecEnv

        if self.normalize and self.frame_stack is not None:
            raise ValueError("`--actors` must not be given where `normalize` and `frame_stack` are both set")
        # EvalCallback expects evaluations in a VecEnv of the same kind
        warnings.filterwarnings("ignore", "Training and eval env are not of the same type")
        # CheckpointCallback says that a resumed run differs, which is as it must be
        warnings.filterwarnings("ignore", "The environments cannot be saved in mid-episode")
        given = {name: value for name, value in vars(self.args).items() if name in ACTOR_OPTIONS}
        given["address"] = given.pop("ray_address", None)
        # Of the manager goes along what environments are made with
        maker = copy(self)
        maker.callbacks, maker.normalize, maker.trained_agent, maker.verbose = [], False, "", 0
        return ActorVecEnv(partial(create_in_actor, maker, n_envs), self.args.actors, seed=self.seed, **given)

    def _maybe_normalize(self, env: VecEnv, eval_env: bool) -> VecEnv:
        if not (self.trained_agent and self.normalize) or self.checkpoint is not None:
            return super()._maybe_normalize(env, eval_env)
        agent = Path(self.trained_agent)
        try:
            statistics = read_statistics(env, agent.parent / self.env_name, agent)
        except ValueError as error:
            warnings.warn(f"{error}. They begin anew", stacklevel=2)
            return super()._maybe_normalize(env, eval_env)
        statistics.training = not eval_env
        statistics.norm_reward = statistics.norm_reward and not eval_env
        return statistics
