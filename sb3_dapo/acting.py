"""What stands around the policy while SB3's loop collects a rollout."""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback, CallbackList
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import GymEnv, PyTorchObs
from stable_baselines3.common.utils import obs_as_tensor
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper
from stable_baselines3.common.vec_env.base_vec_env import VecEnvStepReturn

from sb3_dapo.arguments import check
from sb3_dapo.buffers import Rollout, RolloutRecorder
from sb3_dapo.fast import in_halves, threads

PolicyOutput = tuple[th.Tensor, th.Tensor, th.Tensor]


@runtime_checkable
class RolloutSource(Protocol):
    """A ``VecEnv`` that is not stepped here: its rollouts are collected elsewhere."""

    def rollouts_for(self, model: BaseAlgorithm) -> Iterable[Rollout]:
        """
        :param model: the model, whose policy acts
        :return: rollouts for the next update
        """


class RecordingCallback(CallbackList):
    """
    The callback of a rollout: the user's, and after it the recorder's look at what the environments answered and the
    user's has changed in it. The user's finds the model with its policy, whatever stands for that in SB3's loop.
    """

    def __init__(self, callback: BaseCallback, model: BaseAlgorithm, recorder: RolloutRecorder) -> None:
        super().__init__([callback])
        self.model = model
        self.recorder = recorder

    def _on_rollout_start(self) -> None:
        with self._users_view():
            super()._on_rollout_start()

    def _on_step(self) -> bool:
        with self._users_view():
            goes_on = super()._on_step()
        self.recorder.record_step(*(self.locals[name] for name in ("new_obs", "rewards", "dones", "infos")))
        return goes_on

    def _on_rollout_end(self) -> None:
        with self._users_view():
            super()._on_rollout_end()

    @contextmanager
    def _users_view(self) -> Iterator[None]:
        """Context in which an :class:`ActingPolicy` is out of the way, which takes every call for a step to record."""
        acting = self.model.policy
        if not isinstance(acting, ActingPolicy):
            yield
            return
        self.model.policy = acting.policy
        try:
            yield
        finally:
            self.model.policy = acting


class ActingPolicy:
    """
    Stands for a policy where SB3's loop asks it, not in callbacks. For all but what is overridden here, it is the
    policy.
    """

    env: VecEnv
    """What SB3's loop steps."""

    def __init__(self, policy: ActorCriticPolicy, env: VecEnv, recorder: RolloutRecorder) -> None:
        self.policy = policy
        self.env = env
        self.recorder = recorder

    def __call__(self, observations: PyTorchObs) -> PolicyOutput:
        return self.policy(observations)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.policy, name)

    def finish(self) -> tuple[np.ndarray, np.ndarray] | None:
        """
        The rollout has ended, or was cut short.

        :return: observations and episode starts, if the environments have come farther than SB3 knows
        """
        return None


@runtime_checkable
class DivisibleVecEnv(Protocol):
    """A ``VecEnv`` of which a part can be stepped, as :class:`~sb3_dapo.atari_vec_env.AtariVecEnv`."""

    num_envs: int

    def send(self, actions: np.ndarray, games: slice) -> None:
        """Start to step some environments."""

    def receive(self, games: slice) -> VecEnvStepReturn:
        """Wait for some environments."""


@contextmanager
def few_threads(env: VecEnv, device: th.device, overlap: bool) -> Iterator[None]:
    """
    Context in which PyTorch leaves the cores to the emulators of an ``AtariVecEnv``. After each operation its threads
    stay busy for a while, so it has only those that the emulators do not need. If that is one, images are computed
    in halves, unless ``overlap`` keeps the other cores busy.
    """
    before = n_threads = th.get_num_threads()
    if isinstance(env.unwrapped, DivisibleVecEnv):
        n_threads = max(1, min(before, (os.cpu_count() or 1) - env.num_envs))
    is_halved = n_threads == 1 < before and device.type == "cpu" and not overlap
    with threads(n_threads), in_halves() if is_halved else nullcontext():
        yield


def check_overlap(env: GymEnv | None, use_sde: bool) -> None:
    """
    :param env: environments of a model that is to act for one half while the other is emulated
    :param use_sde: whether it explores with gSDE, whose noise is drawn for all environments at once
    :raises ValueError: if that cannot be done
    """
    check("overlap", True, not use_sde, "False with `use_sde`")
    # A wrapper hands on the attributes of what it wraps: to step that in halves would leave the wrapper out
    is_divisible = env is None or (
        isinstance(env, DivisibleVecEnv) and not isinstance(env, VecEnvWrapper) and env.num_envs > 1
    )
    check("overlap", True, is_divisible, f"False for environments other than an AtariVecEnv of two or more ({env})")


class OverlappingPolicy(ActingPolicy):
    """
    Acts for one half of the environments while the other half is emulated: a half is sent on its way before the step of
    the other is complete. Every action is sampled by the same policy for the same kind of observation as without, only
    in another order.
    """

    def __init__(self, policy: ActorCriticPolicy, env: VecEnv, recorder: RolloutRecorder) -> None:
        super().__init__(policy, OverlappingVecEnv(env, self), recorder)
        assert isinstance(env, DivisibleVecEnv)
        self.divisible: DivisibleVecEnv = env
        self.first, self.second = slice(0, env.num_envs // 2), slice(env.num_envs // 2, env.num_envs)
        self._ahead: PolicyOutput | None = None  # what the policy said for the first half, which is on its way
        self._second: VecEnvStepReturn | None = None  # the second half's last step

    def __call__(self, observations: PyTorchObs) -> PolicyOutput:
        assert isinstance(observations, th.Tensor)
        if self._ahead is None:
            return self.policy(observations)
        outputs = zip(self._ahead, self.policy(observations[self.second]), strict=True)
        actions, values, log_probs = (th.cat(halves) for halves in outputs)
        return actions, values, log_probs

    def step(self, actions: np.ndarray) -> VecEnvStepReturn:
        """
        :param actions: of all environments, of which those of the first half may be on their way
        :return: what all environments answer; the first half may have been sent on again
        """
        if self._ahead is None:
            self.divisible.send(actions[self.first], self.first)
        self.divisible.send(actions[self.second], self.second)
        self._ahead = None
        first = self.divisible.receive(self.first)
        # After the last step of a rollout another policy will act
        if self.recorder.pos < self.recorder.buffer_size - 1:
            with th.no_grad():
                self._ahead = self.policy(obs_as_tensor(first[0], self.policy.device))  # type: ignore[arg-type]
            self.divisible.send(self._ahead[0].cpu().numpy(), self.first)
        self._second = second = self.divisible.receive(self.second)
        new_obs, rewards, dones = (np.concatenate([first[i], second[i]]) for i in range(3))
        return new_obs, rewards, dones, [*first[3], *second[3]]

    def finish(self) -> tuple[np.ndarray, np.ndarray] | None:
        if self._ahead is None or self._second is None:
            return None
        observations, _, dones, _ = self.divisible.receive(self.first)
        return np.concatenate([observations, self._second[0]]), np.concatenate([dones, self._second[2]])


class OverlappingVecEnv(VecEnvWrapper):
    """Environments that are stepped by an :class:`OverlappingPolicy`."""

    def __init__(self, venv: VecEnv, acting: OverlappingPolicy) -> None:
        super().__init__(venv)
        self.acting = acting

    def reset(self) -> Any:
        return self.venv.reset()

    def step(self, actions: np.ndarray) -> VecEnvStepReturn:
        return self.acting.step(actions)

    def step_wait(self) -> VecEnvStepReturn:
        raise NotImplementedError("halves of these environments are on their way at all times: call `step`")
