"""
Turn the results into the tables and figures of the documentation, with rliable.

    python benchmarks/report.py

For each suite this writes `benchmarks/results/SUITE.md`, and figures as PNG and SVG to `docs/figures/benchmarks`.
"""

import argparse
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from rliable import library, metrics, plot_utils
from store import RESULTS, read_rows, read_settings
from suites import ALGORITHMS, BEST, SUITES, ablations, denormalize, hyperparameters, normalize, run_names

FIGURES = Path(__file__).parents[1] / "docs" / "figures" / "benchmarks"
# Bootstrap samples of each interval
REPS = 2000
# Changes whose values do not say what they are
CHANGES = {"divergence_steps=null": "all steps"}
# The paper's question: among methods that reuse the same data, does the divergence help, and do its steps? And the
# user's, for the kinds of PPO that tuning has found, and for other methods
PAIRS = (
    ("dapo_1step", "vtrace"),
    ("dapo", "vtrace"),
    ("dapo_plain", "vtrace"),
    ("dapo", "dapo_1step"),
    ("dapo_gae_1step", "vtrace_gae"),
    ("dapo_gae", "vtrace_gae"),
    ("dapo_gae", "dapo_gae_1step"),
    ("dapo_kl", "dapo_gae"),
    ("dapo_kl", "vtrace_gae"),
    ("dapo_kl", "ppo"),
    ("dapo_clip", "ppo"),
    ("dapo_clip", "vtrace_gae"),
    ("dapo_clip", "dapo_gae"),
    ("dapo_clip", "ppo_target_kl"),
    ("dapo_clip", "trpo"),
    ("dapo_clip", "geppo_published"),
    ("dapo_clip", "a2c"),
    ("dapo_gae", "ppo_ent"),
    ("dapo_gae", "ppo"),
    ("dapo_gae", "a2c"),
    ("a2c", "ppo_ent"),
)
# Of many algorithms only these have curves and profiles: more could not be told apart
CURVES = (
    *("ppo_ent", "ppo", "ppo_target_kl", "a2c", "trpo", "geppo_published", "vtrace_gae"),
    *("dapo_gae_1step", "dapo_gae", "dapo_kl", "dapo_clip", "sac"),
)

# With more environments than this they are the rows of a table, and intervals of one seed are over them
MANY_ENVS = 7
# The question of one recipe for all suites: a constant 1/eta against a KL target that a controller holds
CONSTANT, TARGET = "dapo_gae", "dapo_kl"
CONTROLLERS = {"": "constant", "dual": "dual ascent", "adaptive": "doubled or halved"}
RECIPE_SUITES = {"minatar": "#1b9e77", "mujoco": "#d95f02", "atari100k": "#7570b3"}

Array = npt.NDArray[np.float64]
Key = TypeVar("Key")


@dataclass(frozen=True)
class Estimate:
    """
    :param value: point estimate
    :param low: lower end of the 95 % interval
    :param high: upper end; the interval is empty where there is but one seed
    """

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        interval = "" if self.low == self.high else f" [{self.low:.2f}, {self.high:.2f}]"
        return f"{self.value:.2f}{interval}".replace(" ", "\N{NO-BREAK SPACE}")


def read_scores(results: Path, suite: str) -> pd.DataFrame:
    """
    :param results: folder of the results
    :param suite: name of a suite
    :return: the rows, with the score on the suite's scale as `normalized`, and as `step` the number of the evaluation
    """
    rows = pd.DataFrame(read_rows(results, suite))
    if rows.empty:
        return rows
    rows["normalized"] = [normalize(suite, env, score) for env, score in zip(rows.env, rows.score, strict=True)]
    rows["step"] = rows.groupby(["regime", "env", "algo", "seed"]).timesteps.rank().astype(int)
    # What is run as published is run once, and beside the tuned too
    published = [algo for algo, described in ALGORITHMS.items() if described.published]
    is_beside = (rows.regime == "untuned") & rows.algo.isin(published)
    if "scarce" in set(rows.regime):
        rows = pd.concat([rows, rows[is_beside].assign(regime="scarce")], ignore_index=True)
    return rows


def complete_envs(rows: pd.DataFrame, suite: str) -> list[str]:
    """
    :param rows: rows of some algorithms
    :param suite: name of the suite
    :return: of the environments that an algorithm has been run on, those with the most runs to compare: with which
        their number times that of the algorithms that have them all is largest
    """
    covered = [set(envs) for envs in rows.groupby("algo").env.unique()]
    most = max(covered, key=lambda envs: (len(envs) * sum(envs <= other for other in covered), len(envs)))
    return [env for env in SUITES[suite].envs if env in most]


