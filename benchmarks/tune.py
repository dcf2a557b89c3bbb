"""
Tune the algorithms of a suite with Optuna, each with the same number of trials, on the suite's two tuning environments.

    python benchmarks/tune.py --suite minatar --algos ppo_ent dapo --trials 20 --jobs 2

The first trial is the setting that the algorithm has without tuning, the last are the suite's. As one seed says little,
the best trials are run with two more seeds, and the best of these by its mean goes to
`benchmarks/hyperparams/SUITE.yml`, where `run.py` finds it. Every trial and seed is a row of
`benchmarks/results/tuning/SUITE_REGIME.csv`. What is there is not run again, so that the command can be stopped and
given again, also with more trials.
"""

import argparse
import csv
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import yaml
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from run import Task, run_all
from store import RESULTS, Run, locked, write_csv
from suites import ALGORITHMS, REGIMES, SUITES, TUNED, hyperparameters, normalize

# No result is made with these. All trials are run with the first, the best of them with all
SEEDS = (1000, 1001, 1002)
N_FINALISTS = 3
# Evaluations at the end of a run whose mean counts
LAST = 3
STARTUP_TRIALS = 5
# Normalized scores below this count as this
LEAST_SCORE = 0.01
HEADER = "# Written by benchmarks/tune.py: by regime and algorithm the best of the trials in results/tuning\n"

Params = dict[str, Any]

TUNABLE = [algo for algo, described in ALGORITHMS.items() if not described.published]


def controller(algo: str) -> str:
    """
    :param algo: name of an algorithm
    :return: name of the controller that keeps its divergence near a target, nothing if there is none
    """
    kind, target, _ = str(ALGORITHMS[algo].settings.get("divergence_coef")).partition("_")
    return kind if target and kind in ("adaptive", "dual") else ""


