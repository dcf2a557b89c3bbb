"""Divergence-Augmented Policy Optimization."""

import math
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from typing import Any, ClassVar, Literal, TypeVar

import gymnasium as gym
import numpy as np
import torch as th
from stable_baselines3 import PPO
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy
from stable_baselines3.common.torch_layers import NatureCNN
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, Schedule
from stable_baselines3.common.utils import FloatSchedule, obs_as_tensor
from stable_baselines3.common.vec_env import VecEnv

from sb3_dapo.acting import (
    ActingPolicy,
    OverlappingPolicy,
    RecordingCallback,
    RolloutSource,
    check_overlap,
    few_threads,
)
from sb3_dapo.arguments import RANGES, SCHEDULED, Range, arguments_of, check, check_arguments, check_number
from sb3_dapo.buffers import RolloutRing, RolloutRingSamples
from sb3_dapo.buffers.rollout import observation_spaces
from sb3_dapo.checkpoint.checkpoints import Checkpoints
from sb3_dapo.controllers import Controller
from sb3_dapo.divergences import Divergence, get_divergence
from sb3_dapo.fast import bfloat16_pays, set_fast
from sb3_dapo.faults import NonFiniteError
from sb3_dapo.fused import FusedPolicy
from sb3_dapo.hub import HubModel
from sb3_dapo.loss import LossSettings, PolicyOutputs, Visit, backward, dapo_loss, loss_gradient, summarize
from sb3_dapo.minatar import MinAtarCnn
from sb3_dapo.policies import CnnPolicy, FastCnn, MlpPolicy, MultiInputPolicy

SelfDAPO = TypeVar("SelfDAPO", bound="DAPO")

# Arguments that the network and the environments are made with
FIXED = ("policy_class", "policy_kwargs", "use_sde", "rollout_buffer_class", "rollout_buffer_kwargs")
# What _setup_model makes, and no file holds
NOT_SAVED = ("_fixed", "_applied_learning_rate", "_own_controller", "_fused", "_tried_to_compile", "_compiled_evaluate")


