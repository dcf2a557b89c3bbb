"""Controllers of the divergence coefficient, alone and in training."""

import math
from typing import Any

import pytest
from algos import make_model
from hypothesis import given
from hypothesis import strategies as st

from sb3_dapo import DAPO, AdaptiveController, Controller, DualController

CONTROLLERS = [AdaptiveController, DualController]


@pytest.mark.parametrize(
    "divergence, expected",
    [(0.0, 0.5), (0.0133, 0.5), (0.0134, 1.0), (0.02, 1.0), (0.03, 1.0), (0.031, 2.0), (math.inf, 2.0)],
)
def test_adaptive_rule(divergence: float, expected: float) -> None:
    controller = AdaptiveController(target=0.02, initial=1.0)
    controller.update(divergence)
    assert controller(0.5) == expected


def test_dual_ascent() -> None:
    controller = DualController(target=0.1, initial=2.0, learning_rate=0.5)
    controller.update(0.15)  # half the target too much
    assert controller(1.0) == pytest.approx(2 * math.exp(0.25))
    controller.update(0.05)
    assert controller(1.0) == pytest.approx(2.0)
    controller.update(0.1)
    assert controller(1.0) == pytest.approx(2.0)
    controller.update(1e9)
    assert controller(1.0) == pytest.approx(2 * math.e)


@pytest.mark.parametrize("controller_class", CONTROLLERS)
@given(divergences=st.lists(st.floats(0, 1e6) | st.just(math.inf), max_size=40))
def test_stays_within_its_limits(controller_class: type, divergences: list[float]) -> None:
    controller = controller_class(target=0.01, initial=0.5, minimum=0.1, maximum=3.0)
    for divergence in divergences:
        before = controller(1.0)
        controller.update(divergence)
        assert 0.1 <= controller(1.0) <= 3.0
        if divergence > 1.5 * controller.target:
            assert controller(1.0) > before or before == 3.0
        if divergence < controller.target / 1.5:
            assert controller(1.0) < before or before == 0.1


@pytest.mark.parametrize("controller_class", CONTROLLERS)
@pytest.mark.parametrize(
    "settings, name",
    [
        ({"target": 0.0}, "target"),
        ({"target": math.nan}, "target"),
        ({"initial": 0.0}, "initial"),
        ({"initial": -1.0}, "initial"),
        ({"initial": 2.0, "maximum": 1.0}, "initial"),
        ({"initial": 0.1, "minimum": 0.2}, "minimum"),
        ({"minimum": 0.0}, "minimum"),
        ({"minimum": 3.0, "maximum": 2.0}, "initial"),
        ({"target": "a"}, "target"),
        ({"initial": True}, "initial"),
        ({"minimum": "a"}, "minimum"),
        ({"maximum": None}, "maximum"),
    ],
)
def test_wrong_arguments(controller_class: type, settings: dict[str, Any], name: str) -> None:
    with pytest.raises(ValueError, match=f"`{name}`.*{settings.get(name, 'got 1.0')}"):
        controller_class(**settings)


@pytest.mark.parametrize("learning_rate", [0.0, -0.1, math.nan, True, "0.1"])
def test_wrong_learning_rate(learning_rate: Any) -> None:
    with pytest.raises(ValueError, match=f"`learning_rate` must be a number greater than 0, got {learning_rate!r}"):
        DualController(learning_rate=learning_rate)


class Recorder(Controller):
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.asked: list[float] = []
        self.told: list[float] = []

    def __call__(self, progress_remaining: float) -> float:
        self.asked.append(progress_remaining)
        return 0.25

    def update(self, divergence: float) -> None:
        self.told.append(divergence)


def test_is_asked_and_told_in_every_update(algo: type[DAPO]) -> None:
    model = make_model(algo, "MlpPolicy", "CartPole-v1", divergence_coef=Recorder(), learning_rate=1e-2)
    model.learn(4 * 64)
    controller = model.divergence_coef
    assert isinstance(controller, Recorder)
    assert controller.asked == [0.75, 0.5, 0.25, 0.0]
    assert len(controller.told) == 4
    assert all(divergence > 0 for divergence in controller.told)
    assert model.logger.name_to_value["train/divergence_coef"] == 0.25
    assert model.logger.name_to_value["train/behavior_kl"] == controller.told[-1]


@pytest.mark.parametrize("controller_class", CONTROLLERS)
def test_drives_the_divergence_to_its_target(algo: type[DAPO], controller_class: type) -> None:
    """A coefficient that is too small grows, one that is too large falls."""
    coefficients = []
    for target in (1e-6, 10.0):
        controller = controller_class(target=target, initial=0.1)
        model = make_model(algo, "MlpPolicy", "CartPole-v1", divergence_coef=controller, learning_rate=1e-2)
        model.learn(4 * 64)
        assert controller(0.0) == 0.1, "another model may be made with it"
        coefficients.append(model.divergence_coef(0.0))
    assert coefficients[0] > 0.1 > coefficients[1]


@pytest.mark.parametrize("controller_class", CONTROLLERS)
def test_is_saved_with_the_model(algo: type[DAPO], controller_class: type, tmp_path) -> None:
    model = make_model(algo, "MlpPolicy", "CartPole-v1", divergence_coef=controller_class(target=1e-6))
    model.learn(3 * 64)
    assert model.divergence_coef(1.0) != 1.0
    model.save(tmp_path / "model")
    loaded = algo.load(tmp_path / "model")
    assert isinstance(loaded.divergence_coef, controller_class)
    assert loaded.divergence_coef(1.0) == model.divergence_coef(1.0)
