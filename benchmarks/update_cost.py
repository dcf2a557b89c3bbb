"""
Does an update of DAPO cost what one of SB3's PPO costs? Environment steps per second, in alternating runs.

    python benchmarks/update_cost.py            # all tasks; rewrites results/update_cost.csv and update_cost.md
    python benchmarks/update_cost.py --tasks cartpole --runs 9 --output /tmp/cost.csv
    python benchmarks/update_cost.py --report   # only update_cost.md, from update_cost.csv

Both algorithms have PPO's settings and keep one rollout (K = 1). DAPO is measured as it is by default, and as PPO's
special case, where it computes what PPO does.
"""

import argparse
import multiprocessing
import os
import statistics
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch as th
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_atari_env, make_vec_env
from stable_baselines3.common.vec_env import VecEnv, VecFrameStack
from store import processor, stream_csv, write_table

from sb3_dapo import DAPO

RESULTS = Path(__file__).parent / "results" / "update_cost.csv"
COLUMNS = ["task", "contestant", "run", "steps_per_s", "machine"]
CONTESTANTS: dict[str, tuple[type[PPO], dict[str, Any]]] = {
    "PPO": (PPO, {}),
    "DAPO": (DAPO, {}),
    "DAPO, PPO's special case": (DAPO, {"divergence_coef": 0.0, "advantage": "gae"}),
}


def breakout() -> VecEnv:
    """Breakout under SB3's wrappers, which ale_py must have registered."""
    return VecFrameStack(make_atari_env("ale_py:BreakoutNoFrameskip-v4", n_envs=8, seed=0), 4)


# name: policy, environments, settings, steps per run, PyTorch threads
TASKS: dict[str, tuple[str, Any, dict[str, Any], int, int]] = {
    "cartpole": ("MlpPolicy", lambda: make_vec_env("CartPole-v1", seed=0), {}, 8192, 1),
    "pendulum": ("MlpPolicy", lambda: make_vec_env("Pendulum-v1", seed=0), {}, 8192, 1),
    "breakout": ("CnnPolicy", breakout, {"n_steps": 128, "batch_size": 256, "n_epochs": 4}, 3072, 2),
}


def steps_per_second(task: str, contestant: str) -> float:
    """
    :param task: key of ``TASKS``
    :param contestant: key of ``CONTESTANTS``
    :return: environment steps per second of training, after a rollout and an update to warm up
    """
    policy, make_env, settings, n_steps, n_threads = TASKS[task]
    algo, options = CONTESTANTS[contestant]
    th.set_num_threads(n_threads)
    model = algo(policy, make_env(), seed=0, device="cpu", **settings, **options)
    rollout = model.n_steps * model.n_envs
    model.learn(rollout)
    start = time.perf_counter()
    model.learn(n_steps, reset_num_timesteps=False)
    elapsed = time.perf_counter() - start
    assert model.env is not None
    model.env.close()
    return n_steps / elapsed


def measure(tasks: Sequence[str], n_runs: int) -> Iterator[dict[str, Any]]:
    """
    :param tasks: keys of ``TASKS``
    :param n_runs: of each contestant
    :return: a row for each run, the contestants taking turns
    """
    machine = f"{processor()}, {os.cpu_count()} cores, torch {th.__version__}"
    for task in tasks:
        for run in range(1, n_runs + 1):
            for name in CONTESTANTS:
                with multiprocessing.get_context("spawn").Pool(1) as pool:  # none lives in what another left behind
                    speed = f"{pool.apply(steps_per_second, (task, name)):.1f}"
                yield {"task": task, "contestant": name, "run": run, "steps_per_s": speed, "machine": machine}


def table(rows: Sequence[dict[str, Any]]) -> str:
    """
    :param rows: of all runs
    :return: a Markdown table of the medians
    """
    speeds: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        speeds.setdefault((row["task"], row["contestant"]), []).append(float(row["steps_per_s"]))
    lines = ["| task | contestant | steps/s, median | ratio to PPO, median | runs |", "| --- | --- | --: | --: | --: |"]
    for (task, name), values in speeds.items():
        # of each round by itself, as the speed of a machine drifts
        ratios = [value / ppo for value, ppo in zip(values, speeds[task, "PPO"], strict=True)]
        median, ratio = statistics.median(values), statistics.median(ratios)
        lines.append(f"| {task} | {name} | {median:,.0f} | {ratio:.2f} | {len(values)} |")
    return "\n".join(lines)


def main() -> None:
    """Measure, write the runs and the table of the medians, print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--runs", type=int, default=5, help="of each contestant (default: 5)")
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--report", action="store_true", help="only write the table, from what is in the output")
    args = parser.parse_args()

    if not args.report:
        for row in stream_csv(args.output, COLUMNS, measure(args.tasks, args.runs)):
            print(f"{row['task']:10} {row['contestant']:26} {float(row['steps_per_s']):7.0f} steps/s", flush=True)
    write_table(args.output, table)


if __name__ == "__main__":
    main()
