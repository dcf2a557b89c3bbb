"""Frames of stacked images kept once each are the same images."""

from typing import Any

import numpy as np
import pytest
import torch as th
from envs import CatchEnv
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecFrameStack, VecTransposeImage

from sb3_dapo import DAPO
from sb3_dapo.buffers import FrameStacks, RolloutRing
from sb3_dapo.buffers.stores import ArrayRecord, FrameStackRecord, FrameStackStore, RingStore

CPU = th.device("cpu")


def episode_of_stacks(rng: np.random.Generator, length: int, n_frames: int, size: tuple[int, int]) -> np.ndarray:
    """Observations of consecutive steps, ``(length, n_frames, H, W)``, of episodes that begin with black frames."""
    stacks = np.zeros((length, n_frames, *size), dtype=np.uint8)
    for t in range(length):
        if t > 0 and rng.random() > 0.2:
            stacks[t, :-1] = stacks[t - 1, 1:]
        # Few different frames, black ones too, so that stacks are alike by chance
        stacks[t, -1] = rng.integers(3)
    return stacks


@given(st.data())
def test_any_stacks_come_back(data: st.DataObject) -> None:
    """Through several rollouts, whether they share frames or have none in common, against a store of whole stacks."""
    n_rollouts, n_envs, n_steps = (data.draw(st.integers(1, most)) for most in (3, 3, 12))
    n_frames, height, width = (data.draw(st.integers(1, most)) for most in (4, 2, 2))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    ring_shape, shape = (n_rollouts, n_envs, n_steps), (n_frames, height, width)
    stores = [store(ring_shape, shape, th.uint8, CPU) for store in (RingStore, FrameStackStore)]
    share_frames = data.draw(st.booleans())
    for rollout in range(data.draw(st.integers(1, 5))):
        slot = rollout % n_rollouts
        stacks = [episode_of_stacks(rng, n_steps, n_frames, (height, width)) for _ in range(n_envs)]
        observations = np.stack(stacks, axis=1)  # (T, N, C, H, W)
        if not share_frames:
            observations = rng.integers(0, 256, observations.shape, dtype=np.uint8)
        for store, kind in zip(stores, (ArrayRecord, FrameStackRecord), strict=True):
            record = kind(n_steps, n_envs, shape, np.dtype(np.uint8))
            for t in range(n_steps):
                record.write(t, observations[t])
            column = record.column
            np.testing.assert_array_equal(column.whole() if isinstance(column, FrameStacks) else column, observations)
            store.put(slot, column)
        n_kept = min(rollout + 1, n_rollouts) * n_envs * n_steps
        indices = th.from_numpy(rng.permutation(n_kept))
        whole, rebuilt = (store.gather(indices) for store in stores)
        assert th.equal(rebuilt, whole)
        assert rebuilt.dtype == th.uint8


@given(st.integers(0, 2**32))
def test_state(seed: int) -> None:
    """What one store saved another gives back, whatever the size to which its pool has grown."""
    rng = np.random.default_rng(seed)
    ring_shape, shape = (2, 2, 6), (3, 2, 2)
    saved, loaded = (FrameStackStore(ring_shape, shape, th.uint8, CPU) for _ in range(2))
    for store in (saved, loaded) if seed % 2 else (saved,):
        for slot in range(2):
            store.put(slot, rng.integers(0, 256, (6, 2, *shape), dtype=np.uint8))
    loaded.load_state([0, 1], saved.state([0, 1]))
    indices = th.arange(2 * 2 * 6)
    assert th.equal(loaded.gather(indices), saved.gather(indices))


def make(algo: type[DAPO], n_frames: int = 4, **settings: Any) -> DAPO:
    env = VecTransposeImage(VecFrameStack(make_vec_env(CatchEnv, 2, seed=0), n_frames))
    settings = {"n_steps": 32, "batch_size": 16, "n_epochs": 2, "seed": 0, "device": "cpu", **settings}
    return algo("CnnPolicy", env, policy_kwargs={"features_extractor_kwargs": {"features_dim": 16}}, **settings)


@pytest.mark.parametrize("n_rollouts", [1, 3])
def test_training_is_the_same_bit_for_bit(algo: type[DAPO], n_rollouts: int) -> None:
    whole, once = (make(algo, n_rollouts=n_rollouts, optimize_memory_usage=x).learn(5 * 64) for x in (False, True))
    for theirs, ours in zip(whole.policy.parameters(), once.policy.parameters(), strict=True):
        assert th.equal(ours, theirs)


def test_memory(algo: type[DAPO]) -> None:
    """A rollout of stacks of four takes little more than a quarter."""
    size = {}
    for optimize in (False, True):
        model = make(algo, n_steps=128, optimize_memory_usage=optimize).learn(256)
        store = model.rollout_buffer.observation_stores["observation"]
        tensors = [store.pool, store.positions.kept] if isinstance(store, FrameStackStore) else [store.kept]
        size[optimize] = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    assert 0.25 < size[True] / size[False] < 0.3


def test_dict_with_an_image() -> None:
    """Only what is an image is kept by its frames."""
    space = spaces.Dict({"image": spaces.Box(0, 255, (4, 36, 36), np.uint8), "vector": spaces.Box(-1, 1, (3,))})
    ring = RolloutRing(8, space, spaces.Discrete(2), device="cpu", optimize_memory_usage=True)
    kinds = {key: type(store) for key, store in ring.observation_stores.items()}
    assert kinds == {"image": FrameStackStore, "vector": RingStore}


@pytest.mark.parametrize("optimize", [True, 1, "yes"])
def test_without_images(algo: type[DAPO], optimize: Any) -> None:
    with pytest.raises(ValueError, match="`optimize_memory_usage` must be"):
        algo("MlpPolicy", "CartPole-v1", optimize_memory_usage=optimize)