def score_arrays(rows: pd.DataFrame, algos: Iterable[str], envs: Sequence[str]) -> dict[str, Array]:
    """
    :param rows: rows of a regime
    :param algos: names of algorithms
    :param envs: environments
    :return: normalized scores `(n_seeds, n_envs, n_evaluations)` of the algorithms that have been run on all
        environments, of the seeds that have
    """
    arrays = {}
    for algo in algos:
        table = rows[rows.algo == algo].pivot_table(
            index="seed", columns=["env", "step"], values="normalized", dropna=False
        )
        has_all = [env in table.columns.get_level_values(0) for env in envs]
        if not all(has_all):
            continue
        last = table.columns.get_level_values(1).max()
        table = table[table.loc[:, [(env, last) for env in envs]].notna().all(axis=1)]
        if len(table) > 0:
            arrays[algo] = np.stack([table[env].to_numpy() for env in envs], axis=1)
    return arrays


def iqm(scores: Array) -> Any:
    """
    The interquartile mean as rliable defines it, without SciPy's checks, which cost more than all else here.

    :param scores: normalized scores `(n_seeds, n_envs, ...)`
    :return: mean of the middle half of all runs, shape `(...)`
    """
    flat = np.sort(scores.reshape(-1, *scores.shape[2:]), axis=0)
    cut = len(flat) // 4
    return flat[cut : len(flat) - cut].mean(axis=0)


def improvement(scores: Array, other: Array) -> Any:
    """
    The probability of improvement as rliable defines it, likewise.

    :param scores: final scores `(n_seeds, n_envs)`
    :param other: those of another algorithm
    :return: probability that a run of the first is better than one of the other, mean over environments
    """
    return np.mean((scores[:, None] > other) + 0.5 * (scores[:, None] == other))


def steps_needed(scores: Array, other: Array) -> float:
    """
    How soon an algorithm is where another ends.

    :param scores: normalized scores `(n_seeds, n_envs, n_evaluations)`, NaN where no episode has ended yet
    :param other: those of another algorithm
    :return: the share of the steps after which the IQM of the first reaches the other's last one. Between evaluations
        it is on a straight line, and 1 if that is not reached
    """
    curve = np.append(0.0, iqm(scores))  # random play has a score of 0
    steps = np.linspace(0, 1, len(curve))[~np.isnan(curve)]
    curve = curve[~np.isnan(curve)] - iqm(other[:, :, -1])
    reached = int(np.argmax(curve >= 0))
    if curve[reached] < 0:
        return 1.0
    around = slice(max(reached - 1, 0), reached + 1)
    return float(np.interp(0, curve[around], steps[around]))


def estimates(scores: Mapping[Key, Any], function: Callable[..., Any]) -> dict[Key, list[Estimate]]:
    """
    :param scores: normalized scores by algorithm, `(n_seeds, n_envs, ...)`, or pairs of them
    :param function: turns them into numbers, of a bootstrap sample too
    :return: estimates of the numbers. Their intervals are over seeds, and over games where there is one seed of many
    """
    found = {}
    for name, own in scores.items():
        parts = own if isinstance(own, tuple) else (own,)
        over_games = parts[0].shape[1] > MANY_ENVS and all(len(part) == 1 for part in parts)
        if over_games:  # the same ones for both of a pair
            own = np.stack(parts, axis=-1)
        # rliable draws from NumPy's global generator, whatever `random_state` it is given. Each starts anew, so that an
        # interval stays as it is when others come to a table
        np.random.seed(0)
        points, intervals = library.get_interval_estimates(
            {name: own}, partial(_numbers, function, over_games), task_bootstrap=over_games, reps=REPS
        )
        found[name] = [Estimate(*map(float, values)) for values in zip(points[name], *intervals[name], strict=True)]
    return found


def _numbers(function: Callable[..., Any], is_stacked: bool, *samples: Array) -> Array:
    """What a function says of bootstrap samples, which may lie in the last axis of a single one."""
    return np.atleast_1d(function(*(np.moveaxis(samples[0], -1, 0) if is_stacked else samples)))


def arrays(found: Mapping[str, list[Estimate]]) -> tuple[dict[str, Array], dict[str, Array]]:
    """
    :param found: estimates
    :return: the same as rliable's plots take them: points `(n,)` and intervals `(2, n)`
    """
    return (
        {name: np.array([e.value for e in values]) for name, values in found.items()},
        {name: np.array([[e.low for e in values], [e.high for e in values]]) for name, values in found.items()},
    )


def changes(algo: str) -> list[str]:
    """
    :param algo: name of an algorithm, with or without changes
    :return: the changes in tables and figures
    """
    return [CHANGES.get(change, change.replace("=", " = ")) for change in algo.split("+")[1:]]


