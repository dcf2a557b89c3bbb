"""Off-policy estimators: V-trace and the multi-step divergence, as pure functions on time-major tensors.

Every tensor has shape ``(T, N)``: T consecutive steps of N trajectories. All functions accept any float dtype and any
device, leave their inputs unchanged, and let no gradient through.
"""

from typing import Any, NamedTuple

import numpy as np
import torch as th

from sb3_dapo.arguments import RANGES, check_int, check_number

# exp(10) is about 22,000: beyond that an importance ratio carries no information, only overflow
MAX_LOG_RATIO = 10.0

Array = Any
"""An array of NumPy or a tensor."""


class VTraceReturns(NamedTuple):
    """Result of :func:`vtrace`, each of shape ``(T, N)``."""

    values: th.Tensor
    advantages: th.Tensor


def importance_ratios(log_prob: th.Tensor, behavior_log_prob: th.Tensor) -> th.Tensor:
    """
    Importance ratios pi(a|s) / mu(a|s), with the log-ratio clamped to ``[-10, 10]``. Differentiable.

    :param log_prob: log pi(a|s), any shape
    :param behavior_log_prob: log mu(a|s), same shape
    :return: the ratios, same shape
    """
    return th.exp(th.clamp(log_prob - behavior_log_prob, -MAX_LOG_RATIO, MAX_LOG_RATIO))


@th.no_grad()
def vtrace(
    rewards: th.Tensor,
    values: th.Tensor,
    next_values: th.Tensor,
    ratios: th.Tensor,
    discounts: th.Tensor,
    continues: th.Tensor,
    *,
    lam: float = 1.0,
    advantage_lam: float = 1.0,
    rho_bar: float = 1.0,
    c_bar: float = 1.0,
) -> VTraceReturns:
    """
    V-trace value targets (Espeholt et al. 2018, eq. 1) and the advantages built on them (DAPO, algorithm box).

    With rho_t = min(rho_bar, ratio_t), c_t = lam * min(c_bar, ratio_t) and
    delta_t = rho_t (r_t + discount_t V'_t - V_t)::

        v_t = V_t + delta_t + discount_t continues_t c_t (v_{t+1} - V_{t+1})
        A_t = r_t + discount_t v'_t - V_t

    where v'_t is v_{t+1} as long as the episode goes on inside the trajectory, and V'_t otherwise. With
    ``advantage_lam`` below 1 it lies between the two, ``V'_t + advantage_lam (v'_t - V'_t)``: with ``lam`` this is GAE
    where pi is mu.

    :param rewards: r_t, shape ``(T, N)``
    :param values: V(s_t), shape ``(T, N)``
    :param next_values: V'_t, the value of the state that follows step t in the same episode: the terminal
        observation's where the episode was truncated; ignored where ``discounts`` is 0. Shape ``(T, N)``
    :param ratios: pi(a_t|s_t) / mu(a_t|s_t), shape ``(T, N)``
    :param discounts: gamma, or 0 where the episode terminated, shape ``(T, N)``
    :param continues: 1, or 0 where the episode ended (terminated or truncated), shape ``(T, N)``, bool or float
    :param lam: lambda of the traces, in [0, 1]
    :param advantage_lam: how much of v_{t+1} the advantages have, in [0, 1]; the rest is V_{t+1}
    :param rho_bar: truncation of the ratios in delta; infinity for none
    :param c_bar: truncation of the ratios in the traces; infinity for none
    :return: the targets v and the advantages A
    :raises ValueError: if the shapes differ or a parameter is out of range
    """
    named = {"rewards": rewards, "values": values, "next_values": next_values}
    _check_shapes(**named, ratios=ratios, discounts=discounts, continues=continues)
    _check_numbers(lam=lam, advantage_lam=advantage_lam, rho_bar=rho_bar, c_bar=c_bar)
    arrays = _arrays(rewards, values, next_values, ratios, discounts, continues == 0)
    xp, rewards, v, bootstraps, ratios, discounts, ends = arrays
    with np.errstate(all="ignore"):
        bootstraps = xp.where(discounts == 0, 0.0, bootstraps)
        deltas = ratios.clip(None, rho_bar) * (rewards + discounts * bootstraps - v)
        traces = xp.where(ends, 0.0, discounts * lam * ratios.clip(None, c_bar))
        targets = v + _recurrence(xp, deltas, traces)

        last = bootstraps[:-1]
        ahead = targets[1:]
        if advantage_lam < 1:
            ahead = xp.asarray(th.lerp(th.as_tensor(last), th.as_tensor(ahead), advantage_lam))
        following = xp.concatenate([xp.where(ends[:-1], last, ahead), bootstraps[-1:]])
        advantages = rewards + discounts * following - v
    return VTraceReturns(th.as_tensor(targets), th.as_tensor(advantages))


