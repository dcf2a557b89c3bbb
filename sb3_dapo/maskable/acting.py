"""The masks of environments, and what asks for them."""

from typing import Any

import numpy as np
from gymnasium import spaces
from sb3_contrib.common.maskable.utils import get_action_masks
from stable_baselines3.common.type_aliases import PyTorchObs
from stable_baselines3.common.vec_env import VecEnv

from sb3_dapo.acting import ActingPolicy, PolicyOutput
from sb3_dapo.maskable.distributions import lean_distribution


def choice_sizes(space: Any) -> list[int]:
    """:return: number of alternatives of each of the choices that an action consists of"""
    if isinstance(space, spaces.MultiDiscrete):
        return space.nvec.tolist()
    return [2] * int(space.n) if isinstance(space, spaces.MultiBinary) else [int(space.n)]  # type: ignore[arg-type]


def check_masks(masks: np.ndarray, sizes: list[int], where: str = "") -> np.ndarray:
    """
    :param masks: what environments allow, ``(N, ...)``
    :param sizes: of the choices
    :param where: when that was, for messages
    :return: the same as bool, ``(N, sum(sizes))``
    :raises ValueError: if the shape does not fit, or a choice is left without an alternative
    """
    if masks.size != len(masks) * sum(sizes):
        raise ValueError(f"`action_masks` must have {sum(sizes)} elements per environment, got the shape {masks.shape}")
    allowed = masks.reshape(len(masks), -1).astype(bool)
    has_any = np.logical_or.reduceat(allowed, np.cumsum([0, *sizes[:-1]]), axis=1)
    if not has_any.all():
        env, choice = np.argwhere(~has_any)[0]
        part = f" for part {choice} of the action" if len(sizes) > 1 else ""
        raise ValueError(f"`action_masks` must allow something, got nothing{part} in environment {env}{where}")
    return allowed


class MaskingPolicy(ActingPolicy):
    """
    Asks the environments for their masks, gives them to the policy, and records them.

    :param args: as of ``ActingPolicy``
    :param use_masking: False: everything is allowed
    :param is_lean: compute the distribution of actions in its lean form
    """

    def __init__(self, *args: Any, use_masking: bool, is_lean: bool) -> None:
        super().__init__(*args)
        self.use_masking, self.is_lean = use_masking, is_lean
        self.sizes = choice_sizes(self.env.action_space)
        self.all_allowed = np.ones((self.env.num_envs, sum(self.sizes)), dtype=bool)

    def __call__(self, observations: PyTorchObs) -> PolicyOutput:
        masks = None
        if self.use_masking:
            where = f" at step {self.recorder.pos} of the rollout"
            masks = check_masks(get_action_masks(self.env), self.sizes, where)
        self.recorder.record_inputs(action_masks=self.all_allowed if masks is None else masks)
        policy: Any = self.policy
        with lean_distribution(policy, self.sizes, self.is_lean):
            return policy(observations, action_masks=masks)


class MaskingPredictor:
    """A model that plays in some environments, and asks them for masks. For all but that, it is the model."""

    def __init__(self, model: Any, env: VecEnv) -> None:
        self.model, self.env = model, env

    def __reduce__(self) -> tuple[Any, ...]:  # else a copy would be asked for attributes before it has a model
        return MaskingPredictor, (self.model, self.env)

    def predict(self, *args: Any, **kwargs: Any) -> Any:
        """As the model's, without masks."""
        return self.model.predict(*args, **kwargs, action_masks=get_action_masks(self.env))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)
