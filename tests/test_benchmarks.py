"""The benchmark's harness: suites, results, runs that are killed, tuning, report."""

import inspect
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

for module in ("rl_zoo3", "rliable", "minatar"):
    pytest.importorskip(module)
pytest.importorskip("fcntl", reason="the benchmarks lock their results with it")

import gymnasium as gym  # noqa: E402
from stable_baselines3 import PPO  # noqa: E402
from stable_baselines3.common.callbacks import BaseCallback  # noqa: E402
from stable_baselines3.common.monitor import Monitor  # noqa: E402
from stable_baselines3.common.vec_env import DummyVecEnv  # noqa: E402

from sb3_dapo import DAPO  # noqa: E402

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import geppo  # noqa: E402
import report  # noqa: E402
import rliable.metrics  # noqa: E402
import run as scheduler  # noqa: E402
import store  # noqa: E402
import suites  # noqa: E402
import tune  # noqa: E402
import worker  # noqa: E402

SCARCE = [(suite, regime) for suite in suites.SUITES for regime in ("scarce", "scarce16", "scarce32")]


def rows_of(run: store.Run, scores: list[float]) -> list[store.Row]:
    measured: dict[str, Any] = {
        "uses_per_sample": 8,
        "gradient_steps": 4,
        "wall_s": 60.0,
        "divergence": 0.1,
        "kl": 0.01,
    }
    return [{**vars(run), "timesteps": 100 * (i + 1), "score": x, **measured} for i, x in enumerate(scores)]


# --- suites -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("suite", "regime"), SCARCE)
def test_every_algorithm_uses_each_sample_as_often_as_the_regime_says(suite: str, regime: str) -> None:
    env = suites.SUITES[suite].envs[0]
    for name in suites.algorithms(suite):
        algo = suites.ALGORITHMS[name]
        if algo.published:
            continue
        settings = suites.hyperparameters(suite, regime, env, name, tuned={})
        expected = 1 if algo.zoo_name == "a2c" else suites.SUITES[suite].regimes[regime].uses
        assert expected is not None
        # K rollouts are used a multiple of K times
        expected -= expected % settings.get("n_rollouts", 1)
        assert suites.uses_per_sample(algo.zoo_name, settings) == expected, name


def test_algorithms_of_a_suite_train_equally_long() -> None:
    for suite, described in suites.SUITES.items():
        for regime in described.regimes:
            steps = {
                suites.hyperparameters(suite, regime, described.envs[0], algo)["n_timesteps"]
                for algo in suites.algorithms(suite)
            }
            assert len(steps) == 1


def test_what_is_run_as_published_is_run_once_and_with_no_settings_of_ours() -> None:
    runs = scheduler.ordered("mujoco", "scarce", ["Hopper-v5"], ["ppo", "sac", "geppo_published"], [1])
    assert [(run.regime, run.algo) for run in runs] == [
        ("scarce", "ppo"),
        ("untuned", "sac"),
        ("untuned", "geppo_published"),
    ]
    sac, zoo = (suites.hyperparameters("mujoco", "untuned", "Hopper-v5", algo) for algo in ("sac", "ppo_zoo"))
    assert sac == {"policy": "MlpPolicy", "learning_starts": 10000, "n_timesteps": 300_000}
    assert (zoo["learning_rate"], zoo["n_steps"], zoo["gamma"]) == (9.80828e-05, 512, 0.999)
    # batches of 256, one per step
    assert suites.uses_per_sample("sac", sac) == 256
    with pytest.raises(ValueError, match="`algo` must be one of .* in minatar, got 'sac'"):
        suites.hyperparameters("minatar", "scarce", "MinAtar/Asterix-v1", "sac")


