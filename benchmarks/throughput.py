"""
How many environment steps per second do DAPO and its peers train on Breakout, with the same network and settings?

    python benchmarks/throughput.py --peer-venvs FOLDER --cleanrl CHECKOUT   # results/throughput_cpu.csv
    python benchmarks/throughput.py --defaults # without switches, on several tasks: results/throughput_cpu_defaults.csv
    python benchmarks/throughput.py --sweep    # over n_envs, n_epochs and K: results/throughput_cpu_sweep.csv
    python benchmarks/throughput.py --report   # from what is there: results/throughput.md, figures in docs/figures

Every measurement is a process of its own; the contestants take turns, several times round. ``docs/speed.md`` says how
to install the peers, each in a virtual environment named after it in FOLDER; one that is missing is left out.
"""

import argparse
import csv
import dataclasses
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib as mpl
import torch as th
from matplotlib import pyplot as plt
from matplotlib import ticker
from store import processor, stream_csv
from throughput_worker import Settings

RESULTS = Path(__file__).parent / "results"
FIGURES = Path(__file__).parents[1] / "docs" / "figures"
WORKER = Path(__file__).with_name("throughput_worker.py")
CLEANRL_SCRIPT = Path("cleanrl") / "ppo_atari_envpool.py"
ENV_ID = "BreakoutNoFrameskip-v4"
DEFAULTS = {"n_envs": 8, "n_steps": 128, "n_epochs": 4, "batch_size": 256}
TIMEOUT_S = 600

MACHINE = "machine"
BASELINE = "SB3 PPO"


@dataclass(frozen=True)
class Contestant:
    """
    :param function: that measures it, a key of ``throughput_worker.FUNCTIONS``
    :param options: its keyword arguments
    :param venv: name of the virtual environment that it needs; None for the one this runs in
    :param n_warmup: rollouts and updates that are not measured
    """

    function: str
    options: dict[str, Any] = field(default_factory=dict)
    venv: str | None = None
    n_warmup: int = 1


def sb3(algo: str, vec_env: str, **options: Any) -> Contestant:
    """
    :param algo: "dapo" or "ppo"
    :param vec_env: "native", "dummy" or "subproc"
    :param options: of the algorithm
    :return: a contestant from this virtual environment
    """
    # torch.compile compiles until it has seen all shapes
    n_warmup = 2 if options.get("compile") else 1
    return Contestant("sb3", {"algo": algo, "vec_env": vec_env, **options}, n_warmup=n_warmup)


CONTESTANTS = {
    BASELINE: sb3("ppo", "dummy"),
    "SB3 PPO, SubprocVecEnv": sb3("ppo", "subproc"),
    "DAPO, fast=False": sb3("dapo", "dummy", fast=False),
    "DAPO": sb3("dapo", "dummy"),
    "DAPO, native": sb3("dapo", "native"),
    "DAPO, native, optimize_memory_usage": sb3("dapo", "native", optimize_memory_usage=True),
    "DAPO, native, overlap": sb3("dapo", "native", overlap=True),
    "DAPO, native, compile": sb3("dapo", "native", compile=True),
    "DAPO, native, autocast=False": sb3("dapo", "native", autocast=False),
    "sbx PPO": Contestant("sb3", {"algo": "sbx"}, "sbx"),
    "CleanRL PPO, envpool": Contestant("cleanrl", {}, "cleanrl"),
    "Tianshou PPO, envpool": Contestant("tianshou", {}, "tianshou"),
    "TorchRL PPO": Contestant("torchrl", {}, "torchrl"),
    "Sample Factory PPO": Contestant("sample_factory", {}, "sample-factory"),
}
# What is measured without switches: Breakout, HalfCheetah with SB3's default settings, and MinAtar
DEFAULT_TASKS: dict[str, dict[str, Any]] = {
    "Breakout, 8 environments": {"env_id": ENV_ID, **DEFAULTS},
    "HalfCheetah, 1 environment": {
        "env_id": "HalfCheetah-v5",
        "n_envs": 1,
        "n_steps": 2048,
        "n_epochs": 10,
        "batch_size": 64,
    },
    "HalfCheetah, 8 environments": {
        "env_id": "HalfCheetah-v5",
        "n_envs": 8,
        "n_steps": 256,
        "n_epochs": 10,
        "batch_size": 64,
    },
    "MinAtar Breakout, 8 environments": {"env_id": "MinAtar/Breakout-v1", **DEFAULTS},
    "MinAtar Breakout, one thread": {"env_id": "MinAtar/Breakout-v1", **DEFAULTS, "threads": 1},
}
ATARI_CONTESTANTS = (BASELINE, "DAPO", "DAPO, native", "DAPO, native, autocast=False")
SMALL_CONTESTANTS = (BASELINE, "DAPO", "DAPO, fast=False", "sbx PPO")
# What the network's operations and the emulator alone would take
LIMIT = Contestant("machine")

