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


def refused(command: Command, capture: pytest.CaptureFixture[Any], *arguments: str) -> str:
    """
    :param command: runs `sb3-dapo`
    :param capture: what captures the output of Python
    :param arguments: arguments that `sb3-dapo` refuses
    :return: the one line that says why
    """
    with pytest.raises(SystemExit) as stopped:
        command(*arguments)
    assert stopped.value.code == 2
    (line,) = capture.readouterr().err.splitlines()
    assert line.startswith(f"sb3-dapo {arguments[0]}: error: ")
    return line
