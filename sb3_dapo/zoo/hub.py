"""RL Zoo's agents on the Hugging Face Hub: `sb3-dapo push-to-hub` and `sb3-dapo load-from-hub`."""

import argparse
import os
import shlex
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import numpy as np
import torch as th
import yaml
from huggingface_hub import HfApi
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError
from huggingface_sb3 import EnvironmentName, ModelName, ModelRepoId
from huggingface_sb3.load_from_hub import strtobool
from requests import RequestException
from rl_zoo3.utils import ALGOS, get_model_path, get_saved_hyperparams
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.utils import set_random_seed
from stable_baselines3.common.vec_env import VecEnv

from sb3_dapo import DAPO
from sb3_dapo.hub import (
    CURVE,
    EXPORT,
    VIDEO,
    Evaluation,
    entry_point,
    foreign_module,
    model_card,
    program,
    python_section,
    read_description,
    requirement,
    upload,
    write_card,
    write_results,
)
from sb3_dapo.zoo.evaluation import learning_curve, make_env, positive, random_scores
from sb3_dapo.zoo.exp_manager import ExperimentManager, atari_wrapper_kwargs
from sb3_dapo.zoo.parsers import Assignments, RunParser

# The module: as an attribute of the package, the name is that of a function
HF_SB3 = import_module("huggingface_sb3.push_to_hub")

PROTOCOL = """\
A score is that of a whole game, in the environment's own rewards: `Monitor` counts them inside all wrappers, where they
are neither clipped nor normalized, and where losing a life ends nothing. The games were played with seed {seed} in
{n_envs} environment{s}."""

# Of Python, of requests, and of the library that the client uses instead, whose name depends on the client's version
UNREACHABLE: tuple[type[Exception], ...] = (ConnectionError, RequestException, HfHubHTTPError.__bases__[0])
LOG_IN = "Log in with `hf auth login`, or put a token that may write into HF_TOKEN."


# --- push ---------------------------------------------------------------------------------------------


class Uploader(HfApi):
    """
    The Hub's client for RL Zoo: it completes the folder that the Zoo has made before it uploads it.

    :param complete: completes the folder
    """

    def __init__(self, complete: Callable[[Path], None]) -> None:
        super().__init__()
        self.complete = complete

    def snapshot_download(self, *args: Any, **kwargs: Any) -> str:  # type: ignore[override]
        # The Zoo writes into what it downloads: with everything in it, it would upload an old agent's files again
        folder: str = super().snapshot_download(*args, allow_patterns=".gitattributes", **kwargs)
        return folder

    def upload_folder(self, *, repo_id: str, folder_path: Path, commit_message: str) -> Any:  # type: ignore[override]
        self.complete(folder_path)
        return upload(HfApi(), repo_id, folder_path, commit_message)


def push_parser() -> RunParser:
    """
    :return: parser of `push-to-hub`, with the Zoo's options and some more
    """
    parser = RunParser(
        description="Play whole games with a trained agent, record it, and upload it to the Hugging Face Hub with a "
        f"model card. {LOG_IN}"
    )
    parser.add_argument("--env", help="environment ID", type=EnvironmentName, required=True)
    parser.add_argument("-f", "--folder", help="log folder", default="logs")
    own = [name for name, algo in ALGOS.items() if issubclass(algo, DAPO)]
    parser.add_argument("--algo", help="RL algorithm", default="dapo", choices=own)
    parser.add_argument("-orga", "--organization", help="organization or user on the Hub", required=True)
    parser.add_argument("-name", "--repo-name", help="name of the repository (default: algo-env)")
    parser.add_argument("-m", "--commit-message", help="commit message", default="Upload DAPO agent")
    parser.add_argument("--exp-id", help="experiment ID (default: 0: latest, -1: no exp folder)", type=int, default=0)
    parser.add_argument("--load-best", help="upload the best model instead of the last", action="store_true")
    parser.add_argument("--load-checkpoint", help="upload the checkpoint after this number of steps", type=int)
    parser.add_argument("--load-last-checkpoint", help="upload the last checkpoint", action="store_true")
    parser.add_argument("--eval-episodes", help="number of episodes (default: 20)", type=positive, default=20)
    parser.add_argument("--n-envs", help="number of environments (default: 1)", type=positive, default=1)
    parser.add_argument("--seed", help="random generator seed (default: 0)", type=int, default=0)
    parser.add_argument("--deterministic", help="play the most likely actions", action="store_true")
    parser.add_argument("--stochastic", help="draw actions (default: on Atari and MiniGrid)", action="store_true")
    parser.add_argument("-n", "--n-timesteps", help="length of the video (default: 1000)", type=positive, default=1000)
    parser.add_argument("--no-render", help="make no video", action="store_true")
    parser.add_argument("--env-kwargs", help="arguments for the environment", nargs="+", action=Assignments)
    parser.add_argument("--gym-packages", help="packages that register environments", nargs="+", default=[])
    parser.add_argument("--device", help="PyTorch device (default: auto)", default="auto")
    parser.add_argument("--num-threads", help="threads for PyTorch (default: -1: its own choice)", type=int, default=-1)
    return parser


