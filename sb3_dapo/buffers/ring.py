"""The ring of the newest rollouts, with the log-probs of the policies that collected them."""

from collections.abc import Generator, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.type_aliases import TensorDict
from stable_baselines3.common.utils import explained_variance

from sb3_dapo.buffers.recorder import RolloutRecorder
from sb3_dapo.buffers.rollout import PLAIN, Rollout, storage
from sb3_dapo.buffers.stores import FrameStackStore, RingStore, as_tensor
from sb3_dapo.divergences import Divergence
from sb3_dapo.estimators import future_divergence, importance_ratios, vtrace

Observations = th.Tensor | TensorDict
# Attributes of the ring that are lists with an entry for each rollout
LISTS = ("bootstrap_observations", "bootstrap_inputs", "truncation_positions")


class RolloutRingSamples(NamedTuple):
    """A minibatch of B transitions. Where nothing else is said the shape is ``(B,)`` and the dtype float32."""

    indices: th.Tensor
    """Positions in the ring, int64, to hand back to :meth:`RolloutRing.record_visit`."""
    observations: Observations
    """Shape ``(B, *obs_shape)``, or a dict of such tensors."""
    actions: th.Tensor
    """Shape ``(B, action_dim)``, or ``(B,)`` for Discrete actions. Integers stay integers."""
    inputs: dict[str, th.Tensor]
    """What the policy is given besides observations, by name, ``(B, ...)``, or ``(B / L, ...)`` of sequences."""
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


class BootstrapSamples(NamedTuple):
    """Observations whose values end trajectories and truncated episodes."""

    observations: Observations
    inputs: dict[str, th.Tensor]


