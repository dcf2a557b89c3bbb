"""
Models as data alone: folders to share with strangers, as loading them runs nothing that they contain.

SB3's zip files hold pickles, which run the code of whoever wrote them. An exported model is a folder of

- ``model.json``: spaces, policy, hyperparameters and versions (:mod:`sb3_dapo.description`)
- ``policy.safetensors``: the parameters of the policy
- ``vec_normalize.safetensors``: the statistics of ``VecNormalize``, if the model's environment has any
"""

import hashlib
import inspect
import math
import os
import platform
import shutil
import stat
import uuid
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar

import gymnasium as gym
import numpy as np
import safetensors.torch
import stable_baselines3
import torch as th
from gymnasium import spaces
from stable_baselines3.common.env_util import is_wrapped
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.type_aliases import GymEnv, Schedule
from stable_baselines3.common.utils import ConstantSchedule, check_for_correct_spaces
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecNormalize, is_vecenv_wrapped

from sb3_dapo.buffers import RolloutRing
from sb3_dapo.description import (
    CLASSES,
    MAX_LENGTH,
    MAX_SPACE_SIZE,
    ExportError,
    NotDescribableError,
    annotations_of,
    decode_arguments,
    decode_fields,
    decode_space,
    dump_json,
    encode,
    encode_space,
    parse_json,
    refusing,
    short,
)
from sb3_dapo.fast import set_fast

if TYPE_CHECKING:
    from sb3_dapo.dapo import DAPO

SelfDAPO = TypeVar("SelfDAPO", bound="DAPO")
Tensors = dict[str, th.Tensor]

FORMAT = "sb3-dapo"
FORMAT_VERSION = 1
DESCRIPTION, PARAMETERS, STATISTICS = "model.json", "policy.safetensors", "vec_normalize.safetensors"
FIELDS: dict[str, Any] = {
    "format": Literal["sb3-dapo"],
    "format_version": int,
    "algorithm": str,
    "versions": dict[str, str],
    "observation_space": Any,
    "action_space": Any,
    "policy": str | None,
    "policy_kwargs": dict[str, Any],
    "is_fast": bool,
    "hyperparameters": dict[str, Any],
    "num_timesteps": int,
    "vec_normalize": dict[str, Any] | None,
    "not_exported": list[str],
    "sha256": dict[str, str],
}

# Limits for what a file may ask for
MAX_JSON_BYTES = 2**20
MAX_TENSOR_BYTES = 2**31  # in all tensors of a file
MAX_HEADER_BYTES = 2**20  # of a file of tensors
MAX_RING_BYTES = 2**32  # of kept rollouts

# Arguments that are not hyperparameters: those of a run, and those that are described elsewhere
NOT_HYPERPARAMETERS = {"policy", "env", "policy_kwargs", "tensorboard_log", "verbose", "seed", "device"}
NOT_HYPERPARAMETERS |= {"_init_setup_model", "rollout_buffer_class", "rollout_buffer_kwargs"}
# Arguments of a policy that its algorithm passes
NOT_POLICY_KWARGS = {"observation_space", "action_space", "lr_schedule", "use_sde"}


class Normalization(NamedTuple):
    """What there is to know of a ``VecNormalize``."""

    settings: dict[str, Any]
    """By the names of its arguments."""
    statistics: Tensors
    """By name of a running mean and its part, such as "obs_rms.mean", all float64."""


class Contents(NamedTuple):
    """What was read from a folder, and checked."""

    policy_class: type[ActorCriticPolicy]
    policy_kwargs: dict[str, Any]
    hyperparameters: dict[str, Any]
    observation_space: spaces.Space[Any]
    action_space: spaces.Space[Any]
    parameters: Tensors
    is_fast: bool
    normalization: Normalization | None
    num_timesteps: int


# --- export -------------------------------------------------------------------------------------------


