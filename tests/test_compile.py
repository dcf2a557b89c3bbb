"""`compile=True`: the same learning, and a policy that cannot be compiled is used as it is."""

import shutil
from typing import Any

import numpy as np
import pytest
import torch as th
from algos import make_model

from sb3_dapo import DAPO


@pytest.mark.parametrize("message", ["no compiler\nand more", ""])
def test_policy_that_cannot_be_compiled(algo: type[DAPO], monkeypatch: pytest.MonkeyPatch, message: str) -> None:
    def fail(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError(message)

    plain = make_model(algo, "MlpPolicy", "CartPole-v1").learn(128)
    monkeypatch.setattr(th, "compile", fail)
    reason = message.split("\n")[0] or "RuntimeError"
    model = make_model(algo, "MlpPolicy", "CartPole-v1", compile=True)
    monkeypatch.setattr(th.nn.Module, "compile", fail)
    with pytest.warns(UserWarning, match=f"The policy is not compiled, as torch.compile failed: {reason}$"):
        model.learn(128)
    np.testing.assert_array_equal(model.policy.parameters_to_vector(), plain.policy.parameters_to_vector())
    assert th.distributions.Distribution._validate_args  # as before


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="no compiler")
def test_learning_is_the_same(algo: type[DAPO], tmp_path: Any) -> None:
    plain = make_model(algo, "MlpPolicy", "CartPole-v1", n_rollouts=2).learn(256)
    model = make_model(algo, "MlpPolicy", "CartPole-v1", n_rollouts=2, compile=True)
    model.learn(256)
    assert model._compiled_evaluate is not None
    np.testing.assert_allclose(
        model.policy.parameters_to_vector(), plain.policy.parameters_to_vector(), rtol=0, atol=1e-4
    )
    # The compiled functions are not saved
    model.save(tmp_path / "model")
    loaded = algo.load(tmp_path / "model", device="cpu")
    assert loaded.compile and loaded._compiled_evaluate is None
    obs = np.zeros((3, 4), dtype=np.float32)
    np.testing.assert_array_equal(loaded.predict(obs, deterministic=True)[0], model.predict(obs, deterministic=True)[0])
