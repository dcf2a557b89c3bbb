"""
Does an update of DAPO cost what one of SB3's PPO costs? Environment steps per second, in alternating runs.

    python benchmarks/update_cost.py            # all tasks; rewrites results/update_cost.csv
    python benchmarks/update_cost.py --tasks cartpole --runs 9

Both algorithms have PPO's settings and keep one rollout (K = 1). DAPO is measured as it is by default, and as PPO's
special case, where it computes what PPO does.
"""

import argparse
import csv
import os
import platform
import statistics
import time
from pathlib import Path
from typing import Any

import torch as th
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_atari_env, make_vec_env
from stable_baselines3.common.vec_env import VecEnv, VecFrameStack

from sb3_dapo import DAPO

RESULTS = Path(__file__).parent / "results" / "update_cost.csv"
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


def main() -> None:
    """Measure, write the runs, print the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--runs", type=int, default=5, help="of each contestant (default: 5)")
    parser.add_argument("--output", type=Path, default=RESULTS)
    args = parser.parse_args()

    machine = f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, torch {th.__version__}"
    rows = []
    print("| task | contestant | steps/s, median | ratio to PPO, median | runs |\n| --- | --- | --: | --: | --: |")
    for task in args.tasks:
        speeds: dict[str, list[float]] = {name: [] for name in CONTESTANTS}
        for run in range(args.runs):
            for name in CONTESTANTS:
                speeds[name].append(steps_per_second(task, name))
                rows.append([task, name, run + 1, f"{speeds[name][-1]:.1f}", machine])
        for name, values in speeds.items():
            # of each round by itself, as the speed of a machine drifts
            ratios = [value / ppo for value, ppo in zip(values, speeds["PPO"], strict=True)]
            median, ratio = statistics.median(values), statistics.median(ratios)
            print(f"| {task} | {name} | {median:.0f} | {ratio:.2f} | {args.runs} |", flush=True)
    with args.output.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["task", "contestant", "run", "steps_per_s", "machine"])
        writer.writerows(rows)


if __name__ == "__main__":
    main()