def export_model(model: "DAPO", path: str | Path) -> None:
    """
    Write a model to a folder: see :meth:`DAPO.export <sb3_dapo.DAPO.export>`.

    The folder is complete when it appears: it is written under another name next to it, and renamed.

    :param model: the model
    :param path: the folder. If it exists, it must be an exported model, which is replaced, or empty
    :raises ExportError: if it is something else, or if the model cannot be described
    """
    folder = Path(path).resolve()
    if folder.exists() and not _is_replaceable(folder):
        raise ExportError(f"{folder} is not replaced, as it is not an exported model, or holds other files as well")
    description, files = _describe(model)
    not_exported = description["not_exported"]

    new = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}")
    new.mkdir(parents=True)
    try:
        for name, data in {DESCRIPTION: dump_json(description), **files}.items():
            with (new / name).open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        # A folder that would be refused is not worth having
        policy, kwargs = _parts_of(model, not_exported)
        _read_folder(new, type(model), policy, kwargs)
        _replace(folder, new)
    finally:
        shutil.rmtree(new, ignore_errors=True)
    if not_exported:
        warnings.warn(
            f"{', '.join(not_exported)} cannot be described as data: whoever loads this model must pass it to "
            f"{type(model).__name__}.load_exported",
            stacklevel=3,
        )


def _describe(model: "DAPO") -> tuple[dict[str, Any], dict[str, bytes]]:
    """
    :param model: the model
    :return: its description, and the contents of the other files
    """
    not_exported: list[str] = []

    def describe(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
        described = {}
        for name, value in values.items():
            try:
                described[name] = encode(value)
            except NotDescribableError:
                not_exported.append(prefix + name)
        return described

    policy_names: dict[Any, str] = {cls: name for name, cls in model.policy_aliases.items()}
    policy = policy_names.get(model.policy_class)
    if policy is None:
        not_exported.append("policy")
    policy_kwargs = describe(model.policy_kwargs, "policy_kwargs.")
    names = _hyperparameters(type(model))
    # They are attributes of the same name, but for `stats_window_size`
    hyperparameters = describe({name: getattr(model, name, getattr(model, f"_{name}", ...)) for name in names})
    if model.rollout_buffer_class is not RolloutRing:
        not_exported.append("rollout_buffer_class")
    if not set(model.rollout_buffer_kwargs) <= set(names):  # the model adds its own arguments
        not_exported.append("rollout_buffer_kwargs")

    files = {PARAMETERS: _dump_tensors(_distinct_tensors(model.policy))}
    normalization = _describe_normalization(model.get_vec_normalize_env())
    if normalization is not None:
        files[STATISTICS] = _dump_tensors(normalization.statistics)

    from sb3_dapo import __version__  # which is not there yet when this module is imported

    versions = {"python": platform.python_version(), "sb3-dapo": __version__}
    versions |= {x.__name__: str(x.__version__) for x in (stable_baselines3, th, gym, np)}
    description = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "algorithm": type(model).__name__,
        "versions": versions,
        "observation_space": encode_space(model.observation_space),
        "action_space": encode_space(model.action_space),
        "policy": policy,
        "policy_kwargs": policy_kwargs,
        "is_fast": bool(getattr(model.policy, "fast", False)),
        "hyperparameters": hyperparameters,
        "num_timesteps": model.num_timesteps,
        "vec_normalize": normalization and normalization.settings,
        "not_exported": not_exported,
        "sha256": {name: hashlib.sha256(data).hexdigest() for name, data in files.items()},
    }
    return description, files


def _parts_of(model: "DAPO", names: list[str]) -> tuple[type[ActorCriticPolicy] | None, dict[str, Any]]:
    """
    :param model: the model
    :param names: what its description leaves out
    :return: that, as arguments of ``load_exported``: ``policy`` and others
    """
    kwargs = {name: getattr(model, name) for name in names if name != "policy" and "." not in name}
    kwargs["policy_kwargs"] = {
        name: value for name, value in model.policy_kwargs.items() if f"policy_kwargs.{name}" in names
    }
    return (model.policy_class if "policy" in names else None), kwargs  # type: ignore[return-value]


