"""
The network of ``MlpPolicy``, its gradient and Adam in NumPy. On networks of this size PyTorch takes longer to call an
operation, to record and to undo it, than to compute it.
"""

import math
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.distributions import Distribution
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy
from stable_baselines3.common.torch_layers import FlattenExtractor, MlpExtractor
from stable_baselines3.common.type_aliases import PyTorchObs
from torch import nn

from sb3_dapo.distributions import HALF_LOG_2PI, LeanCategorical, LeanGaussian

# Numbers of multiplications up to which NumPy's products, in one thread, are faster than PyTorch's
MAX_PRODUCTS = 2**18
# Methods of a policy that must be SB3's own
METHODS = ("forward", "evaluate_actions", "extract_features", "_get_action_dist_from_latent", "get_distribution")
# Logits of what is not allowed: sb3-contrib's
MASKED_LOGIT = -1e8
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def product(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """:return: the product of two matrices"""
    if x.shape[0] * y.size <= MAX_PRODUCTS:
        return x @ y
    return th.mm(th.from_numpy(x), th.from_numpy(y)).numpy()


def relu(x: np.ndarray) -> np.ndarray:
    """:return: the positive part"""
    return np.maximum(x, 0)


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

    def backward(self, gradient: np.ndarray, gradients: list[np.ndarray]) -> None:
        """
        :param gradient: with respect to the output of the last call
        :param gradients: where those of ``parameters`` are written
        """
        for i in reversed(range(len(self.weights))):
            x = self.inputs[i]
            gradients[2 * i][...] = product(gradient.T, x)
            gradient.sum(axis=0, out=gradients[2 * i + 1])
            if i > 0:
                gradient = product(gradient, self.weights[i])
                gradient *= (1 - x * x) if self.activations[i - 1] is nn.Tanh else x > 0


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
        log_probs = log_softmax(logits)
        # PyTorch's draws, so that the same seed gives the actions that it gives SB3
        actions = th.multinomial(th.from_numpy(np.exp(log_probs)), 1).numpy()[:, 0]
        return actions, log_probs[np.arange(len(logits)), actions]

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


class FusedMlp:
    """
    Computes what a policy and its optimizer compute, within float tolerance.

    :param policy: a policy for which :meth:`suits` is true
    """

    def __init__(self, policy: Any) -> None:
        self.policy, extractor = policy, policy.mlp_extractor
        self.actor = Tower([*extractor.policy_net, policy.action_net])
        self.critic = Tower([*extractor.value_net, policy.value_net])
        parameters: list[Any] = [*self.actor.parameters, *self.critic.parameters]
        self.head: GaussianHead | CategoricalHead = CategoricalHead()
        if isinstance(policy.action_dist, LeanGaussian):
            self.head = GaussianHead(array_of(policy.log_std))
            parameters.append(policy.log_std)
        space = policy.observation_space
        self.is_flat = isinstance(space, spaces.Box) and len(space.shape) == 1
        self.adam = FlatAdam(policy.optimizer, parameters)
        n_actor = len(self.actor.parameters)
        self.gradients = (self.adam.gradients[:n_actor], self.adam.gradients[n_actor:])

    @staticmethod
    def suits(
        policy: Any,
        base: type[BasePolicy] = ActorCriticPolicy,
        distributions: Collection[type[Distribution]] = (LeanGaussian, LeanCategorical),
    ) -> bool:
        """
        :param policy: a policy
        :param base: class that its methods must come from
        :param distributions: what its distribution may be: a Gaussian, or a categorical one
        :return: whether it has layers that are known here, and nobody looks on
        """
        is_own = all(getattr(type(policy), name, None) is getattr(base, name) for name in METHODS)
        is_own = is_own and not set(METHODS) & set(vars(policy))
        extractor = getattr(policy, "mlp_extractor", None)
        if not is_own or policy.device.type != "cpu" or type(extractor) is not MlpExtractor:
            return False
        known: set[nn.Parameter] = set()
        for layers in ([*extractor.policy_net, policy.action_net], [*extractor.value_net, policy.value_net]):
            if not all(type(layer) is nn.Linear and layer.bias is not None for layer in layers[::2]):
                return False
            if len(layers) % 2 == 0 or not all(type(layer) in ACTIVATIONS for layer in layers[1::2]):
                return False
            known |= {parameter for layer in layers for parameter in layer.parameters()}
        if isinstance(policy.action_dist, LeanGaussian):
            known.add(policy.log_std)
        if type(policy.action_dist) not in distributions:
            return False
        is_plain = type(policy.features_extractor) is FlattenExtractor and known == set(policy.parameters())
        return is_plain and not any(map(_is_watched, [*policy.modules(), *known]))

    def features(self, observations: PyTorchObs) -> np.ndarray:
        """:return: what the towers are given, ``(B, features_dim)``"""
        if self.is_flat and isinstance(observations, th.Tensor) and observations.dtype == th.float32:
            return observations.numpy()
        return self.policy.extract_features(observations).numpy()

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
        features = self.features(observations)
        with np.errstate(all="ignore"):
            actions, log_prob = self.head.sample(self.outputs(features, action_masks))
            values = self.critic(features)
            total = float(values.sum() + actions.sum() + log_prob.sum())
        if not math.isfinite(total):
            raise ValueError("actions, log-probs or values of the policy are nan or infinite")
        actions = actions.reshape(-1, *self.policy.action_space.shape)
        return th.from_numpy(actions), th.from_numpy(values), th.from_numpy(log_prob)

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
        of_actor, of_others = self.gradients
        if of_log_std is not None:
            of_others[-1][...] = of_log_std
        self.actor.backward(of_outputs, of_actor)
        self.critic.backward(of_values[:, None], of_others)
        gradient = self.adam.gradient
        norm = math.sqrt(gradient @ gradient)
        if math.isfinite(norm):
            if norm > max_norm:
                gradient *= max_norm / (norm + 1e-6)
            self.adam.step()
        return norm

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
    Stands for a policy's ``forward``. Who wants gradients or the mode gets the policy's own, and copies of the policy
    have theirs.
    """

    def __init__(self, fused: FusedMlp) -> None:
        self.fused = fused

    def __call__(self, observations: PyTorchObs, deterministic: bool = False, **kwargs: Any) -> Any:
        if deterministic or th.is_grad_enabled():
            policy = self.fused.policy
            return type(policy).forward(policy, observations, deterministic, **kwargs)
        return self.fused.act(observations, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> MethodType:
        policy = memo[id(self.fused.policy)]
        return MethodType(type(policy).forward, policy)


class FlatAdam:
    """
    An optimizer's steps. Those of PyTorch's Adam, as SB3 makes it, are computed here, for all parameters at once.

    :param optimizer: the optimizer
    :param parameters: all of its parameters
    """

    def __init__(self, optimizer: th.optim.Optimizer, parameters: list[nn.Parameter]) -> None:
        self.optimizer, self.parameters = optimizer, parameters
        self.arrays = [array_of(p) for p in parameters]
        self.gradient = np.zeros(sum(p.numel() for p in parameters), self.arrays[0].dtype)
        self.gradients = self._parts(self.gradient)
        group, unusual = optimizer.param_groups[0], ("amsgrad", "weight_decay", "maximize", "differentiable")
        self.is_usual = type(optimizer) is th.optim.Adam and len(optimizer.param_groups) == 1
        self.is_usual = self.is_usual and not any(group[name] for name in unusual)
        self.is_usual = self.is_usual and not optimizer._optimizer_step_pre_hooks and "step" not in vars(optimizer)
        self.moments: list[np.ndarray] = []
        self.n_steps = 0

    def _parts(self, flat: np.ndarray) -> list[np.ndarray]:
        sizes = np.cumsum([p.numel() for p in self.parameters])[:-1]
        return [part.reshape(p.shape) for part, p in zip(np.split(flat, sizes), self.parameters, strict=True)]

    def step(self) -> None:
        """Take a step along ``gradient``."""
        if not self.is_usual or not self.moments:
            for parameter, gradient in zip(self.parameters, self.gradients, strict=True):
                parameter.grad = th.from_numpy(gradient)
            self.optimizer.step()
            if self.is_usual:
                self._begin()
            return
        group = self.optimizer.param_groups[0]
        (beta1, beta2), (average, square) = group["betas"], self.moments
        self.n_steps += 1
        average += (1 - beta1) * (self.gradient - average)
        square *= beta2
        square += (1 - beta2) * self.gradient * self.gradient
        update = np.sqrt(square)
        update *= 1 / math.sqrt(1 - beta2**self.n_steps)
        update += group["eps"]
        np.divide(average, update, out=update)
        update *= float(group["lr"]) / (1 - beta1**self.n_steps)
        for array, part in zip(self.arrays, self._parts(update), strict=True):
            array -= part
        for hook in self.optimizer._optimizer_step_post_hooks.values():
            hook(self.optimizer, (), {})

    def _begin(self) -> None:
        states = [self.optimizer.state[p] for p in self.parameters]
        self.moments = [
            np.concatenate([array_of(state[name]).ravel() for state in states]) for name in ("exp_avg", "exp_avg_sq")
        ]
        self.n_steps = int(states[0]["step"])

    def finish(self) -> None:
        """Give the optimizer back what it knows."""
        if self.moments:
            for name, flat in zip(("exp_avg", "exp_avg_sq"), self.moments, strict=True):
                for parameter, part in zip(self.parameters, self._parts(flat), strict=True):
                    array_of(self.optimizer.state[parameter][name])[...] = part
            for parameter in self.parameters:
                self.optimizer.state[parameter]["step"].fill_(self.n_steps)
            self.moments = []


def array_of(tensor: th.Tensor) -> np.ndarray:
    """:return: an array in the memory of a tensor"""
    return tensor.detach().numpy()


def _is_watched(x: Any) -> bool:
    """Whether somebody looks on as a module or a gradient is computed, or a parameter is frozen."""
    if isinstance(x, nn.Parameter):
        return not x.requires_grad or bool(x._backward_hooks) or bool(getattr(x, "_post_accumulate_grad_hooks", None))
    return "forward" in vars(x) or any(getattr(x, name) for name in HOOKS)
