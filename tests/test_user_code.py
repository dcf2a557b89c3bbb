"""What callbacks, environments and whoever collects by himself do with rewards, steps, buffers and settings counts."""

import subprocess
import sys
import warnings
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from algos import flat_parameters, make_model
from envs import RandomEnv
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.utils import obs_as_tensor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecEnvWrapper
from test_ppo_equality import PPO_CASE

from sb3_dapo import DAPO, NonFiniteError
from sb3_dapo.buffers import RolloutRing

pytestmark = pytest.mark.filterwarnings("ignore:The last minibatch of every epoch", "ignore:We recommend using")

FLOATS = spaces.Box(-1, 1, (3,))


def random_envs(**kwargs: Any) -> VecEnv:
    return make_vec_env(lambda: RandomEnv(FLOATS, spaces.Discrete(2), **kwargs), 2, seed=0)


class NoReward(gym.Env[Any, Any]):
    """One state, two actions, no reward."""

    observation_space = spaces.Box(-1, 1, (2,))
    action_space = spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        return np.zeros(2, np.float32), {}

    def step(self, action: Any) -> Any:
        return np.zeros(2, np.float32), 0.0, False, False, {}


def p_action_1(model: Any) -> float:
    observation, _ = model.policy.obs_to_tensor(np.zeros((1, 2), np.float32))
    return model.policy.get_distribution(observation).distribution.probs[0, 1].item()


# --- callbacks ------------------------------------------------------------------------------------


class IntrinsicReward(BaseCallback):
    """A reward for action 1, added in place at every step."""

    def _on_step(self) -> bool:
        self.locals["rewards"] += np.asarray(self.locals["actions"]).reshape(-1) > 0
        return True


class RewardsInTheBuffer(BaseCallback):
    """Changes the rewards of the buffer at the end of the rollout, and has the advantages computed again."""

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        buffer = self.locals["rollout_buffer"]
        buffer.rewards += buffer.actions[:, :, 0] > 0
        buffer.compute_returns_and_advantage(self.locals["values"], self.locals["dones"])


class AdvantagesInTheBuffer(BaseCallback):
    """Puts other advantages and returns into the buffer at the end of the rollout."""

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        buffer = self.locals["rollout_buffer"]
        buffer.advantages[...] = buffer.actions[:, :, 0] - 0.5
        buffer.returns[...] = 0.25


ALL_CALLBACKS = [IntrinsicReward, RewardsInTheBuffer, AdvantagesInTheBuffer]


