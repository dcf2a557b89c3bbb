"""DAPO with actors on the real Ray: what it equals, what it repeats, and how its numbers add up."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
import yaml
from algos import flat_parameters, make_model
from envs import CatchEnv, RandomEnv
from gymnasium import spaces
from masked_envs import MaskedEnv
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecFrameStack, VecMonitor, VecNormalize

import sb3_dapo
from sb3_dapo import DAPO
from sb3_dapo.checkpoint import CheckpointCallback, latest_checkpoint, learn_until
from sb3_dapo.distributed import ActorVecEnv

ray = pytest.importorskip("ray", reason="the extra `ray` is not installed")

from sb3_dapo.distributed.actor import actor_seed  # noqa: E402
from sb3_dapo.distributed.pool import WorkerError  # noqa: E402

pytestmark = [
    pytest.mark.usefixtures("ray_cluster"),
    pytest.mark.filterwarnings("ignore:The last minibatch of every epoch"),
]

N_STEPS, N_ENVS = 16, 2
ROOT = Path(__file__).parent.parent


Make = Callable[..., ActorVecEnv]


@pytest.fixture
def actors(ray_cluster: Any) -> Iterator[Make]:
    """Makes environments of actors, and closes them. Actors take hardly any CPU, so there is room for them."""
    made = []

    def make(make_env: Callable[[int], VecEnv], n_actors: int = 1, **options: Any) -> ActorVecEnv:
        made.append(ActorVecEnv(make_env, n_actors, **{"cpus_per_actor": 0.01, **options}))
        return made[-1]

    yield make
    for env in made:
        env.close()


@pytest.fixture(scope="module")
def three_actors(ray_cluster: Any) -> Iterator[ActorVecEnv]:
    env = ActorVecEnv(random_envs, 3, cpus_per_actor=0.01)
    yield env
    env.close()


@pytest.fixture(params=[False, True], ids=["async", "sync"])
def three(request: pytest.FixtureRequest, three_actors: ActorVecEnv) -> ActorVecEnv:
    """In both modes, for the tests that harm none of them."""
    three_actors._source.sync = request.param
    return three_actors


def cart_poles(seed: int, n_envs: int = N_ENVS) -> VecEnv:
    return make_vec_env("CartPole-v1", n_envs, seed=seed)


def images(seed: int) -> VecEnv:
    return VecFrameStack(make_vec_env(CatchEnv, N_ENVS, seed=seed), 4)


def atari(seed: int) -> VecEnv:
    from sb3_dapo.atari_vec_env import AtariVecEnv

    return AtariVecEnv("BreakoutNoFrameskip-v4", N_ENVS, seed)


def masks(seed: int) -> VecEnv:
    return make_vec_env(lambda: MaskedEnv(spaces.Discrete(5)), N_ENVS, seed=seed)


def random_envs(seed: int, space: str = "floats") -> VecEnv:
    floats = spaces.Box(-1, 1, (3,))
    space = {"floats": floats, "dict": spaces.Dict({"a": floats, "b": spaces.Discrete(3)})}[space]
    return make_vec_env(lambda: RandomEnv(space, spaces.Box(-1, 1, (2,)), 0.1, 0.1), N_ENVS, seed=seed)


def train(env: VecEnv, policy: str = "MlpPolicy", n_updates: int = 4, **settings: Any) -> DAPO:
    callback = settings.pop("callback", None)
    settings = {"n_steps": N_STEPS, "batch_size": 8, "learning_rate": 0.01, **settings}
    model = make_model(getattr(sb3_dapo, settings.pop("algo", "DAPO")), policy, env, **settings)
    return model.learn(n_updates * getattr(env, "n_sources", 1) * N_STEPS * env.num_envs, callback)


# ---- One actor that is waited for is one process


SMALL_CNN = {"features_extractor_kwargs": {"features_dim": 8}}
CASES: dict[str, tuple[Callable[[int], VecEnv], str, dict[str, Any]]] = {
    "K = 1": (cart_poles, "MlpPolicy", {}),
    "K = 3": (cart_poles, "MlpPolicy", {"n_rollouts": 3}),
    "GAE": (cart_poles, "MlpPolicy", {"advantage": "gae"}),
    "dropout": (cart_poles, "MlpPolicy", {"policy_kwargs": {"activation_fn": partial(th.nn.Dropout, 0.3)}}),
    "images": (images, "CnnPolicy", {"n_rollouts": 2, "policy_kwargs": SMALL_CNN}),
    "frames": (images, "CnnPolicy", {"optimize_memory_usage": True, "policy_kwargs": SMALL_CNN}),
    "truncation": (random_envs, "MlpPolicy", {"n_rollouts": 2}),
    "gSDE": (random_envs, "MlpPolicy", {"use_sde": True, "sde_sample_freq": 4}),
    "Atari": (atari, "CnnPolicy", {"n_rollouts": 2, "optimize_memory_usage": True, "policy_kwargs": SMALL_CNN}),
    "recurrent": (cart_poles, "MlpLstmPolicy", {"algo": "RecurrentDAPO", "n_rollouts": 2, "sequence_length": 8}),
    "masks": (masks, "MlpPolicy", {"algo": "MaskableDAPO", "n_rollouts": 2}),
    "Dict": (partial(random_envs, space="dict"), "MultiInputPolicy", {"n_rollouts": 2}),
}


NEEDED = {"Atari": "ale_py", "recurrent": "sb3_contrib", "masks": "sb3_contrib"}


@pytest.mark.parametrize("case", CASES)
def test_one_actor_equals_one_process(actors: Make, case: str) -> None:
    make_env, policy, settings = CASES[case]
    if case in NEEDED:
        pytest.importorskip(NEEDED[case])

    def run(env: VecEnv) -> list[Any]:
        model = train(env, policy, **settings)
        results: list[Any] = [model.num_timesteps, [info["r"] for info in model.ep_info_buffer or ()]]
        for is_new in (False, True):  # episodes go on, or begin anew
            results.append(flat_parameters(model).tolist())
            model.learn(2 * N_STEPS * N_ENVS, reset_num_timesteps=is_new)
        return [*results, flat_parameters(model).tolist()]

    assert run(actors(make_env, sync=True)) == run(make_env(0))


@pytest.mark.parametrize(
    ("space", "settings"),
    [("floats", {}), ("dict", {"norm_obs_keys": ["a"]}), ("floats", {"norm_obs": False})],
    ids=str,
)
def test_one_actor_normalizes_as_one_process(actors: Make, space: str, settings: dict[str, Any]) -> None:
    make_env = partial(random_envs, space=space)
    policy = "MultiInputPolicy" if space == "dict" else "MlpPolicy"

    def run(env: VecEnv) -> list[Any]:
        normalize = VecNormalize(env, **settings)
        model = train(normalize, policy, n_rollouts=2)
        model.learn(2 * N_STEPS * N_ENVS)
        return [flat_parameters(model).tolist(), *statistics(normalize)]

    assert run(actors(make_env, sync=True)) == run(make_env(0))


def statistics(env: VecNormalize) -> list[Any]:
    all_rms = [env.ret_rms]
    if env.norm_obs:
        all_rms += env.obs_rms.values() if isinstance(env.obs_rms, dict) else [env.obs_rms]
    return [np.asarray(x).tolist() for rms in all_rms for x in (rms.mean, rms.var, rms.count)]


# ---- Several


def test_several_actors_that_are_waited_for_repeat_themselves(three_actors: ActorVecEnv) -> None:
    three_actors._source.sync = True

    def run() -> list[Any]:
        normalize = VecNormalize(three_actors)
        return [flat_parameters(train(normalize, n_rollouts=2)).tolist(), *statistics(normalize)]

    first, *others = (run() for _ in range(3))
    assert others == [first, first]


class Steps(BaseCallback):
    """What a callback sees."""

    def __init__(self) -> None:
        super().__init__()
        self.episodes = 0
        self.rewards: list[float] = []

    def _on_step(self) -> bool:
        assert self.locals["rewards"].shape == (N_ENVS,)
        assert self.n_calls * N_ENVS == self.num_timesteps
        assert [set(info) <= {"episode"} for info in self.locals["infos"]] == [True, True]
        self.episodes += sum("episode" in info for info in self.locals["infos"])
        self.rewards += self.locals["rewards"].tolist()
        return True


class Trained(DAPO):
    """Notes what it has been trained on."""

    seen: list[tuple[int, int, bytes]]

    def train(self) -> None:
        ring = self.rollout_buffer
        for slot in range(ring.n_kept):
            entry = (int(ring.sources[slot]), int(ring.versions[slot]), ring.kept_rewards[slot].numpy().tobytes())
            if entry not in self.seen:
                self.seen.append(entry)
        super().train()

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "seen"]


class Asks(BaseCallback):
    """
    Asks the environments at every step, which waits for rollouts that are under way.

    :param asks_all: whether it asks all actors, or the first only
    """

    def __init__(self, asks_all: bool = True) -> None:
        super().__init__()
        self.asks_all = asks_all
        self.counts: list[list[int]] = []  # rollouts that have come from each actor, before and after each update

    def _count(self) -> None:
        self.counts.append(list(self.training_env._source.counts))  # type: ignore[attr-defined]

    _on_training_start = _on_rollout_end = _count

    def _on_step(self) -> bool:
        assert len(self.training_env.get_attr("p_truncated")) == N_ENVS
        if self.asks_all:
            assert len(self.training_env.env_method("get_wrapper_attr", "p_truncated")) == N_ENVS
        return True


def test_callbacks_may_ask_the_environments(three: ActorVecEnv) -> None:
    """Each update has a rollout of each actor, and where actors are waited for the run is that without questions."""
    all_parameters = []
    for callback in (Asks(), None, Asks()):
        all_parameters.append(flat_parameters(train(three, callback=callback)).tolist())
        if callback is not None:
            assert np.diff(callback.counts, axis=0).tolist() == [[1, 1, 1]] * 4
        if three._source.sync:
            assert not three._source._held
            assert all_parameters[-1] == all_parameters[0]


def first_is_fast(seed: int) -> VecEnv:
    return troubled(seed, seconds=0.0 if seed == actor_seed(0, 0, 0) else 0.02)


def test_questions_give_an_actor_no_more_than_its_share(actors: Make) -> None:
    """Each waits for another rollout of the only actor that is asked. Two in an update would be one not trained on."""
    callback = Asks(asks_all=False)
    train(actors(first_is_fast, 3), callback=callback)
    assert np.diff(callback.counts, axis=0).max() == 1


@pytest.mark.parametrize("n_rollouts", [1, 2])
def test_all_that_callbacks_saw_is_trained_on(three: ActorVecEnv, n_rollouts: int) -> None:
    model = make_model(Trained, "MlpPolicy", three, n_steps=N_STEPS, n_rollouts=n_rollouts)
    assert isinstance(model, Trained)
    model.seen = []
    callback, before = Steps(), list(three._source.counts)
    model.learn(6 * 3 * N_STEPS * N_ENVS, callback)
    n_taken = np.subtract(three._source.counts, before).sum()
    assert 6 * 3 <= n_taken < 7 * 3
    assert model.num_timesteps == n_taken * N_STEPS * N_ENVS == callback.n_calls * N_ENVS
    assert model._policy_version >= 6
    assert not three._source.sync or model._policy_version == 6
    trained = np.concatenate([np.frombuffer(rewards, np.float32) for *_, rewards in model.seen])
    np.testing.assert_array_equal(np.sort(trained), np.sort(np.array(callback.rewards, np.float32)))
    assert callback.episodes > 10


def test_statistics_are_those_of_all_that_was_seen(three: ActorVecEnv) -> None:
    normalize = VecNormalize(three)
    model = train(normalize, n_updates=8)
    assert isinstance(normalize.obs_rms, RunningMeanStd)
    n_seen = model.num_timesteps + 3 * N_ENVS  # with the first observations
    assert normalize.obs_rms.count == pytest.approx(n_seen + 1e-4, abs=1e-6)
    assert normalize.ret_rms.count == pytest.approx(model.num_timesteps + 1e-4, abs=1e-6)
    # Uniform from -1 to 1
    np.testing.assert_allclose(normalize.obs_rms.mean, 0, atol=0.08)
    np.testing.assert_allclose(normalize.obs_rms.var, 1 / 3, atol=0.04)
    # Without training they stay
    normalize.training, before = False, statistics(normalize)
    model.learn(2 * 3 * N_STEPS * N_ENVS)
    assert statistics(normalize) == before


class Slow(BaseCallback):
    """A learner that takes so long, after a rollout, that all actors are done."""

    def __init__(self) -> None:
        super().__init__()
        self.logged: list[dict[str, float]] = []

    def _on_rollout_end(self) -> None:
        self.logged.append(
            {key[12:]: value for key, value in self.logger.name_to_value.items() if key.startswith("distributed/")}
        )
        source = self.training_env.unwrapped._source  # type: ignore[attr-defined]
        pending = list(source.pool._pending)
        time.sleep(0.1)
        assert len(ray.wait(pending, num_returns=len(pending), timeout=60.0)[0]) == len(pending)

    def _on_step(self) -> bool:
        return True


@pytest.mark.parametrize("n_rollouts", [1, 2])
def test_lag_is_bounded_and_nobody_starves(three: ActorVecEnv, n_rollouts: int) -> None:
    before, callback = list(three._source.counts), Slow()
    model = make_model(DAPO, "MlpPolicy", three, n_steps=N_STEPS, n_rollouts=n_rollouts, n_epochs=1)
    model.learn(8 * 3 * N_STEPS * N_ENVS, callback)
    counts = np.subtract(three._source.counts, before)
    # With K > 1 an actor that is held up may be replaced by others
    assert counts.max() - counts.min() <= (1 if three._source.sync else n_rollouts)
    lag = 0 if three._source.sync else 1
    assert [logged["lag_max"] for logged in callback.logged[1:]] == [lag] * (len(callback.logged) - 1)
    last = callback.logged[-1]
    assert set(last) == {
        *("actors_alive", "restarts", "rollouts_min", "rollouts_max", "lag_mean", "lag_max"),
        *("wait_share", "steps_per_second", "bytes_per_rollout"),
    }
    assert (last["actors_alive"], last["restarts"], last["lag_mean"]) == (3, 0, lag)
    assert last["rollouts_max"] == max(three._source.counts) and last["rollouts_min"] == min(three._source.counts)
    assert 0 <= last["wait_share"] <= 1
    # Observations, actions and nine numbers for each step, and those of the ends
    assert N_STEPS * N_ENVS * 4 * (3 + 2 + 5) < last["bytes_per_rollout"] < N_STEPS * N_ENVS * 4 * (3 + 2 + 10)
    assert 0 < last["steps_per_second"] < 3 * N_STEPS * N_ENVS / 0.1


def test_training_goes_on_with_another_model(three: ActorVecEnv) -> None:
    """Rollouts that the first has left under way are not for the second."""
    train(three, n_updates=2)
    model = train(three, n_updates=2, n_steps=24)
    assert model.rollout_buffer.n_kept == 3
    assert model.num_timesteps % (24 * N_ENVS) == 0


def test_training_goes_on_with_an_lstm_of_another_size(actors: Make) -> None:
    """Also where episodes go on that the other model has begun."""
    pytest.importorskip("sb3_contrib")
    env = actors(cart_poles, 2, sync=True)
    settings = {"algo": "RecurrentDAPO", "sequence_length": 8}

    def train_with(size: int) -> DAPO:
        return train(env, "MlpLstmPolicy", policy_kwargs={"lstm_hidden_size": size}, **settings)

    small, large = train_with(16), train_with(32)
    for model in (large, small, large):
        before = flat_parameters(model)
        model.learn(2 * 2 * N_STEPS * N_ENVS, reset_num_timesteps=False)
        assert not th.equal(flat_parameters(model), before)


# ---- Faults


class Troubled(gym.Wrapper):
    """
    An environment that waits, and that something happens to at a step of its first episode.

    :param env: the environment
    :param trouble: what happens
    :param step: when
    :param seconds: that each step takes
    """

    def __init__(self, env: gym.Env, trouble: str = "", step: int = 0, seconds: float = 0.0) -> None:
        super().__init__(env)
        self.trouble, self.step_of_trouble, self.seconds, self.n_steps = trouble, step, seconds, 0

    def reset(self, **kwargs: Any) -> Any:
        if self.trouble == "reset":
            self.trouble = ""
            raise KeyError("no key")
        return self.env.reset(**kwargs)

    def step(self, action: Any) -> Any:
        time.sleep(self.seconds)
        observation, reward, terminated, truncated, info = self.env.step(action)
        self.n_steps += 1
        if self.n_steps - 1 == self.step_of_trouble:
            if self.trouble == "raise":
                raise KeyError("the door is locked")
            if self.trouble == "hang":
                time.sleep(600)
            observation = observation * np.nan if self.trouble == "observation" else observation
            reward = np.nan if self.trouble == "reward" else reward
        return observation, reward, terminated, truncated, {**info, "pid": os.getpid()}


def troubled(seed: int, trouble: str = "", step: int = 20, seconds: float = 0.0, actor: int = 1) -> VecEnv:
    """The second environment of an actor of the first generation."""
    has_trouble = seed == actor_seed(0, actor, 0)
    space = spaces.Box(-1, 1, (3,), np.float32)

    def make(number: int) -> gym.Env:
        env = RandomEnv(space, spaces.Discrete(2))
        return Troubled(env, trouble if has_trouble and number == 1 else "", step, seconds)

    return DummyVecEnv([partial(make, number) for number in range(N_ENVS)])


@pytest.mark.parametrize(
    ("trouble", "message", "sync"),
    [
        ("raise", "environment 1, step 4 of the rollout: KeyError: 'the door is locked'", False),
        ("observation", "NonFiniteError: the observation of environment 1 at step 5 of the rollout is nan", True),
        ("reward", "NonFiniteError: the reward of environment 1 at step 4 of the rollout is nan", False),
    ],
)
def test_faults_of_environments(actors: Make, trouble: str, message: str, sync: bool) -> None:
    """At step 4 of the second rollout."""
    env = actors(partial(troubled, trouble=trouble), 2, sync=sync)
    model = make_model(DAPO, "MlpPolicy", env, n_steps=N_STEPS)
    with pytest.raises(WorkerError, match=rf"actor 1 on \S+, process \d+: RolloutError: .*{message}"):
        model.learn(10_000 * N_STEPS * N_ENVS)
    assert model.num_timesteps >= N_STEPS * N_ENVS


@pytest.mark.parametrize("sync", [False, True])
def test_training_after_a_fault(actors: Make, sync: bool) -> None:
    """What other actors answered meanwhile is not taken for something else."""
    env = actors(partial(troubled, trouble="reset"), 3, sync=sync)
    model = make_model(DAPO, "MlpPolicy", env, n_steps=N_STEPS)
    with pytest.raises(WorkerError, match="actor 1 on .*KeyError: 'no key'"):
        model.learn(1)
    assert env.get_attr("seconds") == [0.0] * N_ENVS
    model.learn(3 * 3 * N_STEPS * N_ENVS)
    assert model._policy_version >= 3
    with pytest.raises(WorkerError, match="actor . on .*AttributeError"):
        env._source.ask("no such method")


def not_a_vec_env(seed: int) -> Any:
    return gym.make("CartPole-v1")


def other_spaces(seed: int) -> VecEnv:
    return cart_poles(seed, 1 if seed == actor_seed(0, 0, 0) else 2)


def test_what_is_refused(actors: Make, three_actors: ActorVecEnv) -> None:
    with pytest.raises(WorkerError, match="ValueError: `make_env` must return a VecEnv without VecNormalize"):
        actors(not_a_vec_env)
    with pytest.raises(WorkerError, match="ValueError: `make_env` must return a VecEnv without VecNormalize"):
        actors(lambda seed: VecNormalize(cart_poles(seed)))
    with pytest.raises(ValueError, match=r"the same number of environments .* for actor 0 and .* for actor 1"):
        actors(other_spaces, 2)
    with pytest.raises(ValueError, match="rollout_timeout"):
        actors(cart_poles, rollout_timeout=0)
    with pytest.raises(ValueError, match="make_env"):
        actors("CartPole-v1")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="n_actors=6 with cpus_per_actor=1 is too much"):
        actors(cart_poles, 6, cpus_per_actor=1)
    with pytest.raises(ValueError, match="other wrappers belong into `make_env`"):
        train(VecMonitor(three_actors))
    with pytest.raises(NotImplementedError, match="stepped by its actors"):
        three_actors.step(np.zeros((N_ENVS, 2)))


def test_attributes(three_actors: ActorVecEnv) -> None:
    assert three_actors.get_attr("p_truncated") == [0.1] * N_ENVS
    assert three_actors.env_is_wrapped(Monitor) == [True] * N_ENVS
    assert not three_actors.has_attr("no such thing")
    with pytest.raises(AttributeError, match="no such thing"):
        three_actors.get_attr("no such thing")
    three_actors.set_attr("note", 5)
    assert three_actors.get_attr("note") == [5] * N_ENVS
    assert three_actors.env_method("get_wrapper_attr", "note") == [5] * N_ENVS


class Kill(Slow):
    """Kills an actor in the middle of a run."""

    def __init__(self, update: int) -> None:
        super().__init__()
        self.update = update
        self.pids: set[int] = set()
        self.killed = 0
        self.times: list[float] = []
        self.restarts = 0.0

    def _on_step(self) -> bool:
        self.pids |= {info["pid"] for info in self.locals["infos"]}
        return True

    def _on_rollout_end(self) -> None:
        self.times.append(time.monotonic())
        self.restarts = self.logger.name_to_value["distributed/restarts"]
        if len(self.times) == self.update:
            self.killed = max(self.pids)
            os.kill(self.killed, signal.SIGKILL)


@pytest.mark.parametrize("sync", [False, True])
def test_a_dead_actor_is_replaced_and_the_rest_goes_on(actors: Make, sync: bool) -> None:
    """Nothing that it did not hand over is counted. Where actors are waited for, its successor is."""
    env = actors(partial(troubled, seconds=0.02), 3, info_keywords=["pid"], sync=sync)
    model = make_model(DAPO, "MlpPolicy", env, n_steps=N_STEPS)
    callback = Kill(update=8)
    while len(callback.pids) < 4:
        model.learn(20 * 3 * N_STEPS * N_ENVS, callback, reset_num_timesteps=False)
        assert len(callback.times) < 400
    gaps = np.diff(callback.times)
    assert sync or gaps.max() < 5 * np.median(gaps)
    assert callback.restarts == 1
    counts = env._source.counts
    assert model.num_timesteps == sum(counts) * N_STEPS * N_ENVS
    assert not sync or min(counts) == max(counts)


@pytest.mark.parametrize("n_rollouts", [1, 2])
def test_an_actor_that_hangs_is_not_waited_for(actors: Make, n_rollouts: int) -> None:
    env = actors(partial(troubled, trouble="hang"), 2, rollout_timeout=8)
    model = make_model(DAPO, "MlpPolicy", env, n_steps=N_STEPS, n_rollouts=n_rollouts)
    began = time.monotonic()
    model.learn(10 * 2 * N_STEPS * N_ENVS)
    assert time.monotonic() - began < 8
    assert env._source.counts[1] == 1 and env._source.pool.n_restarts == 0
    while env._source.pool.n_restarts == 0:
        model.learn(2 * N_STEPS * N_ENVS, reset_num_timesteps=False)
        assert time.monotonic() - began < 60


# ---- Checkpoints


@pytest.mark.parametrize("n_actors", [1, 2])
def test_exact_resume_when_waited_for(actors: Make, tmp_path: Path, n_actors: int) -> None:
    env = actors(random_envs, n_actors, sync=True)
    n_steps = n_actors * N_STEPS * N_ENVS

    def make_callback(folder: str) -> CheckpointCallback:
        return CheckpointCallback(3 * n_steps, tmp_path / folder, keep_last=None, reset_envs=True)

    normalize = VecNormalize(env)
    whole = train(normalize, n_updates=8, n_rollouts=2, callback=make_callback("whole"))
    written = {path.name for path in (tmp_path / "whole").iterdir()}
    assert written == {f"checkpoint_{n * n_steps}_steps.zip" for n in (3, 6, 8)}
    other_normalize = VecNormalize(env)
    path = tmp_path / f"whole/checkpoint_{3 * n_steps}_steps.zip"
    resumed = DAPO.load_checkpoint(path, other_normalize, device="cpu")
    assert resumed.rollout_buffer.sources[: 2 * n_actors].tolist() == [*range(n_actors)] * 2
    learn_until(resumed, 8 * n_steps, make_callback("resumed"))
    assert th.equal(flat_parameters(resumed), flat_parameters(whole))
    assert statistics(other_normalize) == statistics(normalize)


@pytest.mark.filterwarnings("ignore:The environments cannot be saved")
def test_resume(three: ActorVecEnv, tmp_path: Path) -> None:
    """Rollouts under way are dropped, and not counted."""
    normalize = VecNormalize(three)
    callback = CheckpointCallback(3 * 3 * N_STEPS * N_ENVS, tmp_path, reset_envs=None)
    model = train(normalize, n_updates=6, n_rollouts=2, callback=callback)
    path = latest_checkpoint(tmp_path)
    assert path is not None and path.name == f"checkpoint_{model.num_timesteps}_steps.zip"
    other_normalize = VecNormalize(three)
    resumed = DAPO.load_checkpoint(path, other_normalize, device="cpu")
    assert statistics(other_normalize) == statistics(normalize)
    assert resumed.rollout_buffer.sources.tolist() == model.rollout_buffer.sources.tolist()
    assert resumed.rollout_buffer.versions.tolist() == model.rollout_buffer.versions.tolist()
    before, n_before = list(three._source.counts), resumed.num_timesteps
    learn_until(resumed, n_before + 6 * 3 * N_STEPS * N_ENVS)
    taken = np.subtract(three._source.counts, before)
    assert resumed.num_timesteps - n_before == taken.sum() * N_STEPS * N_ENVS
    assert isinstance(other_normalize.obs_rms, RunningMeanStd)
    # New episodes began with the run, at the first checkpoint, and when it went on
    n_seen = resumed.num_timesteps + 3 * 3 * N_ENVS
    assert other_normalize.obs_rms.count == pytest.approx(n_seen + 1e-4, abs=1e-6)
    assert resumed._policy_version > model._policy_version


@pytest.mark.filterwarnings("ignore:The environments cannot be saved")
def test_resume_with_another_number_of_actors(three_actors: ActorVecEnv, tmp_path: Path) -> None:
    model = train(random_envs(0))
    model.save_checkpoint(tmp_path / "one")
    with pytest.raises(ValueError, match="`n_sources` of the saved rollouts is 1, not 3"):
        DAPO.load_checkpoint(tmp_path / "one", three_actors)


class Scores(BaseCallback):
    """Compares the statistics that evaluations are done with to the learner's."""

    n_evaluations = 0

    def _on_step(self) -> bool:
        assert isinstance(self.parent, EvalCallback)
        eval_env = self.parent.eval_env
        assert isinstance(eval_env, VecNormalize)
        assert statistics(eval_env)[3:] == statistics(self.model.get_vec_normalize_env())[3:]
        self.n_evaluations += 1
        return True