@th.no_grad()
def multi_step_divergence(
    f: th.Tensor,
    ratios: th.Tensor,
    continues: th.Tensor,
    *,
    gamma: float,
    lam: float = 1.0,
    rho_bar: float = 1.0,
    c_bar: float = 1.0,
    n_steps: int | None = None,
) -> th.Tensor:
    """
    Multi-step estimate of the divergence between state-action distributions (DAPO, algorithm box)::

        D_i = f_i + sum_{j=1..n} gamma^j (prod_{k=0..j-1} c_{i+k}) rho_{i+j} f_{i+j}

    with rho_t = min(rho_bar, ratio_t) and c_t = lam * min(c_bar, ratio_t). The sum is cut where an episode or the
    trajectory ends.

    :param f: derivative of the Bregman potential between pi and mu at (s_t, a_t), shape ``(T, N)``
    :param ratios: pi(a_t|s_t) / mu(a_t|s_t), shape ``(T, N)``
    :param continues: 1, or 0 where the episode ended, shape ``(T, N)``, bool or float
    :param gamma: discount factor, in [0, 1]
    :param lam: lambda of the traces, in [0, 1]
    :param rho_bar: truncation of the ratios that weight f; infinity for none
    :param c_bar: truncation of the ratios in the traces; infinity for none
    :param n_steps: n above; ``None`` for the whole trajectory, 0 for the 1-step variant (D = f)
    :return: D, shape ``(T, N)``
    :raises ValueError: if the shapes differ or a parameter is out of range
    """
    return f + future_divergence(
        f, ratios, continues, gamma=gamma, lam=lam, rho_bar=rho_bar, c_bar=c_bar, n_steps=n_steps
    )


@th.no_grad()
def future_divergence(
    f: th.Tensor,
    ratios: th.Tensor,
    continues: th.Tensor,
    *,
    gamma: float,
    lam: float = 1.0,
    rho_bar: float = 1.0,
    c_bar: float = 1.0,
    n_steps: int | None = None,
) -> th.Tensor:
    """
    The sum of :func:`multi_step_divergence` without its first term: what the steps after i contribute to D_i.

    The loss adds f_i itself, of the policy as it is at that minibatch. Parameters as there.

    :return: D - f, shape ``(T, N)``
    """
    _check_shapes(f=f, ratios=ratios, continues=continues)
    _check_numbers(lam=lam, gamma=gamma, rho_bar=rho_bar, c_bar=c_bar)
    if n_steps is not None:
        check_int("n_steps", n_steps, 0)

    xp, f, ratios, ends = _arrays(f, ratios, continues == 0)
    with np.errstate(all="ignore"):
        weighted = ratios.clip(None, rho_bar) * f
        traces = xp.where(ends, 0.0, xp.full_like(f, gamma) * lam * ratios.clip(None, c_bar))[:-1]
        future = nothing = xp.zeros_like(f)
        if n_steps is None or n_steps >= len(f):
            weighted, n_steps = _recurrence(xp, weighted, traces), 1
        for _ in range(n_steps):
            # Horner's scheme: each pass adds one more step to every sum
            future = xp.concatenate([_times(xp, traces, (weighted + future)[1:]), nothing[:1]])
    return th.as_tensor(future)


@th.no_grad()
def backward_recurrence(offsets: th.Tensor, factors: th.Tensor) -> th.Tensor:
    """
    Solve x_t = offset_t + factor_t x_{t+1}, with x_T = 0, along the first axis.

    Recursive doubling: after k rounds each x_t holds its sum over 2^k steps, so that log2(T) vector operations do
    the work of T small ones. A factor of 0 cuts: what lies behind it is not even multiplied, so that a NaN there stays
    where it is.

    :param offsets: shape ``(T, N)``
    :param factors: shape ``(T, N)``
    :return: x, shape ``(T, N)``
    """
    with np.errstate(all="ignore"):
        return th.as_tensor(_recurrence(*_arrays(offsets, factors)))


def _recurrence(xp: Any, offsets: Array, factors: Array) -> Array:
    """The same with NumPy or PyTorch; the last factor may be left out."""
    largest = float(xp.finfo(offsets.dtype).max)
    x, length, step = offsets, len(offsets), 1
    while step < length:
        reach = factors[: length - step]
        x = xp.concatenate([x[:-step] + _times(xp, reach, x[step:]), x[-step:]])
        # products that overflow stay finite, as infinity times the 0 of an episode's end would be NaN
        factors = (factors[:-step] * factors[step:]).clip(None, largest)
        step *= 2
    return x


def _times(xp: Any, factors: Array, x: Array) -> Array:
    """The product, 0 where a factor is 0 even if x is NaN or infinite there."""
    return xp.where(factors == 0, 0.0, factors * x)


def _arrays(*tensors: th.Tensor) -> tuple[Any, ...]:
    """:return: NumPy and arrays where it can compute, as its operations take less time than PyTorch's; or PyTorch"""
    if all(x.device.type == "cpu" and x.dtype != th.bfloat16 for x in tensors):
        return np, *(x.detach().numpy() for x in tensors)
    return th, *tensors


def _check_shapes(**tensors: th.Tensor) -> None:
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if len(set(shapes.values())) > 1 or len(next(iter(shapes.values()))) != 2:
        raise ValueError(f"all tensors must have the same shape (T, N), got {shapes}")


def _check_numbers(**numbers: float) -> None:
    for name, number in numbers.items():  # every lambda has the same range
        check_number(name, number, RANGES["gae_lambda" if name.endswith("lam") else name])