@dataclass(frozen=True)
class Run:
    """A run of the Zoo, as its folder tells."""

    env: EnvironmentName
    algo: str
    folder: Path
    stats_path: str | None
    config: dict[str, Any]
    """Hyperparameters as they were given."""
    hyperparams: dict[str, Any]
    """Hyperparameters as the Zoo reads them for a test."""
    train_args: dict[str, Any]
    """Arguments of the command that trained."""

    @property
    def env_kwargs(self) -> dict[str, Any]:
        """Arguments of the environment."""
        return self.train_args["env_kwargs"] or self.config.get("env_kwargs", {})


def read_run(env: EnvironmentName, algo: str, folder: Path) -> Run:
    """
    :param env: environment
    :param algo: name of the algorithm in the Zoo
    :param folder: folder of the run
    :return: what it tells
    """
    hyperparams, stats_path = get_saved_hyperparams(str(folder / env), test_mode=True)
    hyperparams.pop("env_kwargs", None)
    # The Zoo saves Python objects
    config, train_args = (yaml.unsafe_load((folder / env / f"{name}.yml").read_text()) for name in ("config", "args"))
    return Run(env, algo, folder, stats_path, dict(config), hyperparams, train_args)


def push_to_hub() -> None:
    """The command `sb3-dapo push-to-hub`."""
    args = push_parser().parse_args()
    if args.num_threads > 0:
        th.set_num_threads(args.num_threads)
    env_id = args.env.gym_id
    model_name = ModelName(args.algo, args.env)
    repo_id = ModelRepoId(args.organization, args.repo_name or model_name)
    which = (args.load_best, args.load_checkpoint, args.load_last_checkpoint)
    _, model_path, log_path = get_model_path(args.exp_id, args.folder, args.algo, args.env, *which)
    run = read_run(args.env, args.algo, Path(log_path).resolve())
    env_kwargs = {**run.env_kwargs, **(args.env_kwargs or {})}
    is_stochastic = ExperimentManager.is_atari(env_id) or ExperimentManager.is_minigrid(env_id)
    is_deterministic = not args.stochastic and (args.deterministic or not is_stochastic)

    set_random_seed(args.seed)
    render = {} if args.no_render else {"render_mode": "rgb_array"}
    env = make_env(env_id, run.hyperparams, {**env_kwargs, **render}, args.n_envs, args.seed, run.stats_path)
    algo: type[DAPO] = ALGOS[args.algo]  # type: ignore[assignment]
    model = algo.load(model_path, env=env, seed=args.seed, device=args.device)
    scores: list[float] = []

    def complete(folder: Path) -> None:
        if not args.no_render and not (folder / VIDEO).is_file():
            raise RuntimeError(f"no {VIDEO} came of the recording, see above. With --no-render there will be no video")
        model.export(folder / EXPORT)
        random = random_scores(env_id, run.hyperparams, env_kwargs, args.n_envs, args.seed, args.eval_episodes)
        protocol = PROTOCOL.format(seed=args.seed, n_envs=args.n_envs, s="s" if args.n_envs > 1 else "")
        evaluation = Evaluation(np.array(scores), is_deterministic, protocol, random)
        write_results(folder, evaluation)
        if (run.folder / "evaluations.npz").is_file():
            title = f"{algo.__name__} on {env_id}"
            curve = learning_curve(run.folder, title, evaluation.scores, random, model.num_timesteps)
            curve.savefig(folder / CURVE, dpi=150)
        write_card(folder, run_card(run, repo_id, folder, evaluation), env_id, evaluation)

    try:
        with adapted_zoo(complete, scores, needs_video=not args.no_render) as zoo:
            zoo.package_to_hub(
                model,
                model_name,
                args.algo,
                algo.__name__,
                run.folder,
                run.hyperparams,
                env_kwargs,
                args.env,
                env,
                repo_id,
                args.commit_message,
                is_deterministic=is_deterministic,
                n_eval_episodes=args.eval_episodes,
                video_length=args.n_timesteps,
                generate_video=not args.no_render,
            )
    except HfHubHTTPError as error:
        sys.exit(f"\nThe Hub refused {repo_id}: {error}\n\n{LOG_IN}")
    except UNREACHABLE as error:
        sys.exit(f"\n{repo_id} was not uploaded, as the Hub cannot be reached: {error}")


