from collections.abc import Iterator
from pathlib import Path
from typing import Any

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


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """
    All tests on Ray go to one process, which starts it once; the rest are spread as by `--dist load`. (The mark
    `xdist_group` has no effect with pytest 9.2: https://github.com/pytest-dev/pytest-xdist/issues/1386.)
    """
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return "ray" if "test_distributed" in nodeid.split("::")[0] else nodeid

    return Scheduling(config, log) if config.getvalue("dist") == "load" else None


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


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[Any]:
    """
    A Ray cluster of one node with 5 CPUs and a store of 120 MB, to which this process is connected. Tests that use it
    are in files named `test_distributed*.py`.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")
        # Actors import workers from the modules of the tests
        patch.setenv("PYTHONPATH", str(Path(__file__).parent))
        from ray.cluster_utils import Cluster as Nodes

        from sb3_dapo.distributed.cluster import Cluster

        # Ray notices the loss of a node after some 4 seconds, not 15, and doesn't let other processes go first
        system = {"health_check_initial_delay_ms": 1000, "health_check_period_ms": 500, "health_check_timeout_ms": 2000}
        system["worker_niceness"] = 0
        head = {"num_cpus": 5, "object_store_memory": 120_000_000, "include_dashboard": False, "_system_config": system}
        nodes = Nodes(initialize_head=True, head_node_args=head)
        with Cluster(nodes.address):
            yield nodes
        nodes.shutdown()
