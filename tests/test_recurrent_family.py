"""
What DAPO's users and RecurrentPPO's have must be there for RecurrentDAPO: policies and settings, exact resume, export,
Hub, command line. The first part is what sb3-contrib's own tests demand of RecurrentPPO.
"""

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from envs import RandomEnv
from gymnasium import spaces
from recurrent_models import CRITICS, FLOATS, Forgetful, assert_same_parameters, make_env, make_recurrent
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import FakeImageEnv
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecNormalize

from sb3_dapo import AdaptiveController, RecurrentDAPO
from sb3_dapo.checkpoint import CheckpointCallback, latest_checkpoint, learn_until
from sb3_dapo.export import ExportError
from sb3_dapo.faults import NonFiniteError

# Those of contrib's tests
KWARGS: list[dict[str, Any]] = [
    {},
    {"shared_lstm": True, "enable_critic_lstm": False},
    {"enable_critic_lstm": True, "lstm_hidden_size": 4, "lstm_kwargs": {"dropout": 0.5}, "n_lstm_layers": 2},
    {"enable_critic_lstm": False, "lstm_hidden_size": 4, "lstm_kwargs": {"dropout": 0.5}, "n_lstm_layers": 2},
]
SEPARATE = [{"share_features_extractor": False}, {**KWARGS[3], "share_features_extractor": False}]
pytestmark = pytest.mark.filterwarnings("ignore:The last minibatch of every epoch")


class ToDict(gym.ObservationWrapper):
    def __init__(self, env: gym.Env) -> None:
        super().__init__(env)
        self.observation_space = spaces.Dict({"obs": env.observation_space})

    def observation(self, observation: np.ndarray) -> dict[str, np.ndarray]:
        return {"obs": observation}


# --- what contrib demands -----------------------------------------------------------------------------


@pytest.mark.parametrize("policy_kwargs", [*KWARGS, *SEPARATE], ids=str)
def test_images(policy_kwargs: dict[str, Any]) -> None:
    env = FakeImageEnv(screen_height=40, screen_width=40, n_channels=3)
    policy_kwargs = {**policy_kwargs, "features_extractor_kwargs": {"features_dim": 32}}
    model = RecurrentDAPO("CnnLstmPolicy", env, n_steps=16, seed=0, policy_kwargs=policy_kwargs, n_epochs=2)
    assert_trained(model, 32)


@pytest.mark.parametrize("policy_kwargs", [*KWARGS, *SEPARATE], ids=str)
def test_policy_kwargs(policy_kwargs: dict[str, Any]) -> None:
    assert_trained(RecurrentDAPO("MlpLstmPolicy", "CartPole-v1", n_steps=16, seed=0, policy_kwargs=policy_kwargs), 32)


@pytest.mark.parametrize("policy_kwargs", KWARGS, ids=str)
def test_dict_observations(policy_kwargs: dict[str, Any]) -> None:
    env = make_vec_env("CartPole-v1", n_envs=1, wrapper_class=ToDict)
    model = RecurrentDAPO("MultiInputLstmPolicy", env, n_steps=32, policy_kwargs=policy_kwargs)
    assert_trained(model, 64)
    evaluate_policy(model, env, n_eval_episodes=2, warn=False)


def test_gsde() -> None:
    settings = {"use_sde": True, "sde_sample_freq": 4, "clip_range_vf": 0.1, "n_rollouts": 2}
    model = RecurrentDAPO("MlpLstmPolicy", "Pendulum-v1", n_steps=16, seed=0, **settings)
    assert_trained(model, 200)


def test_actions_of_two_dimensions() -> None:
    env = RandomEnv(spaces.Box(-1, 1, (10,)), spaces.Box(-1, 1, (2, 2)), p_terminated=0.2)
    model = RecurrentDAPO("MlpLstmPolicy", env, n_steps=64, n_epochs=2)
    assert_trained(model, 64)
    evaluate_policy(model, model.get_env(), n_eval_episodes=2, warn=False)


def assert_trained(model: RecurrentDAPO, n_steps: int) -> None:
    """Every parameter changes."""
    before = {name: x.clone() for name, x in model.policy.named_parameters()}
    model.learn(n_steps)
    for name, parameter in model.policy.named_parameters():
        assert parameter.isfinite().all(), name
        # contrib's policy has a linear layer in place of an LSTM that it does not use if the critic has one
        assert not parameter.equal(before[name]), name