def label(algo: str) -> str:
    """
    :param algo: name of an algorithm, with or without changes
    :return: its name in tables and figures
    """
    return ", ".join([ALGORITHMS[algo.split("+")[0]].label, *changes(algo)])


def color(algo: str) -> str:
    """
    :param algo: name of an algorithm
    :return: its colour
    """
    return ALGORITHMS[algo.split("+")[0]].color


def family(name: str) -> list[str]:
    """
    :param name: "PPO" or "DAPO"
    :return: the algorithms that are variants of it
    """
    return [algo for algo, described in ALGORITHMS.items() if described.family == name]


def save(figure: Figure, figures: Path, name: str) -> None:
    """
    :param figure: is written as PNG and SVG, and closed
    :param figures: folder
    :param name: file name without suffix
    """
    figures.mkdir(parents=True, exist_ok=True)
    figure.savefig(figures / f"{name}.png", dpi=150, bbox_inches="tight")
    figure.savefig(figures / f"{name}.svg", bbox_inches="tight", metadata={"Date": None})
    plt.close(figure)


@dataclass(frozen=True)
class Comparison:
    """
    Algorithms compared on the same environments.

    :param scores: normalized scores by algorithm, `(n_seeds, n_envs, n_evaluations)`
    :param envs: the environments
    :param reference: the algorithm that the others are compared with, if any
    :param aggregates: by algorithm the IQM and the optimality gap of the final scores
    :param improvements: by algorithm the probability of improvement over the reference
    """

    scores: Mapping[str, Array]
    envs: Sequence[str]
    reference: str | None
    aggregates: Mapping[str, list[Estimate]]
    improvements: Mapping[str, list[Estimate]]

    @property
    def best_first(self) -> list[str]:
        """The algorithms by their IQM."""
        return sorted(self.scores, key=lambda algo: -self.aggregates[algo][0].value)

    def best_of(self, algos: Iterable[str]) -> str | None:
        """
        :param algos: names of algorithms
        :return: the one with the highest IQM, None if none of them has been run
        """
        algos = set(algos)
        return next((algo for algo in self.best_first if algo in algos), None)


def compare(scores: Mapping[str, Array], envs: Sequence[str], references: Iterable[str] = ()) -> Comparison:
    """
    :param scores: normalized scores by algorithm, `(n_seeds, n_envs, n_evaluations)`
    :param envs: the environments
    :param references: the best of these is what the others are compared with
    :return: the comparison
    """
    final = {algo: array[:, :, -1] for algo, array in scores.items()}
    aggregates = estimates(final, lambda x: np.array([iqm(x), metrics.aggregate_optimality_gap(x)]))
    found = Comparison(scores, envs, None, aggregates, {})
    reference = found.best_of(references)
    if reference is None:
        return found
    pairs = {algo: (final[algo], final[reference]) for algo in final if algo != reference}
    return replace(found, reference=reference, improvements=estimates(pairs, improvement))


def draw(compared: Comparison, steps: Array, xlabel: str, figures: Path, name: str) -> list[str]:
    """
    Draw the figures of a regime with rliable: aggregates, sample efficiency, performance profiles, probability of
    improvement.

    :param compared: what is drawn
    :param steps: where the evaluations lie on the x-axis
    :param xlabel: what the x-axis is
    :param figures: folder
    :param name: beginning of the file names
    :return: names of the figures
    """

    def by_label(values: Mapping[str, Any]) -> dict[str, Any]:
        return {label(algo): values[algo] for algo in compared.best_first if algo in values}

    colors = {label(algo): color(algo) for algo in compared.scores}
    scores = by_label(compared.scores)
    final = {algo: array[:, :, -1] for algo, array in scores.items()}
    style: dict[str, Any] = {"labelsize": "large", "ticklabelsize": "medium"}
    beside: dict[str, Any] = {"loc": "center left", "bbox_to_anchor": (1.02, 0.5), "frameon": False}

    figure, (left, right) = plot_utils.plot_interval_estimates(
        *arrays(by_label(compared.aggregates)),
        metric_names=["IQM", "Optimality gap"],
        algorithms=list(final)[::-1],
        colors=colors,
        max_ticks=5,
        xlabel="",
        wspace=0.2,
    )
    for axes in (left, right):
        axes.set_title(axes.get_title(), fontsize="large")
        axes.set_xlabel("Normalized score", fontsize="large")
        axes.tick_params(labelsize="medium")
    save(figure, figures, f"{name}_aggregates")

    if len(scores) > 8:
        few = [label(algo) for algo in CURVES]
        scores, final = ({algo: x[algo] for algo in x if algo in few} for x in (scores, final))
    # The first evaluation may come before a first game has ended
    known = np.flatnonzero(~np.any([np.isnan(array).any(axis=(0, 1)) for array in scores.values()], axis=0))
    figure, axes = plt.subplots(figsize=(8, 4.5))
    plot_utils.plot_sample_efficiency_curve(
        steps[known],
        *arrays(estimates({algo: array[:, :, known] for algo, array in scores.items()}, iqm)),
        colors=colors,
        ax=axes,
        xlabel=xlabel,
        ylabel="IQM of the normalized score",
        **style,
    )
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.legend(**beside)
    save(figure, figures, f"{name}_curves")

    thresholds = np.linspace(min(0.0, *(x.min() for x in final.values())), max(x.max() for x in final.values()), 51)
    profile = {algo: list(map(float, library.score_distributions(x, thresholds))) for algo, x in final.items()}
    bands = estimates(final, lambda x: (x.ravel()[:, None] > thresholds).mean(axis=0))
    figure, axes = plt.subplots(figsize=(8, 4.5))
    plot_utils.plot_performance_profiles(
        profile, thresholds, performance_profile_cis=arrays(bands)[1], colors=colors, ax=axes, **style
    )
    axes.legend(**beside)
    save(figure, figures, f"{name}_profiles")
    drawn = ["aggregates", "curves", "profiles"]

    if compared.improvements and compared.reference:
        better = by_label(compared.improvements)
        points, intervals = arrays({f"{algo};{label(compared.reference)}": better[algo] for algo in list(better)[::-1]})
        figure, axes = plt.subplots(figsize=(5, 0.4 * len(points) + 0.8))
        plot_utils.plot_probability_of_improvement(
            {pair: value[0] for pair, value in points.items()},
            {pair: value[:, 0] for pair, value in intervals.items()},
            pair_separator=";",
            ax=axes,
            colors=[colors[algo] for algo in list(better)[::-1]],
            **style,
        )
        axes.axvline(0.5, color="k", alpha=0.5, linestyle="--")
        save(figure, figures, f"{name}_improvement")
        drawn.append("improvement")
    return drawn


