"""
Do the faster forms of networks, losses and Adam learn as SB3's forms do? Five tasks, five seeds of each.

    python benchmarks/fast_learning.py            # trains what is missing in results/fast_learning.csv
    python benchmarks/fast_learning.py --tasks Hopper
    python benchmarks/fast_learning.py --report   # only fast_learning.md, from the CSV file

Catch is the pixel task of the tests: balls that fall are to be caught. All settings are the same for all forms.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch as th
from scipy import stats
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecEnv, VecNormalize
from store import Row, half_width, train_missing, write_table

from sb3_dapo import DAPO
from sb3_dapo.minatar import MinAtarCnn
from sb3_dapo.zoo import register

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from envs import CatchEnv

RESULTS = Path(__file__).parent / "results" / "fast_learning.csv"
COLUMNS = ["task", "form", "seed", "timesteps", "score"]
FORMS: dict[str, dict[str, Any]] = {
    "plain": {"fast": False, "autocast": False},
    "fast": {"fast": True, "autocast": False},
    "fast, autocast": {"fast": True, "autocast": True},
}
N_ENVS = 8


class Task(NamedTuple):
    """What is learned, how, when it is evaluated, and in which forms."""

    env: Any
    marks: tuple[int, ...]
    settings: dict[str, Any]
    forms: tuple[str, ...] = ("plain", "fast")
    policy: str = "CnnPolicy"
    n_games: int = 20


CATCH = {
    "n_steps": 64,
    "batch_size": 256,
    "n_epochs": 4,
    "n_rollouts": 2,
    "gamma": 0.95,
    "learning_rate": 1e-3,
    "ent_coef": 0.01,
    "policy_kwargs": {"features_extractor_kwargs": {"features_dim": 64}},
}
MINATAR = {
    "n_steps": 128,
    "batch_size": 256,
    "n_epochs": 4,
    "n_rollouts": 2,
    "learning_rate": 1e-3,
    "ent_coef": 0.01,
    "policy_kwargs": {"features_extractor_class": MinAtarCnn, "net_arch": []},
}
MUJOCO = {"n_steps": 256, "n_rollouts": 2, "n_epochs": 5}
QUARTERS = (50_000, 100_000, 150_000, 200_000)
TASKS = {
    "Catch": Task(CatchEnv, (2048, 4096, 8192, 12288), CATCH, tuple(FORMS), n_games=100),
    "HalfCheetah": Task("HalfCheetah-v5", (50_000, 100_000), MUJOCO, policy="MlpPolicy"),
    "Hopper": Task("Hopper-v5", (50_000, 100_000), MUJOCO, policy="MlpPolicy"),
    "MinAtar Breakout": Task("MinAtar/Breakout-v1", QUARTERS, MINATAR, tuple(FORMS)),
    "MinAtar Asterix": Task("MinAtar/Asterix-v1", QUARTERS, MINATAR, tuple(FORMS)),
}


def make_env(task: Task, seed: int, statistics: VecEnv | None = None) -> VecEnv:
    """
    :param task: what is learned
    :param seed: of the environments
    :param statistics: those of training, if it is for an evaluation
    :return: the environments
    """
    env = make_vec_env(task.env, N_ENVS, seed=seed)
    if task.policy == "MlpPolicy":
        env = VecNormalize(env, training=statistics is None, norm_reward=statistics is None)
        if isinstance(statistics, VecNormalize):
            env.obs_rms = statistics.obs_rms
    return env


def train(task: str, form: str, seed: int) -> Iterator[Row]:
    """
    :param task: key of ``TASKS``
    :param form: key of ``FORMS``
    :param seed: of the run
    :return: a row per evaluation: the mean return of whole games of a policy that draws its actions
    """
    what = TASKS[task]
    env = make_env(what, seed)
    model = DAPO(what.policy, env, seed=seed, device="cpu", **what.settings, **FORMS[form])
    done = 0
    for timesteps in what.marks:
        model.learn(timesteps - done, reset_num_timesteps=False)
        done = timesteps
        score, _ = evaluate_policy(
            model, make_env(what, 1000, env), n_eval_episodes=what.n_games, deterministic=False, warn=False
        )
        yield {"timesteps": timesteps, "score": f"{score:.6g}"}


def table(rows: Sequence[Row]) -> str:
    """
    :param rows: of all runs
    :return: a Markdown table of means over seeds, with 95 % intervals of Student's t, and of paired tests at the end
    """
    lines = [f"| task | steps | seeds | {' | '.join(FORMS)} | p |", f"| --- | --: | --: |{' --: |' * len(FORMS)} --: |"]
    for name, task in TASKS.items():
        for timesteps in task.marks:
            scores = {
                form: {
                    row["seed"]: float(row["score"])
                    for row in rows
                    if (row["task"], row["form"], int(row["timesteps"])) == (name, form, timesteps)
                }
                for form in FORMS
            }
            cells, tests = [], []
            for form, by_seed in scores.items():
                values = list(by_seed.values())
                digits = 2 if abs(np.mean(values or [0])) < 100 else 0
                cells.append(f"{np.mean(values):.{digits}f} ± {half_width(values):.{digits}f}" if values else "")
                both = sorted(set(by_seed) & set(scores["plain"]))
                if form != "plain" and len(both) > 1:
                    pairs = ([by_seed[seed] for seed in both], [scores["plain"][seed] for seed in both])
                    tests.append(f"{stats.ttest_rel(*pairs).pvalue:.2f}")
            if scores["plain"]:
                ending = ", ".join(tests) if timesteps == task.marks[-1] else ""
                lines.append(f"| {name} | {timesteps:,} | {len(scores['plain'])} | {' | '.join(cells)} | {ending} |")
    return "\n".join(lines)


def is_last(row: Row) -> bool:
    """:return: whether a row is the last of its run"""
    return int(row["timesteps"]) == TASKS[row["task"]].marks[-1]


def main() -> None:
    """Train, write the scores and the table, print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, help="seeds 1 to N (default: 5)")
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--report", action="store_true", help="only write the table, from what is in the output")
    args = parser.parse_args()
    th.set_num_threads(1)
    register()

    if not args.report:
        cases = [(name, form) for name in args.tasks for form in TASKS[name].forms]
        seeds = range(1, args.seeds + 1)
        runs = [{"task": name, "form": form, "seed": seed} for seed, (name, form) in product(seeds, cases)]
        for row in train_missing(args.output, COLUMNS, runs, train, is_last):
            if is_last(row):
                print(f"{row['task']:18} {row['form']:16} seed {row['seed']}  {float(row['score']):8.2f}", flush=True)
    write_table(args.output, table)


if __name__ == "__main__":
    main()
