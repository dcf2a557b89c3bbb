"""What the arguments of an algorithm may be."""

import inspect
import types
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin

import numpy as np

# Arguments that may be schedules
SCHEDULED = ("learning_rate", "clip_range", "clip_range_vf", "divergence_coef")


class Range(NamedTuple):
    """The numbers that an argument may be."""

    minimum: float
    maximum: float = float("inf")
    exclusive: bool = False
    """Whether the minimum is not one of them."""
    is_integer: bool = False


RANGES: dict[str, Range] = {
    "n_steps": Range(1, is_integer=True),
    "batch_size": Range(1, is_integer=True),
    "n_epochs": Range(1, is_integer=True),
    "n_rollouts": Range(1, is_integer=True),
    "divergence_steps": Range(0, is_integer=True),
    "gamma": Range(0, 1),
    "gae_lambda": Range(0, 1),
    "divergence_lambda": Range(0, 1),
    "divergence_c_bar": Range(0),
    "c_bar": Range(0),
    "rho_bar": Range(0, exclusive=True),
    "ent_coef": Range(0),
    "vf_coef": Range(0),
    "max_grad_norm": Range(0),
    "target_kl": Range(0),
    # A schedule may reach 0, in PPO too
    "learning_rate": Range(0),
    "clip_range": Range(0),
    "clip_range_vf": Range(0, exclusive=True),
    "divergence_coef": Range(0),
}


@cache
def arguments_of(cls: Any) -> dict[str, inspect.Parameter]:
    """
    The arguments of a class, joined over its hierarchy: an ``__init__`` with ``**kwargs`` hands on to the next class
    those that it does not name.

    :param cls: class
    :return: its arguments by name, with evaluated annotations, without ``self``, ``*args`` and ``**kwargs``
    """
    found: dict[str, inspect.Parameter] = {}
    for base in cls.__mro__:
        if "__init__" not in vars(base):
            continue
        _, *parameters = inspect.signature(vars(base)["__init__"], eval_str=True).parameters.values()
        kinds = {parameter.kind for parameter in parameters}
        variable = {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}
        found = {parameter.name: parameter for parameter in parameters if parameter.kind not in variable} | found
        if inspect.Parameter.VAR_KEYWORD not in kinds:
            break
    return found


def check_arguments(cls: type, values: Mapping[str, Any], ranges: Mapping[str, Range]) -> None:
    """
    Check each argument by itself: numbers by their ranges; what is True, False or one of some words by its annotation.

    :param cls: class whose arguments they are
    :param values: arguments by name
    :param ranges: what those that are numbers may be
    :raises ValueError: naming the argument, its value and what is allowed
    """
    for name, parameter in arguments_of(cls).items():
        if name not in values:
            continue
        value = values[name]
        if name in SCHEDULED:
            check(name, value, not isinstance(value, type), "a number, a function or an object, not a class")
        choices = _choices(parameter.annotation)
        if name in ranges:
            is_given = value is not None or types.NoneType not in get_args(parameter.annotation)
            words = _words(parameter.annotation)
            is_word = isinstance(value, str) and value in words
            if is_given and not is_word and not (name in SCHEDULED and callable(value)):
                check_number(name, value, ranges[name], words)
        elif choices is not None:
            *others, last = map(repr, choices)
            is_allowed = any(type(value) is type(choice) and value == choice for choice in choices)
            check(name, value, is_allowed, f"{', '.join(others)} or {last}")


def _words(annotation: Any) -> list[str]:
    """:return: the words that a value of a type may be, besides what is no word"""
    return [word for option in get_args(annotation) if get_origin(option) is Literal for word in get_args(option)]


def _choices(annotation: Any) -> list[Any] | None:
    """:return: all values of a type that consists of bool, None and ``Literal``, None for another"""
    choices: list[Any] = []
    is_union = get_origin(annotation) in (Union, types.UnionType)
    for option in get_args(annotation) if is_union else (annotation,):
        if option is bool:
            choices += [True, False]
        elif option is types.NoneType:
            choices.append(None)
        elif get_origin(option) is Literal:
            choices += get_args(option)
        else:
            return None
    return choices


def check(name: str, value: object, is_allowed: bool, allowed: str) -> None:
    """
    :param name: of the argument
    :param value: its value
    :param is_allowed: whether that is allowed
    :param allowed: what is
    :raises ValueError: naming all three, if it is not
    """
    if not is_allowed:
        raise ValueError(f"`{name}` must be {allowed}, got {value!r}")


def check_number(name: str, value: object, allowed: Range, words: Sequence[str] = ()) -> None:
    """
    :param name: of the argument
    :param value: its value
    :param allowed: what it may be
    :param words: that it may be too, for the message
    :raises ValueError: naming all three, if it is something else
    """
    minimum, maximum, exclusive, is_integer = allowed
    kinds = int | np.integer if is_integer else int | float | np.integer | np.floating
    kind = "an integer" if is_integer else "a number"
    numbers = f"{kind} in [{minimum}, {maximum}]"
    if maximum == float("inf"):
        numbers = f"{kind} greater than {minimum}" if exclusive else f"{kind} of at least {minimum}"
    is_number = isinstance(value, kinds) and not isinstance(value, bool)
    is_above = is_number and (value > minimum if exclusive else value >= minimum)  # type: ignore[operator]
    check(name, value, is_above and value <= maximum, " or ".join([numbers, *map(repr, words)]))  # type: ignore[operator]


def check_int(name: str, value: object, minimum: int) -> None:
    """Like :func:`check_number`, for an integer of at least ``minimum``."""
    check_number(name, value, Range(minimum, is_integer=True))
