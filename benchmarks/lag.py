"""
Does it hurt learning that actors act with old policies, and does the divergence help there? Two MinAtar games.

    python benchmarks/lag.py                   # trains what is missing in results/lag.csv
    python benchmarks/lag.py --seeds 2 --lags 0 16 --algos vtrace dapo
    python benchmarks/lag.py --report          # only lag.md and the figure, from the CSV file

An actor in this process collects every rollout with the parameters of so many updates ago. All algorithms have the
suite's setting for V-trace, found by tuning without lag, and use every transition equally often.
"""

import argparse
import io
from collections import defaultdict, deque
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecEnvWrapper
from store import Row, half_width, read_csv, seed_means, train_missing, write_table
from suites import hyperparameters

from sb3_dapo import DAPO
from sb3_dapo.buffers import Rollout
from sb3_dapo.distributed.actor import Actor, Beginning, Publication
from sb3_dapo.minatar import MinAtarCnn
from sb3_dapo.presets import parse_schedule
from sb3_dapo.zoo import register

RESULTS = Path(__file__).parent / "results" / "lag.csv"
FIGURE = Path(__file__).parents[1] / "docs" / "figures" / "lag.svg"
COLUMNS = ["game", "algo", "lag", "seed", "timesteps", "score", "measured_lag", "kl", "clip_fraction"]
GAMES = ("Breakout", "Asterix")
LAGS = (0, 1, 4, 16)
# By name what it is in the suites, its label and its colour
ALGOS = {
    "vtrace": ("vtrace", "V-trace, no divergence", "#31a354"),
    "dapo_1step": ("dapo_1step", "DAPO, 1-step", "#fd8d3c"),
    "dapo": ("dapo_1step+divergence_steps=null", "DAPO, multi-step", "#d62728"),
    "plain_vtrace": ("dapo_plain+divergence_coef=0.0", "V-trace, no clip, no divergence", "#74c476"),
    "plain_1step": ("dapo_plain+divergence_steps=0", "eq. 7, 1-step", "#df65b0"),
    "plain": ("dapo_plain", "eq. 7, multi-step", "#756bb1"),
}
TIMESTEPS, MARKS = 150_000, (30_000, 60_000, 90_000, 120_000, 150_000)
N_LAST = 2  # evaluations that the table is of
N_GAMES = 20


class LaggingEnv(VecEnvWrapper):
    """
    A source of rollouts that an actor in this process collects with the parameters of an earlier update.

    :param actor: whose environments are used
    :param lag: updates that its policy is behind; the first policy acts for as many updates
    """

    def __init__(self, actor: Actor, lag: int) -> None:
        super().__init__(actor.env)
        self.actor, self.n_sources = actor, 1
        self.published: deque[bytes] = deque(maxlen=lag + 1)
        self.lags: list[int] = []

    def rollouts_for(self, model: DAPO) -> Iterator[Rollout]:
        """
        :param model: the learner
        :return: one rollout
        """
        file = io.BytesIO()
        if self.actor.model is None:
            model.save(file)
        self.published.append(Publication.of(model, model._policy_version))
        saved = (type(model), file.getvalue()) if self.actor.model is None else None
        rollout = self.actor.collect(self.published[0], None, None, saved).rollout
        self.lags.append(model._policy_version - rollout.version)
        yield rollout

    def reset(self) -> Any:
        return self.actor.reset(Beginning(is_counted=True))[0]

    def step_wait(self) -> Any:
        raise NotImplementedError("only the actor steps these environments")


class Evaluation(BaseCallback):
    """
    Evaluates the policy between updates, and notes the means of what was measured since it did so last.

    :param env: for evaluations
    :param marks: timesteps of the evaluations
    """

    def __init__(self, env: Any, marks: Sequence[int]) -> None:
        super().__init__()
        self.env, self.marks = env, marks
        self.measured: dict[str, list[float]] = defaultdict(list)
        self.rows: list[Row] = []

    def measure(self) -> None:
        """Add to what is measured, after an update."""

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        if "train/behavior_kl" in self.logger.name_to_value:
            self.measured["kl"].append(self.logger.name_to_value["train/behavior_kl"])
            self.measure()
        if len(self.rows) < len(self.marks) and self.num_timesteps >= self.marks[len(self.rows)]:
            score, _ = evaluate_policy(self.model, self.env, N_GAMES, deterministic=False, warn=False)
            means = {name: np.nanmean(values) for name, values in self.measured.items()}
            cells = {name: f"{value:.5g}" for name, value in {"score": score, **means}.items()}
            self.rows.append({"timesteps": self.marks[len(self.rows)], **cells})
            self.measured.clear()

    _on_training_end = _on_rollout_start


class LagEvaluation(Evaluation):
    """
    The same with the lags of rollouts, and the share of ratios that are clipped.

    :param lags: of the rollouts so far
    """

    def __init__(self, env: Any, marks: Sequence[int], lags: list[int]) -> None:
        super().__init__(env, marks)
        self.lags = lags

    def measure(self) -> None:
        self.measured["clip_fraction"].append(self.logger.name_to_value["train/clip_fraction"])
        self.measured["measured_lag"] += self.lags
        self.lags.clear()


def make_env(game: str, seed: int) -> Any:
    """:return: the suite's environments"""
    return make_vec_env(f"MinAtar/{game}-v1", 8, seed=seed)


