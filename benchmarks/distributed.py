"""
What do actors cost, and what do they gain? Ratios to one process that does the same.

    python benchmarks/distributed.py            # results/distributed.csv, in less than 8 minutes
    python benchmarks/distributed.py --report   # only distributed.md, from the CSV file

Every measurement is a process of its own, with a Ray of its own; those of a case take turns, several times round. CPU
times are those of whole processes; on a machine that does other things the ratios of wall time mean nothing.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import gymnasium as gym
import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecEnv
from store import Row, stream_csv, write_table

from sb3_dapo import DAPO

CSV = Path(__file__).parent / "results" / "distributed.csv"
N_STEPS, N_EPOCHS, N_WARMUP = 128, 2, 3
# Actors by case; 0: one process without actors
ACTORS = {"CartPole": [0, 1], "Atari": [0, 1], "MinAtar": [0, 1, 2], "waiting": [0, 1, 2, 3]}
N_UPDATES = {"CartPole": 30, "Atari": 3, "MinAtar": 12, "waiting": 6}
MEASURES = ("steps_per_second", "collect_cpu", "actor_cpu", "learner_cpu", "publish_share")


class Waiting(gym.Wrapper):  # type: ignore[type-arg]
    """A simulator that takes 4 ms, and no CPU, for a step."""

    def step(self, action: Any) -> Any:
        time.sleep(0.004)
        return self.env.step(action)


def make_env(case: str, seed: int) -> VecEnv:
    """:return: the environments of a case, of one actor or of one process"""
    if case == "Atari":
        from sb3_dapo.atari_vec_env import AtariVecEnv

        return AtariVecEnv("BreakoutNoFrameskip-v4", 8, seed)
    if case == "MinAtar":
        from sb3_dapo.zoo import register

        register()
        return make_vec_env("MinAtar/Breakout-v1", 32, seed=seed)
    if case == "CartPole":
        return make_vec_env("CartPole-v1", 8, seed=seed)
    return make_vec_env(lambda: Waiting(gym.make("CartPole-v1")), 1, seed=seed)


class Measured(DAPO):
    """Keeps the CPU time of its updates."""

    train_cpu = 0.0

    def train(self) -> None:
        began = time.process_time()
        super().train()
        self.train_cpu += time.process_time() - began


class Meter(BaseCallback):
    """
    Measures what comes after the warm-up.

    :param read_clocks: returns the CPU seconds of all actors, and the seconds of publishing
    """

    def __init__(self, read_clocks: Callable[[], tuple[float, float]]) -> None:
        super().__init__()
        self.read_clocks = read_clocks
        self.n_updates, self.collect_cpu = 0, 0.0
        self.result: dict[str, float] = {}

    def _on_rollout_start(self) -> None:
        if self.n_updates == N_WARMUP:
            self.first_steps, self.wall, self.collect_cpu = self.num_timesteps, time.perf_counter(), 0.0
            self.cpu, self.model.train_cpu = time.process_time(), 0.0  # type: ignore[attr-defined]
            self.actor_cpu, self.publishing = self.read_clocks()
        self.start = time.process_time()
        self.n_updates += 1

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        self.collect_cpu += time.process_time() - self.start

    def _on_training_end(self) -> None:
        n_steps, seconds = self.num_timesteps - self.first_steps, time.perf_counter() - self.wall
        outside = time.process_time() - self.cpu - self.model.train_cpu  # type: ignore[attr-defined]
        actor_cpu, publishing = self.read_clocks()
        self.result = {
            "steps_per_second": n_steps / seconds,
            "collect_cpu": self.collect_cpu / n_steps,
            "actor_cpu": (actor_cpu - self.actor_cpu) / n_steps,
            "learner_cpu": outside / n_steps,
            "publish_share": (publishing - self.publishing) / seconds,
        }


def measure(case: str, n_actors: int) -> dict[str, float]:
    """:return: steps per second, CPU seconds per step, and the share of time that publishing takes"""
    th.set_num_threads(1)
    publishing = [0.0]
    if n_actors == 0:
        env: VecEnv = make_env(case, 0)
    else:
        from sb3_dapo.distributed import ActorVecEnv
        from sb3_dapo.distributed.cluster import Cluster
        from sb3_dapo.distributed.source import Source

        publish: Callable[..., None] = Source._publish

        def timed(source: Source, model: DAPO) -> None:
            began = time.perf_counter()
            publish(source, model)
            publishing[0] += time.perf_counter() - began

        Source._publish = timed  # type: ignore[method-assign]
        Cluster(num_cpus=n_actors)
        env = ActorVecEnv(partial(make_env, case), n_actors)
    policy = "CnnPolicy" if case == "Atari" else "MlpPolicy"
    model = Measured(
        policy, env, n_steps=N_STEPS, n_epochs=N_EPOCHS, batch_size=256, n_rollouts=2, seed=0, device="cpu"
    )
    meter = Meter(lambda: (cpu_of_actors(env) if n_actors else 0.0, publishing[0]))
    n_updates = N_WARMUP + N_UPDATES[case]
    model.learn(n_updates * N_STEPS * env.num_envs * max(n_actors, 1), meter)
    env.close()
    return meter.result


def cpu_of_actors(env: Any) -> float:
    """:return: CPU seconds of all actors so far"""
    pids = [re.findall(r"process (\d+)", slot.host)[0] for slot in env._source.pool._slots]
    fields = [Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split() for pid in pids]
    return sum(int(ticks) for line in fields for ticks in line[11:13]) / os.sysconf("SC_CLK_TCK")


def run(n_rounds: int) -> None:
    """Measure every case."""

    def rows() -> Iterator[dict[str, Any]]:
        for number, case in product(range(n_rounds), ACTORS):
            for n_actors in ACTORS[case]:
                command = [sys.executable, __file__, "--measure", case, str(n_actors)]
                output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
                result = {name: f"{value:.4g}" for name, value in json.loads(output.splitlines()[-1]).items()}
                yield {"case": case, "actors": n_actors, "round": number, **result}

    for row in stream_csv(CSV, ["case", "actors", "round", *MEASURES], rows()):
        print(row, flush=True)


def table(rows: list[Row]) -> str:
    """
    :param rows: of the CSV file
    :return: ratios to one process, and what they may be, as Markdown
    """
    values: dict[tuple[str, int, str], list[float]] = defaultdict(list)
    for row in rows:
        for name in MEASURES:
            values[row["case"], int(row["actors"]), name].append(float(row[name]))
    medians = {key: statistics.median(numbers) for key, numbers in values.items()}
    lines = [
        "| environments | actors | env steps/s | an actor's CPU | the learner's, outside of updates | publishing |",
        "|---|--:|--:|--:|--:|--:|",
        "| *at most* | | | 1.15 | 0.25 | 2 % |",
    ]
    for case, all_actors in ACTORS.items():
        alone, cpu = medians[case, 0, "steps_per_second"], medians[case, 0, "collect_cpu"]
        for n in all_actors[1:]:
            speed, actor, learner = (
                medians[case, n, name] for name in ("steps_per_second", "actor_cpu", "learner_cpu")
            )
            cells = [f"{speed / alone:.2f}", f"{actor / cpu:.2f}", f"{learner / cpu:.2f}"]
            lines.append(f"| {case} | {n} | {' | '.join(cells)} | {medians[case, n, 'publish_share']:.1%} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="Ratios of actors to one process")
    parser.add_argument("--report", action="store_true")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--measure", nargs=2, metavar=("CASE", "ACTORS"))
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(args.measure[0], int(args.measure[1]))))
        return
    if not args.report:
        run(args.rounds)
    write_table(CSV, table)


if __name__ == "__main__":
    main()
