"""The results: one CSV file per suite, one row per evaluation, and beside it what every run was made with."""

import csv
import fcntl
import json
import math
import os
import platform
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

RESULTS = Path(__file__).parent / "results"
COLUMNS = "suite,regime,env,algo,seed,timesteps,score,uses_per_sample,gradient_steps,wall_s,divergence,kl".split(",")
# Significant digits of the columns that are measured
DIGITS = {"score": 6, "wall_s": 5, "divergence": 4, "kl": 4}

# Exit status of a worker that leaves a run to another process
BUSY = 75

Row = dict[str, Any]


@dataclass(frozen=True, order=True)
class Run:
    """
    :param suite: name of a suite
    :param regime: name of one of its regimes
    :param env: one of its environments
    :param algo: name of an algorithm
    :param seed: seed
    """

    suite: str
    regime: str
    env: str
    algo: str
    seed: int

    @property
    def setting(self) -> str:
        """What all seeds have in common."""
        return f"{self.regime} {self.env} {self.algo}"

    @property
    def slug(self) -> str:
        """Name of the run's folder."""
        return f"{self.suite}_{self.regime}_{self.env}_{self.algo}_{self.seed}".replace("/", "-")

    def __str__(self) -> str:
        return f"{self.setting} seed {self.seed}"