@pytest.mark.slow
def test_cartpole_without_velocities() -> None:
    """As in contrib's test: a policy without memory does not get more than 50 or so."""

    def make() -> gym.Env:
        return gym.wrappers.TransformObservation(
            gym.make("CartPole-v1"), lambda obs: obs[::2], spaces.Box(-np.inf, np.inf, (2,), np.float32)
        )

    env = VecNormalize(make_vec_env(make, n_envs=8))
    policy_kwargs = {"net_arch": {"vf": [64], "pi": []}, "lstm_hidden_size": 64, "ortho_init": False}
    settings: dict[str, Any] = {"n_steps": 128, "batch_size": 256, "n_epochs": 10, "gae_lambda": 0.98, "seed": 1}
    settings |= {"advantage": "vtrace_gae", "device": "cpu"}
    model = RecurrentDAPO(
        "MlpLstmPolicy", env, learning_rate=7e-4, max_grad_norm=1, policy_kwargs=policy_kwargs, **settings
    )
    model.learn(80 * 1024)
    env.training = env.norm_reward = False
    evaluate_policy(model, env, reward_threshold=450, warn=False)


# --- settings of DAPO ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        {"divergence_coef": AdaptiveController(0.01), "n_rollouts": 2},
        {"target_kl": 1e-5, "n_rollouts": 2, "n_epochs": 5},
        {"exact_targets": True, "n_rollouts": 3, "clip_center": "old", "clip_range_vf": 0.2},
        {"nonfinite": "skip", "advantage": "vtrace_gae", "policy_loss": "clip_augmented"},
        {"policy_loss": "plain", "normalize_advantage": "rms", "divergence": "tsallis", "divergence_steps": 0},
        {"fast": False},
    ],
    ids=str,
)
def test_settings_of_dapo(settings: dict[str, Any]) -> None:
    model = make_recurrent(**settings)
    model.learn(5 * 96)
    assert all(parameter.isfinite().all() for parameter in model.policy.parameters())
    assert model.rollout_buffer.n_kept == model.n_rollouts
    if isinstance(model.divergence_coef, AdaptiveController):
        assert model.divergence_coef.coefficient != settings["divergence_coef"].coefficient
    if model.target_kl:
        assert model._n_updates < 5 * model.n_epochs


def test_exact_targets_are_of_the_current_policy() -> None:
    """Values and log-probs, from the states that were kept."""
    model = make_recurrent(n_rollouts=2)
    model.learn(2 * 96)
    ring = model.rollout_buffer
    with th.no_grad():
        for parameter in model.policy.parameters():
            parameter.add_(0.05)
    model._update_targets(exact=True)
    for samples in ring.get(24):
        values, log_prob, _ = model._evaluate(samples)
        th.testing.assert_close(ring.latest_values.view(-1)[samples.indices], values, rtol=0, atol=1e-5)
        th.testing.assert_close(ring.latest_log_probs.view(-1)[samples.indices], log_prob, rtol=0, atol=1e-5)


class NanAt(gym.Wrapper):
    """The reward of the 40th step is NaN."""

    n_steps = 0

    def step(self, action: Any) -> Any:
        self.n_steps += 1
        observation, reward, *others = self.env.step(action)
        return observation, np.nan if self.n_steps == 40 else reward, *others


@pytest.mark.parametrize("nonfinite", ["raise", "skip"])
def test_nonfinite(nonfinite: str) -> None:
    model = make_recurrent(NanAt(RandomEnv(FLOATS, spaces.Discrete(2))), nonfinite=nonfinite)
    if nonfinite == "raise":
        with pytest.raises(NonFiniteError, match="reward of environment 0 at step 7"):
            model.learn(96)
    else:
        model.learn(96)
        assert all(parameter.isfinite().all() for parameter in model.policy.parameters())


@pytest.mark.parametrize(
    "space", [spaces.Box(0, 255, (1, 36, 36), np.uint8), spaces.Box(0, 255, (4, 36, 36), np.uint8)]
)
def test_frames_kept_once(space: spaces.Box) -> None:
    """Training is the same, bit for bit."""
    models = [
        make_recurrent(
            make_env(observation_space=space),
            policy="CnnLstmPolicy",
            optimize_memory_usage=optimize,
            policy_kwargs={"features_extractor_kwargs": {"features_dim": 8}},
        )
        for optimize in (False, True)
    ]
    for model in models:
        model.set_random_seed(1)
        model.learn(2 * 96)
    assert_same_parameters(*models)


