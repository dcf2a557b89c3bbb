"""Categorical distributions over what is allowed, without the checks of PyTorch's."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

import torch as th
from sb3_contrib.common.maskable import distributions as contrib
from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy
from torch.nn import functional as F

MASKED_LOGIT = -1e8  # contrib's
CONTRIBS = {
    contrib.MaskableCategoricalDistribution,
    contrib.MaskableMultiCategoricalDistribution,
    contrib.MaskableBernoulliDistribution,
}


class LeanDistribution(contrib.MaskableMultiCategoricalDistribution):
    """
    The function of contrib's within float tolerance, for all choices of an action at once.

    :param action_dims: number of alternatives of each choice
    """

    logits: th.Tensor  # (B, sum(action_dims))
    _log_probs: th.Tensor | None

    def __init__(self, action_dims: list[int]) -> None:
        super().__init__(action_dims)
        # Here, where torch.compile does not look
        self.columns = _padded_columns(tuple(action_dims)) if len(set(action_dims)) > 1 else None

    def proba_distribution(self, action_logits: th.Tensor) -> "LeanDistribution":
        self.logits, self._log_probs = action_logits, None
        return self

    def apply_masking(self, masks: contrib.MaybeMasks) -> None:
        if masks is not None:
            allowed = th.as_tensor(masks, dtype=th.bool, device=self.logits.device).view(self.logits.shape)
            self.logits, self._log_probs = th.where(allowed, self.logits, MASKED_LOGIT), None

    def log_probs(self) -> th.Tensor:
        """:return: of all alternatives, ``(B, number of choices, largest number of alternatives)``"""
        if self._log_probs is None:
            logits = self.logits
            if self.columns is not None:
                logits = F.pad(logits, (0, 1), value=MASKED_LOGIT)[:, self.columns]
            self._log_probs = F.log_softmax(logits.view(len(logits), len(self.action_dims), -1), dim=-1)
        return self._log_probs

    def log_prob(self, actions: th.Tensor) -> th.Tensor:
        return self.log_probs().gather(2, actions.long().view(-1, len(self.action_dims), 1)).sum(dim=(1, 2))

    def entropy(self) -> th.Tensor:
        return -(self.log_probs().exp() * self.log_probs()).sum(dim=(1, 2))

    def sample(self) -> th.Tensor:
        return th.multinomial(self.log_probs().exp().flatten(0, 1), 1).view(-1, len(self.action_dims))

    def mode(self) -> th.Tensor:
        return self.log_probs().argmax(dim=2)


@lru_cache
def _padded_columns(sizes: tuple[int, ...]) -> th.Tensor:
    """:return: columns of the logits of each choice, ``(number of choices, largest size)``; the last is padding"""
    columns = list(th.arange(sum(sizes)).split(sizes))
    return th.nn.utils.rnn.pad_sequence(columns, batch_first=True, padding_value=sum(sizes))


@contextmanager
def lean_distribution(policy: MaskableActorCriticPolicy, sizes: list[int], is_lean: bool) -> Iterator[None]:
    """Context in which a policy has the lean distribution, if ``is_lean`` and it has none of its own."""
    own = policy.action_dist
    if is_lean and type(own) in CONTRIBS:
        policy.action_dist = LeanDistribution(sizes)
    try:
        yield
    finally:
        policy.action_dist = own
