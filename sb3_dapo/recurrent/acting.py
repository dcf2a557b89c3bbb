"""A recurrent policy while a rollout is collected."""

import numpy as np
import torch as th
from sb3_contrib.common.recurrent.type_aliases import RNNStates
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.type_aliases import PyTorchObs

from sb3_dapo.acting import ActingPolicy, PolicyOutput
from sb3_dapo.buffers import RolloutRing
from sb3_dapo.recurrent.policies import LstmPolicy, process_step


class RecurrentActingPolicy(ActingPolicy):
    """
    Carries the states of the LSTM from step to step, and records them where sequences begin and where values end
    trajectories.

    Parameters as in :class:`~sb3_dapo.acting.ActingPolicy`.
    """

    policy: LstmPolicy
    recorder: RolloutRing

    def begin(self, model: OnPolicyAlgorithm, states: np.ndarray) -> None:
        """
        :param model: whose rollout it is; it knows where episodes begin
        :param states: of the LSTM at its last observations, ``(N, C, n_layers, lstm_hidden_size)``
        """
        self.model = model
        self.policy._process_sequence = process_step  # type: ignore[method-assign, assignment]
        self._step = -1  # that it has acted in last
        self._before = self._after = self.policy.split_states(th.as_tensor(states, device=self.policy.device))
        self._n_bootstrapped = 0

    def finish(self) -> None:
        vars(self.policy).pop("_process_sequence", None)

    @property
    def states(self) -> RNNStates:
        """Of the LSTM at the model's last observations: a step that was not recorded does not count."""
        return self._after if self.recorder.pos > self._step else self._before

    def __call__(self, observations: PyTorchObs) -> PolicyOutput:
        states, episode_starts, step = self.states, self._episode_starts(), self.recorder.pos
        if step % self.recorder.sequence_length == 0:
            self.recorder.record_inputs(lstm_states=self.policy.stack_states(states).cpu().numpy())
        self.recorder.record_inputs(episode_starts=episode_starts.cpu().numpy())
        actions, values, log_probs, following = self.policy(observations, states, episode_starts)
        self._step, self._before, self._after = step, states, following
        return actions, values, log_probs

    def predict_values(self, observations: PyTorchObs) -> th.Tensor:
        """:return: values of those that a truncated episode has ended with, or of those after the last step"""
        states, episode_starts = self.policy.stack_states(self._after), self._episode_starts()
        if not self.recorder.full:
            env = self.recorder.truncations[self._n_bootstrapped].env
            self._n_bootstrapped += 1
            states, episode_starts = states[env : env + 1], th.zeros_like(episode_starts[:1])
        inputs = {"lstm_states": states, "episode_starts": episode_starts}
        self.recorder.record_bootstrap_inputs(**{name: array.cpu().numpy() for name, array in inputs.items()})
        return self.policy.predict_values(observations, **inputs)

    def _episode_starts(self) -> th.Tensor:
        return th.as_tensor(self.model._last_episode_starts, dtype=th.float32, device=self.policy.device)
