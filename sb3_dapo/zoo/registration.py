"""Puts our algorithms where RL Zoo looks for its own: it has no hook for others, but keeps them in dictionaries."""

import importlib.util
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module, resources
from pathlib import Path
from typing import Any

import gymnasium as gym
from rl_zoo3.hyperparams_opt import HYPERPARAMS_CONVERTER, HYPERPARAMS_SAMPLER, convert_onpolicy_params
from rl_zoo3.utils import ALGOS

from sb3_dapo import DAPO
from sb3_dapo.cli import DEFAULT_ALGO
from sb3_dapo.zoo.hyperparams_opt import convert_dapo_lstm_params, sample_dapo_lstm_params, sample_dapo_params

Sampler = Callable[..., dict[str, Any]]
Converter = Callable[[dict[str, Any]], dict[str, Any]]

# Algorithms of this package: class and search space. Hyperparameters are in the files of these names in hyperparams/
BUILT_IN: dict[str, tuple[str, Sampler, Converter]] = {
    "dapo": ("DAPO", sample_dapo_params, convert_onpolicy_params),
    "dapo_lstm": ("RecurrentDAPO", sample_dapo_lstm_params, convert_dapo_lstm_params),
    "dapo_mask": ("MaskableDAPO", sample_dapo_params, convert_onpolicy_params),
}
# Names and hyperparameter files of the algorithms that are registered
CONF_FILES: dict[str, str] = {}


def register() -> None:
    """
    Register the algorithms of this package whose extra is installed, and the MinAtar games if `minatar` is. Calling it
    again changes nothing.
    """
    for name, (class_name, sampler, converter) in BUILT_IN.items():
        with suppress(AttributeError, ModuleNotFoundError):  # its extra is not installed
            if name not in CONF_FILES:
                algo_class = getattr(import_module("sb3_dapo"), class_name)
                register_algorithm(name, algo_class, sampler=sampler, converter=converter)
    if importlib.util.find_spec("minatar") is not None and "MinAtar/Asterix-v1" not in gym.registry:
        # As `minatar.gym.register_envs` does, without its imports: seaborn and pandas take a fourth of the time
        # until training begins
        for game in ("asterix", "breakout", "freeway", "seaquest", "space_invaders"):
            for version, is_minimal in enumerate((False, True)):
                kwargs = {"game": game, "use_minimal_action_set": is_minimal}
                name = f"MinAtar/{game.title().replace('_', '')}-v{version}"
                gym.register(name, "minatar.gym:BaseEnv", kwargs=kwargs)


def register_algorithm(
    name: str,
    algo_class: type[DAPO],
    *,
    conf_file: str | Path | None = None,
    sampler: Sampler = sample_dapo_params,
    converter: Converter = convert_onpolicy_params,
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