def markdown(columns: Sequence[str], cells: Iterable[Sequence[str]]) -> str:
    """
    :param columns: heads of the columns
    :param cells: rows
    :return: a table, with all columns but the first to the right
    """
    lines = [list(columns), ["---", *["--:"] * (len(columns) - 1)], *cells]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def number(value: float, digits: int) -> str:
    """
    :param value: a score
    :param digits: significant ones, where it is not so large that it is rounded to an integer
    :return: as tables show it
    """
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.{digits}g}"


def machines(results: Path, suite: str, regime: str) -> str:
    """
    :param results: folder of the results
    :param suite: name of a suite
    :param regime: one of its regimes
    :return: a sentence that says what its runs were made on, nothing if that is not known
    """
    settings = read_settings(results, suite).items()
    versions = [made_with for name, value in settings if name.split()[0] == regime for made_with in value["versions"]]
    names = sorted({made_with.split(", ")[-1] for made_with in versions})
    return f" Machines: {', '.join(names)}." if names else ""


def short(env: str) -> str:
    """
    :param env: environment
    :return: its name without namespace and version
    """
    return env.split("/")[-1].rsplit("-v", 1)[0].removesuffix("NoFrameskip")


def table(rows: pd.DataFrame, compared: Comparison) -> str:
    """
    :param rows: rows of a regime
    :param compared: what is in the table
    :return: Markdown: the aggregates, the mean KL divergence from the policies that acted, uses, time; the best
        algorithm first
    """
    last = rows[rows.step == rows.groupby(["env", "algo", "seed"]).step.transform("max")]
    cells = []
    for algo in compared.best_first:
        own = last[last.algo == algo]
        kl = rows[rows.algo == algo].kl.mean()
        cells.append(
            [
                label(algo),
                *map(str, compared.aggregates[algo]),
                *([] if compared.reference is None else ["".join(map(str, compared.improvements.get(algo, [])))]),
                "" if np.isnan(kl) else f"{kl:.2g}",  # A2C logs none
                "/".join(map(str, sorted(own.uses_per_sample.unique()))),
                f"{own.wall_s.median() / 60:.1f}",
                str(len(compared.scores[algo])),
            ]
        )
    better = [] if compared.reference is None else [f"P(better than {label(compared.reference)})"]
    return markdown(["Algorithm", "IQM", "Optimality gap", *better, "KL", "Uses", "Minutes", "Seeds"], cells)


