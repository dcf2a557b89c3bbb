"""RL Zoo's agents on the Hugging Face Hub: `sb3-dapo push-to-hub` and `sb3-dapo load-from-hub`."""

import argparse
import os
import shlex
import shutil
import sys
import tempfile
import zipfile
from importlib import import_module
from pathlib import Path
from typing import Any

import torch as th
import yaml
from huggingface_hub import HfApi
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError
from huggingface_sb3 import ModelName, ModelRepoId
from huggingface_sb3.load_from_hub import strtobool
from requests import RequestException

from sb3_dapo.cli import DEFAULT_ALGO
from sb3_dapo.hub import card, repository
from sb3_dapo.hub.card import Evaluation
from sb3_dapo.hub.sharing import program
from sb3_dapo.zoo.cli import replaced
from sb3_dapo.zoo.evaluation import Agent, evaluate, random_scores
from sb3_dapo.zoo.exp_manager import atari_wrapper_kwargs
from sb3_dapo.zoo.parsers import add_run_arguments, agent_parser, positive
from sb3_dapo.zoo.registration import CONF_FILES
from sb3_dapo.zoo.report import options, own_curve, save_learning_curve
from sb3_dapo.zoo.video import record

# The module: as an attribute of the package, the name is that of a function
HF_SB3 = import_module("huggingface_sb3.load_from_hub")

PROTOCOL = """\
A score is that of a whole game, in the environment's own rewards: `Monitor` counts them inside all wrappers, where they
are neither clipped nor normalized, and where losing a life ends nothing. The games were played with seed {seed} in
{n_envs} environment{s}."""

# Of Python, of requests, and of the library that the client uses instead, whose name depends on the client's version
UNREACHABLE: tuple[type[Exception], ...] = (ConnectionError, RequestException, HfHubHTTPError.__bases__[0])
LOG_IN = "Log in with `hf auth login`, or put a token that may write into HF_TOKEN."


def push_to_hub() -> None:
    """The command `sb3-dapo push-to-hub`."""
    text = "Play whole games with a trained agent, record it, and upload it to the Hugging Face Hub with a model card."
    parser = agent_parser(f"{text} {LOG_IN}", env_id=None, algos=CONF_FILES)
    parser.add_argument("-orga", "--organization", help="organization or user on the Hub", required=True)
    parser.add_argument("-name", "--repo-name", help="name of the repository (default: algo-env)")
    parser.add_argument("-m", "--commit-message", help="commit message (default: Upload DAPO agent)")
    parser.add_argument("--eval-episodes", help="number of episodes (default: 20)", type=positive, default=20)
    parser.add_argument("-n", "--n-timesteps", help="length of the video (default: 1000)", type=positive, default=1000)
    parser.add_argument("--no-render", help="make no video", action="store_true")
    parser.add_argument("--num-threads", help="threads of PyTorch (default: its own choice)", type=int, default=-1)
    args = parser.parse_args()
    if args.num_threads > 0:
        th.set_num_threads(args.num_threads)
    agent = Agent(args)
    if not agent.config or not agent.train_args:
        raise ValueError(f"{agent.folder / agent.env} must hold config.yml and args.yml, which are uploaded too")
    repo_id = ModelRepoId(args.organization, args.repo_name or ModelName(args.algo, args.env))
    message = args.commit_message or f"Upload {agent.algo_class.__name__} agent"
    with tempfile.TemporaryDirectory() as temporary:
        # All of it before the repository is created: what fails leaves none behind
        folder = Path(temporary)
        write_agent(folder, agent, repo_id)
        try:
            api = HfApi()
            url = api.create_repo(repo_id, private=False, exist_ok=True)
            attributes = Path(api.hf_hub_download(repo_id, ".gitattributes")).read_text()
            if "*.mp4" not in attributes:
                (folder / ".gitattributes").write_text(f"{attributes}*.mp4 filter=lfs diff=lfs merge=lfs -text\n")
            repository.upload(api, repo_id, folder, message)
        except HfHubHTTPError as error:
            sys.exit(f"\nThe Hub refused {repo_id}: {error}\n\n{LOG_IN}")
        except UNREACHABLE as error:
            sys.exit(f"\n{repo_id} was not uploaded, as the Hub cannot be reached: {error}")
    print(f"Your model is pushed to the hub. You can view your model here: {url}")


