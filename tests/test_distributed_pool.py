"""The pool of actors on the real Ray, with workers that sleep, raise, exit, hang and lose their machine."""

import importlib.metadata
import logging
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from actors import BadWorker, SlowWorker, Worker

ray = pytest.importorskip("ray", reason="the extra `ray` is not installed")

from sb3_dapo.distributed.cluster import Cluster, check_room  # noqa: E402
from sb3_dapo.distributed.pool import ActorPool, ActorsLostError, Result, WorkerError  # noqa: E402

pytestmark = pytest.mark.usefixtures("ray_cluster")

N_CPUS = 5


@pytest.fixture
def make_pool(ray_cluster: Any) -> Iterator[Callable[..., ActorPool]]:
    """Makes pools whose actors are ready, and closes them. Actors take hardly any CPU, so there is room for them."""
    pools = []

    def make(factory: Any, n_actors: int, **options: Any) -> ActorPool:
        pools.append(ActorPool(factory, n_actors, **{"cpus_per_actor": 0.01, **options}))
        pools[-1].wait_until_ready()
        return pools[-1]

    yield make
    for pool in pools:
        pool.close()


@pytest.fixture(scope="module")
def shared_pool(ray_cluster: Any) -> Iterator[ActorPool]:
    pool = ActorPool(Worker, 4, cpus_per_actor=0.01)
    pool.wait_until_ready()
    yield pool
    pool.close()


@pytest.fixture
def pool(shared_pool: ActorPool) -> Iterator[ActorPool]:
    """For the tests that harm none of its 4 actors."""
    yield shared_pool
    finish(shared_pool)
    assert (shared_pool.n_restarts, shared_pool.n_alive) == (0, 4)


def wait_for(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def finish(pool: ActorPool) -> list[Result]:
    """All results of what is under way."""
    results = []
    while pool.busy:
        results.extend(pool.drain())
    return results


def do(pool: ActorPool, actor: int, method: str, *args: Any) -> Any:
    pool.submit(actor, method, *args)
    return [result.value for result in finish(pool)]


def wait_until_done(pool: ActorPool) -> None:
    """Until all tasks are, without taking their results, as a slow learner would find them."""
    refs = list(pool._pending)
    assert len(ray.wait(refs, num_returns=len(refs), timeout=60.0)[0]) == len(refs)


def process_lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):  # the latter if it ends between opening and reading
        return False


# ---- Order and fairness


def test_results_come_in_the_order_of_submission(pool: ActorPool) -> None:
    assert pool.idle == [0, 1, 2, 3]
    for actor, seconds in ((2, 0.3), (0, 0.2), (1, 0.0)):
        pool.submit(actor, "work", seconds, f"task of {actor}")
    assert pool.busy == [2, 0, 1]
    wait_until_done(pool)
    before = list(pool.n_tasks)
    expected = [Result(2, 0, "task of 2"), Result(0, 0, "task of 0"), Result(1, 0, "task of 1")]
    assert list(pool.drain()) == expected
    assert np.subtract(pool.n_tasks, before).tolist() == [1, 1, 1, 0]
    assert (pool.idle, pool.busy) == ([0, 1, 2, 3], [])


def test_what_is_ready_is_yielded_without_waiting_for_the_rest(pool: ActorPool) -> None:
    pool.submit(0, "work", 3.0)
    pool.submit(1, "work", 0.2, "soon")
    before, began = pool.time_waited, time.monotonic()
    assert [result.value for result in pool.drain()] == ["soon"]
    assert 0.1 < pool.time_waited - before < time.monotonic() - began < 3.0
    assert list(pool.drain(timeout=0.1)) == []
    assert (pool.idle, pool.busy) == ([1, 2, 3], [0])


def test_nobody_starves_when_the_learner_is_slow(pool: ActorPool) -> None:
    taken, before = [], list(pool.n_tasks)
    while len(taken) < 60:
        for actor in pool.idle:
            pool.submit(actor, "work")
        wait_until_done(pool)
        # Of 4 results that are there, it takes 2 at a time
        for result in pool.drain():
            taken.append(result.actor)
            if len(taken) % 2 == 0:
                break
    counts = np.bincount(taken, minlength=4)
    assert counts.max() - counts.min() <= 1, counts
    assert np.subtract(pool.n_tasks, before).tolist() == counts.tolist()


def test_an_actor_has_one_task_at_most(pool: ActorPool) -> None:
    pool.submit(0, "work", 0.1)
    with pytest.raises(ValueError, match="actor 0 must be idle to be given a task, its state is 'task'"):
        pool.submit(0, "work")
    assert len(finish(pool)) == 1