def games_table(suite: str, compared: Comparison, published: pd.DataFrame | None = None) -> str:
    """
    :param suite: name of the suite
    :param compared: what is in the table
    :param published: scores by game and method of others, if any are known
    :return: Markdown: mean final score in each environment and its standard deviation over seeds; with a row for each
        environment where there are many
    """
    columns = {}
    for algo in compared.best_first:
        final = compared.scores[algo][:, :, -1]
        games = [denormalize(suite, env, final[:, i]) for i, env in enumerate(compared.envs)]
        spread = [f" ± {number(game.std(ddof=1), 2)}" if len(game) > 1 else "" for game in games]
        means = [number(game.mean(), 3) for game in games]
        columns[label(algo)] = [f"{mean}{std}" for mean, std in zip(means, spread, strict=True)]
    names = list(map(short, compared.envs))
    if published is not None:
        columns |= {f"*{method}*": [number(x, 3) for x in published.loc[names, method]] for method in published}
    if len(names) <= MANY_ENVS:
        return markdown(["Score", *names], [[name, *cells] for name, cells in columns.items()])
    return markdown(["Score", *columns], [list(row) for row in zip(names, *columns.values(), strict=True)])


def read_published(results: Path, suite: str) -> pd.DataFrame | None:
    """
    :param results: folder of the results
    :param suite: name of a suite
    :return: what others have published for it, by game (and "IQM", of all runs in all games) and method, if it is known
    """
    path = results / f"{suite}_published.csv"
    return pd.read_csv(path).pivot(index="game", columns="method", values="score") if path.is_file() else None


def published_line(published: pd.DataFrame | None) -> str:
    """
    :param published: what others have published, if it is known
    :return: a paragraph with the IQMs, nothing if there are none
    """
    if published is None:
        return ""
    iqms = published.loc["IQM"].sort_values(ascending=False)
    listed = "; ".join(f"{method} {value:.2f}" for method, value in iqms.items())
    return f"*Published, not ours*, IQM of all environments: {listed}. Sources: `benchmarks/README.md`."


def regime_section(rows: pd.DataFrame, results: Path, suite: str, regime: str, figures: Path, link: str) -> str:
    """
    :param rows: rows of the suite
    :param results: folder of the results
    :param suite: name of the suite
    :param regime: one of its regimes
    :param figures: folder of the figures
    :param link: the same as seen from the Markdown file
    :return: Markdown
    """
    rows = rows[(rows.regime == regime) & ~rows.algo.str.contains("+", regex=False)]
    if rows.empty:
        return ""
    envs = complete_envs(rows, suite)
    compared = compare(score_arrays(rows, ALGORITHMS, envs), envs, family("PPO"))

    ends = rows.groupby("env").timesteps.max()
    same_length = ends.nunique() == 1
    length = (
        f"{ends.max():,} environment steps"
        if same_length
        else "environment steps: " + ", ".join(f"{short(env)} {ends[env]:,}" for env in envs)
    )
    xlabel = "Environment steps" if same_length else "Environment steps, %"
    steps = np.linspace(0, ends.max() if same_length else 100, rows.step.max() + 1)[1:]
    published = read_published(results, suite)
    of_one = "or games where there is" if len(envs) > MANY_ENVS else "none where there is"
    # A single algorithm has nothing to be seen beside
    drawn = draw(compared, steps, xlabel, figures, f"{suite}_{regime}") if len(compared.scores) > 1 else []

    parts = [
        f"### `{suite}`, {regime}",
        f"{length[0].upper()}{length[1:]}. Normalized scores: {SUITES[suite].normalization}. Intervals: 95 %, of a "
        f"stratified bootstrap over seeds, {of_one} one seed.{machines(results, suite, regime)}",
        table(rows, compared),
        games_table(suite, compared, published),
        published_line(published),
    ]
    partial = [algo for algo in ALGORITHMS if algo in set(rows.algo) - set(compared.scores)]
    if partial:
        parts.append(f"Not run on all of these environments yet: {', '.join(map(label, partial))}.")
    dapo = compared.best_of(family("DAPO"))
    if compared.reference and dapo:
        ratio = compared.aggregates[dapo][0].value / compared.aggregates[compared.reference][0].value
        text = (
            f"The best variant of DAPO ({label(dapo)}) has {ratio:.2f} times the IQM of the best variant of PPO "
            f"({label(compared.reference)})."
        )
        if SUITES[suite].final_games == 0:  # else the end is measured in another way than what comes before it
            pair = {dapo: (compared.scores[dapo], compared.scores[compared.reference])}
            text += f" It is where PPO ends after {estimates(pair, steps_needed)[dapo][0]} of the steps."
        parts.append(text)
    pairs = {
        pair: tuple(compared.scores[algo][:, :, -1] for algo in pair)
        for pair in PAIRS
        if set(pair) <= set(compared.scores)
    }
    if pairs:
        parts.append(
            "\n".join(
                f"- P({label(x)} better than {label(y)}) = {found[0]}"
                for (x, y), found in estimates(pairs, improvement).items()
            )
        )
    parts += [f"![{suite}, {regime}: {name}]({link}/{suite}_{regime}_{name}.svg)" for name in drawn]
    return "\n\n".join(part.strip() for part in parts if part) + "\n"


