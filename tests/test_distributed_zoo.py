"""`sb3-dapo train --actors`."""

from pathlib import Path

import pytest
from commands import Command, refused

pytest.importorskip("ray", reason="the extra `ray` is not installed")
pytest.importorskip("rl_zoo3")

from sb3_dapo.zoo.exp_manager import read_tensorboard_path
from sb3_dapo.zoo.plot import read_scalars

pytestmark = pytest.mark.usefixtures("ray_cluster")

RUN = Path("logs/dapo/Pendulum-v1_1")
ARGUMENTS = ["train", "--env", "Pendulum-v1", "--actors", "2", "--cpus-per-actor", "0.01", "--save-freq", "2000"]
HYPERPARAMS = ["--hyperparams", "n_envs:2", "n_steps:50", "n_rollouts:2", "batch_size:100", "normalize:True"]


def test_train_and_resume(command: Command) -> None:
    """With evaluation, checkpoints, statistics and TensorBoard."""
    command(*ARGUMENTS, "-n", "800", "--eval-freq", "400", "--eval-episodes", "1", "--sync", *HYPERPARAMS)
    steps = [int(path.name.split("_")[2]) for path in RUN.glob("rl_model_*_steps.zip")]
    assert sorted(steps) == [800]
    assert {path.name for path in RUN.iterdir()} >= {"best_model.zip", "evaluations.npz", "Pendulum-v1.zip"}
    episodes = RUN / "episodes.csv"
    assert [row.split(",")[0] for row in episodes.read_text().splitlines()[1:]] == ["700", "700", "800", "800"]
    assert "Resuming from" in command("train", "--env", "Pendulum-v1", "--resume", "-n", "1600")
    assert len(episodes.read_text().splitlines()) == 1 + 8
    curves = read_scalars(Path(read_tensorboard_path(RUN)))
    assert curves["distributed/actors_alive"][1].tolist() == [2] * 8
    assert curves["distributed/actors_alive"][0].tolist() == [200 * n for n in range(1, 9)]
    assert curves["distributed/lag_max"][1].tolist() == [0] * 8
    assert command("plot", "--env", "Pendulum-v1") == f"Saved {RUN}/panels.png\n"


def test_what_is_refused(command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    train = ["train", "--env", "CartPole-v1"]
    for option in (["--sync"], ["--cpus-per-actor", "2"], ["--ray-address", "here:1"], ["--rollout-timeout", "9"]):
        assert "are for runs with --actors" in refused(command, capsys, *train, *option)
    for algorithm in (["--algo", "ppo"], ["-optimize"]):
        assert "--actors trains an algorithm of this package" in refused(
            command, capsys, *train, "--actors", "2", *algorithm
        )
    assert "must be at least 1, got 0" in refused(command, capsys, *train, "--actors", "0")
    line = refused(command, capsys, *train, "--actors", "2", "--cpus-per-actor", "4")
    assert "n_actors=2 with cpus_per_actor=4 is too much for the Ray cluster" in line
    assert not list(Path("logs/dapo").glob("*"))
