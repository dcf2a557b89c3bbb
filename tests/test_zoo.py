"""The `sb3-dapo` command: RL Zoo's commands with DAPO registered."""

import argparse
import inspect
import pickle
import re
import shutil
import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import optuna
import pytest
import rl_zoo3.train
import yaml
from commands import refused
from gymnasium import spaces
from rl_zoo3.hyperparams_opt import HYPERPARAMS_CONVERTER, HYPERPARAMS_SAMPLER
from rl_zoo3.utils import ALGOS, SimpleLinearSchedule
from stable_baselines3 import PPO

import sb3_dapo.zoo
from sb3_dapo import DAPO, AdaptiveController, DualController
from sb3_dapo.arguments import SCHEDULED
from sb3_dapo.presets import parse_schedule
from sb3_dapo.zoo.cli import COMMANDS
from sb3_dapo.zoo.evaluation import RandomPolicy, evaluate, make_env, random_scores, read_hyperparameters
from sb3_dapo.zoo.exp_manager import ExperimentManager
from sb3_dapo.zoo.registration import CONF_FILES

CONF_FILE = Path(__file__).parent.parent / "hyperparams" / "dapo.yml"
HYPERPARAMS = yaml.safe_load(CONF_FILE.read_text())
BREAKOUT = "BreakoutNoFrameskip-v4"
ATARI_WRAPPER = "stable_baselines3.common.atari_wrappers.AtariWrapper"


def prepare(algo: str, env_id: str, vec_env_type: str = "dummy", **hyperparams) -> ExperimentManager:
    """An experiment manager that has read and prepared its hyperparameters."""
    manager = ExperimentManager(
        argparse.Namespace(), algo, env_id, log_folder="logs", hyperparams=hyperparams, vec_env_type=vec_env_type
    )
    hyperparams, _ = manager.read_hyperparameters()
    prepared = manager._preprocess_hyperparams(hyperparams)
    manager._hyperparams, manager.env_wrapper, _, manager.vec_env_wrapper = prepared
    return manager


def test_importing_registers() -> None:
    assert ALGOS["dapo"] is DAPO
    assert {"dapo"} <= set(HYPERPARAMS_SAMPLER) & set(HYPERPARAMS_CONVERTER)
    assert rl_zoo3.train.ExperimentManager is ExperimentManager
    assert ALGOS["ppo"] is PPO
    size = len(gym.registry)
    sb3_dapo.zoo.register()
    assert len(gym.registry) == size


def test_zoo_scripts_know_dapo_after_the_import_alone(empty_folder: Path) -> None:
    code = (
        "import sys, sb3_dapo.zoo; from rl_zoo3.train import train; "
        "sys.argv = ['train', '--algo', 'dapo', '--env', 'CartPole-v1', '-n', '256', '--eval-freq', '-1']; train()"
    )
    output = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert f"Loading hyperparameters from: {CONF_FILES['dapo']}" in output
    assert Path("logs/dapo/CartPole-v1_1/CartPole-v1.zip").is_file()


# --- Hyperparameters ---


@pytest.mark.parametrize("env_id", HYPERPARAMS)
def test_entries_hold_only_known_hyperparameters(env_id: str) -> None:
    not_for_algo = {"n_timesteps", "n_envs", "normalize", "env_wrapper", "frame_stack"}
    entry = HYPERPARAMS[env_id]
    assert set(entry) - not_for_algo <= set(inspect.signature(DAPO).parameters)
    assert isinstance(entry["n_timesteps"], int)
    for name, value in entry.items():
        if isinstance(value, str) and name in SCHEDULED:
            parse_schedule(name, value)
        elif name == "policy_loss":
            assert value in ("clip", "plain")
        elif name == "advantage":
            assert value == "vtrace_gae"
        elif name not in {"policy", "policy_kwargs", "normalize", "env_wrapper", "normalize_advantage"}:
            assert isinstance(value, int | float), f"{name}: YAML reads {value!r} as text"
    if not env_id.startswith("atari"):
        rollout = entry.get("n_steps", 2048) * entry.get("n_envs", 1)
        assert rollout % entry.get("batch_size", 64) == 0 or entry.get("batch_size", 64) > rollout


