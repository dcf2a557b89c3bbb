"""Where the learner's rollouts come from: weights go out to the actors, rollouts come in."""

import io
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, replace
from functools import partial
from typing import Any

import numpy as np
from stable_baselines3.common.vec_env import VecEnv

from sb3_dapo.buffers import FrameStacks, Rollout
from sb3_dapo.checkpoint import get_random_states, set_random_states
from sb3_dapo.dapo import DAPO
from sb3_dapo.distributed.actor import CPU, Actor, Beginning, Collected, Publication, actor_seed
from sb3_dapo.distributed.cluster import Cluster, ray
from sb3_dapo.distributed.moments import merge
from sb3_dapo.distributed.pool import ActorPool, Result

# Bytes of an argument that Ray hands over with a call; its limit is 100 KiB
MAX_INLINE = 100_000


class Source:
    """
    Parameters as in :class:`~sb3_dapo.distributed.ActorVecEnv`.

    :param info_keys: what travels of the infos
    """

    def __init__(
        self,
        make_env: Callable[[int], VecEnv],
        n_actors: int,
        address: str | None,
        cpus_per_actor: float,
        sync: bool,
        rollout_timeout: float,
        info_keys: Sequence[str],
        seed: int,
    ) -> None:
        self.sync = sync
        #: whether the only actor draws from the random generators what this process would draw
        self.is_alone = sync and n_actors == 1
        self.seed: int | None = None  # for the next reset
        self.last_seed: int | None = None  # of the last one
        self.counts = [0] * n_actors  # rollouts that came from each actor
        self._first_generations = [0] * n_actors  # at the last reset
        self._begun = [-1] * n_actors  # generations that have begun episodes since
        self._model: Any = None
        self._model_key: tuple[int, float] | None = None  # of the model and the call of learn
        self._equipped: set[tuple[int, int]] = set()  # actors, with generations, that have this model
        self._publication: Any = None
        self._number = self._oldest = 0  # of the last publication, and of the first whose rollouts are still used
        self._n_merged = self._n_asked = 0
        self._held: list[Result] = []  # rollouts that have come, at most one of each actor
        self._logged = (time.monotonic(), 0.0)
        self.cluster = Cluster(address)
        try:
            factory = partial(Actor, make_env, max(int(cpus_per_actor), 1), tuple(info_keys))
            options: dict[str, Any] = {"cpus_per_actor": cpus_per_actor, "task_timeout": rollout_timeout}
            self.pool = ActorPool(factory, n_actors, seed=seed, **options)
            self.pool.wait_until_ready()
            self.description, *others = self.ask("describe")
            for actor, other in enumerate(others, 1):
                if other != self.description:
                    raise ValueError(
                        "`make_env` must make the same number of environments and the same spaces for all actors, got "
                        f"{self.description} for actor 0 and {other} for actor {actor}"
                    )
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        if hasattr(self, "pool"):
            self.pool.close()
        self.cluster.close()

    def ask(
        self, method: str, arguments: Callable[[int], tuple[Any, ...]] = lambda actor: (), only_one: bool = False
    ) -> list[Any]:
        """
        :param method: of :class:`~sb3_dapo.distributed.actor.Actor`
        :param arguments: of the method, by actor
        :param only_one: ask the first of those that are alive, not all
        :return: what each returns. It waits for rollouts that are under way, and keeps them
        """
        answers: dict[int, Any] = {}
        self._n_asked += 1
        while not answers or not set(self._alive()[: 1 if only_one else None]) <= set(answers):
            for actor in set(self.pool.idle) & set(self._alive()[: 1 if only_one else None]) - set(answers):
                self.pool.submit(actor, "answer", self._n_asked, method, *arguments(actor))
            for result in self.pool.drain():
                if isinstance(result.value, Collected):
                    self._hold(result)
                elif result.value[0] == self._n_asked:  # not of a question that ended with an error
                    answers[result.actor] = result.value[1]
                    if method == "reset":
                        self._begun[result.actor] = result.generation
        return [answers[actor] for actor in sorted(answers)]

    def _alive(self) -> list[int]:
        return sorted([*self.pool.idle, *self.pool.busy])

    def reset(self) -> Any:
        """
        Begin new episodes everywhere. Rollouts that are under way belong to the old ones, and are dropped. Actors that
        are being replaced begin anew when they are there.

        :return: first observations of the first actor
        """
        self.last_seed, self.seed = self.seed, None
        self._first_generations, self._begun = self.pool.generations, [-1] * len(self.counts)
        # The learner's VecNormalize counts the observations that it sees
        seen = min(self._alive(), default=0)
        (first_obs, states), *_ = self.ask("reset", lambda actor: (self._beginning(actor, is_counted=actor == seen),))
        self._held.clear()
        if states is not None:
            set_random_states(states, CPU)
        return first_obs

    def _beginning(self, actor: int, is_counted: bool = False) -> Beginning:
        generation = self.pool.generations[actor] - self._first_generations[actor]
        return Beginning(
            seed=None if self.last_seed is None else actor_seed(self.last_seed, actor, generation),
            random_states=self._random_states(),
            is_counted=is_counted,
        )

    def _random_states(self) -> dict[str, Any] | None:
        return get_random_states(CPU) if self.is_alone else None

    # --- an update ------------------------------------------------------------------------------

    def rollouts_for(self, model: DAPO) -> Iterator[Rollout]:
        """
        :param model: the learner
        :return: as many rollouts as there are actors
        """
        self._publish(model)
        lags, sizes, n_steps = [], [], 0
        for result in self._in_order() if self.sync else self._as_they_come(model.n_rollouts):
            rollout = self._accept(model, result)
            lags.append(model._policy_version - rollout.version)
            sizes.append(n_bytes(rollout))
            n_steps += rollout.rewards.size
            del result  # which holds memory of the object store
            yield rollout
        now, waited = time.monotonic(), self.pool.time_waited
        seconds, seconds_waited = now - self._logged[0], waited - self._logged[1]
        self._logged = now, waited
        for name, value in {
            "actors_alive": self.pool.n_alive,
            "restarts": self.pool.n_restarts,
            "rollouts_min": min(self.counts),
            "rollouts_max": max(self.counts),
            "lag_mean": np.mean(lags),
            "lag_max": max(lags),
            "wait_share": seconds_waited / seconds,
            "steps_per_second": n_steps / seconds,
            "bytes_per_rollout": np.mean(sizes),
        }.items():
            model.logger.record(f"distributed/{name}", value)

    def _publish(self, model: DAPO) -> None:
        self._number += 1
        key = id(model), model.start_time
        is_new = key != self._model_key
        if is_new:
            file = io.BytesIO()
            model.save(file)
            self._model, self._model_key, self._equipped = ray.put((type(model), file.getvalue())), key, set()
        if is_new or self.sync:
            # What is under way is of another model, of other settings or, left by an update cut short, of older weights
            self._oldest, self._held = self._number, []
        published = Publication.of(model, self._number, self._n_merged)
        # What is small travels with the call, which costs less than a way through the object store
        self._publication = published if len(published) < MAX_INLINE else ray.put(published)

    def _submit(self, actors: Sequence[int]) -> None:
        """Have actors collect, as far as they can."""
        for actor in actors:
            generation = self.pool.generations[actor]
            has_begun = self._begun[actor] == generation
            saved = None if (actor, generation) in self._equipped else self._model
            beginning = None if has_begun else self._beginning(actor)
            self.pool.submit(actor, "collect", self._publication, self._random_states(), beginning, saved)
            self._begun[actor] = generation
            self._equipped.add((actor, generation))

    def _in_order(self) -> Iterator[Result]:
        """One of each actor with the newest weights, in the order of the actors."""
        for actor in range(len(self.counts)):
            while (result := self._take([actor])) is None:
                self._submit_free(first=actor)  # those before it have given theirs
                self._drain()
            yield result

    def _as_they_come(self, most: int) -> Iterator[Result]:
        """
        As many as there are actors alive. Whoever is done gets the newest weights and goes on, also while the learner
        trains.

        :param most: rollouts of one actor that are taken. What comes above that waits for the next update, as it would
            take the place of one that has not been trained on
        """
        taken: Counter[int] = Counter()
        while taken.total() < max(len(self._alive()), 1):
            result = self._take([actor for actor in range(len(self.counts)) if taken[actor] < most])
            self._submit_free()
            if result is not None:
                taken[result.actor] += 1
                yield result
            elif self._is_enough(taken):
                return
            else:
                self._drain()

    def _is_enough(self, taken: Counter[int]) -> bool:
        """:return: whether to go on with fewer, when what is held is of actors that can give no more"""
        held = {result.actor for result in self._held}
        # Some may hang: at the latest when half of the actors can give no more, and the others have given nothing
        others = [actor for actor in self._alive() if actor not in held]
        return taken.total() > 0 and len(held) >= len(others) and not any(taken[actor] for actor in others)

    def _drain(self) -> None:
        """Wait until something happens, and hold the rollouts that have come."""
        for result in self.pool.drain():
            if isinstance(result.value, Collected):  # not an answer to a question that ended with an error
                self._hold(result)

    def _hold(self, result: Result) -> None:
        """Keep a rollout until it is taken, if it is not too old."""
        if result.value.publication >= self._oldest:
            self._held.append(result)

    def _take(self, actors: Sequence[int]) -> Result | None:
        """:return: the first rollout that is held of one of these actors. It is no longer held then"""
        for place, result in enumerate(self._held):
            if result.actor in actors:
                return self._held.pop(place)
        return None

    def _submit_free(self, first: int = 0) -> None:
        """
        Have actors collect that are idle and of which no rollout is held.

        :param first: of those that may collect
        """
        held = {result.actor for result in self._held}
        self._submit([actor for actor in self.pool.idle if actor >= first and actor not in held])

    def _accept(self, model: DAPO, result: Result) -> Rollout:
        collected: Collected = result.value
        normalize = model.get_vec_normalize_env()
        if normalize is not None and collected.moments is not None:
            merge(normalize, collected.moments, is_newest=collected.n_merged == self._n_merged)
            self._n_merged += 1
        if collected.random_states is not None:
            set_random_states(collected.random_states, CPU)
        self.counts[result.actor] += 1
        # Callbacks may change rewards, but memory of the object store cannot be written to
        return replace(collected.rollout, rewards=collected.rollout.rewards.copy())


def n_bytes(rollout: Rollout) -> int:
    """:return: size of the arrays of a rollout"""

    def size(value: Any) -> int:
        if isinstance(value, dict):
            return sum(map(size, value.values()))
        if isinstance(value, FrameStacks):
            return value.frames.nbytes + value.positions.nbytes
        return value.nbytes if isinstance(value, np.ndarray) else 0

    return sum(size(getattr(rollout, field.name)) for field in fields(rollout))