COLUMNS = [
    *(
        "contestant",
        "sweep",
        "run",
        "steps_per_s",
        "collect_s",
        "update_s",
        "iteration_s",
        "peak_mb",
        "bytes_per_transition",
    ),
    *("emulator_s", "network_gflop", "gflop_per_s", "note"),
    *("env_id", "n_envs", "n_steps", "n_epochs", "batch_size", "n_rollouts"),
    *("device", "cpu", "cores", "threads", "version", "torch", "python"),
]
Row = dict[str, Any]


# --- measuring ----------------------------------------------------------------------------------------------------


def measure(name: str, settings: Settings, python: Path) -> Row:
    """
    :param name: of the contestant
    :param settings: what is measured, and how
    :param python: interpreter of its virtual environment
    :return: a row of the results; one that failed has only a note
    """
    row: Row = {
        "contestant": name,
        **{key: value for key, value in dataclasses.asdict(settings).items() if key in COLUMNS and key != "contestant"},
        "n_rollouts": settings.options.get("n_rollouts", 1),
        **machine(settings.device),
        "threads": settings.threads,
    }
    environment = {**os.environ, "OMP_NUM_THREADS": str(settings.threads), "PYTHONWARNINGS": "ignore"}
    try:
        process = subprocess.run(
            [python, WORKER, json.dumps(dataclasses.asdict(settings))],
            capture_output=True,
            text=True,
            env=environment,
            timeout=TIMEOUT_S,
            check=True,
        )
        measured = json.loads(process.stdout.splitlines()[-1])
    except (subprocess.SubprocessError, IndexError, json.JSONDecodeError) as error:
        lines = (getattr(error, "stderr", None) or str(error)).strip().splitlines()
        return {**row, "note": f"failed: {lines[-1]}"}
    medians = {
        phase: statistics.median(measured.pop(phase) or [float("nan")])
        for phase in ("collect_s", "update_s", "iteration_s")
    }
    # Where the two cannot be told apart, iteration_s was measured
    total = medians["collect_s"] + medians["update_s"]
    medians["iteration_s"] = medians["iteration_s"] if total != total else total
    return {**row, **measured, **medians, "steps_per_s": settings.rollout / medians["iteration_s"]}


def machine(device: str) -> Row:
    """
    :param device: "cpu" or "cuda"
    :return: the columns that say which machine this is
    """
    return {
        "device": th.cuda.get_device_name() if device == "cuda" else "cpu",
        "cpu": processor(),
        "cores": os.cpu_count(),
    }


def find_python(contestant: Contestant, peer_venvs: Path | None) -> Path | None:
    """
    :param contestant: who is measured
    :param peer_venvs: folder of the peers' virtual environments
    :return: its interpreter, None if it is not installed
    """
    if contestant.venv is None:
        return Path(sys.executable)
    python = None if peer_venvs is None else peer_venvs / contestant.venv / "bin" / "python"
    return python.absolute() if python is not None and python.exists() else None


def compare(args: argparse.Namespace, task: dict[str, Any], among: Iterable[str]) -> Iterator[Row]:
    """
    :param args: of the command
    :param task: fields of the settings
    :param among: names of contestants
    :return: a row for each measurement, the contestants taking turns
    """
    pythons = {}
    for name in among:
        contestant = CONTESTANTS[name]
        if args.only and not any(part.lower() in name.lower() for part in args.only):
            continue
        python = find_python(contestant, args.peer_venvs)
        if python is None:
            print(f"{name}: skipped, there is no virtual environment {contestant.venv} in --peer-venvs")
        elif contestant.function == "cleanrl" and args.cleanrl is None:
            print(f"{name}: skipped, --cleanrl names no checkout")
        else:
            pythons[name] = python
    failed = set()
    for run in range(1, args.runs + 1):
        for name in [MACHINE, *pythons]:
            if name in failed:
                continue
            contestant = LIMIT if name == MACHINE else CONTESTANTS[name]
            options = dict(contestant.options)
            if contestant.function == "cleanrl":
                options["script"] = str(args.cleanrl.absolute() / CLEANRL_SCRIPT)
            settings = Settings(
                contestant=contestant.function,
                options=options,
                n_iterations=args.iterations,
                n_warmup=contestant.n_warmup,
                device=args.device,
                **{"threads": args.threads, **task},
            )
            row = measure(name, settings, pythons.get(name, Path(sys.executable)))
            if "note" in row:
                failed.add(name)
            yield {**row, "run": run}


