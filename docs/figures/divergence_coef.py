"""Draw divergence_coef.svg: how 1/eta holds the policy near those that collected the data.

Trains 12 short runs, about a minute on one core. Run from anywhere, with sb3-dapo installed:
``python docs/figures/divergence_coef.py``.
"""

import csv
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import configure

from sb3_dapo import DAPO

COEFFICIENTS = {0.0: "#222222", 0.1: "#e0a030", 0.5: "#4c9a5b", 2.0: "#2f6db3"}
SEEDS = range(3)
STEPS = 25_000


def behavior_kl(divergence_coef: float, seed: int) -> np.ndarray:
    """
    :param divergence_coef: 1/eta
    :param seed: seed of the run
    :return: steps and ``train/behavior_kl`` of each update, shape ``(2, n_updates)``
    """
    env = make_vec_env("CartPole-v1", n_envs=8, seed=seed)
    settings: dict[str, Any] = dict(n_steps=128, batch_size=256, n_rollouts=8, n_epochs=2, learning_rate=1e-3)
    model = DAPO("MlpPolicy", env, **settings, divergence_coef=divergence_coef, seed=seed, device="cpu")
    with tempfile.TemporaryDirectory() as folder:
        model.set_logger(configure(folder, ["csv"]))
        model.learn(STEPS)
        with open(Path(folder, "progress.csv")) as file:
            rows = [row for row in csv.DictReader(file) if row["train/behavior_kl"]]
    return np.array([[float(row[key]) for row in rows] for key in ("time/total_timesteps", "train/behavior_kl")])


def draw(path: Path) -> None:
    """
    :param path: the SVG file to write
    """
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    th.set_num_threads(1)
    plt.rcParams.update(
        {"font.size": 13, "svg.hashsalt": "sb3-dapo", "axes.spines.top": False, "axes.spines.right": False}
    )
    figure, axes = plt.subplots(figsize=(6.4, 4.4), layout="constrained")
    for coefficient, color in COEFFICIENTS.items():
        runs = np.array([behavior_kl(coefficient, seed) for seed in SEEDS])  # (n_seeds, 2, n_updates)
        steps, kl = runs[0, 0], runs[:, 1]
        axes.plot(steps, kl.mean(axis=0), color=color, linewidth=2.5, label=f"1/η = {coefficient:g}")
        axes.plot(steps, kl.T, color=color, linewidth=0.8, alpha=0.4)
    axes.set_xlabel("environment steps")
    axes.set_ylabel("train/behavior_kl")
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.legend(frameon=False)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


if __name__ == "__main__":
    draw(Path(__file__).with_suffix(".svg"))
