"""`sb3-dapo report` and `compare`: scores beside others', learning curves over seeds, as figures and as text."""

import csv
import re
import shlex
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import yaml
from commands import Command, refused
from gymnasium import spaces

from sb3_dapo.atari_scores import ATARI_SCORES, atari_scores

pytest.importorskip("rl_zoo3")
from huggingface_sb3 import EnvironmentName
from matplotlib.figure import Figure

from sb3_dapo.zoo.curves import Curve, draw_curves, interval, number, read_curves, text_curves
from sb3_dapo.zoo.evaluation import MAX_CONSTANT_STEPS, constant_scores, read_hyperparameters
from sb3_dapo.zoo.plot import plot_run
from sb3_dapo.zoo.report import train_arguments

PNG = b"\x89PNG"
TRAIN = ("train", "--env", "CartPole-v1", "-n", "2048", "--eval-freq", "512", "--eval-episodes", "3", "--verbose", "0")


def write_run(
    name: str,
    scores: list[float],
    algo: str = "dapo",
    seed: int = 0,
    freq: int = 100,
    given: dict[str, object] | None = None,
    **config: object,
) -> Path:
    """
    :param name: of the run's folder, `ENV_NUMBER`
    :param scores: of its evaluations
    :param algo: its algorithm
    :param seed: its seed
    :param freq: steps between evaluations
    :param given: further arguments of its command
    :param config: its hyperparameters
    :return: the folder
    """
    run = Path("logs", algo, name)
    (run / name.rpartition("_")[0]).mkdir(parents=True)
    results = np.array(scores)[:, None] + np.array([-1.0, 1.0])
    np.savez(run / "evaluations.npz", timesteps=freq * np.arange(1, len(scores) + 1), results=results)
    for file, content in (("args", {"seed": seed, "n_timesteps": 500, **(given or {})}), ("config", config)):
        (run / name.rpartition("_")[0] / f"{file}.yml").write_text(yaml.dump(content))
    return run


# --- Curves ---