@contextmanager
def adapted_zoo(complete: Callable[[Path], None], scores: list[float], needs_video: bool) -> Iterator[ModuleType]:
    """
    :param complete: completes the folder that the Zoo has made
    :param scores: receives the score of every episode, of which the Zoo only tells mean and standard deviation
    :param needs_video: whether a video will be made
    :return: the Zoo's module for uploads, adapted, in an empty working directory: it leaves a copy of the repository
        there, and deletes `test.mp4` and a `*.meta.json`, whoever they belong to
    """
    zoo = import_zoo_push()

    def evaluate(model: DAPO, env: VecEnv, n_episodes: int, deterministic: bool) -> tuple[float, float]:
        all_scores, _ = evaluate_policy(model, env, n_episodes, deterministic, return_episode_rewards=True)
        scores[:] = np.array(all_scores)
        return float(np.mean(scores)), float(np.std(scores))

    home = Path.cwd()
    with (
        tempfile.TemporaryDirectory() as temporary,
        mock.patch.object(zoo, "HfApi", lambda: Uploader(complete)),
        mock.patch.object(HF_SB3, "evaluate_policy", evaluate),
    ):
        if needs_video:
            provide_ffmpeg(Path(temporary))
        work = Path(temporary, "work")
        work.mkdir()
        os.chdir(work)
        try:
            with mock.patch.dict(os.environ, PATH=os.pathsep.join([temporary, os.environ.get("PATH", os.defpath)])):
                yield zoo
        finally:
            os.chdir(home)


def import_zoo_push() -> ModuleType:
    """
    :return: the Zoo's module for uploads. It imports a function of huggingface_sb3 that was renamed in version 3.2
    """

    def generate_metadata(*args: Any) -> dict[str, Any]:
        data: dict[str, Any] = HF_SB3._generate_metadata(*args).to_dict()
        return data

    function = getattr(HF_SB3, "generate_metadata", generate_metadata)
    with mock.patch.object(HF_SB3, "generate_metadata", function, create=True):
        return import_module("rl_zoo3.push_to_hub")


def provide_ffmpeg(folder: Path) -> None:
    """
    The Zoo converts its video with a program called `ffmpeg`, and prints all that it says.

    :param folder: gets a program of that name, which calls the installed one, or moviepy's, and lets it say errors only
    """
    ffmpeg = shutil.which("ffmpeg")
    if ffmpeg is None:
        try:
            ffmpeg = import_module("imageio_ffmpeg").get_ffmpeg_exe()
        except (ImportError, RuntimeError) as error:
            sys.exit(f"The video needs ffmpeg: install it, or pass --no-render to upload no video ({error})")
    if os.name == "nt":
        (folder / "ffmpeg.bat").write_text(f'@"{ffmpeg}" -loglevel error %*\n')
    else:
        script = folder / "ffmpeg"
        script.write_text(f'#!/bin/sh\nexec {shlex.quote(str(ffmpeg))} -loglevel error "$@"\n')
        script.chmod(0o755)