def write_agent(folder: Path, agent: Agent, repo_id: ModelRepoId) -> None:
    """Write into a folder what the repository shall hold: the Zoo's files and ours."""
    args, env = agent.args, agent.make_env()
    model: Any = agent.load(env)
    model._write_files(folder, ModelName(agent.algo, agent.env).filename)
    write_zoo_files(folder, agent)
    env_id = agent.env.gym_id
    scores = evaluate(model, env, args.eval_episodes, agent.is_deterministic)
    random = random_scores(env_id, agent.hyperparams, agent.env_kwargs, args.n_envs, args.seed, args.eval_episodes)
    protocol = PROTOCOL.format(seed=args.seed, n_envs=args.n_envs, s="s" if args.n_envs > 1 else "")
    evaluation = Evaluation(scores, agent.is_deterministic, protocol, random)
    curve, figures = own_curve(agent), ""
    if curve is not None:
        title, lines = f"{agent.algo_class.__name__} on {env_id}", {"random actions": random.mean()}
        save_learning_curve(folder / repository.CURVE, title, curve, scores, lines, model.num_timesteps)
        figures = f"![Learning curve: score over steps, and the random policy's]({repository.CURVE})"
    if not args.no_render:
        try:
            video = record(agent, folder / "videos", args.n_timesteps)
        except Exception as error:  # of the environment, moviepy, or ffmpeg
            message = f"no {repository.VIDEO} came of the recording: {error}. With --no-render there will be no video"
            raise RuntimeError(message) from error
        video.replace(folder / repository.VIDEO)
        shutil.rmtree(folder / "videos")
    code = agent_program(agent, repo_id)
    usage = card.python_section(repository.read_description(folder), code, env_id, "zoo")
    usage += f"\n\n{commands_section(agent, repo_id)}"
    card.write_card(folder, env_id, evaluation, usage, training_section(agent), figures)


def write_zoo_files(folder: Path, agent: Agent) -> None:
    """Write what else RL Zoo uploads, and reads after a download."""
    name = ModelName(agent.algo, agent.env)
    shutil.unpack_archive(folder / name.filename, folder / name)
    for file in ("args.yml", "config.yml"):
        shutil.copy(agent.folder / agent.env / file, folder)
    (folder / "env_kwargs.yml").write_text(yaml.dump(agent.env_kwargs))
    with zipfile.ZipFile(folder / repository.METRICS, "w") as archive:
        for path in [*agent.folder.glob("evaluations.npz"), *agent.folder.glob("*.csv")]:
            archive.write(path, path.name)


def agent_program(agent: Agent, repo_id: str) -> str:
    """Program that loads the agent and plays, in an environment wrapped as in training."""
    env_id, hyperparams = agent.env.gym_id, agent.hyperparams
    n_stack, wrapper_kwargs = hyperparams.get("frame_stack"), atari_wrapper_kwargs(hyperparams)
    if hyperparams.get("vec_env_wrapper") or (hyperparams.get("normalize") and n_stack):
        return program(agent.algo_class, repo_id)
    function = "make_vec_env" if wrapper_kwargs is None else "make_atari_env"
    imports, arguments = [f"from stable_baselines3.common.env_util import {function}"], [f'"{env_id}"']
    if wrapper_kwargs:
        arguments.append(f"wrapper_kwargs={wrapper_kwargs!r}")
    elif wrapper_kwargs is None and hyperparams.get("env_wrapper"):
        imports.append("from rl_zoo3.utils import get_wrapper_class")
        wrapper = {"env_wrapper": hyperparams["env_wrapper"]}
        arguments.append(f"wrapper_class=get_wrapper_class({wrapper!r})")
    if agent.env_kwargs:
        arguments.append(f"env_kwargs={agent.env_kwargs!r}")
    setup = f"env = {function}({', '.join(arguments)})\n"
    if n_stack:
        imports.append("from stable_baselines3.common.vec_env import VecFrameStack")
        setup += f"env = VecFrameStack(env, n_stack={n_stack})\n"
    packages = list(agent.train_args.get("gym_packages", ()))
    if not repository.entry_point(env_id).startswith("gymnasium."):
        packages.append("sb3_dapo.zoo")
    imports += [f"import {name}  # registers the environments" for name in packages]
    return program(agent.algo_class, repo_id, "env", setup, imports, agent.is_deterministic)