@pytest.mark.parametrize("settings", [{}, {"n_rollouts": 2}, {"advantage": "gae"}], ids=str)
@pytest.mark.parametrize("callback", [IntrinsicReward, RewardsInTheBuffer])
def test_rewards_of_callbacks_are_learned(
    algo: type[DAPO], callback: type[BaseCallback], settings: dict[str, Any]
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = make_model(
            algo, "MlpPolicy", NoReward(), n_steps=128, n_epochs=10, learning_rate=3e-3, divergence_coef=0.0, **settings
        )
    model.learn(2560, callback())
    assert p_action_1(model) > 0.95


@pytest.mark.parametrize("callback", ALL_CALLBACKS)
@pytest.mark.parametrize("make_env", [random_envs, lambda: make_vec_env("Pendulum-v1", 2, seed=0)])
def test_equals_ppo_with_callbacks(callback: type[BaseCallback], make_env: Callable[[], VecEnv]) -> None:
    """Bit for bit, whatever a callback has changed, also where episodes are truncated."""
    small: dict[str, Any] = {"n_steps": 128, "batch_size": 64, "n_epochs": 2, "seed": 7, "device": "cpu"}
    parameters = []
    for model_class, settings, callbacks in (
        (PPO, {}, [callback()]),
        (DAPO, PPO_CASE, [callback()]),
        (DAPO, PPO_CASE, []),
    ):
        model: Any = model_class("MlpPolicy", make_env(), **small, **settings)
        parameters.append(flat_parameters(model.learn(4 * 256, callbacks)))
    ppo, dapo, plain = parameters
    assert th.equal(dapo, ppo)
    assert not th.equal(plain, dapo), "the callback changed nothing"


def test_advantages_of_callbacks_that_are_not_finite(algo: type[DAPO]) -> None:
    class Broken(BaseCallback):
        def _on_step(self) -> bool:
            return True

        def _on_rollout_end(self) -> None:
            self.locals["rollout_buffer"].advantages[3, 1] = np.nan

    model = make_model(algo, "MlpPolicy", random_envs(), advantage="gae")
    with pytest.raises(NonFiniteError, match="the advantage of environment 1 at step 3 of the rollout is nan"):
        model.learn(128, Broken())


class KeepRewards(IntrinsicReward):
    """Remembers what the rewards were when it was done with them, and the ends."""

    def _init_callback(self) -> None:
        self.seen: list[np.ndarray] = []

    def _on_step(self) -> bool:
        super()._on_step()
        self.seen.append(self.locals["rewards"].copy())
        return True


def test_kept_rewards_are_without_bootstrap(algo: type[DAPO]) -> None:
    """What is kept for reuse is what the callback made of the rewards, not what SB3 folds into them."""
    model = make_model(algo, "MlpPolicy", random_envs(p_truncated=0.3), n_steps=32)
    callback = KeepRewards()
    model.learn(64, callback)
    ring = model.rollout_buffer
    assert ring.truncated.any()
    np.testing.assert_array_equal(ring.kept_rewards[0].T, np.array(callback.seen, dtype=np.float32))
    assert (ring.rewards != np.array(callback.seen)).any(), "SB3's buffer has the bootstrap"


def test_scaled_rewards_keep_their_bootstrap_apart(algo: type[DAPO]) -> None:
    class Shift(BaseCallback):
        def _on_step(self) -> bool:
            return True

        def _on_rollout_end(self) -> None:
            self.locals["rollout_buffer"].rewards += 1

    expected, shifted = (
        make_model(algo, "MlpPolicy", random_envs(p_truncated=0.3), n_steps=32).learn(64, callback)
        for callback in (None, Shift())
    )
    kept, kept_shifted = (model.rollout_buffer.kept_rewards for model in (expected, shifted))
    th.testing.assert_close(kept_shifted, kept + 1)


# --- environments ---------------------------------------------------------------------------------


class RewardInStep(VecEnvWrapper):
    """A wrapper that overrides ``step``, and not ``step_wait``."""

    def reset(self) -> Any:
        return self.venv.reset()

    def step_wait(self) -> Any:
        return self.venv.step_wait()

    def step(self, actions: np.ndarray) -> Any:
        obs, rewards, dones, infos = super().step(actions)
        return obs, rewards + (np.asarray(actions).reshape(-1) == 1), dones, infos


class OnlyStep(VecEnv):
    """As wrappers of simulators in C++ are: one ``step``, and nothing to ask for."""

    answer: Any = AttributeError("there are no attributes")

    def __init__(self) -> None:
        self.n_asked = 0
        super().__init__(2, NoReward.observation_space, NoReward.action_space)

    def reset(self) -> Any:
        return np.zeros((2, 2), np.float32)

    def step(self, actions: np.ndarray) -> Any:
        rewards = (np.asarray(actions).reshape(-1) == 1).astype(np.float32)
        return np.zeros((2, 2), np.float32), rewards, np.zeros(2, bool), [{}, {}]

    def step_async(self, actions: np.ndarray) -> None:
        raise NotImplementedError("This method is not implemented")

    step_wait: Any = step_async

    def close(self) -> None:
        pass

    def get_attr(self, attr_name: str, indices: Any = None) -> Any:
        self.n_asked += 1
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        raise NotImplementedError

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> Any:
        raise NotImplementedError

    def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
        return [False, False]


def with_step_function() -> VecEnv:
    env = DummyVecEnv([NoReward, NoReward])
    step = env.step

    def new_step(actions: np.ndarray) -> Any:
        obs, rewards, dones, infos = step(actions)
        return obs, rewards + (np.asarray(actions).reshape(-1) == 1), dones, infos

    env.step = new_step  # type: ignore[method-assign]
    return env


class Outer(VecEnvWrapper):
    """A wrapper that does nothing, around one that overrides ``step``."""

    def reset(self) -> Any:
        return self.venv.reset()

    def step_wait(self) -> Any:
        return self.venv.step_wait()

    def step(self, actions: np.ndarray) -> Any:
        return self.venv.step(actions)


STEPPED: dict[str, Callable[[], VecEnv]] = {
    "wrapper": lambda: RewardInStep(DummyVecEnv([NoReward, NoReward])),
    "inner wrapper": lambda: Outer(RewardInStep(DummyVecEnv([NoReward, NoReward]))),
    "function": with_step_function,
    "step alone": OnlyStep,
}


@pytest.mark.parametrize("name", STEPPED)
def test_step_is_what_the_environment_says(algo: type[DAPO], name: str) -> None:
    settings = {"n_steps": 64, "n_epochs": 10, "learning_rate": 3e-3, "divergence_coef": 0.0, "batch_size": 64}
    model = make_model(algo, "MlpPolicy", STEPPED[name](), **settings).learn(2560)
    assert p_action_1(model) > 0.95


@pytest.mark.parametrize("answer", [AttributeError("no"), NotImplementedError(), None, []], ids=repr)
def test_environments_that_tell_nothing(algo: type[DAPO], monkeypatch: pytest.MonkeyPatch, answer: Any) -> None:
    """PPO trains with each of them. SB3 itself asks for the render mode when a model is made, and refuses some."""
    monkeypatch.setattr(OnlyStep, "answer", answer)
    monkeypatch.setattr(VecEnv, "__init__", lambda self, *args: self.__dict__.update(
        num_envs=2, observation_space=args[1], action_space=args[2], reset_infos=[{}, {}], render_mode=None,
        metadata={}, _seeds=[None, None], _options=[{}, {}],
    ))  # fmt: skip
    make_model(algo, "MlpPolicy", OnlyStep()).learn(256)


def test_environments_are_not_asked_again(algo: type[DAPO]) -> None:
    model = make_model(algo, "MlpPolicy", OnlyStep())
    model.learn(128)
    before = model.get_env().n_asked  # type: ignore[union-attr]
    model.learn(5 * 128)
    assert model.get_env().n_asked == before  # type: ignore[union-attr]


class Rows(gym.ObservationWrapper):
    """Observations of shape ``(1, n)`` for a space of shape ``(n,)``, as arrays or matrices."""

    def __init__(self, env: gym.Env[Any, Any], convert: Callable[[Any], Any]) -> None:
        super().__init__(env)
        self.convert = convert

    def observation(self, observation: Any) -> Any:
        if isinstance(observation, dict):
            return {key: self.convert(x) for key, x in observation.items()}
        return self.convert(observation)


@pytest.mark.parametrize("convert", [lambda x: x[None], np.matrix], ids=["row", "matrix"])
@pytest.mark.parametrize("as_dict", [False, True])
def test_observations_as_rows(algo: type[DAPO], convert: Callable[[Any], Any], as_dict: bool) -> None:
    space = spaces.Dict({"a": FLOATS, "b": FLOATS}) if as_dict else FLOATS
    policy = "MultiInputPolicy" if as_dict else "MlpPolicy"
    models = []
    for change in (convert, np.asarray):
        env = DummyVecEnv([lambda c=change: Rows(RandomEnv(space, spaces.Discrete(2), 0.1, 0.2), c)])  # type: ignore[misc]
        env.seed(0)
        models.append(make_model(algo, policy, env, n_steps=64).learn(192))
    assert models[0].rollout_buffer.truncated.any()
    assert th.equal(*map(flat_parameters, models))


# --- whoever collects by himself ------------------------------------------------------------------


def collect(model: Any, env: VecEnv, observations: np.ndarray, n_steps: int) -> np.ndarray:
    """SB3's documented interface of its buffer, without a model's own loop; the reward is for action 1."""
    buffer = model.rollout_buffer
    buffer.reset()
    starts = np.ones(env.num_envs, dtype=bool)
    for _ in range(n_steps):
        with th.no_grad():
            actions, values, log_probs = model.policy(obs_as_tensor(observations, model.device))
        actions = actions.numpy()
        rewards = (actions == 1).astype(np.float32)
        new_observations, _, dones, _ = env.step(actions)
        buffer.add(observations, actions.reshape(-1, 1), rewards, starts, values, log_probs)
        observations, starts = new_observations, dones
    with th.no_grad():
        last_values = model.policy.predict_values(obs_as_tensor(observations, model.device))
    buffer.compute_returns_and_advantage(last_values, starts)
    return observations


@pytest.mark.parametrize("settings", [{}, {"n_rollouts": 2}, {"advantage": "gae"}], ids=str)
def test_own_collection(algo: type[DAPO], settings: dict[str, Any]) -> None:
    env = random_envs()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = make_model(algo, "MlpPolicy", env, n_steps=64, n_epochs=10, learning_rate=3e-3, **settings)
    model._setup_learn(10_000)
    observations = env.reset()
    for _ in range(25):
        observations = collect(model, env, observations, model.n_steps)
        model.train()
    actions, _ = model.predict(observations.repeat(100, axis=0), deterministic=False)
    assert actions.mean() > 0.9
    assert model.logger.name_to_value["train/policy_lag"] == (model.n_rollouts - 1) / 2


def test_own_collection_equals_ppo() -> None:
    models = [
        model_class("MlpPolicy", random_envs(), n_steps=32, batch_size=16, n_epochs=2, seed=3, device="cpu", **settings)
        for model_class, settings in ((PPO, {}), (DAPO, PPO_CASE))
    ]
    for model in models:
        model._setup_learn(1000)
        env = model.get_env()
        assert env is not None
        observations = env.reset()
        th.manual_seed(0)
        np.random.seed(0)
        for _ in range(3):
            observations = collect(model, env, observations, 32)
            model.train()
    ppo, dapo = models
    assert th.equal(flat_parameters(dapo), flat_parameters(ppo))  # type: ignore[arg-type]


def test_own_collection_that_is_not_complete(algo: type[DAPO]) -> None:
    env = random_envs()
    model = make_model(algo, "MlpPolicy", env, n_steps=8)
    model._setup_learn(100)
    ring = model.rollout_buffer
    with pytest.raises(ValueError, match="not complete: 0 of 8 steps"):
        ring.rollout()
    observations = env.reset()
    ring.reset()
    for _ in range(8):
        ring.add(observations, np.zeros((2, 1)), np.zeros(2), np.zeros(2), th.zeros(2), th.zeros(2))
    with pytest.raises(ValueError, match="`compute_returns_and_advantage` has not been called"):
        ring.rollout()


def test_ppo_learns_with_a_file_of_ours(algo: type[DAPO], tmp_path: Any) -> None:
    """It has the ring for its buffer then: the files differ in nothing else."""
    make_model(algo, "MlpPolicy", "CartPole-v1", **PPO_CASE).save(tmp_path / "model")
    ours, theirs = (
        model_class.load(tmp_path / "model", env=make_vec_env("CartPole-v1", 2, seed=0), device="cpu")
        for model_class in (algo, PPO)
    )
    for model in (ours, theirs):
        model.set_random_seed(0)
        model.learn(3 * 128)
    assert th.equal(flat_parameters(ours), flat_parameters(theirs))  # type: ignore[arg-type]


# --- settings -------------------------------------------------------------------------------------


def test_buffer_of_another_size(algo: type[DAPO], tmp_path: Any) -> None:
    """As people do with PPO after loading; and by the argument alone."""
    make_model(algo, "MlpPolicy", "CartPole-v1", n_rollouts=2).learn(256).save(tmp_path / "model")
    model = algo.load(tmp_path / "model", env=gym.make("CartPole-v1"))
    model.n_steps = 96
    model.rollout_buffer.buffer_size = 96
    model.rollout_buffer.reset()
    model.learn(192, reset_num_timesteps=False)
    assert model.rollout_buffer.ring_shape == (2, 1, 96)
    assert model.rollout_buffer.n_kept == 2
    model.n_steps = 32
    model.learn(32, reset_num_timesteps=False)
    assert model.rollout_buffer.ring_shape == (2, 1, 32)


CHANGES: dict[str, Any] = {
    "divergence_coef": 0.5,
    "clip_range": 0.05,
    "clip_range_vf": 0.3,
    "learning_rate": 1e-2,
    "gamma": 0.5,
    "gae_lambda": 0.3,
    "n_rollouts": 3,
    "n_steps": 32,
    "n_epochs": 3,
    "batch_size": 16,
    "advantage": "vtrace_gae",
    "policy_loss": "plain",
    "divergence": "hellinger",
    "ent_coef": 0.1,
    "normalize_advantage": "rms",
    "exact_targets": True,
    "nonfinite": "skip",
}


@pytest.mark.parametrize("name", CHANGES)
def test_changed_settings_are_used(algo: type[DAPO], name: str) -> None:
    """A model whose argument is set later learns as one that was made with it."""
    made, changed = (make_model(algo, "MlpPolicy", random_envs(), **kwargs) for kwargs in ({name: CHANGES[name]}, {}))
    setattr(changed, name, CHANGES[name])
    for model in (made, changed):
        model.set_random_seed(1)
        model.learn(512)
    assert th.equal(flat_parameters(changed), flat_parameters(made))


@pytest.mark.parametrize("name", ["learning_rate", "clip_range", "divergence_coef"])
def test_numbers_of_numpy_that_are_set_later(algo: type[DAPO], name: str) -> None:
    made, changed = (make_model(algo, "MlpPolicy", random_envs(), **kwargs) for kwargs in ({name: 0.25}, {}))
    setattr(changed, name, np.float32(0.25))
    for model in (made, changed):
        model.set_random_seed(1)
        model.learn(128)
    assert th.equal(flat_parameters(changed), flat_parameters(made))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("advantage", "gea"),
        ("policy_loss", "plan"),
        ("ent_coef", -1),
        ("learning_rate", -1e-3),
        ("gamma", 1.5),
        ("n_rollouts", 0),
        ("divergence_coef", "high"),
        ("divergence", "kl2"),
        ("use_sde", True),
        ("policy_kwargs", {"net_arch": [7]}),
        ("rollout_buffer_class", type("OtherRing", (RolloutRing,), {})),
    ],
)
def test_changed_settings_are_checked(algo: type[DAPO], name: str, value: Any) -> None:
    model = make_model(algo, "MlpPolicy", "CartPole-v1").learn(64)
    before = flat_parameters(model)
    setattr(model, name, value)
    with pytest.raises(ValueError, match=f"`{name}` must be"):
        model.learn(64)
    assert th.equal(flat_parameters(model), before)