@pytest.mark.filterwarnings("ignore:.*out of date", "ignore:The last minibatch of every epoch", "ignore:builtin type")
@pytest.mark.parametrize("env_id", [name for name in HYPERPARAMS if name not in ("default", "atari")])
def test_agents_are_built_from_every_entry(empty_folder: Path, env_id: str) -> None:
    if env_id not in gym.registry:
        pytest.skip("environment is not installed")
    try:
        gym.make(env_id).close()
    except gym.error.DependencyNotInstalled as error:
        pytest.skip(str(error))
    manager = prepare("dapo", env_id, n_envs=1)
    env = manager.create_envs(1, no_log=True)
    model = DAPO(env=env, **manager._hyperparams)
    env.close()
    assert model.n_epochs == HYPERPARAMS[env_id].get("n_epochs", 10)


def test_atari_games_without_entry_use_the_atari_entry() -> None:
    assert read_hyperparameters("dapo", BREAKOUT, None) == HYPERPARAMS["atari"]
    assert read_hyperparameters("dapo", "CliffWalking-v1", None) == HYPERPARAMS["default"]


def test_the_file_of_the_user_and_the_other_algorithms_are_left_alone(tmp_path: Path) -> None:
    own = tmp_path / "own.yml"
    own.write_text("CartPole-v1: {n_timesteps: 10, policy: MlpPolicy, divergence_coef: lin_0.5}")
    assert read_hyperparameters("dapo", "CartPole-v1", str(own))["divergence_coef"] == "lin_0.5"
    assert "ppo" not in CONF_FILES
    ppo = prepare("ppo", "CartPole-v1")
    assert Path(ppo.config).parent.parent == Path(rl_zoo3.train.__file__).parent
    assert not set(ppo._hyperparams) - set(inspect.signature(PPO).parameters)


def test_schedules() -> None:
    hyperparams = prepare("dapo", "CartPole-v1", divergence_coef="lin_0.5", clip_range="lin_0.2")._hyperparams
    model = DAPO(env="CartPole-v1", **hyperparams)
    assert [model.divergence_coef(progress) for progress in (1.0, 0.5, 0.0)] == [0.5, 0.25, 0.0]
    assert model.clip_range(0.5) == 0.1
    # The Zoo's own, as PPO's are, so that the two are equal bit for bit
    assert isinstance(hyperparams["divergence_coef"], SimpleLinearSchedule)


@pytest.mark.parametrize(("kind", "controller"), [("adaptive", AdaptiveController), ("dual", DualController)])
def test_controllers(kind: str, controller: type) -> None:
    hyperparams = prepare("dapo", "CartPole-v1", divergence_coef=f"{kind}_0.02")._hyperparams
    assert type(hyperparams["divergence_coef"]) is controller
    assert hyperparams["divergence_coef"].target == 0.02


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("divergence_coef", "1e-3"),
        ("divergence_coef", "linear_0.1"),
        ("divergence_coef", "lin_"),
        ("divergence_coef", "adaptive_0"),
        ("learning_rate", "adaptive_0.1"),
        ("learning_rate", "0.1_lin"),
        ("clip_range", "lin_x"),
    ],
)
def test_wrong_schedules_are_refused(name: str, text: str) -> None:
    with pytest.raises(ValueError, match=f"`{name}` must be a number or lin_x.*got {text!r}"):
        prepare("dapo", "CartPole-v1", **{name: text})


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("divergance_coef:0.1", "no hyperparameter 'divergance_coef'.*did you mean 'divergence_coef'"),
        ("seed:1", "no hyperparameter 'seed'"),
        ("divergence_coef:-1", "`divergence_coef` must be .*got -1"),
        ("n_rollouts:0", "`n_rollouts` must be .*got 0"),
        ("n_envs:0", "`n_envs` must be .*got 0"),
        ("divergence:'klm'", "divergence.*klm"),
        ("policy_loss:'none'", "`policy_loss` must be .*got 'none'"),
        ("policy:'Mlp'", "Policy Mlp unknown"),
        ("divergence:klm", "did you mean \"divergence:'klm'\""),
        ("divergence_coef=0.5", 'did you mean "divergence_coef:0.5"'),
        ("divergence_coef:lin_0.5", "did you mean \"divergence_coef:'lin_0.5'\""),
        ("divergence_coef=lin_0.5", "did you mean \"divergence_coef:'lin_0.5'\""),
    ],
)
def test_wrong_hyperparameters_are_refused(command, capsys, assignment: str, message: str) -> None:
    line = refused(command, capsys, "train", "--env", "CartPole-v1", "-n", "100", "--hyperparams", assignment)
    assert re.search(message, line)
    assert not list(Path().rglob("CartPole-v1_*"))


