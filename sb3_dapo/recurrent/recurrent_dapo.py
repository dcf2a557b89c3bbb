"""DAPO for policies with an LSTM."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import numpy as np
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.vec_env import VecEnv

from sb3_dapo.acting import ActingPolicy
from sb3_dapo.arguments import Range, check
from sb3_dapo.dapo import DAPO
from sb3_dapo.recurrent.acting import RecurrentActingPolicy
from sb3_dapo.recurrent.policies import CnnLstmPolicy, LstmPolicy, MlpLstmPolicy, MultiInputLstmPolicy


class RecurrentDAPO(DAPO):
    """
    DAPO for policies with an LSTM, those of sb3-contrib's ``RecurrentPPO``: they remember what they have seen in an
    episode.

    Minibatches consist of sequences of consecutive steps, through which gradients flow. A sequence begins with the
    state that the LSTM had there when the rollout was collected; where an episode begins it is zero.

    :param policy: The policy model to use (MlpLstmPolicy, CnnLstmPolicy, MultiInputLstmPolicy, or a class derived from
        :class:`~sb3_dapo.recurrent.LstmPolicy`). ``policy_kwargs`` as in sb3-contrib: ``lstm_hidden_size``,
        ``n_lstm_layers``, ``shared_lstm``, ``enable_critic_lstm``, ``lstm_kwargs``
    :param env: The environment to learn from (if registered in Gym, can be str)
    :param args: further arguments of :class:`~sb3_dapo.DAPO`. ``batch_size`` still counts transitions
    :param sequence_length: steps of a sequence; a rollout that has fewer is one sequence. A factor of ``n_steps``, and
        ``batch_size`` a multiple of it
    :param kwargs: further arguments of :class:`~sb3_dapo.DAPO`. ``overlap`` and ``compile`` are not possible
    :raises ValueError: if an argument is out of its range, or unsound for the environment's action space
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpLstmPolicy": MlpLstmPolicy,
        "CnnLstmPolicy": CnnLstmPolicy,
        "MultiInputLstmPolicy": MultiInputLstmPolicy,
    }
    argument_ranges: ClassVar[dict[str, Range]] = DAPO.argument_ranges | {"sequence_length": Range(1, is_integer=True)}
    ring_arguments = (*DAPO.ring_arguments, "sequence_length")
    acting_policy_class: ClassVar[type[ActingPolicy] | None] = RecurrentActingPolicy
    extras = ("contrib",)
    policy: LstmPolicy
    _last_lstm_states: np.ndarray | None = None
    """At the last observations, ``(N, C, n_layers, lstm_hidden_size)``. Saved, as these are."""

    def __init__(
        self, policy: str | type[LstmPolicy], env: GymEnv | str, *args: Any, sequence_length: int = 32, **kwargs: Any
    ) -> None:
        self.sequence_length = sequence_length
        super().__init__(policy, env, *args, **kwargs)

    def _setup_model(self) -> None:
        super()._setup_model()
        states = self._last_lstm_states
        # A checkpoint goes on with those it was written with
        if self._last_obs is None or states is None or states.shape != (self.n_envs, *self.policy.states_shape):
            self._reset_lstm_states()

    def _reset_lstm_states(self) -> None:
        self._last_lstm_states = np.zeros((self.n_envs, *self.policy.states_shape), dtype=np.float32)

    def _check_arguments(self) -> None:
        super()._check_arguments()
        is_recurrent = issubclass(self.policy_class, LstmPolicy)
        check("policy", self.policy_class, is_recurrent, "a subclass of sb3_dapo.recurrent.LstmPolicy")
        check("compile", self.compile, not self.compile, "False for recurrent policies")
        length = self._ring_settings()["sequence_length"]
        is_factor = self.n_steps % length == 0
        check("sequence_length", self.sequence_length, is_factor, f"a factor of `n_steps` ({self.n_steps})")
        is_multiple = self.batch_size % length == 0
        check("batch_size", self.batch_size, is_multiple, f"a multiple of the steps of a sequence ({length})")

    def _ring_settings(self) -> dict[str, Any]:
        return {**super()._ring_settings(), "sequence_length": min(self.sequence_length, self.n_steps)}

    @contextmanager
    def _acting(self, env: VecEnv) -> Iterator[VecEnv]:
        with super()._acting(env) as acting_env:
            acting: Any = self.policy  # a RecurrentActingPolicy
            acting.begin(self, self._last_lstm_states)
            try:
                yield acting_env
            finally:
                self._last_lstm_states = acting.policy.stack_states(acting.states).cpu().numpy()

    def set_env(self, env: GymEnv, force_reset: bool = True) -> None:
        super().set_env(env, force_reset)
        if hasattr(self, "rollout_buffer"):  # not before _setup_model
            self._reset_lstm_states()
