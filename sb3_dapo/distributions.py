"""
SB3's distributions without the checks and conversions that those of PyTorch make at every step. On small networks they
take longer than the network.
"""

import math

import numpy as np
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
        return self.mean_actions + th.randn_like(self.mean_actions) * self.log_std.exp()

    @staticmethod
    def sample_numpy(mean_actions: np.ndarray, log_std: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """:return: actions and their log-probs"""
        noise = th.randn(mean_actions.shape, dtype=th.get_default_dtype()).numpy()
        constant = log_std.sum() + log_std.size * HALF_LOG_2PI
        return mean_actions + noise * np.exp(log_std), -0.5 * (noise * noise).sum(axis=1) - constant

    def backward(
        self, actions: th.Tensor, of_log_prob: th.Tensor, of_entropy: float
    ) -> tuple[th.Tensor, th.Tensor | None]:
        """
        :param actions: shape ``(B, action_dim)``
        :param of_log_prob: a gradient with respect to their log-probs, shape ``(B,)``
        :param of_entropy: and to each of the entropies
        :return: the gradient with respect to the means, shape ``(B, action_dim)``, and to ``log_std``
        """
        inverse = th.exp(-self.log_std)
        z = (actions - self.mean_actions) * inverse
        of_z = of_log_prob[:, None] * z
        of_log_std = (of_z * z).sum(dim=0) - of_log_prob.sum() + of_entropy * len(actions)
        return of_z * inverse, of_log_std

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

    @staticmethod
    def sample_numpy(action_logits: np.ndarray, log_std: None) -> tuple[np.ndarray, np.ndarray]:
        """:return: actions and their log-probs"""
        logits = action_logits - action_logits.max(axis=1, keepdims=True)
        sums = np.exp(logits).cumsum(axis=1)
        total = sums[:, -1:]
        # The first whose cumulated probability is above a uniform number
        actions = (sums <= th.rand(total.shape, dtype=th.get_default_dtype()).numpy() * total).sum(axis=1)
        return actions, logits[np.arange(len(logits)), actions] - np.log(total[:, 0])

    def backward(
        self, actions: th.Tensor, of_log_prob: th.Tensor, of_entropy: float
    ) -> tuple[th.Tensor, th.Tensor | None]:
        """
        :param actions: shape ``(B,)``
        :param of_log_prob: a gradient with respect to their log-probs, shape ``(B,)``
        :param of_entropy: and to each of the entropies
        :return: the gradient with respect to the logits, shape ``(B, n)``, and None
        """
        probs = self.log_probs.exp()
        of_logits = probs * -of_log_prob[:, None]
        of_logits.scatter_add_(1, actions.long().view(-1, 1), of_log_prob[:, None])
        if of_entropy != 0:
            of_logits -= of_entropy * probs * (self.log_probs + self.entropy()[:, None])
        return of_logits, None

    def mode(self) -> th.Tensor:
        return self.log_probs.argmax(dim=-1)


LEAN: dict[type[Distribution], type[Distribution]] = {
    DiagGaussianDistribution: LeanGaussian,
    CategoricalDistribution: LeanCategorical,
}
PLAIN = {lean: plain for plain, lean in LEAN.items()}


def set_lean(policy: ActorCriticPolicy, lean: bool) -> None:
    """
    :param policy: a policy, which may have a distribution of its own: that stays
    :param lean: whether to exchange SB3's distribution for a lean one, or back
    """
    dist = getattr(policy, "action_dist", None)
    other = (LEAN if lean else PLAIN).get(type(dist))  # type: ignore[arg-type]
    if isinstance(dist, DiagGaussianDistribution | CategoricalDistribution) and other is not None:
        policy.action_dist = other(dist.action_dim)  # type: ignore[call-arg]
