"""
With ``divergence_coef=0``, ``n_rollouts=1`` and ``advantage="gae"`` MaskableDAPO is sb3-contrib's MaskablePPO, bit for
bit; and what sb3-contrib's own tests demand of MaskablePPO it does too.
"""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from masked_envs import SPACES, MaskedEnv, masked
from sb3_contrib import MaskablePPO
from sb3_contrib.common.envs import InvalidActionEnvDiscrete, InvalidActionEnvMultiBinary, InvalidActionEnvMultiDiscrete
from sb3_contrib.common.maskable.callbacks import MaskableEvalCallback
from sb3_contrib.common.maskable.evaluation import evaluate_policy
from sb3_contrib.common.maskable.utils import get_action_masks
from sb3_contrib.common.wrappers import ActionMasker
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import EventCallback, StopTrainingOnNoModelImprovement
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import FakeImageEnv, IdentityEnv, IdentityEnvBox
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.utils import set_random_seed
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv, VecNormalize
from test_ppo_equality import NET, PPO_CASE, NoisyExtractor, check_equal_parameters

from sb3_dapo import MaskableDAPO

pytestmark = [
    pytest.mark.filterwarnings("ignore:The last minibatch of every epoch"),
    pytest.mark.filterwarnings("ignore:.*parameter of CUDA"),
]

IMAGES = spaces.Box(0, 255, (1, 40, 40), np.uint8)
DICT = spaces.Dict({"a": spaces.Box(-1, 1, (3,)), "b": spaces.Discrete(4)})
CNN = {"features_extractor_kwargs": {"features_dim": 16}}


def with_masker() -> VecEnv:
    """Masks by sb3-contrib's wrapper, as a list, of an environment that has none."""

    def mask(env: gym.Env) -> list[bool]:
        velocity = env.unwrapped.state[3]  # type: ignore[attr-defined]
        return [bool(velocity < 0.5), True]

    return make_vec_env(lambda: ActionMasker(gym.make("CartPole-v1"), mask), n_envs=2, seed=0)


CASES: dict[str, tuple[str, Callable[[], VecEnv], dict[str, Any]]] = {
    **{name: ("MlpPolicy", masked(space), {}) for name, space in SPACES.items()},
    "one environment": ("MlpPolicy", masked(spaces.Discrete(5), n_envs=1), {"n_steps": 128}),
    "ActionMasker": ("MlpPolicy", with_masker, {}),
    "contrib's environment": (
        "MlpPolicy",
        lambda: make_vec_env(lambda: InvalidActionEnvDiscrete(20, n_invalid_actions=18), n_envs=2, seed=0),
        {"gamma": 0.4},
    ),
    "all at once": (
        "MlpPolicy",
        masked(spaces.MultiDiscrete([4, 2])),
        {"clip_range_vf": 0.1, "target_kl": 0.02, "ent_coef": 0.01, "vf_coef": 0.3, "learning_rate": 3e-3},
    ),
    "advantages not normalized": ("MlpPolicy", masked(spaces.Discrete(5)), {"normalize_advantage": False}),
    "VecNormalize": ("MlpPolicy", lambda: VecNormalize(masked(spaces.Discrete(5))()), {}),
    "images": ("CnnPolicy", masked(spaces.Discrete(5), IMAGES), {"policy_kwargs": CNN}),
    "images, not shared": (
        "CnnPolicy",
        masked(spaces.MultiBinary(3), IMAGES),
        {"policy_kwargs": {**CNN, "share_features_extractor": False}},
    ),
    "Dict observations": ("MultiInputPolicy", masked(spaces.MultiDiscrete([3, 2]), DICT), {}),
    "dropout and batch normalization": (
        "MlpPolicy",
        masked(spaces.Discrete(5)),
        {"policy_kwargs": {**NET, "features_extractor_class": NoisyExtractor}},
    ),
}


def trained(
    model_class: type[BaseAlgorithm], policy: str, make_env: Callable[[], Any], use_masking: bool = True, **kwargs: Any
) -> BaseAlgorithm:
    """A model after three rollouts; the same random numbers whatever the class."""
    kwargs = {"n_steps": 64, "batch_size": 32, "n_epochs": 3, "policy_kwargs": NET, **kwargs}
    set_random_seed(7)
    env = make_env()
    env.observation_space.seed(7)
    model = model_class(policy, env, seed=7, device="cpu", **kwargs)
    return model.learn(3 * model.n_steps * model.n_envs, use_masking=use_masking)  # type: ignore[call-arg]


