"""Draw the figures of docs/evidence*.md that are not benchmarks/report.py's, and write the table of Atari's games.

They come from benchmarks/results/*.csv, by the functions of that report. Run from anywhere, with the extra ``zoo``
installed: ``python docs/figures/evidence.py``.
"""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

FOLDER = Path(__file__).parent
sys.path.insert(0, str(FOLDER.parents[1] / "benchmarks"))

import report  # noqa: E402
from store import RESULTS  # noqa: E402
from suites import SUITES, denormalize, normalize  # noqa: E402

REGIME = "scarce"
RED, GREY, GREEN, BLUE, LIGHT_BLUE, LIGHT_GREY = "#b0104f", "#7a7a7a", "#2e8b57", "#1f6fb5", "#4a8cc7", "#b0b0b0"


@dataclass(frozen=True)
class Shown:
    """
    What the figures of a suite show, with all methods tuned alike.

    :param suite: its name in benchmarks/suites.py
    :param methods: names there, and what the figures call them, with a colour
    :param curves: whose learning curves are drawn
    :param final: whose final scores are drawn beside them, from top to bottom
    :param games: whose scores in single games are drawn, from top to bottom
    :param unit: what its environments are called
    """

    suite: str
    methods: Mapping[str, tuple[str, str]]
    curves: tuple[str, ...]
    final: tuple[str, ...]
    games: tuple[str, ...]
    unit: str


MINATAR = Shown(
    suite="minatar",
    methods={
        "dapo_gae": ("DAPO", RED),
        "a2c": ("A2C", GREY),
        "vtrace_gae": ("Reuse without\nthe divergence", GREEN),
        "ppo_ent": ("Best PPO", BLUE),
        "ppo": ("PPO without\nentropy bonus", LIGHT_BLUE),
    },
    curves=("dapo_gae", "ppo_ent"),
    final=("dapo_gae", "a2c", "vtrace_gae", "ppo_ent"),
    games=("dapo_gae", "ppo_ent", "ppo", "a2c"),
    unit="games",
)
MUJOCO = Shown(
    suite="mujoco",
    methods={
        "dapo_clip": ("DAPO", RED),
        "trpo": ("TRPO", GREY),
        "vtrace_gae": ("Reuse without\nthe divergence", GREEN),
        "ppo_target_kl": ("PPO with\nKL target", LIGHT_BLUE),
        "ppo": ("PPO", BLUE),
    },
    curves=("dapo_clip", "trpo", "ppo"),
    final=("dapo_clip", "trpo", "vtrace_gae", "ppo_target_kl", "ppo"),
    games=("dapo_clip", "trpo", "vtrace_gae", "ppo_target_kl", "ppo"),
    unit="tasks",
)
ATARI = {"dapo_clip": ("DAPO", RED), "ppo_fast": ("PPO", BLUE)}
ATARI_SUITE = "atari100k"
PUBLISHED = ("PPO, Hafner et al. 2023", "SPR")  # beside ours in the table of Atari
TARGET = "divergence_coef=dual_0.04"
# Suite, regime, title, and what the rows of a panel are, from top to bottom: name in suites.py, text, colour
PANELS: tuple[tuple[str, str, str, tuple[tuple[str, str, str], ...]], ...] = (
    (
        "minatar",
        "scarce",
        "MinAtar, tuned",
        (
            ("dapo_gae", "DAPO", RED),
            (f"dapo_gae+{TARGET}", "with KL target", RED),
            ("vtrace_gae", "no divergence", GREEN),
            ("ppo_ent", "PPO", BLUE),
        ),
    ),
    (
        "mujoco",
        "scarce",
        "MuJoCo, tuned",
        (
            ("dapo_clip", "DAPO", RED),
            ("dapo_gae", "without clip", RED),
            ("dapo_kl", "with KL target", RED),
            ("vtrace_gae", "no divergence", GREEN),
            ("trpo", "TRPO", GREY),
            ("ppo", "PPO", BLUE),
        ),
    ),
    (
        "mujoco",
        "untuned",
        "MuJoCo, untuned",
        (
            ("dapo_gae", "DAPO", RED),
            (f"dapo_kl+{TARGET}", "with KL target", RED),
            ("ppo", "PPO", BLUE),
        ),
    ),
    (
        "atari100k",
        "scarce",
        "Atari, 100,000 steps",
        (("dapo_clip", "DAPO", RED), ("ppo_fast", "PPO", BLUE)),
    ),
    (
        "atari5",
        "scarce",
        "Atari, 500,000 steps",
        (("dapo", "DAPO\nwith the clip", RED), ("ppo_fast", "PPO", BLUE)),
    ),
)
STYLE = {"font.size": 13, "svg.hashsalt": "sb3-dapo", "axes.spines.top": False, "axes.spines.right": False}

Array = npt.NDArray[np.float64]


