"""
RL Zoo with the algorithms of this package in it.

Importing this package is enough: the Zoo's own functions then know `dapo`, its hyperparameter file and its search
space, and the MinAtar games are registered if `minatar` is installed.
"""

import sys

__all__ = ["ExperimentManager", "register", "register_algorithm"]

# `python -m sb3_dapo.zoo` imports this package before its arguments are looked at, and --help needs nothing of it: the
# command then imports it once more
if sys.argv[:1] != ["-m"] or __name__ not in sys.orig_argv:
    try:
        import rl_zoo3.train
    except ModuleNotFoundError as error:
        if error.name != "rl_zoo3":
            raise
        raise ModuleNotFoundError("sb3_dapo.zoo needs RL Zoo: pip install 'sb3-dapo[zoo]'", name=error.name) from error

    from sb3_dapo.zoo.exp_manager import ExperimentManager
    from sb3_dapo.zoo.registration import register, register_algorithm

    setattr(rl_zoo3.train, "ExperimentManager", ExperimentManager)  # noqa: B010  # the name that its train() looks up
    register()
