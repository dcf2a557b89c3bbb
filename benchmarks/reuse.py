"""
What ends reuse? With 16 uses of each transition less is learned than with 8. Suspects, one at a time, on MinAtar.

    python benchmarks/reuse.py            # trains what is missing in results/reuse.csv
    python benchmarks/reuse.py --seeds 2 --suspects "16 uses" "layer normalization"
    python benchmarks/reuse.py --report   # only reuse.md and the figure, from the CSV file

Every run has the recipe for scarce data, as tuned for 8 uses, and one change. Measured beside the score: how well the
values explain the returns of a rollout before and after the update on it, how far the policy is from those that acted,
the effective rank of the features, and how many units are dead.
"""

import argparse
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import torch as th
from gymnasium import spaces
from lag import Evaluation, make_env, settings_of
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.utils import explained_variance
from store import Row, half_width, read_csv, seed_means, train_missing, write_table
from suites import normalize

from sb3_dapo import DAPO
from sb3_dapo.loss import LossSettings
from sb3_dapo.minatar import MinAtarCnn
from sb3_dapo.presets import parse_schedule
from sb3_dapo.zoo import register

RESULTS = Path(__file__).parent / "results" / "reuse.csv"
FIGURE = Path(__file__).parents[1] / "docs" / "figures" / "reuse.svg"
MEASURES = ("score", "kl", "explained_new", "explained_kept", "rank", "dead")
COLUMNS = ["game", "suspect", "seed", "timesteps", *MEASURES]
GAMES = ("Breakout", "Asterix", "Seaquest")
TIMESTEPS = 300_000
MARKS = tuple(TIMESTEPS * n // 10 for n in range(1, 11))
N_LAST = 2  # evaluations that the scores of the table are of


class NormalizedCnn(BaseFeaturesExtractor):
    """MinAtar's network with a normalization after each layer, before ReLU."""

    def __init__(self, observation_space: spaces.Box) -> None:
        super().__init__(observation_space, 128)
        cnn = MinAtarCnn(observation_space)
        shape = (16, *(size - 2 for size in observation_space.shape[:2]))
        layers = (cnn.conv, th.nn.LayerNorm(shape), th.nn.ReLU(), th.nn.Flatten())
        self.layers = th.nn.Sequential(*layers, cnn.linear, th.nn.LayerNorm(128), th.nn.ReLU())

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return self.layers(observations.permute(0, 3, 1, 2))


class Suspected(DAPO):
    """
    DAPO with changes that it has no arguments for.

    :param value_epochs: epochs of an update in which the value function is trained, None for all
    :param forgets: whether Adam's averages begin anew with every update
    """

    def __init__(self, *args: Any, value_epochs: int | None = None, forgets: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.value_epochs, self.forgets = value_epochs, forgets

    def train(self) -> None:
        self.epoch = 0
        if self.forgets:
            self.policy.optimizer.state.clear()
        super().train()

    def _visit_all(self, parameters: list[th.nn.Parameter], settings: LossSettings) -> Any:
        if self.value_epochs is not None and self.epoch >= self.value_epochs:
            settings = settings._replace(vf_coef=0.0)
        self.epoch += 1
        return super()._visit_all(parameters, settings)


class Suspect(NamedTuple):
    """Changes of a run: arguments of DAPO, of its policy, and uses of each transition."""

    settings: Mapping[str, Any] = MappingProxyType({})
    policy_kwargs: Mapping[str, Any] = MappingProxyType({})
    uses: int = 16


ADAM_EPS = 1e-5  # of SB3's policies
SUSPECTS = {
    "8 uses": Suspect(uses=8),
    "16 uses": Suspect(),
    "KL target 0.04": Suspect({"divergence_coef": "dual_0.04"}),
    "KL target 0.02": Suspect({"divergence_coef": "dual_0.02"}),
    "exact targets": Suspect({"exact_targets": True}),
    "values: network of their own": Suspect(policy_kwargs={"share_features_extractor": False}),
    "values: 8 uses only": Suspect({"value_epochs": 4}),
    "values: clipped": Suspect({"clip_range_vf": 0.2}),
    "layer normalization": Suspect(policy_kwargs={"features_extractor_class": NormalizedCnn}),
    "weight decay 0.01": Suspect(
        policy_kwargs={
            "optimizer_class": th.optim.AdamW,
            "optimizer_kwargs": {"eps": ADAM_EPS, "weight_decay": 0.01},
        }
    ),
    "Adam forgets": Suspect({"forgets": True}),
    "Adam, betas 0.9, 0.99": Suspect(policy_kwargs={"optimizer_kwargs": {"eps": ADAM_EPS, "betas": (0.9, 0.99)}}),
    "entropy bonus x 4": Suspect({"ent_coef": 0.02}),
    "minibatches of 1,024": Suspect({"batch_size": 1024}),
    # What these two bring together, and with fewer uses
    "Adam forgets, minibatches of 1,024": Suspect({"forgets": True, "batch_size": 1024}),
    "8 uses, Adam forgets": Suspect({"forgets": True}, uses=8),
    "8 uses, minibatches of 1,024": Suspect({"batch_size": 1024}, uses=8),
}


class Inspection(Evaluation):
    """Looks at values and features too, before and after each update."""

    def _on_rollout_end(self) -> None:
        buffer = self.model.rollout_buffer  # type: ignore[attr-defined]
        self.returns = buffer.returns.flatten()
        self.measured["explained_new"].append(explained_variance(buffer.values.flatten(), self.returns))
        self.observations = buffer.observations.reshape(-1, *buffer.observations.shape[2:]).copy()

    @th.no_grad()
    def measure(self) -> None:
        policy: Any = self.model.policy
        observations = th.as_tensor(self.observations)
        values = policy.predict_values(observations).flatten().numpy()
        self.measured["explained_kept"].append(explained_variance(values, self.returns))
        features = policy.extract_features(observations)
        features = features if isinstance(features, th.Tensor) else features[0]
        self.measured["dead"].append((features <= 0).all(dim=0).float().mean().item())
        # Kumar et al. 2021: singular values that make up 99 % of their sum
        sums = th.linalg.svdvals(features).cumsum(0)
        self.measured["rank"].append(int((sums < 0.99 * sums[-1]).sum()) + 1)


def train(game: str, suspect: str, seed: int) -> list[Row]:
    """
    :param game: one of ``GAMES``
    :param suspect: key of ``SUSPECTS``
    :param seed: of the run
    :return: a row per evaluation: the mean return of whole games of a policy that draws its actions
    """
    change = SUSPECTS[suspect]
    settings = settings_of(game, "dapo_gae") | dict(change.settings)
    settings["n_epochs"] = change.uses // settings["n_rollouts"]
    settings["policy_kwargs"] |= change.policy_kwargs
    if isinstance(settings["divergence_coef"], str):
        settings["divergence_coef"] = parse_schedule("divergence_coef", settings["divergence_coef"])
    inspection = Inspection(make_env(game, 1000), MARKS)
    # No log: that would clear the values which are read here
    model = Suspected(env=make_env(game, seed), seed=seed, device="cpu", **settings)
    model.learn(TIMESTEPS, inspection, log_interval=TIMESTEPS)
    return inspection.rows


def is_last(row: Row) -> bool:
    """:return: whether a row is the last of its run"""
    return int(row["timesteps"]) == TIMESTEPS


def means_of(rows: Sequence[Row], name: str) -> dict[tuple[str, ...], np.ndarray]:
    """:return: by game and suspect the mean of each seed's last scores, or of all its other numbers"""
    shown = [row for row in rows if name != "score" or int(row["timesteps"]) in MARKS[-N_LAST:]]
    return seed_means(shown, ("game", "suspect"), name)


def normalized(scores: dict[tuple[str, ...], np.ndarray], suspect: str) -> np.ndarray:
    """:return: normalized scores of a suspect, averaged over games, for as many seeds as all games have"""
    n_seeds = min(len(scores.get((game, suspect), ())) for game in GAMES)
    parts = [
        [normalize("minatar", f"MinAtar/{game}-v1", score) for score in scores[game, suspect][:n_seeds]]
        for game in GAMES
        if n_seeds
    ]
    return np.mean(parts, axis=0) if parts else np.array([])


def table(rows: Sequence[Row]) -> str:
    """
    :param rows: of all runs
    :return: scores of the games, their normalized mean with its 95 % interval, and what else was measured, as Markdown
    """
    means = {name: means_of(rows, name) for name in MEASURES}
    heads = [*GAMES, "normalized", "seeds", "KL", "explained, before", "after", "rank", "dead"]
    lines = [f"| with 16 uses | {' | '.join(heads)} |", f"|---|{'--:|' * len(heads)}"]
    for suspect in SUSPECTS:
        overall = normalized(means["score"], suspect)
        if len(overall):
            scores = [f"{means['score'][game, suspect].mean():.1f}" for game in GAMES]
            spread = f" ± {half_width(overall):.2f}" if len(overall) > 2 else ""  # of two it says nothing
            measured = [np.mean([means[name][game, suspect].mean() for game in GAMES]) for name in MEASURES[1:]]
            formats = zip(measured, (".3f", ".2f", ".2f", ".0f", ".0%"), strict=True)
            cells = [*scores, f"{overall.mean():.2f}{spread}", str(len(overall)), *(f"{x:{how}}" for x, how in formats)]
            lines.append(f"| {suspect} | {' | '.join(cells)} |")
    return "\n".join(lines)


def draw(rows: Sequence[Row]) -> None:
    """Draw the normalized score of each suspect beside the explained variance before and after updates."""
    import matplotlib as mpl
    from matplotlib import pyplot as plt

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "reuse"
    scores = means_of(rows, "score")
    named = [(name, values) for name in SUSPECTS if len(values := normalized(scores, name))][::-1]
    figure, (left, right) = plt.subplots(1, 2, figsize=(7.4, 0.6 + 0.28 * len(named)), sharey=True, facecolor="white")
    places = np.arange(len(named))
    for place, (name, values) in zip(places, named, strict=True):
        color = "#636363" if name in ("8 uses", "16 uses") else "#980043"
        left.plot(values, np.full(len(values), place), "o", color=color, alpha=0.4, markersize=4)
        left.plot(values.mean(), place, "|", color=color, markersize=14, markeredgewidth=2)
    for name, label, marker in (("explained_new", "before the update", "o"), ("explained_kept", "after it", "s")):
        means = means_of(rows, name)
        shares = [np.mean([means[game, suspect].mean() for game in GAMES]) for suspect, _ in named]
        right.plot(shares, places, marker, label=label, markersize=4)
    left.axvline(dict(named)["16 uses"].mean() if "16 uses" in dict(named) else 0, color="#bdbdbd", linewidth=1)
    left.set_yticks(places, [name for name, _ in named])
    left.set_xlabel("score, mean of three games")
    right.set_xlabel("variance explained")
    right.legend(frameon=False, fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
    for axis in (left, right):
        axis.grid(alpha=0.2)
        axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(FIGURE, metadata={"Date": None})


def main() -> None:
    """Train, write the scores, the table and the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, help="seeds 1 to N (default: 5)")
    parser.add_argument("--games", nargs="+", choices=GAMES, default=GAMES)
    parser.add_argument("--suspects", nargs="+", choices=list(SUSPECTS), default=list(SUSPECTS))
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--report", action="store_true", help="only write the table and the figure")
    args = parser.parse_args()
    th.set_num_threads(1)
    register()

    if not args.report:
        cases = product(range(1, args.seeds + 1), args.suspects, args.games)
        runs = [{"game": game, "suspect": suspect, "seed": seed} for seed, suspect, game in cases]
        for row in train_missing(args.output, COLUMNS, runs, train, is_last):
            if is_last(row):
                run = f"{row['game']:9} {row['suspect']:34} seed {row['seed']}"
                print(f"{run}  {float(row['score']):6.2f}  KL {float(row['kl']):.4f}", flush=True)
    write_table(args.output, table)
    draw(read_csv(args.output))


if __name__ == "__main__":
    main()
