"""Small networks in NumPy, and distributions without PyTorch's, compute what SB3's forms do, within float tolerance."""

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from algos import flat_parameters, make_model
from envs import RandomEnv
from gymnasium import spaces
from stable_baselines3.common.distributions import CategoricalDistribution, DiagGaussianDistribution
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import FlattenExtractor

import sb3_dapo.fused
from sb3_dapo import DAPO
from sb3_dapo.distributions import LeanCategorical, LeanGaussian
from sb3_dapo.fast import set_fast
from sb3_dapo.faults import NonFiniteError
from sb3_dapo.fused import CategoricalHead, FlatAdam, FusedPolicy, GaussianHead
from sb3_dapo.loss import dapo_loss
from sb3_dapo.minatar import MinAtarCnn, ReluCnn
from sb3_dapo.policies import CnnPolicy

OBSERVATIONS = spaces.Box(-1, 1, (5,))
ACTIONS: dict[str, spaces.Space[Any]] = {"Box": spaces.Box(-1, 1, (3,)), "Discrete": spaces.Discrete(4)}
NETWORKS: dict[str, dict[str, Any]] = {
    "default": {},
    "no hidden layer": {"net_arch": []},
    "two different": {"net_arch": {"pi": [7], "vf": [6, 8]}, "activation_fn": th.nn.ReLU},
}
IMAGES = spaces.Box(0, 1, (10, 9, 3), np.bool_)


class TwoConvolutions(ReluCnn):
    """A network of the user's own, of layers that are known."""

    def __init__(self, observation_space: spaces.Box, **kwargs: Any) -> None:
        super().__init__(observation_space, 7)
        self.first = th.nn.Conv2d(3, 5, (3, 2), stride=(2, 1), **kwargs)
        self.second = th.nn.Conv2d(5, 6, 2)
        with th.no_grad():
            n_inputs = self.second(self.first(th.zeros(1, 3, 10, 9))).numel()
        self.linear = th.nn.Linear(n_inputs, 8)
        self.last = th.nn.Linear(8, 7)


def suits(policy: ActorCriticPolicy) -> bool:
    return FusedPolicy.suits(policy, (ActorCriticPolicy, CnnPolicy))


def make_cnn_policy(
    policy_class: type[ActorCriticPolicy] = CnnPolicy, actions: str = "Discrete", **kwargs: Any
) -> ActorCriticPolicy:
    th.manual_seed(0)
    kwargs = {"features_extractor_class": MinAtarCnn, "net_arch": [], **kwargs}
    policy = policy_class(IMAGES, ACTIONS[actions], lambda _: 1e-2, **kwargs)
    set_fast(policy, True)
    return policy


def make_policy(actions: str, dtype: th.dtype = th.float32, **kwargs: Any) -> ActorCriticPolicy:
    th.manual_seed(0)
    policy = ActorCriticPolicy(OBSERVATIONS, ACTIONS[actions], lambda _: 1e-2, **kwargs).to(dtype)
    set_fast(policy, True)
    return policy


def some_data(actions: str, batch_size: int, dtype: th.dtype) -> tuple[th.Tensor, th.Tensor]:
    observations = th.randn(batch_size, 5, dtype=dtype)
    return observations, th.randint(4, (batch_size,)) if actions == "Discrete" else th.randn(batch_size, 3, dtype=dtype)


# --- distributions --------------------------------------------------------------------------------


def test_lean_gaussian() -> None:
    means, log_std, actions = (th.randn(size, dtype=th.float64) for size in ((9, 3), (3,), (9, 3)))
    means.requires_grad_(), log_std.requires_grad_()
    plain = DiagGaussianDistribution(3).proba_distribution(means, log_std)
    lean = LeanGaussian(3).proba_distribution(means, log_std)
    weights = th.randn(9, dtype=th.float64)
    for ours, theirs in ((lean.log_prob(actions), plain.log_prob(actions)), (lean.entropy(), plain.entropy())):
        th.testing.assert_close(ours, theirs)
        found, expected = (
            th.autograd.grad((x * weights).sum(), [means, log_std], allow_unused=True, retain_graph=True)
            for x in (ours, theirs)
        )
        for first, second in zip(found, expected, strict=True):
            zeros = th.zeros(())
            th.testing.assert_close(zeros if first is None else first, zeros if second is None else second)
    assert th.equal(lean.mode(), plain.mode())
    assert isinstance(lean.distribution, th.distributions.Normal)
    th.manual_seed(3)
    drawn = lean.sample()
    th.manual_seed(3)
    th.testing.assert_close(drawn, plain.sample())