def _is_replaceable(folder: Path) -> bool:
    """
    :param folder: existing path
    :return: whether it is an exported model and nothing else, or an empty folder
    """
    if not folder.is_dir():
        return False
    names = {path.name for path in folder.iterdir()}
    try:
        return not names or (names <= {DESCRIPTION, PARAMETERS, STATISTICS} and bool(_read_description(folder)))
    except ExportError:
        return False


def _replace(folder: Path, new: Path) -> None:
    """
    :param folder: path that may exist
    :param new: folder that takes its place
    """
    if not folder.exists():
        new.rename(folder)
        return
    old = new.with_name(f"{new.name}.old")
    folder.rename(old)
    try:
        new.rename(folder)
    except OSError:
        old.rename(folder)
        raise
    shutil.rmtree(old)


# --- load ---------------------------------------------------------------------------------------------


def load_model(
    cls: "type[SelfDAPO]",
    path: str | Path,
    env: GymEnv | str | None = None,
    device: th.device | str = "auto",
    policy: str | type[ActorCriticPolicy] | None = None,
    **kwargs: Any,
) -> SelfDAPO:
    """
    Read a model from a folder: see :meth:`DAPO.load_exported <sb3_dapo.DAPO.load_exported>`.

    :param cls: class of the model
    :param path: the folder
    :param env: environment to evaluate or to go on learning in
    :param device: PyTorch device
    :param policy: in place of the folder's policy class
    :param kwargs: in place of the folder's arguments
    :return: the model
    :raises ValueError: if the environment has other spaces, or if there is no such argument
    :raises ExportError: if something in the folder does not fit
    """
    for name in kwargs:
        if name not in annotations_of(cls) or name == "_init_setup_model":
            raise ValueError(f"`{name}` is not an argument of {cls.__name__}")
    contents = _read_folder(Path(path), cls, policy, kwargs)
    venv = None
    if env is not None:
        with _naming(path):
            venv = _prepare_env(cls, env, contents.normalization)
        check_for_correct_spaces(venv, contents.observation_space, contents.action_space)

    with _naming(path), refusing("no model can be built of what it describes"):
        model = cls(
            contents.policy_class,
            venv,  # type: ignore[arg-type]
            device=device,
            policy_kwargs=deepcopy(contents.policy_kwargs),
            _init_setup_model=False,
            **contents.hyperparameters,
        )
        # Also with an environment: the keys of a Dict space may be in another order there
        model.observation_space, model.action_space = contents.observation_space, contents.action_space
        if venv is None:
            model.n_envs = 1
        if not {"n_steps", "n_rollouts"} <= set(kwargs):
            _check_ring(model)
        model._setup_model()
    with th.no_grad():
        for name, parameter in _distinct_tensors(model.policy).items():
            parameter.copy_(contents.parameters[name])
    set_fast(model.policy, contents.is_fast)
    if model.use_sde:
        model.policy.reset_noise()  # it was drawn with other parameters
    if venv is None and contents.normalization is not None:
        model._vec_normalize_env = _restore_normalization(contents.normalization, None)
    model.num_timesteps = contents.num_timesteps
    return model


def load_vec_normalize(path: str | Path, venv: VecEnv) -> VecNormalize:
    """
    Wrap environments with the statistics of an exported model, as ``VecNormalize.load`` does with a pickle.

    For those who wrap them further, with ``VecFrameStack`` for instance. Otherwise
    :meth:`DAPO.load_exported <sb3_dapo.DAPO.load_exported>` does it.

    :param path: folder of the model
    :param venv: environments, as they were before ``VecNormalize`` in training
    :return: the wrapped environments, whose statistics don't change
    :raises ExportError: if the folder holds no statistics, or something does not fit
    """
    with _naming(path):
        normalization = _read_normalization(Path(path), _read_description(Path(path)))
        if normalization is None:
            raise ExportError("the model was trained without VecNormalize")
        return _restore_normalization(normalization, venv)


