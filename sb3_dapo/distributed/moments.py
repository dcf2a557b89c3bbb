"""The statistics of ``VecNormalize``: computed by the actors, merged by the learner."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import VecNormalize


class CountingMeanStd(RunningMeanStd):
    """
    The statistics that were received, and apart from them what has been counted since. (Differences of statistics would
    have the prior that SB3 begins with in them, and merging whole ones would count everything anew each time.)
    """

    def __init__(self, received: RunningMeanStd) -> None:
        self.mean, self.var, self.count = received.mean, received.var, received.count
        self.since = RunningMeanStd(0.0, np.shape(received.mean))

    def update_from_moments(self, batch_mean: np.ndarray, batch_var: np.ndarray, batch_count: float) -> None:
        super().update_from_moments(batch_mean, batch_var, batch_count)
        self.since.update_from_moments(batch_mean, batch_var, batch_count)


@dataclass(frozen=True)
class Moments:
    """By the names of :func:`parts`."""

    since: dict[str, RunningMeanStd]
    """Of what was counted since the last publication."""
    all: dict[str, RunningMeanStd]
    """Of that and what was published."""


def parts(normalize: VecNormalize) -> dict[str, RunningMeanStd]:
    """:return: the statistics of the rewards, and those of the observations by their keys"""
    observations: Any = vars(normalize).get("obs_rms", {})  # without `norm_obs` there are none
    observations = observations if isinstance(observations, dict) else {"": observations}
    return {"rewards": normalize.ret_rms, **{f"observations {key}": rms for key, rms in observations.items()}}


def receive(normalize: VecNormalize, published: VecNormalize) -> None:
    """Take all but the environment and the running returns from another."""
    own = ("venv", "class_attributes", "returns")
    vars(normalize).update({name: value for name, value in vars(published).items() if name not in own})
    normalize.ret_rms = CountingMeanStd(published.ret_rms)
    observations: Any = vars(published).get("obs_rms")
    if isinstance(observations, dict):
        normalize.obs_rms = {key: CountingMeanStd(rms) for key, rms in observations.items()}
    elif observations is not None:
        normalize.obs_rms = CountingMeanStd(observations)  # type: ignore[assignment]


def count(normalize: VecNormalize, observations: Any) -> None:
    """Add observations to the statistics, as a reset does."""
    if normalize.training and normalize.norm_obs:
        if isinstance(normalize.obs_rms, dict):
            for key, rms in normalize.obs_rms.items():
                rms.update(observations[key])
        else:
            normalize.obs_rms.update(observations)


def moments_of(normalize: VecNormalize | None) -> Moments | None:
    """:return: what an actor sends"""
    if normalize is None:
        return None
    counting: dict[str, Any] = parts(normalize)
    return Moments(
        {name: rms.since for name, rms in counting.items()}, {name: rms.copy() for name, rms in counting.items()}
    )


def merge(normalize: VecNormalize, moments: Moments, is_newest: bool) -> None:
    """
    :param normalize: the learner's
    :param moments: of an actor
    :param is_newest: whether nothing has been merged since the actor got its statistics: those that it has now are
        then the result, to the last bit
    """
    for name, rms in parts(normalize).items():
        since, everything = moments.since[name], moments.all[name]
        if is_newest:
            rms.mean, rms.var, rms.count = np.copy(everything.mean), np.copy(everything.var), everything.count
        elif since.count > 0:
            rms.update_from_moments(since.mean, since.var, since.count)
