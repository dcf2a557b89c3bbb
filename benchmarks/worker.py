"""One run: training through the Zoo's experiment manager, as `sb3-dapo train` does, and a row per evaluation."""

import argparse
import fcntl
import json
import os
import shutil
import subprocess
import sys
import time
from collections import deque
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
import yaml
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.utils import set_random_seed
from store import BUSY, Row, Run, add_run, is_done, processor
from suites import SUITES, algorithm, uses_per_sample

from sb3_dapo.zoo import ExperimentManager

N_EVALUATIONS = 10
# Games at a time at the end of training, and what their seeds differ by from those of training
FINAL_ENVS, FINAL_SEED = 20, 1_000_000
# A score is the mean of the games that ended since the last evaluation, and of earlier ones if they are fewer than this
MIN_GAMES = 10
PACKAGES = ("sb3-dapo", "stable-baselines3", "sb3-contrib", "rl_zoo3", "gymnasium", "torch", "numpy")
# The divergence of the policy from the one that acted, as DAPO, PPO and TRPO log it
KL_KEYS = ("train/behavior_kl", "train/approx_kl", "train/kl_divergence_loss")


class Evaluation(BaseCallback):
    """
    Scores of the games that are played in training: `Monitor` lies inside all wrappers, so they are those of whole
    games, not clipped or normalized.

    :param run: the run
    :param n_timesteps: environment steps of the run
    :param uses: how often each transition is used
    :param rows: where the rows are put
    :param starter: process without which the run stops
    """

    def __init__(self, run: Run, n_timesteps: int, uses: int, rows: list[Row], starter: int | None) -> None:
        super().__init__()
        self.run = run
        self.starter = starter
        self.marks = deque(n_timesteps * (i + 1) // N_EVALUATIONS for i in range(N_EVALUATIONS))
        self.uses = uses
        self.rows = rows
        self.games: list[float] = []
        self.n_new = 0
        self.updates: list[tuple[float, float]] = []
        self.gradient_steps = 0

    def _on_training_start(self) -> None:
        self.start = time.monotonic()
        # Off-policy algorithms have an optimizer for each network: the value function's is stepped most often
        trained = getattr(self.model, "critic", self.model.policy)
        trained.optimizer.register_step_post_hook(self._count_step)

    def _count_step(self, *_: Any) -> None:
        self.gradient_steps += 1

    def _on_rollout_start(self) -> None:
        if self.starter is not None and os.getppid() != self.starter:
            sys.exit("the process that started this run is gone")
        # What the update before this rollout logged
        logged = self.logger.name_to_value
        if any(name.startswith("train/") for name in logged):
            kl = next((logged[key] for key in KL_KEYS if key in logged), np.nan)
            self.updates.append((logged.get("train/divergence", np.nan), kl))

    def _on_step(self) -> bool:
        scores = [info["episode"]["r"] for info in self.locals["infos"] if "episode" in info]
        self.games += scores
        self.n_new += len(scores)
        while self.marks and self.num_timesteps >= self.marks[0]:
            self._add_row(self.marks.popleft())
        return True

    def _add_row(self, timesteps: int) -> None:
        games = self.games[-max(self.n_new, MIN_GAMES) :]
        divergence, kl = np.mean(self.updates, axis=0) if self.updates else (np.nan, np.nan)
        self.rows.append(
            {
                **vars(self.run),
                "timesteps": timesteps,
                "score": float(np.mean(games)) if games else np.nan,
                "uses_per_sample": self.uses,
                "gradient_steps": self.gradient_steps,
                "wall_s": time.monotonic() - self.start,
                "divergence": float(divergence),
                "kl": float(kl),
            }
        )
        print(self.rows[-1], flush=True)
        self.n_new = 0
        self.updates = []


def train(run: Run, hyperparams: Mapping[str, Any], folder: Path, device: str, starter: int | None = None) -> list[Row]:
    """
    :param run: the run
    :param hyperparams: its entry in the Zoo's hyperparameter file
    :param folder: where the Zoo may write
    :param device: PyTorch device
    :param starter: process without which the run stops
    :return: its rows
    """
    th.set_num_threads(1)
    # A twentieth of the time goes into these checks, which change nothing
    th.distributions.Distribution.set_default_validate_args(False)
    zoo_name = algorithm(run.algo).zoo_name
    config = folder / "hyperparams.yml"
    config.write_text(yaml.safe_dump({run.env: dict(hyperparams)}))
    set_random_seed(run.seed)
    manager = ExperimentManager(
        argparse.Namespace(**vars(run)),
        zoo_name,
        run.env,
        str(folder),
        seed=run.seed,
        config=str(config),
        device=device,
        eval_freq=-1,
        log_interval=-1,
        verbose=0,
        vec_env_type="auto",
    )
    experiment = manager.setup_experiment()
    assert experiment is not None
    rows: list[Row] = []
    uses = uses_per_sample(zoo_name, hyperparams)
    manager.callbacks.append(Evaluation(run, manager.n_timesteps, uses, rows, starter))
    model = experiment[0]
    manager.learn(model)
    n_games = SUITES[run.suite].final_games
    if n_games > 0:
        rows[-1]["score"] = final_score(manager, model, n_games)
    return rows


def final_score(manager: ExperimentManager, model: BaseAlgorithm, n_games: int) -> float:
    """
    :param manager: of the run, whose environments are not normalized
    :param model: after training
    :param n_games: how many games are played, as many in each environment: the first to end would be short ones
    :return: mean score of whole games, with actions sampled from the policy
    """
    env = manager.create_envs(min(FINAL_ENVS, n_games), eval_env=True, no_log=True)
    env.seed(FINAL_SEED + manager.seed)
    score, _ = evaluate_policy(model, env, n_games, deterministic=False)
    env.close()
    assert isinstance(score, float | np.floating)
    return float(score)


def versions() -> str:
    """
    :return: versions of the packages, commit and machine
    """
    packages = [f"{name} {version(name)}" for name in PACKAGES]
    commit = _git("describe", "--always") or "unknown"
    # The results themselves change with every run
    changed = "-dirty" if _git("status", "--porcelain", "--", ":/", ":(exclude)results") else ""
    device = th.cuda.get_device_name() if th.cuda.is_available() else processor()
    return ", ".join([*packages, f"commit {commit}{changed}", device])


def _git(*arguments: str) -> str:
    """What git says in this folder, nothing if it cannot."""
    git = subprocess.run(["git", *arguments], cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    return git.stdout.strip()


def main() -> None:
    """
    Train the run that the first argument describes, in a folder of its own that no other process works in. Its rows go
    to the folder, and to the results if there are any to put it in.
    """
    task = json.loads(sys.argv[1])
    run, folder = Run(**task["run"]), Path(task["folder"])
    folder.mkdir(parents=True, exist_ok=True)
    # The system lets go of the lock when the process ends, however it ends
    lock = (folder / "lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        sys.exit(BUSY)
    if task["results"] and is_done(Path(task["results"]), run):  # since this process was asked for it
        if not (folder / "rows.json").exists():  # else its scheduler has yet to read them
            shutil.rmtree(folder)
        sys.exit(BUSY)
    rows = train(run, task["hyperparams"], folder, task["device"], task["starter"])
    if task["results"]:
        add_run(Path(task["results"]), run, rows, task["hyperparams"], versions())
    (folder / "rows.json").write_text(json.dumps(rows))


if __name__ == "__main__":
    main()
