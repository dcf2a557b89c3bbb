"""The masks of environments, and who asks for them while a rollout is collected."""

import numpy as np
import torch as th
from gymnasium import spaces
from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy
from sb3_contrib.common.maskable.utils import get_action_masks
from stable_baselines3.common.type_aliases import PyTorchObs
from stable_baselines3.common.vec_env import VecEnv

from sb3_dapo.acting import ActingPolicy, PolicyOutput
from sb3_dapo.buffers import RolloutRecorder
from sb3_dapo.maskable.distributions import lean_distribution


def choice_sizes(action_space: spaces.Space) -> list[int]:
    """
    :param action_space: Discrete, MultiDiscrete or MultiBinary
    :return: number of alternatives of each choice that an action consists of
    """
    if isinstance(action_space, spaces.MultiDiscrete):
        return action_space.nvec.tolist()
    return [2] * int(action_space.n) if isinstance(action_space, spaces.MultiBinary) else [int(action_space.n)]  # type: ignore[attr-defined]


def check_masks(masks: np.ndarray, sizes: list[int], where: str = "") -> np.ndarray:
    """
    :param masks: what environments allow, ``(N, ...)``
    :param sizes: alternatives of each choice
    :param where: when that was, for messages
    :return: the same as bool ``(N, sum(sizes))``
    :raises ValueError: if the shape does not fit, or a choice is left without an alternative
    """
    if masks.size != len(masks) * sum(sizes):
        raise ValueError(f"`action_masks` must have {sum(sizes)} elements per environment, got the shape {masks.shape}")
    allowed = masks.reshape(len(masks), -1).astype(bool)
    has_any = np.logical_or.reduceat(allowed, np.cumsum([0, *sizes[:-1]]), axis=1)
    if not has_any.all():
        env, choice = np.argwhere(~has_any)[0]
        part = f" for part {choice} of the action" if len(sizes) > 1 else ""
        raise ValueError(f"`action_masks` allow nothing{part} in environment {env}{where}")
    return allowed


class MaskingPolicy(ActingPolicy):
    """
    Asks the environments for their masks, gives them to the policy and records them.

    :param policy: the policy
    :param env: the environments
    :param recorder: records the rollout
    :param use_masking: ask for masks; else everything is allowed
    :param is_lean: compute the distribution of actions in its lean form
    """

    policy: MaskableActorCriticPolicy  # type: ignore[assignment]

    def __init__(
        self,
        policy: MaskableActorCriticPolicy,
        env: VecEnv,
        recorder: RolloutRecorder,
        *,
        use_masking: bool,
        is_lean: bool,
    ) -> None:
        super().__init__(policy, env, recorder)  # type: ignore[arg-type]
        self.use_masking = use_masking
        self.is_lean = is_lean
        self.sizes = choice_sizes(env.action_space)

    def __call__(self, observations: PyTorchObs) -> PolicyOutput:
        masks = None
        if self.use_masking:
            where = f" at step {self.recorder.pos} of the rollout"
            masks = check_masks(get_action_masks(self.env), self.sizes, where)
        all_allowed = np.ones((self.env.num_envs, sum(self.sizes)), dtype=bool)
        self.recorder.record_inputs(action_masks=all_allowed if masks is None else masks)
        with lean_distribution(self.policy, self.sizes, self.is_lean):
            return self.policy(observations, action_masks=masks)
