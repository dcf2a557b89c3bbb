"""
RL Zoo with the algorithms of this package in it.

Importing this package is enough: the Zoo's own functions then know `dapo`, its hyperparameter file and its search
space, and the MinAtar games are registered if `minatar` is installed.
"""

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sb3_dapo.zoo.exp_manager import ExperimentManager
    from sb3_dapo.zoo.registration import register, register_algorithm

__all__ = ["ExperimentManager", "register", "register_algorithm"]


def _load() -> None:
    try:
        import rl_zoo3  # noqa: F401
    except ModuleNotFoundError as error:
        if error.name != "rl_zoo3":
            raise
        raise ModuleNotFoundError("sb3_dapo.zoo needs RL Zoo: pip install 'sb3-dapo[zoo]'", name=error.name) from error
    from sb3_dapo.zoo.exp_manager import ExperimentManager
    from sb3_dapo.zoo.registration import register, register_algorithm

    globals().update(ExperimentManager=ExperimentManager, register=register, register_algorithm=register_algorithm)
    register()


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    _load()
    return globals()[name]


# `python -m sb3_dapo.zoo` imports this package before its arguments are looked at, and --help needs nothing of it
if sys.argv[:1] != ["-m"] or __name__ not in sys.orig_argv:
    _load()
