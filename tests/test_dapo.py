"""The loss against eq. 7, whole updates against a second implementation, and the checks of the arguments."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from algos import flat_parameters, make_model
from envs import RandomEnv
from formulas import CONTINUES, INF, TERMINATED, TRUNCATED, Batch, divergence_sums, vtrace_sums
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.utils import LinearSchedule

from sb3_dapo import DAPO, DIVERGENCES, AdaptiveController, Divergence
from sb3_dapo.buffers import RolloutRingSamples
from sb3_dapo.divergences import Tsallis
from sb3_dapo.loss import LossSettings, backward, dapo_loss, loss_gradient

POLICY_LOSSES = ["clip", "plain", "clip_augmented"]
FLOATS = spaces.Box(-1, 1, (3,))


# --- the loss: its gradient against finite differences of eq. 7 -----------------------------------


class SoftmaxPolicy:
    """A tiny policy and value function of a vector of parameters, over discrete actions, in float64."""

    n_parameters = 20

    def __init__(self, rng: np.random.Generator, batch_size: int) -> None:
        self.features = th.as_tensor(rng.normal(size=(batch_size, 4)))
        self.actions = th.as_tensor(rng.integers(4, size=batch_size))

    def __call__(self, parameters: th.Tensor) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
        """:return: V(s), log pi(a|s) and the entropy of pi(.|s), each ``(B,)``"""
        log_probs = (self.features @ parameters[:16].reshape(4, 4)).log_softmax(dim=1)
        entropy = -(log_probs.exp() * log_probs).sum(dim=1)
        log_prob = log_probs.gather(1, self.actions[:, None]).squeeze(1)
        return self.features @ parameters[16:], log_prob, entropy


class GaussianPolicy(SoftmaxPolicy):
    """The same over continuous actions: densities, with a standard deviation that is learned."""

    n_parameters = 9

    def __init__(self, rng: np.random.Generator, batch_size: int) -> None:
        super().__init__(rng, batch_size)
        self.actions = th.as_tensor(rng.normal(size=batch_size))

    def __call__(self, parameters: th.Tensor) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
        distribution = th.distributions.Normal(self.features @ parameters[:4], parameters[8].exp())
        return self.features @ parameters[4:8], distribution.log_prob(self.actions), distribution.entropy()


@dataclass
class Setting:
    """What the loss depends on, and the loss itself as a sum over the minibatch, one transition at a time."""

    policy: SoftmaxPolicy
    samples: RolloutRingSamples
    at: th.Tensor
    """Parameters at which the gradient is taken: what eq. 7 keeps constant is computed there."""
    model: DAPO
    clip_range: float
    clip_range_vf: float | None
    divergence_coef: float

    def settings(self) -> LossSettings:
        levels = {"clip_range": self.clip_range, "clip_range_vf": self.clip_range_vf}
        return self.model._loss_settings()._replace(divergence_coef=self.divergence_coef, **levels)

    def normalized_advantages(self) -> np.ndarray:
        advantages = self.samples.advantages.numpy()
        if self.model.normalize_advantage == "rms":
            return advantages / np.sqrt(np.mean(advantages**2))
        if self.model.normalize_advantage:
            return (advantages - np.mean(advantages)) / np.std(advantages, ddof=1)
        return advantages

    def loss(self, parameters: th.Tensor) -> float:
        model, samples = self.model, self.samples
        values, log_prob, entropy = (x.numpy() for x in self.policy(parameters))
        _, log_prob_here, _ = self.policy(self.at)
        f = model.divergence(log_prob_here, samples.behavior_log_prob).numpy()
        advantages = self.normalized_advantages()
        total = 0.0
        for b in range(len(advantages)):
            ratio = np.exp(log_prob[b] - samples.behavior_log_prob[b].item())
            ratio_here = np.exp(log_prob_here[b].item() - samples.behavior_log_prob[b].item())
            clipped_ratio = min(max(ratio, 1 - self.clip_range), 1 + self.clip_range)
            advantage, divergence = advantages[b], f[b] + samples.future_divergence[b].item()
            if model.policy_loss == "plain":
                total += -ratio * advantage + self.divergence_coef * ratio * divergence
            elif model.policy_loss == "clip":
                total += -min(ratio * advantage, clipped_ratio * advantage)
                total += self.divergence_coef * ratio * divergence
            else:
                augmented = advantage - self.divergence_coef * divergence
                total += -min(ratio * augmented, clipped_ratio * augmented)
            value, old_value = values[b], samples.old_values[b].item()
            if self.clip_range_vf is not None:
                value = old_value + min(max(value - old_value, -self.clip_range_vf), self.clip_range_vf)
            weight = min(ratio_here, 3.0) if model.advantage != "gae" else 1.0
            total += model.vf_coef * weight * (samples.returns[b].item() - value) ** 2
            total += -model.ent_coef * entropy[b]
        return total / len(advantages)

    def finite_differences(self, step: float = 1e-6) -> th.Tensor:
        directions = step * th.eye(len(self.at), dtype=th.float64)
        return th.tensor(
            [(self.loss(self.at + d) - self.loss(self.at - d)) / (2 * step) for d in directions], dtype=th.float64
        )


def make_setting(
    policy_class: type[SoftmaxPolicy] = SoftmaxPolicy,
    *,
    batch_size: int = 24,
    clip_range: float = 0.2,
    clip_range_vf: float | None = None,
    divergence_coef: float = 0.7,
    seed: int = 0,
    **settings: Any,
) -> Setting:
    """A minibatch of an off-policy update: the policies that acted differ from the one that is trained."""
    env_id = "CartPole-v1" if policy_class is SoftmaxPolicy else "Pendulum-v1"
    model = DAPO("MlpPolicy", env_id, n_steps=8, batch_size=8, device="cpu", **settings)
    rng = np.random.default_rng(seed)
    policy = policy_class(rng, batch_size)
    behavior, old, at = th.as_tensor(0.5 * rng.normal(size=(3, policy.n_parameters)))
    samples = RolloutRingSamples(
        indices=th.arange(batch_size),
        observations=policy.features,
        actions=policy.actions,
        behavior_log_prob=policy(behavior)[1],
        old_log_prob=policy(old)[1],
        old_values=policy(old)[0],
        advantages=th.as_tensor(0.5 + rng.normal(size=batch_size)),
        returns=th.as_tensor(rng.normal(size=batch_size)),
        future_divergence=th.as_tensor(rng.normal(size=batch_size)),
        inputs={},
    )
    return Setting(policy, samples, at, model, clip_range, clip_range_vf, divergence_coef)


def check_gradient(setting: Setting) -> None:
    parameters = setting.at.clone().requires_grad_()
    loss, stats = dapo_loss(setting.samples, *setting.policy(parameters), setting.settings())
    assert loss.item() == pytest.approx(setting.loss(setting.at), rel=1e-6)
    loss.backward()
    th.testing.assert_close(parameters.grad, setting.finite_differences(), rtol=1e-5, atol=1e-7)
    assert not any(value.requires_grad for value in stats.values())
    check_written_gradient(setting, parameters.grad)


def check_written_gradient(setting: Setting, expected: th.Tensor | None) -> None:
    """The gradient that is written down, for tensors and for arrays, is the one that autograd finds."""
    parameters = setting.at.clone().requires_grad_()
    outputs = setting.policy(parameters)
    backward(setting.samples, *outputs, setting.settings())
    th.testing.assert_close(parameters.grad, expected, rtol=1e-9, atol=1e-12)
    values, log_prob, _ = (x.detach() for x in outputs)
    tensors = loss_gradient(setting.samples, values, log_prob, setting.settings())
    arrays = loss_gradient(setting.samples, values.numpy(), log_prob.numpy(), setting.settings())
    for tensor, array in zip(tensors[:2], arrays[:2], strict=True):
        assert isinstance(array, np.ndarray)
        np.testing.assert_allclose(array, tensor.numpy(), rtol=1e-9, atol=1e-15)
    assert tensors[2] == arrays[2]


@pytest.mark.parametrize("divergence_coef", [0.0, 0.7])
@pytest.mark.parametrize("normalize_advantage", [False, True, "rms"])
@pytest.mark.parametrize("policy_class", [SoftmaxPolicy, GaussianPolicy])
@pytest.mark.parametrize("policy_loss", POLICY_LOSSES)
def test_gradient_of_the_loss(
    policy_loss: Any, policy_class: type[SoftmaxPolicy], normalize_advantage: Any, divergence_coef: float
) -> None:
    check_gradient(
        make_setting(
            policy_class,
            policy_loss=policy_loss,
            normalize_advantage=normalize_advantage,
            divergence_coef=divergence_coef,
            ent_coef=0.05,
            vf_coef=0.3,
        )
    )


@pytest.mark.parametrize("name", DIVERGENCES)
@pytest.mark.parametrize("policy_loss", POLICY_LOSSES)
def test_gradient_of_the_loss_for_every_divergence(policy_loss: Any, name: str) -> None:
    check_gradient(make_setting(policy_loss=policy_loss, divergence=name))


@pytest.mark.parametrize("advantage", ["vtrace", "vtrace_gae", "gae"])
@pytest.mark.parametrize("clip_range_vf", [None, 0.1, 10.0])
def test_gradient_of_the_value_loss(clip_range_vf: float | None, advantage: Any) -> None:
    """Weighted by the ratio, at most 3, and the weight is a constant."""
    setting = make_setting(clip_range_vf=clip_range_vf, advantage=advantage, vf_coef=2.0, batch_size=200)
    ratios = (setting.policy(setting.at)[1] - setting.samples.behavior_log_prob).exp()
    assert ratios.min() < 1 < 3 < ratios.max()
    check_gradient(setting)


def test_loss_of_one_transition_is_not_normalized() -> None:
    """A minibatch of one has no standard deviation."""
    setting = make_setting(batch_size=1, normalize_advantage=True, divergence_coef=0.0)
    loss, _ = dapo_loss(setting.samples, *setting.policy(setting.at), setting.settings())
    unnormalized = make_setting(batch_size=1, normalize_advantage=False, divergence_coef=0.0)
    assert loss.item() == pytest.approx(unnormalized.loss(unnormalized.at))


def test_entropy_without_closed_form() -> None:
    """Minus the mean log-prob stands in for it."""
    setting = make_setting(ent_coef=1.0)
    values, log_prob, _ = setting.policy(setting.at)
    with_estimate, _ = dapo_loss(setting.samples, values, log_prob, None, setting.settings())
    without, _ = dapo_loss(setting.samples, values, log_prob, th.zeros_like(values), setting.settings())
    assert (with_estimate - without).item() == pytest.approx(log_prob.mean().item())

    gradients = []
    for written in (False, True):
        parameters = setting.at.clone().requires_grad_()
        values, log_prob, _ = setting.policy(parameters)
        if written:
            backward(setting.samples, values, log_prob, None, setting.settings())
        else:
            dapo_loss(setting.samples, values, log_prob, None, setting.settings())[0].backward()
        gradients.append(parameters.grad)
    th.testing.assert_close(*gradients, rtol=1e-9, atol=1e-12)


# --- whole updates, against a second implementation -----------------------------------------------


class Recording(BaseCallback):
    """Keeps what the environments and the policy said, rollout by rollout."""

    def __init__(self) -> None:
        super().__init__()
        self.rollouts: list[dict[str, list[Any]]] = []

    def _on_rollout_start(self) -> None:
        names = ("observations", "actions", "log_probs", "values", "rewards", "ends", "following")
        self.rollouts.append({name: [] for name in names})

    def _on_step(self) -> bool:
        here, rollout = self.locals, self.rollouts[-1]
        rollout["observations"].append(here["obs_tensor"].clone())
        rollout["actions"].append(th.as_tensor(here["actions"]))
        rollout["log_probs"].append(here["log_probs"])
        rollout["values"].append(here["values"].flatten())
        rollout["rewards"].append(here["rewards"].copy())
        ends, following = [], here["new_obs"].copy()
        for n, (done, info) in enumerate(zip(here["dones"], here["infos"], strict=True)):
            truncated = info.get("TimeLimit.truncated", False)
            ends.append(CONTINUES if not done else TRUNCATED if truncated else TERMINATED)
            if done:
                following[n] = info["terminal_observation"]
        rollout["ends"].append(ends)
        rollout["following"].append(th.as_tensor(following))
        return True


class Reference:
    """
    DAPO's update, written a second time: one minibatch per epoch, targets by explicit sums, plain gradient descent.

    :param model: its settings, and its policy before the first update
    """

    def __init__(self, model: DAPO) -> None:
        self.model = model
        self.policy = model.policy_class(
            model.observation_space, model.action_space, model.lr_schedule, **model.policy_kwargs
        )
        self.policy.load_state_dict(model.policy.state_dict())
        self.ring: list[dict[str, Any]] = []
        self.parameters_replaced = False

    def append(self, rollout: dict[str, list[Any]]) -> None:
        entry: dict[str, Any] = {name: th.stack(x) for name, x in rollout.items() if name not in ("rewards", "ends")}
        entry["rewards"], entry["ends"] = np.array(rollout["rewards"], dtype=np.float64), np.array(rollout["ends"])
        entry["latest_values"], entry["latest_log_probs"] = entry["values"], entry["log_probs"]
        self.ring = [*self.ring, entry][-self.model.n_rollouts :]

    def evaluate(self, entry: dict[str, Any]) -> tuple[th.Tensor, th.Tensor, th.Tensor | None]:
        shape = entry["ends"].shape
        values, log_prob, entropy = self.policy.evaluate_actions(
            entry["observations"].flatten(0, 1), entry["actions"].flatten(0, 1)
        )
        return values.reshape(shape), log_prob.reshape(shape), None if entropy is None else entropy.reshape(shape)

    @th.no_grad()
    def targets(self, entry: dict[str, Any]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """:return: v, A and D - f, ``(T, N)``"""
        model, ends = self.model, entry["ends"]
        if model.exact_targets:
            entry["latest_values"], entry["latest_log_probs"], _ = self.evaluate(entry)
        values = entry["latest_values"].double().numpy()
        log_probs, behavior = entry["latest_log_probs"].double(), entry["log_probs"].double()
        asked = self.policy.predict_values(entry["following"].flatten(0, 1)).reshape(ends.shape).double().numpy()
        inside = np.vstack([ends[:-1] == CONTINUES, np.zeros_like(ends[:1], dtype=bool)])
        batch = Batch(
            ends=ends,
            gamma=model.gamma,
            rewards=entry["rewards"],
            values=values,
            next_values=np.where(inside, np.vstack([values[1:], values[-1:]]), asked),
            ratios=(log_probs - behavior).exp().numpy(),
            f=model.divergence(log_probs, behavior).numpy(),
        )
        first = model.gae_lambda if model.advantage == "vtrace_gae" else 1.0
        returns, advantages = vtrace_sums(batch, model.gae_lambda, model.rho_bar, model.c_bar, first)
        lam = model.gae_lambda if model.divergence_lambda is None else model.divergence_lambda
        total = divergence_sums(batch, model.gamma, lam, 1.0, model.divergence_c_bar, model.divergence_steps)
        return returns, advantages, total - batch.f

    def update(self) -> None:
        model = self.model
        coef = model.divergence_coef(1.0)
        if model.exact_targets or model.clip_center == "old" or self.parameters_replaced:
            for entry in self.ring:
                latest_values, latest_log_probs, _ = self.evaluate(entry)
                entry["latest_values"], entry["latest_log_probs"] = latest_values.detach(), latest_log_probs.detach()
        old_log_probs = th.cat([entry["latest_log_probs"].flatten() for entry in self.ring])
        for _ in range(model.n_epochs):
            parts = []
            for entry in self.ring:
                targets = [th.as_tensor(x, dtype=th.float32) for x in self.targets(entry)]
                values, log_prob, entropy = self.evaluate(entry)
                parts.append([x.flatten() for x in (*targets, values, log_prob, entropy, entry["log_probs"])])
                entry["latest_values"], entry["latest_log_probs"] = values.detach(), log_prob.detach()
            returns, advantages, future, values, log_prob, entropy, behavior = (
                th.cat(x) for x in zip(*parts, strict=True)
            )
            advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
            ratio = (log_prob - behavior).exp()
            divergences = future + model.divergence(log_prob.detach(), behavior)
            if model.policy_loss == "clip_augmented":
                advantages = advantages - coef * divergences
            surrogate = ratio * advantages
            if model.policy_loss == "marwil":
                weights = (advantages / coef).exp()
                surrogate = weights / weights.mean() * log_prob
            elif model.policy_loss != "plain":
                center = (old_log_probs - behavior).exp() if model.clip_center == "old" else th.ones_like(ratio)
                surrogate = th.min(surrogate, (ratio - center).clamp(-0.2, 0.2).add(center) * advantages)
            loss = -surrogate.mean() - model.ent_coef * entropy.mean()
            if model.policy_loss not in ("clip_augmented", "marwil"):
                loss = loss + coef * (ratio * divergences).mean()
            loss = loss + model.vf_coef * (ratio.detach().clamp(max=3) * (returns - values) ** 2).mean()
            self.policy.zero_grad()
            loss.backward()
            with th.no_grad():
                for parameter in self.policy.parameters():
                    if parameter.grad is not None:
                        parameter -= model.learning_rate * parameter.grad


SETTINGS: dict[str, dict[str, Any]] = {
    "default": {},
    "one rollout": {"n_rollouts": 1},
    "plain": {"policy_loss": "plain", "divergence_coef": 1.0},
    "clip_augmented": {"policy_loss": "clip_augmented", "divergence_coef": 0.5},
    "marwil": {"policy_loss": "marwil", "divergence_coef": 0.5},
    "centered on the old policy": {"clip_center": "old"},
    "clip_augmented, centered": {"policy_loss": "clip_augmented", "divergence_coef": 0.5, "clip_center": "old"},
    "lambda in the first step": {"advantage": "vtrace_gae", "gae_lambda": 0.6},
    "exact": {"exact_targets": True},
    "exact, centered": {"exact_targets": True, "clip_center": "old"},
    "exact, plain": {"exact_targets": True, "policy_loss": "plain", "rho_bar": 2.0, "c_bar": 1.5},
    "1-step": {"divergence_steps": 0, "divergence_coef": 1.0},
    "3 steps": {"divergence_steps": 3, "divergence_c_bar": 0.9, "divergence_lambda": 0.5},
    "untruncated": {"rho_bar": INF, "c_bar": INF, "divergence_c_bar": INF},
    "hellinger": {"divergence": "hellinger", "divergence_coef": 2.0},
    # not total variation: its f jumps where the policies agree, and there rounding decides
}


def setting_with_reference(action_space: spaces.Space, settings: dict[str, Any]) -> tuple[DAPO, Reference, Recording]:
    env = make_vec_env(lambda: RandomEnv(FLOATS, action_space, 0.1, 0.1), n_envs=2, seed=0)
    model = DAPO(
        "MlpPolicy",
        env,
        learning_rate=0.3,
        n_steps=20,
        batch_size=120,
        n_epochs=3,
        ent_coef=0.01,
        max_grad_norm=INF,
        seed=0,
        device="cpu",
        policy_kwargs={"net_arch": [8], "optimizer_class": th.optim.SGD},
        **{"n_rollouts": 3, "divergence_coef": 0.3, **settings},
    )
    return model, Reference(model), Recording()


def check_equal_parameters(model: DAPO, reference: Reference) -> None:
    for key, parameter in model.policy.state_dict().items():
        th.testing.assert_close(parameter, reference.policy.state_dict()[key], rtol=1e-3, atol=1e-4)


@pytest.mark.filterwarnings("ignore:The last minibatch of every epoch")
@pytest.mark.parametrize("action_space", [spaces.Discrete(3), spaces.Box(-1, 1, (2,))], ids=["Discrete", "Box"])
@pytest.mark.parametrize("name", SETTINGS)
def test_updates_equal_a_second_implementation(name: str, action_space: spaces.Space) -> None:
    """
    Four updates of three epochs, with rollouts reused: every part of an update (what is kept of the rollouts, where
    episodes end, targets, loss) has a say in the parameters that result.
    """
    model, reference, recording = setting_with_reference(action_space, SETTINGS[name])
    before = {key: x.clone() for key, x in model.policy.state_dict().items()}
    for _ in range(4):
        model.learn(40, callback=recording, reset_num_timesteps=False)
        reference.append(recording.rollouts[-1])
        reference.update()
        check_equal_parameters(model, reference)
    change = max((x - before[key]).abs().max().item() for key, x in model.policy.state_dict().items())
    assert change > 0.1


def test_update_after_the_parameters_were_replaced() -> None:
    """What earlier parameters said of the kept rollouts is not taken for what those that are there now say."""
    model, reference, recording = setting_with_reference(spaces.Discrete(3), {})
    for _ in range(3):
        model.learn(40, callback=recording, reset_num_timesteps=False)
        reference.append(recording.rollouts[-1])
        reference.update()
        replaced = {key: x + 0.5 * th.randn_like(x) for key, x in model.policy.state_dict().items()}
        model.set_parameters({"policy": replaced}, exact_match=False)
        reference.policy.load_state_dict(replaced)
        reference.parameters_replaced = True
    for _ in range(2):
        model.learn(40, callback=recording, reset_num_timesteps=False)
        reference.append(recording.rollouts[-1])
        reference.update()
        reference.parameters_replaced = False
        check_equal_parameters(model, reference)


# --- what is logged -------------------------------------------------------------------------------


def logged(model: DAPO, n_updates: int) -> dict[str, Any]:
    model.learn(n_updates * model.n_steps * model.n_envs)
    return {key.removeprefix("train/"): x for key, x in model.logger.name_to_value.items() if key.startswith("train/")}


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_logs_of_a_policy_that_has_not_moved(algo: type[DAPO], divergence: str) -> None:
    """The policy acted on 2 observations at a time and learns from 128: rounding must not count as divergence."""
    env = make_vec_env("CartPole-v1", n_envs=2, seed=0)
    stats = logged(make_model(algo, "MlpPolicy", env, n_epochs=1, batch_size=128, divergence=divergence), 1)
    assert stats["ratio_mean"] == pytest.approx(1.0)
    for key in ("approx_kl", "behavior_kl", "divergence", "divergence_loss", "clip_fraction", "policy_lag"):
        assert stats[key] == pytest.approx(0.0, abs=1e-6), key


def test_logs_of_a_policy_that_moves(algo: type[DAPO]) -> None:
    model = make_model(
        algo, "MlpPolicy", "CartPole-v1", learning_rate=0.02, n_rollouts=3, n_epochs=4, divergence_coef=0.25
    )
    stats = logged(model, 5)
    assert stats["policy_lag"] == 1  # rollouts of this policy, of the one before it and of that before
    assert stats["behavior_kl"] > stats["approx_kl"] > 0
    assert 0 < stats["clip_fraction"] < 1
    assert 0 < stats["rho_clip_fraction"] < 1
    assert stats["divergence_coef"] == 0.25
    assert stats["n_updates"] == 5 * 4


def test_clip_fraction_around_the_old_policy(algo: type[DAPO]) -> None:
    """An epoch of one minibatch begins where the update begins: within the range around that, whatever the data."""
    fractions = {}
    for center in ("behavior", "old"):
        model = make_model(
            algo, "MlpPolicy", "CartPole-v1", learning_rate=0.02, n_rollouts=4, n_epochs=1, batch_size=256,
            exact_targets=True, clip_range=0.05, clip_center=center,
        )  # fmt: skip
        fractions[center] = logged(model, 5)["clip_fraction"]
    assert fractions["behavior"] > 0
    assert fractions["old"] == 0


@pytest.mark.parametrize("n_rollouts", [1, 2, 4])
def test_policy_lag(n_rollouts: int) -> None:
    model = make_model(DAPO, "MlpPolicy", "CartPole-v1", n_epochs=1, n_rollouts=n_rollouts)
    lags = [logged(model, 1)["policy_lag"] for _ in range(5)]
    assert lags == [np.mean(range(min(i + 1, n_rollouts))) for i in range(5)]


def test_divergence_coef_may_be_scheduled() -> None:
    model = make_model(DAPO, "MlpPolicy", "CartPole-v1", divergence_coef=LinearSchedule(0.8, 0.0, 1.0))
    assert logged(model, 4)["divergence_coef"] == 0.0
    model = make_model(DAPO, "MlpPolicy", "CartPole-v1", divergence_coef=lambda progress: 0.8 * progress)

    class Coefficients(BaseCallback):
        seen: list[float] = []  # noqa: RUF012

        def _on_rollout_start(self) -> None:
            if "train/divergence_coef" in self.logger.name_to_value:
                self.seen.append(self.logger.name_to_value["train/divergence_coef"])

        def _on_step(self) -> bool:
            return True

    model.learn(4 * 64, callback=Coefficients())
    assert Coefficients.seen == pytest.approx([0.6, 0.4, 0.2])


@pytest.mark.parametrize(
    ("actions", "coef"),
    [
        (spaces.Discrete(5), 1),
        (spaces.Box(-1, 1, (4,)), 1 / 4),
        (spaces.Box(-1, 1, (2, 3)), 1 / 6),
        (spaces.MultiDiscrete([3, 2]), 1 / 2),
        (spaces.MultiBinary(8), 1 / 8),
    ],
    ids=str,
)
def test_divergence_coef_auto(actions: spaces.Space[Any], coef: float) -> None:
    def trained(divergence_coef: float | Literal["auto"]) -> DAPO:
        env = RandomEnv(spaces.Box(-1, 1, (3,)), actions)
        return make_model(DAPO, "MlpPolicy", env, divergence_coef=divergence_coef).learn(128)

    model = trained("auto")
    assert model.logger.name_to_value["train/divergence_coef"] == coef
    assert th.equal(flat_parameters(model), flat_parameters(trained(coef)))
    model.divergence_coef = "auto"  # between calls of learn, too
    assert logged(model, 1)["divergence_coef"] == coef
    with pytest.raises(ValueError, match="`divergence_coef` must be a number of at least 0 or 'auto', got 'Auto'"):
        trained("Auto")  # type: ignore[arg-type]


@pytest.mark.parametrize("n_epochs", [1, 3])
def test_a_larger_coefficient_keeps_the_policy_closer(n_epochs: int) -> None:
    settings = {"learning_rate": 0.01, "n_epochs": 4 * n_epochs, "n_rollouts": 2}
    far, near = (
        logged(make_model(DAPO, "MlpPolicy", "CartPole-v1", divergence_coef=coef, **settings), 6)["behavior_kl"]
        for coef in (0.0, 10.0)
    )
    assert near < 0.5 * far


def test_early_stop_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    model = make_model(DAPO, "MlpPolicy", "CartPole-v1", target_kl=1e-5, learning_rate=0.02, n_epochs=10, verbose=1)
    assert logged(model, 2)["n_updates"] < 20
    assert "Early stopping at step" in capsys.readouterr().out


class StopAfterOneMinibatch(DAPO):
    """Remembers the KL from the policy that each update began with, before its first step."""

    kls: list[float]

    def _evaluate(self, samples: Any) -> Any:
        values, log_prob, entropy = super()._evaluate(samples)
        if th.is_grad_enabled():
            self.kls.append((log_prob - samples.old_log_prob).abs().max().item())
        return values, log_prob, entropy


class HalfTheValues(DAPO):
    """Evaluates minibatches in a way of its own."""

    def _evaluate(self, samples: Any) -> Any:
        values, log_prob, entropy = super()._evaluate(samples)
        return values / 2, log_prob, entropy


def test_an_own_evaluation_has_its_gradient() -> None:
    fast, plain = (
        make_model(HalfTheValues, "MlpPolicy", "CartPole-v1", fast=fast).learn(128) for fast in (None, False)
    )
    assert fast._fused is None
    th.testing.assert_close(flat_parameters(fast), flat_parameters(plain), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("settings", [{"target_kl": 1e-9}, {"clip_center": "old"}, {"clip_range_vf": 0.1}], ids=str)
def test_an_update_is_measured_from_the_policy_that_it_begins_with(settings: dict[str, Any]) -> None:
    """Of older rollouts too, whose last visits are several steps of the optimizer old."""
    model = make_model(
        StopAfterOneMinibatch, "MlpPolicy", "CartPole-v1", learning_rate=0.02, n_rollouts=4, batch_size=32, **settings
    )
    for _ in range(6):
        model.kls = []
        model.learn(64, reset_num_timesteps=False)
        assert model.kls[0] < 1e-5
    assert max(model.kls) > 1e-3


def test_coefficient_is_not_negative_after_the_total() -> None:
    """The last rollout may end behind it, where a linear schedule is below 0."""
    model = make_model(
        DAPO, "MlpPolicy", "CartPole-v1", divergence_coef=lambda progress: progress, policy_loss="clip_augmented"
    )
    model.learn(65)
    assert model._current_progress_remaining < 0
    assert model.logger.name_to_value["train/divergence_coef"] == 0


@pytest.mark.parametrize(("n_rollouts", "batch_size", "rest"), [(1, 64, 32), (2, 64, 0), (4, 48, 32), (3, 96, 0)])
def test_warning_of_truncated_minibatches(n_rollouts: int, batch_size: int, rest: int) -> None:
    """All rollouts kept are shuffled together."""

    def make() -> DAPO:
        return DAPO("MlpPolicy", "CartPole-v1", n_steps=32, batch_size=batch_size, n_rollouts=n_rollouts)

    if rest:
        with pytest.warns(UserWarning, match=f"will have {rest} transitions instead of {batch_size}"):
            make()
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            make()


def test_no_warning_where_rollouts_of_several_sources_fill_the_minibatches() -> None:
    env = make_vec_env("CartPole-v1", 2)
    env.n_sources = 4  # type: ignore[attr-defined]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        DAPO("MlpPolicy", env, n_steps=32, batch_size=256)
    with pytest.warns(UserWarning, match=r"n_rollouts \* n_steps \* n_envs \* n_sources = 1 \* 32 \* 2 \* 4 = 256"):
        DAPO("MlpPolicy", env, n_steps=32, batch_size=100)


def test_warning_of_advantages_of_older_policies() -> None:
    with pytest.warns(
        UserWarning, match="n_rollouts=2 the advantages of `advantage='gae'` are those of older policies"
    ):
        make_model(DAPO, "MlpPolicy", "CartPole-v1", n_rollouts=2, advantage="gae")


# --- wrong arguments ------------------------------------------------------------------------------

NAN = float("nan")
WRONG_VALUES: dict[str, list[Any]] = {
    "n_steps": [0, -1, 2.5, "64", None, True],
    "batch_size": [0, 1, -3, 32.0, "32", None],
    "n_epochs": [0, -1, 1.5, None],
    "n_rollouts": [0, -2, 1.5, "4", None],
    "learning_rate": [-1e-3, NAN, "fast", None, LinearSchedule],
    "gamma": [-0.1, 1.1, NAN, "0.9", None],
    "gae_lambda": [-0.1, 1.01, NAN, None],
    "clip_range": [-0.2, NAN, "0.2", None],
    "clip_range_vf": [-0.2, 0, NAN, "0.2"],
    "ent_coef": [-0.1, NAN, "auto", None],
    "vf_coef": [-0.5, NAN, None],
    "max_grad_norm": [-0.5, NAN, "0.5"],
    "target_kl": [-0.1, NAN, "0.1"],
    "normalize_advantage": ["std", None, 2],
    "divergence": ["KL", "", None, 3],
    "divergence_coef": [-0.1, NAN, "lin_0.5", None, AdaptiveController],
    "divergence_steps": [-1, 1.5, "all"],
    "divergence_lambda": [-0.1, 1.1, NAN, "1"],
    "divergence_c_bar": [-0.1, NAN, None],
    "rho_bar": [-1.0, 0.5, 0.0, NAN, None],  # c_bar is 1
    "c_bar": [-1.0, 1.5, NAN, None],  # rho_bar is 1
    "advantage": ["td", None, True],
    "policy_loss": ["ppo", None],
    "exact_targets": ["yes", None, 2],
    "rollout_buffer_class": [RolloutBuffer, dict, "RolloutRing"],
}
WRONG = [pytest.param(name, value, id=f"{name}={value!r}") for name, values in WRONG_VALUES.items() for value in values]


def check_refused(name: str, value: Any, make: Callable[[], Any]) -> None:
    """A ValueError that names the argument, its value and what is allowed."""
    with pytest.raises(ValueError) as error:
        make()
    message = str(error.value)
    assert f"`{name}`" in message
    assert "must be" in message
    assert repr(value) in message or str(value) in message


@pytest.mark.parametrize("name, value", WRONG)
def test_wrong_argument(algo: type[DAPO], name: str, value: Any) -> None:
    check_refused(name, value, lambda: algo("MlpPolicy", "CartPole-v1", device="cpu", **{name: value}))


@pytest.fixture(scope="module")
def saved_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = str(tmp_path_factory.mktemp("dapo") / "model.zip")
    make_model(DAPO, "MlpPolicy", "CartPole-v1").save(path)
    return path


@pytest.mark.parametrize("name, value", WRONG)
def test_wrong_argument_when_loading(saved_model: str, name: str, value: Any) -> None:
    check_refused(name, value, lambda: DAPO.load(saved_model, device="cpu", **{name: value}))


@pytest.mark.parametrize("kwargs", [{"n_rollouts": 5}, {"optimize_memory_usage": True}], ids=str)
def test_arguments_are_not_given_twice(algo: type[DAPO], kwargs: dict[str, Any]) -> None:
    check_refused(
        "rollout_buffer_kwargs", kwargs, lambda: algo("MlpPolicy", "CartPole-v1", rollout_buffer_kwargs=kwargs)
    )


def test_rho_bar_of_zero() -> None:
    """Nothing would be learned; the estimator refuses it, so the algorithm must when it is made."""
    check_refused("rho_bar", 0.0, lambda: DAPO("MlpPolicy", "CartPole-v1", rho_bar=0.0, c_bar=0.0))


def test_temperature_of_zero(algo: type[DAPO]) -> None:
    """MARWIL's loss divides by it; a schedule may end there."""
    make = partial(make_model, algo, "MlpPolicy", "CartPole-v1", policy_loss="marwil")
    check_refused("divergence_coef", 0.0, lambda: make(divergence_coef=0.0))
    model = make_model(algo, "MlpPolicy", "CartPole-v1", divergence_coef=0.0)
    model.policy_loss = "marwil"
    with pytest.raises(ValueError, match="`divergence_coef` must be greater than 0"):
        model.learn(64)
    model = make(divergence_coef=lambda progress: max(progress - 0.5, 0.0))
    model.learn(4 * 64)
    assert model.divergence_coef(model._current_progress_remaining) == 0.0  # type: ignore[operator]
    assert all(th.isfinite(x).all() for x in model.policy.parameters())


