"""MaskableDAPO: masks in acting, in the ring, in learning, and in what is made of a model."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from algos import flat_parameters, make_model
from envs import EndlessEnv, RandomEnv
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st
from masked_envs import FLOATS, SPACES, MaskedEnv, masked, sizes_of
from sb3_contrib.common.maskable.distributions import make_masked_proba_distribution
from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy
from sb3_contrib.common.maskable.utils import get_action_masks
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import SubprocVecEnv, VecEnv, VecFrameStack, VecNormalize

from sb3_dapo import AdaptiveController, MaskableDAPO
from sb3_dapo.checkpoint import learn_until
from sb3_dapo.maskable.distributions import LeanDistribution

pytestmark = pytest.mark.filterwarnings("ignore:The last minibatch of every epoch")

REUSE: dict[str, Any] = {"n_rollouts": 2, "advantage": "vtrace_gae", "policy_loss": "plain"}
all_spaces = pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)


def model_of(env: Any, policy: Any = "MlpPolicy", **settings: Any) -> MaskableDAPO:
    model = make_model(MaskableDAPO, policy, env, **settings)
    assert isinstance(model, MaskableDAPO)
    return model


def test_is_loaded_on_first_use() -> None:
    code = (
        "import sys, sb3_dapo; sb3_dapo.DAPO; assert 'sb3_contrib' not in sys.modules;"
        "from sb3_dapo import MaskableDAPO; assert 'sb3_contrib' in sys.modules; print(MaskableDAPO.__name__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "MaskableDAPO\n", done.stderr


def test_the_extra_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / "sb3_contrib.py").write_text("raise ModuleNotFoundError('No module named sb3_contrib')")
    command = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from sb3_dapo import MaskableDAPO"
    result = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True)
    assert result.returncode != 0
    assert "pip install 'sb3-dapo[contrib]'" in result.stderr


# --- the lean distribution ----------------------------------------------------------------------------


@st.composite
def distributions(draw: st.DrawFn) -> tuple[spaces.Space, th.Tensor, np.ndarray]:
    """A space, logits ``(B, D)`` and masks."""
    kind = draw(st.sampled_from(sorted(SPACES)))
    sizes = (
        [draw(st.integers(1, 6))] if kind == "Discrete" else draw(st.lists(st.integers(1, 5), min_size=1, max_size=4))
    )
    space: spaces.Space = spaces.MultiDiscrete(sizes)
    if kind == "Discrete":
        space = spaces.Discrete(sizes[0])
    elif kind == "MultiBinary":
        space = spaces.MultiBinary(len(sizes))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    sizes, n = sizes_of(space), draw(st.integers(1, 5))
    logits = th.as_tensor(rng.normal(0, draw(st.sampled_from([0.0, 1.0, 30.0])), (n, sum(sizes))))
    masks = rng.random(logits.shape) < 0.4
    for start, size in zip(np.cumsum([0, *sizes[:-1]]), sizes, strict=True):
        masks[np.arange(n), start + rng.integers(0, size, n)] = True
    return space, logits, masks


@given(distributions(), st.sampled_from([th.float32, th.float64]), st.booleans())
def test_lean_distribution_equals_contribs(case: Any, dtype: th.dtype, has_masks: bool) -> None:
    """Log-probs, entropies, modes, and gradients of both; and samples are allowed."""
    space, logits, masks = case
    sizes = sizes_of(space)
    actions = th.stack(
        [
            x[:, 0]
            for x in (th.multinomial(th.as_tensor(m).double(), 1) for m in np.split(masks, np.cumsum(sizes)[:-1], 1))
        ],
        1,
    )
    results = []
    for distribution in (make_masked_proba_distribution(space), LeanDistribution(sizes)):
        raw = logits.to(dtype).requires_grad_()
        distribution.proba_distribution(raw)
        distribution.apply_masking(masks if has_masks else None)
        chosen = actions[:, 0] if isinstance(space, spaces.Discrete) else actions
        log_prob, entropy = distribution.log_prob(chosen), distribution.entropy()
        (gradient,) = th.autograd.grad((log_prob * th.arange(1, len(raw) + 1) + 0.3 * entropy).sum(), raw)
        results.append((log_prob, entropy, gradient, distribution.mode().view(len(raw), -1)))
    tolerance = {"rtol": 1e-4, "atol": 1e-4} if dtype == th.float32 else {"rtol": 1e-10, "atol": 1e-10}
    for ours, theirs in zip(results[1][:3], results[0][:3], strict=True):
        th.testing.assert_close(ours, theirs, **tolerance)
    if dtype == th.float64 and logits.abs().max() > 0:
        assert th.equal(results[1][3], results[0][3])
    if has_masks:
        samples = distribution.sample()
        for i, start in enumerate(np.cumsum([0, *sizes[:-1]])):
            assert masks[np.arange(len(masks)), start + samples[:, i].numpy()].all()


@all_spaces
def test_lean_samples_have_contribs_probabilities(space: spaces.Space) -> None:
    th.manual_seed(0)
    sizes, n = sizes_of(space), 20_000
    logits, masks = th.randn(1, sum(sizes)), th.rand(1, sum(sizes)) < 0.7
    masks[0, np.cumsum([0, *sizes[:-1]])] = True
    contrib, lean = make_masked_proba_distribution(space), LeanDistribution(sizes)
    counts = []
    for distribution in (contrib, lean):
        distribution.proba_distribution(logits.expand(n, -1))
        distribution.apply_masking(masks.expand(n, -1).numpy())
        samples = distribution.sample().view(n, -1)
        counts.append(
            th.cat([th.bincount(column, minlength=size) for column, size in zip(samples.T, sizes, strict=True)])
        )
    assert (counts[1][~masks[0]] == 0).all()
    th.testing.assert_close(counts[1] / n, counts[0] / n, atol=0.02, rtol=0)  # 4 standard deviations


# --- acting and learning ------------------------------------------------------------------------------


class MaskInSight(MaskedEnv):
    """The observation is the mask."""

    def __init__(self, action_space: spaces.Space) -> None:
        super().__init__(action_space, spaces.Box(0, 1, (sum(sizes_of(action_space)),)))

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        _, info = super().reset(**kwargs)
        return self.action_masks().astype(np.float32), info

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        _, *rest = super().step(action)
        return self.action_masks().astype(np.float32), *rest  # type: ignore[return-value]


@all_spaces
@pytest.mark.parametrize("vec_env_class", [None, SubprocVecEnv])
def test_masks_belong_to_their_transitions(space: spaces.Space, vec_env_class: Any) -> None:
    """In minibatches of two rollouts; and only what is allowed is played, or the environment would say so."""
    env = make_vec_env(lambda: MaskInSight(space), n_envs=3, seed=0, vec_env_cls=vec_env_class)
    model = model_of(env, **REUSE)
    model.learn(3 * 64 * 3)
    env.close()
    batches = list(model.rollout_buffer.get(50))
    assert sum(len(batch.indices) for batch in batches) == 2 * 64 * 3
    for batch in batches:
        assert batch.inputs["action_masks"].dtype == th.bool
        assert th.equal(batch.inputs["action_masks"].float(), batch.observations)


class AtRolloutEnd(BaseCallback):
    """Calls a function with the model before each update."""

    def __init__(self, function: Callable[[MaskableDAPO], None]) -> None:
        super().__init__()
        self.function, self.n = function, 0

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        assert isinstance(self.model, MaskableDAPO)
        self.n += 1
        self.function(self.model)


@all_spaces
@pytest.mark.parametrize("fast", [True, False])
def test_log_probs_are_those_of_the_masked_distribution(space: spaces.Space, fast: bool) -> None:
    """Of the policy that acted, as contrib's policy evaluates them: ratios before the first step are 1."""

    def check(model: MaskableDAPO) -> None:
        ring = model.rollout_buffer
        ring.join()
        for batch in ring.get(1000):
            newest = ring.arrivals[batch.indices // (ring.n_envs * ring.buffer_size)] == ring.arrivals.max()
            observations, masks = batch.observations, batch.inputs["action_masks"]
            policy: Any = model.policy
            with th.no_grad():
                _, log_prob, entropy = policy.evaluate_actions(observations, batch.actions, action_masks=masks)
                unmasked = policy.evaluate_actions(observations, batch.actions)[1]
                _, ours, our_entropy = model._evaluate(batch)
            th.testing.assert_close(batch.behavior_log_prob[newest], log_prob[newest], rtol=1e-4, atol=1e-5)
            th.testing.assert_close(ours, log_prob, rtol=1e-4, atol=1e-5)
            th.testing.assert_close(our_entropy, entropy, rtol=1e-4, atol=1e-5)
            assert (unmasked[newest] < batch.behavior_log_prob[newest] - 1e-3).float().mean() > 0.5

    model = model_of(masked(space)(), fast=fast, **REUSE)
    callback = AtRolloutEnd(check)
    model.learn(3 * 128, callback=callback)
    assert callback.n == 3


@all_spaces
def test_fast_and_plain_forms_learn_the_same(space: spaces.Space) -> None:
    """From the same rollout, within float tolerance."""
    rollouts: list[Any] = []
    callback = AtRolloutEnd(lambda model: rollouts.append(model.rollout_buffer.rollout()))
    model_of(masked(space)()).learn(128, callback=callback)
    models = [model_of(masked(space)(), fast=fast) for fast in (True, False)]
    before = flat_parameters(models[0])
    for model in models:
        model._setup_learn(128)
        model.rollout_buffer.append(rollouts[0])
        np.random.seed(0)
        model.train()
    assert not th.equal(flat_parameters(models[0]), before)
    th.testing.assert_close(flat_parameters(models[0]), flat_parameters(models[1]), rtol=1e-3, atol=1e-5)


class Trap(gym.Env):
    """At step 5 nothing is allowed for the second part of the action."""

    observation_space = spaces.Box(-1, 1, (1,))
    action_space = spaces.MultiDiscrete([2, 3])

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self.t = 0
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.t += 1
        return np.zeros(1, np.float32), 0.0, False, False, {}

    def action_masks(self) -> list[bool]:
        return [True, False, *[self.t != 5] * 3]


class Harmless(Trap):
    def action_masks(self) -> list[bool]:
        return [True] * 5


def test_a_state_in_which_nothing_is_allowed_is_an_error() -> None:
    env = make_vec_env(Harmless, n_envs=2)
    env.envs[1] = Trap()  # type: ignore[attr-defined]
    message = "got nothing for part 1 of the action in environment 1 at step 5 of the rollout"
    with pytest.raises(ValueError, match=message):
        model_of(env).learn(128)


@pytest.mark.parametrize(("masks", "message"), [([True] * 4, r"5 elements per environment, got the shape \(1, 4\)")])
def test_masks_of_another_size(masks: list[bool], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Harmless, "action_masks", lambda self: masks)
    with pytest.raises(ValueError, match=message):
        model_of(Harmless()).learn(64)


def test_masks_for_predict() -> None:
    model = model_of(Harmless())
    for masks in ([0, 1, 0, 0, 1], [[False, True, False, False, True]], np.array([0.0, 1.0, 0.0, 0.0, 1.0])):
        action, state = model.predict(np.zeros(1), action_masks=masks)  # type: ignore[arg-type]
        assert action.tolist() == [1, 2] and state is None
    actions, _ = model.predict(np.zeros((2, 1)), action_masks=np.array([[0, 1, 1, 0, 0], [1, 0, 0, 0, 1]]))
    assert actions.tolist() == [[1, 0], [0, 2]]
    with pytest.raises(ValueError, match="got nothing for part 0 of the action in environment 0"):
        model.predict(np.zeros(1), action_masks=np.array([0, 0, 0, 1, 1]))
    with pytest.raises(ValueError, match=r"5 elements per environment, got the shape \(1, 3\)"):
        model.predict(np.zeros(1), action_masks=np.ones(3))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"use_sde": True}, "gSDE.* can only be used with continuous actions"),
        ({"overlap": True}, "`overlap` must be False"),
        ({"autocast": True}, "`autocast` must be False for policies other than CnnPolicy"),
        ({"gamma": 2.0}, "`gamma` must be a number in"),
    ],
)
def test_what_cannot_be_is_refused_by_name(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model_of(masked(SPACES["Discrete"])(), **settings)


def test_with_and_without_masks_in_turn() -> None:
    """A ring that holds rollouts of both kinds knows which is which."""
    model = model_of(masked(SPACES["Discrete"], refuses=False)(), **REUSE)
    model.learn(128)
    model.learn(128, use_masking=False, reset_num_timesteps=False)
    shares = model.rollout_buffer.input_stores["action_masks"].kept.float().mean(dim=(1, 2, 3))
    assert shares[0] < 0.8 and shares[1] == 1
    model.learn(128, reset_num_timesteps=False)
    assert model.num_timesteps == 384


def test_policies_of_contrib() -> None:
    """By their class, or one derived from it, which knows as little of gSDE."""

    class Own(MaskableActorCriticPolicy):
        pass

    for policy in (MaskableActorCriticPolicy, Own):
        model = model_of(masked(SPACES["MultiBinary"])(), policy).learn(200)
        assert type(model.policy) is policy and model.policy_class is policy


SETTINGS: dict[str, dict[str, Any]] = {
    "controller": {"divergence_coef": AdaptiveController(0.02)},
    "clip around the old policy": {**REUSE, "policy_loss": "clip", "clip_center": "old", "target_kl": 0.02},
    "exact targets": {**REUSE, "exact_targets": True, "divergence": "hellinger", "divergence_steps": 3},
    "augmented advantages": {"policy_loss": "clip_augmented", "normalize_advantage": "rms", "nonfinite": "skip"},
}


@all_spaces
@pytest.mark.parametrize("name", SETTINGS)
def test_settings_of_dapo(name: str, space: spaces.Space) -> None:
    model = model_of(masked(space)(), **SETTINGS[name])
    before = flat_parameters(model)
    model.learn(400)
    assert not th.equal(flat_parameters(model), before)
    logged = model.logger.name_to_value
    assert np.isfinite([value for key, value in logged.items() if key.startswith("train/")]).all()
    assert abs(logged["train/entropy_loss"]) < np.log(sizes_of(space)).sum()


def test_images_in_the_fast_form() -> None:
    images = spaces.Box(0, 255, (1, 40, 40), np.uint8)
    policy_kwargs = {"features_extractor_kwargs": {"features_dim": 16}}
    env = VecFrameStack(masked(SPACES["Discrete"], images)(), 4)
    model = model_of(env, "CnnPolicy", policy_kwargs=policy_kwargs, optimize_memory_usage=True, **REUSE)
    model.learn(300)
    policy: Any = model.policy
    assert policy.fast
    (batch,) = model.rollout_buffer.get(None)
    fast = model._evaluate(batch)
    model.fast = False
    model._set_form()
    for ours, theirs in zip(fast, model._evaluate(batch), strict=True):
        th.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)
    assert not policy.fast


