"""
RL Zoo with DAPO in it.

Importing this package is enough: the Zoo's own functions then know `dapo`, its hyperparameter file and its search
space, and the MinAtar games are registered if `minatar` is installed.
"""

try:
    import rl_zoo3  # noqa: F401
except ModuleNotFoundError as error:
    if error.name != "rl_zoo3":
        raise
    raise ModuleNotFoundError("sb3_dapo.zoo needs RL Zoo: pip install 'sb3-dapo[zoo]'", name=error.name) from error

from sb3_dapo.zoo.exp_manager import ExperimentManager
from sb3_dapo.zoo.registration import register

__all__ = ["ExperimentManager", "register"]

register()
