"""
What an exported model says of itself in JSON: spaces, classes, schedules and other arguments, described as data.

Reading believes nothing. Classes are named, and looked up in the tables below; types are those of the arguments that
the values are for; and sizes are limited before anything of that size is built.
"""

import collections.abc
import inspect
import json
import math
import re
import reprlib
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, Union, get_args, get_origin

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.sb2_compat.rmsprop_tf_like import RMSpropTFLike
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, CombinedExtractor, FlattenExtractor, NatureCNN
from stable_baselines3.common.utils import ConstantSchedule, FloatSchedule, LinearSchedule

from sb3_dapo.controllers import AdaptiveController, DualController
from sb3_dapo.divergences import DIVERGENCES, Divergence, Tsallis

# Limits for what a file may ask for
MAX_JSON_DEPTH = 16
MAX_DIGITS = 40
MAX_SPACE_SIZE = 2**22  # numbers in an observation or an action
MAX_LENGTH = 256  # layers of a network, keys of a Dict space

ACTIVATIONS = (
    *("CELU", "ELU", "GELU", "Hardsigmoid", "Hardswish", "Hardtanh", "Identity", "LeakyReLU", "Mish"),
    *("ReLU", "ReLU6", "SELU", "SiLU", "Sigmoid", "Softplus", "Softsign", "Tanh", "Tanhshrink"),
)
EXTRACTORS = (FlattenExtractor, NatureCNN, CombinedExtractor)
OPTIMIZERS = (th.optim.Adam, th.optim.AdamW, th.optim.RMSprop, th.optim.SGD, RMSpropTFLike)

# What a description may name, by what an argument asks for
CLASSES: dict[type, dict[str, type]] = {
    th.nn.Module: {name: getattr(th.nn, name) for name in ACTIVATIONS},
    BaseFeaturesExtractor: {cls.__name__: cls for cls in EXTRACTORS},
    th.optim.Optimizer: {cls.__name__: cls for cls in OPTIMIZERS},
}
OBJECTS: dict[str, type] = {cls.__name__: cls for cls in (LinearSchedule, AdaptiveController, DualController, Tsallis)}

DTYPES = ("float16", "float32", "float64", *(f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)))
SPACE_FIELDS: dict[str, dict[str, Any]] = {
    "Box": {"shape": list[int], "dtype": Literal[DTYPES], "low": Any, "high": Any},
    "Discrete": {"n": int, "start": int, "dtype": Literal[DTYPES]},
    "MultiDiscrete": {"nvec": list[int], "start": list[int], "dtype": Literal[DTYPES]},
    "MultiBinary": {"n": int | list[int]},
    "Dict": {"spaces": dict[str, Any]},
}
SIZES = {"Box": "shape", "Discrete": "n", "MultiDiscrete": "nvec", "MultiBinary": "n"}


class ExportError(ValueError):
    """A model cannot be exported, or an exported model is refused. The message says what is wrong with it."""


class NotDescribableError(Exception):
    """A value has no description in JSON."""


@contextmanager
def refusing(what: str) -> Iterator[None]:
    """
    Turn whatever a library says of values from a file into an ``ExportError``.

    :param what: beginning of the message
    """
    try:
        yield
    except ExportError:
        raise
    except Exception as error:
        raise ExportError(f"{what}: {type(error).__name__}: {error}") from error


def short(value: Any) -> str:
    """
    :param value: anything from a file
    :return: it for a message, shortened if it is long
    """
    shortened = reprlib.Repr()
    shortened.maxstring = shortened.maxother = 80
    return shortened.repr(value)


def annotations_of(function: Callable[..., Any]) -> dict[str, Any]:
    """
    :param function: function or class
    :return: the types of its arguments by name, without ``*args`` and ``**kwargs``
    """
    parameters = inspect.signature(function, eval_str=True).parameters.values()
    named = [x for x in parameters if x.kind not in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)]
    return {parameter.name: parameter.annotation for parameter in named}


# --- JSON ---------------------------------------------------------------------------------------------


