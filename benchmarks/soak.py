"""
Soak test of checkpoints: runs are killed at random moments and hit by faults until they are through, resumed every time
from the latest checkpoint, and in the end compared bit for bit with the same run that was left alone::

    python benchmarks/soak.py --kills 200

Runs of the commands, ``sb3-dapo train`` and ``--resume``, are killed likewise. Each resume changes hyperparameters and
arguments of the environment at random, and what is written down (``config.yml``, ``args.yml``) has to equal what was
used, as the checkpoints know it.

Each training process is forked from a server that has imported everything, and killed by SIGKILL from outside, wherever
it happens to be: loading, collecting, learning or writing. Exit status 1 if a run differs, a fault goes unnoticed or
something else is written down than was used.
"""

import argparse
import csv
import hashlib
import json
import multiprocessing as mp
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
import yaml
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_atari_env, make_vec_env
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import SubprocVecEnv, VecEnv, VecFrameStack, VecNormalize

from sb3_dapo import DAPO, AdaptiveController, NonFiniteError
from sb3_dapo.checkpoint import CheckpointCallback, get_random_states, latest_checkpoint, learn_until
from sb3_dapo.checkpoint.checkpoints import read_checkpoint

FORKSERVER = mp.get_context("forkserver")
N_CHECKPOINTS = 20  # per run
P_FAULT = 0.3  # share of the starts in which a fault is injected; the others end with a kill
P_DAMAGE = 0.1  # share of the starts before which the latest checkpoint is damaged
TIMEOUT = 1800.0  # seconds after which a training process is thought to hang


# --- runs -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scenario:
    """
    :param make_env: makes the environments, from a seed
    :param total_timesteps: of a run
    :param settings: of the model
    :param reset_envs: as in CheckpointCallback
    :param has_float_observations: whether an observation can be NaN
    """

    make_env: Callable[[int], VecEnv]
    total_timesteps: int
    settings: dict[str, Any]
    reset_envs: bool = False
    has_float_observations: bool = True


def make_breakout(seed: int) -> VecEnv:
    import ale_py

    gym.register_envs(ale_py)
    return VecFrameStack(make_atari_env("BreakoutNoFrameskip-v4", 2, seed=seed), 4)


def make_minatar(seed: int) -> VecEnv:
    if "MinAtar/Asterix-v1" not in gym.registry:
        import minatar.gym

        minatar.gym.register_envs()
    return make_vec_env("MinAtar/Asterix-v1", 4, seed=seed)


MLP = {"policy": "MlpPolicy", "n_steps": 64, "batch_size": 64, "n_epochs": 4}
SCENARIOS = {
    "CartPole, K=4": Scenario(lambda seed: make_vec_env("CartPole-v1", 4, seed=seed), 10_240, {**MLP, "n_rollouts": 4}),
    "Pendulum, VecNormalize, gSDE": Scenario(
        lambda seed: VecNormalize(make_vec_env("Pendulum-v1", 4, seed=seed)),
        10_240,
        {**MLP, "n_rollouts": 2, "use_sde": True, "sde_sample_freq": 8},
    ),
    "Acrobot, schedule, controller": Scenario(
        lambda seed: make_vec_env("Acrobot-v1", 4, seed=seed),
        10_240,
        {**MLP, "learning_rate": LinearSchedule(1e-3, 0, 1), "divergence_coef": AdaptiveController()},
    ),
    "MinAtar Asterix, K=4": Scenario(
        make_minatar, 10_240, {**MLP, "n_rollouts": 4, "exact_targets": True}, has_float_observations=False
    ),
    "Breakout, AtariWrapper": Scenario(
        make_breakout,
        640,
        {"policy": "CnnPolicy", "n_steps": 16, "batch_size": 32, "n_epochs": 1, "n_rollouts": 2},
        has_float_observations=False,
    ),
    "LunarLander, reset_envs": Scenario(
        lambda seed: VecNormalize(make_vec_env("LunarLander-v3", 4, seed=seed)), 10_240, MLP, reset_envs=True
    ),
    "CartPole, SubprocVecEnv, reset_envs": Scenario(
        lambda seed: make_vec_env("CartPole-v1", 2, seed=seed, vec_env_cls=SubprocVecEnv),
        5_120,
        {**MLP, "n_rollouts": 2},
        reset_envs=True,
    ),
}


