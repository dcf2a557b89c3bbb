"""`dapo_lstm` on the command line."""

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import yaml
from commands import Command
from recurrent_models import assert_same_parameters
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
        assert len(given) >= 10, name
        assert given[0] is None and all(np.any(state[0]) for state in given[1:]), name
    assert list(Path("logs").rglob("*.mp4"))


class Killed(Exception):
    """Ends training without any of the clean-up that an interrupt would cause."""


@pytest.mark.filterwarnings("ignore:The last minibatch of every epoch")
@pytest.mark.parametrize("env_id, n_envs", [("CartPoleNoVel-v1", 8), ("PendulumNoVel-v1", 4)])
def test_resume_equals_an_uninterrupted_run(
    command: Command, monkeypatch: pytest.MonkeyPatch, env_id: str, n_envs: int
) -> None:
    """In mid-episode, and with evaluations in between. Pendulum's entry has gSDE."""
    n_steps = 32 * n_envs
    run = ["train", "--algo", "dapo_lstm", "--env", env_id, "-n", str(3 * n_steps), "--seed", "3"]
    run += ["--save-freq", str(n_steps), "--eval-freq", str(n_steps), "--eval-episodes", "1", "--verbose", "0"]
    run += ["--hyperparams", "n_steps:32", "batch_size:64", "n_epochs:2", "policy_kwargs:dict(lstm_hidden_size=8)"]
    command(*run, "-f", "whole")

    train = RecurrentDAPO.train

    def train_until_killed(self: RecurrentDAPO) -> None:
        if self.num_timesteps == 3 * n_steps:
            raise Killed
        train(self)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(RecurrentDAPO, "train", train_until_killed)
        command(*run, "-f", "cut")
    command("train", "--algo", "dapo_lstm", "--env", env_id, "-f", "cut", "--resume")
    whole, cut = (
        RecurrentDAPO.load(Path(folder, "dapo_lstm", f"{env_id}_1", f"{env_id}.zip"), device="cpu")
        for folder in ("whole", "cut")
    )
    assert cut.num_timesteps == whole.num_timesteps == 3 * n_steps
    assert_same_parameters(whole, cut)
    assert np.any(whole._last_lstm_states)
    np.testing.assert_array_equal(whole._last_lstm_states, cut._last_lstm_states)
