"""The loss of a minibatch, its gradient and its statistics, as pure functions."""

import math
from typing import Any, Literal, NamedTuple

import numpy as np
import torch as th
from torch.nn import functional as F

from sb3_dapo.buffers import RolloutRingSamples
from sb3_dapo.divergences import Divergence
from sb3_dapo.estimators import MAX_LOG_RATIO, Array, importance_ratios

# Truncation of the importance ratios that weight the value loss
MAX_VALUE_WEIGHT = 3.0

# Those members of a minibatch that the loss reads
SCALARS = ("behavior_log_prob", "old_log_prob", "old_values", "advantages", "returns", "future_divergence")

Stats = dict[str, th.Tensor]
PolicyOutputs = tuple[th.Tensor, th.Tensor, th.Tensor | None]
"""Values, log-probs and entropies; these are None if they have no closed form."""

Gradients = tuple[Array, Array, float]


class Visit(NamedTuple):
    """A minibatch without its observations and actions, and what the policy said of it, without a gradient."""

    samples: RolloutRingSamples
    values: th.Tensor
    log_prob: th.Tensor
    entropy: th.Tensor | None

    @classmethod
    def of(cls, samples: RolloutRingSamples, outputs: PolicyOutputs) -> "Visit":
        # Observations would take memory, and a compiled policy writes its outputs to the same place each time
        kept = samples._replace(observations={}, actions=samples.indices, inputs={})
        copies = (x.detach().clone() if x is not None and x.requires_grad else x for x in outputs)
        return cls(kept, *copies)  # type: ignore[arg-type]

    def update_kl(self) -> th.Tensor:
        """:return: the KL divergence from the policy that the update began with, a scalar"""
        return kl_terms(self.log_prob - self.samples.old_log_prob).mean()


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

    All numbers have the shape ``(B,)``, or ``(..., B)`` for several minibatches.

    :param samples: the minibatch
    :param values: V(s) of the policy being trained
    :param log_prob: log pi(a|s)
    :param entropy: entropy of pi(.|s), or None if it has no closed form: then minus log pi(a|s) stands for it
    :param settings: how to compute it
    :return: the loss, shape ``(...)``, and what :func:`summarize` makes the statistics of
    """
    advantages = normalize(samples.advantages, settings.normalize_advantage)
    ratio = importance_ratios(log_prob, samples.behavior_log_prob)

    # D is a constant for the gradient; its first term is that of the policy as it is now
    divergences = settings.divergence(log_prob.detach(), samples.behavior_log_prob) + samples.future_divergence
    divergence_loss = (ratio * divergences).mean(dim=-1)

    if settings.policy_loss == "clip_augmented":
        advantages = advantages - settings.divergence_coef * divergences
    if settings.policy_loss == "plain":
        policy_loss = -(advantages * ratio).mean(dim=-1)
    elif settings.policy_loss == "marwil":
        policy_loss = -(marwil_weights(advantages, settings.divergence_coef) * log_prob).mean(dim=-1)
    else:
        policy_loss = clipped_surrogate(samples, advantages, ratio, settings)

    if settings.clip_range_vf is not None:
        limit = settings.clip_range_vf
        values = samples.old_values + th.clamp(values - samples.old_values, -limit, limit)
    weights = ratio.detach().clamp(max=MAX_VALUE_WEIGHT) if settings.weights_values else 1.0
    value_loss = (weights * (samples.returns - values) ** 2).mean(dim=-1)
    if values.dim() == 1 and not settings.weights_values:
        value_loss = F.mse_loss(samples.returns, values)  # the same, and for PPO's special case to the last bit
    entropy_loss = -(-log_prob if entropy is None else entropy).mean(dim=-1)

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


def clipped_surrogate(
    samples: RolloutRingSamples, advantages: th.Tensor, ratio: th.Tensor, settings: LossSettings
) -> th.Tensor:
    """:return: PPO's loss of the policy, for a range around 1 or around the ratio that the update began with"""
    center: th.Tensor | float = 1.0
    if settings.clip_center == "old":
        center = importance_ratios(samples.old_log_prob, samples.behavior_log_prob)
    clipped = th.clamp(ratio, center - settings.clip_range, center + settings.clip_range)  # type: ignore[arg-type]
    return -th.min(advantages * ratio, advantages * clipped).mean(dim=-1)


def backward(
    samples: RolloutRingSamples,
    values: th.Tensor,
    log_prob: th.Tensor,
    entropy: th.Tensor | None,
    settings: LossSettings,
) -> None:
    """
    As ``dapo_loss(...)[0].backward()``, faster.

    :param samples: the minibatch
    :param values: V(s) of the policy being trained, shape ``(B,)``
    :param log_prob: log pi(a|s), shape ``(B,)``
    :param entropy: entropy of pi(.|s), shape ``(B,)``, or None if it has no closed form
    :param settings: how to compute the loss
    """
    of_values, of_log_prob, of_entropy = loss_gradient(samples, values, log_prob, settings)
    outputs, gradients = [values, log_prob], [of_values, of_log_prob]
    if entropy is None:
        of_log_prob -= of_entropy
    elif of_entropy != 0 and entropy.requires_grad:
        outputs.append(entropy)
        gradients.append(th.full_like(entropy, of_entropy))
    th.autograd.backward(outputs, gradients)


