"""Presets: arguments in one word, in Python and on the command line, from one table."""

import re
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import yaml
from commands import Command, refused
from envs import CatchEnv
from gymnasium import spaces
from masked_envs import MaskedEnv
from stable_baselines3.common.env_util import make_vec_env

from sb3_dapo import DAPO, AdaptiveController, MaskableDAPO, RecurrentDAPO, presets
from sb3_dapo.presets import SCARCE, kind_of, parse_schedule, scarce


class Fixed(gym.Env[Any, Any]):
    """An environment of which only the spaces matter."""

    def __init__(self, observation_space: spaces.Space[Any], action_space: spaces.Space[Any]) -> None:
        self.observation_space, self.action_space = observation_space, action_space


IMAGES = spaces.Box(0, 255, (210, 160, 3), np.uint8)
VECTORS = spaces.Box(-1, 1, (3,))


@pytest.mark.parametrize(
    ("observations", "actions", "kind"),
    [
        (VECTORS, spaces.Discrete(2), "discrete"),
        (spaces.Box(0, 1, (10, 10, 4), bool), spaces.Discrete(6), "discrete"),
        (spaces.Dict({"image": IMAGES}), spaces.MultiDiscrete([2, 2]), "discrete"),
        (IMAGES, spaces.Discrete(18), "atari"),
        (spaces.Box(0, 255, (4, 84, 84), np.uint8), spaces.Discrete(18), "atari"),
        (VECTORS, spaces.Box(-1, 1, (2,)), "continuous"),
        (IMAGES, spaces.Box(-1, 1, (3,)), "continuous"),
    ],
)
def test_kind(observations: spaces.Space[Any], actions: spaces.Space[Any], kind: str) -> None:
    env = Fixed(observations, actions)
    assert kind_of(env) == kind
    own, measured = scarce(env), SCARCE[kind]
    # One environment makes as many steps as those did that it was measured with
    assert own.pop("n_steps") == measured["n_steps"] * measured["n_envs"]
    named = scarce(kind)
    assert named.pop("n_steps") == measured["n_steps"]
    assert {name: str(value) for name, value in own.items()} == {name: str(value) for name, value in named.items()}


@pytest.mark.parametrize(
    ("env_id", "n_envs", "n_steps", "uses", "policy_loss"),
    [
        ("CartPole-v1", 1, 1024, 8, "plain"),
        ("CartPole-v1", 4, 256, 8, "plain"),
        ("CartPole-v1", 5, 256, 8, "plain"),
        ("Pendulum-v1", 3, 640, 10, "clip_augmented"),
    ],
)
def test_models_are_made_of_it(env_id: str, n_envs: int, n_steps: int, uses: int, policy_loss: str) -> None:
    env = make_vec_env(env_id, n_envs=n_envs)
    kind = kind_of(env)
    model = DAPO("MlpPolicy", env, **scarce(env))  # without a warning of minibatches that are cut short
    assert model.n_steps == n_steps
    assert model.n_epochs * model.n_rollouts == uses
    assert (model.policy_loss, model.advantage, model.n_rollouts) == (policy_loss, "vtrace_gae", 2)
    peak = float(SCARCE[kind]["learning_rate"].removeprefix("lin_"))
    assert [model.lr_schedule(progress) for progress in (1.0, 0.5, 0.0)] == pytest.approx([peak, peak / 2, 0])


def test_siblings_take_it_too(tmp_path: Path) -> None:
    assert MaskableDAPO("MlpPolicy", MaskedEnv(spaces.Discrete(3)), **scarce("discrete")).n_rollouts == 2
    model = RecurrentDAPO("MlpLstmPolicy", "CartPole-v1", **scarce("discrete"))
    model.save(tmp_path / "model")  # its schedules can be pickled
    assert RecurrentDAPO.load(tmp_path / "model").lr_schedule(0.5) == model.lr_schedule(0.5)


def test_it_can_be_added_to() -> None:
    settings = presets.scarce("discrete") | {"n_rollouts": 4}
    assert DAPO("MlpPolicy", "CartPole-v1", **settings).n_rollouts == 4
    assert presets.scarce("discrete")["n_rollouts"] == 2


@pytest.mark.parametrize("env", ["CartPole-v1", "mujoco", ""])
def test_unknown_kinds_are_refused(env: str) -> None:
    with pytest.raises(ValueError, match=f"`env` must be an environment or one of discrete, .*got '{env}'"):
        scarce(env)


