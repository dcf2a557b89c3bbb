"""
Recurrent policies: one call of the LSTM gives what sb3-contrib's loop over steps gives, states are kept where they are
needed, and in its special cases the algorithm is RecurrentPPO, or DAPO.
"""

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from recurrent_models import (
    ACTION_SPACES,
    CRITICS,
    FLOATS,
    SMALL,
    Forgetful,
    assert_same_parameters,
    make_env,
    make_recurrent,
)
from sb3_contrib import RecurrentPPO
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
from sb3_contrib.common.recurrent.type_aliases import RNNStates
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, FlattenExtractor

from sb3_dapo import DAPO, RecurrentDAPO
from sb3_dapo.loss import dapo_loss
from sb3_dapo.recurrent import LstmPolicy, MlpLstmPolicy
from sb3_dapo.recurrent.policies import Sequences


class Doubled(FlattenExtractor):
    """SB3 makes observations float32: from here on it is float64."""

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return super().forward(observations).double()


def make_policy(cls: type[RecurrentActorCriticPolicy], action_space: spaces.Space, **kwargs: Any) -> Any:
    th.manual_seed(0)
    kwargs = {"lstm_hidden_size": 6, "net_arch": [5], "features_extractor_class": Doubled, **kwargs}
    return cls(FLOATS, action_space, lambda progress: 1e-3, **kwargs).double()


def random_states(policy: LstmPolicy, n_sequences: int) -> th.Tensor:
    return th.randn(n_sequences, *policy.states_shape, dtype=th.float64)


def step_by_step(lstm: th.nn.LSTM, inputs: th.Tensor, states: Any, starts: th.Tensor) -> th.Tensor:
    """What an LSTM does with sequences ``(S, L, F)``, written as plainly as possible."""
    hidden, cell = states
    outputs = []
    for t in range(inputs.shape[1]):
        kept = (1 - starts[:, t])[None, :, None]
        output, (hidden, cell) = lstm(inputs[None, :, t], (kept * hidden, kept * cell))
        outputs.append(output[0])
    return th.stack(outputs, 1).flatten(0, 1)


# --- the LSTM -----------------------------------------------------------------------------------------


@given(n_sequences=st.integers(1, 5), n_steps=st.integers(1, 9), n_layers=st.integers(1, 2), data=st.data())
def test_sequences_are_processed_as_step_by_step(n_sequences: int, n_steps: int, n_layers: int, data: Any) -> None:
    n = n_sequences * n_steps
    starts = th.tensor(data.draw(st.lists(st.booleans(), min_size=n, max_size=n)), dtype=th.float64)
    th.manual_seed(n)
    lstm = th.nn.LSTM(4, 3, n_layers).double()
    states = tuple(th.randn(n_layers, n_sequences, 3, dtype=th.float64, requires_grad=True) for _ in range(2))
    features = th.randn(n, 4, dtype=th.float64, requires_grad=True)
    weights = th.randn(n, 3, dtype=th.float64)
    found = []
    for output in (
        Sequences(starts, n_sequences).process(lstm, features, states),
        step_by_step(lstm, features.view(n_sequences, n_steps, 4), states, starts.view(n_sequences, n_steps)),
    ):
        gradients = th.autograd.grad((output * weights).sum(), [features, *states, *lstm.parameters()])
        found.append([output, *gradients])
    for first, second in zip(*found, strict=True):
        th.testing.assert_close(first, second, rtol=0, atol=1e-12)


