"""V-trace and the multi-step divergence against sums written from their formulas, in float64."""

import numpy as np
import pytest
import torch as th
from formulas import (
    CONTINUES,
    TERMINATED,
    TRUNCATED,
    Batch,
    check_equal,
    divergence_sums,
    fill,
    random_batch,
    vtrace_sums,
)
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from sb3_dapo.estimators import (
    MAX_LOG_RATIO,
    backward_recurrence,
    future_divergence,
    importance_ratios,
    multi_step_divergence,
    vtrace,
)

INF = float("inf")
DTYPES = [th.float32, th.float64]

ends = st.tuples(st.integers(1, 12), st.integers(1, 3)).flatmap(
    lambda shape: arrays(np.int8, shape, elements=st.integers(0, 2))
)
batches = st.builds(
    fill,
    ends=ends,
    seed=st.integers(0, 2**31),
    gamma=st.sampled_from([0.0, 0.5, 0.97, 1.0]),
    scale=st.sampled_from([0.0, 0.7, 2.0]),
)
lambdas = st.sampled_from([0.0, 0.3, 0.95, 1.0])
levels = st.sampled_from([0.4, 1.0, 2.5, INF])
step_numbers = st.one_of(st.none(), st.integers(0, 14))
dtypes = st.sampled_from(DTYPES)