def dump_json(value: dict[str, Any]) -> bytes:
    """
    :param value: what can be written in JSON
    :return: it in JSON, for people to read
    """
    text = json.dumps(value, indent=2, allow_nan=False)
    # Plain lists on one line. A line break is never part of a string in JSON
    text = re.sub(r"\[\n\s+([^][{}]*?)\n\s+\]", lambda found: "[" + re.sub(r"\n\s+", " ", found[1]) + "]", text)
    return f"{text}\n".encode()


def parse_json(data: bytes) -> Any:
    """
    Parse JSON more strictly than Python does.

    :param data: JSON
    :return: what it stands for
    :raises ExportError: if it is not JSON, has an entry twice, a number that is not finite, or too many levels
    """

    def to_number(text: str, kind: Callable[[str], Any]) -> Any:
        number = kind(text) if len(text) <= MAX_DIGITS else math.inf
        if not math.isfinite(number) or (kind is int and not -(2**63) <= number < 2**64):
            raise ExportError(f"a number is too large, too long or not finite: {short(text)}")
        return number

    def to_dict(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        entries = dict(pairs)
        if len(entries) < len(pairs):
            raise ExportError(f"an entry is there twice, among {short(sorted(entries))}")
        return entries

    try:
        value = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=to_dict,
            parse_int=lambda text: to_number(text, int),
            parse_float=lambda text: to_number(text, float),
            parse_constant=lambda text: to_number(text, float),
        )
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


# --- values -------------------------------------------------------------------------------------------


def encode(value: Any) -> Any:
    """
    :param value: a value
    :return: its description
    :raises NotDescribableError: if it has none
    """
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float) and not math.isnan(value):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, list | tuple):
        return [encode(element) for element in value]
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {key: encode(element) for key, element in value.items()}
    if isinstance(value, type):
        # By identity: another class may have the same name
        for name, cls in (named for classes in CLASSES.values() for named in classes.items()):
            if value is cls:
                return name
        raise NotDescribableError
    return _encode_object(value)


def _encode_object(value: Any) -> Any:
    # A schedule of RL Zoo can only come from there. LinearSchedule is the same function
    zoo = sys.modules.get("rl_zoo3.utils")
    if zoo is not None and type(value) is zoo.SimpleLinearSchedule:
        value = LinearSchedule(value.initial_value, 0.0, 1.0)
    if type(value) is FloatSchedule:
        return encode(value.value_schedule)
    if type(value) is ConstantSchedule:
        return encode(value.val)
    if isinstance(value, Divergence):
        for name, divergence in DIVERGENCES.items():
            if type(value) is type(divergence) and vars(value) == vars(divergence):
                return name
    if type(value) in OBJECTS.values():
        names = annotations_of(type(value))
        # A controller goes on from where it is
        attributes = {name: "coefficient" if name == "initial" else name for name in names}
        return {"type": type(value).__name__} | {name: encode(getattr(value, attributes[name])) for name in names}
    raise NotDescribableError


def decode(value: Any, annotation: Any, where: str) -> Any:
    """
    :param value: description of a value
    :param annotation: type of the argument that it is for
    :param where: its place in the file, for messages
    :return: the value
    :raises ExportError: if it is not of that type
    """
    is_union = get_origin(annotation) in (Union, types.UnionType)
    for option in get_args(annotation) if is_union else (annotation,):
        fits, decoded = _decode_as(value, option, where)
        if fits:
            return decoded
    raise ExportError(f"`{where}` must be {_allowed(annotation)}, got {short(value)}")


def _allowed(annotation: Any) -> str:
    """:return: what a value of that type may be, for messages"""
    if get_origin(annotation) is type:
        return f"one of {sorted(CLASSES.get(get_args(annotation)[0], {}))}"
    return inspect.formatannotation(annotation)