@pytest.mark.parametrize("p_start, n_calls", [(0.0, 1), (0.2, 2), (1.0, 1)])
def test_the_lstm_is_called_once_or_twice(p_start: float, n_calls: int, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    forward = th.nn.LSTM.forward
    monkeypatch.setattr(th.nn.LSTM, "forward", lambda *args: calls.append(args[1]) or forward(*args))
    th.manual_seed(0)
    starts = (th.rand(8 * 32) < p_start).float()
    Sequences(starts, 8).process(th.nn.LSTM(2, 3), th.randn(8 * 32, 2), (th.zeros(1, 8, 3), th.zeros(1, 8, 3)))
    assert len(calls) == n_calls
    assert sum(len(x.flatten(0, 1)) for x in calls) < 2 * 8 * 32  # padding included


@pytest.mark.parametrize("critic", CRITICS.values(), ids=CRITICS)
@pytest.mark.parametrize("action_space", ACTION_SPACES.values(), ids=ACTION_SPACES)
@settings(max_examples=8)
@given(n_sequences=st.integers(1, 4), n_steps=st.sampled_from([1, 2, 7]), seed=st.integers(0, 2**31))
def test_evaluation_equals_contrib(
    critic: dict[str, Any], action_space: spaces.Space, n_sequences: int, n_steps: int, seed: int
) -> None:
    ours, theirs = (make_policy(cls, action_space, **critic) for cls in (MlpLstmPolicy, RecurrentActorCriticPolicy))
    theirs.load_state_dict(ours.state_dict())
    n = n_sequences * n_steps
    rng = np.random.default_rng(seed)
    th.manual_seed(seed)
    observations = th.randn(n, 3, dtype=th.float64)
    actions = th.as_tensor(np.array([action_space.sample() for _ in range(n)]))
    if isinstance(action_space, spaces.Box | spaces.MultiBinary):  # as they are kept
        actions = actions.double()
    starts = th.as_tensor(rng.random(n) < rng.choice([0.0, 0.2, 0.7]), dtype=th.float64)
    states = random_states(ours, n_sequences)
    split = ours.split_states(states)
    for given_states in (states, split):
        found = ours.evaluate_actions(observations, actions, given_states, starts)
        for first, second in zip(found, theirs.evaluate_actions(observations, actions, split, starts), strict=True):
            th.testing.assert_close(first, second, rtol=0, atol=1e-12)
    values = ours.predict_values(observations, states, starts)
    th.testing.assert_close(values, theirs.predict_values(observations, split.vf, starts), rtol=0, atol=1e-12)
    assert ours.stack_states(split).equal(states)


@given(n_steps=st.integers(2, 8), end=st.integers(1, 7), seed=st.integers(0, 2**31))
def test_nothing_is_remembered_across_an_end(n_steps: int, end: int, seed: int) -> None:
    """Neither observations nor states from before the first step of an episode change what comes after it."""
    end = min(end, n_steps - 1)
    policy = make_policy(MlpLstmPolicy, ACTION_SPACES["Discrete"])
    th.manual_seed(seed)
    n_sequences = 3
    starts = (th.rand(n_sequences, n_steps) < 0.2).double()
    starts[:, end] = 1
    actions = th.randint(3, (n_sequences * n_steps,))
    observations = th.randn(n_sequences, n_steps, 3, dtype=th.float64)
    states = random_states(policy, n_sequences)

    def after(observations: th.Tensor, states: th.Tensor) -> list[th.Tensor]:
        outputs = policy.evaluate_actions(observations.flatten(0, 1), actions, states, starts.flatten())
        return [output.view(n_sequences, n_steps)[:, end:] for output in outputs]

    expected = after(observations, states)
    others = observations.clone()
    others[:, :end] = th.randn(n_sequences, end, 3, dtype=th.float64)
    for changed in (after(others, states), after(others, random_states(policy, n_sequences))):
        assert all(th.equal(x, y) for x, y in zip(changed, expected, strict=True))
    # What lies before is not even multiplied by 0
    starts[:, 0] = 1
    assert all(x.isfinite().all() for x in after(observations, th.full_like(states, th.nan)))
    with pytest.raises(AssertionError):  # this test can fail
        starts[:] = 0
        assert th.equal(after(observations, states)[0], after(others, states)[0])


# --- what is recorded ---------------------------------------------------------------------------------


class Seen(BaseCallback):
    """Keeps what the environments show, to compute the states of the LSTM from the beginning of the run on."""

    def __init__(self) -> None:
        super().__init__()
        self.observations: list[np.ndarray] = []
        self.starts: list[np.ndarray] = []
        self.terminal: dict[tuple[int, int], np.ndarray] = {}

    def _on_step(self) -> bool:
        step = len(self.observations)
        self.observations.append(np.array(self.model._last_obs))
        self.starts.append(np.array(self.model._last_episode_starts, dtype=np.float64))
        for env, info in enumerate(self.locals["infos"]):
            if self.locals["dones"][env] and info["TimeLimit.truncated"]:
                self.terminal[env, step] = info["terminal_observation"]
        return True


def states_of(policy: RecurrentActorCriticPolicy, seen: Seen) -> list[RNNStates]:
    """States of the LSTMs before each step, and after the last, by contrib's forward pass."""
    n_envs = len(seen.starts[0])
    zeros = tuple(th.zeros(policy.lstm_actor.num_layers, n_envs, policy.lstm_actor.hidden_size) for _ in range(2))
    states = [RNNStates(zeros, zeros)]
    for observations, starts in zip(seen.observations, seen.starts, strict=True):
        with th.no_grad():
            inputs = th.as_tensor(observations), states[-1], th.as_tensor(starts, dtype=th.float32)
            states.append(RecurrentActorCriticPolicy.forward(policy, *inputs)[3])
    return states


@pytest.mark.parametrize("critic", CRITICS.values(), ids=CRITICS)
def test_states_are_those_of_the_episodes(critic: dict[str, Any]) -> None:
    """At the beginnings of sequences, after the last step, and where episodes were truncated, in two rollouts."""
    model = make_recurrent(n_rollouts=2, learning_rate=0.0, policy_kwargs=critic)
    seen = Seen()
    model.learn(2 * 3 * 32, callback=seen)
    states = states_of(model.policy, seen)
    ring = model.rollout_buffer
    n_truncated = 0
    for slot in range(2):
        kept = ring.input_stores["lstm_states"].kept[slot]  # (N, T / L, C, layers, hidden)
        assert kept.shape == (3, 4, *model.policy.states_shape)
        for i in range(4):
            expected = model.policy.stack_states(states[slot * 32 + i * 8])
            th.testing.assert_close(kept[:, i], expected, rtol=0, atol=1e-6)
        starts = ring.input_stores["episode_starts"].kept[slot].T.numpy()
        np.testing.assert_array_equal(starts, seen.starts[slot * 32 : slot * 32 + 32])

        bootstrap, observations = ring.bootstrap_inputs[slot], ring.bootstrap_observations[slot]["observation"]
        last = model.policy.stack_states(states[slot * 32 + 32])
        th.testing.assert_close(bootstrap["lstm_states"][:3], last, rtol=0, atol=1e-6)
        positions = ring.truncation_positions[slot].tolist()
        n_truncated += len(positions)
        for i, position in enumerate(positions, start=3):
            env, step = divmod(position, 32)
            expected = model.policy.stack_states(states[slot * 32 + step + 1])[env]
            th.testing.assert_close(bootstrap["lstm_states"][i], expected, rtol=0, atol=1e-6)
            np.testing.assert_array_equal(observations[i], seen.terminal[env, slot * 32 + step])
        assert bootstrap["episode_starts"][3:].eq(0).all()
    assert n_truncated > 10
    steps = [step for _, step in seen.terminal]
    assert len(set(steps)) < len(steps)  # several environments at once
    np.testing.assert_allclose(model._last_lstm_states, model.policy.stack_states(states[64]), atol=1e-6)


@pytest.mark.parametrize("critic", CRITICS.values(), ids=CRITICS)
def test_what_the_ring_yields_is_what_the_policy_said(critic: dict[str, Any]) -> None:
    """With the parameters that acted, values and log-probs of all minibatches are those of the rollout."""
    model = make_recurrent(learning_rate=0.0, policy_kwargs=critic)
    model.learn(3 * 32)
    for samples in model.rollout_buffer.get(16):
        assert {name: len(array) for name, array in samples.inputs.items()} == {"lstm_states": 2, "episode_starts": 16}
        starts = samples.indices.view(2, 8)
        assert (starts == starts[:, :1] + th.arange(8)).all() and (starts[:, 0] % 8 == 0).all()
        values, log_prob, _ = model._evaluate(samples)
        th.testing.assert_close(values, samples.old_values, rtol=0, atol=1e-5)
        th.testing.assert_close(log_prob, samples.behavior_log_prob, rtol=0, atol=1e-5)


def test_bootstrap_values_are_those_at_collection() -> None:
    """The rewards that SB3 completes by the value of a truncated episode hold the same as the ring's bootstrap."""
    model = make_recurrent(learning_rate=0.0)
    model.learn(3 * 32)
    ring = model.rollout_buffer
    (batch,) = ring.bootstrap_batches(10_000)
    with th.no_grad():
        values = model.policy.predict_values(batch.observations, **batch.inputs).flatten()
    folded = [x.folded_reward - x.reward for x in ring.truncations]
    assert len(folded) > 3
    np.testing.assert_allclose(model.gamma * values[3:].numpy(), folded, atol=1e-5)
    np.testing.assert_allclose(values[:3].numpy(), ring._last_values, atol=1e-5)


class StopAt(BaseCallback):
    def __init__(self, n_calls: int) -> None:
        super().__init__()
        self.at = n_calls

    def _on_step(self) -> bool:
        return self.n_calls != self.at


def test_a_rollout_that_was_cut_short() -> None:
    """The state is that at the observations which SB3 goes on from: of the step that was not recorded, before it."""
    model = make_recurrent(make_env(p_terminated=0.0, p_truncated=0.0), learning_rate=0.0)
    seen = Seen()
    model.learn(96, callback=[seen, StopAt(7)])
    states = states_of(model.policy, seen)
    np.testing.assert_array_equal(model._last_obs, seen.observations[6])
    np.testing.assert_allclose(model._last_lstm_states, model.policy.stack_states(states[6]), atol=1e-6)
    model.learn(96, reset_num_timesteps=False)
    first = model.rollout_buffer.input_stores["lstm_states"].kept[0, :, 0]
    th.testing.assert_close(first, model.policy.stack_states(states[6]), rtol=0, atol=1e-6)


def test_callbacks_that_ask_the_policy_change_nothing() -> None:
    class Asking(BaseCallback):
        def _on_step(self) -> bool:
            policy, observations = self.model.policy, th.as_tensor(self.locals["new_obs"])
            states, starts = th.ones(3, *policy.states_shape), th.zeros(3)
            with th.random.fork_rng():
                assert len(policy(observations, policy.split_states(states), starts)) == 4
                action, state = self.model.predict(self.locals["new_obs"], episode_start=np.ones(3))
            assert policy.predict_values(observations, states, starts).shape == (3, 1)
            assert action.shape == (3,) and state[0].shape == (1, 3, 6)
            return True

    plain, asked = (make_recurrent() for _ in range(2))
    for model, callback in ((plain, None), (asked, Asking())):
        model.set_random_seed(1)
        model.learn(200, callback=callback)
    assert_same_parameters(plain, asked)


def test_another_environment_begins_with_nothing_remembered() -> None:
    model = make_recurrent()
    model.learn(96)
    assert np.abs(model._last_lstm_states).max() > 0
    model.set_env(make_env())
    assert not model._last_lstm_states.any()


# --- special cases ------------------------------------------------------------------------------------


@pytest.mark.parametrize("critic", CRITICS.values(), ids=CRITICS)
def test_loss_of_recurrent_ppo(critic: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """In PPO's special case rollout, loss and gradient are those of contrib's, for one minibatch of everything."""
    settings: dict[str, Any] = {"n_steps": 32, "batch_size": 96, "n_epochs": 1, "seed": 0, "ent_coef": 0.01}
    settings["policy_kwargs"] = {"lstm_hidden_size": 6, "net_arch": [5], **critic}
    theirs = RecurrentPPO("MlpLstmPolicy", make_env(), learning_rate=0.0, **settings)
    special = {"advantage": "gae", "divergence_coef": 0.0, "sequence_length": 32}
    ours = RecurrentDAPO("MlpLstmPolicy", make_env(), learning_rate=0.0, **settings, **special)
    # contrib cuts the rollout at a random place, where gradients end; ours are cut where rollouts begin
    monkeypatch.setattr(np.random, "randint", lambda *args, **kwargs: 0)
    for model in (ours, theirs):
        model.set_random_seed(1)
        model.learn(96)
    for name in ("values", "log_probs", "advantages", "returns"):
        array = getattr(theirs.rollout_buffer, name).reshape(3, 32).T  # contrib has flattened it
        np.testing.assert_allclose(getattr(ours.rollout_buffer, name), array, atol=1e-5, err_msg=name)
    logged = {model: model.logger.name_to_value for model in (ours, theirs)}
    for name in ("loss", "policy_gradient_loss", "value_loss", "entropy_loss", "approx_kl", "clip_fraction"):
        assert logged[ours][f"train/{name}"] == pytest.approx(logged[theirs][f"train/{name}"], abs=1e-5), name
    pairs = zip(ours.policy.named_parameters(), theirs.policy.parameters(), strict=True)
    for (name, first), second in pairs:
        if first.grad is None or second.grad is None:
            assert first.grad is second.grad, name
        else:
            th.testing.assert_close(first.grad, second.grad, rtol=1e-3, atol=1e-5, msg=name)


def test_loss_of_recurrent_ppo_has_gradients_through_time() -> None:
    """Of sequences of one step the loss is the same, but not its gradient."""
    model = make_recurrent(learning_rate=0.0, batch_size=96, n_epochs=1, sequence_length=32)
    model.learn(96)
    gradients, losses = [], []
    for length in (32, 1):
        other = make_recurrent(learning_rate=0.0, batch_size=96, n_epochs=1, sequence_length=length)
        other.learn(96)
        (samples,) = other.rollout_buffer.get()
        loss, _ = dapo_loss(samples, *other._evaluate(samples), other._loss_settings())
        losses.append(loss.item())
        gradients.append(th.autograd.grad(loss, other.policy.lstm_actor.weight_hh_l0)[0])
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    assert not th.allclose(*gradients, rtol=0.1)


class LstmFromZero(BaseFeaturesExtractor):
    """The same as a part of a policy without memory."""

    def __init__(self, observation_space: spaces.Box) -> None:
        super().__init__(observation_space, 6)
        self.lstm = th.nn.LSTM(3, 6)

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return self.lstm(observations[None])[0][0]


@pytest.mark.parametrize("settings", [{}, {"n_rollouts": 2, "exact_targets": True}, {"advantage": "gae"}], ids=str)
def test_without_memory_it_is_dapo(settings: dict[str, Any]) -> None:
    common = {**SMALL, "seed": 0, "n_epochs": 3, **settings}
    recurrent = make_recurrent(policy=Forgetful, **{**common, "sequence_length": 1})
    del common["sequence_length"]
    policy_kwargs = {"features_extractor_class": LstmFromZero, "share_features_extractor": False, "net_arch": [5]}
    plain = DAPO(ActorCriticPolicy, make_env(), policy_kwargs=policy_kwargs, **common)
    renamed = {"lstm_actor": "features_extractor.lstm", "lstm_critic": "vf_features_extractor.lstm"}
    with th.no_grad():
        own = dict(plain.policy.named_parameters())
        for name, parameter in recurrent.policy.named_parameters():
            first, _, rest = name.partition(".")
            own[f"{renamed.get(first, first)}.{rest}".rstrip(".")].copy_(parameter)
    for model in (recurrent, plain):
        model.set_random_seed(1)
        model.learn(3 * 96)
    own = dict(plain.policy.named_parameters())
    for name, parameter in recurrent.policy.named_parameters():
        first, _, rest = name.partition(".")
        th.testing.assert_close(own[f"{renamed.get(first, first)}.{rest}".rstrip(".")], parameter, rtol=0, atol=1e-5)
    np.testing.assert_allclose(recurrent.rollout_buffer.actions, plain.rollout_buffer.actions)


def test_parameters_of_recurrent_ppo_are_understood() -> None:
    theirs = RecurrentPPO(
        "MlpLstmPolicy", make_env(), n_steps=32, policy_kwargs={"lstm_hidden_size": 6, "net_arch": [5]}
    )
    model = make_recurrent()
    model.set_parameters(theirs.get_parameters())
    observations = np.stack([FLOATS.sample() for _ in range(5)])
    for state in (None, (np.ones((1, 5, 6)), np.ones((1, 5, 6)))):
        found = [x.predict(observations, state, np.array([0, 1, 0, 0, 1]), deterministic=True) for x in (model, theirs)]
        assert np.array_equal(found[0][0], found[1][0])
        np.testing.assert_array_equal(found[0][1], found[1][1])


# --- arguments ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"sequence_length": 0}, "`sequence_length` must be an integer of at least 1, got 0"),
        ({"sequence_length": 2.0}, "`sequence_length` must be an integer of at least 1, got 2.0"),
        ({"sequence_length": 12}, r"`sequence_length` must be a factor of `n_steps` \(32\), got 12"),
        ({"batch_size": 20}, r"`batch_size` must be a multiple of the steps of a sequence \(8\), got 20"),
        ({"batch_size": 4}, r"`batch_size` must be a multiple of the steps of a sequence \(8\), got 4"),
        ({"overlap": True}, "`overlap` must be False, as this policy acts in a way of its own, got True"),
        ({"compile": True}, "`compile` must be False for recurrent policies, got True"),
        ({"autocast": True}, "`autocast` must be False for policies other than"),
        ({"policy": ActorCriticPolicy}, "`policy` must be a subclass of sb3_dapo.recurrent.LstmPolicy, got "),
        ({"policy": RecurrentActorCriticPolicy}, "`policy` must be a subclass of sb3_dapo.recurrent.LstmPolicy, got "),
        ({"policy": "MlpPolicy"}, "MlpPolicy"),
        ({"policy_kwargs": {"enable_critic_lstm": "no"}}, "`enable_critic_lstm` must be True or False, got 'no'"),
        (
            {"rollout_buffer_kwargs": {"sequence_length": 4}},
            "`rollout_buffer_kwargs` must be without 'sequence_length'",
        ),
        ({"policy_kwargs": {"lstm_hidden_size": 0}}, "`lstm_hidden_size` must be an integer of at least 1, got 0"),
        ({"policy_kwargs": {"n_lstm_layers": 300}}, r"`n_lstm_layers` must be an integer in \[1, 256\], got 300"),
        (
            {"policy_kwargs": {"lstm_kwargs": {"batch_first": True}}},
            "`lstm_kwargs` must be a dict of `bias` and `dropout`",
        ),
        ({"policy_kwargs": {"lstm_kwargs": {"proj_size": 2}}}, "`lstm_kwargs` must be a dict of `bias` and `dropout`"),
        ({"policy_kwargs": {"shared_lstm": True}}, "`enable_critic_lstm` must be False with `shared_lstm`, got True"),
        (
            {"policy_kwargs": {**CRITICS["actor's LSTM"], "share_features_extractor": False}},
            "`share_features_extractor` must be True with `shared_lstm`, got False",
        ),
    ],
    ids=str,
)
def test_bad_arguments(settings: dict[str, Any], message: str) -> None:
    policy_kwargs = settings.pop("policy_kwargs", {})
    settings = {"policy": "MlpLstmPolicy", **SMALL, **settings}
    if not isinstance(settings["policy"], type):
        settings["policy_kwargs"] = policy_kwargs
    with pytest.raises(ValueError, match=message):
        RecurrentDAPO(env=make_env(), **settings)


