"""RL Zoo's plots, for machines without a display too, and for scores that the Zoo cannot normalize."""

import argparse
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import rl_zoo3.plots
from matplotlib import pyplot as plt
from matplotlib.backend_bases import FigureManagerBase
from matplotlib.backends.registry import BackendFilter, backend_registry
from pandas import DataFrame, read_csv  # type: ignore[import-untyped]
from stable_baselines3.common import monitor

from sb3_dapo.cli import LOG_FOLDER
from sb3_dapo.zoo.cli import replaced, replaced_parser
from sb3_dapo.zoo.exp_manager import EPISODES_FILE
from sb3_dapo.zoo.parsers import Parser

FOLDER = Path(LOG_FOLDER, "plots")


def save_figures() -> None:
    """Write what would be shown in windows to PNG files, and close the figures, as closing the windows does."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    for number in plt.get_fignums():
        figure = plt.figure(number)
        name = str(figure.get_label()) or f"figure {number}"
        path = FOLDER / f"{name.replace(' ', '_').replace('/', '-')}.png"
        figure.savefig(path, dpi=150, bbox_inches="tight")
        print(f"Saved {path}")
    plt.close("all")


def set_label(manager: FigureManagerBase, title: str) -> None:
    """Keep the title of a figure's window, without which figures could not be told apart where there is none."""
    manager.canvas.figure.set_label(title.rpartition(" - ")[2])


class PlotParser(Parser):
    """Arguments of a command of the Zoo that plots, which gives its description as the name of the program."""

    def __init__(self, description: str) -> None:
        super().__init__(prog=sys.argv[0], description=description)

    def add_argument(self, *names: str, **kwargs: Any) -> argparse.Action:
        if {"-i", "-e"} & set(names):  # the Zoo fails without them
            kwargs["required"] = True
        return super().add_argument(*names, **kwargs)


def run(plot: Callable[[], None]) -> None:
    """Call a function of the Zoo that shows figures. Without a display they are written to PNG files."""
    has_windows = plt.get_backend() in backend_registry.list_builtin(BackendFilter.INTERACTIVE)
    show = plt.show if has_windows else save_figures
    with replaced_parser(import_module(plot.__module__), PlotParser), replaced(plt, show=show):
        with replaced(FigureManagerBase, set_window_title=set_label):  # windows have methods of their own
            plot()


def plot_train() -> None:
    """The Zoo's `plot_train`, with each step of a resumed run once."""
    with replaced(import_module("rl_zoo3.plots.plot_train"), load_results=load_results):
        run(rl_zoo3.plots.plot_train)


def load_results(folder: str) -> DataFrame:
    """What `Monitor` wrote about a run's episodes, by time, without those that a resumed run played again."""
    results = monitor.load_results(folder)
    log = Path(folder, EPISODES_FILE)
    parts: dict[int, list[int]] = {}  # steps that the next part of the run began with, and number of episodes
    for path in Path(folder).glob("before_*.monitor.csv"):
        _, number, _, _, steps, *_ = path.name.split("_")
        parts.setdefault(int(number), [int(steps), 0])[1] += len(read_csv(path, skiprows=1))
    if not parts or not log.is_file():
        return results
    timesteps, rows, n_read = read_csv(log)["timesteps"], list[int](), 0
    for _, (next_start, n_episodes) in sorted(parts.items()):
        rows += range(n_read, n_read + n_episodes)
        n_read += n_episodes
        del rows[(timesteps <= next_start).sum() :]
    return results.iloc[[*rows, *range(n_read, len(results))]].reset_index(drop=True)


def all_plots() -> None:
    """The Zoo's `all_plots`."""
    run(rl_zoo3.plots.all_plots)


def plot_from_file() -> None:
    """The Zoo's `plot_from_file`."""
    try:
        run(rl_zoo3.plots.plot_from_file)
    except (IndexError, KeyError, ValueError) as error:  # it does not say what it lacks
        needed = "at least two runs of each algorithm in each environment that is not skipped"
        raise ValueError(f"-i must hold {needed} ({error}). 'sb3-dapo compare' draws what there is") from error
