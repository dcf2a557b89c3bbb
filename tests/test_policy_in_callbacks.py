"""What callbacks do with the policy in the middle of a rollout: they ask it and copy it, as they can SB3's PPO's."""

import pickle
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch as th
from algos import SMALL, flat_parameters, make_model
from envs import RandomEnv
from masked_envs import FLOATS, SPACES, masked
from recurrent_models import make_recurrent
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env

from sb3_dapo import DAPO, MaskableDAPO
from sb3_dapo.maskable.acting import MaskingPredictor
from sb3_dapo.recurrent import LstmPolicy

SETTINGS: dict[str, Any] = {**SMALL, "n_steps": 16, "batch_size": 16, "n_rollouts": 2}


def plain(**settings: Any) -> DAPO:
    env = make_vec_env(lambda: RandomEnv(FLOATS, SPACES["Discrete"]), n_envs=2, seed=0)
    return make_model(DAPO, "MlpPolicy", env, **SETTINGS, **settings)


def maskable(kind: str) -> MaskableDAPO:
    return MaskableDAPO("MlpPolicy", masked(SPACES[kind])(), **SETTINGS)


def overlapping() -> DAPO:
    for name in ("ale_py", "cv2", "scipy"):
        pytest.importorskip(name)
    from sb3_dapo.atari_vec_env import AtariVecEnv

    env, small = AtariVecEnv("BreakoutNoFrameskip-v4", 3, seed=0), {"features_extractor_kwargs": {"features_dim": 16}}
    # In bfloat16 the values of a call and of `predict_values` differ
    return make_model(DAPO, "CnnPolicy", env, overlap=True, autocast=False, policy_kwargs=small, **SETTINGS)


MODELS: dict[str, Callable[[], DAPO]] = {
    "in NumPy": plain,
    "in PyTorch": lambda: plain(fast=False),
    "recurrent": lambda: make_recurrent(**SETTINGS),
    "maskable": lambda: maskable("Discrete"),
    "maskable, MultiDiscrete": lambda: maskable("MultiDiscrete"),
    "overlap": overlapping,
}


class AtEveryEvent(BaseCallback):
    """Calls a function at the beginning of a rollout, at its steps, and at its end."""

    def __init__(self, look: Callable[[Any], None]) -> None:
        super().__init__()
        self.look = look

    def _on_rollout_start(self) -> None:
        self.look(self.model)

    def _on_step(self) -> bool:
        self.look(self.model)
        return True

    def _on_rollout_end(self) -> None:
        self.look(self.model)


def say(policy: Any, observations: th.Tensor, **kwargs: Any) -> tuple[th.Tensor, ...]:
    """:return: actions, values and log-probs with random numbers of their own, and what ``predict_values`` says"""
    n, more, more_for_values = len(observations), [], []
    if isinstance(policy, LstmPolicy):
        states = policy.split_states(th.ones(n, *policy.states_shape))
        more, more_for_values = [states, th.zeros(n)], [states.vf, th.zeros(n)]
    with th.no_grad(), th.random.fork_rng(devices=[]):
        th.manual_seed(1)
        return *policy(observations, *more, **kwargs)[:3], policy.predict_values(observations, *more_for_values)


def last_observations(model: DAPO) -> Any:
    return model.policy.obs_to_tensor(model._last_obs)[0]


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_asking_the_policy_changes_nothing(make: Callable[[], DAPO]) -> None:
    alone, asked = make(), make()
    own = asked.policy

    def ask(model: DAPO) -> None:
        policy, everything = model.policy, last_observations(model)
        for observations in (everything, everything[:1]):
            for kwargs in ({}, {"deterministic": True}):
                actions, values, log_probs, same_values = say(policy, observations, **kwargs)
                assert len(actions) == len(values) == len(log_probs) == len(observations)
                th.testing.assert_close(values, same_values)
        if isinstance(policy, LstmPolicy):  # as RecurrentPPO's, it has no states of its own
            with pytest.raises(TypeError):
                policy(everything)
        assert policy is own

    for model, callback in ((alone, None), (asked, AtEveryEvent(ask))):
        model.set_random_seed(1)
        model.learn(3 * model.n_steps * model.n_envs, callback=callback)
    assert th.equal(flat_parameters(alone), flat_parameters(asked))


@pytest.mark.parametrize("copy", [deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["deepcopy", "pickle"])
@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_copies_act_as_the_policy_by_parameters_of_their_own(
    make: Callable[[], DAPO], copy: Callable[[Any], Any]
) -> None:
    model = make()
    kept: list[Any] = []

    def check_copy(model: DAPO) -> None:
        policy, observations, copied = model.policy, last_observations(model), copy(model.policy)
        assert type(copied) is type(policy)
        before = say(policy, observations)
        kept.append((copy(policy), observations, before))
        for kwargs in ({}, {"deterministic": True}):
            for x, y in zip(say(policy, observations, **kwargs), say(copied, observations, **kwargs), strict=True):
                th.testing.assert_close(x, y, rtol=1e-5, atol=1e-5)
        with th.no_grad():
            for parameter in copied.parameters():
                parameter.zero_()
        _, values, _, same_values = say(copied, observations)
        assert values.eq(0).all() and same_values.eq(0).all()
        assert all(map(th.equal, before, say(policy, observations)))

    parameters = flat_parameters(model)
    model.learn(model.n_steps * model.n_envs, callback=AtEveryEvent(check_copy))
    assert not th.equal(parameters, flat_parameters(model))
    for copied, observations, before in (kept[0], kept[1], kept[-1]):  # the update was the policy's alone
        for x, y in zip(before, say(copied, observations), strict=True):
            th.testing.assert_close(x, y, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("copy", [deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["deepcopy", "pickle"])
def test_copies_of_a_predictor_with_masks(copy: Callable[[Any], Any]) -> None:
    model = maskable("Discrete")
    env = model.get_env()
    observations = env.reset()
    predictor = model.predictor_for(env)
    copied = copy(predictor)
    assert type(copied) is MaskingPredictor and copied.model is not model
    assert copied.n_steps == model.n_steps
    actions = [x.predict(observations, deterministic=True)[0] for x in (predictor, copied)]
    np.testing.assert_array_equal(*actions)