@pytest.mark.parametrize("name", ["divergence_coef", "clip_range", "clip_range_vf", "learning_rate"])
@pytest.mark.parametrize("value", [-0.5, NAN])
def test_schedule_with_wrong_value(algo: type[DAPO], name: str, value: float) -> None:
    """A schedule is checked where it is asked: when it gives a value that would be refused as a number."""

    def make() -> None:
        model = make_model(
            algo, "MlpPolicy", "CartPole-v1", **{name: lambda progress: 0.1 if progress > 0.5 else value}
        )
        model.learn(4 * 64)

    check_refused(name, value, make)


@pytest.mark.parametrize(
    "divergence", [name for name, divergence in DIVERGENCES.items() if divergence.needs_probabilities] + [Tsallis(3.0)]
)
def test_divergence_unsound_for_the_action_space(algo: type[DAPO], divergence: Any, tmp_path) -> None:
    check_message = r"`divergence` Tsallis.*Box.*use one of \[.*'kl'"
    with pytest.raises(ValueError, match=check_message):
        make_model(algo, "MlpPolicy", "Pendulum-v1", divergence=divergence)
    make_model(algo, "MlpPolicy", "Pendulum-v1").save(tmp_path / "model")
    with pytest.raises(ValueError, match=check_message):
        algo.load(tmp_path / "model", divergence=divergence)
    make_model(algo, "MlpPolicy", "CartPole-v1", divergence=divergence).learn(64)