def _prepare_env(cls: "type[DAPO]", env: GymEnv | str, normalization: Normalization | None) -> VecEnv:
    if isinstance(env, str):
        env = gym.make(env)
    if not isinstance(env, VecEnv):
        monitored = env if is_wrapped(env, Monitor) else Monitor(env)
        env = DummyVecEnv([lambda: monitored])
    if normalization is not None and not is_vecenv_wrapped(env, VecNormalize):
        env = _restore_normalization(normalization, env)
    return cls._wrap_env(env)  # transposes images


def _check_ring(model: "DAPO") -> None:
    """
    :param model: model whose rollout buffer is still to be built
    :raises ExportError: if that would take more memory than a file may ask for
    """
    observation_space = model.observation_space
    parts: Any = observation_space.values() if isinstance(observation_space, spaces.Dict) else [observation_space]
    # Besides observation and action, a step has a dozen numbers; a rollout has objects, which also take time
    step_bytes = 64 + sum(math.prod(part.shape) * part.dtype.itemsize for part in (*parts, model.action_space))
    n_bytes = model.n_rollouts * (model.n_steps * model.n_envs * step_bytes + 2**16)
    if n_bytes > MAX_RING_BYTES:
        raise ExportError(
            f"the rollouts would take {n_bytes / 2**30:.3g} GiB of memory (n_rollouts={model.n_rollouts}, "
            f"n_steps={model.n_steps}, {model.n_envs} environments). Pass `n_rollouts` and `n_steps` to allow for "
            f"that, or to have it otherwise"
        )


def _read_folder(
    folder: Path, cls: "type[DAPO]", policy: str | type[ActorCriticPolicy] | None, kwargs: dict[str, Any]
) -> Contents:
    """
    :param folder: exported model
    :param cls: class of the model
    :param policy: in place of the folder's policy class
    :param kwargs: in place of the folder's arguments
    :return: what the folder holds, completed with what was passed
    :raises ExportError: if something in the folder does not fit
    """
    with _naming(folder):
        description = _read_description(folder)
        if description["algorithm"] != cls.__name__:
            raise ExportError(f"it is a model of {short(description['algorithm'])}, not of {cls.__name__}")
        _check_not_exported(description["not_exported"], policy, kwargs)
        observation_space = decode_space(description["observation_space"], "observation_space")
        action_space = decode_space(description["action_space"], "action_space")
        if isinstance(action_space, spaces.Dict) or not _is_bounded(action_space):
            raise ExportError(f"`action_space` must be bounded and not a Dict, got {action_space}")
        if description["num_timesteps"] < 0:
            raise ExportError(f"`num_timesteps` must be at least 0, got {description['num_timesteps']}")

        hyperparameters = decode_arguments(description["hyperparameters"], _hyperparameters(cls), "hyperparameters")
        hyperparameters |= {name: value for name, value in kwargs.items() if name != "policy_kwargs"}
        policy_class, is_own = _find_policy(cls, policy or description["policy"], observation_space)
        given = kwargs.get("policy_kwargs") or {}
        policy_kwargs = _decode_policy_kwargs(description["policy_kwargs"], policy_class, is_own, given)

        # The policy is first built without memory, so that later it takes no more than its file does
        with refusing("the policy cannot be built"):
            use_sde = hyperparameters.get("use_sde", False)
            skeleton = _skeleton(policy_class, observation_space, action_space, use_sde, policy_kwargs)
        n_bytes = sum(tensor.numel() * tensor.element_size() for tensor in skeleton.values())
        parameters = _read_tensors(folder, PARAMETERS, description["sha256"], n_bytes)
        _check_tensors(PARAMETERS, parameters, skeleton)
        return Contents(
            policy_class,
            policy_kwargs,
            hyperparameters,
            observation_space,
            action_space,
            parameters,
            description["is_fast"],
            _read_normalization(folder, description),
            description["num_timesteps"],
        )