def test_spoilt_rewards_are_skipped() -> None:
    class Spoilt(MaskedEnv):
        def step(self, action: Any) -> Any:
            observation, reward, *rest = super().step(action)
            return observation, float("nan") if self.np_random.random() < 0.02 else reward, *rest

    env = make_vec_env(lambda: Spoilt(SPACES["MultiDiscrete"]), seed=0)
    model = model_of(env, nonfinite="skip", normalize_advantage=False, batch_size=4, gae_lambda=0.0).learn(64)
    assert 0 < model.logger.name_to_value["train/skipped_minibatches"] < 32
    assert th.isfinite(flat_parameters(model)).all()


@pytest.mark.slow
def test_compiled() -> None:
    model = model_of(masked(SPACES["MultiDiscrete"])(), compile=True)
    model.learn(512)
    assert model._compiled_evaluate is not None
    th.distributions.Distribution.set_default_validate_args(True)


# --- files --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [{}, {**REUSE, "divergence_coef": AdaptiveController(0.02)}], ids=["new", "reuse"])
@all_spaces
def test_checkpoints_are_exact(space: spaces.Space, settings: dict[str, Any], tmp_path: Path) -> None:
    def make_env() -> VecEnv:
        return VecNormalize(masked(space)())

    whole = model_of(make_env(), **settings).learn(4 * 128)
    half = model_of(make_env(), **settings).learn(2 * 128)
    half.save_checkpoint(tmp_path / "half")
    resumed = MaskableDAPO.load_checkpoint(tmp_path / "half", make_env(), device="cpu")
    learn_until(resumed, 4 * 128)
    assert th.equal(flat_parameters(resumed), flat_parameters(whole))
    masks = [model.rollout_buffer.input_stores["action_masks"].kept for model in (resumed, whole)]
    assert th.equal(*masks)


