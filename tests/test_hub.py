"""The Hugging Face Hub: the real client against a server on this machine that speaks the Hub's API."""

import base64
import importlib.util
import json
import os
import pickle
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import yaml
from commands import Command, runner
from gymnasium.envs.classic_control import CartPoleEnv
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecMonitor, VecNormalize

from sb3_dapo import DAPO
from sb3_dapo.export import ExportError
from sb3_dapo.hub import confidence_interval, entry_point, requirement

huggingface_hub = pytest.importorskip("huggingface_hub")

from hub_server import TOKEN, Blob, Disconnected, HubServer, Repository, running_hub  # noqa: E402
from huggingface_hub import constants  # noqa: E402
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError  # noqa: E402

REPO = "lab/agent"
EXPORT = {"export/model.json", "export/policy.safetensors"}


def use(patch: pytest.MonkeyPatch, server: HubServer, cache: Path) -> None:
    """Lead the client to a server, and to a cache folder."""
    # HF_ENDPOINT is read when the client is imported; a test in another process sets it
    patch.setattr(constants, "ENDPOINT", server.url)
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE
    patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + template[template.index("/{repo_id}") :])
    patch.setattr(constants, "HF_HUB_CACHE", str(cache))
    patch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # the protocol of the server is plain HTTP
    patch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
    patch.setenv("HF_TOKEN", TOKEN)
    patch.setattr("huggingface_hub.utils._http.time", SimpleNamespace(sleep=lambda seconds: None))


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    with running_hub() as server:
        use(monkeypatch, server, tmp_path / "cache")
        yield server


def small_model(env: Any = "CartPole-v1", **settings: Any) -> DAPO:
    return DAPO("MlpPolicy", env, n_steps=32, batch_size=32, n_epochs=2, device="cpu", **settings).learn(64)


@pytest.fixture(scope="module")
def model() -> DAPO:
    return small_model(seed=0)


def add_files(hub: HubServer, files: dict[str, bytes | None], repo_id: str = REPO) -> None:
    """Commit files, as the author of a repository can; `None` removes one."""
    repository = hub.repositories.setdefault(repo_id, Repository(is_private=False))
    old = repository.commits[-1].files if repository.commits else {}
    new = {path: Blob(data, is_large=True) for path, data in files.items() if data is not None}
    hub.large_files.update({blob.sha256: blob.data for blob in new.values()})
    kept = {path: blob for path, blob in old.items() if path not in files}
    repository.commit("by hand", {**kept, **new})


def assert_same_actions(first: DAPO, second: DAPO) -> None:
    observations = np.stack([first.observation_space.sample() for _ in range(50)])
    assert np.array_equal(*(model.predict(observations, deterministic=True)[0] for model in (first, second)))
    parameters, others = first.policy.state_dict(), second.policy.state_dict()
    assert parameters.keys() == others.keys()
    assert all(tensor.equal(others[name]) for name, tensor in parameters.items())


# --- from Python --------------------------------------------------------------------------------------


def test_push_and_load_elsewhere(hub: HubServer, model: DAPO, tmp_path: Path) -> None:
    url = model.push_to_hub(REPO, eval_env="CartPole-v1", n_eval_episodes=3, commit_message="First")
    assert url == f"{hub.url}/{REPO}"
    repository = hub.repositories[REPO]
    assert [commit.message for commit in repository.commits] == ["initial commit", "First"]
    assert set(repository.files) == {".gitattributes", "README.md", "agent.zip", "results.json", *EXPORT}

    hub.requests.clear()
    elsewhere = tmp_path / "elsewhere"
    loaded = DAPO.from_pretrained(REPO, device="cpu", cache_dir=elsewhere)
    assert_same_actions(model, loaded)
    assert loaded.num_timesteps == 64
    assert (elsewhere / "models--lab--agent").is_dir() and not (tmp_path / "cache").exists()
    assert not any(".zip" in request for request in hub.requests)


def test_downloads_are_cached(hub: HubServer, model: DAPO, monkeypatch: pytest.MonkeyPatch) -> None:
    model.push_to_hub(REPO)
    DAPO.from_pretrained(REPO)
    hub.requests.clear()
    DAPO.from_pretrained(REPO)
    assert hub.requests == [f"GET /api/models/{REPO}/revision/main"]
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert_same_actions(model, DAPO.from_pretrained(REPO))


def test_revisions(hub: HubServer, model: DAPO) -> None:
    model.push_to_hub(REPO)
    first = hub.repositories[REPO].commits[-1].id
    second_model = small_model(seed=1)
    second_model.push_to_hub(REPO)
    assert_same_actions(second_model, DAPO.from_pretrained(REPO))
    assert_same_actions(model, DAPO.from_pretrained(REPO, revision=first))
    with pytest.raises(RevisionNotFoundError):
        DAPO.from_pretrained(REPO, revision="no-such-branch")