def test_schedule_of_the_learning_rate_that_is_set_directly(algo: type[DAPO]) -> None:
    """As many do with PPO."""
    model = make_model(algo, "MlpPolicy", "CartPole-v1").learn(64)
    model.lr_schedule = lambda progress: 0.123
    model.learn(64)
    assert model.logger.name_to_value["train/learning_rate"] == 0.123


@pytest.mark.parametrize(
    "space", [spaces.Discrete(3, start=1), spaces.Discrete(3, start=-1), spaces.MultiDiscrete([2, 2], start=[0, 5])]
)
def test_spaces_that_do_not_start_at_zero(algo: type[DAPO], space: spaces.Space) -> None:
    """SB3's policies count from 0: the environment would get actions that it does not have."""
    with pytest.raises(ValueError, match="`action_space` must be a space that starts at 0"):
        make_model(algo, "MlpPolicy", RandomEnv(FLOATS, space))
    with pytest.raises(ValueError, match="`observation_space` must be a space that starts at 0"):
        make_model(algo, "MlpPolicy", RandomEnv(space, spaces.Discrete(2)))
    with pytest.raises(ValueError, match="`observation_space` must be a space that starts at 0"):
        make_model(algo, "MultiInputPolicy", RandomEnv(spaces.Dict({"a": space}), spaces.Discrete(2)))


