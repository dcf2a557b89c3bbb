"""
Models on the Hugging Face Hub.

A repository holds the exported model in the folder ``export``, which is all that is read of it unless the reader trusts
its author; SB3's zip file and ``vec_normalize.pkl`` for those who do; and a model card.
"""

import pickle
import tempfile
from collections.abc import Iterable
from contextlib import closing, nullcontext, suppress
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import gymnasium as gym
import numpy as np
import torch as th
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.vec_env import VecEnv, VecMonitor, VecNormalize, is_vecenv_wrapped

import sb3_dapo.hub.card as card
import sb3_dapo.hub.repository as repository
from sb3_dapo.arguments import check_int
from sb3_dapo.export import STATISTICS, Exportable, load_vec_normalize
from sb3_dapo.export.exporting import vectorized
from sb3_dapo.hub.repository import EXPORT, METRICS, STATISTICS_PICKLE, client

SelfHubModel = TypeVar("SelfHubModel", bound="HubModel")


class HubModel(Exportable):
    """An algorithm whose models can be uploaded to the Hugging Face Hub, and downloaded from there."""

    extras: ClassVar[tuple[str, ...]] = ()
    """Those of this package that its models need."""
    _known_env: tuple[VecEnv | None, str | None] = (None, None)  # and its id, which it does not tell once it is closed

    def push_to_hub(
        self,
        repo_id: str,
        *,
        eval_env: GymEnv | str | None = None,
        n_eval_episodes: int = 20,
        deterministic: bool = True,
        commit_message: str | None = None,
        private: bool | None = None,
        token: str | None = None,
    ) -> str:
        """
        Upload the model to the Hugging Face Hub: as :meth:`export` and as :meth:`save` write it, and a model card.
        Needs the extra ``hub``, and a token that may write (``hf auth login``).

        :param repo_id: the repository, ``"organization/name"``; without an organization it is the user's. It is created
            if it does not exist; if it does, what an earlier upload left in it is replaced
        :param eval_env: evaluate the model in this environment, and tell the score in the card
        :param n_eval_episodes: number of episodes
        :param deterministic: play the most likely actions
        :param commit_message: summary of the commit; ``None`` for one that names the algorithm
        :param private: whether a new repository is private; ``None``: as the organization has it
        :param token: access token in place of the one of ``hf auth login``
        :return: address of the repository
        :raises ValueError: if the model cannot be exported
        """
        check_int("n_eval_episodes", n_eval_episodes, 1)
        message = f"Upload {type(self).__name__} agent" if commit_message is None else commit_message
        api = client().HfApi(token=token)
        client().utils.validate_repo_id(repo_id)
        if "/" not in repo_id:
            repo_id = f"{api.whoami()['name']}/{repo_id}"
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            self._write_files(folder, f"{repo_id.split('/')[-1]}.zip")
            evaluation, env_id = None, self._env_id()
            if eval_env is not None:
                env = vectorized(eval_env)
                with closing(env) if isinstance(eval_env, str) else nullcontext():  # the user closes his own
                    evaluation = evaluate(self, env, folder / EXPORT, n_eval_episodes, deterministic)
                    env_id = repository.find_env_id(env) or env_id
            description = repository.read_description(folder)
            code = program(type(self), repo_id, find_playable(type(self), env_id, folder))
            usage = card.python_section(description, code, env_id, *self.extras)
            card.write_card(folder, env_id, evaluation, usage, card.settings_section(description))
            # Whatever can fail on this machine has not failed
            url = api.create_repo(repo_id, private=private, exist_ok=True)
            repository.upload(api, url.repo_id, folder, message)
        return str(url)

    def _write_files(self, folder: Path, zip_name: str) -> None:
        """Write what a repository holds of the model itself."""
        self.export(folder / EXPORT)
        self.save(folder / zip_name)
        vec_normalize = self.get_vec_normalize_env()
        if vec_normalize is not None:
            vec_normalize.save(str(folder / STATISTICS_PICKLE))

    @classmethod
    def from_pretrained(
        cls: type[SelfHubModel],
        repo_id: str,
        env: GymEnv | str | None = None,
        device: th.device | str = "auto",
        *,
        trust_pickle: bool = False,
        revision: str | None = None,
        token: str | None = None,
        cache_dir: str | Path | None = None,
        **kwargs: Any,
    ) -> SelfHubModel:
        """
        Download a model from the Hugging Face Hub, and read it with :meth:`load_exported`: nothing in the repository is
        executed. Needs the extra ``hub``.

        :param repo_id: the repository, ``"organization/name"``
        :param env: as in :meth:`load_exported`
        :param device: PyTorch device
        :param trust_pickle: read the zip file with :meth:`load` instead, which also has the optimizer's state, and the
            pickled statistics of ``VecNormalize``. Both run code of whoever wrote them on your machine
        :param revision: branch, tag or commit; the newest if ``None``
        :param token: access token in place of the one of ``hf auth login``, for private repositories
        :param cache_dir: where downloads are kept, in place of the Hub client's cache
        :param kwargs: for :meth:`load_exported`; with ``trust_pickle`` for :meth:`load`
        :return: the model
        :raises ValueError: if the repository holds no such model, or something in it, or the environment, does not fit
        """
        exported = [f"{EXPORT}/{name}" for name in repository.EXPORT_FILES]
        patterns = {
            "allow_patterns": ["*.zip", STATISTICS_PICKLE] if trust_pickle else exported,
            "ignore_patterns": [METRICS, "*/*.zip"],
        }
        download = client().snapshot_download
        snapshot = Path(download(repo_id, revision=revision, token=token, cache_dir=cache_dir, **patterns))
        if trust_pickle:
            return cls._load_pickles(repo_id, snapshot, env, device=device, **kwargs)
        with repository.copied_export(snapshot, repo_id) as folder:
            return cls.load_exported(folder, env, device, **kwargs)

    @classmethod
    def _load_pickles(
        cls: type[SelfHubModel], repo_id: str, folder: Path, env: GymEnv | str | None, **kwargs: Any
    ) -> SelfHubModel:
        names = sorted(path.name for path in folder.glob("*.zip") if path.name != METRICS)
        if len(names) != 1:
            raise ValueError(
                f"with `trust_pickle=True`, `repo_id` must name a repository with one zip file of a model, got "
                f"{repo_id!r}, which has {names or 'none'}"
            )
        venv = None if env is None else vectorized(env)
        if (folder / STATISTICS_PICKLE).is_file() and (venv is None or not is_vecenv_wrapped(venv, VecNormalize)):
            vec_normalize = pickle.loads((folder / STATISTICS_PICKLE).read_bytes())
            vec_normalize.training = False
            kwargs["_vec_normalize_env"] = vec_normalize
            if venv is not None:
                vec_normalize.set_venv(venv)
                venv = vec_normalize
        return cls.load(folder / names[0], env=venv, **kwargs)

    def predictor_for(self, env: VecEnv) -> Any:
        """
        :param env: environments to play in
        :return: what plays in them: the model, or what gives its ``predict`` more than SB3 does
        """
        return self

    def _setup_learn(self, *args: Any, **kwargs: Any) -> Any:
        self._env_id()
        return super()._setup_learn(*args, **kwargs)

    def _env_id(self) -> str | None:
        """:return: what ``gymnasium.make`` calls the model's environment, asked for once, if that is known"""
        if self._known_env[0] is not self.env:
            self._known_env = (self.env, repository.find_env_id(self.env))
        return self._known_env[1]

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "_known_env"]