@all_spaces
def test_exported_models_play_the_same(space: spaces.Space, tmp_path: Path) -> None:
    env = masked(space)()
    model = model_of(env, **REUSE).learn(256)
    model.export(tmp_path / "exported")
    model.save(tmp_path / "model")
    observations, masks = env.reset(), get_action_masks(env)
    actions, _ = model.predict(observations, deterministic=True, action_masks=masks)  # type: ignore[arg-type]
    others = [
        MaskableDAPO.load_exported(tmp_path / "exported", env, device="cpu"),
        MaskableDAPO.load(tmp_path / "model", env, device="cpu"),
    ]
    for other in others:
        assert type(other) is MaskableDAPO and other.n_rollouts == 2
        assert th.equal(flat_parameters(other), flat_parameters(model))
        again, _ = other.predict(observations, deterministic=True, action_masks=masks)  # type: ignore[arg-type]
        np.testing.assert_array_equal(again, actions)
        other.learn(128, reset_num_timesteps=False)


def test_exported_images(tmp_path: Path) -> None:
    images = spaces.Box(0, 255, (1, 40, 40), np.uint8)
    policy_kwargs = {"features_extractor_kwargs": {"features_dim": 16}}
    model = model_of(masked(SPACES["Discrete"], images)(), "CnnPolicy", policy_kwargs=policy_kwargs).learn(128)
    model.export(tmp_path / "exported")
    loaded = MaskableDAPO.load_exported(tmp_path / "exported", device="cpu")
    assert type(loaded.policy) is type(model.policy)
    assert th.equal(flat_parameters(loaded), flat_parameters(model))


def test_sb3_evaluates_what_asks_for_masks() -> None:
    """``evaluate_policy`` of SB3 knows no masks; the environments refuse what they do not allow."""
    env = masked(SPACES["Discrete"])()
    model = model_of(env)
    evaluate_policy(model.predictor_for(env), env, n_eval_episodes=3, deterministic=False)
    with pytest.raises(AssertionError, match="is not allowed"):
        evaluate_policy(model, env, n_eval_episodes=3, deterministic=False)
    plain = make_vec_env(lambda: RandomEnv(FLOATS, SPACES["Discrete"]))
    assert model.predictor_for(plain) is model
    assert model.predictor_for(env).num_timesteps == 0


def test_resuming_without_masks(tmp_path: Path) -> None:
    model = model_of(EndlessEnv(), n_rollouts=2).learn(64, use_masking=False)
    model.save_checkpoint(tmp_path / "checkpoint", reset_envs=True)
    resumed = MaskableDAPO.load_checkpoint(tmp_path / "checkpoint", EndlessEnv(), device="cpu")
    learn_until(resumed, 192, use_masking=False)
    assert resumed.num_timesteps == 192
