"""What is NaN or infinite never reaches the parameters, and an error says where it came from."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from algos import flat_parameters, make_model
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_dapo import DAPO
from sb3_dapo.faults import NonFiniteError, check_finite

N_STEPS = 16
BAD = [float("nan"), float("inf"), -float("inf")]


class FaultyEnv(gym.Env):
    """
    Episodes of eight steps that are truncated. Something is wrong once.

    :param fault: "observation", "terminal observation" or "reward", or None
    :param value: what it is then
    :param at: step from the beginning, counted through all episodes, at which it is
    :param as_dict: give the observation in two parts, of which the second is wrong
    """

    def __init__(self, fault: str | None = None, value: float = 0.0, at: int = 0, as_dict: bool = False) -> None:
        self.fault, self.value, self.at, self.as_dict = fault, value, at, as_dict
        box = spaces.Box(-np.inf, np.inf, (2,))
        self.observation_space = spaces.Dict({"good": box, "bad": box}) if as_dict else box
        self.action_space = spaces.Discrete(2)
        self.n_steps = 0

    def observation(self, is_bad: bool) -> Any:
        good = self.np_random.normal(size=2).astype(np.float32)
        bad = np.full(2, self.value, dtype=np.float32) if is_bad else good
        return {"good": good, "bad": bad} if self.as_dict else bad

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return self.observation(False), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        is_now = self.n_steps == self.at
        self.n_steps += 1
        truncated = self.n_steps % 8 == 0
        is_bad = is_now and self.fault == ("terminal observation" if truncated else "observation")
        reward = self.value if is_now and self.fault == "reward" else float(action)
        return self.observation(is_bad), reward, False, truncated, {}


class BrittlePolicy(ActorCriticPolicy):
    """Its values become infinite when told so."""

    broken = False

    def evaluate_actions(self, *args: Any) -> Any:
        values, log_prob, entropy = super().evaluate_actions(*args)
        return (values * float("inf") if self.broken else values), log_prob, entropy


def make(algo: type[DAPO], fault: str, value: float, at: int, as_dict: bool = False, **settings: Any) -> DAPO:
    """A model of two environments, of which the second has the fault."""
    env = DummyVecEnv([lambda: FaultyEnv(as_dict=as_dict), lambda: FaultyEnv(fault, value, at, as_dict)])
    policy = "MultiInputPolicy" if as_dict else "MlpPolicy"
    return make_model(algo, policy, env, n_steps=N_STEPS, **settings)


@pytest.mark.parametrize("nonfinite", ["raise", "skip"])
@pytest.mark.parametrize("value", BAD)
@pytest.mark.parametrize("as_dict", [False, True])
def test_observations(algo: type[DAPO], value: float, nonfinite: str, as_dict: bool) -> None:
    """They always raise, as nothing could act on them."""
    model = make(algo, "observation", value, at=N_STEPS + 3, as_dict=as_dict, nonfinite=nonfinite)
    name = "bad" if as_dict else "observation"
    with pytest.raises(NonFiniteError, match=f"the {name} of environment 1 at step 4 of the rollout is {value}"):
        model.learn(10 * N_STEPS)
    assert th.isfinite(flat_parameters(model)).all()
    assert model._n_updates == model.n_epochs, "the rollout before it has been learned from"


@pytest.mark.parametrize("value", BAD)
def test_observations_where_distributions_do_not_check(
    algo: type[DAPO], value: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a model with ``compile=True`` has been made in the same process."""
    monkeypatch.setattr(th.distributions.Distribution, "_validate_args", False)
    model = make(algo, "observation", value, at=3)
    with pytest.raises(NonFiniteError, match=f"observation of environment 1 at step 4 of the rollout is {value}"):
        model.learn(10 * N_STEPS)


def test_observation_after_the_last_step(algo: type[DAPO]) -> None:
    model = make(algo, "observation", BAD[0], at=N_STEPS - 2)
    with pytest.raises(NonFiniteError, match=f"environment 1 at step {N_STEPS - 1} of the rollout"):
        model.learn(10 * N_STEPS)


@pytest.mark.parametrize("value", BAD)
def test_terminal_observations(algo: type[DAPO], value: float) -> None:
    model = make(algo, "terminal observation", value, at=7)
    with pytest.raises(NonFiniteError, match="environment 1 at step 7 of the rollout"):
        model.learn(10 * N_STEPS)
    assert th.isfinite(flat_parameters(model)).all()


