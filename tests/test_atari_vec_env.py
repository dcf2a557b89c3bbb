import importlib.util
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from itertools import count
from pathlib import Path
from types import ModuleType
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from algos import ALL_ALGOS
from stable_baselines3 import PPO
from stable_baselines3.common.atari_wrappers import AtariWrapper, EpisodicLifeEnv, FireResetEnv
from stable_baselines3.common.callbacks import BaseCallback, CheckpointCallback, EvalCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor, load_results
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    VecFrameStack,
    VecMonitor,
    VecNormalize,
    VecTransposeImage,
    VecVideoRecorder,
    is_vecenv_wrapped,
)

pytest.importorskip("ale_py")
pytest.importorskip("cv2")
pytest.importorskip("scipy")

import sb3_dapo.atari_vec_env
from sb3_dapo import DAPO
from sb3_dapo import fast as forms
from sb3_dapo.acting import few_threads
from sb3_dapo.atari_vec_env import AtariGame, AtariVecEnv

BREAKOUT = "BreakoutNoFrameskip-v4"
SMALL_CNN = {"features_extractor_kwargs": {"features_dim": 16}, "net_arch": []}
BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def load_module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


equivalence = load_module(BENCHMARKS / "atari_equivalence.py")


def play(env: AtariVecEnv, n_steps: int, seed: int = 0) -> list[tuple[Any, ...]]:
    """Random steps."""
    rng = np.random.default_rng(seed)
    return [env.step(rng.integers(env.action_space.n, size=env.num_envs)) for _ in range(n_steps)]


# --- the same as SB3's wrappers


