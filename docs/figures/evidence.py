"""Draw dapo_vs_ppo.svg, games.svg and suites.svg from benchmarks/results/*.csv: the evidence at a glance.

Estimates and intervals are those of the tables, as they come from the same functions. Run from anywhere, with the extra
``zoo`` installed: ``python docs/figures/evidence.py``.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

FOLDER = Path(__file__).parent
sys.path.insert(0, str(FOLDER.parents[1] / "benchmarks"))

import report  # noqa: E402
from store import RESULTS  # noqa: E402
from suites import SUITES, denormalize  # noqa: E402

SUITE, REGIME = "minatar", "scarce"
#: names in benchmarks/suites.py: what the figures call them, and their colours
METHODS = {
    "dapo_gae": ("DAPO", "#b0104f"),
    "a2c": ("A2C", "#7a7a7a"),
    "vtrace_gae": ("Reuse without\nthe divergence", "#2e8b57"),
    "ppo_ent": ("Best PPO", "#1f6fb5"),
    "ppo": ("PPO without\nentropy bonus", "#4a8cc7"),
}
OVERVIEW = ("dapo_gae", "a2c", "vtrace_gae", "ppo_ent")
GAMES = ("dapo_gae", "ppo_ent", "ppo", "a2c")
TARGET = "divergence_coef=dual_0.04"
# Suite, regime, title, and what the rows of a panel are, from top to bottom: name in suites.py, text, whose colour
PANELS: tuple[tuple[str, str, str, tuple[tuple[str, str, str], ...]], ...] = (
    (
        "minatar",
        "scarce",
        "MinAtar, tuned",
        (
            ("dapo_gae", "DAPO", "dapo_gae"),
            (f"dapo_gae+{TARGET}", "with KL target", "dapo_gae"),
            ("vtrace_gae", "no divergence", "vtrace_gae"),
            ("ppo_ent", "PPO", "ppo_ent"),
        ),
    ),
    (
        "mujoco",
        "scarce",
        "MuJoCo, tuned",
        (
            ("dapo_clip", "DAPO", "dapo_gae"),
            ("dapo_gae", "without clip", "dapo_gae"),
            ("dapo_kl", "with KL target", "dapo_gae"),
            ("vtrace_gae", "no divergence", "vtrace_gae"),
            ("trpo", "TRPO", "a2c"),
            ("ppo", "PPO", "ppo_ent"),
        ),
    ),
    (
        "mujoco",
        "untuned",
        "MuJoCo, untuned",
        (
            ("dapo_gae", "DAPO", "dapo_gae"),
            (f"dapo_kl+{TARGET}", "with KL target", "dapo_gae"),
            ("ppo", "PPO", "ppo_ent"),
        ),
    ),
    (
        "atari100k",
        "scarce",
        "Atari, 100,000 steps",
        (("dapo_clip", "DAPO", "dapo_gae"), ("ppo_fast", "PPO", "ppo_ent")),
    ),
    (
        "atari5",
        "scarce",
        "Atari, 500,000 steps",
        (("dapo", "DAPO\nwith the clip", "dapo_gae"), ("ppo_fast", "PPO", "ppo_ent")),
    ),
)
STYLE = {"font.size": 13, "svg.hashsalt": "sb3-dapo", "axes.spines.top": False, "axes.spines.right": False}

Array = npt.NDArray[np.float64]


def read() -> tuple[Array, dict[str, Array]]:
    """
    :return: the steps of the evaluations, shape ``(n_evaluations,)``, and the normalized scores of each method, shape
        ``(n_seeds, n_games, n_evaluations)``
    """
    rows = report.read_scores(RESULTS, SUITE)
    rows = rows[rows.regime == REGIME]
    scores = report.score_arrays(rows, METHODS, list(SUITES[SUITE].scores))
    steps = rows[rows.algo == "dapo_gae"].groupby("step").timesteps.mean()
    return steps.to_numpy(float), scores


def draw_interval(axes: Any, y: int, estimate: report.Estimate, method: str) -> None:
    """
    :param axes: to draw into
    :param y: height of the row
    :param estimate: the point and its interval
    :param method: gives the colour
    """
    color = METHODS[method][1]
    axes.plot([estimate.low, estimate.high], [y, y], color=color, linewidth=6, alpha=0.35, solid_capstyle="round")
    axes.plot(estimate.value, y, "o", color=color, markersize=9)


def name_rows(axes: Any, methods: tuple[str, ...], names: list[str] | None = None) -> None:
    """
    :param axes: whose rows get the names of the methods, in their colours
    :param methods: from top to bottom
    :param names: other names
    """
    axes.set_yticks(range(len(methods)), names or [METHODS[method][0] for method in methods])
    for text, method in zip(axes.get_yticklabels(), methods, strict=True):
        text.set_color(METHODS[method][1])
        text.set_fontweight("bold")
    axes.set_ylim(len(methods) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)


def overview(steps: Array, scores: dict[str, Array]) -> Any:
    """
    :param steps: as ``read`` returns them
    :param scores: as ``read`` returns them
    :return: learning curves of DAPO and of the best PPO, and final scores with intervals
    """
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(9.2, 4.0), layout="constrained", width_ratios=(1.15, 1))
    shown = {method: scores[method] for method in ("dapo_gae", "ppo_ent")}
    known = np.flatnonzero(~np.any([np.isnan(array).any(axis=(0, 1)) for array in shown.values()], axis=0))
    curves = report.estimates({method: array[:, :, known] for method, array in shown.items()}, report.iqm)
    for method, curve in curves.items():
        label, color = METHODS[method]
        left.plot(steps[known], [e.value for e in curve], color=color, linewidth=3)
        left.fill_between(steps[known], [e.low for e in curve], [e.high for e in curve], color=color, alpha=0.2, lw=0)
        above = method == "dapo_gae"
        left.annotate(
            label,
            (steps[known][-3], curve[-3].value),
            xytext=(-10, 14) if above else (6, -24),
            textcoords="offset points",
            ha="right" if above else "left",
            color=color,
            fontweight="bold",
        )
    left.set(xlabel="environment steps", ylabel="score, IQM of five games", ylim=(0, None), xlim=(0, None))
    left.xaxis.set_major_formatter("{x:,.0f}")
    left.set_title("While learning", loc="left", fontsize=13)

    final = report.estimates({method: scores[method][:, :, -1] for method in OVERVIEW}, report.iqm)
    for y, method in enumerate(OVERVIEW):
        draw_interval(right, y, final[method][0], method)
        right.text(final[method][0].value, y - 0.2, f"{final[method][0].value:.2f}", ha="center", va="bottom")
    name_rows(right, OVERVIEW)
    right.set(xlabel="score, IQM of five games", xlim=(0.45, 0.82))
    right.set_title(f"After {SUITES[SUITE].regimes[REGIME].timesteps:,} steps", loc="left", fontsize=13)
    return figure


def by_game(scores: dict[str, Array]) -> Any:
    """
    :param scores: as ``read`` returns them
    :return: mean final scores of each game, with intervals
    """
    import matplotlib.pyplot as plt

    envs = list(SUITES[SUITE].scores)
    figure, panels = plt.subplots(1, len(envs), figsize=(11.0, 2.9), layout="constrained", sharey=True)
    for game, (env, axes) in enumerate(zip(envs, panels, strict=True)):
        raw = {method: denormalize(SUITE, env, scores[method][:, [game], -1]) for method in GAMES}
        for y, (method, (estimate,)) in enumerate(report.estimates(raw, np.mean).items()):
            draw_interval(axes, y, estimate, method)
        axes.set_title(report.short(env), fontsize=13)
        axes.set_xlim(left=0)
        axes.locator_params(axis="x", nbins=3)
        axes.grid(axis="x", alpha=0.25)
        if game == 0:
            name_rows(axes, GAMES)
        axes.spines["left"].set_visible(False)
        axes.tick_params(axis="y", length=0)
    figure.supxlabel("score", fontsize=13)
    return figure


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
            draw_interval(axes, y, estimate, color)
            axes.text(estimate.value, y - 0.2, f"{estimate.value:.2f}", ha="center", va="bottom")
        names = [f"{text}\n({len(final[algo])} seed{'s' * (len(final[algo]) > 1)})" for algo, text, _ in shown]
        name_rows(axes, tuple(color for _, _, color in shown), names)
        axes.set_xlim(0, 1.2 * max(found[algo][0].high for algo, _, _ in shown))
        axes.set_title(f"{title}\n{len(envs)} {'tasks' if suite == 'mujoco' else 'games'}", loc="left", fontsize=11)
        axes.locator_params(axis="x", nbins=3)
        axes.grid(axis="x", alpha=0.25)
    figure.supxlabel("score, interquartile mean (every suite has a scale of its own)", fontsize=12)
    return figure


def main() -> None:
    """Draw the figures beside this script."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    plt.rcParams.update(STYLE)
    steps, scores = read()
    figures = {"dapo_vs_ppo": overview(steps, scores), "games": by_game(scores), "suites": all_suites()}
    for name, figure in figures.items():
        figure.savefig(FOLDER / f"{name}.svg", metadata={"Date": None}, facecolor="white")
        plt.close(figure)


if __name__ == "__main__":
    main()
