"""
Do the faster forms of the Nature CNN and Adam learn as SB3's forms do? A pixel task, five seeds of each.

    python benchmarks/fast_learning.py            # rewrites results/fast_learning.csv and fast_learning.md
    python benchmarks/fast_learning.py --report   # only fast_learning.md, from the CSV file

The task is the Catch of the tests: balls that fall are to be caught, seen as pixels.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from scipy import stats
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from store import stream_csv, write_table

from sb3_dapo import DAPO

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from envs import CatchEnv

RESULTS = Path(__file__).parent / "results" / "fast_learning.csv"
COLUMNS = ["path", "seed", "timesteps", "score"]
PATHS: dict[str, dict[str, Any]] = {
    "plain": {"fast": False},
    "fast": {"fast": True},
    "fast, autocast": {"fast": True, "autocast": True},
}
SETTINGS: dict[str, Any] = {
    "n_steps": 64,
    "batch_size": 256,
    "n_epochs": 4,
    "n_rollouts": 2,
    "gamma": 0.95,
    "learning_rate": 1e-3,
    "ent_coef": 0.01,
    "policy_kwargs": {"features_extractor_kwargs": {"features_dim": 64}},
}
N_ENVS = 8
MARKS = (2048, 4096, 8192, 12288)


def train(path: str, seed: int) -> Iterator[dict[str, Any]]:
    """
    :param path: key of ``PATHS``
    :param seed: of the run
    :return: a row per evaluation: the mean return of 100 episodes, at most 5, of a policy that draws its actions
    """
    model = DAPO(
        "CnnPolicy", make_vec_env(CatchEnv, N_ENVS, seed=seed), seed=seed, device="cpu", **SETTINGS, **PATHS[path]
    )
    done = 0
    for timesteps in MARKS:
        model.learn(timesteps - done, reset_num_timesteps=False)
        done = timesteps
        env = make_vec_env(CatchEnv, N_ENVS, seed=1000)
        score, _ = evaluate_policy(model, env, n_eval_episodes=100, deterministic=False, warn=False)
        yield {"path": path, "seed": seed, "timesteps": timesteps, "score": f"{score:.3f}"}


def table(rows: Sequence[dict[str, Any]]) -> str:
    """
    :param rows: of all runs
    :return: a Markdown table of means over seeds, with 95 % intervals of Student's t
    """
    paths = list(dict.fromkeys(row["path"] for row in rows))
    lines = [f"| steps | {' | '.join(paths)} |", f"| --: |{' --: |' * len(paths)}"]
    for timesteps in dict.fromkeys(int(row["timesteps"]) for row in rows):
        cells = []
        for path in paths:
            scores = [float(row["score"]) for row in rows if row["path"] == path and int(row["timesteps"]) == timesteps]
            half = stats.sem(scores) * stats.t.ppf(0.975, len(scores) - 1)
            cells.append(f"{np.mean(scores):.2f} ± {half:.2f}")
        lines.append(f"| {timesteps:,} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Train, write the scores and the table, print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, help="seeds 1 to N (default: 5)")
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--report", action="store_true", help="only write the table, from what is in the output")
    args = parser.parse_args()
    th.set_num_threads(1)

    if not args.report:
        rows = (row for seed in range(1, args.seeds + 1) for path in PATHS for row in train(path, seed))
        for row in stream_csv(args.output, COLUMNS, rows):
            if row["timesteps"] == MARKS[-1]:
                print(f"{row['path']:16} seed {row['seed']}  {float(row['score']):5.2f}", flush=True)
    write_table(args.output, table)


if __name__ == "__main__":
    main()
