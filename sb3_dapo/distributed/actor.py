"""An actor: an environment and a policy, which collect rollouts by the code that collects them in one process."""

import io
import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import cloudpickle  # type: ignore[import-untyped]
import numpy as np
import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.utils import set_random_seed
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecNormalize, unwrap_vec_normalize

from sb3_dapo.buffers import Rollout
from sb3_dapo.checkpoint import get_random_states, set_random_states
from sb3_dapo.dapo import DAPO
from sb3_dapo.distributed.moments import Moments, count, moments_of, receive

CPU = th.device("cpu")
# What an actor's model has otherwise than the learner's
SETTINGS = {"seed": None, "compile": False, "tensorboard_log": None, "verbose": 0}


class RolloutError(RuntimeError):
    """An exception of an environment or a policy, with the environment and the step."""


@dataclass(frozen=True)
class Publication:
    """What actors get of the learner for an update, pickled: of tensors Ray itself would take ten times as long."""

    number: int
    """Of publications so far."""
    version: int
    """Updates that the policy has seen."""
    parameters: dict[str, np.ndarray]
    fast: bool
    autocast: bool
    """Form that the policy computes in."""
    statistics: VecNormalize | None
    n_merged: int
    """Moments of actors that are in the statistics."""

    @classmethod
    def of(cls, model: DAPO, number: int, n_merged: int = 0) -> bytes:
        """:return: pickled, of the learner"""
        publication = cls(
            number=number,
            version=model._policy_version,
            parameters={name: tensor.numpy(force=True) for name, tensor in model.policy.state_dict().items()},
            fast=model._is_fast(),
            autocast=bool(getattr(model.policy, "autocast", False)),
            statistics=model.get_vec_normalize_env(),
            n_merged=n_merged,
        )
        return cloudpickle.dumps(publication)


@dataclass(frozen=True)
class Beginning:
    """How new episodes begin."""

    seed: int | None = None
    """Of the environments and the random generators; None: they go on with those they have."""
    random_states: dict[str, Any] | None = None
    """Of the learner's generators, if this process shall draw what that one would draw."""
    is_counted: bool = False
    """Whether the learner itself adds the first observations to its statistics."""


@dataclass(frozen=True)
class Collected:
    """What actors give the learner."""

    rollout: Rollout
    publication: int
    """Number of the one that it was collected with."""
    n_merged: int
    moments: Moments | None
    """Of what has been seen since the publication, and the statistics with them."""
    random_states: dict[str, Any] | None


class Recorder(BaseCallback):
    """Keeps what travels of the infos."""

    def __init__(self, keys: Sequence[str]) -> None:
        super().__init__()
        self.keys = keys
        self.infos: list[list[dict[str, Any]]] = []

    def _on_rollout_start(self) -> None:
        self.infos = []

    def _on_step(self) -> bool:
        infos = self.locals["infos"]
        kept: list[dict[str, Any]] = [{} for _ in infos]
        for key in self.keys:  # outside, which is faster, as hardly any info has one
            for n, info in enumerate(infos):
                if key in info:
                    kept[n][key] = info[key]
        self.infos.append(kept if any(kept) else [])
        return True


def actor_seed(seed: int, actor: int, generation: int) -> int:
    """:return: the seed itself for the first actor, so that one actor does what one process would do"""
    if actor == generation == 0:
        return seed
    return int(np.random.SeedSequence([seed, actor, generation]).generate_state(1)[0]) >> 1  # emulators take 31 bits


