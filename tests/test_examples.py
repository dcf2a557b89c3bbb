"""The examples run, with fewer steps, and do what they say."""

import json
import re
import runpy
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch as th
from gymnasium.utils.env_checker import check_env

from sb3_dapo.panels import PANELS

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, where the examples write."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def load(name: str) -> dict[str, Any]:
    """
    :param name: of an example
    :return: what it defines
    """
    return runpy.run_path(str(EXAMPLES / f"{name}.py"))


def numbers(line: str) -> list[float]:
    """
    :param line: of output
    :return: the numbers in it
    """
    return [float(number.replace(",", "")) for number in re.findall(r"-?\d[\d,]*(?:\.\d+)?(?:e-?\d+)?", line)]


def test_every_example_is_tested_and_listed() -> None:
    page = (EXAMPLES.parent / "docs/examples.md").read_text()
    tests = Path(__file__).read_text()
    for path in [*EXAMPLES.glob("*.py"), *EXAMPLES.glob("*.ipynb")]:
        assert f"../examples/{path.name}" in page
        assert f'"{path.stem}"' in tests or f'"{path.name}"' in tests


def test_five_lines(capsys: pytest.CaptureFixture[str]) -> None:
    load("five_lines")  # as it is: there is nothing to set
    score, _, best = numbers(capsys.readouterr().out)
    assert score > 200 and best == 500  # a random policy gets 22
    code = (EXAMPLES / "five_lines.py").read_text().split('"""')[2]
    assert len([line for line in code.splitlines() if line]) == 5


def test_action_masks(capsys: pytest.CaptureFixture[str]) -> None:
    load("action_masks")["main"](steps=16_384)
    way, tour = capsys.readouterr().out.splitlines()
    before, steps, after = numbers(way)
    assert steps == 16_384 and after < before - 0.5
    assert sorted(numbers(tour)) == list(range(8))


def test_reuse(capsys: pytest.CaptureFixture[str]) -> None:
    load("reuse")["main"](steps=2_048, seeds=1)
    lines = capsys.readouterr().out.splitlines()
    assert [numbers(line) for line in lines if line.startswith("K =")] == [[1, 2, 2], [1, 8, 8], [2, 4, 8], [2, 4, 8]]
    assert [numbers(line)[0] for line in lines if line.startswith("  data")] == [0, 0, 0.5, 0.5]


def test_custom_divergence(capsys: pytest.CaptureFixture[str]) -> None:
    example = load("custom_divergence")
    example["main"](steps=1_024)
    assert numbers(capsys.readouterr().out.splitlines()[2]) == [-1, -0.2, 0, 0.2, 2]
    # f is the derivative of the divergence that its docstring gives
    probabilities = th.tensor([0.2, 0.3, 0.5], dtype=th.float64, requires_grad=True)
    behavior = th.tensor([0.4, 0.4, 0.2], dtype=th.float64)
    ((probabilities - behavior).square() / behavior).sum().backward()
    f = example["ChiSquared"]()(probabilities.detach().log(), behavior.log())
    th.testing.assert_close(f, probabilities.grad)


def test_controller(capsys: pytest.CaptureFixture[str]) -> None:
    example = load("controller")
    example["main"](steps=4_096)
    rows = [numbers(line) for line in capsys.readouterr().out.splitlines()[1:]]
    assert len(rows) == 7 and all(len(row) == 3 for row in rows)
    assert len({coefficient for _, coefficient, _ in rows}) > 1
    controller = example["ProportionalController"](target=0.01, initial=1.0, gain=0.5)
    controller.update(0.04)
    assert controller(1.0) == pytest.approx(2)
    controller.update(0.0025)
    assert controller(1.0) == pytest.approx(1)


def test_dict_observations(capsys: pytest.CaptureFixture[str]) -> None:
    example = load("dict_observations")
    env = example["Courier"]()
    check_env(env, skip_render_check=True)
    env.reset(seed=0)
    env.position[:], env.parcel[:] = (3, 4), (3, 5)  # home is (3, 3)
    steps = [env.step(action)[1:3] for action in (0, 1, 1)]
    assert steps == [(1, False), (0, False), (1, True)]
    example["main"](steps=2_048)
    assert capsys.readouterr().out.startswith("An observation: {'carries': 0, 'parcel': [")


