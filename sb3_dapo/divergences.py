"""Divergences between the policy being trained, pi, and the policy that acted, mu.

Each is a callable that gives f, the derivative of the divergence with respect to pi at (s, a): for the Bregman
divergence of a potential F, f = F'(pi(a|s)) - F'(mu(a|s)). It is 0 where the two policies agree.
"""

from abc import ABC, abstractmethod

import torch as th
from gymnasium import spaces

from sb3_dapo.arguments import Range, check_number
from sb3_dapo.estimators import MAX_LOG_RATIO

# exp(-20): a probability below it is treated as equal to it, so that negative powers of it stay finite
MIN_LOG_PROB = -20.0
# Log-probs of one policy computed in two minibatches may differ by this much
ROUNDING = 1e-5


class Divergence(ABC):
    """
    Base class: subclass it and pass an instance as ``DAPO(..., divergence=MyDivergence())``.

    Class attribute ``needs_probabilities``: True if f is only meaningful for probabilities, not for densities, whose
    value depends on the unit of the actions. Such a divergence is refused for continuous (Box) actions.
    """

    needs_probabilities: bool = False

    @abstractmethod
    def __call__(self, log_prob: th.Tensor, behavior_log_prob: th.Tensor) -> th.Tensor:
        """
        :param log_prob: log pi(a|s), any shape
        :param behavior_log_prob: log mu(a|s), same shape
        :return: f, same shape
        """

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"

    def check_action_space(self, action_space: spaces.Space) -> None:  # type: ignore[type-arg]
        """
        :param action_space: action space of the environment
        :raises ValueError: if the divergence is not sound for it
        """
        if self.needs_probabilities and isinstance(action_space, spaces.Box):
            sound = sorted(name for name, other in DIVERGENCES.items() if not other.needs_probabilities)
            raise ValueError(
                f"`divergence` {self!r} needs action probabilities, but {action_space} has densities: "
                f"its value would depend on the unit of the actions. For continuous actions use one of {sound}"
            )


class KL(Divergence):
    """KL(pi || mu), the paper's choice: the Bregman divergence of negative entropy. f = log pi - log mu."""

    def __call__(self, log_prob: th.Tensor, behavior_log_prob: th.Tensor) -> th.Tensor:
        return log_prob - behavior_log_prob


class ReverseKL(Divergence):
    """KL(mu || pi). f = 1 - mu/pi (up to the constant that makes it 0 at pi = mu)."""

    def __call__(self, log_prob: th.Tensor, behavior_log_prob: th.Tensor) -> th.Tensor:
        return -th.expm1(_clamped(behavior_log_prob - log_prob))


class Hellinger(Divergence):
    """Squared Hellinger distance, the sum of (sqrt(pi) - sqrt(mu))^2. f = 1 - sqrt(mu/pi)."""

    def __call__(self, log_prob: th.Tensor, behavior_log_prob: th.Tensor) -> th.Tensor:
        return -th.expm1(0.5 * _clamped(behavior_log_prob - log_prob))


class TotalVariation(Divergence):
    """
    Total variation distance, half the sum of abs(pi - mu). f = sign(pi - mu) / 2, and 0 for log-probs that differ by
    rounding alone.
    """

    def __call__(self, log_prob: th.Tensor, behavior_log_prob: th.Tensor) -> th.Tensor:
        log_ratio = log_prob - behavior_log_prob
        return 0.5 * th.sign(log_ratio) * (log_ratio.abs() > ROUNDING)


class Tsallis(Divergence):
    """
    Bregman divergence of the negative Tsallis entropy, F(p) = (p^q - p) / (q - 1).

    f = q / (q - 1) (pi^(q-1) - mu^(q-1)). Order 1/2 is the INF regularizer of the paper's authors, order 2 the one of
    sparse policies, and order 1 the limit, KL.

    :param order: q, greater than 0
    :raises ValueError: if ``order`` is not
    """

    def __init__(self, order: float = 0.5) -> None:
        check_number("order", order, Range(0, exclusive=True))
        self.order = order
        self.needs_probabilities = order != 1

    def __call__(self, log_prob: th.Tensor, behavior_log_prob: th.Tensor) -> th.Tensor:
        if self.order == 1:
            return log_prob - behavior_log_prob
        power = self.order - 1
        log_prob, behavior_log_prob = log_prob.clamp(min=MIN_LOG_PROB), behavior_log_prob.clamp(min=MIN_LOG_PROB)
        return self.order / power * (th.exp(power * log_prob) - th.exp(power * behavior_log_prob))

    def __repr__(self) -> str:
        return f"Tsallis(order={self.order:g})"


def _clamped(log_ratio: th.Tensor) -> th.Tensor:
    return log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)


DIVERGENCES: dict[str, Divergence] = {
    "kl": KL(),
    "reverse_kl": ReverseKL(),
    "hellinger": Hellinger(),
    "total_variation": TotalVariation(),
    "tsallis": Tsallis(order=0.5),
    "inf": Tsallis(order=0.5),
    "sparse": Tsallis(order=2.0),
}


def get_divergence(divergence: str | Divergence) -> Divergence:
    """
    :param divergence: a name in :data:`DIVERGENCES`, or a :class:`Divergence`, returned as it is
    :return: the divergence
    :raises ValueError: if there is none of that name
    """
    if isinstance(divergence, Divergence):
        return divergence
    if not isinstance(divergence, str) or divergence not in DIVERGENCES:
        raise ValueError(
            f"`divergence` must be a Divergence object or one of {sorted(DIVERGENCES)}, got {divergence!r}"
        )
    return DIVERGENCES[divergence]