@pytest.mark.filterwarnings("ignore:The last minibatch of every epoch")
def test_search_space_is_accepted_and_converted() -> None:
    def objective(trial: optuna.Trial) -> float:
        sampled = HYPERPARAMS_SAMPLER["dapo"](trial, 1, 1, {})
        converted = HYPERPARAMS_CONVERTER["dapo"](trial.params)
        assert converted == sampled
        # The buffer is not what is tested here
        DAPO("MlpPolicy", "CartPole-v1", **{**sampled, "n_steps": 32})
        assert "divergence_coef" in sampled and "learning_rate" in sampled
        return 0.0

    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    study.optimize(objective, n_trials=15)
    assert len({trial.params["policy_loss"] for trial in study.trials}) == 3


# --- Commands ---


def test_help_lists_every_command(command, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        command("--help")
    assert stopped.value.code == 0
    output = capsys.readouterr().out
    assert all(f"  {name} " in output for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(command, capsys: pytest.CaptureFixture[str], name: str) -> None:
    with pytest.raises(SystemExit) as stopped:
        command(name, "--help")
    assert stopped.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: sb3-dapo {name} [-h]")


@pytest.mark.parametrize("arguments", [[], ["trian"], ["random", "-n", "0"]])
def test_usage_errors(command, capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        command(*arguments)
    assert stopped.value.code == 2
    assert "usage: sb3-dapo" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("train", "--env", "CartPol-v1"), "there is no environment 'CartPol-v1': did you mean CartPole-v1?"),
        (("random", "--env", "CartPol-v1"), "there is no environment 'CartPol-v1': did you mean CartPole-v1?"),
        (("train", "--env", "Something-new"), "there is no environment 'Something-new': --gym-packages names"),
        (("train", "-n", "-5"), "-n must be at least 1.*-5"),
        (("train", "-n", "0"), "-n must be at least 1"),
        (("train", "--trial-id", "0"), "--trial-id needs the --storage and the --study-name"),
        (("train", "--trial-id", "3", "--storage", "s.log"), "--trial-id needs the --storage and the --study-name"),
        (("train", "--conf-file", "none.yml"), "`--conf-file` must be .*got none.yml"),
        (("train", "--conf-file", "other.yml"), "Hyperparameters not found for dapo-CartPole-v1 in other.yml"),
        (("train", "--conf-file", "broken.yml"), "`--conf-file` must be .*got broken.yml"),
        (("train", "--gym-packages", "no_such_module"), "there is no module 'no_such_module'"),
        (("train", "--study-name", "a", "--storage", "a.log", "--trial-id", "3"), "`--study-name` must be.*got 'a'"),
        (("train", "--study-name", "s", "--storage", "s.log", "--trial-id", "3"), "`--trial-id` must be.*got 3"),
        *(
            ((name, *exp_id), message)
            for name in ("enjoy", "report", "record-video", "plot")
            for exp_id, message in (
                ((), "there is no run of CartPole-v1 in logs/dapo: begin one"),
                (("--exp-id", "4"), "there is no run in logs/dapo/CartPole-v1_4: choose another --exp-id"),
            )
        ),
        (("plot-from-file",), "the following arguments are required: -i"),
        (("plot-from-file", "-i", "none"), "none.pkl"),
    ],
)
def test_mistakes_are_told_in_a_line(command, capsys, arguments: tuple[str, ...], message: str) -> None:
    Path("other.yml").write_text("Acrobot-v1: {n_timesteps: 10}")
    Path("broken.yml").write_text("CartPole-v1: {")
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend("s.log"))
    optuna.create_study(study_name="s", storage=storage)
    assert re.search(message, refused(command, capsys, *arguments))


