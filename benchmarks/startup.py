"""
How long does `sb3-dapo train` take until it has logged its first update, and how long RL Zoo's own command? On
CartPole, whose settings are the same in both, in alternating processes.

    python benchmarks/startup.py            # rewrites results/startup.csv and startup.md
    python benchmarks/startup.py --report   # only startup.md, from startup.csv
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch as th
from store import processor, stream_csv, write_table

RESULTS = Path(__file__).parent / "results" / "startup.csv"
COLUMNS = ["contestant", "run", "wall_s", "cpu_s", "machine"]
BASELINE = "RL Zoo, PPO"
CONTESTANTS = {
    BASELINE: ["-m", "rl_zoo3.train", "--algo", "ppo"],
    "sb3-dapo train": ["-m", "sb3_dapo.cli", "train"],
    "sb3-dapo train --algo ppo": ["-m", "sb3_dapo.cli", "train", "--algo", "ppo"],
}
# What a table of the log has after an update
MARK = "n_updates"


def first_update(arguments: Sequence[str]) -> tuple[float, float]:
    """
    :param arguments: of Python
    :return: seconds from the start of the process to the log of its first update, and of CPU time until then
    :raises RuntimeError: if the process ends before
    """
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-u", *arguments, "--env", "CartPole-v1", "-n", "100000", "--eval-freq", "-1"]
        begin = time.perf_counter()
        process = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        assert process.stdout is not None
        found = any(MARK in line for line in process.stdout)
        wall = time.perf_counter() - begin
        process.kill()
        _, _, usage = os.wait4(process.pid, 0)
        process.returncode = 0  # it has been waited for
    if not found:
        raise RuntimeError(f"{' '.join(command)} ended before its first update")
    return wall, usage.ru_utime + usage.ru_stime


def measure(n_runs: int) -> Iterator[dict[str, Any]]:
    """
    :param n_runs: of each contestant, after one that is not measured
    :return: a row for each run, the contestants taking turns
    """
    machine = f"{processor()}, {os.cpu_count()} cores, torch {th.__version__}"
    for run in range(n_runs + 1):
        for name, arguments in CONTESTANTS.items():
            wall, cpu = first_update(arguments)
            if run > 0:  # the first one reads the libraries from the disk
                yield {
                    "contestant": name,
                    "run": run,
                    "wall_s": f"{wall:.2f}",
                    "cpu_s": f"{cpu:.2f}",
                    "machine": machine,
                }


def table(rows: Sequence[dict[str, Any]]) -> str:
    """
    :param rows: of all runs
    :return: a Markdown table of the medians
    """
    lines = [
        "| | to the first update, s | ratio | CPU time, s | ratio | runs |",
        "| --- | --: | --: | --: | --: | --: |",
    ]
    times = {
        name: {x: [float(row[x]) for row in rows if row["contestant"] == name] for x in ("wall_s", "cpu_s")}
        for name in CONTESTANTS
    }
    for name, own in times.items():
        cells = []
        for column, values in own.items():
            ratios = [value / zoo for value, zoo in zip(values, times[BASELINE][column], strict=True)]
            cells += [f"{statistics.median(values):.2f}", f"{statistics.median(ratios):.2f}"]
        lines.append(f"| {name} | {' | '.join(cells)} | {len(own['wall_s'])} |")
    return "\n".join(lines)


def main() -> None:
    """Measure, write the runs and the table of the medians, print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5, help="of each contestant (default: 5)")
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--report", action="store_true", help="only write the table, from what is in the output")
    args = parser.parse_args()
    if not args.report:
        for row in stream_csv(args.output, COLUMNS, measure(args.runs)):
            print(f"{row['contestant']:26} {row['wall_s']} s, {row['cpu_s']} s of CPU time", flush=True)
    write_table(args.output, table)


if __name__ == "__main__":
    main()
