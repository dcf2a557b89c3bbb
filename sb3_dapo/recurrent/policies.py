"""The recurrent policies of sb3-contrib, with one call of the LSTM for a whole minibatch of sequences."""

from typing import Any

import torch as th
from sb3_contrib.common.recurrent.policies import (
    RecurrentActorCriticCnnPolicy,
    RecurrentActorCriticPolicy,
    RecurrentMultiInputActorCriticPolicy,
)
from sb3_contrib.common.recurrent.type_aliases import RNNStates
from stable_baselines3.common.type_aliases import PyTorchObs
from torch.nn.utils.rnn import PackedSequence

from sb3_dapo.arguments import Range, check, check_number
from sb3_dapo.policies import FastCnn

LstmState = tuple[th.Tensor, ...]

# An exported model may ask for no more, as building layers takes time
MAX_LAYERS = 256


def process_sequences(
    features: th.Tensor, states: LstmState, episode_starts: th.Tensor, lstm: th.nn.LSTM
) -> tuple[th.Tensor, LstmState]:
    """
    Run an LSTM over S sequences of L steps, in which episodes may begin anywhere: from there on it starts from zero. As
    then only what lies before the first of them in a sequence depends on a state that is given, all segments between
    the beginnings are computed side by side, in one call.

    :param features: of the sequences one after the other, shape ``(S * L, features_dim)``
    :param states: hidden and cell states at the beginning of each sequence, both ``(n_layers, S, hidden_size)``
    :param episode_starts: not 0 where an episode begins, shape ``(S * L,)``
    :param lstm: the LSTM
    :return: its output, shape ``(S * L, hidden_size)``, and its states at the end of each sequence
    """
    n_sequences = states[0].shape[1]
    starts = episode_starts.reshape(n_sequences, -1) != 0
    # What another episode has left must not even be multiplied by 0: it might not be finite
    states = tuple(state.masked_fill(starts[:, 0].view(1, -1, 1), 0.0) for state in states)
    if starts.shape[1] > 1 and starts[:, 1:].any():
        return _process_segments(features, states, starts, lstm)
    output, states = lstm(features.reshape(n_sequences, -1, lstm.input_size).swapaxes(0, 1), states)
    return output.swapaxes(0, 1).flatten(0, 1), states


def _process_segments(
    features: th.Tensor, states: LstmState, starts: th.Tensor, lstm: th.nn.LSTM
) -> tuple[th.Tensor, LstmState]:
    """
    Parameters as above.

    :param starts: where episodes begin, shape ``(S, L)``, bool
    """
    n_steps, device = starts.shape[1], features.device
    begins = starts.cpu() | (th.arange(n_steps) == 0)
    steps = th.arange(begins.numel())
    segments = begins.flatten().cumsum(0) - 1  # that each step belongs to, (S * L,)
    first_steps = begins.flatten().nonzero().flatten()
    lengths = segments.bincount()
    # A packed sequence has the first steps of all segments, the longest first, then all second steps, and so on
    ranks = lengths.argsort(descending=True).argsort()
    places = steps - first_steps[segments]
    packing = (places * len(lengths) + ranks[segments]).argsort()
    unpacking = packing.argsort().to(device)
    firsts, lasts = (ranks[segments[t::n_steps]].to(device) for t in (0, n_steps - 1))

    packed = PackedSequence(features.index_select(0, packing.to(device)), places.bincount())
    zeros = states[0].new_zeros(len(states[0]), len(lengths), lstm.hidden_size)
    output, states = lstm(packed, tuple(zeros.index_copy(1, firsts, state) for state in states))
    return output.data.index_select(0, unpacking), tuple(state.index_select(1, lasts) for state in states)