def test_evaluation(three: ActorVecEnv) -> None:
    """In the learner, with the statistics of the actors."""
    eval_env, scores = VecNormalize(random_envs(5), training=False), Scores()
    train(
        VecNormalize(three),
        callback=EvalCallback(eval_env, callback_after_eval=scores, eval_freq=2 * N_STEPS, n_eval_episodes=2),
    )
    assert scores.n_evaluations >= 5


KILLED = """
import os, signal, sys
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecNormalize
from sb3_dapo import DAPO
from sb3_dapo.checkpoint import CheckpointCallback, latest_checkpoint, learn_until
from sb3_dapo.distributed import ActorVecEnv
from test_distributed_env import random_envs, statistics

class Kill(BaseCallback):
    def _on_step(self):
        if self.num_timesteps >= int(sys.argv[1]):
            os.kill(os.getpid(), signal.SIGKILL)
        return True

env = VecNormalize(ActorVecEnv(random_envs, 2, cpus_per_actor=0.5))
path = latest_checkpoint("checkpoints")
if path is None:
    model = DAPO("MlpPolicy", env, n_steps=16, batch_size=32, n_rollouts=2, seed=0, device="cpu")
else:
    model = DAPO.load_checkpoint(path, env, device="cpu")
    print(model.num_timesteps, model.rollout_buffer.n_kept, env.obs_rms.count, flush=True)
learn_until(model, 1280, [CheckpointCallback(256, "checkpoints"), Kill()])
print(model.num_timesteps, env.ret_rms.count, flush=True)
env.close()
"""