@pytest.mark.slow
def test_dict_observations_are_learnt(capsys: pytest.CaptureFixture[str]) -> None:
    load("dict_observations")["main"]()
    before, steps, after, best = numbers(capsys.readouterr().out.splitlines()[1])
    assert before < 1 and steps < 70_000 and best == 2
    assert after > 1.8


def test_vec_normalize(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("mujoco")
    load("vec_normalize")["main"](steps=2_048)
    centres, score = capsys.readouterr().out.splitlines()
    assert len(numbers(centres)) == 4 and any(numbers(centres))
    assert re.fullmatch(r"InvertedPendulum-v5 after 2,048 steps: \d+ \+/- \d+ of 1000", score)


def test_callbacks(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    load("callbacks")["main"](steps=3_072)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 12 and numbers(lines[-3])[0] == 3_040
    assert Path("logs/callbacks/best_model.zip").is_file()
    accumulator = EventAccumulator("logs/callbacks/DAPO_1").Reload()
    assert {"rollout/share_right", "eval/mean_reward"} <= set(accumulator.Tags()["scalars"])
    assert 0 < accumulator.Scalars("rollout/share_right")[0].value < 1
    # The panels hold nothing that is not logged
    assert {key for keys in PANELS.values() for key in keys} <= set(accumulator.Tags()["scalars"])
    assert "custom_scalars__config__" in accumulator.Tags()["tensors"]


def test_rollout_files(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Ten updates, from files of another process."""
    load("rollout_files")["main"](steps=10 * 512)
    score, age = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"Score of the last \d+ episodes that the robot drove: \d+", score) and numbers(score)[0] > 20
    updates, lag = numbers(age)
    assert updates == 10 and 0 <= lag < 10
    assert len(list(folder.glob("robot/policy_*.pkl"))) == 10


def test_tune(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("optuna")
    load("tune")["main"](steps=2_048, n_trials=2)
    *trials, best = capsys.readouterr().out.splitlines()
    scores = {numbers(trial)[-1]: trial.split(": ")[1] for trial in trials}
    assert len(trials) == 2
    assert best == f"The best of 2 trials scores {max(scores):.0f}: {scores[max(scores)]}"


@pytest.mark.filterwarnings("ignore:.*Overriding environment")
def test_notebook(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("minatar")
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    shown: list[bytes] = []
    # What the notebook, and matplotlib once it is there, ask of IPython
    notebook, display = types.ModuleType("IPython"), types.ModuleType("IPython.display")
    vars(notebook).update(get_ipython=lambda: None, version_info=(9, 0))
    vars(display).update(Image=bytes, display=shown.append)
    monkeypatch.setitem(sys.modules, "IPython", notebook)
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    cells = json.loads((EXAMPLES / "minatar.ipynb").read_text())["cells"]
    settings, *code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    names: dict[str, Any] = {}
    exec(settings, names)
    names["STEPS"], names["SEEDS"] = 2_048, 1
    for source in code:
        exec(source, names)
    *scores, loaded = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in scores] == ["DAPO, seed 0", "PPO, seed 0"]
    assert loaded == "The loaded agent acts as the original: True"
    assert shown[0].startswith(b"GIF89a") and (folder / "minatar_breakout/policy.safetensors").is_file()
    (axes,) = plt.gcf().axes
    # A line for the mean and one for the run
    assert [line.get_label() for line in axes.lines[::2]] == ["DAPO", "PPO"] and len(axes.lines) == 4
    for line, (_, steps, games) in zip(
        axes.lines[::2], (names["runs"][name][0] for name in ("DAPO", "PPO")), strict=True
    ):
        assert line.get_ydata()[-1] == pytest.approx(games[steps <= 2_048][-100:].mean())
    plt.close("all")
    # What is shown on the page was made by the code beside it
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    assert {"image/png", "image/gif"} <= {kind for output in outputs for kind in output.get("data", {})}
    assert (EXAMPLES / "minatar.ipynb").stat().st_size < 300_000


def test_recurrent(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("sb3_contrib")
    example = load("recurrent")
    check_env(example["CueEnv"]())
    example["main"](steps=12_000, delay=3)
    plain, recurrent, played = map(numbers, capsys.readouterr().out.splitlines())
    assert plain[0] < 0.5 and recurrent[0] == 1 and played == [320 // 4, 320 // 4]
