"""Where the ring keeps the observations and actions of its rollouts."""

import numpy as np
import torch as th


class RingStore:
    """
    One kind of array of the kept rollouts, ``(K, N, T, *shape)``, on the training device.

    A rollout is collected into ``collected``, a NumPy array ``(T, N, *shape)``. On the CPU that is the ring's own
    memory; for other devices it is an array in host memory, sent there whole when the rollout is complete.

    :param ring_shape: ``(K, N, T)``
    :param shape: of an element
    :param dtype: of an element
    :param device: PyTorch device
    """

    collected: np.ndarray

    def __init__(
        self, ring_shape: tuple[int, int, int], shape: tuple[int, ...], dtype: th.dtype, device: th.device
    ) -> None:
        self.shape = shape
        self.kept = th.zeros((*ring_shape, *shape), dtype=dtype, device=device)
        self.dtype = dtype

    def begin(self, slot: int) -> None:
        """:param slot: place of the rollout that will be collected"""
        self.collected = _staging_area(self.kept[slot].transpose(0, 1))

    def write(self, step: int, elements: np.ndarray) -> None:
        """
        :param step: t
        :param elements: of all environments, N times the shape
        """
        place = self.collected[step]
        # SB3 keeps Discrete observations as (N, 1), and actions flat
        place[...] = elements.reshape(place.shape)

    def commit(self, slot: int) -> None:
        """:param slot: place of the rollout that is complete"""
        if self.kept.device.type != "cpu":
            self.kept[slot].copy_(th.from_numpy(self.collected).transpose(0, 1))

    def gather(self, indices: th.Tensor) -> th.Tensor:
        """
        :param indices: positions in the ring, shape ``(B,)``
        :return: elements, shape ``(B, *shape)``
        """
        return self.kept.flatten(0, 2).index_select(0, indices)

    def state(self, slots: list[int]) -> dict[str, th.Tensor]:
        """
        :param slots: of the rollouts to save
        :return: their arrays
        """
        return {"kept": self.kept[slots].cpu()}

    def load_state(self, slots: list[int], state: dict[str, th.Tensor]) -> None:
        """
        :param slots: of the saved rollouts
        :param state: what :meth:`state` gave
        """
        self.kept[slots] = state["kept"].to(self.kept.device)


class FrameStackStore(RingStore):
    """
    A store of stacked frames, ``shape`` being ``(C, H, W)``, that keeps each frame once.

    Consecutive observations of an episode share all frames but the newest. So a rollout has a pool of frames, and
    each observation C positions in it, from which :meth:`gather` rebuilds the same stacks. The pool grows as needed:
    any observations can be kept, at worst without saving anything. Position 0 is the black frame that begins stacks.

    Parameters as in :class:`RingStore`.
    """

    def __init__(
        self, ring_shape: tuple[int, int, int], shape: tuple[int, ...], dtype: th.dtype, device: th.device
    ) -> None:
        self.shape = shape
        self.dtype = dtype
        self.positions = RingStore(ring_shape, shape[:1], th.int32, device)
        n_rollouts, n_envs, n_steps = ring_shape
        self.pool = th.zeros((n_rollouts, 1 + n_envs * (n_steps + shape[0]), *shape[1:]), dtype=dtype, device=device)

    def begin(self, slot: int) -> None:
        self.positions.begin(slot)
        self._slot = slot
        self._frames = _staging_area(self.pool[slot])
        self._n_frames = 1

    @property
    def collected(self) -> np.ndarray:  # type: ignore[override]
        return self._frames[self.positions.collected]

    def write(self, step: int, elements: np.ndarray) -> None:
        positions = self.positions.collected
        for n, stack in enumerate(elements):
            positions[step, n] = self._find(stack, positions[step - 1, n] if step > 0 else None)

    def _find(self, stack: np.ndarray, previous: np.ndarray | None) -> list[int]:
        """Positions of the frames of a stack, those that it does not share with the previous one added."""
        n_channels = len(stack)
        if previous is not None:
            for shift in range(1, n_channels):
                if np.array_equal(stack[:-shift], self._frames[previous[shift:]]):
                    return [*previous[shift:], *map(self._add, stack[-shift:])]
        return list(map(self._add, stack))

    def _add(self, frame: np.ndarray) -> int:
        if not frame.any():
            return 0
        if self._n_frames == len(self._frames):
            self._grow()
        self._frames[self._n_frames] = frame
        self._n_frames += 1
        return self._n_frames - 1

    def _grow(self) -> None:
        collected = self._frames
        capacity = len(collected) + len(collected) // 16 + 1
        self._resize(capacity)
        self._frames = _staging_area(self.pool[self._slot])
        self._frames[: len(collected)] = collected

    def _resize(self, capacity: int) -> None:
        pool = self.pool.new_zeros((len(self.pool), capacity, *self.shape[1:]))
        pool[:, : self.pool.shape[1]] = self.pool
        self.pool = pool

    def commit(self, slot: int) -> None:
        self.positions.commit(slot)
        if self.pool.device.type != "cpu":
            self.pool[slot].copy_(th.from_numpy(self._frames))

    def gather(self, indices: th.Tensor) -> th.Tensor:
        positions = self.positions.gather(indices)  # (B, C), in the pools of their rollouts
        slots = indices // self.positions.kept[0, :, :, 0].numel()
        positions = positions + (slots * self.pool.shape[1])[:, None]
        frames = self.pool.flatten(0, 1).index_select(0, positions.flatten())
        return frames.view(-1, *self.shape)

    def state(self, slots: list[int]) -> dict[str, th.Tensor]:
        return {"pool": self.pool[slots].cpu(), "positions": self.positions.kept[slots].cpu()}

    def load_state(self, slots: list[int], state: dict[str, th.Tensor]) -> None:
        capacity = state["pool"].shape[1]
        if capacity > self.pool.shape[1]:
            self._resize(capacity)
        self.pool[slots, :capacity] = state["pool"].to(self.pool.device)
        self.positions.load_state(slots, {"kept": state["positions"]})


def _staging_area(place: th.Tensor) -> np.ndarray:
    """The memory of a tensor on the CPU, or an array in host memory for one on another device."""
    return place.numpy() if place.device.type == "cpu" else th.zeros_like(place, device="cpu").numpy()
