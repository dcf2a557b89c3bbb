"""The command `sb3-dapo compare`: learning curves of algorithms, with intervals over their runs."""

import argparse
from itertools import combinations
from math import ceil
from pathlib import Path
from textwrap import wrap

from huggingface_sb3 import EnvironmentName
from matplotlib.figure import Figure

from sb3_dapo.atari_scores import atari_scores
from sb3_dapo.cli import LOG_FOLDER
from sb3_dapo.zoo.curves import LABEL_WIDTH, N_LAST, Curve, draw_curves, interval, number, read_curves, text_curves

# With fewer runs, a bootstrap's interval is too narrow
ENOUGH_RUNS = 5


def compare() -> None:
    """The command `sb3-dapo compare`."""
    text = "Compare what has been trained: curves and scores of each algorithm and setting, with intervals over seeds."
    parser = argparse.ArgumentParser(description=text)
    parser.add_argument("--env", help="environment IDs", nargs="+", type=EnvironmentName, required=True)
    parser.add_argument("--algos", "-a", help="algorithms (default: all that have runs)", nargs="+", default=[])
    parser.add_argument("-f", "--folder", help="log folder (default: %(default)s)", default=LOG_FOLDER)
    parser.add_argument("-o", "--output", help="PNG file (default: comparison.png in the log folder)")
    args = parser.parse_args()
    folder = Path(args.folder)
    algos = args.algos or sorted(path.name for path in folder.glob("*") if path.is_dir())
    width = min(len(args.env), 3)
    height = ceil(len(args.env) / width)
    figure = Figure(figsize=(6.5 * width, 4.5 * height), layout="constrained")
    all_axes = figure.subplots(height, width, squeeze=False).flat
    for axes in all_axes[len(args.env) :]:
        axes.set_axis_off()
    for axes, env in zip(all_axes, args.env, strict=False):
        curves = read_curves(folder, algos, env)
        if not curves:
            where = ", ".join(str(folder / algo) for algo in algos) or folder
            raise ValueError(f"there is no run of {env} with evaluations (--eval-freq) in {where}")
        known = atari_scores(env.gym_id)
        lines = {} if known is None else dict(zip(("random actions", "a human"), known, strict=True))
        draw_curves(axes, curves, lines)
        axes.set_title(env.gym_id)
        print(f"\n{env.gym_id}\n\n{text_curves(curves, lines)}\n\n{table(curves)}")
    output = Path(args.output or folder / "comparison.png")
    figure.savefig(output, dpi=150, format="png")
    print(f"\nSaved {output}")


def table(curves: list[Curve]) -> str:
    """Scores at the end, best first, and how sure it is which algorithm is better."""
    from rliable import metrics  # type: ignore[import-untyped]

    curves = sorted(curves, key=lambda curve: -curve.final.mean())
    title = f"mean of the last {N_LAST} evaluations"
    labels = [wrap(curve.label, LABEL_WIDTH) for curve in curves]
    width = max(len(title), *(len(line) for lines in labels for line in lines))
    text = [f"  {title:{width}}  {'runs':>5} {'score':>9}   95 % interval"]
    for curve, (label, *more) in zip(curves, labels, strict=True):
        n_runs, span = len(curve.final), "-"
        if n_runs > 1:
            span = " to ".join(number(end) for end in interval(curve.final[:, None])[:, 0])
        text.append(f"  {label:{width}}  {n_runs:>5} {number(curve.final.mean()):>9}   {span}")
        text += [f"    {line}" for line in more]
    pairs = [pair for pair in combinations(curves, 2) if min(len(curve.final) for curve in pair) > 1]
    for first, second in pairs:
        share = metrics.probability_of_improvement(first.final[:, None], second.final[:, None])
        text.append(f"  In {share:.0%} of all pairs of runs {first.label} beats {second.label}")
    if min(len(curve.final) for curve in curves) < ENOUGH_RUNS:
        text.append(f"  With fewer than {ENOUGH_RUNS} runs of each this says little: train other seeds (--seed)")
    return "\n".join(text)
