"""Where observations, actions and other inputs of the policy are kept: as they are, or each frame of a stack once."""

from typing import NamedTuple

import numpy as np
import torch as th


class FrameStacks(NamedTuple):
    """Stacks of frames, of which consecutive ones share most: each frame once."""

    frames: np.ndarray
    """Shape ``(F, H, W)``. The first is black: it begins the stacks of an episode."""
    positions: np.ndarray
    """Places of the frames of each stack among them, shape ``(T, N, C)``."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the stacks, ``(T, N, C, H, W)``."""
        return (*self.positions.shape, *self.frames.shape[1:])

    def whole(self) -> np.ndarray:
        """
        :return: the stacks, ``(T, N, C, H, W)``
        """
        return self.frames[self.positions]


# What a rollout has of one kind: an array (T, N, *shape), or the same in the form of frames
Column = np.ndarray | FrameStacks


class ArrayRecord:
    """One kind of array ``(T, N, *shape)`` of a rollout that is being collected."""

    def __init__(self, n_steps: int, n_envs: int, shape: tuple[int, ...], dtype: np.dtype) -> None:
        # As the ring keeps it, environment by environment, so that it is copied there as one piece
        self.column = np.zeros((n_envs, n_steps, *shape), dtype).swapaxes(0, 1)
        """What has been written."""

    def write(self, step: int, elements: np.ndarray) -> None:
        """
        :param step: t
        :param elements: of all environments, N times the shape
        """
        place = self.column[step]
        # SB3 keeps Discrete observations as (N, 1), and actions flat
        place[...] = np.asarray(elements).reshape(place.shape)


class FrameStackRecord:
    """
    The same for stacks of frames, ``shape`` being ``(C, H, W)``: a frame that the stack before has too is not written
    again. Any stacks can be recorded, at worst without saving anything.
    """

    def __init__(self, n_steps: int, n_envs: int, shape: tuple[int, ...], dtype: np.dtype) -> None:
        self._positions = np.zeros((n_envs, n_steps, shape[0]), np.int32).swapaxes(0, 1)
        self._frames = np.zeros((n_frames(n_steps, n_envs, shape), *shape[1:]), dtype)
        self._n_frames = 1

    def write(self, step: int, elements: np.ndarray) -> None:
        for n, stack in enumerate(elements):
            self._positions[step, n] = self._find(stack, self._positions[step - 1, n] if step > 0 else None)

    def _find(self, stack: np.ndarray, previous: np.ndarray | None) -> list[int]:
        """Positions of the frames of a stack, those that it does not share with the previous one added."""
        if previous is not None:
            for shift in range(1, len(stack)):
                if np.array_equal(stack[:-shift], self._frames[previous[shift:]]):
                    return [*previous[shift:], *map(self._add, stack[-shift:])]
        return list(map(self._add, stack))

    def _add(self, frame: np.ndarray) -> int:
        if not frame.any():
            return 0
        if self._n_frames == len(self._frames):
            more = np.zeros((len(self._frames) // 16 + 1, *frame.shape), frame.dtype)
            self._frames = np.concatenate([self._frames, more])
        self._frames[self._n_frames] = frame
        self._n_frames += 1
        return self._n_frames - 1

    @property
    def column(self) -> FrameStacks:
        return FrameStacks(self._frames[: self._n_frames], self._positions)


class RingStore:
    """
    One kind of array of the kept rollouts, on the training device.

    :param ring_shape: ``(K, N, T)``
    :param shape: of an element
    :param dtype: of an element
    :param device: PyTorch device
    """

    def __init__(
        self, ring_shape: tuple[int, int, int], shape: tuple[int, ...], dtype: th.dtype, device: th.device
    ) -> None:
        self.shape = shape
        self.dtype = dtype
        self.kept = th.zeros((*ring_shape, *shape), dtype=dtype, device=device)

    def put(self, slot: int, column: Column) -> None:
        """
        :param slot: place of a rollout
        :param column: its elements, ``(T, N, *shape)``
        """
        array = column.whole() if isinstance(column, FrameStacks) else column
        self.kept[slot].copy_(as_tensor(array).transpose(0, 1))

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
    The same for stacks of frames, each frame kept once: a rollout has a pool of frames, and each stack C positions in
    it, from which :meth:`gather` rebuilds it. The pools grow as needed.
    """

    def __init__(
        self, ring_shape: tuple[int, int, int], shape: tuple[int, ...], dtype: th.dtype, device: th.device
    ) -> None:
        self.shape = shape
        self.dtype = dtype
        self.positions = RingStore(ring_shape, shape[:1], th.int32, device)
        n_rollouts, n_envs, n_steps = ring_shape
        capacity = n_frames(n_steps, n_envs, shape)
        self.pool = th.zeros((n_rollouts, capacity, *shape[1:]), dtype=dtype, device=device)

    def put(self, slot: int, column: Column) -> None:
        if not isinstance(column, FrameStacks):
            n_steps, n_envs = column.shape[:2]
            record = FrameStackRecord(n_steps, n_envs, self.shape, column.dtype)
            for t, stacks in enumerate(column):
                record.write(t, stacks)
            column = record.column
        self._reserve(len(column.frames))
        self.pool[slot, : len(column.frames)].copy_(as_tensor(column.frames))
        self.positions.put(slot, column.positions)

    def _reserve(self, capacity: int) -> None:
        if capacity > self.pool.shape[1]:
            pool = self.pool.new_zeros((len(self.pool), capacity, *self.shape[1:]))
            pool[:, : self.pool.shape[1]] = self.pool
            self.pool = pool

    def gather(self, indices: th.Tensor) -> th.Tensor:
        positions = self.positions.gather(indices)  # (B, C), in the pools of their rollouts
        slots = indices // self.positions.kept[0, :, :, 0].numel()
        positions = positions + (slots * self.pool.shape[1])[:, None]
        frames = self.pool.flatten(0, 1).index_select(0, positions.flatten())
        return frames.view(-1, *self.shape)

    def state(self, slots: list[int]) -> dict[str, th.Tensor]:
        return {"pool": self.pool[slots].cpu(), "positions": self.positions.kept[slots].cpu()}

    def load_state(self, slots: list[int], state: dict[str, th.Tensor]) -> None:
        self._reserve(state["pool"].shape[1])
        self.pool[slots, : state["pool"].shape[1]] = state["pool"].to(self.pool.device)
        self.positions.load_state(slots, {"kept": state["positions"]})


def n_frames(n_steps: int, n_envs: int, shape: tuple[int, ...]) -> int:
    """:return: how many frames of stacks ``(C, H, W)`` a rollout has if no episode ends, with the black one"""
    return 1 + n_envs * (n_steps + shape[0])


def as_tensor(array: np.ndarray) -> th.Tensor:
    """:return: an array as a tensor; one that cannot be written to, as other processes share it, is copied"""
    return th.from_numpy(np.require(array, requirements="W"))
