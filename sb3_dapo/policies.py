"""Policies: those of SB3's PPO, of which the one for images can compute in a faster form."""

import numpy as np
import torch as th
from stable_baselines3.common.policies import (
    ActorCriticCnnPolicy,
    ActorCriticPolicy,
    BasePolicy,
    MultiInputActorCriticPolicy,
)
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, NatureCNN
from stable_baselines3.common.type_aliases import PyTorchObs

from sb3_dapo.fast import blocks_to_channels, fast_nature_cnn, set_fast

__all__ = ["CnnPolicy", "FastCnn", "MlpPolicy", "MultiInputPolicy", "blocks_to_channels", "fast_nature_cnn", "set_fast"]

MlpPolicy = ActorCriticPolicy
MultiInputPolicy = MultiInputActorCriticPolicy


class FastCnn(BasePolicy):
    """
    A policy for images that can compute in a faster form. For acting in training and for the loss, a shared
    ``NatureCNN`` is computed by :func:`~sb3_dapo.fast.fast_nature_cnn` while ``fast`` is set, and features in bfloat16
    while ``autocast`` is set; ``predict`` and ``predict_values`` are always SB3's. Models are the same either way.
    """

    fast = False
    autocast = False

    def extract_features(  # type: ignore[override]
        self, obs: PyTorchObs, features_extractor: BaseFeaturesExtractor | None = None
    ) -> th.Tensor | tuple[th.Tensor, th.Tensor]:
        if not self.autocast:
            return self._extract_features(obs, features_extractor)
        with th.autocast(self.device.type, th.bfloat16):
            features = self._extract_features(obs, features_extractor)
        return features.float() if isinstance(features, th.Tensor) else (features[0].float(), features[1].float())

    def parameters_to_vector(self) -> np.ndarray:
        # PyTorch's form wants channels first in memory
        return th.cat([parameter.detach().flatten() for parameter in self.parameters()]).cpu().numpy()

    def _extract_features(
        self, obs: PyTorchObs, features_extractor: BaseFeaturesExtractor | None
    ) -> th.Tensor | tuple[th.Tensor, th.Tensor]:
        extractor = self.features_extractor if features_extractor is None else features_extractor
        if (
            self.fast
            and self.normalize_images
            and self.share_features_extractor
            and type(extractor) is NatureCNN
            and isinstance(obs, th.Tensor)
            and obs.dtype == th.uint8
        ):
            return fast_nature_cnn(extractor, obs)
        return super().extract_features(obs, features_extractor)  # type: ignore[arg-type]


class CnnPolicy(FastCnn, ActorCriticCnnPolicy):
    """SB3's ``CnnPolicy``, parameters as there, in the faster form of :class:`FastCnn`. Models are interchangeable."""