@pytest.mark.parametrize("name", CASES)
def test_equals_maskable_ppo(name: str) -> None:
    policy, make_env, settings = CASES[name]
    ppo = trained(MaskablePPO, policy, make_env, **settings)
    dapo = trained(MaskableDAPO, policy, make_env, **settings, **PPO_CASE)
    check_equal_parameters(dapo, ppo)
    assert dapo._n_updates == ppo._n_updates


@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
def test_equals_maskable_ppo_without_masks(space: spaces.Space) -> None:
    make_env = masked(space, refuses=False)
    ppo = trained(MaskablePPO, "MlpPolicy", make_env, use_masking=False)
    check_equal_parameters(trained(MaskableDAPO, "MlpPolicy", make_env, use_masking=False, **PPO_CASE), ppo)
    with pytest.raises(AssertionError, match="differs"):
        check_equal_parameters(trained(MaskableDAPO, "MlpPolicy", make_env, **PPO_CASE), ppo)


@pytest.mark.parametrize(
    "settings", [{"divergence_coef": 0.1}, {"n_rollouts": 2}, {"advantage": "vtrace"}, {"fast": True}], ids=str
)
def test_differs_otherwise(settings: dict[str, Any]) -> None:
    make_env = masked(SPACES["MultiDiscrete"])
    dapo = trained(MaskableDAPO, "MlpPolicy", make_env, **{**PPO_CASE, **settings})
    with pytest.raises(AssertionError, match="differs"):
        check_equal_parameters(dapo, trained(MaskablePPO, "MlpPolicy", make_env))


def test_methods_have_the_parameters_of_maskable_ppo() -> None:
    for name in ("learn", "predict"):
        ours, theirs = (inspect.signature(getattr(cls, name)).parameters for cls in (MaskableDAPO, MaskablePPO))
        assert list(ours) == list(theirs)
        defaults = {key for key in ours if ours[key].default != theirs[key].default}
        assert defaults <= {"tb_log_name"}  # ours is the name of the class


# --- what sb3-contrib's tests demand ------------------------------------------------------------------

CONTRIB_ENVS: dict[str, Callable[[int], gym.Env]] = {
    "Discrete": lambda n: InvalidActionEnvDiscrete(dim=20, n_invalid_actions=n),
    "MultiDiscrete": lambda n: InvalidActionEnvMultiDiscrete(dims=[2, 3], n_invalid_actions=n),
    "MultiBinary": lambda n: InvalidActionEnvMultiBinary(dims=3, n_invalid_actions=n),
}
N_WRONG = {"Discrete": 19, "MultiDiscrete": 3, "MultiBinary": 3}  # all but the right action


class DictEnv(gym.ObservationWrapper):
    def __init__(self, env: gym.Env) -> None:
        super().__init__(env)
        self.observation_space = spaces.Dict({"obs": env.observation_space})

    def observation(self, observation: Any) -> dict[str, Any]:
        return {"obs": observation}


def model_of(env: Any, policy: Any = "MlpPolicy", **kwargs: Any) -> MaskableDAPO:
    return MaskableDAPO(policy, env, **{"n_steps": 64, "batch_size": 32, "seed": 8, **kwargs})


def test_masks_let_it_learn_what_it_could_not_otherwise() -> None:
    """In 2,048 steps: 70 actions, of which 15 are allowed. Chance is 7, and 30 is learned without masks."""
    env = InvalidActionEnvDiscrete(dim=70, n_invalid_actions=55)
    model = model_of(env, n_steps=2048, batch_size=64, gamma=0.1, seed=32, clip_range=0.4, n_epochs=2)
    model.learn(2048)
    score, _ = evaluate_policy(model, env, n_eval_episodes=20, warn=False)
    assert score > 90


@pytest.mark.parametrize("kind", CONTRIB_ENVS)
def test_spaces(kind: str) -> None:
    env = CONTRIB_ENVS[kind](1)
    model = model_of(env).learn(100)
    evaluate_policy(model, env, warn=False)
    # Untrained, where nothing but the right action is allowed
    env = CONTRIB_ENVS[kind](N_WRONG[kind])
    model = model_of(env)
    score, _ = evaluate_policy(model, env, warn=False)
    unmasked_score, _ = evaluate_policy(model, env, warn=False, use_masking=False)
    assert score > 99 > unmasked_score


@pytest.mark.parametrize("kind", CONTRIB_ENVS)
def test_dict_observations(kind: str) -> None:
    env = DictEnv(CONTRIB_ENVS[kind](N_WRONG[kind]))
    model = model_of(env, "MultiInputPolicy").learn(64)
    assert evaluate_policy(model, env, warn=False)[0] > 99


