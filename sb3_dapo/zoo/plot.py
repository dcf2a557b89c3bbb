"""The command `sb3-dapo plot`: how a run went, in one figure."""

import argparse
import logging
from collections.abc import Sequence
from itertools import chain
from math import ceil, prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from huggingface_sb3 import EnvironmentName
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from pandas import read_csv  # type: ignore[import-untyped]
from stable_baselines3.common.monitor import get_monitor_files
from stable_baselines3.common.results_plotter import X_TIMESTEPS, load_results, ts2xy, window_func

from sb3_dapo.panels import ACTOR_PANELS, PANELS
from sb3_dapo.zoo.curves import EVALUATIONS, Curve, draw_mean, read_curve, runs_by_settings
from sb3_dapo.zoo.exp_manager import ATARI_WRAPPER, EPISODES_FILE, TENSORBOARD_FILE, read_tensorboard_path, wrappers_of
from sb3_dapo.zoo.parsers import add_run_arguments, find_run, read_saved

# An estimate of more points is drawn faintly, with the moving average over its 50th part on top
MAX_POINTS = 200
EXACT = {"train/policy_lag", "train/divergence_coef", *chain(*ACTOR_PANELS.values())}  # what is set and not estimated
DASHED = {"train/approx_kl"}  # the same as behavior_kl where one rollout is kept

# Wrappers outside of `Monitor` that repeat an action, 4 times by default, and their argument for how often
FRAME_SKIPS = {ATARI_WRAPPER: "frame_skip", "rl_zoo3.wrappers.FrameSkip": "skip"}

Log = tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]  # steps and values, shape (n_points,)


def read_scalars(folder: Path) -> dict[str, Log]:
    """Curve of every value in TensorBoard's event files."""
    from tensorboard.backend.event_processing.event_accumulator import SCALARS, EventAccumulator

    log = EventAccumulator(str(folder), size_guidance={SCALARS: 0}).Reload()  # 0: keep all
    points = {key: [(event.step, event.value) for event in log.Scalars(key)] for key in log.Tags()[SCALARS]}
    return {key: (np.array(point)[:, 0], np.array(point)[:, 1]) for key, point in points.items()}


def read_episodes(run_path: Path, frame_skip: int) -> Log:
    """Steps so far at the end of each training episode, and its score; `Monitor` counts `frame_skip` frames a step."""
    if (run_path / EPISODES_FILE).is_file():
        episodes = read_csv(run_path / EPISODES_FILE)
        return episodes["timesteps"].to_numpy(float), episodes["score"].to_numpy(float)
    # It was trained by something else than `sb3-dapo train`
    if not get_monitor_files(str(run_path)):
        return np.zeros(0), np.zeros(0)
    frames, scores = ts2xy(load_results(str(run_path)), X_TIMESTEPS)
    return frames / frame_skip, scores


def read_frame_skip(hyperparams: dict[str, Any]) -> int:
    """Steps of the environment per step of the agent: `Monitor` counts the former."""
    return prod(kwargs.get(FRAME_SKIPS[name], 4) for name, kwargs in wrappers_of(hyperparams) if name in FRAME_SKIPS)