def draw_ablations(rows: pd.DataFrame, suite: str, regime: str, figures: Path) -> str | None:
    """
    Draw what each change to the best algorithm does.

    :param rows: rows of a regime, by the names that the ablations have for them
    :param suite: name of the suite
    :param regime: the regime
    :param figures: folder
    :return: name of the figure, None if there are no changes to draw
    """
    about_best = [algos for algos in ablations(suite).values() if algos[0] == BEST]
    algos = [a for a in dict.fromkeys(chain(*about_best)) if a.split("+")[0] == BEST]
    envs = SUITES[suite].ablation_envs
    scores = score_arrays(rows, algos, envs)
    if BEST not in scores or len(scores) < 3:
        return None
    found = estimates({algo: array[:, :, -1] for algo, array in scores.items()}, iqm)
    best = found[BEST][0]
    names = {a: f"{', '.join(changes(a)) or label(a)} (seeds: {len(scores[a])})" for a in scores}
    figure, axes = plot_utils.plot_interval_estimates(
        *arrays({names[a]: found[a] for a in scores}),
        metric_names=[f"IQM on {', '.join(map(short, envs))}"],
        algorithms=[names[a] for a in scores][::-1],
        colors={names[a]: color(BEST) if a == BEST else "#9e9e9e" for a in scores},
        max_ticks=6,
        subfigure_width=6,
        row_height=0.24,
        xlabel="",
    )
    # Of a single seed there is only a line, which would lie on the edge
    axes.use_sticky_edges = False
    axes.margins(x=0.03)
    axes.axvspan(best.low, best.high, color=color(BEST), alpha=0.12, linewidth=0)
    axes.set_title(axes.get_title(), fontsize="large")
    axes.tick_params(labelsize="medium")
    name = f"{suite}_{regime}_ablations"
    save(figure, figures, name)
    return name


def ablation_section(rows: pd.DataFrame, suite: str, regime: str, figures: Path, link: str) -> str:
    """
    :param rows: rows of the suite
    :param suite: name of the suite
    :param regime: one of its regimes
    :param figures: folder of the figures
    :param link: the same as seen from the Markdown file
    :return: Markdown, a table for each question of which two answers at least have been tried, one with a change
    """
    rows = rows[rows.regime == regime]
    # Changes may amount to another algorithm or change, by whose name the runs are kept
    run_as = run_names(suite, regime, list(chain(*ablations(suite).values())))
    rows = pd.concat([rows[rows.algo == name].assign(algo=algo) for algo, name in run_as.items()])
    few, parts = SUITES[suite].ablation_envs, []
    all_envs = SUITES[suite].envs
    drawn = draw_ablations(rows, suite, regime, figures)
    if drawn:
        parts.append(
            f"{label(BEST)}, with its interval as a band, and what becomes of it when something is changed.\n\n"
            f"![{suite}, {regime}: ablations]({link}/{drawn}.svg)\n"
        )
    for question, names in ablations(suite).items():
        # Each run once: a change may be none in this regime
        algos = list({run_as[name]: name for name in reversed(names)}.values())[::-1]
        own = rows[rows.algo.isin(algos)]
        # On all environments, unless more algorithms have been run on the few
        tried = [(envs, score_arrays(own, algos, envs)) for envs in (all_envs, few)]
        envs, scores = max(tried, key=lambda found: len(found[1]))
        if len(scores) < 2 and not own.empty:  # the runs have but begun
            envs = complete_envs(own, suite)
            scores = score_arrays(own, algos, envs)
        # Algorithms without changes are compared in the table of the regime
        if len(scores) > 1 and any("+" in algo for algo in scores):
            own = own[own.env.isin(envs)]
            compared = compare(scores, envs, algos[:1])
            parts.append(f"#### {question}\n\n{table(own, compared)}\n{games_table(suite, compared)}")
    head = f"### `{suite}`, {regime}: ablations\n\nOn {', '.join(map(short, few))}, or on all environments.\n"
    return "\n".join([head, *parts]) if parts else ""


