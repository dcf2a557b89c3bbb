"""
Checkpoints. A run is killed by SIGKILL in a process of its own, resumed from its last checkpoint in this one, and
compared bit for bit with the same run that was left alone.
"""

import io
import multiprocessing as mp
import os
import re
import signal
import warnings
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from algos import make_model
from envs import CatchEnv, RandomEnv
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, EvalCallback
from stable_baselines3.common.env_util import make_atari_env, make_vec_env
from stable_baselines3.common.logger import KVWriter, Logger
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    SubprocVecEnv,
    VecEnv,
    VecEnvWrapper,
    VecFrameStack,
    VecMonitor,
    VecNormalize,
    VecTransposeImage,
)

from sb3_dapo import DAPO, AdaptiveController
from sb3_dapo.checkpoint import (
    CheckpointCallback,
    get_random_states,
    latest_checkpoint,
    learn_until,
    set_random_states,
)
from sb3_dapo.checkpoint.env_state import get_env_state, set_env_state
from sb3_dapo.checkpoint.settings import made_with, note_made

# Processes that start at once, as the server that forks them has imported what takes long
FORKSERVER = mp.get_context("forkserver")
FORKSERVER.set_forkserver_preload(
    ["sb3_dapo", "torch._dynamo", "stable_baselines3.common.env_util", "ale_py", "pytest"]
)


# --- runs -----------------------------------------------------------------------------------------


class Rows(KVWriter):
    """The log as a list of its rows, without what depends on the clock."""

    def __init__(self) -> None:
        self.rows: dict[int, dict[str, Any]] = {}

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        self.rows[step] = {key: value for key, value in key_values.items() if not key.startswith("time/")}


class KillAt(BaseCallback):
    """:param num_timesteps: where the process is killed"""

    def __init__(self, num_timesteps: int) -> None:
        super().__init__()
        self.at = num_timesteps

    def _on_step(self) -> bool:
        if self.num_timesteps >= self.at:
            os.kill(os.getpid(), signal.SIGKILL)
        return True