def draw_curve(axes: Axes, curve: Log, key: str) -> None:
    """Draw what is logged by the name `key`."""
    steps, values = curve
    label, style = key.rpartition("/")[2], "--" if key in DASHED else "-"
    if key in EXACT or len(steps) <= MAX_POINTS:
        axes.plot(steps, values, style, label=label)
    else:
        (raw,) = axes.plot(steps, values, alpha=0.25, linewidth=0.8)
        axes.plot(*window_func(steps, values, len(steps) // 50, np.mean), style, color=raw.get_color(), label=label)
    if key == "train/divergence_coef" and 0 < values.min() and np.median(values) < values.max() / 20:
        axes.set_yscale("log")  # a controller's: most of it would look like 0


def mean_of(logs: list[Log], label: str) -> Curve:
    """What several runs logged, at the same steps and smoothed."""
    smooth = [window_func(*log, max(len(log[0]) // 50, 1), np.mean) for log in logs]
    steps = np.linspace(max(log[0][0] for log in smooth), min(log[0][-1] for log in smooth), MAX_POINTS)
    return Curve(label, steps, np.stack([np.interp(steps, *log) for log in smooth]))


def plot_run(
    run_path: Path, tensorboard_path: Path, title: str, frame_skip: int = 1, others: Sequence[Path] = ()
) -> Figure:
    """
    Score, divergence, KL, ratios and reuse side by side, without panels of values that were not logged. With `others`,
    runs of other seeds, means over all of them and their intervals.
    """
    logs = [read_scalars(tensorboard_path), *(read_scalars(Path(read_tensorboard_path(run))) for run in others)]
    curves = {key: log for key, log in logs[0].items() if all(key in other for other in logs)}
    panels = {name: [key for key in keys if key in curves] for name, keys in (PANELS | ACTOR_PANELS).items()}
    panels = {"Score": []} | {name: keys for name, keys in panels.items() if keys and name != "Score"}
    n_columns = min(len(panels), 3)
    n_rows = ceil(len(panels) / n_columns)
    figure = Figure(figsize=(4.6 * n_columns, 3.5 * n_rows), layout="constrained")
    figure.suptitle(title)
    all_axes = list(figure.subplots(n_rows, n_columns, sharex=True, squeeze=False).flat)
    runs = [run_path, *others]
    episodes = [read_episodes(run, frame_skip) for run in runs]
    steps, scores = episodes[0]
    if others and all(len(steps) > 0 for steps, _ in episodes):
        draw_mean(all_axes[0], mean_of(episodes, "training"))
    elif len(steps) > 0:
        window = max(len(steps) // 50, min(len(steps), 10))
        label = f"training, mean of {window} episodes"
        all_axes[0].scatter(steps, scores, s=3, alpha=0.25, linewidths=0, rasterized=True)
        all_axes[0].plot(*window_func(steps, scores, window, np.mean), label=label)
    evaluated = [run for run in runs if (run / EVALUATIONS).is_file()]
    if evaluated:
        draw_mean(all_axes[0], read_curve("evaluation", evaluated), marker="o")
    for axes, (name, keys) in zip(all_axes, panels.items(), strict=False):
        for key in keys:
            if others:
                draw_mean(axes, mean_of([log[key] for log in logs], key.rpartition("/")[2]))
            else:
                draw_curve(axes, curves[key], key)
        if "train/policy_lag" in keys:
            axes.set_ylim(0, max(1.0, axes.get_ylim()[1]))
        axes.set_title(name, fontsize="medium", pad=20)
        axes.set(xlim=(0, None), xlabel="Timesteps")
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.tick_params(labelbottom=True)
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[0]:  # no episode may have ended yet
            axes.legend(fontsize="small", ncols=3, frameon=False, loc="lower center", bbox_to_anchor=(0.5, 0.98))
    for axes in all_axes[len(panels) :]:
        axes.set_axis_off()
    return figure


def plot() -> None:
    """The command `sb3-dapo plot`."""
    text = "Draw how a run went, or goes: score, divergence, KL, ratios and reuse side by side. Where finished runs "
    text += "differ only in their seeds: means over them and 95 % intervals, unless --exp-id names one."
    parser = argparse.ArgumentParser(description=text)
    add_run_arguments(parser)
    parser.add_argument("-tb", "--tensorboard", help="folder with the run's event files (default: where it was logged)")
    parser.add_argument("-o", "--output", help="PNG file to write (default: panels.png in the folder of the run)")
    args = parser.parse_args()

    needed = TENSORBOARD_FILE if args.tensorboard is None else f"{args.env}"
    hint = "it says where the TensorBoard log is. Train without -tb '', or name the log's folder with -tb"
    run_path = find_run(Path(args.folder, args.algo), args.env, args.exp_id, needed, hint)
    tensorboard_path = Path(args.tensorboard or read_tensorboard_path(run_path))
    if not list(tensorboard_path.glob("*tfevents*")):
        raise ValueError(f"there are no event files of TensorBoard in {tensorboard_path}: name their folder with -tb")

    logging.getLogger("tensorboard").setLevel(logging.ERROR)  # it tells what it leaves out of a resumed run
    frame_skip = read_frame_skip(read_saved(run_path, args.env, "config"))
    others = [] if args.exp_id != 0 or args.tensorboard else runs_alike(run_path, args.env)
    title = f"{args.algo.upper()} on {args.env.gym_id} ({run_path})"
    if others:
        title = f"{args.algo.upper()} on {args.env.gym_id}: mean of {len(others) + 1} runs, 95 % interval"
        print(f"With {', '.join(map(str, others))}, the runs with the same settings")
    output = Path(args.output or run_path / "panels.png")
    figure = plot_run(run_path, tensorboard_path, title, frame_skip, others)
    figure.savefig(output, dpi=120, format="png")
    print(f"Saved {output}")


def runs_alike(run_path: Path, env: EnvironmentName) -> list[Path]:
    """Other finished runs with the settings of a finished run, which have TensorBoard logs."""
    groups = runs_by_settings(run_path.parent, env, TENSORBOARD_FILE)
    alike = next((group.runs for group in groups if run_path in group.runs), [])
    finished = [run for run in alike if (run / f"{env}.zip").is_file()]
    logged = [run for run in finished if any(Path(read_tensorboard_path(run)).glob("*tfevents*"))]
    return [run for run in logged if run != run_path] if run_path in logged else []
