"""A network for the MinAtar games."""

import torch as th
from gymnasium import spaces
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor


class ReluCnn(BaseFeaturesExtractor):
    """
    Convolutions and then linear layers, all followed by ReLU: its modules, in the order in which they were assigned.
    Those of a subclass that leaves ``forward`` as it is are computed and trained in a faster form.
    """

    def forward(self, observations: th.Tensor) -> th.Tensor:
        """
        :param observations: shape ``(B, height, width, channels)``
        :return: features, shape ``(B, features_dim)``
        """
        x = observations.permute(0, 3, 1, 2)
        for layer in self.children():
            if isinstance(layer, th.nn.Conv2d):
                # Channels last all the way, as the observations are: a third faster than with copies to and fro
                weight = layer.weight.contiguous(memory_format=th.channels_last)
                x = layer._conv_forward(x, weight, layer.bias)
            else:
                x = layer(x.permute(0, 2, 3, 1).flatten(1) if x.dim() == 4 else x)
            x = th.relu(x)
        return x


class MinAtarCnn(ReluCnn):
    """
    The network that the MinAtar games were published with (Young and Tian 2019, https://arxiv.org/abs/1903.03176): a
    convolution of 16 filters of 3x3 and a layer of 128, both followed by ReLU.

    :param observation_space: space of observations ``(10, 10, C)``, one binary channel per kind of object
    :param features_dim: units of the second layer
    :raises ValueError: if the observations have another shape
    """

    def __init__(self, observation_space: spaces.Box, features_dim: int = 128) -> None:
        if len(observation_space.shape) != 3 or min(observation_space.shape[:2]) < 3:
            raise ValueError(
                f"`observation_space` must have the shape (height, width, channels), with a height and width of at "
                f"least 3, got {observation_space.shape}"
            )
        super().__init__(observation_space, features_dim)
        height, width, channels = observation_space.shape
        self.conv = th.nn.Conv2d(channels, 16, kernel_size=3)
        self.linear = th.nn.Linear(16 * (height - 2) * (width - 2), features_dim)