@pytest.mark.slow
def test_a_learner_that_is_killed_goes_on(tmp_path: Path) -> None:
    """From its last checkpoint, twice, with a Ray of its own each time; its actors end with it."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent), "PYTHONWARNINGS": "ignore"}
    environment.pop("RAY_ADDRESS", None)

    def run(steps: int) -> tuple[int, list[list[float]]]:
        command = [sys.executable, "-c", KILLED, str(steps)]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        return done.returncode, [[float(x) for x in line.split()] for line in done.stdout.splitlines()]

    assert run(600) == (-signal.SIGKILL, [])
    code, ((steps, n_kept, count),) = run(1000)
    assert code == -signal.SIGKILL and 512 <= steps < 600
    assert n_kept == 4 and count >= steps
    code, ((steps, *_), (total, count)) = run(10_000)
    assert code == 0 and 768 <= steps < 1000
    assert 1280 <= total < 1280 + 64 * 2
    assert count == pytest.approx(total + 1e-4, abs=1e-6)


CUT_OFF = """
import json, os, subprocess, sys, time
from stable_baselines3.common.callbacks import BaseCallback
from sb3_dapo import DAPO
from sb3_dapo.distributed import ActorVecEnv
from sb3_dapo.distributed.cluster import Cluster, ray
from test_distributed_env import cart_poles

