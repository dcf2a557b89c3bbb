"""The network for the MinAtar games."""

import json
import subprocess
import sys

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env

from sb3_dapo import DAPO
from sb3_dapo.minatar import MinAtarCnn


@pytest.mark.parametrize("n_channels", [1, 4, 10])
def test_features(n_channels: int) -> None:
    """Against the same layers one after the other, channels first."""
    net = MinAtarCnn(spaces.Box(0, 1, (10, 10, n_channels), bool), features_dim=32)
    observations = th.randint(0, 2, (6, 10, 10, n_channels)).float()
    convolved = net.conv(observations.permute(0, 3, 1, 2)).relu()
    # The second layer reads channels last: its columns in the order of channels first
    weight = net.linear.weight.view(32, 8, 8, 16).permute(0, 3, 1, 2).flatten(1)
    expected = (convolved.flatten(1) @ weight.T + net.linear.bias).relu()
    assert net(observations).shape == (6, net.features_dim) == (6, 32)
    th.testing.assert_close(net(observations), expected)


def test_size() -> None:
    """As published: 16 filters of 3 x 3 and 128 units."""
    net = MinAtarCnn(spaces.Box(0, 1, (10, 10, 4), bool))
    assert sum(p.numel() for p in net.parameters()) == (4 * 9 + 1) * 16 + (16 * 8 * 8 + 1) * 128


@pytest.mark.parametrize("shape", [(10, 10), (2, 10, 4), (10, 2, 4), (100,)])
def test_other_shapes(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="`observation_space` must have the shape"):
        MinAtarCnn(spaces.Box(0, 1, shape, np.float32))


@pytest.mark.filterwarnings("ignore:.*Overriding environment")
def test_trains(algo: type[DAPO]) -> None:
    pytest.importorskip("minatar.gym").register_envs()
    policy_kwargs = {"features_extractor_class": MinAtarCnn, "net_arch": []}
    env = make_vec_env("MinAtar/Breakout-v1", 2, seed=0)
    model = algo("CnnPolicy", env, n_steps=32, batch_size=32, n_epochs=2, policy_kwargs=policy_kwargs, device="cpu")
    before = model.policy.parameters_to_vector()
    model.learn(128)
    after = model.policy.parameters_to_vector()
    assert np.isfinite(after).all()
    assert not np.array_equal(after, before)


def test_registered_without_imports() -> None:
    """The command knows the games as MinAtar itself registers them, and does not wait for its imports."""
    minatar = pytest.importorskip("minatar.gym")
    code = """
import json, sys
import gymnasium as gym
import sb3_dapo.zoo
found = {name: spec.to_json() for name, spec in gym.registry.items() if name.startswith("MinAtar/")}
print(json.dumps([found, sorted({"seaborn", "pandas", "minatar"} & set(sys.modules))]))
"""
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    found, imported = json.loads(process.stdout.splitlines()[-1])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gym.envs.registration, "registry", registry := {})
        minatar.register_envs()
    assert len(found) == 10
    assert found == {name: spec.to_json() for name, spec in registry.items()}
    assert imported == []
