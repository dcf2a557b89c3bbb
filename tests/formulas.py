"""DAPO's formulas as explicit float64 sums, one term at a time, and random trajectories to try them on."""

from dataclasses import dataclass

import numpy as np
import torch as th

INF = float("inf")
CONTINUES, TERMINATED, TRUNCATED = 0, 1, 2


@dataclass
class Batch:
    """Trajectories, time-major: every array has shape ``(T, N)``."""

    ends: np.ndarray
    """How the episode goes on after each step: CONTINUES, TERMINATED or TRUNCATED."""
    gamma: float
    rewards: np.ndarray
    values: np.ndarray
    next_values: np.ndarray
    ratios: np.ndarray
    f: np.ndarray

    @property
    def continues(self) -> np.ndarray:
        return (self.ends == CONTINUES).astype(np.float64)

    @property
    def discounts(self) -> np.ndarray:
        return self.gamma * (self.ends != TERMINATED)

    @property
    def episodes(self) -> np.ndarray:
        """Number of the episode that each step belongs to, counted in each trajectory."""
        return np.cumsum(np.vstack([np.zeros_like(self.ends[:1]), self.ends[:-1] != CONTINUES]), axis=0)

    def vtrace_inputs(self, dtype: th.dtype = th.float64) -> list[th.Tensor]:
        inputs = (self.rewards, self.values, self.next_values, self.ratios, self.discounts, self.continues)
        return [th.tensor(x, dtype=dtype) for x in inputs]

    def divergence_inputs(self, dtype: th.dtype = th.float64) -> list[th.Tensor]:
        return [th.tensor(x, dtype=dtype) for x in (self.f, self.ratios, self.continues)]


def fill(ends: np.ndarray, seed: int, gamma: float = 0.97, scale: float = 0.7) -> Batch:
    """
    :param ends: pattern of ends
    :param seed: of the other arrays
    :param gamma: discount factor
    :param scale: of the log-ratios
    :return: random trajectories that end so
    """
    rng = np.random.default_rng(seed)
    rewards, f, values, own_values, log_ratios = rng.normal(size=(5, *ends.shape))
    # V': within an episode the value of the next step, else that of an observation of its own
    next_values = np.where(ends == CONTINUES, np.vstack([values[1:], own_values[-1:]]), own_values)
    return Batch(ends, gamma, rewards, 2 * values, 2 * next_values, np.exp(scale * log_ratios), f)


def random_batch(seed: int, shape: tuple[int, int] = (30, 4), p_end: float = 0.1) -> Batch:
    """
    :param seed: of everything
    :param shape: ``(T, N)``
    :param p_end: probability of each kind of end
    :return: random trajectories
    """
    return fill(np.random.default_rng(seed).choice(3, size=shape, p=[1 - 2 * p_end, p_end, p_end]), seed)


def vtrace_sums(
    batch: Batch, lam: float, rho_bar: float, c_bar: float, advantage_lam: float = 1.0, magnitude: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """
    V-trace as explicit sums:
    v_s = V_s + sum_{t >= s} (prod_{i = s..t-1} discount_i continues_i lam min(c_bar, ratio_i)) delta_t.

    :param magnitude: instead, add the absolute values of all that is added or subtracted
    :return: targets and advantages
    """
    rewards, values, next_values, minus = batch.rewards, batch.values, batch.next_values, -1
    if magnitude:
        rewards, values, next_values, minus = np.abs(rewards), np.abs(values), np.abs(next_values), 1
    discounts, continues, ratios = batch.discounts, batch.continues, batch.ratios
    n_steps, n_trajectories = values.shape
    targets, advantages = np.zeros_like(values), np.zeros_like(values)
    for n in range(n_trajectories):
        for s in range(n_steps):
            total = values[s, n]
            for t in range(s, n_steps):
                weight = 1.0
                for i in range(s, t):
                    weight *= discounts[i, n] * continues[i, n] * lam * min(c_bar, ratios[i, n])
                bootstrap = discounts[t, n] * next_values[t, n] if discounts[t, n] > 0 else 0.0
                delta = min(rho_bar, ratios[t, n]) * (rewards[t, n] + bootstrap + minus * values[t, n])
                total += weight * delta
            targets[s, n] = total
        for s in range(n_steps):
            if discounts[s, n] == 0:
                following = 0.0
            elif continues[s, n] and s + 1 < n_steps:
                mixed = advantage_lam * targets[s + 1, n] + (1 - advantage_lam) * next_values[s, n]
                following = discounts[s, n] * mixed
            else:
                following = discounts[s, n] * next_values[s, n]
            advantages[s, n] = rewards[s, n] + following + minus * values[s, n]
    return targets, advantages


def divergence_sums(
    batch: Batch, gamma: float, lam: float, rho_bar: float, c_bar: float, n_steps: int | None, magnitude: bool = False
) -> np.ndarray:
    """D_i = f_i + sum_{j = 1..n} gamma^j (prod_{k = 0..j-1} c_{i+k}) rho_{i+j} f_{i+j}, cut where the episode ends."""
    f = np.abs(batch.f) if magnitude else batch.f
    continues, ratios = batch.continues, batch.ratios
    length, n_trajectories = f.shape
    result = np.zeros_like(f)
    for n in range(n_trajectories):
        for i in range(length):
            total = f[i, n]
            for j in range(1, length if n_steps is None else n_steps + 1):
                if i + j >= length or not continues[i + j - 1, n]:
                    break
                weight = gamma**j
                for k in range(j):
                    weight *= lam * min(c_bar, ratios[i + k, n])
                total += weight * min(rho_bar, ratios[i + j, n]) * f[i + j, n]
            result[i, n] = total
    return result


def check_equal(actual: th.Tensor, expected: np.ndarray, magnitude: np.ndarray, dtype: th.dtype = th.float64) -> None:
    """Equal up to the rounding of sums of terms of that magnitude."""
    assert actual.dtype == dtype
    assert actual.shape == expected.shape
    tolerance = 200 * th.finfo(dtype).eps * magnitude
    error = np.abs(actual.double().numpy() - expected)
    assert (error <= tolerance).all(), f"error {error.max()}, allowed {tolerance.flat[error.argmax()]}"
