"""DAPO with action masks."""

from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch as th
from gymnasium import spaces
from sb3_contrib.common.maskable.callbacks import MaskableEvalCallback
from sb3_contrib.common.maskable.distributions import MaskableCategoricalDistribution
from sb3_contrib.common.maskable.policies import (
    MaskableActorCriticCnnPolicy,
    MaskableActorCriticPolicy,
    MaskableMultiInputActorCriticPolicy,
)
from sb3_contrib.common.maskable.utils import is_masking_supported
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import MaybeCallback
from stable_baselines3.common.vec_env import VecEnv

from sb3_dapo.arguments import check
from sb3_dapo.buffers import RolloutRingSamples
from sb3_dapo.checkpoint.states import walk_callbacks
from sb3_dapo.dapo import DAPO
from sb3_dapo.fused import FusedPolicy
from sb3_dapo.maskable.acting import MaskingPolicy, MaskingPredictor, check_masks, choice_sizes
from sb3_dapo.maskable.distributions import lean_distribution
from sb3_dapo.policies import FastCnn

SelfMaskableDAPO = TypeVar("SelfMaskableDAPO", bound="MaskableDAPO")


class MaskableCnnPolicy(FastCnn, MaskableActorCriticCnnPolicy):
    """sb3-contrib's ``MaskableActorCriticCnnPolicy`` with the speed of :class:`~sb3_dapo.policies.CnnPolicy`."""


class PolicyWithoutSDE(OnPolicyAlgorithm):
    """Comes right before ``OnPolicyAlgorithm``, which tells every policy whether to use gSDE: these do not know it."""

    def _setup_model(self) -> None:
        policy_class: Any = self.policy_class
        self.policy_class = lambda *args, use_sde, **kwargs: policy_class(*args, **kwargs)  # type: ignore[assignment]
        try:
            super()._setup_model()
        finally:
            self.policy_class = policy_class


class MaskableDAPO(DAPO, PolicyWithoutSDE):
    """
    DAPO for environments in which not everything is allowed in every state, with the policies of sb3-contrib's
    ``MaskablePPO``. Ratios, divergences and entropies are those of the distribution over what is allowed. Environments
    tell it by a method ``action_masks``, their own or that of sb3-contrib's ``ActionMasker``.

    Arguments as in :class:`~sb3_dapo.DAPO`, but without gSDE and ``overlap``. Actions are Discrete, MultiDiscrete or
    MultiBinary. With ``divergence_coef=0``, ``n_rollouts=1`` and ``advantage="gae"`` this is
    ``MaskablePPO``, bit for bit.

    :raises ValueError: if an argument is out of its range, or the action space is another
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpPolicy": MaskableActorCriticPolicy,
        "CnnPolicy": MaskableCnnPolicy,
        "MultiInputPolicy": MaskableMultiInputActorCriticPolicy,
    }
    extras = ("contrib",)
    _use_masking = True

    def _check_arguments(self) -> None:
        super()._check_arguments()
        is_allowed = isinstance(self.action_space, spaces.Discrete | spaces.MultiDiscrete | spaces.MultiBinary)
        check("action_space", self.action_space, is_allowed, "Discrete, MultiDiscrete or MultiBinary")
        is_maskable = issubclass(self.policy_class, MaskableActorCriticPolicy)
        check("policy", self.policy_class, is_maskable, "a subclass of sb3_contrib's MaskableActorCriticPolicy")

    @property
    def acting_policy_class(self) -> Callable[..., MaskingPolicy]:  # type: ignore[override]
        """Makes what stands for the policy while a rollout is collected."""
        return partial(MaskingPolicy, use_masking=self._use_masking, is_lean=self._is_fast())

    def _suits_fusing(self) -> bool:
        bases = (MaskableActorCriticPolicy, MaskableCnnPolicy)
        is_own = type(self)._evaluate is not MaskableDAPO._evaluate
        return not is_own and FusedPolicy.suits(self.policy, bases, [MaskableCategoricalDistribution])

    def _evaluate(self, samples: RolloutRingSamples) -> tuple[th.Tensor, th.Tensor, th.Tensor | None]:
        policy: Any = self.policy
        with lean_distribution(policy, choice_sizes(self.action_space), self._is_fast()):
            return super()._evaluate(samples)

    def _init_callback(self, callback: MaybeCallback, progress_bar: bool = False) -> BaseCallback:
        initialized = super()._init_callback(callback, progress_bar)
        for _, part, _ in walk_callbacks(initialized) if self._use_masking else ():
            # SB3's would evaluate without masks
            if isinstance(part, EvalCallback) and not isinstance(part, MaskableEvalCallback):
                part.model = self.predictor_for(part.eval_env)
        return initialized

    def learn(  # type: ignore[override]
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
        Parameters as in SB3, and

        :param use_masking: ask the environments for masks; else everything is allowed
        :raises ValueError: if the environments have none, or allow nothing at all in some state
        """
        has_masks = self.env is not None and is_masking_supported(self.env)
        reason = f"False for environments without a method `action_masks` ({self.env}); ActionMasker gives them one"
        check("use_masking", use_masking, has_masks or not use_masking, reason)
        self._use_masking = use_masking
        return super().learn(total_timesteps, callback, log_interval, tb_log_name, reset_num_timesteps, progress_bar)

    def predict(
        self,
        observation: np.ndarray | dict[str, np.ndarray],
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
        action_masks: np.ndarray | None = None,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        """
        Parameters as in SB3, and

        :param action_masks: what is allowed, a row for each observation; ``None``: everything
        :raises ValueError: if it has another shape, or allows nothing
        """
        policy: Any = self.policy
        if action_masks is not None:
            action_masks = check_masks(np.atleast_2d(action_masks), choice_sizes(self.action_space))
        return policy.predict(observation, state, episode_start, deterministic, action_masks)

    def predictor_for(self, env: VecEnv) -> Any:
        return MaskingPredictor(self, env) if is_masking_supported(env) else self