def test_runs_that_differ_in_the_seed_are_one_curve(empty_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run("CartPole-v1_1", [1, 2, 3], seed=0, n_epochs=4)
    write_run("CartPole-v1_2", [3, 4, 5], seed=1, n_epochs=4)
    write_run("CartPole-v1_10", [9, 9], seed=2, n_epochs=4)
    write_run("CartPole-v1_3", [7, 8, 9], seed=0, n_epochs=4, n_rollouts=2)
    write_run("CartPole-v1_4", [0, 0, 0], algo="ppo")
    write_run("CartPole-v10_1", [5, 5, 5])
    curves = read_curves(Path("logs"), ["dapo", "ppo"], EnvironmentName("CartPole-v1"))
    assert [curve.label for curve in curves] == ["DAPO", "DAPO, n_rollouts=2", "PPO"]
    assert curves[0].scores.tolist() == [[1, 2, 3], [3, 4, 5]]
    assert curves[0].mean.tolist() == [2, 3, 4] and curves[0].final.tolist() == [2, 4]
    assert curves[0].steps.tolist() == [100, 200, 300]
    assert "Leaving out logs/dapo/CartPole-v1_10: 2 evaluations, where others have 3" in capsys.readouterr().out


def test_curves_are_named_after_what_was_given(empty_folder: Path) -> None:
    scarce = {"learning_rate": "lin_0.005", "n_rollouts": 2, "policy_loss": "plain"}
    write_run("CartPole-v1_1", [1, 2], n_epochs=4, given={"preset": None, "hyperparams": None, "env_kwargs": {}})
    write_run("CartPole-v1_2", [3, 4], **scarce, given={"preset": "scarce"})
    write_run(
        "CartPole-v1_3",
        [5, 6],
        **scarce | {"n_rollouts": 3},
        given={"preset": "scarce", "hyperparams": {"n_rollouts": 3}},
    )
    env = EnvironmentName("CartPole-v1")
    labels = ["DAPO", "DAPO, preset=scarce", "DAPO, n_rollouts=3, preset=scarce"]
    assert [curve.label for curve in read_curves(Path("logs"), ["dapo"], env)] == labels
    # Another version of the hyperparameter file: what was given is the same as in the first
    write_run("CartPole-v1_4", [7, 8], n_epochs=5)
    labels = [curve.label for curve in read_curves(Path("logs"), ["dapo"], env)]
    assert labels[0] == "DAPO, n_epochs=4" and labels[3] == "DAPO, n_epochs=5"
    assert labels[1] == "DAPO, learning_rate=lin_0.005, n_rollouts=2, policy_loss=plain"


def test_a_repeated_run_counts_once(empty_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [write_run(f"CartPole-v1_{number}", [number] * 3, seed=seed) for number, seed in ((1, 0), (2, 1), (3, 0))]
    env = EnvironmentName("CartPole-v1")
    (curve,) = read_curves(Path("logs"), ["dapo"], env)
    assert curve.final.tolist() == [2, 3]
    assert capsys.readouterr().out == "Leaving out logs/dapo/CartPole-v1_1: another run has its seed\n"
    (runs[0] / "CartPole-v1.zip").touch()  # only the first has come to its end
    (curve,) = read_curves(Path("logs"), ["dapo"], env)
    assert curve.final.tolist() == [1, 2]


def test_intervals_cover_the_mean() -> None:
    scores = np.random.default_rng(0).normal(5.0, 1.0, (20, 3))
    low, high = interval(scores)
    error = scores.std(axis=0) / np.sqrt(20)
    np.testing.assert_allclose(low, scores.mean(axis=0) - 1.96 * error, atol=0.1)
    np.testing.assert_allclose(high, scores.mean(axis=0) + 1.96 * error, atol=0.1)


def test_figure_shows_runs_means_and_lines() -> None:
    axes = Figure().subplots()
    curves = [
        Curve("A", np.arange(3.0), np.array([[0, 1, 2], [2, 3, 4.0]])),
        Curve("B", np.arange(3.0), np.ones((1, 3))),
    ]
    draw_curves(axes, curves, {"random actions": 0.5})
    labels = axes.get_legend_handles_labels()[1]
    assert labels == ["A, 2 runs, 95 % interval", "B, one run", "random actions"]
    assert axes.lines[0].get_ydata().tolist() == [1, 2, 3]
    assert len(axes.lines) == 1 + 2 + 1 + 1 and len(axes.collections) == 1


def test_text_is_the_curve() -> None:
    curves = [
        Curve("A", np.array([50.0, 100.0]), np.array([[0.0, 1000.0]])),
        Curve("B", np.array([100.0]), np.array([[500.0]])),
    ]
    lines = text_curves(curves, {"random": 250.0, "a human": 1e6}).splitlines()
    assert lines[0].startswith("1,000 |") and lines[0].endswith("*") and lines[13].startswith("    0 |")
    assert lines[13].index("*") == pytest.approx((lines[0].index("*") + 7) / 2, abs=1)
    (middle,) = (line for line in lines[:14] if "o" in line.removesuffix(" random"))
    assert 6 <= lines.index(middle) <= 7
    assert next(line for line in lines if line.endswith("- random")).startswith("250.0 |")
    assert "human" not in "".join(lines)
    assert lines[-2].split() == ["0", "100", "steps"] and lines[-1].strip() == "* A   o B"


@pytest.mark.parametrize(
    ("value", "text"), [(73712.4, "73,712"), (-20.71, "-20.7"), (0.456, "0.46"), (0, "0"), (-1.05, "-1.05")]
)
def test_numbers(value: float, text: str) -> None:
    assert number(value) == text


# --- Compare ---


def test_compare(command: Command) -> None:
    for seed, shift in enumerate((0, 1, 2)):
        write_run(f"CartPole-v1_{seed + 1}", [10 + shift, 20 + shift, 30 + shift], seed=seed)
        write_run(f"CartPole-v1_{seed + 1}", [5, 6, 25 + shift], algo="ppo", seed=seed)
    output = command("compare", "--env", "CartPole-v1")
    rows = [line.split() for line in output.splitlines() if re.match(r"  (DAPO|PPO) ", line)]
    assert [row[:3] for row in rows] == [["DAPO", "3", "21.0"], ["PPO", "3", "12.3"]]
    assert float(rows[0][3]) < 21 < float(rows[0][5])
    assert "In 100% of all pairs of runs DAPO beats PPO" in output and "fewer than 5 runs" in output
    assert "* DAPO   o PPO" in output
    assert Path("logs/comparison.png").read_bytes().startswith(PNG)
    assert "PPO" not in command("compare", "--env", "CartPole-v1", "-a", "dapo", "-o", "figure")
    assert Path("figure").read_bytes().startswith(PNG)


def test_compare_several_environments(command: Command) -> None:
    write_run("CartPole-v1_1", [1, 2])
    write_run("MinAtar-Breakout-v1_1", [3, 4])
    output = command("compare", "--env", "CartPole-v1", "MinAtar/Breakout-v1")
    assert output.index("CartPole-v1") < output.index("MinAtar/Breakout-v1")
    assert output.count("train other seeds") == 2


def test_compare_of_many_settings_has_lines_and_a_figure_to_read(command: Command) -> None:
    names = [f"setting_{letter}" for letter in "abcdefgh"]
    for i, settings in enumerate(({name: 1 for name in names}, {name: 2 for name in names})):
        write_run(f"CartPole-v1_{i + 1}", [10 * i, 20], **settings, given={"hyperparams": settings})
    output = command("compare", "--env", "CartPole-v1")
    table = output.split("mean of the last")[1].splitlines()
    assert all(len(line) <= 80 for line in table if "beats" not in line) and "  o DAPO, setting_a=2" in output
    # The curves have most of the figure
    axes = Figure(figsize=(6.5, 4.5), layout="constrained").subplots()
    draw_curves(axes, read_curves(Path("logs"), ["dapo"], EnvironmentName("CartPole-v1")), {})
    axes.figure.draw_without_rendering()
    assert axes.get_position().width > 0.8


def test_compare_refuses_what_is_not_there(command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    write_run("CartPole-v1_1", [1, 2])
    assert "there is no run of Acrobot-v1 with evaluations" in refused(
        command, capsys, "compare", "--env", "Acrobot-v1"
    )
    line = refused(command, capsys, "compare", "--env", "CartPole-v1", "-a", "ppo")
    assert line.endswith("with evaluations (--eval-freq) in logs/ppo")


# --- Report ---


def test_report(command: Command) -> None:
    command(
        *TRAIN, "--seed", "1", "--hyperparams", "n_rollouts:2", "divergence_coef:'lin_0.1'", "-tb", "logs/tensorboard"
    )
    run = Path("logs/dapo/CartPole-v1_1")
    output = command("report", "--env", "CartPole-v1", "-n", "10", "--video", "20")
    assert "CartPole-v1 after 2,048 steps" in output
    with (run / "scores.csv").open(newline="") as file:
        scores: dict[str, list[float]] = {}
        for row in csv.DictReader(file):
            assert row["timesteps"] == "2048"
            scores.setdefault(row["player"], []).append(float(row["score"]))
    agent, random, constant = scores
    assert agent == "DAPO" and random == "random actions" and constant in ("always 0", "always 1")
    for player, values in scores.items():
        assert len(values) == (8 if player == constant else 10)
        assert re.search(rf"  {player} +{re.escape(number(np.mean(values)))} \+/- .* {len(values)} games +#+\n", output)
    assert 8 <= np.mean(scores[constant]) <= 10.5 and np.mean(scores[agent]) > np.mean(scores[random])
    assert "2,048 steps\n" in output and "* DAPO" in output  # the curve
    (video,) = (run / "videos").glob("*.mp4")
    for line in ("model ", "learning curve ", f"video           {video}", "TensorBoard "):
        assert f"\n  {line}" in output
    assert (run / "learning_curve.png").read_bytes().startswith(PNG)
    assert "enjoy --algo dapo --env CartPole-v1 -f logs" in output
    said = {line[2:19].strip(): line for line in output.splitlines() if "sb3-dapo " in line}
    longer = shlex.split(said["train longer"].split("sb3-dapo ")[1])
    assert {"n_rollouts:2", "divergence_coef:'lin_0.1'"} <= set(longer) and longer[-2:] == ["-n", "8192"]
    # What it prints can be run
    command(*shlex.split(said["compare with PPO"].split("sb3-dapo ")[1]))
    assert "* DAPO   o PPO" in command("compare", "--env", "CartPole-v1")


def test_report_of_an_older_run_names_it(command: Command) -> None:
    for _ in range(2):
        command(*TRAIN, "--seed", "1")
    assert "-f logs --exp-id 1 -n 5000" in command("report", "--env", "CartPole-v1", "-n", "2", "--exp-id", "1")
    assert "--exp-id" not in command("report", "--env", "CartPole-v1", "-n", "2")


def test_printed_commands_train_as_the_agent_was(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """With its own environment and hyperparameter file."""
    entry_point = "gymnasium.envs.classic_control:CartPoleEnv"
    register = f"gym.register('Mine-v0', '{entry_point}', max_episode_steps=20)"
    Path("my_envs.py").write_text(f"import gymnasium as gym\n\n{register}\n")
    entry = {"policy": "MlpPolicy", "n_timesteps": 128, "n_steps": 64, "batch_size": 32, "n_epochs": 1}
    entry |= {"env_kwargs": {"sutton_barto_reward": True}}
    Path("my.yml").write_text(yaml.dump({"Mine-v0": entry}))
    monkeypatch.syspath_prepend(Path.cwd())

    def run(*arguments: str) -> str:
        """As a new process, in which nothing has registered the environment."""
        gym.registry.pop("Mine-v0", None)
        sys.modules.pop("my_envs", None)
        return command(*arguments)

    given = ("--gym-packages", "my_envs", "--conf-file", "my.yml", "--hyperparams", "frame_stack:2", "n_steps:32")
    given += ("--device", "cpu", "--vec-env", "subproc", "--save-freq", "64")
    run("train", "--env", "Mine-v0", *given, "--eval-freq", "64", "--eval-episodes", "1", "--seed", "3", "-P")
    output = run("report", "--env", "Mine-v0", "-n", "1", "--n-envs", "1")
    for row, algo, name, steps in (
        ("train longer", "dapo", "Mine-v0_2", 512),
        ("compare with PPO", "ppo", "Mine-v0_1", 128),
    ):
        (line,) = (line for line in output.splitlines() if line.startswith(f"  {row} "))
        run(*shlex.split(line.split("sb3-dapo ")[1]))
        folders = [Path("logs/dapo/Mine-v0_1/Mine-v0"), Path("logs", algo, name, "Mine-v0")]
        config, new_config, args, new_args = (
            yaml.unsafe_load((folder / f"{file}.yml").read_text()) for file in ("config", "args") for folder in folders
        )
        if algo == "dapo":
            assert new_config == config and new_args["conf_file"] == "my.yml"
        else:
            assert (new_config["frame_stack"], new_config["n_steps"], new_args["conf_file"]) == (2, 32, None)
        assert new_args["env_kwargs"] == {"sutton_barto_reward": True} and new_args["n_timesteps"] == steps
        same = ("device", "eval_episodes", "eval_freq", "gym_packages", "save_freq", "seed", "vec_env")
        assert {name: new_args[name] for name in same} == {name: args[name] for name in same}
    gym.registry.pop("Mine-v0")


def test_all_that_a_run_was_given_is_printed() -> None:
    given: dict[str, Any] = {"seed": 0, "preset": None, "trained_agent": "a b.zip"}
    given |= {"storage": "s.log", "study_name": "s", "trial_id": 0}
    given |= {"actors": 2, "sync": True, "cpus_per_actor": 0.5, "eval_env_kwargs": {"length": 5}, "gym_packages": []}
    given |= {"hyperparams": {"n_rollouts": 2, "n_steps": 8, "env_wrapper": "a.B", "learning_rate": "lin_1"}}
    named = {"algo": "dapo", "env": EnvironmentName("CartPole-v1"), "args": SimpleNamespace(folder="logs")}
    agent: Any = SimpleNamespace(train_args=given, config={}, **named)
    begin, end = "--env CartPole-v1 -f logs --progress --seed 0", "--eval-env-kwargs length:5"
    own = "--trained-agent 'a b.zip' --storage s.log --study-name s --trial-id 0 --actors 2 --cpus-per-actor 0.5 --sync"
    shared = "n_steps:8 'env_wrapper:'\"'\"'a.B'\"'\"'' 'learning_rate:'\"'\"'lin_1'\"'\"''"
    assert train_arguments(agent, "dapo") == f"--algo dapo {begin} {own} --hyperparams n_rollouts:2 {shared} {end}"
    assert train_arguments(agent, "ppo") == f"--algo ppo {begin} --hyperparams {shared} {end}"


def test_report_of_a_human(command: Command) -> None:
    pytest.importorskip("ale_py")
    small = ("--hyperparams", "n_envs:2", "n_steps:16", "n_epochs:1", "batch_size:32")
    command("train", "--env", "PongNoFrameskip-v4", "-n", "32", "--eval-freq", "-1", "--verbose", "0", *small)
    output = command("report", "--env", "PongNoFrameskip-v4", "-n", "1", "--n-envs", "1")
    assert "PongNoFrameskip-v4 after 32 steps" in output
    assert re.search(r"\n  a human +14.6 ", output) and re.search(r"\n  always [A-Z]+ +-2", output)


class Bandit(gym.Env[np.ndarray, np.int64]):
    """Actions 10 to 13, of which 12 pays; it goes on for ever."""

    observation_space = spaces.Box(0, 1, (1,))
    action_space = spaces.Discrete(4, start=10)

    def reset(self, *, seed: int | None = None, options: object = None) -> tuple[np.ndarray, dict[str, object]]:
        super().reset(seed=seed)
        return np.zeros(1, np.float32), {}

    def step(self, action: np.int64) -> tuple[np.ndarray, float, bool, bool, dict[str, object]]:
        return np.zeros(1, np.float32), float(action == 12), False, False, {}


def test_best_constant_action(command: Command) -> None:
    """Of MountainCar's three none reaches the flag. In the Bandit the third has reward 1, and a game does not end."""
    found = constant_scores("MountainCar-v0", read_hyperparameters("dapo", "MountainCar-v0", None), {}, 3, 0)
    assert found is not None and found[0] in ("0", "1", "2") and found[1].tolist() == [-200] * 3
    assert constant_scores("Pendulum-v1", {}, {}, 1, 0) is None
    gym.register("Bandit-v0", Bandit)
    try:
        found = constant_scores("Bandit-v0", {}, {}, 2, 0)
    finally:
        del gym.registry["Bandit-v0"]
    assert found is not None and found[0] == "12" and found[1].tolist() == [MAX_CONSTANT_STEPS] * 2


@pytest.mark.parametrize(
    ("env_id", "scores"),
    [
        ("CrazyClimberNoFrameskip-v4", (10780.5, 35829.4)),
        ("ALE/CrazyClimber-v5", (10780.5, 35829.4)),
        ("PongDeterministic-v4", (-20.7, 14.6)),
        ("CartPole-v1", None),
    ],
)
def test_scores_of_humans(env_id: str, scores: tuple[float, float] | None) -> None:
    assert atari_scores(env_id) == scores
    assert len(ATARI_SCORES) == 57


def test_benchmarks_normalize_by_the_same_scores() -> None:
    sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
    from suites import ATARI_SCORES as in_suites

    assert {game: ATARI_SCORES[game] for game in in_suites} == in_suites


# --- Plot of several seeds ---


def test_plot_of_several_seeds(command: Command) -> None:
    for seed in (1, 2):
        command(*TRAIN, "--seed", str(seed), "--hyperparams", "n_epochs:1")
    command(*TRAIN, "--seed", "3", "--hyperparams", "n_epochs:2")
    output = command("plot", "--env", "CartPole-v1", "--exp-id", "1")
    assert output == "Saved logs/dapo/CartPole-v1_1/panels.png\n"
    assert command("plot", "--env", "CartPole-v1") == "Saved logs/dapo/CartPole-v1_3/panels.png\n"
    first, second = (Path(f"logs/dapo/CartPole-v1_{number}") for number in (1, 2))
    figure = plot_run(first, Path("logs/tensorboard/CartPole-v1/DAPO_1"), "", others=[second])
    score, divergence = figure.axes[:2]
    assert len(divergence.collections) == 2  # an interval for each of two values
    results = [np.load(run / "evaluations.npz")["results"].mean(axis=1) for run in (first, second)]
    np.testing.assert_allclose(score.lines[1].get_ydata(), np.mean(results, axis=0))