def test_fast_cnn_is_the_same_function() -> None:
    env = make_env(observation_space=spaces.Box(0, 255, (1, 84, 84), np.uint8))
    model = make_recurrent(env, policy="CnnLstmPolicy", n_steps=8, autocast=False)
    model.learn(24)
    assert model.policy.fast
    (samples,) = model.rollout_buffer.get()
    with th.no_grad():
        fast = model._evaluate(samples)
        model.policy.fast = False
        for first, second in zip(fast, model._evaluate(samples), strict=True):
            th.testing.assert_close(first, second, rtol=1e-4, atol=1e-4)


def test_atari_vec_env_with_single_frames() -> None:
    pytest.importorskip("ale_py")
    pytest.importorskip("cv2")
    from sb3_dapo.atari_vec_env import AtariVecEnv

    with pytest.raises(ValueError, match="`overlap` must be False, as this policy acts in a way of its own"):
        env = AtariVecEnv("BreakoutNoFrameskip-v4", 2, n_stack=1)
        RecurrentDAPO("CnnLstmPolicy", env, overlap=True)
    env.close()
    env = AtariVecEnv("BreakoutNoFrameskip-v4", 2, n_stack=1, seed=0)
    policy_kwargs = {"lstm_hidden_size": 16, "features_extractor_kwargs": {"features_dim": 16}}
    model = RecurrentDAPO(
        "CnnLstmPolicy", env, n_steps=32, batch_size=32, n_epochs=1, seed=0, policy_kwargs=policy_kwargs
    )
    assert model.observation_space.shape == (1, 84, 84)
    assert_trained(model, 128)
    env.close()


# --- exact resume -------------------------------------------------------------------------------------


def train(folder: Path, until: int, stop_at: int | None = None, **settings: Any) -> RecurrentDAPO:
    """A run of rollouts of 96 steps with a checkpoint after each: a new one, or on from the latest checkpoint."""

    class Stop(BaseCallback):
        def _on_step(self) -> bool:
            if self.num_timesteps == stop_at:
                raise KeyboardInterrupt
            return True

    env = make_env(p_terminated=0.03, p_truncated=0.03)
    path = latest_checkpoint(folder)
    model = make_recurrent(env, **settings) if path is None else RecurrentDAPO.load_checkpoint(path, env, device="cpu")
    callbacks = [CheckpointCallback(96, folder, reset_envs=settings.get("reset_envs", False)), Stop()]
    try:
        learn_until(model, until, callbacks)
    except KeyboardInterrupt:
        pass
    return model


@pytest.mark.parametrize(
    "settings", [{}, {"n_rollouts": 3, "exact_targets": True}, {"policy_kwargs": CRITICS["no LSTM"]}], ids=str
)
def test_exact_resume(settings: dict[str, Any], tmp_path: Path) -> None:
    """States in mid-episode are part of a checkpoint: a run that was interrupted ends as one that was not."""
    alone = train(tmp_path / "alone", 6 * 96, **settings)
    train(tmp_path / "resumed", 6 * 96, stop_at=3 * 96 + 51, **settings)
    resumed = train(tmp_path / "resumed", 6 * 96)
    assert resumed.num_timesteps == alone.num_timesteps == 6 * 96
    assert_same_parameters(alone, resumed)
    np.testing.assert_array_equal(alone._last_lstm_states, resumed._last_lstm_states)
    assert np.abs(resumed._last_lstm_states).max() > 0


