"""Learning curves, from the evaluations during training: of runs that differ in their seeds, as figure and as text."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from textwrap import fill, shorten
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from huggingface_sb3 import EnvironmentName
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from sb3_dapo.zoo.parsers import numbered_runs, read_saved

Numbers = npt.NDArray[np.float64]
EVALUATIONS = "evaluations.npz"
# What a score at the end is: the mean of so many evaluations
N_LAST = 3
# Bootstrap samples of each interval
REPS = 2000
MARKERS = "*o+x#@"
WIDTH, HEIGHT = 64, 14  # of a curve in text
LABEL_WIDTH = 48  # of a line of an algorithm's name and settings


@dataclass(frozen=True)
class Curve:
    """Evaluations of an algorithm's runs that differ in nothing but their seeds."""

    label: str
    steps: Numbers  # (n_evaluations,)
    scores: Numbers  # (n_runs, n_evaluations), means over the games of an evaluation

    @property
    def mean(self) -> Numbers:
        """Mean over runs, shape (n_evaluations,)."""
        return self.scores.mean(axis=0)

    @property
    def final(self) -> Numbers:
        """Score of each run at its end, shape (n_runs,)."""
        return self.scores[:, -N_LAST:].mean(axis=1)


def interval(scores: Numbers) -> Numbers:
    """95 % bootstrap interval of the mean over runs of scores (n_runs, n), shape (2, n)."""
    from rliable import library  # type: ignore[import-untyped]

    np.random.seed(0)  # rliable draws from NumPy's global generator
    _, found = library.get_interval_estimates({"": scores[:, None]}, partial(np.mean, axis=(0, 1)), reps=REPS)
    return np.asarray(found[""])


class Group(NamedTuple):
    """An algorithm's runs that differ in nothing but their seeds."""

    settings: dict[str, Any]  # all of them
    given: dict[str, Any]  # those that were given on the command line
    runs: list[Path]


def runs_by_settings(folder: Path, env: EnvironmentName, file: str) -> list[Group]:
    """An algorithm's runs that have a file, with those together that differ in nothing but their seeds."""
    groups: list[Group] = []
    for run in [run for run in numbered_runs(folder, env).values() if (run / file).is_file()]:
        args = read_saved(run, env, "args")
        given = {name: args.get(name) for name in ("n_timesteps", "env_kwargs", "actors")}
        given = {name: value for name, value in given.items() if value not in (-1, None, {})}
        settings = read_saved(run, env, "config") | given
        group = next((group for group in groups if group.settings == settings), None)
        if group is None:
            given |= {name: args[name] for name in ("preset", "conf_file") if args.get(name) is not None}
            group = Group(settings, given | (args.get("hyperparams") or {}), [])
            groups.append(group)
        group.runs.append(run)
    return [group._replace(runs=without_repeated(group.runs, env)) for group in groups]


def without_repeated(runs: list[Path], env: EnvironmentName) -> list[Path]:
    """Runs without those that a later one repeats with the same seed, which are no evidence of their own, and told."""
    in_order = sorted(runs, key=lambda run: (run / f"{env}.zip").is_file())  # one that is finished counts as later
    last = {read_saved(run, env, "args").get("seed", run): run for run in in_order}.values()
    for run in runs:
        if run not in last:
            print(f"Leaving out {run}: another run has its seed")
    return [run for run in runs if run in last]


def read_curves(folder: Path, algos: Iterable[str], env: EnvironmentName) -> list[Curve]:
    """Curves of all runs of some algorithms in an environment: one for each algorithm and setting."""
    curves = []
    for algo in algos:
        groups = runs_by_settings(folder / algo, env, EVALUATIONS)
        names = differences([group.given for group in groups])
        if len(set(map(tuple, names))) < len(groups):  # in what was given on the command line some are the same
            names = differences([group.settings for group in groups])
        for name, group in zip(names, groups, strict=True):
            curves.append(read_curve(", ".join([algo.upper(), *name]), group.runs))
    return curves


def differences(all_settings: Sequence[dict[str, Any]]) -> list[list[str]]:
    """Of each, the settings that are not the same, or not there, in all."""
    keys = sorted({key for settings in all_settings for key in settings})
    keys = [key for key in keys if any(settings.get(key) != all_settings[0].get(key) for settings in all_settings)]
    return [[f"{key}={shorten(str(own[key]), 40)}" for key in keys if key in own] for own in all_settings]


