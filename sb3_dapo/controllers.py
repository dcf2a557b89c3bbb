"""Controllers: objects that adapt the divergence coefficient 1/eta to the divergence measured in training."""

import math
from abc import ABC, abstractmethod

from sb3_dapo.arguments import Range, check, check_number

POSITIVE = Range(0, exclusive=True)


class Controller(ABC):
    """
    Base class: subclass it and pass an instance as ``DAPO(..., divergence_coef=MyController())``.

    It is asked for the coefficient before each update, told the divergence after it, and saved with the model.
    """

    def __repr__(self) -> str:
        values = ", ".join(f"{name}={value!r}" for name, value in vars(self).items())
        return f"{type(self).__name__}({values})"

    @abstractmethod
    def __call__(self, progress_remaining: float) -> float:
        """
        :param progress_remaining: from 1 at the beginning of training to 0 at its end
        :return: 1/eta for the update that begins, at least 0
        """

    @abstractmethod
    def update(self, divergence: float) -> None:
        """
        :param divergence: KL to the behaviour policies, mean over the minibatches of the update that ended
            (``train/behavior_kl``)
        """


class TargetController(Controller):
    """
    Base of the controllers that aim for a divergence.

    :param target: divergence aimed for, greater than 0
    :param initial: first coefficient, within the limits
    :param minimum: smallest coefficient, greater than 0
    :param maximum: largest coefficient
    :raises ValueError: if a parameter is out of range
    """

    def __init__(self, target: float = 0.01, initial: float = 1.0, minimum: float = 1e-4, maximum: float = 1e4) -> None:
        for name, value in (("target", target), ("initial", initial), ("minimum", minimum), ("maximum", maximum)):
            check_number(name, value, POSITIVE)
        limits = f"between `minimum` ({minimum}) and `maximum` ({maximum})"
        check("initial", initial, minimum <= initial <= maximum, limits)
        self.target = target
        self.minimum, self.maximum = minimum, maximum
        self.coefficient = initial

    def __call__(self, progress_remaining: float) -> float:
        return self.coefficient

    def _multiply(self, factor: float) -> None:
        self.coefficient = min(max(self.coefficient * factor, self.minimum), self.maximum)


class AdaptiveController(TargetController):
    """
    PPO's rule for an adaptive penalty (Schulman et al. 2017, section 4): double the coefficient when the divergence is
    above 1.5 times its target, halve it when it is below the target divided by 1.5.

    Parameters as in :class:`TargetController`.
    """

    def update(self, divergence: float) -> None:
        if divergence > 1.5 * self.target:
            self._multiply(2)
        elif divergence < self.target / 1.5:
            self._multiply(0.5)


class DualController(TargetController):
    """
    Dual gradient ascent on the constraint "divergence at most ``target``": the coefficient is the Lagrange multiplier,
    and its logarithm moves by ``learning_rate * (divergence / target - 1)`` after each update.

    Parameters as in :class:`TargetController`, and:

    :param learning_rate: step size, greater than 0
    """

    def __init__(
        self,
        target: float = 0.01,
        initial: float = 1.0,
        learning_rate: float = 0.1,
        minimum: float = 1e-4,
        maximum: float = 1e4,
    ) -> None:
        super().__init__(target, initial, minimum, maximum)
        check_number("learning_rate", learning_rate, POSITIVE)
        self.learning_rate = learning_rate

    def update(self, divergence: float) -> None:
        # a single update moves the coefficient by a factor e at most, whatever was measured
        self._multiply(math.exp(min(max(self.learning_rate * (divergence / self.target - 1), -1.0), 1.0)))
