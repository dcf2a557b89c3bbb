"""
Models on the Hugging Face Hub.

A repository holds the exported model in the folder ``export``, which is all that is read of it unless the reader trusts
its author; SB3's zip file and ``vec_normalize.pkl`` for those who do; and a model card.
"""

import datetime
import importlib
import json
import pickle
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import gymnasium as gym
import numpy as np
import torch as th
from stable_baselines3.common.env_util import is_wrapped
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecMonitor, VecNormalize, is_vecenv_wrapped

from sb3_dapo.arguments import check_int
from sb3_dapo.description import ExportError
from sb3_dapo.export import DESCRIPTION, PARAMETERS, STATISTICS, export_model, load_model, load_vec_normalize
from sb3_dapo.model_card import Evaluation, confidence_interval, model_card, python_section, settings_section

if TYPE_CHECKING:
    from sb3_dapo.dapo import DAPO

SelfDAPO = TypeVar("SelfDAPO", bound="DAPO")

EXPORT, CARD, RESULTS, STATISTICS_PICKLE = "export", "README.md", "results.json", "vec_normalize.pkl"
# Other files that RL Zoo uploads and reads
METRICS, VIDEO, CURVE = "train_eval_metrics.zip", "replay.mp4", "learning_curve.png"
CONFIGS = ("args.yml", "config.yml", "env_kwargs.yml")
EXPORT_FILES = (DESCRIPTION, PARAMETERS, STATISTICS)
# What an upload replaces, or removes if it brings no such file: of another agent, it would be misleading
GENERATED = [f"{EXPORT}/*", RESULTS, STATISTICS_PICKLE, *CONFIGS, METRICS, VIDEO, CURVE]

# Extras of this package by the beginning of an environment's entry point
EXTRAS = {"gymnasium.envs.box2d": "box2d", "gymnasium.envs.mujoco": "mujoco", "ale_py": "atari", "minatar": "minatar"}


def client() -> Any:
    """
    :return: the module ``huggingface_hub``
    """
    try:
        return importlib.import_module("huggingface_hub")
    except ModuleNotFoundError as error:
        if error.name != "huggingface_hub":
            raise
        message = "the Hugging Face Hub needs its client: pip install 'sb3-dapo[hub]'"
        raise ModuleNotFoundError(message, name=error.name) from error


# --- push ---------------------------------------------------------------------------------------------


def push_to_hub(
    model: "DAPO",
    repo_id: str,
    *,
    eval_env: GymEnv | str | None = None,
    n_eval_episodes: int = 20,
    deterministic: bool = True,
    commit_message: str = "Upload DAPO agent",
    private: bool | None = None,
    token: str | None = None,
) -> str:
    """
    Upload a model: see :meth:`DAPO.push_to_hub <sb3_dapo.DAPO.push_to_hub>`.

    :param model: the model
    :param repo_id: the repository, ``"organization/name"``
    :param eval_env: environment to evaluate it in
    :param n_eval_episodes: number of episodes
    :param deterministic: play the most likely actions
    :param commit_message: summary of the commit
    :param private: whether a new repository is private
    :param token: access token
    :return: address of the repository
    """
    check_int("n_eval_episodes", n_eval_episodes, 1)
    hub = client()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        export_model(model, folder / EXPORT)
        description = read_description(folder)

        api = hub.HfApi(token=token)
        url = api.create_repo(repo_id, private=private, exist_ok=True)
        model.save(folder / f"{url.repo_id.split('/')[-1]}.zip")
        vec_normalize = model.get_vec_normalize_env()
        if vec_normalize is not None:
            vec_normalize.save(str(folder / STATISTICS_PICKLE))

        env = None if eval_env is None else prepare_eval_env(eval_env, folder)
        evaluation = None if env is None else evaluate(model, env, n_eval_episodes, deterministic)
        if evaluation is not None:
            write_results(folder, evaluation)
        env_id = find_env_id(env or model.get_env())
        code = program(type(model), url.repo_id, env_id, folder)
        usage = python_section(description, code, requirement(env_id), foreign_module(env_id))
        card = model_card(description, env_id, evaluation, usage, settings_section(description))
        write_card(folder, card, env_id, evaluation)
        upload(api, url.repo_id, folder, commit_message)
    return str(url)


def upload(api: Any, repo_id: str, folder: Path, commit_message: str) -> Any:
    """
    :param api: the Hub's client
    :param repo_id: the repository
    :param folder: what it shall hold
    :param commit_message: summary of the commit
    :return: what the client says of the commit
    """
    unzipped = f"{repo_id.split('/')[-1]}/*"
    return api.upload_folder(
        repo_id=repo_id, folder_path=folder, commit_message=commit_message, delete_patterns=[*GENERATED, unzipped]
    )


def read_description(folder: Path) -> dict[str, Any]:
    """
    :param folder: what a repository shall hold, with an own model in it
    :return: the description of the exported model
    """
    description: dict[str, Any] = json.loads((folder / EXPORT / DESCRIPTION).read_text())
    return description