class RolloutRing(RolloutRecorder):
    """
    Rollout buffer that keeps the newest K rollouts of each source for reuse, on the training device.

    Of the rollout that is being collected it is the recorder. :meth:`append` is the only way in: for a rollout from
    elsewhere, and for the one collected here, which :meth:`join` hands over when callbacks are done with it. What
    learning needs as long as a rollout is kept lies in tensors ``(K, N, T, ...)``: there the reward is what the
    environment gave, and a truncated episode keeps its terminal observation, whose value is asked of the current
    network.

    :meth:`record_visit` refreshes the latest known values and log-probs, :meth:`update_targets` turns them into the
    targets of an epoch, :meth:`get` yields the minibatches.

    :param buffer_size: T, steps per rollout and environment
    :param observation_space: observation space, Dict included
    :param action_space: action space
    :param device: PyTorch device
    :param gae_lambda: lambda of the value traces, and of GAE
    :param gamma: discount factor
    :param n_envs: N, number of parallel environments
    :param n_rollouts: K, rollouts kept of each source
    :param optimize_memory_usage: keep each frame of stacked images once
    :param sequence_length: L, consecutive steps that stay together in minibatches, a factor of T
    :param n_sources: number of collectors whose rollouts are kept side by side
    :raises ValueError: if there are no images whose memory could be optimized, or if L is no factor of T
    """

    def __init__(
        self, *args: Any, n_rollouts: int = 1, sequence_length: int = 1, n_sources: int = 1, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.n_rollouts = n_rollouts
        self.n_sources = n_sources
        self.sequence_length = sequence_length
        self.nonfinite_rewards = False
        self.clear()

    def clear(self) -> None:
        """Forget all rollouts, and take the sizes that the attributes say now."""
        if self.buffer_size % self.sequence_length > 0:
            raise ValueError(
                f"`sequence_length` must be a factor of the steps of a rollout, {self.buffer_size}, "
                f"got {self.sequence_length}"
            )
        n_slots = self.n_rollouts * self.n_sources
        self.ring_shape = shape = (n_slots, self.n_envs, self.buffer_size)
        self.observation_stores: dict[str, RingStore] = {}
        for key, space in self.obs_spaces.items():
            element_shape, dtype = storage(space)
            store = FrameStackStore if self.keeps_frames(key) else RingStore
            self.observation_stores[key] = store(shape, element_shape, _torch_dtype(dtype), self.device)
        action_shape, action_dtype = self.action_storage
        self.action_store = RingStore(shape, action_shape, _torch_dtype(action_dtype), self.device)
        self.input_stores: dict[str, RingStore] = {}  # what there is, the first rollout tells
        numbers = [th.zeros(shape, device=self.device) for _ in range(9)]
        self.behavior_log_probs, self.old_log_probs, self.latest_log_probs, self.old_values, *numbers = numbers
        self.latest_values, self.kept_rewards, self.kept_advantages, self.kept_returns, *numbers = numbers
        (self.future_divergences,) = numbers
        self.terminated, self.truncated = (th.zeros(shape, dtype=th.bool, device=self.device) for _ in range(2))
        self.last_values = th.zeros(shape[:2], device=self.device)
        # Per rollout: the observations after its last step, (N, *obs_shape), followed by those that truncated episodes
        # ended with; the other inputs there; and where these episodes were truncated, as n * T + t
        self.bootstrap_observations: list[TensorDict] = [{} for _ in range(n_slots)]
        self.bootstrap_inputs: list[TensorDict] = [{} for _ in range(n_slots)]
        self.truncation_positions = [th.zeros(0, dtype=th.int64, device=self.device) for _ in range(n_slots)]
        self.n_kept = 0  # complete rollouts, in the slots 0, 1, ...
        self.versions, self.sources, self.arrivals = np.zeros((3, n_slots), dtype=np.int64)
        self.n_arrived = 0
        self.first_version: float = np.inf  # of the oldest policy that acted in what the next update is first to see
        self.reset()

    def reset(self) -> None:
        """Begin a new rollout. If ``buffer_size`` has been changed, the rollouts kept so far are forgotten."""
        if self.ring_shape[1:] != (self.n_envs, self.buffer_size):
            self.clear()
        super().reset()

    # --- rollouts -------------------------------------------------------------------------------

    def join(self) -> None:
        """
        Append the rollout that has been collected here, if there is one.

        :raises ValueError: if it is not complete
        """
        if self.is_open or self.is_collected:  # advantages may be computed once more, of rewards that were changed
            self.append(self.rollout())
            self.is_open = self.is_collected = False

    def append(self, rollout: Rollout) -> None:
        """
        Keep a rollout, in the place of the oldest of its source if there are K.

        :param rollout: the rollout
        :raises ValueError: if it is of another size or from an unknown source
        :raises NonFiniteError: if a value, log-prob, reward or observation is not finite
        """
        _, n_envs, n_steps = self.ring_shape
        if rollout.rewards.shape != (n_steps, n_envs):
            raise ValueError(
                f"a rollout must have (n_steps, n_envs) = {(n_steps, n_envs)}, got {rollout.rewards.shape}"
            )
        if not 0 <= rollout.source < self.n_sources:
            raise ValueError(f"the source of a rollout must be from 0 to {self.n_sources - 1}, got {rollout.source}")
        rollout.check(self.nonfinite_observations, self.nonfinite_rewards)
        own = [slot for slot in range(self.n_kept) if self.sources[slot] == rollout.source]
        slot = min(own, key=lambda slot: self.arrivals[slot]) if len(own) == self.n_rollouts else self.n_kept
        for key, store in self.observation_stores.items():
            store.put(slot, rollout.observations[key])
        self.action_store.put(slot, rollout.actions)
        for name, array in rollout.inputs.items():
            self._input_store(name, len(array), array.shape[2:], as_tensor(array[:0]).dtype).put(slot, array)
        for kept, array in (
            (self.kept_rewards, rollout.rewards),
            (self.terminated, rollout.terminated),
            (self.truncated, rollout.truncated),
            (self.behavior_log_probs, rollout.log_probs),
            (self.latest_log_probs, rollout.log_probs),
            (self.old_log_probs, rollout.log_probs),
            (self.latest_values, rollout.values),
            (self.old_values, rollout.values),
            (self.kept_advantages, rollout.advantages),
            (self.kept_returns, rollout.returns),
        ):
            kept[slot].copy_(as_tensor(array).t())
        self.last_values[slot].copy_(as_tensor(rollout.last_values))
        self.bootstrap_observations[slot] = self._to_device(rollout.bootstrap_observations)
        self.bootstrap_inputs[slot] = self._to_device(rollout.bootstrap_inputs)
        self.truncation_positions[slot] = as_tensor(rollout.truncations).to(self.device)
        self.versions[slot], self.sources[slot], self.arrivals[slot] = rollout.version, rollout.source, self.n_arrived
        self.n_arrived += 1
        self.n_kept = max(self.n_kept, slot + 1)
        self.first_version = min(rollout.version, self.first_version)

    def _input_store(self, name: str, n_steps: int, shape: tuple[int, ...], dtype: th.dtype) -> RingStore:
        if name not in self.input_stores:
            self.input_stores[name] = RingStore((*self.ring_shape[:2], n_steps), shape, dtype, self.device)
        return self.input_stores[name]

    def _to_device(self, arrays: dict[str, np.ndarray]) -> TensorDict:
        # a copy: the arrays are the rollout's
        return {key: th.tensor(array, device=self.device) for key, array in arrays.items()}

    def _from_dict(self, observations: TensorDict) -> Observations:
        return observations if isinstance(self.observation_space, spaces.Dict) else observations[PLAIN]

    # --- learning -------------------------------------------------------------------------------

    def begin_update(self) -> None:
        """Remember the values and log-probs that an update starts from."""
        self.join()
        self.old_values.copy_(self.latest_values)
        self.old_log_probs.copy_(self.latest_log_probs)
        self.first_version = np.inf

    def record_visit(
        self, indices: th.Tensor, values: th.Tensor, log_prob: th.Tensor, is_taken: th.Tensor | None = None
    ) -> None:
        """
        Keep what a forward pass said of some transitions.

        :param indices: their positions, shape ``(B,)``
        :param values: V(s), shape ``(B,)``
        :param log_prob: log pi(a|s), shape ``(B,)``
        :param is_taken: whether to keep it, bools on the device, shape ``(B,)`` or ``()``; ``None`` for yes
        """
        for latest, visited in ((self.latest_values, values), (self.latest_log_probs, log_prob)):
            latest = latest.view(-1)
            kept = visited.detach() if is_taken is None else th.where(is_taken, visited.detach(), latest[indices])
            latest[indices] = kept

    def bootstrap_batches(self, batch_size: int) -> Iterator[BootstrapSamples]:
        """
        :param batch_size: B
        :return: the observations whose values end the trajectories and the truncated episodes, rollout by rollout, in
            minibatches of B at most
        """
        known = self._bootstrapped_slots()
        if not known:
            return
        observations, inputs = (
            {name: th.cat([kept[slot][name] for slot in known]) for name in kept[known[0]]}
            for kept in (self.bootstrap_observations, self.bootstrap_inputs)
        )
        for begin in range(0, len(next(iter(observations.values()))), int(batch_size)):
            batch = slice(begin, begin + int(batch_size))
            yield BootstrapSamples(
                self._from_dict({key: obs[batch] for key, obs in observations.items()}),
                {name: arrays[batch] for name, arrays in inputs.items()},
            )

    def _bootstrapped_slots(self) -> list[int]:
        return [slot for slot in range(self.n_kept) if self.bootstrap_observations[slot]]

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
        :param advantage_lam: like the two that follow, for :func:`~sb3_dapo.estimators.vtrace`
        :param divergence_lambda: ``lam`` of :func:`~sb3_dapo.estimators.multi_step_divergence`; the others likewise
        """
        log_probs, behavior_log_probs = self._time_major(self.latest_log_probs, self.behavior_log_probs)
        terminated, truncated = self._time_major(self.terminated, self.truncated)
        ratios = importance_ratios(log_probs, behavior_log_probs)  # (T, n_kept * N)
        continues = ~(terminated | truncated)
        if bootstrap_values is not None:
            rewards, values, advantages, returns = self._time_major(
                self.kept_rewards, self.latest_values, self.kept_advantages, self.kept_returns
            )
            targets = vtrace(
                rewards,
                values,
                self._next_values(bootstrap_values).t(),
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
        next_values[:, :, -1] = self.last_values[: self.n_kept]
        known = self._bootstrapped_slots()
        sizes = [self.n_envs + len(self.truncation_positions[slot]) for slot in known]
        for slot, values in zip(known, bootstrap_values.split(sizes) if known else (), strict=True):
            next_values[slot, :, -1] = values[: self.n_envs]
            next_values[slot].view(-1)[self.truncation_positions[slot]] = values[self.n_envs :]
        return next_values.flatten(0, 1)

    def get(  # type: ignore[override]
        self, batch_size: int | None = None, shuffle: bool = True
    ) -> Generator[RolloutRingSamples, None, None]:
        """
        Visit every transition of the kept rollouts once, ``sequence_length`` consecutive ones of an environment
        together.

        :param batch_size: B; ``None`` for all at once. The last minibatch may be smaller
        :param shuffle: in random order
        :return: generator of minibatches
        :raises ValueError: if there is no rollout, or the newest is not complete
        """
        self.join()
        if self.n_kept == 0:
            self.rollout()  # says what is missing
        n_transitions, length = self.n_kept * self.n_envs * self.buffer_size, self.sequence_length
        n_sequences = n_transitions // length
        # NumPy's generator, like SB3: the order is the same as PPO's for the same seed
        order = np.random.permutation(n_sequences) if shuffle else np.arange(n_sequences)
        known = (self.behavior_log_probs, self.old_log_probs, self.old_values)
        targets = (self.kept_advantages, self.kept_returns, self.future_divergences)
        scalars = th.stack([x.view(-1)[:n_transitions] for x in (*known, *targets)])
        n_each = max(int(batch_size or n_transitions) // length, 1)
        all_sequences = all_indices = th.from_numpy(order).to(self.device)
        if length > 1:
            all_indices = (all_sequences[:, None] * length + th.arange(length, device=self.device)).flatten()
        scalars = scalars.index_select(1, all_indices)
        all_actions = self.action_store.gather(all_indices).split(n_each * length)
        parts = (x.split(n_each * length, dim=-1) for x in (all_indices, scalars))
        for sequences, actions, indices, numbers in zip(all_sequences.split(n_each), all_actions, *parts, strict=True):
            observations = {key: store.gather(indices) for key, store in self.observation_stores.items()}
            inputs = {
                name: store.gather(indices if store.kept.shape[2] == self.buffer_size else sequences)
                for name, store in self.input_stores.items()
            }
            yield RolloutRingSamples(indices, self._from_dict(observations), actions, inputs, *numbers)

    def explained_variance(self) -> float:
        """
        :return: share of the variance of the returns that the values explain, as SB3 logs it; NaN if they don't vary
        """
        values, returns = (x[: self.n_kept].flatten().numpy(force=True) for x in (self.old_values, self.kept_returns))
        with np.errstate(all="ignore"):  # rewards may be too large, or not finite
            return explained_variance(values, returns)

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
            rollout that has not joined the ring is left out, as it cannot be continued
        """
        slots = list(range(self.n_kept))
        return {
            "shape": self._shape(),
            "slots": slots,
            "full": self.full,
            "acting_version": self.acting_version,
            **{name: getattr(self, name)[slots].tolist() for name in ("versions", "sources", "arrivals")},
            "stores": {name: store.state(slots) for name, store in self._stores().items()},
            "inputs": {name: store.state(slots) for name, store in self.input_stores.items()},
            "scalars": {name: kept[slots].cpu() for name, kept in self._kept_tensors().items()},
            "last_values": self.last_values[slots].cpu(),
            **{name: [_to("cpu", getattr(self, name)[slot]) for slot in slots] for name in LISTS},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """
        :param state: what :meth:`state_dict` gave, also that of version 0.1
        :raises ValueError: if it is of a buffer of another shape; the ring is then as it was
        """
        shape = {"n_sources": 1, "sequence_length": 1, **state["shape"]}
        for name, value in self._shape().items():
            if shape.get(name) != value:
                raise ValueError(f"`{name}` of the saved rollouts is {shape.get(name)!r}, not {value!r}")
        state = _of_this_version(state)
        slots = state["slots"]
        for name, store in self._stores().items():
            store.load_state(slots, state["stores"][name])
        for name, stored in state["inputs"].items():
            _, _, n_steps, *shape = stored["kept"].shape
            self._input_store(name, n_steps, tuple(shape), stored["kept"].dtype).load_state(slots, stored)
        for name, kept in self._kept_tensors().items():
            kept[slots] = state["scalars"][name].to(self.device)
        for name in ("versions", "sources", "arrivals"):
            getattr(self, name)[slots] = state[name]
        self.last_values[slots] = state["last_values"].to(self.device)
        for name in LISTS:
            getattr(self, name)[: len(slots)] = [_to(self.device, value) for value in state[name]]
        self.n_kept, self.full, self.acting_version = len(slots), state["full"], state["acting_version"]
        self.n_arrived = int(self.arrivals[slots].max(initial=-1)) + 1

    def _kept_tensors(self) -> dict[str, th.Tensor]:
        """The attributes that are tensors ``(K, N, T)``."""
        return {name: x for name, x in vars(self).items() if isinstance(x, th.Tensor) and x.shape == self.ring_shape}

    def _shape(self) -> dict[str, Any]:
        """What two rings must have in common to hold the same rollouts."""
        return {
            "n_steps": self.buffer_size,
            "n_envs": self.n_envs,
            "n_rollouts": self.n_rollouts,
            "n_sources": self.n_sources,
            "sequence_length": self.sequence_length,
            **{name: f"{type(x).__name__} of {x.dtype} {x.shape}" for name, x in self._stores().items()},
        }

    def _stores(self) -> dict[str, RingStore]:
        """All stores but those of inputs, by name."""
        return {f"observation {key}": x for key, x in self.observation_stores.items()} | {"action": self.action_store}


def _torch_dtype(dtype: np.dtype) -> th.dtype:
    return th.from_numpy(np.empty(0, dtype)).dtype


def _to(device: th.device | str, value: th.Tensor | TensorDict) -> Any:
    return {key: x.to(device) for key, x in value.items()} if isinstance(value, dict) else value.to(device)


def _of_this_version(state: dict[str, Any]) -> dict[str, Any]:
    """
    :param state: of a ring
    :return: the same, if it is of version 0.1 in the form of this one
    """
    if "slot" not in state:
        return state
    # There the newest rollout lay in this slot; one that was not complete is left out
    slots, newest, n_rollouts = state["slots"], state["slot"], state["shape"]["n_rollouts"]
    return {
        **state,
        "slots": list(range(len(slots))),
        "versions": [state["versions"][slot] for slot in slots],
        "sources": [0] * len(slots),
        "arrivals": [(slot - newest - 1) % n_rollouts for slot in slots],
        "inputs": {},
        "bootstrap_inputs": [{}] * len(slots),
        "last_values": th.zeros(len(slots), state["shape"]["n_envs"]),
    }
