"""
Does `make train` show an agent that learns? Several seeds of it, and what each shows at its end.

    python benchmarks/first_run.py            # train what is missing, rewrite results/first_run.csv and first_run.md
    python benchmarks/first_run.py --report   # only first_run.md, from the CSV file

What is asked of every seed: the mean of the last three evaluations is at least twice that of the first, and at least
five standard errors above random actions and above the best constant action.
"""

import argparse
import csv
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import yaml
from store import Row, write_csv, write_table

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results" / "first_run.csv"
# `player`: "training" for an evaluation during training, "random actions", "always UP"; `score` is a mean over games
COLUMNS = ["env", "algo", "seed", "player", "timesteps", "score", "standard_error", "games", "minutes"]
N_LAST = 3


def runs(logs: Path) -> dict[tuple[str, int], Path]:
    """
    :param logs: log folder of `make train`
    :return: finished runs by algorithm and seed
    """
    found = {}
    for path in sorted(logs.glob("*/*_*/*/args.yml")):
        args = yaml.unsafe_load(path.read_text())
        if (path.parents[1] / f"{args['env'].replace('/', '-')}.zip").is_file():
            found[args["algo"], args["seed"]] = path.parents[1]
    return found


def train(algo: str, seed: int, logs: Path) -> Path:
    """
    :param algo: algorithm
    :param seed: seed
    :param logs: log folder
    :return: folder of the run that `make train` makes, or has made
    """
    if (algo, seed) not in runs(logs):
        subprocess.run(["make", "train", f"ALGO={algo}", f"SEED={seed}", f"LOGS={logs}"], cwd=ROOT, check=True)
    run = runs(logs)[algo, seed]
    if not (run / "scores.csv").is_file():  # interrupted before the report
        env, _, number = run.name.rpartition("_")
        command = ["report", "--algo", algo, "--env", env, "--exp-id", number, "-f", str(logs), "-n", "10", "--video"]
        subprocess.run([sys.executable, "-m", "sb3_dapo.cli", *command], check=True)
    return run


def rows_of(run: Path, algo: str, seed: int) -> Iterator[Row]:
    """
    :param run: folder of a run
    :param algo: its algorithm
    :param seed: its seed
    :return: a row for each evaluation in training, and for each player at the end
    """
    (config,) = run.glob("*/args.yml")
    env = yaml.unsafe_load(config.read_text())["env"]
    begin, end = (path.stat().st_mtime for path in (config, next(run.glob(f"{config.parent.name}.zip"))))
    named = {"env": env, "algo": algo, "seed": seed, "minutes": f"{(end - begin) / 60:.1f}"}

    def row(player: str, timesteps: int, scores: npt.NDArray[np.float64]) -> Row:
        error = scores.std(ddof=1) / np.sqrt(len(scores))
        values = {"score": f"{scores.mean():.6g}", "standard_error": f"{error:.4g}", "games": len(scores)}
        return {**named, "player": player, "timesteps": timesteps, **values}

    log = np.load(run / "evaluations.npz")
    for timesteps, scores in zip(log["timesteps"], log["results"], strict=True):
        yield row("training", int(timesteps), scores)
    played: dict[str, list[float]] = {}
    with (run / "scores.csv").open(newline="") as file:
        for game in csv.DictReader(file):
            played.setdefault(game["player"], []).append(float(game["score"]))
            steps = int(game["timesteps"])
    for player, values in played.items():
        yield row(player, steps, np.array(values))


def table(rows: list[Row]) -> str:
    """
    :param rows: rows of the CSV file
    :return: what each seed has learned, as Markdown
    """
    lines = ["| game | algorithm | seed | first evaluation | mean of the last 3 | times | agent at the end | random | "]
    lines[0] += "best constant action | standard errors above both | minutes |"
    lines.append("|" + "---|" * 11)
    for env, algo, seed in sorted({(row["env"], row["algo"], row["seed"]) for row in rows}):
        own = [row for row in rows if (row["env"], row["algo"], row["seed"]) == (env, algo, seed)]
        curve = [row for row in own if row["player"] == "training"]
        first, last = float(curve[0]["score"]), curve[-N_LAST:]
        mean = np.mean([float(row["score"]) for row in last])
        error = np.sqrt(sum(float(row["standard_error"]) ** 2 for row in last)) / len(last)
        agent, random, *constant = (row for row in own if row["player"] != "training")
        above = [
            (mean - float(other["score"])) / np.hypot(error, float(other["standard_error"]))
            for other in (random, *constant)
        ]
        cells = [env, algo, seed, f"{first:,.0f}", f"{mean:,.0f} ± {error:,.0f}", f"{mean / first:.1f}"]
        cells += [f"{float(row['score']):,.0f} ± {float(row['standard_error']):,.0f}" for row in (agent, random)]
        cells += [f"{float(row['score']):,.0f} ({row['player']})" for row in constant] or ["-"]
        lines.append(f"| {' | '.join([*cells, f'{min(above):.1f}', own[0]['minutes']])} |")
    return "\n".join(lines)


def main() -> None:
    """Train, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--algos", nargs="+", default=["dapo"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--logs", type=Path, default=Path("logs/first_run"), help="log folder of the runs")
    parser.add_argument("--report", action="store_true", help="only write the table")
    args = parser.parse_args()
    if not args.report:
        logs = Path(os.path.abspath(args.logs))
        rows = [
            row
            for algo in args.algos
            for seed in range(args.seeds)
            for row in rows_of(train(algo, seed, logs), algo, seed)
        ]
        write_csv(RESULTS, COLUMNS, rows)
    write_table(RESULTS, table)


if __name__ == "__main__":
    main()
