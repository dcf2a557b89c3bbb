"""
Soak test of actors: one is killed at random every 20 seconds, and the learner five times, which goes on from its latest
checkpoint. A second run beside it is left alone, for comparison::

    python benchmarks/soak_actors.py --minutes 30
    python benchmarks/soak_actors.py --report     # only soak_actors.md, from the CSV file

Every step of an environment has a serial number, which callbacks see. In the end those of the whole run, as far as it
counted steps, must be different and without gaps. Exit status 1 if they are not, or something else is wrong.

Environments sleep between steps, so that both runs take little CPU. An actor that dies six times within five minutes
would end training; this limit is lifted here.
"""

import argparse
import csv
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper
from store import Row, stream_csv, write_table

from sb3_dapo import DAPO
from sb3_dapo.checkpoint import CheckpointCallback, latest_checkpoint, learn_until

RESULTS = Path(__file__).parent / "results" / "soak_actors.csv"
MEASURES = ["steps", "updates", "score", "restarts", "learner_mb", "all_mb"]
CHECKS = ["repeated", "missing", "untrained", "dropped", "final_score"]
COLUMNS = ["run", "minute", "actor_kills", "learner_kills", *MEASURES, *CHECKS]
N_ACTORS, N_ENVS, N_STEPS = 3, 8, 128
SECONDS_PER_STEP = 0.02
CHECKPOINT_FREQ = 40_000
SECONDS_PER_ROW = 30.0
# What Ray says when a busy machine takes more than half a minute to start it
RAY_WAS_SLOW = "timed out during startup"


# --- a run ----------------------------------------------------------------------------------------


class Numbered(VecEnvWrapper):
    """Sleeps at each step, and gives it a serial number: one of the environment, and the steps it has made."""

    def reset(self) -> Any:
        self.stream, self.n_steps = int.from_bytes(os.urandom(7)) & ~0xFF, 0
        return self.venv.reset()

    def step_wait(self) -> Any:
        time.sleep(SECONDS_PER_STEP)
        observations, rewards, dones, infos = self.venv.step_wait()
        for number, info in enumerate(infos):
            info["serial"] = (self.stream + number, self.n_steps)
        self.n_steps += 1
        return observations, rewards, dones, infos


def make_env(seed: int) -> VecEnv:
    """:return: the environments of an actor"""
    return Numbered(make_vec_env("CartPole-v1", N_ENVS, seed=seed))


class Watched(DAPO):
    """Counts rollouts that left the ring before it was trained on them."""

    n_untrained = 0
    n_arrived: int | None = None

    def train(self) -> None:
        ring = self.rollout_buffer
        if self.n_arrived is not None:
            new = set(range(self.n_arrived, ring.n_arrived))
            self.n_untrained += len(new - set(ring.arrivals[: ring.n_kept].tolist()))
        self.n_arrived = ring.n_arrived
        super().train()


class Ledger(BaseCallback):
    """
    Writes down the serial number of every step that is counted, and how the run stands.

    :param folder: of the run
    :param until: when it ends, in seconds since the epoch
    """

    def __init__(self, folder: Path, until: float) -> None:
        super().__init__()
        self.folder, self.until = folder, until
        self.serials: list[tuple[int, int]] = []
        self.logged: dict[str, float] = {}

    def _on_training_start(self) -> None:
        path = self.folder / "ledger"
        path.touch()
        n_written, n_counted = path.stat().st_size // 16, self.num_timesteps
        assert n_written >= n_counted, f"{n_written} steps are written down, {n_counted} counted"
        with (self.folder / "dropped").open("a") as file:
            print(n_written - n_counted, file=file)
        os.truncate(path, n_counted * 16)
        self.file = path.open("ab")

    def _on_step(self) -> bool:
        self.serials += [info["serial"] for info in self.locals["infos"]]
        return time.time() < self.until

    def _on_rollout_end(self) -> None:
        self.flush()
        slots = self.training_env.unwrapped._source.pool._slots  # type: ignore[attr-defined]
        found = [re.search(r"process (\d+)", slot.host) for slot in slots]
        scores = [episode["r"] for episode in self.model.ep_info_buffer or ()]
        status = {
            "pids": [int(match[1]) if match else None for match in found],
            "steps": self.num_timesteps,
            "updates": self.model._policy_version,  # type: ignore[attr-defined]
            "score": float(np.mean(scores)) if scores else None,
            "restarts": self.logger.name_to_value["distributed/restarts"],
        }
        write(self.folder / "status", status)

    def flush(self) -> None:
        self.file.write(np.array(self.serials, np.int64).tobytes())
        self.file.flush()
        self.serials.clear()


def write(path: Path, content: Any) -> None:
    path.with_suffix(".part").write_text(json.dumps(content))
    path.with_suffix(".part").replace(path)