def search_space(suite: str, regime: str, algo: str) -> dict[str, BaseDistribution]:
    """
    The same for all algorithms, without what an algorithm does not have and with what it alone has.

    :param suite: name of a suite
    :param regime: name of one of its regimes; half of its uses per sample are tried too
    :param algo: name of an algorithm
    :return: distributions by hyperparameter
    :raises ValueError: if the regime has no number of uses
    """
    uses = SUITES[suite].regimes[regime].uses
    if uses is None:
        raise ValueError(f"`regime` must have a number of uses per sample to tune for, got {regime!r}")
    zoo_name, settings = ALGORITHMS[algo].zoo_name, ALGORITHMS[algo].settings
    space: dict[str, BaseDistribution] = {
        "learning_rate": FloatDistribution(*SUITES[suite].learning_rates, log=True),
        "gae_lambda": CategoricalDistribution(SUITES[suite].lambdas),
    }
    entropies = SUITES[suite].entropies
    if algo != "ppo" and zoo_name != "trpo" and entropies is not None:
        space["ent_coef"] = FloatDistribution(*entropies, log=True)
    if zoo_name != "a2c":
        space["uses"] = CategoricalDistribution((uses // 2, uses))
    if zoo_name == "dapo" and settings.get("advantage") != "gae":
        space["n_rollouts"] = CategoricalDistribution((1, 2, 4))
    is_clipped = settings.get("policy_loss", "clip") in ("clip", "clip_augmented")
    if zoo_name in ("ppo", "dapo") and is_clipped:
        space["clip_range"] = CategoricalDistribution((0.1, 0.2, 0.3))

    if zoo_name == "a2c":
        space["n_steps"] = CategoricalDistribution((5, 8, 16, 32))
    elif zoo_name == "trpo" or algo == "ppo_target_kl":
        space["target_kl"] = FloatDistribution(3e-3, 0.1, log=True)
    elif controller(algo):
        space["divergence_coef"] = FloatDistribution(3e-3, 0.1, log=True)  # the target of the controller
    elif settings.get("divergence_coef"):
        lowest, highest = (0.01, 2.0) if is_clipped else (0.1, 10.0)
        space["divergence_coef"] = FloatDistribution(lowest, highest, log=True)
    return space


def as_hyperparameters(algo: str, params: Params) -> Params:
    """
    :param algo: name of an algorithm
    :param params: what Optuna proposes
    :return: as the Zoo wants it: the learning rate falls to 0, a controller is named with its target
    """
    changed = {"learning_rate": f"lin_{params['learning_rate']}"}
    if controller(algo):
        changed["divergence_coef"] = f"{controller(algo)}_{params['divergence_coef']}"
    return {**params, **changed}


def untuned(suite: str, regime: str, algo: str, space: Mapping[str, BaseDistribution]) -> Params | None:
    """
    :param suite: name of a suite
    :param regime: name of one of its regimes
    :param algo: name of an algorithm
    :param space: distributions by hyperparameter
    :return: the parameters that the algorithm has without tuning, None if some have no value in the space
    """
    settings = hyperparameters(suite, regime, SUITES[suite].tuning_envs[0], algo, tuned={})
    settings["uses"] = SUITES[suite].regimes[regime].uses
    params: Params = {}
    for name, distribution in space.items():
        value = settings.get(name)
        if isinstance(value, str):  # lin_0.001, adaptive_0.01
            value = float(value.rpartition("_")[2])
        if value is None or not distribution._contains(distribution.to_internal_repr(value)):
            return None
        params[name] = value
    return params


def given_trials(
    suite: str, regime: str, algo: str, space: Mapping[str, BaseDistribution], n_trials: int
) -> dict[int, Params]:
    """
    :param suite: name of a suite
    :param regime: name of one of its regimes
    :param algo: name of an algorithm
    :param space: distributions by hyperparameter
    :param n_trials: number of trials
    :return: by number the parameters of trials that Optuna does not draw: the untuned setting, and the suite's last
    """
    first = untuned(suite, regime, algo, space)
    shared = SUITES[suite].last_trials if regime == "scarce" else ()
    own = ALGORITHMS[algo].settings
    last = [{name: {**own, **params}[name] for name in space} for params in shared]
    n_drawn = max(1, n_trials - len(last))
    if controller(algo):
        last = [{**params, "divergence_coef": shared[i]["target_kl"]} for i, params in enumerate(last)]
    return {**({} if first is None else {0: first}), **{n_drawn + i: params for i, params in enumerate(last)}}


def propose(
    space: Mapping[str, BaseDistribution], trials: list[tuple[Params, float]], given: Mapping[int, Params]
) -> Params:
    """
    :param space: distributions by hyperparameter
    :param trials: parameters and values of the trials so far
    :param given: by number the parameters of trials that Optuna does not draw
    :return: parameters of the next trial, the same for the same trials so far
    """
    if len(trials) in given:
        return given[len(trials)]
    sampler = optuna.samplers.TPESampler(n_startup_trials=STARTUP_TRIALS, seed=len(trials))
    study = optuna.create_study(direction="maximize", sampler=sampler)
    for params, value in trials:
        study.add_trial(optuna.create_trial(params=params, distributions=dict(space), value=value))
    proposal = study.ask(dict(space)).params
    return {name: float(f"{x:.3g}") if isinstance(x, float) else x for name, x in proposal.items()}


@dataclass
class Trial:
    """
    :param params: hyperparameters on trial
    :param values: by seed, as far as it has been run
    """

    params: Params
    values: dict[int, float]

    @property
    def mean(self) -> float:
        """Mean of the values."""
        return float(np.mean(list(self.values.values())))


def read_rows(path: Path) -> list[dict[str, str]]:
    """
    :param path: file of trials
    :return: its rows
    """
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def trials_of(rows: list[dict[str, str]], algo: str, names: list[str]) -> list[Trial]:
    """
    :param rows: rows of a file of trials
    :param algo: name of an algorithm
    :param names: its hyperparameters
    :return: its trials
    """
    trials: dict[int, Trial] = {}
    for row in rows:
        if row["algo"] == algo:
            params = {name: yaml.safe_load(row[name]) for name in names}
            trial = trials.setdefault(int(row["trial"]), Trial(params, {}))
            trial.values[int(row["seed"])] = float(row["value"])
    return [trials[number] for number in sorted(trials)]


def next_step(
    trials: list[Trial], n_trials: int, space: Mapping[str, BaseDistribution], given: Mapping[int, Params]
) -> tuple[int, int, Params] | None:
    """
    :param trials: so far
    :param n_trials: number of trials wanted
    :param space: distributions by hyperparameter
    :param given: by number the parameters of trials that Optuna does not draw
    :return: number, seed and parameters of what is to be run next, None if nothing is left
    """
    if len(trials) < n_trials:
        return len(trials), SEEDS[0], propose(space, [(t.params, t.values[SEEDS[0]]) for t in trials], given)
    for seed in SEEDS[1:]:
        for number in finalists(trials[:n_trials]):
            if seed not in trials[number].values:
                return number, seed, trials[number].params
    return None


def finalists(trials: list[Trial]) -> list[int]:
    """
    :param trials: all trials
    :return: numbers of those that did best with the first seed
    """
    return sorted(range(len(trials)), key=lambda number: -trials[number].values[SEEDS[0]])[:N_FINALISTS]


def write_best(path: Path, regime: str, algo: str, params: Params) -> None:
    """
    :param path: file of tuned hyperparameters
    :param regime: name of a regime
    :param algo: name of an algorithm
    :param params: its best hyperparameters
    """
    tuned = (yaml.safe_load(path.read_text()) or {}) if path.is_file() else {}
    tuned.setdefault(regime, {})[algo] = params
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(HEADER + yaml.safe_dump(tuned))
    temporary.replace(path)


def run_trial(
    suite: str, regime: str, algo: str, seed: int, params: Params, folder: Path, jobs: int, n_timesteps: int | None
) -> dict[str, float]:
    """
    :param suite: name of a suite
    :param regime: name of one of its regimes
    :param algo: name of an algorithm
    :param seed: seed
    :param params: hyperparameters on trial
    :param folder: where the runs may write
    :param jobs: processes at a time
    :param n_timesteps: environment steps, None for the regime's
    :return: by environment the mean score at the end. A run that fails, as with numbers out of range, counts as random
        play; if all do, this ends, as it is not the hyperparameters then
    """
    length = {} if n_timesteps is None else {"n_timesteps": n_timesteps}
    tasks = []
    for env in SUITES[suite].tuning_envs:
        run = Run(suite, regime, env, algo, seed)
        settings = hyperparameters(suite, regime, env, algo, as_hyperparameters(algo, params))
        tasks.append(Task(run, {**settings, **length}, folder / run.slug))
    scores, failed = {}, []
    for task, rows in run_all(tasks, jobs):
        if rows == []:
            sys.exit(f"{task.run} is being run by another process")
        if rows is None:
            print(f"{task.run} failed, see {task.log}", flush=True)
            failed.append(task)
            scores[task.run.env] = SUITES[suite].scores[task.run.env][0]
        else:
            scores[task.run.env] = float(np.nanmean([row["score"] for row in rows[-LAST:]]))
    if len(failed) == len(tasks):
        sys.exit(f"{algo} failed in all games with {params}")
    return scores


def tune(
    suite: str, regime: str, algo: str, n_trials: int, results: Path, tuned: Path, jobs: int, n_timesteps: int | None
) -> None:
    """
    Run the trials that an algorithm has not had yet.

    :param suite: name of a suite
    :param regime: name of one of its regimes
    :param algo: name of an algorithm
    :param n_trials: number of trials
    :param results: folder of the results
    :param tuned: folder of the tuned hyperparameters
    :param jobs: processes at a time
    :param n_timesteps: environment steps, None for the regime's
    """
    envs = SUITES[suite].tuning_envs
    space = search_space(suite, regime, algo)
    path = results / "tuning" / f"{suite}_{regime}.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    all_params = dict.fromkeys(name for other in TUNABLE for name in search_space(suite, regime, other))
    columns = ["algo", "trial", "seed", "value", *envs, *all_params]
    given = given_trials(suite, regime, algo, space, n_trials)

    def trials() -> list[Trial]:
        return trials_of(read_rows(path), algo, list(space))

    while (step := next_step(trials(), n_trials, space, given)) is not None:
        number, seed, params = step
        scores = run_trial(suite, regime, algo, seed, params, results / ".runs" / "tuning", jobs, n_timesteps)
        # Geometric mean: twice the score counts the same in a game that is mastered and in one that has begun
        normalized = [max(LEAST_SCORE, normalize(suite, env, scores[env])) for env in envs]
        value = float(np.exp(np.mean(np.log(normalized))))
        row = {
            "algo": algo,
            "trial": str(number),
            "seed": str(seed),
            "value": f"{value:.4g}",
            **{env: f"{scores[env]:.4g}" for env in envs},
            **{name: str(x) for name, x in params.items()},
        }
        with locked(results):
            write_csv(path, columns, [*read_rows(path), row])
        print(f"{algo} {number + 1}/{n_trials}, seed {seed}: {value:.3f} with {params}", flush=True)

    best = max((trials()[number] for number in finalists(trials()[:n_trials])), key=lambda trial: trial.mean)
    with locked(results):
        write_best(tuned / f"{suite}.yml", regime, algo, as_hyperparameters(algo, best.params))
    print(f"{algo}: the best of {n_trials} trials is {best.mean:.3f} with {best.params}", flush=True)


def main() -> None:
    """Tune the algorithms one after the other."""
    parser = argparse.ArgumentParser(description="Tune the algorithms of a suite, each with the same number of trials.")
    parser.add_argument("--suite", required=True, choices=list(SUITES))
    parser.add_argument("--regime", default="scarce", choices=[name for name in REGIMES if name.startswith("scarce")])
    parser.add_argument("--algos", nargs="+", default=TUNABLE, choices=TUNABLE, metavar="ALGO")
    parser.add_argument("--trials", type=int, default=20, help="trials of each algorithm (default: 20)")
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time, two at most are used (default: 1)")
    parser.add_argument("--timesteps", type=int, help="environment steps, for trying things (needs --results)")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the results")
    args = parser.parse_args()
    if args.timesteps is not None and args.results == RESULTS:
        parser.error(
            "--timesteps would mix trials of other lengths into the results: name another folder with --results"
        )
    results: Path = args.results.resolve()
    # What is only tried leaves the tuned hyperparameters alone
    tuned = TUNED if args.results == RESULTS else results / "hyperparams"
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    for algo in args.algos:
        tune(args.suite, args.regime, algo, args.trials, results, tuned, args.jobs, args.timesteps)


if __name__ == "__main__":
    main()