# --- model card ---------------------------------------------------------------------------------------


def run_card(run: Run, repo_id: ModelRepoId, folder: Path, evaluation: Evaluation) -> str:
    """
    :param run: the run
    :param repo_id: the repository
    :param folder: what it shall hold
    :param evaluation: of the agent
    :return: the model card, without metadata
    """
    env_id = run.env.gym_id
    description = read_description(folder)
    code = run_program(run, repo_id, evaluation.is_deterministic)
    usage = python_section(description, code, requirement(env_id, "zoo"), foreign_module(env_id))
    has_curve = (folder / CURVE).is_file()
    figures = f"![Learning curve: score over steps, and the random policy's]({CURVE})" if has_curve else ""
    usage = f"{usage}\n\n{commands_section(run, repo_id)}"
    return model_card(description, env_id, evaluation, usage, training_section(run), figures)


def run_program(run: Run, repo_id: str, is_deterministic: bool) -> str:
    """
    :param run: the run
    :param repo_id: the repository
    :param is_deterministic: play the most likely actions
    :return: program that loads the agent and plays, in an environment wrapped as in training
    """
    env_id, hyperparams = run.env.gym_id, run.hyperparams
    n_stack = hyperparams.get("frame_stack")
    if hyperparams.get("vec_env_wrapper") or (hyperparams.get("normalize") and n_stack):
        return program(DAPO, repo_id, None, Path())
    imports, arguments = [], [f'"{env_id}"']
    function, wrapper_kwargs = "make_vec_env", atari_wrapper_kwargs(hyperparams)
    if wrapper_kwargs is not None:
        function = "make_atari_env"
        arguments += [f"wrapper_kwargs={wrapper_kwargs!r}"] if wrapper_kwargs else []
    elif hyperparams.get("env_wrapper"):
        imports += ["from rl_zoo3.utils import get_wrapper_class"]
        wrapper = {"env_wrapper": hyperparams["env_wrapper"]}
        arguments += [f"wrapper_class=get_wrapper_class({wrapper!r})"]
    arguments += [f"env_kwargs={run.env_kwargs!r}"] if run.env_kwargs else []
    imports += [f"from stable_baselines3.common.env_util import {function}"]
    imports += ["from stable_baselines3.common.evaluation import evaluate_policy"]
    imports += ["from stable_baselines3.common.vec_env import VecFrameStack"] if n_stack else []
    imports += [""]
    if not entry_point(env_id).startswith("gymnasium."):
        imports += ["import sb3_dapo.zoo  # registers the environments"]
    imports += ["from sb3_dapo import DAPO"]
    lines = [f"env = {function}({', '.join(arguments)})"]
    lines += [f"env = VecFrameStack(env, n_stack={n_stack})"] if n_stack else []
    lines += [f'model = DAPO.from_pretrained("{repo_id}", env=env)']
    call = f"evaluate_policy(model, model.get_env(), deterministic={is_deterministic})"
    lines += [f"mean_reward, std_reward = {call}", 'print(f"{mean_reward:.2f} +/- {std_reward:.2f}")']
    return "\n".join([*imports, "", *lines])


def commands_section(run: Run, repo_id: ModelRepoId) -> str:
    """
    :param run: the run
    :param repo_id: the repository
    :return: section on the commands that load the agent and show it
    """
    agent = agent_arguments(run)
    organization, repo_name = repo_id.split("/")
    name = "" if repo_name == ModelName(run.algo, run.env) else f" -name {repo_name}"
    return f"""\
### Watch it play

```sh
sb3-dapo load-from-hub {agent} -orga {organization}{name} --trust-pickle
sb3-dapo enjoy {agent}
```

These are RL Zoo's commands. They read the zip, pkl and yml files, which run code when they are loaded: `--trust-pickle`
says that you trust this repository's author with that."""


