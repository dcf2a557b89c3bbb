"""
What an exported model says of itself: spaces, classes, schedules and other arguments, described as values of JSON.

Reading believes nothing. Classes are named, and looked up in the tables below, which a module with more of them may
extend; types are those of the arguments that the values are for; and sizes are limited before anything of that size is
built.
"""

import collections.abc
import inspect
import math
import sys
import types
from typing import Any, Literal, Union, get_args, get_origin

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.sb2_compat.rmsprop_tf_like import RMSpropTFLike
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, CombinedExtractor, FlattenExtractor, NatureCNN
from stable_baselines3.common.utils import ConstantSchedule, FloatSchedule, LinearSchedule
from torch.optim import SGD, Adam, AdamW, RMSprop

from sb3_dapo.arguments import arguments_of
from sb3_dapo.controllers import AdaptiveController, DualController
from sb3_dapo.divergences import DIVERGENCES, Tsallis
from sb3_dapo.export.folder import MAX_DIGITS, ExportError, refusing, short
from sb3_dapo.minatar import MinAtarCnn

# Limits for what a file may ask for
MAX_SPACE_SIZE = 2**22  # numbers in an observation or an action
MAX_LENGTH = 256  # layers of a network, keys of a Dict space

# What a description may name, by what an argument asks for
CLASSES: dict[type, dict[str, type]] = {
    th.nn.Module: {name: getattr(th.nn, name) for name in ["Identity", *th.nn.modules.activation.__all__]},
    BaseFeaturesExtractor: {x.__name__: x for x in (FlattenExtractor, NatureCNN, CombinedExtractor, MinAtarCnn)},
    th.optim.Optimizer: {x.__name__: x for x in (Adam, AdamW, RMSprop, SGD, RMSpropTFLike)},
}
OBJECTS: dict[str, type] = {cls.__name__: cls for cls in (LinearSchedule, AdaptiveController, DualController, Tsallis)}
SCALARS: dict[Any, tuple[type, ...]] = {float: (float, int), **{x: (x,) for x in (bool, int, str, types.NoneType)}}
REFUSED = object()

INTEGERS = (f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64))
DTYPE = Literal[("bool", "float16", "float32", "float64", *INTEGERS)]  # type: ignore[valid-type]
SPACE_FIELDS: dict[str, dict[str, Any]] = {
    "Box": {"shape": list[int], "dtype": DTYPE, "low": Any, "high": Any},
    "Discrete": {"n": int, "start": int, "dtype": DTYPE},
    "MultiDiscrete": {"nvec": list[int], "start": list[int], "dtype": DTYPE},
    "MultiBinary": {"n": int | list[int]},
    "Dict": {"spaces": dict[str, Any]},
}


def annotations_of(cls: type) -> dict[str, Any]:
    """:return: the types of a class's arguments by name"""
    return {name: parameter.annotation for name, parameter in arguments_of(cls).items()}


# --- values -------------------------------------------------------------------------------------------


def encode(value: Any) -> Any:
    """:return: the description of a value. One that has none is refused"""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool | str) or (isinstance(value, int) and -(2**63) <= value < 2**64):
        return value
    if isinstance(value, float) and not math.isnan(value):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, list | tuple):
        return [encode(element) for element in value]
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {key: encode(element) for key, element in value.items()}
    if isinstance(value, type):
        # By identity: another class may have the same name
        names = [name for classes in CLASSES.values() for name, cls in classes.items() if value is cls]
    else:
        names = [name for name, x in DIVERGENCES.items() if type(value) is type(x) and vars(value) == vars(x)]
    return names[0] if names else _encode_object(value)


def _encode_object(value: Any) -> Any:
    # A schedule of RL Zoo can only come from there. LinearSchedule is the same function
    zoo = sys.modules.get("rl_zoo3.utils")
    if zoo is not None and type(value) is zoo.SimpleLinearSchedule:
        value = LinearSchedule(value.initial_value, 0.0, 1.0)
    if type(value) is FloatSchedule:
        return encode(value.value_schedule)
    if type(value) is ConstantSchedule:
        return encode(value.val)
    if type(value) in OBJECTS.values():
        # A controller goes on from where it is
        attributes = {name: "coefficient" if name == "initial" else name for name in arguments_of(type(value))}  # type: ignore[arg-type]
        described = {name: encode(getattr(value, attribute)) for name, attribute in attributes.items()}
        return {"type": type(value).__name__, **described}
    raise ExportError(f"{short(value)} cannot be described")


def decode(value: Any, annotation: Any, where: str) -> Any:
    """:return: what is described at the place ``where`` of a file, which must be of the type ``annotation``"""
    is_union = get_origin(annotation) in (Union, types.UnionType)
    for option in get_args(annotation) if is_union else [annotation]:
        decoded = _decode_as(value, option, where)
        if decoded is not REFUSED:
            return decoded
    allowed = inspect.formatannotation(annotation)
    if get_origin(annotation) is type:
        allowed = f"one of {sorted(CLASSES.get(get_args(annotation)[0], {}))}"
    raise ExportError(f"`{where}` must be {allowed}, got {short(value)}")


