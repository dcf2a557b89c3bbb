"""
What do masks bring, and what do they cost? MaskableDAPO beside sb3-contrib's MaskablePPO and beside DAPO without masks.

    python benchmarks/maskable.py speed              # env steps/s, alternating processes: results/maskable_speed.csv
    python benchmarks/maskable.py learn --seeds 5    # learning curves: results/maskable_learning.csv
    python benchmarks/maskable.py report             # tables and the figure, from what is there

Runs of ``learn`` that are in the results are skipped, so that it can be stopped and given again; one seed of everything
comes before the next.
"""

import argparse
import csv
import multiprocessing
import os
import statistics
import time
from collections.abc import Iterator, Sequence
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
from store import processor, stream_csv, write_table

from sb3_dapo import MaskableDAPO

RESULTS = Path(__file__).parent / "results"
FIGURE = Path(__file__).parents[1] / "docs" / "figures" / "maskable.png"
SPEED, LEARNING = RESULTS / "maskable_speed.csv", RESULTS / "maskable_learning.csv"
SPEED_COLUMNS = ["task", "contestant", "run", "steps_per_s", "machine"]
LEARNING_COLUMNS = ["task", "algo", "seed", "timesteps", "score"]
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
CONTESTANTS: dict[str, Any] = {"MaskablePPO": MaskablePPO, "MaskableDAPO": MaskableDAPO}
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


def steps_per_second(task: str, contestant: str, n_steps: int) -> float:
    """Of training, after two rollouts and updates to warm up."""
    th.set_num_threads(1)
    env = make_vec_env(TASKS[task], n_envs=N_ENVS, seed=0)
    model = CONTESTANTS[contestant]("MlpPolicy", env, seed=0, **SETTINGS)
    model.learn(2 * 128 * N_ENVS)
    start = time.perf_counter()
    model.learn(n_steps)
    return n_steps / (time.perf_counter() - start)


def measure(tasks: Sequence[str], n_runs: int, n_steps: int) -> Iterator[dict[str, Any]]:
    """A row for each run, the contestants taking turns, each in a process of its own."""
    machine = f"{processor()}, {os.cpu_count()} cores, torch {th.__version__}"
    for task in tasks:
        for run in range(1, n_runs + 1):
            for name in CONTESTANTS:
                with multiprocessing.get_context("spawn").Pool(1) as pool:
                    speed = f"{pool.apply(steps_per_second, (task, name, n_steps)):.1f}"
                yield {"task": task, "contestant": name, "run": run, "steps_per_s": speed, "machine": machine}


def speed_table(rows: Sequence[dict[str, Any]]) -> str:
    """A Markdown table of the medians."""
    speeds: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        speeds.setdefault(row["task"], {}).setdefault(row["contestant"], []).append(float(row["steps_per_s"]))
    lines = ["| task | MaskablePPO, steps/s | MaskableDAPO, steps/s | ratio, median | runs |", "|---|--:|--:|--:|--:|"]
    for task, values in speeds.items():
        ppo, dapo = (values[name] for name in CONTESTANTS)
        # of each round by itself, as the speed of a machine drifts
        ratio = statistics.median(y / x for x, y in zip(ppo, dapo, strict=True))
        medians = f"{statistics.median(ppo):,.0f} | {statistics.median(dapo):,.0f}"
        lines.append(f"| {task} | {medians} | {ratio:.2f} | {len(ppo)} |")
    return "\n".join(lines)


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


def read(path: Path) -> list[dict[str, str]]:
    """Rows of a CSV file, if it exists."""
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def learn(tasks: Sequence[str], algos: Sequence[str], n_seeds: int) -> None:
    """Make the runs that are missing; each is written as a whole."""
    done = {(row["task"], row["algo"], int(row["seed"])) for row in read(LEARNING)}
    for seed in range(1, n_seeds + 1):
        for task in tasks:
            for algo in algos:
                if (task, algo, seed) in done:
                    continue
                scores = curve(task, algo, seed)
                is_new = not LEARNING.is_file()
                with LEARNING.open("a", newline="") as file:
                    writer = csv.writer(file, lineterminator="\n")
                    if is_new:
                        writer.writerow(LEARNING_COLUMNS)
                    writer.writerows([task, algo, seed, steps, f"{score:.4g}"] for steps, score in scores)
                print(f"{task}, {algo}, seed {seed}: {scores[-1][1]:.3g}", flush=True)


def learning_table(rows: Sequence[dict[str, Any]]) -> str:
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
    mpl.use("agg")
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
    figure.savefig(FIGURE, dpi=120)


def main() -> None:
    """Measure, learn or report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["speed", "learn", "report"])
    parser.add_argument("--tasks", nargs="+", choices=TASKS)
    parser.add_argument("--algos", nargs="+", choices=ALGOS, default=list(ALGOS))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--runs", type=int, default=5, help="of each contestant (default: 5)")
    parser.add_argument("--steps", type=int, default=20_480, help="that a run's speed is measured over")
    args = parser.parse_args()
    if args.what == "speed":
        for row in stream_csv(SPEED, SPEED_COLUMNS, measure(args.tasks or list(TASKS), args.runs, args.steps)):
            print(f"{row['task']:24} {row['contestant']:14} {float(row['steps_per_s']):7.0f} steps/s", flush=True)
    elif args.what == "learn":
        learn(args.tasks or list(LEARNED), args.algos, args.seeds)
    for path, table in ((SPEED, speed_table), (LEARNING, learning_table)):
        if path.is_file():
            write_table(path, table)
    if LEARNING.is_file():
        draw(read(LEARNING))


if __name__ == "__main__":
    main()