namespace, link = sys.argv[1:]
start = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--num-cpus=1"]
here, there = "10.213.7.1", "10.213.7.2"
head = [*start, "--head", f"--node-ip-address={here}", "--port=6399", "--include-dashboard=false"]
nodes = [subprocess.Popen(head, stdout=subprocess.DEVNULL)]
cluster = None
while cluster is None:
    try:
        cluster = Cluster(f"{here}:6399")
    except ConnectionError:
        time.sleep(0.5)
# After this process has found the node that is its own
other = [*start, f"--node-ip-address={there}", f"--address={here}:6399"]
nodes.append(subprocess.Popen(["ip", "netns", "exec", namespace, *other], stdout=subprocess.DEVNULL))
while len(ray.nodes()) < 2:
    time.sleep(0.2)
env = ActorVecEnv(cart_poles, 2, rollout_timeout=15)
source = env._source

class Cut(BaseCallback):
    def __init__(self):
        super().__init__()
        self.times, self.before, self.end = [], [], float("inf")

    def _on_step(self):
        return time.monotonic() < self.end

    def _on_rollout_end(self):
        self.times.append(time.monotonic())
        if len(self.times) == 50:
            subprocess.run(["ip", "link", "set", link, "down"], check=True)
            self.before = list(source.counts)
        if source.pool.n_restarts and self.end == float("inf"):
            self.end = self.times[-1] + 5