def uses_section(rows: pd.DataFrame, suite: str, figures: Path, link: str) -> str:
    """
    :param rows: rows of the suite
    :param suite: name of the suite
    :param figures: folder of the figures
    :param link: the same as seen from the Markdown file
    :return: Markdown: how the algorithms fare with more uses of each sample
    """
    rows = rows[rows.regime.str.startswith("scarce") & rows.algo.isin(list(ALGORITHMS))]
    by_regime = {name: rows[rows.regime == name] for name in SUITES[suite].regimes if name in set(rows.regime)}
    envs = min((complete_envs(own, suite) for own in by_regime.values()), key=len, default=[])
    scores = {regime: score_arrays(own, ALGORITHMS, envs) for regime, own in by_regime.items()}
    finals = {algo: {r: found[algo][:, :, -1] for r, found in scores.items() if algo in found} for algo in ALGORITHMS}
    finals = {algo: final for algo, final in finals.items() if len(final) > 1}
    if not finals:
        return ""
    rows = rows[rows.algo.isin(list(finals))]
    figure, axes = plt.subplots(figsize=(7, 4.5))
    cells = []
    for algo, final in finals.items():
        points = {regime: values[0] for regime, values in estimates(final, iqm).items()}
        # Tuning may have chosen fewer uses than the regime allows
        own = rows[rows.algo == algo].groupby("regime").uses_per_sample.max()
        cells.append(
            [
                label(algo),
                *(f"{points[r]} ({own[r]} uses, seeds: {len(final[r])})" if r in final else "" for r in by_regime),
            ]
        )
        x = [own[regime] for regime in points]
        values = [e.value for e in points.values()]
        # Bars and not bands, which would seem to be surest where there is one seed
        errors = [[e.value - e.low for e in points.values()], [e.high - e.value for e in points.values()]]
        axes.errorbar(x, values, errors, marker="o", capsize=3, elinewidth=1, color=color(algo), label=label(algo))
    uses = [SUITES[suite].regimes[regime].uses or 0 for regime in by_regime]
    axes.set(xscale="log", xlabel="Uses per sample", ylabel="IQM of the normalized score")
    ticks = sorted(rows.uses_per_sample.unique())
    axes.set_xticks(ticks, map(str, ticks))
    axes.minorticks_off()
    axes.grid(alpha=0.2)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="center left", bbox_to_anchor=(1.02, 0.5), frameon=False)
    save(figure, figures, f"{suite}_uses")
    games = ", ".join(map(short, envs))
    head = f"### `{suite}`: uses per sample\n\nIQM on {games}. No interval where there is one seed.\n\n"
    body = markdown(["Algorithm", *(f"Up to {n} uses" for n in uses)], cells)
    return f"{head}{body}\n![{suite}: IQM against uses per sample]({link}/{suite}_uses.svg)\n"


@dataclass(frozen=True)
class Variant:
    """
    One way to hold 1/eta in one suite.

    :param suite: name of the suite
    :param regime: the regime
    :param kind: of controller, empty for none
    :param value: 1/eta, or the target
    :param kl: mean KL divergence from the policies that acted
    :param iqm: of the final scores
    :param n_seeds: how many seeds it has
    """

    suite: str
    regime: str
    kind: str
    value: float
    kl: float
    iqm: Estimate
    n_seeds: int


def holds_eta(algo: str) -> bool:
    """
    :param algo: name of an algorithm
    :return: whether it is DAPO with a constant 1/eta or a KL target, and with no other change
    """
    name, *changes = algo.split("+")
    return name in (CONSTANT, TARGET) and all(change.startswith("divergence_coef=") for change in changes)


def is_tuned_alike(suite: str, regime: str, algo: str) -> bool:
    """:return: whether all but 1/eta is as with the constant: algorithms may be tuned apart"""
    settings = [hyperparameters(suite, regime, SUITES[suite].envs[0], x) for x in (algo, CONSTANT)]
    ours, constant = ({**values, "divergence_coef": None} for values in settings)
    return ours == constant


def variants(results: Path, suite: str) -> tuple[list[str], list[Variant]]:
    """
    :param results: folder of the results
    :param suite: name of a suite
    :return: environments, and the ways to hold 1/eta that have been run on all of these, the tuned constant first; none
        if there is nothing to compare it with
    """
    rows = read_scores(results, suite)
    if rows.empty:
        return [], []
    rows = rows[rows.algo.map(holds_eta)]
    compared = {
        regime: [algo for algo in own.algo.unique() if is_tuned_alike(suite, regime, algo)]
        for regime, own in rows.groupby("regime")
    }
    regimes = [x for x in ("scarce", "untuned") if CONSTANT in compared.get(x, ()) and len(compared[x]) > 1]
    if not regimes:
        return [], []
    own = rows[(rows.regime == regimes[0]) & rows.algo.isin(compared[regimes[0]])]
    algos = sorted(compared[regimes[0]], key=lambda algo: algo != CONSTANT)
    envs = complete_envs(own, suite)
    scores = score_arrays(own, algos, envs)
    found = []
    for algo, (estimate,) in estimates({a: x[:, :, -1] for a, x in scores.items()}, iqm).items():
        coefficient = hyperparameters(suite, regimes[0], envs[0], algo)["divergence_coef"]
        kind, _, value = str(coefficient).rpartition("_")
        kl = own[(own.algo == algo) & own.env.isin(envs)].kl.mean()
        if kind in CONTROLLERS:
            found.append(Variant(suite, regimes[0], kind, float(value), kl, estimate, len(scores[algo])))
    is_compared = len(found) > 1 and len(scores.get(CONSTANT, ())) > 1  # seeds
    return (envs, found) if is_compared else ([], [])


