"""How a run is watched: `sb3-dapo plot`, the panels in TensorBoard, windows and videos."""

import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from commands import refused
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout

from sb3_dapo import DAPO
from sb3_dapo.panels import PANELS, TensorBoardPanels

pytest.importorskip("rl_zoo3")
from sb3_dapo.zoo.plot import MAX_POINTS, draw_curve, plot_run, read_episodes, read_frame_skip, read_scalars
from sb3_dapo.zoo.video import VideoRecorder

PNG = b"\x89PNG"


@pytest.fixture
def run_path(command) -> Path:
    """A short run that is logged as `sb3-dapo train` does by default."""
    command(
        *("train", "--env", "CartPole-v1", "-n", "2048", "--eval-freq", "1024", "--eval-episodes", "2"),
        *("--seed", "1", "--verbose", "0", "--hyperparams", "n_epochs:1", "n_rollouts:2"),
    )
    return Path("logs/dapo/CartPole-v1_1")


# --- TensorBoard ---


def read_layout(folder: Path) -> Layout:
    """
    :param folder: folder of event files
    :return: the layout of the custom scalars in them
    """
    accumulator = EventAccumulator(str(folder)).Reload()
    (event,) = accumulator.Tensors("custom_scalars__config__")
    return Layout.FromString(event.tensor_proto.string_val[0])


def test_panels_hold_what_is_logged(tmp_path: Path) -> None:
    model = DAPO("MlpPolicy", "CartPole-v1", n_steps=64, n_epochs=1, tensorboard_log=str(tmp_path))
    model.learn(128, callback=TensorBoardPanels())
    (category,) = read_layout(tmp_path / "DAPO_1").category
    assert [chart.title for chart in category.chart] == list(PANELS)
    logged = EventAccumulator(str(tmp_path / "DAPO_1")).Reload().Tags()["scalars"]
    for chart, keys in zip(category.chart, PANELS.values(), strict=True):
        assert list(chart.multiline.tag) == [f"^{key}$" for key in keys]
        assert set(keys) - {"eval/mean_reward"} <= set(logged)


def test_panels_need_tensorboard() -> None:
    model = DAPO("MlpPolicy", "CartPole-v1", n_steps=64, n_epochs=1)
    with pytest.raises(ValueError, match="`tensorboard_log` of the model must be a folder.*got None"):
        model.learn(64, callback=TensorBoardPanels())


def test_training_is_logged_with_panels_by_default(run_path: Path) -> None:
    folder = Path("logs/tensorboard/CartPole-v1/DAPO_1")
    assert (run_path / (run_path / "tensorboard.txt").read_text().strip()).resolve() == folder.resolve()
    assert len(read_layout(folder).category) == 1


@pytest.mark.parametrize(
    ("arguments", "folder"),
    [
        (("-tb", ""), None),
        (("-f", "elsewhere"), "elsewhere/tensorboard/CartPole-v1/PPO_1"),
        (("-tb", "tb"), "tb/CartPole-v1/PPO_1"),
    ],
)
def test_where_training_is_logged(command, arguments: tuple[str, ...], folder: str | None) -> None:
    small = ("-n", "64", "--eval-freq", "-1", "--verbose", "0", "--hyperparams", "n_epochs:1", "n_steps:8")
    command("train", "--env", "CartPole-v1", "--algo", "ppo", *arguments, *small)
    assert {str(path.parent) for path in Path().rglob("*tfevents*")} == ({folder} if folder else set())


# --- Plot ---


def test_plot(command, run_path: Path) -> None:
    assert command("plot", "--env", "CartPole-v1") == f"Saved {run_path}/panels.png\n"
    assert (run_path / "panels.png").read_bytes().startswith(PNG)
    # After the folder of all logs was moved, and under another name
    Path("logs").rename("moved")
    command("plot", "--env", "CartPole-v1", "-f", "moved", "-o", "figure")
    assert Path("figure").read_bytes().startswith(PNG)


def test_plot_shows_what_was_logged(run_path: Path) -> None:
    tensorboard_path = Path("logs/tensorboard/CartPole-v1/DAPO_1")
    curves = read_scalars(tensorboard_path)
    steps, lag = curves["train/policy_lag"]
    assert lag.tolist() == [0, *[0.5] * (len(lag) - 1)] and steps[-1] <= 2048

    score, *others = plot_run(run_path, tensorboard_path, "A title").axes
    assert [axes.get_title() for axes in (score, *others)] == list(PANELS)
    for axes, keys in zip(others, list(PANELS.values())[1:], strict=True):
        assert [line.get_label() for line in axes.lines] == [key.removeprefix("train/") for key in keys]
        for line, key in zip(axes.lines, keys, strict=True):
            np.testing.assert_array_equal(line.get_xydata().T, curves[key])

    n_episodes = sum(len(path.read_text().splitlines()) - 2 for path in run_path.glob("*.monitor.csv"))
    training, evaluation = score.lines
    assert len(score.collections[0].get_offsets()) == n_episodes
    assert training.get_label() == "training, mean of 10 episodes"
    evaluations = np.load(run_path / "evaluations.npz")
    np.testing.assert_allclose(evaluation.get_ydata(), evaluations["results"].mean(axis=1))