def test_short_rollouts_are_one_sequence() -> None:
    model = make_recurrent(n_steps=8, batch_size=24, sequence_length=32)
    assert model.rollout_buffer.sequence_length == 8
    model.learn(48)


def test_settings_may_change_between_calls_of_learn() -> None:
    model = make_recurrent()
    model.learn(96)
    model.sequence_length = 16
    model.learn(96, reset_num_timesteps=False)
    assert model.rollout_buffer.sequence_length == 16
    assert model.rollout_buffer.input_stores["lstm_states"].kept.shape[2] == 2
    model.n_steps = 64
    model.learn(3 * 64, reset_num_timesteps=False)
    assert model.rollout_buffer.input_stores["lstm_states"].kept.shape[2] == 4
    model.sequence_length = 5
    with pytest.raises(ValueError, match="`sequence_length` must be a factor of `n_steps`"):
        model.learn(96)


# --- imports ------------------------------------------------------------------------------------------

LAZY = """
import sys
import sb3_dapo
from sb3_dapo import DAPO
DAPO("MlpPolicy", "CartPole-v1", n_steps=8, batch_size=8).learn(8)
from sb3_dapo import *
assert "sb3_contrib" not in sys.modules
from sb3_dapo import RecurrentDAPO
assert "sb3_contrib" in sys.modules
"""
MISSING = """
import sys
sys.modules["sb3_contrib"] = None
from sb3_dapo import DAPO
try:
    from sb3_dapo import RecurrentDAPO
except ModuleNotFoundError as error:
    assert str(error) == "RecurrentDAPO needs the policies of sb3-contrib: pip install 'sb3-dapo[contrib]'", error
else:
    raise AssertionError
"""


@pytest.mark.parametrize("program", [LAZY, MISSING], ids=["lazy", "missing"])
def test_import(program: str) -> None:
    subprocess.run([sys.executable, "-c", program], check=True)
