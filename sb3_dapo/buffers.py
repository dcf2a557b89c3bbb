"""The ring of the last K rollouts, with the log-probs of the policies that collected them."""

from collections.abc import Generator, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.type_aliases import TensorDict
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn

from sb3_dapo.divergences import Divergence
from sb3_dapo.estimators import future_divergence, importance_ratios, vtrace
from sb3_dapo.faults import NonFiniteError, check_finite
from sb3_dapo.stores import FrameStackStore, RingStore

Observations = th.Tensor | TensorDict

PLAIN = "observation"

# Attributes of RolloutRing that are tensors (K, N, T)
KEPT_TENSORS = (
    "kept_rewards",
    "terminated",
    "truncated",
    "behavior_log_probs",
    "latest_log_probs",
    "latest_values",
    "old_log_probs",
    "old_values",
    "kept_advantages",
    "kept_returns",
    "future_divergences",
)


class RolloutRingSamples(NamedTuple):
    """A minibatch of B transitions. Where nothing else is said the shape is ``(B,)`` and the dtype float32."""

    indices: th.Tensor
    """Positions in the ring, int64, to hand back to :meth:`RolloutRing.record_visit`."""
    observations: Observations
    """Shape ``(B, *obs_shape)``, or a dict of such tensors."""
    actions: th.Tensor
    """Shape ``(B, action_dim)``, or ``(B,)`` for Discrete actions. Integers stay integers."""
    behavior_log_prob: th.Tensor
    """log mu(a|s), of the policy that acted."""
    old_log_prob: th.Tensor
    """log pi(a|s), as known when the update began."""
    old_values: th.Tensor
    """V(s), as known when the update began."""
    advantages: th.Tensor
    returns: th.Tensor
    """Targets of the value function."""
    future_divergence: th.Tensor
    """D - f: what the steps that follow contribute to the multi-step divergence."""


