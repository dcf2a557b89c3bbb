"""DAPO with action masks."""

from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch as th
from gymnasium import spaces
from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy, MaskableMultiInputActorCriticPolicy
from sb3_contrib.common.maskable.utils import get_action_masks, is_masking_supported
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import MaybeCallback, PolicyPredictor
from stable_baselines3.common.vec_env import VecEnv

from sb3_dapo.arguments import check
from sb3_dapo.buffers import RolloutRingSamples
from sb3_dapo.dapo import DAPO
from sb3_dapo.maskable.distributions import lean_distribution
from sb3_dapo.maskable.masks import MaskingPolicy, check_masks, choice_sizes
from sb3_dapo.maskable.policies import MaskableCnnPolicy

SelfMaskableDAPO = TypeVar("SelfMaskableDAPO", bound="MaskableDAPO")


class PolicyWithoutSDE(OnPolicyAlgorithm):
    """Comes last before ``OnPolicyAlgorithm``, which tells every policy whether to use gSDE: contrib's don't know it."""

    def _setup_model(self) -> None:
        policy_class: Any = self.policy_class
        self.policy_class = lambda *args, use_sde, **kwargs: policy_class(*args, **kwargs)  # type: ignore[assignment]
        self.policy_class.__name__ = policy_class.__name__
        try:
            super()._setup_model()
        finally:
            self.policy_class = policy_class


class MaskableDAPO(DAPO, PolicyWithoutSDE):
    """
    DAPO for environments in which not every action is allowed in every state, with the policies of sb3-contrib's
    ``MaskablePPO``. Ratios, divergences and entropies are of the distribution over the allowed actions. Environments
    say what is allowed by a method ``action_masks``, their own or that of sb3-contrib's ``ActionMasker``.

    Arguments as in :class:`~sb3_dapo.DAPO`, except that ``use_sde`` and ``overlap`` must be False. Actions are Discrete,
    MultiDiscrete or MultiBinary. With ``divergence_coef=0``, ``n_rollouts=1`` and ``advantage="gae"`` this is
    ``MaskablePPO``, bit for bit.

    :raises ValueError: if an argument is out of its range
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpPolicy": MaskableActorCriticPolicy,
        "CnnPolicy": MaskableCnnPolicy,
        "MultiInputPolicy": MaskableMultiInputActorCriticPolicy,
    }

    policy: MaskableActorCriticPolicy  # type: ignore[assignment]
    _use_masking = True

    def _check_arguments(self) -> None:
        super()._check_arguments()
        allowed = (spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)
        is_allowed = isinstance(self.action_space, allowed)
        check("action_space", self.action_space, is_allowed, "Discrete, MultiDiscrete or MultiBinary")
        is_maskable = issubclass(self.policy_class, MaskableActorCriticPolicy)
        check("policy", self.policy_class, is_maskable, "a subclass of sb3_contrib's MaskableActorCriticPolicy")
        check("use_sde", self.use_sde, not self.use_sde, "False: gSDE is for continuous actions")
        check("overlap", self.overlap, not self.overlap, "False: masks are those of all environments at once")

    @property
    def acting_policy_class(self) -> Callable[..., MaskingPolicy]:  # type: ignore[override]
        """What stands for the policy while a rollout is collected."""
        return partial(MaskingPolicy, use_masking=self._use_masking, is_lean=self._is_fast())

    def _evaluate(self, samples: RolloutRingSamples) -> tuple[th.Tensor, th.Tensor, th.Tensor | None]:
        with lean_distribution(self.policy, choice_sizes(self.action_space), self._is_fast()):
            return super()._evaluate(samples)

    def learn(
        self: SelfMaskableDAPO,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 1,
        tb_log_name: str | None = None,
        reset_num_timesteps: bool = True,
        use_masking: bool = True,
        progress_bar: bool = False,
    ) -> SelfMaskableDAPO:
        """
        As in SB3, with one parameter more.

        :param use_masking: ask the environments for masks; otherwise every action is allowed
        :raises ValueError: if the environments have no masks, or allow nothing at all in some state
        """
        has_masks = self.env is not None and is_masking_supported(self.env)
        reason = f"False, as the environments have no method `action_masks` ({self.env}): see ActionMasker"
        check("use_masking", use_masking, has_masks or not use_masking, reason)
        self._use_masking = use_masking
        return super().learn(total_timesteps, callback, log_interval, tb_log_name, reset_num_timesteps, progress_bar)

    def predict(  # type: ignore[override]
        self,
        observation: np.ndarray | dict[str, np.ndarray],
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
        action_masks: np.ndarray | None = None,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        """
        As in SB3, with one parameter more.

        :param action_masks: what is allowed: bool, one row for each observation; ``None``: everything
        :raises ValueError: if that has another shape, or nothing is allowed
        """
        if action_masks is not None:
            sizes = choice_sizes(self.action_space)
            action_masks = check_masks(np.reshape(action_masks, (-1, sum(sizes))), sizes)
        return self.policy.predict(observation, state, episode_start, deterministic, action_masks)
