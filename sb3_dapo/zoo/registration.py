"""Puts our algorithms where RL Zoo looks for its own: it has no hook for others, but keeps them in dictionaries."""

import importlib.util
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import rl_zoo3.train
from rl_zoo3.hyperparams_opt import HYPERPARAMS_CONVERTER, HYPERPARAMS_SAMPLER, convert_onpolicy_params
from rl_zoo3.utils import ALGOS

import sb3_dapo
from sb3_dapo import DAPO
from sb3_dapo.cli import DEFAULT_ALGO
from sb3_dapo.zoo.hyperparams_opt import sample_dapo_params

Sampler = Callable[..., dict[str, Any]]


class BuiltIn(NamedTuple):
    """An algorithm of this package; its hyperparameters are in the file of its name in `hyperparams/`."""

    class_name: str
    sampler: Sampler = sample_dapo_params


BUILT_IN = {"dapo": BuiltIn("DAPO")}
# Names and hyperparameter files of the algorithms that are registered
CONF_FILES: dict[str, str] = {}


def register() -> None:
    """
    Register the algorithms of this package whose extra is installed, and the MinAtar games if `minatar` is. Calling it
    again changes nothing.
    """
    from sb3_dapo.zoo.exp_manager import ExperimentManager

    for name, built_in in BUILT_IN.items():
        try:
            algo_class = getattr(sb3_dapo, built_in.class_name)
        except (AttributeError, ModuleNotFoundError):
            continue  # its extra is not installed
        if name not in CONF_FILES:
            register_algorithm(name, algo_class, sampler=built_in.sampler)
    # The name that the Zoo's `train()` looks up
    setattr(rl_zoo3.train, "ExperimentManager", ExperimentManager)  # noqa: B010
    if importlib.util.find_spec("minatar") is not None and "MinAtar/Asterix-v1" not in gym.registry:
        import minatar.gym

        minatar.gym.register_envs()


def register_algorithm(
    name: str,
    algo_class: type[DAPO],
    *,
    conf_file: str | Path | None = None,
    sampler: Sampler = sample_dapo_params,
    converter: Callable[[dict[str, Any]], dict[str, Any]] = convert_onpolicy_params,
) -> None:
    """
    Have `sb3-dapo`, and RL Zoo's own functions in this process, know an algorithm: a subclass of DAPO.

    :param name: what `--algo` shall call it
    :param algo_class: its class
    :param conf_file: its hyperparameter file; `None`: the one of that name in this package, or else DAPO's
    :param sampler: its search space, called as the Zoo's samplers are
    :param converter: makes arguments for the class of an Optuna trial's parameters
    :raises ValueError: if the class is no subclass of DAPO, or the file does not exist
    """
    if not (isinstance(algo_class, type) and issubclass(algo_class, DAPO)):
        raise ValueError(f"`algo_class` must be a subclass of DAPO, got {algo_class!r}")
    folder = Path(str(resources.files("sb3_dapo.hyperparams")))
    own = folder / f"{name}.yml"
    path = Path(conf_file) if conf_file is not None else own if own.is_file() else folder / f"{DEFAULT_ALGO}.yml"
    if not path.is_file():
        raise ValueError(f"`conf_file` must be a file, there is no {path}")
    CONF_FILES[name] = str(path.resolve())
    ALGOS[name] = algo_class
    HYPERPARAMS_SAMPLER[name] = sampler
    HYPERPARAMS_CONVERTER[name] = converter  # type: ignore[assignment]