def test_nothing_under_way_is_no_reason_to_wait(pool: ActorPool) -> None:
    assert list(pool.drain()) == []


def test_references_arrive_as_objects(pool: ActorPool) -> None:
    weights = ray.put({"weights": np.arange(3.0)})
    (value,) = do(pool, 0, "work", 0.0, weights)
    np.testing.assert_array_equal(value["weights"], np.arange(3.0))


# ---- Seeds and generations


def test_seeds_are_those_of_actor_and_generation(make_pool: Callable[..., ActorPool]) -> None:
    pool = make_pool(Worker, 2, seed=7, generations=[3, 0])
    facts = do(pool, 0, "facts") + do(pool, 1, "facts")
    assert [fact["entropy"] for fact in facts] == [[7, 0, 3], [7, 1, 0]]
    # The process gets by without the package until a worker needs it, which is how it can say that it is missing
    assert [fact["package"] for fact in facts] == [False, False]


# ---- Faults of the user's code


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("raise_two", "TwoArgumentsError: this and that\n\nTraceback"),
        ("raise_unspeakable", "UnspeakableError: its text cannot be had"),
        ("raise_base", "BaseException: not even an Exception"),
        ("unpicklable", "TypeError: cannot pickle 'generator' object"),
        ("absent", "AttributeError: 'Worker' object has no attribute 'absent'"),
    ],
)
def test_exceptions_of_a_worker_are_raised(pool: ActorPool, method: str, message: str) -> None:
    (fact,) = do(pool, 0, "facts")
    with pytest.raises(WorkerError) as caught:
        do(pool, 0, method)
    text = str(caught.value)
    assert text.startswith(f"actor 0 on {os.uname().nodename}, process {fact['pid']}: ")
    assert message in text
    if method.startswith("raise"):
        assert f"in {method}\n" in text
    # The worker stays
    assert do(pool, 0, "facts") == [fact]


def test_exceptions_at_the_start_are_raised_and_it_can_be_tried_again(make_pool: Callable[..., ActorPool]) -> None:
    pool = ActorPool(BadWorker, 2)
    for generation in range(2):
        with pytest.raises(WorkerError, match=r"actor 1 on .*: TwoArgumentsError: this and that\n\n(.*\n)*.*__init__"):
            pool.wait_until_ready()
        assert pool.generations == [0, generation]
    pool.close()


def test_what_cannot_be_sent_is_refused_at_once() -> None:
    generator = (number for number in range(3))
    with pytest.raises(ValueError, match="what makes the workers can't be sent to actors: .*generator"):
        ActorPool(lambda actor, seed: generator, 1)


