"""Acting for one half of the environments while the other half is emulated."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
import torch as th
from stable_baselines3.common.type_aliases import GymEnv, PyTorchObs
from stable_baselines3.common.utils import obs_as_tensor
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper
from stable_baselines3.common.vec_env.base_vec_env import VecEnvStepReturn

from sb3_dapo.arguments import check
from sb3_dapo.buffers import RolloutRing, StepRecorder

if TYPE_CHECKING:
    from sb3_dapo.dapo import DAPO

PolicyOutput = tuple[th.Tensor, th.Tensor, th.Tensor]


@runtime_checkable
class DivisibleVecEnv(Protocol):
    """A ``VecEnv`` of which a part can be stepped, as :class:`~sb3_dapo.atari_vec_env.AtariVecEnv`."""

    num_envs: int

    def send(self, actions: np.ndarray, games: slice) -> None:
        """Start to step some environments."""

    def receive(self, games: slice) -> VecEnvStepReturn:
        """Wait for some environments."""


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


class OverlappingRecorder(StepRecorder):
    """
    Steps the environments in two halves: while one half is emulated the policy acts for the other, which is sent on its
    way before the step of the first is complete. Every action is sampled by the same policy for the same kind of
    observation as without, only in another order.

    It stands in for the environments and, with :meth:`act`, for the policy.

    :param venv: the environments
    :param ring: the ring that collects
    :param model: the model that acts
    """

    def __init__(self, venv: VecEnv, ring: RolloutRing, model: "DAPO") -> None:
        super().__init__(venv, ring)
        assert isinstance(venv, DivisibleVecEnv)
        self.divisible: DivisibleVecEnv = venv
        self.policy = model.policy
        self.device = model.device
        self.first, self.second = slice(0, venv.num_envs // 2), slice(venv.num_envs // 2, venv.num_envs)
        self._ahead: PolicyOutput | None = None  # what the policy said for the first half, which is on its way
        self._second: VecEnvStepReturn | None = None  # the second half's last step

    def act(self, observations: PyTorchObs) -> PolicyOutput:
        """
        :param observations: of all environments
        :return: actions, values and log-probs
        """
        assert isinstance(observations, th.Tensor)
        if self._ahead is None:
            return self.policy(observations)
        outputs = zip(self._ahead, self.policy(observations[self.second]), strict=True)
        actions, values, log_probs = (th.cat(halves) for halves in outputs)
        return actions, values, log_probs

    def step_async(self, actions: np.ndarray) -> None:
        if self._ahead is None:
            self.divisible.send(actions[self.first], self.first)
        self.divisible.send(actions[self.second], self.second)
        self._ahead = None

    def step_wait(self) -> VecEnvStepReturn:
        first = self.divisible.receive(self.first)
        # After the last step of a rollout another policy will act
        if self.ring.pos < self.ring.buffer_size - 1:
            with th.no_grad():
                self._ahead = self.policy(obs_as_tensor(first[0], self.device))  # type: ignore[arg-type]
            self.divisible.send(self._ahead[0].cpu().numpy(), self.first)
        self._second = second = self.divisible.receive(self.second)
        new_obs, rewards, dones = (np.concatenate([first[i], second[i]]) for i in range(3))
        infos = [*first[3], *second[3]]
        self.ring.record_step(new_obs, rewards, dones, infos)
        return new_obs, rewards, dones, infos

    def finish(self, model: "DAPO") -> None:
        """
        Wait for environments that are on their way when a rollout is cut short.

        :param model: the model, to which it shows where they have come
        """
        if self._ahead is not None and self._second is not None:
            observations, _, dones, _ = self.divisible.receive(self.first)
            model._last_obs = np.concatenate([observations, self._second[0]])
            model._last_episode_starts = np.concatenate([dones, self._second[2]])


class OverlappingPolicy:
    """
    The policy of a model while it collects: acts through an :class:`OverlappingRecorder`, and is the policy otherwise.

    :param recorder: the recorder
    """

    def __init__(self, recorder: OverlappingRecorder) -> None:
        self._recorder = recorder

    def __call__(self, observations: PyTorchObs) -> PolicyOutput:
        return self._recorder.act(observations)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._recorder.policy, name)


@contextmanager
def overlapping(model: "DAPO", env: VecEnv, ring: RolloutRing) -> Iterator[StepRecorder]:
    """
    :param model: the model, whose policy is replaced meanwhile
    :param env: its environments
    :param ring: the ring that collects
    :return: what stands in for the environments
    """
    policy = model.policy
    recorder = OverlappingRecorder(env, ring, model)
    model.policy = OverlappingPolicy(recorder)  # type: ignore[assignment]
    try:
        yield recorder
    finally:
        model.policy = policy
        recorder.finish(model)
