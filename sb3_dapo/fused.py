"""
Small networks, their gradients and Adam, written down. On networks of this size PyTorch takes longer to call an
operation, to record and to undo it, than to compute it: those of ``MlpPolicy`` are computed in NumPy.
"""

import math
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.distributions import Distribution
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.torch_layers import FlattenExtractor, MlpExtractor
from stable_baselines3.common.type_aliases import PyTorchObs
from torch import nn
from torch.nn import functional as F

from sb3_dapo.distributions import HALF_LOG_2PI, LeanCategorical, LeanGaussian
from sb3_dapo.minatar import ReluCnn

# Numbers of multiplications up to which NumPy's products, in one thread, are faster than PyTorch's
MAX_PRODUCTS = 2**18
# The same for each part of a larger product, and for all of it
MAX_PRODUCTS_OF_PART, MAX_PRODUCTS_OF_ACTING = 2**19, 2**22
# Methods of a policy that must be SB3's own
METHODS = (
    *("forward", "evaluate_actions", "predict_values", "extract_features"),
    *("_get_action_dist_from_latent", "get_distribution"),
)
# Logits of what is not allowed: sb3-contrib's
MASKED_LOGIT = -1e8
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def product(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """:return: the product of two matrices"""
    if x.shape[1] == 1:
        return x * y
    if x.shape[0] * y.size <= MAX_PRODUCTS:
        return x @ y
    return th.mm(th.from_numpy(x), th.from_numpy(y)).numpy()


def product_in_parts(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """:return: the same by NumPy, in parts so small that it does not copy what they are made of"""
    result = np.empty((len(x), y.shape[1]), x.dtype)
    n_parts = -(-x.size * y.shape[1] // MAX_PRODUCTS_OF_PART)
    step = -(-max(result.shape) // n_parts)
    for i in range(0, max(result.shape), step):
        part = slice(i, i + step)
        if len(x) > y.shape[1]:
            np.matmul(x[part], y, out=result[part])
        else:
            np.matmul(x, y[:, part], out=result[:, part])
    return result


def relu(x: np.ndarray) -> np.ndarray:
    """:return: the positive part, in the memory of the array"""
    return np.maximum(x, 0, out=x)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """:return: log-probabilities, ``(B, n)``"""
    logits = logits - logits.max(axis=1, keepdims=True)
    logits -= np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return logits


ACTIVATIONS: dict[type[nn.Module], Any] = {nn.Tanh: np.tanh, nn.ReLU: relu}


class Tower:
    """
    Linear layers with an activation between each two.

    :param layers: modules, alternating
    """

    def __init__(self, layers: list[nn.Module]) -> None:
        self.parameters = [p for layer in layers[::2] for p in (layer.weight, layer.bias)]
        arrays = [array_of(p) for p in self.parameters]  # type: ignore[arg-type]
        self.weights, self.biases = arrays[::2], arrays[1::2]
        self.activations = [type(layer) for layer in layers[1::2]]
        self.inputs: list[np.ndarray] = []  # of the layers, at the last call

    def __call__(self, x: np.ndarray) -> np.ndarray:
        self.inputs = [x]
        for weight, bias, activation in zip(self.weights, self.biases, self.activations, strict=False):
            x = product(x, weight.T)
            x += bias
            x = ACTIVATIONS[activation](x)
            self.inputs.append(x)
        return product(x, self.weights[-1].T) + self.biases[-1]

    def backward(self, gradient: np.ndarray, gradients: list[np.ndarray], of_input: bool = False) -> np.ndarray:
        """
        :param gradient: with respect to the output of the last call
        :param gradients: where those of ``parameters`` are written
        :param of_input: whether the one with respect to the input is wanted
        :return: this one
        """
        for i in reversed(range(len(self.weights))):
            x = self.inputs[i]
            gradients[2 * i][...] = product(gradient.T, x)
            gradient.sum(axis=0, out=gradients[2 * i + 1])
            if i > 0 or of_input:
                gradient = product(gradient, self.weights[i])
            if i > 0:
                gradient *= (1 - x * x) if self.activations[i - 1] is nn.Tanh else x > 0
        return gradient


class Trunk:
    """
    A network for images, in PyTorch's operations: what there is to win here is what it takes to record and undo them.

    :param extractor: the network
    :param scale: what observations are divided by
    :param is_autocast: whether the products of matrices are computed in bfloat16
    """

    def __init__(self, extractor: ReluCnn, scale: float, is_autocast: bool = False) -> None:
        self.layers: list[Any] = list(extractor.children())
        self.parameters = [p for layer in self.layers for p in (layer.weight, layer.bias)]
        tensors, arrays = [p.detach() for p in self.parameters], [array_of(p) for p in self.parameters]
        self.weights, self.biases = tensors[::2], tensors[1::2]
        self.arrays = list(zip(arrays[::2], arrays[1::2], strict=True))
        self.dtype, self.scale = arrays[0].dtype, scale
        self.dtype_of_products = th.bfloat16 if is_autocast else self.weights[0].dtype
        # Inputs, outputs and weights of the layers, at the last call
        self.visits: list[tuple[th.Tensor, th.Tensor, th.Tensor]] = []

    @staticmethod
    def suits(extractor: Any) -> bool:
        """:return: whether it has layers that are known here"""
        if not isinstance(extractor, ReluCnn) or type(extractor).forward is not ReluCnn.forward:
            return False
        layers: list[Any] = list(extractor.children())
        convs = [layer for layer in layers if type(layer) is nn.Conv2d]
        others = layers[len(convs) :]
        is_known = others and all(type(layer) is nn.Linear for layer in others) and layers[: len(convs)] == convs
        is_plain = all((conv.padding, conv.dilation, conv.groups) == ((0, 0), (1, 1), 1) for conv in convs)
        return bool(is_known and is_plain and all(layer.bias is not None for layer in layers))

    def __call__(self, images: th.Tensor) -> np.ndarray:
        y = th.from_numpy(self.floats(images)).permute(0, 3, 1, 2)
        self.visits = []
        for layer, weight, bias in zip(self.layers, self.weights, self.biases, strict=True):
            x = y.permute(0, 2, 3, 1).flatten(1) if y.dim() > weight.dim() else y
            if weight.dim() == 4:
                y = F.conv2d(x, weight.contiguous(memory_format=th.channels_last), bias, layer.stride)
            else:
                x, weight = x.to(self.dtype_of_products), weight.to(self.dtype_of_products)
                y = (x @ weight.t()).to(bias.dtype).add_(bias)
            self.visits.append((x, y.relu_(), weight))
        return y.numpy()

    def floats(self, images: th.Tensor) -> np.ndarray:
        """:return: images as the first layer is given them"""
        # NumPy converts bools six times as fast as PyTorch
        x = images.numpy().astype(self.dtype, order="C")
        if self.scale != 1:
            x /= self.scale
        return x

    def act(self, images: th.Tensor) -> np.ndarray:
        """:return: what a call returns, of few images in NumPy"""
        y = self.floats(images)
        for layer, (weight, bias) in zip(self.layers, self.arrays, strict=True):
            if weight.ndim == 4:
                x = patches(y, layer.kernel_size, layer.stride)
                shape, matrix = x.shape[:3], weight.transpose(2, 3, 1, 0).reshape(-1, len(bias))
            else:
                x = y.reshape(len(y), -1)
                shape, matrix = x.shape[:1], weight.T
            if x.size * len(bias) > MAX_PRODUCTS_OF_ACTING:
                return self(images)
            y = product_in_parts(x.reshape(-1, len(matrix)), matrix)
            y += bias
            y = relu(y).reshape(*shape, -1)
        return y

    def backward(self, gradient: np.ndarray, gradients: list[np.ndarray]) -> None:
        """
        :param gradient: with respect to the output of the last call, which is written to
        :param gradients: where those of ``parameters`` are written
        """
        of_y = th.from_numpy(gradient)
        for i in reversed(range(len(self.layers))):
            x, y, weight = self.visits[i]
            of_weight, of_bias = map(th.from_numpy, gradients[2 * i : 2 * i + 2])
            if y.dim() > of_y.dim():
                n, channels, height, width = y.shape
                of_y = of_y.view(n, height, width, channels).permute(0, 3, 1, 2)
            th.ops.aten.threshold_backward.grad_input(of_y, y, 0, grad_input=of_y)
            if weight.dim() == 4:
                how = (self.layers[i].stride, [0, 0], [1, 1], False, [0, 0], 1, [i > 0, True, True])
                of_y, *found = th.ops.aten.convolution_backward(of_y, x, weight, [len(weight)], *how)
                of_weight.copy_(found[0])
                of_bias.copy_(found[1])
            else:
                th.sum(of_y, 0, out=of_bias)
                of_product = of_y.to(self.dtype_of_products)
                of_weight.copy_(of_product.t() @ x)
                of_y = (of_product @ weight).to(of_y.dtype) if i > 0 else of_y


def patches(images: np.ndarray, size: tuple[int, int], stride: tuple[int, int]) -> np.ndarray:
    """
    :param images: ``(B, H, W, C)``, contiguous
    :param size: of a kernel, h and w
    :param stride: of a convolution, down and to the right
    :return: what each element of the convolution looks at, ``(B, H', W', h, w * C)``, in the memory of the images
    """
    (n, height, width, channels), (down, right) = images.shape, size
    of_image, of_row, of_column, of_channel = images.strides
    shape = (n, (height - down) // stride[0] + 1, (width - right) // stride[1] + 1, down, right * channels)
    steps = (of_image, of_row * stride[0], of_column * stride[1], of_row, of_channel)
    return np.ndarray(shape, images.dtype, images, 0, steps)


class GaussianHead:
    """
    Log-probs and entropies of actions with normal distributions.

    :param log_std: logarithm of the standard deviations, shape ``(action_dim,)``
    """

    def __init__(self, log_std: np.ndarray) -> None:
        self.log_std = log_std

    def sample(self, means: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """:return: actions, ``(B, action_dim)``, and their log-probs, ``(B,)``"""
        noise = th.randn(means.shape).numpy()
        constant = self.log_std.sum() + self.log_std.size * HALF_LOG_2PI
        return means + noise * np.exp(self.log_std), -0.5 * (noise * noise).sum(axis=1) - constant

    def evaluate(self, means: np.ndarray, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """:return: log-probs and entropies, ``(B,)``"""
        self.inverse = np.exp(-self.log_std)
        self.z = (actions - means) * self.inverse
        entropy = self.log_std.sum() + self.log_std.size * (0.5 + HALF_LOG_2PI)
        log_prob = -0.5 * (self.z * self.z).sum(axis=1) - (entropy - self.log_std.size * 0.5)
        return log_prob, np.full_like(log_prob, entropy)

    def backward(self, of_log_prob: np.ndarray, of_entropy: float) -> tuple[np.ndarray, np.ndarray | None]:
        """
        :param of_log_prob: gradient with respect to the log-probs of the last call of :meth:`evaluate`, ``(B,)``
        :param of_entropy: and to each of the entropies
        :return: the gradient with respect to the means, and to ``log_std``
        """
        of_z = of_log_prob[:, None] * self.z
        of_log_std = (of_z * self.z).sum(axis=0) - (of_log_prob.sum() - of_entropy * len(of_log_prob))
        of_z *= self.inverse
        return of_z, of_log_std


class CategoricalHead:
    """The same for Discrete actions."""

    def sample(self, logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """:return: actions and their log-probs, ``(B,)``"""
        logits = logits - logits.max(axis=1, keepdims=True)
        weights = np.exp(logits)
        # The draws of PyTorch's multinomial, so that the same seed gives the actions that it gives SB3
        noise = th.from_numpy(np.empty_like(weights)).exponential_().numpy()
        actions = (weights / noise).argmax(axis=1)
        return actions, logits[np.arange(len(logits)), actions] - np.log(weights.sum(axis=1))

    def evaluate(self, logits: np.ndarray, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """:return: log-probs and entropies, ``(B,)``"""
        self.log_probs = log_softmax(logits)
        self.probs = np.exp(self.log_probs)
        self.taken = (np.arange(len(logits)), actions.astype(np.int64).reshape(-1))
        self.entropies = -(self.probs * self.log_probs).sum(axis=1)
        return self.log_probs[self.taken], self.entropies

    def backward(self, of_log_prob: np.ndarray, of_entropy: float) -> tuple[np.ndarray, np.ndarray | None]:
        """
        :param of_log_prob: gradient with respect to the log-probs of the last call of :meth:`evaluate`, ``(B,)``
        :param of_entropy: and to each of the entropies
        :return: the gradient with respect to the logits, and None
        """
        of_logits = self.probs * -of_log_prob[:, None]
        of_logits[self.taken] += of_log_prob
        if of_entropy != 0:
            of_logits -= of_entropy * self.probs * (self.log_probs + self.entropies[:, None])
        return of_logits, None


class FusedPolicy:
    """
    Computes what a policy and its optimizer compute, within float tolerance.

    :param policy: a policy for which :meth:`suits` is true
    """

    def __init__(self, policy: Any) -> None:
        self.policy, extractor, space = policy, policy.mlp_extractor, policy.observation_space
        self.actor = Tower([*extractor.policy_net, policy.action_net])
        self.critic = Tower([*extractor.value_net, policy.value_net])
        parameters: list[Any] = [*self.actor.parameters, *self.critic.parameters]
        self.trunk: Trunk | None = None
        if not isinstance(policy.features_extractor, FlattenExtractor):
            is_scaled = policy.normalize_images and is_image_space(space)
            self.trunk = Trunk(
                policy.features_extractor, 255.0 if is_scaled else 1.0, getattr(policy, "autocast", False)
            )
            parameters = [*self.trunk.parameters, *parameters]
        self.head: GaussianHead | CategoricalHead = CategoricalHead()
        if isinstance(policy.action_dist, LeanGaussian):
            self.head = GaussianHead(array_of(policy.log_std))
            parameters.append(policy.log_std)
        self.is_flat = isinstance(space, spaces.Box) and len(space.shape) == 1
        self.adam = FlatAdam(policy.optimizer, parameters)
        self.places = [parameter.data_ptr() for parameter in parameters]
        n_trunk = 0 if self.trunk is None else len(self.trunk.parameters)
        n_actor, gradients = n_trunk + len(self.actor.parameters), self.adam.gradients
        self.gradients = (gradients[:n_trunk], gradients[n_trunk:n_actor], gradients[n_actor:])

    @staticmethod
    def suits(
        policy: Any,
        bases: Iterable[type[BasePolicy]],
        distributions: Collection[type[Distribution]] = (LeanGaussian, LeanCategorical),
    ) -> bool:
        """
        :param policy: a policy
        :param bases: classes of which one must be where its methods come from
        :param distributions: what its distribution may be: a Gaussian, or a categorical one
        :return: whether it has layers that are known here, and nobody looks on
        """
        methods = [getattr(type(policy), name, None) for name in METHODS]
        is_own = methods in [[getattr(base, name) for name in METHODS] for base in bases]
        is_own = is_own and not set(METHODS) & set(vars(policy))
        extractor: Any = getattr(policy, "features_extractor", None)
        mlp = getattr(policy, "mlp_extractor", None)
        if not is_own or policy.device.type != "cpu" or type(mlp) is not MlpExtractor:
            return False
        known: set[nn.Parameter] = set()
        for layers in ([*mlp.policy_net, policy.action_net], [*mlp.value_net, policy.value_net]):
            if not all(type(layer) is nn.Linear and layer.bias is not None for layer in layers[::2]):
                return False
            if len(layers) % 2 == 0 or not all(type(layer) in ACTIVATIONS for layer in layers[1::2]):
                return False
            known |= {parameter for layer in layers for parameter in layer.parameters()}
        if Trunk.suits(extractor):
            known |= set(extractor.parameters())
        elif type(extractor) is not FlattenExtractor:
            return False
        if isinstance(policy.action_dist, LeanGaussian):
            known.add(policy.log_std)
        is_plain = type(policy.action_dist) in distributions and known == set(policy.parameters())
        return is_plain and not any(map(_is_watched, [*policy.modules(), *known]))

    def features(self, observations: PyTorchObs, is_acting: bool = False) -> np.ndarray:
        """:return: what the towers are given, ``(B, features_dim)``"""
        if self.trunk is not None:
            return self.trunk.act(observations) if is_acting else self.trunk(observations)  # type: ignore[arg-type]
        if self.is_flat and isinstance(observations, th.Tensor) and observations.dtype == th.float32:
            return observations.numpy()
        features = self.policy.extract_features(observations)
        # Two that are equal, if policy and value function have one each
        return (features[0] if isinstance(features, tuple) else features).numpy()

    def outputs(self, features: np.ndarray, masks: np.ndarray | None) -> np.ndarray:
        """:return: means or logits, those of what is not allowed very small"""
        outputs = self.actor(features)
        return outputs if masks is None else np.where(masks, outputs, MASKED_LOGIT).astype(outputs.dtype, copy=False)

    def act(
        self, observations: PyTorchObs, action_masks: np.ndarray | None = None
    ) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
        """
        As the policy's ``forward``.

        :raises ValueError: if what the policy says is not finite
        """
        features = self.features(observations, True)
        with np.errstate(all="ignore"):
            actions, log_prob = self.head.sample(self.outputs(features, action_masks))
            values = self.critic(features)
            total = float(values.sum() + actions.sum() + log_prob.sum())
        if not math.isfinite(total):
            raise ValueError("actions, log-probs or values of the policy are nan or infinite")
        actions = actions.reshape(-1, *self.policy.action_space.shape)
        return th.from_numpy(actions), th.from_numpy(values), th.from_numpy(log_prob)

    def values(self, observations: PyTorchObs) -> th.Tensor:
        """As the policy's ``predict_values``."""
        return th.from_numpy(self.critic(self.features(observations, True)))

    def evaluate(
        self, observations: PyTorchObs, actions: th.Tensor, action_masks: th.Tensor | None = None
    ) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
        """As the policy's ``evaluate_actions``, with values of shape ``(B,)``."""
        features = self.features(observations)
        outputs = self.outputs(features, None if action_masks is None else action_masks.numpy())
        log_prob, entropy = self.head.evaluate(outputs, actions.numpy())
        return th.from_numpy(self.critic(features)[:, 0]), th.from_numpy(log_prob), th.from_numpy(entropy)

    def step(self, of_values: np.ndarray, of_log_prob: np.ndarray, of_entropy: float, max_norm: float) -> float:
        """
        Take a step of the optimizer, unless the gradient is not finite.

        :param of_values: gradient with respect to the values that were evaluated last, shape ``(B,)``
        :param of_log_prob: and to the log-probs, shape ``(B,)``
        :param of_entropy: and to each of the entropies
        :param max_norm: what the norm of the gradient of the parameters is limited to
        :return: this norm before
        """
        of_outputs, of_log_std = self.head.backward(of_log_prob, of_entropy)
        in_trunk, in_actor, in_others = self.gradients
        if of_log_std is not None:
            in_others[-1][...] = of_log_std
        of_features = self.actor.backward(of_outputs, in_actor, self.trunk is not None)
        of_features_too = self.critic.backward(of_values[:, None], in_others, self.trunk is not None)
        if self.trunk is not None:
            self.trunk.backward(of_features + of_features_too, in_trunk)
        gradient = self.adam.gradient
        norm = math.sqrt(th.dot(gradient, gradient))  # in the threads that there are, where NumPy would wake its own
        if math.isfinite(norm):
            if norm > max_norm:
                gradient *= max_norm / (norm + 1e-6)
            self.adam.step()
        return norm

    def is_outdated(self) -> bool:
        """:return: whether parameters have been given other memory, as SB3's ``load_from_vector`` does"""
        return [parameter.data_ptr() for parameter in self.adam.parameters] != self.places

    @contextmanager
    def acting(self) -> Iterator[None]:
        """Context in which a call of the policy for acting is answered from here."""
        self.policy.forward = FusedForward(self)
        try:
            yield
        finally:
            del self.policy.forward


class FusedForward:
    """
    Stands for a policy's ``forward``. Who wants gradients or the mode, or has replaced the parameters, gets the
    policy's own, and copies of the policy have theirs.
    """

    def __init__(self, fused: FusedPolicy) -> None:
        self.fused = fused

    def __call__(self, observations: PyTorchObs, deterministic: bool = False, **kwargs: Any) -> Any:
        if deterministic or th.is_grad_enabled() or self.fused.is_outdated():
            policy = self.fused.policy
            return type(policy).forward(policy, observations, deterministic, **kwargs)
        return self.fused.act(observations, **kwargs)

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, (self.fused.policy, "forward")  # its class's: while it is copied it has no other


class FlatAdam:
    """
    An optimizer's steps. Those of PyTorch's Adam are taken without what it does around them.

    :param optimizer: the optimizer
    :param parameters: all of its parameters
    """

    def __init__(self, optimizer: th.optim.Optimizer, parameters: list[nn.Parameter]) -> None:
        self.optimizer, self.parameters = optimizer, parameters
        self.gradient = th.zeros(sum(p.numel() for p in parameters), dtype=parameters[0].dtype)
        parts = self.gradient.split([p.numel() for p in parameters])
        # Laid out as the parameters are, whose channels may lie last
        self._gradients = [part.as_strided(p.shape, p.stride()) for part, p in zip(parts, parameters, strict=True)]
        self.gradients = [x.numpy() for x in self._gradients]
        group, unusual = optimizer.param_groups[0], ("amsgrad", "weight_decay", "maximize", "differentiable")
        self.is_usual = type(optimizer) is th.optim.Adam and len(optimizer.param_groups) == 1 and bool(group["fused"])
        self.is_usual = self.is_usual and not any(group[name] for name in unusual)
        self.is_usual = self.is_usual and not optimizer._optimizer_step_pre_hooks and "step" not in vars(optimizer)
        self.count: th.Tensor | None = None  # of steps, once there are averages

    def step(self) -> None:
        """Take a step along ``gradient``."""
        if not self.is_usual or self.count is None:
            for parameter, gradient in zip(self.parameters, self._gradients, strict=True):
                parameter.grad = gradient
            self.optimizer.step()
            if self.is_usual:
                self._begin()
            return
        self.count += 1
        group = self.optimizer.param_groups[0]
        (beta1, beta2), counts = group["betas"], [self.count] * len(self.parameters)
        settings: Any = {"lr": float(group["lr"]), "beta1": beta1, "beta2": beta2, "eps": group["eps"]}
        settings |= {"weight_decay": 0.0, "amsgrad": False, "maximize": False}
        parameters, averages, squares = self._tensors
        th._fused_adam_(parameters, self._gradients, averages, squares, [], counts, **settings)
        for hook in self.optimizer._optimizer_step_post_hooks.values():
            hook(self.optimizer, (), {})

    def _begin(self) -> None:
        states = [self.optimizer.state[p] for p in self.parameters]
        averages, squares = ([state[name] for state in states] for name in ("exp_avg", "exp_avg_sq"))
        self._tensors = ([p.detach() for p in self.parameters], averages, squares)
        # One for all, as to count each would take longer than the step. They differ if some were frozen once
        self.count = states[0]["step"].clone() if len({state["step"].item() for state in states}) == 1 else None

    def finish(self) -> None:
        """Tell the optimizer how many steps there were."""
        if self.count is not None:
            for parameter in self.parameters:
                self.optimizer.state[parameter]["step"].copy_(self.count)


def array_of(tensor: th.Tensor) -> np.ndarray:
    """:return: an array in the memory of a tensor"""
    return tensor.detach().numpy()


def _is_watched(x: Any) -> bool:
    """Whether somebody looks on as a module or a gradient is computed, or a parameter is frozen."""
    if isinstance(x, nn.Parameter):
        return not x.requires_grad or bool(x._backward_hooks) or bool(getattr(x, "_post_accumulate_grad_hooks", None))
    return "forward" in vars(x) or any(getattr(x, name) for name in HOOKS)
