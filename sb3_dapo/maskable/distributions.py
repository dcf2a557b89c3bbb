"""Categorical distributions over the allowed actions, without the checks of PyTorch's."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

import torch as th
from sb3_contrib.common.maskable.distributions import (
    MaskableBernoulliDistribution,
    MaskableCategoricalDistribution,
    MaskableMultiCategoricalDistribution,
    MaybeMasks,
)
from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy
from torch.nn import functional as F

MASKED_LOGIT = -1e8  # contrib's
CONTRIB = (MaskableCategoricalDistribution, MaskableMultiCategoricalDistribution, MaskableBernoulliDistribution)


class LeanDistribution(MaskableMultiCategoricalDistribution):
    """
    The function of contrib's distributions within float tolerance, for all choices of an action at once, and for each
    mask normalized once.

    :param action_dims: alternatives of each choice
    """

    logits: th.Tensor
    """``(B, sum(action_dims))``"""
    _log_probs: th.Tensor | None

    def proba_distribution(self, action_logits: th.Tensor) -> "LeanDistribution":
        self.logits, self._log_probs = action_logits, None
        return self

    def apply_masking(self, masks: MaybeMasks) -> None:
        if masks is not None:
            allowed = th.as_tensor(masks, dtype=th.bool, device=self.logits.device).view(self.logits.shape)
            self.logits, self._log_probs = th.where(allowed, self.logits, MASKED_LOGIT), None

    def log_probs(self) -> th.Tensor:
        """:return: of all alternatives, ``(B, number of choices, largest number of alternatives)``"""
        if self._log_probs is None:
            logits, n_choices = self.logits, len(self.action_dims)
            if len(set(self.action_dims)) > 1:
                logits = F.pad(logits, (0, 1), value=MASKED_LOGIT)[:, _padded_columns(tuple(self.action_dims))]
            self._log_probs = F.log_softmax(logits.view(len(logits), n_choices, -1), dim=-1)
        return self._log_probs

    def log_prob(self, actions: th.Tensor) -> th.Tensor:
        chosen = actions.long().view(-1, len(self.action_dims), 1)
        return self.log_probs().gather(2, chosen).sum(dim=(1, 2))

    def entropy(self) -> th.Tensor:
        log_probs = self.log_probs()
        return -(log_probs.exp() * log_probs).sum(dim=(1, 2))

    def sample(self) -> th.Tensor:
        probs = self.log_probs().exp()
        return th.multinomial(probs.flatten(0, 1), 1).view(-1, len(self.action_dims))

    def mode(self) -> th.Tensor:
        return self.log_probs().argmax(dim=2)


@lru_cache
def _padded_columns(sizes: tuple[int, ...]) -> th.Tensor:
    """:return: for each choice the columns of its logits, ``(number of choices, largest size)``; the last is padding"""
    columns = th.arange(sum(sizes)).split(sizes)
    return th.nn.utils.rnn.pad_sequence(list(columns), batch_first=True, padding_value=sum(sizes))


@contextmanager
def lean_distribution(policy: MaskableActorCriticPolicy, sizes: list[int], is_lean: bool) -> Iterator[None]:
    """
    :param policy: a policy, which has contrib's distribution except in this context
    :param sizes: alternatives of each choice of an action
    :param is_lean: whether to have the lean form, if the policy has no distribution of its own
    """
    contrib = policy.action_dist
    if is_lean and type(contrib) in CONTRIB:
        policy.action_dist = LeanDistribution(sizes)
    try:
        yield
    finally:
        policy.action_dist = contrib