def test_versions_must_be_those_of_the_learner(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.metadata.version
    here = real("torch").split("+")[0]
    # Another build is the same version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.4.1+cpu" if name == "torch" else real(name))
    pool = ActorPool(Worker, 1)
    message = f"actor 0 on .* the code must be that of the learner, found torch {here} instead of 0.4.1$"
    with pytest.raises(WorkerError, match=message):
        pool.wait_until_ready()
    pool.close()


# ---- Actors that die or hang


def test_dead_actor_is_replaced_and_the_rest_goes_on(
    make_pool: Callable[..., ActorPool], caplog: pytest.LogCaptureFixture
) -> None:
    pool = make_pool(Worker, 3, seed=5)
    pool.submit(1, "signal", signal.SIGKILL)
    meanwhile = []
    with caplog.at_level(logging.WARNING):
        while 1 not in pool.idle:
            for actor in set(pool.idle) - {1}:
                pool.submit(actor, "work", 0.02)
            meanwhile.extend(result.actor for result in pool.drain())
    assert set(meanwhile) == {0, 2}
    assert len(meanwhile) >= 6, "the others stood still while the successor started"
    finish(pool)
    (fact,) = do(pool, 1, "facts")
    assert fact["entropy"] == [5, 1, 1]
    assert (pool.n_restarts, pool.n_alive, pool.generations) == (1, 3, [0, 1, 0])
    (record,) = caplog.records
    assert record.getMessage().startswith(f"actor 1 on {os.uname().nodename}, process ")
    assert "is lost and will be replaced: The actor died unexpectedly" in record.getMessage()


def test_actor_that_died_while_idle_is_replaced(make_pool: Callable[..., ActorPool]) -> None:
    pool = make_pool(Worker, 1)
    (fact,) = do(pool, 0, "facts")
    os.kill(fact["pid"], signal.SIGKILL)
    wait_for(lambda: not process_lives(fact["pid"]))
    assert do(pool, 0, "work") == []  # the task is lost
    pool.wait_until_ready()
    assert do(pool, 0, "work") == [1]


@pytest.mark.parametrize("how", ["sleeps", "stopped"])
def test_actor_that_hangs_is_replaced(make_pool: Callable[..., ActorPool], how: str) -> None:
    pool = make_pool(Worker, 2, task_timeout=2.0)
    (fact,) = do(pool, 0, "facts")
    began = time.monotonic()
    if how == "sleeps":
        pool.submit(0, "work", 60.0)
    else:
        pool.submit(0, "signal", signal.SIGSTOP)
    # One that is slow, but in time, is left alone
    pool.submit(1, "work", 0.5, "in time")
    assert [result.value for result in finish(pool)] == ["in time"]
    assert 1.9 < time.monotonic() - began < 10.0
    pool.wait_until_ready()
    assert pool.generations == [1, 0]
    assert do(pool, 0, "work") == [1]
    if how == "stopped":
        # Ray gives the CPU back, but cannot end a stopped process
        os.kill(fact["pid"], signal.SIGKILL)
    wait_for(lambda: not process_lives(fact["pid"]))


def test_start_that_hangs_is_begun_again(make_pool: Callable[..., ActorPool]) -> None:
    pool = make_pool(SlowWorker, 2)
    pool.setup_timeout = 1.5
    assert do(pool, 0, "leave") == []
    while 0 not in pool.idle:
        list(pool.drain())
    assert pool.generations[0] >= 2
    assert do(pool, 0, "work") == [1]


def test_crash_loop_ends_with_an_error(make_pool: Callable[..., ActorPool]) -> None:
    pool = make_pool(Worker, 2, max_restarts=2)
    for _ in range(2):
        # Good results in between change nothing
        assert do(pool, 0, "work") == [1]
        assert do(pool, 0, "leave") == []
        pool.wait_until_ready()
    # Deaths of others are counted by themselves
    assert do(pool, 1, "leave") == []
    pool.wait_until_ready()
    message = (
        r"actor 0 was lost 3 times within 300 s, the last time on .*, process \d+: .*the environment ends the process"
    )
    with pytest.raises(ActorsLostError, match=message):
        do(pool, 0, "leave")
    assert pool.n_restarts == 3
    assert pool.n_alive == 1


def test_deaths_long_ago_are_forgotten(make_pool: Callable[..., ActorPool]) -> None:
    pool = make_pool(Worker, 1, max_restarts=1, restart_window=0.3)
    for _ in range(2):
        time.sleep(0.4)
        assert do(pool, 0, "leave") == []
        pool.wait_until_ready()
    assert pool.generations == [2]


def test_result_that_waited_for_a_slow_learner_is_not_late(make_pool: Callable[..., ActorPool]) -> None:
    pool = make_pool(Worker, 1, task_timeout=1.0)
    pool.submit(0, "work", 0.0, "early")
    wait_until_done(pool)
    time.sleep(1.0)
    assert [result.value for result in pool.drain()] == ["early"]
    assert pool.n_restarts == 0


# ---- Memory


def test_memory_is_bounded(pool: ActorPool) -> None:
    def resident() -> float:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6

    n_bytes, n_results = 25_000_000, 40  # 1 GB through a store of 120 MB
    values, most, before = [], 0.0, resident()
    submitted = 0
    while len(values) < n_results:
        for actor in pool.idle[: n_results - submitted]:
            pool.submit(actor, "array", n_bytes, submitted)
            submitted += 1
        for result in pool.drain():
            assert not result.value.flags.writeable
            assert len(result.value) == n_bytes
            assert result.value[0] == result.value[-1]
            values.append(int(result.value[0]))
            most = max(most, resident())
    assert sorted(values) == list(range(n_results))
    assert most - before < 200.0


# ---- Resources


@pytest.mark.parametrize(
    ("n_actors", "cpus", "message"),
    [
        (6, 1.0, "n_actors=6 with cpus_per_actor=1 .*: it has 5 CPUs on 1 node, room for 5 such actors"),
        (2, 3.0, "n_actors=2 with cpus_per_actor=3 .*: it has 5 CPUs on 1 node, room for 1 such actors"),
        (51, 0.1, "room for 50 such actors"),
        (0, 1.0, "n_actors must be at least 1, got 0"),
        (1, 0.0, "cpus_per_actor must be a part of 1, or a whole number, got 0"),
        (1, 1.5, "cpus_per_actor must be a part of 1, or a whole number, got 1.5"),
    ],
)
def test_too_few_cpus_are_an_error_in_seconds(n_actors: int, cpus: float, message: str) -> None:
    began = time.monotonic()
    with pytest.raises(ValueError, match=message):
        ActorPool(Worker, n_actors, cpus_per_actor=cpus)
    assert time.monotonic() - began < 5.0


def test_as_many_actors_as_there_is_room_for() -> None:
    check_room(4, 1.0)
    check_room(40, 0.1)


def test_cpus_that_others_use_are_an_error_in_seconds(
    make_pool: Callable[..., ActorPool], monkeypatch: pytest.MonkeyPatch
) -> None:
    make_pool(Worker, 1, cpus_per_actor=4)
    monkeypatch.setattr("sb3_dapo.distributed.cluster.PATIENCE", 0.5)
    with pytest.raises(ValueError, match=r"it has 5 CPUs on 1 node, of which (1|0\.\d+) are not in use"):
        ActorPool(Worker, 2)


def occupy(n_cpus: int) -> Any:
    """An actor that waits in Ray's queue for the next CPUs, before any successor of the pool's."""
    return ray.remote(num_cpus=n_cpus)(Worker).remote(0, None)


def test_without_a_place_for_a_successor_the_others_go_on(
    make_pool: Callable[..., ActorPool], caplog: pytest.LogCaptureFixture
) -> None:
    pool = make_pool(Worker, 2, cpus_per_actor=2)
    pool.setup_timeout = 1.0
    other = occupy(2)
    pool.submit(0, "leave")
    with caplog.at_level(logging.WARNING):
        while "no place" not in caplog.text:
            if 1 in pool.idle:
                pool.submit(1, "work", 0.05)
            list(pool.drain())
    assert re.search(r"Ray has no place for actor 0: of 5 CPUs \S+ are not in use; 1 of 2 actors go on", caplog.text)
    with pytest.raises(ActorsLostError, match=r"no place for actor 0: of 5 CPUs \S+ are not in use; waited 1 s"):
        pool.wait_until_ready()
    ray.kill(other)
    while 0 not in pool.idle:
        list(pool.drain())
    assert pool.generations == [1, 0]


def test_without_a_place_for_anybody_it_ends(make_pool: Callable[..., ActorPool]) -> None:
    pool = make_pool(Worker, 1, cpus_per_actor=4)
    pool.setup_timeout = 1.0
    other = occupy(4)
    pool.submit(0, "leave")
    with pytest.raises(ActorsLostError, match="Ray has no place for actor 0"):
        while True:
            list(pool.drain())
    ray.kill(other)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task_timeout": 0.0}, "task_timeout must be positive, got 0.0"),
        ({"setup_timeout": float("nan")}, "setup_timeout must be positive, got nan"),
        ({"seed": -1}, "seed must not be negative, got -1"),
        ({"max_restarts": -1}, "max_restarts must not be negative, got -1"),
        ({"generations": [0]}, r"generations must be 2 numbers, one for each actor, got \[0\]"),
    ],
)
def test_bad_arguments(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ActorPool(Worker, 2, **options)


def test_close_ends_actors_at_once_and_for_good(make_pool: Callable[..., ActorPool]) -> None:
    pool = make_pool(Worker, 2)
    facts = do(pool, 0, "facts") + do(pool, 1, "facts")
    pool.submit(0, "work", 60.0)
    pool.close()
    wait_for(lambda: not any(process_lives(fact["pid"]) for fact in facts))
    pool.close()
    assert (pool.n_alive, pool.idle, pool.busy) == (0, [], [])
    with pytest.raises(ValueError, match="the pool of actors is closed"):
        list(pool.drain())
    with pytest.raises(ValueError, match="its state is 'closed'"):
        pool.submit(1, "work")


# ---- Nodes


@pytest.fixture
def second_node(ray_cluster: Any) -> Iterator[Any]:
    yield ray_cluster.add_node(num_cpus=2, object_store_memory=120_000_000)
    for node in list(ray_cluster.worker_nodes):
        ray_cluster.remove_node(node)
    wait_for(lambda: ray.cluster_resources().get("CPU") == N_CPUS)


def test_lost_node_costs_only_its_actors(
    second_node: Any, make_pool: Callable[..., ActorPool], ray_cluster: Any
) -> None:
    pool = make_pool(Worker, 6, cpus_per_actor=1, task_timeout=3.0)
    # What was done in time on another node is not late when the learner comes late, though it is not here yet
    for actor in range(6):
        pool.submit(actor, "array", 1_000_000, actor)
    time.sleep(3.2)
    assert sorted(int(result.value[0]) for result in finish(pool)) == list(range(6))
    assert pool.n_restarts == 0
    ray_cluster.remove_node(second_node, allow_graceful=False)
    pauses, counts, last = [], np.zeros(6, int), time.monotonic()
    while counts.sum() < 40:
        for actor in pool.idle:
            pool.submit(actor, "work", 0.05)
        for result in pool.drain():
            pauses.append(time.monotonic() - last)
            last = time.monotonic()
            # The processes of a lost node may live on for a moment, so this counts from their death on
            counts[result.actor] += pool.n_alive == 4
    assert sorted(counts)[:2] == [0, 0]
    assert min(sorted(counts)[2:]) >= 8
    assert max(pauses) < 3.0
    finish(pool)
    ray_cluster.add_node(num_cpus=2, object_store_memory=120_000_000)
    pool.wait_until_ready()
    assert sorted(pool.generations) == [0, 0, 0, 0, 1, 1]
    assert pool.n_restarts == 2


# ---- The cluster


def test_a_connection_is_shared(ray_cluster: Any) -> None:
    for address in (None, "auto", ray_cluster.address):
        with Cluster(address):
            check_room(1, 1.0)
    # The last one of this process that uses it ends it, and that is the fixture
    assert ray.is_initialized()
    with pytest.raises(ValueError, match="address is '10.0.0.1:6379', but this process is connected to Ray at"):
        Cluster("10.0.0.1:6379")


LOCAL = """
import os, pathlib, signal, sys, time

import sb3_dapo, sb3_dapo.distributed
assert "ray" not in sys.modules

from sb3_dapo.distributed.cluster import Cluster, check_room, ray

def refused(address, kind):
    began = time.monotonic()
    try:
        Cluster(address)
    except kind as error:
        assert time.monotonic() - began < 6.0
        return str(error)

assert refused("127.0.0.1:1", ConnectionError).startswith("no Ray cluster answers at 127.0.0.1:1: ")
assert "Ray Client" in refused("ray://127.0.0.1:10001", ValueError)
assert "got 'nonsense'" in refused("nonsense", ValueError)

terminated = []
signal.signal(signal.SIGTERM, lambda *_: terminated.append(True))

class Worker:
    def __init__(self, actor, seed):
        print("a worker talks")
    def pid(self):
        return os.getpid()

from sb3_dapo.distributed.pool import ActorPool

with Cluster(num_cpus=1) as cluster:
    try:
        check_room(4, 1.0)
    except ValueError as error:
        assert "it has 1 CPUs on 1 node, room for 1 such actors" in str(error), error
    pool = ActorPool(Worker, 1)
    pool.wait_until_ready()
    pool.submit(0, "pid")
    pids = [result.value for result in pool.drain()]
    os.kill(pids[0], signal.SIGKILL)
    time.sleep(1)
    pool.submit(0, "pid")
    assert list(pool.drain()) == []
    os.kill(os.getpid(), signal.SIGTERM)
assert terminated == [True]
assert not ray.is_initialized()
assert not list(pathlib.Path.home().rglob("*")), "files in the home folder"
"""


def run(script: str, home: Path) -> subprocess.CompletedProcess[str]:
    """Without a cluster, and with an empty home folder."""
    unset = {"RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_ADDRESS"}
    environment = {name: value for name, value in os.environ.items() if name not in unset}
    command = [sys.executable, "-c", script]
    return subprocess.run(command, capture_output=True, text=True, env={**environment, "HOME": str(home)})


def test_local_cluster_is_quiet_and_leaves_nothing_behind(tmp_path: Path) -> None:
    done = run(LOCAL, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    # The death of the actor, in one line
    assert [line[:10] for line in done.stderr.splitlines()] == ["actor 0 on"], done.stderr


KILLED = """
import os, signal, sys, time
from sb3_dapo.distributed.cluster import Cluster
from sb3_dapo.distributed.pool import ActorPool

class Worker:
    def __init__(self, actor, seed):
        pass
    def pid(self):
        return os.getpid()

for attempt in range(2):  # one process can start a cluster after another
    with Cluster(num_cpus=2):
        pool = ActorPool(Worker, 2)
        pool.wait_until_ready()
        for actor in range(2):
            pool.submit(actor, "pid")
        while pool.busy:
            for result in pool.drain():
                print(result.value, flush=True)
        if attempt == 1:
            os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.slow
def test_actors_of_a_local_cluster_end_with_the_learner(tmp_path: Path) -> None:
    done = run(KILLED, tmp_path)
    assert done.returncode == -signal.SIGKILL, done.stderr
    pids = [int(line) for line in done.stdout.split()]
    assert len(pids) == 4
    wait_for(lambda: not any(process_lives(pid) for pid in pids))