def test_schedules_of_text() -> None:
    linear = parse_schedule("clip_range", "lin_0.2")
    assert [linear(progress) for progress in (1.0, 0.25, 0.0)] == pytest.approx([0.2, 0.05, 0])
    controller = parse_schedule("divergence_coef", "adaptive_0.03")
    assert isinstance(controller, AdaptiveController) and controller.target == 0.03
    with pytest.raises(ValueError, match="`clip_range` must be a number or lin_x, got 'adaptive_0.03'"):
        parse_schedule("clip_range", "adaptive_0.03")
    assert parse_schedule("divergence_coef", "auto") == "auto"
    with pytest.raises(ValueError, match="must be a number or lin_x, adaptive_x, dual_x, auto, got 'auto_1'"):
        parse_schedule("divergence_coef", "auto_1")
    with pytest.raises(ValueError, match="`learning_rate` must be a number or lin_x, got 'auto'"):
        parse_schedule("learning_rate", "auto")


# --- On the command line ---


def trained_with(command: Command, *arguments: str) -> dict[str, Any]:
    """
    :param command: runs `sb3-dapo`
    :param arguments: of `train`
    :return: hyperparameters that the run was trained with
    """
    command("train", "-n", "16", "--eval-freq", "-1", "--verbose", "0", *arguments)
    (path,) = Path("logs").glob("*/*/*/config.yml")
    config: dict[str, Any] = dict(yaml.unsafe_load(path.read_text()))
    return config


def test_train(command: Command) -> None:
    small = ("--hyperparams", "n_steps:16", "n_envs:2", "batch_size:32")
    config = trained_with(command, "--env", "CartPole-v1", "--preset", "scarce", *small)
    given = {"n_steps": 16, "n_envs": 2, "batch_size": 32}  # what is given wins
    assert {name: config[name] for name in SCARCE["discrete"]} == SCARCE["discrete"] | given
    assert config["gamma"] == 0.98  # of the environment's entry
    args = yaml.unsafe_load(Path("logs/dapo/CartPole-v1_1/CartPole-v1/args.yml").read_text())
    assert args["preset"] == "scarce" and args["hyperparams"] == given


def test_train_ppo_with_what_it_shares(command: Command) -> None:
    config = trained_with(command, "--env", "Pendulum-v1", "--algo", "ppo", "--preset", "scarce")
    assert config["n_epochs"] == 10 and config["learning_rate"] == "lin_0.0016" and config["normalize"] is True
    assert config["n_steps"] == 512 and config["n_envs"] == 4 and config["clip_range"] == 0.2
    assert not set(config) & {"n_rollouts", "policy_loss", "advantage", "divergence_coef"}


def test_train_atari(command: Command) -> None:
    pytest.importorskip("ale_py")
    small = ("--hyperparams", "n_steps:16", "n_envs:2", "batch_size:32", "n_epochs:1")
    config = trained_with(command, "--env", "PongNoFrameskip-v4", "--preset", "scarce", *small)
    assert config["learning_rate"] == "lin_0.0005" and config["frame_stack"] == 4
    assert config["policy_loss"] == "clip_augmented" and config["clip_range"] == 0.2  # the Zoo's entry has lin_0.1


def test_resumed_runs_keep_it(command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    run = ("train", "--env", "CartPole-v1", "--eval-freq", "-1", "--verbose", "0")
    command(*run, "-n", "1024", "--save-freq", "1024", "--preset", "scarce", "--hyperparams", "n_epochs:1")
    assert "instead of" not in command(*run, "-n", "2048", "--resume")
    assert "--preset begins anew" in refused(command, capsys, *run, "--resume", "--preset", "scarce")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--preset", "plenty"), "invalid choice: 'plenty'"),
        (("--preset", "scarce", "--algo", "dqn"), "`--preset` is for ppo and dapo, .*got `--algo` dqn"),
    ],
)
def test_wrong_presets_are_refused(command: Command, capsys: Any, arguments: tuple[str, ...], message: str) -> None:
    line = refused(command, capsys, "train", "--env", "CartPole-v1", *arguments)
    assert re.search(message, line)


def test_images_are_learned_from() -> None:
    env = make_vec_env(CatchEnv, 2)
    assert kind_of(env) == "atari"
    settings = scarce(env) | {"n_steps": 64, "batch_size": 64}
    assert DAPO("CnnPolicy", env, **settings).learn(128).num_timesteps == 128
