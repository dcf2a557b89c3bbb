"""
How fast are RecurrentDAPO and MaskableDAPO, beside RecurrentPPO and MaskablePPO of sb3-contrib?

    python benchmarks/siblings.py             # env steps/s, alternating processes: results/siblings.csv
    python benchmarks/siblings.py --report    # only the table, from the CSV file

Every measurement is a process of its own; the contestants take turns, several times round. All have the same settings.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch as th
from maskable import TASKS as MASKABLE_TASKS
from recurrent import TASKS as RECURRENT_TASKS
from sb3_contrib import MaskablePPO, RecurrentPPO
from stable_baselines3.common.env_util import make_atari_env, make_vec_env
from stable_baselines3.common.vec_env import VecEnv
from store import Row, processor, stream_csv, write_table

from sb3_dapo import MaskableDAPO, RecurrentDAPO
from sb3_dapo.atari_vec_env import AtariVecEnv

RESULTS = Path(__file__).parent / "results" / "siblings.csv"
COLUMNS = ["task", "algorithm", "threads", "run", "steps_per_s", "machine"]
GAME = "BreakoutNoFrameskip-v4"
ALGORITHMS: dict[str, Any] = {
    algorithm.__name__: algorithm for algorithm in (RecurrentPPO, RecurrentDAPO, MaskablePPO, MaskableDAPO)
}
SETTINGS: dict[str, Any] = {"n_steps": 128, "batch_size": 256, "n_epochs": 4, "seed": 0, "device": "cpu"}
N_ENVS = 8
ROLLOUT = SETTINGS["n_steps"] * N_ENVS


class Task(NamedTuple):
    """Who is compared in what, for how many rollouts, and in how many threads of PyTorch."""

    algorithms: tuple[str, str]
    make_env: Callable[[str], VecEnv]
    policy: str
    rollouts: int
    threads: tuple[int, ...] = (1, 2)


def make_game(algorithm: str) -> VecEnv:
    """:return: single frames of Breakout: native environments for DAPO, SB3's for the other"""
    if algorithm == "RecurrentDAPO":
        return AtariVecEnv(GAME, N_ENVS, seed=0, n_stack=1)
    return make_atari_env(GAME, N_ENVS, seed=0)


def maskable(name: str) -> Task:
    """:return: a task with masks"""
    algorithms = ("MaskablePPO", "MaskableDAPO")
    return Task(algorithms, lambda _: make_vec_env(MASKABLE_TASKS[name], N_ENVS, seed=0), "MlpPolicy", 20, (1,))


TASKS: dict[str, Task] = {
    "CartPole without velocities, LSTM 256": Task(
        ("RecurrentPPO", "RecurrentDAPO"),
        lambda _: make_vec_env(RECURRENT_TASKS["cartpole"].make_env, N_ENVS, seed=0),
        "MlpLstmPolicy",
        4,
    ),
    "Breakout, single frames, LSTM 256": Task(("RecurrentPPO", "RecurrentDAPO"), make_game, "CnnLstmPolicy", 1, (2,)),
    **{f"{name}, masks": maskable(name) for name in MASKABLE_TASKS},
}


def steps_per_second(task: Task, algorithm: str) -> float:
    """:return: env steps per second of training, after a rollout and update to warm up"""
    model = ALGORITHMS[algorithm](task.policy, task.make_env(algorithm), **SETTINGS)
    model.learn(ROLLOUT)
    began = time.perf_counter()
    model.learn(task.rollouts * ROLLOUT)
    return task.rollouts * ROLLOUT / (time.perf_counter() - began)


def measure(names: Sequence[str], n_runs: int) -> Iterator[Row]:
    """:return: a row for each run"""
    machine = f"{processor()}, {os.cpu_count()} cores, torch {th.__version__}"
    for name in names:
        for threads in TASKS[name].threads:
            for run in range(1, n_runs + 1):
                for algorithm in TASKS[name].algorithms:
                    command = [sys.executable, __file__, "--measure", name, algorithm, str(threads)]
                    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONWARNINGS": "ignore"}
                    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
                    speed = f"{json.loads(output.stdout.splitlines()[-1]):.1f}"
                    yield dict(zip(COLUMNS, (name, algorithm, threads, run, speed, machine), strict=True))


def table(rows: Sequence[Row]) -> str:
    """:return: medians, as Markdown"""
    lines = ["| task | threads | sb3-contrib, steps/s | DAPO, steps/s | ratio | runs |", "|---|--:|--:|--:|--:|--:|"]
    speeds: dict[tuple[str, str], dict[str, list[float]]] = {}
    for row in rows:
        of_task = speeds.setdefault((row["task"], row["threads"]), {})
        of_task.setdefault(row["algorithm"], []).append(float(row["steps_per_s"]))
    for (task, threads), of_task in speeds.items():
        theirs, ours = (of_task[name] for name in TASKS[task].algorithms)
        # of each round by itself, as the speed of a machine drifts
        ratio = statistics.median(y / x for x, y in zip(theirs, ours, strict=True))
        medians = f"{statistics.median(theirs):,.0f} | {statistics.median(ours):,.0f}"
        lines.append(f"| {task} | {threads} | {medians} | {ratio:.2f} | {len(ours)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--runs", type=int, default=3, help="of each contestant (default: 3)")
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--report", action="store_true")
    parser.add_argument("--measure", nargs=3, metavar=("TASK", "ALGORITHM", "THREADS"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        name, algorithm, threads = args.measure
        th.set_num_threads(int(threads))
        print(json.dumps(steps_per_second(TASKS[name], algorithm)))
        return
    if not args.report:
        for row in stream_csv(args.output, COLUMNS, measure(args.tasks, args.runs)):
            print(
                f"{row['task']:40} {row['algorithm']:14} {row['threads']} {float(row['steps_per_s']):7.0f}", flush=True
            )
    write_table(args.output, table)


if __name__ == "__main__":
    main()
