"""Policies of DAPO: those of SB3's PPO, with a faster way to compute the Nature CNN."""

from typing import Any

import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticCnnPolicy, ActorCriticPolicy, MultiInputActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, NatureCNN
from stable_baselines3.common.type_aliases import PyTorchObs
from torch.nn import functional as F

MlpPolicy = ActorCriticPolicy
MultiInputPolicy = MultiInputActorCriticPolicy

# Size and stride of the first convolution of the Nature CNN: its kernel covers 2 x 2 blocks of 4 x 4 pixels
BLOCK = 4


class FastNatureCNN(NatureCNN):
    """
    SB3's ``NatureCNN``: the same parameters under the same names, and the same function of them.

    While ``fast`` is set it is computed in another order, equal within float tolerance: bytes are rearranged before
    they become floats, the 4 x 4 blocks of pixels become channels, so that the first convolution is one of 2 x 2 over
    16 times the channels, and channels lie last in memory.
    """

    fast = False

    def forward(self, observations: th.Tensor) -> th.Tensor:
        """
        :param observations: images ``(B, C, H, W)``: floats in [0, 1], or the bytes themselves if ``fast``
        :return: features ``(B, features_dim)``
        """
        if not self.fast:
            return super().forward(observations)
        first, *others = self.cnn
        if observations.dtype == th.uint8:
            weight = first.weight / 255.0
            height, width = observations.shape[2:]
            if height % BLOCK == 0 and width % BLOCK == 0:
                x = F.conv2d(blocks_to_channels(observations).float(), _blocked_kernel(weight), first.bias)
            else:
                images = observations.contiguous(memory_format=th.channels_last).float()
                x = F.conv2d(images, weight.contiguous(memory_format=th.channels_last), first.bias, stride=BLOCK)
        else:
            x = first(observations.contiguous(memory_format=th.channels_last))
        for layer in others:
            x = layer(x)
        return self.linear(x)  # type: ignore[no-any-return]


def blocks_to_channels(images: th.Tensor) -> th.Tensor:
    """
    :param images: bytes ``(B, C, H, W)``, H and W multiples of 4
    :return: ``(B, 16 C, H/4, W/4)``, channels last in memory: the pixels of each block of 4 x 4
    """
    batch, channels, height, width = images.shape
    # Four neighbouring bytes are moved as one integer
    rows = images.contiguous().view(th.int32).view(batch, channels, height // BLOCK, BLOCK, width // BLOCK)
    blocks = rows.permute(0, 2, 4, 1, 3).contiguous().view(th.uint8)
    return blocks.view(batch, height // BLOCK, width // BLOCK, BLOCK * BLOCK * channels).permute(0, 3, 1, 2)


def _blocked_kernel(weight: th.Tensor) -> th.Tensor:
    """The kernel ``(O, C, 8, 8)`` as ``(O, 16 C, 2, 2)``, for the channels of :func:`blocks_to_channels`."""
    out_channels, channels, size, _ = weight.shape
    n = size // BLOCK
    kernel = weight.view(out_channels, channels, n, BLOCK, n, BLOCK).permute(0, 1, 3, 5, 2, 4)
    return kernel.reshape(out_channels, -1, n, n).contiguous(memory_format=th.channels_last)


class CnnPolicy(ActorCriticCnnPolicy):
    """
    SB3's ``CnnPolicy``; models and parameters are interchangeable.

    Parameters as there; the default features extractor is :class:`FastNatureCNN`.
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        *args: Any,
        features_extractor_class: type[BaseFeaturesExtractor] = FastNatureCNN,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            observation_space, action_space, *args, features_extractor_class=features_extractor_class, **kwargs
        )

    def extract_features(
        self, obs: PyTorchObs, features_extractor: BaseFeaturesExtractor | None = None
    ) -> th.Tensor | tuple[th.Tensor, th.Tensor]:
        extractor = features_extractor or (self.features_extractor if self.share_features_extractor else None)
        if self.normalize_images and isinstance(extractor, FastNatureCNN) and extractor.fast:
            return extractor(obs)  # type: ignore[no-any-return]
        return super().extract_features(obs, features_extractor)


def set_fast(policy: ActorCriticPolicy, fast: bool) -> None:
    """
    :param policy: a policy
    :param fast: whether its Nature CNNs and its Adam compute in their fast forms, equal within float tolerance
    """
    for module in policy.modules():
        if isinstance(module, FastNatureCNN):
            module.fast = fast
            module.cnn.to(memory_format=th.channels_last if fast else th.contiguous_format)
    optimizer = policy.optimizer
    if type(optimizer) in (th.optim.Adam, th.optim.AdamW) and not optimizer.defaults["foreach"]:
        for group in optimizer.param_groups:
            group["fused"] = fast or optimizer.defaults["fused"]
            for parameter in group["params"]:
                state = optimizer.state[parameter]
                if "step" in state:
                    # the fused form counts its steps on the device
                    state["step"] = state["step"].to(parameter.device if group["fused"] else "cpu")