OLD_GYM = """
import sys, types, warnings
import numpy as np, gymnasium
gym = types.ModuleType("gym")
class Env:
    @property
    def unwrapped(self): return self
gym.Env = Env
sys.modules["gym"] = gym
shimmy = types.ModuleType("shimmy")
class Wrapped(gymnasium.Env):
    observation_space, action_space = gymnasium.spaces.Box(-1, 1, (2,)), gymnasium.spaces.Discrete(2)
    def __init__(self, env): pass
    def reset(self, seed=None, options=None): return np.zeros(2, np.float32), {}
    def step(self, action): return np.zeros(2, np.float32), 1.0, False, False, {}
shimmy.GymV21CompatibilityV0 = lambda env: Wrapped(env)
shimmy.GymV26CompatibilityV0 = lambda env: Wrapped(env)
sys.modules["shimmy"] = shimmy
from sb3_dapo import DAPO
class Old(Env):
    def seed(self): pass
    def reset(self): pass
DAPO("MlpPolicy", Old(), n_steps=8, batch_size=8).learn(8)
print("learned")
"""


def test_environments_of_the_old_gym() -> None:
    """SB3 has shimmy wrap them, which is not installed here: the two modules are as small as SB3 needs them."""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", OLD_GYM], capture_output=True, text=True)
    assert "learned" in done.stdout, done.stderr


