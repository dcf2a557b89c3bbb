"""
The process of an actor. Ray gets this module by value and it imports little, so that it runs on a machine where
`sb3_dapo` is missing or old, and can say so.
"""

import os
import platform
import socket
import traceback
from collections.abc import Callable, Sequence
from hashlib import sha256
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

# The packages whose version must be the same everywhere
PACKAGES = ("ray", "torch", "numpy", "stable-baselines3", "gymnasium", "sb3-dapo")

# ("value", what a method returned) or ("failure", type, text, traceback)
Answer = tuple[Any, ...]


def versions() -> dict[str, str]:
    """Of the code on this machine, by name. Builds of PyTorch for CPUs and for GPUs count as the same version."""
    found = {"python": ".".join(platform.python_version_tuple()[:2])}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name).split("+")[0]
        except metadata.PackageNotFoundError:
            found[name] = "missing"
    # Two checkouts of one version may differ. find_spec does not import it; only a wheel has hyperparams in this folder
    spec = find_spec("sb3_dapo")
    digest = sha256()
    for folder in (spec and spec.submodule_search_locations) or ():
        for path in sorted(Path(folder).rglob("*.py")):
            name = path.relative_to(folder).as_posix()
            if not name.startswith("hyperparams/"):
                digest.update(name.encode() + path.read_bytes())
    found["code of sb3-dapo"] = digest.hexdigest()[:12]
    return found


class Host:
    """Makes a worker and calls its methods. The constructor does nothing: Ray garbles the errors of constructors."""

    def hello(self) -> Answer:
        """:return: where this process runs, for messages"""
        return "value", f"{socket.gethostname()}, process {os.getpid()}"

    def setup(self, factory: bytes, actor: int, entropy: Sequence[int], expected: dict[str, str]) -> Answer:
        """
        :param factory: pickled; called with the number of the actor and a ``SeedSequence``, returns the worker
        :param actor: number of the actor
        :param entropy: of the ``SeedSequence``
        :param expected: :func:`versions` of the learner
        """
        found = versions()
        wrong = [f"{name} {found[name]} instead of {right}" for name, right in expected.items() if found[name] != right]
        if wrong:
            return "failure", "ImportError", f"the code must be that of the learner, found {', '.join(wrong)}", ""
        return self._attempt(lambda: self._make(factory, actor, entropy))

    def run(self, method: str, *args: Any) -> Answer:
        """
        :param method: of the worker
        :param args: of the method
        """
        return self._attempt(lambda: getattr(self._worker, method)(*args))

    def _make(self, factory: bytes, actor: int, entropy: Sequence[int]) -> None:
        from ray import cloudpickle

        self._worker = cloudpickle.loads(factory)(actor, np.random.SeedSequence(entropy))

    def _attempt(self, function: Callable[[], Any]) -> Answer:
        try:
            return "value", function()
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as error:
            # Not the exception itself, whose class may not survive the journey
            try:
                text = str(error)
            except Exception:
                text = "its text cannot be had"
            return "failure", type(error).__name__, text, "".join(traceback.format_exception(error))
