"""The faster forms of the Nature CNN and Adam compute what SB3's forms do, within float tolerance."""

import threading
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch as th
from algos import flat_parameters
from envs import CatchEnv
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, NatureCNN

from sb3_dapo import DAPO
from sb3_dapo import fast as forms
from sb3_dapo.fast import bfloat16_pays
from sb3_dapo.policies import CnnPolicy, blocks_to_channels, fast_nature_cnn, set_fast

# Sizes that 4 divides, and one that it does not
SIZES = [(84, 84), (36, 44), (50, 39)]
SMALL_CNN: dict[str, Any] = {"features_extractor_kwargs": {"features_dim": 16}}
SETTINGS: dict[str, Any] = {
    "n_steps": 16,
    "batch_size": 16,
    "n_epochs": 2,
    "seed": 0,
    "device": "cpu",
    "autocast": False,
}


class TinyCnn(BaseFeaturesExtractor):
    """An extractor of the user's own."""

    def __init__(self, observation_space: spaces.Box) -> None:
        super().__init__(observation_space, 8)
        self.layers = th.nn.Sequential(
            th.nn.Conv2d(observation_space.shape[0], 2, 9, 9), th.nn.Flatten(), th.nn.Linear(32, 8)
        )

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return self.layers(observations)


def image_space(n_channels: int, height: int, width: int) -> spaces.Box:
    return spaces.Box(0, 255, (n_channels, height, width), np.uint8)


def some_images(n_channels: int, height: int, width: int, batch_size: int = 5) -> th.Tensor:
    generator = th.Generator().manual_seed(0)
    return th.randint(0, 256, (batch_size, n_channels, height, width), dtype=th.uint8, generator=generator)


def make(algo: type[DAPO], **settings: Any) -> DAPO:
    env = make_vec_env(CatchEnv, 2, seed=0)
    return algo("CnnPolicy", env, **{**SETTINGS, "policy_kwargs": SMALL_CNN, **settings})


def gradients(extractor: NatureCNN, features: th.Tensor) -> list[th.Tensor]:
    return list(th.autograd.grad(features.square().sum(), list(extractor.parameters())))


# --- the network ----------------------------------------------------------------------------------


def test_blocks_to_channels() -> None:
    images = some_images(3, 8, 12, batch_size=2)
    blocks = blocks_to_channels(images)
    assert blocks.shape == (2, 48, 2, 3)
    # Every block holds the bytes of its 4 x 4 pixels, all blocks in the same order
    for b, y, x in np.ndindex(2, 2, 3):
        pixels = images[b, :, 4 * y : 4 * y + 4, 4 * x : 4 * x + 4]
        assert th.equal(blocks[b, :, y, x].sort().values, pixels.flatten().sort().values)
    first_block = images.clone()
    first_block[:, :, :4, :4] = images[:, :, 4:8, 8:12]
    assert th.equal(blocks_to_channels(first_block)[:, :, 0, 0], blocks[:, :, 1, 2])


@pytest.mark.parametrize("n_channels", [1, 4])
@pytest.mark.parametrize("size", SIZES)
def test_features_and_gradients(n_channels: int, size: tuple[int, int]) -> None:
    extractor = NatureCNN(image_space(n_channels, *size), features_dim=32)
    images = some_images(n_channels, *size)
    plain, fast = extractor(images / 255.0), fast_nature_cnn(extractor, images)
    th.testing.assert_close(fast, plain, rtol=1e-4, atol=1e-6)
    for ours, theirs in zip(gradients(extractor, fast), gradients(extractor, plain), strict=True):
        th.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5 * theirs.abs().max().item())