class RolloutRing(RolloutBuffer):
    """
    Rollout buffer that keeps the last K rollouts for reuse, on the training device.

    For the rollout being collected this is SB3's ``RolloutBuffer``: ``rewards``, ``values``, ``log_probs``,
    ``episode_starts``, ``advantages`` and ``returns`` are NumPy arrays ``(T, N)``, where ``rewards`` have SB3's
    bootstrap of truncated episodes folded in, as GAE wants it. What learning needs as long as the rollout is kept lies
    in tensors ``(K, N, T, ...)``: there the reward is what the environment gave, and a truncated episode keeps its
    terminal observation, whose value is asked of the current network.

    :meth:`record_visit` refreshes the latest known values and log-probs, :meth:`update_targets` turns them into the
    targets of an epoch, :meth:`get` yields the minibatches.

    :param buffer_size: T, steps per rollout and environment
    :param observation_space: observation space, Dict included
    :param action_space: action space
    :param device: PyTorch device
    :param gae_lambda: lambda of the value traces, and of GAE
    :param gamma: discount factor
    :param n_envs: N, number of parallel environments
    :param n_rollouts: K, rollouts kept
    :param optimize_memory_usage: keep each frame of stacked images once
    :raises ValueError: if there are no images whose memory could be optimized
    """

    def __init__(
        self,
        buffer_size: int,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        device: th.device | str = "auto",
        gae_lambda: float = 1,
        gamma: float = 0.99,
        n_envs: int = 1,
        n_rollouts: int = 1,
        optimize_memory_usage: bool = False,
    ) -> None:
        # RolloutBuffer's own __init__ would call reset() before the ring is there
        super(RolloutBuffer, self).__init__(buffer_size, observation_space, action_space, device, n_envs)
        self.gae_lambda = gae_lambda
        self.gamma = gamma
        self.n_rollouts = n_rollouts
        self.n_kept = 0  # complete rollouts, in the slots 0, 1, ...
        self.slot = 0  # of the newest rollout
        self.versions = np.zeros(n_rollouts, dtype=np.int64)  # of the policies that acted
        self.acting_version = 0
        self.allow_nonfinite_rewards = False

        shape = (n_rollouts, n_envs, buffer_size)
        # Observations are dicts here; those of a space that is not Dict have the one key PLAIN
        is_dict = isinstance(observation_space, spaces.Dict)
        self.obs_spaces = observation_space.spaces if is_dict else {PLAIN: observation_space}  # type: ignore[attr-defined]
        self.obs_shapes: dict[str, Any] = self.obs_shape if is_dict else {PLAIN: self.obs_shape}  # type: ignore[assignment]
        self.observation_stores = {
            key: (FrameStackStore if optimize_memory_usage and is_image_space(space) else RingStore)(
                shape, self.obs_shapes[key], _storage_dtype(space), self.device
            )
            for key, space in self.obs_spaces.items()
        }
        if optimize_memory_usage and not any(map(is_image_space, self.obs_spaces.values())):
            raise ValueError(
                f"`optimize_memory_usage` must be False for observations without images, {observation_space}"
            )
        is_discrete = isinstance(action_space, spaces.Discrete)
        is_integer = isinstance(action_space, spaces.Discrete | spaces.MultiDiscrete)
        self.action_store = RingStore(
            shape, () if is_discrete else (self.action_dim,), th.int64 if is_integer else th.float32, self.device
        )
        self.kept_rewards = th.zeros(shape, device=self.device)
        self.terminated = th.zeros(shape, dtype=th.bool, device=self.device)
        self.truncated = th.zeros(shape, dtype=th.bool, device=self.device)
        self.behavior_log_probs = th.zeros(shape, device=self.device)
        self.latest_log_probs = th.zeros(shape, device=self.device)
        self.latest_values = th.zeros(shape, device=self.device)
        self.old_log_probs = th.zeros(shape, device=self.device)
        self.old_values = th.zeros(shape, device=self.device)
        self.kept_advantages = th.zeros(shape, device=self.device)
        self.kept_returns = th.zeros(shape, device=self.device)
        self.future_divergences = th.zeros(shape, device=self.device)
        # Per rollout: the observations after its last step, (N, *obs_shape), followed by those that truncated episodes
        # ended with; and where these episodes were truncated, as n * T + t
        self.bootstrap_observations: list[TensorDict] = [{} for _ in range(n_rollouts)]
        self.truncation_positions = [th.zeros(0, dtype=th.int64, device=self.device) for _ in range(n_rollouts)]
        self.reset()

    def clear(self) -> None:
        """Forget all rollouts."""
        self.n_kept = self.slot = 0
        self.full = False
        self.reset()

    # --- collection -----------------------------------------------------------------------------

    def reset(self) -> None:
        """Begin a new rollout, in the place of the oldest one if the ring is full, or of one that was cut short."""
        if self.full:
            self.slot = (self.slot + 1) % self.n_rollouts
        for store in self._stores().values():
            store.begin(self.slot)
        shape = (self.buffer_size, self.n_envs)
        self.rewards, self.values, self.log_probs, self.episode_starts, self.advantages, self.returns = (
            np.zeros(shape, dtype=np.float32) for _ in range(6)
        )
        self._raw_rewards = np.zeros(shape, dtype=np.float32)
        self._terminated = np.zeros(shape, dtype=bool)
        self._truncated = np.zeros(shape, dtype=bool)
        self._truncation_positions: list[int] = []
        self._terminal_observations: list[dict[str, np.ndarray]] = []
        self._next_observations: VecEnvObs = np.zeros(0)
        self.pos = 0
        self.full = False

    @property
    def observations(self) -> Any:  # type: ignore[override]
        """Observations of the newest rollout as far as it is collected: ``(T, N, *obs_shape)``, or a dict of them."""
        return self._from_dict({key: store.collected for key, store in self.observation_stores.items()})

    @property
    def actions(self) -> np.ndarray:  # type: ignore[override]
        """Actions of the newest rollout as far as it is collected, ``(T, N, action_dim)``."""
        return self.action_store.collected.reshape(self.buffer_size, self.n_envs, self.action_dim)

    def record_step(
        self, new_obs: VecEnvObs, rewards: np.ndarray, dones: np.ndarray, infos: Sequence[dict[str, Any]]
    ) -> None:
        """
        Record what the environments answered, before SB3 folds the value of truncated episodes into the rewards.

        :param new_obs: observations that follow, of the next episode where one ended
        :param rewards: rewards, shape ``(N,)``
        :param dones: whether the episodes ended, shape ``(N,)``
        :param infos: info dicts; ``TimeLimit.truncated`` and ``terminal_observation`` are read
        """
        self._next_observations = new_obs
        self._raw_rewards[self.pos] = rewards
        if not dones.any():
            return
        for n in np.flatnonzero(dones).tolist():
            # the condition by which SB3 bootstraps
            terminal_observation = infos[n].get("terminal_observation")
            if infos[n].get("TimeLimit.truncated", False) and terminal_observation is not None:
                self._truncated[self.pos, n] = True
                self._truncation_positions.append(int(n) * self.buffer_size + self.pos)
                # copied, as an environment may go on writing into its array
                copies = {key: np.array(obs) for key, obs in self._to_dict(terminal_observation).items()}
                self._terminal_observations.append(copies)
            else:
                self._terminated[self.pos, n] = True

    def add(
        self,
        obs: VecEnvObs,
        action: np.ndarray,
        reward: np.ndarray,
        episode_start: np.ndarray,
        value: th.Tensor,
        log_prob: th.Tensor,
    ) -> None:
        """
        Add one step of all environments. Parameters as in SB3's ``RolloutBuffer``.

        :param obs: observations that the policy acted on
        :param action: its actions
        :param reward: rewards, with the bootstrap of truncated episodes
        :param episode_start: whether the observations begin an episode
        :param value: V(s)
        :param log_prob: log mu(a|s)
        """
        for key, observations in self._to_dict(obs).items():
            self.observation_stores[key].write(self.pos, observations)
        self.action_store.write(self.pos, action)
        self.rewards[self.pos] = reward
        self.episode_starts[self.pos] = episode_start
        self.values[self.pos] = value.detach().cpu().numpy().flatten()
        self.log_probs[self.pos] = log_prob.detach().cpu().numpy().flatten()
        self.pos += 1

    def compute_returns_and_advantage(self, last_values: th.Tensor, dones: np.ndarray) -> None:
        """
        Compute SB3's GAE of the rollout just collected, and let the rollout join the ring.

        :param last_values: values of the observations after the last step, shape ``(N,)``
        :param dones: whether the last step ended an episode, shape ``(N,)``
        :raises NonFiniteError: if a value, log-prob or reward is not finite
        """
        self._check_collected()
        super().compute_returns_and_advantage(last_values, dones)
        for store in self._stores().values():
            store.commit(self.slot)
        for kept, collected in (
            (self.kept_rewards, self._raw_rewards),
            (self.terminated, self._terminated),
            (self.truncated, self._truncated),
            (self.behavior_log_probs, self.log_probs),
            (self.latest_log_probs, self.log_probs),
            (self.latest_values, self.values),
            (self.kept_advantages, self.advantages),
            (self.kept_returns, self.returns),
        ):
            kept[self.slot].copy_(th.from_numpy(collected).t())
        self.bootstrap_observations[self.slot] = {
            key: self._stack(key, [*next_observations, *(obs[key] for obs in self._terminal_observations)])
            for key, next_observations in self._to_dict(self._next_observations).items()
        }
        self.truncation_positions[self.slot] = th.tensor(self._truncation_positions, dtype=th.int64, device=self.device)
        self.versions[self.slot] = self.acting_version
        self.n_kept = max(self.n_kept, self.slot + 1)
        self.full = True

    def check_observations(self, observations: Any) -> None:
        """
        :param observations: of all environments, at the current step of the rollout
        :raises NonFiniteError: if they are not finite
        """
        for key, array in self._to_dict(observations).items():
            check_finite(key, array[None], self.pos)

    def _check_collected(self) -> None:
        """
        :raises NonFiniteError: if something in the rollout just collected is not finite
        """
        for key, store in self.observation_stores.items():
            if store.dtype.is_floating_point:
                check_finite(key, store.collected)
        self.check_observations(self._next_observations)
        check_finite("value", self.values)
        check_finite("log-prob", self.log_probs)
        if not self.allow_nonfinite_rewards:
            check_finite("reward", self._raw_rewards)
        for position, observations in zip(self._truncation_positions, self._terminal_observations, strict=True):
            env, step = divmod(position, self.buffer_size)
            for key, terminal in observations.items():
                if terminal.dtype.kind == "f" and not np.isfinite(terminal).all():
                    raise NonFiniteError(
                        f"the terminal {key} of environment {env} at step {step} of the rollout is {terminal}"
                    )

    def _stack(self, key: str, observations: list[np.ndarray]) -> th.Tensor:
        """Observations as a tensor ``(len(observations), *obs_shape)`` of the type they are kept in."""
        store = self.observation_stores[key]
        stacked = np.stack(observations).reshape(-1, *self.obs_shapes[key])
        return th.as_tensor(stacked, dtype=store.dtype, device=self.device)

    def _to_dict(self, observations: Any) -> dict[str, np.ndarray]:
        if isinstance(self.observation_space, spaces.Dict):
            return observations
        return {PLAIN: np.asarray(observations)}

    def _from_dict(self, observations: dict[str, Any]) -> Any:
        return observations if isinstance(self.observation_space, spaces.Dict) else observations[PLAIN]

    # --- learning -------------------------------------------------------------------------------

    def begin_update(self) -> None:
        """Remember the values and log-probs that an update starts from."""
        self.old_values.copy_(self.latest_values)
        self.old_log_probs.copy_(self.latest_log_probs)

    def record_visit(
        self, indices: th.Tensor, values: th.Tensor, log_prob: th.Tensor, is_taken: th.Tensor | None = None
    ) -> None:
        """
        Keep what a forward pass said of some transitions.

        :param indices: their positions, shape ``(B,)``
        :param values: V(s), shape ``(B,)``
        :param log_prob: log pi(a|s), shape ``(B,)``
        :param is_taken: whether to keep it, a bool on the device; ``None`` for yes
        """
        for latest, visited in ((self.latest_values, values), (self.latest_log_probs, log_prob)):
            latest = latest.view(-1)
            kept = visited.detach() if is_taken is None else th.where(is_taken, visited.detach(), latest[indices])
            latest[indices] = kept

    def describe_nonfinite(self, indices: th.Tensor) -> str:
        """
        :param indices: positions of a minibatch, shape ``(B,)``
        :return: which of its targets is not finite, and where it was collected, for an error message
        """
        for name, kept in (("advantage", self.kept_advantages), ("return", self.kept_returns)):
            bad = indices[~th.isfinite(kept.view(-1)[indices])]
            if len(bad) > 0:
                slot, rest = divmod(int(bad[0]), self.n_envs * self.buffer_size)
                env, step = divmod(rest, self.buffer_size)
                age = (self.slot - slot) % self.n_rollouts
                return (
                    f": the {name} of environment {env} at step {step} of the rollout collected {age} before the newest"
                )
        return ""

    def bootstrap_batches(self, batch_size: int) -> Iterator[Observations]:
        """
        :param batch_size: B
        :return: the observations whose values end the trajectories and the truncated episodes, rollout by rollout, in
            minibatches of B at most
        """
        kept = self.bootstrap_observations[: self.n_kept]
        batches = {key: th.cat([obs[key] for obs in kept]).split(int(batch_size)) for key in self.obs_spaces}
        for batch in zip(*batches.values(), strict=True):
            yield self._from_dict(dict(zip(batches, batch, strict=True)))

    def update_targets(
        self,
        divergence: Divergence,
        bootstrap_values: th.Tensor | None,
        *,
        advantage_lam: float = 1.0,
        rho_bar: float,
        c_bar: float,
        divergence_lambda: float,
        divergence_c_bar: float,
        divergence_steps: int | None,
    ) -> None:
        """
        Compute the targets of an epoch from the latest known values and log-probs.

        :param divergence: gives f
        :param bootstrap_values: values of :meth:`bootstrap_batches`; ``None`` leaves the advantages and returns
            as they are, fixed at collection by GAE
        :param advantage_lam: see :func:`~sb3_dapo.estimators.vtrace`
        :param rho_bar: see :func:`~sb3_dapo.estimators.vtrace`
        :param c_bar: see :func:`~sb3_dapo.estimators.vtrace`
        :param divergence_lambda: ``lam`` of :func:`~sb3_dapo.estimators.multi_step_divergence`
        :param divergence_c_bar: ``c_bar`` of :func:`~sb3_dapo.estimators.multi_step_divergence`
        :param divergence_steps: ``n_steps`` of :func:`~sb3_dapo.estimators.multi_step_divergence`
        """
        log_probs, behavior_log_probs = self._time_major(self.latest_log_probs, self.behavior_log_probs)
        terminated, truncated = self._time_major(self.terminated, self.truncated)
        ratios = importance_ratios(log_probs, behavior_log_probs)  # (T, n_kept * N)
        continues = ~(terminated | truncated)
        if bootstrap_values is not None:
            rewards, values, advantages, returns = self._time_major(
                self.kept_rewards, self.latest_values, self.kept_advantages, self.kept_returns
            )
            next_values = self._next_values(bootstrap_values).t()
            targets = vtrace(
                rewards,
                values,
                next_values,
                ratios,
                self.gamma * (~terminated).float(),
                continues,
                lam=self.gae_lambda,
                advantage_lam=advantage_lam,
                rho_bar=rho_bar,
                c_bar=c_bar,
            )
            returns.copy_(targets.values)
            advantages.copy_(targets.advantages)
        (future,) = self._time_major(self.future_divergences)
        future.copy_(
            future_divergence(
                divergence(log_probs, behavior_log_probs),
                ratios,
                continues,
                gamma=self.gamma,
                lam=divergence_lambda,
                c_bar=divergence_c_bar,
                n_steps=divergence_steps,
            )
        )

    def _next_values(self, bootstrap_values: th.Tensor) -> th.Tensor:
        """Value of the state that follows each step in the same episode, shape ``(n_kept * N, T)``."""
        next_values = self.latest_values[: self.n_kept].roll(-1, dims=2)
        sizes = [self.n_envs + len(positions) for positions in self.truncation_positions[: self.n_kept]]
        for slot, values in enumerate(bootstrap_values.split(sizes)):
            next_values[slot, :, -1] = values[: self.n_envs]
            next_values[slot].view(-1)[self.truncation_positions[slot]] = values[self.n_envs :]
        return next_values.flatten(0, 1)

    def get(  # type: ignore[override]
        self, batch_size: int | None = None, shuffle: bool = True
    ) -> Generator[RolloutRingSamples, None, None]:
        """
        Visit every transition of the kept rollouts once.

        :param batch_size: B; ``None`` for all at once. The last minibatch may be smaller
        :param shuffle: in random order
        :return: generator of minibatches
        :raises ValueError: if the newest rollout is not complete
        """
        if not self.full:
            raise ValueError(f"the newest rollout is not complete: {self.pos} of {self.buffer_size} steps")
        n_transitions = self.n_kept * self.n_envs * self.buffer_size
        # NumPy's generator, like SB3: the order is the same as PPO's for the same seed
        order = np.random.permutation(n_transitions) if shuffle else np.arange(n_transitions)
        scalars = th.stack(
            [
                x.view(-1)[:n_transitions]
                for x in (
                    self.behavior_log_probs,
                    self.old_log_probs,
                    self.old_values,
                    self.kept_advantages,
                    self.kept_returns,
                    self.future_divergences,
                )
            ]
        )
        for indices in th.from_numpy(order).to(self.device).split(int(batch_size or n_transitions)):
            observations = {key: store.gather(indices) for key, store in self.observation_stores.items()}
            yield RolloutRingSamples(
                indices,
                self._from_dict(observations),
                self.action_store.gather(indices),
                *scalars.index_select(1, indices),
            )

    def explained_variance(self) -> float:
        """
        :return: share of the variance of the returns that the values explain, as SB3 logs it; NaN if they don't vary
        """
        returns, values = self.kept_returns[: self.n_kept], self.old_values[: self.n_kept]
        return (
            (1 - (returns - values).var() / returns.var()).item()
            if returns.numel() > 1 and returns.var() > 0
            else float("nan")
        )

    def ages(self, version: int) -> np.ndarray:
        """
        :param version: of the current policy
        :return: by how many updates the policies that acted are older, per kept rollout
        """
        return version - self.versions[: self.n_kept]

    def _time_major(self, *tensors: th.Tensor) -> tuple[th.Tensor, ...]:
        """Views of the kept rollouts as ``(T, n_kept * N)``."""
        return tuple(x[: self.n_kept].flatten(0, 1).t() for x in tensors)

    # --- checkpoints ----------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """
        :return: all that a later rollout needs of the earlier ones: nothing but tensors, lists, numbers and text. A
            rollout that is not complete is left out, as it cannot be continued
        """
        slots = [slot for slot in range(self.n_kept) if self.full or slot != self.slot]
        return {
            "shape": self._shape(),
            "slots": slots,
            "slot": self.slot,
            "n_kept": self.n_kept,
            "full": self.full,
            "versions": self.versions.tolist(),
            "acting_version": self.acting_version,
            "stores": {name: store.state(slots) for name, store in self._stores().items()},
            "scalars": {name: getattr(self, name)[slots].cpu() for name in KEPT_TENSORS},
            "bootstrap_observations": [
                {key: obs.cpu() for key, obs in self.bootstrap_observations[slot].items()} for slot in slots
            ],
            "truncation_positions": [self.truncation_positions[slot].cpu() for slot in slots],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """
        :param state: what :meth:`state_dict` gave
        :raises ValueError: if it is of a buffer of another shape; the ring is then as it was
        """
        for name, value in self._shape().items():
            if state["shape"].get(name) != value:
                raise ValueError(f"`{name}` of the saved rollouts is {state['shape'].get(name)!r}, not {value!r}")
        slots = state["slots"]
        for name, store in self._stores().items():
            store.load_state(slots, state["stores"][name])
        for name in KEPT_TENSORS:
            getattr(self, name)[slots] = state["scalars"][name].to(self.device)
        for slot, observations, positions in zip(
            slots, state["bootstrap_observations"], state["truncation_positions"], strict=True
        ):
            self.bootstrap_observations[slot] = {key: obs.to(self.device) for key, obs in observations.items()}
            self.truncation_positions[slot] = positions.to(self.device)
        self.slot, self.n_kept, self.full = state["slot"], state["n_kept"], state["full"]
        self.versions = np.array(state["versions"], dtype=np.int64)
        self.acting_version = state["acting_version"]
        for store in self._stores().values():
            store.begin(self.slot)

    def _shape(self) -> dict[str, Any]:
        """What two rings must have in common to hold the same rollouts."""
        return {
            "n_steps": self.buffer_size,
            "n_envs": self.n_envs,
            "n_rollouts": self.n_rollouts,
            **{
                name: f"{type(store).__name__} of {store.dtype} {store.shape}" for name, store in self._stores().items()
            },
        }

    def _stores(self) -> dict[str, RingStore]:
        """All stores, by name."""
        return {
            **{f"observation {key}": store for key, store in self.observation_stores.items()},
            "action": self.action_store,
        }


class StepRecorder(VecEnvWrapper):
    """
    Shows a ring what the environments answer, so that SB3's own ``collect_rollouts`` can be used as it is.

    :param venv: the environments
    :param ring: the ring that collects
    """

    def __init__(self, venv: VecEnv, ring: RolloutRing) -> None:
        super().__init__(venv)
        self.ring = ring

    def reset(self) -> VecEnvObs:
        return self.venv.reset()

    def step_wait(self) -> VecEnvStepReturn:
        new_obs, rewards, dones, infos = self.venv.step_wait()
        self.ring.record_step(new_obs, rewards, dones, infos)
        return new_obs, rewards, dones, infos


def _storage_dtype(space: spaces.Space[Any]) -> th.dtype:
    # Policies compute in float32: to keep more would only take memory
    dtype = np.float32 if space.dtype == np.float64 else space.dtype
    return th.from_numpy(np.empty(0, dtype)).dtype