@pytest.mark.parametrize("vec_env_class", [DummyVecEnv, SubprocVecEnv])
def test_vec_envs(vec_env_class: Any) -> None:
    env = make_vec_env(CONTRIB_ENVS["Discrete"], n_envs=2, env_kwargs={"n": 19}, vec_env_cls=vec_env_class)
    model = model_of(env, gamma=0.4).learn(200)
    assert evaluate_policy(model, env, warn=False)[0] > 99
    env.close()

    env = make_vec_env(IdentityEnv, n_envs=2, env_kwargs={"dim": 2}, vec_env_cls=vec_env_class)
    model = model_of(env)
    with pytest.raises(ValueError, match="`use_masking` must be False for environments without .*, got True"):
        model.learn(100)
    assert model.num_timesteps == 0
    model.learn(100, use_masking=False)
    evaluate_policy(model, env, warn=False, use_masking=False)
    env.close()


def test_truncated_episodes() -> None:
    model = model_of(gym.wrappers.TimeLimit(CONTRIB_ENVS["Discrete"](10), 30)).learn(128)
    assert model.rollout_buffer.truncated.any()


def test_eval_callback(tmp_path: Path) -> None:
    env, eval_env = CONTRIB_ENVS["Discrete"](19), CONTRIB_ENVS["Discrete"](19)
    callback = MaskableEvalCallback(
        eval_env, eval_freq=64, warn=False, log_path=str(tmp_path), best_model_save_path=str(tmp_path)
    )
    model_of(env).learn(128, callback=callback)
    results = np.load(tmp_path / "evaluations.npz")["results"]
    assert results.shape == (2, 5) and results.min() == 100
    assert evaluate_policy(MaskableDAPO.load(tmp_path / "best_model"), env, warn=False)[0] > 99  # type: ignore[arg-type]


def test_callbacks_of_the_eval_callback() -> None:
    stop, new_best = StopTrainingOnNoModelImprovement(1, 2), EventCallback()
    callback = MaskableEvalCallback(
        Monitor(CONTRIB_ENVS["Discrete"](10)), eval_freq=64, callback_after_eval=stop, callback_on_new_best=new_best
    )
    model_of(CONTRIB_ENVS["Discrete"](10), n_epochs=1).learn(128, callback=callback)
    assert stop.n_calls >= new_best.n_calls > 0


def test_maskable_policies_are_required() -> None:
    with pytest.raises(ValueError, match="`policy` must be a subclass of sb3_contrib's MaskableActorCriticPolicy"):
        model_of(CONTRIB_ENVS["Discrete"](10), ActorCriticPolicy)


def test_actions_must_be_choices() -> None:
    with pytest.raises(ValueError, match="`action_space` must be Discrete, MultiDiscrete or MultiBinary, got Box"):
        model_of(IdentityEnvBox())
    with pytest.raises(ValueError, match="Multi-dimensional MultiBinary"):
        model_of(MaskedEnv(spaces.MultiBinary((2, 2))))


@pytest.mark.parametrize("share_features_extractor", [True, False])
def test_images(share_features_extractor: bool, tmp_path: Path) -> None:
    def all_but_one(env: gym.Env) -> list[bool]:
        n = int(env.action_space.n)  # type: ignore[attr-defined]
        wrong = np.random.randint(n)
        return [i != wrong for i in range(n)]

    env = ActionMasker(FakeImageEnv(screen_height=40, screen_width=40, n_channels=1), all_but_one)
    policy_kwargs = {**CNN, "share_features_extractor": share_features_extractor}
    model = model_of(env, "CnnPolicy", policy_kwargs=policy_kwargs).learn(128)
    evaluate_policy(model, env, warn=False)
    observations = np.stack([env.observation_space.sample() for _ in range(4)])
    actions, _ = model.predict(observations, deterministic=True)
    model.save(tmp_path / "model")
    loaded = MaskableDAPO.load(tmp_path / "model")
    np.testing.assert_array_equal(loaded.predict(observations, deterministic=True)[0], actions)


def test_batch_normalization_is_not_touched_by_predict() -> None:
    env = masked(spaces.Discrete(5))()
    policy_kwargs = {**NET, "features_extractor_class": NoisyExtractor}
    model = model_of(env, policy_kwargs=policy_kwargs, batch_size=16)
    extractor: Any = model.policy.features_extractor
    before = extractor.layers[0].running_mean.clone()
    observations, masks = env.reset(), get_action_masks(env)
    first, _ = model.predict(observations, action_masks=masks, deterministic=True)  # type: ignore[arg-type]
    for _ in range(5):
        again, _ = model.predict(observations, action_masks=masks, deterministic=True)  # type: ignore[arg-type]
        np.testing.assert_array_equal(first, again)
    assert th.equal(extractor.layers[0].running_mean, before)
    model.learn(200)
    assert not th.equal(extractor.layers[0].running_mean, before)
