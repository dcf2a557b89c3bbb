"""RL Zoo's plots, for machines without a display too, and for scores that the Zoo cannot normalize."""

import argparse
import glob
import pickle
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from importlib import import_module
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import rl_zoo3.plots
from huggingface_sb3 import EnvironmentName
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.backend_bases import FigureManagerBase
from matplotlib.backends.registry import BackendFilter, backend_registry
from matplotlib.text import Text
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


class AllPlotsParser(PlotParser):
    """Arguments of the Zoo's `all_plots`. Says which runs they choose, and refuses environments that have none."""

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        parsed = super().parse_args(args, namespace)
        parsed.env = [EnvironmentName(env) for env in parsed.env]  # as folders are named
        folders = [Path(folder, algo.lower()) for algo in parsed.algos for folder in parsed.exp_folders]
        for env in parsed.env:
            n_used = [tell_runs(folder, env, parsed.min_timesteps, parsed.max_timesteps) for folder in folders]
            if not any(n_used):
                searched = ", ".join(map(str, folders))
                raise ValueError(f"there is no run of {env} with two or more evaluations (--eval-freq) in {searched}")
        return parsed


def tell_runs(folder: Path, env: str, min_timesteps: int, max_timesteps: int) -> int:
    """
    Print which of an algorithm's runs the Zoo uses, and why it drops the others, of which it says nothing; returns how
    many it uses. Those with fewer than `min_timesteps` do not decide how many evaluations are used, unless it is
    negative. Refuses runs that the Zoo cannot use together.
    """
    dropped: dict[str, str] = {}
    logs: dict[str, Any] = {}
    for path in sorted(folder.glob(f"*{glob.escape(env)}*")):
        file = path / "evaluations.npz"
        log: Any = np.load(file) if file.is_file() else {"timesteps": ()}
        if len(log["timesteps"]) > 1:
            logs[path.name] = log
        elif path.is_dir():
            dropped[path.name] = "one evaluation only" if len(log["timesteps"]) == 1 else "no evaluations"
    evaluated: dict[str, npt.NDArray[np.int64]] = {name: log["timesteps"] for name, log in logs.items()}
    complete = [steps for steps in evaluated.values() if 0 < min_timesteps <= steps[-1]]
    measure = min(complete, key=len) if complete else max(evaluated.values(), key=len, default=np.zeros(0))
    n_needed = int((measure <= max_timesteps).sum())
    for name, steps in evaluated.items():
        if len(steps) < n_needed:
            dropped[name] = f"{len(steps)} evaluations, to step {steps[-1]:,}, where {n_needed} are needed"
    n_episodes = {name: log["results"].shape[1] for name, log in logs.items() if name not in dropped}
    print(f"{folder}, {env}: using {', '.join(n_episodes) or 'no runs'}")
    for name, reason in dropped.items():
        print(f"{folder}, {env}: dropping {name}, which has {reason}")
    if len({*n_episodes.values()}) > 1 or list(n_episodes.values()) == [1]:
        counts = ", ".join(f"{name} has {number}" for name, number in n_episodes.items())
        needed = "runs must have the same number of episodes in evaluations (--eval-episodes), a single run two or more"
        raise ValueError(f"{needed}, but {counts}: move some out of {folder}")
    return len(n_episodes)


class PlotFromFileParser(PlotParser):
    """Arguments of the Zoo's `plot_from_file`. Refuses results that it would fail on, and a choice of none."""

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        parsed = super().parse_args(args, namespace)
        path = Path(parsed.input if parsed.input.endswith(".pkl") else f"{parsed.input}.pkl")
        if not path.is_file():
            raise ValueError(f"-i must be a file that all-plots has saved with -o, there is no {path}")
        results = pickle.loads(path.read_bytes())
        del results["results_table"]
        for file in parsed.merge:
            for env, others in pickle.loads(Path(file).read_bytes()).items():
                results.get(env, {}).update(others)
        first: dict[str, Any] = next(iter(results.values()), {})
        keys = [key for key in first if key not in parsed.skip_keys and key in (parsed.keep_keys or first)]
        envs = [env for env in results if env not in parsed.skip_envs and env in (parsed.keep_envs or results)]
        if not keys or not envs:
            raise ValueError(f"nothing is left to draw of {', '.join(results)} with {', '.join(first) or 'no results'}")
        if parsed.labels is not None and len(parsed.labels) != len(keys):
            raise ValueError(f"-l must be {len(keys)} labels, one each for {', '.join(keys)}, got {len(parsed.labels)}")
        for key, env in product(keys, envs):
            if key not in results[env]:
                raise ValueError(f"there are no results of {key} on {env}: --skip-keys and --skip-envs leave some out")
            if np.ndim(results[env][key]["last_evals"]) == 0:
                found = f"{key} has one run on {env}, or one episode in each evaluation: two are needed at least"
                hint = "Train with other seeds (--seed) or more episodes (--eval-episodes), or leave it out"
                raise ValueError(f"{found}. {hint} (--skip-keys)")
        return parsed


