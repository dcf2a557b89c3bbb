"""What goes into a checkpoint beside the model and its environments: random generators, log, callbacks."""

import random
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.callbacks import BaseCallback, CallbackList
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.vec_env import VecEnv

from sb3_dapo.checkpoint.env_state import NotRestorableError, get_env_state, set_env_state

# What SB3's callbacks count and remember, so that they trigger at the same steps after a resume
CALLBACK_STATE = frozenset(
    "n_calls last_time_trigger n_episodes best_mean_reward last_mean_reward last_best_mean_reward no_improvement_evals "
    "evaluations_results evaluations_timesteps evaluations_length evaluations_successes".split()
)


# --- random generators and log ---------------------------------------------------------------------


def get_random_states(device: th.device) -> dict[str, Any]:
    """:return: states of the global random generators, those of the model's device included: tensors and numbers"""
    name, keys, *others = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": [name, th.from_numpy(np.asarray(keys, dtype=np.int64)), *others],
        "torch": th.get_rng_state(),
        "cuda": th.cuda.get_rng_state(device) if device.type == "cuda" else None,
    }


def set_random_states(states: dict[str, Any], device: th.device) -> None:
    """Restore what :func:`get_random_states` gave."""
    random.setstate(states["python"])
    name, keys, *others = states["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *others))
    th.set_rng_state(states["torch"])
    if device.type == "cuda" and states["cuda"] is not None:
        th.cuda.set_rng_state(states["cuda"], device)


def get_log(logger: Logger | None) -> dict[str, Any]:
    """What was recorded since the log was last written: the losses of the newest update."""
    recorded = {} if logger is None else logger.name_to_value
    numbers = {name: value.item() if isinstance(value, np.number) else value for name, value in recorded.items()}
    values = {name: value for name, value in numbers.items() if isinstance(value, int | float | str)}
    others = ("name_to_count", "name_to_excluded")
    return {"name_to_value": values, **{x: {name: getattr(logger, x)[name] for name in values} for x in others}}


# --- callbacks ------------------------------------------------------------------------------------


def walk_callbacks(callback: BaseCallback) -> Iterator[tuple[str, BaseCallback, VecEnv | None]]:
    """:return: each callback of a run: its class with its place among those of the class, itself, its environment"""
    count: Counter[str] = Counter()
    waiting = [callback]
    while waiting:
        child = waiting.pop(0)
        kind, eval_env = type(child).__name__, getattr(child, "eval_env", None)
        yield f"{kind} {count[kind]}", child, eval_env if isinstance(eval_env, VecEnv) else None
        count[kind] += 1
        children: list[Any] = list(child.callbacks) if isinstance(child, CallbackList) else []
        children += [getattr(child, name, None) for name in ("callback", "callback_on_new_best")]
        waiting = [child for child in children if isinstance(child, BaseCallback)] + waiting


def get_callback_states(callback: BaseCallback, reset_seed: int | None) -> dict[str, dict[str, Any]]:
    """:return: what callbacks of a run count and remember, by name. With a seed, their environments begin anew"""
    states = {}
    for name, child, eval_env in walk_callbacks(callback):
        state = states[name] = {key: value for key, value in vars(child).items() if key in CALLBACK_STATE}
        # Evaluation of a policy that acts at random draws from the generators that training draws from, as often as
        # there are steps: so the episodes must be the same too
        if eval_env is not None and reset_seed is not None:
            state["eval_seed"] = reset_seed
            seed_envs(eval_env, reset_seed)
        elif eval_env is not None:
            with suppress(NotRestorableError):
                state["eval_env"] = get_env_state(eval_env)
    return states


def set_callback_states(callback: BaseCallback, states: dict[str, dict[str, Any]]) -> None:
    """Restore what :func:`get_callback_states` gave. Callbacks that did not take part then are left as they are."""
    for name, child, eval_env in walk_callbacks(callback):
        state = dict(states.get(name, {}))
        eval_state, eval_seed = state.pop("eval_env", None), state.pop("eval_seed", None)
        vars(child).update(state)
        if eval_env is not None and eval_state is not None:
            try:
                set_env_state(eval_env, eval_state)
            except ValueError as error:
                warnings.warn(f"{name} evaluates on other environments than before: {error}", stacklevel=2)
        if eval_env is not None and eval_seed is not None:
            seed_envs(eval_env, eval_seed)


# --- seeds and observations -----------------------------------------------------------------------


def derive_seed(seed: int | None, num_timesteps: int) -> int:
    """A seed for environments that depends on both, or on chance if the run has no seed."""
    entropy = None if seed is None else [seed, num_timesteps]
    return int(np.random.SeedSequence(entropy).generate_state(1)[0]) >> 1  # emulators take 31 bits


def seed_envs(venv: VecEnv, seed: int) -> None:
    """Have the next reset begin new games with this seed."""
    venv.seed(seed)
    if venv.has_attr("was_real_done"):
        # EpisodicLifeEnv: its reset would go on with the game that is under way
        venv.env_method("set_wrapper_attr", "was_real_done", True)


def map_observations(function: Callable[..., Any], *observations: Any) -> Any:
    """Apply a function to arrays, dicts of them, or None."""
    first = observations[0]
    if isinstance(first, dict):
        return {key: function(*(obs[key] for obs in observations)) for key in first}
    return None if first is None else function(*observations)


def with_strides(array: np.ndarray, strides: tuple[int, ...]) -> np.ndarray:
    """A copy of an array with these strides, or the array if they run backwards."""
    if min(strides, default=0) < 0:
        return array
    size = array.itemsize + sum((n - 1) * stride for n, stride in zip(array.shape, strides, strict=True))
    copy: np.ndarray = np.ndarray(array.shape, array.dtype, np.zeros(size, np.uint8), strides=strides)
    copy[...] = array
    return copy