# --- against the formulas -------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("c_bar", [0.0, 0.5, 1.0, 2.0, INF])
@pytest.mark.parametrize("rho_bar", [0.7, 1.0, 2.0, INF])
@pytest.mark.parametrize("lam, advantage_lam", [(0.0, 1.0), (0.9, 1.0), (0.9, 0.9), (0.9, 0.0), (1.0, 1.0)])
def test_vtrace_equals_sums(lam: float, advantage_lam: float, rho_bar: float, c_bar: float, dtype: th.dtype) -> None:
    batch = random_batch(seed=1, shape=(20, 3))
    assert {CONTINUES, TERMINATED, TRUNCATED} == set(batch.ends.flat)
    settings = {"lam": lam, "advantage_lam": advantage_lam, "rho_bar": rho_bar, "c_bar": c_bar}
    targets, advantages = vtrace(*batch.vtrace_inputs(dtype), **settings)
    for actual, expected, magnitude in zip(
        (targets, advantages),
        vtrace_sums(batch, **settings),
        vtrace_sums(batch, **settings, magnitude=True),
        strict=True,
    ):
        check_equal(actual, expected, magnitude, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("n_steps", [0, 1, 3, 100, None])
@pytest.mark.parametrize("rho_bar, c_bar", [(1.0, 1.0), (0.5, 0.9), (2.0, 0.0), (1.5, INF), (INF, 1.5)])
@pytest.mark.parametrize("gamma, lam", [(0.99, 1.0), (0.9, 0.8), (1.0, 0.0), (0.0, 1.0)])
def test_divergence_equals_sums(
    gamma: float, lam: float, rho_bar: float, c_bar: float, n_steps: int | None, dtype: th.dtype
) -> None:
    batch = random_batch(seed=2, shape=(20, 3))
    settings = {"gamma": gamma, "lam": lam, "rho_bar": rho_bar, "c_bar": c_bar, "n_steps": n_steps}
    check_equal(
        multi_step_divergence(*batch.divergence_inputs(dtype), **settings),
        divergence_sums(batch, **settings),
        divergence_sums(batch, **settings, magnitude=True),
        dtype,
    )


@given(batches, lambdas, lambdas, levels, levels, dtypes)
def test_vtrace_equals_sums_everywhere(
    batch: Batch, lam: float, advantage_lam: float, rho_bar: float, c_bar: float, dtype: th.dtype
) -> None:
    settings = {"lam": lam, "advantage_lam": advantage_lam, "rho_bar": rho_bar, "c_bar": c_bar}
    result = vtrace(*batch.vtrace_inputs(dtype), **settings)
    expected = vtrace_sums(batch, **settings)
    magnitude = vtrace_sums(batch, **settings, magnitude=True)
    check_equal(result.values, expected[0], magnitude[0], dtype)
    check_equal(result.advantages, expected[1], magnitude[1], dtype)


@given(batches, st.sampled_from([0.0, 0.9, 1.0]), lambdas, levels, levels, step_numbers, dtypes)
def test_divergence_equals_sums_everywhere(
    batch: Batch, gamma: float, lam: float, rho_bar: float, c_bar: float, n_steps: int | None, dtype: th.dtype
) -> None:
    settings = {"gamma": gamma, "lam": lam, "rho_bar": rho_bar, "c_bar": c_bar, "n_steps": n_steps}
    f, ratios, continues = batch.divergence_inputs(dtype)
    magnitude = divergence_sums(batch, **settings, magnitude=True)
    total = multi_step_divergence(f, ratios, continues, **settings)
    check_equal(total, divergence_sums(batch, **settings), magnitude, dtype)
    check_equal(total - future_divergence(f, ratios, continues, **settings), batch.f, magnitude, dtype)


# --- special cases --------------------------------------------------------------------------------


def gae(batch: Batch, lam: float) -> np.ndarray:
    """Generalized advantage estimation with ends of both kinds."""
    advantages, last = np.zeros_like(batch.values), np.zeros(batch.values.shape[1])
    for t in reversed(range(len(advantages))):
        delta = batch.rewards[t] + batch.discounts[t] * batch.next_values[t] - batch.values[t]
        last = delta + batch.discounts[t] * batch.continues[t] * lam * last
        advantages[t] = last
    return advantages


@given(batches, lambdas)
def test_on_policy_targets_are_lambda_returns(batch: Batch, lam: float) -> None:
    """With ratios 1, v - V is the advantage that GAE gives, and A too with lambda in the first step."""
    rewards, values, next_values, _, discounts, continues = batch.vtrace_inputs()
    inputs = (rewards, values, next_values, th.ones_like(values), discounts, continues)
    targets, advantages = vtrace(*inputs, lam=lam, advantage_lam=lam)
    np.testing.assert_allclose(targets - values, gae(batch, lam), atol=1e-9)
    np.testing.assert_allclose(advantages, gae(batch, lam), atol=1e-9)


def test_lambda_one_on_policy_is_the_discounted_return() -> None:
    rewards = th.tensor([[1.0], [2.0], [3.0], [10.0], [20.0]], dtype=th.float64)
    values = th.tensor([[5.0], [-1.0], [2.0], [7.0], [0.5]], dtype=th.float64)
    next_values = th.tensor([[-1.0], [2.0], [float("nan")], [0.5], [4.0]], dtype=th.float64)
    discounts = th.tensor([[0.5], [0.5], [0.0], [0.5], [0.5]], dtype=th.float64)  # the third step terminates
    continues = th.tensor([[1.0], [1.0], [0.0], [1.0], [1.0]], dtype=th.float64)
    targets, advantages = vtrace(rewards, values, next_values, th.ones_like(values), discounts, continues)
    expected = [1 + 0.5 * 2 + 0.25 * 3, 2 + 0.5 * 3, 3, 10 + 0.5 * 20 + 0.25 * 4, 20 + 0.5 * 4]
    assert targets.flatten().tolist() == expected
    assert advantages.flatten().tolist() == [x - v for x, v in zip(expected, values.flatten().tolist(), strict=True)]


def test_lambda_zero_is_one_step() -> None:
    batch = random_batch(seed=3)
    rewards, values, next_values, ratios, discounts, continues = batch.vtrace_inputs()
    targets = vtrace(rewards, values, next_values, ratios, discounts, continues, lam=0.0).values
    deltas = ratios.clamp(max=1) * (rewards + discounts * next_values - values)
    th.testing.assert_close(targets, values + deltas)


def test_one_step_divergence_is_f() -> None:
    f, ratios, continues = random_batch(seed=4).divergence_inputs()
    th.testing.assert_close(multi_step_divergence(f, ratios, continues, gamma=0.99, n_steps=0), f, rtol=0, atol=0)
    assert not future_divergence(f, ratios, continues, gamma=0.99, n_steps=0).any()


def test_divergence_of_more_steps_than_there_are() -> None:
    inputs = random_batch(seed=5).divergence_inputs()
    whole = multi_step_divergence(*inputs, gamma=0.9)
    for n_steps in (29, 30, 1000):
        th.testing.assert_close(multi_step_divergence(*inputs, gamma=0.9, n_steps=n_steps), whole)


@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (2, 1), (7, 1), (8, 2), (129, 1)])
def test_backward_recurrence(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    offsets, factors = rng.normal(size=(2, *shape))
    expected, following = np.zeros(shape), np.zeros(shape[1])
    for t in reversed(range(shape[0])):
        following = offsets[t] + factors[t] * following
        expected[t] = following
    np.testing.assert_allclose(backward_recurrence(th.tensor(offsets), th.tensor(factors)), expected, rtol=1e-10)


# --- properties -----------------------------------------------------------------------------------


@given(batches, lambdas, levels, step_numbers, dtypes)
def test_inputs_unchanged_and_no_gradient(
    batch: Batch, lam: float, level: float, n_steps: int | None, dtype: th.dtype
) -> None:
    inputs = batch.vtrace_inputs(dtype)
    f, ratios, continues = batch.divergence_inputs(dtype)
    for tensor in (*inputs, f, ratios):
        tensor.requires_grad_()
    copies = [tensor.detach().clone() for tensor in (*inputs, f, ratios, continues)]
    results = [
        *vtrace(*inputs, lam=lam, rho_bar=level, c_bar=level),
        multi_step_divergence(f, ratios, continues, gamma=0.9, lam=lam, rho_bar=level, c_bar=level, n_steps=n_steps),
        future_divergence(f, ratios, continues, gamma=0.9, lam=lam, rho_bar=level, c_bar=level, n_steps=n_steps),
    ]
    for result in results:
        assert not result.requires_grad
    for tensor, copy in zip((*inputs, f, ratios, continues), copies, strict=True):
        assert th.equal(tensor.detach(), copy)
        assert all(result.data_ptr() != tensor.data_ptr() for result in results)


@given(batches, lambdas, levels)
def test_next_values_of_terminated_steps_are_ignored(batch: Batch, lam: float, level: float) -> None:
    inputs = batch.vtrace_inputs()
    expected = vtrace(*inputs, lam=lam, rho_bar=level, c_bar=level)
    for ignored in (float("nan"), INF, -INF):
        next_values = inputs[2].clone()
        next_values[inputs[4] == 0] = ignored
        actual = vtrace(*inputs[:2], next_values, *inputs[3:], lam=lam, rho_bar=level, c_bar=level)
        assert th.equal(actual.values, expected.values)
        assert th.equal(actual.advantages, expected.advantages)


@given(batches, st.data(), lambdas, levels, step_numbers, st.sampled_from([0.0, -3.0, 1e10]))
def test_nothing_crosses_the_end_of_an_episode(
    batch: Batch, data: st.DataObject, lam: float, level: float, n_steps: int | None, change: float
) -> None:
    """Whatever is changed in one episode, the results of the others stay the same."""
    episodes = batch.episodes
    trajectory = data.draw(st.integers(0, episodes.shape[1] - 1), label="trajectory")
    episode = data.draw(st.integers(0, int(episodes[-1, trajectory])), label="episode")
    changed = np.zeros(episodes.shape, dtype=bool)
    changed[:, trajectory] = episodes[:, trajectory] == episode
    mask = th.as_tensor(changed)

    def altered(tensor: th.Tensor) -> th.Tensor:
        return th.where(mask, abs(change) if tensor is ratios else change, tensor)

    rewards, values, next_values, ratios, discounts, continues = batch.vtrace_inputs()
    f = batch.divergence_inputs()[0]
    settings = {"lam": lam, "rho_bar": level, "c_bar": level}
    before = [
        *vtrace(rewards, values, next_values, ratios, discounts, continues, **settings),
        multi_step_divergence(f, ratios, continues, gamma=0.9, n_steps=n_steps, **settings),
    ]
    after = [
        *vtrace(
            altered(rewards), altered(values), altered(next_values), altered(ratios), discounts, continues, **settings
        ),
        multi_step_divergence(altered(f), altered(ratios), continues, gamma=0.9, n_steps=n_steps, **settings),
    ]
    for x, y in zip(before, after, strict=True):
        th.testing.assert_close(x[~mask], y[~mask], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("bad", [float("nan"), INF, -INF])
def test_bad_numbers_stay_in_their_episode(bad: float) -> None:
    """Not even what is not a number gets past the end of an episode: 0 times it must not be taken."""
    batch = random_batch(seed=6, shape=(24, 1), p_end=0.0)
    batch.ends[[7, 15]] = TRUNCATED
    inputs, (f, ratios, continues) = batch.vtrace_inputs(), batch.divergence_inputs()
    before = [*vtrace(*inputs, lam=0.9), multi_step_divergence(f, ratios, continues, gamma=0.9)]
    inputs[0][10] = f[10] = bad
    after = [*vtrace(*inputs, lam=0.9), multi_step_divergence(f, ratios, continues, gamma=0.9)]
    for x, y in zip(before, after, strict=True):
        th.testing.assert_close(x[:8], y[:8])
        th.testing.assert_close(x[16:], y[16:])
        assert not y[8:11].isfinite().any()


def test_overflow_stays_in_its_episode() -> None:
    """Products of untruncated ratios overflow; the episode before must not notice."""
    n_steps = 40
    ones, continues = th.ones(n_steps, 1), th.ones(n_steps, 1)
    continues[9] = 0
    ratios = th.full((n_steps, 1), float(np.exp(MAX_LOG_RATIO)))
    ratios[:10] = 1
    untruncated = {"rho_bar": INF, "c_bar": INF}
    divergences = multi_step_divergence(ones, ratios, continues, gamma=0.99, **untruncated)
    expected = multi_step_divergence(ones[:10], ratios[:10], continues[:10], gamma=0.99, **untruncated)
    th.testing.assert_close(divergences[:10], expected)
    inputs = [ones, 0.5 * ones, 0.3 * ones, ratios, 0.99 * ones, continues]
    targets = vtrace(*inputs, **untruncated)
    expected_targets = vtrace(*(x[:10] for x in inputs), **untruncated)
    th.testing.assert_close(targets.values[:10], expected_targets.values)
    th.testing.assert_close(targets.advantages[:10], expected_targets.advantages)


@given(batches, lambdas, levels)
def test_trajectories_are_independent_and_order_does_not_matter(batch: Batch, lam: float, level: float) -> None:
    inputs = batch.vtrace_inputs()
    whole = vtrace(*inputs, lam=lam, rho_bar=level, c_bar=level)
    flipped = vtrace(*(x.flip(1) for x in inputs), lam=lam, rho_bar=level, c_bar=level)
    th.testing.assert_close(flipped.values.flip(1), whole.values)
    th.testing.assert_close(flipped.advantages.flip(1), whole.advantages)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_continues_may_be_bool(dtype: th.dtype) -> None:
    batch = random_batch(seed=7)
    inputs, (f, ratios, continues) = batch.vtrace_inputs(dtype), batch.divergence_inputs(dtype)
    as_bool = vtrace(*inputs[:-1], inputs[-1].bool(), lam=0.9)
    assert th.equal(as_bool.values, vtrace(*inputs, lam=0.9).values)
    assert th.equal(
        multi_step_divergence(f, ratios, continues.bool(), gamma=0.9),
        multi_step_divergence(f, ratios, continues, gamma=0.9),
    )


def test_non_contiguous_inputs() -> None:
    inputs = random_batch(seed=8).vtrace_inputs()
    expected = vtrace(*inputs, lam=0.9)
    actual = vtrace(*(x.t().contiguous().t() for x in inputs), lam=0.9)
    assert th.equal(actual.values, expected.values)


def test_importance_ratios() -> None:
    log_prob = th.tensor([0.0, -1.0, -3.0, -100.0, 50.0], requires_grad=True)
    behavior_log_prob = th.tensor([0.0, -2.0, -1.0, 0.0, -50.0])
    ratios = importance_ratios(log_prob, behavior_log_prob)
    expected = [1.0, np.exp(1.0), np.exp(-2.0), np.exp(-MAX_LOG_RATIO), np.exp(MAX_LOG_RATIO)]
    np.testing.assert_allclose(ratios.detach(), expected, rtol=1e-6)
    ratios.sum().backward()
    assert log_prob.grad is not None
    np.testing.assert_allclose(log_prob.grad, [1.0, np.exp(1.0), np.exp(-2.0), 0.0, 0.0], rtol=1e-6)


# --- arguments ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"lam": -0.1}, r"`lam` must be a number in \[0, 1\], got -0.1"),
        ({"lam": 1.5}, r"`lam` must be a number in \[0, 1\], got 1.5"),
        ({"lam": float("nan")}, r"`lam` must be a number in \[0, 1\], got nan"),
        ({"rho_bar": 0.0}, "`rho_bar` must be a number greater than 0, got 0.0"),
        ({"rho_bar": float("nan")}, "`rho_bar` must be a number greater than 0, got nan"),
        ({"c_bar": True}, "`c_bar` must be a number of at least 0, got True"),
        ({"c_bar": -1.0}, "`c_bar` must be a number of at least 0, got -1.0"),
    ],
)
def test_wrong_parameters(settings: dict[str, float], message: str) -> None:
    batch = random_batch(seed=9)
    with pytest.raises(ValueError, match=message):
        vtrace(*batch.vtrace_inputs(), **settings)
    with pytest.raises(ValueError, match=message):
        multi_step_divergence(*batch.divergence_inputs(), gamma=0.9, **settings)