class Case:
    """
    A run of 8 rollouts with a checkpoint after every second of them.

    :param make_env: makes the environments
    :param policy: name of the policy
    :param reset_envs: as in CheckpointCallback
    :param make_callbacks: makes further callbacks
    :param settings: of the model
    """

    def __init__(
        self,
        make_env: Callable[[], VecEnv],
        policy: str = "MlpPolicy",
        *,
        reset_envs: bool = False,
        make_callbacks: Callable[[Path], list[BaseCallback]] = lambda folder: [],
        **settings: Any,
    ) -> None:
        self.make_env, self.policy, self.reset_envs = make_env, policy, reset_envs
        self.make_callbacks, self.settings = make_callbacks, settings

    def run(self, algo: type[DAPO], folder: Path, kill: bool = False) -> tuple[DAPO, Rows]:
        """
        Start the run, or go on with it from the latest checkpoint.

        :param algo: the algorithm
        :param folder: of the checkpoints
        :param kill: kill the process in the middle of the sixth rollout
        :return: the trained model and its log
        """
        th.set_num_threads(1)
        env = self.make_env()
        path = latest_checkpoint(folder)
        if path is None:
            model = make_model(algo, self.policy, env, **{"n_steps": 16, "batch_size": 16, **self.settings})
        else:
            model = algo.load_checkpoint(path, env, device="cpu")
        rows = Rows()
        model.set_logger(Logger(folder=None, output_formats=[rows]))
        per_rollout = model.n_steps * model.n_envs
        callbacks = [
            CheckpointCallback(2 * per_rollout, folder, reset_envs=self.reset_envs),
            *self.make_callbacks(folder),
        ]
        if kill:
            callbacks.append(KillAt(5 * per_rollout + per_rollout // 2))
        learn_until(model, 8 * per_rollout, CallbackList(callbacks))
        env.close()
        return model, rows


def run_and_be_killed(name: str, algo: type[DAPO], folder: Path) -> None:
    CASES[name].run(algo, folder, kill=True)


def state_of(model: DAPO) -> dict[str, Any]:
    """All that must be equal after training, as nested dicts and lists."""
    env = model.get_vec_normalize_env()
    keep = ("num_timesteps", "_n_updates", "_policy_version", "_last_obs", "_last_episode_starts")
    controller = model.divergence_coef
    return {
        "parameters": model.get_parameters(),
        "ring": model.rollout_buffer.state_dict(),
        "random": get_random_states(model.device),
        "model": {name: vars(model)[name] for name in keep},
        "episodes": [(info["r"], info["l"]) for info in model.ep_info_buffer],
        "normalization": None if env is None else [vars(env.obs_rms), vars(env.ret_rms), env.returns],
        "controller": vars(controller) if isinstance(controller, AdaptiveController) else None,
    }


def assert_equal(a: Any, b: Any, where: str = "") -> None:
    """Bit for bit; NaN equals NaN."""
    if isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_equal(a[key], b[key], f"{where}/{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for index, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_equal(x, y, f"{where}/{index}")
    else:
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b), err_msg=where)


# --- environments ---------------------------------------------------------------------------------


class StackedCatchEnv(gym.Wrapper):
    """Observations in two parts, and a random state in a wrapper."""

    def __init__(self, env: gym.Env) -> None:
        super().__init__(env)
        self.rng = np.random.default_rng(1)
        self.observation_space = spaces.Dict({"image": env.observation_space, "noise": spaces.Box(-9, 9, (2,))})

    def _observation(self, image: np.ndarray) -> dict[str, np.ndarray]:
        return {"image": image, "noise": self.rng.normal(size=2).astype(np.float32)}

    def reset(self, **kwargs: Any) -> Any:
        image, info = self.env.reset(**kwargs)
        return self._observation(image), info

    def step(self, action: Any) -> Any:
        image, *others = self.env.step(action)
        return self._observation(image), *others


class GlobalRandomEnv(gym.Env):
    """Draws from NumPy's global generator, as careless environments do."""

    observation_space = spaces.Box(-9, 9, (2,))
    action_space = spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        return np.random.normal(size=2).astype(np.float32), {}

    def step(self, action: Any) -> Any:
        draw = np.random.normal(size=2).astype(np.float32)
        return draw, float(draw[0]), bool(np.random.random() < 0.1), False, {}


def make_dict_env() -> VecEnv:
    return make_vec_env(CatchEnv, 2, seed=0, wrapper_class=StackedCatchEnv)


def make_normalized_env(env_id: str = "Pendulum-v1", **settings: Any) -> VecEnv:
    return VecNormalize(make_vec_env(env_id, 2, seed=0, **settings), gamma=0.9)


def make_atari() -> VecEnv:
    ale_py = pytest.importorskip("ale_py")
    gym.register_envs(ale_py)
    return VecFrameStack(make_atari_env("BreakoutNoFrameskip-v4", 2, seed=0), 4)


def make_native_atari() -> VecEnv:
    pytest.importorskip("ale_py")
    from sb3_dapo.atari_vec_env import AtariVecEnv

    return AtariVecEnv("BreakoutNoFrameskip-v4", 2, seed=0)


def make_lunar_lander() -> VecEnv:
    pytest.importorskip("Box2D")
    return VecNormalize(make_vec_env("LunarLander-v3", 2, seed=0))


def evaluate_at_random(folder: Path) -> list[BaseCallback]:
    """An evaluation of actions drawn at random, in every third rollout: it takes part in the use of the generators."""
    eval_env = make_vec_env("CartPole-v1", 1, seed=5)
    return [EvalCallback(eval_env, n_eval_episodes=2, eval_freq=40, deterministic=False, log_path=None, verbose=0)]


CARTPOLE = partial(make_vec_env, "CartPole-v1", 2, seed=0)
CASES = {
    "cartpole": Case(CARTPOLE),
    "reuse": Case(CARTPOLE, n_rollouts=4, exact_targets=True),
    "partly filled ring": Case(CARTPOLE, n_rollouts=20),
    "normalized": Case(make_normalized_env, n_rollouts=2, clip_range_vf=0.2),
    "gsde": Case(make_normalized_env, use_sde=True, sde_sample_freq=4, n_rollouts=3),
    "dict": Case(make_dict_env, "MultiInputPolicy", n_rollouts=2),
    "schedules": Case(CARTPOLE, learning_rate=LinearSchedule(1e-3, 1e-5, 0.5), clip_range=lambda p: 0.1 + 0.1 * p),
    "controller": Case(CARTPOLE, divergence_coef=AdaptiveController(target=1e-5), n_rollouts=2),
    "vec_monitor": Case(lambda: VecMonitor(DummyVecEnv([partial(gym.make, "Acrobot-v1", max_episode_steps=9)] * 2))),
    "global_random": Case(partial(make_vec_env, GlobalRandomEnv, 2, seed=0)),
    "evaluation": Case(CARTPOLE, make_callbacks=evaluate_at_random),
    "gae": Case(CARTPOLE, advantage="gae", divergence_coef=0.0, normalize_advantage="rms"),
    "atari": Case(make_atari, "CnnPolicy", n_steps=8, n_rollouts=3, n_epochs=1, optimize_memory_usage=True),
    "reset atari": Case(make_atari, "CnnPolicy", n_steps=8, n_rollouts=2, n_epochs=1, reset_envs=True),
    "reset native atari": Case(make_native_atari, "CnnPolicy", n_steps=8, n_epochs=1, reset_envs=True),
    "reset box2d": Case(make_lunar_lander, reset_envs=True),
    "reset subproc": Case(partial(make_normalized_env, vec_env_cls=SubprocVecEnv), reset_envs=True, n_rollouts=2),
    "reset evaluation": Case(CARTPOLE, make_callbacks=evaluate_at_random, reset_envs=True),
    "reset global_random": Case(partial(make_vec_env, GlobalRandomEnv, 2, seed=0), reset_envs=True),
}


# --- resume ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_killed_and_resumed_equals_uninterrupted(name: str, algo: type[DAPO], tmp_path: Path) -> None:
    if "subproc" not in name:
        CASES[name].make_env().close()  # skips, if an extra is not installed
    process = FORKSERVER.Process(target=run_and_be_killed, args=(name, algo, tmp_path / "killed"))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL

    at = int(latest_checkpoint(tmp_path / "killed").name.split("_")[1])
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # that the resume is not exact, for instance
        resumed, resumed_rows = CASES[name].run(algo, tmp_path / "killed")
    expected, expected_rows = CASES[name].run(algo, tmp_path / "uninterrupted")
    assert at == 4 * expected.n_steps * expected.n_envs  # 1.5 rollouts were lost
    assert_equal(state_of(resumed), state_of(expected))
    assert_equal(resumed_rows.rows, {step: row for step, row in expected_rows.rows.items() if step > at})
    # The first row has the losses of the update before the checkpoint, unless an evaluation has written them
    assert "evaluation" in name or "train/loss" in resumed_rows.rows[min(resumed_rows.rows)]


def test_bfloat16_is_not_tried_again(algo: type[DAPO], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sb3_dapo.dapo.bfloat16_pays", lambda: True)
    env = make_native_atari()
    model = make_model(algo, "CnnPolicy", env, n_steps=8, batch_size=16, n_epochs=1).learn(32)
    model.save_checkpoint(tmp_path / "checkpoint", reset_envs=True)
    monkeypatch.setattr("sb3_dapo.dapo.bfloat16_pays", lambda: False)  # as on another machine
    assert algo.load_checkpoint(tmp_path / "checkpoint", env, device="cpu").learn(16).policy.autocast
    assert not algo.load(tmp_path / "checkpoint", env, device="cpu").learn(16).policy.autocast


@pytest.mark.parametrize("reset_envs", [False, True])
def test_a_saved_model_that_goes_on_equals_the_loaded_one(reset_envs: bool, algo: type[DAPO], tmp_path: Path) -> None:
    model = make_model(algo, "MlpPolicy", CARTPOLE(), n_rollouts=2)
    model.save_checkpoint(tmp_path / "before", reset_envs)  # before the first step too
    model.learn(400, reset_num_timesteps=False)
    model.save_checkpoint(tmp_path / "after", reset_envs)
    expected = state_of(model.learn(300, reset_num_timesteps=False))

    loaded = algo.load_checkpoint(tmp_path / "after", CARTPOLE(), device="cpu")
    np.random.seed(9)  # what happens between loading and training makes no difference
    th.rand(3)
    assert_equal(state_of(loaded.learn(300, reset_num_timesteps=False)), expected)

    loaded = algo.load_checkpoint(tmp_path / "before.zip", CARTPOLE(), device="cpu").learn(
        400, reset_num_timesteps=False
    )
    if reset_envs:
        loaded.save_checkpoint(tmp_path / "after again", reset_envs)
    assert_equal(state_of(loaded.learn(300, reset_num_timesteps=False)), expected)


def test_a_loaded_checkpoint_can_be_saved_again(algo: type[DAPO], tmp_path: Path) -> None:
    expected, _ = CASES["normalized"].run(algo, tmp_path / "uninterrupted")
    half_way = sorted((tmp_path / "uninterrupted").glob("*_128_steps.zip"))[0]
    model = algo.load_checkpoint(half_way, make_normalized_env(), device="cpu")
    model.save_checkpoint(tmp_path / "copy")
    model = algo.load_checkpoint(tmp_path / "copy", make_normalized_env(), device="cpu")
    assert_equal(state_of(learn_until(model, 256)), state_of(expected))


def test_random_states() -> None:
    cpu = th.device("cpu")
    states = get_random_states(cpu)
    draws = np.random.normal(size=3), th.randn(3), __import__("random").random()
    set_random_states(states, cpu)
    assert_equal((np.random.normal(size=3), th.randn(3), __import__("random").random()), draws)


def test_ring_saves_all_of_its_tensors(algo: type[DAPO]) -> None:
    ring = make_model(algo, "MlpPolicy", CARTPOLE(), n_rollouts=3).rollout_buffer
    shape = (3, 2, ring.buffer_size)
    kept = {name for name, value in vars(ring).items() if isinstance(value, th.Tensor) and value.shape[:3] == shape}
    assert kept == ring.state_dict()["scalars"].keys()


# --- when -----------------------------------------------------------------------------------------


class SaveIn(BaseCallback):
    """:param moment: name of the method that writes a checkpoint"""

    def __init__(self, moment: str, path: Path) -> None:
        super().__init__()
        setattr(self, moment, lambda: self.model.save_checkpoint(path) or True)

    def _on_step(self) -> bool:
        return True


@pytest.mark.parametrize("moment", ["_on_step", "_on_rollout_end"])
def test_refused_in_mid_rollout(moment: str, algo: type[DAPO], tmp_path: Path) -> None:
    model = make_model(algo, "MlpPolicy", CARTPOLE())
    with pytest.raises(ValueError, match="while a rollout is being collected"):
        model.learn(300, SaveIn(moment, tmp_path / "checkpoint"))
    assert not list(tmp_path.iterdir())


def test_refused_where_an_update_is_missing(algo: type[DAPO], tmp_path: Path) -> None:
    model = make_model(algo, "MlpPolicy", CARTPOLE())

    def fail(*args: Any) -> Any:
        raise TypeError

    model.policy.evaluate_actions = fail  # type: ignore[method-assign]
    with pytest.raises(TypeError):
        model.learn(300)
    with pytest.raises(ValueError, match="has not been trained on"):
        model.save_checkpoint(tmp_path / "checkpoint")


def test_interrupted_update(algo: type[DAPO], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What can be done with the model is named, and works."""
    model = make_model(algo, "MlpPolicy", CARTPOLE()).learn(256)

    def interrupt(*args: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(model.policy.optimizer, "step", interrupt)
        model.learn(256, reset_num_timesteps=False)
    with pytest.raises(ValueError, match="the update was interrupted: keep the model by `save` or `export`") as raised:
        model.save_checkpoint(tmp_path / "checkpoint")
    assert "outside of `learn`" not in str(raised.value)
    model.save(tmp_path / "model")
    model.export(tmp_path / "export")
    assert_equal(algo.load(tmp_path / "model", device="cpu").get_parameters(), model.get_parameters())


def test_refused_without_env(algo: type[DAPO], tmp_path: Path) -> None:
    make_model(algo, "MlpPolicy", CARTPOLE()).save(tmp_path / "model")
    with pytest.raises(ValueError, match="`env` must be set"):
        algo.load(tmp_path / "model").save_checkpoint(tmp_path / "checkpoint")


def test_stopped_in_mid_rollout(algo: type[DAPO], tmp_path: Path) -> None:
    """A callback ends training: the callback writes nothing that would differ from the uninterrupted run."""

    class Stop(BaseCallback):
        def _on_step(self) -> bool:
            return self.n_calls < 100

    model = make_model(algo, "MlpPolicy", CARTPOLE())
    model.learn(10_000, [CheckpointCallback(1, tmp_path / "folder"), Stop()])
    assert model.num_timesteps == 200
    assert latest_checkpoint(tmp_path / "folder").name == "checkpoint_128_steps.zip"
    model.save_checkpoint(tmp_path / "mine")
    expected = state_of(model.learn(300, reset_num_timesteps=False))
    loaded = algo.load_checkpoint(tmp_path / "mine", CARTPOLE(), device="cpu")
    assert_equal(state_of(loaded.learn(300, reset_num_timesteps=False)), expected)


# --- environments ---------------------------------------------------------------------------------


def make_dummy(env_id: str) -> VecEnv:
    if env_id.startswith("MinAtar/") and env_id not in gym.registry:
        pytest.importorskip("minatar.gym").register_envs()
    try:
        return make_vec_env(env_id, 2, seed=0)
    except gym.error.DependencyNotInstalled as error:
        pytest.skip(str(error))


RESTORABLE = [
    "CartPole-v1",
    "MountainCarContinuous-v0",
    "FrozenLake-v1",
    "Blackjack-v1",
    "MinAtar/Breakout-v1",
    "Ant-v5",
]


@pytest.mark.parametrize("env_id", RESTORABLE)
def test_restored_environment_goes_on_alike(env_id: str) -> None:
    if env_id == "Ant-v5":
        pytest.importorskip("mujoco")
    env, other = make_dummy(env_id), make_dummy(env_id)
    env.action_space.seed(1)
    env.reset()
    actions = [np.array([env.action_space.sample() for _ in range(2)]) for _ in range(90)]
    for action in actions[:30]:
        env.step(action)
    state = get_env_state(env)
    assert state.reason == ""
    expected = [env.step(action)[:3] for action in actions[30:]]
    other.reset()
    assert set_env_state(other, state) == ""
    for index, action in enumerate(actions[30:]):
        assert_equal(other.step(action)[:3], expected[index], f"step {index}")


class HiddenStateEnv(CatchEnv, gym.utils.EzPickle):
    """Pickles without an error, and without its state."""


class BulletClient:
    """A number by which a library in C knows the simulation."""

    __module__ = "pybullet_utils.bullet_client"
    number = 1


LOSE_STATE = {
    "file": lambda: open(os.devnull),
    "generator": lambda: (i for i in range(3)),
    "EzPickle": HiddenStateEnv,
    "closure": lambda: lambda: 0,
    "C module": lambda: np.random.bit_generator,
    "PyBullet": BulletClient,
    "connection": lambda: mp.Pipe()[0],
}


@pytest.mark.parametrize("name", LOSE_STATE)
def test_attributes_that_lose_state_are_not_saved(name: str) -> None:
    env = make_vec_env(CatchEnv, 1)
    assert get_env_state(env).reason == ""
    env.envs[0].unwrapped.helper = {"deep": LOSE_STATE[name]()}
    assert "the attribute `helper` cannot be saved" in get_env_state(env).reason


def test_references_between_wrappers_stay_references() -> None:
    def make() -> VecEnv:
        env = StackedCatchEnv(CatchEnv())
        env.base, env.shared = env.unwrapped, [1]
        env.unwrapped.shared = env.shared
        return DummyVecEnv([lambda: env])

    env, other = make(), make()
    env.reset()
    assert set_env_state(other, get_env_state(env)) == ""
    wrapper = other.envs[0]
    assert wrapper.base is wrapper.unwrapped and wrapper.shared is wrapper.unwrapped.shared


def test_observations_keep_their_order_in_memory(algo: type[DAPO], tmp_path: Path) -> None:
    """PyTorch chooses by it between convolutions that round differently."""
    model = make_model(algo, "MultiInputPolicy", make_dict_env())
    model.learn(64).save_checkpoint(tmp_path / "checkpoint")
    image = model._last_obs["image"]  # turned from (height, width, channels)
    assert image.strides != np.zeros(image.shape, image.dtype).strides
    loaded = algo.load_checkpoint(tmp_path / "checkpoint", make_dict_env(), device="cpu")
    assert_equal(loaded._last_obs, model._last_obs)
    assert loaded._last_obs["image"].strides == image.strides


def test_monitor_file_of_the_new_environment_is_kept(tmp_path: Path) -> None:
    def make(**settings: Any) -> VecEnv:
        return DummyVecEnv([lambda: Monitor(gym.make("CartPole-v1"), str(tmp_path / "x"), **settings)])

    env = make()
    env.seed(0)
    env.reset()
    for _ in range(5):
        env.step(np.array([0]))
    other = make(override_existing=False)
    assert set_env_state(other, get_env_state(env)) == ""
    env.close()
    for _ in range(30):
        other.step(np.array([0]))
    other.close()
    episodes = (tmp_path / "x.monitor.csv").read_text().splitlines()[2:]
    assert len(episodes) == len(other.envs[0].get_episode_lengths()) > 0
    assert episodes[0].split(",")[1] == str(other.envs[0].get_episode_lengths()[0])  # the five steps before included


@pytest.mark.parametrize("make_env", [make_lunar_lander, partial(CARTPOLE, vec_env_cls=SubprocVecEnv)])
def test_warns_where_a_resume_is_not_exact(make_env: Callable[[], VecEnv], algo: type[DAPO], tmp_path: Path) -> None:
    model = make_model(algo, "MlpPolicy", make_env(), n_steps=16, batch_size=16)
    with pytest.warns(UserWarning, match="With `reset_envs=True` it does") as warned:
        model.learn(64, CheckpointCallback(32, tmp_path))
    assert len(warned) == 1
    with pytest.warns(UserWarning, match="With `reset_envs=True` it does"):
        model.save_checkpoint(tmp_path / "mine")
    model.env.close()
    env = make_env()
    with pytest.warns(UserWarning, match="on resume they are reset"):
        model = algo.load_checkpoint(latest_checkpoint(tmp_path), env, device="cpu")
    learn_until(model, 128)
    assert model.num_timesteps == 128
    env.close()


def test_resets_environments_only_where_it_must(algo: type[DAPO], tmp_path: Path) -> None:
    for name, env, is_reset in (("dummy", CARTPOLE(), False), ("subproc", CARTPOLE(vec_env_cls=SubprocVecEnv), True)):
        callback = CheckpointCallback(64, tmp_path / name, reset_envs=None)
        model = make_model(algo, "MlpPolicy", env, n_steps=32).learn(64, callback)
        assert callback.reset_envs == is_reset
        assert model._last_episode_starts.all() == is_reset
        env.close()


def test_from_one_kind_of_vec_env_to_another(algo: type[DAPO], tmp_path: Path) -> None:
    """With reset_envs a run may even move to other processes."""
    make_model(algo, "MlpPolicy", CARTPOLE()).learn(128, CheckpointCallback(128, tmp_path, reset_envs=True))
    path = latest_checkpoint(tmp_path)
    expected = state_of(algo.load_checkpoint(path, CARTPOLE(), device="cpu").learn(128, reset_num_timesteps=False))
    env = CARTPOLE(vec_env_cls=SubprocVecEnv)
    model = algo.load_checkpoint(path, env, device="cpu")
    assert_equal(state_of(model.learn(128, reset_num_timesteps=False)), expected)
    env.close()


def test_warns_of_environments_that_do_not_follow_their_seed(algo: type[DAPO], tmp_path: Path) -> None:
    class Unseeded(RandomEnv):
        def __init__(self) -> None:
            super().__init__(spaces.Box(-1, 1, (2,)), spaces.Discrete(2))

        def reset(self, **kwargs: Any) -> Any:
            return super().reset(seed=int.from_bytes(os.urandom(4), "big"))

    model = make_model(algo, "MlpPolicy", make_vec_env(Unseeded, 1)).learn(64)
    model.save_checkpoint(tmp_path / "checkpoint", reset_envs=True)
    with pytest.warns(UserWarning, match="not deterministic given their seed"):
        algo.load_checkpoint(tmp_path / "checkpoint", make_vec_env(Unseeded, 1))


def test_environments_must_fit(algo: type[DAPO], tmp_path: Path) -> None:
    make_model(algo, "MlpPolicy", CARTPOLE()).learn(64).save_checkpoint(tmp_path / "checkpoint")
    for env, message in (
        (make_vec_env("CartPole-v1", 3), "`n_envs` of the saved rollouts is 2, not 3"),
        (VecNormalize(CARTPOLE()), "VecEnv wrappers are"),
        (
            make_vec_env("CartPole-v1", 2, wrapper_class=gym.wrappers.RecordEpisodeStatistics),
            "number 0 is .* got .'RecordEpisodeStatistics', 'Monitor'",
        ),
        (make_vec_env("Acrobot-v1", 2), "spaces do not match"),
    ):
        with pytest.raises(ValueError, match=message):
            algo.load_checkpoint(tmp_path / "checkpoint", env)
    with pytest.raises(ValueError, match="`n_steps` of the saved rollouts is 64, not 32"):
        algo.load_checkpoint(tmp_path / "checkpoint", CARTPOLE(), n_steps=32)


def test_vec_env_wrapper_that_cannot_be_saved(algo: type[DAPO], tmp_path: Path) -> None:
    class Wrapper(VecEnvWrapper):
        generator = property(lambda self: None)

        def __init__(self, venv: VecEnv) -> None:
            super().__init__(venv)
            self.stream = (i for i in range(3))

        def reset(self) -> Any:
            return self.venv.reset()

        def step_wait(self) -> Any:
            return self.venv.step_wait()

    model = make_model(algo, "MlpPolicy", Wrapper(CARTPOLE())).learn(64)
    with pytest.raises(ValueError, match="the attribute `stream` cannot be saved"):
        model.save_checkpoint(tmp_path / "checkpoint")
    with pytest.raises(ValueError, match="the attribute `stream` cannot be saved"):
        model.learn(64, CheckpointCallback(64, tmp_path))  # at once


# --- what the environments are made with ----------------------------------------------------------


class SettingsEnv(CatchEnv):
    """
    Has settings of all kinds.

    :param difficulty: kept under no name, but the number of balls follows from it
    :param level: where a curriculum begins: one higher after every episode
    :param log_path: where it would write
    :param by_chance: draw a number when it is made
    :param data: large
    :param count: what would be counted in the data
    """

    def __init__(
        self,
        difficulty: int = 1,
        level: int = 0,
        log_path: str = "",
        by_chance: bool = False,
        data: np.ndarray | None = None,
        count: bool = False,
    ) -> None:
        super().__init__(n_balls=2)
        self.bonus = 3 * difficulty
        self.level, self.log_path, self.data, self.count = level, log_path, data, count
        if by_chance:
            self.luck = float(np.random.default_rng().random())
        self.callback = lambda: None  # nothing that a process could send

    def step(self, action: Any) -> Any:
        observation, reward, terminated, truncated, info = super().step(action)
        self.level += terminated
        if self.count:
            self.data[0] += 1
        return observation, reward + self.level + self.bonus, terminated, truncated, info


def saved_run(algo: type[DAPO], make_env: Callable[[], VecEnv], path: Path, **settings: Any) -> DAPO:
    """A model that has written a checkpoint."""
    policy = "MlpPolicy" if len(make_env().observation_space.shape) == 1 else "CnnPolicy"
    settings = {"n_steps": 32, "n_epochs": 1, **({} if policy == "MlpPolicy" else {"policy_kwargs": TINY}), **settings}
    model = make_model(algo, policy, make_env(), **settings).learn(192)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The environments cannot be saved in mid-episode")
        model.save_checkpoint(path)
    return model


TINY = {"features_extractor_kwargs": {"features_dim": 8}, "net_arch": []}
PENDULUM = partial(make_vec_env, "Pendulum-v1", 2, seed=0)
VEC_ENVS = pytest.mark.parametrize("vec_env_cls", [DummyVecEnv, SubprocVecEnv])


@VEC_ENVS
@pytest.mark.parametrize(
    ("env_kwargs", "attribute", "value", "message"),
    [
        ({"g": 11.0}, "g", 11.0, r"PendulumEnv `g` 11.0 instead of 9.81"),
        ({"max_episode_steps": 50}, "_max_episode_steps", 50, r"TimeLimit `_max_episode_steps` 50 instead of 200"),
    ],
)
def test_new_arguments_of_environments_win(
    vec_env_cls: type[VecEnv],
    env_kwargs: dict[str, Any],
    attribute: str,
    value: Any,
    message: str,
    algo: type[DAPO],
    tmp_path: Path,
) -> None:
    make = partial(PENDULUM, vec_env_cls=vec_env_cls)
    saved_run(algo, partial(make, env_kwargs={"g": 9.81}), tmp_path / "checkpoint").env.close()
    env = make(env_kwargs={"g": 9.81, **env_kwargs})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = algo.load_checkpoint(tmp_path / "checkpoint", env, device="cpu")
    texts = [str(warning.message) for warning in caught if "made otherwise" in str(warning.message)]
    assert len(texts) == 1 and re.search(message, texts[0]) and "The new values are used" in texts[0]
    assert caught[0].filename == __file__
    assert env.get_attr(attribute) == [value, value]
    model.learn(256, reset_num_timesteps=False)
    assert env.get_attr(attribute) == [value, value]
    env.close()


@VEC_ENVS
def test_nothing_is_said_of_the_same_environment(
    vec_env_cls: type[VecEnv], algo: type[DAPO], tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    kwargs = {"log_path": "/a/log", "level": 2, "by_chance": True, "data": np.arange(9)}
    make = partial(make_vec_env, SettingsEnv, 2, seed=0, env_kwargs=kwargs, vec_env_cls=vec_env_cls)
    saved_run(algo, make, tmp_path / "checkpoint").env.close()
    env = make()
    algo.load_checkpoint(tmp_path / "checkpoint", env, device="cpu").learn(64, reset_num_timesteps=False)
    env.close()  # the workers live, though there is much in the environments that cannot be sent
    assert not [warning for warning in recwarn if "otherwise" in str(warning.message)]


def test_what_only_the_specification_knows(algo: type[DAPO], tmp_path: Path) -> None:
    class Hidden(CatchEnv):
        def __init__(self, difficulty: int) -> None:
            super().__init__()
            self.map = {(i, i): np.ones(3) * difficulty for i in range(30)}

    def make(difficulty: int) -> VecEnv:
        spec = gym.envs.registration.EnvSpec("Hidden-v0", entry_point=Hidden, kwargs={"difficulty": difficulty})
        return DummyVecEnv([partial(gym.make, spec)])

    saved_run(algo, partial(make, 3), tmp_path / "checkpoint")
    env = make(7)
    with pytest.warns(UserWarning, match="Hidden `difficulty` 7 instead of 3"):
        algo.load_checkpoint(tmp_path / "checkpoint", env, device="cpu")
    assert env.get_attr("map")[0][0, 0].tolist() == [7, 7, 7]


def test_what_follows_from_an_argument_is_not_put_back(algo: type[DAPO], tmp_path: Path) -> None:
    saved_run(algo, lambda: DummyVecEnv([lambda: SettingsEnv(3)] * 2), tmp_path / "checkpoint")
    env = DummyVecEnv([lambda: SettingsEnv(7)] * 2)
    with pytest.warns(UserWarning, match="SettingsEnv `bonus` 21 instead of 9"):
        algo.load_checkpoint(tmp_path / "checkpoint", env, device="cpu")
    assert env.get_attr("bonus") == [21, 21]


@pytest.mark.parametrize("n_envs", [1, 2])
def test_state_under_the_name_of_an_argument_is_restored(n_envs: int, algo: type[DAPO], tmp_path: Path) -> None:
    """The level of a curriculum, also where the new environment has been used before; a number drawn by chance."""
    make = partial(make_vec_env, SettingsEnv, n_envs, seed=0, env_kwargs={"by_chance": n_envs > 1})
    model = saved_run(algo, make, tmp_path / "checkpoint")
    assert isinstance(model.env, VecTransposeImage)
    levels, envs = model.env.get_attr("level"), [make(), model.env, model.env.venv]
    assert min(levels) > 1
    luck = model.env.get_attr("luck") if n_envs > 1 else []
    expected = state_of(model.learn(64 * n_envs, reset_num_timesteps=False))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for env in envs:
            model = algo.load_checkpoint(tmp_path / "checkpoint", env, device="cpu")
            assert env.get_attr("level") == levels
            assert n_envs == 1 or env.get_attr("luck") == luck
            assert_equal(state_of(model.learn(64 * n_envs, reset_num_timesteps=False)), expected)


def test_paths_of_another_machine_are_not_restored(algo: type[DAPO], tmp_path: Path) -> None:
    """And make no other environment: the resume is exact."""

    def make(path: str) -> VecEnv:
        return make_vec_env(SettingsEnv, 2, seed=0, env_kwargs={"log_path": path})

    model = saved_run(algo, partial(make, "/home/a/log"), tmp_path / "checkpoint")
    expected = state_of(model.learn(128, reset_num_timesteps=False))
    env = make("/home/b/log")
    with pytest.warns(UserWarning, match="SettingsEnv `log_path` '/home/b/log' instead of '/home/a/log'"):
        model = algo.load_checkpoint(tmp_path / "checkpoint", env, device="cpu")
    assert env.get_attr("log_path") == ["/home/b/log"] * 2
    assert_equal(state_of(model.learn(128, reset_num_timesteps=False)), expected)


@VEC_ENVS
def test_settings_of_vec_normalize(vec_env_cls: type[VecEnv], algo: type[DAPO], tmp_path: Path) -> None:
    def make(**settings: Any) -> VecEnv:
        return VecNormalize(PENDULUM(vec_env_cls=vec_env_cls), **settings)

    saved = saved_run(algo, make, tmp_path / "checkpoint").env
    saved.close()
    settings = {"clip_obs": 5.0, "clip_reward": 4.0, "gamma": 0.9, "epsilon": 1e-4, "norm_reward": False}
    env = make(**settings)
    with pytest.warns(UserWarning, match="made otherwise") as caught:
        algo.load_checkpoint(tmp_path / "checkpoint", env, device="cpu")
    for name, value in settings.items():
        assert getattr(env, name) == value
        assert any(f"VecNormalize `{name}` {value} instead of" in str(warning.message) for warning in caught)
    assert_equal(vars(env.obs_rms), vars(saved.obs_rms))
    assert_equal(env.returns, saved.returns)
    env.close()


def test_other_keys_to_normalize_are_refused(algo: type[DAPO], tmp_path: Path) -> None:
    parts = spaces.Dict({"a": spaces.Box(-1, 1, (2,)), "b": spaces.Box(-1, 1, (2,))})

    def make(keys: list[str] | None) -> VecEnv:
        return VecNormalize(DummyVecEnv([lambda: RandomEnv(parts, spaces.Discrete(2))]), norm_obs_keys=keys)

    make_model(algo, "MultiInputPolicy", make(["a"])).learn(64).save_checkpoint(tmp_path / "checkpoint")
    with pytest.raises(ValueError, match="must normalize the same parts.*`norm_obs_keys` .'a', 'b'. instead of .'a'"):
        algo.load_checkpoint(tmp_path / "checkpoint", make(["a", "b"]), device="cpu")


def test_environments_of_evaluation(algo: type[DAPO], tmp_path: Path) -> None:
    def run(g: float) -> VecEnv:
        eval_env = make_vec_env("Pendulum-v1", 1, env_kwargs={"g": g})
        path = latest_checkpoint(tmp_path)
        model = make_model(algo, "MlpPolicy", PENDULUM()) if path is None else algo.load_checkpoint(path, PENDULUM())
        evaluation = EvalCallback(eval_env, eval_freq=50, n_eval_episodes=1, verbose=0)
        learn_until(model, model.num_timesteps + 128, [CheckpointCallback(128, tmp_path), evaluation])
        return eval_env

    run(9.81)
    with pytest.warns(UserWarning, match="`g` 11.0 instead of 9.81"):
        assert run(11.0).get_attr("g") == [11.0]


def test_settings_of_native_atari(algo: type[DAPO], tmp_path: Path) -> None:
    make_native_atari().close()
    from sb3_dapo.atari_vec_env import AtariVecEnv

    make = partial(AtariVecEnv, "BreakoutNoFrameskip-v4", 2)
    model = make_model(algo, "CnnPolicy", make(), n_steps=8, n_epochs=1, policy_kwargs=TINY).learn(16)
    model.save_checkpoint(tmp_path / "checkpoint", reset_envs=True)
    with pytest.warns(UserWarning, match="`frame_skip` 3 instead of 4"):
        algo.load_checkpoint(tmp_path / "checkpoint", make(frame_skip=3), device="cpu")


def megabytes(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(256, size=(n, 2**20), dtype=np.uint8)


def make_data_env(data: np.ndarray, count: bool = False) -> VecEnv:
    kwargs = {"data": data, "count": count}
    return DummyVecEnv([lambda: SettingsEnv(**{**kwargs, "data": data.copy()})] * 2)


def test_data_sets(algo: type[DAPO], tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    model = saved_run(algo, partial(make_data_env, megabytes(4)), tmp_path / "state")
    (warned,) = [warning for warning in recwarn if "take much space" in str(warning.message)]
    assert "`data` of SettingsEnv (8.0 MB)" in str(warned.message) and "reset_envs=True" in str(warned.message)
    assert (tmp_path / "state.zip").stat().st_size > 8 * 2**20
    recwarn.clear()
    model.save_checkpoint(tmp_path / "reset", reset_envs=True)
    assert not list(recwarn)
    assert (tmp_path / "reset.zip").stat().st_size < 2**20
    expected = state_of(model.learn(128, reset_num_timesteps=False))

    loaded = algo.load_checkpoint(tmp_path / "reset", make_data_env(megabytes(4)), device="cpu")
    assert not list(recwarn)
    assert_equal(state_of(loaded.learn(128, reset_num_timesteps=False)), expected)
    for name in ("state", "reset"):
        env = make_data_env(megabytes(4, seed=1))
        with pytest.warns(UserWarning, match="`data` <4.0 MB, SHA-256 .*> instead of <4.0 MB, SHA-256"):
            algo.load_checkpoint(tmp_path / name, env, device="cpu")
        assert_equal(env.get_attr("data")[0], megabytes(4, seed=1))


def test_large_state_is_kept(algo: type[DAPO], tmp_path: Path) -> None:
    """It is no data set: it has changed."""
    make = partial(make_data_env, megabytes(4), count=True)
    model = saved_run(algo, make, tmp_path / "first")
    with pytest.warns(UserWarning, match="take much space in every checkpoint: `data` of SettingsEnv .8.0 MB.$"):
        model.save_checkpoint(tmp_path / "checkpoint", reset_envs=True)
    env = make()
    algo.load_checkpoint(tmp_path / "checkpoint", env, device="cpu")
    assert_equal(env.get_attr("data"), model.env.get_attr("data"))


def test_models_of_mujoco_are_no_data_sets() -> None:
    """Noting them would take longer than all else that is done to make a model."""
    pytest.importorskip("mujoco")
    env = make_dummy("Ant-v5")
    note_made(env)
    made, now = made_with(env)
    assert len(made) == 2 and made == now
    texts = {setting.name: text for setting, text in made[0].items()}
    assert texts["_reset_noise_scale"] == "0.1" and not any(text.startswith("<") for text in texts.values())


def test_callback_tells_of_large_environments_once(algo: type[DAPO], tmp_path: Path) -> None:
    model = make_model(algo, "CnnPolicy", make_data_env(megabytes(2)), n_steps=32, n_epochs=1, policy_kwargs=TINY)
    with pytest.warns(UserWarning, match="take much space") as caught:
        model.learn(192, CheckpointCallback(64, tmp_path))
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.learn(192, CheckpointCallback(64, tmp_path / "reset", reset_envs=True))


# --- policies -------------------------------------------------------------------------------------


def test_frozen_layers_stay_frozen(algo: type[DAPO], tmp_path: Path) -> None:
    model = make_model(algo, "MlpPolicy", CARTPOLE())
    model.policy.mlp_extractor.policy_net.requires_grad_(False)
    model.learn(256).save_checkpoint(tmp_path / "checkpoint")
    expected = state_of(model.learn(256, reset_num_timesteps=False))
    loaded = algo.load_checkpoint(tmp_path / "checkpoint", CARTPOLE(), device="cpu")
    frozen = {name for name, parameter in loaded.policy.named_parameters() if not parameter.requires_grad}
    assert frozen == {f"mlp_extractor.policy_net.0.{kind}" for kind in ("weight", "bias")}
    assert_equal(state_of(loaded.learn(256, reset_num_timesteps=False)), expected)


class FrozenPolicy(ActorCriticPolicy):
    """Is made with a frozen layer."""

    def _build(self, lr_schedule: Any) -> None:
        super()._build(lr_schedule)
        self.value_net.requires_grad_(False)


def test_thawed_layers_stay_thawed(algo: type[DAPO], tmp_path: Path) -> None:
    model = make_model(algo, FrozenPolicy, CARTPOLE())
    model.policy.value_net.requires_grad_(True)
    model.learn(128).save_checkpoint(tmp_path / "checkpoint")
    loaded = algo.load_checkpoint(tmp_path / "checkpoint", CARTPOLE(), device="cpu")
    assert all(parameter.requires_grad for parameter in loaded.policy.parameters())


# --- files ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint") / "checkpoint_128_steps.zip"
    make_model(DAPO, "MlpPolicy", CARTPOLE(), n_rollouts=2).learn(128).save_checkpoint(path)
    return path


def test_is_also_a_model(checkpoint: Path, algo: type[DAPO]) -> None:
    model = algo.load(checkpoint)
    restored = algo.load_checkpoint(checkpoint, CARTPOLE())
    assert_equal(model.get_parameters(), restored.get_parameters())


def test_a_model_is_no_checkpoint(algo: type[DAPO], tmp_path: Path) -> None:
    make_model(algo, "MlpPolicy", CARTPOLE()).save(tmp_path / "model")
    with pytest.raises(ValueError, match="use `load`"):
        algo.load_checkpoint(tmp_path / "model", CARTPOLE())
    with pytest.raises(FileNotFoundError):
        algo.load_checkpoint(tmp_path / "nothing", CARTPOLE())


def test_damaged_files_are_refused(checkpoint: Path, algo: type[DAPO], tmp_path: Path) -> None:
    content = checkpoint.read_bytes()
    path = tmp_path / "checkpoint_128_steps.zip"
    for size in [0, 1, 1000, len(content) // 2, len(content) - 1]:
        path.write_bytes(content[:size])
        with pytest.raises(ValueError, match="cannot be resumed from"):
            algo.load_checkpoint(path, CARTPOLE())
    # A wrong byte anywhere is refused or, in the few that carry nothing such as dates, makes no difference
    expected = algo.load_checkpoint(checkpoint, CARTPOLE(), device="cpu")
    n_refused = 0
    for position in np.random.default_rng(0).integers(len(content), size=40):
        path.write_bytes(content[:position] + bytes([content[position] ^ 0xFF]) + content[position + 1 :])
        try:
            model = algo.load_checkpoint(path, CARTPOLE(), device="cpu")
        except ValueError:
            n_refused += 1
        else:
            assert_equal(model.get_parameters(), expected.get_parameters())
            assert_equal(model.rollout_buffer.state_dict(), expected.rollout_buffer.state_dict())
    assert n_refused >= 35


def test_other_formats_are_refused(checkpoint: Path, algo: type[DAPO], tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.zip"
    with zipfile.ZipFile(checkpoint) as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            if name == "training.pt":
                file = io.BytesIO()
                th.save({**th.load(io.BytesIO(content)), "format": 99}, file)
                content = file.getvalue()
            new.writestr(name, content)
    with pytest.raises(ValueError, match="its format is 99"):
        algo.load_checkpoint(path, CARTPOLE())


@pytest.mark.parametrize("moment", ["fsync", "replace", "write"])
def test_crash_while_writing_leaves_the_previous(moment: str, algo: type[DAPO], tmp_path: Path) -> None:
    process = FORKSERVER.Process(target=crash_while_writing, args=(moment, algo, tmp_path))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert [path.name for path in tmp_path.glob(".*")] == [".checkpoint_128_steps.zip.tmp"]
    assert latest_checkpoint(tmp_path) == tmp_path / "checkpoint_64_steps.zip"
    resumed, _ = CASES["cartpole"].run(algo, tmp_path)
    expected, _ = CASES["cartpole"].run(algo, tmp_path / "uninterrupted")
    assert_equal(state_of(resumed), state_of(expected))
    assert not list(tmp_path.glob(".*"))


def crash_while_writing(moment: str, algo: type[DAPO], folder: Path) -> None:
    """Dies in the second checkpoint: while it writes, before the file is safe on disk, or before it has its name."""
    calls = 0

    def die(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        # os.fsync is called for the file, and for the folder
        if calls > {"fsync": 2, "replace": 1, "write": 20}[moment]:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args, **kwargs)

    owner = zipfile.ZipFile if moment == "write" else os
    name = "_write_end_record" if moment == "write" else moment
    original = getattr(owner, name)
    if moment == "write":
        calls = 18  # SB3 writes one end record, the checkpoint's entries another
    setattr(owner, name, die)
    CASES["cartpole"].run(algo, folder)


def test_an_error_while_writing_leaves_the_previous(
    algo: type[DAPO], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model(algo, "MlpPolicy", CARTPOLE())
    model.save_checkpoint(tmp_path / "checkpoint")
    before = (tmp_path / "checkpoint.zip").read_bytes()

    def no_space(fd: int) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(OSError, match="No space"):
        model.save_checkpoint(tmp_path / "checkpoint")
    assert (tmp_path / "checkpoint.zip").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.zip"]


# --- callback -------------------------------------------------------------------------------------


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_keeps_the_last(algo: type[DAPO], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "other_5_steps.zip").touch()
    (tmp_path / ".checkpoint_7_steps.zip.tmp").touch()
    model = make_model(algo, "MlpPolicy", CARTPOLE())
    model.learn(640, CheckpointCallback(np.uint8(100), tmp_path, keep_last=np.uint8(2), verbose=2))
    # 128 steps per rollout: due after 128, 256, 384 (over 300), 512 (over 400, 500) and 640, the end
    assert names(tmp_path) == ["checkpoint_512_steps.zip", "checkpoint_640_steps.zip", "other_5_steps.zip"]
    assert f"Saved checkpoint {tmp_path / 'checkpoint_640_steps.zip'}" in capsys.readouterr().out

    model.learn(
        128, CheckpointCallback(200, tmp_path / "x", keep_last=None, name_prefix="a.b"), reset_num_timesteps=False
    )
    assert names(tmp_path / "x") == ["a.b_768_steps.zip"]
    assert latest_checkpoint(tmp_path / "x") is None
    assert latest_checkpoint(tmp_path / "x", "a.b") == tmp_path / "x" / "a.b_768_steps.zip"


def test_later_checkpoints_of_an_abandoned_branch_are_left_alone(algo: type[DAPO], tmp_path: Path) -> None:
    make_model(algo, "MlpPolicy", CARTPOLE()).learn(640, CheckpointCallback(128, tmp_path, keep_last=None))
    model = algo.load_checkpoint(tmp_path / "checkpoint_256_steps", CARTPOLE())
    learn_until(model, 384, CheckpointCallback(128, tmp_path, keep_last=1))
    assert names(tmp_path) == [f"checkpoint_{steps}_steps.zip" for steps in (384, 512, 640)]


def test_a_new_run_does_not_mix_with_an_old_one(algo: type[DAPO], tmp_path: Path) -> None:
    make_model(algo, "MlpPolicy", CARTPOLE()).learn(128, CheckpointCallback(128, tmp_path))
    with pytest.raises(ValueError, match="without checkpoints for a new run"):
        make_model(algo, "MlpPolicy", CARTPOLE()).learn(128, CheckpointCallback(128, tmp_path))


def test_latest_skips_damaged_files(algo: type[DAPO], tmp_path: Path) -> None:
    assert latest_checkpoint(tmp_path) is None
    assert latest_checkpoint(tmp_path / "nothing") is None
    CASES["cartpole"].run(algo, tmp_path)
    *_, second, newest = sorted(tmp_path.iterdir(), key=lambda path: int(path.name.split("_")[1]))
    newest.write_bytes(newest.read_bytes()[:-100])
    with pytest.warns(UserWarning, match=rf"{newest.name} cannot be resumed from.*earlier checkpoint is used"):
        assert latest_checkpoint(tmp_path) == second


def test_a_finished_run_has_nothing_to_do(algo: type[DAPO], tmp_path: Path) -> None:
    model, _ = CASES["cartpole"].run(algo, tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    resumed, rows = CASES["cartpole"].run(algo, tmp_path)
    assert_equal(resumed.get_parameters(), model.get_parameters())
    assert rows.rows == {}
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before


def evaluated_run(algo: type[DAPO], total: int, folder: Path, n_eval_envs: int = 1) -> EvalCallback:
    """Start a run with an EvalCallback, or go on with it."""
    path = latest_checkpoint(folder / "checkpoints")
    env = CARTPOLE()
    model = make_model(algo, "MlpPolicy", env) if path is None else algo.load_checkpoint(path, env)
    eval_env = make_vec_env("CartPole-v1", n_eval_envs)
    evaluation = EvalCallback(eval_env, eval_freq=50, log_path=str(folder), verbose=0)
    learn_until(model, total, [CheckpointCallback(128, folder / "checkpoints"), evaluation])
    return evaluation


def test_other_callbacks_go_on(algo: type[DAPO], tmp_path: Path) -> None:
    """A best model from before the interruption is not replaced by a worse one."""
    first = evaluated_run(algo, 256, tmp_path)
    assert len(first.evaluations_results) == 2
    second = evaluated_run(algo, 512, tmp_path)
    assert second.n_calls == 256
    assert second.best_mean_reward >= first.best_mean_reward > 0
    assert second.evaluations_results[:2] == first.evaluations_results
    assert np.load(tmp_path / "evaluations.npz")["timesteps"].tolist() == [100, 200, 300, 400, 500]


def test_warns_of_other_evaluations(algo: type[DAPO], tmp_path: Path) -> None:
    evaluated_run(algo, 256, tmp_path)
    with pytest.warns(UserWarning, match="EvalCallback 0 evaluates on other environments"):
        evaluated_run(algo, 512, tmp_path, n_eval_envs=2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"save_freq": 0}, "`save_freq` must be an integer of at least 1, got 0"),
        ({"save_freq": 1.5}, "`save_freq` must be an integer of at least 1, got 1.5"),
        ({"keep_last": 0}, "`keep_last` must be an integer of at least 1, got 0"),
        ({"keep_last": True}, "`keep_last` must be an integer of at least 1, got True"),
        ({"reset_envs": "no"}, "`reset_envs` must be True, False or None, got 'no'"),
        ({"name_prefix": "a/b"}, "`name_prefix` must be a name without folders, got 'a/b'"),
        ({"name_prefix": None}, "`name_prefix` must be a name without folders, got None"),
    ],
)
def test_callback_arguments(arguments: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        CheckpointCallback(save_path=tmp_path, **{"save_freq": 1, **arguments})


def test_callback_is_for_this_package(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="got a PPO"):
        PPO("MlpPolicy", "CartPole-v1", n_steps=8, batch_size=8).learn(8, CheckpointCallback(8, tmp_path))
