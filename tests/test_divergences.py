"""Divergences: f against derivatives of the divergences' definitions, and where each is refused."""

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st

from sb3_dapo.divergences import DIVERGENCES, KL, Divergence, Tsallis, get_divergence

BOX = spaces.Box(-1, 1, (2,))
DISCRETE_SPACES = [spaces.Discrete(4), spaces.MultiDiscrete([2, 3]), spaces.MultiBinary(3)]
ORDERS = [0.25, 0.5, 1.0, 1.5, 2.0, 3.0]


def tsallis_bregman(order: float) -> Callable[[th.Tensor, th.Tensor], th.Tensor]:
    """F(pi) - F(mu) - F'(mu) (pi - mu) with F(p) = (p^q - p) / (q - 1)."""

    def bregman(pi: th.Tensor, mu: th.Tensor) -> th.Tensor:
        def potential(p: th.Tensor) -> th.Tensor:
            return ((p**order - p) / (order - 1)).sum()

        gradient = (order * mu ** (order - 1) - 1) / (order - 1)
        return potential(pi) - potential(mu) - (gradient * (pi - mu)).sum()

    return bregman


# What each is the derivative of, as functions of two probability vectors
DEFINITIONS: dict[str, Callable[[th.Tensor, th.Tensor], th.Tensor]] = {
    # as a Bregman divergence, with the term that vanishes for normalized probabilities
    "kl": lambda pi, mu: (pi * (pi / mu).log() - pi + mu).sum(),
    "reverse_kl": lambda pi, mu: (mu * (mu / pi).log() + pi - mu).sum(),
    "hellinger": lambda pi, mu: ((pi.sqrt() - mu.sqrt()) ** 2).sum(),
    "total_variation": lambda pi, mu: 0.5 * (pi - mu).abs().sum(),
    "tsallis": tsallis_bregman(0.5),
    "inf": tsallis_bregman(0.5),
    "sparse": tsallis_bregman(2.0),
}


def random_policies(seed: int, n_actions: int = 6) -> tuple[th.Tensor, th.Tensor]:
    """Two probability vectors."""
    logits = th.as_tensor(np.random.default_rng(seed).normal(size=(2, n_actions)))
    pi, mu = th.softmax(logits, dim=1)
    return pi, mu


def derivative(function: Callable[[th.Tensor], th.Tensor], x: th.Tensor, step: float = 1e-6) -> th.Tensor:
    """Central differences."""
    return th.stack([(function(x + step * e) - function(x - step * e)) / (2 * step) for e in th.eye(len(x)).double()])


def test_every_divergence_has_a_definition_here() -> None:
    assert DEFINITIONS.keys() == DIVERGENCES.keys()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", DIVERGENCES)
def test_f_is_the_derivative(name: str, seed: int) -> None:
    pi, mu = random_policies(seed)
    f = DIVERGENCES[name](pi.log(), mu.log())
    th.testing.assert_close(f, derivative(lambda p: DEFINITIONS[name](p, mu), pi), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("order", [order for order in ORDERS if order != 1])
def test_tsallis_of_any_order(order: float) -> None:
    pi, mu = random_policies(seed=3)
    f = Tsallis(order)(pi.log(), mu.log())
    th.testing.assert_close(f, derivative(lambda p: tsallis_bregman(order)(p, mu), pi), rtol=1e-6, atol=1e-8)


def test_tsallis_of_order_one_is_kl() -> None:
    pi, mu = random_policies(seed=4)
    th.testing.assert_close(Tsallis(1.0)(pi.log(), mu.log()), KL()(pi.log(), mu.log()))
    th.testing.assert_close(Tsallis(1 + 1e-7)(pi.log(), mu.log()), KL()(pi.log(), mu.log()), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", DIVERGENCES)
@pytest.mark.parametrize("shape", [(7,), (5, 3), ()])
@pytest.mark.parametrize("dtype", [th.float32, th.float64], ids=str)
def test_zero_where_policies_agree(name: str, shape: tuple[int, ...], dtype: th.dtype) -> None:
    log_prob = th.as_tensor(-np.random.default_rng(5).exponential(3.0, size=shape), dtype=dtype)
    f = DIVERGENCES[name](log_prob, log_prob.clone())
    assert f.shape == shape
    assert f.dtype == dtype
    assert not f.any()


divergences = st.one_of(st.sampled_from(list(DIVERGENCES.values())), st.builds(Tsallis, st.sampled_from(ORDERS)))
log_probs = st.floats(-200, 0, width=32)


@given(divergences, log_probs, log_probs)
def test_f_has_the_sign_of_the_difference_and_is_finite(divergence: Divergence, log_pi: float, log_mu: float) -> None:
    f = divergence(th.tensor([log_pi]), th.tensor([log_mu])).item()
    assert np.isfinite(f)
    assert f * (log_pi - log_mu) >= 0


@given(divergences, log_probs, log_probs, log_probs)
def test_f_grows_with_pi(divergence: Divergence, log_pi: float, other_log_pi: float, log_mu: float) -> None:
    low, high = sorted((log_pi, other_log_pi))
    f = divergence(th.tensor([low, high]), th.tensor([log_mu, log_mu]))
    assert f[0] <= f[1]


@pytest.mark.parametrize(
    "name", [name for name, divergence in DIVERGENCES.items() if not divergence.needs_probabilities]
)
def test_sound_for_densities(name: str) -> None:
    """A change of the actions' unit shifts both log densities alike, and f stays the same."""
    log_pi, log_mu = th.randn(2, 50, dtype=th.float64, generator=th.Generator().manual_seed(0))
    f = DIVERGENCES[name](log_pi, log_mu)
    th.testing.assert_close(DIVERGENCES[name](log_pi + 3.7, log_mu + 3.7), f)
    DIVERGENCES[name].check_action_space(BOX)


@pytest.mark.parametrize("order", [order for order in ORDERS if order != 1])
def test_refused_for_densities(order: float) -> None:
    with pytest.raises(ValueError, match=rf"`divergence` Tsallis\(order={order:g}\).*Box.*one of \['hellinger', 'kl'"):
        Tsallis(order).check_action_space(BOX)


@pytest.mark.parametrize("divergence", [*DIVERGENCES.values(), *map(Tsallis, ORDERS)], ids=repr)
@pytest.mark.parametrize("space", DISCRETE_SPACES, ids=str)
def test_sound_for_probabilities(divergence: Divergence, space: spaces.Space) -> None:
    divergence.check_action_space(space)


def test_tsallis_of_order_one_is_sound_for_densities() -> None:
    Tsallis(1.0).check_action_space(BOX)


@pytest.mark.parametrize("order", [0, -1.0, float("nan"), "2", True, None, 1j, np.complex64(1)], ids=str)
def test_wrong_order(order: Any) -> None:
    with pytest.raises(ValueError, match=re.escape(f"`order` must be a number greater than 0, got {order!r}")):
        Tsallis(order)


@pytest.mark.parametrize("divergence", ["Kl", "", None, 3, KL, ["kl"]])
def test_unknown_divergence(divergence: object) -> None:
    with pytest.raises(ValueError, match=r"`divergence` must be .* one of .*'kl'") as error:
        get_divergence(divergence)
    assert repr(divergence) in str(error.value)


def test_get_divergence() -> None:
    assert isinstance(get_divergence("kl"), KL)
    own = Tsallis(1.7)
    assert get_divergence(own) is own