def test_panels_of_ppo(command) -> None:
    small = ("-n", "512", "--eval-freq", "-1", "--verbose", "0", "--hyperparams", "n_epochs:1")
    command("train", "--env", "CartPole-v1", "--algo", "ppo", *small)
    figure = plot_run(Path("logs/ppo/CartPole-v1_1"), Path("logs/tensorboard/CartPole-v1/PPO_1"), "PPO")
    assert [axes.get_title() for axes in figure.axes] == ["Score", "KL", "Ratios"]


def test_plot_of_a_run_without_an_episode_or_an_update(tmp_path: Path) -> None:
    DAPO("MlpPolicy", "CartPole-v1", n_steps=8, n_epochs=1, tensorboard_log=str(tmp_path)).learn(8)
    (axes,) = plot_run(tmp_path, tmp_path / "DAPO_1", "Just begun").axes
    assert not axes.lines and axes.get_legend() is None


def test_plot_refuses_what_it_cannot_find(command, run_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def error(*arguments: str) -> str:
        return refused(command, capsys, "plot", *arguments)

    assert "there is no run in logs/dapo/CartPole-v1_7" in error("--exp-id", "7")
    assert "there is no run of Acrobot-v1 in logs/dapo" in error("--env", "Acrobot-v1")
    assert "no event files of TensorBoard in nowhere" in error("-tb", "nowhere")
    (run_path / "tensorboard.txt").unlink()
    assert "there is no tensorboard.txt in any run of CartPole-v1" in error()
    command("plot", "-tb", "logs/tensorboard/CartPole-v1/DAPO_1")


def test_long_curves_are_smoothed() -> None:
    from matplotlib.figure import Figure

    steps = np.arange(10 * MAX_POINTS, dtype=float)
    axes = Figure().subplots()
    draw_curve(axes, (steps, np.where(steps % 2 == 0, 0.0, 1.0)), "train/behavior_kl")
    raw, mean = axes.lines
    assert len(raw.get_ydata()) == len(steps)
    assert mean.get_label() == "behavior_kl" and mean.get_ydata() == pytest.approx(0.5)
    draw_curve(axes, (steps, steps), "train/policy_lag")
    assert axes.lines[-1].get_ydata().tolist() == steps.tolist()


@pytest.mark.parametrize(("end", "scale"), [(0.001, "linear"), (None, "log")])
def test_scale_of_eta(end: float | None, scale: str) -> None:
    from matplotlib.figure import Figure

    steps = np.arange(100.0)
    values = 10.0 ** -steps.clip(max=4) if end is None else np.linspace(0.1, end, 100)
    axes = Figure().subplots()
    draw_curve(axes, (steps, values), "train/divergence_coef")
    assert axes.get_yscale() == scale


@pytest.mark.parametrize(
    ("wrappers", "frame_skip"),
    [
        (None, 1),
        ("stable_baselines3.common.atari_wrappers.AtariWrapper", 4),
        (["stable_baselines3.common.atari_wrappers.AtariWrapper"], 4),
        ([{"stable_baselines3.common.atari_wrappers.AtariWrapper": {"frame_skip": 2}}], 2),
        ([{"rl_zoo3.wrappers.FrameSkip": {"skip": 3}}, "gymnasium.wrappers.RecordEpisodeStatistics"], 3),
    ],
)
def test_frame_skip(wrappers: object, frame_skip: int) -> None:
    assert read_frame_skip({} if wrappers is None else {"env_wrapper": wrappers}) == frame_skip


def test_episodes_are_placed_at_the_steps_of_the_agent(tmp_path: Path) -> None:
    from rl_zoo3.wrappers import FrameSkip

    env = FrameSkip(Monitor(gym.make("CartPole-v1"), str(tmp_path / "0")), skip=2)
    env.reset(seed=0)
    n_steps, at_end = 0, []
    for _ in range(3):
        done = False
        while not done:
            _, _, done, _, _ = env.step(0)
            n_steps += 1
        at_end.append(n_steps)
        env.reset()
    env.close()
    steps, scores = read_episodes(tmp_path, frame_skip=2)
    # The last step of an episode may be cut short
    np.testing.assert_allclose(steps, at_end, atol=1.5)
    assert scores.shape == (3,)


def test_plot_after_a_resume_shows_each_step_once(command) -> None:
    """A run that goes on from 1,024 of its steps, and whose log is older than that of another run."""
    run = ["train", "--env", "CartPole-v1", "-n", "3072", "--eval-freq", "-1", "--verbose", "0", "--seed", "1"]
    command(*run, "-f", "whole", "--save-freq", "1024")
    command(*run, "--save-freq", "1024")
    command(*run)
    run_path, other_path = Path("logs/dapo/CartPole-v1_1"), Path("logs/tensorboard/CartPole-v1/DAPO_2")
    for steps in (2048, 3072):
        (run_path / f"rl_model_{steps}_steps.zip").unlink()
    other = read_scalars(other_path)
    command("train", "--env", "CartPole-v1", "--resume")

    curves = read_scalars(Path("logs/tensorboard/CartPole-v1/DAPO_1"))
    for key, (steps, values) in read_scalars(Path("whole/tensorboard/CartPole-v1/DAPO_1")).items():
        np.testing.assert_array_equal(curves[key][0], steps)
        if not key.startswith("time/"):
            np.testing.assert_array_equal(curves[key][1], values)
    assert {key: len(steps) for key, (steps, _) in read_scalars(other_path).items()} == {
        key: len(steps) for key, (steps, _) in other.items()
    }
    expected = read_episodes(Path("whole/dapo/CartPole-v1_1"), frame_skip=1)
    assert len(expected[0]) > 50
    np.testing.assert_array_equal(np.array(read_episodes(run_path, frame_skip=1)), np.array(expected))


def test_episodes_are_logged_at_their_step(command) -> None:
    """The frames that start a game of Atari are no steps, and checkpoints begin new games."""
    pytest.importorskip("ale_py")
    run = ["train", "--env", "BreakoutNoFrameskip-v4", "-n", "2048", "--eval-freq", "-1", "--verbose", "0"]
    run += ["--save-freq", "1024", "--hyperparams", "n_envs:4", "n_steps:128", "n_epochs:1", "batch_size:512"]
    command(*run, "--seed", "1")
    run_path = Path("logs/dapo/BreakoutNoFrameskip-v4_1")
    steps, scores = read_episodes(run_path, frame_skip=4)
    assert len(steps) >= 4 and (np.diff(steps) >= 0).all() and (steps % 4 == 0).all()
    n_episodes = sum(len(path.read_text().splitlines()) - 2 for path in run_path.glob("*.monitor.csv"))
    assert len(steps) == n_episodes
    (run_path / "rl_model_2048_steps.zip").unlink()
    command("train", "--env", "BreakoutNoFrameskip-v4", "--resume")
    np.testing.assert_array_equal(np.array(read_episodes(run_path, frame_skip=4)), np.array([steps, scores]))


# --- Windows and videos ---


def test_enjoy_says_that_there_is_no_display(command, run_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    for variable in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(variable, raising=False)
    assert "There is no display" in command("enjoy", "--env", "CartPole-v1", "-n", "2")
    assert "There is no display" not in command("enjoy", "--env", "CartPole-v1", "-n", "2", "--no-render")
    monkeypatch.setenv("DISPLAY", ":0")
    assert "There is no display" not in command("enjoy", "--env", "CartPole-v1", "-n", "2")


def test_record_video_writes_mp4_and_gif(command, run_path: Path) -> None:
    from PIL import Image

    output = command("record-video", "--env", "CartPole-v1", "-n", "20", "--gif")
    assert "Saving GIF to" in output
    (mp4,) = (run_path / "videos").glob("*.mp4")
    gif = Image.open(mp4.with_suffix(".gif"))
    assert gif.size == (600, 400) and gif.n_frames >= 10
    assert gif.info["duration"] == 40  # milliseconds; the game has 50 frames per second
    gif.seek(gif.n_frames - 1)
    assert len(set(gif.convert("L").getdata())) > 2
    mp4.with_suffix(".gif").unlink()
    command("record-video", "--env", "CartPole-v1", "-n", "20")
    assert not list((run_path / "videos").glob("*.gif"))


def recorder(env: DummyVecEnv, tmp_path: Path, **kwargs) -> VideoRecorder:
    return VideoRecorder(env, str(tmp_path), record_video_trigger=lambda step: step == 0, video_length=3, **kwargs)


def test_videos_of_atari_have_the_speed_of_the_console(tmp_path: Path) -> None:
    pytest.importorskip("ale_py")
    from stable_baselines3.common.env_util import make_atari_env

    def fps(env_id: str, **kwargs) -> float:
        env = recorder(make_atari_env(env_id, env_kwargs={"render_mode": "rgb_array", **kwargs}), tmp_path)
        env.close()
        return env.frames_per_sec

    assert fps("BreakoutNoFrameskip-v4") == 60 / 4
    assert fps("ALE/Breakout-v5", frameskip=2) == 60 / 2 / 4
    assert fps("ALE/Breakout-v5", frameskip=(2, 5)) == 60 / 3 / 4


def test_frames_of_minatar_are_visible(tmp_path: Path) -> None:
    pytest.importorskip("minatar")
    import sb3_dapo.zoo  # noqa: F401  registers the games

    env = recorder(make_vec_env("MinAtar/Breakout-v1", env_kwargs={"render_mode": "rgb_array"}), tmp_path)
    env.reset()
    (frame,) = env.recorded_frames
    assert frame.shape == (160, 160, 3) and frame.dtype == np.uint8
    assert frame.max() > 100
    assert (frame[:16, :16] == frame[0, 0]).all()
    env.close()


def test_other_videos_are_those_of_sb3(tmp_path: Path) -> None:
    env = recorder(make_vec_env("CartPole-v1", env_kwargs={"render_mode": "rgb_array"}), tmp_path)
    env.reset()
    assert env.frames_per_sec == 50
    np.testing.assert_array_equal(env.recorded_frames[0], env.venv.render())
    env.close()