def commands_section(agent: Agent, repo_id: ModelRepoId) -> str:
    """Section of the card on the commands that load the agent and show it."""
    named = agent_arguments(agent)
    organization, repo_name = repo_id.split("/")
    name = "" if repo_name == ModelName(agent.algo, agent.env) else f" -name {repo_name}"
    return f"""\
### Watch it play

```sh
sb3-dapo load-from-hub {named} -orga {organization}{name} --trust-pickle
sb3-dapo enjoy {named}
```

These are RL Zoo's commands. They read the zip, pkl and yml files, which run code when they are loaded: `--trust-pickle`
says that you trust this repository's author with that."""


def training_section(agent: Agent) -> str:
    """Section of the card on how the agent was trained, and how to train another."""
    try:
        settings = yaml.safe_dump({agent.env.gym_id: agent.config}, sort_keys=False)
    except yaml.representer.RepresenterError:
        shown = "\n".join(f"{name}: {value}" for name, value in agent.config.items())
        return f"## Hyperparameters\n\nSome are Python objects, which a file cannot hold.\n\n```\n{shown}\n```"
    args = agent.train_args
    given = shlex.join(options(args, ("seed", "gym_packages", "env_kwargs", "actors", "sync")))
    command = f"sb3-dapo train {agent_arguments(agent)} --conf-file {agent.algo}.yml {given}"
    command += f" -n {args['n_timesteps']}" if args["n_timesteps"] > 0 else ""
    return f"""\
## Hyperparameters

```yaml
{settings.strip()}
```

With this in a file `{agent.algo}.yml`, another agent is trained by

```sh
{command}
```"""


def agent_arguments(agent: Agent) -> str:
    """How the commands name the agent."""
    return f"--env {shlex.quote(agent.env.gym_id)}" + ("" if agent.algo == DEFAULT_ALGO else f" --algo {agent.algo}")


def load_from_hub() -> None:
    """The command `sb3-dapo load-from-hub`."""
    text = "Download an agent of RL Zoo from the Hugging Face Hub into the log folder, where enjoy finds it."
    parser = argparse.ArgumentParser(description=text)
    add_run_arguments(parser, env_id=None, exp_id="a new one")
    parser.add_argument("-orga", "--organization", help="organization or user on the Hub", default="sb3")
    parser.add_argument("-name", "--repo-name", help="name of the repository (default: algo-env)")
    parser.add_argument("--force", help="overwrite the experiment's folder", action="store_true")
    text = "trust the author with running code on this machine, which the agent's files do when they are loaded "
    parser.add_argument("--trust-pickle", help=f"{text}(TRUST_REMOTE_CODE=True says the same)", action="store_true")
    args = parser.parse_args()
    repo_id = ModelRepoId(args.organization, args.repo_name or ModelName(args.algo, args.env))
    safely = f"sb3_dapo.DAPO.from_pretrained({str(repo_id)!r}) loads"
    if not args.trust_pickle and not strtobool(os.environ.get("TRUST_REMOTE_CODE", "False")):
        parser.error(
            f"the files of {repo_id} hold pickles, which run the code of whoever wrote them when they are loaded. If "
            f"you trust the author, pass --trust-pickle. If not, {safely} an agent of this package without running any"
        )
    zoo = import_module("rl_zoo3.load_from_hub")
    try:
        # The Zoo waits for an exception of requests if there are no statistics of VecNormalize, but the client raises
        # its own. And it asks for the trust once more
        with replaced(zoo, HTTPError=EntryNotFoundError), replaced(HF_SB3, strtobool=lambda text: True):
            named = (args.algo, args.env, args.exp_id, args.folder)
            zoo.download_from_hub(*named, args.organization, args.repo_name, args.force)
        print(f"Watch it play: sb3-dapo enjoy --algo {args.algo} --env {args.env.gym_id} -f {args.folder}")
    except LocalEntryNotFoundError as error:  # what comes of no connection
        sys.exit(f"\n{repo_id} was not downloaded, as the Hub cannot be reached: {error}")
    except EntryNotFoundError as error:
        hint = f"If it was uploaded from Python, {safely} it"
        sys.exit(f"\n{repo_id} is not a whole agent of RL Zoo: {error}\n\n{hint}")
    except HfHubHTTPError as error:
        sys.exit(f"\nThe Hub did not give {repo_id}: {error}")
    except UNREACHABLE as error:
        sys.exit(f"\n{repo_id} was not downloaded, as the Hub cannot be reached: {error}")
