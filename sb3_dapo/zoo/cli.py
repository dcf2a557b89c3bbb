"""The Zoo's commands `train`, `enjoy` and `benchmark`, with what this package changes in them, and how any is run."""

import argparse
import os
import runpy
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace
from typing import Any

import gymnasium as gym
from rl_zoo3.utils import ALGOS
from stable_baselines3.common.vec_env import VecEnv

from sb3_dapo.cli import COMMANDS, LOG_FOLDER, Command, build_parser, main
from sb3_dapo.zoo.evaluation import make_env, player
from sb3_dapo.zoo.exp_manager import ExperimentManager
from sb3_dapo.zoo.parsers import RunParser, TrainParser

__all__ = ["COMMANDS", "Command", "build_parser", "main"]  # where they were before: sb3_dapo.cli needs no Zoo

# Packages whose errors, before training begins, say what is wrong with the arguments
REFUSING = {"sb3_dapo", "rl_zoo3", "stable_baselines3", "gymnasium"}
REFUSALS = (ValueError, FileNotFoundError, ConnectionError, AssertionError, gym.error.Error)


def is_refusal(error: Exception) -> bool:
    """Whether we, or a library, refuse what was asked for, and say why: not in training nor in the user's own code."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    packages = [frame.f_globals.get("__name__", "").partition(".")[0] for frame in frames]
    # "__main__" is a script of the Zoo
    is_ours = packages[-1] in REFUSING and set(packages) <= REFUSING | sys.stdlib_module_names | {"__main__"}
    is_training = ExperimentManager.learn.__code__ in [frame.f_code for frame in frames]
    return isinstance(error, REFUSALS) and str(error) != "" and is_ours and not is_training


@contextmanager
def replaced(owner: Any, **values: Any) -> Iterator[None]:
    """Context in which attributes of a module or class have other values."""
    before = {name: getattr(owner, name) for name in values}
    try:
        for name, value in values.items():
            setattr(owner, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(owner, name, value)


def replaced_parser(module: ModuleType, parser: Callable[..., argparse.ArgumentParser]) -> Any:
    """Context in which a module of the Zoo creates this parser instead of an `ArgumentParser`."""
    return replaced(module, argparse=SimpleNamespace(ArgumentParser=parser))


def train() -> None:
    """The Zoo's `train`."""
    import rl_zoo3.train

    with replaced_parser(rl_zoo3.train, TrainParser):
        rl_zoo3.train.train()


def enjoy() -> None:
    """The Zoo's `enjoy`, which says nothing where it cannot open a window, with the statistics of the agent's own."""
    import rl_zoo3.enjoy

    has_display = not sys.platform.startswith("linux") or "DISPLAY" in os.environ or "WAYLAND_DISPLAY" in os.environ
    if not has_display and not {"--no-render", "-h", "--help"} & set(sys.argv):
        print("There is no display to watch on: 'sb3-dapo record-video' writes a video, --no-render only prints scores")
    parser = RunParser()

    def create_test_env(env_id: str, **kwargs: Any) -> VecEnv:
        algo, model_path = parser.parsed.algo, getattr(parser.parsed, "model_path", None)
        env = make_env(env_id, **kwargs, model_path=model_path, norm_reward=parser.parsed.norm_reward)
        loader: Any = SimpleNamespace(load=lambda *args, **kwargs: player(ALGOS[algo].load(*args, **kwargs), env))
        rl_zoo3.enjoy.ALGOS = {**ALGOS, algo: loader}
        return env

    with replaced_parser(rl_zoo3.enjoy, lambda: parser):
        with replaced(rl_zoo3.enjoy, create_test_env=create_test_env, ALGOS=ALGOS):
            rl_zoo3.enjoy.enjoy()


def benchmark() -> None:
    """The Zoo's `benchmark`, a script that runs `python enjoy.py`, a file of the Zoo's checkout, for every agent."""

    def call(command: list[str]) -> int:
        """Here and not in a new process, which would not know algorithms that this one has registered."""
        with replaced(sys, argv=["sb3-dapo", "enjoy", *command[2:]]):
            try:
                main()
            except (Exception, SystemExit):
                traceback.print_exc()
                return 1
        return 0

    # Own agents unless the user names a folder: the Zoo would first download all of its agents from the Hub
    if not any(argument.startswith("--log-dir") for argument in sys.argv):
        sys.argv += ["--log-dir", LOG_FOLDER, "--no-hub"]
    with replaced(subprocess, call=call):
        runpy.run_module("rl_zoo3.benchmark", run_name="__main__")