def learn(folder: Path, until: float) -> None:
    """
    Start a run, or go on with it, and at its end write what is wrong with it, and its score.

    :param folder: of the run
    :param until: when it ends, in seconds since the epoch
    """
    import torch as th

    from sb3_dapo.distributed import ActorVecEnv
    from sb3_dapo.distributed.cluster import Cluster

    th.set_num_threads(1)
    Cluster(num_cpus=1, object_store_memory=200_000_000)
    env = ActorVecEnv(make_env, N_ACTORS, cpus_per_actor=1 / N_ACTORS, info_keywords=["serial"])
    env._source.pool.max_restarts = 10**9
    path = latest_checkpoint(folder)
    if path is None:
        settings: dict[str, Any] = {"n_steps": N_STEPS, "n_rollouts": 2, "n_epochs": 2, "batch_size": 256}
        model = Watched("MlpPolicy", env, learning_rate=1e-3, seed=0, device="cpu", **settings)
    else:
        model = Watched.load_checkpoint(path, env, device="cpu")
    ledger = Ledger(folder, until)
    learn_until(model, 10**9, [CheckpointCallback(CHECKPOINT_FREQ, folder), ledger])
    ledger.flush()
    env.close()
    repeated, missing = check_serials(folder / "ledger", model.num_timesteps)
    score, _ = evaluate_policy(model, make_vec_env("CartPole-v1", N_ENVS, seed=1000), 100, deterministic=False)
    dropped = sum(map(int, (folder / "dropped").read_text().split()))
    untrained = model.n_untrained * N_STEPS * N_ENVS
    numbers = (repeated, missing, untrained, dropped, score)
    write(folder / "end", {"steps": model.num_timesteps, **dict(zip(CHECKS, numbers, strict=True))})


def check_serials(path: Path, n_steps: int) -> tuple[int, int]:
    """
    :param path: of the serial numbers of all steps
    :param n_steps: that the run has counted
    :return: steps that are counted twice, and steps that are missing
    """
    serials = np.fromfile(path, np.int64).reshape(-1, 2)
    different = np.unique(serials, axis=0)
    _, counts = np.unique(different[:, 0], return_counts=True)
    # Of each environment the steps from the first on
    lasts = different[np.cumsum(counts) - 1, 1]
    return len(serials) - len(different), int((lasts + 1 - counts).sum()) + abs(n_steps - len(serials))


# --- what happens to it ---------------------------------------------------------------------------


class Run:
    """
    A learner in a process of its own, and what is done to it.

    :param name: of the run
    :param folder: of the run
    :param until: when it ends, in seconds since the epoch
    """

    def __init__(self, name: str, folder: Path, until: float) -> None:
        self.name, self.folder, self.until, self.errors = name, folder, until, folder / "errors"
        folder.mkdir()
        self.n_learner_kills = self.n_actor_kills = 0
        self.problems: list[str] = []
        self.start()

    def start(self) -> None:
        command = [sys.executable, __file__, "--learner", str(self.folder), str(self.until)]
        # Ray would let all other processes of the machine go first, which some of them make use of
        environment = {**os.environ, "RAY_worker_niceness": "0", "PYTHONPATH": str(Path(__file__).parent)}
        environment.pop("RAY_ADDRESS", None)
        self.status: dict[str, Any] = {}
        (self.folder / "status").unlink(missing_ok=True)
        with self.errors.open("a") as file:
            self.process = subprocess.Popen(command, env=environment, stderr=file)

    def look(self) -> bool:
        """:return: whether it goes on"""
        if (self.folder / "status").exists():
            self.status = json.loads((self.folder / "status").read_text())
        if self.process.poll() not in (None, 0) and not self.status and RAY_WAS_SLOW in self.errors.read_text():
            self.errors.unlink()
            self.start()
        elif self.process.returncode not in (None, 0):
            self.problems.append(f"the learner ended with {self.process.returncode}, see {self.errors}")
        return self.process.returncode is None

    def kill_actor(self, rng: random.Random) -> None:
        pids = [pid for pid in self.status.get("pids", []) if is_actor(pid)]
        if pids:
            os.kill(rng.choice(pids), signal.SIGKILL)
            self.n_actor_kills += 1

    def kill_learner(self) -> None:
        processes = tree(self.process.pid)[1:]
        actors = [pid for pid in processes if is_actor(pid)]
        self.process.kill()
        self.process.wait()
        self.n_learner_kills += 1
        deadline = time.monotonic() + 60
        while left := [pid for pid in actors if is_actor(pid)]:
            if time.monotonic() > deadline:
                self.problems.append(f"{len(left)} actors outlived the learner")
                break
            time.sleep(0.2)
        for pid in filter(is_of_ray, processes):  # Ray's own helpers take their time
            os.kill(pid, signal.SIGKILL)
        self.start()

    def row(self, minute: float) -> Row:
        processes = tree(self.process.pid)
        row = {"run": self.name, "minute": f"{minute:.1f}"}
        row |= {"actor_kills": self.n_actor_kills, "learner_kills": self.n_learner_kills}
        row |= {name: self.status[name] for name in MEASURES[:4] if self.status.get(name) is not None}
        row |= {"learner_mb": proportional_mb(processes[:1]), "all_mb": proportional_mb(processes)}
        return {name: f"{value:.5g}" if isinstance(value, float) else value for name, value in row.items()}

    def last_row(self, minute: float) -> Row:
        row = {**self.row(minute), "learner_mb": "", "all_mb": ""}
        if not (self.folder / "end").exists():
            self.problems.append("the run did not come to its end")
            return row
        end = json.loads((self.folder / "end").read_text())
        wrong = [f"{end[name]} steps {name}" for name in CHECKS[:3] if end[name] != 0]
        self.problems += wrong
        return {**row, **end}