class Actor:
    """
    :param make_env: makes a ``VecEnv`` from a seed
    :param n_threads: that PyTorch computes with
    :param info_keys: what travels of the infos
    :param actor: number of the actor
    :param seed: made of the seed of the pool, the actor and its generation
    :raises ValueError: if ``make_env`` makes something else
    """

    def __init__(
        self,
        make_env: Callable[[int], VecEnv],
        n_threads: int,
        info_keys: Sequence[str],
        actor: int,
        seed: np.random.SeedSequence,
    ) -> None:
        th.set_num_threads(n_threads)
        own_seed = actor_seed(*seed.entropy)  # type: ignore[misc]
        set_random_seed(own_seed)
        env = make_env(own_seed)
        if not isinstance(env, VecEnv) or unwrap_vec_normalize(env) is not None:
            allowed = "a VecEnv without VecNormalize, which is put around the ActorVecEnv"
            raise ValueError(f"`make_env` must return {allowed}, got {env}")
        self.env = BaseAlgorithm._wrap_env(env, verbose=0)
        self.env.n_sources = 0  # type: ignore[attr-defined]  # a rollout is not kept for reuse here
        self.actor = actor
        self.recorder = Recorder(info_keys)
        self.model: DAPO | None = None
        self.beginning = Beginning()
        self.first_obs: Any = None

    def answer(self, number: int, method: str, *args: Any) -> tuple[int, Any]:
        """:return: the number of the question, and what a method of this class returns"""
        return number, getattr(self, method)(*args)

    def describe(self) -> tuple[int, Any, Any]:
        """:return: number of environments, observation space, action space"""
        return self.env.num_envs, self.env.observation_space, self.env.action_space

    def ask(self, method: str, args: Sequence[Any], kwargs: dict[str, Any]) -> tuple[Any, str | None]:
        """:return: what a method of the environment returns, or the text of its AttributeError"""
        try:
            return getattr(self.env, method)(*args, **kwargs), None
        except AttributeError as error:
            return None, str(error)

    def reset(self, beginning: Beginning) -> tuple[Any, dict[str, Any] | None]:
        """:return: the first observations, and the states of the generators if it was given some"""
        if beginning.seed is not None:
            set_random_seed(beginning.seed)
            self.env.seed(beginning.seed)
        if beginning.random_states is not None:
            set_random_states(beginning.random_states, CPU)
        self.beginning, self.first_obs = beginning, self.env.reset()
        return self.first_obs, get_random_states(CPU) if beginning.random_states is not None else None

    def collect(
        self,
        published: bytes,
        random_states: dict[str, Any] | None,
        beginning: Beginning | None,
        saved: tuple[type[DAPO], bytes] | None,
    ) -> Collected:
        """
        :param published: a pickled :class:`Publication` of the learner
        :param random_states: of the learner's generators, if this process shall draw what that one would draw
        :param beginning: to begin new episodes before
        :param saved: the learner's model, if it is another than before
        """
        publication: Publication = pickle.loads(published)
        if beginning is not None:
            self.reset(beginning)
        if saved is not None:
            self._load(*saved, publication.statistics)
        model = self.model
        assert model is not None
        self._receive(model, publication)
        if random_states is not None:
            set_random_states(random_states, CPU)
        ring, env = model.rollout_buffer, model.env
        assert env is not None
        try:
            model.collect_rollouts(env, self.recorder, ring, model.n_steps)
            rollout = replace(ring.rollout(), source=self.actor, infos=self.recorder.infos)
            rollout.check(ring.nonfinite_observations, ring.nonfinite_rewards)
        except Exception as error:
            raise RolloutError(f"{where(error, ring.pos)}: {type(error).__name__}: {error}") from error
        return Collected(
            rollout,
            publication.number,
            publication.n_merged,
            moments_of(model.get_vec_normalize_env()),
            get_random_states(CPU) if random_states is not None else None,
        )

    def _load(self, algorithm: type[DAPO], saved: bytes, statistics: VecNormalize | None) -> None:
        states = get_random_states(CPU)  # which the network is initialized with, in vain
        old, env = self.model, self.env
        if statistics is not None:
            env = normalize = VecNormalize(self.env, norm_obs=False)
            receive(normalize, statistics)
            if old is not None and (old_normalize := old.get_vec_normalize_env()) is not None:
                normalize.returns = old_normalize.returns
        # What it has seen last, of which the next step follows, unless new episodes begin. Given to `load`, as a model
        # that is set up leaves out the states of an LSTM of another size
        goes_on = old is not None and self.first_obs is None
        last = {name: value for name, value in vars(old).items() if name.startswith("_last_")} if goes_on else {}
        self.model = algorithm.load(io.BytesIO(saved), env, "cpu", **SETTINGS, **last)  # type: ignore[arg-type]
        self.model.set_logger(Logger(None, []))
        self.recorder.init_callback(self.model)
        set_random_states(states, CPU)

    def _receive(self, model: DAPO, publication: Publication) -> None:
        model.policy.load_state_dict({name: th.as_tensor(x) for name, x in publication.parameters.items()})
        model.fast, model.autocast = publication.fast, publication.autocast
        model._policy_version = publication.version
        normalize = model.get_vec_normalize_env()
        if normalize is not None and publication.statistics is not None:
            receive(normalize, publication.statistics)
        if self.first_obs is None:
            return
        model._last_obs, self.first_obs = self.first_obs, None
        model._last_episode_starts = np.ones(self.env.num_envs, dtype=bool)
        if normalize is not None:
            normalize.returns = np.zeros(self.env.num_envs)
            if not self.beginning.is_counted:
                count(normalize, model._last_obs)
            model._last_obs = normalize.normalize_obs(model._last_obs)


def where(error: BaseException, step: int) -> str:
    """:return: the environment, if it is known, and the step at which an exception was raised"""
    text, trace = f"step {step} of the rollout", error.__traceback__
    while trace is not None:
        names = trace.tb_frame.f_locals
        if isinstance(names.get("self"), DummyVecEnv) and "env_idx" in names:
            text = f"environment {names['env_idx']}, {text}"
        trace = trace.tb_next
    return text
