"""Nothing that is given to `sb3-dapo` is lost or ignored in silence, and every algorithm is treated alike."""

import pickle
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import pytest
import yaml
from commands import Command, refused
from gymnasium.envs.classic_control import CartPoleEnv, PendulumEnv
from stable_baselines3 import PPO
from stable_baselines3.common.monitor import load_results as load_monitor_files
from stable_baselines3.common.vec_env import VecNormalize

from sb3_dapo import DAPO

pytest.importorskip("rl_zoo3")
import rl_zoo3.train
from rl_zoo3.hyperparams_opt import HYPERPARAMS_CONVERTER, HYPERPARAMS_SAMPLER
from rl_zoo3.utils import ALGOS

from sb3_dapo.arguments import arguments_of
from sb3_dapo.checkpoint import vec_normalize_of
from sb3_dapo.zoo import ExperimentManager, register_algorithm
from sb3_dapo.zoo.evaluation import read_hyperparameters
from sb3_dapo.zoo.exp_manager import NOISE, check_keywords
from sb3_dapo.zoo.parsers import TrainParser
from sb3_dapo.zoo.registration import CONF_FILES
from sb3_dapo.zoo.zoo_plots import load_results

CARTPOLE = ("--env", "CartPole-v1")
SHORT = ("--verbose", "0", "--eval-freq", "-1")
RUN = Path("logs/dapo/CartPole-v1_1")


def saved(name: str, run: Path = RUN) -> dict[str, Any]:
    """What a run says of itself: `config` or `args`."""
    return dict(yaml.unsafe_load((run / run.name.rpartition("_")[0] / f"{name}.yml").read_text()))


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# --- start-up ---


@pytest.mark.parametrize("arguments", [["--help"], ["--version"]])
@pytest.mark.parametrize("start", ["from sb3_dapo.cli import main; main()", None])
def test_help_imports_nothing_heavy(arguments: list[str], start: str | None) -> None:
    """The console script, and `python -m sb3_dapo.zoo`."""
    code = f"import sys; sys.argv = ['sb3-dapo', *{arguments!r}]\n{start}"
    command = [sys.executable, "-X", "importtime", *(["-c", code] if start else ["-m", "sb3_dapo.zoo", *arguments])]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "sb3-dapo" in result.stdout
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in result.stderr.splitlines()}
    assert "sb3_dapo" in imported
    assert not imported & {"torch", "numpy", "gymnasium", "stable_baselines3", "rl_zoo3", "matplotlib"}


def test_names_of_the_package_are_imported_on_first_use() -> None:
    code = """
import sys, sb3_dapo
assert "torch" not in sys.modules and sb3_dapo.__version__
assert set(sb3_dapo.__all__) <= set(dir(sb3_dapo)) and not hasattr(sb3_dapo, "no_such_name")
assert sb3_dapo.buffers.RolloutRing.__name__ == "RolloutRing"
from sb3_dapo import *
assert DAPO is sb3_dapo.DAPO is sb3_dapo.dapo.DAPO and Divergence and NonFiniteError and DIVERGENCES["kl"]
"""
    subprocess.run([sys.executable, "-c", code], check=True)


# --- resume ---


@pytest.fixture
def cut(command: Command) -> Path:
    """A run of 256 of its 512 steps, with checkpoints."""
    command(
        *("train", *CARTPOLE, "-n", "256", "--save-freq", "128", "--seed", "1", *SHORT),
        *("--hyperparams", "n_steps:16", "n_epochs:1", "learning_rate:0.01"),
    )
    return RUN