def command_of(pid: int | None) -> bytes:
    """:return: command line of a process, empty if there is none"""
    try:
        return b"" if pid is None else Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


def is_actor(pid: int | None) -> bool:
    return command_of(pid).startswith(b"ray::Host")


def is_of_ray(pid: int) -> bool:
    return b"ray" in command_of(pid)


def tree(pid: int) -> list[int]:
    """:return: a process, and all that it has started"""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(path.read_text().rsplit(")", 1)[1].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue
        children.setdefault(parent, []).append(int(path.parent.name))
    processes = [pid]
    for process in processes:
        processes += children.get(process, [])
    return processes


def proportional_mb(pids: list[int]) -> float:
    """:return: memory of processes, in which shared pages count once"""
    total = 0
    for pid in pids:
        try:
            total += int(re.findall(r"^Pss:\s+(\d+)", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE)[0])
        except (FileNotFoundError, ProcessLookupError, IndexError):  # it has just ended
            continue
    return total / 1024


def soak(args: argparse.Namespace, runs: list[Run]) -> Iterator[Row]:
    """
    :param args: of the command line
    :param runs: the first is harassed, the others are left alone
    :return: rows of how they stand
    """
    rng, began = random.Random(args.seed), time.time()
    seconds = 60 * args.minutes
    # At random moments of equal parts of the time, but not in the last seconds
    parts = np.linspace(0.02, 0.95, args.learner_kills + 1) * seconds
    learner_kills = [rng.uniform(a, b) for a, b in pairwise(parts)]
    next_kill, next_row = args.every, SECONDS_PER_ROW
    going = list(runs)
    while going:
        time.sleep(0.5)
        now = time.time() - began
        for run in [run for run in going if not run.look()]:
            going.remove(run)
            yield run.last_row(now / 60)
        if runs[0] in going and now < seconds:
            if learner_kills and now > learner_kills[0]:
                learner_kills.pop(0)
                runs[0].kill_learner()
            elif now > next_kill:
                runs[0].kill_actor(rng)
                next_kill += args.every
        if now > next_row:
            next_row += SECONDS_PER_ROW
            yield from (run.row(now / 60) for run in going)
        if now > seconds + 600:
            for run in going:
                run.problems.append("the run did not end in time")
                run.process.kill()


def table(rows: list[Row]) -> str:
    """
    :param rows: of the CSV file
    :return: what happened to each run, and what came of it, as Markdown
    """
    last = {row["run"]: row for row in rows if row["final_score"]}
    n_steps = min((int(row["steps"]) for row in last.values()), default=0)
    lines = [
        "| run | minutes | actors killed | learner killed | steps | counted twice | lost | memory at first, MB "
        f"| at last | return at {n_steps:,} steps | at the end |",
        f"|---|{'--:|' * 10}",
    ]
    for name, end in last.items():
        own = [row for row in rows if row["run"] == name and row["steps"]]
        memory = [float(row["all_mb"]) for row in own if row["all_mb"]]
        quarter = max(len(memory) // 4, 1)
        (score,) = [row["score"] for row in own if int(row["steps"]) <= n_steps and row["score"]][-1:]
        cells = [name, end["minute"], end["actor_kills"], end["learner_kills"], f"{int(end['steps']):,}"]
        cells += [end["repeated"], str(int(end["missing"]) + int(end["untrained"]))]
        # At most, as an actor that has been killed takes none for a while
        cells += [f"{max(part):.0f}" for part in (memory[:quarter], memory[-quarter:])]
        lines.append(f"| {' | '.join(cells)} | {float(score):.0f} | {float(end['final_score']):.0f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--every", type=float, default=20.0, help="seconds between two kills of actors (default: 20)")
    parser.add_argument("--learner-kills", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0, help="of what happens (default: 0)")
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--report", action="store_true", help="only write the table, from what is in the output")
    parser.add_argument("--learner", nargs=2, metavar=("FOLDER", "UNTIL"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.learner:
        learn(Path(args.learner[0]), float(args.learner[1]))
        return
    problems: list[str] = []
    if not args.report:
        folder, until = Path(tempfile.mkdtemp(prefix="soak_")), time.time() + 60 * args.minutes
        runs = [Run(name, folder / name, until) for name in ("harassed", "undisturbed")]
        for row in stream_csv(args.output, COLUMNS, soak(args, runs)):
            print({name: value for name, value in row.items() if value != ""}, flush=True)
        problems = [f"{run.name}: {problem}" for run in runs for problem in run.problems]
    with args.output.open(newline="") as file:
        assert csv.DictReader(file).fieldnames == COLUMNS
    write_table(args.output, table)
    print(*problems, sep="\n")
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