def read(shown: Shown) -> tuple[Array, dict[str, Array]]:
    """
    :param shown: a suite
    :return: the steps of the evaluations, shape ``(n_evaluations,)``, and the normalized scores of each method, shape
        ``(n_seeds, n_games, n_evaluations)``
    """
    rows = report.read_scores(RESULTS, shown.suite)
    rows = rows[rows.regime == REGIME]
    scores = report.score_arrays(rows, shown.methods, list(SUITES[shown.suite].scores))
    steps = rows[rows.algo == shown.curves[0]].groupby("step").timesteps.mean()
    return steps.to_numpy(float), scores


def draw_interval(axes: Any, y: int, estimate: report.Estimate, color: str) -> None:
    """
    :param axes: to draw into
    :param y: height of the row
    :param estimate: the point and its interval
    :param color: its colour
    """
    axes.plot([estimate.low, estimate.high], [y, y], color=color, linewidth=6, alpha=0.35, solid_capstyle="round")
    axes.plot(estimate.value, y, "o", color=color, markersize=9)


def draw_value(axes: Any, y: int, estimate: report.Estimate, color: str) -> None:
    """
    As ``draw_interval``, with the point as a number above it.

    :param axes: to draw into
    :param y: height of the row
    :param estimate: the point and its interval
    :param color: its colour
    """
    draw_interval(axes, y, estimate, color)
    axes.text(estimate.value, y - 0.2, f"{estimate.value:.2f}", ha="center", va="bottom")


def name_rows(axes: Any, rows: list[tuple[str, str]]) -> None:
    """
    :param axes: whose rows get names
    :param rows: names and their colours, from top to bottom
    """
    axes.set_yticks(range(len(rows)), [name for name, _ in rows])
    for text, (_, color) in zip(axes.get_yticklabels(), rows, strict=True):
        text.set(color=color, fontweight="bold")
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)


def overview(shown: Shown, steps: Array, scores: dict[str, Array]) -> Any:
    """
    :param shown: a suite
    :param steps: as ``read`` returns them
    :param scores: as ``read`` returns them
    :return: learning curves, and final scores with intervals
    """
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(9.2, 4.0), layout="constrained", width_ratios=(1.15, 1))
    drawn = {method: scores[method] for method in shown.curves}
    known = np.flatnonzero(~np.any([np.isnan(array).any(axis=(0, 1)) for array in drawn.values()], axis=0))
    curves = report.estimates({method: array[:, :, known] for method, array in drawn.items()}, report.iqm)
    for method, curve in curves.items():
        label, color = shown.methods[method]
        left.plot(steps[known], [e.value for e in curve], color=color, linewidth=3, label=label)
        left.fill_between(steps[known], [e.low for e in curve], [e.high for e in curve], color=color, alpha=0.2, lw=0)
    names = left.legend(
        loc="upper left", frameon=False, handlelength=0, labelcolor="linecolor", prop={"weight": "bold"}
    )
    for handle in names.legend_handles:
        handle.set_visible(False)  # the colours of the names say it
    what = f"score, IQM of five {shown.unit}"
    left.set(xlabel="environment steps", ylabel=what, ylim=(0, None), xlim=(0, None))
    left.xaxis.set_major_formatter("{x:,.0f}")
    left.set_title("While learning", loc="left", fontsize=13)

    final = report.estimates({method: scores[method][:, :, -1] for method in shown.final}, report.iqm)
    for y, (method, (estimate,)) in enumerate(final.items()):
        draw_value(right, y, estimate, shown.methods[method][1])
    name_rows(right, [shown.methods[method] for method in shown.final])
    right.set(xlabel=what)
    right.margins(x=0.12)
    right.set_title(f"After {SUITES[shown.suite].regimes[REGIME].timesteps:,} steps", loc="left", fontsize=13)
    return figure


def by_game(shown: Shown, scores: dict[str, Array]) -> Any:
    """
    :param shown: a suite
    :param scores: as ``read`` returns them
    :return: mean final scores of each game, with intervals
    """
    import matplotlib.pyplot as plt

    envs = list(SUITES[shown.suite].scores)
    figure, panels = plt.subplots(
        1, len(envs), figsize=(11.0, 0.9 + 0.5 * len(shown.games)), layout="constrained", sharey=True
    )
    for game, (env, axes) in enumerate(zip(envs, panels, strict=True)):
        raw = {method: denormalize(shown.suite, env, scores[method][:, [game], -1]) for method in shown.games}
        for y, (method, (estimate,)) in enumerate(report.estimates(raw, np.mean).items()):
            draw_interval(axes, y, estimate, shown.methods[method][1])
        axes.set_title(report.short(env), fontsize=13)
        axes.set_xlim(left=min(0, axes.get_xlim()[0]))
        axes.locator_params(axis="x", nbins=3)
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.grid(axis="x", alpha=0.25)
        if game == 0:
            name_rows(axes, [shown.methods[method] for method in shown.games])
        axes.spines["left"].set_visible(False)
        axes.tick_params(axis="y", length=0)
    figure.supxlabel("score", fontsize=13)
    return figure


