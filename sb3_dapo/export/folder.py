"""The folder of an exported model: its files, what they may hold, and how what does not fit is refused."""

import hashlib
import json
import math
import os
import re
import reprlib
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors.torch
import torch as th

Tensors = dict[str, th.Tensor]

DESCRIPTION, PARAMETERS, STATISTICS = "model.json", "policy.safetensors", "vec_normalize.safetensors"

# Limits for what a file may ask for
MAX_JSON_BYTES = 2**20
MAX_JSON_DEPTH = 16
MAX_DIGITS = 40
MAX_TENSOR_BYTES = 2**31  # in all tensors of a file
MAX_HEADER_BYTES = 2**20  # of a file of tensors


class ExportError(ValueError):
    """A model cannot be exported, or an exported model is refused. The message says what is wrong with it."""


@contextmanager
def naming(what: str | Path) -> Iterator[None]:
    """Begin the messages of all refusals with ``what``."""
    try:
        yield
    except ExportError as error:
        raise ExportError(f"{what}: {error}") from error.__cause__


@contextmanager
def refusing(what: str) -> Iterator[None]:
    """Turn whatever a library says of values from a file into an ``ExportError`` that begins with ``what``."""
    try:
        yield
    except ExportError:
        raise
    except Exception as error:
        raise ExportError(f"{what}: {type(error).__name__}: {error}") from error


def short(value: Any) -> str:
    """:return: a value from a file for a message, shortened if it is long"""
    shortened = reprlib.Repr()
    shortened.maxstring = shortened.maxother = 80
    return shortened.repr(value)


# --- files --------------------------------------------------------------------------------------------


def write_folder(folder: Path, files: dict[str, bytes], check: Callable[[Path], Any]) -> None:
    """Write or replace a folder at once: under another name next to it, which changes when ``check`` raises nothing."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{folder.name}."
    with tempfile.TemporaryDirectory(prefix=prefix, dir=folder.parent, ignore_cleanup_errors=True) as temporary:
        new, old = Path(temporary, "new"), Path(temporary, "old")
        new.mkdir()
        for name, data in files.items():
            with (new / name).open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        check(new)
        try:
            if folder.exists():
                folder.rename(old)
            new.rename(folder)
        finally:  # also if the user interrupts it
            if old.exists() and not folder.exists():
                old.rename(folder)


def read_file(folder: Path, name: str, limit: int) -> bytes:
    """:return: the contents of a file that is no link, pipe or folder, and has ``limit`` bytes at most"""
    path = folder / name
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        raise ExportError(f"there is no {name}") from None
    if stat.S_ISLNK(mode):
        advice = "Copy the file itself; from the Hugging Face Hub, download with snapshot_download(..., local_dir=...)"
        raise ExportError(f"{name} is a symbolic link, and might lead anywhere. {advice}")
    if not stat.S_ISREG(mode):
        raise ExportError(f"{name} is not a file")
    with path.open("rb") as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise ExportError(f"{name} is larger than the {limit} bytes that it may have")
    return data


# --- JSON ---------------------------------------------------------------------------------------------


def dump_json(value: dict[str, Any]) -> bytes:
    """:return: a value in JSON, for people to read. One that takes too many bytes is refused"""
    text = json.dumps(value, indent=2, allow_nan=False)
    # Plain lists on one line. A line break is never part of a string in JSON
    text = re.sub(r"\[\n\s+([^][{}]*?)\n\s+\]", lambda found: "[" + re.sub(r"\n\s+", " ", found[1]) + "]", text)
    data = f"{text}\n".encode()
    if len(data) > MAX_JSON_BYTES:
        raise ExportError(f"its description would be larger than the {MAX_JSON_BYTES} bytes that it may have")
    return data


def parse_json(data: bytes) -> Any:
    """Parse JSON more strictly than Python: nothing twice, all numbers finite and short, and few levels."""

    def to_number(text: str, kind: Any = float) -> Any:
        number = kind(text) if len(text) <= MAX_DIGITS else math.inf
        if not math.isfinite(number) or (kind is int and not -(2**63) <= number < 2**64):
            raise ExportError(f"a number is too large, too long or not finite: {short(text)}")
        return number

    def to_dict(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        entries = dict(pairs)
        if len(entries) < len(pairs):
            raise ExportError(f"an entry is there twice, among {short(sorted(entries))}")
        return entries

    hooks: dict[str, Any] = {"parse_float": to_number, "parse_constant": to_number, "object_pairs_hook": to_dict}
    try:
        value = json.loads(data.decode("utf-8"), parse_int=lambda text: to_number(text, int), **hooks)
    except ExportError:
        raise
    except (ValueError, RecursionError) as error:
        raise ExportError(f"it is not JSON: {error}") from error
    level = [value]
    for _ in range(MAX_JSON_DEPTH):
        parents = [item.values() if isinstance(item, dict) else item for item in level if isinstance(item, dict | list)]
        level = [child for parent in parents for child in parent]
    if level:
        raise ExportError(f"it is nested deeper than {MAX_JSON_DEPTH} levels")
    return value


# --- tensors ------------------------------------------------------------------------------------------


def distinct_tensors(policy: th.nn.Module) -> Tensors:
    """:return: tensors of the policy's state. One with several names, as in a shared extractor, has the first"""
    state = getattr(policy, "_orig_mod", policy).state_dict(keep_vars=True)
    for name, tensor in state.items():
        if not isinstance(tensor, th.Tensor):
            raise ExportError(f"the policy's {name!r} must be a tensor, got {type(tensor).__name__}")
    first_names = {id(tensor): name for name, tensor in reversed(state.items())}
    return {name: state[name] for name in sorted(first_names.values())}


def n_bytes_of(file_name: str, tensors: Tensors) -> int:
    """:return: bytes of the tensors. More than a file may have are refused"""
    n_bytes = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    if n_bytes > MAX_TENSOR_BYTES:
        limit = f"{MAX_TENSOR_BYTES / 2**30:.3g}"
        raise ExportError(f"{file_name} would hold {n_bytes / 2**30:.3g} GiB, but {limit} is allowed")
    return n_bytes


def dump_tensors(tensors: Tensors) -> bytes:
    """:return: tensors as a file of safetensors"""
    with refusing("the parameters cannot be written"):
        return safetensors.torch.save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})


def read_tensors(folder: Path, name: str, sha256: dict[str, str], n_bytes: int) -> Tensors:
    """:return: the tensors in a file that has its checksum, and ``n_bytes`` of them at most"""
    data = read_file(folder, name, n_bytes + MAX_HEADER_BYTES)
    if hashlib.sha256(data).hexdigest() != sha256[name]:
        raise ExportError(f"{name} is damaged, or not the one that belongs to {DESCRIPTION}: its SHA-256 is another")
    with refusing(f"{name} is not a file of safetensors"):
        return safetensors.torch.load(data)


def check_tensors(file_name: str, tensors: Tensors, expected: Tensors) -> None:
    """Refuse tensors that have other names, shapes and dtypes than the expected ones."""
    missing, unknown = sorted(expected.keys() - tensors.keys()), sorted(tensors.keys() - expected.keys())
    if missing or unknown:
        raise ExportError(f"{file_name} lacks tensors: {short(missing)}, and has others: {short(unknown)}")
    for name, wanted in sorted(expected.items()):
        (shape, dtype), found = ((tuple(tensor.shape), tensor.dtype) for tensor in (wanted, tensors[name]))
        if found != (shape, dtype):
            got = f"{short(found[0])} and {found[1]}"
            raise ExportError(f"{file_name}: {short(name)} must be of shape {shape} and {dtype}, got {got}")
