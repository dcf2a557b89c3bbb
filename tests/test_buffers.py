"""
The ring of rollouts. Every transition carries a mark, a number that its observation, action, reward, value and
log-prob are made of, so that a test sees what became of it. The value network is a table: mark -> value.
"""

import gc
import pickle
from copy import deepcopy
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from algos import make_model
from envs import RandomEnv
from formulas import CONTINUES, INF, TERMINATED, TRUNCATED, Batch, check_equal, divergence_sums, vtrace_sums
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from stable_baselines3.common.buffers import DictRolloutBuffer, RolloutBuffer

from sb3_dapo import DAPO, DIVERGENCES
from sb3_dapo.buffers import RolloutRing, RolloutRingSamples
from sb3_dapo.estimators import MAX_LOG_RATIO

MAX_MARKS = 4096  # 12 bits, and exact in every dtype used
FLOATS = spaces.Box(-INF, INF, (2,), np.float32)
IMAGES = spaces.Box(0, 255, (2, 3, 1), np.uint8)
OBSERVATION_SPACES = {
    "float32": FLOATS,
    "float64": spaces.Box(-INF, INF, (2, 1), np.float64),
    "uint8": IMAGES,
    "int64": spaces.Box(0, MAX_MARKS, (2,), np.int64),
    "Discrete": spaces.Discrete(MAX_MARKS),
    "MultiDiscrete": spaces.MultiDiscrete([64, 64]),
    "MultiBinary": spaces.MultiBinary(12),
    "Dict": spaces.Dict({"image": IMAGES, "vector": FLOATS, "number": spaces.Discrete(MAX_MARKS)}),
}
ACTION_SPACES = {
    "Box": spaces.Box(-1, 1, (2, 2)),
    "Discrete": spaces.Discrete(MAX_MARKS),
    "MultiDiscrete": spaces.MultiDiscrete([64, 64]),
    "MultiBinary": spaces.MultiBinary(12),
}
GAMMA, LAMBDA = 0.9, 0.8