class Faulty(gym.Env):
    """Fails when it is made, in the first step, or in the 20th."""

    observation_space = spaces.Box(0, 1, (1,))
    action_space = spaces.Discrete(2)

    def __init__(self, first_fault: int) -> None:
        self.first_fault = first_fault
        self.step_count = 0
        self.check()

    def check(self) -> None:
        if self.step_count >= self.first_fault:
            raise ValueError("a fault of my own")

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.step_count += 1
        self.check()
        return np.zeros(1, np.float32), 0.0, False, False, {}


@pytest.mark.parametrize("first_fault", [0, 1, 20])
def test_faults_of_the_user_keep_their_traceback(command, monkeypatch: pytest.MonkeyPatch, first_fault: int) -> None:
    monkeypatch.setitem(gym.registry, "Faulty-v0", gym.envs.registration.EnvSpec("Faulty-v0", Faulty))
    with pytest.raises(ValueError, match="a fault of my own"):
        command("train", "--env", "Faulty-v0", "--env-kwargs", f"first_fault:{first_fault}", "--eval-freq", "-1")
    # A folder of a run that did not begin would be taken for the latest
    assert Path("logs/dapo/Faulty-v0_1").exists() == (first_fault == 20)


class WrongSpace(Faulty):
    """Fails in Gymnasium's code, which the user's calls."""

    def check(self) -> None:
        self.action_space = spaces.Discrete(-1)