def _read_description(folder: Path) -> dict[str, Any]:
    """
    :param folder: exported model
    :return: its description, of which the values of ``FIELDS`` alone are checked
    """
    if not folder.is_dir():
        raise ExportError("it is not a folder. (A zip file of `save` is read by `load`, and runs the code in it)")
    data = _read_file(folder, DESCRIPTION, MAX_JSON_BYTES)
    with _naming(DESCRIPTION):
        description = parse_json(data)
        if not isinstance(description, dict) or description.get("format") != FORMAT:
            raise ExportError(f"it does not describe a model of sb3-dapo: `format` must be {FORMAT!r}")
        format_version = description.get("format_version")
        if type(format_version) is not int or format_version < 1:
            raise ExportError(f"`format_version` must be an integer of at least 1, got {short(format_version)}")
        if format_version > FORMAT_VERSION:
            raise ExportError(
                f"its format has version {format_version}, but this sb3-dapo knows {FORMAT_VERSION} at most: a newer "
                f"sb3-dapo is needed"
            )
        description = decode_fields(description, FIELDS, "")
        expected = [PARAMETERS] if description["vec_normalize"] is None else [PARAMETERS, STATISTICS]
        if sorted(description["sha256"]) != expected:
            raise ExportError(f"`sha256` must have the entries {expected}, got {short(sorted(description['sha256']))}")
        return description


def _check_not_exported(names: list[str], policy: object, kwargs: dict[str, Any]) -> None:
    """
    :param names: what the folder leaves out
    :param policy: policy that was passed, or None
    :param kwargs: other arguments that were passed
    :raises ExportError: if something is in neither
    """
    given = {*kwargs, *(f"policy_kwargs.{name}" for name in kwargs.get("policy_kwargs") or {})}
    given |= {"policy"} if policy is not None else set()
    for name in names:
        if name not in given:
            argument, _, key = name.partition(".")
            example = f"{argument}={{{key!r}: ...}}" if key else f"{argument}=..."
            raise ExportError(
                f"{short(name)} was left out, as it cannot be described as data (an own class or function, for "
                f"instance). Pass it: load_exported(path, {example})"
            )


def _is_bounded(space: spaces.Space[Any]) -> bool:
    return not isinstance(space, spaces.Box) or space.is_bounded()


def _hyperparameters(cls: "type[DAPO]") -> dict[str, Any]:
    """
    :param cls: class of the model
    :return: types of its hyperparameters by name
    """
    return {name: kind for name, kind in annotations_of(cls).items() if name not in NOT_HYPERPARAMETERS}


def _find_policy(
    cls: "type[DAPO]", policy: Any, observation_space: spaces.Space[Any]
) -> tuple[type[ActorCriticPolicy], bool]:
    """
    :param cls: class of the model
    :param policy: class that was passed, or a name
    :param observation_space: observation space
    :return: the class; whether it was passed
    """
    if isinstance(policy, type):
        return policy, True
    if policy not in cls.policy_aliases:
        raise ExportError(f"`policy` must be one of {sorted(cls.policy_aliases)}, got {short(policy)}")
    if isinstance(observation_space, spaces.Dict) != policy.startswith("MultiInput"):
        raise ExportError(f"`policy` must suit the observations, {short(observation_space)}, got {policy!r}")
    return cls.policy_aliases[policy], False  # type: ignore[return-value]


