"""Rollouts as values: they travel, join rings of several sources, and bring inputs and sequences with them."""

import pickle
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from algos import flat_parameters, make_model
from envs import CatchEnv, RandomEnv
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper, VecFrameStack, VecTransposeImage

from sb3_dapo import DAPO, DIVERGENCES, NonFiniteError
from sb3_dapo.buffers import Rollout, RolloutRecorder, RolloutRing

FLOATS = spaces.Box(-1, 1, (2,))
N_STEPS, N_ENVS = 12, 2
SETTINGS = {"rho_bar": 1.0, "c_bar": 1.0, "divergence_lambda": 0.9, "divergence_c_bar": 1.0, "divergence_steps": None}


def envs() -> VecEnv:
    return make_vec_env(lambda: RandomEnv(FLOATS, spaces.Discrete(2), 0.1, 0.2), N_ENVS, seed=0)


class Collect(BaseCallback):
    """Takes each rollout as it is when the callbacks are done with it."""

    def __init__(self) -> None:
        super().__init__()
        self.rollouts: list[Rollout] = []

    def _on_rollout_end(self) -> None:
        self.rollouts.append(self.model.rollout_buffer.rollout())  # type: ignore[union-attr]

    def _on_step(self) -> bool:
        return True


def collected(n_rollouts: int = 1, env: VecEnv | None = None, **settings: Any) -> tuple[DAPO, list[Rollout]]:
    policy = "MlpPolicy" if env is None else "CnnPolicy"
    net: dict[str, Any] = {} if env is None else {"features_extractor_kwargs": {"features_dim": 8}}
    model = make_model(
        DAPO, policy, env or envs(), n_steps=N_STEPS, batch_size=8, n_epochs=1, policy_kwargs=net, **settings
    )
    callback = Collect()
    model.learn(n_rollouts * N_STEPS * N_ENVS, callback)
    return model, callback.rollouts


def fresh_ring(model: DAPO, **settings: Any) -> RolloutRing:
    return RolloutRing(N_STEPS, model.observation_space, model.action_space, "cpu", n_envs=N_ENVS, **settings)


def everything(ring: RolloutRing) -> list[th.Tensor]:
    """All that an update gets of a ring."""
    values = th.cat([batch.observations.float().flatten(1).sum(dim=1) for batch in ring.bootstrap_batches(5)])  # type: ignore[union-attr]
    ring.update_targets(DIVERGENCES["kl"], values, **SETTINGS)  # type: ignore[arg-type]
    (samples,) = ring.get(shuffle=False)
    return [x for x in samples if isinstance(x, th.Tensor)]


APPEND = """
import pickle, sys
import torch as th
sys.path[:0] = [sys.argv[1]]
from test_rollouts import everything
ring, rollout = pickle.load(open(sys.argv[2], "rb"))
ring.append(rollout)
pickle.dump([x.numpy() for x in everything(ring)], open(sys.argv[3], "wb"))
"""


@pytest.mark.filterwarnings("ignore:The last minibatch of every epoch")
@pytest.mark.parametrize("images", [False, True])
def test_pickled_and_appended_in_another_process(tmp_path: Path, images: bool) -> None:
    """With frames that are kept once too."""
    env = VecTransposeImage(VecFrameStack(make_vec_env(CatchEnv, N_ENVS, seed=0), 4)) if images else None
    model, (rollout,) = collected(env=env, optimize_memory_usage=images)
    settings = {"optimize_memory_usage": images}
    (tmp_path / "rollout").write_bytes(pickle.dumps((fresh_ring(model, **settings), rollout)))
    args = [str(Path(__file__).parent), str(tmp_path / "rollout"), str(tmp_path / "result")]
    subprocess.run([sys.executable, "-c", APPEND, *args], check=True)
    here = fresh_ring(model, **settings)
    here.append(rollout)
    for there, expected in zip(pickle.loads((tmp_path / "result").read_bytes()), everything(here), strict=True):
        np.testing.assert_array_equal(there, expected)


@pytest.mark.filterwarnings("ignore:The last minibatch of every epoch")
def test_a_rollout_is_not_written_to_later() -> None:
    """Whoever keeps one has what it was."""
    model, rollouts = collected(3)
    copies = pickle.loads(pickle.dumps(rollouts))
    model.learn(2 * N_STEPS * N_ENVS, reset_num_timesteps=False)
    for rollout, copy in zip(rollouts, copies, strict=True):
        np.testing.assert_array_equal(rollout.observations["observation"], copy.observations["observation"])
        for name in ("rewards", "actions", "values", "log_probs", "advantages", "truncated", "truncations"):
            np.testing.assert_array_equal(getattr(rollout, name), getattr(copy, name))