def test_faults_that_libraries_find_in_the_users_code_keep_their_traceback(
    command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(gym.registry, "Faulty-v0", gym.envs.registration.EnvSpec("Faulty-v0", WrongSpace))
    with pytest.raises((ValueError, AssertionError), match="have to be positive"):
        command("train", "--env", "Faulty-v0", "--env-kwargs", "first_fault:0")


@pytest.fixture
def run_folder(command) -> Path:
    """A short run with two evaluations, in the folder where the commands look for it."""
    command(
        *("train", "--env", "CartPole-v1", "-n", "2048", "--eval-freq", "1024", "--eval-episodes", "2"),
        *("--seed", "1", "--verbose", "0", "-tb", "logs/tensorboard", "--save-freq", "1024"),
    )
    return Path("logs/dapo/CartPole-v1_1")


def test_train_leaves_what_the_zoo_leaves(run_folder: Path) -> None:
    names = {path.name for path in run_folder.iterdir()}
    assert {"CartPole-v1.zip", "best_model.zip", "evaluations.npz", "0.monitor.csv", "CartPole-v1"} <= names
    assert {"rl_model_1024_steps.zip", "rl_model_2048_steps.zip"} <= names
    saved = yaml.unsafe_load((run_folder / "CartPole-v1" / "config.yml").read_text())
    assert dict(saved) == HYPERPARAMS["CartPole-v1"]
    assert list(Path("logs/tensorboard/CartPole-v1/DAPO_1").glob("events*"))
    model = DAPO.load(run_folder / "CartPole-v1.zip")
    assert model.num_timesteps == 2048
    assert model.n_epochs == HYPERPARAMS["CartPole-v1"]["n_epochs"]


def test_commands_on_a_run(command, capsys, run_folder: Path) -> None:
    output = command("enjoy", "--env", "CartPole-v1", "--no-render", "-n", "300")
    assert "Mean reward" in output

    command("record-video", "--env", "CartPole-v1", "-n", "20")
    assert list((run_folder / "videos").glob("final-model-dapo-CartPole-v1-*.mp4"))

    output = command("plot-train", "--env", "CartPole-v1", "-w", "2")
    assert "Saved logs/plots/Training_Episodic_Reward.png" in output
    output = command("all-plots", "--env", "CartPole-v1", "-o", "logs/results", "--no-million")
    assert "Saved logs/plots/Results_CartPole-v1.png" in output
    assert "CartPole-v1" in pickle.loads(Path("logs/results.pkl").read_bytes())

    output = command("benchmark", "--test-mode", "-n", "200", "--num-threads", "1")
    assert "|dapo|CartPole-v1|" in Path("logs/benchmark/benchmark.md").read_text()

    line = refused(command, capsys, "plot-from-file", "-i", "logs/results")
    assert "-i must hold at least two runs of each algorithm" in line
    second = Path("logs/dapo/CartPole-v1_2")
    second.mkdir()
    shutil.copy(run_folder / "evaluations.npz", second)
    command("all-plots", "--env", "CartPole-v1", "-o", "logs/results")
    command("plot-from-file", "-i", "logs/results", "--skip-timesteps", "-o", "figure.svg")
    assert Path("figure.svg").is_file() and Path("logs/plots/Sensitivity_plot.png").is_file()


def test_training_goes_on_from_a_saved_agent(command, run_folder: Path) -> None:
    output = command("train", "--env", "CartPole-v1", "-n", "256", "-i", str(run_folder / "CartPole-v1.zip"))
    assert "Loading pretrained agent" in output
    assert Path("logs/dapo/CartPole-v1_2/CartPole-v1.zip").is_file()


@pytest.mark.parametrize("env_id", ["Breakout", "breakout-v5", "Breakout-v7", "ALE/Breakout", "BreakoutDeterministic"])
def test_games_of_atari_are_suggested_without_frame_skip(command, capsys, env_id: str) -> None:
    pytest.importorskip("ale_py")
    assert f": did you mean {BREAKOUT}?" in refused(command, capsys, "train", "--env", env_id)


@pytest.mark.parametrize(
    ("env_id", "env_kwargs", "is_warned"),
    [(BREAKOUT, {}, False), ("ALE/Breakout-v5", {}, True), ("ALE/Breakout-v5", {"frameskip": 1}, False)],
)
def test_two_frame_skips_are_told(capsys, env_id: str, env_kwargs: dict, is_warned: bool) -> None:
    pytest.importorskip("ale_py")
    prepare("dapo", env_id, env_kwargs=env_kwargs)
    assert (f"Warning: {env_id} skips frames itself" in (warning := capsys.readouterr().err)) == is_warned
    assert (BREAKOUT in warning) == is_warned


def test_progress_bar_takes_the_place_of_the_tables(command) -> None:
    pytest.importorskip("rich")
    small = ("--env", "CartPole-v1", "-n", "512", "--eval-freq", "-1", "--save-freq", "256")
    assert "| rollout/" in command("train", *small)
    assert "| rollout/" not in command("train", *small, "--progress")
    assert "| rollout/" in command("train", *small, "--progress", "--verbose", "1")
    assert "| rollout/" not in command("train", "--env", "CartPole-v1", "--resume", "-n", "1024", "--progress")


def test_default_environment_is_told(command, capsys) -> None:
    with pytest.raises(SystemExit):
        command("train", "--help")
    assert "environment ID (default: CartPole-v1)" in capsys.readouterr().out


def test_first_trial_of_a_study(command) -> None:
    small = ("--env", "CartPole-v1", "-n", "256", "--eval-freq", "-1", "--study-name", "s", "--storage", "s.log")
    command("train", "-optimize", *small, "--n-trials", "1", "--eval-episodes", "1", "--no-optim-plots")
    assert "Loading from Optuna study" in command("train", *small, "--trial-id", "0")


OWN_ENV = """
import gymnasium as gym
from gymnasium.envs.classic_control import CartPoleEnv

gym.register("Own-v0", CartPoleEnv, max_episode_steps=20)
"""


def test_commands_import_the_packages_that_the_run_was_trained_with(command, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("own_env.py").write_text(OWN_ENV)
    monkeypatch.syspath_prepend(Path.cwd())

    def run(*arguments: str) -> str:
        """As a new process, in which nothing has registered the environment."""
        gym.registry.pop("Own-v0", None)
        sys.modules.pop("own_env", None)
        return command(*arguments, "--env", "Own-v0")

    small = ("--verbose", "0", "--eval-freq", "-1", "--save-freq", "64", "--hyperparams", "n_steps:64", "n_epochs:1")
    run("train", "-n", "64", *small, "--gym-packages", "own_env")
    assert "Own-v0 after 64 steps" in run("report", "-n", "1", "--n-envs", "1")
    assert "Mean reward" in run("enjoy", "--no-render", "-n", "50")
    assert "Saving video" in run("record-video", "-n", "10")
    assert "Resuming from" in run("train", "--resume", "-n", "128")
    del gym.registry["Own-v0"]


class Killed(Exception):
    """Ends training without any of the clean-up that an interrupt would cause."""


@pytest.mark.parametrize("env_id, n_steps", [("CartPole-v1", 256), ("Pendulum-v1", 128)])
def test_resume_equals_an_uninterrupted_run(
    command, monkeypatch: pytest.MonkeyPatch, env_id: str, n_steps: int
) -> None:
    """Rollouts are of `n_steps` steps. Pendulum's entry has gSDE, whose noise is drawn before each of them."""
    run = ["train", "--env", env_id, "-n", str(3 * n_steps), "--seed", "3", "--save-freq", str(n_steps)]
    run += ["--eval-freq", str(n_steps), "--eval-episodes", "1", "--verbose", "0"]
    run += ["--hyperparams", "n_steps:32", "n_epochs:2"]
    command(*run, "-f", "whole")

    train = DAPO.train

    def train_until_killed(self: DAPO) -> None:
        if self.num_timesteps == 3 * n_steps:
            raise Killed
        train(self)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(DAPO, "train", train_until_killed)
        command(*run, "-f", "cut")
    assert "Resuming from" in command("train", "--env", env_id, "-f", "cut", "--resume")

    runs = [Path(folder, "dapo", f"{env_id}_1") for folder in ("whole", "cut")]
    whole, cut = (DAPO.load(run / f"{env_id}.zip", device="cpu") for run in runs)
    assert cut.num_timesteps == whole.num_timesteps
    for name, parameter in whole.policy.state_dict().items():
        assert parameter.equal(cut.policy.state_dict()[name]), name
    evaluations = [np.load(run / "evaluations.npz") for run in runs]
    np.testing.assert_array_equal(evaluations[0]["results"], evaluations[1]["results"])
    assert not Path("cut", "dapo", f"{env_id}_2").exists()


def test_a_finished_run_is_left_alone(command, capsys, run_folder: Path) -> None:
    before = {path: path.read_bytes() for path in Path("logs").rglob("*") if path.is_file()}
    with pytest.raises(SystemExit) as stopped:
        command("train", "--env", "CartPole-v1", "--resume")
    assert not stopped.value.code
    assert capsys.readouterr().out.endswith(f"{run_folder} is already at 2048 timesteps: give -n for more\n")
    assert before == {path: path.read_bytes() for path in Path("logs").rglob("*") if path.is_file()}


def test_resuming_twice_from_a_checkpoint_keeps_all_monitor_files(command, run_folder: Path) -> None:
    contents = {(run_folder / "0.monitor.csv").read_bytes()}
    for number in (1, 2):
        command("train", "--env", "CartPole-v1", "--resume", "-n", "3072")
        (run_folder / "rl_model_3072_steps.zip").unlink()
        assert (run_folder / f"before_{number}_rl_model_2048_steps_0.monitor.csv").is_file()
        contents.add((run_folder / "0.monitor.csv").read_bytes())
    assert len(contents) == 3
    assert contents == {path.read_bytes() for path in run_folder.glob("*0.monitor.csv")}


def test_nothing_to_resume(command, capsys) -> None:
    resume = ("train", "--env", "CartPole-v1", "--resume")
    assert "there is no run of CartPole-v1" in refused(command, capsys, *resume)
    command("train", "--env", "CartPole-v1", "-n", "256", "--eval-freq", "-1", "--verbose", "0")
    assert "`--resume` needs a run with checkpoints (--save-freq)" in refused(command, capsys, *resume)


def test_latest_run_is_one_that_the_command_can_use(command, run_folder: Path) -> None:
    """A later run was killed before it left anything, or logged nowhere."""
    Path("logs/dapo/CartPole-v1_2/CartPole-v1").mkdir(parents=True)
    for arguments, file in (
        (("enjoy", "--no-render", "-n", "10"), "CartPole-v1.zip"),
        (("enjoy", "--no-render", "-n", "10", "--load-best"), "best_model.zip"),
        (("record-video", "-n", "5"), "CartPole-v1.zip"),
        (("report", "-n", "1", "--n-envs", "1"), "CartPole-v1.zip"),
        (("plot",), "tensorboard.txt"),
        (("train", "--resume", "-n", "3072", "--verbose", "0"), "rl_model_*_steps.zip"),
    ):
        assert command(*arguments).count(f"Skipping logs/dapo/CartPole-v1_2, which has no {file}\n") == 1
    assert DAPO.load(run_folder / "CartPole-v1.zip").num_timesteps == 3072


def test_same_seed_same_agent(command) -> None:
    for _ in range(2):
        command("train", "--env", "CartPole-v1", "-n", "512", "--seed", "3", "--verbose", "0", "--eval-freq", "-1")
    first, second = (DAPO.load(f"logs/dapo/CartPole-v1_{run}/CartPole-v1.zip") for run in (1, 2))
    for name, parameter in first.policy.state_dict().items():
        assert parameter.equal(second.policy.state_dict()[name])


def test_optimize(command) -> None:
    output = command(
        *("train", "--env", "CartPole-v1", "-optimize", "--n-trials", "2", "-n", "256", "--n-evaluations", "1"),
        *("--eval-episodes", "1", "--no-optim-plots", "--seed", "13", "--sampler", "random"),
    )
    assert "Number of finished trials:  2" in output
    (report,) = Path("logs/dapo").glob("report_CartPole-v1_2-trials-*.csv")
    assert not Path("logs/dapo/CartPole-v1_1").exists()
    header = report.read_text().splitlines()[0]
    assert "params_divergence_coef" in header and "params_learning_rate" in header


def test_console_script_on_atari(empty_folder: Path) -> None:
    pytest.importorskip("ale_py")

    def run(*arguments: str) -> str:
        command = [sys.executable, "-m", "sb3_dapo.zoo", *arguments, "--env", BREAKOUT]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    small = ["n_envs:2", "n_steps:64", "n_epochs:1"]
    run("train", "-n", "128", "--eval-freq", "-1", "--num-threads", "1", "--hyperparams", *small)
    output = run("enjoy", "--no-render", "-n", "500")
    assert "Atari Episode Score" in output


@pytest.mark.parametrize(
    ("env_id", "vec_env", "hyperparams", "expected"),
    [
        (BREAKOUT, "auto", {}, "AtariVecEnv"),
        (BREAKOUT, "native", {"env_wrapper": [{ATARI_WRAPPER: {"clip_reward": False}}]}, "AtariVecEnv"),
        (BREAKOUT, "dummy", {}, "VecTransposeImage"),
        (BREAKOUT, "auto", {"env_wrapper": [{ATARI_WRAPPER: {"action_repeat_probability": 0.5}}]}, "VecTransposeImage"),
        (BREAKOUT, "auto", {"env_wrapper": [ATARI_WRAPPER, "rl_zoo3.wrappers.HistoryWrapper"]}, None),
        ("ALE/Breakout-v5", "auto", {}, "VecTransposeImage"),
        ("CartPole-v1", "auto", {}, "DummyVecEnv"),
    ],
)
def test_kind_of_environment(env_id: str, vec_env: str, hyperparams: dict, expected: str | None) -> None:
    pytest.importorskip("ale_py")
    manager = prepare("dapo", env_id, vec_env, **hyperparams)
    if expected is None:
        assert manager.native_kwargs is None
        return
    env = manager.create_envs(2, no_log=True)
    assert type(env).__name__ == expected
    if "Breakout" in env_id:
        assert env.reset().shape == (2, 4, 84, 84)
    env.close()


@pytest.mark.parametrize("env_id", ["CartPole-v1", "ALE/Breakout-v5"])
def test_native_is_refused_where_it_cannot_be_had(env_id: str) -> None:
    pytest.importorskip("ale_py")
    with pytest.raises(ValueError, match="`--vec-env` must be auto, dummy or subproc.*got 'native'"):
        prepare("dapo", env_id, "native")


def test_minatar(command) -> None:
    pytest.importorskip("minatar")
    env_id = "MinAtar/Asterix-v1"
    command("train", "--env", env_id, "-n", "1024", "--verbose", "0", "--eval-freq", "-1")
    assert "Episode Reward" in command("enjoy", "--env", env_id, "--no-render", "-n", "300")


# --- Scores ---


def test_random_command(command) -> None:
    output = command("random", "--env", "CartPole-v1", "-n", "50", "--seed", "1")
    mean = float(output.split(": ")[1].split(" ")[0])
    assert 17 < mean < 28  # 22 steps on average
    assert output == command("random", "--env", "CartPole-v1", "-n", "50", "--seed", "1")
    assert output != command("random", "--env", "CartPole-v1", "-n", "50", "--seed", "2")


class Countdown(gym.Env):
    """Three steps of reward 5; the observation counts them."""

    observation_space = spaces.Box(0, 3, (1,))
    action_space = spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.step_count = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.step_count += 1
        return np.full(1, self.step_count, np.float32), 5.0, self.step_count == 3, False, {}


def test_scores_are_of_the_game_and_not_of_its_wrappers() -> None:
    gym.register("Countdown-v0", Countdown)
    hyperparams = {"env_wrapper": [{"gymnasium.wrappers.TransformReward": {"func": np.sign}}]}
    try:
        env = make_env("Countdown-v0", hyperparams, {}, n_envs=2, seed=0)
        env.reset()
        assert env.step(np.zeros(2, int))[1].tolist() == [1, 1]
        assert evaluate(RandomPolicy(env.action_space, 0), env, 5, deterministic=True).tolist() == [15] * 5
    finally:
        del gym.registry["Countdown-v0"]


def test_random_scores_on_atari_are_of_whole_unclipped_games() -> None:
    pytest.importorskip("ale_py")
    hyperparams = read_hyperparameters("dapo", "SpaceInvadersNoFrameskip-v4", None)
    scores = random_scores("SpaceInvadersNoFrameskip-v4", hyperparams, {}, n_envs=2, seed=0, n_episodes=4)
    assert (scores % 5 == 0).all() and scores.mean() > 30  # an invader gives 5 to 30 points, clipped 1


def test_random_policy_is_uniform() -> None:
    policy = RandomPolicy(spaces.Discrete(4), seed=0)
    observation = {"a": np.zeros((1000, 3))}
    actions, _ = policy.predict(observation)
    assert (np.bincount(actions, minlength=4) > 200).all()