def test_own_divergence(algo: type[DAPO], tmp_path) -> None:
    model = make_model(algo, "MlpPolicy", "Pendulum-v1", divergence=HalfKL(), divergence_coef=1.0)
    model.learn(128)
    model.save(tmp_path / "model")
    assert isinstance(algo.load(tmp_path / "model").divergence, HalfKL)
    kl = make_model(algo, "MlpPolicy", "Pendulum-v1", divergence="kl", divergence_coef=0.5)
    kl.learn(128)
    for name, parameter in model.policy.state_dict().items():
        th.testing.assert_close(parameter, kl.policy.state_dict()[name])


class HalfKL(Divergence):
    def __call__(self, log_prob: th.Tensor, behavior_log_prob: th.Tensor) -> th.Tensor:
        return 0.5 * (log_prob - behavior_log_prob)


@pytest.mark.parametrize("env", [3, RandomEnv, ["CartPole-v1"]], ids=str)
def test_wrong_env(algo: type[DAPO], env: Any, saved_model: str) -> None:
    with pytest.raises(ValueError, match="`env` must be") as error:
        algo("MlpPolicy", env)
    assert repr(env) in str(error.value)
    with pytest.raises(ValueError, match="env"):
        DAPO.load(saved_model, env=env)
    with pytest.raises(ValueError, match="env"):
        make_model(algo, "MlpPolicy", "CartPole-v1").set_env(env)