def test_private_repositories(hub: HubServer, model: DAPO, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", "/does/not/exist")
    model.push_to_hub(REPO, private=True, token=TOKEN)
    assert hub.repositories[REPO].is_private
    with pytest.raises(RepositoryNotFoundError):
        DAPO.from_pretrained(REPO)
    assert_same_actions(model, DAPO.from_pretrained(REPO, token=TOKEN))


def test_vec_normalize(hub: HubServer) -> None:
    env = VecNormalize(make_vec_env("CartPole-v1", n_envs=2))
    model = small_model(env)
    model.push_to_hub(REPO, eval_env="CartPole-v1", n_eval_episodes=2)
    assert {"vec_normalize.pkl", "export/vec_normalize.safetensors"} < set(hub.repositories[REPO].files)
    observations = np.random.default_rng(0).normal(size=(5, 4))
    expected = env.normalize_obs(observations)
    for kwargs in ({}, {"trust_pickle": True}, {"env": "CartPole-v1"}, {"env": "CartPole-v1", "trust_pickle": True}):
        loaded = DAPO.from_pretrained(REPO, **kwargs)
        assert_same_actions(model, loaded)
        statistics = loaded.get_vec_normalize_env()
        assert np.array_equal(statistics.normalize_obs(observations), expected)
        assert not statistics.training
        assert (loaded.get_env() is None) == ("env" not in kwargs)

    own = VecNormalize(make_vec_env("CartPole-v1"), norm_obs=False)
    assert DAPO.from_pretrained(REPO, env=own).get_vec_normalize_env() is own


class Shifted(gym.ObservationWrapper):
    """CartPole, far from where a policy expects its observations."""

    def observation(self, observation: Any) -> Any:
        return observation + 100


def test_scores_in_the_card_are_with_the_statistics(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_model(VecNormalize(make_vec_env("CartPole-v1", n_envs=2, wrapper_class=Shifted)))
    seen = []
    predict = DAPO.predict
    monkeypatch.setattr(DAPO, "predict", lambda self, obs, *args, **kwargs: seen.append(obs) or predict(self, obs))
    model.push_to_hub(REPO, eval_env=Shifted(gym.make("CartPole-v1")), n_eval_episodes=1)
    assert seen and np.abs(np.concatenate(seen)).max() < 50


def test_a_second_upload_replaces_the_first(hub: HubServer, model: DAPO) -> None:
    small_model(VecNormalize(make_vec_env("CartPole-v1"))).push_to_hub(REPO, eval_env="CartPole-v1", n_eval_episodes=1)
    add_files(hub, {"replay.mp4": b"of the old agent", "config.yml": b"{}", "agent/data": b"{}", "LICENSE": b"mine"})
    model.push_to_hub(REPO)
    assert set(hub.repositories[REPO].files) == {".gitattributes", "README.md", "agent.zip", "LICENSE", *EXPORT}
    assert "No evaluation was made" in hub.repositories[REPO].files["README.md"].decode()
    assert_same_actions(model, DAPO.from_pretrained(REPO))


def test_what_cannot_be_described(hub: HubServer) -> None:
    model = small_model(learning_rate=lambda progress: 1e-3 * progress)
    with pytest.warns(UserWarning, match="learning_rate cannot be described"):
        model.push_to_hub(REPO)
    assert "Pass `learning_rate` to `from_pretrained`" in hub.repositories[REPO].files["README.md"].decode()
    with pytest.raises(ExportError, match="'learning_rate' was left out"):
        DAPO.from_pretrained(REPO)
    assert_same_actions(model, DAPO.from_pretrained(REPO, learning_rate=1e-3))


@pytest.mark.parametrize("n_episodes", [0, 1.5, "3"])
def test_wrong_number_of_episodes(hub: HubServer, model: DAPO, n_episodes: Any) -> None:
    with pytest.raises(ValueError, match="`n_eval_episodes` must be"):
        model.push_to_hub(REPO, eval_env="CartPole-v1", n_eval_episodes=n_episodes)
    assert not hub.repositories


def test_the_client_is_asked_for(model: DAPO, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    for call in (lambda: model.push_to_hub(REPO), lambda: DAPO.from_pretrained(REPO)):
        with pytest.raises(ModuleNotFoundError, match=re.escape("pip install 'sb3-dapo[hub]'")):
            call()


# --- what strangers may hold --------------------------------------------------------------------------


class Evil:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.folder),)


@pytest.fixture
def evil_zip(model: DAPO, tmp_path: Path) -> tuple[bytes, Path]:
    """A zip file of a model that makes a folder when it is loaded, and the folder."""
    marker, path, evil_path = tmp_path / "code-was-run", tmp_path / "model.zip", tmp_path / "evil.zip"
    model.save(path)
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(evil_path, "w") as target:
        for name in source.namelist():
            content = source.read(name)
            if name == "data":
                data = json.loads(content)
                data["clip_range"][":serialized:"] = base64.b64encode(pickle.dumps(Evil(marker))).decode()
                content = json.dumps(data).encode()
            target.writestr(name, content)
    return evil_path.read_bytes(), marker


@pytest.mark.filterwarnings("ignore:Could not deserialize")
def test_no_pickle_runs_unless_trusted(hub: HubServer, model: DAPO, evil_zip: tuple[bytes, Path]) -> None:
    data, marker = evil_zip
    model.push_to_hub(REPO)
    add_files(hub, {"agent.zip": data, "vec_normalize.pkl": pickle.dumps(Evil(marker))})
    assert_same_actions(model, DAPO.from_pretrained(REPO))
    assert_same_actions(model, DAPO.from_pretrained(REPO, env="CartPole-v1"))
    assert not marker.exists()

    add_files(hub, {"export/model.json": None})
    with pytest.raises(
        ValueError, match="`repo_id` must name a repository with an exported model.*`trust_pickle=True`"
    ):
        DAPO.from_pretrained(REPO)
    assert not marker.exists()

    add_files(hub, {"vec_normalize.pkl": None})
    with pytest.raises(Exception):  # noqa: B017 whatever comes of a schedule that is None
        DAPO.from_pretrained(REPO, trust_pickle=True)
    assert marker.exists()


def test_trusted_zip_files(hub: HubServer, model: DAPO) -> None:
    model.push_to_hub(REPO)
    loaded = DAPO.from_pretrained(REPO, env="CartPole-v1", trust_pickle=True)
    assert_same_actions(model, loaded)
    moments = loaded.policy.optimizer.state_dict()["state"]
    assert moments and moments.keys() == model.policy.optimizer.state_dict()["state"].keys()

    add_files(hub, {"train_eval_metrics.zip": b"no model", "old/agent.zip": b"not at the top"})
    DAPO.from_pretrained(REPO, trust_pickle=True)
    add_files(hub, {"another.zip": b"which one?"})
    with pytest.raises(
        ValueError, match=r"one zip file of a model, got 'lab/agent', which has \['agent.zip', 'another"
    ):
        DAPO.from_pretrained(REPO, trust_pickle=True)
    add_files(hub, {"another.zip": None, "agent.zip": None})
    with pytest.raises(ValueError, match="one zip file of a model, got 'lab/agent', which has none"):
        DAPO.from_pretrained(REPO, trust_pickle=True)


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("export/model.json", b"{}", "lab/agent/export: model.json: it does not describe a model"),
        ("export/policy.safetensors", b"\0" * 100, "lab/agent/export: policy.safetensors is damaged"),
        ("export/policy.safetensors", None, "lab/agent/export: there is no policy.safetensors"),
    ],
    ids=["description", "damaged", "missing"],
)
def test_damaged_exports(hub: HubServer, model: DAPO, name: str, data: bytes | None, message: str) -> None:
    model.push_to_hub(REPO)
    add_files(hub, {name: data})
    with pytest.raises(ExportError, match=message):
        DAPO.from_pretrained(REPO)


