"""DAPO with actors on the real Ray: what it equals, what it repeats, and how its numbers add up."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch as th
from algos import flat_parameters, make_model
from envs import CatchEnv, RandomEnv
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecEnv, VecFrameStack, VecNormalize

from sb3_dapo import DAPO
from sb3_dapo.distributed import ActorVecEnv

ray = pytest.importorskip("ray", reason="the extra `ray` is not installed")

pytestmark = [
    pytest.mark.usefixtures("ray_cluster"),
    pytest.mark.filterwarnings("ignore:The last minibatch of every epoch"),
]

N_STEPS, N_ENVS = 16, 2


@pytest.fixture
def actors(ray_cluster: Any) -> Iterator[Callable[..., ActorVecEnv]]:
    """Makes environments of actors, and closes them. Actors take hardly any CPU, so there is room for them."""
    made = []

    def make(make_env: Callable[[int], VecEnv], n_actors: int = 1, **options: Any) -> ActorVecEnv:
        made.append(ActorVecEnv(make_env, n_actors, **{"cpus_per_actor": 0.01, **options}))
        return made[-1]

    yield make
    for env in made:
        env.close()


def cart_poles(seed: int, n_envs: int = N_ENVS) -> VecEnv:
    return make_vec_env("CartPole-v1", n_envs, seed=seed)


def images(seed: int) -> VecEnv:
    return VecFrameStack(make_vec_env(CatchEnv, N_ENVS, seed=seed), 4)


def random_envs(seed: int, space: str = "floats") -> VecEnv:
    floats = spaces.Box(-1, 1, (3,))
    space = {"floats": floats, "dict": spaces.Dict({"a": floats, "b": spaces.Discrete(3)})}[space]
    return make_vec_env(lambda: RandomEnv(space, spaces.Box(-1, 1, (2,)), 0.1, 0.1), N_ENVS, seed=seed)


def train(env: VecEnv, policy: str = "MlpPolicy", n_updates: int = 4, **settings: Any) -> DAPO:
    settings = {"n_steps": N_STEPS, "batch_size": 8, "learning_rate": 0.01, **settings}
    model = make_model(settings.pop("algo", DAPO), policy, env, **settings)
    n_sources = getattr(env, "n_sources", 1)
    return model.learn(n_updates * n_sources * N_STEPS * env.num_envs, settings.get("callback"))


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
    "Dict": (partial(random_envs, space="dict"), "MultiInputPolicy", {"n_rollouts": 2}),
}


@pytest.mark.parametrize("case", CASES)
def test_one_actor_equals_one_process(actors: Callable[..., ActorVecEnv], case: str) -> None:
    make_env, policy, settings = CASES[case]

    def run(env: VecEnv) -> list[Any]:
        model = train(env, policy, **settings)
        results: list[Any] = [model.num_timesteps, [info["r"] for info in model.ep_info_buffer or ()]]
        for is_new in (False, True):  # episodes go on, or begin anew
            results.append(flat_parameters(model).tolist())
            model.learn(2 * N_STEPS * N_ENVS, reset_num_timesteps=is_new)
        return [*results, flat_parameters(model).tolist()]

    assert run(actors(make_env, sync=True)) == run(make_env(0))


@pytest.mark.parametrize("space", ["floats", "dict"])
def test_one_actor_normalizes_as_one_process(actors: Callable[..., ActorVecEnv], space: str) -> None:
    make_env = partial(random_envs, space=space)
    policy = "MultiInputPolicy" if space == "dict" else "MlpPolicy"
    settings = {"norm_obs_keys": ["a"]} if space == "dict" else {}

    def run(env: VecEnv) -> list[Any]:
        normalize = VecNormalize(env, **settings)
        model = train(normalize, policy, n_rollouts=2)
        model.learn(2 * N_STEPS * N_ENVS)
        return [flat_parameters(model).tolist(), *statistics(normalize)]

    assert run(actors(make_env, sync=True)) == run(make_env(0))


def statistics(env: VecNormalize) -> list[Any]:
    all_rms = [env.ret_rms, *(env.obs_rms.values() if isinstance(env.obs_rms, dict) else [env.obs_rms])]
    return [np.asarray(x).tolist() for rms in all_rms for x in (rms.mean, rms.var, rms.count)]


# ---- Several


def test_several_actors_that_are_waited_for_repeat_themselves(actors: Callable[..., ActorVecEnv]) -> None:
    env = actors(random_envs, 3, sync=True)

    def run() -> list[Any]:
        normalize = VecNormalize(env)
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


@pytest.mark.parametrize("n_rollouts", [1, 2])
@pytest.mark.parametrize("sync", [False, True])
def test_all_that_callbacks_saw_is_trained_on(actors: Callable[..., ActorVecEnv], sync: bool, n_rollouts: int) -> None:
    model = make_model(Trained, "MlpPolicy", actors(random_envs, 3, sync=sync), n_steps=N_STEPS, n_rollouts=n_rollouts)
    assert isinstance(model, Trained)
    model.seen = []
    callback = Steps()
    n_updates = 6
    model.learn(n_updates * 3 * N_STEPS * N_ENVS, callback)
    assert n_updates * 3 <= model.num_timesteps / (N_STEPS * N_ENVS) < (n_updates + 1) * 3
    assert callback.n_calls == model.num_timesteps / N_ENVS
    assert model._policy_version >= n_updates
    assert not sync or model._policy_version == n_updates
    assert model.rollout_buffer.n_sources == 3
    trained = np.concatenate([np.frombuffer(rewards, np.float32) for *_, rewards in model.seen])
    np.testing.assert_array_equal(np.sort(trained), np.sort(np.array(callback.rewards, np.float32)))
    assert callback.episodes > 10
