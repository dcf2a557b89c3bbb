"""The walk of a new user: the commands of docs/tour.md, in their order, as they are written there."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("rl_zoo3")
pytest.importorskip("huggingface_hub")

from hub_server import TOKEN, HubServer, running_hub

PAGE = Path(__file__).parents[1] / "docs" / "tour.md"


def programs() -> list[str]:
    """
    :return: the blocks of the page, those of Python as commands too
    """
    programs = []
    for language, code in re.findall(r"^```(sh|py)\n(.*?)^```$", PAGE.read_text(), flags=re.MULTILINE | re.DOTALL):
        if not code.startswith("pip install"):
            programs.append(code if language == "sh" else f"python - <<'END'\n{code}END\n")
    return programs


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """A user's environment: this package on the path, nothing else of this process."""
    return {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "HOME": str(tmp_path),
        "HF_TOKEN": TOKEN,
        "HF_HUB_DISABLE_XET": "1",  # the protocol of the server is plain HTTP
        "OMP_NUM_THREADS": "1",
        "COLUMNS": "100",
    }


# All commands of the tour, trainings among them: two minutes, five on a slow machine
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_walk_of_a_new_user(tmp_path: Path, environment: dict[str, str]) -> None:
    folder = tmp_path / "work"
    folder.mkdir()
    left_behind = programs()[-1]
    assert left_behind.startswith("rm ")
    outputs = []
    hub: HubServer
    with running_hub() as hub:
        for program in programs()[:-1]:
            process = subprocess.run(
                ["bash", "-e", "-c", program],
                cwd=folder,
                env={**environment, "HF_ENDPOINT": hub.url},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            assert process.returncode == 0, f"{program}\n{process.stdout}"
            outputs.append(process.stdout)
        assert "my-name/dapo-CartPole-v1" in hub.repositories

    run = folder / "logs" / "dapo" / "CartPole-v1_1"
    for name in ("CartPole-v1.zip", "best_model.zip", "learning_curve.png", "panels.png"):
        assert (run / name).stat().st_size > 1000, name
    assert list(folder.rglob("*.mp4")) and list(folder.rglob("*.gif"))
    assert (folder / "logs" / "comparison.png").stat().st_size > 1000
    # It learned, more than a random policy, whose score is near 22
    (trained,), (random,) = (re.findall(rf"{name}\s+(\S+) \+/-", outputs[0]) for name in ("DAPO", "random actions"))
    assert float(trained) > 5 * float(random)
    # What came back from the Hub plays as well
    (reward,) = re.findall(r"Mean reward: (\S+)", outputs[-1])
    assert float(reward) > 5 * float(random)
    # The last block leaves nothing behind
    subprocess.run(["bash", "-e", "-c", left_behind], cwd=folder, check=True)
    assert not [path for path in folder.iterdir() if path.name != "wandb"]