class DAPO(Checkpoints, HubModel, PPO):
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
        remaining, or a :class:`~sb3_dapo.controllers.Controller` that adapts it (the model has a copy of its own).
        ``"auto"``: 1 / (number of action dimensions), as the divergence is a sum over them
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
        ``"clip_augmented"``: clip the surrogate of the augmented advantage ``A - D/eta`` as a whole; ``"marwil"``:
        the other direction of the divergence, the log-likelihood of the actions weighted by ``exp(eta A)``, normalized
        in each minibatch, without ratios (needs ``divergence_coef`` > 0)
    :param clip_center: the importance ratio that the clipped surrogate's range lies around: ``"behavior"``: 1, the
        policy that acted; ``"old"``: the ratio that the update began with, so that each update may move the policy as
        far for old data as for new (GePPO, Queeney et al. 2021, https://arxiv.org/abs/2111.00072). The same for the
        newest rollout
    :param exact_targets: compute the targets of each epoch from a forward pass over the kept rollouts, instead of the
        values and log-probs known from each transition's last visit. Costs a forward pass per epoch
    :param nonfinite: what to do with a minibatch whose loss or gradient is NaN or infinite: ``"raise"`` a
        :class:`~sb3_dapo.faults.NonFiniteError`, or ``"skip"`` it and count it in ``train/skipped_minibatches``.
        Values and log-probs that are not finite always raise, as nothing could act on them, and observations do unless
        ``allow_nonfinite_observations`` is set
    :param allow_nonfinite_observations: let NaN and infinity in observations pass: for policies that mask them, or
        never read them
    :param optimize_memory_usage: keep each frame of stacked images once, instead of as often as it is stacked
    :param fast: compute networks, distributions, the gradient of the loss and Adam in faster forms, equal within float
        tolerance. ``None``: unless the settings are PPO's special case, which is equal bit for bit only in SB3's own
        forms
    :param autocast: compute the features of images in bfloat16. ``None``: those of SB3's ``NatureCNN`` and of
        ``MinAtarCnn``, if ``fast`` is not False and a short trial shows that it pays on this CPU, as it does where
        there are units for it
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
    argument_ranges: ClassVar[dict[str, Range]] = RANGES
    """What its arguments that are numbers may be."""
    ring_arguments: ClassVar[tuple[str, ...]] = ("n_rollouts", "optimize_memory_usage")
    """Which of its arguments are those of the ring."""
    acting_policy_class: ClassVar[type[ActingPolicy] | None] = None
    """What stands for the policy while a rollout is collected, if it is not the policy itself."""

    rollout_buffer: RolloutRing
    normalize_advantage: bool | Literal["rms"]  # type: ignore[assignment]
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
        divergence_coef: float | Literal["auto"] | Schedule | Controller = 0.1,
        divergence_steps: int | None = None,
        divergence_lambda: float | None = None,
        divergence_c_bar: float = 1.0,
        rho_bar: float = 1.0,
        c_bar: float = 1.0,
        n_rollouts: int = 1,
        advantage: Literal["vtrace", "vtrace_gae", "gae"] = "vtrace",
        policy_loss: Literal["clip", "plain", "clip_augmented", "marwil"] = "clip",
        clip_center: Literal["behavior", "old"] = "behavior",
        exact_targets: bool = False,
        nonfinite: Literal["raise", "skip"] = "raise",
        allow_nonfinite_observations: bool = False,
        optimize_memory_usage: bool = False,
        fast: bool | None = None,
        autocast: bool | None = None,
        overlap: bool = False,
        compile: bool = False,
    ) -> None:
        arguments = locals()
        # SB3 wraps environments of the old gym, if that is installed
        old_gym = getattr(sys.modules.get("gym"), "Env", ())
        is_env = isinstance(env, str | gym.Env | VecEnv) or isinstance(env, old_gym)
        check("env", env, is_env or (env is None and not _init_setup_model), "an id, a gymnasium.Env or a VecEnv")
        check("policy", policy, isinstance(policy, str | type), "the name of a policy or a class")
        check_number("n_steps", n_steps, self.argument_ranges["n_steps"])  # with which PPO computes
        twice = ", ".join(repr(name) for name in self.ring_arguments if name in (rollout_buffer_kwargs or ()))
        allowed = f"without {twice}, which {type(self).__name__} has as arguments"
        check("rollout_buffer_kwargs", rollout_buffer_kwargs, not twice, allowed)
        for_ppo = {name: arguments[name] for name in arguments_of(PPO)}
        # PPO would warn of a batch size that is no factor of one rollout, though K of them are shuffled, and assert
        # that it is large enough to normalize advantages
        for_ppo |= {"batch_size": 1, "normalize_advantage": False, "_init_setup_model": False}
        try:
            super().__init__(**for_ppo)
        except AssertionError as error:  # SB3's way to refuse an action space
            raise ValueError(str(error)) from error
        self.batch_size, self.normalize_advantage = batch_size, normalize_advantage
        self.divergence = get_divergence(divergence)
        self.divergence_coef, self.divergence_steps = divergence_coef, divergence_steps
        self.divergence_lambda, self.divergence_c_bar = divergence_lambda, divergence_c_bar
        self.rho_bar, self.c_bar, self.n_rollouts = rho_bar, c_bar, n_rollouts
        self.advantage, self.policy_loss, self.clip_center = advantage, policy_loss, clip_center
        self.exact_targets, self.optimize_memory_usage = exact_targets, optimize_memory_usage
        self.nonfinite, self.allow_nonfinite_observations = nonfinite, allow_nonfinite_observations
        self.fast, self.autocast, self.overlap, self.compile = fast, autocast, overlap, compile
        self._policy_version = 0  # updates that the policy has seen

        if _init_setup_model:
            self._setup_model()
        if self.env is not None:
            self._warn_of_settings()

    # --- settings -------------------------------------------------------------------------------

    def _setup_model(self) -> None:
        if self.rollout_buffer_class is None:
            self.rollout_buffer_class = RolloutRing
        # Here and not in __init__, as load() sets the attributes after __init__
        self._check_arguments()
        given = self.rollout_buffer_kwargs
        self.rollout_buffer_kwargs = {**given, **self._ring_settings()}
        try:
            super()._setup_model()
        except AssertionError as error:
            raise ValueError(str(error)) from error
        self.rollout_buffer_kwargs = given
        self._fixed = {name: getattr(self, name) for name in FIXED}
        self._applied_learning_rate = self.learning_rate
        self._own_controller: Controller | None = None
        self._fused: FusedPolicy | None = None
        self._tried_to_compile = False
        self._compiled_evaluate: Callable[..., tuple[th.Tensor, th.Tensor, th.Tensor | None]] | None = None
        self._apply_settings()

    def _setup_learn(self, *args: Any, **kwargs: Any) -> tuple[int, BaseCallback]:
        self._check_arguments()
        for name, value in self._fixed.items():
            reason = "which the model was made with: make a new one, or load it with another value"
            check(name, getattr(self, name), getattr(self, name) == value, f"{value!r}, {reason}")
        self._apply_settings()
        return super()._setup_learn(*args, **kwargs)

    def _check_arguments(self) -> None:
        """
        Check the arguments, and make numbers of "auto", and of NumPy's where SB3's schedules do not know these.

        :raises ValueError: naming an argument, its value and what is allowed
        """
        # Some are attributes of another name, and checked by SB3
        values = {name: getattr(self, name) for name in arguments_of(type(self)) if hasattr(self, name)}
        check_arguments(type(self), values, self.argument_ranges)
        if self.divergence_coef == "auto":
            self.divergence_coef = 1 / math.prod(self.action_space.shape or ())
        get_divergence(self.divergence).check_action_space(self.action_space)
        for name in ("observation_space", "action_space"):  # SB3's policies count from 0
            parts = observation_spaces(getattr(self, name)).values()
            starts_at_zero = not any(np.any(getattr(part, "start", 0)) for part in parts)
            check(name, getattr(self, name), starts_at_zero, "a space that starts at 0")
        if self.policy_loss == "marwil":
            coef = self.divergence_coef
            is_positive = isinstance(coef, Controller) or (max(coef(1.0), coef(0.0)) if callable(coef) else coef) > 0
            check("divergence_coef", coef, is_positive, "greater than 0, as policy_loss='marwil'")
        if self.advantage != "gae":
            check("rho_bar", self.rho_bar, self.rho_bar >= self.c_bar, f"at least `c_bar` ({self.c_bar})")
        if self.normalize_advantage:
            reason = "as the advantages of a minibatch are normalized"
            check("batch_size", self.batch_size, self.batch_size > 1, f"at least 2, {reason}")
            rollout = f"n_steps={self.n_steps} * n_envs={self.n_envs}"
            check("n_steps * n_envs", rollout, self.n_steps * self.n_envs > 1, f"at least 2, {reason}")
        is_free = type(self).acting_policy_class is None
        check("overlap", self.overlap, is_free or not self.overlap, "False, as this policy acts in a way of its own")
        is_cnn = issubclass(self.policy_class, FastCnn)
        check("autocast", self.autocast, is_cnn or not self.autocast, "False for policies other than CnnPolicy")
        buffer_class = self.rollout_buffer_class
        check(
            "rollout_buffer_class",
            buffer_class,
            isinstance(buffer_class, type) and issubclass(buffer_class, RolloutRing),
            "a subclass of sb3_dapo.buffers.RolloutRing (the parameters of a model that PPO saved can be given to "
            "another: `model.set_parameters(PPO.load(path).get_parameters())`)",
        )
        for name in SCHEDULED:
            if isinstance(getattr(self, name), np.number):
                setattr(self, name, float(getattr(self, name)))

    def _ring_settings(self) -> dict[str, Any]:
        """Arguments of the ring that are arguments here."""
        settings = {name: getattr(self, name) for name in self.ring_arguments}
        return {**settings, "n_sources": getattr(self.env, "n_sources", 1)}

    def _apply_settings(self) -> None:
        """Bring all that was made of arguments up to date with them: they may be set between calls of ``learn``."""
        self.divergence = get_divergence(self.divergence)
        if self.learning_rate is not self._applied_learning_rate:
            self._setup_lr_schedule()
            self._applied_learning_rate = self.learning_rate
        for name in ("clip_range", "clip_range_vf", "divergence_coef"):
            schedule = getattr(self, name)
            if schedule is not None and not isinstance(schedule, FloatSchedule | Controller):
                setattr(self, name, FloatSchedule(schedule))
        coef = self.divergence_coef
        if isinstance(coef, Controller) and coef is not self._own_controller:
            self.divergence_coef = self._own_controller = deepcopy(coef)  # it adapts to one model
        if self.overlap:
            check_overlap(self.env, self.use_sde)
        ring = self.rollout_buffer
        sizes = {"buffer_size": self.n_steps, **self._ring_settings()}
        if any(getattr(ring, name) != size for name, size in sizes.items()):
            vars(ring).update(sizes)
            ring.clear()
        ring.gamma, ring.gae_lambda = self.gamma, self.gae_lambda
        ring.nonfinite_rewards = self.nonfinite == "skip"
        ring.nonfinite_observations = self.allow_nonfinite_observations

    def _warn_of_settings(self) -> None:
        """
        Warn of what is allowed and not wise: PPO's warning, for minibatches of all rollouts kept, and advantages that
        reuse makes wrong.
        """
        if self.advantage == "gae" and self.n_rollouts > 1:
            warnings.warn(
                f"With n_rollouts={self.n_rollouts} the advantages of `advantage='gae'` are those of older policies. "
                "'vtrace' and 'vtrace_gae' are corrected for that.",
                stacklevel=3,
            )
        factors = {"n_rollouts": self.n_rollouts, "n_steps": self.n_steps, "n_envs": self.n_envs}
        n_sources = self._ring_settings()["n_sources"]
        if n_sources > 1:
            factors["n_sources"] = n_sources
        n_transitions = math.prod(factors.values())
        rest = n_transitions % self.batch_size
        if rest > 0:
            warnings.warn(
                f"The last minibatch of every epoch will have {rest} transitions instead of {self.batch_size}, as "
                f"`batch_size` is not a factor of {' * '.join(factors)} = "
                f"{' * '.join(map(str, factors.values()))} = {n_transitions}. One that is would be better.",
                stacklevel=3,
            )

    # --- collecting -----------------------------------------------------------------------------

    def collect_rollouts(
        self, env: VecEnv, callback: BaseCallback, rollout_buffer: RolloutBuffer, n_rollout_steps: int
    ) -> bool:
        self.rollout_buffer.acting_version = self._policy_version
        if self.compile and not self._tried_to_compile:
            self._tried_to_compile = True
            self._compile()
        self._set_form()
        try:
            with self._collecting(callback):
                source = env if isinstance(env, RolloutSource) else env.unwrapped
                if isinstance(source, RolloutSource):
                    return self._collect_from(source, callback)
                recording = RecordingCallback(callback, self, self.rollout_buffer)
                with few_threads(env, self.device, self.overlap), self._acting(env) as acting_env:
                    return super().collect_rollouts(acting_env, recording, rollout_buffer, n_rollout_steps)
        except NonFiniteError:
            raise
        except (ValueError, RuntimeError):
            # Distributions refuse what a policy makes of NaN (sampling does where their checks are off, which
            # compiling a model does for all of the process): say where it came from
            self.rollout_buffer.check_observations(self._last_obs)
            raise

    @contextmanager
    def _acting(self, env: VecEnv) -> Iterator[VecEnv]:
        """
        :param env: the environments
        :return: what stands for them while something stands for the policy
        """
        acting_class = OverlappingPolicy if self.overlap else self.acting_policy_class
        with nullcontext() if self._fused is None else self._fused.acting():
            if acting_class is None:
                yield env
                return
            policy, acting = self.policy, acting_class(self.policy, env, self.rollout_buffer)
            self.policy = acting  # type: ignore[assignment]
            try:
                yield acting.env
            finally:
                self.policy = policy
                farther = acting.finish()
                if farther is not None:
                    self._last_obs, self._last_episode_starts = farther

    def _collect_from(self, source: RolloutSource, callback: BaseCallback) -> bool:
        """
        Take rollouts that were collected elsewhere, and show their steps to the callback.

        :param source: where they come from
        :param callback: the callback
        :return: whether training goes on
        """
        callback.on_rollout_start()
        self.rollout_buffer.full = False
        for rollout in source.rollouts_for(self):
            dones = rollout.terminated | rollout.truncated
            all_infos = rollout.infos or [[]] * len(dones)
            for rewards, step_dones, infos in zip(rollout.rewards, dones, all_infos, strict=True):
                infos = infos or [{} for _ in rewards]
                self.num_timesteps += len(rewards)
                step = {"self": self, "env": source, "rewards": rewards, "dones": step_dones, "infos": infos}
                callback.update_locals(step)
                if not callback.on_step():
                    return False
                self._update_info_buffer(infos, step_dones)
            self.rollout_buffer.append(rollout)
        self.rollout_buffer.full = True
        callback.on_rollout_end()
        return True

    def _compile(self) -> None:
        """Compile the policy for acting and for learning, or warn and leave it as it is."""
        # The checks of torch's distributions look at values, which would cut the compiled graph
        are_checked = th.distributions.Distribution._validate_args
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
            th.distributions.Distribution.set_default_validate_args(are_checked)
            self.policy._compiled_call_impl = None  # undoes Module.compile
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            warnings.warn(f"The policy is not compiled, as torch.compile failed: {reason}", stacklevel=2)

    # --- learning -------------------------------------------------------------------------------

    def train(self) -> None:
        """Update the policy from the kept rollouts."""
        # Switch to train mode (this affects batch norm / dropout)
        self.policy.set_training_mode(True)
        self._set_form()
        self._scheduled("lr_schedule", "learning_rate")
        self._update_learning_rate(self.policy.optimizer)
        settings = self._loss_settings()
        parameters = list(self.policy.parameters())
        ring = self.rollout_buffer
        if ring.is_collected:  # by the policy as it is, also by whoever collects without `collect_rollouts`
            ring.acting_version = self._policy_version
        ring.join()

        all_visits: list[Visit] = []
        all_taken: list[th.Tensor] = []
        try:
            for epoch in range(self.n_epochs):
                self._update_targets(exact=self.exact_targets or (epoch == 0 and self._must_begin_exactly()))
                if epoch == 0:
                    self._parameters_replaced = False
                    ring.begin_update()  # here, as exact targets have asked the policy for all values
                with np.errstate(all="ignore"):  # faults are looked for, and reported by name
                    visits, taken = self._visit_all(parameters, settings)
                self._record(visits[: len(taken)], taken)
                all_visits += visits
                all_taken += taken
                self._n_updates += 1
                if len(taken) < len(visits):
                    if self.verbose >= 1:
                        approx_kl = visits[-1].update_kl().item()
                        print(f"Early stopping at step {epoch} due to reaching max kl: {approx_kl:.2f}")
                    break
        finally:
            if self._fused is not None:
                self._fused.adam.finish()
        self._policy_version += 1
        self._log_update(all_visits, all_taken, settings)

    def _visit_all(
        self, parameters: list[th.nn.Parameter], settings: LossSettings
    ) -> tuple[list[Visit], list[th.Tensor]]:
        """
        Take an optimizer step for each minibatch of an epoch.

        :param parameters: of the policy
        :param settings: of the loss
        :return: the minibatches, and whether the steps were taken: that of the last is missing if ``target_kl`` forbade
            it
        """
        visits: list[Visit] = []
        taken: list[th.Tensor] = []
        for samples in self.rollout_buffer.get(self.batch_size):
            outputs = self._evaluate(samples)
            visits.append(Visit.of(samples, outputs))
            if self.target_kl is not None and visits[-1].update_kl().item() > 1.5 * self.target_kl:
                break
            taken.append(self._optimize(samples, outputs, parameters, settings))
        return visits, taken

    def _loss_settings(self) -> LossSettings:
        """What the loss depends on in this update."""
        return LossSettings(
            divergence=self.divergence,
            divergence_coef=max(self._scheduled("divergence_coef"), 0.0),
            clip_range=self._scheduled("clip_range"),
            clip_range_vf=None if self.clip_range_vf is None else self._scheduled("clip_range_vf"),
            policy_loss=self.policy_loss,
            clip_center=self.clip_center,
            normalize_advantage=self.normalize_advantage,
            weights_values=self.advantage != "gae",
            ent_coef=self.ent_coef,
            vf_coef=self.vf_coef,
            rho_bar=self.rho_bar,
        )

    def _evaluate(self, samples: RolloutRingSamples) -> tuple[th.Tensor, th.Tensor, th.Tensor | None]:
        """
        :param samples: a minibatch
        :return: values, log-probs and entropies of the policy, each of shape ``(B,)``
        """
        if self._fused is not None:
            return self._fused.evaluate(samples.observations, samples.actions, **samples.inputs)
        # (targets without a gradient are not worth a second compilation)
        is_compiled = self._compiled_evaluate is not None and th.is_grad_enabled()
        evaluate = self._compiled_evaluate if is_compiled else self.policy.evaluate_actions
        values, log_prob, entropy = evaluate(samples.observations, samples.actions, **samples.inputs)  # type: ignore[misc]
        return values.flatten(), log_prob, entropy

    def _log_update(self, visits: list[Visit], all_taken: list[th.Tensor], settings: LossSettings) -> None:
        """
        :param visits: of all minibatches
        :param all_taken: whether the optimizer's steps were taken
        :param settings: of the loss
        :raises NonFiniteError: if one was not, and none is to be skipped
        """
        stats = summarize(visits, settings)
        n_taken = th.stack(all_taken).sum() if all_taken else th.zeros((), device=self.device)
        # Statistics leave the device all at once
        *values, n_taken = th.stack([*stats.values(), n_taken.float()]).tolist()
        n_skipped = len(all_taken) - n_taken
        if n_skipped > 0 and self.nonfinite == "raise":
            raise NonFiniteError("the loss or gradient of a minibatch is not finite")
        logged = dict(zip(stats, values, strict=True))
        if isinstance(self.divergence_coef, Controller) and np.isfinite(logged["behavior_kl"]):
            self.divergence_coef.update(logged["behavior_kl"])

        if self.nonfinite == "skip":
            logged["skipped_minibatches"] = n_skipped
        logged["explained_variance"] = self.rollout_buffer.explained_variance()
        logged["policy_lag"] = np.mean(self.rollout_buffer.ages(self._policy_version - 1))
        if hasattr(self.policy, "log_std"):
            logged["std"] = th.exp(self.policy.log_std).mean().item()
        logged |= {"clip_range": settings.clip_range, "divergence_coef": settings.divergence_coef}
        if settings.clip_range_vf is not None:
            logged["clip_range_vf"] = settings.clip_range_vf
        for name, value in logged.items():
            self.logger.record(f"train/{name}", value)
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")

    def _optimize(
        self,
        samples: RolloutRingSamples,
        outputs: PolicyOutputs,
        parameters: list[th.nn.Parameter],
        settings: LossSettings,
    ) -> th.Tensor:
        """
        Take an optimizer step, unless the loss or the gradient is not finite.

        :param samples: a minibatch
        :param outputs: what the policy says of it
        :param parameters: of the policy
        :param settings: of the loss
        :return: whether the step was taken, a bool on the device
        :raises NonFiniteError: if it was not and ``nonfinite`` is "raise"; from other devices than the CPU this is
            left to the end of the update, as each look at the result would wait for the device
        """
        if self._fused is not None:
            gradient = loss_gradient(samples, outputs[0].numpy(), outputs[1].numpy(), settings)
            grad_norm: Any = self._fused.step(*gradient, self.max_grad_norm)
            is_finite: Any = math.isfinite(grad_norm)
        else:
            self.policy.optimizer.zero_grad()
            if self._is_fast():
                backward(samples, *outputs, settings)
            else:
                dapo_loss(samples, *outputs, settings)[0].backward()
            grad_norm = self._take_step(parameters)
            is_finite = th.isfinite(grad_norm)
        if self.device.type == "cpu" and self.nonfinite == "raise" and not is_finite:
            loss, _ = dapo_loss(samples, *outputs, settings)
            raise NonFiniteError(
                f"loss or gradient is not finite (loss {loss.item()}, gradient norm {float(grad_norm)})"
            )
        return th.as_tensor(is_finite)

    def _take_step(self, parameters: list[th.nn.Parameter]) -> th.Tensor:
        """
        Take an optimizer step, unless the gradient is not finite.

        :param parameters: of the policy, with gradients
        :return: norm of the gradient, a scalar on the device
        """
        optimizer = self.policy.optimizer
        grad_norm = th.nn.utils.clip_grad_norm_(parameters, self.max_grad_norm)
        is_finite = th.isfinite(grad_norm)
        if self.device.type != "cpu" and optimizer.param_groups[0].get("fused"):
            # The fused step reads this on the device, as it does for gradient scaling
            optimizer.found_inf = (~is_finite).float()  # type: ignore[attr-defined]
            optimizer.step()
            del optimizer.found_inf  # type: ignore[attr-defined] # Adam's other forms refuse it
        elif is_finite:
            optimizer.step()
        return grad_norm

    def _record(self, visits: list[Visit], taken: list[th.Tensor]) -> None:
        """
        Keep what the policy said of minibatches, all at once.

        :param visits: of the minibatches of an epoch
        :param taken: whether the optimizer's steps were taken
        """
        if visits:
            parts = zip(*((x.samples.indices, x.values, x.log_prob) for x in visits), strict=True)
            indices, values, log_probs = map(th.cat, parts)
            sizes = th.tensor([len(x.values) for x in visits], device=values.device)
            self.rollout_buffer.record_visit(indices, values, log_probs, th.stack(taken).repeat_interleave(sizes))

    def _scheduled(self, schedule: str, name: str | None = None) -> float:
        """
        :return: value now of the schedule that is an attribute; ``name`` is the argument's, if it is another
        :raises ValueError: if it is no number of at least 0
        """
        value: float = getattr(self, schedule)(self._current_progress_remaining)
        # The last rollout may end behind the total: then a linear schedule is a little below 0, in PPO too
        if self._current_progress_remaining >= 0:
            check_number(name or schedule, value, Range(0))
        return value

    def _must_begin_exactly(self) -> bool:
        """
        :return: whether an update has to begin with a forward pass over the kept rollouts, because it measures from the
            policy that it begins with, or because that is another than the one that was trained last
        """
        ring = self.rollout_buffer
        measures = self.target_kl is not None or self.clip_range_vf is not None or self.clip_center == "old"
        # A single rollout has just been collected by this very policy, unless it comes from elsewhere
        is_old = ring.first_version < self._policy_version
        return is_old or (ring.n_kept > 1 and (measures or self._parameters_replaced))

    def _set_form(self) -> None:
        """Have the policy compute in the form, fast or SB3's own, that the settings ask for."""
        set_fast(self.policy, self._is_fast())
        is_fused = self._is_fast() and self._compiled_evaluate is None and self._suits_fusing()
        if isinstance(self.policy, FastCnn):
            before, self.policy.autocast = self.policy.autocast, self._is_autocast(is_fused)
            if self.verbose >= 1 and self.autocast is None and self.policy.autocast and not before:
                print("Features are computed in bfloat16, which is faster here: `autocast=False` turns it off")
        self._fused = FusedPolicy(self.policy) if is_fused else None

    def _suits_fusing(self) -> bool:
        # An own `_evaluate` needs autograd
        return type(self)._evaluate is DAPO._evaluate and FusedPolicy.suits(self.policy, (MlpPolicy, CnnPolicy))

    def _is_autocast(self, is_fused: bool) -> bool:
        if self.autocast is not None:
            return self.autocast
        # Whether other networks bear it, their authors know
        is_known = type(self.policy.features_extractor) is (MinAtarCnn if is_fused else NatureCNN)
        if not (is_known and self.policy.share_features_extractor and self._is_fast() and self.device.type == "cpu"):
            return False
        if self._bfloat16_pays is None:
            self._bfloat16_pays = bfloat16_pays()
        return self._bfloat16_pays

    def _is_fast(self) -> bool:
        if self.fast is not None:
            return self.fast
        coef: Any = self.divergence_coef
        has_divergence = isinstance(coef, Controller) or coef(self._current_progress_remaining) > 0
        return self.n_rollouts > 1 or self.advantage != "gae" or has_divergence

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
                values, log_prob, _ = self._evaluate(samples)
                buffer.record_visit(samples.indices, values, log_prob)
        bootstrap_values = None
        if self.advantage != "gae":
            batches = buffer.bootstrap_batches(self.batch_size)
            values_of = self.policy.predict_values if self._fused is None else self._fused.values
            parts = [values_of(batch.observations, **batch.inputs).flatten() for batch in batches]
            bootstrap_values = th.cat(parts) if parts else th.zeros(0, device=self.device)
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

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), *NOT_SAVED]

    def learn(
        self: SelfDAPO,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 1,
        tb_log_name: str | None = None,
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> SelfDAPO:
        name = type(self).__name__ if tb_log_name is None else tb_log_name
        return super().learn(total_timesteps, callback, log_interval, name, reset_num_timesteps, progress_bar)