@pytest.mark.parametrize(
    "env_id, n_steps, native_kwargs, env_kwargs, wrapper_kwargs",
    [
        (BREAKOUT, 300, {}, {}, {}),
        ("PongNoFrameskip-v4", 100, {}, {}, {}),
        ("SpaceInvadersNoFrameskip-v4", 250, {}, {}, {}),
        ("QbertNoFrameskip-v4", 250, {}, {}, {}),
        ("SeaquestNoFrameskip-v4", 250, {}, {}, {}),
        ("BeamRiderNoFrameskip-v4", 100, {}, {}, {}),
        ("FreewayNoFrameskip-v4", 100, {}, {}, {}),  # no FIRE
        ("EnduroNoFrameskip-v4", 100, {}, {}, {}),
        ("BerzerkNoFrameskip-v4", 250, {}, {}, {}),  # opens with a menu: the frame counters of games do not begin at 0
        ("JourneyEscapeNoFrameskip-v4", 50, {}, {}, {}),  # screens of (230, 160)
        (BREAKOUT, 200, {}, {}, {"terminal_on_life_loss": False, "clip_reward": False}),
        (BREAKOUT, 200, {}, {}, {"noop_max": 0, "screen_size": 42}),
        (BREAKOUT, 100, {}, {}, {"frame_skip": 1, "noop_max": 5}),
        (BREAKOUT, 100, {}, {}, {"frame_skip": 3}),
        ("ALE/Qbert-v5", 250, {}, {"frameskip": 1}, {}),
        ("SeaquestNoFrameskip-v0", 100, {}, {}, {}),
        (BREAKOUT, 100, {"repeat_action_probability": 0.5}, {"repeat_action_probability": 0.5}, {}),
        (BREAKOUT, 100, {"full_action_space": True}, {"full_action_space": True}, {}),
        (
            "SeaquestNoFrameskip-v4",
            200,
            {"max_num_frames_per_episode": 600},
            {"max_num_frames_per_episode": 600},
            {"noop_max": 0},
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:.*out of date")
def test_same_steps_as_the_wrappers(
    env_id: str,
    n_steps: int,
    native_kwargs: dict[str, Any],
    env_kwargs: dict[str, Any],
    wrapper_kwargs: dict[str, Any],
) -> None:
    n_envs = 2 if env_id == BREAKOUT else 1
    native = AtariVecEnv(env_id, n_envs, **native_kwargs, **wrapper_kwargs)
    classic = equivalence.make_classic(env_id, n_envs, env_kwargs=env_kwargs, **wrapper_kwargs)
    assert native.observation_space == classic.observation_space
    assert native.action_space == classic.action_space
    counts = equivalence.count_differences(native, classic, n_steps, seed=7)
    assert counts["step"] == n_envs * n_steps
    for kind in ("observation", "reward", "done", "info", "terminal_observation"):
        assert counts[kind] == 0, (kind, counts)
    if n_steps >= 200:  # enough for lives to be lost
        assert counts["episode"] > 0
    if n_steps >= 200 and env_id == BREAKOUT:  # and for games to end
        assert counts["game"] > 0


def test_comparison_notices_differences() -> None:
    native = AtariVecEnv(BREAKOUT, 2)
    sticky = equivalence.make_classic(BREAKOUT, 2, action_repeat_probability=0.5)
    counts = equivalence.count_differences(native, sticky, 200, seed=7)
    for kind in ("observation", "reward", "done", "info"):
        assert counts[kind] > 0


def test_same_distribution_of_games() -> None:
    native = equivalence.play_games(AtariVecEnv(BREAKOUT, 4), 20, seed=0)
    classic = equivalence.play_games(equivalence.make_classic(BREAKOUT, 4), 20, seed=100)
    assert len(native) == len(classic) == 20
    for games in (native, classic):
        assert all(1 <= game.noop_frames <= 30 for game in games)
    for row in equivalence.compare_games(native, classic):
        assert row["p_value"] > 0.01, row
    longer = [game._replace(length=game.length + 500) for game in native]
    assert [row["p_value"] < 0.01 for row in equivalence.compare_games(longer, classic)] == [False, True, False]


@pytest.mark.parametrize("env_id", ["FreewayNoFrameskip-v4", "BerzerkNoFrameskip-v4"])
def test_number_of_noop_frames_is_uniform(env_id: str) -> None:
    env = AtariVecEnv(env_id, noop_max=3, seed=0)
    drawn = []
    for _ in range(90):
        env.reset()
        drawn += env.get_attr("noop_frames")
    assert set(drawn) == {1, 2, 3}
    assert min(map(drawn.count, (1, 2, 3))) > 18


def test_cpp_pixels_are_close_and_nothing_else_differs() -> None:
    for env_id, share in ((BREAKOUT, 0.0), ("FreewayNoFrameskip-v4", 0.02)):
        exact, fast = AtariVecEnv(env_id, seed=1), AtariVecEnv(env_id, seed=1, exact_pixels=False)
        assert (exact.reset() == fast.reset()).mean() >= 1 - share
        differing = 0.0
        for ours, theirs in zip(play(exact, 150), play(fast, 150), strict=True):
            difference = np.abs(ours[0].astype(int) - theirs[0])
            assert difference.max() <= 60
            differing = max(differing, (difference > 0).mean())
            assert (ours[1] == theirs[1]).all() and (ours[2] == theirs[2]).all()
            assert [info.get("lives") for info in ours[3]] == [info.get("lives") for info in theirs[3]]
        assert differing <= share
        assert fast.get_images()[0].shape == (84, 84, 3)


# --- scores


def test_episode_infos_are_of_whole_unclipped_games(tmp_path: Path) -> None:
    env = AtariVecEnv("SpaceInvadersNoFrameskip-v4", 2, seed=3, monitor_dir=str(tmp_path))
    env.reset()
    steps = play(env, 600)
    assert all(set(rewards) <= {-1.0, 0.0, 1.0} and rewards.dtype == np.float32 for _, rewards, _, _ in steps)
    dones = sum(int(done.sum()) for _, _, done, _ in steps)
    episodes = [info["episode"] for _, _, _, infos in steps for info in infos if "episode" in info]
    assert 2 <= len(episodes) < dones  # games have three lives
    assert all(set(episode) == {"r", "l", "t"} for episode in episodes)
    assert any(episode["r"] > 50 for episode in episodes)  # points come in multiples of 5
    for _, _, done, infos in steps:
        assert all(("terminal_observation" in info) == ended for info, ended in zip(infos, done, strict=True))
        assert all(info["lives"] in range(4) and not info["TimeLimit.truncated"] for info in infos)
    env.close()
    logged = load_results(str(tmp_path))
    assert sorted(logged["r"]) == sorted(episode["r"] for episode in episodes)
    assert sorted(logged["l"]) == sorted(episode["l"] for episode in episodes)


def test_truncation() -> None:
    env = AtariVecEnv("FreewayNoFrameskip-v4", 2, seed=0, max_num_frames_per_episode=200)
    env.reset()
    ends = [(index, step) for step in play(env, 120) for index in range(2) if step[2][index]]
    assert len(ends) >= 4
    for index, (observations, _, _, infos) in ends:
        assert infos[index]["TimeLimit.truncated"]
        assert 200 <= infos[index]["episode"]["l"] < 204
        assert infos[index]["terminal_observation"].shape == (4, 84, 84)
        assert infos[index]["terminal_observation"].min(axis=(1, 2)).max() >= 0
        assert not observations[index, :3].any() and observations[index, 3].any()


def test_evaluate_policy_reports_games_without_warning() -> None:
    env = AtariVecEnv(BREAKOUT, 2, seed=0)
    model = PPO("CnnPolicy", env, n_steps=8, batch_size=8, policy_kwargs=SMALL_CNN, device="cpu", seed=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scores, lengths = evaluate_policy(
            model, env, n_eval_episodes=3, deterministic=False, return_episode_rewards=True
        )
    assert len(scores) == 3
    # A game takes at least five lives of 25 steps of 4 frames each; a life alone would be shorter
    assert min(lengths) > 450 and all(score == int(score) >= 0 for score in scores)


# --- models


@pytest.mark.parametrize("algo_class", [PPO, *ALL_ALGOS])
def test_training(algo_class: type[PPO]) -> None:
    env = AtariVecEnv(BREAKOUT, 4, seed=0)
    model = algo_class(
        "CnnPolicy", env, n_steps=32, batch_size=64, n_epochs=1, policy_kwargs=SMALL_CNN, device="cpu", seed=0
    )
    assert model.get_env() is env  # nothing to transpose
    before = [parameter.clone() for parameter in model.policy.parameters()]
    model.learn(256)
    assert model.num_timesteps == 256
    assert any((new != old).any() for new, old in zip(model.policy.parameters(), before, strict=True))
    assert all(parameter.isfinite().all() for parameter in model.policy.parameters())


def test_models_run_on_native_and_classic_environments(tmp_path: Path) -> None:
    native, classic = AtariVecEnv(BREAKOUT, 2), equivalence.make_classic(BREAKOUT, 2)
    settings = {"n_steps": 8, "batch_size": 8, "policy_kwargs": SMALL_CNN, "device": "cpu"}
    for trained_on, other in ((native, classic), (classic, native)):
        model = PPO("CnnPolicy", trained_on, seed=0, **settings)
        model.learn(16)
        model.save(tmp_path / "model")
        loaded = PPO.load(tmp_path / "model", env=other, device="cpu")
        observations = other.reset()
        assert (
            loaded.predict(observations, deterministic=True)[0] == model.predict(observations, deterministic=True)[0]
        ).all()
        loaded.learn(16)
    assert not is_vecenv_wrapped(PPO("CnnPolicy", native, **settings).get_env(), VecTransposeImage)


def test_stack_of_single_frames_is_the_same() -> None:
    stacked, single = AtariVecEnv(BREAKOUT, 2, seed=5), VecFrameStack(AtariVecEnv(BREAKOUT, 2, seed=5, n_stack=1), 4)
    assert stacked.observation_space == single.observation_space
    assert (stacked.reset() == single.reset()).all()
    for ours, theirs in zip(play(stacked, 80), play(single, 80), strict=True):
        assert (ours[0] == theirs[0]).all()


def test_video(tmp_path: Path) -> None:
    pytest.importorskip("moviepy")
    env = VecVideoRecorder(AtariVecEnv(BREAKOUT, 2, seed=0), str(tmp_path), lambda step: step == 0, video_length=10)
    env.reset()
    for _ in range(12):
        env.step(np.array([0, 3]))
    env.close()
    (video,) = tmp_path.glob("*.mp4")
    assert video.stat().st_size > 1000


# --- the interface of VecEnv


def test_frames_for_videos() -> None:
    env = AtariVecEnv(BREAKOUT, 3, seed=0)
    assert env.render_mode == "rgb_array" and env.metadata["render_fps"] == 30
    env.reset()
    env.step(np.array([0, 1, 2]))
    images = env.get_images()
    assert [image.shape for image in images] == [(210, 160, 3)] * 3
    assert len(np.unique(images[0].reshape(-1, 3), axis=0)) > 5  # the colours of the bricks
    assert env.render().shape == (420, 320, 3)
    assert (env.env_method("render", indices=1)[0] == images[1]).all()


def test_seeds() -> None:
    def run(seed: int) -> list[np.ndarray]:
        env = AtariVecEnv("ALE/Breakout-v5", seed=seed)
        observations = [env.reset(), *(step[0] for step in play(env, 100))]
        env.seed(seed)
        return [*observations, env.reset(), *(step[0] for step in play(env, 20))]

    first, same, other = run(4), run(4), run(5)
    assert all((a == b).all() for a, b in zip(first, same, strict=True))
    assert any((a != b).any() for a, b in zip(first, other, strict=True))
    assert all((a == b).all() for a, b in zip(first, first[101:], strict=False))  # a seed given again
    env = AtariVecEnv(BREAKOUT, 2)
    assert env.seed(2**31 - 1) == [2**31 - 1, 2**31]
    env.reset()


def test_seeds_are_for_one_reset_only() -> None:
    env = AtariVecEnv("FreewayNoFrameskip-v4", 1, seed=0)
    starts = []
    for _ in range(5):
        env.reset()
        starts += env.get_attr("noop_frames")
    assert len(set(starts)) > 1


def test_reset_begins_new_games() -> None:
    env = AtariVecEnv(BREAKOUT, 2, seed=0)
    env.reset()
    play(env, 40)
    env.step_async(np.array([0, 0]))  # dropped
    observations = env.reset()
    assert not observations[:, :3].any()
    for info in env.reset_infos:
        assert info["episode_frame_number"] <= 38 and info["lives"] == 5


def interrupted(at: int, is_received: bool) -> Callable[[AtariGame], None]:
    """
    :param at: call in which Ctrl+C comes
    :param is_received: whether the emulator had given the outcome already
    :return: stands for `AtariGame.receive`
    """
    original, calls = AtariGame.receive, count()

    def receive(game: AtariGame) -> None:
        if next(calls) != at:
            return original(game)
        if is_received:
            game._emulator.recv()
        raise KeyboardInterrupt

    return receive


@pytest.mark.parametrize("is_received", [False, True])
def test_reset_after_an_interrupt(is_received: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a step or in what opens an episode: the next games are those of the seed, and nothing waits for ever."""
    expected = AtariVecEnv(BREAKOUT, 2, seed=7)
    games = [expected.reset(), *(step[0] for step in play(expected, 20))]
    for at in (0, 1, 5, 250, 301):
        env = AtariVecEnv(BREAKOUT, 2, seed=0)
        env.reset()
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(AtariGame, "receive", interrupted(at, is_received))
            play(env, 200)
        with pytest.raises(RuntimeError, match="after an interrupt, call reset"):
            env.step(np.array([0, 0]))
        env.seed(7)
        again = [env.reset(), *(step[0] for step in play(env, 20))]
        assert all((a == b).all() for a, b in zip(again, games, strict=True)), at


def test_reset_without_a_seed_after_an_interrupt(monkeypatch: pytest.MonkeyPatch) -> None:
    env = AtariVecEnv("FreewayNoFrameskip-v4", 8, seed=0)
    env.reset()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(AtariGame, "receive", interrupted(0, False))
        env.step(np.zeros(8, int))
    env.reset()
    assert len(set(env.get_attr("noop_frames"))) > 1  # not all games with one seed
    play(env, 5)


def test_observations_are_not_written_to_later() -> None:
    env = AtariVecEnv(BREAKOUT, 2, seed=0)
    returned = [env.reset()]
    copies = [returned[0].copy()]
    for observations, _, _, _ in (play(env, 1, seed)[0] for seed in range(60)):
        returned.append(observations)
        copies.append(observations.copy())
    assert all((a == b).all() for a, b in zip(returned, copies, strict=True))


def test_attributes_and_methods() -> None:
    env = AtariVecEnv(BREAKOUT, 3, seed=0)
    env.reset()
    assert env.get_attr("lives") == [5, 5, 5]
    assert env.get_attr("lives", indices=[0, 2]) == [5, 5]
    assert env.get_attr("spec", indices=1)[0].id == BREAKOUT
    assert env.env_method("get_action_meanings", indices=0) == [["NOOP", "FIRE", "RIGHT", "LEFT"]]
    assert env.has_attr("episode_frame_number") and not env.has_attr("frame_skip")
    env.set_attr("max_frames", 100, indices=[1])
    assert env.get_attr("max_frames") == [108_000, 100, 108_000]
    for call in (
        lambda: env.get_attr("no_such_attribute"),
        lambda: env.set_attr("frame_skip", 2),
        lambda: env.env_method("no_such_method"),
    ):
        with pytest.raises(AttributeError):
            call()
    with pytest.raises(IndexError):
        env.get_attr("lives", indices=3)


def test_wrappers_in_effect() -> None:
    env = AtariVecEnv(BREAKOUT, 2, terminal_on_life_loss=False)
    assert env.env_is_wrapped(Monitor) == [True, True]
    assert env.env_is_wrapped(FireResetEnv, indices=1) == [True]
    assert env.env_is_wrapped(EpisodicLifeEnv, indices=[0]) == [False]
    classic = equivalence.make_classic("FreewayNoFrameskip-v4", 1)
    native = AtariVecEnv("FreewayNoFrameskip-v4")
    for wrapper in (gym.Wrapper, gym.wrappers.TimeLimit, AtariWrapper, Monitor, EpisodicLifeEnv, FireResetEnv):
        assert native.env_is_wrapped(wrapper) == classic.env_is_wrapped(wrapper)


def test_more_games_than_cores() -> None:
    env = AtariVecEnv("PongNoFrameskip-v4", 8)
    assert env.reset().shape == (8, 4, 84, 84)
    observations, rewards, dones, infos = play(env, 2)[-1]
    assert observations.shape == (8, 4, 84, 84) and len(rewards) == len(dones) == len(infos) == 8
    env.close()


def test_wrong_actions() -> None:
    env = AtariVecEnv(BREAKOUT, 2, seed=0)
    env.reset()
    for actions in ([4, 0], [-1, 0], [0], [0, 0, 0], [[0], [0]], [0.0, 1.0]):
        with pytest.raises(ValueError, match="actions="):
            env.step(np.array(actions))
    env.step(np.array([0, 3]))  # nothing had been sent


def test_wrong_order_of_calls() -> None:
    env = AtariVecEnv(BREAKOUT, 1)
    with pytest.raises(RuntimeError, match="reset"):
        env.step(np.array([0]))
    env = AtariVecEnv(BREAKOUT, 1)
    env.reset()
    with pytest.raises(RuntimeError, match="step_async"):
        env.step_wait()
    env.step_async(np.array([0]))
    with pytest.raises(RuntimeError, match="step_wait"):
        env.step_async(np.array([0]))
    env.step_wait()
    env.close()
    env.close()
    for call in (env.reset, lambda: env.step(np.array([0]))):
        with pytest.raises(RuntimeError, match="closed"):
            call()


@pytest.mark.parametrize(
    "env_id, kwargs, message",
    [
        ("NoSuchGameNoFrameskip-v4", {}, "env_id='NoSuchGameNoFrameskip-v4'"),
        ("not an id", {}, "env_id='not an id'"),
        ("CartPole-v1", {}, "not an Atari game"),
        ("Breakout-v4", {}, "random number of times"),
        ("ALE/Backgammon-v5", {}, "NOOP first"),
        (BREAKOUT, {"n_envs": 0}, "`n_envs` must be an integer of at least 1, got 0"),
        (BREAKOUT, {"n_envs": 1.5}, "`n_envs` must be an integer of at least 1, got 1.5"),
        (BREAKOUT, {"n_envs": True}, "`n_envs` must be an integer of at least 1, got True"),
        (BREAKOUT, {"seed": -1}, "`seed` must be an integer of at least 0, got -1"),
        (BREAKOUT, {"n_stack": 0}, "`n_stack` must be an integer of at least 1, got 0"),
        (BREAKOUT, {"frame_skip": 0}, "`frame_skip` must be an integer of at least 1, got 0"),
        (BREAKOUT, {"screen_size": 0}, "`screen_size` must be an integer of at least 1, got 0"),
        (BREAKOUT, {"noop_max": -1}, "`noop_max` must be an integer of at least 0, got -1"),
        (BREAKOUT, {"repeat_action_probability": 1.5}, "`repeat_action_probability` .* number in .0, 1., got 1.5"),
        (BREAKOUT, {"repeat_action_probability": float("nan")}, "`repeat_action_probability` .* got nan"),
        (BREAKOUT, {"repeat_action_probability": "0.2"}, "`repeat_action_probability` .* got '0.2'"),
        (BREAKOUT, {"max_num_frames_per_episode": 0}, "`max_num_frames_per_episode` .* at least 1, got 0"),
        (BREAKOUT, {"clip_reward": "no"}, "`clip_reward` must be True or False, got 'no'"),
    ],
)
def test_wrong_arguments(env_id: str, kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AtariVecEnv(env_id, **kwargs)


def test_numbers_of_numpy() -> None:
    numbers = {"frame_skip": np.int32(4), "repeat_action_probability": np.float32(0.25)}
    env = AtariVecEnv(BREAKOUT, np.int64(2), **numbers)  # type: ignore[arg-type]
    assert env.reset().shape == (2, 4, 84, 84)


def test_registered_settings_that_are_not_supported() -> None:
    gym.register("SpecialBreakout-v4", "ale_py.env:AtariEnv", kwargs={"game": "breakout", "frameskip": 1, "mode": 4})
    with pytest.raises(ValueError, match="mode"):
        AtariVecEnv("SpecialBreakout-v4")
    del gym.registry["SpecialBreakout-v4"]


def test_message_without_ale_py(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ale_py.vector_env", None)
    with pytest.raises(ImportError, match=r"sb3-dapo\[atari\]"):
        load_module(Path(sb3_dapo.atari_vec_env.__file__))


def test_exit_while_threads_are_busy() -> None:
    script = f"""
import numpy as np
from sb3_dapo.atari_vec_env import AtariGame, AtariVecEnv
env = AtariVecEnv("{BREAKOUT}", 4)
env.reset()
env.step_async(np.zeros(4, dtype=int))
"""
    assert subprocess.run([sys.executable, "-c", script], timeout=300).returncode == 0


# --- acting for one half while the other is emulated


class Steps(BaseCallback):
    """Keeps what each step of a rollout was."""

    def __init__(self, stop_at: int | None = None) -> None:
        super().__init__()
        self.stop_at = stop_at
        self.steps: list[dict[str, Any]] = []

    def _on_step(self) -> bool:
        names = ("obs_tensor", "actions", "values", "log_probs", "new_obs", "rewards", "dones")
        self.steps.append({name: np.asarray(self.locals[name]).copy() for name in names})
        return len(self.steps) != self.stop_at


def overlapping_model(n_envs: int, **kwargs: Any) -> DAPO:
    env = AtariVecEnv(BREAKOUT, n_envs, seed=0)
    return DAPO(
        "CnnPolicy", env, n_steps=40, batch_size=20, n_epochs=1, policy_kwargs=SMALL_CNN, seed=0, overlap=True, **kwargs
    )


@pytest.mark.parametrize("n_envs", [2, 3])
def test_overlap_collects_what_was_played(n_envs: int) -> None:
    """The same actions played without overlap give the same observations, rewards and ends of episodes."""
    callback = Steps()
    model = overlapping_model(n_envs)
    policy = model.policy
    model.learn(2 * 40 * n_envs, callback=callback)
    assert model.policy is policy
    assert len(callback.steps) == 80
    env = AtariVecEnv(BREAKOUT, n_envs, seed=0)
    observations = env.reset()
    for step in callback.steps:
        np.testing.assert_array_equal(step["obs_tensor"], observations)
        observations, rewards, dones, _ = env.step(step["actions"])
        np.testing.assert_array_equal(step["new_obs"], observations)
        np.testing.assert_array_equal(step["rewards"], rewards)
        np.testing.assert_array_equal(step["dones"], dones)
    env.close()


def test_overlap_acts_with_the_policy_of_its_rollout() -> None:
    """Values and log-probs are those of the policy that will be told of them: none was computed before an update."""
    model = overlapping_model(4)
    callback = Steps()
    for _ in range(2):
        callback.steps.clear()
        model.learning_rate = 0.0
        model.lr_schedule = lambda _: 0.0
        model.learn(160, callback=callback, reset_num_timesteps=False)
        for step in callback.steps:
            with th.no_grad():
                values, log_probs, _ = model.policy.evaluate_actions(
                    th.as_tensor(step["obs_tensor"]), th.as_tensor(step["actions"])
                )
            np.testing.assert_allclose(step["values"], values, atol=1e-5)
            np.testing.assert_allclose(step["log_probs"], log_probs, atol=1e-5)
        with th.no_grad():  # as an update would
            for parameter in model.policy.parameters():
                parameter.add_(0.05 * th.randn_like(parameter))


def test_overlap_after_a_rollout_that_was_cut_short() -> None:
    model = overlapping_model(4)
    policy = model.policy
    model.learn(160, callback=Steps(stop_at=7))
    assert model.policy is policy
    callback = Steps()
    model.learn(320, callback=callback, reset_num_timesteps=False)
    assert len(callback.steps) == 40 * 2
    for before, after in zip(callback.steps, callback.steps[1:], strict=False):
        np.testing.assert_array_equal(before["new_obs"], after["obs_tensor"])
    # frames of one game follow each other
    first = callback.steps[0]
    goes_on = ~first["dones"]
    np.testing.assert_array_equal(first["obs_tensor"][goes_on, 1:], first["new_obs"][goes_on, :-1])


@pytest.mark.parametrize(
    ("n_cpus", "overlap", "n_threads", "is_halved"),
    [(2, False, 1, True), (2, True, 1, False), (3, False, 1, True), (4, False, 2, False), (64, False, 2, False)],
)
def test_acting_leaves_the_cores_to_the_emulators(
    n_cpus: int, overlap: bool, n_threads: int, is_halved: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: n_cpus)
    env = AtariVecEnv(BREAKOUT, 2)
    with forms.threads(2), few_threads(env, th.device("cpu"), overlap):
        assert (th.get_num_threads(), forms._second_thread.get() is not None) == (n_threads, is_halved)
    assert forms._second_thread.get() is None
    env.close()


def test_overlap_is_refused_where_it_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="`overlap` must be False for environments other than an AtariVecEnv"):
        DAPO("MlpPolicy", "CartPole-v1", overlap=True)
    with pytest.raises(ValueError, match="`overlap` must be False for environments other than an AtariVecEnv"):
        overlapping_model(1)
    for wrap in (VecMonitor, lambda env: VecNormalize(env, norm_obs=False)):  # steps in halves would leave it out
        with pytest.raises(ValueError, match="`overlap` must be False for environments other than an AtariVecEnv"):
            DAPO("CnnPolicy", wrap(AtariVecEnv(BREAKOUT, 2)), overlap=True)
    with pytest.raises(ValueError, match="`overlap` must be True or False"):
        DAPO("MlpPolicy", "CartPole-v1", overlap="yes")  # type: ignore[arg-type]
    model = overlapping_model(2)
    with pytest.raises(ValueError, match="`overlap`"):
        model.set_env(VecFrameStack(DummyVecEnv([lambda: AtariWrapper(gym.make(BREAKOUT))]), 4))
    model.save(tmp_path / "model")
    assert DAPO.load(tmp_path / "model").overlap
    DAPO.load(tmp_path / "model", env=AtariVecEnv(BREAKOUT, 2)).learn(80)


def test_overlap_with_callbacks_that_use_the_policy(tmp_path: Path) -> None:
    """In the middle of a rollout the model can be evaluated, asked for actions and saved."""
    model = overlapping_model(2)
    evaluation = EvalCallback(AtariVecEnv(BREAKOUT, 1, seed=1), eval_freq=30, n_eval_episodes=1, verbose=0, warn=False)
    model.learn(80, callback=[evaluation, CheckpointCallback(save_freq=25, save_path=str(tmp_path))])
    assert np.isfinite(evaluation.last_mean_reward)
    loaded = DAPO.load(tmp_path / "rl_model_50_steps", env=model.get_env())
    observations = model.get_env().reset()
    assert loaded.predict(observations)[0].shape == (2,)
