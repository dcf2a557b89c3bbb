"""Saving and loading: as every model of SB3."""

import base64
import io
import json
import pathlib
import zipfile
from copy import deepcopy
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from algos import make_model
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import IdentityEnvBox
from stable_baselines3.common.utils import ConstantSchedule, FloatSchedule, get_device
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_dapo import DAPO

N_STEPS = 64
DEVICES = ["auto", "cpu", pytest.param("cuda", marks=pytest.mark.skipif(not th.cuda.is_available(), reason="no GPU"))]


def observations_of(env: Any, n: int = 10) -> np.ndarray:
    env.observation_space.seed(0)
    return np.stack([env.observation_space.sample() for _ in range(n)])


def check_equal_parameters(model: DAPO, other: DAPO) -> None:
    parameters, others = model.get_parameters(), other.get_parameters()
    assert parameters.keys() == others.keys()
    for name, parameter in parameters["policy"].items():
        assert th.equal(parameter.cpu(), others["policy"][name].cpu()), name
    states, other_states = (x["policy.optimizer"]["state"] for x in (parameters, others))
    assert states.keys() == other_states.keys()
    for i in states:
        assert all(th.equal(states[i][key].cpu(), other_states[i][key].cpu()) for key in states[i])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1"])
def test_save_load(algo: type[DAPO], env_id: str, device: str, tmp_path: pathlib.Path) -> None:
    """Parameters, optimizer, settings and actions are the same, and learning goes on."""
    settings = {"n_rollouts": 2, "divergence": "hellinger", "divergence_coef": 0.3, "policy_loss": "clip_augmented"}
    model = make_model(algo, "MlpPolicy", env_id, **settings)
    model.learn(2 * N_STEPS)
    observations = observations_of(model.env)
    actions, _ = model.predict(observations, deterministic=True)
    model.save(tmp_path / "model.zip")
    loaded = algo.load(tmp_path / "model.zip", env=model.get_env(), device=device)
    assert loaded.device.type == loaded.policy.device.type == get_device(device).type
    check_equal_parameters(loaded, model)
    np.testing.assert_allclose(loaded.predict(observations, deterministic=True)[0], actions, rtol=1e-4)
    for name in ("n_rollouts", "policy_loss", "n_steps", "batch_size", "num_timesteps", "_n_updates"):
        assert getattr(loaded, name) == getattr(model, name), name
    assert loaded.divergence_coef(1.0) == 0.3
    assert type(loaded.divergence) is type(model.divergence)
    loaded.learn(2 * N_STEPS, reset_num_timesteps=False)
    assert loaded.num_timesteps == 4 * N_STEPS


@pytest.mark.parametrize("as_path", [str, pathlib.Path], ids=["str", "Path"])
@pytest.mark.parametrize("name", ["model", "model.zip", "folder/model"])
def test_path_types(algo: type[DAPO], as_path: type, name: str, tmp_path: pathlib.Path) -> None:
    model = make_model(algo, "MlpPolicy", "CartPole-v1")
    model.save(as_path(tmp_path / name))
    check_equal_parameters(algo.load(as_path(tmp_path / name)), model)


def test_file_objects(algo: type[DAPO], tmp_path: pathlib.Path) -> None:
    """They are left open."""
    model = make_model(algo, "MlpPolicy", "CartPole-v1")
    buffer = io.BytesIO()
    model.save(buffer)
    assert not buffer.closed
    buffer.seek(0)
    check_equal_parameters(algo.load(buffer), model)
    assert not buffer.closed
    with (tmp_path / "model.zip").open("wb") as file:
        model.save(file)
    with (tmp_path / "model.zip").open("rb") as file:
        check_equal_parameters(algo.load(file), model)


@pytest.mark.filterwarnings("error")
def test_no_warnings(algo: type[DAPO], tmp_path: pathlib.Path) -> None:
    """Such as those of files that are not closed."""
    make_model(algo, "MlpPolicy", "CartPole-v1").save(tmp_path / "model")
    algo.load(tmp_path / "model", device="cpu").predict(np.zeros(4))


def test_missing_file(algo: type[DAPO], tmp_path: pathlib.Path) -> None:
    with pytest.raises(FileNotFoundError):
        algo.load(tmp_path / "nothing")


def test_the_rollouts_are_not_saved(algo: type[DAPO]) -> None:
    """A model file is as large as PPO's."""
    sizes = []
    for n_rollouts in (1, 8):
        model = make_model(algo, "MlpPolicy", "CartPole-v1", n_rollouts=n_rollouts, n_steps=256)
        model.learn(2 * 256)
        buffer = io.BytesIO()
        model.save(buffer)
        sizes.append(len(buffer.getvalue()))
    assert abs(sizes[0] - sizes[1]) < 5000