def _decode_policy_kwargs(
    described: dict[str, Any], policy_class: type[ActorCriticPolicy], is_own: bool, given: dict[str, Any]
) -> dict[str, Any]:
    """
    :param described: described arguments of the policy
    :param policy_class: class of the policy
    :param is_own: whether the class was passed: its arguments are not known then
    :param given: arguments that were passed
    :return: arguments of the policy
    """
    described = {name: value for name, value in described.items() if name not in given}
    annotations = annotations_of(ActorCriticPolicy)
    annotations |= dict.fromkeys(described.keys() - annotations.keys(), Any) if is_own else annotations_of(policy_class)
    annotations = {name: kind for name, kind in annotations.items() if name not in NOT_POLICY_KWARGS}
    kwargs = decode_arguments(described, annotations, "policy_kwargs")

    net_arch = kwargs.get("net_arch") or []
    if isinstance(net_arch, dict) and not set(net_arch) <= {"pi", "vf"}:
        raise ExportError(f"`policy_kwargs.net_arch` must have the entries 'pi' and 'vf', got {short(net_arch)}")
    for layers in net_arch.values() if isinstance(net_arch, dict) else [net_arch]:
        if len(layers) > MAX_LENGTH:
            raise ExportError(f"`policy_kwargs.net_arch` must have at most {MAX_LENGTH} layers, got {len(layers)}")

    # Arguments for the arguments that are classes
    parameters = inspect.signature(policy_class).parameters
    for name, kind in (("features_extractor", BaseFeaturesExtractor), ("optimizer", th.optim.Optimizer)):
        default = parameters[f"{name}_class"].default if f"{name}_class" in parameters else None
        receiver: Any = given.get(f"{name}_class", kwargs.get(f"{name}_class", default))
        if kwargs.get(f"{name}_kwargs") is not None and receiver in CLASSES[kind].values():
            place = f"policy_kwargs.{name}_kwargs"
            kwargs[f"{name}_kwargs"] = decode_arguments(kwargs[f"{name}_kwargs"], annotations_of(receiver), place)
    return {**kwargs, **given}


# --- policy -------------------------------------------------------------------------------------------


def _distinct_tensors(policy: th.nn.Module) -> Tensors:
    """
    :param policy: the policy
    :return: the tensors of its state dict. One with several names, as in a shared features extractor, has the first
    """
    state = getattr(policy, "_orig_mod", policy).state_dict(keep_vars=True)
    for name, tensor in state.items():
        if not isinstance(tensor, th.Tensor):
            raise ExportError(f"the policy's {name!r} must be a tensor, got {type(tensor).__name__}")
    first_names = {id(tensor): name for name, tensor in reversed(state.items())}
    return {name: state[name] for name in sorted(first_names.values())}


def _skeleton(
    policy_class: type[ActorCriticPolicy],
    observation_space: spaces.Space[Any],
    action_space: spaces.Space[Any],
    use_sde: bool,
    policy_kwargs: dict[str, Any],
) -> Tensors:
    """
    Build a policy on PyTorch's meta device, where tensors have shapes but no contents.

    :param policy_class: class of the policy
    :param observation_space: observation space
    :param action_space: action space
    :param use_sde: whether to use gSDE
    :param policy_kwargs: other arguments of the policy
    :return: the tensors of the policy
    """

    class Skeleton(policy_class):  # type: ignore[valid-type, misc]
        device = th.device("meta")

        def _build(self, lr_schedule: Schedule) -> None:
            # gSDE would draw noise here, for which it has to look at contents
            self.action_dist.sample_weights = lambda *args, **kwargs: None
            super()._build(lr_schedule)

    kwargs = deepcopy(policy_kwargs)  # policies write into it
    with th.device("meta"):
        policy = Skeleton(observation_space, action_space, ConstantSchedule(0.0), use_sde=use_sde, **kwargs)
    return _distinct_tensors(policy)