def test_lean_categorical() -> None:
    logits, actions = th.randn(9, 4, dtype=th.float64, requires_grad=True), th.randint(4, (9,))
    plain = CategoricalDistribution(4).proba_distribution(logits)
    lean = LeanCategorical(4).proba_distribution(logits)
    weights = th.randn(9, dtype=th.float64)
    for ours, theirs in ((lean.log_prob(actions), plain.log_prob(actions)), (lean.entropy(), plain.entropy())):
        th.testing.assert_close(ours, theirs)
        found, expected = (th.autograd.grad((x * weights).sum(), logits, retain_graph=True) for x in (ours, theirs))
        th.testing.assert_close(found, expected)
    assert th.equal(lean.mode(), plain.mode())
    assert isinstance(lean.distribution, th.distributions.Categorical)
    th.manual_seed(3)
    drawn = lean.sample()
    th.manual_seed(3)
    assert th.equal(drawn, plain.sample())


def test_what_a_policy_makes_impossible() -> None:
    """Users mask actions with minus infinity."""
    logits = th.tensor([[0.0, -float("inf"), 1.0]], requires_grad=True)
    lean = LeanCategorical(3).proba_distribution(logits)
    plain = CategoricalDistribution(3).proba_distribution(logits)
    th.testing.assert_close(lean.entropy(), plain.entropy())
    assert lean.log_prob(th.tensor([1])) == -float("inf")


def test_nan_is_not_acted_on() -> None:
    with pytest.raises((ValueError, RuntimeError), match="nan"):
        LeanGaussian(2).proba_distribution(th.tensor([[0.0, float("nan")]]), th.zeros(2)).sample()
    with pytest.raises((ValueError, RuntimeError), match="nan"):
        LeanCategorical(2).proba_distribution(th.tensor([[0.0, float("nan")]])).sample()


def test_heads() -> None:
    """The gradients that are written down are those that autograd finds."""
    weights, of_entropy = th.randn(9, dtype=th.float64), 0.3
    means, log_std, actions = (th.randn(size, dtype=th.float64) for size in ((9, 3), (3,), (9, 3)))
    logits, choices = th.randn(9, 4, dtype=th.float64), th.randint(4, (9,))
    lean_gaussian, lean_categorical = LeanGaussian(3), LeanCategorical(4)
    cases: list[tuple[Any, Any, list[th.Tensor], th.Tensor]] = [
        (GaussianHead(log_std.numpy()), lean_gaussian, [means, log_std], actions),
        (CategoricalHead(), lean_categorical, [logits], choices),
    ]
    for head, lean, parameters, taken in cases:
        log_prob, entropy = head.evaluate(parameters[0].numpy(), taken.numpy())
        inputs = [x.clone().requires_grad_() for x in parameters]
        lean.proba_distribution(*inputs)
        np.testing.assert_allclose(log_prob, lean.log_prob(taken).detach().numpy())
        np.testing.assert_allclose(entropy, lean.entropy().detach().numpy())
        loss = (lean.log_prob(taken) * weights + lean.entropy() * of_entropy).sum()
        expected = th.autograd.grad(loss, inputs)
        found = head.backward(weights.numpy(), of_entropy)
        for x, y in zip(found, expected, strict=False):
            np.testing.assert_allclose(x, y.numpy(), rtol=1e-10, atol=1e-12)


# --- the network ----------------------------------------------------------------------------------