def test_the_kl_target_takes_what_was_tuned_but_for_the_coefficient(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(suites, "TUNED", tmp_path)
    values = {"divergence_coef": 0.5, "learning_rate": "lin_0.002", "uses": 4}
    tune.write_best(tmp_path / "minatar.yml", "scarce", "dapo_gae", values)
    settings = suites.hyperparameters("minatar", "scarce", "MinAtar/Asterix-v1", "dapo_kl")
    assert (settings["divergence_coef"], settings["learning_rate"]) == ("dual_0.03", "lin_0.002")
    assert (settings["n_rollouts"], settings["n_epochs"]) == (2, 2)
    tune.write_best(tmp_path / "minatar.yml", "scarce", "dapo_kl", {"divergence_coef": "dual_0.01"})
    settings = suites.hyperparameters("minatar", "scarce", "MinAtar/Asterix-v1", "dapo_kl")
    assert (settings["divergence_coef"], settings["learning_rate"]) == ("dual_0.01", "lin_0.001")


def test_changes_of_an_algorithm_come_last() -> None:
    env = "MinAtar/Asterix-v1"
    tuned = {"divergence_coef": 0.3, "learning_rate": "lin_0.0005", "uses": 4}
    plain = suites.hyperparameters("minatar", "scarce", env, "dapo", tuned)
    assert (plain["divergence_coef"], plain["n_rollouts"], plain["n_epochs"]) == (0.3, 1, 4)
    changed = suites.hyperparameters("minatar", "scarce", env, "dapo+divergence_coef=0.5+n_rollouts=2", tuned)
    assert {name for name in plain if plain[name] != changed[name]} == {"divergence_coef", "n_rollouts", "n_epochs"}
    assert (changed["divergence_coef"], changed["n_rollouts"], changed["n_epochs"]) == (0.5, 2, 2)


def test_equal_settings_have_one_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suites, "TUNED", tmp_path)
    tune.write_best(tmp_path / "minatar.yml", "scarce", "dapo", {"divergence_coef": 0.5, "n_rollouts": 2, "uses": 4})

    def names(*algos: str) -> list[str]:
        return list(suites.run_names("minatar", "scarce", algos).values())

    assert names("dapo+divergence_coef=0.5", "dapo+n_rollouts=2", "dapo") == ["dapo"] * 3
    assert names("dapo+gamma=0.9", "dapo+gamma=0.9+n_rollouts=2") == ["dapo+gamma=0.9"] * 2
    assert names("dapo+gamma=0.9+n_rollouts=4") == ["dapo+gamma=0.9+n_rollouts=4"]
    assert names("dapo+divergence_coef=0+n_rollouts=1+uses=8") == ["vtrace"]


def test_no_ablation_is_another_one_with_a_default_spelled_out() -> None:
    defaults = {name: p.default for name, p in inspect.signature(DAPO).parameters.items()}
    env = suites.SUITES["minatar"].tuning_envs[0]
    names = suites.run_names("minatar", "scarce", [algo for algos in suites.ABLATIONS.values() for algo in algos])
    by_settings: dict[str, set[str]] = {}
    for name in set(names.values()):
        zoo_name = suites.algorithm(name).zoo_name
        settings = suites.hyperparameters("minatar", "scarce", env, name)
        if zoo_name == "dapo":
            settings = {key: value for key, value in settings.items() if value != defaults.get(key, "no argument")}
        by_settings.setdefault(f"{zoo_name} {sorted(settings.items())}", set()).add(name)
    # Two algorithms that tuning led to one setting keep their names
    assert [same for same in by_settings.values() if len(same) > 1 and not same <= set(suites.ALGORITHMS)] == []


@pytest.mark.parametrize("suite", suites.SUITES)
def test_committed_results_have_the_names_of_today(suite: str) -> None:
    for setting in store.read_settings(store.RESULTS, suite):
        regime, _, algo = setting.split(maxsplit=2)
        assert suites.run_names(suite, regime, [algo]) == {algo: algo}


def test_tuned_values_of_scarce_serve_more_uses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suites, "TUNED", tmp_path)
    tune.write_best(tmp_path / "minatar.yml", "scarce", "ppo", {"clip_range": 0.3, "uses": 4})
    tune.write_best(tmp_path / "minatar.yml", "scarce16", "dapo", {"clip_range": 0.1})
    assert suites.read_tuned("minatar", "scarce") == {"ppo": {"clip_range": 0.3, "uses": 4}}
    assert suites.read_tuned("minatar", "scarce16") == {"ppo": {"clip_range": 0.3}, "dapo": {"clip_range": 0.1}}
    settings = suites.hyperparameters("minatar", "scarce16", "MinAtar/Freeway-v1", "ppo")
    assert (settings["clip_range"], settings["n_epochs"]) == (0.3, 16)
    assert suites.read_tuned("minatar", "plentiful") == suites.read_tuned("minatar", "untuned") == {}


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (("minitar", "scarce", "MinAtar/Asterix-v1", "dapo"), "suite"),
        (("minatar", "scarse", "MinAtar/Asterix-v1", "dapo"), "regime"),
        (("minatar", "scarce", "CartPole-v1", "dapo"), "env"),
        (("minatar", "scarce", "MinAtar/Asterix-v1", "dappo"), "algo"),
        (("minatar", "scarce", "MinAtar/Asterix-v1", "dapo+divergence_coef"), "name=value"),
    ],
)
def test_unknown_names_are_refused(arguments: tuple[str, str, str, str], name: str) -> None:
    with pytest.raises(ValueError, match=name):
        suites.hyperparameters(*arguments)