def compare_defaults(args: argparse.Namespace) -> Iterator[Row]:
    """
    :param args: of the command
    :return: the same for each of the tasks
    """
    for name, task in DEFAULT_TASKS.items():
        if not args.tasks or name in args.tasks:
            among = ATARI_CONTESTANTS if task["env_id"] == ENV_ID else SMALL_CONTESTANTS
            # sbx has no network for MinAtar
            yield from compare(args, task, among[: 3 if "MinAtar" in name else 4])


def sweep(args: argparse.Namespace) -> Iterator[Row]:
    """
    :param args: of the command
    :return: a row for each measurement: one setting at a time differs from the defaults
    """
    rollout = DEFAULTS["n_envs"] * DEFAULTS["n_steps"]
    points: dict[str, list[dict[str, int]]] = {
        # as many transitions in each rollout
        "n_envs": [{"n_envs": n_envs, "n_steps": rollout // n_envs} for n_envs in (1, 4, 16, 64, 256)],
        "n_epochs": [{"n_epochs": n_epochs} for n_epochs in (1, 2, 4, 8, 16)],
        # an epoch visits all K rollouts
        "n_rollouts": [{"n_rollouts": n_rollouts, "n_epochs": 1} for n_rollouts in (1, 2, 4, 8, 16)],
    }
    names = {"n_rollouts": ["DAPO, native"]}
    for run in range(1, args.runs + 1):
        for column, values in points.items():
            for changed in values:
                n_rollouts = changed.get("n_rollouts", 1)
                shared = {key: changed.get(key, default) for key, default in DEFAULTS.items()}
                for name in names.get(column, ["DAPO, native", BASELINE]):
                    contestant = CONTESTANTS[name]
                    settings = Settings(
                        contestant=contestant.function,
                        options={**contestant.options, **({"n_rollouts": n_rollouts} if n_rollouts > 1 else {})},
                        env_id=args.env,
                        n_iterations=args.iterations,
                        n_warmup=max(contestant.n_warmup, n_rollouts),  # until the ring is full
                        device=args.device,
                        threads=args.threads,
                        **shared,
                    )
                    row = measure(name, settings, Path(sys.executable))
                    yield {**row, "run": run, "sweep": column}


def write(path: Path, rows: Iterable[Row]) -> None:
    """
    Write each row as soon as it is there.

    :param path: the CSV file
    :param rows: its rows
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    rounded = (
        {key: round(value, 4) if isinstance(value, float) else value for key, value in row.items()} for row in rows
    )
    for row in stream_csv(path, COLUMNS, rounded):
        setting = ", ".join(f"{key} {row[key]}" for key in ("n_envs", "n_epochs", "n_rollouts"))
        speed = f"{row['steps_per_s']:7.0f} steps/s" if row["contestant"] != MACHINE and "note" not in row else ""
        print(f"{row['contestant']:36} {setting}  {speed} {row.get('note', '')}", flush=True)


# --- report -------------------------------------------------------------------------------------------------------


def read(path: Path) -> list[Row]:
    """
    :param path: a CSV file, which may be missing
    :return: its rows, with numbers as numbers and what was not measured as NaN
    """
    if not path.is_file():
        return []
    texts = ("contestant", "sweep", "note", "env_id", "device", "cpu", "version", "torch", "python")
    with path.open(newline="") as file:
        return [
            {key: value if key in texts else float(value or "nan") for key, value in row.items()}
            for row in csv.DictReader(file)
        ]


def median(rows: Iterable[Row], column: str) -> float:
    """
    :param rows: of one contestant and one setting
    :param column: a column of numbers
    :return: its median, NaN where it was not measured
    """
    return statistics.median([row[column] for row in rows if row[column] == row[column]] or [float("nan")])


def group(rows: Sequence[Row], *columns: str) -> dict[Any, list[Row]]:
    """
    :param rows: any rows that did not fail
    :param columns: what the rows of a group have in common
    :return: the groups, in the order of the rows
    """
    groups: dict[Any, list[Row]] = {}
    for row in rows:
        if not row["note"]:
            key = tuple(row[column] for column in columns)
            groups.setdefault(key if len(key) > 1 else key[0], []).append(row)
    return groups


def limit_s(rows: Sequence[Row]) -> float:
    """
    :param rows: those of the machine
    :return: seconds that the emulator and the network's operations take at least
    """
    return median(rows, "emulator_s") + median(rows, "network_gflop") / median(rows, "gflop_per_s")


def describe(rows: Sequence[Row]) -> str:
    """
    :param rows: of a file
    :return: the machine that they were measured on
    """
    row = rows[0]
    device = "no GPU" if row["device"] == "cpu" else row["device"]
    return f"{row['cpu']}, {row['cores']:.0f} cores, {device}, PyTorch {row['torch']} with {row['threads']:.0f} threads"


def table(rows: Sequence[Row]) -> str:
    """
    :param rows: of a comparison
    :return: a Markdown table, the fastest first
    """
    groups = group(rows, "contestant")
    limits = groups.pop(MACHINE)
    limit = limit_s(limits)
    baseline = median(groups[BASELINE], "steps_per_s") if BASELINE in groups else float("nan")
    lines = [
        "| | steps/s | ratio to SB3 PPO | collecting, s | updating, s | share of the limit | peak memory, MB"
        " | kB per transition |",
        "| --- | --: | --: | --: | --: | --: | --: | --: |",
    ]
    for name, runs in sorted(groups.items(), key=lambda item: -median(item[1], "steps_per_s")):
        cells = [
            (median(runs, "steps_per_s"), ".0f"),
            (median(runs, "steps_per_s") / baseline, ".2f"),
            (median(runs, "collect_s"), ".2f"),
            (median(runs, "update_s"), ".2f"),
            (limit / median(runs, "iteration_s"), ".0%"),
            (median(runs, "peak_mb"), ",.0f"),
            (median(runs, "bytes_per_transition") / 1000, ".1f"),
        ]
        texts = [format(value, spec) if value == value else "" for value, spec in cells]
        lines.append(f"| {name} | {' | '.join(texts)} |")
    failures = {row["contestant"]: row["note"] for row in rows if row["note"]}
    notes = [f"- {name}: {note}" for name, note in failures.items()]
    return "\n".join(
        [
            f"{describe(rows)}. Medians of {len(next(iter(groups.values())))} runs.",
            "",
            *lines,
            "",
            f"The limit, {limit:.2f} s: {median(limits, 'emulator_s'):.2f} s for the emulator alone, and "
            f"{median(limits, 'network_gflop'):.0f} Gflop of the network at "
            f"{median(limits, 'gflop_per_s'):.0f} Gflop/s.",
            *(["", *notes] if notes else []),
        ]
    )


def versions(rows: Sequence[Row]) -> str:
    """
    :param rows: of a comparison
    :return: a sentence that names what was measured
    """
    unique = dict.fromkeys(row["version"] for row in rows if row["version"])
    return "Versions: " + ", ".join(unique) + "."


def tasks_of(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """
    :param rows: of several tasks
    :return: the rows of each
    """
    found = {}
    for name, task in DEFAULT_TASKS.items():
        own = [row for row in rows if (row["env_id"], row["n_envs"]) == (task["env_id"], task["n_envs"])]
        found[name] = [row for row in own if row["threads"] == task.get("threads", row["cores"])]
    return {name: own for name, own in found.items() if own}


def defaults_table(rows: Sequence[Row]) -> str:
    """
    :param rows: of the tasks without switches
    :return: a Markdown table
    """
    lines = [
        "| | | steps/s | ratio to SB3 PPO | collecting, s | updating, s | share of the limit | peak memory, MB |",
        "| --- | --- | --: | --: | --: | --: | --: | --: |",
    ]
    for task, own in tasks_of(rows).items():
        groups = group(own, "contestant")
        limit, baseline = limit_s(groups.pop(MACHINE)), median(groups[BASELINE], "steps_per_s")
        for name, runs in sorted(groups.items(), key=lambda item: -median(item[1], "steps_per_s")):
            speed, seconds = median(runs, "steps_per_s"), [median(runs, x) for x in ("collect_s", "update_s")]
            cells = [task, name, f"{speed:,.0f}", f"{speed / baseline:.2f}", *(f"{x:.2f}" for x in seconds)]
            cells += [f"{limit / median(runs, 'iteration_s'):.0%}", f"{median(runs, 'peak_mb'):,.0f}"]
            lines.append(f"| {' | '.join(cells)} |")
            task = ""
    return "\n".join(lines)


def draw_defaults(rows: Sequence[Row]) -> None:
    """
    :param rows: of the tasks without switches
    """
    tasks = tasks_of(rows)
    figure, axes = plt.subplots(figsize=(7, 3.6), facecolor="white")
    place, places = 0.0, []
    for task, own in reversed(tasks.items()):
        groups = group(own, "contestant")
        names = [name for name in ("sbx PPO", BASELINE, "DAPO", "DAPO, native") if name in groups]
        begin = place
        for name in names:
            speed = median(groups[name], "steps_per_s") / median(groups[BASELINE], "steps_per_s")
            color = "#d62728" if name.startswith("DAPO") else "#bdbdbd" if name.startswith("sbx") else "#636363"
            axes.barh(place, speed, 0.85, color=color)
            axes.text(speed + 0.02, place, f"{name}, {speed:.2f}", va="center", fontsize=8)
            place += 1
        places.append(((begin + place - 1) / 2, task.replace(", ", "\n")))
        place += 0.7
    axes.set_yticks([place for place, _ in places], [task for _, task in places], fontsize=8)
    axes.set_xlim(0, 2.7)
    axes.set_xlabel("env steps per second of training, times SB3's PPO", fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    save(figure, "throughput_defaults")


def draw_comparison(rows: Sequence[Row], title: str) -> None:
    """
    :param rows: of a comparison
    :param title: of the axes
    """
    groups = group(rows, "contestant")
    limit = limit_s(groups.pop(MACHINE))
    names = sorted(groups, key=lambda name: median(groups[name], "iteration_s"), reverse=True)
    figure, axes = plt.subplots(figsize=(8, 0.36 * len(names) + 1.4))
    longest = max(median(groups[name], "iteration_s") for name in names)
    for place, name in enumerate(names):
        collect, update, both = (median(groups[name], column) for column in ("collect_s", "update_s", "iteration_s"))
        strong, weak = ("#d62728", "#f4a3a3") if name.startswith("DAPO") else ("#636363", "#bdbdbd")
        if collect == collect:
            axes.barh(place, collect, color=weak)
            axes.barh(place, update, left=collect, color=strong)
        else:
            axes.barh(place, both, color=strong, hatch="///", edgecolor=weak)
        speed = median(groups[name], "steps_per_s")
        axes.text(both + longest / 100, place, f"{speed:,.0f} steps/s", va="center", fontsize=8)
    axes.axvline(limit, color="black", linestyle="--", linewidth=1)
    axes.text(limit, len(names) - 0.4, " the machine's limit", fontsize=8, va="bottom")
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set_xlim(0, 1.18 * longest)
    axes.set_ylim(-0.6, len(names) + 0.2)
    axes.set_xlabel("seconds for 1,024 steps; light: collecting, dark: updating, hatched: both", fontsize=9)
    figure.suptitle(title, fontsize=8, x=0.01, ha="left")
    axes.spines[["top", "right"]].set_visible(False)
    save(figure, "throughput_" + ("cpu" if rows[0]["device"] == "cpu" else "cuda"))


def draw_sweep(rows: Sequence[Row], title: str) -> None:
    """
    :param rows: of a sweep
    :param title: of the figure
    """
    figure, axes = plt.subplots(1, 3, figsize=(9, 3.2), sharey=True)
    labels = {"n_envs": "environments", "n_epochs": "epochs", "n_rollouts": "K, rollouts kept (one epoch)"}
    for ax, (column, label) in zip(axes, labels.items(), strict=True):
        for name, points in group([row for row in rows if row["sweep"] == column], "contestant").items():
            runs = group(points, column)
            color = "#d62728" if name.startswith("DAPO") else "#636363"
            milliseconds = [1000 / median(runs[value], "steps_per_s") for value in sorted(runs)]
            ax.plot(sorted(runs), milliseconds, marker="o", markersize=4, color=color, label=name)
        ax.set_xscale("log", base=2)
        ax.set_yscale("log")
        ax.xaxis.set_major_formatter(ticker.FormatStrFormatter("%d"))
        ax.yaxis.set_major_locator(ticker.LogLocator(base=2))
        ax.yaxis.set_minor_locator(ticker.NullLocator())
        ax.yaxis.set_major_formatter(ticker.FormatStrFormatter("%g"))
        ax.set_xlabel(label)
        ax.grid(True, which="both", alpha=0.2)
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].legend(fontsize=8, frameon=False)
    axes[0].set_ylabel("milliseconds per environment step")
    figure.suptitle(title, fontsize=8, x=0.01, ha="left")
    save(figure, "throughput_" + ("cpu" if rows[0]["device"] == "cpu" else "cuda") + "_sweep")


def save(figure: Any, name: str) -> None:
    """
    :param figure: to be written as SVG and PNG
    :param name: of the files
    """
    FIGURES.mkdir(parents=True, exist_ok=True)
    figure.tight_layout()
    # The same figure is the same file
    figure.savefig(FIGURES / f"{name}.svg", metadata={"Date": None})
    figure.savefig(FIGURES / f"{name}.png", dpi=150)
    plt.close(figure)


def report(results: Path) -> None:
    """
    Write the tables, `throughput.md`, and the figures.

    :param results: folder of the results
    """
    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "throughput"
    parts = []
    for device in ("cpu", "cuda"):
        if rows := read(results / f"throughput_{device}.csv"):
            title = f"{rows[0]['env_id']}, {describe(rows)}"
            draw_comparison(rows, title)
            parts += [
                table(rows),
                versions(rows),
                f"![Seconds for 1,024 steps](../../docs/figures/throughput_{device}.svg)",
            ]
        if rows := read(results / f"throughput_{device}_sweep.csv"):
            draw_sweep(rows, f"{rows[0]['env_id']}, {describe(rows)}")
            parts.append(f"![Milliseconds per step](../../docs/figures/throughput_{device}_sweep.svg)")
    text = "\n\n".join(parts)
    (results / "throughput.md").write_text(text + "\n")
    print(text)
    if rows := read(results / "throughput_cpu_defaults.csv"):
        text = f"{defaults_table(rows)}\n\n{describe(rows)}. {versions(rows)}"
        (results / "throughput_defaults.md").write_text(text + "\n")
        print(text)
        draw_defaults(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--env", default=ENV_ID, help="a NoFrameskip-v4 id (default: %(default)s)")
    parser.add_argument(
        "--runs", type=int, help="rounds in which the contestants take turns (default: 3, 1 for --sweep)"
    )
    parser.add_argument("--iterations", type=int, help="rollouts and updates per run (default: 3, 2 for --sweep)")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="(default: the number of cores)")
    parser.add_argument("--only", nargs="+", metavar="PART", help="contestants with one of these in their names")
    parser.add_argument("--peer-venvs", type=Path, help="folder of the peers' virtual environments")
    parser.add_argument("--cleanrl", type=Path, help="checkout of CleanRL")
    parser.add_argument("--defaults", action="store_true", help="without switches, on several tasks")
    parser.add_argument("--tasks", nargs="+", choices=DEFAULT_TASKS, help="of --defaults")
    parser.add_argument("--sweep", action="store_true", help="vary n_envs, n_epochs and K instead of comparing")
    parser.add_argument("--report", action="store_true", help="only write the tables and figures")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the results")
    args = parser.parse_args()
    if args.device == "cuda" and not th.cuda.is_available():
        parser.error("--device cuda: PyTorch finds no GPU here")
    if not args.report:
        args.runs = args.runs or (1 if args.sweep else 3)
        args.iterations = args.iterations or (2 if args.sweep else 3)
        if args.defaults:
            kind, rows = "_defaults", compare_defaults(args)
        elif args.sweep:
            kind, rows = "_sweep", sweep(args)
        else:
            kind, rows = "", compare(args, {"env_id": args.env, **DEFAULTS}, CONTESTANTS)
        write(args.results / f"throughput_{args.device}{kind}.csv", rows)
    report(args.results)


if __name__ == "__main__":
    main()
