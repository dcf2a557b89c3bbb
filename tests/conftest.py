from pathlib import Path

import pytest
import torch as th
from algos import ALL_ALGOS
from commands import Command, runner
from hypothesis import settings

# Small networks are fastest on one core, and results don't depend on the machine
th.set_num_threads(1)

# The same examples in every run; `pytest --hypothesis-profile=thorough` looks for new ones
settings.register_profile("default", deadline=None, max_examples=60, derandomize=True, database=None)
settings.register_profile("thorough", deadline=None, max_examples=1000, database=None)
settings.load_profile("default")


@pytest.fixture(params=ALL_ALGOS, ids=lambda algo: algo.__name__)
def algo(request: pytest.FixtureRequest) -> type:
    return request.param


@pytest.fixture
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, where the commands keep their logs."""
    path = tmp_path / "here"
    path.mkdir()
    monkeypatch.chdir(path)
    return path


@pytest.fixture
def command(empty_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Run `sb3-dapo` with arguments in an empty folder, return what it prints."""
    return runner(monkeypatch, capsys)