def test_resume_depends_on_the_states(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without them the run would go on otherwise, which the test above would notice."""
    alone = train(tmp_path / "alone", 6 * 96)
    train(tmp_path / "resumed", 6 * 96, stop_at=3 * 96 + 51)
    setup = RecurrentDAPO._setup_model
    monkeypatch.setattr(RecurrentDAPO, "_setup_model", lambda self: setup(self) or self._reset_lstm_states())
    resumed = train(tmp_path / "resumed", 6 * 96)
    with pytest.raises(AssertionError):
        assert_same_parameters(alone, resumed)


def test_resume_with_sequences_of_another_length(tmp_path: Path) -> None:
    model = make_recurrent(n_rollouts=2)
    model.learn(96)
    model.save_checkpoint(tmp_path / "checkpoint", reset_envs=True)
    for length in (16, 1):
        with pytest.raises(ValueError, match=f"`sequence_length` of the saved rollouts is 8, not {length}"):
            RecurrentDAPO.load_checkpoint(tmp_path / "checkpoint", make_env(), sequence_length=length)


# --- models as files ----------------------------------------------------------------------------------


def assert_same_actions(first: RecurrentDAPO, second: RecurrentDAPO) -> None:
    """Over steps in which episodes begin, with what is remembered in between."""
    assert type(first.policy) is type(second.policy)
    states, starts = [None, None], np.ones(4)
    rng = np.random.default_rng(0)
    first.observation_space.seed(0)
    for _ in range(10):
        observations = np.stack([first.observation_space.sample() for _ in range(4)])
        found = [
            model.predict(observations, state, starts, deterministic=True)
            for model, state in zip((first, second), states, strict=True)
        ]
        np.testing.assert_array_equal(*(action for action, _ in found))
        states = [state for _, state in found]
        np.testing.assert_array_equal(*states)
        starts = rng.random(4) < 0.3


@pytest.fixture(params=[*KWARGS, SEPARATE[0]], ids=str)
def model(request: pytest.FixtureRequest) -> RecurrentDAPO:
    model = make_recurrent(make_env(action_space=spaces.Box(-1, 1, (2,))), policy_kwargs=request.param, n_rollouts=2)
    return model.learn(96)


def test_save_and_load(model: RecurrentDAPO, tmp_path: Path) -> None:
    model.save(tmp_path / "model")
    for n_envs in (3, 2):
        env = make_env(n_envs, action_space=model.action_space)
        loaded = RecurrentDAPO.load(tmp_path / "model", env=env, device="cpu")
        assert_same_actions(model, loaded)
        assert loaded.sequence_length == 8 and loaded._last_lstm_states.shape[0] == n_envs
        loaded.learn(96)


def test_export(model: RecurrentDAPO, tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    model.export(tmp_path / "exported")
    assert not recwarn
    for env in (None, make_env(2, action_space=model.action_space)):
        loaded = RecurrentDAPO.load_exported(tmp_path / "exported", env, device="cpu")
        assert_same_actions(model, loaded)
        assert loaded.sequence_length == 8 and loaded.num_timesteps == 96
    loaded.learn(64)


def test_export_of_an_own_policy(tmp_path: Path) -> None:
    model = make_recurrent(policy=Forgetful)
    with pytest.warns(UserWarning, match="policy cannot be described as data"):
        model.export(tmp_path / "exported")
    with pytest.raises(ExportError, match="'policy' was left out"):
        RecurrentDAPO.load_exported(tmp_path / "exported")
    assert_same_actions(model, RecurrentDAPO.load_exported(tmp_path / "exported", policy=Forgetful))


@pytest.mark.parametrize(
    "old, new",
    [
        ('"lstm_hidden_size": 6', '"lstm_hidden_size": 600000000'),
        ('"lstm_hidden_size": 6', '"lstm_hidden_size": -6'),
        ('"lstm_hidden_size": 6', '"lstm_hidden_size": 6, "n_lstm_layers": 1000000000'),
        ('"lstm_hidden_size": 6', '"lstm_hidden_size": 6, "lstm_kwargs": {"device": "cpu"}'),
        ('"lstm_hidden_size": 6', '"lstm_hidden_size": 6, "lstm_kwargs": {"proj_size": 3}'),
        ('"lstm_hidden_size": 6', '"lstm_hidden_size": 6, "lstm_kwargs": {"dropout": "much"}'),
        ('"lstm_hidden_size": 6', '"lstm_hidden_size": 6, "shared_lstm": true'),
        ('"sequence_length": 8', '"sequence_length": 0'),
        ('"sequence_length": 8', '"sequence_length": 7'),
        ('"RecurrentDAPO"', '"DAPO"'),
    ],
)
def test_hostile_exports(old: str, new: str, tmp_path: Path) -> None:
    make_recurrent().export(tmp_path / "exported")
    path = tmp_path / "exported" / "model.json"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    with pytest.raises(ExportError):
        RecurrentDAPO.load_exported(tmp_path / "exported")


def test_card_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its program plays, and it names what must be installed."""
    pytest.importorskip("huggingface_hub")
    from hub_server import running_hub
    from test_hub import REPO, code_blocks, use

    model = RecurrentDAPO("MlpLstmPolicy", "CartPole-v1", n_steps=32, n_epochs=1, seed=0, device="cpu").learn(32)
    with running_hub() as server:
        use(monkeypatch, server, tmp_path / "cache")
        model.push_to_hub(REPO, eval_env="CartPole-v1", n_eval_episodes=2)
        assert_same_actions(model, RecurrentDAPO.from_pretrained(REPO, device="cpu"))
        card = server.repositories[REPO].files["README.md"].decode()
        assert "# RecurrentDAPO on CartPole-v1" in card and "`sequence_length` | `32`" in card
        assert "sb3-dapo[hub,contrib]" in card
        (program,) = code_blocks(card, "python")
        assert "from sb3_dapo import RecurrentDAPO" in program
        exec(program, {})