# --- results ----------------------------------------------------------------------------------------------------------


def test_results_are_read_as_written_and_a_rerun_replaces_its_rows(tmp_path: Path) -> None:
    first, second = (store.Run("minatar", "scarce", "MinAtar/Asterix-v1", "dapo", seed) for seed in (1, 2))
    store.add_run(tmp_path, second, rows_of(second, [math.nan, 2.0]), {"gamma": 0.9}, "old")
    store.add_run(tmp_path, first, rows_of(first, [1.0, 3.0]), {"gamma": 0.9}, "old")
    store.add_run(tmp_path, second, rows_of(second, [0.5, 1.23456789]), {"gamma": 0.9}, "new")
    rows = store.read_rows(tmp_path, "minatar")
    assert [(row["seed"], row["timesteps"], row["score"]) for row in rows] == [
        (1, 100, 1.0),
        (1, 200, 3.0),
        (2, 100, 0.5),
        (2, 200, 1.23457),
    ]
    assert store.read_settings(tmp_path, "minatar") == {
        first.setting: {"hyperparams": {"gamma": 0.9}, "versions": ["new", "old"]}
    }
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "minatar.csv", "minatar.json"]
    store.remove_settings(tmp_path, "minatar", {first.setting})
    assert store.read_rows(tmp_path, "minatar") == [] and store.read_settings(tmp_path, "minatar") == {}


def test_what_was_not_measured_is_an_empty_cell(tmp_path: Path) -> None:
    run = store.Run("classic", "scarce", "CartPole-v1", "a2c", 1)
    store.add_run(tmp_path, run, rows_of(run, [math.nan]), {}, "")
    assert (tmp_path / "classic.csv").read_text().splitlines()[
        1
    ] == "classic,scarce,CartPole-v1,a2c,1,100,,8,4,60,0.1,0.01"
    assert math.isnan(store.read_rows(tmp_path, "classic")[0]["score"])


# --- runs -------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_killed_run_is_redone_and_a_rerun_gives_the_same_rows(tmp_path: Path) -> None:
    command = [sys.executable, str(BENCHMARKS / "run.py"), "--suite", "classic", "--env", "CartPole-v1"]
    command += ["--seeds", "1", "--jobs", "2", "--results", str(tmp_path), "--algos", "dapo"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*command, *arguments], capture_output=True, text=True, env=environment)

    # Kill the scheduler while its worker trains: nothing is left behind but its folder
    process = subprocess.Popen([*command, "--timesteps", "2000000"], stdout=subprocess.DEVNULL, env=environment)
    log = tmp_path / ".runs" / "classic_scarce_CartPole-v1_dapo_1.log"
    deadline = time.monotonic() + 200
    while not log.is_file() or "Log path" not in log.read_text():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "classic.csv").exists()

    # The worker stops by itself, and lets go of its run
    short = ("--timesteps", "2000")
    result = run("ppo", *short)
    while "left to the process" in result.stdout and time.monotonic() < deadline:
        result = run("ppo", *short)
    assert result.returncode == 0, result.stdout + result.stderr
    rows = store.read_rows(tmp_path, "classic")
    assert [(row["algo"], row["timesteps"]) for row in rows] == [
        (algo, 200 * i) for algo in ("dapo", "ppo") for i in range(1, 11)
    ]
    for algo in ("dapo", "ppo"):
        own = [row for row in rows if row["algo"] == algo]
        assert own[-1]["score"] > 10 and own[-1]["uses_per_sample"] == 8
        assert own[-1]["gradient_steps"] == 8 * 7  # 7 updates of one minibatch
        assert np.nanmax([row["kl"] for row in own]) > 0
    assert not any((tmp_path / ".runs").glob("*.log"))

    assert "2 skipped, 0 to do" in run("ppo", *short).stdout
    assert "other hyperparameters" in run("--timesteps", "4000").stderr
    checked = run(*short, "--check")
    assert "scarce CartPole-v1 dapo seed 1 the same" in checked.stdout and checked.returncode == 0