@pytest.mark.parametrize("space", [spaces.Tuple([spaces.Discrete(2)]), spaces.Dict({"a": spaces.Discrete(2)})], ids=str)
def test_unsupported_action_space(algo: type[DAPO], space: spaces.Space) -> None:
    with pytest.raises(ValueError, match="action space"):
        algo("MlpPolicy", RandomEnv(FLOATS, space))


@pytest.mark.parametrize("policy", ["MlpLstmPolicyy", "", 3])
def test_unknown_policy(algo: type[DAPO], policy: Any) -> None:
    with pytest.raises(ValueError, match=r"[Pp]olicy"):
        algo(policy, "CartPole-v1")


def test_too_small_a_rollout(algo: type[DAPO], tmp_path) -> None:
    """One transition can't be normalized; without normalization it may be alone."""
    message = r"`n_steps \* n_envs` must be at least 2.*n_steps=1 \* n_envs=1"
    with pytest.raises(ValueError, match=message):
        algo("MlpPolicy", "CartPole-v1", n_steps=1)
    make_model(algo, "MlpPolicy", make_vec_env("CartPole-v1", n_envs=2), n_steps=1, batch_size=2).save(
        tmp_path / "model"
    )
    with pytest.raises(ValueError, match=message):
        algo.load(tmp_path / "model", env=make_vec_env("CartPole-v1", n_envs=1))
    algo("MlpPolicy", "CartPole-v1", n_steps=1, batch_size=1, n_epochs=2, normalize_advantage=False).learn(5)