@pytest.mark.parametrize("n_images", [1, 2, 5])
def test_features_in_halves(n_images: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Acting computes them in two threads where it has one core to itself and others idle."""
    extractor, images = NatureCNN(image_space(4, 84, 84), features_dim=32), some_images(4, 84, 84, n_images)
    whole = fast_nature_cnn(extractor, images)
    computed = []

    def compute(extractor: NatureCNN, images: th.Tensor) -> th.Tensor:
        computed.append((len(images), threading.get_ident(), th.get_num_threads()))
        return whole_cnn(extractor, images)

    whole_cnn = forms._fast_nature_cnn
    monkeypatch.setattr(forms, "_fast_nature_cnn", compute)
    with forms.threads(1), forms.in_halves():
        with th.no_grad():
            halved = fast_nature_cnn(extractor, images)
        fast_nature_cnn(extractor, images).sum().backward()  # gradients want them whole
    *halves, last = computed
    assert sorted(n for n, _, _ in halves) == ([1] if n_images == 1 else [n_images // 2, n_images - n_images // 2])
    assert len({thread for _, thread, _ in halves}) == len(halves)
    assert {n_threads for _, _, n_threads in halves} == {1}
    assert last[:2] == (n_images, threading.get_ident())
    assert not halved.requires_grad
    th.testing.assert_close(halved, whole.detach(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("size", SIZES)
def test_bfloat16_keeps_two_digits(size: tuple[int, int], fast: bool) -> None:
    policy = CnnPolicy(image_space(4, *size), spaces.Discrete(3), lambda _: 1e-3)
    images = some_images(4, *size)
    with th.no_grad():
        exact = policy.extract_features(images)
        policy.autocast, policy.fast = True, fast
        rounded = policy.extract_features(images)
    assert rounded.dtype == th.float32
    assert not th.equal(rounded, exact)
    th.testing.assert_close(rounded, exact, rtol=0, atol=0.01 * exact.abs().max().item())


def test_bytes_are_exact_in_bfloat16() -> None:
    """So the fast form may turn them into it at once."""
    every_byte = th.arange(256, dtype=th.uint8)
    assert th.equal(every_byte.to(th.bfloat16).float(), every_byte.float())


@pytest.mark.parametrize(
    ("space", "policy_kwargs"),
    [
        (image_space(1, 36, 36), {"features_extractor_class": TinyCnn}),
        (image_space(1, 36, 36), {"share_features_extractor": False}),
        (spaces.Box(0, 1, (1, 36, 36), np.float32), {"normalize_images": False}),
    ],
    ids=["own extractor", "extractors not shared", "images not normalized"],
)
def test_other_networks_are_left_alone(space: spaces.Box, policy_kwargs: dict[str, Any]) -> None:
    policy = CnnPolicy(space, spaces.Discrete(3), lambda _: 1e-3, **policy_kwargs)
    images = some_images(1, 36, 36)
    observations = images if space.dtype == np.uint8 else images / 255.0
    with th.no_grad():
        plain = policy.evaluate_actions(observations, th.zeros(5))
        policy.fast = True
        for ours, theirs in zip(policy.evaluate_actions(observations, th.zeros(5)), plain, strict=True):
            assert th.equal(ours, theirs)


def test_images_that_are_no_bytes() -> None:
    policy = CnnPolicy(image_space(1, 36, 36), spaces.Discrete(3), lambda _: 1e-3)
    images = some_images(1, 36, 36)
    with th.no_grad():
        plain = policy.evaluate_actions(images.float(), th.zeros(5))
        policy.fast = True
        for ours, theirs in zip(policy.evaluate_actions(images.float(), th.zeros(5)), plain, strict=True):
            assert th.equal(ours, theirs)


# --- training -------------------------------------------------------------------------------------


def test_training_is_the_same(algo: type[DAPO]) -> None:
    start = flat_parameters(make(algo))
    plain, fast = (make(algo, fast=fast, n_rollouts=2).learn(96) for fast in (False, True))
    # Float tolerance, against what training changed
    change = (flat_parameters(plain) - start).abs().max()
    difference = (flat_parameters(fast) - flat_parameters(plain)).abs().max()
    assert 0 < difference < 1e-3 * change


@pytest.mark.parametrize(
    ("settings", "is_fast"),
    [
        ({}, True),
        ({"divergence_coef": 0.0, "advantage": "gae"}, False),
        ({"divergence_coef": 0.0, "advantage": "gae", "fast": True}, True),
        ({"divergence_coef": 0.0, "advantage": "gae", "n_rollouts": 2}, True),
        ({"fast": False}, False),
    ],
)
def test_when_it_is_fast(algo: type[DAPO], settings: dict[str, Any], is_fast: bool) -> None:
    model = make(algo, **settings).learn(32)
    assert model.policy.fast == is_fast
    assert [group["fused"] for group in model.policy.optimizer.param_groups] == [True if is_fast else None]


def test_adam_goes_on_in_the_other_form(algo: type[DAPO]) -> None:
    """A schedule that falls to PPO's special case, or a loaded model with another setting, changes it on the way."""

    def trained(path: list[bool]) -> DAPO:
        model = make(algo)
        for fast in path:
            model.fast = fast
            model.learn(32, reset_num_timesteps=False)
        return model

    # Float tolerance, against the 0.002 that training changes
    difference = flat_parameters(trained([False, True, False, True])) - flat_parameters(trained([False] * 4))
    assert 0 < difference.abs().max() < 1e-5


def test_adam_takes_a_step_on_the_device_and_then_in_another_form(algo: type[DAPO]) -> None:
    """The fused step of GPUs skips what is not finite; the other forms refuse what tells it so."""
    model = make(algo)
    parameters = list(model.policy.parameters())
    model.device = SimpleNamespace(type="cuda")  # type: ignore[assignment]
    set_fast(model.policy, True)
    before = flat_parameters(model)
    (th.stack([x.sum() for x in parameters]).sum() * float("inf")).backward()
    model._take_step(parameters)
    assert th.equal(flat_parameters(model), before)
    set_fast(model.policy, False)
    for device in ("cuda", "cpu"):
        model.device = SimpleNamespace(type=device)  # type: ignore[assignment]
        before = flat_parameters(model)
        model.policy.optimizer.zero_grad()
        th.stack([x.sum() for x in parameters]).sum().backward()
        model._take_step(parameters)
        assert not th.equal(flat_parameters(model), before)


def test_other_optimizers_are_left_alone() -> None:
    space = image_space(1, 36, 36)
    policy = CnnPolicy(space, spaces.Discrete(3), lambda _: 1e-3, optimizer_class=th.optim.RMSprop)
    set_fast(policy, True)
    assert "fused" not in policy.optimizer.param_groups[0]
    policy = CnnPolicy(space, spaces.Discrete(3), lambda _: 1e-3, optimizer_kwargs={"foreach": True})
    set_fast(policy, True)
    assert not policy.optimizer.param_groups[0]["fused"]


def test_vector_of_parameters(algo: type[DAPO]) -> None:
    """In the order of channels first, as SB3's."""
    model = make(algo).learn(32)
    vector = model.policy.parameters_to_vector()
    ppo = PPO("CnnPolicy", make_vec_env(CatchEnv, 1), policy_kwargs=SMALL_CNN, device="cpu")
    ppo.policy.load_from_vector(vector)
    for name, theirs in ppo.policy.state_dict().items():
        assert th.equal(theirs, model.policy.state_dict()[name])
    # What is loaded from a vector is trained on, with Adam's averages as they were
    reloaded = make(algo).learn(32)
    reloaded.policy.load_from_vector(vector)
    for trained in (reloaded, model):
        th.manual_seed(0)
        np.random.seed(0)
        trained.env.seed(0)
        trained.learn(32, reset_num_timesteps=False)
    np.testing.assert_allclose(
        reloaded.policy.parameters_to_vector(), model.policy.parameters_to_vector(), rtol=0, atol=1e-6
    )


def test_ppo_takes_the_parameters(algo: type[DAPO]) -> None:
    model = make(algo).learn(32)
    ppo = PPO("CnnPolicy", make_vec_env(CatchEnv, 1), policy_kwargs=SMALL_CNN, device="cpu")
    ppo.policy.load_state_dict(model.policy.state_dict())
    observations = np.random.default_rng(0).integers(0, 256, (64, 1, 36, 36), dtype=np.uint8)
    ours, theirs = (m.predict(observations, deterministic=True)[0] for m in (model, ppo))
    np.testing.assert_array_equal(ours, theirs)


def test_autocast_trains(algo: type[DAPO]) -> None:
    model = make(algo, autocast=True).learn(64)
    parameters = flat_parameters(model)
    assert parameters.dtype == th.float32
    assert th.isfinite(parameters).all()
    assert not th.equal(parameters, flat_parameters(make(algo).learn(64)))


def test_trial_of_bfloat16() -> None:
    state, n_threads = th.get_rng_state(), th.get_num_threads()
    answers = set()
    for _ in range(3):
        bfloat16_pays.cache_clear()
        answers.add(bfloat16_pays())
    assert answers in ({True}, {False})  # not a matter of luck
    assert th.equal(th.get_rng_state(), state)
    assert th.get_num_threads() == n_threads


@pytest.mark.parametrize("pays", [True, False])
@pytest.mark.parametrize(
    ("extractor", "settings", "is_known"),
    [
        (NatureCNN, {}, True),
        (NatureCNN, {"fast": False}, False),
        (NatureCNN, {"divergence_coef": 0.0, "n_rollouts": 1, "advantage": "gae"}, False),
        (TinyCnn, {}, False),
    ],
)
def test_autocast_of_known_networks(
    extractor: Any, settings: dict[str, Any], is_known: bool, pays: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sb3_dapo.dapo.bfloat16_pays", lambda: pays)
    policy_kwargs = {"features_extractor_class": extractor}
    model = make(DAPO, policy_kwargs=policy_kwargs, autocast=None, **settings).learn(32)
    assert model.policy.autocast == (is_known and pays)
