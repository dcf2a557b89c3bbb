"""Workers for the tests of the pool: small objects that sleep, raise, exit and answer with large arrays."""

import os
import sys
import time
from typing import Any

import numpy as np


class TwoArgumentsError(Exception):
    """Can't be pickled and read again: the constructor takes other arguments than the exception keeps."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__(f"{first} and {second}")


class UnspeakableError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


class Worker:
    def __init__(self, actor: int, seed: np.random.SeedSequence) -> None:
        self.seed = seed
        self.n_tasks = 0

    def work(self, seconds: float = 0.0, value: Any = None) -> Any:
        time.sleep(seconds)
        self.n_tasks += 1
        return self.n_tasks if value is None else value

    def facts(self) -> dict[str, Any]:
        return {"pid": os.getpid(), "entropy": self.seed.entropy, "package": "sb3_dapo" in sys.modules}

    def signal(self, number: int) -> None:
        os.kill(os.getpid(), number)
        time.sleep(60)

    def leave(self) -> None:
        raise SystemExit("the environment ends the process")

    def raise_two(self) -> None:
        raise TwoArgumentsError("this", "that")

    def raise_unspeakable(self) -> None:
        raise UnspeakableError

    def raise_base(self) -> None:
        raise BaseException("not even an Exception")

    def unpicklable(self) -> Any:
        return (number for number in range(3))

    def array(self, n_bytes: int, value: int) -> np.ndarray:
        return np.full(n_bytes, value, np.uint8)


class BadWorker:
    def __init__(self, actor: int, seed: np.random.SeedSequence) -> None:
        if actor == 1:
            raise TwoArgumentsError("this", "that")


class SlowWorker(Worker):
    """The first successor of an actor never comes to an end with its start."""

    def __init__(self, actor: int, seed: np.random.SeedSequence) -> None:
        super().__init__(actor, seed)
        if seed.entropy[2] == 1:
            time.sleep(60)
