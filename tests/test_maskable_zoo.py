"""Commands and Hub for MaskableDAPO: the environments refuse what masks do not allow, so nothing may play that."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from commands import Command
from masked_envs import SPACES, masked, sizes_of
from stable_baselines3.common.callbacks import EvalCallback, StopTrainingOnNoModelImprovement
from test_hub import HubServer, hub  # noqa: F401

from sb3_dapo import MaskableDAPO
from sb3_dapo.arguments import arguments_of

pytest.importorskip("rl_zoo3")

from rl_zoo3.utils import ALGOS

from sb3_dapo.zoo.evaluation import RandomPolicy

GAME = ("--algo", "dapo_mask", "--env", "MaskedGame-v0")
SMALL = ("--hyperparams", "n_steps:32", "batch_size:16", "n_epochs:1", "n_rollouts:2")
CONF_FILE = Path(__file__).parent.parent / "hyperparams" / "dapo_mask.yml"


@pytest.mark.parametrize("kind", SPACES)
def test_commands(kind: str, command: Command) -> None:
    kwargs = ("--env-kwargs", f"kind:'{kind}'")
    train = ("train", *GAME, *kwargs, "-n", "160", "--eval-freq", "64", "--eval-episodes", "2", "--save-freq", "64")
    command(*train, *SMALL)
    folder = Path("logs/dapo_mask/MaskedGame-v0_1")
    assert type(ALGOS["dapo_mask"].load(folder / "best_model.zip")) is MaskableDAPO
    assert len(np.load(folder / "evaluations.npz")["timesteps"]) == 2
    assert "score of whole games" in command("report", *GAME, "-n", "2")
    assert "Mean reward" in command("enjoy", *GAME, "-n", "60", "--no-render", "--stochastic")
    command("train", *GAME, "--resume", "-n", "256")
    assert ALGOS["dapo_mask"].load(folder / "MaskedGame-v0.zip").num_timesteps >= 256


def test_video_and_random_policy(command: Command) -> None:
    command("train", *GAME, "-n", "64", "--eval-freq", "-1", *SMALL)
    command("record-video", *GAME, "-n", "40", "--stochastic")
    assert list(Path("logs").rglob("*.mp4"))
    assert "Random policy on MaskedGame-v0" in command("random", *GAME, "-n", "3")


def test_search(command: Command) -> None:
    arguments = ("-n", "256", "-optimize", "--n-trials", "1", "--n-startup-trials", "1", "--n-evaluations", "1")
    output = command("train", *GAME, *arguments, "--eval-episodes", "2", "--hyperparams", "n_steps:32")
    assert "Number of finished trials:  1" in output and "Sampled hyperparams:" not in output


@pytest.mark.parametrize("kind", SPACES)
def test_random_actions_are_uniform_over_what_is_allowed(kind: str) -> None:
    env = masked(SPACES[kind], n_envs=1)()
    env.reset()
    policy = RandomPolicy(env.action_space, 0, env)
    actions = np.array([policy.predict(np.zeros((1, 3)))[0][0] for _ in range(2000)]).reshape(2000, -1)
    for i, allowed in enumerate(env.envs[0].unwrapped.masks):  # type: ignore[attr-defined]
        shares = np.bincount(actions[:, i].astype(int), minlength=sizes_of(SPACES[kind])[i]) / 2000
        np.testing.assert_allclose(shares, allowed / allowed.sum(), atol=0.05)


def test_sb3s_eval_callback_asks_for_masks(tmp_path: Path) -> None:
    stop = StopTrainingOnNoModelImprovement(100)
    callback = EvalCallback(
        masked(SPACES["MultiDiscrete"])(),
        callback_after_eval=stop,
        eval_freq=32,
        n_eval_episodes=3,
        deterministic=False,
        best_model_save_path=str(tmp_path),
    )
    model = MaskableDAPO("MlpPolicy", masked(SPACES["MultiDiscrete"])(), n_steps=64, device="cpu")
    model.learn(256, callback=[callback])  # type: ignore[list-item]
    assert callback.last_mean_reward > 0 and stop.n_calls == 4
    assert (tmp_path / "best_model.zip").is_file()


def test_hyperparameters_are_known() -> None:
    not_for_algo = {"n_timesteps", "n_envs", "normalize", "env_wrapper", "frame_stack"}
    for entry in yaml.safe_load(CONF_FILE.read_text()).values():
        assert set(entry) - not_for_algo <= set(arguments_of(MaskableDAPO))
        assert "use_sde" not in entry


def test_hub(hub: HubServer) -> None:  # noqa: F811
    """The card is of this class, and its score was played with masks."""
    env: Any = masked(SPACES["MultiBinary"])()
    model = MaskableDAPO("MlpPolicy", env, n_steps=32, batch_size=16, n_epochs=1, device="cpu").learn(64)
    model.push_to_hub("lab/agent", eval_env=env, n_eval_episodes=3, deterministic=False)
    card = hub.repositories["lab/agent"].files["README.md"].decode()
    assert "# MaskableDAPO" in card and 'pip install "sb3-dapo[hub,contrib]"' in card
    assert "from sb3_dapo import MaskableDAPO" in card and "evaluate_policy" not in card
    loaded = MaskableDAPO.from_pretrained("lab/agent", env=env)
    observations = env.reset()
    masks = np.stack(env.env_method("action_masks"))
    expected, _ = model.predict(observations, deterministic=True, action_masks=masks)
    np.testing.assert_array_equal(loaded.predict(observations, deterministic=True, action_masks=masks)[0], expected)