class Progress(BaseCallback):
    """:param steps: shared number that is set to the steps so far"""

    def __init__(self, steps: Any) -> None:
        super().__init__()
        self.steps = steps

    def _on_step(self) -> bool:
        self.steps.value = self.num_timesteps
        return True


def train(name: str, seed: int, folder: Path, steps: Any, fault: str | None, fired: Any) -> None:
    """
    Start a run, or go on with it, and at its end write a digest of the model.

    :param name: of the scenario
    :param seed: of the run, or of the moment of the fault
    :param folder: of the run
    :param steps: shared number, the steps so far
    :param fault: name of a fault to inject at some moment, None for no fault
    :param fired: shared number that is set to 1 when the fault happens
    """
    th.set_num_threads(1)
    scenario = SCENARIOS[name]
    warnings.filterwarnings("ignore", message=".*An earlier checkpoint is used")
    run_seed, fault_seed = divmod(seed, 2**16)
    env = scenario.make_env(run_seed)
    path = latest_checkpoint(folder)
    if path is None:
        model = DAPO(env=env, seed=run_seed, device="cpu", **scenario.settings)
    else:
        model = DAPO.load_checkpoint(path, env, device="cpu")
    if fault is not None:
        FAULTS[fault](random.Random(fault_seed), scenario.total_timesteps // model.n_envs, env, fired)
    save_freq = scenario.total_timesteps // N_CHECKPOINTS
    callbacks = [CheckpointCallback(save_freq, folder, reset_envs=scenario.reset_envs), Progress(steps)]
    try:
        learn_until(model, scenario.total_timesteps, callbacks)
    except NonFiniteError:
        os._exit(EXIT_CODES["NonFiniteError"])
    except InjectedError:
        os._exit(EXIT_CODES["InjectedError"])
    except OSError:
        os._exit(EXIT_CODES["OSError"])
    (folder / "digest.tmp").write_text(digest(model))
    (folder / "digest.tmp").rename(folder / "digest")
    env.close()


def digest(model: DAPO) -> str:
    """
    :param model: a trained model
    :return: hash of all that must be equal: parameters, optimizer, ring, random generators, counters, statistics
    """
    sha = hashlib.sha256()

    def add(value: Any) -> None:
        if isinstance(value, dict):
            for key in sorted(value, key=str):
                sha.update(str(key).encode())
                add(value[key])
        elif isinstance(value, list | tuple):
            for element in value:
                add(element)
        elif isinstance(value, th.Tensor | np.ndarray):
            sha.update(np.ascontiguousarray(np.asarray(value)).tobytes())
        else:
            sha.update(repr(value).encode())

    add(model.get_parameters())
    add(model.rollout_buffer.state_dict())
    # A run that is resumed at its very end begins no rollout, so the generators are not set any more
    resumption = model._resumption
    add(get_random_states(model.device) if resumption is None else resumption.random_states)
    add([model.num_timesteps, model._n_updates, model._last_obs, [info["r"] for info in model.ep_info_buffer]])
    normalization = model.get_vec_normalize_env()
    if normalization is not None:
        add([vars(normalization.obs_rms), vars(normalization.ret_rms), normalization.returns])
    return sha.hexdigest()


# --- faults ---------------------------------------------------------------------------------------


class InjectedError(RuntimeError):
    """What an environment with a bug might raise."""


EXIT_CODES = {"NonFiniteError": 11, "InjectedError": 12, "OSError": 13}


def die_while_writing(rng: random.Random, n_steps: int, env: VecEnv, fired: Any) -> None:
    """The process dies in the middle of a file, before it is safe on disk, or before it has its name."""
    module, name = rng.choice([(th, "save"), (os, "fsync"), (os, "replace")])
    calls_left = rng.randrange(1, 5)
    original = getattr(module, name)

    def call(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls_left
        calls_left -= 1
        if calls_left == 0:
            fired.value = 1
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args, **kwargs)

    setattr(module, name, call)


def fill_disk(rng: random.Random, n_steps: int, env: VecEnv, fired: Any) -> None:
    """The file system refuses a checkpoint."""
    calls_left = rng.randrange(1, 5)
    original = os.fsync

    def fsync(fd: int) -> None:
        nonlocal calls_left
        calls_left -= 1
        if calls_left == 0:
            fired.value = 1
            raise OSError("No space left on device")
        original(fd)

    os.fsync = fsync


def break_env(change: Callable[[random.Random, Any, Any], None]) -> Callable[..., None]:
    """
    :param change: changes observations and rewards of a step in place, or raises
    :return: the fault that this happens at a random step
    """

    def inject(rng: random.Random, n_steps: int, env: VecEnv, fired: Any) -> None:
        base = env.unwrapped
        step_wait = base.step_wait
        steps_left = rng.randrange(1, n_steps // 4)

        def broken_step_wait() -> Any:
            nonlocal steps_left
            observations, rewards, dones, infos = step_wait()
            steps_left -= 1
            if steps_left == 0:
                fired.value = 1
                change(rng, observations, rewards)
            return observations, rewards, dones, infos

        base.step_wait = broken_step_wait

    return inject


def raise_error(rng: random.Random, observations: Any, rewards: Any) -> None:
    raise InjectedError("an environment failed")


def spoil_observation(rng: random.Random, observations: Any, rewards: Any) -> None:
    observations[rng.randrange(len(rewards))] = rng.choice([np.nan, np.inf, -np.inf])


def spoil_reward(rng: random.Random, observations: Any, rewards: Any) -> None:
    rewards[rng.randrange(len(rewards))] = np.nan


FAULTS: dict[str, Callable[..., None]] = {
    "die while writing": die_while_writing,
    "disk full": fill_disk,
    "env raises": break_env(raise_error),
    "observation not finite": break_env(spoil_observation),
    "reward is NaN": break_env(spoil_reward),
}
EXPECTED_EXIT = {
    "die while writing": -signal.SIGKILL,
    "disk full": EXIT_CODES["OSError"],
    "env raises": EXIT_CODES["InjectedError"],
    "observation not finite": EXIT_CODES["NonFiniteError"],
    "reward is NaN": EXIT_CODES["NonFiniteError"],
}


def faults_of(name: str) -> list[str]:
    """Faults that can happen in a scenario: integers are always finite."""
    return [fault for fault in FAULTS if fault != "observation not finite" or SCENARIOS[name].has_float_observations]


def damage(path: Path, rng: random.Random) -> None:
    """Cut off the end of a file, or change bytes in the middle of it."""
    content = bytearray(path.read_bytes())
    if rng.random() < 0.5:
        del content[rng.randrange(len(content)) :]
    else:
        start = rng.randrange(len(content) - 1000)
        content[start : start + 1000] = rng.randbytes(1000)
    path.write_bytes(content)


def find_latest(folder: Path, name_prefix: str = "checkpoint") -> tuple[Path | None, set[Path]]:
    """
    :param folder: of a run
    :param name_prefix: of its checkpoints
    :return: the checkpoint to resume from, and those that were reported as damaged
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        latest = latest_checkpoint(folder, name_prefix)
    messages = [str(warning.message) for warning in caught]
    return latest, {path for path in folder.glob("*.zip") if any(f"{path} cannot" in message for message in messages)}


def steps_of(path: Path | None) -> int:
    return 0 if path is None else int(path.name.split("_")[-2])


# --- commands -------------------------------------------------------------------------------------

COMMANDS = "sb3-dapo train --resume, Pendulum with other settings"
COMMANDS_TIMESTEPS = 20_480
PREFIX = "rl_model"  # of the checkpoints that the commands write
# What a resume may change, and what to: numbers that YAML and the command line write alike
HYPERPARAMS = {
    "learning_rate": (0.001, 0.0005, 0.0002),
    "n_epochs": (1, 2, 3),
    "ent_coef": (0.0, 0.01),
    "divergence_coef": (0.05, 0.1, 0.3),
    "clip_range": (0.1, 0.2, 0.3),
    "gae_lambda": (0.9, 0.95),
}
ENV_KWARGS = {"g": (9.0, 9.81, 11.0)}


def run_command(arguments: list[str]) -> None:
    """:param arguments: of ``sb3-dapo``"""
    th.set_num_threads(1)
    sys.argv = ["sb3-dapo", *arguments]
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    (command,) = entry_points(group="console_scripts", name="sb3-dapo")
    command.load()()


def draw(rng: random.Random, choices: dict[str, tuple[Any, ...]], p: float) -> dict[str, Any]:
    """Other settings, each with probability p."""
    return {name: rng.choice(values) for name, values in choices.items() if rng.random() < p}


def as_arguments(hyperparams: dict[str, Any], env_kwargs: dict[str, Any]) -> list[str]:
    arguments: list[str] = []
    for option, values in (("--hyperparams", hyperparams), ("--env-kwargs", env_kwargs)):
        if values:
            arguments += [option, *(f"{name}:{value}" for name, value in values.items())]
    return arguments


def find_wrong_settings(run: Path, hyperparams: dict[str, Any], env_kwargs: dict[str, Any]) -> list[str]:
    """
    :param run: folder of a run
    :param hyperparams: those that its last process which wrote them down was given
    :param env_kwargs: likewise
    :return: what is written down otherwise, or was used otherwise by that process
    """
    files = [run / "Pendulum-v1" / name for name in ("config.yml", "args.yml")]
    config, args = (yaml.load(file.read_text(), Loader=yaml.UnsafeLoader) for file in files)
    config = dict(config)
    problems = [
        f"{name} is {config.get(name)} in config.yml, was given as {value}"
        for name, value in hyperparams.items()
        if config.get(name) != value
    ]
    if args["env_kwargs"] != env_kwargs:
        problems.append(f"env_kwargs are {args['env_kwargs']} in args.yml, were given as {env_kwargs}")
    checkpoint, _ = find_latest(run, PREFIX)
    if checkpoint is None or checkpoint.stat().st_mtime_ns < max(file.stat().st_mtime_ns for file in files):
        return problems  # the process was killed before it wrote one
    model = DAPO.load(checkpoint, device="cpu")
    for name in HYPERPARAMS.keys() & config.keys():
        used = getattr(model, name)
        used = used(1.0) if callable(used) else used
        if used != config[name]:
            problems.append(f"{name} is {config[name]} in config.yml, {used} was used")
    _, env_state, _ = read_checkpoint(checkpoint)
    used_g = {text for made in env_state.made for setting, text in made.items() if setting.name == "g"}
    if used_g != {repr(args["env_kwargs"]["g"])}:
        problems.append(f"g is {args['env_kwargs']['g']} in args.yml, {used_g} was used")
    return problems


def soak_commands(name: str, run_seed: int, rng: random.Random, folder: Path, result: "Result") -> None:
    """
    One run of the commands, killed until it is through, with other settings at every resume. Parameters as of
    :func:`soak`; it is counted as equal if nothing that was written down differs from what was used.
    """
    began = time.monotonic()
    start_arguments = ["train", "--algo", "dapo", "--env", "Pendulum-v1", "-f", str(folder), "--seed", str(run_seed)]
    run = folder / "dapo" / "Pendulum-v1_1"
    files = [run / "Pendulum-v1" / name for name in ("config.yml", "args.yml")]
    hyperparams: dict[str, Any] = {"n_steps": 256, "n_envs": 2, "policy": "MlpPolicy"}
    env_kwargs: dict[str, Any] = {}
    n_problems = len(result.problems)
    while steps_of(find_latest(run, PREFIX)[0]) < COMMANDS_TIMESTEPS:
        is_resumed = find_latest(run, PREFIX)[0] is not None
        if is_resumed:
            new_hyperparams, new_env_kwargs = draw(rng, HYPERPARAMS, 0.4), draw(rng, ENV_KWARGS, 0.5)
            arguments = [*start_arguments, "--resume", *as_arguments(new_hyperparams, new_env_kwargs)]
        else:
            shutil.rmtree(folder / "dapo", ignore_errors=True)
            new_hyperparams, new_env_kwargs = {**hyperparams, **draw(rng, HYPERPARAMS, 0.5)}, draw(rng, ENV_KWARGS, 1)
            saving = ["-n", str(COMMANDS_TIMESTEPS), "--save-freq", "1024", "--eval-freq", "-1"]
            quoted = {key: json.dumps(value) for key, value in new_hyperparams.items()}
            arguments = [*start_arguments, *saving, *as_arguments(quoted, new_env_kwargs)]
        before = [file.stat().st_mtime_ns if file.exists() else 0 for file in files]
        process = FORKSERVER.Process(target=run_command, args=(arguments,))
        process.start()
        result.processes += 1
        process.join(rng.uniform(1.0, 12.0))
        if process.exitcode is None:
            process.kill()
            process.join()
            result.kills += 1
        elif process.exitcode != 0:
            result.problems.append(f"{' '.join(arguments)}: exit code {process.exitcode}")
        # A kill may come between the two
        is_written = [
            file.exists() and file.stat().st_mtime_ns != time for file, time in zip(files, before, strict=True)
        ]
        if is_written[0]:
            hyperparams = {**hyperparams, **new_hyperparams}
        if is_written[1]:
            env_kwargs = {**env_kwargs, **new_env_kwargs}
            result.changes += is_resumed and bool(new_hyperparams or new_env_kwargs)
        if files[1].exists():
            wrong = find_wrong_settings(run, hyperparams, env_kwargs)
            result.problems += [f"{text}, after {' '.join(arguments)}" for text in wrong]
        if len(result.problems) > 10:
            raise RuntimeError(f"{name!r}: {result.problems}")
    result.runs += 1
    result.steps_of_runs += COMMANDS_TIMESTEPS
    result.runs_equal += len(result.problems) == n_problems
    result.minutes += (time.monotonic() - began) / 60


# --- soak -----------------------------------------------------------------------------------------


@dataclass
class Result:
    """A row of the table: what happened to the runs of a scenario."""

    scenario: str
    runs: int = 0
    processes: int = 0
    kills: int = 0
    faults_injected: int = 0
    faults_caught: int = 0
    steps_of_runs: int = 0
    steps_lost: int = 0
    changes: int = 0
    runs_equal: int = 0
    minutes: float = 0.0
    problems: list[str] = field(default_factory=list)


def start(name: str, seed: int, folder: Path, fault: str | None = None) -> tuple[Any, Any, Any]:
    """
    :return: a training process, the shared number of its steps, and whether the fault has happened
    """
    steps, fired = FORKSERVER.Value("q", 0, lock=False), FORKSERVER.Value("b", 0, lock=False)
    process = FORKSERVER.Process(target=train, args=(name, seed, folder, steps, fault, fired))
    process.start()
    return process, steps, fired


def soak(name: str, run_seed: int, rng: random.Random, folder: Path, result: Result) -> None:
    """
    One run, left alone and then harassed until it is through.

    :param name: of the scenario
    :param run_seed: seed of the run
    :param rng: decides what happens to it
    :param folder: for its files
    :param result: where it is counted
    """
    began = time.monotonic()
    reference, harassed = folder / "uninterrupted", folder / "harassed"
    process, _, _ = start(name, run_seed * 2**16, reference)
    process.join(TIMEOUT)
    if process.exitcode != 0:
        raise RuntimeError(f"the uninterrupted run of {name!r} ended with exit code {process.exitcode}")
    duration = time.monotonic() - began

    while not (harassed / "digest").exists():
        path, damaged = find_latest(harassed)
        if path is not None and len(list(harassed.glob("*.zip"))) > 1 and rng.random() < P_DAMAGE:
            damage(path, rng)
            earlier, damaged = find_latest(harassed)
            result.faults_injected += 1
            result.faults_caught += path in damaged
            if path not in damaged:
                result.problems.append(f"damage of {path} was not noticed")
            result.steps_lost += steps_of(path) - steps_of(earlier)
            path = earlier
        fault = rng.choice(faults_of(name)) if rng.random() < P_FAULT else None
        process, steps, fired = start(name, run_seed * 2**16 + rng.randrange(2**16), harassed, fault)
        result.processes += 1
        process.join(rng.uniform(0.5, 0.5 + 4 * duration / N_CHECKPOINTS) if fault is None else TIMEOUT)
        if process.exitcode is None:
            process.kill()
            process.join()
            result.kills += 1
            if fault is not None:
                result.problems.append(f"{fault}: the process did not end")
        after, damaged_after = find_latest(harassed)
        is_intact = steps_of(after) >= steps_of(path) and damaged_after <= damaged
        if fired.value:
            is_caught = is_intact and process.exitcode == EXPECTED_EXIT[fault]
            result.faults_injected += 1
            result.faults_caught += is_caught
            result.kills += process.exitcode == -signal.SIGKILL
            if not is_caught:
                result.problems.append(f"{fault}: exit code {process.exitcode}, checkpoints intact: {is_intact}")
        elif process.exitcode not in (0, -signal.SIGKILL) or not is_intact:
            result.problems.append(f"exit code {process.exitcode}, checkpoints intact: {is_intact}")
        if process.exitcode != 0:
            result.steps_lost += max(steps.value, steps_of(path)) - steps_of(after)
        if len(result.problems) > 10:
            raise RuntimeError(f"{name!r}: {result.problems}")

    result.runs += 1
    result.steps_of_runs += SCENARIOS[name].total_timesteps
    is_equal = (harassed / "digest").read_text() == (reference / "digest").read_text()
    result.runs_equal += is_equal
    if not is_equal:
        result.problems.append(f"run {run_seed} is not equal to the uninterrupted one")
    result.minutes += (time.monotonic() - began) / 60


def write_table(path: Path, results: list[Result]) -> list[dict[str, Any]]:
    """
    :param path: of the CSV file
    :param results: its rows; a row of sums is added
    :return: the rows
    """
    names = [f.name for f in fields(Result) if f.name != "problems"]
    rows = [{name: getattr(result, name) for name in names} for result in results if result.runs]
    rows.append({name: sum(row[name] for row in rows) if name != "scenario" else "all" for name in names})
    for row in rows:
        row["minutes"] = round(row["minutes"], 1)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return rows


ALL = [*SCENARIOS, COMMANDS]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200, help="go on until there were so many kills (default: 200)")
    parser.add_argument("--hours", type=float, default=24.0, help="but begin no run after so many hours (default: 24)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the runs and of what happens to them (default: 0)")
    parser.add_argument("--scenarios", nargs="+", choices=ALL, default=ALL, metavar="NAME")
    parser.add_argument(
        "--output", type=Path, default=Path(__file__).parent / "results" / "soak.csv", help="CSV file to write"
    )
    args = parser.parse_args()
    FORKSERVER.set_forkserver_preload(
        ["sb3_dapo", "torch._dynamo", "stable_baselines3.common.env_util", "ale_py", "rl_zoo3.train"]
    )

    began = time.monotonic()
    rng = random.Random(args.seed)
    results = {name: Result(name) for name in args.scenarios}
    run_seed = args.seed
    while sum(result.kills for result in results.values()) < args.kills:
        if time.monotonic() - began > 3600 * args.hours:
            break
        name = args.scenarios[(run_seed - args.seed) % len(args.scenarios)]
        folder = Path(tempfile.mkdtemp(prefix="soak_"))
        n_problems = len(results[name].problems)
        (soak_commands if name == COMMANDS else soak)(name, run_seed, rng, folder, results[name])
        total = write_table(args.output, list(results.values()))[-1]
        print(
            f"{(time.monotonic() - began) / 60:6.1f} min, run {run_seed} ({name}): {total['kills']} kills, "
            f"{total['faults_caught']} of {total['faults_injected']} faults caught, "
            f"{total['runs_equal']} of {total['runs']} runs equal",
            flush=True,
        )
        if len(results[name].problems) == n_problems:
            shutil.rmtree(folder)
        else:
            print(f"  {results[name].problems[n_problems:]}, see {folder}", flush=True)
        run_seed += 1
    sys.exit(any(result.problems for result in results.values()))


if __name__ == "__main__":
    main()
