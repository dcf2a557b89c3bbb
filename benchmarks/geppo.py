"""What GePPO (Queeney et al. 2021, https://arxiv.org/abs/2111.00072) has besides the arguments of ``DAPO``."""

import torch as th
from stable_baselines3.common.callbacks import BaseCallback

from sb3_dapo.buffers import RolloutRing


class AdaptiveLearningRate(BaseCallback):
    """
    GePPO's rule for the learning rate: after an update that has moved the policy by more than half the clip range in
    total variation, it falls. The ring's latest log-probs tell how far that is, so that it costs no forward pass: they
    are those of each transition's last visit, a few minibatches before the end.

    :param factor: the learning rate is divided by ``1 + factor``
    """

    def __init__(self, factor: float = 0.03) -> None:
        super().__init__()
        self.factor = factor

    def _on_rollout_start(self) -> None:
        if self.model._n_updates == 0:
            return
        ring = self.model.rollout_buffer  # type: ignore[attr-defined]
        assert isinstance(ring, RolloutRing)
        limit = 0.5 * self.model.clip_range(self.model._current_progress_remaining)  # type: ignore[attr-defined]
        if total_variation(ring) > limit:
            learning_rate = self.model.policy.optimizer.param_groups[0]["lr"] / (1 + self.factor)
            self.model.lr_schedule = lambda _: learning_rate

    def _on_step(self) -> bool:
        return True


def total_variation(ring: RolloutRing) -> float:
    """
    :param ring: after an update
    :return: total variation between the policy before the update and the one after it, estimated with what is kept
    """
    before, after, behavior = (
        kept[: ring.n_kept] for kept in (ring.old_log_probs, ring.latest_log_probs, ring.behavior_log_probs)
    )
    return 0.5 * (th.exp(after - behavior) - th.exp(before - behavior)).abs().mean().item()
