"""
What do masks bring? MaskableDAPO beside sb3-contrib's MaskablePPO and beside DAPO without masks.

    python benchmarks/maskable.py            # trains what is missing in results/maskable.csv
    python benchmarks/maskable.py --report   # only the table and the figure, from the CSV file

A run that was killed has left no rows, and is made again; one seed of everything comes before the next. What masks cost
is measured by ``siblings.py``.
"""

import argparse
import csv
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch as th
from connect_four import ConnectFour
from matplotlib import pyplot as plt
from sb3_contrib import MaskablePPO
from sb3_contrib.common.envs import InvalidActionEnvDiscrete, InvalidActionEnvMultiBinary, InvalidActionEnvMultiDiscrete
from sb3_contrib.common.maskable.evaluation import evaluate_policy
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.utils import set_random_seed
from store import read_csv, write_table

from sb3_dapo import MaskableDAPO

RESULTS = Path(__file__).parent / "results" / "maskable.csv"
FIGURE = Path(__file__).parents[1] / "docs" / "figures" / "maskable.svg"
COLUMNS = ["task", "algo", "seed", "timesteps", "score"]
N_ENVS = 8
SETTINGS: dict[str, Any] = {"n_steps": 128, "batch_size": 256, "n_epochs": 4, "device": "cpu"}
N_EVALUATIONS, N_EPISODES = 10, 40

TASKS: dict[str, Any] = {
    "Connect Four": ConnectFour,
    "Discrete, 90 % illegal": lambda: InvalidActionEnvDiscrete(dim=70, n_invalid_actions=63),
    "Discrete(20)": lambda: InvalidActionEnvDiscrete(dim=20, n_invalid_actions=10),
    "MultiDiscrete": lambda: InvalidActionEnvMultiDiscrete(dims=[5, 3, 4], n_invalid_actions=3),
    "MultiBinary": lambda: InvalidActionEnvMultiBinary(dims=6, n_invalid_actions=3),
}
# Task: environment steps and settings for learning
LEARNED: dict[str, tuple[int, dict[str, Any]]] = {
    "Connect Four": (300_000, {"gamma": 0.99, "ent_coef": 0.01}),
    "Discrete, 90 % illegal": (40_960, {"gamma": 0.1, "clip_range": 0.4}),
}
# Class, arguments, and whether it has masks
ALGOS: dict[str, tuple[type[BaseAlgorithm], dict[str, Any], bool]] = {
    "MaskablePPO": (MaskablePPO, {}, True),
    "MaskableDAPO": (MaskableDAPO, {"advantage": "vtrace_gae"}, True),
    "MaskableDAPO, K = 2": (MaskableDAPO, {"advantage": "vtrace_gae", "n_rollouts": 2, "n_epochs": 2}, True),
    "without masks": (MaskableDAPO, {"advantage": "vtrace_gae"}, False),
}


class Scores(BaseCallback):
    """
    Plays games every so often, with masks for who learns with them.

    :param task: which
    :param has_masks: whether it learns with masks
    :param every: steps between evaluations
    """

    def __init__(self, task: str, has_masks: bool, every: int) -> None:
        super().__init__()
        self.has_masks, self.every, self.next = has_masks, every, every
        self.env = make_vec_env(TASKS[task], n_envs=N_ENVS, seed=10_000)
        self.scores: list[tuple[int, float]] = []

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        if self.num_timesteps >= self.next:
            self.evaluate()

    def _on_training_end(self) -> None:
        self.evaluate()

    def evaluate(self) -> None:
        """Play, and leave the random numbers of training as they are."""
        self.next += self.every
        states = np.random.get_state(), th.get_rng_state()
        model: Any = self.model
        score, _ = evaluate_policy(
            model, self.env, N_EPISODES, deterministic=False, warn=False, use_masking=self.has_masks
        )
        np.random.set_state(states[0])
        th.set_rng_state(states[1])
        self.scores.append((self.num_timesteps, float(score)))  # type: ignore[arg-type]