def _check_tensors(file_name: str, tensors: Tensors, expected: Tensors) -> None:
    """
    :param file_name: where the tensors were read
    :param tensors: the tensors
    :param expected: tensors with the names, shapes and dtypes that they should have
    :raises ExportError: if they have others
    """
    missing, unknown = sorted(expected.keys() - tensors.keys()), sorted(tensors.keys() - expected.keys())
    if missing or unknown:
        raise ExportError(f"{file_name} lacks tensors: {short(missing)}, and has others: {short(unknown)}")
    for name, wanted in sorted(expected.items()):
        tensor, shape, dtype = tensors[name], wanted.shape, wanted.dtype
        if tensor.shape != shape or tensor.dtype != dtype:
            raise ExportError(
                f"{file_name}: {short(name)} must be of shape {tuple(shape)} and {dtype}, "
                f"got {short(tuple(tensor.shape))} and {tensor.dtype}"
            )


# --- VecNormalize -------------------------------------------------------------------------------------


class SpaceOnlyEnv(gym.Env[Any, Any]):
    """
    Stands for an environment where nothing but its observations' shapes matters.

    :param observation_space: observation space
    """

    def __init__(self, observation_space: spaces.Space[Any]) -> None:
        self.observation_space = observation_space
        self.action_space = spaces.Discrete(1)


def _normalization_settings() -> dict[str, Any]:
    return {name: kind for name, kind in annotations_of(VecNormalize).items() if name not in ("venv", "training")}


def _running_statistics(vec_normalize: VecNormalize) -> dict[str, RunningMeanStd]:
    all_rms = {"ret_rms": vec_normalize.ret_rms}
    if vec_normalize.norm_obs:
        obs_rms: Any = vec_normalize.obs_rms
        is_dict = isinstance(obs_rms, dict)
        all_rms |= {f"obs_rms.{key}": rms for key, rms in obs_rms.items()} if is_dict else {"obs_rms": obs_rms}
    return all_rms


def _describe_normalization(vec_normalize: VecNormalize | None) -> Normalization | None:
    """
    :param vec_normalize: what the model's environment is wrapped in, or None
    :return: what there is to know of it
    :raises ExportError: if that is not all
    """
    if vec_normalize is None:
        return None
    if type(vec_normalize) is not VecNormalize or is_vecenv_wrapped(vec_normalize.venv, VecNormalize):
        raise ExportError(
            f"the environment must be wrapped in VecNormalize itself, and once, got {type(vec_normalize).__name__}. "
            f"To export without the statistics, give the model another environment (`set_env`)"
        )
    settings = {name: encode(getattr(vec_normalize, name)) for name in _normalization_settings()}
    statistics = {
        f"{name}.{part}": th.from_numpy(np.array(getattr(rms, part), dtype=np.float64))
        for name, rms in _running_statistics(vec_normalize).items()
        for part in ("mean", "var", "count")
    }
    return Normalization(settings, statistics)


def _read_normalization(folder: Path, description: dict[str, Any]) -> Normalization | None:
    """
    :param folder: exported model
    :param description: its description
    :return: what there is to know of its ``VecNormalize``, or None
    """
    if description["vec_normalize"] is None:
        return None
    settings = decode_fields(description["vec_normalize"], _normalization_settings(), "vec_normalize")
    # Mean and variance of an observation, of 8 bytes each, and some single numbers
    n_bytes = 2 * 8 * MAX_SPACE_SIZE
    statistics = _read_tensors(folder, STATISTICS, description["sha256"], n_bytes)
    expected: Tensors = {}
    for name in _observation_statistics(settings) | {"ret_rms": ""}:
        mean = statistics.get(f"{name}.mean") if name != "ret_rms" else None
        shapes = {"mean": () if mean is None else mean.shape, "var": () if mean is None else mean.shape, "count": ()}
        expected |= {f"{name}.{part}": th.empty(shapes[part], dtype=th.float64, device="meta") for part in shapes}
    _check_tensors(STATISTICS, statistics, expected)
    for name, tensor in statistics.items():
        if not tensor.isfinite().all() or (not name.endswith(".mean") and (tensor < 0).any()):
            raise ExportError(f"{STATISTICS}: {short(name)} must be finite, and not negative unless it is a mean")
    return Normalization(settings, statistics)


