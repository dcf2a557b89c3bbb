"""`dapo_lstm` on the command line."""

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import yaml
from commands import Command
from stable_baselines3.common.base_class import BaseAlgorithm

from sb3_dapo import RecurrentDAPO
from sb3_dapo.arguments import SCHEDULED, arguments_of

pytest.importorskip("rl_zoo3")

import optuna
import rl_zoo3.import_envs  # noqa: F401
from rl_zoo3.hyperparams_opt import HYPERPARAMS_CONVERTER, HYPERPARAMS_SAMPLER
from rl_zoo3.utils import ALGOS

import sb3_dapo.zoo  # noqa: F401
from sb3_dapo.zoo.evaluation import read_hyperparameters

FILE = Path(__file__).parent.parent / "hyperparams" / "dapo_lstm.yml"
ENTRIES: dict[str, dict[str, Any]] = yaml.safe_load(FILE.read_text())
CARTPOLE = ("--algo", "dapo_lstm", "--env", "CartPoleNoVel-v1")
QUICK = ("--hyperparams", "n_envs:2", "n_epochs:1", "batch_size:64", "policy_kwargs:dict(lstm_hidden_size=8)")


@pytest.mark.parametrize("name", ENTRIES)
def test_entries(name: str) -> None:
    entry = ENTRIES[name]
    not_for_algo = {"n_timesteps", "n_envs", "normalize", "env_wrapper", "frame_stack"}
    assert set(entry) - not_for_algo <= set(arguments_of(RecurrentDAPO))
    for key, value in entry.items():
        is_text = key in {"policy", "policy_kwargs", "normalize", "env_wrapper"}
        is_schedule = key in SCHEDULED and str(value).startswith("lin_")
        assert is_text or is_schedule or isinstance(value, int | float), f"{key}: YAML reads {value!r} as text"
    n_steps, batch_size = entry.get("n_steps", 2048), entry.get("batch_size", 64)
    assert batch_size % min(32, n_steps) == 0 and n_steps * entry.get("n_envs", 1) % batch_size == 0
    if name not in ("default", "atari"):
        assert name in gym.registry


def test_atari_is_played_on_single_frames() -> None:
    hyperparams = read_hyperparameters("dapo_lstm", "BreakoutNoFrameskip-v4", None)
    assert hyperparams == ENTRIES["atari"] and "frame_stack" not in hyperparams


def test_search_space_is_accepted_and_converted() -> None:
    def objective(trial: optuna.Trial) -> float:
        sampled = HYPERPARAMS_SAMPLER["dapo_lstm"](trial, 1, 1, {})
        assert HYPERPARAMS_CONVERTER["dapo_lstm"](trial.params) == sampled
        model = RecurrentDAPO("MlpLstmPolicy", "CartPole-v1", **sampled)
        assert model.rollout_buffer.sequence_length == sampled["sequence_length"]
        assert model.policy.lstm_actor.hidden_size == trial.params["lstm_hidden_size"]
        return 0.0

    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    study.optimize(objective, n_trials=15)
    assert len({trial.params["sequence_length"] for trial in study.trials}) == 4


@pytest.mark.filterwarnings("ignore:The last minibatch of every epoch")
def test_commands(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever plays hands on what the policy remembers."""
    command("train", *CARTPOLE, *QUICK, "-n", "256", "--eval-freq", "64", "--eval-episodes", "2", "--save-freq", "64")
    folder = Path("logs/dapo_lstm/CartPoleNoVel-v1_1")
    model = ALGOS["dapo_lstm"].load(folder / "CartPoleNoVel-v1.zip")
    assert type(model) is RecurrentDAPO and model.policy.lstm_actor.hidden_size == 8
    assert len(np.load(folder / "evaluations.npz")["timesteps"]) == 4

    given: list[Any] = []
    predict = BaseAlgorithm.predict

    def watched(self: BaseAlgorithm, observation: Any, state: Any = None, *args: Any, **kwargs: Any) -> Any:
        given.append(state)
        return predict(self, observation, state, *args, **kwargs)

    monkeypatch.setattr(BaseAlgorithm, "predict", watched)
    for name, arguments in {
        "report": ("-n", "2"),
        "enjoy": ("-n", "30", "--no-render"),
        "record-video": ("-n", "20"),
    }.items():
        given.clear()
        command(name, *CARTPOLE, *arguments)
        assert len(given) > 10, name
        assert given[0] is None and all(np.any(state[0]) for state in given[1:]), name
    assert list(Path("logs").rglob("*.mp4"))


@pytest.mark.filterwarnings("ignore:The last minibatch of every epoch")
def test_resume_on_the_command_line(command: Command) -> None:
    command("train", *CARTPOLE, *QUICK, "-n", "256", "--eval-freq", "-1", "--save-freq", "64", "--seed", "3")
    command("train", *CARTPOLE, "--resume", "-n", "512", "--eval-freq", "-1")
    model = RecurrentDAPO.load("logs/dapo_lstm/CartPoleNoVel-v1_1/CartPoleNoVel-v1.zip", device="cpu")
    assert model.num_timesteps == 512
