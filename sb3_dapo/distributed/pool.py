"""Actors that work for one learner, and are replaced when they die or hang. Nothing here knows of learning."""

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np

import sb3_dapo.distributed.host as host
from sb3_dapo.distributed.cluster import check_room, ray

Ref: TypeAlias = "ray.ObjectRef[Any]"

logger = logging.getLogger(__name__)

# Makes a worker in the process of an actor, from the number of the actor and its seed
Factory = Callable[[int, np.random.SeedSequence], Any]

# Else a machine without this version of sb3_dapo could not even say so
ray.cloudpickle.register_pickle_by_value(host)


class WorkerError(RuntimeError):
    """The code of a worker raised an exception. The message has its actor, host, type, text and traceback."""


class ActorsLostError(RuntimeError):
    """Actors die again and again, or none is left and none can be started."""


@dataclass(frozen=True)
class Result:
    """What a worker returned. Arrays in it are read-only, and hold memory of the object store while they live."""

    actor: int
    generation: int
    value: Any


@dataclass
class _Slot:
    """One actor and its successors, which have the same number."""

    actor: int
    generation: int
    state: str = "down"  # then "placing", "setup", "idle" and "task" by turns; or "closed"
    handle: Any = None
    host: str = "no host yet"
    deadline: float = 0.0
    travels: bool = False  # the task is done and its result on its way
    deaths: deque[float] = field(default_factory=deque)


