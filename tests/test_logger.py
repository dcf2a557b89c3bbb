"""Loggers, TensorBoard, and the statistics of episodes."""

import csv
import json
import pathlib
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from algos import make_model
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import HParam, configure
from stable_baselines3.common.monitor import Monitor, load_results

from sb3_dapo import DAPO

N_STEPS = 64
# PPO's, and ours
TRAIN_KEYS = {
    *("approx_kl", "clip_fraction", "clip_range", "entropy_loss", "explained_variance", "learning_rate", "loss"),
    *("n_updates", "policy_gradient_loss", "value_loss"),
    *("behavior_kl", "divergence", "divergence_coef", "divergence_loss", "policy_lag", "ratio_mean"),
    "rho_clip_fraction",
}


def test_keys_in_every_format(algo: type[DAPO], tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = make_model(algo, "MlpPolicy", "CartPole-v1", n_rollouts=2)
    model.set_logger(configure(str(tmp_path), ["stdout", "csv", "json", "log", "tensorboard"]))
    model.learn(4 * N_STEPS)
    with (tmp_path / "progress.csv").open() as file:
        last = list(csv.DictReader(file))[-1]
    keys = {f"train/{key}" for key in TRAIN_KEYS}
    assert keys <= last.keys()
    assert all(np.isfinite(float(last[key])) for key in keys)
    assert keys <= json.loads((tmp_path / "progress.json").read_text().splitlines()[-1]).keys()
    for text in (capsys.readouterr().out, (tmp_path / "log.txt").read_text()):
        assert all(f"| {key} " in text.replace("    ", "| ") or key[:20] in text for key in TRAIN_KEYS)
        assert "ep_rew_mean" in text
        assert "fps" in text
    assert any("events.out.tfevents" in path.name for path in tmp_path.iterdir())


def test_every_value_is_logged_as_a_number(algo: type[DAPO]) -> None:
    """No tensors, which would keep the device busy and don't fit into every format."""
    model = make_model(algo, "MlpPolicy", "Pendulum-v1", clip_range_vf=0.2)
    model.learn(N_STEPS)
    logged = {key: x for key, x in model.logger.name_to_value.items() if key.startswith("train/")}
    assert {"train/std", "train/clip_range_vf"} <= logged.keys()
    assert all(isinstance(x, float | int | np.floating) for x in logged.values())


def test_set_logger(algo: type[DAPO], tmp_path: pathlib.Path) -> None:
    """A logger that was set stays, and one is made where there is none."""
    model = make_model(algo, "MlpPolicy", "CartPole-v1")
    model.learn(N_STEPS)
    assert model.logger.output_formats == []
    logger = configure(str(tmp_path), ["csv"])
    model.set_logger(logger)
    model.learn(N_STEPS)
    assert model.logger is logger


@pytest.mark.parametrize("verbose", [0, 1])
def test_verbose(algo: type[DAPO], verbose: int, capsys: pytest.CaptureFixture[str]) -> None:
    make_model(algo, "MlpPolicy", "CartPole-v1", verbose=verbose).learn(2 * N_STEPS)
    assert ("train/" in capsys.readouterr().out) == bool(verbose)


@pytest.mark.parametrize("log_interval, n_rows", [(1, 4), (2, 2), (100, 0), (None, 0)])
def test_log_interval(algo: type[DAPO], log_interval: int | None, n_rows: int, tmp_path: pathlib.Path) -> None:
    model = make_model(algo, "MlpPolicy", "CartPole-v1")
    model.set_logger(configure(str(tmp_path), ["csv"]))
    model.learn(4 * N_STEPS, log_interval=log_interval)
    assert len((tmp_path / "progress.csv").read_text().splitlines()) == (n_rows + 1 if n_rows else 0)


class HyperParameters(BaseCallback):
    """For TensorBoard's tab of hyperparameters."""

    def _on_training_start(self) -> None:
        parameters = {"algorithm": type(self.model).__name__, "n_rollouts": self.model.n_rollouts}
        self.logger.record("hparams", HParam(parameters, {"rollout/ep_len_mean": 0.0}), exclude=("stdout", "csv"))

    def _on_step(self) -> bool:
        return True


def test_tensorboard(algo: type[DAPO], tmp_path: pathlib.Path) -> None:
    """Folders are named after the algorithm and numbered; a run that goes on goes on in its folder."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    model = make_model(algo, "MlpPolicy", "CartPole-v1", tensorboard_log=str(tmp_path))
    model.learn(2 * N_STEPS, callback=HyperParameters())
    model.learn(2 * N_STEPS, reset_num_timesteps=False)
    assert {path.name for path in tmp_path.iterdir()} == {f"{algo.__name__}_1"}
    events = accumulator.EventAccumulator(str(tmp_path / f"{algo.__name__}_1"))
    events.Reload()
    # Written before each update: what the one before it was like. The order of files of the same second is arbitrary
    assert sorted(event.step for event in events.Scalars("train/divergence")) == [2 * N_STEPS, 4 * N_STEPS]
    for _ in range(2):
        model.learn(N_STEPS, tb_log_name="several")
    assert {path.name for path in tmp_path.iterdir()} == {f"{algo.__name__}_1", "several_1", "several_2"}


@pytest.mark.parametrize("stats_window_size", [1, 42])
def test_stats_window_size(algo: type[DAPO], stats_window_size: int) -> None:
    model = make_model(algo, "MlpPolicy", "CartPole-v1", stats_window_size=stats_window_size)
    model.learn(N_STEPS)
    assert model.ep_info_buffer.maxlen == model.ep_success_buffer.maxlen == stats_window_size


class SuccessEnv(gym.Env):
    """
    Episodes whose success is given.

    :param successes: one for each episode
    """

    observation_space, action_space = spaces.Discrete(2), spaces.Discrete(2)

    def __init__(self, successes: list[bool]) -> None:
        self.successes = iter(successes)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[int, dict[str, Any]]:
        self.n_steps = 0
        return 0, {}

    def step(self, action: Any) -> tuple[int, float, bool, bool, dict[str, Any]]:
        self.n_steps += 1
        truncated = self.n_steps == 8
        return 0, 1.0, False, truncated, {"is_success": next(self.successes)} if truncated else {}


def test_success_rate_and_monitor(algo: type[DAPO], tmp_path: pathlib.Path) -> None:
    rates = [0.25, 0.5, 0.75]
    successes = [i < 8 * rate for rate in rates for i in range(8)]
    env = Monitor(SuccessEnv(successes), str(tmp_path / "0"), info_keywords=("is_success",))
    model = make_model(algo, "MlpPolicy", env, stats_window_size=8)
    logged = []

    class Rates(BaseCallback):
        def _on_step(self) -> bool:
            return True

        def _on_rollout_end(self) -> None:
            logged.append(np.mean(self.model.ep_success_buffer))

    model.learn(3 * N_STEPS, callback=Rates(), log_interval=1)
    assert logged == rates
    results = load_results(str(tmp_path))
    # true rewards: what is learned from leaves them alone
    assert results.r.tolist() == [8.0] * 24
    assert results.is_success.tolist() == successes


def test_fps_and_time_steps(algo: type[DAPO], tmp_path: pathlib.Path) -> None:
    model = make_model(algo, "MlpPolicy", make_vec_env("CartPole-v1", n_envs=2))
    model.set_logger(configure(str(tmp_path), ["csv"]))
    model.learn(4 * N_STEPS)
    with (tmp_path / "progress.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["time/total_timesteps"]) for row in rows] == [2 * N_STEPS, 4 * N_STEPS]
    assert all(float(row["time/fps"]) > 0 for row in rows)