def vectorized(env: GymEnv | str) -> VecEnv:
    """
    :param env: environment, or its name
    :return: vectorized environment
    """
    if isinstance(env, str):
        env = gym.make(env)
    if isinstance(env, VecEnv):
        return env
    monitored = env if is_wrapped(env, Monitor) else Monitor(env)
    return DummyVecEnv([lambda: monitored])


def prepare_eval_env(env: GymEnv | str, folder: Path) -> VecEnv:
    """
    :param env: environment to evaluate in
    :param folder: folder with the exported model
    :return: vectorized environment, with the model's statistics if it was trained with ``VecNormalize``
    """
    venv = vectorized(env)
    if read_description(folder)["vec_normalize"] is None or is_vecenv_wrapped(venv, VecNormalize):
        return venv
    vec_normalize = load_vec_normalize(folder / EXPORT, venv)
    vec_normalize.norm_reward = False
    return vec_normalize


def evaluate(model: "DAPO", env: VecEnv, n_episodes: int, deterministic: bool) -> Evaluation:
    """
    :param model: the model
    :param env: environment
    :param n_episodes: number of episodes
    :param deterministic: play the most likely actions
    :return: the scores, and what they are
    """
    scores, _ = evaluate_policy(model, env, n_episodes, deterministic, return_episode_rewards=True, warn=False)
    is_monitored = is_vecenv_wrapped(env, VecMonitor) or env.env_is_wrapped(Monitor)[0]
    rewards = "as its `Monitor` counts them" if is_monitored else "as they are after all of its wrappers"
    protocol = f"A score is the sum of the rewards of a whole episode, {rewards}."
    return Evaluation(np.array(scores), deterministic, protocol)


def write_results(folder: Path, evaluation: Evaluation) -> None:
    """
    :param folder: what the repository shall hold
    :param evaluation: written to its ``results.json``, under the names that huggingface_sb3 uses, and some more
    """
    scores = evaluation.scores
    results: dict[str, Any] = {
        "mean_reward": float(scores.mean()),
        "std_reward": float(scores.std()),
        "is_deterministic": evaluation.is_deterministic,
        "n_eval_episodes": len(scores),
        "eval_datetime": datetime.datetime.now().isoformat(),
        "episode_rewards": scores.tolist(),
    }
    if len(scores) > 1:
        results["confidence_interval_95"] = confidence_interval(scores)
    if evaluation.random_scores is not None:
        results["random_policy_episode_rewards"] = evaluation.random_scores.tolist()
    (folder / RESULTS).write_text(json.dumps(results, indent=2))


def write_card(folder: Path, card: str, env_id: str | None, evaluation: Evaluation | None) -> None:
    """
    :param folder: what the repository shall hold
    :param card: text of the model card
    :param env_id: environment, if it is known
    :param evaluation: of the agent, if there is one
    """
    hub = client()
    (folder / CARD).write_text(card, encoding="utf-8")
    hub.metadata_save(folder / CARD, metadata(env_id, evaluation))


def metadata(env_id: str | None, evaluation: Evaluation | None) -> dict[str, Any]:
    """
    :param env_id: environment, if it is known
    :param evaluation: of the agent, if there is one
    :return: what the Hub and its leaderboards read of a model card, in the form that huggingface_sb3 gives it
    """
    tags = ["deep-reinforcement-learning", "reinforcement-learning", "stable-baselines3"]
    tags += ["sb3-dapo", "divergence-augmented-policy-optimization"]
    data: dict[str, Any] = {"library_name": "stable-baselines3", "tags": [env_id, *tags] if env_id else tags}
    if env_id is not None and evaluation is not None:
        data |= client().metadata_eval_result(
            model_pretty_name="DAPO",
            task_pretty_name="reinforcement-learning",
            task_id="reinforcement-learning",
            metrics_pretty_name="mean_reward",
            metrics_id="mean_reward",
            metrics_value=f"{evaluation.scores.mean():.2f} +/- {evaluation.scores.std():.2f}",
            dataset_pretty_name=env_id,
            dataset_id=env_id,
        )
    return data


def find_env_id(env: VecEnv | None) -> str | None:
    """
    :param env: vectorized environment
    :return: what ``gymnasium.make`` calls it, None if that is not known
    """
    try:
        spec = None if env is None else env.get_attr("spec", indices=0)[0]
    except AttributeError:
        return None
    return None if spec is None else spec.id


def entry_point(env_id: str | None) -> str:
    """
    :param env_id: environment
    :return: the module that it comes from, empty if that is not known
    """
    point = None if env_id is None or env_id not in gym.registry else gym.spec(env_id).entry_point
    return point.partition(":")[0] if isinstance(point, str) else getattr(point, "__module__", "")


def foreign_module(env_id: str | None) -> str:
    """
    :param env_id: environment
    :return: package that it comes from, empty if that is not known, or installed with this one
    """
    package = entry_point(env_id).partition(".")[0]
    return "" if package in ("gymnasium", "ale_py", "minatar", "__main__") else package