# --- NaN that the policy masks --------------------------------------------------------------------


class Lidar(gym.Env[Any, Any]):
    """
    Some numbers of the observation are NaN, at steps 10 and 64 of each rollout of 64.

    :param as_dict: in a part of a Dict that the policy does not read
    """

    def __init__(self, as_dict: bool) -> None:
        box = spaces.Box(-np.inf, np.inf, (3,))
        self.observation_space = spaces.Dict({"read": box, "unread": box}) if as_dict else box
        self.action_space = spaces.Discrete(2)
        self.as_dict, self.n_steps = as_dict, 0

    def observation(self) -> Any:
        bad = np.full(3, np.nan if self.n_steps in (10, 64) else 0.5, np.float32)
        return {"read": np.ones(3, np.float32), "unread": bad} if self.as_dict else bad

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        return self.observation(), {}

    def step(self, action: Any) -> Any:
        self.n_steps += 1
        return self.observation(), float(action), False, self.n_steps % 16 == 0, {}


def masking_model(algo: type[DAPO], as_dict: bool, **settings: Any) -> DAPO:
    class Extractor(BaseFeaturesExtractor):
        def __init__(self, observation_space: spaces.Space) -> None:
            super().__init__(observation_space, 3)

        def forward(self, observations: Any) -> th.Tensor:
            return th.nan_to_num(observations["read"] if as_dict else observations)

    return make_model(
        algo,
        "MultiInputPolicy" if as_dict else "MlpPolicy",
        Lidar(as_dict),
        n_steps=64,
        policy_kwargs={"features_extractor_class": Extractor},
        **settings,
    )


@pytest.mark.parametrize("as_dict", [False, True])
@pytest.mark.parametrize("n_rollouts", [1, 2])
def test_nan_that_the_policy_masks(algo: type[DAPO], as_dict: bool, n_rollouts: int) -> None:
    model = masking_model(algo, as_dict, n_rollouts=n_rollouts, allow_nonfinite_observations=True).learn(192)
    assert model._n_updates == 3 * model.n_epochs
    assert flat_parameters(model).isfinite().all()


@pytest.mark.parametrize("as_dict", [False, True])
def test_the_first_step_that_is_wrong_is_named(algo: type[DAPO], as_dict: bool) -> None:
    with pytest.raises(NonFiniteError, match="of environment 0 at step 10 of the rollout is nan"):
        masking_model(algo, as_dict).learn(64)


def test_nan_that_the_policy_does_not_mask(algo: type[DAPO]) -> None:
    model = make_model(algo, "MlpPolicy", Lidar(False), n_steps=64, allow_nonfinite_observations=True)
    # Distributions refuse it, or sampling does where their checks are off
    with pytest.raises((ValueError, RuntimeError), match="nan"):
        model.learn(64)
    assert flat_parameters(model).isfinite().all()