def training_section(run: Run) -> str:
    """
    :param run: the run
    :return: section on how the agent was trained, and how to train another
    """
    try:
        settings = yaml.safe_dump({run.env.gym_id: run.config}, sort_keys=False)
    except yaml.representer.RepresenterError:
        shown = "\n".join(f"{name}: {value}" for name, value in run.config.items())
        return f"## Hyperparameters\n\nSome are Python objects, which a file cannot hold.\n\n```\n{shown}\n```"
    command = f"sb3-dapo train {agent_arguments(run)} --conf-file {run.algo}.yml --seed {run.train_args['seed']}"
    if run.train_args["n_timesteps"] > 0:
        command += f" -n {run.train_args['n_timesteps']}"
    if run.train_args["env_kwargs"]:
        pairs = [shlex.quote(f"{name}:{value!r}") for name, value in run.train_args["env_kwargs"].items()]
        command += f" --env-kwargs {' '.join(pairs)}"
    return f"""\
## Hyperparameters

```yaml
{settings.strip()}
```

With this in a file `{run.algo}.yml`, another agent is trained by

```sh
{command}
```"""


def agent_arguments(run: Run) -> str:
    """
    :param run: the run
    :return: how the commands name it
    """
    return f"--env {shlex.quote(run.env.gym_id)}" + ("" if run.algo == "dapo" else f" --algo {run.algo}")


# --- load ---------------------------------------------------------------------------------------------


def load_from_hub() -> None:
    """The command `sb3-dapo load-from-hub`."""
    parser = argparse.ArgumentParser(
        description="Download an agent of RL Zoo from the Hugging Face Hub into the log folder, where enjoy finds it."
    )
    parser.add_argument("--env", help="environment ID", type=EnvironmentName, required=True)
    parser.add_argument("-f", "--folder", help="log folder", default="logs")
    parser.add_argument("--algo", help="RL algorithm", default="dapo", choices=list(ALGOS))
    parser.add_argument("-orga", "--organization", help="organization or user on the Hub", default="sb3")
    parser.add_argument("-name", "--repo-name", help="name of the repository (default: algo-env)")
    parser.add_argument("--exp-id", help="experiment ID (default: 0: a new one, -1: no folder)", type=int, default=0)
    parser.add_argument("--force", help="overwrite the experiment's folder", action="store_true")
    parser.add_argument(
        "--trust-pickle",
        help="trust the author with running code on this machine, which the agent's files do when they are loaded "
        "(TRUST_REMOTE_CODE=True says the same)",
        action="store_true",
    )
    args = parser.parse_args()
    repo_id = ModelRepoId(args.organization, args.repo_name or ModelName(args.algo, args.env))
    if not args.trust_pickle and not strtobool(os.environ.get("TRUST_REMOTE_CODE", "False")):
        parser.error(
            f"the files of {repo_id} hold pickles, which run the code of whoever wrote them when they are loaded. If "
            f"you trust the author, pass --trust-pickle. If not, sb3_dapo.DAPO.from_pretrained({str(repo_id)!r}) loads "
            f"an agent of this package without running any"
        )
    zoo = import_module("rl_zoo3.load_from_hub")
    try:
        with (
            mock.patch.dict(os.environ, TRUST_REMOTE_CODE="True"),
            # The Zoo waits for an exception of requests if there are no statistics of VecNormalize, but the client
            # raises its own
            mock.patch.object(zoo, "HTTPError", EntryNotFoundError),
        ):
            zoo.download_from_hub(
                args.algo, args.env, args.exp_id, args.folder, args.organization, args.repo_name, args.force
            )
        print(f"Watch it play: sb3-dapo enjoy --algo {args.algo} --env {args.env.gym_id} -f {args.folder}")
    except LocalEntryNotFoundError as error:  # what comes of no connection
        sys.exit(f"\n{repo_id} was not downloaded, as the Hub cannot be reached: {error}")
    except EntryNotFoundError as error:
        sys.exit(
            f"\n{repo_id} is not a whole agent of RL Zoo: {error}\n\nIf it was uploaded from Python, "
            f"sb3_dapo.DAPO.from_pretrained({str(repo_id)!r}) loads it"
        )
    except HfHubHTTPError as error:
        sys.exit(f"\nThe Hub did not give {repo_id}: {error}")
    except UNREACHABLE as error:
        sys.exit(f"\n{repo_id} was not downloaded, as the Hub cannot be reached: {error}")
