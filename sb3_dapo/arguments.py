"""What the arguments of DAPO may be."""

import inspect
import warnings
from typing import TYPE_CHECKING

import numpy as np

from sb3_dapo.buffers import RolloutRing
from sb3_dapo.policies import CnnPolicy

if TYPE_CHECKING:
    from sb3_dapo.dapo import DAPO

# Arguments that may be schedules
SCHEDULED = ("learning_rate", "clip_range", "clip_range_vf", "divergence_coef")


def arguments_of(cls: type) -> dict[str, inspect.Parameter]:
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


def check_arguments(model: "DAPO") -> None:
    """
    :param model: a model whose attributes are set, not yet set up
    :raises ValueError: naming the argument, its value and what is allowed
    """
    for name in ("n_steps", "batch_size", "n_epochs", "n_rollouts"):
        check_int(name, getattr(model, name), 1)
    for name in ("gamma", "gae_lambda"):
        check_number(name, getattr(model, name), 0, 1)
    for name in ("divergence_c_bar", "c_bar", "ent_coef", "vf_coef", "max_grad_norm"):
        check_number(name, getattr(model, name), 0)
    check_number("rho_bar", model.rho_bar, 0, exclusive=True)
    if model.divergence_lambda is not None:
        check_number("divergence_lambda", model.divergence_lambda, 0, 1)
    if model.divergence_steps is not None:
        check_int("divergence_steps", model.divergence_steps, 0)
    if model.target_kl is not None:
        check_number("target_kl", model.target_kl, 0)
    for name in SCHEDULED:
        value = getattr(model, name)
        check(name, value, not isinstance(value, type), "a number, a function or an object, not a class")
        if not callable(value) and not (value is None and name == "clip_range_vf"):
            # A schedule may reach 0, in PPO too
            check_number(name, value, 0, exclusive=name == "clip_range_vf")
    advantages = ("vtrace", "vtrace_gae", "gae")
    check("advantage", model.advantage, model.advantage in advantages, "'vtrace', 'vtrace_gae' or 'gae'")
    check(
        "policy_loss",
        model.policy_loss,
        model.policy_loss in ("clip", "plain", "clip_augmented"),
        "'clip', 'plain' or 'clip_augmented'",
    )
    center = model.clip_center
    check("clip_center", center, center in ("behavior", "old"), "'behavior' or 'old'")
    normalize = model.normalize_advantage
    check("normalize_advantage", normalize, isinstance(normalize, bool) or normalize == "rms", "True, False or 'rms'")
    check("nonfinite", model.nonfinite, model.nonfinite in ("raise", "skip"), "'raise' or 'skip'")
    check("fast", model.fast, model.fast is None or isinstance(model.fast, bool), "True, False or None")
    for name in ("exact_targets", "optimize_memory_usage", "autocast", "overlap", "compile"):
        check(name, getattr(model, name), isinstance(getattr(model, name), bool), "True or False")
    is_cnn = issubclass(model.policy_class, CnnPolicy)
    check("autocast", model.autocast, is_cnn or not model.autocast, "False for policies other than CnnPolicy")
    if model.advantage != "gae":
        check("rho_bar", model.rho_bar, model.rho_bar >= model.c_bar, f"at least `c_bar` ({model.c_bar})")
    if normalize:
        reason = "as the advantages of a minibatch are normalized"
        check("batch_size", model.batch_size, model.batch_size > 1, f"at least 2, {reason}")
        rollout = f"n_steps={model.n_steps} * n_envs={model.n_envs}"
        check("n_steps * n_envs", rollout, model.n_steps * model.n_envs > 1, f"at least 2, {reason}")
    buffer_class = model.rollout_buffer_class
    check(
        "rollout_buffer_class",
        buffer_class,
        buffer_class is None or (isinstance(buffer_class, type) and issubclass(buffer_class, RolloutRing)),
        "a subclass of sb3_dapo.buffers.RolloutRing (the parameters of a model that PPO saved can be given to one of "
        "DAPO: `model.set_parameters(PPO.load(path).get_parameters())`)",
    )


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


def check_int(name: str, value: object, minimum: int) -> None:
    """Like :func:`check`, for an integer of at least ``minimum``."""
    is_int = isinstance(value, int | np.integer) and not isinstance(value, bool)
    check(name, value, is_int and value >= minimum, f"an integer of at least {minimum}")  # type: ignore[operator]


def check_number(
    name: str, value: object, minimum: float, maximum: float = float("inf"), exclusive: bool = False
) -> None:
    """Like :func:`check`, for a number in ``[minimum, maximum]``, or above ``minimum`` if that is ``exclusive``."""
    is_number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
    allowed = f"a number in [{minimum}, {maximum}]"
    if maximum == float("inf"):
        allowed = f"a number greater than {minimum}" if exclusive else f"a number of at least {minimum}"
    is_above = is_number and (value > minimum if exclusive else value >= minimum)  # type: ignore[operator]
    check(name, value, is_above and value <= maximum, allowed)  # type: ignore[operator]


def warn_of_settings(model: "DAPO") -> None:
    """
    Warn of what is allowed and not wise: PPO's warning, for minibatches of all rollouts kept, and advantages that reuse
    makes wrong.

    :param model: a model that knows its environments
    """
    if model.advantage == "gae" and model.n_rollouts > 1:
        warnings.warn(
            f"With n_rollouts={model.n_rollouts} the advantages of `advantage='gae'` are those of older policies. "
            "'vtrace' and 'vtrace_gae' are corrected for that.",
            stacklevel=3,
        )
    n_transitions = model.n_rollouts * model.n_steps * model.n_envs
    rest = n_transitions % model.batch_size
    if rest > 0:
        warnings.warn(
            f"The last minibatch of every epoch will have {rest} transitions instead of {model.batch_size}, as "
            "`batch_size` is not a factor of n_rollouts * n_steps * n_envs = "
            f"{model.n_rollouts} * {model.n_steps} * {model.n_envs} = {n_transitions}. One that is would be better.",
            stacklevel=3,
        )
