"""The loss of a minibatch and its statistics, as pure functions."""

from typing import Literal, NamedTuple

import torch as th
from torch.nn import functional as F

from sb3_dapo.buffers import RolloutRingSamples
from sb3_dapo.divergences import Divergence
from sb3_dapo.estimators import MAX_LOG_RATIO, importance_ratios

# Truncation of the importance ratios that weight the value loss
MAX_VALUE_WEIGHT = 3.0

Stats = dict[str, th.Tensor]


class LossSettings(NamedTuple):
    """What the loss depends on besides a minibatch, under the names that the arguments of ``DAPO`` have."""

    divergence: Divergence
    divergence_coef: float
    clip_range: float
    clip_range_vf: float | None = None
    policy_loss: Literal["clip", "plain", "clip_augmented", "marwil"] = "clip"
    clip_center: Literal["behavior", "old"] = "behavior"
    normalize_advantage: bool | Literal["rms"] = True
    weights_values: bool = True
    """Whether importance ratios weight the value loss, as they do for the targets of V-trace."""
    ent_coef: float = 0.0
    vf_coef: float = 0.5
    rho_bar: float = 1.0


def dapo_loss(
    samples: RolloutRingSamples,
    values: th.Tensor,
    log_prob: th.Tensor,
    entropy: th.Tensor | None,
    settings: LossSettings,
) -> tuple[th.Tensor, Stats]:
    """
    The loss of a minibatch: policy (eq. 7, divided by eta), entropy and value.

    :param samples: the minibatch
    :param values: V(s) of the policy being trained, shape ``(B,)``
    :param log_prob: log pi(a|s), shape ``(B,)``
    :param entropy: entropy of pi(.|s), shape ``(B,)``, or None if it has no closed form
    :param settings: how to compute it
    :return: the loss, and what :func:`summarize` makes the statistics of
    """
    advantages = normalize(samples.advantages, settings.normalize_advantage)
    ratio = importance_ratios(log_prob, samples.behavior_log_prob)

    # D is a constant for the gradient; its first term is that of the policy as it is now
    f = settings.divergence(log_prob.detach(), samples.behavior_log_prob)
    divergences = f + samples.future_divergence
    divergence_loss = th.mean(ratio * divergences)

    if settings.policy_loss == "clip_augmented":
        advantages = advantages - settings.divergence_coef * divergences
    policy_loss = -th.mean(advantages * ratio)
    if settings.policy_loss == "marwil":
        # Weights of mean 1, as their scale would act like one of the learning rate. A schedule may end at 0
        weights = th.softmax(advantages / max(settings.divergence_coef, 1e-8), dim=0) * len(advantages)
        policy_loss = -th.mean(weights * log_prob)
    elif settings.policy_loss != "plain":
        clipped_ratio = th.clamp(ratio, 1 - settings.clip_range, 1 + settings.clip_range)
        if settings.clip_center == "old":
            center = importance_ratios(samples.old_log_prob, samples.behavior_log_prob)
            clipped_ratio = th.clamp(ratio, center - settings.clip_range, center + settings.clip_range)
        policy_loss = -th.min(advantages * ratio, advantages * clipped_ratio).mean()

    if settings.clip_range_vf is not None:
        # Clip the difference between old and new value
        change = th.clamp(values - samples.old_values, -settings.clip_range_vf, settings.clip_range_vf)
        values = samples.old_values + change
    value_loss = F.mse_loss(samples.returns, values)
    if settings.weights_values:
        value_loss = th.mean(ratio.detach().clamp(max=MAX_VALUE_WEIGHT) * (samples.returns - values) ** 2)
    # Approximate entropy when there is no analytical form
    entropy_loss = -th.mean(-log_prob if entropy is None else entropy)

    loss = policy_loss + settings.ent_coef * entropy_loss + settings.vf_coef * value_loss
    if settings.policy_loss not in ("clip_augmented", "marwil") and settings.divergence_coef > 0:
        loss = loss + settings.divergence_coef * divergence_loss

    stats = {
        "loss": loss,
        "policy_gradient_loss": policy_loss,
        "value_loss": value_loss,
        "entropy_loss": entropy_loss,
        "divergence_loss": divergence_loss,
        "divergence": divergences,
        "behavior_log_ratio": log_prob - samples.behavior_log_prob,
        "update_log_ratio": log_prob - samples.old_log_prob,
    }
    return loss, {name: value.detach() for name, value in stats.items()}


def summarize(all_stats: list[Stats], settings: LossSettings) -> Stats:
    """
    :param all_stats: what :func:`dapo_loss` gave for the minibatches of an epoch
    :param settings: as there
    :return: means, under the names that they are logged by; scalars on the device
    """
    # All at once: on small networks a dozen tiny operations per minibatch would be felt
    stats = {name: th.cat([stats[name].reshape(-1) for stats in all_stats]) for name in all_stats[0]}
    behavior_log_ratio, update_log_ratio = stats.pop("behavior_log_ratio"), stats.pop("update_log_ratio")
    ratio = th.exp(behavior_log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO))
    # ratio / center = pi / pi_old
    center = ratio * th.exp(-update_log_ratio) if settings.clip_center == "old" else 1.0
    stats |= {
        "approx_kl": kl_terms(update_log_ratio),
        "behavior_kl": kl_terms(behavior_log_ratio),
        "clip_fraction": ((ratio - center).abs() > settings.clip_range).float(),
        "ratio_mean": ratio,
        "rho_clip_fraction": (ratio > settings.rho_bar).float(),
    }
    return {name: values.mean() for name, values in stats.items()}


def kl_terms(log_ratio: th.Tensor) -> th.Tensor:
    """
    :param log_ratio: log p - log q, of samples of q
    :return: terms whose mean is unbiased for KL(q || p) (Schulman's k3)
    """
    return th.expm1(log_ratio) - log_ratio


def normalize(advantages: th.Tensor, how: bool | Literal["rms"]) -> th.Tensor:
    """
    :param advantages: of a minibatch, shape ``(B,)``
    :param how: True for mean 0 and standard deviation 1, "rms" for a root mean square of 1, False for as they are
    :return: the advantages, normalized
    """
    # A minibatch of one has no standard deviation
    if not how or len(advantages) == 1:
        return advantages
    if how == "rms":
        return advantages / (advantages.square().mean().sqrt() + 1e-8)
    return (advantages - advantages.mean()) / (advantages.std() + 1e-8)
