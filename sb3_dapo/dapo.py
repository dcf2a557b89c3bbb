"""Divergence-Augmented Policy Optimization."""

import warnings
from collections.abc import Callable
from contextlib import nullcontext
from copy import deepcopy
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

import gymnasium as gym
import numpy as np
import torch as th
from stable_baselines3 import PPO
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, Schedule
from stable_baselines3.common.utils import FloatSchedule, obs_as_tensor
from stable_baselines3.common.vec_env import VecEnv
from torch.nn import functional as F

from sb3_dapo.arguments import SCHEDULED, check, check_arguments, check_int, check_number, warn_of_settings
from sb3_dapo.buffers import RolloutRing, RolloutRingSamples, StepRecorder
from sb3_dapo.checkpoint import Resumption, RolloutStart, collecting, load_checkpoint, save_checkpoint
from sb3_dapo.controllers import Controller
from sb3_dapo.divergences import Divergence, get_divergence
from sb3_dapo.estimators import MAX_LOG_RATIO, importance_ratios
from sb3_dapo.faults import NonFiniteError
from sb3_dapo.hub import HubModel
from sb3_dapo.overlap import check_overlap, overlapping
from sb3_dapo.policies import CnnPolicy, MlpPolicy, MultiInputPolicy, set_fast

SelfDAPO = TypeVar("SelfDAPO", bound="DAPO")

# Truncation of the importance ratios that weight the value loss
MAX_VALUE_WEIGHT = 3.0

# Logged as "train/...", in the order of DAPO._summarize
LOGGED_MEANS = (
    "loss",
    "policy_gradient_loss",
    "value_loss",
    "entropy_loss",
    "divergence_loss",
    "divergence",
    "approx_kl",
    "behavior_kl",
    "clip_fraction",
    "ratio_mean",
    "rho_clip_fraction",
)