@pytest.mark.filterwarnings("ignore:The last minibatch of every epoch")
def test_arrays_that_cannot_be_written_to() -> None:
    """As they come out of memory that processes share."""
    model, (rollout,) = collected()
    for array in (*rollout.observations.values(), rollout.actions, rollout.rewards, rollout.values, rollout.terminated):
        array.flags.writeable = False  # type: ignore[union-attr]
    ring = fresh_ring(model)
    ring.append(rollout)
    ring.record_visit(th.arange(3), th.ones(3), th.ones(3))


@pytest.mark.filterwarnings("ignore:The last minibatch of every epoch")
def test_newest_of_each_source() -> None:
    """Wherever most rollouts come from, each source keeps its own newest K."""
    model, (rollout,) = collected()
    ring = fresh_ring(model, n_rollouts=2, n_sources=3)
    expected: dict[int, list[int]] = {0: [], 1: [], 2: []}
    rng = np.random.default_rng(0)
    for version in range(40):
        source = int(rng.choice(3, p=[0.7, 0.2, 0.1]))
        ring.append(replace(rollout, source=source, version=version))
        expected[source] = [*expected[source], version][-2:]
        kept = {
            source: sorted(ring.versions[: ring.n_kept][ring.sources[: ring.n_kept] == source]) for source in range(3)
        }
        assert kept == expected
    assert ring.n_kept == 6
    assert len(list(ring.get(N_STEPS * N_ENVS))) == 6


@pytest.mark.filterwarnings("ignore:The last minibatch of every epoch")
def test_what_is_refused() -> None:
    """And leaves the ring as it was."""
    model, (rollout,) = collected()
    ring = fresh_ring(model)
    ring.append(rollout)
    before = everything(ring)
    nan = rollout.values.copy()
    nan[3, 1] = np.nan
    with pytest.raises(NonFiniteError, match="the value of environment 1 at step 3 of the rollout is nan"):
        ring.append(replace(rollout, values=nan))
    with pytest.raises(ValueError, match=r"`values` of a rollout must begin with \(T, N\) = \(12, 2\), got \(11, 2\)"):
        ring.append(replace(rollout, values=rollout.values[:-1]))
    with pytest.raises(ValueError, match=r"\(n_steps, n_envs\) = \(12, 2\), got \(11, 2\)"):
        ring.append(replace(rollout, rewards=rollout.rewards[:-1]))
    with pytest.raises(ValueError, match="source of a rollout must be from 0 to 0, got 1"):
        ring.append(replace(rollout, source=1))
    with pytest.raises(ValueError, match="`sequence_length` must be a factor of the steps of a rollout, 12, got 5"):
        fresh_ring(model, sequence_length=5)
    for now, then in zip(everything(ring), before, strict=True):
        assert th.equal(now, then)


def record(recorder: RolloutRecorder, seed: int, sequence_length: int) -> None:
    """A rollout with inputs at every step and at the first of each sequence, made of the numbers of both."""
    rng = np.random.default_rng(seed)
    recorder.reset()
    starts = np.ones(N_ENVS)
    for t in range(N_STEPS):
        ends = rng.random(N_ENVS) < 0.3
        observations = np.array([[100 * seed + t, n] for n in range(N_ENVS)], np.float32)
        recorder.record_inputs(mask=observations[:, None] * np.ones((1, 3, 1)))
        if t % sequence_length == 0:
            recorder.record_inputs(state=observations)
        infos = [{"TimeLimit.truncated": True, "terminal_observation": -x} for x in observations]
        recorder.record_step(observations + 0.5, np.zeros(N_ENVS), ends, infos)
        for n in np.flatnonzero(ends):
            recorder.record_bootstrap_inputs(state=-observations[n : n + 1])
        recorder.add(observations, np.zeros((N_ENVS, 1)), np.zeros(N_ENVS), starts, th.zeros(N_ENVS), th.zeros(N_ENVS))
        starts = ends.astype(float)
    recorder.record_bootstrap_inputs(state=observations + 0.5)
    recorder.compute_returns_and_advantage(th.zeros(N_ENVS), starts)


@pytest.mark.parametrize("sequence_length", [1, 3, 12])
def test_inputs_and_sequences(sequence_length: int) -> None:
    """A minibatch has whole sequences of consecutive steps of one environment, with the inputs that are theirs."""
    ring = RolloutRing(
        N_STEPS, FLOATS, spaces.Discrete(2), "cpu", n_envs=N_ENVS, n_rollouts=3, sequence_length=sequence_length
    )
    for seed in range(5):
        record(ring, seed, sequence_length)
        ring.join()
    state = ring.state_dict()
    loaded = RolloutRing(
        N_STEPS, FLOATS, spaces.Discrete(2), "cpu", n_envs=N_ENVS, n_rollouts=3, sequence_length=sequence_length
    )
    loaded.load_state_dict(pickle.loads(pickle.dumps(state)))
    for some_ring in (ring, loaded):
        seen = []
        for samples in some_ring.get(2 * sequence_length):
            observations = samples.observations.view(-1, sequence_length, 2)  # type: ignore[union-attr]
            seen += observations.flatten(0, 1).tolist()
            first = observations[:, :1]
            steps = th.arange(sequence_length)[None, :, None] * th.tensor([1, 0])
            assert th.equal(observations, first + steps)
            assert (first[:, 0, 0] % 100 % sequence_length == 0).all()
            assert th.equal(samples.inputs["mask"], samples.observations[:, None].expand(-1, 3, -1).double())  # type: ignore[index]
            assert th.equal(samples.inputs["state"], first[:, 0])
        expected = [[100.0 * seed + t, n] for seed in (2, 3, 4) for t in range(N_STEPS) for n in range(N_ENVS)]
        assert sorted(seen) == sorted(expected)
        assert seen != expected
        for batch in some_ring.bootstrap_batches(4):
            assert th.equal(batch.inputs["state"], batch.observations)  # type: ignore[arg-type]