def read_curve(label: str, runs: list[Path]) -> Curve:
    """The curve of some runs. Those that end early, or were evaluated at other steps, are left out, and told."""
    logs = {run: np.load(run / EVALUATIONS) for run in runs}
    steps = max((log["timesteps"] for log in logs.values()), key=len)
    used = [run for run, log in logs.items() if np.array_equal(log["timesteps"], steps)]
    for run in sorted(set(runs) - set(used)):
        print(f"Leaving out {run}: {len(logs[run]['timesteps'])} evaluations, where others have {len(steps)}")
    return Curve(label, steps.astype(float), np.stack([logs[run]["results"].mean(axis=1) for run in used]))


def draw_mean(axes: Axes, curve: Curve, **style: Any) -> Line2D:
    """Draw the mean over runs and its interval; returns the line."""
    (line,) = axes.plot(curve.steps, curve.mean, label=curve.label, **style)
    if len(curve.scores) > 1:
        axes.fill_between(curve.steps, *interval(curve.scores), color=line.get_color(), alpha=0.2, linewidth=0)
    return line


def draw_curves(axes: Axes, curves: Sequence[Curve], lines: Mapping[str, float]) -> None:
    """Draw the mean of each, its interval and the single runs, and horizontal lines with names."""
    for curve in curves:
        n_runs = len(curve.scores)
        label = f"{curve.label}, {n_runs} runs, 95 % interval" if n_runs > 1 else f"{curve.label}, one run"
        line = draw_mean(axes, replace(curve, label=fill(label, LABEL_WIDTH)), marker="o", markersize=4, linewidth=2)
        if n_runs > 1:
            axes.plot(curve.steps, curve.scores.T, color=line.get_color(), alpha=0.4, linewidth=0.8)
    for (name, value), style in zip(within_reach(curves, lines).items(), ("--", ":", "-."), strict=False):
        axes.axhline(value, color="grey", linestyle=style, linewidth=1.2, label=name)
    axes.set(xlabel="Steps", ylabel="Score", xlim=(0, None))
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.yaxis.set_major_formatter("{x:,g}")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small", frameon=False)


def number(value: float) -> str:
    """A score for people: as many digits as are worth reading."""
    digits = 0 if abs(value) >= 1000 or value == 0 else 1 if abs(value) >= 10 else 2
    return f"{value:,.{digits}f}"


def within_reach(curves: Sequence[Curve], lines: Mapping[str, float]) -> dict[str, float]:
    """Lines that are not far above all curves, as they would press these flat."""
    if not curves:
        return dict(lines)
    values = np.concatenate([curve.mean for curve in curves])
    reach = values.max() + max(np.ptp(values), abs(values.max()) / 2)
    return {name: value for name, value in lines.items() if value <= reach}


def text_curves(curves: Sequence[Curve], lines: Mapping[str, float]) -> str:
    """The same in plain text."""
    shown = within_reach(curves, lines)
    reached = [*shown.values(), *(value for curve in curves for value in curve.mean)]
    low, high = min(0.0, *reached), max(reached)
    last = max(curve.steps[-1] for curve in curves)
    grid = [[" "] * WIDTH for _ in range(HEIGHT)]
    margin = {0: number(high), HEIGHT - 1: number(low)}
    names = [""] * HEIGHT  # of lines
    marked = list(zip(MARKERS, curves, strict=False))

    def row(value: float) -> int:
        return round((high - value) / ((high - low) or 1.0) * (HEIGHT - 1))

    for name, value in shown.items():
        grid[row(value)] = ["-"] * WIDTH
        names[row(value)] += f" {name}"
        margin[row(value)] = number(value)
    columns = np.linspace(0, last, WIDTH)
    for marker, curve in reversed(marked):
        for column, value in enumerate(np.interp(columns, curve.steps, curve.mean)):
            if curve.steps[0] <= columns[column] <= curve.steps[-1]:
                grid[row(value)][column] = "."
        for step, value in zip(curve.steps, curve.mean, strict=True):
            grid[row(value)][round(step / last * (WIDTH - 1))] = marker
    width = max(map(len, margin.values()))
    text = [f"{margin.get(i, ''):>{width}} |{''.join(cells)}{names[i]}" for i, cells in enumerate(grid)]
    text += [f"{'':{width}} +{'-' * WIDTH}", f"{'':{width}}  0{f'{last:,.0f} steps':>{WIDTH - 1}}"]
    legend = [f"{marker} {curve.label}" for marker, curve in marked]
    rows = legend if len("   ".join(legend)) > WIDTH else ["   ".join(legend)]
    return "\n".join([*text, *(f"{'':{width}}  {row}" for row in rows)])
