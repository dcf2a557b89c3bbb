"""RL Zoo's plots, for machines without a display too, and for scores that the Zoo cannot normalize."""

import argparse
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import rl_zoo3.plots
from matplotlib import pyplot as plt
from matplotlib.backend_bases import FigureManagerBase
from matplotlib.backends.registry import BackendFilter, backend_registry

from sb3_dapo.zoo.cli import LOG_FOLDER, replaced_parser
from sb3_dapo.zoo.parsers import Parser

FOLDER = Path(LOG_FOLDER, "plots")
N_THRESHOLDS = 200


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
    """
    :param manager: of a figure that has no window
    :param title: title of its window, without which figures could not be told apart
    """
    manager.canvas.figure.set_label(title.rpartition(" - ")[2])


class PlotParser(Parser):
    """
    Arguments of a command of the Zoo that plots.

    :param description: what the Zoo gives as the name of the program
    """

    def __init__(self, description: str) -> None:
        super().__init__(prog=sys.argv[0], description=description)

    def add_argument(self, *names: str, **kwargs: Any) -> argparse.Action:
        if {"-i", "-e"} & set(names):  # the Zoo fails without them
            kwargs["required"] = True
        return super().add_argument(*names, **kwargs)


def run(plot: Callable[[], None]) -> None:
    """
    Where there is no display, what would be shown in windows is written to PNG files.

    :param plot: a function of the Zoo that parses `sys.argv` and shows figures
    """
    with replaced_parser(plot, PlotParser):
        if plt.get_backend() in backend_registry.list_builtin(BackendFilter.INTERACTIVE):
            plot()
        else:
            with (
                mock.patch.object(plt, "show", save_figures),
                mock.patch.object(FigureManagerBase, "set_window_title", set_label),
            ):
                plot()


def plot_train() -> None:
    """The Zoo's `plot_train`."""
    run(rl_zoo3.plots.plot_train)


def all_plots() -> None:
    """The Zoo's `all_plots`."""
    run(rl_zoo3.plots.all_plots)


def plot_from_file() -> None:
    """The Zoo's `plot_from_file`, with what its figures say made true."""
    title = plt.title

    def true_title(label: str, **kwargs: Any) -> Any:
        # The Zoo says so of all environments
        return title("Last evaluation" if label == "PyBullet envs" else label, **kwargs)

    with mock.patch.object(plt, "title", true_title), raw_scores():
        run(rl_zoo3.plots.plot_from_file)


@contextmanager
def raw_scores() -> Iterator[None]:
    """
    Context in which the Zoo draws rliable's figures of scores as they are. It has reference scores for a few
    environments only, but calls all scores normalized, looks for all between 0 and 1.5, and for what each lacks of 1.
    """
    zoo = import_module("rl_zoo3.plots.plot_from_file")
    if zoo.rly is None:  # rliable is not installed, of which the Zoo tells
        yield
        return
    library, figures = zoo.rly, zoo.plot_utils
    normalize_score = mock.Mock(wraps=zoo.normalize_score)  # the Zoo calls it before it draws, if at all
    thresholds: list[float] = []

    def label(text: str) -> str:
        return text if normalize_score.called else text.replace("Normalized Score", "Score")

    def create_performance_profile(scores: dict[str, Any], tau: Any, **kwargs: Any) -> Any:
        if not normalize_score.called:
            values = np.concatenate([np.ravel(score) for score in scores.values()])  # (n_algos * n_runs * n_envs,)
            margin = 0.05 * (np.ptp(values) or 1.0)
            tau = np.linspace(values.min() - margin, values.max() + margin, N_THRESHOLDS)
        thresholds[:] = tau
        return library.create_performance_profile(scores, tau, **kwargs)

    def plot_interval_estimates(scores: Any, intervals: Any, metric_names: list[str], **kwargs: Any) -> Any:
        if not normalize_score.called:
            metric_names = [name for name in metric_names if name != "Optimality Gap"]  # the last one
        kwargs["xlabel"] = label(kwargs["xlabel"])
        # Otherwise the label lies on the ticks
        kwargs["row_height"] = max(kwargs["row_height"], 3 / len(scores))
        n = len(metric_names)
        return figures.plot_interval_estimates(
            {algo: score[:n] for algo, score in scores.items()},
            {algo: interval[:, :n] for algo, interval in intervals.items()},
            metric_names,
            **kwargs,
        )

    def plot_performance_profiles(profiles: Any, tau: Any, **kwargs: Any) -> Any:
        return figures.plot_performance_profiles(profiles, thresholds, **{**kwargs, "xlabel": label(kwargs["xlabel"])})

    def plot_sample_efficiency_curve(*args: Any, **kwargs: Any) -> Any:
        return figures.plot_sample_efficiency_curve(*args, **{**kwargs, "ylabel": label(kwargs["ylabel"])})

    replaced_library = SimpleNamespace(**{**vars(library), "create_performance_profile": create_performance_profile})
    replaced_figures = SimpleNamespace(
        **{
            **vars(figures),
            "plot_interval_estimates": plot_interval_estimates,
            "plot_performance_profiles": plot_performance_profiles,
            "plot_sample_efficiency_curve": plot_sample_efficiency_curve,
        }
    )
    with (
        mock.patch.multiple(zoo, normalize_score=normalize_score, rly=replaced_library, plot_utils=replaced_figures),
        warnings.catch_warnings(),
    ):
        # It asks to change the Zoo's source
        warnings.filterwarnings("ignore", message=".* not found for normalizing scores")
        yield
