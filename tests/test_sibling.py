"""An algorithm of a user, which declares an argument and what it may be, has all that DAPO has."""

import json
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
import torch as th
from algos import flat_parameters, make_model

from sb3_dapo import DAPO
from sb3_dapo.acting import ActingPolicy
from sb3_dapo.arguments import Range, arguments_of
from sb3_dapo.checkpoint import learn_until
from sb3_dapo.loss import LossSettings


class Sibling(DAPO):
    """
    DAPO whose entropy bonus fades.

    :param fading: how much of it is gone at the end
    :param shape: how it fades
    """

    argument_ranges: ClassVar[dict[str, Range]] = {**DAPO.argument_ranges, "fading": Range(0, 1)}

    def __init__(
        self, *args: Any, fading: float = 0.5, shape: Literal["linear", "square"] = "linear", **kwargs: Any
    ) -> None:
        self.fading, self.shape = fading, shape
        super().__init__(*args, **kwargs)

    def _loss_settings(self) -> LossSettings:
        gone = 1 - self._current_progress_remaining
        gone = gone**2 if self.shape == "square" else gone
        settings = super()._loss_settings()
        return settings._replace(ent_coef=settings.ent_coef * (1 - self.fading * gone))


def make(**settings: Any) -> Any:
    return make_model(Sibling, "MlpPolicy", "CartPole-v1", ent_coef=0.1, **settings)


def test_arguments_are_those_of_both() -> None:
    names = list(arguments_of(Sibling))
    assert {"fading", "shape", "divergence_coef", "n_steps", "policy"} <= set(names)
    assert arguments_of(Sibling)["fading"].default == 0.5
    assert arguments_of(Sibling)["gamma"].annotation is float


def test_its_argument_counts() -> None:
    faded, kept = (make(fading=fading).learn(256) for fading in (1.0, 0.0))
    assert not th.equal(flat_parameters(faded), flat_parameters(kept))
    plain = make_model(DAPO, "MlpPolicy", "CartPole-v1", ent_coef=0.1).learn(256)
    assert th.equal(flat_parameters(kept), flat_parameters(plain))


class ActsItself(DAPO):
    """With something in the policy's place while a rollout is collected."""

    acting_policy_class = ActingPolicy


def test_overlap_would_ignore_what_acts() -> None:
    with pytest.raises(ValueError, match="`overlap` must be False, as this policy acts in a way of its own"):
        make_model(ActsItself, "MlpPolicy", "CartPole-v1", overlap=True)


@pytest.mark.parametrize(("name", "value"), [("fading", 1.5), ("fading", "all"), ("shape", "round"), ("gamma", 2.0)])
def test_arguments_are_checked(name: str, value: Any, tmp_path: Path) -> None:
    """When it is made, loaded, and trained on."""
    with pytest.raises(ValueError, match=f"`{name}` must be .*, got {value!r}"):
        make(**{name: value})
    make().save(tmp_path / "model")
    with pytest.raises(ValueError, match=f"`{name}` must be .*, got {value!r}"):
        Sibling.load(tmp_path / "model", **{name: value})
    model = make()
    setattr(model, name, value)
    with pytest.raises(ValueError, match=f"`{name}` must be .*, got {value!r}"):
        model.learn(64)


def test_saved_and_loaded(tmp_path: Path) -> None:
    make(fading=0.25, shape="square").save(tmp_path / "model")
    loaded = Sibling.load(tmp_path / "model")
    assert (type(loaded), loaded.fading, loaded.shape) == (Sibling, 0.25, "square")


def test_a_resume_is_exact(tmp_path: Path) -> None:
    settings = {"fading": 0.75, "n_rollouts": 2}
    part = make(**settings)
    learn_until(part, 256)
    part.save_checkpoint(tmp_path / "checkpoint")
    resumed = Sibling.load_checkpoint(tmp_path / "checkpoint", make().get_env())
    assert resumed.fading == 0.75
    learn_until(resumed, 512)
    half = make(**settings)
    learn_until(half, 256)
    learn_until(half, 512)
    assert th.equal(flat_parameters(resumed), flat_parameters(half))


def test_exported(tmp_path: Path) -> None:
    model = make(fading=0.25, shape="square").learn(64)
    model.export(tmp_path / "model")
    described = json.loads((tmp_path / "model" / "model.json").read_text())
    assert described["algorithm"] == "Sibling"
    assert (described["hyperparameters"]["fading"], described["hyperparameters"]["shape"]) == (0.25, "square")
    loaded = Sibling.load_exported(tmp_path / "model")
    assert (loaded.fading, loaded.shape) == (0.25, "square")
    assert th.equal(flat_parameters(loaded), flat_parameters(model))
    with pytest.raises(ValueError, match="is a model of 'Sibling', not of DAPO"):
        DAPO.load_exported(tmp_path / "model")


def test_its_log_has_its_name(tmp_path: Path) -> None:
    make(tensorboard_log=str(tmp_path)).learn(64)
    assert [path.name for path in tmp_path.iterdir()] == ["Sibling_1"]