@pytest.mark.parametrize("max_products", [2**18, 0], ids=["NumPy's products", "PyTorch's"])
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("actions", ACTIONS)
def test_network(actions: str, network: str, max_products: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Outputs, and the gradient of any function of them, in float64."""
    monkeypatch.setattr(sb3_dapo.fused, "MAX_PRODUCTS", max_products)
    policy = make_policy(actions, th.float64, **NETWORKS[network])
    assert suits(policy)
    fused = FusedPolicy(policy)
    observations, taken = some_data(actions, 11, th.float64)
    fused.is_flat = False
    policy.extract_features = lambda x, _=None: x  # type: ignore[assignment, method-assign] # without float32
    outputs = fused.evaluate(observations, taken)
    expected = policy.evaluate_actions(observations, taken)
    for ours, theirs in zip(outputs, expected, strict=True):
        th.testing.assert_close(ours, theirs.flatten())  # type: ignore[union-attr]

    of_values, of_log_prob, of_entropy = th.randn(11, dtype=th.float64), th.randn(11, dtype=th.float64), -0.2
    values, log_prob, entropy = expected
    ((values.flatten() * of_values + log_prob * of_log_prob).sum() + of_entropy * entropy.sum()).backward()  # type: ignore[union-attr]
    norm = th.nn.utils.clip_grad_norm_(policy.parameters(), 0.5)
    fused.adam.step = lambda: None  # type: ignore[method-assign]
    assert fused.step(of_values.numpy(), of_log_prob.numpy(), of_entropy, 0.5) == pytest.approx(norm.item())
    for parameter, gradient in zip(fused.adam.parameters, fused.adam.gradients, strict=True):
        np.testing.assert_allclose(gradient, parameter.grad.numpy(), rtol=1e-9, atol=1e-12)  # type: ignore[union-attr]


@pytest.mark.parametrize("max_products", [2**22, 0], ids=["acting in NumPy", "acting in PyTorch"])
@pytest.mark.parametrize("net_arch", [[], [6]])
@pytest.mark.parametrize("policy_class", [CnnPolicy, ActorCriticPolicy])
@pytest.mark.parametrize("extractor", [MinAtarCnn, TwoConvolutions])
def test_network_for_images(
    extractor: type[ReluCnn],
    policy_class: type[ActorCriticPolicy],
    net_arch: list[int],
    max_products: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Outputs and gradient in float64, with kernels in either layout in memory, and none of Adam's steps mixed up."""
    monkeypatch.setattr(sb3_dapo.fused, "MAX_PRODUCTS_OF_ACTING", max_products)
    monkeypatch.setattr(sb3_dapo.fused, "MAX_PRODUCTS_OF_PART", 300)
    policy = make_cnn_policy(policy_class, "Box", features_extractor_class=extractor, net_arch=net_arch).double()
    assert suits(policy)
    fused, twin = FusedPolicy(policy), deepcopy(policy)
    images, taken = th.rand(11, *IMAGES.shape) > 0.5, th.randn(11, 3, dtype=th.float64)
    outputs = fused.evaluate(images, taken)
    features_extractor = policy.features_extractor
    policy.extract_features = lambda x, _=None: features_extractor(x.double())  # type: ignore[assignment, method-assign]
    expected = policy.evaluate_actions(images, taken)
    for ours, theirs in zip(outputs, expected, strict=True):
        th.testing.assert_close(ours, theirs.flatten())  # type: ignore[union-attr]
    th.testing.assert_close(fused.values(images), expected[0].detach())

    of_values, of_log_prob = th.randn(2, 11, dtype=th.float64)
    fused.evaluate(images, taken)  # again, as those were to act with
    values, log_prob, _ = expected
    (values.flatten() * of_values + log_prob * of_log_prob).sum().backward()
    norm = th.nn.utils.clip_grad_norm_(policy.parameters(), 0.5)
    gradients = [p.grad.clone() for p in fused.adam.parameters]  # type: ignore[union-attr]
    assert fused.step(of_values.numpy(), of_log_prob.numpy(), 0.0, 0.5) == pytest.approx(norm.item())
    for ours, gradient in zip(fused.adam.gradients, gradients, strict=True):
        np.testing.assert_allclose(ours, gradient.numpy(), rtol=1e-9, atol=1e-12)
    fused.adam.step()
    fused.adam.finish()
    for group in twin.optimizer.param_groups:
        group["fused"] = False
    for _ in range(2):
        for parameter, twin_of in zip(policy.parameters(), twin.parameters(), strict=True):
            twin_of.grad = parameter.grad.clone()  # type: ignore[union-attr]
        twin.optimizer.step()
    th.testing.assert_close(list(policy.parameters()), list(twin.parameters()))


def test_images_of_bytes() -> None:
    """They are divided by 255, as SB3 does."""
    space = spaces.Box(0, 255, (10, 9, 3), np.uint8)
    policy = ActorCriticPolicy(space, ACTIONS["Box"], lambda _: 1e-2, features_extractor_class=TwoConvolutions)
    set_fast(policy, True)
    assert suits(policy)
    images, taken = th.randint(256, (5, 9, 10, 3), dtype=th.uint8).transpose(1, 2), th.randn(5, 3)
    assert not images.is_contiguous()  # an environment may return such
    fused = FusedPolicy(policy)
    th.testing.assert_close(fused.values(images), policy.predict_values(images), rtol=1e-4, atol=1e-5)
    for ours, theirs in zip(fused.evaluate(images, taken), policy.evaluate_actions(images, taken), strict=True):
        th.testing.assert_close(ours, theirs.flatten(), rtol=1e-4, atol=1e-5)  # type: ignore[union-attr]


@pytest.mark.parametrize("extractor", [MinAtarCnn, TwoConvolutions])
def test_products_in_bfloat16(extractor: type[ReluCnn]) -> None:
    """Near what autocast computes, and to float32's gradient but where ReLU cuts. Acting is in float32."""
    policy = make_cnn_policy(actions="Box", features_extractor_class=extractor)
    images, taken = th.rand(64, *IMAGES.shape) > 0.5, th.randn(64, 3)
    of_values, of_log_prob = th.randn(2, 64).numpy()
    gradients, values = [], []
    for policy.autocast in (False, True):
        assert suits(policy)
        fused = FusedPolicy(policy)
        outputs = fused.evaluate(images, taken)
        for ours, theirs in zip(outputs, policy.evaluate_actions(images, taken), strict=True):
            th.testing.assert_close(ours, theirs.flatten(), rtol=0.02, atol=0.02)  # type: ignore[union-attr]
        fused.adam.step = lambda: None  # type: ignore[method-assign]
        fused.step(of_values, of_log_prob, 0.0, 1e9)
        gradients.append(fused.adam.gradient)
        values.append(fused.values(images[:8]))
        assert fused.adam.gradient.dtype == th.float32
    assert 0 < (gradients[1] - gradients[0]).norm() / gradients[0].norm() < 0.1
    th.testing.assert_close(*values, rtol=0, atol=0)


@pytest.mark.filterwarnings("ignore:.*Overriding environment")
@pytest.mark.parametrize("pays", [True, False])
def test_bfloat16_where_it_pays(pays: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("minatar.gym").register_envs()
    monkeypatch.setattr("sb3_dapo.dapo.bfloat16_pays", lambda: pays)
    policy_kwargs = {"features_extractor_class": MinAtarCnn, "net_arch": []}
    env = make_vec_env("MinAtar/Breakout-v1", 2, seed=0)
    model = make_model(DAPO, "CnnPolicy", env, policy_kwargs=policy_kwargs).learn(64)
    assert model._fused is not None
    assert model.policy.autocast == pays


class OwnForward(MinAtarCnn):
    def forward(self, observations: th.Tensor) -> th.Tensor:
        return -super().forward(observations)


class Padded(TwoConvolutions):
    def __init__(self, observation_space: spaces.Box) -> None:
        super().__init__(observation_space, padding=1)


def with_another_layer(policy: Any) -> None:
    policy.features_extractor.norm = th.nn.LayerNorm(128)


def hooked_convolution(policy: Any) -> None:
    policy.features_extractor.conv.register_forward_hook(lambda *_: None)


@pytest.mark.parametrize("extractor", [OwnForward, Padded])
def test_other_networks_for_images_are_not_fused(extractor: type[ReluCnn]) -> None:
    assert not suits(make_cnn_policy(features_extractor_class=extractor))


@pytest.mark.parametrize("change", [with_another_layer, hooked_convolution])
def test_changed_networks_for_images_are_not_fused(change: Callable[[Any], None]) -> None:
    policy = make_cnn_policy()
    assert suits(policy)
    change(policy)
    assert not suits(policy)


@pytest.mark.parametrize("policy_kind", ["MlpPolicy", "CnnPolicy"])
@pytest.mark.parametrize("actions", ACTIONS)
def test_acts_as_sb3(actions: str, policy_kind: str) -> None:
    """The same seed, the same actions."""
    policy = make_policy(actions) if policy_kind == "MlpPolicy" else make_cnn_policy(actions=actions)
    observations, _ = some_data(actions, 6, th.float32)
    if policy_kind == "CnnPolicy":
        observations = th.rand(6, *IMAGES.shape) > 0.5
    th.manual_seed(1)
    with FusedPolicy(policy).acting(), th.no_grad():
        ours = policy(observations)
    set_fast(policy, False)
    assert type(policy.action_dist) in (DiagGaussianDistribution, CategoricalDistribution)
    th.manual_seed(1)
    for x, y in zip(ours, policy(observations), strict=True):
        th.testing.assert_close(x, y, rtol=1e-5, atol=1e-5)


def test_a_policy_that_acts_is_still_the_policy() -> None:
    """To callbacks that call it or copy it meanwhile."""
    policy = make_policy("Box")
    observations, _ = some_data("Box", 6, th.float32)
    with FusedPolicy(policy).acting():
        copied = deepcopy(policy)
        values = policy(observations)[1]
        mode = policy(observations, True)[0]
        with th.no_grad():
            assert not policy(observations)[1].requires_grad
    assert values.requires_grad
    assert th.equal(mode, policy(observations, deterministic=True)[0])
    with th.no_grad():
        for parameter in copied.parameters():
            parameter.zero_()
        assert th.equal(copied(observations)[1], th.zeros(6, 1))
        assert not th.equal(policy(observations)[1], th.zeros(6, 1))
        policy.load_from_vector(np.zeros_like(policy.parameters_to_vector()))  # gives the parameters other memory
        assert th.equal(policy(observations)[1], th.zeros(6, 1))


class Negative(FlattenExtractor):
    """An extractor of the user's own."""

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return -super().forward(observations)


class OwnPolicy(ActorCriticPolicy):
    """A policy of the user's own."""

    def evaluate_actions(self, *args: Any) -> Any:
        return super().evaluate_actions(*args)


class OwnValues(ActorCriticPolicy):
    """With values of its own."""

    def predict_values(self, *args: Any) -> Any:
        return super().predict_values(*args)


def hooked(policy: ActorCriticPolicy) -> None:
    policy.action_net.register_forward_hook(lambda *_: None)


def watched(policy: ActorCriticPolicy) -> None:
    policy.value_net.weight.register_hook(lambda gradient: gradient)  # type: ignore[union-attr, operator]


def frozen(policy: ActorCriticPolicy) -> None:
    policy.value_net.bias.requires_grad_(False)  # type: ignore[union-attr, operator]


def replaced(policy: ActorCriticPolicy) -> None:
    evaluate = policy.evaluate_actions
    policy.evaluate_actions = lambda *args: evaluate(*args)  # type: ignore[method-assign]


def with_norm(policy: ActorCriticPolicy) -> None:
    policy.mlp_extractor.policy_net.append(th.nn.LayerNorm(16))


@pytest.mark.parametrize(
    ("policy", "settings", "change"),
    [
        ("MlpPolicy", {"activation_fn": th.nn.ELU}, None),
        ("MlpPolicy", {"features_extractor_class": Negative}, None),
        (OwnPolicy, {}, None),
        (OwnValues, {}, None),
        ("MlpPolicy", {}, hooked),
        ("MlpPolicy", {}, watched),
        ("MlpPolicy", {}, frozen),
        ("MlpPolicy", {}, with_norm),
        ("MlpPolicy", {}, replaced),
    ],
)
def test_other_policies_are_not_fused(
    policy: Any, settings: dict[str, Any], change: Callable[..., None] | None
) -> None:
    """They train without."""
    model = make_model(DAPO, policy, "Pendulum-v1", policy_kwargs=settings)
    set_fast(model.policy, True)
    if change is not None:
        assert suits(model.policy)
        change(model.policy)
    assert not suits(model.policy)
    before = flat_parameters(model)
    model.learn(64)
    assert model._fused is None
    assert not th.equal(before, flat_parameters(model))


@pytest.mark.parametrize("space", [spaces.Discrete(4), spaces.Box(-1, 1, (4,), np.float64), spaces.Box(-1, 1, (3, 3))])
def test_observations_that_become_flat_floats(space: spaces.Space[Any]) -> None:
    """Also by two extractors."""
    models = [
        make_model(
            DAPO,
            "MlpPolicy",
            make_vec_env(lambda: RandomEnv(space, spaces.Discrete(2)), 2, seed=0),
            policy_kwargs={"share_features_extractor": False},
            fast=fast,
        ).learn(256)
        for fast in (True, False)
    ]
    assert models[0]._fused is not None and models[1]._fused is None
    th.testing.assert_close(*map(flat_parameters, models), rtol=1e-3, atol=1e-4)


# --- training -------------------------------------------------------------------------------------


def train_again(n_updates: int, fast: bool, env: str, **settings: Any) -> DAPO:
    """A model that learns from the same rollouts, with the same minibatches, however it computes."""
    policy = "MlpPolicy"
    if env.startswith("MinAtar"):
        pytest.importorskip("minatar.gym").register_envs()
        policy, settings["policy_kwargs"] = "CnnPolicy", {"features_extractor_class": MinAtarCnn, "net_arch": []}
    model = make_model(DAPO, policy, make_vec_env(env, 4, seed=0), fast=False, autocast=False, **settings)
    model.learn(256)
    model.fast = fast
    np.random.seed(0)
    for _ in range(n_updates):
        model.train()
    assert (model._fused is not None) == fast
    return model


@pytest.mark.filterwarnings("ignore:.*Overriding environment")
@pytest.mark.parametrize("env", ["Pendulum-v1", "CartPole-v1", "MinAtar/Breakout-v1"])
@pytest.mark.parametrize("settings", [{}, {"ent_coef": 0.02, "policy_loss": "plain"}, {"clip_range_vf": 0.1}])
def test_fifty_updates(env: str, settings: dict[str, Any]) -> None:
    """Parameters, the optimizer's averages and what is logged."""
    fast, plain = (
        train_again(50, is_fast, env, n_epochs=1, batch_size=256, learning_rate=1e-4, **settings)
        for is_fast in (True, False)
    )
    scale = flat_parameters(plain).abs().mean()
    assert (flat_parameters(fast) - flat_parameters(plain)).abs().max() < 1e-4 * scale
    for ours, theirs in zip(fast.policy.parameters(), plain.policy.parameters(), strict=True):
        state, expected = fast.policy.optimizer.state[ours], plain.policy.optimizer.state[theirs]
        assert state["step"] == expected["step"] == 51
        th.testing.assert_close(state["exp_avg"], expected["exp_avg"], rtol=1e-2, atol=1e-5)
        th.testing.assert_close(state["exp_avg_sq"], expected["exp_avg_sq"], rtol=1e-2, atol=1e-7)
    assert fast.logger.name_to_value == pytest.approx(plain.logger.name_to_value, rel=2e-2, abs=1e-4)


@pytest.mark.parametrize(
    ("optimizer", "kwargs", "is_usual"),
    [
        (th.optim.Adam, {"fused": True}, True),
        (th.optim.Adam, {"fused": True, "betas": (0.8, 0.99)}, True),
        (th.optim.Adam, {}, False),
        (th.optim.Adam, {"weight_decay": 0.1}, False),
        (th.optim.Adam, {"amsgrad": True}, False),
        (th.optim.AdamW, {}, False),
        (th.optim.RMSprop, {}, False),
    ],
)
def test_optimizers(optimizer: Any, kwargs: dict[str, Any], is_usual: bool) -> None:
    """The steps of any optimizer, whose state says afterwards what it says without."""
    channels_last = th.randn(2, 3, 4, 5).contiguous(memory_format=th.channels_last)
    parameters = [th.nn.Parameter(x) for x in (th.randn(3, 2), th.randn(4), channels_last)]
    twins = [th.nn.Parameter(parameter.detach().clone()) for parameter in parameters]
    flat = FlatAdam(optimizer(parameters, lr=1e-2, **kwargs), parameters)
    assert flat.is_usual == is_usual
    other = optimizer(twins, lr=1e-2, **kwargs)
    for _ in range(2):
        for _ in range(5):
            gradients = [th.randn_like(twin) for twin in twins]
            for twin, place, gradient in zip(twins, flat.gradients, gradients, strict=True):
                twin.grad = gradient
                place[...] = gradient.numpy()
            flat.step()
            other.step()
        flat.finish()
        flat = FlatAdam(flat.optimizer, parameters)
    th.testing.assert_close(parameters, twins)
    states, expected = (list(x.state_dict()["state"].values()) for x in (flat.optimizer, other))
    th.testing.assert_close(states, expected)


def test_who_watches_the_optimizer_is_told() -> None:
    model = make_model(DAPO, "MlpPolicy", "CartPole-v1")
    calls = []
    model.policy.optimizer.register_step_post_hook(lambda *_: calls.append(1))
    model.learn(64)
    assert len(calls) == model.n_epochs * 2


def test_an_update_that_fails_keeps_what_the_optimizer_knows() -> None:
    class Env(gym.wrappers.TimeLimit):
        reward = 1.0

        def step(self, action: Any) -> Any:
            observation, _, *others = super().step(action)
            return observation, self.reward, *others

    env = Env(gym.make("CartPole-v1").unwrapped, 100)
    model = make_model(DAPO, "MlpPolicy", env, normalize_advantage=False).learn(64)
    steps = [state["step"].item() for state in model.policy.optimizer.state.values()]
    env.reward = 1e30
    before = flat_parameters(model)
    with pytest.raises(NonFiniteError, match="gradient is not finite"):
        model.learn(64, reset_num_timesteps=False)
    assert th.equal(flat_parameters(model), before)
    assert [state["step"].item() for state in model.policy.optimizer.state.values()] == steps


def test_statistics_are_those_of_each_minibatch() -> None:
    """With a last minibatch that is smaller."""
    model = make_model(DAPO, "MlpPolicy", "CartPole-v1", batch_size=24, n_epochs=1, learning_rate=0.0, fast=False)
    model.learn(64)
    np.random.seed(5)
    expected = []
    for samples in model.rollout_buffer.get(24):
        expected.append(dapo_loss(samples, *model._evaluate(samples), model._loss_settings()))
    for fast in (False, True):
        model.fast = fast
        np.random.seed(5)
        model.train()
        logged = model.logger.name_to_value
        assert logged["train/loss"] == pytest.approx(np.mean([loss.item() for loss, _ in expected]), rel=1e-4)
        value_loss = np.mean([stats["value_loss"].item() for _, stats in expected])
        assert logged["train/value_loss"] == pytest.approx(value_loss, rel=1e-4)
        divergence = th.cat([stats["divergence"] for _, stats in expected]).mean().item()
        assert logged["train/divergence"] == pytest.approx(divergence, abs=1e-6)