def read_atari() -> tuple[list[str], dict[str, Array]]:
    """
    :return: the games of Atari 100k that DAPO and PPO have both played, and the normalized final scores of these and of
        published methods, shape ``(n_seeds, n_games)``
    """
    rows = report.read_scores(RESULTS, ATARI_SUITE)
    rows = rows[(rows.regime == REGIME) & rows.algo.isin(ATARI)]
    envs = report.complete_envs(rows, ATARI_SUITE)
    published = report.read_published(RESULTS, ATARI_SUITE)
    scores = {
        method: np.array([[normalize(ATARI_SUITE, env, published.loc[report.short(env), method]) for env in envs]])
        for method in PUBLISHED
    }
    return envs, {m: array[:, :, -1] for m, array in report.score_arrays(rows, ATARI, envs).items()} | scores


def atari(envs: list[str], scores: dict[str, Array]) -> Any:
    """
    :param envs: as ``read_atari`` returns them
    :param scores: as ``read_atari`` returns them
    :return: human-normalized final scores in each game
    """
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(9.2, 0.8 + 0.33 * len(envs)), layout="constrained")
    for method, (label, color) in {"SPR": ("SPR, published", LIGHT_GREY), **ATARI}.items():
        axes.plot(scores[method].mean(axis=0), range(len(envs)), "o", color=color, markersize=9, label=label)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.axvline(1, color="black", linewidth=0.8, linestyle="--")
    axes.set_xscale("symlog", linthresh=0.1, linscale=0.7)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.margins(x=0.03)
    axes.set_yticks(range(len(envs)), [report.short(env) for env in envs])
    axes.set_ylim(len(envs) - 0.4, -0.6)
    axes.grid(axis="y", alpha=0.25)
    figure.legend(loc="outside upper center", ncols=3, frameon=False)
    axes.set(xlabel="human-normalized score: 0 is random play, 1 a human")
    return figure


def atari_table(envs: list[str], scores: dict[str, Array]) -> str:
    """
    :param envs: as ``read_atari`` returns them
    :param scores: as ``read_atari`` returns them
    :return: Markdown: mean final scores, the better of ours in bold type
    """
    rows = []
    for game, env in enumerate(envs):
        raw = {m: float(denormalize(ATARI_SUITE, env, array[:, game].mean())) for m, array in scores.items()}
        best = max(raw[method] for method in ATARI)
        shown = {
            m: f"**{report.number(x, 3)}**" if m in ATARI and x == best else report.number(x, 3) for m, x in raw.items()
        }
        low, high = (report.number(x, 3) for x in SUITES[ATARI_SUITE].scores[env])
        rows.append([report.short(env), low, *(shown[m] for m in (*ATARI, *PUBLISHED)), high])
    iqms = report.estimates({method: scores[method] for method in ATARI}, report.iqm)
    rows.append(
        ["IQM, human-normalized", "0", *(str(found) for (found,) in iqms.values()), *("" for _ in PUBLISHED), "1"]
    )
    ours = (label for label, _ in ATARI.values())
    return report.markdown(["Score", "random play", *ours, *(f"*{m}*" for m in PUBLISHED), "a human"], rows)


def all_suites() -> Any:
    """
    :return: final scores with intervals, a panel for each suite
    """
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, len(PANELS), figsize=(15.0, 4.4), layout="constrained")
    for (suite, regime, title, methods), axes in zip(PANELS, panels, strict=True):
        rows = report.read_scores(RESULTS, suite)
        rows = rows[(rows.regime == regime) & rows.algo.isin([algo for algo, _, _ in methods])]
        envs = report.complete_envs(rows, suite)
        final = {x: y[:, :, -1] for x, y in report.score_arrays(rows, [algo for algo, _, _ in methods], envs).items()}
        found = report.estimates(final, report.iqm)
        shown = [row for row in methods if row[0] in found]
        for y, (algo, _, color) in enumerate(shown):
            (estimate,) = found[algo]
            draw_value(axes, y, estimate, color)
        counts = {algo: f"{len(final[algo])} seed{'s' * (len(final[algo]) > 1)}" for algo in final}
        name_rows(axes, [(f"{text}\n({counts[algo]})", color) for algo, text, color in shown])
        axes.set_xlim(0, 1.2 * max(found[algo][0].high for algo, _, _ in shown))
        axes.set_title(f"{title}\n{len(envs)} {'tasks' if suite == 'mujoco' else 'games'}", loc="left", fontsize=11)
        axes.locator_params(axis="x", nbins=3)
        axes.grid(axis="x", alpha=0.25)
    figure.supxlabel("score, interquartile mean (every suite has a scale of its own)", fontsize=12)
    return figure


def main() -> None:
    """Draw the figures beside this script, and write the table beside the results."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    plt.rcParams.update(STYLE)
    games, finals = read_atari()
    (RESULTS / f"{ATARI_SUITE}_games.md").write_text(atari_table(games, finals))
    figures = {"atari": atari(games, finals), "suites": all_suites()}
    for shown, curves, single in ((MINATAR, "dapo_vs_ppo", "games"), (MUJOCO, "mujoco", "tasks")):
        steps, scores = read(shown)
        figures |= {curves: overview(shown, steps, scores), single: by_game(shown, scores)}
    for name, figure in figures.items():
        figure.savefig(FOLDER / f"{name}.svg", metadata={"Date": None}, facecolor="white")
        plt.close(figure)


if __name__ == "__main__":
    main()