def _decode_as(value: Any, option: Any, where: str) -> tuple[bool, Any]:
    """
    :param value: description of a value
    :param option: type that is not a union
    :param where: its place in the file
    :return: whether it is of that type; and the value, if it is
    """
    origin, args = get_origin(option), get_args(option)
    if option in (Any, inspect.Parameter.empty):
        return True, value
    if option in (bool, int, str, types.NoneType):
        return type(value) is option, value
    if option is float:
        return (True, float(value)) if value in ("inf", "-inf") else (type(value) in (int, float), value)
    if origin is Literal:
        return any(type(value) is type(allowed) and value == allowed for allowed in args), value
    if origin in (list, tuple) and isinstance(value, list):
        kinds = args * len(value) if origin is list else args
        items = [decode(item, kind, f"{where}[{i}]") for i, (item, kind) in enumerate(zip(value, kinds, strict=False))]
        return len(kinds) == len(value), origin(items)
    if origin is dict and isinstance(value, dict):
        return True, {key: decode(item, args[1], f"{where}.{key[:MAX_DIGITS]}") for key, item in value.items()}
    if origin is type and isinstance(value, str):
        classes = CLASSES.get(args[0], {})
        return value in classes, classes.get(value)
    if isinstance(value, dict) and isinstance(value.get("type"), str) and value["type"] in OBJECTS:
        cls = OBJECTS[value["type"]]
        is_schedule = origin is collections.abc.Callable
        fits = cls is LinearSchedule if is_schedule else isinstance(option, type) and issubclass(cls, option)
        return fits, _decode_object(value, cls, where) if fits else None
    return False, None


def _decode_object(value: dict[str, Any], cls: type, where: str) -> Any:
    arguments = decode_fields(value, {"type": str, **annotations_of(cls)}, where)
    del arguments["type"]
    with refusing(f"`{where}`"):
        decoded = cls(**arguments)
        if cls is LinearSchedule and not all(math.isfinite(decoded(progress)) for progress in (1.0, 0.5, 0.0)):
            raise ExportError(f"`{where}` must be finite, got {short(value)}")
        return decoded


def decode_arguments(value: dict[str, Any], annotations: dict[str, Any], where: str) -> dict[str, Any]:
    """
    :param value: described arguments
    :param annotations: types of the arguments that there are
    :param where: place in the file
    :return: the arguments, without those that are not described
    :raises ExportError: if there is another one, or one of another type
    """
    for name in value:
        if name not in annotations:
            raise ExportError(f"`{where}` has an entry that is not known here: {short(name)}")
    return {name: decode(item, annotations[name], f"{where}.{name}".lstrip(".")) for name, item in value.items()}


def decode_fields(value: Any, annotations: dict[str, Any], where: str) -> dict[str, Any]:
    """
    As :func:`decode_arguments`, but all must be there.

    :param value: described fields
    :param annotations: types of the fields
    :param where: place in the file
    :return: the fields
    :raises ExportError: if they are others, or one is of another type
    """
    if not isinstance(value, dict) or set(value) != set(annotations):
        got = short(sorted(value) if isinstance(value, dict) else value)
        subject = f"`{where}`" if where else "it"
        raise ExportError(f"{subject} must have the entries {sorted(annotations)}, got {got}")
    return decode_arguments(value, annotations, where)


# --- spaces -------------------------------------------------------------------------------------------


def encode_space(space: spaces.Space[Any]) -> dict[str, Any]:
    """
    :param space: a space
    :return: its description
    :raises ExportError: if it has none
    """
    fields: dict[str, Any]
    if type(space) is spaces.Box:
        low, high = _encode_bounds(space.low), _encode_bounds(space.high)
        fields = {"shape": list(space.shape), "dtype": str(space.dtype), "low": low, "high": high}
    elif type(space) is spaces.Discrete:
        fields = {"n": encode(space.n), "start": encode(space.start), "dtype": str(space.dtype)}
    elif type(space) is spaces.MultiDiscrete and space.nvec.ndim == 1:
        fields = {"nvec": space.nvec.tolist(), "start": space.start.tolist(), "dtype": str(space.dtype)}
    elif type(space) is spaces.MultiBinary:
        fields = {"n": encode(space.n)}
    elif type(space) is spaces.Dict:
        fields = {"spaces": {key: encode_space(subspace) for key, subspace in space.spaces.items()}}
    else:
        raise ExportError(
            f"the space {space} cannot be described: it must be a Box, Discrete, MultiDiscrete with one dimension, "
            f"MultiBinary or a Dict of these"
        )
    return {"type": type(space).__name__, **fields}