def _observation_statistics(settings: dict[str, Any]) -> dict[str, str]:
    """
    :param settings: of ``VecNormalize``
    :return: names of the running means of observations, and the keys that they are for in a Dict space
    """
    if not settings["norm_obs"]:
        return {}
    keys = settings["norm_obs_keys"]
    return {"obs_rms": ""} if keys is None else {f"obs_rms.{key}": key for key in keys}


def _restore_normalization(normalization: Normalization, venv: VecEnv | None) -> VecNormalize:
    """
    :param normalization: what there is to know
    :param venv: environments to wrap; without, the result can normalize observations, but not step
    :return: the wrapped environments
    """
    settings, statistics = normalization
    with refusing("the statistics of VecNormalize don't fit the environment"):
        if venv is None:
            boxes: dict[str, spaces.Space[Any]] = {
                key: spaces.Box(-np.inf, np.inf, tuple(statistics[f"{name}.mean"].shape))
                for name, key in _observation_statistics(settings).items()
            }
            space = spaces.Dict(boxes) if settings["norm_obs_keys"] is not None else boxes.get("", spaces.Box(-1, 1))
            venv = DummyVecEnv([lambda: SpaceOnlyEnv(space)])
        vec_normalize = VecNormalize(venv, training=False, **settings)
        for name, rms in _running_statistics(vec_normalize).items():
            mean, var, count = (statistics[f"{name}.{part}"].numpy().copy() for part in ("mean", "var", "count"))
            if mean.shape != np.shape(rms.mean):
                raise ExportError(
                    f"the statistics of VecNormalize are of shape {mean.shape}, the observations "
                    f"of {np.shape(rms.mean)}. If VecNormalize comes before other wrappers, wrap the environment in "
                    f"it yourself: sb3_dapo.export.load_vec_normalize(path, venv)"
                )
            rms.mean, rms.var, rms.count = mean, var, float(count)
    return vec_normalize


# --- files --------------------------------------------------------------------------------------------


@contextmanager
def _naming(what: str | Path) -> Iterator[None]:
    """:param what: named at the beginning of a message"""
    try:
        yield
    except ExportError as error:
        raise ExportError(f"{what}: {error}") from error.__cause__


def _read_file(folder: Path, name: str, limit: int) -> bytes:
    """
    :param folder: exported model
    :param name: name of a file in it
    :param limit: bytes that it may have
    :return: its contents
    """
    path = folder / name
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        raise ExportError(f"there is no {name}") from None
    if stat.S_ISLNK(mode):
        raise ExportError(
            f"{name} is a symbolic link, and might lead anywhere. Copy the file itself; from the Hugging Face Hub, "
            f"download with snapshot_download(..., local_dir=...)"
        )
    if not stat.S_ISREG(mode):
        raise ExportError(f"{name} is not a file")
    with path.open("rb") as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise ExportError(f"{name} is larger than the {limit} bytes that it may have")
    return data


def _dump_tensors(tensors: Tensors) -> bytes:
    with refusing("the parameters cannot be written"):
        return safetensors.torch.save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})


def _read_tensors(folder: Path, name: str, sha256: dict[str, str], n_bytes: int) -> Tensors:
    """
    :param folder: exported model
    :param name: name of a file in it
    :param sha256: checksums of files
    :param n_bytes: bytes that its tensors may have
    :return: the tensors
    """
    if n_bytes > MAX_TENSOR_BYTES:
        raise ExportError(f"{name} would hold {n_bytes / 2**30:.3g} GiB, but {MAX_TENSOR_BYTES / 2**30:.3g} is allowed")
    data = _read_file(folder, name, n_bytes + MAX_HEADER_BYTES)
    if hashlib.sha256(data).hexdigest() != sha256[name]:
        raise ExportError(f"{name} is damaged, or not the one that belongs to {DESCRIPTION}: its SHA-256 is another")
    with refusing(f"{name} is not a file of safetensors"):
        return safetensors.torch.load(data)