cut = Cut()
model = DAPO("MlpPolicy", env, n_steps=64, batch_size=64, n_epochs=1, seed=0, device="cpu").learn(10**9, cut)
after = [now - before for now, before in zip(source.counts, cut.before)]
print(json.dumps([cut.times[49:], after, source.pool.n_restarts, source.pool.n_alive]), flush=True)
env.close()
cluster.close()
for node in nodes:
    node.terminate()
for node in nodes:
    node.wait()
"""


@pytest.fixture
def network() -> Iterator[tuple[str, str]]:
    """A network namespace that is linked to this one, and the name of the link."""
    name, link = f"sb3-{os.getpid()}", f"sb3a{os.getpid()}"

    def ip(command: str) -> str:
        return subprocess.run(["ip", *command.split()], check=True, capture_output=True, text=True).stdout

    try:
        ip(f"netns add {name}")
    except (FileNotFoundError, subprocess.CalledProcessError) as error:
        pytest.skip(f"network namespaces cannot be made here: {error}")
    try:
        ip(f"link add {link} type veth peer name sb3b netns {name}")
        ip(f"addr add 10.213.7.1/30 dev {link}")
        ip(f"link set {link} up")
        for command in ("addr add 10.213.7.2/30 dev sb3b", "link set sb3b up", "link set lo up"):
            ip(f"-n {name} {command}")
        yield name, link
    finally:
        for pid in ip(f"netns pids {name}").split():
            os.kill(int(pid), signal.SIGKILL)
        ip(f"netns del {name}")


@pytest.mark.slow
def test_an_actor_whose_machine_is_cut_off_is_not_waited_for(network: tuple[str, str]) -> None:
    """Packets to it vanish; nothing says that it is gone. The other actor and the learner go on."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent), "RAY_AUTH_MODE": "disabled"}
    environment.pop("RAY_ADDRESS", None)
    command = [sys.executable, "-W", "ignore", "-c", CUT_OFF, *network]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    times, counts, n_restarts, n_alive = json.loads(done.stdout.splitlines()[-1])
    # It was replaced, after 15 seconds, and for the successor there is no place
    assert (n_restarts, n_alive) == (1, 1)
    assert "took longer than 15 s" in done.stderr
    assert np.diff(times).max() < 5
    assert min(counts) <= 1 and max(counts) > 20


# ---- The guide


def test_code_of_the_guide(ray_cluster: Any) -> None:
    (code,) = re.findall(r"^```py\n(.*?)^```$", (ROOT / "docs/distributed.md").read_text(), re.MULTILINE | re.DOTALL)
    names: dict[str, Any] = {"__name__": "__main__"}
    exec(code, names)
    assert names["model"].num_timesteps >= 20_000


def test_file_of_the_guide_is_one_of_ray() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = prepare_config(yaml.safe_load((ROOT / "examples/ray_cluster.yaml").read_text()))
    validate_config(config)
    assert config["provider"]["worker_ips"] == ["10.0.0.2", "10.0.0.3"]