class LstmPolicy(RecurrentActorCriticPolicy):
    """
    What the policies of :class:`~sb3_dapo.RecurrentDAPO` have in common. Parameters, models and results are those of
    sb3-contrib's; an own policy derives from one of them.

    Besides contrib's ``RNNStates``, states are understood as one tensor ``(N, C, n_layers, lstm_hidden_size)``: the
    hidden and the cell state of the actor, and then those of the critic if it has an LSTM of its own (C = 2 or 4).

    :raises ValueError: if an argument for the LSTM is out of its range, or if the arguments don't go together
    """

    _process_sequence = staticmethod(process_sequences)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        _check_lstm_arguments(**kwargs)
        super().__init__(*args, **kwargs)

    @property
    def states_shape(self) -> tuple[int, int, int]:
        """Shape of the states of one environment, ``(C, n_layers, lstm_hidden_size)``."""
        return (2 if self.lstm_critic is None else 4, self.lstm_actor.num_layers, self.lstm_actor.hidden_size)

    def stack_states(self, states: RNNStates) -> th.Tensor:
        """
        :param states: of N environments
        :return: the same as one tensor
        """
        parts = states.pi if self.lstm_critic is None else (*states.pi, *states.vf)
        return th.stack(parts).permute(2, 0, 1, 3)

    @staticmethod
    def split_states(states: th.Tensor) -> RNNStates:
        """
        :param states: of N environments, as one tensor
        :return: the same as contrib has it
        """
        parts = tuple(states.permute(1, 2, 0, 3).contiguous())
        return RNNStates(parts[:2], parts[-2:])

    def evaluate_actions(  # type: ignore[override]
        self, obs: PyTorchObs, actions: th.Tensor, lstm_states: RNNStates | th.Tensor, episode_starts: th.Tensor
    ) -> tuple[th.Tensor, th.Tensor, th.Tensor | None]:
        """
        :param obs: observations of S sequences of L steps, ``(S * L, ...)``
        :param actions: the actions
        :param lstm_states: at the beginning of each sequence
        :param episode_starts: not 0 where an episode begins, shape ``(S * L,)``
        :return: values, log-probs, and entropies if they have a closed form
        """
        if isinstance(lstm_states, th.Tensor):
            lstm_states = self.split_states(lstm_states)
        return super().evaluate_actions(obs, actions, lstm_states, episode_starts)  # type: ignore[arg-type]

    def predict_values(  # type: ignore[override]
        self, obs: PyTorchObs, lstm_states: LstmState | th.Tensor, episode_starts: th.Tensor
    ) -> th.Tensor:
        """
        :param obs: observations, ``(N, ...)``
        :param lstm_states: one tensor, or the hidden and the cell state of the critic
        :param episode_starts: not 0 where an episode begins, shape ``(N,)``
        :return: values, shape ``(N, 1)``
        """
        if isinstance(lstm_states, th.Tensor):
            lstm_states = self.split_states(lstm_states).vf
        return super().predict_values(obs, lstm_states, episode_starts)  # type: ignore[arg-type]


class MlpLstmPolicy(LstmPolicy):
    """contrib's ``MlpLstmPolicy``, parameters as there."""


class CnnLstmPolicy(FastCnn, LstmPolicy, RecurrentActorCriticCnnPolicy):
    """contrib's ``CnnLstmPolicy``, parameters as there, with the faster Nature CNN of :class:`~sb3_dapo.CnnPolicy`."""


class MultiInputLstmPolicy(LstmPolicy, RecurrentMultiInputActorCriticPolicy):
    """contrib's ``MultiInputLstmPolicy``, parameters as there."""


def _check_lstm_arguments(
    lstm_hidden_size: int = 256,
    n_lstm_layers: int = 1,
    shared_lstm: bool = False,
    enable_critic_lstm: bool = True,
    share_features_extractor: bool = True,
    lstm_kwargs: dict[str, Any] | None = None,
    **others: Any,
) -> None:
    """Parameters as those of the policies."""
    check_number("lstm_hidden_size", lstm_hidden_size, Range(1, is_integer=True))
    check_number("n_lstm_layers", n_lstm_layers, Range(1, MAX_LAYERS, is_integer=True))
    check("enable_critic_lstm", enable_critic_lstm, not (shared_lstm and enable_critic_lstm), "False with `shared_lstm`")
    shares = share_features_extractor or not shared_lstm
    check("share_features_extractor", share_features_extractor, shares, "True with `shared_lstm`")
    # Others change the shapes of states and outputs, or where they lie
    is_known = set(lstm_kwargs or {}) <= {"bias", "dropout"}
    check("lstm_kwargs", lstm_kwargs, is_known, "a dict of `bias` and `dropout`, or None")