def test_resume_uses_what_it_is_given_and_writes_it_down(command: Command, cut: Path) -> None:
    before = DAPO.load(cut / "CartPole-v1.zip")
    output = command(
        *("train", *CARTPOLE, "--resume", "-n", "512", "--hyperparams", "learning_rate:0.00001", "n_epochs:3"),
        *("gamma:0.9", "divergence_coef:'lin_0.5'", "--hyperparams", "clip_range:0.3", "batch_size:64"),
    )
    assert "Resuming with learning_rate: 1e-05 instead of 0.01" in output
    model = DAPO.load(cut / "CartPole-v1.zip")
    assert model.num_timesteps == 512
    assert [group["lr"] for group in model.policy.optimizer.param_groups] == [1e-5]
    assert (model.learning_rate(1.0), model.lr_schedule(0.5)) == (1e-5, 1e-5)
    assert (model.n_epochs, model.gamma, model.batch_size, model.clip_range(0.5)) == (3, 0.9, 64, 0.3)
    assert model.divergence_coef(0.5) == 0.25
    assert model.n_steps == 16  # what is not given is as it was
    assert model._n_updates - before._n_updates == 2 * 3
    config, args = saved("config"), saved("args")
    new = {"learning_rate": 1e-5, "n_epochs": 3, "gamma": 0.9, "batch_size": 64, "clip_range": 0.3}
    assert {name: config[name] for name in new} == new and config["divergence_coef"] == "lin_0.5"
    assert args["hyperparams"] == {**new, "divergence_coef": "lin_0.5", "n_steps": 16}
    assert (args["n_timesteps"], args["seed"]) == (512, 1)
    # And again without: they stay
    assert "instead of" not in command("train", *CARTPOLE, "--resume", "-n", "768")
    assert (saved("config"), saved("args")["hyperparams"]) == (config, args["hyperparams"])
    assert DAPO.load(cut / "CartPole-v1.zip").n_epochs == 3


def test_resume_that_was_killed_before_it_used_what_it_was_given(
    command: Command, cut: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is written down by then: the next one uses it, though it is given nothing."""

    class Killed(Exception):
        pass

    def learn(self: ExperimentManager, model: Any) -> None:
        raise Killed

    for given in (["learning_rate:0.001"], ["learning_rate:0.002", "gamma:0.8"]):
        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(ExperimentManager, "learn", learn)
            command("train", *CARTPOLE, "--resume", "-n", "512", "--hyperparams", *given)
    output = command("train", *CARTPOLE, "--resume", "-n", "512")
    assert "Resuming with learning_rate: 0.002 instead of 0.01" in output
    model = DAPO.load(cut / "CartPole-v1.zip")
    assert (model.learning_rate(1.0), model.gamma, model.num_timesteps) == (0.002, 0.8, 512)
    assert (saved("config")["learning_rate"], saved("config")["gamma"]) == (0.002, 0.8)
    assert "instead of" not in command("train", *CARTPOLE, "--resume", "-n", "768")


def test_resume_takes_hyperparameters_from_another_file(command: Command, cut: Path) -> None:
    """Those that the file leaves out have the defaults of the class. Without a file, the run's own count."""
    entry = "n_timesteps: 384, policy: MlpPolicy, n_envs: 8, n_steps: 16, batch_size: 64"
    Path("own.yml").write_text(f"CartPole-v1: {{{entry}}}")
    command("train", *CARTPOLE, "--resume", "-n", "384", "--conf-file", "own.yml")
    assert saved("config") == {**yaml.safe_load(f"{{{entry}}}"), "n_epochs": 1, "learning_rate": 0.01}
    model = DAPO.load(cut / "CartPole-v1.zip")
    assert (model.gamma, model.batch_size, model.learning_rate(1.0)) == (0.99, 64, 0.01)
    Path("own.yml").write_text(f"CartPole-v1: {{{entry}, gamma: 0.5}}")
    command("train", *CARTPOLE, "--resume", "-n", "512")
    assert DAPO.load(cut / "CartPole-v1.zip").gamma == 0.99 and "gamma" not in saved("config")


def test_resume_builds_the_environments_that_are_asked_for(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[float] = []
    played: set[float] = set()

    class Pendulum(PendulumEnv):
        def __init__(self, g: float = 10.0, **kwargs: Any) -> None:
            made.append(g)
            super().__init__(g=g, **kwargs)

        def step(self, action: np.ndarray) -> Any:
            played.add(self.g)
            return super().step(action)

    monkeypatch.setitem(gym.registry, "Own-v0", gym.envs.registration.EnvSpec("Own-v0", Pendulum))
    small = ("--hyperparams", "n_steps:64", "env_kwargs:dict(g=9.0)")
    command("train", "--env", "Own-v0", "-n", "64", "--save-freq", "64", *SHORT, *small)
    assert set(made) == played == {9.0}
    made.clear()
    played.clear()
    command("train", "--env", "Own-v0", "--resume", "-n", "128", "--env-kwargs", "g:8.0")
    run = Path("logs/dapo/Own-v0_1")
    assert set(made) == played == {8.0}
    assert saved("args", run)["env_kwargs"] == saved("config", run)["env_kwargs"] == {"g": 8.0}
    made.clear()
    command("train", "--env", "Own-v0", "--resume", "-n", "192")
    command("enjoy", "--env", "Own-v0", "--no-render", "-n", "2")
    assert set(made) == {8.0}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--hyperparams", "n_steps:32"), "`n_steps` cannot change with `--resume`.*must be 16, got 32"),
        (("--hyperparams", "n_envs:4"), "`n_envs` cannot change"),
        (("--hyperparams", "n_rollouts:2"), "`n_rollouts` cannot change.*must be 1, got 2"),
        (("--hyperparams", "policy:'CnnPolicy'"), "`policy` cannot change"),
        (("--hyperparams", "policy_kwargs:dict(net_arch=[8])"), "`policy_kwargs` cannot change"),
        (("--hyperparams", "use_sde:True"), "`use_sde` cannot change"),
        (("--hyperparams", "learning_rat:0.1"), "no hyperparameter 'learning_rat'.*did you mean 'learning_rate'"),
        (("--hyperparams", "gamma:2"), "`gamma` must be .*got 2"),
        (("--seed", "2"), "--seed must be that of the run with --resume, 1"),
        (("-i", "logs/dapo/CartPole-v1_1/CartPole-v1.zip"), "-i begins anew"),
        (("-optimize",), "-optimize begins anew"),
        (("--algo", "ppo"), "--resume needs checkpoints of this package: --algo must be dapo"),
    ],
)
def test_resume_refuses_what_it_cannot_use(
    command: Command, cut: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str
) -> None:
    before = contents(Path("logs"))
    assert re.search(message, refused(command, capsys, "train", *CARTPOLE, "--resume", "-n", "512", *arguments))
    assert contents(Path("logs")) == before