def test_gsde_needs_continuous_actions(algo: type[DAPO]) -> None:
    with pytest.raises(ValueError, match="only be used with continuous actions"):
        algo("MlpPolicy", "CartPole-v1", use_sde=True)


def test_rho_bar_below_c_bar_is_fine_with_gae(algo: type[DAPO]) -> None:
    """There is no V-trace then."""
    make_model(algo, "MlpPolicy", "CartPole-v1", advantage="gae", rho_bar=0.5, c_bar=1.0).learn(64)


AT_THE_LIMITS: dict[str, dict[str, Any]] = {
    "NumPy's numbers": {"n_steps": np.int64(32), "batch_size": np.int32(16), "gamma": np.float32(0.5)},
    "NumPy's numbers for schedules": {
        **{name: np.float32(0.1) for name in ("learning_rate", "clip_range", "clip_range_vf")},
        "divergence_coef": np.int64(1),
    },
    # the last update is at the end of the schedule
    "schedules that reach 0": {
        **dict.fromkeys(("learning_rate", "clip_range", "clip_range_vf"), LinearSchedule(0.2, 0.0, 1.0)),
        "divergence_coef": LinearSchedule(1.0, 0.0, 0.5),
    },
    "no truncation": {"rho_bar": INF, "c_bar": INF, "divergence_c_bar": INF},
    "no traces": {"c_bar": 0.0, "divergence_c_bar": 0.0, "divergence_lambda": 0, "gae_lambda": 0, "gamma": 1},
    "no losses": {"max_grad_norm": INF, "ent_coef": 0, "vf_coef": 0, "target_kl": 0.5},
    "objects": {"divergence_coef": AdaptiveController(), "divergence": Tsallis(1.5)},
    "no divergence": {"divergence_coef": 0, "divergence_steps": 1000, "clip_range": 0.0},
    "functions": {"normalize_advantage": "rms", "clip_range_vf": lambda progress: 0.1 + progress},
    "minibatches of one": {"normalize_advantage": False, "batch_size": 1, "n_steps": 8},
}


@pytest.mark.parametrize("name", AT_THE_LIMITS)
def test_arguments_at_the_limits_of_what_is_allowed(algo: type[DAPO], name: str) -> None:
    model = make_model(algo, "MlpPolicy", gym.make("CartPole-v1"), **AT_THE_LIMITS[name])
    model.learn(128)
    assert all(parameter.isfinite().all() for parameter in model.policy.parameters())