@pytest.mark.parametrize("advantage_lam", [-0.1, 1.1, float("nan")])
def test_wrong_advantage_lam(advantage_lam: float) -> None:
    with pytest.raises(ValueError, match=r"`advantage_lam` must be a number in \[0, 1\]"):
        vtrace(*random_batch(seed=9).vtrace_inputs(), advantage_lam=advantage_lam)


@pytest.mark.parametrize("gamma", [-0.1, 1.1, float("nan")])
def test_wrong_gamma(gamma: float) -> None:
    with pytest.raises(ValueError, match=rf"`gamma` must be a number in \[0, 1\], got {gamma}"):
        multi_step_divergence(*random_batch(seed=9).divergence_inputs(), gamma=gamma)


@pytest.mark.parametrize("n_steps", [-1, 0.5])
def test_wrong_n_steps(n_steps: int) -> None:
    with pytest.raises(ValueError, match=f"`n_steps` must be an integer of at least 0, got {n_steps}"):
        multi_step_divergence(*random_batch(seed=9).divergence_inputs(), gamma=0.9, n_steps=n_steps)


@pytest.mark.parametrize("position", range(6))
def test_wrong_shapes(position: int) -> None:
    inputs = random_batch(seed=9).vtrace_inputs()
    for wrong in (inputs[position][:-1], inputs[position][:, :1], inputs[position][:, 0]):
        with pytest.raises(ValueError, match=r"same shape \(T, N\)"):
            vtrace(*inputs[:position], wrong, *inputs[position + 1 :])
    one_dimensional = [x[:, 0] for x in inputs]
    with pytest.raises(ValueError, match=r"same shape \(T, N\)"):
        vtrace(*one_dimensional)
