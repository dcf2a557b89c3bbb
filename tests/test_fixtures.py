"""Files of earlier versions can be read, and training goes on from them as it did then."""

import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

from sb3_dapo import DAPO, AdaptiveController
from sb3_dapo.checkpoint import latest_checkpoint, learn_until

FIXTURES = Path(__file__).parent / "fixtures"
# Their environments are pickled under the module's name
sys.path.insert(0, str(FIXTURES))
import write  # noqa: E402

sys.path.remove(str(FIXTURES))

VERSIONS = sorted(path for path in FIXTURES.iterdir() if (path / "expected.npz").is_file())
MAKE_ENV = {"pendulum": write.pendulum, "images": write.images}
NAMES = pytest.mark.parametrize("name", MAKE_ENV)


@pytest.fixture(params=VERSIONS, ids=lambda path: path.name)
def folder(request: pytest.FixtureRequest) -> Path:
    return request.param


def check_pendulum(model: DAPO, expected: dict[str, np.ndarray]) -> None:
    """The arguments of the model, what it does, and that it can be trained on."""
    assert (model.n_rollouts, model.divergence_steps, model.n_steps) == (2, 3, 32)
    assert isinstance(model.divergence_coef, AdaptiveController) and model.divergence_coef.target == 0.02
    assert [model.learning_rate(progress) for progress in (1.0, 0.0)] == pytest.approx([1e-3, 1e-4])
    assert model.policy_kwargs["net_arch"] == {"pi": [8], "vf": [8]}
    actions, _ = model.predict(expected["pendulum observations"], deterministic=True)
    np.testing.assert_allclose(actions, expected["pendulum actions"], rtol=1e-5, atol=1e-6)


def test_there_are_fixtures() -> None:
    assert "0.1.0" in [folder.name for folder in VERSIONS]


def test_model(folder: Path) -> None:
    model = DAPO.load(folder / "pendulum.zip", env=write.pendulum(), device="cpu")
    check_pendulum(model, np.load(folder / "expected.npz"))
    model.learn(64)


def test_exported_model(folder: Path) -> None:
    expected = np.load(folder / "expected.npz")
    model = DAPO.load_exported(folder / "pendulum_export", device="cpu")
    check_pendulum(model, expected)
    np.testing.assert_allclose(model.get_vec_normalize_env().obs_rms.mean, expected["pendulum mean"])
    DAPO.load_exported(folder / "pendulum_export", write.pendulum(), device="cpu").learn(64)


@NAMES
def test_checkpoint(name: str, folder: Path) -> None:
    expected = np.load(folder / "expected.npz")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # that the resume is not exact, for instance
        model = DAPO.load_checkpoint(folder / f"{name}_checkpoint.zip", MAKE_ENV[name](), device="cpu")
    np.testing.assert_array_equal(model._last_obs, expected[f"{name} observations"])
    actions, _ = model.predict(model._last_obs, deterministic=True)
    np.testing.assert_allclose(actions, expected[f"{name} actions"], rtol=1e-5, atol=1e-6)
    before = model.policy.parameters_to_vector()
    learn_until(model, model.num_timesteps + write.N_MORE)
    after = expected[f"{name} parameters after more steps"]
    assert np.abs(after - before).max() > 1e-3
    # Other processors round differently
    np.testing.assert_allclose(model.policy.parameters_to_vector(), after, rtol=1e-3, atol=1e-5)


@NAMES
def test_checkpoint_is_written_anew(name: str, folder: Path, tmp_path: Path) -> None:
    """What this version makes of an old checkpoint holds as much."""
    old = DAPO.load_checkpoint(folder / f"{name}_checkpoint.zip", MAKE_ENV[name](), device="cpu")
    old.save_checkpoint(tmp_path / "checkpoint_1_steps")
    new = DAPO.load_checkpoint(latest_checkpoint(tmp_path), MAKE_ENV[name](), device="cpu")
    for model in (old, new):
        learn_until(model, model.num_timesteps + write.N_MORE)
    np.testing.assert_array_equal(old.policy.parameters_to_vector(), new.policy.parameters_to_vector())
