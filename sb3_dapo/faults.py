"""NaN and infinity, caught before they reach the parameters."""

import numpy as np


class NonFiniteError(ValueError):
    """Something is NaN or infinite. The parameters are those of the last good update, and can be saved."""


def check_finite(name: str, values: np.ndarray, first_step: int = 0, first_env: int = 0) -> None:
    """
    :param name: what the values are, for the message
    :param values: by step and environment, shape ``(T, N, ...)``; integers are always finite
    :param first_step: step of the rollout that ``values`` begin with, for the message
    :param first_env: likewise, the environment
    :raises NonFiniteError: naming the step, the environment and the value, for the first that is not finite
    """
    if values.dtype.kind != "f":
        return
    bad = np.argwhere(~np.isfinite(values))
    if len(bad) > 0:
        step, env, *_ = bad[0]
        where = f"of environment {first_env + env} at step {first_step + step} of the rollout"
        raise NonFiniteError(f"the {name} {where} is {values[tuple(bad[0])]}")
