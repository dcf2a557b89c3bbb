"""Running `sb3-dapo` in this process."""

import sys
from collections.abc import Callable
from typing import Any

import pytest

Command = Callable[..., str]


def runner(patch: pytest.MonkeyPatch, capture: pytest.CaptureFixture[Any]) -> Command:
    """
    :param patch: to set the command line
    :param capture: what captures the output: of Python (capsys), or also of libraries and other processes (capfd)
    :return: runs `sb3-dapo` with arguments, and returns what it prints
    """
    pytest.importorskip("rl_zoo3")
    from sb3_dapo.zoo.cli import main

    def run(*arguments: str) -> str:
        capture.readouterr()
        patch.setattr(sys, "argv", ["sb3-dapo", *arguments])
        main()
        return capture.readouterr().out

    return run
