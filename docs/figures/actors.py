"""
How the speed of actors grows with their number: a simulation of the queue before the learner, up to 128 actors.

    python docs/figures/actors.py    # actors.svg, from benchmarks/results/distributed.csv

Service times are those that were measured with one process: seconds that an actor takes for a rollout, and the learner
for its share of an update. Every actor has a core; the learner is one process. Each time varies by a tenth.
"""

import csv
import heapq
import statistics
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib import pyplot as plt

ROOT = Path(__file__).parents[2]
CSV = ROOT / "benchmarks" / "results" / "distributed.csv"
N_ACTORS = [1, 2, 4, 8, 16, 32, 64, 128]
N_UPDATES = 60
LABELS = {
    "waiting": ("an environment that takes 4 ms per step", "#d62728"),
    "Atari": ("Breakout, 8 games per actor", "#1f77b4"),
    "MinAtar": ("MinAtar, 32 games per actor", "#636363"),
}


def service_times() -> dict[str, tuple[float, float, dict[int, float]]]:
    """:return: by case seconds per transition of collecting and of learning, and measured speedups by actors"""
    rows = list(csv.DictReader(CSV.open(newline="")))

    def median(case: str, actors: int, name: str) -> float:
        return statistics.median(float(r[name]) for r in rows if (r["case"], int(r["actors"])) == (case, actors))

    times = {}
    for case in LABELS:
        speed = median(case, 0, "steps_per_second")
        # What waits takes no CPU
        collect = 0.004 + median(case, 0, "collect_cpu") if case == "waiting" else median(case, 0, "collect_cpu")
        counts = {int(r["actors"]) for r in rows if r["case"] == case} - {0}
        measured = {n: median(case, n, "steps_per_second") / speed for n in sorted(counts)}
        times[case] = collect, max(1 / speed - collect, 0.02 * collect), measured
    return times


def speedup(collect: float, learn: float, n_actors: int) -> float:
    """
    :param collect: seconds that an actor takes for a rollout
    :param learn: seconds that the learner takes for a rollout's share of an update
    :param n_actors: A; an update takes A rollouts, and each actor may be one rollout ahead
    :return: rollouts per second, as a multiple of those of one process
    """
    rng = np.random.default_rng(0)
    arrivals = [(collect * rng.normal(1, 0.1), actor) for actor in range(n_actors)]
    heapq.heapify(arrivals)
    now = 0.0
    for _ in range(N_UPDATES):
        taken = [heapq.heappop(arrivals) for _ in range(n_actors)]
        begin = max(now, taken[-1][0])
        for arrived, actor in taken:
            # It goes on at once; that a second rollout waits for the learner is all that holds it up
            heapq.heappush(arrivals, (max(arrived, now) + collect * rng.normal(1, 0.1), actor))
        now = begin + n_actors * learn * rng.normal(1, 0.1)
    return N_UPDATES * n_actors / now * (collect + learn)


def main() -> None:
    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "actors"
    figure, axes = plt.subplots(figsize=(6.4, 3.6), facecolor="white")
    for case, (collect, learn, measured) in service_times().items():
        label, color = LABELS[case]
        curve = [speedup(collect, learn, n) for n in N_ACTORS]
        axes.plot(N_ACTORS, curve, color=color, label=label)
        axes.plot(measured.keys(), measured.values(), "o", color=color, markersize=5)
        print(
            f"{case}: {collect * 1e3:.3g} ms to collect and {learn * 1e3:.3g} ms to learn from a transition; speedups",
            *(f"{n}: {value:.1f}" for n, value in zip(N_ACTORS, curve, strict=True)),
        )
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    ticks = mpl.ticker.FormatStrFormatter("%g")
    axes.xaxis.set_major_formatter(ticks)
    axes.yaxis.set_major_formatter(ticks)
    axes.set_xlabel("actors")
    axes.set_ylabel("env steps/s, times one process")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    axes.grid(alpha=0.2)
    figure.tight_layout()
    figure.savefig(Path(__file__).with_suffix(".svg"), metadata={"Date": None})


if __name__ == "__main__":
    main()