def run(plot: Callable[[], None], parser: type[PlotParser] = PlotParser) -> None:
    """Call a function of the Zoo that shows figures. Without a display they are written to PNG files."""
    with ExitStack() as stack:
        stack.enter_context(replaced_parser(import_module(plot.__module__), parser))
        if plt.get_backend() not in backend_registry.list_builtin(BackendFilter.INTERACTIVE):
            stack.enter_context(replaced(plt, show=save_figures))
            stack.enter_context(replaced(FigureManagerBase, set_window_title=set_label))
        if plot is rl_zoo3.plots.plot_from_file:
            stack.enter_context(true_figures())
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
    timesteps, kept, n_before = read_csv(log)["timesteps"], np.zeros(0, dtype=bool), 0
    for part in sorted(parts):
        # A later part may have begun before this one did
        start = min(steps for later, (steps, _) in parts.items() if later >= part)
        n_until = int((timesteps <= start).sum())
        kept = np.append(kept, np.arange(parts[part][1]) < n_until - n_before)
        n_before = n_until
    return results[np.append(kept, np.ones(len(results) - len(kept), dtype=bool))].reset_index(drop=True)


def all_plots() -> None:
    """The Zoo's `all_plots`."""
    run(rl_zoo3.plots.all_plots, AllPlotsParser)


def plot_from_file() -> None:
    """The Zoo's `plot_from_file`, with what its figures say made true."""
    run(rl_zoo3.plots.plot_from_file, PlotFromFileParser)


@contextmanager
def true_figures() -> Iterator[None]:
    """
    Context in which the Zoo draws scores as they are. It has reference scores for a few environments only, but calls
    all scores normalized, looks for all between 0 and 1.5, and for what each lacks of 1.
    """
    zoo = import_module("rl_zoo3.plots.plot_from_file")
    title, show, normalize_score = plt.title, plt.show, zoo.normalize_score
    normalized: list[str] = []  # environments with reference scores, which the Zoo asks for before it draws

    def normalize(scores: Any, env_id: str) -> Any:
        normalized.append(env_id)
        return normalize_score(scores, env_id)

    def true_title(label: str, **kwargs: Any) -> Any:
        return title("Last evaluation" if label == "PyBullet envs" else label, **kwargs)  # the Zoo says so of all

    def true_show() -> None:
        for figure in map(plt.figure, plt.get_fignums()):
            figure.set_figheight(max(figure.get_figheight(), 3))  # otherwise the label of two bars lies on the ticks
            for artist in [] if normalized else figure.findobj():
                if isinstance(artist, Text):
                    artist.set_text(artist.get_text().replace("Normalized Score", "Score"))
                elif isinstance(artist, Axes) and artist.get_title() == "Optimality Gap":
                    artist.remove()
        show()

    def create_performance_profile(scores: dict[str, Any], thresholds: npt.NDArray[Any], **kwargs: Any) -> Any:
        if not normalized:
            values = np.concatenate([np.ravel(score) for score in scores.values()])  # (n_algos * n_runs * n_envs,)
            margin = 0.05 * (np.ptp(values) or 1.0)
            # In place, as the Zoo draws over them
            thresholds[:] = np.linspace(values.min() - margin, values.max() + margin, len(thresholds))
        return create_profile(scores, thresholds, **kwargs)

    with ExitStack() as stack:
        stack.enter_context(replaced(plt, title=true_title, show=true_show))
        stack.enter_context(replaced(zoo, normalize_score=normalize))
        if zoo.rly is not None:  # otherwise rliable is not installed, of which the Zoo tells
            create_profile = zoo.rly.create_performance_profile
            stack.enter_context(replaced(zoo.rly, create_performance_profile=create_performance_profile))
        stack.enter_context(warnings.catch_warnings())
        # It asks to change the Zoo's source
        warnings.filterwarnings("ignore", message=".* not found for normalizing scores")
        yield