@pytest.mark.parametrize("value", BAD)
def test_rewards_raise(algo: type[DAPO], value: float) -> None:
    model = make(algo, "reward", value, at=5)
    before = flat_parameters(model)
    with pytest.raises(NonFiniteError, match=f"the reward of environment 1 at step 5 of the rollout is {value}"):
        model.learn(10 * N_STEPS)
    assert th.equal(flat_parameters(model), before)


@pytest.mark.parametrize("advantage", ["vtrace", "gae"])
@pytest.mark.parametrize("value", BAD)
def test_rewards_are_skipped(algo: type[DAPO], value: float, advantage: str) -> None:
    model = make(algo, "reward", value, at=5, nonfinite="skip", advantage=advantage, batch_size=4)
    before = flat_parameters(model)
    model.learn(2 * N_STEPS)  # one rollout
    n_minibatches = model.n_epochs * 2 * N_STEPS // 4
    assert 0 < model.logger.name_to_value["train/skipped_minibatches"] < n_minibatches
    after = flat_parameters(model)
    assert th.isfinite(after).all()
    assert not th.equal(after, before), "the other minibatches have been learned from"
    model.learn(2 * N_STEPS, reset_num_timesteps=False)
    assert model.logger.name_to_value["train/skipped_minibatches"] == 0
    assert not th.equal(flat_parameters(model), after)


def test_reward_that_overflows(algo: type[DAPO]) -> None:
    """A finite reward, whose square is not."""
    model = make(algo, "reward", 1e30, at=5)
    with pytest.raises(NonFiniteError, match="loss or gradient is not finite \\(loss"):
        model.learn(10 * N_STEPS)
    assert th.isfinite(flat_parameters(model)).all()


def test_network_that_overflows(algo: type[DAPO]) -> None:
    settings: dict[str, Any] = {"n_steps": N_STEPS, "batch_size": 8}
    model = make_model(algo, BrittlePolicy, FaultyEnv(), **settings)  # type: ignore[arg-type]
    model.learn(N_STEPS)
    before = flat_parameters(model)
    model.policy.broken = True  # type: ignore[assignment]
    with pytest.raises(NonFiniteError, match="loss or gradient is not finite"):
        model.learn(N_STEPS, reset_num_timesteps=False)
    assert th.equal(flat_parameters(model), before)

    model = make_model(algo, BrittlePolicy, FaultyEnv(), nonfinite="skip", **settings)  # type: ignore[arg-type]
    model.policy.broken = True  # type: ignore[assignment]
    before = flat_parameters(model)
    model.learn(N_STEPS)
    assert th.equal(flat_parameters(model), before)
    assert model.logger.name_to_value["train/skipped_minibatches"] == model.n_epochs * N_STEPS // 8


def test_nothing_is_skipped_or_logged_without_a_fault(algo: type[DAPO]) -> None:
    settings: dict[str, Any] = {"n_steps": N_STEPS, "batch_size": 8}
    model = make_model(algo, "MlpPolicy", FaultyEnv(), **settings).learn(N_STEPS)
    assert "train/skipped_minibatches" not in model.logger.name_to_value
    skipping = make_model(algo, "MlpPolicy", FaultyEnv(), nonfinite="skip", **settings).learn(N_STEPS)
    assert skipping.logger.name_to_value["train/skipped_minibatches"] == 0


def test_check_finite() -> None:
    values = np.zeros((3, 2, 4), dtype=np.float32)
    check_finite("observation", values)
    check_finite("observation", np.zeros((3, 2), dtype=np.uint8))
    values[1, 1, 2] = np.nan
    values[2, 0, 0] = np.inf
    with pytest.raises(NonFiniteError, match="^the observation of environment 1 at step 8 of the rollout is nan$"):
        check_finite("observation", values, first_step=7)


@pytest.mark.parametrize("value", ["ignore", True, None])
def test_argument(algo: type[DAPO], value: Any) -> None:
    with pytest.raises(ValueError, match="`nonfinite` must be 'raise' or 'skip'"):
        make_model(algo, "MlpPolicy", "CartPole-v1", nonfinite=value)