def settings_of(game: str, algo: str) -> dict[str, Any]:
    """:return: the suite's arguments of DAPO"""
    settings = hyperparameters("minatar", "scarce", f"MinAtar/{game}-v1", algo)
    settings = {name: value for name, value in settings.items() if name not in ("n_timesteps", "n_envs")}
    settings["policy_kwargs"] = {"features_extractor_class": MinAtarCnn, "net_arch": []}
    return settings | {"learning_rate": parse_schedule("learning_rate", settings["learning_rate"])}


def train(game: str, algo: str, lag: int, seed: int) -> list[Row]:
    """
    :param game: one of ``GAMES``
    :param algo: key of ``ALGOS``
    :param lag: in updates
    :param seed: of the run
    :return: a row per evaluation: the mean return of whole games of a policy that draws its actions
    """
    actor = Actor(lambda seed: make_env(game, seed), 1, (), 0, np.random.SeedSequence([seed, 0, 0]))
    env = LaggingEnv(actor, lag)
    evaluation = LagEvaluation(make_env(game, 1000), MARKS, env.lags)
    model = DAPO(env=env, seed=seed, device="cpu", **settings_of(game, ALGOS[algo][0]))
    # No log: that would clear the values which the evaluation reads
    model.learn(TIMESTEPS, evaluation, log_interval=TIMESTEPS)
    return evaluation.rows


def is_last(row: Row) -> bool:
    """:return: whether a row is the last of its run"""
    return int(row["timesteps"]) == TIMESTEPS


def last_means(rows: Sequence[Row], name: str) -> dict[tuple[str, str, int], np.ndarray]:
    """:return: by game, algorithm and lag the mean of each seed's last evaluations, in the order of the seeds"""
    last = [row for row in rows if int(row["timesteps"]) in MARKS[-N_LAST:]]
    means = seed_means(last, ("game", "algo", "lag"), name)
    return {(game, algo, int(lag)): values for (game, algo, lag), values in means.items()}


def table(rows: Sequence[Row]) -> str:
    """
    :param rows: of all runs
    :return: scores by lag with 95 % intervals, and the KL divergence of the policy from those that acted, as Markdown
    """
    scores, kls, lags = (last_means(rows, name) for name in ("score", "kl", "measured_lag"))
    lines = ["| game | lag, in updates | measured | algorithm | seeds | score | KL |", "|---|--:|--:|---|--:|--:|--:|"]
    for game in GAMES:
        for lag in LAGS:
            for algo, (_, label, _) in ALGOS.items():
                key = game, algo, lag
                if key in scores:
                    mean, half = scores[key].mean(), half_width(scores[key])
                    cells = [game, str(lag), f"{lags[key].mean():.1f}", label, str(len(scores[key]))]
                    lines.append(f"| {' | '.join(cells)} | {mean:.2f} ± {half:.2f} | {kls[key].mean():.4f} |")
    return "\n".join(lines)


def draw(rows: Sequence[Row]) -> None:
    """Draw the scores of each game, and the KL divergence under them, by lag."""
    import matplotlib as mpl
    from matplotlib import pyplot as plt

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "lag"
    figure, axes = plt.subplots(2, len(GAMES), figsize=(6.4, 5), sharex=True, facecolor="white", squeeze=False)
    for axis_row, name, label in zip(axes, ("score", "kl"), ("score", "KL from those that acted"), strict=True):
        means = last_means(rows, name)
        for axis, game in zip(axis_row, GAMES, strict=True):
            for number, (algo, (_, text, color)) in enumerate(ALGOS.items()):
                lags = [lag for lag in LAGS if (game, algo, lag) in means]
                values = [means[game, algo, lag] for lag in lags]
                places = np.array([LAGS.index(lag) for lag in lags]) + 0.05 * (number % 3 - 1)
                halves = [half_width(x) for x in values]
                line = [x.mean() for x in values]
                if lags:
                    axis.errorbar(places, line, halves, color=color, label=text, marker="o", markersize=3, capsize=2)
            axis.grid(alpha=0.2)
            axis.spines[["top", "right"]].set_visible(False)
        axis_row[0].set_ylabel(label)
    for game, axis, below in zip(GAMES, *axes, strict=True):
        axis.set_title(game, fontsize=10)
        below.set_ylim(bottom=0)
        below.set_xticks(range(len(LAGS)), [str(lag) for lag in LAGS])
        below.set_xlabel("lag, in updates")
    axes[0, 0].legend(frameon=False, fontsize=7)
    figure.tight_layout()
    figure.savefig(FIGURE, metadata={"Date": None})


def main() -> None:
    """Train, write the scores, the table and the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, help="seeds 1 to N (default: 5)")
    parser.add_argument("--games", nargs="+", choices=GAMES, default=GAMES)
    parser.add_argument("--lags", nargs="+", type=int, choices=LAGS, default=LAGS)
    parser.add_argument("--algos", nargs="+", choices=list(ALGOS), default=list(ALGOS)[:3])
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--report", action="store_true", help="only write the table and the figure")
    args = parser.parse_args()
    th.set_num_threads(1)
    register()

    if not args.report:
        cases = product(range(1, args.seeds + 1), args.games, args.lags, args.algos)
        runs = [{"game": game, "algo": algo, "lag": lag, "seed": seed} for seed, game, lag, algo in cases]
        for row in train_missing(args.output, COLUMNS, runs, train, is_last):
            if is_last(row):
                run = f"{row['game']:9} lag {row['lag']:>2} {row['algo']:12} seed {row['seed']}"
                print(f"{run}  {float(row['score']):6.2f}  KL {float(row['kl']):.4f}", flush=True)
    write_table(args.output, table)
    draw(read_csv(args.output))


if __name__ == "__main__":
    main()
