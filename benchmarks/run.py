"""
Train the algorithms of a suite and put a row per evaluation into `benchmarks/results`.

    python benchmarks/run.py --suite minatar --algos ppo dapo --seeds 5 --jobs 2

Runs that are in the results are skipped, so that the command can be stopped, killed and given again at any time.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from store import BUSY, RESULTS, Row, Run, format_row, is_done, read_rows, read_settings, remove_settings, run_of
from suites import REGIMES, SUITES, ablations, algorithms, hyperparameters, run_names, run_regime

WORKER = Path(__file__).parent / "worker.py"
# What a rerun need not give again
NOT_COMPARED = {"wall_s"}


@dataclass(frozen=True)
class Task:
    """
    :param run: the run
    :param hyperparams: its entry in the Zoo's hyperparameter file
    :param folder: its folder, while it runs
    :param results: folder of the results that it is put into, None for none
    :param device: PyTorch device
    """

    run: Run
    hyperparams: Mapping[str, Any]
    folder: Path
    results: Path | None = None
    device: str = "auto"

    @property
    def log(self) -> Path:
        """What the run prints."""
        return self.folder.with_name(f"{self.folder.name}.log")  # with_suffix would cut names with a point

    def start(self) -> subprocess.Popen[bytes]:
        """
        :return: a process of one thread that trains
        """
        description = {
            "run": vars(self.run),
            "hyperparams": dict(self.hyperparams),
            "folder": str(self.folder),
            "results": self.results and str(self.results),
            "device": self.device,
            "starter": os.getpid(),
        }
        self.folder.mkdir(parents=True, exist_ok=True)
        with self.log.open("a") as log:
            return subprocess.Popen(
                [sys.executable, str(WORKER), json.dumps(description)],
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
            )

    def finish(self) -> list[Row]:
        """
        :return: the rows of a run that has ended well; its folder is removed
        """
        rows: list[Row] = json.loads((self.folder / "rows.json").read_text())
        shutil.rmtree(self.folder)
        self.log.unlink(missing_ok=True)  # another process at the same list may have been faster
        return rows


@contextmanager
def terminated_together(processes: Iterable[subprocess.Popen[bytes]]) -> Iterator[None]:
    """
    End the processes when this one is interrupted or told to end.

    :param processes: the processes; what is added later counts too
    """

    def stop(signal_number: int, frame: FrameType | None) -> None:
        print(f"stopped by {signal.Signals(signal_number).name}; the same command goes on from here", flush=True)
        sys.exit(128 + signal_number)

    previous = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for process in processes:
            if process.poll() is None:
                process.terminate()
                process.wait()
        for number, handler in previous.items():
            signal.signal(number, handler)


def run_all(tasks: Iterable[Task], jobs: int) -> Iterator[tuple[Task, list[Row] | None]]:
    """
    :param tasks: what is to be run; each is asked for when there is room for it
    :param jobs: processes at a time
    :return: generator of the tasks that have ended, with their rows: None where they failed, none where another process
        is at work on the run
    """
    running: dict[subprocess.Popen[bytes], Task] = {}
    queue = iter(tasks)
    with terminated_together(running):
        while True:
            while len(running) < jobs and (task := next(queue, None)) is not None:
                running[task.start()] = task
            if not running:
                return
            for process in [process for process in running if process.poll() is not None]:
                task = running.pop(process)
                if process.returncode == BUSY:
                    yield task, []
                else:
                    yield task, task.finish() if process.returncode == 0 else None
            time.sleep(0.1)


def ordered(suite: str, regime: str, envs: Iterable[str], algos: Iterable[str], seeds: Iterable[int]) -> list[Run]:
    """
    :param suite: name of a suite
    :param regime: name of one of its regimes
    :param envs: its environments
    :param algos: names of algorithms
    :param seeds: seeds
    :return: the runs, one seed of everything before the next, so that the first table is there early
    """
    algos, envs = list(algos), list(envs)
    return [Run(suite, run_regime(regime, algo), env, algo, seed) for seed in seeds for env in envs for algo in algos]


def stale_settings(results: Path, runs: Mapping[Run, Mapping[str, Any]], suite: str) -> set[str]:
    """
    :param results: folder of the results
    :param runs: runs and their hyperparameters
    :param suite: name of their suite
    :return: the settings whose results were made with other hyperparameters
    """
    made_with = {name: value["hyperparams"] for name, value in read_settings(results, suite).items()}
    return {run.setting for run, params in runs.items() if made_with.get(run.setting, params) != params}


def differences(results: Path, run: Run, rows: list[Row]) -> list[str]:
    """
    :param results: folder of the results
    :param run: a run that is in them
    :param rows: rows of a rerun
    :return: where the rerun differs, apart from the time it took
    """
    committed = [format_row(row) for row in read_rows(results, run.suite) if run_of(row) == run]
    return [
        f"{old['timesteps']} steps: {name} {new[name]} instead of {old[name]}"
        for old, new in zip(committed, map(format_row, rows), strict=True)
        for name in old
        if name not in NOT_COMPARED and old[name] != new[name]
    ]


def parse_args() -> argparse.Namespace:
    """
    :return: the command line
    """
    parser = argparse.ArgumentParser(
        description="Train the algorithms of a suite and put a row per evaluation into the results. Runs that are in "
        "the results are skipped."
    )
    parser.add_argument("--suite", required=True, choices=list(SUITES))
    parser.add_argument("--regime", default="scarce", choices=REGIMES)
    parser.add_argument("--env", nargs="+", help="environments (default: all of the suite, or those of its ablations)")
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--algos",
        nargs="+",
        help="algorithms of suites.py; with +name=value for one hyperparameter changed (default: all of the suite)",
    )
    which.add_argument(
        "--ablations", nargs="*", metavar="WORD", help="the ablations, or those with one of these words in their title"
    )
    parser.add_argument("--seeds", type=int, default=5, help="seeds 1 to N (default: 5)")
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time, of one thread each (default: 1)")
    parser.add_argument("--timesteps", type=int, help="environment steps, for trying things (needs --results)")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument("--device", default="auto", help="PyTorch device (default: auto)")
    parser.add_argument("--dry-run", action="store_true", help="only list what would be run")
    parser.add_argument("--redo", action="store_true", help="drop results made with other hyperparameters than today's")
    parser.add_argument("--check", action="store_true", help="run what is in the results again, and compare")
    args = parser.parse_args()
    if args.timesteps is not None and args.results == RESULTS:
        parser.error("--timesteps would mix runs of other lengths into the results: name another folder with --results")
    for name in ("seeds", "jobs"):
        if getattr(args, name) < 1:
            parser.error(f"--{name} must be at least 1, got {getattr(args, name)}")
    if args.ablations is not None:
        known = ablations(args.suite)
        asked = [title for title in known if not args.ablations or any(w in title for w in args.ablations)]
        if not asked:
            parser.error(f"--ablations must be words of {', '.join(map(repr, known))}, got {args.ablations}")
        args.algos = list(dict.fromkeys(algo for title in asked for algo in known[title]))
    elif args.algos is None:
        args.algos = algorithms(args.suite)
    if args.env is None:
        args.env = SUITES[args.suite].envs if args.ablations is None else list(SUITES[args.suite].ablation_envs)
    try:
        for env in args.env:
            for algo in args.algos:
                hyperparameters(args.suite, args.regime, env, algo)
    except ValueError as error:
        parser.error(str(error))
    return args


def main() -> None:
    """Run what is missing."""
    args = parse_args()
    results: Path = args.results.resolve()
    names = dict.fromkeys(run_names(args.suite, args.regime, args.algos).values())
    runs = ordered(args.suite, args.regime, args.env, names, range(1, args.seeds + 1))
    length = {} if args.timesteps is None else {"n_timesteps": args.timesteps}
    params = {run: {**hyperparameters(run.suite, run.regime, run.env, run.algo), **length} for run in runs}

    stale = stale_settings(results, params, args.suite)
    if stale and args.redo:
        remove_settings(results, args.suite, stale)
    elif stale:
        listed = "\n  ".join(sorted(stale))
        sys.exit(f"These results were made with other hyperparameters (--redo drops them):\n  {listed}")

    wanted = [run for run in runs if is_done(results, run) == args.check]
    print(f"{len(runs)} runs, {len(runs) - len(wanted)} skipped, {len(wanted)} to do", flush=True)
    if args.dry_run:
        print(*wanted, sep="\n")
        return

    folder = results / ".runs" / ("check" if args.check else "")
    target = None if args.check else results
    # Another process may have done a run in the meantime
    tasks = (
        Task(run, params[run], folder / run.slug, target, args.device)
        for run in wanted
        if args.check or not is_done(results, run)
    )
    start = time.monotonic()
    n_failed = 0
    for i, (task, rows) in enumerate(run_all(tasks, args.jobs), start=1):
        progress = f"[{i}/{len(wanted)}, {(time.monotonic() - start) / 60:.1f} min]"
        if rows is None and target is not None and is_done(results, task.run):
            rows = []  # the process that was at work on it had just removed the folder
        if rows is None:
            n_failed += 1
            last_lines = task.log.read_text().strip().splitlines()[-3:]
            print(progress, task.run, "FAILED:", *last_lines, f"(all of it: {task.log})", sep="\n  ", flush=True)
        elif not rows:
            print(progress, task.run, "left to the process that is at work on it", flush=True)
        elif args.check:
            different = differences(results, task.run, rows)
            n_failed += bool(different)
            print(
                progress, task.run, "the same" if not different else "\n  ".join(["DIFFERS:", *different]), flush=True
            )
        else:
            print(progress, task.run, f"score {rows[-1]['score']:.2f}, {rows[-1]['wall_s']:.0f} s", flush=True)
    sys.exit(n_failed > 0)


if __name__ == "__main__":
    main()