def test_a_new_total_may_be_a_hyperparameter(command: Command, cut: Path) -> None:
    command("train", *CARTPOLE, "--resume", "--hyperparams", "n_timesteps:384")
    assert DAPO.load(cut / "CartPole-v1.zip").num_timesteps == 384
    assert (saved("config")["n_timesteps"], saved("args")["n_timesteps"]) == (384, -1)


def test_resume_looks_for_its_run_once(command: Command, cut: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that begins meanwhile does not change which one is resumed."""
    parse_args = TrainParser.parse_args

    def parse_and_begin_another(self: TrainParser, *args: Any) -> Any:
        parsed = parse_args(self, *args)
        other = Path("logs/dapo/CartPole-v1_2")
        other.mkdir()
        (cut / "rl_model_128_steps.zip").rename(other / "rl_model_128_steps.zip")
        return parsed

    monkeypatch.setattr(TrainParser, "parse_args", parse_and_begin_another)
    assert f"Resuming from {cut}" in command("train", *CARTPOLE, "--resume", "-n", "512")


def test_assignments_add_up(command: Command) -> None:
    command("train", *CARTPOLE, "-n", "64", *SHORT, "--hyperparams", "n_steps:8", "--hyperparams", "n_epochs:2")
    assert (saved("config")["n_steps"], saved("config")["n_epochs"]) == (8, 2)


# --- statistics of VecNormalize ---


@pytest.fixture
def counts(monkeypatch: pytest.MonkeyPatch) -> set[float]:
    """How many observations the statistics are of that a command normalizes with."""
    seen: set[float] = set()
    normalize_obs = VecNormalize.normalize_obs

    def remember(self: VecNormalize, obs: np.ndarray) -> np.ndarray:
        seen.add(round(self.obs_rms.count))
        return normalize_obs(self, obs)

    monkeypatch.setattr(VecNormalize, "normalize_obs", remember)
    return seen


NORMALIZED = ("--hyperparams", "normalize:True", "n_envs:4", "n_steps:32", "n_epochs:1", "batch_size:64")
PLAYS = (("enjoy", "--no-render", "-n", "2"), ("record-video", "-n", "2"), ("report", "-n", "1", "--n-envs", "1"))


@pytest.mark.parametrize("algo", ["dapo", "ppo"])
def test_checkpoints_are_played_with_their_own_statistics(command: Command, counts: set[float], algo: str) -> None:
    named = (*CARTPOLE, "--algo", algo)
    evaluated = ("--eval-freq", "128", "--eval-episodes", "1", "--verbose", "0", "--seed", "1")
    command("train", *named, "-n", "512", "--save-freq", "128", *evaluated, *NORMALIZED)
    run = Path("logs", algo, "CartPole-v1_1")
    best = np.load(run / "evaluations.npz")
    mean = best["results"].mean(axis=1)
    best_steps = best["timesteps"][mean.argmax()]
    n_reset = 4  # the first observations
    for which, steps in (
        ((), 512),
        (("--load-checkpoint", "256"), 256),
        (("--load-last-checkpoint",), 512),
        (("--load-best",), best_steps),
    ):
        for name, *short in PLAYS:
            counts.clear()
            output = command(name, *named, *short, *which)
            assert counts == {steps + n_reset}, (name, which)
            if name == "report" and which and which[0] != "--load-last-checkpoint":
                assert f"-f logs {' '.join(which)} -n 5000" in output  # how to watch this one
    # Of an interrupted run
    (run / "CartPole-v1.zip").unlink()
    (run / "CartPole-v1" / "vecnormalize.pkl").unlink()
    for name, *short in PLAYS:
        counts.clear()
        command(name, *named, *short, "--load-last-checkpoint")
        assert counts == {512 + n_reset}


@pytest.mark.parametrize("is_interrupted", [False, True])
def test_training_goes_on_from_an_agent_with_its_own_statistics(
    command: Command, counts: set[float], is_interrupted: bool
) -> None:
    command("train", *CARTPOLE, "-n", "384", "--save-freq", "128", *SHORT, *NORMALIZED)
    if is_interrupted:
        (RUN / "CartPole-v1" / "vecnormalize.pkl").unlink()
    for agent, steps in (("rl_model_256_steps.zip", 256), ("rl_model_384_steps.zip", 384)):
        counts.clear()
        command("train", *CARTPOLE, "-n", "128", *SHORT, *NORMALIZED, "-i", str(RUN / agent))
        assert min(counts) == steps + 4 + 4  # the first observations of both runs
    if is_interrupted:
        with pytest.warns(UserWarning, match="no statistics of VecNormalize for .*They begin anew"):
            command("train", *CARTPOLE, "-n", "128", *SHORT, *NORMALIZED, "-i", str(RUN / "CartPole-v1.zip"))


def test_older_runs_tell_that_a_checkpoint_has_no_statistics(command: Command, counts: set[float], capsys) -> None:
    named = (*CARTPOLE, "--algo", "ppo", "--load-checkpoint", "128", "--no-render", "-n", "2")
    command("train", *CARTPOLE, "--algo", "ppo", "-n", "256", "--save-freq", "128", *SHORT, *NORMALIZED)
    run = Path("logs/ppo/CartPole-v1_1")
    for path in run.glob("rl_model_vecnormalize_*"):
        path.unlink()
    with pytest.warns(UserWarning, match="rl_model_128_steps.zip has no statistics of VecNormalize"):
        command("enjoy", *named)
    (run / "CartPole-v1" / "vecnormalize.pkl").unlink()
    assert "there are no statistics of VecNormalize" in refused(command, capsys, "enjoy", *named)


def test_statistics_of_a_checkpoint(command: Command) -> None:
    command("train", *CARTPOLE, "-n", "128", "--save-freq", "128", *SHORT, *NORMALIZED)
    statistics = vec_normalize_of(RUN / "rl_model_128_steps.zip")
    saved_statistics = pickle.loads((RUN / "CartPole-v1" / "vecnormalize.pkl").read_bytes())
    assert np.array_equal(statistics.obs_rms.mean, saved_statistics.obs_rms.mean)
    assert statistics.ret_rms.var == saved_statistics.ret_rms.var and statistics.gamma == saved_statistics.gamma
    assert vec_normalize_of(RUN / "CartPole-v1.zip") is None


def test_enjoy_normalizes_rewards_if_asked(command: Command) -> None:
    command("train", *CARTPOLE, "-n", "128", *SHORT, *NORMALIZED)

    def is_a_reward_per_step(*arguments: str) -> bool:
        output = command("enjoy", *CARTPOLE, "--no-render", "-n", "100", *arguments)
        reward, length = (float(output.partition(name)[2].split()[0]) for name in ("Reward: ", "Length "))
        return reward == length

    assert is_a_reward_per_step() and not is_a_reward_per_step("--norm-reward")


# --- environments ---


class Told(CartPoleEnv):
    """Counts how often it was made with which argument, and can be rendered."""

    made: ClassVar[list[int]] = []

    def __init__(self, number: int = 0, **kwargs: Any) -> None:
        self.made.append(number)
        super().__init__(**kwargs)


def test_arguments_in_the_hyperparameter_file_reach_every_environment(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Evaluations in training, videos."""
    spec = gym.envs.registration.EnvSpec("Told-v0", Told, max_episode_steps=10)
    monkeypatch.setitem(gym.registry, "Told-v0", spec)
    monkeypatch.setattr(Told, "made", made := [])
    small = ("--hyperparams", "n_steps:32", "env_kwargs:dict(number=3)")
    command("train", "--env", "Told-v0", "-n", "32", "--eval-freq", "32", "--verbose", "0", *small)
    for name, *short in PLAYS:
        command(name, "--env", "Told-v0", *short)
    assert set(made) == {3}


class Simulator(gym.Wrapper):
    """Fills `info` as wrappers of simulators do."""

    def __init__(self, episode: Any) -> None:
        super().__init__(gym.make("CartPole-v1", max_episode_steps=10))
        self.episode = episode

    def step(self, action):
        observation, reward, terminated, truncated, info = super().step(action)
        return observation, reward, terminated, truncated, {**info, "episode": self.episode}


@pytest.mark.parametrize("episode", [None, {}, {"score": 3}, {"r": None, "l": 3}, {"r": [1.0, 2.0], "l": [3, 4]}, 7])
def test_what_simulators_say_of_episodes_does_not_end_training(
    command: Command, monkeypatch: pytest.MonkeyPatch, episode: Any
) -> None:
    """SB3 itself takes only an empty entry or one with the score, so its statistics are left out for the others."""
    monkeypatch.setitem(gym.registry, "Sim-v0", gym.envs.registration.EnvSpec("Sim-v0", Simulator))
    if episode:
        monkeypatch.setattr("stable_baselines3.common.base_class.BaseAlgorithm._update_info_buffer", lambda *args: None)
    small = ("--hyperparams", "n_steps:64", "n_epochs:1", "--env-kwargs", f"episode:{episode!r}")
    for algo in ("dapo", "ppo"):
        command("train", "--env", "Sim-v0", "--algo", algo, "-n", "64", *SHORT, *small)
        rows = Path("logs", algo, "Sim-v0_1", "episodes.csv").read_text().splitlines()
        assert len(rows) >= 1 + 64 // 10


# --- plots and other algorithms ---


def test_plot_train_counts_each_step_of_a_resumed_run_once(command: Command) -> None:
    run = ("train", *CARTPOLE, "-n", "3072", *SHORT, "--save-freq", "1024", "--seed", "1")
    command(*run, "-f", "whole")
    command(*run)
    for steps in (2048, 1024):  # interrupted at 3,072, and then again
        for path in RUN.glob("rl_model_*_steps.zip"):
            if int(path.stem.split("_")[-2]) > steps:
                path.unlink()
        command("train", *CARTPOLE, "--resume")
    expected = load_monitor_files("whole/dapo/CartPole-v1_1")
    results = load_results(str(RUN))
    assert len(load_monitor_files(str(RUN))) > len(results) == len(expected) > 50
    assert sorted(zip(results.l, results.r, strict=True)) == sorted(zip(expected.l, expected.r, strict=True))
    assert results.t.is_monotonic_increasing

    drawn: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("matplotlib.pyplot.plot", lambda x, y, **kwargs: drawn.append(int(x[-1])))
        command("plot-train", *CARTPOLE, "-w", "10")
    assert drawn == [int(expected.l.sum())]


def test_unknown_hyperparameters_of_other_algorithms_are_refused(command: Command, capsys) -> None:
    line = refused(command, capsys, "train", *CARTPOLE, "--algo", "ppo", "--hyperparams", "n_epoch:3")
    assert "PPO has no hyperparameter 'n_epoch'" in line and "did you mean 'n_epochs'?" in line
    assert not list(Path().rglob("CartPole-v1_*"))


@pytest.mark.parametrize(
    "algo", ["a2c", "ars", "crossq", "ddpg", "dqn", "ppo", "ppo_lstm", "sac", "td3", "tqc", "trpo"]
)
def test_hyperparameter_files_of_the_zoo_are_taken(algo: str) -> None:
    path = Path(rl_zoo3.train.__file__).parent / "hyperparams" / f"{algo}.yml"
    of_the_zoo = {"n_timesteps", "n_envs", "normalize", "env_wrapper", "frame_stack", "env_kwargs", "vec_env_wrapper"}
    of_the_zoo |= {"callback", "monitor_kwargs", *NOISE}
    for entry in yaml.safe_load(path.read_text()).values():
        check_keywords(ALGOS[algo], set(entry) - of_the_zoo, str(path))


# --- algorithms of the user ---


class Sibling(DAPO):
    """An algorithm of a user, with an argument of its own."""

    def __init__(self, policy: Any, env: Any, *args: Any, bonus: float = 0.0, **kwargs: Any) -> None:
        self.bonus = bonus
        super().__init__(policy, env, *args, **kwargs)
        self.bonus = bonus


@pytest.fixture
def sibling(tmp_path: Path) -> Iterator[str]:
    path = tmp_path / "sibling.yml"
    entry = "n_timesteps: 256, policy: MlpPolicy, n_envs: 2, n_steps: 32, n_epochs: 1, batch_size: 64, bonus: 0.5"
    path.write_text(f"CartPole-v1: {{{entry}, divergence_coef: lin_0.3}}")
    register_algorithm("sibling", Sibling, conf_file=path)
    yield "sibling"
    for table in (ALGOS, CONF_FILES, HYPERPARAMS_SAMPLER, HYPERPARAMS_CONVERTER):
        del table["sibling"]


def test_an_algorithm_of_the_user(command: Command, sibling: str, capsys: pytest.CaptureFixture[str]) -> None:
    named = (*CARTPOLE, "--algo", sibling)
    command("train", *named, "-n", "128", "--save-freq", "64", "--seed", "1", *SHORT)
    run = Path("logs/sibling/CartPole-v1_1")
    model = Sibling.load(run / "CartPole-v1.zip")
    assert type(model) is Sibling and model.bonus == 0.5 and model.divergence_coef(0.5) == 0.15
    assert "Resuming with bonus: 0.25 instead of 0.5" in command(
        "train", *named, "--resume", "-n", "192", "--hyperparams", "bonus:0.25"
    )
    resumed = Sibling.load(run / "CartPole-v1.zip")
    assert type(resumed) is Sibling and (resumed.num_timesteps, resumed.bonus) == (192, 0.25)
    assert "did you mean 'bonus'" in refused(command, capsys, "train", *named, "--hyperparams", "bonu:1")
    for name, *short in PLAYS:
        command(name, *named, *short)
    assert list((run / "videos").glob("final-model-sibling-*.mp4"))
    command("plot", *named)
    command("benchmark", "--test-mode", "-n", "200", "--num-threads", "1")
    assert "|sibling|CartPole-v1|" in Path("logs/benchmark/benchmark.md").read_text()
    output = command(
        *("train", *named, "-optimize", "--n-trials", "1", "-n", "64", "--n-evaluations", "1"),
        *("--eval-episodes", "1", "--no-optim-plots", "--sampler", "random", "--seed", "1"),
    )
    assert "Number of finished trials:  1" in output


def test_algorithms_without_a_file_take_that_of_dapo(sibling: str) -> None:
    register_algorithm("sibling", Sibling)
    assert CONF_FILES["sibling"] == CONF_FILES["dapo"]
    assert read_hyperparameters("sibling", "CartPole-v1", None)["n_epochs"] == 20
    with pytest.raises(ValueError, match="`algo_class` must be a subclass of DAPO, got .*PPO"):
        register_algorithm("other", PPO)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="`conf_file` must be a file, there is no nowhere.yml"):
        register_algorithm("other", Sibling, conf_file="nowhere.yml")
    assert "other" not in ALGOS and set(arguments_of(Sibling)) > {"bonus", "divergence_coef", "n_steps"}
