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
    Run an LSTM over S sequences of L steps, in which episodes may begin anywhere: there it starts from zero. So only
    what lies before the first beginning in a sequence depends on the state that is given, and all segments between
    beginnings are computed side by side, in one call.

    :param features: of one sequence after the other, shape ``(S * L, features_dim)``
    :param states: hidden and cell states at the beginning of each sequence, both ``(n_layers, S, hidden_size)``
    :param episode_starts: not 0 where an episode begins, shape ``(S * L,)``
    :param lstm: the LSTM
    :return: its output, shape ``(S * L, hidden_size)``, and its states at the end of each sequence
    """
    n_sequences, device = states[0].shape[1], features.device
    starts = episode_starts.reshape(n_sequences, -1) != 0
    n_steps = starts.shape[1]
    # What another episode has left is not even multiplied by 0: it might not be finite
    states = tuple(state.masked_fill(starts[:, 0].view(1, -1, 1), 0.0) for state in states)
    if n_steps == 1 or not starts[:, 1:].any():
        output, states = lstm(features.reshape(n_sequences, n_steps, -1).swapaxes(0, 1), states)
        return output.swapaxes(0, 1).flatten(0, 1), states

    begins = (starts.cpu() | (th.arange(n_steps) == 0)).flatten()
    segments = begins.cumsum(0) - 1  # that each step belongs to, (S * L,)
    places = th.arange(len(begins)) - begins.nonzero().flatten()[segments]  # of the steps in their segments
    lengths = segments.bincount()
    # A packed sequence has the first steps of all segments, the longest first, then all second steps, and so on
    ranks = lengths.argsort(descending=True).argsort()
    packing = (places * len(lengths) + ranks[segments]).argsort()
    first, last = (ranks[segments[t::n_steps]].to(device) for t in (0, n_steps - 1))  # segments of each sequence
    packed = PackedSequence(features.index_select(0, packing.to(device)), places.bincount())
    zeros = states[0].new_zeros(len(states[0]), len(lengths), lstm.hidden_size)
    output, states = lstm(packed, tuple(zeros.index_copy(1, first, state) for state in states))
    unpacked = output.data.index_select(0, packing.argsort().to(device))
    return unpacked, tuple(state.index_select(1, last) for state in states)


class LstmPolicy(RecurrentActorCriticPolicy):
    """
    What the policies of :class:`~sb3_dapo.RecurrentDAPO` have in common. Parameters, models and results are those of
    sb3-contrib's; an own policy derives from one of them.

    Besides contrib's ``RNNStates`` it takes states as one tensor ``(N, C, n_layers, lstm_hidden_size)``: hidden and
    cell state of the actor, then those of the critic if it has an LSTM of its own (C = 2 or 4).

    :raises ValueError: if an argument for the LSTM is out of its range, or does not go together with another
    """

    _process_sequence = staticmethod(process_sequences)  # type: ignore[assignment]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        _check_lstm_arguments(**kwargs)
        super().__init__(*args, **kwargs)

    @property
    def states_shape(self) -> tuple[int, int, int]:
        """Shape of the states of one environment, ``(C, n_layers, lstm_hidden_size)``."""
        return (2 if self.lstm_critic is None else 4, self.lstm_actor.num_layers, self.lstm_actor.hidden_size)

    def stack_states(self, states: RNNStates) -> th.Tensor:
        """:return: states as one tensor"""
        parts = states.pi if self.lstm_critic is None else (*states.pi, *states.vf)
        return th.stack(parts).permute(2, 0, 1, 3)

    @staticmethod
    def split_states(states: th.Tensor) -> RNNStates:
        """:return: states as contrib has them"""
        parts = tuple(states.permute(1, 2, 0, 3).contiguous())
        return RNNStates(parts[:2], parts[-2:])

    def evaluate_actions(  # type: ignore[override]
        self, obs: PyTorchObs, actions: th.Tensor, lstm_states: RNNStates | th.Tensor, episode_starts: th.Tensor
    ) -> tuple[th.Tensor, th.Tensor, th.Tensor | None]:
        """As contrib's: values, log-probs and entropies of S sequences of L steps, with states of their beginnings."""
        states = self.split_states(lstm_states) if isinstance(lstm_states, th.Tensor) else lstm_states
        return super().evaluate_actions(obs, actions, states, episode_starts)  # type: ignore[arg-type]

    def predict_values(  # type: ignore[override]
        self, obs: PyTorchObs, lstm_states: LstmState | th.Tensor, episode_starts: th.Tensor
    ) -> th.Tensor:
        """As contrib's, which takes the states of the critic; in one tensor there are both."""
        states = self.split_states(lstm_states).vf if isinstance(lstm_states, th.Tensor) else lstm_states
        return super().predict_values(obs, states, episode_starts)  # type: ignore[arg-type]


class MlpLstmPolicy(LstmPolicy):
    """contrib's ``MlpLstmPolicy``, parameters as there."""


class CnnLstmPolicy(FastCnn, LstmPolicy, RecurrentActorCriticCnnPolicy):
    """contrib's ``CnnLstmPolicy``, parameters as there, in the faster form of ``FastCnn``."""


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
    check_number("lstm_hidden_size", lstm_hidden_size, Range(1, is_integer=True))
    check_number("n_lstm_layers", n_lstm_layers, Range(1, MAX_LAYERS, is_integer=True))
    check(
        "enable_critic_lstm", enable_critic_lstm, not (shared_lstm and enable_critic_lstm), "False with `shared_lstm`"
    )
    shares = share_features_extractor or not shared_lstm
    check("share_features_extractor", share_features_extractor, shares, "True with `shared_lstm`")
    # Others change the shapes of states and outputs, or where they lie
    is_known = set(lstm_kwargs or {}) <= {"bias", "dropout"}
    check("lstm_kwargs", lstm_kwargs, is_known, "a dict of `bias` and `dropout`, or None")
