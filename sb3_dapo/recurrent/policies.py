"""The recurrent policies of sb3-contrib, whose LSTM is not stepped through a minibatch of sequences."""

from typing import Any

import torch as th
from sb3_contrib.common.recurrent.policies import (
    RecurrentActorCriticCnnPolicy,
    RecurrentActorCriticPolicy,
    RecurrentMultiInputActorCriticPolicy,
)
from sb3_contrib.common.recurrent.type_aliases import RNNStates
from stable_baselines3.common.type_aliases import PyTorchObs

from sb3_dapo.arguments import Range, check, check_arguments
from sb3_dapo.policies import FastCnn

LstmState = tuple[th.Tensor, ...]

LSTM_ARGUMENTS = ("lstm_hidden_size", "n_lstm_layers", "shared_lstm", "enable_critic_lstm")
# Building layers takes time: an exported model may not ask for any number of them
LSTM_RANGES = {"lstm_hidden_size": Range(1, is_integer=True), "n_lstm_layers": Range(1, 256, is_integer=True)}


class Sequences:
    """
    S sequences of L steps, in which episodes may begin anywhere: there an LSTM starts from zero. So only what lies
    before the first beginning in a sequence depends on the state that is given, and all segments between beginnings
    are computed side by side, in one call of the LSTM or two: for long segments and for short ones, so that little is
    wasted on what they are padded with.

    :param episode_starts: not 0 where an episode begins, of one sequence after the other, shape ``(S * L,)``
    :param n_sequences: S
    """

    def __init__(self, episode_starts: th.Tensor, n_sequences: int) -> None:
        starts, device = episode_starts.reshape(n_sequences, -1) != 0, episode_starts.device
        n_steps = starts.shape[1]
        begins = (starts.cpu() | (th.arange(n_steps) == 0)).flatten()
        segments = begins.cumsum(0) - 1  # that each step belongs to, (S * L,)
        places = th.arange(len(begins)) - begins.nonzero().flatten()[segments]  # of the steps in their segments
        lengths, order = segments.bincount().sort(descending=True, stable=True)
        ranks = order.argsort()[segments]
        n = len(lengths)
        cost = th.arange(n) * lengths[0] + th.arange(n, 0, -1) * lengths  # cells, by the number of long segments
        n_long = int(cost.argmin())
        self.widths = (n_long, n - n_long)
        self.sizes = (n_long * int(lengths[0]), (n - n_long) * int(lengths[n_long]))
        short_cells = self.sizes[0] + places * (n - n_long) + ranks - n_long
        self.cells = th.where(ranks < n_long, places * n_long + ranks, short_cells).to(device)  # of the steps
        self.first_segments = ranks[::n_steps].to(device)  # of each sequence
        self.is_new = starts[:, 0].view(1, -1, 1)

    def process(self, lstm: th.nn.LSTM, features: th.Tensor, states: LstmState) -> th.Tensor:
        """
        :param lstm: an LSTM
        :param features: its inputs, shape ``(S * L, features_dim)``
        :param states: its hidden and cell states at the beginning of each sequence, both ``(n_layers, S, hidden_size)``
        :return: its output, shape ``(S * L, hidden_size)``
        """
        padded = features.new_zeros(sum(self.sizes), features.shape[1]).index_copy(0, self.cells, features)
        zeros = states[0].new_zeros(len(states[0]), sum(self.widths), lstm.hidden_size)
        # What another episode has left is not even multiplied by 0: it might not be finite
        kept = [state.masked_fill(self.is_new, 0.0) for state in states]
        hidden, cell = (zeros.index_copy(1, self.first_segments, state).split(self.widths, 1) for state in kept)
        groups = zip(self.widths, padded.split(self.sizes), hidden, cell, strict=True)
        outputs = [
            lstm(group.view(-1, width, features.shape[1]), (h.contiguous(), c.contiguous()))[0].flatten(0, 1)
            for width, group, h, c in groups
            if width > 0
        ]
        return th.cat(outputs).index_select(0, self.cells)


def process_step(
    features: th.Tensor, lstm_states: LstmState, episode_starts: th.Tensor, lstm: th.nn.LSTM
) -> tuple[th.Tensor, LstmState]:
    """
    As ``_process_sequence`` of contrib's policies, within float tolerance. A single step, as in acting, takes a cell of
    an LSTM half the time that it takes a module.
    """
    n_sequences = lstm_states[0].shape[1]
    if len(features) != n_sequences or lstm.num_layers > 1:
        return RecurrentActorCriticPolicy._process_sequence(features, lstm_states, episode_starts, lstm)  # type: ignore[arg-type, return-value]
    kept = (1.0 - episode_starts).view(n_sequences, 1)
    weights: Any = [getattr(lstm, f"{name}_l0", None) for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
    hidden, cell = th.lstm_cell(features, [state[0] * kept for state in lstm_states], *weights)
    return hidden, (hidden[None], cell[None])


class LstmPolicy(RecurrentActorCriticPolicy):
    """
    What the policies of :class:`~sb3_dapo.RecurrentDAPO` have in common. Parameters, models and results are those of
    sb3-contrib's; an own policy derives from one of them.

    Besides contrib's ``RNNStates`` it takes states as one tensor ``(N, C, n_layers, lstm_hidden_size)``: hidden and
    cell state of the actor, then those of the critic if it has an LSTM of its own (C = 2 or 4).

    :raises ValueError: if an argument for the LSTM is out of its range, or does not go together with another
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        check_arguments(type(self), {name: kwargs[name] for name in LSTM_ARGUMENTS if name in kwargs}, LSTM_RANGES)
        is_shared, has_own = kwargs.get("shared_lstm", False), kwargs.get("enable_critic_lstm", True)
        check("enable_critic_lstm", has_own, not (is_shared and has_own), "False with `shared_lstm`")
        shares_features = kwargs.get("share_features_extractor", True)
        check("share_features_extractor", shares_features, shares_features or not is_shared, "True with `shared_lstm`")
        lstm_kwargs = kwargs.get("lstm_kwargs") or {}
        # Others change the shapes of states and outputs, or where they lie
        check("lstm_kwargs", lstm_kwargs, set(lstm_kwargs) <= {"bias", "dropout"}, "a dict of `bias` and `dropout`")
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
        sequences = Sequences(episode_starts, states.pi[0].shape[1])
        features: Any = self.extract_features(obs)
        pi_features, vf_features = (features, features) if self.share_features_extractor else features
        latent_pi = sequences.process(self.lstm_actor, pi_features, states.pi)
        if self.lstm_critic is not None:
            latent_vf = sequences.process(self.lstm_critic, vf_features, states.vf)
        else:
            latent_vf = latent_pi.detach() if self.critic is None else self.critic(vf_features)
        distribution = self._get_action_dist_from_latent(self.mlp_extractor.forward_actor(latent_pi))
        values = self.value_net(self.mlp_extractor.forward_critic(latent_vf))
        return values, distribution.log_prob(actions), distribution.entropy()

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
