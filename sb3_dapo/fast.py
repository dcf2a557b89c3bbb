"""Faster ways to compute the same: the Nature CNN, Adam, and memory that the C library keeps."""

import ctypes
import platform
import time
from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache

import torch as th
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import NatureCNN
from torch.nn import functional as F

from sb3_dapo.distributions import is_lean, set_lean

# Size and stride of the first convolution of the Nature CNN: its kernel covers 2 x 2 blocks of 4 x 4 pixels
BLOCK = 4

# Parameters of glibc's mallopt(3)
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
KEPT_BYTES = 2**30
# What older versions of glibc allow, which refuse more
MAX_OLD_MMAP_THRESHOLD = 2**25

# Computes one half of the images of a step, in a context of `in_halves`
_second_thread: ContextVar[Executor | None] = ContextVar("_second_thread", default=None)


def fast_nature_cnn(extractor: NatureCNN, images: th.Tensor) -> th.Tensor:
    """
    The function of SB3's ``NatureCNN`` on images that are not normalized yet, computed in another order.

    Bytes are rearranged before they become floats, their scale is applied to the first kernel, the 4 x 4 blocks of
    pixels become channels, so that the first convolution is one of 2 x 2 over 16 times the channels, and channels lie
    last in memory.

    :param extractor: the network
    :param images: bytes ``(B, C, H, W)``
    :return: features ``(B, features_dim)``, equal to the extractor's within float tolerance
    """
    executor, half = _second_thread.get(), len(images) // 2
    # bfloat16 gains nothing by it
    if executor is None or half == 0 or th.is_grad_enabled() or th.is_autocast_enabled(images.device.type):
        return _fast_nature_cnn(extractor, images)
    second = executor.submit(th.no_grad()(_fast_nature_cnn), extractor, images[half:])
    return th.cat([_fast_nature_cnn(extractor, images[:half]), second.result()])


def _fast_nature_cnn(extractor: NatureCNN, images: th.Tensor) -> th.Tensor:
    first, *others = extractor.cnn
    assert isinstance(first, th.nn.Conv2d)
    weight = first.weight / 255.0
    # Bytes are exact in bfloat16: where it is what convolutions compute in, floats in between would only take time
    device = images.device.type
    dtype = th.get_autocast_dtype(device) if th.is_autocast_enabled(device) else weight.dtype
    if images.shape[2] % BLOCK == 0 and images.shape[3] % BLOCK == 0:
        x = F.conv2d(blocks_to_channels(images).to(dtype), _blocked_kernel(weight), first.bias)
    else:
        images = images.contiguous(memory_format=th.channels_last).to(dtype)
        x = F.conv2d(images, weight.contiguous(memory_format=th.channels_last), first.bias, stride=BLOCK)
    for layer in others:
        x = layer(x)
    return extractor.linear(x)


def blocks_to_channels(images: th.Tensor) -> th.Tensor:
    """
    :param images: bytes ``(B, C, H, W)``, H and W multiples of 4
    :return: ``(B, 16 C, H/4, W/4)``, channels last in memory: the pixels of each block of 4 x 4
    """
    batch, channels, height, width = images.shape
    # Four neighbouring bytes are moved as one integer
    rows = images.reshape(-1).view(th.int32).view(batch, channels, height // BLOCK, BLOCK, width // BLOCK)
    blocks = rows.permute(0, 2, 4, 1, 3).contiguous().view(th.uint8)
    return blocks.view(batch, height // BLOCK, width // BLOCK, BLOCK * BLOCK * channels).permute(0, 3, 1, 2)


def _blocked_kernel(weight: th.Tensor) -> th.Tensor:
    """The kernel ``(O, C, 8, 8)`` as ``(O, 16 C, 2, 2)``, for the channels of :func:`blocks_to_channels`."""
    out_channels, channels, size, _ = weight.shape
    n = size // BLOCK
    kernel = weight.view(out_channels, channels, n, BLOCK, n, BLOCK).permute(0, 1, 3, 5, 2, 4)
    return kernel.reshape(out_channels, -1, n, n).contiguous(memory_format=th.channels_last)


@contextmanager
def threads(number: int) -> Iterator[None]:
    """Context in which PyTorch computes in so many threads."""
    before = th.get_num_threads()
    th.set_num_threads(number)
    try:
        yield
    finally:
        th.set_num_threads(before)


@contextmanager
def in_halves() -> Iterator[None]:
    """
    Context in which :func:`fast_nature_cnn` computes without gradients in two threads, half of the images in each.
    Unlike PyTorch's own threads, these sleep as soon as they are done.
    """
    with ThreadPoolExecutor(1, initializer=th.set_num_threads, initargs=(1,)) as executor:
        token = _second_thread.set(executor)
        try:
            yield
        finally:
            _second_thread.reset(token)


@cache
def bfloat16_pays() -> bool:
    """
    :return: whether this CPU multiplies matrices clearly faster in bfloat16, as a trial shows. With units for it, that
        takes half the time, without them longer: so the answer is the same each time
    """
    matrices = [th.ones(512, 1024, dtype=dtype) for dtype in (th.float32, th.bfloat16)]

    def seconds(matrix: th.Tensor) -> float:
        begin = time.perf_counter()
        _ = matrix @ matrix.t()
        return time.perf_counter() - begin

    with threads(1):  # others at work would disturb several
        times = [[seconds(matrix) for matrix in matrices] for _ in range(10)]
    in_float32, in_bfloat16 = map(min, zip(*times, strict=True))
    return in_bfloat16 < 0.75 * in_float32


def set_fast(policy: ActorCriticPolicy, fast: bool) -> None:
    """
    :param policy: a policy
    :param fast: whether its Nature CNN, its distribution and its Adam compute in their fast forms, equal within float
        tolerance
    """
    if isinstance(getattr(policy, "fast", None), bool):
        if fast and not policy.fast and policy.device.type == "cpu":
            keep_freed_memory()
        policy.fast = fast  # type: ignore[assignment]
        policy.features_extractor.to(memory_format=th.channels_last if fast else th.contiguous_format)  # type: ignore[call-overload]
    set_lean(policy, fast)
    optimizer = policy.optimizer
    if type(optimizer) in (th.optim.Adam, th.optim.AdamW) and not optimizer.defaults["foreach"]:
        for group in optimizer.param_groups:
            group["fused"] = fast or optimizer.defaults["fused"]
            for parameter in group["params"]:
                state = optimizer.state[parameter]
                if "step" in state:
                    # the fused form counts its steps on the device, and reads the averages in the parameter's order
                    state["step"] = state["step"].to(parameter.device if group["fused"] else "cpu")
                    for name in state.keys() - {"step"}:
                        if state[name].stride() != parameter.stride():
                            state[name] = th.empty_like(parameter).copy_(state[name])


def is_fast(policy: ActorCriticPolicy) -> bool:
    """:return: whether a policy computes in its fast form"""
    fast = getattr(policy, "fast", None)
    return fast if isinstance(fast, bool) else is_lean(policy)


def keep_freed_memory() -> None:
    """
    Have this process keep up to a GiB of freed memory for what it allocates next. The activations of a minibatch are
    freed all at once: glibc would return them to the system, and fetch them again page by page for the next minibatch,
    which takes a fifth of an update. Does nothing where the C library is another one.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)
        if not libc.mallopt(M_MMAP_THRESHOLD, KEPT_BYTES):
            libc.mallopt(M_MMAP_THRESHOLD, MAX_OLD_MMAP_THRESHOLD)