def test_a_run_that_another_process_has_just_done_is_left_alone(tmp_path: Path) -> None:
    run = store.Run("classic", "scarce", "CartPole-v1", "dapo", 1)
    store.add_run(tmp_path, run, rows_of(run, [20.0, 30.0]), {}, "")
    before = store.read_rows(tmp_path, "classic")
    params = suites.hyperparameters(run.suite, run.regime, run.env, run.algo)
    task = scheduler.Task(run, params, tmp_path / ".runs" / run.slug, tmp_path)
    assert list(scheduler.run_all([task], jobs=1)) == [(task, [])]
    assert store.read_rows(tmp_path, "classic") == before and not task.folder.exists()


def test_check_says_where_a_rerun_differs(tmp_path: Path) -> None:
    run = store.Run("classic", "scarce", "CartPole-v1", "dapo", 1)
    store.add_run(tmp_path, run, rows_of(run, [20.0, 30.0]), {}, "")
    slower = [{**row, "wall_s": 99.0} for row in rows_of(run, [20.0, 30.0])]
    assert scheduler.differences(tmp_path, run, slower) == []
    found = scheduler.differences(tmp_path, run, rows_of(run, [20.0, 30.001]))
    assert found == ["200 steps: score 30.001 instead of 30"]


def test_one_seed_of_everything_comes_first() -> None:
    runs = scheduler.ordered("minatar", "scarce", ["MinAtar/Asterix-v1"], ["ppo", "dapo"], [1, 2])
    assert [(run.algo, run.seed) for run in runs] == [("ppo", 1), ("dapo", 1), ("ppo", 2), ("dapo", 2)]


