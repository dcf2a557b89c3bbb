"""
SB3's distributions without the checks and conversions that those of PyTorch make at every step. On small networks they
take longer than the network.
"""

import math

import torch as th
from stable_baselines3.common.distributions import CategoricalDistribution, DiagGaussianDistribution, Distribution
from stable_baselines3.common.policies import ActorCriticPolicy
from torch.distributions import Categorical, Normal
from torch.nn import functional as F

HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)


class LeanGaussian(DiagGaussianDistribution):
    """The function of SB3's ``DiagGaussianDistribution``, within float tolerance."""

    def proba_distribution(self, mean_actions: th.Tensor, log_std: th.Tensor) -> "LeanGaussian":
        self.mean_actions, self.log_std = mean_actions, log_std
        return self

    @property
    def distribution(self) -> Normal:  # type: ignore[override]
        """PyTorch's."""
        return Normal(self.mean_actions, th.ones_like(self.mean_actions) * self.log_std.exp())

    def log_prob(self, actions: th.Tensor) -> th.Tensor:
        z = (actions - self.mean_actions) * th.exp(-self.log_std)
        constant = self.log_std.sum(dim=-1) + self.action_dim * HALF_LOG_2PI
        return -0.5 * z.square().sum(dim=-1) - constant

    def entropy(self) -> th.Tensor:
        return (self.log_std.sum(dim=-1) + self.action_dim * (0.5 + HALF_LOG_2PI)).expand(len(self.mean_actions))

    def sample(self) -> th.Tensor:
        actions = self.mean_actions + th.randn_like(self.mean_actions) * self.log_std.exp()
        if not actions.isfinite().all():
            raise ValueError("actions that the policy samples are nan or infinite")
        return actions

    def mode(self) -> th.Tensor:
        return self.mean_actions


class LeanCategorical(CategoricalDistribution):
    """The function of SB3's ``CategoricalDistribution``, within float tolerance."""

    def proba_distribution(self, action_logits: th.Tensor) -> "LeanCategorical":
        self.log_probs = F.log_softmax(action_logits, dim=-1)
        return self

    @property
    def distribution(self) -> Categorical:  # type: ignore[override]
        """PyTorch's."""
        return Categorical(logits=self.log_probs)

    def log_prob(self, actions: th.Tensor) -> th.Tensor:
        return self.log_probs.gather(-1, actions.long().view(-1, 1)).squeeze(-1)

    def entropy(self) -> th.Tensor:
        # What is impossible adds nothing
        log_probs = self.log_probs.clamp(min=th.finfo(self.log_probs.dtype).min)
        return -(log_probs * log_probs.exp()).sum(dim=-1)

    def sample(self) -> th.Tensor:
        return th.multinomial(self.log_probs.exp(), 1).squeeze(-1)

    def mode(self) -> th.Tensor:
        return self.log_probs.argmax(dim=-1)


LEAN: dict[type[Distribution], type[Distribution]] = {
    DiagGaussianDistribution: LeanGaussian,
    CategoricalDistribution: LeanCategorical,
}
PLAIN = {lean: plain for plain, lean in LEAN.items()}


def is_lean(policy: ActorCriticPolicy) -> bool:
    """:return: whether a policy has a lean distribution"""
    return type(getattr(policy, "action_dist", None)) in PLAIN


def set_lean(policy: ActorCriticPolicy, lean: bool) -> None:
    """
    :param policy: a policy, which may have a distribution of its own: that stays
    :param lean: whether to exchange SB3's distribution for a lean one, or back
    """
    dist = getattr(policy, "action_dist", None)
    other = (LEAN if lean else PLAIN).get(type(dist))  # type: ignore[arg-type]
    if isinstance(dist, DiagGaussianDistribution | CategoricalDistribution) and other is not None:
        policy.action_dist = other(dist.action_dim)  # type: ignore[call-arg]
