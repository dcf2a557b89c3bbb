"""The environments of all actors, as the learner sees them."""

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from stable_baselines3.common.vec_env import VecEnv, VecNormalize
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvObs, VecEnvStepReturn

from sb3_dapo.arguments import check
from sb3_dapo.buffers import Rollout

if TYPE_CHECKING:
    from sb3_dapo.dapo import DAPO


class ActorVecEnv(VecEnv):
    """
    Environments of actors on a Ray cluster, which collect rollouts with the policy of the model that learns from them:
    ``DAPO("MlpPolicy", ActorVecEnv(make_env, n_actors=16))``. For SB3 it is the ``VecEnv`` of one actor.

    Of the wrappers of a ``VecEnv`` only ``VecNormalize`` can be put around it: the actors normalize, and the statistics
    are those of all of them. All others belong into ``make_env``.

    :param make_env: makes the ``VecEnv`` of an actor from a seed. It is called there, and has to be something that can
        be pickled by cloudpickle. All must have the same spaces and the same number of environments
    :param n_actors: number of actors
    :param address: ``HOST:PORT`` of a Ray cluster that this machine belongs to, or ``"auto"`` for the one that runs on
        this machine. None: a new cluster of this machine only, which ends with :meth:`close`
    :param cpus_per_actor: CPUs that Ray keeps for each actor, a part of one or a whole number, and the threads that
        PyTorch has there
    :param sync: all actors act with the newest weights, and wait while the model learns. The same seed is the same run
        then, and with one actor it is that of a single process, bit for bit
    :param rollout_timeout: seconds that an actor has for a rollout, then it is replaced
    :param info_keywords: what callbacks shall see of the infos, besides ``episode`` and ``is_success``
    :param seed: of the seeds that ``make_env`` gets. Those of the model come after it
    :raises ValueError: an argument is out of its range, the cluster has too few CPUs, or environments differ
    :raises ConnectionError: nothing answers at the address
    :raises ModuleNotFoundError: Ray is not installed
    """

    def __init__(
        self,
        make_env: Callable[[int], VecEnv],
        n_actors: int = 16,
        address: str | None = None,
        cpus_per_actor: float = 1,
        sync: bool = False,
        rollout_timeout: float = 300,
        info_keywords: Sequence[str] = (),
        seed: int = 0,
    ) -> None:
        # Here, as it needs Ray
        from sb3_dapo.distributed.source import Source

        check("make_env", make_env, callable(make_env), "a function that makes a VecEnv from a seed")
        check("rollout_timeout", rollout_timeout, rollout_timeout > 0, "a positive number of seconds")
        check("info_keywords", info_keywords, not isinstance(info_keywords, str), "a sequence of names")
        info_keys = ("episode", "is_success", *info_keywords)
        self._source = Source(make_env, n_actors, address, cpus_per_actor, sync, rollout_timeout, info_keys, seed)
        self.n_sources = n_actors
        super().__init__(*self._source.description)

    def rollouts_for(self, model: "DAPO") -> Iterator[Rollout]:  # type: ignore[override,unused-ignore]
        """
        :param model: the model that learns
        :return: rollouts for its next update, as many as there are actors
        :raises ValueError: if the environment has a wrapper that would be left out
        """
        env = model.get_env()
        is_known = env is self or (isinstance(env, VecNormalize) and env.venv is self)
        check("env", env, is_known, "an ActorVecEnv, or VecNormalize around one: other wrappers belong into `make_env`")
        yield from self._source.rollouts_for(model)

    def reset(self) -> VecEnvObs:
        """:return: first observations of the first actor; the others begin new episodes too"""
        first_obs: VecEnvObs = self._source.reset()
        return first_obs

    def seed(self, seed: int | None = None) -> Sequence[int | None]:
        """
        :param seed: from which each actor has its own at the next reset
        :return: it, for each environment
        """
        self._source.seed = seed
        return [seed] * self.num_envs

    def close(self) -> None:
        """End the actors, and the cluster if it was started here."""
        self._source.close()

    def has_attr(self, attr_name: str) -> bool:
        return bool(self._ask("has_attr", attr_name, only_one=True))

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """Of the first actor's environments. This and the following wait for rollouts that are under way."""
        return self._ask("get_attr", attr_name, indices, only_one=True)

    def env_method(
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any
    ) -> list[Any]:
        """Of the environments of all actors, now; not of actors that replace one later. Returns the first actor's."""
        return self._ask("env_method", method_name, *method_args, indices=indices, **method_kwargs)

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """In the environments of all actors, now; not of actors that replace one later."""
        self._ask("set_attr", attr_name, value, indices)

    def env_is_wrapped(self, wrapper_class: type[Any], indices: VecEnvIndices = None) -> list[bool]:
        return self._ask("env_is_wrapped", wrapper_class, indices, only_one=True)

    def _ask(self, method: str, *args: Any, only_one: bool = False, **kwargs: Any) -> Any:
        (answer, missing), *_ = self._source.ask("ask", lambda _: (method, args, kwargs), only_one)
        if missing is not None:
            raise AttributeError(missing)
        return answer

    def step_async(self, actions: np.ndarray) -> None:
        raise NotImplementedError("the environments of an ActorVecEnv are stepped by its actors")

    def step_wait(self) -> VecEnvStepReturn:
        raise NotImplementedError("the environments of an ActorVecEnv are stepped by its actors")