def _decode_as(value: Any, option: Any, where: str) -> Any:
    """:return: the value if it is of a type that is not a union, or ``REFUSED``"""
    origin, args = get_origin(option), get_args(option)
    if option in (Any, inspect.Parameter.empty):
        return value
    if option is float and value in ("inf", "-inf"):
        return float(value)
    if option in SCALARS:
        return value if type(value) in SCALARS[option] else REFUSED
    if origin is Literal:
        return value if any(type(value) is type(x) and value == x for x in args) else REFUSED
    if origin in (list, tuple) and isinstance(value, list):
        kinds = args * len(value) if origin is list else args
        items = [decode(item, kind, f"{where}[{i}]") for i, (item, kind) in enumerate(zip(value, kinds, strict=False))]
        return origin(items) if len(kinds) == len(value) else REFUSED
    if origin is dict and isinstance(value, dict):
        return {key: decode(item, args[1], f"{where}.{key[:MAX_DIGITS]}") for key, item in value.items()}
    if origin is type and isinstance(value, str):
        return CLASSES.get(args[0], {}).get(value, REFUSED)
    cls = OBJECTS.get(str(value.get("type"))) if isinstance(value, dict) else None
    is_schedule = cls is LinearSchedule and origin is collections.abc.Callable
    if cls is None or not (is_schedule or (isinstance(option, type) and issubclass(cls, option))):
        return REFUSED
    arguments = decode_fields(value, {"type": str, **annotations_of(cls)}, where)
    with refusing(f"`{where}`"):
        decoded = cls(**{name: argument for name, argument in arguments.items() if name != "type"})
        if is_schedule and not all(math.isfinite(decoded(progress)) for progress in (1.0, 0.5, 0.0)):
            raise ExportError(f"`{where}` must be finite, got {short(value)}")
    return decoded


def decode_arguments(value: dict[str, Any], annotations: dict[str, Any], where: str) -> dict[str, Any]:
    """:return: the described arguments, which must be among the annotated ones, and of their types"""
    for name in value:
        if name not in annotations:
            raise ExportError(f"`{where}` has an entry that is not known here: {short(name)}")
    return {name: decode(item, annotations[name], f"{where}.{name}".lstrip(".")) for name, item in value.items()}


def decode_fields(value: Any, annotations: dict[str, Any], where: str) -> dict[str, Any]:
    """As :func:`decode_arguments`, but all must be there."""
    if not isinstance(value, dict) or set(value) != set(annotations):
        got = short(sorted(value) if isinstance(value, dict) else value)
        subject = f"`{where}`" if where else "it"
        raise ExportError(f"{subject} must have the entries {sorted(annotations)}, got {got}")
    return decode_arguments(value, annotations, where)


# --- spaces -------------------------------------------------------------------------------------------


def encode_space(space: spaces.Space[Any]) -> dict[str, Any]:
    """:return: the description of a space. One of a subclass is described as its base"""
    keys, choices = getattr(space, "spaces", ()), getattr(space, "nvec", [])
    is_plain = np.ndim(choices) == 1 and all(isinstance(key, str) for key in keys)
    for kind, fields in SPACE_FIELDS.items():
        if is_plain and isinstance(space, getattr(spaces, kind)):
            return {"type": kind, **{name: _encode_field(name, getattr(space, name)) for name in fields}}
    allowed = "a Box, Discrete, MultiDiscrete with one dimension, MultiBinary or a Dict of these with strings as keys"
    raise ExportError(f"the space {space} cannot be described: it must be {allowed}")


def _encode_field(name: str, value: Any) -> Any:
    if name == "spaces":
        return {key: encode_space(subspace) for key, subspace in value.items()}
    if isinstance(value, np.dtype):
        return str(value)
    if isinstance(value, np.ndarray):
        value = value.flatten().astype(np.int8 if value.dtype == bool else value.dtype).tolist()
        if name in ("low", "high") and len(set(value)) == 1:
            value = value[0]  # one number for all elements of a Box
    return encode(value)


def decode_space(value: Any, where: str, limit: int = MAX_SPACE_SIZE) -> spaces.Space[Any]:
    """:return: the described space, whose elements may have ``limit`` numbers, Discrete ones as one-hot vectors"""
    kind = value.get("type") if isinstance(value, dict) else None
    if not isinstance(kind, str) or kind not in SPACE_FIELDS:
        raise ExportError(f"`{where}` must be of a type in {sorted(SPACE_FIELDS)}, got {short(value)}")
    fields = decode_fields(value, {"type": str, **SPACE_FIELDS[kind]}, where)
    if kind == "Dict":
        return _decode_dict_space(fields["spaces"], f"{where}.spaces", limit)

    size = fields["shape" if kind == "Box" else "nvec" if kind == "MultiDiscrete" else "n"]
    numbers = size if isinstance(size, list) else [size]
    is_within = len(numbers) <= limit and all(0 <= number <= limit for number in numbers)
    if not is_within or (sum(numbers) if kind == "MultiDiscrete" else math.prod(numbers)) > limit:
        allowed = f"A space may have {MAX_SPACE_SIZE} numbers in all"
        raise ExportError(f"`{where}` is too large, or has a negative size: {short(size)}. {allowed}")
    with refusing(f"`{where}` is not a space"):
        if kind == "MultiBinary":
            return spaces.MultiBinary(size)
        dtype: Any = np.dtype(fields["dtype"])
        if kind == "Box":
            low, high = (_decode_bounds(fields[x], tuple(size), dtype, f"{where}.{x}") for x in ("low", "high"))
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
    """:return: bounds of a Box, from one number for all of its elements, or a list with one for each"""
    decoded = decode(value, float | list[float], where)
    numbers = np.array(decoded, dtype=object if np.issubdtype(dtype, np.integer) else np.float64)
    if numbers.ndim == 1 and numbers.size != math.prod(shape):
        raise ExportError(f"`{where}` must have {math.prod(shape)} numbers, got {numbers.size}")
    with np.errstate(over="ignore"):
        bounds = numbers.astype(dtype)
    if np.any(bounds != numbers):
        raise ExportError(f"`{where}` must have numbers of type {dtype}, got {short(decoded)}")
    return np.broadcast_to(bounds, shape).copy() if numbers.ndim == 0 else bounds.reshape(shape)