def test_include_and_exclude(algo: type[DAPO], tmp_path: pathlib.Path) -> None:
    model = make_model(algo, "MlpPolicy", "CartPole-v1", verbose=2, divergence_coef=0.7)
    model.save(tmp_path / "model", exclude=["verbose"])
    assert algo.load(tmp_path / "model").verbose == 0
    model.save(tmp_path / "model", exclude=["verbose"], include=["verbose"])
    assert algo.load(tmp_path / "model").verbose == 2


def test_custom_objects(algo: type[DAPO], tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They take the place of what was saved, and nothing that was not saved is added."""
    make_model(algo, "MlpPolicy", "CartPole-v1").save(tmp_path / "model")
    custom_objects = {"learning_rate": 2e-5, "divergence_coef": 0.9, "unknown": 1.0}
    model = algo.load(tmp_path / "model", custom_objects=custom_objects, print_system_info=True)
    assert model.learning_rate == model.lr_schedule(1.0) == 2e-5
    assert model.divergence_coef(1.0) == 0.9
    assert not hasattr(model, "unknown")
    assert "SYSTEM INFO" in capsys.readouterr().out


def test_changed_settings(algo: type[DAPO], tmp_path: pathlib.Path) -> None:
    """Keywords of ``load`` take the place of what was saved: also those that shape the ring."""
    make_model(algo, "MlpPolicy", "CartPole-v1").save(tmp_path / "model")
    changed = {"n_rollouts": 3, "n_steps": 32, "gamma": 0.5, "gae_lambda": 0.7, "divergence": "reverse_kl"}
    model = algo.load(tmp_path / "model", env=gym.make("CartPole-v1"), divergence_coef=0.4, clip_range=0.1, **changed)
    assert model.divergence_coef(0.5) == 0.4
    assert model.clip_range(0.5) == 0.1
    model.learn(4 * 32)
    assert model.rollout_buffer.n_kept == 3
    assert model.rollout_buffer.gamma == 0.5
    model.save(tmp_path / "changed")
    assert algo.load(tmp_path / "changed").n_rollouts == 3


def test_unpicklable_object(algo: type[DAPO], tmp_path: pathlib.Path) -> None:
    """A part that can't be read is warned about, and can be given instead."""
    make_model(algo, "MlpPolicy", "CartPole-v1", learning_rate=lambda _: 1.0).save(tmp_path / "model.zip")
    with zipfile.ZipFile(tmp_path / "model.zip") as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    data = json.loads(parts["data"])
    pickled = base64.b64decode(data["learning_rate"][":serialized:"])
    data["learning_rate"][":serialized:"] = base64.b64encode(pickled.replace(b"CodeType", b"CodeTyps")).decode()
    with zipfile.ZipFile(tmp_path / "broken.zip", "w") as archive:
        for name, part in {**parts, "data": json.dumps(data).encode()}.items():
            archive.writestr(name, part)
    with pytest.warns(UserWarning, match="custom_objects"):
        algo.load(tmp_path / "broken.zip")
    algo.load(tmp_path / "broken.zip", custom_objects={"learning_rate": lambda _: 1.0})


def test_schedules(algo: type[DAPO], tmp_path: pathlib.Path) -> None:
    """Constants are saved as objects that load anywhere; functions are saved too."""
    make_model(algo, "MlpPolicy", "CartPole-v1", divergence_coef=0.3).save(tmp_path / "model")
    model = algo.load(tmp_path / "model")
    for schedule, constant in ((model.clip_range, 0.2), (model.divergence_coef, 0.3)):
        assert isinstance(schedule, FloatSchedule)
        assert isinstance(schedule.value_schedule, ConstantSchedule)
        assert schedule.value_schedule.val == constant
    with zipfile.ZipFile(tmp_path / "model.zip") as archive:
        data = json.loads(archive.read("data"))
    pickles = {name: base64.b64decode(x[":serialized:"]) for name, x in data.items() if ":serialized:" in str(x)}
    assert "divergence_coef" in pickles
    assert not [name for name, pickled in pickles.items() if b"CodeType" in pickled]
    functions: dict[str, Any] = {"learning_rate": lambda x: 0.01 * x, "divergence_coef": lambda x: x * np.sin(1.0)}
    make_model(algo, "MlpPolicy", "CartPole-v1", **functions).save(tmp_path / "functions")
    model = algo.load(tmp_path / "functions")
    assert model.lr_schedule(0.5) == 0.005
    assert type(model.divergence_coef(0.5)) is float
    assert model.divergence_coef(0.5) == pytest.approx(0.5 * np.sin(1.0))


def test_compiled_policy(algo: type[DAPO], tmp_path: pathlib.Path) -> None:
    model = make_model(algo, "MlpPolicy", "CartPole-v1")
    model.policy = th.compile(model.policy)
    model.save(tmp_path / "model")
    algo.load(tmp_path / "model").predict(np.zeros(4))


def test_net_arch_none(algo: type[DAPO], tmp_path: pathlib.Path) -> None:
    make_model(algo, "MlpPolicy", "CartPole-v1", policy_kwargs={"net_arch": None}).save(tmp_path / "model")
    assert algo.load(tmp_path / "model").policy.net_arch is not None


def test_another_policy_kwargs_is_refused(algo: type[DAPO], tmp_path: pathlib.Path) -> None:
    make_model(algo, "MlpPolicy", "CartPole-v1").save(tmp_path / "model")
    with pytest.raises(ValueError, match="policy kwargs do not equal"):
        algo.load(tmp_path / "model", policy_kwargs={"net_arch": [3]})


@pytest.mark.parametrize("use_sde", [True, False])
def test_save_load_policy(algo: type[DAPO], use_sde: bool, tmp_path: pathlib.Path) -> None:
    """The policy alone."""
    model = make_model(algo, "MlpPolicy", "Pendulum-v1", use_sde=use_sde)
    model.learn(N_STEPS)
    observations = observations_of(model.env)
    actions, _ = model.policy.predict(observations, deterministic=True)
    model.policy.save(tmp_path / "policy.pkl")
    loaded = type(model.policy).load(tmp_path / "policy.pkl", device="cpu")
    np.testing.assert_allclose(loaded.predict(observations, deterministic=True)[0], actions, rtol=1e-4)


def test_ppo_file_is_refused_with_advice(algo: type[DAPO], tmp_path: pathlib.Path) -> None:
    PPO("MlpPolicy", "CartPole-v1").save(tmp_path / "ppo")
    with pytest.raises(ValueError, match=r"set_parameters\(PPO.load\(path\).get_parameters\(\)\)"):
        algo.load(tmp_path / "ppo")


def test_ppo_model_can_be_given_to_dapo(algo: type[DAPO], tmp_path: pathlib.Path) -> None:
    """The policy of a model of PPO goes on learning: names and shapes of the parameters are the same."""
    ppo = PPO("MlpPolicy", "CartPole-v1", n_steps=N_STEPS, device="cpu", policy_kwargs={"net_arch": [16]})
    ppo.learn(N_STEPS)
    model = make_model(algo, "MlpPolicy", "CartPole-v1")
    model.set_parameters(ppo.get_parameters())
    assert th.equal(model.policy.action_net.weight, ppo.policy.action_net.weight)
    model.learn(N_STEPS)


# --- get_parameters and set_parameters ------------------------------------------------------------


def test_set_parameters(algo: type[DAPO]) -> None:
    model = make_model(algo, "MlpPolicy", "CartPole-v1")
    model.learn(N_STEPS)
    original = deepcopy(model.get_parameters())
    assert set(original) == {"policy", "policy.optimizer"}
    changed = deepcopy(original)
    for tensor in changed["policy"].values():
        tensor.uniform_()
    model.set_parameters(changed)
    for name, parameter in model.get_parameters()["policy"].items():
        assert th.equal(parameter, changed["policy"][name])
    model.set_parameters(original)
    for name, parameter in model.get_parameters()["policy"].items():
        assert th.equal(parameter, original["policy"][name])


def test_set_parameters_from_a_file(algo: type[DAPO], tmp_path: pathlib.Path) -> None:
    model, other = (make_model(algo, "MlpPolicy", "CartPole-v1", seed=seed) for seed in (0, 1))
    model.save(tmp_path / "model")
    other.set_parameters(tmp_path / "model", device="cpu")
    check_equal_parameters(other, model)


def test_set_parameters_that_do_not_match(algo: type[DAPO]) -> None:
    model = make_model(algo, "MlpPolicy", "CartPole-v1")
    original = deepcopy(model.get_parameters())
    for exact_match in (True, False):
        with pytest.raises(ValueError, match="unknown"):
            model.set_parameters({**original, "unknown": {}}, exact_match=exact_match)
    with pytest.raises(ValueError, match="Names of parameters do not match"):
        model.set_parameters({"policy": original["policy"]}, exact_match=True)
    last = list(original["policy"])[-1]
    incomplete = {name: th.zeros_like(x) for name, x in original["policy"].items() if name != last}
    with pytest.raises(RuntimeError, match="Missing key"):
        model.set_parameters({**original, "policy": incomplete}, exact_match=True)
    model.set_parameters({"policy": incomplete}, exact_match=False)
    parameters = model.get_parameters()["policy"]
    assert th.equal(parameters[last], original["policy"][last])
    assert not any(x.any() for name, x in parameters.items() if name != last)


# --- environments ---------------------------------------------------------------------------------


def test_set_env_before_the_model_is_set_up(algo: type[DAPO]) -> None:
    model = algo("MlpPolicy", "CartPole-v1", _init_setup_model=False)
    env = make_vec_env("CartPole-v1", n_envs=1)
    model.set_env(env)
    assert model.get_env() is env


def test_set_env(algo: type[DAPO], tmp_path: pathlib.Path) -> None:
    env, other = (make_vec_env("CartPole-v1", n_envs=1, seed=seed) for seed in (0, 1))
    model = make_model(algo, "MlpPolicy", env, n_rollouts=3)
    model.learn(2 * N_STEPS)
    model.set_env(other)
    assert model._last_obs is None
    model.learn(2 * N_STEPS)
    assert model.num_timesteps == 2 * N_STEPS
    model.set_env(gym.make("CartPole-v1"))  # is wrapped
    model.learn(N_STEPS)
    # The same environments, where they stand
    model.set_env(model.get_env(), force_reset=False)
    assert model._last_obs is not None
    model.learn(N_STEPS, reset_num_timesteps=False)
    assert model.num_timesteps == 2 * N_STEPS
    with pytest.raises((AssertionError, ValueError), match="number of environments"):
        model.set_env(make_vec_env("CartPole-v1", n_envs=2))
    with pytest.raises(ValueError, match="spaces do not match"):
        model.set_env(gym.make("Pendulum-v1"))
    model.save(tmp_path / "model")
    loaded = algo.load(tmp_path / "model", env=model.get_env(), force_reset=False)
    assert loaded._last_obs is not None
    loaded.learn(N_STEPS, reset_num_timesteps=False)
    assert loaded.num_timesteps == 3 * N_STEPS
    loaded = algo.load(tmp_path / "model", env=other)
    assert loaded._last_obs is None
    loaded.learn(N_STEPS, reset_num_timesteps=False)
    assert loaded.num_timesteps == 3 * N_STEPS


@pytest.mark.parametrize("n_envs", [1, 3])
def test_another_number_of_envs(algo: type[DAPO], n_envs: int, tmp_path: pathlib.Path) -> None:
    make_model(algo, "MlpPolicy", make_vec_env("CartPole-v1", n_envs=2), n_rollouts=2).save(tmp_path / "model")
    model = algo.load(tmp_path / "model", env=make_vec_env("CartPole-v1", n_envs=n_envs))
    assert model.n_envs == model.rollout_buffer.n_envs == n_envs
    model.learn(3 * N_STEPS * n_envs)
    assert model.num_timesteps == 3 * N_STEPS * n_envs


def test_load_without_env(algo: type[DAPO], tmp_path: pathlib.Path) -> None:
    """Enough to predict; to learn it takes an environment."""
    make_model(algo, "MlpPolicy", "CartPole-v1").save(tmp_path / "model")
    model = algo.load(tmp_path / "model")
    assert model.get_env() is None
    model.predict(np.zeros(4))
    model.set_env(gym.make("CartPole-v1"))
    model.learn(N_STEPS)


def test_load_with_wrong_spaces(algo: type[DAPO], tmp_path: pathlib.Path) -> None:
    make_model(algo, "MlpPolicy", "CartPole-v1").save(tmp_path / "model")
    with pytest.raises(ValueError, match="spaces do not match"):
        algo.load(tmp_path / "model", env=gym.make("Pendulum-v1"))


def test_with_vec_normalize(algo: type[DAPO], tmp_path: pathlib.Path) -> None:
    """The statistics are the environment's to save, as with every model of SB3."""
    env = VecNormalize(make_vec_env("Pendulum-v1", n_envs=2, seed=0))
    model = make_model(algo, "MlpPolicy", env)
    assert model.get_vec_normalize_env() is env
    model.learn(2 * N_STEPS)
    model.save(tmp_path / "model")
    env.save(str(tmp_path / "normalize.pkl"))
    restored = VecNormalize.load(str(tmp_path / "normalize.pkl"), make_vec_env("Pendulum-v1", n_envs=1, seed=0))
    loaded = algo.load(tmp_path / "model", env=restored)
    observations = np.ones((1, 3), dtype=np.float32)
    np.testing.assert_allclose(restored.normalize_obs(observations), env.normalize_obs(observations))
    loaded.learn(N_STEPS)


def test_box_env_with_lambdas(algo: type[DAPO], tmp_path: pathlib.Path) -> None:
    env = DummyVecEnv([lambda: IdentityEnvBox(-1, 1)])
    model = make_model(algo, "MlpPolicy", env, learning_rate=lambda _: 0.001, clip_range=lambda _: 0.3)
    model.learn(N_STEPS)
    model.save(tmp_path / "model")
    loaded = algo.load(tmp_path / "model", env=env)
    assert loaded.learning_rate(0) == 0.001
    assert loaded.clip_range.value_schedule(0) == 0.3
    assert isinstance(loaded.action_space, spaces.Box)