# --- what goes wrong on the way -----------------------------------------------------------------------


def test_missing_repository(hub: HubServer) -> None:
    with pytest.raises(RepositoryNotFoundError, match="lab/agent"):
        DAPO.from_pretrained(REPO)
    with pytest.raises(ValueError):  # "a/b/c" is no name of a repository
        DAPO.from_pretrained("a/b/c")


def test_wrong_token(hub: HubServer, model: DAPO, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_a_wrong_token")
    with pytest.raises(HfHubHTTPError, match="Invalid credentials"):
        model.push_to_hub(REPO)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with pytest.raises(HfHubHTTPError, match="don't have the rights"):
        model.push_to_hub("strangers/agent")
    assert not hub.repositories


def test_interrupted_upload(hub: HubServer, model: DAPO) -> None:
    """An upload that breaks off changes nothing, and the next one sends what is still missing."""
    model.push_to_hub(REPO)
    n_large = len(hub.large_files)
    puts: list[str] = []

    def disturb(request: str) -> None:
        if request.startswith("PUT"):
            puts.append(request)
            if len(set(puts)) > 1 and request != puts[0]:
                raise Disconnected

    new_model = small_model(seed=1)
    hub.disturb = disturb
    with pytest.raises(RuntimeError, match="Error while uploading"):
        new_model.push_to_hub(REPO)
    assert len(hub.repositories[REPO].commits) == 2
    assert len(hub.large_files) == n_large + 1
    assert_same_actions(model, DAPO.from_pretrained(REPO))

    hub.disturb = lambda request: None
    hub.requests.clear()
    new_model.push_to_hub(REPO)
    assert puts[0] not in hub.requests or puts[0].endswith(".zip")
    assert_same_actions(new_model, DAPO.from_pretrained(REPO))


def test_connections_that_break_once_are_tried_again(hub: HubServer, model: DAPO) -> None:
    broken: set[str] = set()

    def disturb(request: str) -> None:
        if re.match(r"(PUT /storage|POST .*(preupload|batch|verify))", request) and request not in broken:
            broken.add(request)
            raise Disconnected

    hub.disturb = disturb
    model.push_to_hub(REPO)
    assert len(broken) == 5  # two large files are sent
    assert_same_actions(model, DAPO.from_pretrained(REPO))


# --- nothing is left behind ---------------------------------------------------------------------------


def test_models_whose_environments_are_closed(hub: HubServer) -> None:
    env = make_vec_env("CartPole-v1", n_envs=2, vec_env_cls=SubprocVecEnv)
    model = small_model(env)
    env.close()
    model.push_to_hub(REPO, eval_env="CartPole-v1", n_eval_episodes=1)
    assert "# DAPO on CartPole-v1\n" in hub.repositories[REPO].files["README.md"].decode()
    model.push_to_hub("lab/again")
    assert "# DAPO on CartPole-v1\n" in hub.repositories["lab/again"].files["README.md"].decode()
    assert_same_actions(model, DAPO.from_pretrained(REPO, env="CartPole-v1"))

    # One that is closed before it says anything
    env = make_vec_env("CartPole-v1", n_envs=2, vec_env_cls=SubprocVecEnv)
    unused = DAPO("MlpPolicy", env, n_steps=32, batch_size=32, device="cpu")
    env.close()
    unused.push_to_hub(REPO)
    assert "# DAPO agent\n" in hub.repositories[REPO].files["README.md"].decode()


def test_closed_atari_environments(hub: HubServer) -> None:
    pytest.importorskip("ale_py")
    from sb3_dapo.atari_vec_env import AtariVecEnv

    env = AtariVecEnv("BreakoutNoFrameskip-v4", 2)
    model = DAPO("CnnPolicy", env, n_steps=8, batch_size=16, n_epochs=1, device="cpu").learn(16)
    env.close()
    model.push_to_hub(REPO)
    assert "# DAPO on BreakoutNoFrameskip-v4\n" in hub.repositories[REPO].files["README.md"].decode()


def test_environments_made_for_an_upload_are_closed(
    hub: HubServer, model: DAPO, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, closed = list[gym.Env](), list[gym.Env]()
    init, close = CartPoleEnv.__init__, CartPoleEnv.close
    monkeypatch.setattr(CartPoleEnv, "__init__", lambda env, **kwargs: made.append(env) or init(env, **kwargs))
    monkeypatch.setattr(CartPoleEnv, "close", lambda env: closed.append(env) or close(env))
    model.push_to_hub(REPO, eval_env="CartPole-v1", n_eval_episodes=1)
    assert len(made) == 2 and set(closed) == set(made)  # one is played in, one tells whether the card's program works

    own = gym.make("CartPole-v1")
    model.push_to_hub(REPO, eval_env=own, n_eval_episodes=1)
    assert len(made) == 4 and set(made) - set(closed) == {own.unwrapped}
    own.close()

    monkeypatch.setattr(DAPO, "predict", fail)
    with pytest.raises(OSError, match="it failed"):
        model.push_to_hub(REPO, eval_env="CartPole-v1")
    assert len(made) == 5 and set(closed) == set(made)


def make_unpicklable() -> gym.Env:
    gym.register("Unpicklable-v0", entry_point=lambda **kwargs: CartPoleEnv(**kwargs))
    return gym.make("Unpicklable-v0")


def test_workers_survive_the_question_for_their_environment(hub: HubServer) -> None:
    """The worker of a `SubprocVecEnv` ends when it is asked for something that cannot be pickled."""
    env = VecMonitor(SubprocVecEnv([make_unpicklable, make_unpicklable]))
    model = small_model(env)
    model.push_to_hub(REPO)
    assert "# DAPO agent\n" in hub.repositories[REPO].files["README.md"].decode()
    model.learn(64)
    env.close()


class SilentVecEnv(DummyVecEnv):
    """As those of simulators, which know nothing of attributes."""

    answers: Any = None

    def get_attr(self, attr_name: str, indices: Any = None) -> Any:
        if attr_name != "spec":
            return super().get_attr(attr_name, indices)
        if isinstance(self.answers, Exception):
            raise self.answers
        return self.answers


@pytest.mark.parametrize("answers", [None, [], [None], [SimpleNamespace()], NotImplementedError()], ids=str)
def test_environments_that_know_no_id(hub: HubServer, answers: Any) -> None:
    env = SilentVecEnv([lambda: gym.make("CartPole-v1")])
    env.answers = answers
    small_model(env).push_to_hub(REPO)
    assert "# DAPO agent\n" in hub.repositories[REPO].files["README.md"].decode()


def fail(*args: Any, **kwargs: Any) -> Any:
    raise OSError("it failed")


@pytest.mark.parametrize("failing", ["export", "save", "predict", "statistics", "card"])
def test_what_fails_fails_before_there_is_a_repository(
    hub: HubServer, failing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = small_model(VecNormalize(make_vec_env("CartPole-v1")))
    if failing == "statistics":
        monkeypatch.setattr(VecNormalize, "save", fail)
    elif failing == "card":
        monkeypatch.setattr(huggingface_hub, "metadata_save", fail)
    else:
        monkeypatch.setattr(DAPO, failing, fail)
    with pytest.raises(OSError, match="it failed"):
        model.push_to_hub(REPO, eval_env="CartPole-v1", n_eval_episodes=1)
    assert not hub.repositories and not hub.requests


def test_names_of_repositories(hub: HubServer, model: DAPO) -> None:
    assert model.push_to_hub("agent") == f"{hub.url}/my-name/agent"
    card = hub.repositories["my-name/agent"].files["README.md"].decode()
    assert 'DAPO.from_pretrained("my-name/agent", env="CartPole-v1")' in card
    hub.requests.clear()
    with pytest.raises(ValueError, match="a/b/c"):
        model.push_to_hub("a/b/c", eval_env=gym.Env())  # an environment that cannot be played in
    assert not hub.requests


class Sibling(DAPO):
    """An algorithm of a user, with an argument of its own."""

    def __init__(self, *args: Any, bonus: float = 0.5, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.bonus = bonus


def test_a_sibling_has_a_card_of_its_own(hub: HubServer) -> None:
    model = Sibling("MlpPolicy", "CartPole-v1", n_steps=32, batch_size=32, bonus=0.25, device="cpu").learn(32)
    model.push_to_hub(REPO, eval_env="CartPole-v1", n_eval_episodes=1)
    repository = hub.repositories[REPO]
    assert repository.commits[-1].message == "Upload Sibling agent"
    card = repository.files["README.md"].decode()
    assert "# Sibling on CartPole-v1\n" in card and "| argument of `Sibling` | value |" in card
    assert "| `bonus` | `0.25` |" in card and "DAPO" not in card
    assert front_matter(card)["model-index"][0]["name"] == "Sibling"
    assert f"from {__name__} import Sibling" in card
    assert 'Sibling.from_pretrained("lab/agent", env="CartPole-v1")' in card
    loaded = Sibling.from_pretrained(REPO, env="CartPole-v1")
    assert type(loaded) is Sibling and loaded.bonus == 0.25
    assert_same_actions(model, loaded)


# --- model card ---------------------------------------------------------------------------------------


def code_blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


def front_matter(text: str) -> dict[str, Any]:
    return yaml.safe_load(text.split("---\n")[1])


def test_card_of_a_model_from_python(hub: HubServer, model: DAPO, capsys: pytest.CaptureFixture[str]) -> None:
    model.push_to_hub(REPO, eval_env="CartPole-v1", n_eval_episodes=4, deterministic=False)
    files = hub.repositories[REPO].files
    card, results = files["README.md"].decode(), json.loads(files["results.json"])
    scores = np.array(results["episode_rewards"])
    assert len(scores) == results["n_eval_episodes"] == 4 and not results["is_deterministic"]
    assert results["mean_reward"] == scores.mean() and results["std_reward"] == scores.std()
    low, high = confidence_interval(scores)
    row = f"| this agent | {scores.mean():.2f} | {low:.2f} to {high:.2f} | {scores.std():.2f} | 4 |"
    assert row in card
    assert "draws its actions from its policy (stochastic)" in card
    assert "**not** the method for training language models" in card
    assert "author    = {Wang, Qing and Li, Yingru and Xiong, Jiechao and Zhang, Tong}" in card
    assert "| `n_steps` | `32` |" in card and "Trained for 64 steps" in card

    (program,) = code_blocks(card, "python")
    exec(program, {})
    assert re.search(r"\d+\.\d\d \+/- \d+\.\d\d", capsys.readouterr().out)


def test_metadata_are_those_of_huggingface_sb3(hub: HubServer, model: DAPO) -> None:
    """Leaderboards read what that package writes."""
    library = pytest.importorskip("huggingface_sb3") and sys.modules["huggingface_sb3.push_to_hub"]
    model.push_to_hub(REPO, eval_env="CartPole-v1", n_eval_episodes=4)
    files = hub.repositories[REPO].files
    metadata, results = front_matter(files["README.md"].decode()), json.loads(files["results.json"])
    arguments = ("DAPO", "CartPole-v1", results["mean_reward"], results["std_reward"])
    expected = library._generate_metadata(*arguments).to_dict()
    assert metadata.pop("tags")[: len(expected["tags"])] == expected.pop("tags")
    assert metadata == expected
    (value,) = (entry["metrics"][0]["value"] for entry in metadata["model-index"][0]["results"])
    assert value == f"{results['mean_reward']:.2f} +/- {results['std_reward']:.2f}"


def test_card_without_environment_or_score(hub: HubServer, model: DAPO) -> None:
    agent = deepcopy(model)
    agent.env = None
    agent.push_to_hub(REPO)
    card = hub.repositories[REPO].files["README.md"].decode()
    assert "# DAPO agent\n" in card and "No evaluation was made" in card
    assert "model-index" not in front_matter(card)
    (program,) = code_blocks(card, "python")
    assert "env=" not in program
    exec(program, {})


def test_interval_covers_the_mean_of_the_distribution() -> None:
    rng = np.random.default_rng(0)
    covered = [low <= 5 <= high for low, high in (confidence_interval(rng.exponential(5, 50)) for _ in range(100))]
    assert 0.85 < np.mean(covered) < 0.98
    assert confidence_interval(np.full(10, 500.0)) == (500, 500)


def test_requirements_of_environments() -> None:
    assert requirement("CartPole-v1", "zoo") == "sb3-dapo[hub,zoo]"
    assert requirement("LunarLander-v3") == "sb3-dapo[hub,box2d]"
    assert requirement("HalfCheetah-v5") == "sb3-dapo[hub,mujoco]"
    assert requirement(None) == requirement("Unknown-v0") == "sb3-dapo[hub]"
    assert entry_point("CartPole-v1") == "gymnasium.envs.classic_control.cartpole"
    pytest.importorskip("ale_py")
    assert requirement("BreakoutNoFrameskip-v4", "zoo") == "sb3-dapo[hub,zoo,atari]"


# --- RL Zoo -------------------------------------------------------------------------------------------

ZOO_REPO = "lab/dapo-CartPole-v1"


@pytest.fixture
def command(empty_folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Command:
    """Run `sb3-dapo` with arguments in an empty folder, return what it prints."""
    return runner(monkeypatch, capfd)


SMALL = ("--hyperparams", "n_envs:2", "n_steps:32", "batch_size:64", "n_epochs:1")


def train(command: Command, *hyperparams: str) -> None:
    command(
        *("train", "--env", "CartPole-v1", "-n", "128", "--seed", "1", "--verbose", "0"),
        *("--eval-freq", "32", "--eval-episodes", "2", *SMALL, *hyperparams),
    )


def push(command: Command, *arguments: str) -> str:
    return command("push-to-hub", "--env", "CartPole-v1", "-orga", "lab", "--eval-episodes", "3", *arguments)


def test_zoo_round_trip(hub: HubServer, command: Command, capfd: pytest.CaptureFixture[str]) -> None:
    """All that the Zoo uploads arrives, the commands of the card work, and the agent is the same everywhere."""
    train(command)
    Path("test.mp4").touch()  # a file of the user, which the Zoo would delete
    output = push(command, "-n", "30")
    assert "Your model is pushed to the hub" in output
    assert {path.name for path in Path().iterdir()} == {"logs", "test.mp4"}
    files = hub.repositories[ZOO_REPO].files
    unpacked = {name for name in files if name.startswith("dapo-CartPole-v1/")}
    assert {"dapo-CartPole-v1/data", "dapo-CartPole-v1/policy.pth"} < unpacked
    assert set(files) - unpacked == {
        *(".gitattributes", "README.md", "args.yml", "config.yml", "dapo-CartPole-v1.zip", "env_kwargs.yml"),
        *("learning_curve.png", "replay.mp4", "results.json", "train_eval_metrics.zip", *EXPORT),
    }
    assert b"*.mp4 filter=lfs" in files[".gitattributes"] and b"*.safetensors" in files[".gitattributes"]
    assert files["replay.mp4"][4:8] == b"ftyp" and b"moov" in files["replay.mp4"]
    assert files["learning_curve.png"].startswith(b"\x89PNG")
    assert yaml.safe_load(files["env_kwargs.yml"]) == {}

    # The score is that of the agent: play the same games again
    trained = DAPO.load("logs/dapo/CartPole-v1_1/CartPole-v1.zip", device="cpu")
    results = json.loads(files["results.json"])
    scores, _ = evaluate_policy(trained, make_vec_env("CartPole-v1", seed=0), 3, True, return_episode_rewards=True)
    assert results["episode_rewards"] == scores and results["is_deterministic"]
    card = files["README.md"].decode()
    assert f"| this agent | {np.mean(scores):.2f} |" in card and "| uniform random policy |" in card
    assert "plays its most likely action (deterministic)" in card and "(learning_curve.png)" in card
    value = front_matter(card)["model-index"][0]["results"][0]["metrics"][0]["value"]
    assert value == f"{np.mean(scores):.2f} +/- {np.std(scores):.2f}"

    # A reader who follows the card, in an empty folder
    os.mkdir("reader")
    os.chdir("reader")
    pip, load, enjoy, train_again = (line for block in code_blocks(card, "sh") for line in block.splitlines())
    assert pip == 'pip install "sb3-dapo[hub,zoo]"'
    assert "Watch it play: sb3-dapo enjoy --algo dapo --env CartPole-v1" in command(*load.split()[1:])
    assert "Mean reward" in command(*enjoy.split()[1:], "--no-render", "-n", "60")
    assert_same_actions(trained, DAPO.load("logs/dapo/CartPole-v1_1/CartPole-v1.zip", device="cpu"))
    assert_same_actions(trained, DAPO.from_pretrained(ZOO_REPO, device="cpu"))
    Path("dapo.yml").write_text(code_blocks(card, "yaml")[0])
    command(*train_again.split()[1:], "--eval-freq", "32", "--eval-episodes", "2", "--verbose", "0")
    assert_same_actions(trained, DAPO.load("logs/dapo/CartPole-v1_2/CartPole-v1.zip", device="cpu"))
    capfd.readouterr()
    exec(code_blocks(card, "python")[0], {})
    assert re.search(r"\d+\.\d\d \+/- \d+\.\d\d", capfd.readouterr().out)


def test_zoo_minatar(hub: HubServer, command: Command) -> None:
    pytest.importorskip("minatar.gym").register_envs()
    command("train", "--env", "MinAtar/Breakout-v1", "-n", "128", "--eval-freq", "-1", "--verbose", "0", *SMALL)
    arguments = ("-orga", "lab", "--eval-episodes", "2", "--no-render", "-name", "agent")
    command("push-to-hub", "--env", "MinAtar/Breakout-v1", *arguments)
    card = hub.repositories[REPO].files["README.md"].decode()
    assert "# DAPO on MinAtar/Breakout-v1\n" in card and 'pip install "sb3-dapo[hub,zoo,minatar]"' in card
    trained = DAPO.load("logs/dapo/MinAtar-Breakout-v1_1/MinAtar-Breakout-v1.zip", device="cpu")
    loaded = DAPO.from_pretrained(REPO, make_vec_env("MinAtar/Breakout-v1"), device="cpu")
    assert_same_actions(trained, loaded)
    scores = json.loads(hub.repositories[REPO].files["results.json"])["episode_rewards"]
    env = make_vec_env("MinAtar/Breakout-v1", seed=0)
    assert evaluate_policy(loaded, env, 2, deterministic=True, return_episode_rewards=True)[0] == scores
    trained.push_to_hub("lab/from-python", eval_env=make_vec_env("MinAtar/Breakout-v1"), n_eval_episodes=1)
    card = hub.repositories["lab/from-python"].files["README.md"].decode()
    assert "# DAPO on MinAtar/Breakout-v1\n" in card and "[hub,minatar]" in card


def test_zoo_environment_of_the_user(hub: HubServer, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """The card names the module that registers it."""
    entry_point = "gymnasium.envs.classic_control:CartPoleEnv"
    register = f"gym.register('Mine-v0', '{entry_point}', max_episode_steps=20)"
    Path("my_envs.py").write_text(f"import gymnasium as gym\n\n{register}\n")
    monkeypatch.syspath_prepend(Path.cwd())

    def forget() -> None:
        """As in a new process."""
        gym.registry.pop("Mine-v0", None)
        sys.modules.pop("my_envs", None)

    forget()
    command(
        *("train", "--env", "Mine-v0", "--gym-packages", "my_envs", "-n", "128", "--seed", "1", "--verbose", "0"),
        *("--eval-freq", "-1", *SMALL, "--env-kwargs", "sutton_barto_reward:True"),
    )
    forget()
    command("push-to-hub", "--env", "Mine-v0", "-orga", "lab", "-name", "agent", "--no-render", "--eval-episodes", "2")
    card = hub.repositories[REPO].files["README.md"].decode()
    train_again = code_blocks(card, "sh")[-1].strip()
    given = "--seed 1 --gym-packages my_envs --env-kwargs sutton_barto_reward:True -n 128"
    assert train_again == f"sb3-dapo train --env Mine-v0 --conf-file dapo.yml {given}"
    Path("dapo.yml").write_text(code_blocks(card, "yaml")[0])
    for run in (lambda: command(*train_again.split()[1:]), lambda: exec(code_blocks(card, "python")[0], {})):
        forget()
        run()
    forget()
    first, second = (DAPO.load(f"logs/dapo/Mine-v0_{number}/Mine-v0.zip", device="cpu") for number in (1, 2))
    assert_same_actions(first, second)


def test_zoo_vec_normalize(hub: HubServer, command: Command) -> None:
    train(command, "normalize:True")
    push(command, "--no-render", "-name", "other-name", "-m", "With statistics")
    repository = hub.repositories["lab/other-name"]
    assert repository.commits[-1].message == "With statistics"
    assert {"vec_normalize.pkl", "export/vec_normalize.safetensors"} < set(repository.files)
    assert "replay.mp4" not in repository.files
    assert "-orga lab -name other-name --trust-pickle" in repository.files["README.md"].decode()

    command("load-from-hub", "--env", "CartPole-v1", "-orga", "lab", "-name", "other-name", "--trust-pickle")
    output = command("enjoy", "--env", "CartPole-v1", "--no-render", "-n", "60", "--exp-id", "2")
    assert "Loading running average" in output and "Mean reward" in output
    saved, exported = (
        VecNormalize.load("logs/dapo/CartPole-v1_2/CartPole-v1/vecnormalize.pkl", make_vec_env("CartPole-v1")),
        DAPO.from_pretrained("lab/other-name").get_vec_normalize_env(),
    )
    assert np.array_equal(saved.obs_rms.mean, exported.obs_rms.mean)

    # Without statistics: nothing of the old agent is left, and the Zoo's download does not miss the file
    train(command)
    push(command, "--no-render", "-name", "other-name")
    assert not any("normalize" in name for name in repository.files)
    output = command(
        "load-from-hub", "--env", "CartPole-v1", "-orga", "lab", "-name", "other-name", "--trust-pickle", "-f", "new"
    )
    assert "No normalization file" in output
    assert Path("new/dapo/CartPole-v1_1/CartPole-v1.zip").is_file()


def test_zoo_checkpoint_of_an_algorithm_of_the_user(hub: HubServer, command: Command) -> None:
    """With the statistics that the checkpoint has, and a card that names the class."""
    from sb3_dapo.zoo import register_algorithm

    register_algorithm("sibling", Sibling)
    named = ("--env", "CartPole-v1", "--algo", "sibling")
    command("train", *named, "-n", "256", "--save-freq", "64", "--eval-freq", "-1", *SMALL, "normalize:True")
    command("push-to-hub", *named, "-orga", "lab", "--no-render", "--eval-episodes", "2", "--load-checkpoint", "128")
    repository = hub.repositories["lab/sibling-CartPole-v1"]
    assert repository.commits[-1].message == "Upload Sibling agent"
    assert round(pickle.loads(repository.files["vec_normalize.pkl"]).obs_rms.count) == 128 + 2
    card = repository.files["README.md"].decode()
    assert "from test_hub import Sibling" in card and "Sibling.from_pretrained(" in card
    command("load-from-hub", *named, "-orga", "lab", "--trust-pickle")
    loaded = Sibling.load("logs/sibling/CartPole-v1_2/CartPole-v1.zip")
    assert (type(loaded), loaded.num_timesteps, loaded.bonus) == (Sibling, 128, 0.5)
    assert "Mean reward" in command("enjoy", *named, "--no-render", "-n", "100")


def test_failures_of_the_video_are_not_hidden(
    hub: HubServer, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(command)
    with monkeypatch.context() as patch:
        patch.setattr("moviepy.video.io.ffmpeg_writer.FFMPEG_BINARY", "/bin/false")
        with pytest.raises(RuntimeError, match="(?s)no replay.mp4 came of the recording.*--no-render"):
            push(command, "-n", "10")
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "moviepy", None)
        with pytest.raises(RuntimeError, match="no replay.mp4 came of the recording: MoviePy is not installed"):
            push(command, "-n", "10")
    assert not hub.repositories  # nothing is left of what failed
    push(command, "--no-render")
    assert "replay.mp4" not in hub.repositories[ZOO_REPO].files


def test_zoo_refusals(hub: HubServer, command: Command, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    train(command)
    load = ("load-from-hub", "--env", "CartPole-v1", "-orga", "lab")
    with pytest.raises(SystemExit):
        command(*load)
    assert "pass --trust-pickle" in capfd.readouterr().err
    assert not any("lab" in request for request in hub.requests)
    with pytest.raises(SystemExit, match=f"did not give {ZOO_REPO}.*"):
        command(*load, "--trust-pickle")

    DAPO.load("logs/dapo/CartPole-v1_1/CartPole-v1.zip").push_to_hub(ZOO_REPO)
    with pytest.raises(SystemExit, match=f"{ZOO_REPO} is not a whole agent of RL Zoo"):
        command(*load, "--trust-pickle")
    assert not Path("logs/dapo/CartPole-v1_2").exists()

    monkeypatch.setenv("HF_TOKEN", "hf_a_wrong_token")
    with pytest.raises(
        SystemExit, match=r"refused lab/dapo-CartPole-v1: (?s:.*)Invalid credentials(?s:.*)hf auth login"
    ):
        push(command, "--no-render")
    with pytest.raises(SystemExit):
        command("push-to-hub", "--env", "CartPole-v1", "-orga", "lab", "--algo", "ppo")


def test_zoo_without_a_connection(hub: HubServer, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    train(command)
    load = ("load-from-hub", "--env", "CartPole-v1", "-orga", "lab", "--trust-pickle")
    hub.shutdown()
    hub.server_close()
    with pytest.raises(SystemExit, match=f"{ZOO_REPO} was not uploaded, as the Hub cannot be reached"):
        push(command, "--no-render")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(SystemExit, match=f"{ZOO_REPO} was not uploaded, as the Hub cannot be reached"):
        push(command, "--no-render")
    with pytest.raises(SystemExit, match=f"{ZOO_REPO} was not downloaded, as the Hub cannot be reached"):
        command(*load)


def test_another_process_with_the_defaults_of_the_client(hub: HubServer, model: DAPO, tmp_path: Path) -> None:
    """What a user has who only sets HF_ENDPOINT. Large files go through Xet storage, which is a folder here."""
    if importlib.util.find_spec("hf_xet") is None:  # importing it would write into the home folder
        pytest.skip("hf_xet is not installed")
    hub.xet_folder = tmp_path / "xet"
    model.push_to_hub(REPO)
    hub.requests.clear()
    observations = np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32)
    np.save(tmp_path / "observations.npy", observations)
    code = f"""
import numpy as np
from sb3_dapo import DAPO
model = DAPO.from_pretrained({REPO!r}, device="cpu")
model.push_to_hub("lab/copy")
copy = DAPO.from_pretrained("lab/copy", device="cpu")
for model in (model, copy):
    print(model.predict(np.load("observations.npy"), deterministic=True)[0].tolist())
"""
    variables = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_TOKEN": TOKEN, "OMP_NUM_THREADS": "1"}
    process = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **variables}, cwd=tmp_path, capture_output=True, text=True
    )
    assert process.returncode == 0, process.stderr
    expected = model.predict(observations, deterministic=True)[0].tolist()
    assert [json.loads(line) for line in process.stdout.splitlines()] == [expected, expected]
    assert (tmp_path / "home" / "hub" / "models--lab--agent").is_dir()
    paths = [request.split("/", 1)[1] for request in hub.requests]
    assert "api/models/lab/copy/xet-write-token/main" in paths
    assert any(path.startswith("api/models/lab/copy/xet-read-token/") for path in paths)
    assert not any(request.startswith("PUT") for request in hub.requests)


# --- documentation ------------------------------------------------------------------------------------


def test_the_page_of_the_documentation(hub: HubServer, command: Command, capfd: pytest.CaptureFixture[str]) -> None:
    """Its programs are marked `py`, as they need a Hub: here is one."""
    page = (Path(__file__).parent.parent / "docs" / "hub.md").read_text()
    code = "\n".join(code_blocks(page, "py"))
    assert code.count("from_pretrained(") == 2 and code.count("push_to_hub(") == 1
    exec(compile(code.replace("learn(5_000)", "learn(1_024)"), "docs/hub.md", "exec"), {"__name__": "__main__"})
    assert "+/-" in capfd.readouterr().out

    short = {
        "train": ("-n", "128", "--eval-freq", "-1", *SMALL),
        "push-to-hub": ("-n", "20", "--eval-episodes", "2"),
        "enjoy": ("-n", "50"),
    }
    lines = [line for block in code_blocks(page, "sh") for line in block.splitlines() if line.startswith("sb3-dapo ")]
    assert [line.split()[1] for line in lines] == ["train", "push-to-hub", "load-from-hub", "enjoy"]
    for line in lines:
        _, name, *arguments = line.split()
        command(name, *arguments, *short.get(name, ()))
    assert Path("logs/dapo/CartPole-v1_2/CartPole-v1.zip").is_file()