def evaluate(model: HubModel, env: VecEnv, exported: Path, n_episodes: int, deterministic: bool) -> card.Evaluation:
    """:return: the scores in an environment, with the statistics of the exported model if there are any"""
    if (exported / STATISTICS).is_file() and not is_vecenv_wrapped(env, VecNormalize):
        env = load_vec_normalize(exported, env)
        env.norm_reward = False
    player = model.predictor_for(env)
    scores, _ = evaluate_policy(player, env, n_episodes, deterministic, return_episode_rewards=True, warn=False)
    is_monitored = is_vecenv_wrapped(env, VecMonitor) or env.env_is_wrapped(Monitor)[0]
    rewards = "as its `Monitor` counts them" if is_monitored else "as they are after all of its wrappers"
    protocol = f"A score is the sum of the rewards of a whole episode, {rewards}."
    return card.Evaluation(np.array(scores), deterministic, protocol)


def find_playable(cls: type[HubModel], env_id: str | None, folder: Path) -> str:
    """:return: code of an environment that needs its name alone, which is tried with an exported model; or nothing"""
    is_known = repository.entry_point(env_id).startswith("gymnasium.")
    if env_id is not None and is_known and cls.predictor_for is HubModel.predictor_for:
        with suppress(ValueError, gym.error.Error), closing(vectorized(env_id)) as env:
            cls.load_exported(folder / EXPORT, env, device="cpu")  # refused if it has wrappers that change its spaces
            return f'"{env_id}"'
    return ""


def program(
    cls: type, repo_id: str, env: str = "", setup: str = "", imports: Iterable[str] = (), deterministic: bool = True
) -> str:
    """:return: program that loads a model, and plays if there is code of an environment, after what sets it up"""
    name, package = cls.__name__, cls.__module__.partition(".")[0]
    is_public = getattr(import_module(package), name, None) is cls
    imports = [f"from {package if is_public else cls.__module__} import {name}", *imports]
    if not env:
        use = f'model = {name}.from_pretrained("{repo_id}")\nprint(model.observation_space, model.action_space)'
    else:
        imports.append("from stable_baselines3.common.evaluation import evaluate_policy")
        arguments = "model, model.get_env()" if deterministic else "model, model.get_env(), deterministic=False"
        use = f"""\
{setup}model = {name}.from_pretrained("{repo_id}", env={env})
mean_reward, std_reward = evaluate_policy({arguments})
print(f"{{mean_reward:.2f}} +/- {{std_reward:.2f}}")"""
    return "\n".join([*sorted(imports), "", use])