def test_ablations_can_be_chosen_by_a_word(tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def listed(*words: str) -> set[tuple[str, str]]:
        arguments = ["--suite", "minatar", "--seeds", "1", "--results", str(tmp_path), "--dry-run", "--ablations"]
        monkeypatch.setattr(sys, "argv", ["run.py", *arguments, *words])
        scheduler.main()
        runs = (line.split() for line in capsys.readouterr().out.splitlines()[1:])
        return {(env, algo) for _, env, algo, _, _ in runs}

    games = suites.SUITES["minatar"].ablation_envs
    title = "Steps of the divergence"
    algos = {algo for name in suites.ABLATIONS if title in name for algo in suites.ABLATIONS[name]}
    names = set(suites.run_names("minatar", "scarce", algos).values())
    assert listed(title) == {(env, name) for env in games for name in names}
    assert listed(title, "Targets") == listed(title) | listed("Targets")
    assert listed() > listed(title)
    with pytest.raises(SystemExit):
        listed("nothing")
    assert "--ablations must be words of" in capsys.readouterr().err


def test_the_final_score_is_of_whole_games_as_many_in_each_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the first of three environments games take one step and score 1, in the others two steps and 2 and 3."""

    class Games(DummyVecEnv):
        def seed(self, seed: int | None = None) -> Sequence[int | None]:
            seeds.append(seed)
            return super().seed(seed)

    class Manager:
        seed = 7

        def create_envs(self, n_envs: int, eval_env: bool, no_log: bool) -> Games:
            assert eval_env and no_log
            return Games([lambda i=i: Monitor(Counted(steps=min(i + 1, 2), score=i + 1.0)) for i in range(n_envs)])

    monkeypatch.setattr(worker, "FINAL_ENVS", 3)
    seeds: list[int | None] = []
    model = PPO("MlpPolicy", Counted(1, 1.0), n_steps=8, batch_size=8, device="cpu")
    # 2 games in each of 3 environments; the first that end would be those of the first
    assert worker.final_score(Manager(), model, 6) == pytest.approx(2.0)  # type: ignore[arg-type]
    assert seeds[0] == worker.FINAL_SEED + 7


class Counted(gym.Env[np.ndarray, int]):
    """Ends after some steps, and gives its score in the last."""

    observation_space = gym.spaces.Box(0, 1, (1,))
    action_space: gym.spaces.Discrete = gym.spaces.Discrete(2)

    def __init__(self, steps: int, score: float) -> None:
        self.steps, self.score = steps, score

    def reset(self, **_: Any) -> tuple[np.ndarray, dict[str, Any]]:
        self.n_done = 0
        return np.zeros(1, np.float32), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.n_done += 1
        is_over = self.n_done == self.steps
        return np.zeros(1, np.float32), self.score * is_over, is_over, False, {}


def test_the_learning_rate_of_geppo_falls_where_an_update_went_too_far() -> None:
    model = DAPO(
        "MlpPolicy",
        "CartPole-v1",
        n_steps=64,
        n_rollouts=3,
        batch_size=96,
        n_epochs=3,
        clip_range=0.1,
        clip_center="old",
        advantage="vtrace_gae",
        divergence_coef=0.0,
        learning_rate=0.02,
        seed=0,
        device="cpu",
    )
    rates, variations = [], []

    class Watch(BaseCallback):
        def _on_step(self) -> bool:
            return True

        def _on_rollout_start(self) -> None:
            if self.model._n_updates > 0:
                ring = self.model.rollout_buffer  # type: ignore[attr-defined]
                after, before, behavior = ring.latest_log_probs, ring.old_log_probs, ring.behavior_log_probs
                kept = slice(0, ring.n_kept)
                change = (after[kept] - behavior[kept]).exp() - (before[kept] - behavior[kept]).exp()
                variations.append(float(change.abs().mean()) / 2)
                rates.append(self.model.policy.optimizer.param_groups[0]["lr"])

    model.learn(64 * 12, callback=[Watch(), geppo.AdaptiveLearningRate(factor=0.5)])
    # the rate of an update is what those before it have left
    too_far = np.array(variations) > 0.05
    expected = 0.02 / 1.5 ** np.concatenate([[0], np.cumsum(too_far)[:-1]])
    np.testing.assert_allclose(rates, expected)
    assert 0 < too_far.sum() < len(too_far)


# --- tuning -----------------------------------------------------------------------------------------------------------


def test_all_algorithms_search_the_same_space() -> None:
    spaces_of = {algo: tune.search_space("minatar", "scarce", algo) for algo in tune.TUNABLE}
    for algo, space in spaces_of.items():
        for name in set(space) & set(spaces_of["ppo_ent"]):
            assert space[name] == spaces_of["ppo_ent"][name], (algo, name)
    common = set(spaces_of["ppo_ent"])
    assert common == {"learning_rate", "gae_lambda", "ent_coef", "uses", "clip_range"}
    assert set(spaces_of["vtrace"]) == common | {"n_rollouts"}
    assert set(spaces_of["dapo"]) == set(spaces_of["dapo_1step"]) == common | {"divergence_coef", "n_rollouts"}
    # in continuous control without entropy bonus; a KL target is tried over the range of PPO's
    of_ppo, of_kl = (tune.search_space("mujoco", "scarce", algo) for algo in ("ppo_target_kl", "dapo_kl"))
    assert set(of_ppo) == common - {"ent_coef"} | {"target_kl"}
    assert set(of_kl) == common - {"ent_coef", "clip_range"} | {"divergence_coef", "n_rollouts"}
    assert of_kl["divergence_coef"] == of_ppo["target_kl"]
    assert tune.as_hyperparameters("dapo_kl", {"learning_rate": 0.1, "divergence_coef": 0.02}) == {
        "learning_rate": "lin_0.1",
        "divergence_coef": "dual_0.02",
    }


def test_tuning_resumes_and_keeps_the_best(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    proposed = []

    def run_trial(suite: str, regime: str, algo: str, seed: int, params: dict[str, Any], *_: Any) -> dict[str, float]:
        if len(proposed) == stop_at:
            raise KeyboardInterrupt
        proposed.append((seed, params))
        # best at a learning rate of 0.002, but with the first seed at 0.004
        score = 10 - abs(math.log(params["learning_rate"] / (4e-3 if seed == tune.SEEDS[0] else 2e-3)))
        return dict.fromkeys(suites.SUITES[suite].tuning_envs, score)

    monkeypatch.setattr(tune, "run_trial", run_trial)
    arguments = ("minatar", "scarce", "dapo", 12, tmp_path, tmp_path / "tuned", 1, None)
    stop_at = 5
    with pytest.raises(KeyboardInterrupt):
        tune.tune(*arguments)
    stop_at = -1
    tune.tune(*arguments)
    resumed, proposed = proposed, []
    (tmp_path / "tuning" / "minatar_scarce.csv").unlink()
    tune.tune(*arguments)
    assert resumed == proposed and [seed for seed, _ in proposed] == [1000] * 12 + [1001] * 3 + [1002] * 3
    assert proposed[0][1] == {
        **{"learning_rate": 0.001, "gae_lambda": 0.9, "ent_coef": 0.01},
        **{"uses": 8, "clip_range": 0.2, "divergence_coef": 0.1, "n_rollouts": 1},
    }

    # With the algorithm's own 1/eta
    shared = [{**x, "divergence_coef": 0.1} for x in suites.SUITES["minatar"].last_trials]
    shared = [{name: params[name] for name in proposed[0][1]} for params in shared]
    assert [params for _, params in proposed[12 - len(shared) : 12]] == shared

    def distance(params: dict[str, Any], learning_rate: float) -> float:
        return abs(math.log(params["learning_rate"] / learning_rate))

    trials = [params for _, params in proposed[:12]]
    finalists = sorted(trials, key=lambda params: distance(params, 4e-3))[:3]
    assert [params for _, params in proposed[12:]] == 2 * finalists
    best = min(finalists, key=lambda params: distance(params, 4e-3) + 2 * distance(params, 2e-3))
    monkeypatch.setattr(suites, "TUNED", tmp_path / "tuned")
    assert suites.read_tuned("minatar", "scarce")["dapo"] == {**best, "learning_rate": f"lin_{best['learning_rate']}"}


# --- report -----------------------------------------------------------------------------------------------------------


def test_estimates_are_those_of_rliable() -> None:
    rng = np.random.default_rng(0)
    scores, other = rng.normal(size=(5, 3)), rng.normal(size=(4, 3)).round(1)
    np.testing.assert_allclose(report.iqm(scores), rliable.metrics.aggregate_iqm(scores))
    curves = rng.normal(size=(4, 3, 6))
    by_step = [rliable.metrics.aggregate_iqm(curves[..., i]) for i in range(6)]
    np.testing.assert_allclose(report.iqm(curves), by_step)
    expected = rliable.metrics.probability_of_improvement(scores.round(1), other)
    np.testing.assert_allclose(report.improvement(scores.round(1), other), expected)
    (found,) = report.estimates({"": scores}, report.iqm)[""]
    assert found.low < found.value < found.high


def test_intervals_of_one_seed_of_many_games_are_over_games() -> None:
    scores = np.random.default_rng(0).normal(size=(1, 12))
    (found,) = report.estimates({"": scores}, report.iqm)[""]
    assert found.low < found.value == report.iqm(scores) < found.high
    # Of a pair the same games are drawn: one that is always better has no other probability
    (better,) = report.estimates({"": (scores + 0.1, scores)}, report.improvement)[""]
    assert (better.low, better.value, better.high) == (1, 1, 1)
    (mixed,) = report.estimates({"": (scores, np.zeros((1, 12)))}, report.improvement)[""]
    assert mixed.low < mixed.value == (scores > 0).mean() < mixed.high
    (few,) = report.estimates({"": scores[:, :7]}, report.iqm)[""]
    assert few.low == few.value == few.high


def test_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "REPS", 50)
    monkeypatch.setattr(suites, "TUNED", tmp_path)
    report.plt.switch_backend("agg")
    monkeypatch.setitem(report.mpl.rcParams, "svg.hashsalt", "fixed")
    rows = []
    changed = (f"{suites.BEST}+divergence_coef={x}" for x in (0.5, 2.0))
    ranked = ("ppo", "vtrace", "dapo_1step", "dapo", *changed)
    for regime in ("scarce", "scarce16"):
        for rank, algo in enumerate(ranked):
            for env, (low, high) in suites.SUITES["minatar"].scores.items():
                for seed in (1, 2, 3):
                    normalized = 0.1 + 0.1 * rank + 0.02 * seed
                    run = store.Run("minatar", regime, env, algo, seed)
                    rows += rows_of(run, [math.nan, low + (high - low) * normalized])
    # one that has been run on a single game, and one on those of the ablations
    rows += rows_of(store.Run("minatar", "scarce", "MinAtar/Asterix-v1", "a2c", 1), [1.0, 1.0])
    for env in suites.SUITES["minatar"].ablation_envs:
        rows += rows_of(store.Run("minatar", "scarce", env, suites.BEST, 1), [1.0, 1.0])
    # one alone in its regime, which has one rollout there, so that it is its own ablation
    for env in suites.SUITES["minatar"].scores:
        rows += rows_of(store.Run("minatar", "plentiful", env, suites.BEST, 1), [1.0, 1.0])
    store.write_csv(tmp_path / "minatar.csv", store.COLUMNS, map(store.format_row, rows))

    path = report.report(tmp_path, tmp_path / "figures", "minatar")
    assert path is not None
    text = path.read_text()
    assert "### `minatar`, plentiful\n" in text and "plentiful: ablations" not in text
    lines = text[text.index("### `minatar`, scarce") : text.index("### `minatar`, scarce16")].splitlines()
    rows_of_tables = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    table, games = rows_of_tables[:6], rows_of_tables[6:12]
    assert [row[0] for row in table[2:]] == ["DAPO, multi-step", "DAPO, 1-step", "V-trace, no divergence", "PPO"]
    assert [row[1].split()[0] for row in table[2:]] == ["0.44", "0.34", "0.24", "0.14"]
    assert [row[3].split()[0] for row in table[2:-1]] == ["1.00"] * 3 and table[-1][3] == ""
    assert table[2][-3:] == ["8", "1.0", "3"]
    assert games[0] == ["Score", "Asterix", "Breakout", "Freeway", "Seaquest", "SpaceInvaders"]
    low, high = suites.SUITES["minatar"].scores["MinAtar/Asterix-v1"]
    assert games[2][:2] == ["DAPO, multi-step", f"{low + (high - low) * 0.44:.3g} ± {(high - low) * 0.02:.2g}"]
    assert "Not run on all of these environments yet: A2C, DAPO + GAE." in text
    # On a straight line from 0 to 0.44, as no episode has ended at the first evaluation
    assert "3.14 times the IQM of the best variant of PPO (PPO). It is where PPO ends after 0.32" in text
    assert "#### Coefficient of the divergence, 1/eta" in text
    assert "| DAPO + GAE, divergence_coef = 0.5 | 0.54" in text

    figures = {image.name: image.read_bytes() for image in (tmp_path / "figures").iterdir()}
    kinds = ("aggregates", "curves", "profiles", "improvement")
    names = [f"minatar_{regime}_{kind}" for regime in ("scarce", "scarce16") for kind in kinds]
    names += ["minatar_uses", "minatar_scarce_ablations"]
    assert set(figures) == {f"{name}.{suffix}" for name in names for suffix in ("png", "svg")}
    linked = {line.split("](")[1].rstrip(")") for line in text.splitlines() if line.startswith("![")}
    assert linked == {f"figures/{name}.svg" for name in names}

    report.report(tmp_path, tmp_path / "figures", "minatar")
    assert path.read_text() == text
    assert {image.name: image.read_bytes() for image in (tmp_path / "figures").iterdir()} == figures


def test_steps_needed() -> None:
    curve = np.array([math.nan, 0.2, 0.1, 0.6, 0.5])[None, None]
    for level, share in ((0.05, 0.1), (0.2, 0.4), (0.35, 0.7), (0.6, 0.8), (0.61, 1.0)):
        # Twice, as a mean over seeds and games that are alike
        assert report.steps_needed(curve.repeat(2, 0), np.full((3, 2, 1), level)) == pytest.approx(share)


def test_report_of_a_part_of_many_games_beside_what_is_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "REPS", 20)
    report.plt.switch_backend("agg")
    games = suites.SUITES["atari100k"].envs
    assert len(games) == 26 and not set(suites.SUITES["atari100k"].tuning_envs) & set(games)
    # PPO has been run on all but the last two, DAPO on the first five, V-trace on one
    played = {"ppo": games[:24], "dapo_gae": games[:5], "dapo_kl": games[:5], "vtrace_gae": games[:1]}
    rows = []
    for algo, envs in played.items():
        for env in envs:
            low, high = suites.SUITES["atari100k"].scores[env]
            rows += rows_of(store.Run("atari100k", "untuned", env, algo, 1), [low, low + (high - low) * 0.25])
    store.write_csv(tmp_path / "atari100k.csv", store.COLUMNS, map(store.format_row, rows))
    (tmp_path / "atari100k_published.csv").write_bytes((store.RESULTS / "atari100k_published.csv").read_bytes())

    path = report.report(tmp_path, tmp_path / "figures", "atari100k")
    assert path is not None
    lines = path.read_text().splitlines()
    # 24 games of one algorithm are more than 5 of three
    (head,) = [line for line in lines if line.startswith("| Score")]
    assert head == "| Score | PPO | *CURL* | *DrQ(eps)* | *PPO, Hafner et al. 2023* | *SPR* |"
    alien = next(line for line in lines if line.startswith("| Alien"))
    assert alien.split(" | ")[1:3] == [f"{227.8 + (7127.7 - 227.8) * 0.25:,.0f}", "711"]
    assert "Not run on all of these environments yet: V-trace + GAE, no divergence, DAPO + GAE, " in "".join(lines)
    iqms = "IQM of all environments: SPR 0.34; DrQ(eps) 0.28; CURL 0.11; PPO, Hafner et al. 2023 0.02."
    assert any(iqms in line for line in lines)


def test_report_of_few_environments_beside_what_is_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "REPS", 20)
    rows = []
    for env, (low, high) in suites.SUITES["mujoco"].scores.items():
        rows += rows_of(store.Run("mujoco", "scarce", env, "ppo", 1), [low, low + (high - low) * 0.5])
    store.write_csv(tmp_path / "mujoco.csv", store.COLUMNS, map(store.format_row, rows))
    (tmp_path / "mujoco_published.csv").write_bytes((store.RESULTS / "mujoco_published.csv").read_bytes())

    path = report.report(tmp_path, tmp_path / "figures", "mujoco")
    assert path is not None
    text = path.read_text()
    assert "| Score | HalfCheetah | Hopper | Walker2d | Ant | Swimmer |" in text
    assert "| PPO | 1,103 | 1,279 | 1,101 | 362 | 79.3 |" in text
    assert "| *SAC, Weng et al. 2022* | 9,059 | 3,388 | 3,387 | 3,561 | 41.4 |" in text
    assert "IQM of all environments: SAC, Weng et al. 2022 2.05; TD3, Weng et al. 2022 1.35." in text


def test_report_compares_kl_targets_with_the_constant_of_each_suite(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "REPS", 20)
    report.plt.switch_backend("agg")
    assert report.recipe(tmp_path, tmp_path / "figures") is None
    ranked = {
        "dapo_gae": 0.5,
        "dapo_kl": 0.6,
        "dapo_kl+divergence_coef=adaptive_0.02": 0.4,
        "dapo_kl+n_rollouts=1": 1.0,
    }
    ranked["dapo_gae+divergence_coef=1.0"] = 0.45
    rows = []
    for algo, normalized in ranked.items():
        for env in ("HalfCheetah-v5", "Hopper-v5"):
            low, high = suites.SUITES["mujoco"].scores[env]
            for seed in (1, 2):
                scores = [low, low + (high - low) * normalized]
                rows += rows_of(store.Run("mujoco", "untuned", env, algo, seed), scores)
                if "+" not in algo:  # tuned apart, so that more than 1/eta differs
                    rows += rows_of(store.Run("mujoco", "scarce", env, algo, seed), scores)
    store.write_csv(tmp_path / "mujoco.csv", store.COLUMNS, map(store.format_row, rows))
    path = report.recipe(tmp_path, tmp_path / "figures")
    assert path is not None
    text = path.read_text()
    assert "`mujoco`, untuned: HalfCheetah, Hopper." in text
    cells = [[cell.strip() for cell in line.strip("| ").split("|")] for line in text.splitlines() if "| mujoco" in line]
    assert cells == [
        ["mujoco", "constant", "0.3", "0.50", "1.00", "0.01", "2"],
        ["mujoco", "constant", "1", "0.45", "0.90", "0.01", "2"],
        ["mujoco", "dual ascent", "0.03", "0.60", "1.20", "0.01", "2"],
        ["mujoco", "doubled or halved", "0.02", "0.40", "0.80", "0.01", "2"],
    ]
    assert (tmp_path / "figures" / "recipe.svg").is_file()


def test_what_is_run_as_published_is_shown_beside_the_tuned(tmp_path: Path) -> None:
    rows = []
    for regime, algo in (("untuned", "ppo"), ("untuned", "sac"), ("scarce", "ppo")):
        rows += rows_of(store.Run("mujoco", regime, "Hopper-v5", algo, 1), [1.0, 2.0])
    store.write_csv(tmp_path / "mujoco.csv", store.COLUMNS, map(store.format_row, rows))
    read = report.read_scores(tmp_path, "mujoco")
    assert {(row.regime, row.algo) for row in read.itertuples()} == {
        *(("untuned", "ppo"), ("untuned", "sac")),
        *(("scarce", "ppo"), ("scarce", "sac")),
    }


def test_no_report_without_results(tmp_path: Path) -> None:
    assert report.report(tmp_path, tmp_path / "figures", "minatar") is None
    assert list(tmp_path.iterdir()) == []