def _encode_bounds(bounds: np.ndarray) -> Any:
    """
    :param bounds: lower or upper bounds of a Box
    :return: one number if they are all the same, otherwise a list of them
    """
    same = bounds.size > 0 and bool((bounds == bounds.flat[0]).all())
    return encode(bounds.flat[0]) if same else encode(bounds.flatten().tolist())


def decode_space(value: Any, where: str, limit: int = MAX_SPACE_SIZE) -> spaces.Space[Any]:
    """
    :param value: description of a space
    :param where: its place in the file
    :param limit: how many numbers an element of the space may have, Discrete ones as one-hot vectors
    :return: the space
    :raises ExportError: if there is no such space, or if it is too large
    """
    kind = value.get("type") if isinstance(value, dict) else None
    if not isinstance(kind, str) or kind not in SPACE_FIELDS:
        raise ExportError(f"`{where}` must be of a type in {sorted(SPACE_FIELDS)}, got {short(value)}")
    fields = decode_fields(value, {"type": str, **SPACE_FIELDS[kind]}, where)
    if kind == "Dict":
        return _decode_dict_space(fields["spaces"], f"{where}.spaces", limit)

    size = fields[SIZES[kind]]
    numbers = size if isinstance(size, list) else [size]
    is_within = len(numbers) <= limit and all(0 <= number <= limit for number in numbers)
    if not is_within or (sum(numbers) if kind == "MultiDiscrete" else math.prod(numbers)) > limit:
        raise ExportError(
            f"`{where}` is too large, or has a negative size: {short(size)}. A space may have {MAX_SPACE_SIZE} numbers "
            f"in all"
        )
    with refusing(f"`{where}` is not a space"):
        if kind == "MultiBinary":
            return spaces.MultiBinary(size)
        dtype: Any = np.dtype(fields["dtype"])
        if kind == "Box":
            low = _decode_bounds(fields["low"], tuple(size), dtype, f"{where}.low")
            high = _decode_bounds(fields["high"], tuple(size), dtype, f"{where}.high")
            return spaces.Box(low, high, tuple(size), dtype.type)
        if kind == "MultiDiscrete":
            return spaces.MultiDiscrete(np.array(size, dtype), dtype.type, start=np.array(fields["start"], dtype))
        # Older versions of Gymnasium know no other type than int64
        choice = {} if dtype == np.int64 else {"dtype": dtype.type}
        return spaces.Discrete(size, start=fields["start"], **choice)


def _decode_dict_space(described: dict[str, Any], where: str, limit: int) -> spaces.Dict:
    if len(described) > MAX_LENGTH:
        raise ExportError(f"`{where}` must have at most {MAX_LENGTH} entries, got {len(described)}")
    subspaces: list[tuple[str, spaces.Space[Any]]] = []
    for key, subspace in described.items():
        place = f"{where}.{key[:MAX_DIGITS]}"
        if isinstance(subspace, dict) and subspace.get("type") == "Dict":
            raise ExportError(f"`{place}` must not be a Dict in a Dict")
        subspaces.append((key, decode_space(subspace, place, limit)))
        limit -= spaces.flatdim(subspaces[-1][1])
    return spaces.Dict(subspaces)  # of a list, which keeps its order


def _decode_bounds(value: Any, shape: tuple[int, ...], dtype: Any, where: str) -> np.ndarray:
    """
    :param value: a number for all elements of a Box, or a list with one for each
    :param shape: shape of the Box
    :param dtype: dtype of the Box
    :param where: place in the file
    :return: the bounds
    """
    decoded = decode(value, float | list[float], where)
    numbers = np.array(decoded, dtype=object if np.issubdtype(dtype, np.integer) else np.float64)
    if numbers.ndim == 1 and numbers.size != math.prod(shape):
        raise ExportError(f"`{where}` must have {math.prod(shape)} numbers, got {numbers.size}")
    with np.errstate(over="ignore"):
        bounds = numbers.astype(dtype)
    if np.any(bounds != numbers):
        raise ExportError(f"`{where}` must have numbers of type {dtype}, got {short(decoded)}")
    return np.broadcast_to(bounds, shape).copy() if numbers.ndim == 0 else bounds.reshape(shape)