def requirement(env_id: str | None, *extras: str) -> str:
    """
    :param env_id: environment, if it is known
    :param extras: extras of this package that are needed besides the Hub's
    :return: what to install to play in it, as pip's argument
    """
    module = entry_point(env_id)
    of_env = [extra for prefix, extra in EXTRAS.items() if module.startswith(prefix)]
    return f"sb3-dapo[{','.join(['hub', *extras, *of_env])}]"


def program(cls: "type[DAPO]", repo_id: str, env_id: str | None, folder: Path) -> str:
    """
    :param cls: class of the model
    :param repo_id: the repository
    :param env_id: environment, if it is known
    :param folder: folder with the exported model
    :return: program that loads the model, and plays if nothing but the environment's name is needed for that
    """
    if entry_point(env_id).startswith("gymnasium."):
        try:
            load_model(cls, folder / EXPORT, env_id, device="cpu")
        except (ValueError, gym.error.Error):
            pass  # it has wrappers that change its spaces
        else:
            return f"""\
from stable_baselines3.common.evaluation import evaluate_policy

from sb3_dapo import DAPO

model = DAPO.from_pretrained("{repo_id}", env="{env_id}")
mean_reward, std_reward = evaluate_policy(model, model.get_env())
print(f"{{mean_reward:.2f}} +/- {{std_reward:.2f}}")"""
    return f"""\
from sb3_dapo import DAPO

model = DAPO.from_pretrained("{repo_id}")
print(model.observation_space, model.action_space)"""


# --- pull ---------------------------------------------------------------------------------------------


def from_pretrained(
    cls: "type[SelfDAPO]",
    repo_id: str,
    env: GymEnv | str | None = None,
    device: th.device | str = "auto",
    *,
    trust_pickle: bool = False,
    revision: str | None = None,
    token: str | None = None,
    cache_dir: str | Path | None = None,
    **kwargs: Any,
) -> SelfDAPO:
    """
    Download a model: see :meth:`DAPO.from_pretrained <sb3_dapo.DAPO.from_pretrained>`.

    :param cls: class of the model
    :param repo_id: the repository
    :param env: environment to evaluate or to go on learning in
    :param device: PyTorch device
    :param trust_pickle: read the zip file, and run the code in it, instead of the exported model
    :param revision: branch, tag or commit
    :param token: access token
    :param cache_dir: where downloads are kept
    :param kwargs: for ``load_exported``, or with ``trust_pickle`` for ``load``
    :return: the model
    """
    exported = [f"{EXPORT}/{name}" for name in EXPORT_FILES]
    folder = Path(
        client().snapshot_download(
            repo_id,
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            allow_patterns=["*.zip", STATISTICS_PICKLE] if trust_pickle else exported,
            ignore_patterns=[METRICS, "*/*.zip"],
        )
    )
    if trust_pickle:
        return load_pickles(cls, repo_id, folder, env, device, **kwargs)
    if not (folder / EXPORT / DESCRIPTION).is_file():
        raise ValueError(
            f"`repo_id` must name a repository with an exported model, a folder {EXPORT!r} with {DESCRIPTION}, got "
            f"{repo_id!r}, which has none. If it has a zip file, and you trust its author with running code on this "
            f"machine, pass `trust_pickle=True`"
        )
    with tempfile.TemporaryDirectory() as temporary:
        # The files of the cache are links, which exported models must not be
        copy = Path(temporary, EXPORT)
        copy.mkdir()
        for name in EXPORT_FILES:
            if (folder / EXPORT / name).is_file():
                shutil.copyfile(folder / EXPORT / name, copy / name)
        try:
            return load_model(cls, copy, env, device, **kwargs)
        except ExportError as error:
            raise ExportError(str(error).replace(str(copy), f"{repo_id}/{EXPORT}")) from error


def load_pickles(
    cls: "type[SelfDAPO]",
    repo_id: str,
    folder: Path,
    env: GymEnv | str | None,
    device: th.device | str,
    **kwargs: Any,
) -> SelfDAPO:
    """
    :param cls: class of the model
    :param repo_id: the repository
    :param folder: what it holds
    :param env: environment to evaluate or to go on learning in
    :param device: PyTorch device
    :param kwargs: for ``load``
    :return: the model
    """
    names = sorted(path.name for path in folder.glob("*.zip") if path.name != METRICS)
    if len(names) != 1:
        raise ValueError(
            f"with `trust_pickle=True`, `repo_id` must name a repository with one zip file of a model, got "
            f"{repo_id!r}, which has {names or 'none'}"
        )
    venv = None if env is None else vectorized(env)
    vec_normalize = None
    if (folder / STATISTICS_PICKLE).is_file() and (venv is None or not is_vecenv_wrapped(venv, VecNormalize)):
        with (folder / STATISTICS_PICKLE).open("rb") as file:
            vec_normalize = pickle.load(file)
        vec_normalize.training = False
        if venv is not None:
            vec_normalize.set_venv(venv)
            venv = vec_normalize
    model = cls.load(folder / names[0], env=venv, device=device, **kwargs)
    if venv is None:
        model._vec_normalize_env = vec_normalize
    return model