class DAPO(HubModel, PPO):
    """
    Divergence-Augmented Policy Optimization (DAPO).

    PPO with two additions: the loss holds a multi-step estimate of the Bregman divergence between the state-action
    distributions of the policy being trained and of the policies that acted, and values and advantages are
    V-trace's, so that the last ``n_rollouts`` rollouts can be reused and not only the newest one.

    Paper: https://arxiv.org/abs/2501.15034 (Wang, Li, Xiong and Zhang, NeurIPS 2019)

    Every parameter of SB3's PPO has its name, its meaning and its default. With ``divergence_coef=0``,
    ``n_rollouts=1`` and ``advantage="gae"`` this is PPO, bit for bit.

    :param policy: The policy model to use (MlpPolicy, CnnPolicy, MultiInputPolicy, or a class)
    :param env: The environment to learn from (if registered in Gym, can be str)
    :param learning_rate: The learning rate, it can be a function of the current progress remaining (from 1 to 0)
    :param n_steps: The number of steps to run for each environment per update; a rollout has ``n_steps * n_envs``
        transitions
    :param batch_size: Minibatch size
    :param n_epochs: Number of passes over the kept rollouts per update. A transition is used
        ``n_epochs * n_rollouts`` times before it is dropped
    :param gamma: Discount factor
    :param gae_lambda: lambda of the V-trace targets, or of GAE
    :param clip_range: Clipping parameter of the policy loss, it can be a function of the current progress remaining
    :param clip_range_vf: Clipping parameter of the value function, likewise; ``None`` for no clipping. It depends on
        the scale of the rewards. With ``n_rollouts`` > 1 it costs a forward pass per update, as do ``target_kl`` and
        ``clip_center="old"``: what they measure from is asked of the policy that the update begins with
    :param normalize_advantage: ``True``: subtract the minibatch's mean and divide by its standard deviation;
        ``"rms"``: divide by the root mean square and keep the mean, as in the paper; ``False``: neither
    :param ent_coef: Entropy coefficient of the loss
    :param vf_coef: Value function coefficient of the loss
    :param max_grad_norm: The maximum norm of the gradient
    :param use_sde: Whether to use generalized State Dependent Exploration (gSDE)
    :param sde_sample_freq: Sample a new noise matrix every n steps when using gSDE, -1: only at the beginning of a
        rollout
    :param rollout_buffer_class: :class:`~sb3_dapo.buffers.RolloutRing` (the default) or a subclass of it
    :param rollout_buffer_kwargs: Keyword arguments to pass to the rollout buffer on creation, besides those that are
        arguments here
    :param target_kl: Stop an update when the KL divergence from the policy that it began with exceeds 1.5 times this;
        ``None`` for no limit
    :param stats_window_size: Number of episodes that the rollout statistics average over
    :param tensorboard_log: the log location for tensorboard (if None, no logging)
    :param policy_kwargs: additional arguments to be passed to the policy on creation
    :param verbose: 0 for no output, 1 for info messages, 2 for debug messages
    :param seed: Seed for the pseudo random generators
    :param device: Device (cpu, cuda, ...) on which the code should be run
    :param _init_setup_model: Whether or not to build the network at the creation of the instance
    :param divergence: divergence between the policy being trained and those that acted: a name in
        :data:`~sb3_dapo.divergences.DIVERGENCES` or a :class:`~sb3_dapo.divergences.Divergence`
    :param divergence_coef: 1/eta of eq. 7, weight of the divergence: a number, a function of the current progress
        remaining, or a :class:`~sb3_dapo.controllers.Controller` that adapts it (the model has a copy of its own)
    :param divergence_steps: steps after a transition whose divergence counts for it: ``None`` for the rest of the
        trajectory, 0 for the 1-step variant
    :param divergence_lambda: lambda of the divergence's traces; ``None`` for ``gae_lambda``
    :param divergence_c_bar: truncation of the importance ratios in the divergence's traces (c_bar_D)
    :param rho_bar: V-trace's truncation of the importance ratios in the temporal differences
    :param c_bar: V-trace's truncation of the importance ratios in the traces, at most ``rho_bar``
    :param n_rollouts: K, rollouts kept for reuse
    :param advantage: ``"vtrace"``: those of the paper; ``"vtrace_gae"``: with lambda in the first step too, so that
        they are GAE's where the policy is the one that acted; ``"gae"``: fixed at collection, as in PPO
    :param policy_loss: ``"clip"``: PPO's clipped surrogate with the divergence added (PPO+DA); ``"plain"``: eq. 7;
        ``"clip_augmented"``: clip the surrogate of the augmented advantage ``A - D/eta`` as a whole
    :param clip_center: the importance ratio that the clipped surrogate's range lies around: ``"behavior"``: 1, the
        policy that acted; ``"old"``: the ratio that the update began with, so that each update may move the policy as
        far for old data as for new (GePPO, Queeney et al. 2021, https://arxiv.org/abs/2111.00072). The same for the
        newest rollout
    :param exact_targets: compute the targets of each epoch from a forward pass over the kept rollouts, instead of the
        values and log-probs known from each transition's last visit. Costs a forward pass per epoch
    :param nonfinite: what to do with a minibatch whose loss or gradient is NaN or infinite: ``"raise"`` a
        :class:`~sb3_dapo.faults.NonFiniteError`, or ``"skip"`` it and count it in ``train/skipped_minibatches``.
        Observations, values and log-probs that are not finite always raise, as nothing could act on them
    :param optimize_memory_usage: keep each frame of stacked images once, instead of as often as it is stacked
    :param fast: compute the Nature CNN and Adam in faster forms, equal within float tolerance. ``None``: unless the
        settings are PPO's special case, which is equal bit for bit only in SB3's own forms
    :param autocast: compute the Nature CNN in bfloat16. Pays on devices with units for it; slower on most CPUs
    :param overlap: act for one half of the environments while the other half is emulated. Needs an
        :class:`~sb3_dapo.atari_vec_env.AtariVecEnv`; pays where cores are idle while the policy acts. Samples actions
        in another order, from the same policy
    :param compile: compile the policy with ``torch.compile``, with CUDA graphs on GPUs. Takes a minute or two at the
        beginning of training. A policy that cannot be compiled is used as it is, with a warning
    :raises ValueError: if an argument is out of its range, or unsound for the environment's action space
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpPolicy": MlpPolicy,
        "CnnPolicy": CnnPolicy,
        "MultiInputPolicy": MultiInputPolicy,
    }
    rollout_buffer: RolloutRing
    divergence: Divergence
    normalize_advantage: bool | Literal["rms"]  # type: ignore[assignment]
    _rollout_start: RolloutStart | None = None
    _resumption: Resumption | None = None
    _parameters_replaced = False  # since the last update, by others than the optimizer

    def __init__(
        self,
        policy: str | type[ActorCriticPolicy],
        env: GymEnv | str,
        learning_rate: float | Schedule = 3e-4,
        n_steps: int = 2048,
        batch_size: int = 64,
        n_epochs: int = 10,
        gamma: float = 0.99,
        gae_lambda: float = 0.95,
        clip_range: float | Schedule = 0.2,
        clip_range_vf: float | Schedule | None = None,
        normalize_advantage: bool | Literal["rms"] = True,
        ent_coef: float = 0.0,
        vf_coef: float = 0.5,
        max_grad_norm: float = 0.5,
        use_sde: bool = False,
        sde_sample_freq: int = -1,
        rollout_buffer_class: type[RolloutBuffer] | None = None,
        rollout_buffer_kwargs: dict[str, Any] | None = None,
        target_kl: float | None = None,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: th.device | str = "auto",
        _init_setup_model: bool = True,
        *,
        divergence: str | Divergence = "kl",
        divergence_coef: float | Schedule | Controller = 0.1,
        divergence_steps: int | None = None,
        divergence_lambda: float | None = None,
        divergence_c_bar: float = 1.0,
        rho_bar: float = 1.0,
        c_bar: float = 1.0,
        n_rollouts: int = 1,
        advantage: Literal["vtrace", "vtrace_gae", "gae"] = "vtrace",
        policy_loss: Literal["clip", "plain", "clip_augmented"] = "clip",
        clip_center: Literal["behavior", "old"] = "behavior",
        exact_targets: bool = False,
        nonfinite: Literal["raise", "skip"] = "raise",
        optimize_memory_usage: bool = False,
        fast: bool | None = None,
        autocast: bool = False,
        overlap: bool = False,
        compile: bool = False,
    ) -> None:
        is_env = isinstance(env, str | gym.Env | VecEnv) or (env is None and not _init_setup_model)
        check("env", env, is_env, "an id, a gymnasium.Env or a VecEnv")
        check("policy", policy, isinstance(policy, str | type), "the name of a policy or a class")
        for name, value in (("n_steps", n_steps), ("batch_size", batch_size), ("n_rollouts", n_rollouts)):
            check_int(name, value, 1)
        for name in ("n_rollouts", "optimize_memory_usage"):
            is_once = name not in (rollout_buffer_kwargs or {})
            check("rollout_buffer_kwargs", rollout_buffer_kwargs, is_once, f"without {name!r}, an argument of DAPO")
        try:
            super().__init__(
                policy,
                env,
                learning_rate=learning_rate,
                n_steps=n_steps,
                batch_size=1,  # PPO would warn if it were no factor of one rollout, though K of them are shuffled
                n_epochs=n_epochs,
                gamma=gamma,
                gae_lambda=gae_lambda,
                clip_range=clip_range,
                clip_range_vf=clip_range_vf,
                normalize_advantage=False,  # PPO would assert on the batch size, which check_arguments looks at
                ent_coef=ent_coef,
                vf_coef=vf_coef,
                max_grad_norm=max_grad_norm,
                use_sde=use_sde,
                sde_sample_freq=sde_sample_freq,
                rollout_buffer_class=rollout_buffer_class,
                rollout_buffer_kwargs=rollout_buffer_kwargs,
                target_kl=target_kl,
                stats_window_size=stats_window_size,
                tensorboard_log=tensorboard_log,
                policy_kwargs=policy_kwargs,
                verbose=verbose,
                seed=seed,
                device=device,
                _init_setup_model=False,
            )
        except AssertionError as error:  # SB3's way to refuse an action space
            raise ValueError(str(error)) from error
        self.batch_size = batch_size
        self.normalize_advantage = normalize_advantage
        self.divergence = divergence  # type: ignore[assignment]
        self.divergence_coef = divergence_coef
        self.divergence_steps = divergence_steps
        self.divergence_lambda = divergence_lambda
        self.divergence_c_bar = divergence_c_bar
        self.rho_bar = rho_bar
        self.c_bar = c_bar
        self.n_rollouts = n_rollouts
        self.advantage = advantage
        self.policy_loss = policy_loss
        self.clip_center = clip_center
        self.exact_targets = exact_targets
        self.nonfinite = nonfinite
        self.optimize_memory_usage = optimize_memory_usage
        self.fast = fast
        self.autocast = autocast
        self.overlap = overlap
        self.compile = compile
        self._policy_version = 0  # updates that the policy has seen

        if _init_setup_model:
            self._setup_model()
        if self.env is not None:
            warn_of_settings(self)

    def _setup_model(self) -> None:
        # Here and not in __init__, as load() sets the attributes after __init__
        check_arguments(self)
        self.divergence = get_divergence(self.divergence)
        self.divergence.check_action_space(self.action_space)
        for name in SCHEDULED:
            if isinstance(getattr(self, name), np.number):  # which SB3's schedules do not know
                setattr(self, name, float(getattr(self, name)))
        if self.rollout_buffer_class is None:
            self.rollout_buffer_class = RolloutRing
        self.rollout_buffer_kwargs = {
            **self.rollout_buffer_kwargs,
            "n_rollouts": self.n_rollouts,
            "optimize_memory_usage": self.optimize_memory_usage,
        }
        try:
            super()._setup_model()
        except AssertionError as error:
            raise ValueError(str(error)) from error
        if isinstance(self.divergence_coef, Controller):
            self.divergence_coef = deepcopy(self.divergence_coef)  # it adapts to one model
        else:
            self.divergence_coef = FloatSchedule(self.divergence_coef)
        if isinstance(self.policy, CnnPolicy):
            self.policy.autocast = self.autocast
        if self.overlap:
            check_overlap(self.env, self.use_sde)
        self._tried_to_compile = False
        self._compiled_evaluate: Callable[..., tuple[th.Tensor, th.Tensor, th.Tensor | None]] | None = None

    def collect_rollouts(
        self, env: VecEnv, callback: BaseCallback, rollout_buffer: RolloutBuffer, n_rollout_steps: int
    ) -> bool:
        assert isinstance(rollout_buffer, RolloutRing)
        rollout_buffer.allow_nonfinite_rewards = self.nonfinite == "skip"
        rollout_buffer.acting_version = self._policy_version
        stepping = (
            overlapping(self, env, rollout_buffer) if self.overlap else nullcontext(StepRecorder(env, rollout_buffer))
        )
        if self.compile and not self._tried_to_compile:
            self._tried_to_compile = True
            self._compile()
        try:
            with collecting(self, callback), stepping as recorder:
                return super().collect_rollouts(recorder, callback, rollout_buffer, n_rollout_steps)
        except (ValueError, RuntimeError):
            # Distributions refuse what a policy makes of NaN (sampling does where their checks are off, which
            # compiling a model does for all of the process): say where it came from
            rollout_buffer.check_observations(self._last_obs)
            raise

    def _compile(self) -> None:
        """Compile the policy for acting and for learning, or warn and leave it as it is."""
        # The checks of torch's distributions look at values, which would cut the compiled graph
        th.distributions.Distribution.set_default_validate_args(False)
        mode = "reduce-overhead" if self.device.type == "cuda" else "default"
        observations = obs_as_tensor(self._last_obs, self.device)  # type: ignore[arg-type]
        try:
            with th.random.fork_rng():  # the trial must not change what the policy will sample
                self.policy.compile(mode=mode)
                with th.no_grad():
                    actions = self.policy(observations)[0]
                compiled = th.compile(self.policy.evaluate_actions, mode=mode)
                compiled(observations, actions)
            self._compiled_evaluate = compiled
        except Exception as error:
            self.policy._compiled_call_impl = None  # undoes Module.compile
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            warnings.warn(f"The policy is not compiled, as torch.compile failed: {reason}", stacklevel=2)

    def train(self) -> None:
        """Update the policy from the kept rollouts."""
        # Switch to train mode (this affects batch norm / dropout)
        self.policy.set_training_mode(True)
        set_fast(self.policy, self._is_fast())
        self._scheduled("lr_schedule", "learning_rate")
        self._update_learning_rate(self.policy.optimizer)
        clip_range = self._scheduled("clip_range")
        clip_range_vf = None if self.clip_range_vf is None else self._scheduled("clip_range_vf")
        divergence_coef = max(self._scheduled("divergence_coef"), 0.0)

        parameters = list(self.policy.parameters())
        epoch_stats, all_taken = [], []
        continue_training = True
        for epoch in range(self.n_epochs):
            self._update_targets(exact=self.exact_targets or (epoch == 0 and self._must_begin_exactly()))
            if epoch == 0:
                self._parameters_replaced = False
                self.rollout_buffer.begin_update()  # here, as exact targets have asked the policy for all values
            all_stats = []
            for samples in self.rollout_buffer.get(self.batch_size):
                evaluate = self._compiled_evaluate or self.policy.evaluate_actions
                values, log_prob, entropy = evaluate(samples.observations, samples.actions)
                values = values.flatten()
                loss, stats = self._loss(samples, values, log_prob, entropy, clip_range, clip_range_vf, divergence_coef)
                all_stats.append(stats)

                if self.target_kl is not None:
                    approx_kl = _kl_terms(stats["update_log_ratio"]).mean().item()
                    if approx_kl > 1.5 * self.target_kl:
                        continue_training = False
                        if self.verbose >= 1:
                            print(f"Early stopping at step {epoch} due to reaching max kl: {approx_kl:.2f}")
                        break

                is_taken = self._optimize(loss, parameters, samples)
                self.rollout_buffer.record_visit(samples.indices, values, log_prob, is_taken)
                all_taken.append(is_taken)

            epoch_stats.append(self._summarize(all_stats, clip_range))
            self._n_updates += 1
            if not continue_training:
                break
        self._policy_version += 1

        # The only transfer from the device
        means = th.stack(epoch_stats).nanmean(dim=0)
        n_taken = th.stack(all_taken).sum() if all_taken else means.new_zeros(())
        *logged_means, n_taken = th.cat([means, n_taken.reshape(1)]).tolist()
        n_skipped = len(all_taken) - n_taken
        if n_skipped > 0 and self.nonfinite == "raise":
            raise NonFiniteError("the loss or gradient of a minibatch is not finite")
        logged = dict(zip(LOGGED_MEANS, logged_means, strict=True))
        if isinstance(self.divergence_coef, Controller) and np.isfinite(logged["behavior_kl"]):
            self.divergence_coef.update(logged["behavior_kl"])

        for name, value in logged.items():
            self.logger.record(f"train/{name}", value)
        if self.nonfinite == "skip":
            self.logger.record("train/skipped_minibatches", n_skipped)
        self.logger.record("train/explained_variance", self.rollout_buffer.explained_variance())
        self.logger.record("train/policy_lag", np.mean(self.rollout_buffer.ages(self._policy_version - 1)))
        if hasattr(self.policy, "log_std"):
            self.logger.record("train/std", th.exp(self.policy.log_std).mean().item())
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        self.logger.record("train/clip_range", clip_range)
        if clip_range_vf is not None:
            self.logger.record("train/clip_range_vf", clip_range_vf)
        self.logger.record("train/divergence_coef", divergence_coef)

    def _loss(
        self,
        samples: RolloutRingSamples,
        values: th.Tensor,
        log_prob: th.Tensor,
        entropy: th.Tensor | None,
        clip_range: float,
        clip_range_vf: float | None,
        divergence_coef: float,
    ) -> tuple[th.Tensor, dict[str, th.Tensor]]:
        """
        The loss of a minibatch: policy (eq. 7, divided by eta), entropy and value.

        :param samples: the minibatch, all of shape ``(B,)``
        :param values: V(s) of the policy being trained, shape ``(B,)``
        :param log_prob: log pi(a|s), shape ``(B,)``
        :param entropy: entropy of pi(.|s), shape ``(B,)``, or None if it has no closed form
        :param clip_range: clipping parameter of the policy loss
        :param clip_range_vf: clipping parameter of the value function
        :param divergence_coef: 1/eta
        :return: the loss, and what to log, all scalars on the device
        """
        advantages = self._normalize(samples.advantages)
        ratio = importance_ratios(log_prob, samples.behavior_log_prob)

        # D is a constant for the gradient; its first term is that of the policy as it is now
        f = self.divergence(log_prob.detach(), samples.behavior_log_prob)
        divergences = f + samples.future_divergence
        divergence_loss = th.mean(ratio * divergences)

        if self.policy_loss == "clip_augmented":
            advantages = advantages - divergence_coef * divergences
        policy_loss = -th.mean(advantages * ratio)
        if self.policy_loss != "plain":
            clipped_ratio = th.clamp(ratio, 1 - clip_range, 1 + clip_range)
            if self.clip_center == "old":
                center = importance_ratios(samples.old_log_prob, samples.behavior_log_prob)
                clipped_ratio = th.clamp(ratio, center - clip_range, center + clip_range)
            policy_loss = -th.min(advantages * ratio, advantages * clipped_ratio).mean()

        if clip_range_vf is not None:
            # Clip the difference between old and new value
            values = samples.old_values + th.clamp(values - samples.old_values, -clip_range_vf, clip_range_vf)
        if self.advantage != "gae":
            weights = ratio.detach().clamp(max=MAX_VALUE_WEIGHT)
            value_loss = th.mean(weights * (samples.returns - values) ** 2)
        else:
            value_loss = F.mse_loss(samples.returns, values)

        # Approximate entropy when there is no analytical form
        entropy_loss = -th.mean(-log_prob if entropy is None else entropy)

        loss = policy_loss + self.ent_coef * entropy_loss + self.vf_coef * value_loss
        if self.policy_loss != "clip_augmented" and divergence_coef > 0:
            loss = loss + divergence_coef * divergence_loss

        stats = {
            "loss": loss,
            "policy_loss": policy_loss,
            "value_loss": value_loss,
            "entropy_loss": entropy_loss,
            "divergence_loss": divergence_loss,
            "divergences": divergences,
            "behavior_log_ratio": log_prob - samples.behavior_log_prob,
            "update_log_ratio": log_prob - samples.old_log_prob,
        }
        return loss, {name: value.detach() for name, value in stats.items()}

    def _optimize(self, loss: th.Tensor, parameters: list[th.nn.Parameter], samples: RolloutRingSamples) -> th.Tensor:
        """
        Take an optimizer step, unless the loss or the gradient is not finite.

        :param loss: of a minibatch
        :param parameters: of the policy
        :param samples: the minibatch, for the message
        :return: whether the step was taken, a bool on the device
        :raises NonFiniteError: if it was not and ``nonfinite`` is "raise"; from other devices than the CPU this is
            left to the end of the update, as each look at the result would wait for the device
        """
        optimizer = self.policy.optimizer
        optimizer.zero_grad()
        loss.backward()
        grad_norm = th.nn.utils.clip_grad_norm_(parameters, self.max_grad_norm)
        is_finite = th.isfinite(loss.detach() + grad_norm)
        if self.device.type != "cpu" and optimizer.param_groups[0].get("fused"):
            # The fused step reads this on the device, as it does for gradient scaling
            optimizer.found_inf = (~is_finite).float()  # type: ignore[attr-defined]
            optimizer.step()
            del optimizer.found_inf  # type: ignore[attr-defined] # Adam's other forms refuse it
        elif is_finite:
            optimizer.step()
        elif self.nonfinite == "raise":
            raise NonFiniteError(
                f"loss or gradient is not finite (loss {loss.item()}, gradient norm {grad_norm.item()})"
                f"{self.rollout_buffer.describe_nonfinite(samples.indices)}"
            )
        return is_finite

    def _scheduled(self, schedule: str, name: str | None = None) -> float:
        """
        :param schedule: attribute that holds a schedule
        :param name: of the argument, if it is another
        :return: the schedule's value now
        :raises ValueError: if it is no number of at least 0
        """
        value: float = getattr(self, schedule)(self._current_progress_remaining)
        # The last rollout may end behind the total: then a linear schedule is a little below 0, in PPO too
        if self._current_progress_remaining >= 0:
            check_number(name or schedule, value, 0)
        return value

    def _must_begin_exactly(self) -> bool:
        """
        :return: whether an update has to begin with a forward pass over the kept rollouts, because it measures from the
            policy that it begins with, or because that is another than the one that was trained last
        """
        measures = self.target_kl is not None or self.clip_range_vf is not None or self.clip_center == "old"
        # A single rollout has just been collected by this very policy
        return self.rollout_buffer.n_kept > 1 and (measures or self._parameters_replaced)

    def _is_fast(self) -> bool:
        if self.fast is not None:
            return self.fast
        coef = self.divergence_coef
        has_divergence = isinstance(coef, Controller) or coef(self._current_progress_remaining) > 0  # type: ignore[operator]
        return has_divergence or self.n_rollouts > 1 or self.advantage != "gae"

    def _summarize(self, all_stats: list[dict[str, th.Tensor]], clip_range: float) -> th.Tensor:
        """
        :param all_stats: what :meth:`_loss` gave for the minibatches of an epoch
        :param clip_range: clipping parameter of the policy loss
        :return: the means of ``LOGGED_MEANS``, on the device
        """
        # All at once: on small networks a dozen tiny operations per minibatch would be felt
        stats = {name: th.cat([stats[name].reshape(-1) for stats in all_stats]) for name in all_stats[0]}
        behavior_log_ratio = stats["behavior_log_ratio"]
        ratio = th.exp(behavior_log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO))
        # ratio / center = pi / pi_old
        center = ratio * th.exp(-stats["update_log_ratio"]) if self.clip_center == "old" else 1.0
        values = (
            stats["loss"],
            stats["policy_loss"],
            stats["value_loss"],
            stats["entropy_loss"],
            stats["divergence_loss"],
            stats["divergences"],
            _kl_terms(stats["update_log_ratio"]),
            _kl_terms(behavior_log_ratio),
            ((ratio - center).abs() > clip_range).float(),
            ratio,
            (ratio > self.rho_bar).float(),
        )
        return th.stack([value.mean() for value in values])

    def _normalize(self, advantages: th.Tensor) -> th.Tensor:
        # A minibatch of one has no standard deviation
        if not self.normalize_advantage or len(advantages) == 1:
            return advantages
        if self.normalize_advantage == "rms":
            return advantages / (advantages.square().mean().sqrt() + 1e-8)
        return (advantages - advantages.mean()) / (advantages.std() + 1e-8)

    @th.no_grad()
    def _update_targets(self, exact: bool) -> None:
        """
        Compute the targets of an epoch.

        :param exact: from a forward pass over the kept rollouts, not from what their last visits said
        """
        buffer = self.rollout_buffer
        # As at collection: targets without dropout, and no effect on batch normalization
        self.policy.set_training_mode(False)
        if exact:
            for samples in buffer.get(self.batch_size, shuffle=False):
                values, log_prob, _ = self.policy.evaluate_actions(samples.observations, samples.actions)
                buffer.record_visit(samples.indices, values.flatten(), log_prob)
        bootstrap_values = None
        if self.advantage != "gae":
            bootstrap_values = th.cat(
                [self.policy.predict_values(obs).flatten() for obs in buffer.bootstrap_batches(self.batch_size)]
            )
        buffer.update_targets(
            self.divergence,
            bootstrap_values,
            advantage_lam=self.gae_lambda if self.advantage == "vtrace_gae" else 1.0,
            rho_bar=self.rho_bar,
            c_bar=self.c_bar,
            divergence_lambda=self.gae_lambda if self.divergence_lambda is None else self.divergence_lambda,
            divergence_c_bar=self.divergence_c_bar,
            divergence_steps=self.divergence_steps,
        )
        self.policy.set_training_mode(True)

    def set_env(self, env: GymEnv, force_reset: bool = True) -> None:
        if self.overlap:
            check_overlap(env, self.use_sde)
        super().set_env(env, force_reset)
        if hasattr(self, "rollout_buffer"):  # not before _setup_model
            # What another environment answered is not reused
            self.rollout_buffer.clear()

    def set_parameters(
        self,
        load_path_or_dict: str | dict[str, th.Tensor],
        exact_match: bool = True,
        device: th.device | str = "auto",
    ) -> None:
        super().set_parameters(load_path_or_dict, exact_match, device)
        # What the ring knows is what the parameters before said. It is empty while a model is loaded
        if self.rollout_buffer.n_kept > 0:
            self._parameters_replaced = True

    def save_checkpoint(self, path: str | Path, reset_envs: bool = False) -> None:
        """
        Write all that training needs to go on exactly: see :func:`~sb3_dapo.checkpoint.save_checkpoint`.

        :param path: the file, with or without ``.zip``; ``load`` reads it too
        :param reset_envs: start new episodes in all environments, here and on resume
        :raises ValueError: if called in the middle of a rollout
        """
        save_checkpoint(self, path, reset_envs)

    @classmethod
    def load_checkpoint(
        cls: type[SelfDAPO],
        path: str | Path,
        env: GymEnv,
        device: th.device | str = "auto",
        custom_objects: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> SelfDAPO:
        """
        Load a checkpoint to go on training with ``learn(..., reset_num_timesteps=False)``, or with
        :func:`~sb3_dapo.checkpoint.learn_until`: see :func:`~sb3_dapo.checkpoint.load_checkpoint`.

        :param path: the file, with or without ``.zip``
        :param env: new environments, made like those of the run
        :param device: PyTorch device
        :param custom_objects: as in ``load``
        :param kwargs: attributes to change, as in ``load``
        :return: the model
        :raises ValueError: if the file is damaged, is no checkpoint, or does not fit ``env``
        """
        return load_checkpoint(cls, path, env, device, custom_objects, **kwargs)

    def _excluded_save_params(self) -> list[str]:
        return [
            *super()._excluded_save_params(),
            "_rollout_start",
            "_resumption",
            "_tried_to_compile",
            "_compiled_evaluate",
        ]

    def learn(
        self: SelfDAPO,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 1,
        tb_log_name: str = "DAPO",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> SelfDAPO:
        return super().learn(
            total_timesteps=total_timesteps,
            callback=callback,
            log_interval=log_interval,
            tb_log_name=tb_log_name,
            reset_num_timesteps=reset_num_timesteps,
            progress_bar=progress_bar,
        )


def _kl_terms(log_ratio: th.Tensor) -> th.Tensor:
    """Terms whose mean over samples of q is unbiased for KL(q || p), with log_ratio = log p - log q (Schulman's k3)."""
    return th.expm1(log_ratio) - log_ratio