@contextmanager
def locked(results: Path) -> Iterator[None]:
    """
    Let one process at a time change the results.

    :param results: folder of the results
    """
    results.mkdir(parents=True, exist_ok=True)
    with (results / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def read_rows(results: Path, suite: str) -> list[Row]:
    """
    :param results: folder of the results
    :param suite: name of a suite
    :return: its rows, with numbers as numbers and what was not measured as NaN
    """
    return [_parse(row) for row in read_csv(results / f"{suite}.csv")]


def run_of(row: Mapping[str, Any]) -> Run:
    """
    :param row: row of the results
    :return: the run that it is of
    """
    return Run(row["suite"], row["regime"], row["env"], row["algo"], row["seed"])


def is_done(results: Path, run: Run) -> bool:
    """
    :param results: folder of the results
    :param run: a run
    :return: whether it is in the results
    """
    return any(run_of(row) == run for row in read_rows(results, run.suite))


def read_settings(results: Path, suite: str) -> dict[str, dict[str, Any]]:
    """
    :param results: folder of the results
    :param suite: name of a suite
    :return: by :attr:`Run.setting` the hyperparameters, and the versions that runs were made with
    """
    path = results / f"{suite}.json"
    return json.loads(path.read_text()) if path.is_file() else {}


def add_run(results: Path, run: Run, rows: Iterable[Row], hyperparams: Mapping[str, Any], versions: str) -> None:
    """
    Put a finished run into the results, in the place of an earlier one.

    :param results: folder of the results
    :param run: the run
    :param rows: its rows
    :param hyperparams: its hyperparameters
    :param versions: of the packages and the machine
    """
    with locked(results):
        settings = read_settings(results, run.suite)
        kept = [row for row in read_rows(results, run.suite) if run_of(row) != run]
        seen = settings.get(run.setting, {}).get("versions", [])
        settings[run.setting] = {"hyperparams": dict(hyperparams), "versions": sorted({*seen, versions})}
        _write(results, run.suite, [*kept, *rows], settings)


def remove_settings(results: Path, suite: str, stale: set[str]) -> None:
    """
    Take all runs of some settings out of the results.

    :param results: folder of the results
    :param suite: name of a suite
    :param stale: the settings
    """
    with locked(results):
        settings = {name: value for name, value in read_settings(results, suite).items() if name not in stale}
        _write(results, suite, [r for r in read_rows(results, suite) if run_of(r).setting not in stale], settings)


def format_row(row: Mapping[str, Any]) -> dict[str, str]:
    """
    :param row: row of the results
    :return: its cells
    """
    return {
        name: ("" if math.isnan(row[name]) else f"{row[name]:.{DIGITS[name]}g}") if name in DIGITS else str(row[name])
        for name in COLUMNS
    }


def processor() -> str:
    """
    :return: name of the processor, and the units it has for fast arithmetic
    """
    cpuinfo = Path("/proc/cpuinfo")  # of Linux
    text = cpuinfo.read_text() if cpuinfo.is_file() else ""
    names = {line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name")}
    units = [unit for unit in ("avx512f", "avx512_bf16", "amx_bf16") if unit in text.split()]
    return " ".join([*sorted(names or {platform.processor() or platform.machine()}), *units])


def stream_csv(path: Path, columns: list[str], rows: Iterable[Row]) -> Iterator[Row]:
    """
    Write each row of a new CSV file as soon as it is there.

    :param path: the file
    :param columns: names of the columns
    :param rows: cells by column
    :return: generator of the rows that have been written
    """
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow(row)
            file.flush()
            yield row


def read_csv(path: Path) -> list[Row]:
    """
    :param path: the file
    :return: its rows, none if it is not there
    """
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def finished(rows: Iterable[Row], key: Sequence[str], is_last: Callable[[Row], bool]) -> list[Row]:
    """
    :param rows: of several runs
    :param key: columns that say which run a row is of
    :param is_last: whether a row is the last of its run
    :return: rows of runs that came to their end
    """
    rows = list(rows)
    ended = {tuple(row[name] for name in key) for row in rows if is_last(row)}
    return [row for row in rows if tuple(row[name] for name in key) in ended]


def train_missing(
    path: Path,
    columns: list[str],
    runs: Iterable[Row],
    train: Callable[..., Iterable[Row]],
    is_last: Callable[[Row], bool],
) -> Iterator[Row]:
    """
    Add runs to a CSV file, but for those that it has already. What it has of others is dropped.

    :param path: the file
    :param columns: names of its columns
    :param runs: the cells that say which run it is, which are the arguments of ``train`` too
    :param train: returns the other cells of a run's rows
    :param is_last: whether a row is the last of its run
    :return: generator of all rows
    """
    runs = list(runs)
    known = finished(read_csv(path), list(runs[0]) if runs else [], is_last)
    done = [{name: row[name] for name in runs[0]} for row in known if is_last(row)]

    def rows() -> Iterator[Row]:
        yield from known
        for run in runs:
            if {name: str(value) for name, value in run.items()} not in done:
                yield from ({**run, **row} for row in train(**run))

    return stream_csv(path, columns, rows())


def seed_means(rows: Iterable[Row], key: Sequence[str], name: str) -> dict[tuple[str, ...], np.ndarray]:
    """
    :param rows: of several runs
    :param key: columns that say what a row is of, besides the seed
    :param name: a column of numbers
    :return: by cells of the key the mean of each seed, in the order of the seeds
    """
    values: dict[tuple[str, ...], dict[int, list[float]]] = {}
    for row in rows:
        by_seed = values.setdefault(tuple(row[column] for column in key), {})
        by_seed.setdefault(int(row["seed"]), []).append(float(row[name]))
    return {cells: np.array([np.mean(by_seed[seed]) for seed in sorted(by_seed)]) for cells, by_seed in values.items()}


def half_width(values: Sequence[float] | np.ndarray) -> float:
    """
    :param values: of the seeds
    :return: half the width of the 95 % interval of their mean, by Student's t; NaN for a single one
    """
    return float(stats.sem(values) * stats.t.ppf(0.975, len(values) - 1)) if len(values) > 1 else math.nan


def write_table(path: Path, table: Callable[[list[Row]], str]) -> None:
    """
    Write the table of a CSV file into the Markdown file beside it, and print it.

    :param path: the CSV file
    :param table: turns its rows into Markdown
    """
    with path.open(newline="") as file:  # which must be there
        text = table(list(csv.DictReader(file)))
    path.with_suffix(".md").write_text(text + "\n")
    print(text)


def write_csv(path: Path, columns: list[str], rows: Iterable[Mapping[str, str]]) -> None:
    """
    Replace a CSV file as a whole: a process that is killed leaves either the old file or the new one.

    :param path: the file
    :param columns: names of the columns
    :param rows: cells by column
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    temporary.replace(path)


def _write(results: Path, suite: str, rows: list[Row], settings: Mapping[str, Any]) -> None:
    # The settings first: a run counts as done when its rows are there
    temporary = results / f".{suite}.json.{os.getpid()}"
    lines = [f"{json.dumps(name)}: {json.dumps(settings[name])}" for name in sorted(settings)]
    temporary.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    temporary.replace(results / f"{suite}.json")
    rows = sorted(rows, key=lambda row: (run_of(row), row["timesteps"]))
    write_csv(results / f"{suite}.csv", COLUMNS, map(format_row, rows))


def _parse(row: Mapping[str, str]) -> Row:
    integers = ("seed", "timesteps", "uses_per_sample", "gradient_steps")
    return {
        **row,
        **{name: int(row[name]) for name in integers},
        **{name: float(row[name] or "nan") for name in DIGITS},
    }