def curve(task: str, algo: str, seed: int) -> list[tuple[int, float]]:
    """Scores of a run by environment steps."""
    th.set_num_threads(1)
    set_random_seed(seed)
    n_steps, settings = LEARNED[task]
    model_class, options, has_masks = ALGOS[algo]
    env = make_vec_env(TASKS[task], n_envs=N_ENVS, seed=seed)
    model: Any = model_class("MlpPolicy", env, seed=seed, **{**SETTINGS, **settings, **options})  # type: ignore[arg-type]
    scores = Scores(task, has_masks, n_steps // N_EVALUATIONS)
    model.learn(n_steps, callback=scores, use_masking=has_masks)
    return scores.scores


def learn(tasks: Sequence[str], algos: Sequence[str], n_seeds: int) -> None:
    """Make the runs that are missing; each is written as a whole."""
    done = {(row["task"], row["algo"], int(row["seed"])) for row in read_csv(RESULTS)}
    for seed in range(1, n_seeds + 1):
        for task in tasks:
            for algo in algos:
                if (task, algo, seed) in done:
                    continue
                scores = curve(task, algo, seed)
                is_new = not RESULTS.is_file()
                with RESULTS.open("a", newline="") as file:
                    writer = csv.writer(file, lineterminator="\n")
                    if is_new:
                        writer.writerow(COLUMNS)
                    writer.writerows([task, algo, seed, steps, f"{score:.4g}"] for steps, score in scores)
                print(f"{task}, {algo}, seed {seed}: {scores[-1][1]:.3g}", flush=True)


def table(rows: Sequence[dict[str, Any]]) -> str:
    """A Markdown table: score at the end and mean over the run, with standard deviations over the seeds."""
    runs: dict[tuple[str, str], dict[str, list[float]]] = {}
    for row in rows:
        runs.setdefault((row["task"], row["algo"]), {}).setdefault(row["seed"], []).append(float(row["score"]))
    lines = ["| task | algorithm | score at the end | mean over the run | seeds |", "|---|---|--:|--:|--:|"]
    for (task, algo), seeds in runs.items():
        columns = ([f(scores) for scores in seeds.values()] for f in (lambda x: x[-1], statistics.fmean))
        cells = " | ".join(f"{np.mean(column):.2f} ± {np.std(column):.2f}" for column in columns)
        lines.append(f"| {task} | {algo} | {cells} | {len(seeds)} |")
    return "\n".join(lines)


def draw(rows: Sequence[dict[str, Any]]) -> None:
    """Draw mean and range of the seeds."""
    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "maskable"
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    figure, all_axes = plt.subplots(1, len(tasks), figsize=(5 * len(tasks), 3.6), squeeze=False, layout="constrained")
    for task, axes in zip(tasks, all_axes[0], strict=True):
        for algo in ALGOS:
            own = [row for row in rows if (row["task"], row["algo"]) == (task, algo)]
            steps = sorted({int(row["timesteps"]) for row in own})
            scores = [[float(row["score"]) for row in own if int(row["timesteps"]) == step] for step in steps]
            if steps:
                (line,) = axes.plot(steps, [np.mean(x) for x in scores], label=algo)
                axes.fill_between(
                    steps, list(map(min, scores)), list(map(max, scores)), alpha=0.15, color=line.get_color()
                )
        axes.set(title=task, xlabel="Environment steps", ylabel="Score")
        axes.grid(alpha=0.3)
    all_axes[0, 0].legend()
    figure.savefig(FIGURE, metadata={"Date": None}, facecolor="white")


def main() -> None:
    """Train what is missing, and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=LEARNED, default=list(LEARNED))
    parser.add_argument("--algos", nargs="+", choices=ALGOS, default=list(ALGOS))
    parser.add_argument("--seeds", type=int, default=5, help="seeds 1 to N (default: 5)")
    parser.add_argument("--report", action="store_true")
    args = parser.parse_args()
    if not args.report:
        learn(args.tasks, args.algos, args.seeds)
    write_table(RESULTS, table)
    draw(read_csv(RESULTS))


if __name__ == "__main__":
    main()