def recipe(results: Path, figures: Path) -> Path | None:
    """
    Compare a constant 1/eta with KL targets in all suites: a table, and a figure of the score against the KL.

    :param results: folder of the results
    :param figures: folder of the figures
    :return: the Markdown file that was written, None if there is nothing to compare
    """
    figure, axes = plt.subplots(figsize=(7, 4.5))
    markers = dict(zip(CONTROLLERS, ("o", "s", "^"), strict=True))
    cells, notes = [], []
    for suite, suite_color in RECIPE_SUITES.items():
        envs, found = variants(results, suite)
        if not found:
            continue
        constant, *others = found
        notes.append(f"`{suite}`, {constant.regime}: {', '.join(map(short, envs))}.")
        for variant in [constant, *sorted(others, key=lambda x: (list(CONTROLLERS).index(x.kind), x.value))]:
            relative = variant.iqm.value / constant.iqm.value
            what = CONTROLLERS[variant.kind] if variant.kind else "constant"
            value = f"{variant.value:g}"
            cells.append(
                [suite, what, value, str(variant.iqm), f"{relative:.2f}", f"{variant.kl:.2g}", str(variant.n_seeds)]
            )
            axes.plot(variant.kl, relative, markers[variant.kind], color=suite_color)
            axes.annotate(value, (variant.kl, relative), (5, 4), textcoords="offset points", fontsize="small")
        axes.plot([], [], "o", color=suite_color, label=suite)
    if not cells:
        plt.close(figure)
        return None
    for kind, marker in markers.items():
        axes.plot(
            [], [], marker, color="k", fillstyle="none", label=f"{CONTROLLERS[kind]}: {'KL' if kind else '1/eta'}"
        )
    axes.axhspan(0.95, 1.05, color="k", alpha=0.08, linewidth=0)
    axes.set(xscale="log", xlabel="KL divergence from the policies that acted, mean of the run")
    axes.set_ylabel("IQM, relative to the constant 1/eta of the suite")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.2)
    axes.legend(loc="center left", bbox_to_anchor=(1.02, 0.5), frameon=False)
    save(figure, figures, "recipe")
    columns = ["Suite", "1/eta", "Value", "IQM", "Relative", "KL", "Seeds"]
    link = Path(os.path.relpath(figures, results)).as_posix()
    path = results / "recipe.md"
    path.write_text(
        "<!-- Written by benchmarks/report.py from the CSV files beside it -->\n\n"
        f"The value is 1/eta, or the KL target of a controller. {' '.join(notes)}\n\n{markdown(columns, cells)}\n"
        f"![IQM against KL, relative to a constant 1/eta]({link}/recipe.svg)\n"
    )
    return path


def report(results: Path, figures: Path, suite: str) -> Path | None:
    """
    :param results: folder of the results
    :param figures: folder of the figures
    :param suite: name of a suite
    :return: the Markdown file that was written, None if there are no results
    """
    rows = read_scores(results, suite)
    if rows.empty:
        return None
    link = Path(os.path.relpath(figures, results)).as_posix()
    sections = [
        "<!-- Written by benchmarks/report.py from the CSV file beside it -->\n",
        *(regime_section(rows, results, suite, regime, figures, link) for regime in SUITES[suite].regimes),
        uses_section(rows, suite, figures, link),
        *(ablation_section(rows, suite, regime, figures, link) for regime in SUITES[suite].regimes),
    ]
    path = results / f"{suite}.md"
    path.write_text("\n".join(section for section in sections if section))
    return path


def main() -> None:
    """Write the reports of all suites that have results."""
    parser = argparse.ArgumentParser(description="Write tables and figures from the results.")
    parser.add_argument("--suite", nargs="+", default=list(SUITES), choices=list(SUITES), help="suites (default: all)")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the results, where the tables go too")
    parser.add_argument("--figures", type=Path, default=FIGURES, help="folder of the figures")
    args = parser.parse_args()
    plt.switch_backend("agg")
    mpl.rcParams.update({"svg.hashsalt": "sb3-dapo", "svg.fonttype": "none", "font.size": 10})
    for suite in args.suite:
        path = report(args.results.resolve(), args.figures.resolve(), suite)
        print(f"{suite}: {'no results' if path is None else path}")
    path = recipe(args.results.resolve(), args.figures.resolve())
    print(f"recipe: {'no results' if path is None else path}")


if __name__ == "__main__":
    main()