@th.no_grad()
def loss_gradient(samples: RolloutRingSamples, values: Array, log_prob: Array, settings: LossSettings) -> Gradients:
    """
    The gradient of :func:`dapo_loss` with respect to what a policy says of a minibatch. What it takes to record and
    to undo three dozen operations on B numbers is felt on small networks.

    :param samples: the minibatch
    :param values: as there, shape ``(B,)``; an array of NumPy or a tensor, as all else
    :param log_prob: as there, shape ``(B,)``
    :param settings: as there
    :return: with respect to the values ``(B,)`` and to the log-probs ``(B,)`` if entropies have a closed form, and to
        each of these entropies
    """
    is_torch, batch_size = isinstance(values, th.Tensor), len(values)
    xp: Any = th if is_torch else np
    tensors = (getattr(samples, name) for name in SCALARS)
    behavior_log_prob, old_log_prob, old_values, advantages, returns, future_divergence = (
        tensors if is_torch else (tensor.numpy() for tensor in tensors)
    )
    advantages = normalize(advantages, settings.normalize_advantage)
    log_ratio = log_prob - behavior_log_prob
    ratio = xp.exp(log_ratio.clip(-MAX_LOG_RATIO, MAX_LOG_RATIO))
    penalties: Array | float = 0.0
    if settings.divergence_coef > 0:
        f = settings.divergence(th.as_tensor(log_prob), samples.behavior_log_prob)
        penalties = ((f if is_torch else f.numpy()) + future_divergence) * settings.divergence_coef
        if settings.policy_loss == "clip_augmented":
            advantages, penalties = advantages - penalties, 0.0
    gains = advantages  # of the ratio
    if settings.policy_loss not in ("plain", "marwil"):
        center: Array | float = 1.0
        if settings.clip_center == "old":
            center = xp.exp((old_log_prob - behavior_log_prob).clip(-MAX_LOG_RATIO, MAX_LOG_RATIO))
        # Where the clipped surrogate is the smaller one it is flat
        gains = advantages * ((ratio - center) * xp.sign(advantages) <= settings.clip_range)
    of_log_prob = (penalties - gains) * ratio * (abs(log_ratio) <= MAX_LOG_RATIO) / batch_size
    if settings.policy_loss == "marwil":
        of_log_prob = marwil_weights(th.as_tensor(advantages), settings.divergence_coef) / -batch_size
        of_log_prob = of_log_prob if is_torch else of_log_prob.numpy()

    error = _value_error(values, returns, old_values, settings.clip_range_vf)
    if settings.weights_values:
        error = error * ratio.clip(None, MAX_VALUE_WEIGHT)
    return error * (2 * settings.vf_coef / batch_size), of_log_prob, -settings.ent_coef / batch_size


def _value_error(values: Array, returns: Array, old_values: Array, clip_range: float | None) -> Array:
    """:return: by how much values are too large, 0 where they cannot change any more"""
    if clip_range is None:
        return values - returns
    change = values - old_values
    return (old_values + change.clip(-clip_range, clip_range) - returns) * (abs(change) <= clip_range)


@th.no_grad()
def summarize(visits: list[Visit], settings: LossSettings) -> Stats:
    """
    :param visits: of the minibatches of an update
    :param settings: of the loss
    :return: means, under the names that they are logged by; scalars on the device
    """
    # All at once: on small networks a dozen tiny operations per minibatch would be felt. The last of an epoch may be
    # smaller
    sizes = dict.fromkeys(len(visit.values) for visit in visits)
    groups = ([visit for visit in visits if len(visit.values) == size] for size in sizes)
    all_stats = [dapo_loss(*_stacked(group), settings)[1] for group in groups]
    stats = {name: th.cat([stats[name].flatten() for stats in all_stats]) for name in all_stats[0]}
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
    return {name: values.nanmean() for name, values in stats.items()}


def _stacked(visits: list[Visit]) -> Visit:
    """:return: visits of minibatches of one size as one, whose numbers have the shape ``(len(visits), B)``"""

    def stack(items: list[Any]) -> Any:
        return None if items[0] is None else th.stack(items)

    samples = [visit.samples for visit in visits]
    numbers = {name: stack([getattr(x, name) for x in samples]) for name in SCALARS}
    outputs = {name: stack([getattr(x, name) for x in visits]) for name in ("values", "log_prob", "entropy")}
    return Visit(samples[0]._replace(**numbers), **outputs)


def kl_terms(log_ratio: th.Tensor) -> th.Tensor:
    """
    :param log_ratio: log p - log q, of samples of q
    :return: terms whose mean is unbiased for KL(q || p) (Schulman's k3)
    """
    return th.expm1(log_ratio) - log_ratio


def marwil_weights(advantages: th.Tensor, divergence_coef: float) -> th.Tensor:
    """
    :param advantages: of a minibatch, or of several, shape ``(..., B)``
    :param divergence_coef: 1/eta; a schedule of it may end at 0
    :return: ``exp(eta A)``, divided by its mean, as its scale would act like one of the learning rate
    """
    return th.softmax(advantages / max(divergence_coef, 1e-8), dim=-1) * advantages.shape[-1]


def normalize(advantages: Array, how: bool | Literal["rms"]) -> Array:
    """
    :param advantages: of a minibatch, or of several, shape ``(..., B)``
    :param how: True for mean 0 and standard deviation 1, "rms" for a root mean square of 1, False for as they are
    :return: the advantages, normalized
    """
    # A minibatch of one has no standard deviation
    if not how or advantages.shape[-1] == 1:
        return advantages
    if isinstance(advantages, np.ndarray):
        n = len(advantages)
        centered = advantages if how == "rms" else advantages - advantages.sum() / n
        return centered / (math.sqrt(centered @ centered / (n if how == "rms" else n - 1)) + 1e-8)
    if how == "rms":
        return advantages / (advantages.square().mean(dim=-1, keepdim=True).sqrt() + 1e-8)
    return (advantages - advantages.mean(dim=-1, keepdim=True)) / (advantages.std(dim=-1, keepdim=True) + 1e-8)