def encode(space: spaces.Space, marks: np.ndarray) -> Any:
    """Elements of a space that can be told apart, shape ``(*marks.shape, *space.shape)``."""
    if isinstance(space, spaces.Dict):
        return {key: encode(subspace, marks) for key, subspace in space.spaces.items()}
    if isinstance(space, spaces.Discrete):
        return marks.astype(space.dtype)
    if isinstance(space, spaces.MultiDiscrete):
        return np.stack([marks // 64, marks % 64], axis=-1).astype(space.dtype)
    if isinstance(space, spaces.MultiBinary):
        return (marks[..., None] >> np.arange(12) & 1).astype(space.dtype)
    assert isinstance(space, spaces.Box)
    elements = np.zeros((*marks.shape, int(np.prod(space.shape))), dtype=space.dtype)
    if space.dtype == np.uint8:
        elements[..., 0], elements[..., -1] = marks // 256, marks % 256
    else:
        elements[..., 0], elements[..., -1] = marks, marks
    return elements.reshape(*marks.shape, *space.shape)


def decode(space: spaces.Space, elements: Any) -> np.ndarray:
    """
    :param elements: tensor ``(B, *space.shape)``, or dict of tensors, as a buffer gives it
    :return: their marks, shape ``(B,)``
    """
    if isinstance(space, spaces.Dict):
        marks = [decode(subspace, elements[key]) for key, subspace in space.spaces.items()]
        assert all((x == marks[0]).all() for x in marks)
        return marks[0]
    flat = elements.numpy().reshape(len(elements), -1).astype(np.int64)
    if isinstance(space, spaces.MultiDiscrete):
        return flat[:, 0] * 64 + flat[:, 1]
    if isinstance(space, spaces.MultiBinary):
        return flat @ (1 << np.arange(12))
    if isinstance(space, spaces.Box) and space.dtype == np.uint8:
        return flat[:, 0] * 256 + flat[:, -1]
    return flat[:, 0]


class Driver:
    """
    Fills rings as SB3's ``collect_rollouts`` does.

    :param ring: what is filled
    :param seed: of the tables of rewards, values and log-probs
    """

    def __init__(self, ring: RolloutRing, seed: int = 0) -> None:
        self.ring = ring
        self.rewards, self.values, self.log_probs = (
            np.random.default_rng(seed).normal(size=(3, MAX_MARKS)).astype(np.float32)
        )
        self.next_mark = 0
        self.observed = self.new_marks()
        self.starts = np.ones(ring.n_envs, dtype=bool)
        # Of the complete rollouts: marks of the transitions, of the states that follow them, and the ends, (T, N)
        self.rollouts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []

    def new_marks(self) -> np.ndarray:
        self.next_mark += self.ring.n_envs
        return np.arange(self.next_mark - self.ring.n_envs, self.next_mark)

    def observation(self, marks: np.ndarray) -> Any:
        return encode(self.ring.observation_space, marks)

    def step(self, ends: np.ndarray) -> np.ndarray:
        """
        :param ends: how each environment's episode goes on, shape ``(N,)``
        :return: marks of the states that follow in the same episode
        """
        following = self.new_marks()
        infos: list[dict[str, Any]] = []
        for end, mark in zip(ends, following, strict=True):
            info = {}
            if end != CONTINUES:
                terminal = self.observation(np.array([mark]))
                info["terminal_observation"] = (
                    {key: x[0] for key, x in terminal.items()} if isinstance(terminal, dict) else terminal[0]
                )
                info["TimeLimit.truncated"] = bool(end == TRUNCATED)
            infos.append(info)
        dones = ends != CONTINUES
        new_observed = np.where(dones, self.new_marks(), following)
        rewards = self.rewards[self.observed].copy()
        self.ring.record_step(self.observation(new_observed), rewards, dones, infos)
        # SB3's bootstrap of truncated episodes
        rewards[ends == TRUNCATED] += GAMMA * self.values[following[ends == TRUNCATED]]
        action = encode(self.ring.action_space, self.observed)
        if isinstance(self.ring.action_space, spaces.Discrete):
            action = action.reshape(-1, 1)
        self.ring.add(
            self.observation(self.observed),
            action,
            rewards,
            self.starts,
            th.as_tensor(self.values[self.observed]).reshape(-1, 1),
            th.as_tensor(self.log_probs[self.observed]),
        )
        self.observed, self.starts = new_observed, dones
        return following

    def collect(self, ends: np.ndarray) -> None:
        """
        Collect a rollout, or the beginning of one.

        :param ends: how the episodes go on after each step, shape ``(T, N)``
        """
        self.ring.reset()
        marks, following = np.zeros((2, *ends.shape), dtype=np.int64)
        for t in range(len(ends)):
            marks[t] = self.observed
            following[t] = self.step(ends[t])
        if len(ends) == self.ring.buffer_size:
            following[-1] = np.where(ends[-1] == CONTINUES, self.observed, following[-1])
            last_values = th.as_tensor(self.values[self.observed]).reshape(-1, 1)
            self.ring.compute_returns_and_advantage(last_values, self.starts)
            self.ring.join()
            self.rollouts.append((marks, following, ends))

    @property
    def kept(self) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        return self.rollouts[-self.ring.n_rollouts :]

    def kept_marks(self) -> list[int]:
        return sorted(mark for marks, _, _ in self.kept for mark in marks.flat)


def make_ring(
    n_rollouts: int,
    n_steps: int,
    n_envs: int,
    observation_space: spaces.Space = FLOATS,
    action_space: spaces.Space = ACTION_SPACES["Discrete"],
) -> RolloutRing:
    return RolloutRing(n_steps, observation_space, action_space, "cpu", LAMBDA, GAMMA, n_envs, n_rollouts=n_rollouts)


def random_ends(seed: int, n_steps: int, n_envs: int, p_end: float = 0.15) -> np.ndarray:
    return np.random.default_rng(seed).choice(3, size=(n_steps, n_envs), p=[1 - 2 * p_end, p_end, p_end])


def visit(ring: RolloutRing, batch_size: int | None) -> tuple[list[RolloutRingSamples], np.ndarray]:
    """An epoch: the minibatches, and the marks of their transitions one after the other."""
    minibatches = list(ring.get(batch_size))
    return minibatches, np.concatenate([decode(ring.observation_space, x.observations) for x in minibatches])


@st.composite
def histories(draw: st.DrawFn) -> Driver:
    """Rings of any size after any number of rollouts, some of them given up half-way, with any pattern of ends."""
    n_rollouts, n_steps, n_envs = draw(st.integers(1, 4)), draw(st.integers(1, 6)), draw(st.integers(1, 3))
    driver = Driver(make_ring(n_rollouts, n_steps, n_envs), seed=draw(st.integers(0, 1000)))
    for _ in range(draw(st.integers(1, 9))):
        if draw(st.booleans()):
            driver.collect(np.zeros((draw(st.integers(0, n_steps - 1)), n_envs), dtype=np.int8))
        driver.collect(draw(arrays(np.int8, (n_steps, n_envs), elements=st.integers(0, 2))))
    return driver


batch_sizes = st.none() | st.integers(1, 80)


# --- visits ---------------------------------------------------------------------------------------


@given(histories(), batch_sizes)
def test_every_transition_once_per_epoch(driver: Driver, batch_size: int | None) -> None:
    """Each of the last K rollouts' transitions, none of an older or an unfinished rollout, all its parts together."""
    ring = driver.ring
    for _ in range(2):
        minibatches, marks = visit(ring, batch_size)
        assert sorted(marks) == driver.kept_marks()
        *full, last = [len(x.indices) for x in minibatches]
        assert all(size == batch_size for size in full)
        assert 0 < last <= (batch_size or INF)
        indices = th.cat([x.indices for x in minibatches])
        assert sorted(indices.tolist()) == list(range(len(marks)))
        for samples in minibatches:
            marks = decode(ring.observation_space, samples.observations)
            np.testing.assert_array_equal(decode(ring.action_space, samples.actions), marks)
            np.testing.assert_array_equal(samples.behavior_log_prob, driver.log_probs[marks])


@given(histories(), batch_sizes)
def test_visits_are_remembered_until_the_rollout_is_evicted(driver: Driver, batch_size: int | None) -> None:
    """What a forward pass says lands at the transition it was about, and is what the next update starts from."""
    ring = driver.ring
    ring.begin_update()
    for samples in ring.get(batch_size):
        marks = decode(ring.observation_space, samples.observations)
        np.testing.assert_array_equal(samples.old_values, driver.values[marks])
        np.testing.assert_array_equal(samples.old_log_prob, driver.log_probs[marks])
        visited_marks = th.as_tensor(marks, dtype=th.float32)
        ring.record_visit(samples.indices, 10 + visited_marks, -10 - visited_marks)
    # Visits count from the next update on
    for samples in ring.get(batch_size):
        marks = decode(ring.observation_space, samples.observations)
        np.testing.assert_array_equal(samples.old_values, driver.values[marks])
    visited = driver.kept_marks()
    driver.collect(np.zeros((ring.buffer_size, ring.n_envs), dtype=np.int8))
    ring.begin_update()
    for samples in ring.get(batch_size):
        marks = decode(ring.observation_space, samples.observations)
        is_old = np.isin(marks, visited)
        np.testing.assert_array_equal(samples.old_values, np.where(is_old, 10.0 + marks, driver.values[marks]))
        np.testing.assert_array_equal(samples.old_log_prob, np.where(is_old, -10.0 - marks, driver.log_probs[marks]))
        np.testing.assert_array_equal(samples.behavior_log_prob, driver.log_probs[marks])


@pytest.mark.parametrize("action_space", ACTION_SPACES.values(), ids=ACTION_SPACES)
@pytest.mark.parametrize("observation_space", OBSERVATION_SPACES.values(), ids=OBSERVATION_SPACES)
def test_spaces(observation_space: spaces.Space, action_space: spaces.Space) -> None:
    """The same class for all observations; observations keep their dtype, integer actions stay integers."""
    ring = make_ring(3, 7, 2, observation_space, action_space)
    driver = Driver(ring)
    for seed in range(5):
        driver.collect(random_ends(seed, 7, 2))
    minibatches, marks = visit(ring, batch_size=8)
    assert sorted(marks) == driver.kept_marks()

    def check(space: spaces.Space, tensor: th.Tensor) -> None:
        dtype = np.float32 if space.dtype == np.float64 else space.dtype
        assert tensor.numpy().dtype == dtype
        assert tensor.shape == (8, *(space.shape or (1,)))

    samples = minibatches[0]
    np.testing.assert_array_equal(decode(action_space, samples.actions), marks[:8])
    if isinstance(observation_space, spaces.Dict):
        assert isinstance(samples.observations, dict)
        for key, space in observation_space.spaces.items():
            check(space, samples.observations[key])
    else:
        check(observation_space, samples.observations)
    is_integer = isinstance(action_space, spaces.Discrete | spaces.MultiDiscrete)
    assert samples.actions.dtype == (th.int64 if is_integer else th.float32)
    assert samples.actions.shape == ((8,) if isinstance(action_space, spaces.Discrete) else (8, ring.action_dim))
    # The states that end the trajectories, and those that ended the truncated episodes
    expected = []
    for _, following, ends in driver.kept:
        expected += [mark for mark, end in zip(following.flat, ends.flat, strict=True) if end == TRUNCATED]
    bootstrap_marks = [
        mark for batch in ring.bootstrap_batches(4) for mark in decode(observation_space, batch.observations).tolist()
    ]
    assert len(bootstrap_marks) == len(expected) + 3 * 2
    assert set(expected) <= set(bootstrap_marks)


def test_order_is_random_or_as_stored() -> None:
    ring = make_ring(2, 8, 2)
    driver = Driver(ring)
    for seed in range(2):
        driver.collect(random_ends(seed, 8, 2))
    in_order = [x.indices for x in ring.get(5, shuffle=False)]
    assert th.cat(in_order).tolist() == list(range(32))
    assert th.cat([x.indices for x in ring.get(5)]).tolist() != list(range(32))


def test_unfinished_rollout_is_refused() -> None:
    ring = make_ring(2, 8, 1)
    with pytest.raises(ValueError, match="not complete: 0 of 8 steps"):
        next(ring.get())
    driver = Driver(ring)
    driver.collect(random_ends(0, 8, 1))
    next(ring.get())
    driver.collect(random_ends(1, 5, 1))
    with pytest.raises(ValueError, match="not complete: 5 of 8 steps"):
        next(ring.get())


def test_forgotten_advantages_are_told() -> None:
    """Rather than that `train` learns of older rollouts alone."""
    model = make_model(DAPO, "MlpPolicy", "CartPole-v1", n_steps=32, n_rollouts=2).learn(64)
    ring, parameters = model.rollout_buffer, deepcopy(model.get_parameters()["policy"])
    ring.reset()
    for _ in range(32):
        ring.add(np.zeros((1, 4)), np.zeros((1, 1)), np.ones(1), np.zeros(1), th.zeros(1), th.zeros(1))
    with pytest.raises(ValueError, match="32 of 32 steps: `compute_returns_and_advantage` has not been called"):
        model.train()
    assert all(x.equal(parameters[name]) for name, x in model.policy.state_dict().items())
    ring.compute_returns_and_advantage(th.zeros(1), np.ones(1))
    model.train()
    assert ring.n_arrived == 3
    model.train()  # once more with the same
    assert ring.n_arrived == 3


def test_ages() -> None:
    ring = make_ring(3, 4, 1)
    driver = Driver(ring)
    for version in range(5):
        ring.acting_version = version
        driver.collect(random_ends(version, 4, 1))
        assert sorted(ring.ages(version)) == list(range(min(version + 1, 3)))


# --- the newest rollout, as SB3's buffers have it -------------------------------------------------


@pytest.mark.parametrize("batch_size", [None, 1, 8, 10, 24])
@pytest.mark.parametrize("action_space", ACTION_SPACES.values(), ids=ACTION_SPACES)
@pytest.mark.parametrize("observation_space", OBSERVATION_SPACES.values(), ids=OBSERVATION_SPACES)
def test_equals_sb3_buffer(observation_space: spaces.Space, action_space: spaces.Space, batch_size: int | None) -> None:
    """With K = 1 the same minibatches as SB3's buffers, in the same order, and the same GAE."""
    n_steps, n_envs = 8, 3
    ring = make_ring(1, n_steps, n_envs, observation_space, action_space)
    is_dict = isinstance(observation_space, spaces.Dict)
    theirs = (DictRolloutBuffer if is_dict else RolloutBuffer)(
        n_steps, observation_space, action_space, "cpu", LAMBDA, GAMMA, n_envs
    )

    class Both:
        """A ring that shows SB3's buffer what it is given."""

        def __getattr__(self, name: str) -> Any:
            if name == "record_step" or not hasattr(theirs, name) or not callable(getattr(ring, name)):
                return getattr(ring, name)

            def call(*args: Any) -> None:
                getattr(theirs, name)(*args)
                getattr(ring, name)(*args)

            return call

    driver = Driver(Both())  # type: ignore[arg-type]
    for seed in range(2):
        driver.collect(random_ends(seed, n_steps, n_envs))
    for name in ("rewards", "values", "log_probs", "episode_starts", "advantages", "returns", "actions"):
        np.testing.assert_array_equal(getattr(ring, name), getattr(theirs, name), err_msg=name)
    for key in observation_space.spaces if is_dict else [None]:
        ours_array, their_array = (x.observations if key is None else x.observations[key] for x in (ring, theirs))
        np.testing.assert_array_equal(ours_array, their_array)
    ring.begin_update()
    np.random.seed(0)
    our_minibatches = list(ring.get(batch_size))
    np.random.seed(0)
    their_minibatches = list(theirs.get(batch_size))
    for ours, other in zip(our_minibatches, their_minibatches, strict=True):
        np.testing.assert_array_equal(
            decode(observation_space, ours.observations), decode(observation_space, other.observations)
        )
        np.testing.assert_array_equal(ours.actions.reshape(other.actions.shape), other.actions)
        for name in ("old_values", "old_log_prob", "advantages", "returns"):
            np.testing.assert_array_equal(getattr(ours, name), getattr(other, name), err_msg=name)


# --- targets --------------------------------------------------------------------------------------


def as_batch(driver: Driver, rollout: int, latest_values: np.ndarray, latest_log_probs: np.ndarray) -> Batch:
    """
    A kept rollout as the formulas want it.

    :param rollout: its number among the kept ones
    :param latest_values: table of what is known of the transitions' values
    :param latest_log_probs: likewise, of their log-probs
    """
    marks, following, ends = driver.kept[rollout]
    log_ratios = (latest_log_probs - driver.log_probs)[marks].astype(np.float64)
    inside = np.vstack([ends[:-1] == CONTINUES, np.zeros_like(ends[:1], dtype=bool)])
    return Batch(
        ends=ends,
        gamma=GAMMA,
        rewards=driver.rewards[marks].astype(np.float64),
        values=latest_values[marks].astype(np.float64),
        # The latest known value of a state that was visited, else that of the current network
        next_values=np.where(inside, latest_values[following], driver.values[following]).astype(np.float64),
        ratios=np.exp(log_ratios.clip(-MAX_LOG_RATIO, MAX_LOG_RATIO)),
        f=log_ratios,
    )


@settings(max_examples=40)
@given(
    histories(),
    st.integers(0, 1000),
    st.sampled_from([(1.0, 1.0), (2.0, 0.5), (INF, INF)]),
    st.sampled_from([(1.0, 1.0), (0.7, 0.9), (0.0, 2.0)]),
    st.none() | st.integers(0, 7),
)
def test_targets_equal_sums(
    driver: Driver,
    seed: int,
    levels: tuple[float, float],
    divergence_settings: tuple[float, float],
    n_steps: int | None,
) -> None:
    """Targets of every trajectory of the ring, from what is known of each transition since its last visit."""
    ring, (rho_bar, c_bar), (divergence_lambda, divergence_c_bar) = driver.ring, levels, divergence_settings
    latest_values, latest_log_probs = driver.values.copy(), driver.log_probs.copy()
    rng = np.random.default_rng(seed)
    for samples in ring.get(3):
        if rng.random() < 0.7:
            marks = decode(ring.observation_space, samples.observations)
            latest_values[marks], latest_log_probs[marks] = rng.normal(size=(2, len(marks)))
            ring.record_visit(
                samples.indices, th.as_tensor(latest_values[marks]), th.as_tensor(latest_log_probs[marks])
            )
    bootstrap_values = [
        th.as_tensor(driver.values[decode(ring.observation_space, x.observations)]) for x in ring.bootstrap_batches(4)
    ]
    ring.update_targets(
        DIVERGENCES["kl"],
        th.cat(bootstrap_values),
        rho_bar=rho_bar,
        c_bar=c_bar,
        divergence_lambda=divergence_lambda,
        divergence_c_bar=divergence_c_bar,
        divergence_steps=n_steps,
    )
    minibatches, marks = visit(ring, 16)
    of_mark = np.zeros((3, MAX_MARKS), dtype=np.float32)
    for i, name in enumerate(("returns", "advantages", "future_divergence")):
        of_mark[i, marks] = np.concatenate([getattr(x, name) for x in minibatches])
    for rollout, (marks, _, _) in enumerate(driver.kept):
        batch = as_batch(driver, rollout, latest_values, latest_log_probs)
        value_settings = {"lam": LAMBDA, "rho_bar": rho_bar, "c_bar": c_bar}
        settings_ = {
            "gamma": GAMMA,
            "lam": divergence_lambda,
            "rho_bar": 1.0,
            "c_bar": divergence_c_bar,
            "n_steps": n_steps,
        }
        returns, advantages = vtrace_sums(batch, **value_settings)
        magnitudes = vtrace_sums(batch, **value_settings, magnitude=True)
        future = divergence_sums(batch, **settings_) - batch.f
        check_equal(th.tensor(of_mark[0, marks]), returns, magnitudes[0], th.float32)
        check_equal(th.tensor(of_mark[1, marks]), advantages, magnitudes[1], th.float32)
        # f is the difference of two log-probs that were rounded
        magnitude = divergence_sums(batch, **settings_, magnitude=True) + 10
        check_equal(th.tensor(of_mark[2, marks]), future, magnitude, th.float32)


def test_targets_fixed_at_collection() -> None:
    """Without bootstrap values the GAE of the time of collection stays, whatever is visited."""
    ring = make_ring(2, 8, 2)
    driver = Driver(ring)
    of_mark = np.zeros((2, MAX_MARKS))
    for seed in range(3):
        driver.collect(random_ends(seed, 8, 2))
        marks = driver.rollouts[-1][0]
        of_mark[:, marks] = ring.advantages, ring.returns
        for samples in ring.get(8):
            ring.record_visit(samples.indices, samples.old_values + 1, samples.old_log_prob + 1)
        ring.update_targets(
            DIVERGENCES["kl"],
            None,
            rho_bar=1.0,
            c_bar=1.0,
            divergence_lambda=1.0,
            divergence_c_bar=1.0,
            divergence_steps=None,
        )
    for samples in ring.get(8):
        marks = decode(ring.observation_space, samples.observations)
        np.testing.assert_allclose(samples.advantages, of_mark[0, marks], rtol=1e-6)
        np.testing.assert_allclose(samples.returns, of_mark[1, marks], rtol=1e-6)


@pytest.mark.parametrize(
    "info, is_truncated",
    [
        ({"TimeLimit.truncated": True, "terminal_observation": np.ones(2)}, True),
        ({"TimeLimit.truncated": False, "terminal_observation": np.ones(2)}, False),
        ({"terminal_observation": np.ones(2)}, False),
        ({"TimeLimit.truncated": True}, False),  # nothing to bootstrap from
    ],
)
def test_what_counts_as_truncated(info: dict[str, Any], is_truncated: bool) -> None:
    """The condition by which SB3 bootstraps."""
    ring = make_ring(1, 1, 1)
    ring.record_step(np.zeros((1, 2), np.float32), np.ones(1), np.ones(1, dtype=bool), [info])
    ring.add(np.zeros((1, 2)), np.zeros((1, 1)), np.ones(1), np.ones(1), th.zeros(1), th.zeros(1))
    ring.compute_returns_and_advantage(th.zeros(1), np.ones(1, dtype=bool))
    ring.join()
    bootstrap_values = [batch.observations[:, 0] * 100 for batch in ring.bootstrap_batches(10)]
    ring.update_targets(
        DIVERGENCES["kl"],
        th.cat(bootstrap_values),
        rho_bar=1.0,
        c_bar=1.0,
        divergence_lambda=1.0,
        divergence_c_bar=1.0,
        divergence_steps=None,
    )
    samples = next(ring.get())
    assert samples.returns.item() == pytest.approx(1 + GAMMA * 100 * is_truncated)


def test_explained_variance() -> None:
    ring = make_ring(2, 16, 2)
    driver = Driver(ring)
    for seed in range(3):
        driver.collect(random_ends(seed, 16, 2))
    ring.begin_update()
    samples = next(ring.get())
    expected = 1 - np.var((samples.returns - samples.old_values).numpy()) / np.var(samples.returns.numpy())
    assert ring.explained_variance() == pytest.approx(expected, rel=1e-5)


def test_explained_variance_of_constant_returns() -> None:
    ring = make_ring(1, 1, 1)
    Driver(ring).collect(np.array([[TERMINATED]]))
    assert np.isnan(ring.explained_variance())


# --- memory ---------------------------------------------------------------------------------------


def memory(ring: RolloutRing) -> int:
    """Bytes of all that a ring holds, and of all tensors that are alive."""
    gc.collect()
    return len(pickle.dumps(ring)) + sum(x.nbytes for x in gc.get_objects() if issubclass(type(x), th.Tensor))


def test_memory_does_not_grow() -> None:
    """Over 1,000 rollouts; episodes are truncated in most of them, so that terminal observations come and go."""
    ring = make_ring(3, 6, 2, OBSERVATION_SPACES["Dict"])
    driver = Driver(ring)
    sizes = []
    for i in range(1000):
        driver.collect(random_ends(i % 7, 6, 2))
        driver.next_mark %= MAX_MARKS - 100
        for samples in ring.get(8):
            ring.record_visit(samples.indices, samples.old_values, samples.old_log_prob)
        if i % 140 == 139:
            sizes.append(memory(ring))
    assert max(sizes) < sizes[0] + 1000


@pytest.mark.filterwarnings("ignore:The last minibatch of every epoch")
def test_memory_of_a_model_does_not_grow(algo: type[DAPO]) -> None:
    env = gym.wrappers.TimeLimit(RandomEnv(FLOATS, spaces.Discrete(2), p_terminated=0.0), 3)
    model = make_model(algo, "MlpPolicy", env, n_steps=6, n_epochs=1, batch_size=18, n_rollouts=3)
    sizes = []
    for _ in range(5):
        model.learn(60 * 6, reset_num_timesteps=False)
        sizes.append(memory(model.rollout_buffer))
    assert max(sizes) < sizes[0] + 1000


def test_images_are_kept_as_bytes() -> None:
    space = spaces.Box(0, 255, (4, 84, 84), np.uint8)
    ring = RolloutRing(16, space, spaces.Discrete(4), "cpu", n_envs=2, n_rollouts=2)
    n_bytes = sum(store.kept.nbytes for store in ring.observation_stores.values())
    assert n_bytes == 2 * 16 * 2 * 4 * 84 * 84