class ActorPool:
    """
    Workers in processes of their own, on the machines of the Ray cluster that this process is connected to.

    An actor has at most one task under way. One that dies, hangs or whose machine is lost is replaced: its task is
    lost, and its successor has the same number and the next generation. Exceptions of a worker are raised here at once,
    by :meth:`drain` and :meth:`wait_until_ready`; a worker that raised in a task stays, and can be given another.

    :param factory: makes the worker, any object whose methods are called; can be pickled
    :param n_actors: number of actors
    :param seed: an actor's ``SeedSequence`` is made of ``[seed, actor, generation]``
    :param generations: to begin with, by actor; 0 for all if None
    :param cpus_per_actor: CPUs that Ray keeps for each actor
    :param setup_timeout: seconds that an actor has for its imports and the factory, then it is replaced
    :param task_timeout: seconds that an actor has for a task, then it is replaced
    :param max_restarts: one actor may be replaced so often within ``restart_window``, then :class:`ActorsLostError`
        is raised
    :param restart_window: in seconds
    :raises ValueError: the cluster has too few CPUs, an argument makes no sense, or the factory can't be pickled
    """

    def __init__(
        self,
        factory: Factory,
        n_actors: int,
        *,
        seed: int = 0,
        generations: Sequence[int] | None = None,
        cpus_per_actor: float = 1.0,
        setup_timeout: float = 120.0,
        task_timeout: float = 300.0,
        max_restarts: int = 5,
        restart_window: float = 300.0,
    ) -> None:
        check_room(n_actors, cpus_per_actor)
        positive = {"setup_timeout": setup_timeout, "task_timeout": task_timeout, "restart_window": restart_window}
        for name, value in positive.items():
            if not value > 0:
                raise ValueError(f"{name} must be positive, got {value}")
        for name, count in {"seed": seed, "max_restarts": max_restarts}.items():
            if count < 0:
                raise ValueError(f"{name} must not be negative, got {count}")
        first = [0] * n_actors if generations is None else list(generations)
        if len(first) != n_actors:
            raise ValueError(f"generations must be {n_actors} numbers, one for each actor, got {first}")
        try:
            self._factory = ray.put(ray.cloudpickle.dumps(factory))
        except Exception as error:
            raise ValueError(f"what makes the workers can't be sent to actors: {error}") from error
        self.seed = seed
        self.setup_timeout = setup_timeout
        self.task_timeout = task_timeout
        self.max_restarts = max_restarts
        self.restart_window = restart_window
        #: seconds that this process has waited for actors
        self.time_waited = 0.0
        #: actors that have been replaced
        self.n_restarts = 0
        #: tasks that each actor has completed, by actor
        self.n_tasks = [0] * n_actors
        self._versions = host.versions()
        self._host = ray.remote(num_cpus=cpus_per_actor, max_restarts=0, max_task_retries=0)(host.Host)
        self._slots = [_Slot(actor, generation) for actor, generation in enumerate(first)]
        # What is under way, in the order of submission
        self._pending: dict[Ref, _Slot] = {}
        for slot in self._slots:
            self._place(slot)

    @property
    def n_alive(self) -> int:
        """Actors that are set up."""
        return sum(slot.state in ("idle", "task") for slot in self._slots)

    @property
    def generations(self) -> list[int]:
        """By actor."""
        return [slot.generation for slot in self._slots]

    @property
    def idle(self) -> list[int]:
        """The actors that can be given a task."""
        return [slot.actor for slot in self._slots if slot.state == "idle"]

    @property
    def busy(self) -> list[int]:
        """The actors that have a task under way, in the order in which they got it."""
        return [slot.actor for slot in self._pending.values() if slot.state == "task"]

    def submit(self, actor: int, method: str, *args: Any) -> None:
        """
        Gives a task to an actor.

        :param actor: one of :attr:`idle`
        :param method: of the worker
        :param args: of the method. References to objects in Ray's store arrive as those objects
        :raises ValueError: the actor is not idle
        """
        slot = self._slots[actor]
        if slot.state != "idle":
            raise ValueError(f"actor {actor} must be idle to be given a task, its state is {slot.state!r}")
        self._call(slot, "task", self.task_timeout, "run", method, *args)

    def drain(self, timeout: float | None = None) -> Iterator[Result]:
        """
        Waits until something happens, then yields the results there are, in the order of submission. There may be
        none: an actor is ready now, or is being replaced. What the caller doesn't take comes the next time.

        :param timeout: seconds to wait at most
        :raises WorkerError: a worker raised an exception
        :raises ActorsLostError: actors die again and again, or none is left
        """
        ready = self._wait(timeout)
        self._expire(set(ready))
        # The caller may take only some results, so this comes first
        for ref in [ref for ref in ready if self._pending[ref].state != "task"]:
            self._receive(ref)
        for ref in ready:
            # (It is gone if it has been received, or the pool was closed meanwhile)
            result = self._receive(ref) if ref in self._pending else None
            if result is not None:
                yield result

    def wait_until_ready(self) -> None:
        """
        Waits until every actor is set up.

        :raises WorkerError: a worker raised an exception
        :raises ActorsLostError: actors die again and again, or there is no place for one of them
        """
        while self.n_alive < len(self._slots):
            ready = self._wait(None, ("placing", "setup"))
            self._expire(set(ready), need_all=True)
            for ref in ready:
                self._receive(ref)

    def close(self) -> None:
        """Ends the actors, whatever they do. It can be called twice."""
        for slot in self._slots:
            self._stop(slot, "closed")

    def _wait(self, timeout: float | None, states: Sequence[str] = ("placing", "setup", "task")) -> list[Ref]:
        """:return: what is ready of that which is under way in these states, in the order of submission"""
        for slot in self._slots:
            if slot.state == "closed":
                raise ValueError("the pool of actors is closed")
            if slot.state == "down":
                self._replace(slot)
        refs = [ref for ref, slot in self._pending.items() if slot.state in states]
        if not refs:
            return []
        began = time.monotonic()
        until = min(self._pending[ref].deadline for ref in refs)
        if timeout is not None:
            until = min(until, began + timeout)
        ray.wait(refs, num_returns=1, timeout=max(0.0, until - began))
        self.time_waited += time.monotonic() - began
        # Everything that is ready, for Ray prefers what comes first in the list and actors at its end would starve
        ready = set(ray.wait(refs, num_returns=len(refs), timeout=0)[0])
        return [ref for ref in refs if ref in ready]

    def _expire(self, ready: set[Ref], need_all: bool = False) -> None:
        """Deals with those whose time is up."""
        now = time.monotonic()
        for ref, slot in list(self._pending.items()):
            if ref in ready or now < slot.deadline:
                continue
            if slot.state == "placing":
                slot.deadline = now + self.setup_timeout
                self._report_no_place(slot, need_all)
            elif slot.state == "task" and not slot.travels and ray.wait([ref], timeout=0, fetch_local=False)[0]:
                # It was done in time, but its result begins to travel only now, because nobody has waited for it
                slot.travels, slot.deadline = True, now + self.task_timeout
            else:
                limit = self.task_timeout if slot.state == "task" else self.setup_timeout
                self._lose(slot, f"its {slot.state} took longer than {limit:g} s")

    def _report_no_place(self, slot: _Slot, need_all: bool) -> None:
        total, free = ray.cluster_resources().get("CPU", 0.0), ray.available_resources().get("CPU", 0.0)
        text = f"Ray has no place for actor {slot.actor}: of {total:g} CPUs {free:g} are not in use"
        started = [other for other in self._slots if other.state in ("setup", "idle", "task")]
        if need_all or not started:
            raise ActorsLostError(f"{text}; waited {self.setup_timeout:g} s")
        logger.warning("%s; %d of %d actors go on", text, len(started), len(self._slots))

    def _receive(self, ref: Ref) -> Result | None:
        """:return: of a task; None if it was something else, or the actor is lost"""
        slot = self._pending.pop(ref)
        state, slot.state = slot.state, "idle"
        try:
            # Without waiting: it has been waited for
            kind, *answer = ray.get(ref)
        except ray.exceptions.RayError as error:
            # What is raised outside of the worker's methods: its result can't be pickled, or the host not be imported
            if not isinstance(error, ray.exceptions.RayTaskError) and not getattr(error, "actor_init_failed", False):
                self._lose(slot, _summary(error))
                return None
            cause = getattr(error, "cause", None) or error
            kind, answer = "failure", [type(cause).__name__, str(cause), "" if cause is error else str(error)]
        if kind == "failure":
            where = slot.host
            if state != "task":
                self._stop(slot, "down")
            name, text, trace = answer
            raise WorkerError(f"actor {slot.actor} on {where}: {name}: {text}\n\n{trace}".rstrip())
        if state == "placing":
            (slot.host,) = answer
            entropy = [self.seed, slot.actor, slot.generation]
            self._call(slot, "setup", self.setup_timeout, "setup", self._factory, slot.actor, entropy, self._versions)
        if state != "task":
            return None
        self.n_tasks[slot.actor] += 1
        return Result(slot.actor, slot.generation, answer[0])

    def _call(self, slot: _Slot, state: str, timeout: float, method: str, *args: Any) -> None:
        ref = getattr(slot.handle, method).remote(*args)
        slot.state, slot.travels, slot.deadline = state, False, time.monotonic() + timeout
        self._pending[ref] = slot

    def _place(self, slot: _Slot) -> None:
        slot.handle, slot.host = self._host.remote(), "no host yet"
        self._call(slot, "placing", self.setup_timeout, "hello")

    def _replace(self, slot: _Slot) -> None:
        self.n_restarts += 1
        slot.generation += 1
        self._place(slot)

    def _lose(self, slot: _Slot, why: str) -> None:
        """Puts another actor into the place of one that is lost."""
        self._stop(slot, "down")
        now = time.monotonic()
        slot.deaths.append(now)
        # Good results do not clear this: an actor that dies after every tenth task would never be noticed
        while slot.deaths[0] < now - self.restart_window:
            slot.deaths.popleft()
        if len(slot.deaths) > self.max_restarts:
            raise ActorsLostError(
                f"actor {slot.actor} was lost {len(slot.deaths)} times within {self.restart_window:g} s,"
                f" the last time on {slot.host}: {why}"
            )
        logger.warning("actor %d on %s is lost and will be replaced: %s", slot.actor, slot.host, why)
        self._replace(slot)

    def _stop(self, slot: _Slot, state: str) -> None:
        slot.state = state
        self._pending = {ref: other for ref, other in self._pending.items() if other is not slot}
        if slot.handle is not None and ray.is_initialized():
            ray.kill(slot.handle)
        slot.handle = None


def _summary(error: Exception) -> str:
    """What happened, in a line. Ray says it in many, of which those with a tab are numbers of its own."""
    lines = [line for line in str(error).splitlines() if not line.startswith("\t")]
    text = " ".join(" ".join(lines).split())
    return text if len(text) <= 300 else f"{text[:300]}..."