# --- rollouts from elsewhere ----------------------------------------------------------------------


class Elsewhere(VecEnvWrapper):
    """
    Environments that another model steps, with the parameters of the learner's some updates ago.

    :param venv: the environments
    :param lag: updates that it acts behind
    """

    def __init__(self, venv: VecEnv, lag: int) -> None:
        super().__init__(venv)
        self.lag = lag
        self.actor: DAPO | None = None
        self.published: list[dict[str, th.Tensor]] = []

    def reset(self) -> Any:
        return self.venv.reset()

    def step_wait(self) -> Any:
        raise AssertionError("it is not stepped here")

    def rollouts_for(self, model: Any) -> Iterator[Rollout]:
        if self.actor is None:
            self.actor = make_model(DAPO, "MlpPolicy", self.venv, n_steps=model.n_steps, seed=model.seed)
            self.actor._setup_learn(1)
        self.published.append({name: x.clone() for name, x in model.policy.state_dict().items()})
        version = max(len(self.published) - 1 - self.lag, 0)
        self.actor.policy.load_state_dict(self.published[version])
        self.actor._last_obs, self.actor._last_episode_starts = model._last_obs, model._last_episode_starts
        callback = Collect()
        callback.init_callback(self.actor)
        self.actor.collect_rollouts(self.venv, callback, self.actor.rollout_buffer, model.n_steps)
        model._last_obs, model._last_episode_starts = self.actor._last_obs, self.actor._last_episode_starts
        yield replace(callback.rollouts[0], version=version)


class Steps(BaseCallback):
    """Counts steps, and makes a reward of its own."""

    def _on_step(self) -> bool:
        self.locals["rewards"] += self.n_calls
        return True


@pytest.mark.parametrize("n_rollouts", [1, 3])
@pytest.mark.filterwarnings("ignore:The last minibatch of every epoch")
def test_rollouts_from_elsewhere_are_like_own_ones(algo: type[DAPO], n_rollouts: int) -> None:
    """Without a lag bit for bit, callbacks included; the random numbers are drawn in the same order."""
    settings = {"n_steps": N_STEPS, "n_rollouts": n_rollouts, "batch_size": 8}
    here = make_model(algo, "MlpPolicy", envs(), **settings)
    here.set_random_seed(0)
    here.learn(4 * N_STEPS * N_ENVS, Steps())
    there = make_model(algo, "MlpPolicy", Elsewhere(envs(), lag=0), **settings)
    source = there.env
    assert isinstance(source, Elsewhere)
    source.actor = make_model(DAPO, "MlpPolicy", source.venv, n_steps=N_STEPS)
    source.actor._setup_learn(1)
    there.set_random_seed(0)
    callback = Steps()
    there.learn(4 * N_STEPS * N_ENVS, callback)
    assert callback.n_calls == 4 * N_STEPS
    assert there.num_timesteps == here.num_timesteps == 4 * N_STEPS * N_ENVS
    assert th.equal(flat_parameters(there), flat_parameters(here))


@pytest.mark.filterwarnings("ignore:The last minibatch of every epoch")
def test_rollouts_that_are_older_are_refreshed(algo: type[DAPO]) -> None:
    """By a forward pass before their first epoch: an update begins from what the policy says now."""
    model = make_model(algo, "MlpPolicy", Elsewhere(envs(), lag=2), n_steps=N_STEPS, batch_size=8, learning_rate=0.02)
    seen: list[float] = []
    train = model._evaluate

    def evaluate(samples: Any) -> Any:
        values, log_prob, entropy = train(samples)
        if th.is_grad_enabled() and len(seen) < model._policy_version:
            seen.append((log_prob - samples.old_log_prob).abs().max().item())
        return values, log_prob, entropy

    model._evaluate = evaluate  # type: ignore[method-assign]
    model.learn(6 * N_STEPS * N_ENVS)
    assert max(seen) < 1e-5
    assert model.logger.name_to_value["train/policy_lag"] == 2
    assert model.logger.name_to_value["train/behavior_kl"] > 1e-4
