"""
Models as data alone: folders to share with strangers, as loading them runs nothing that they contain.

SB3's zip files hold pickles, which run the code of whoever wrote them. An exported model is a folder of

- ``model.json``: spaces, policy, hyperparameters and versions (:mod:`sb3_dapo.export.description`)
- ``policy.safetensors``: the parameters of the policy
- ``vec_normalize.safetensors``: the statistics of ``VecNormalize``, if the model's environment has any
"""

import hashlib
import math
import platform
import warnings
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, TypeVar, get_type_hints

import gymnasium as gym
import numpy as np
import stable_baselines3
import torch as th
from gymnasium import spaces
from stable_baselines3.common.env_util import is_wrapped
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.type_aliases import GymEnv, Schedule
from stable_baselines3.common.utils import ConstantSchedule, check_for_correct_spaces
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecNormalize, is_vecenv_wrapped

import sb3_dapo.export.description as describing
import sb3_dapo.export.folder as files
from sb3_dapo.arguments import arguments_of
from sb3_dapo.buffers import RolloutRing
from sb3_dapo.buffers.rollout import observation_spaces
from sb3_dapo.export.description import annotations_of, decode_arguments, decode_fields, decode_space
from sb3_dapo.export.folder import ExportError, Tensors, naming, refusing, short
from sb3_dapo.export.normalization import Normalization
from sb3_dapo.fast import is_fast, set_fast

SelfExportable = TypeVar("SelfExportable", bound="Exportable")
PolicyClass = type[ActorCriticPolicy]

FORMAT_VERSION = 1
MAX_RING_BYTES = 2**32  # of kept rollouts that a file may ask for

# Arguments that are not hyperparameters: those of a run, and those that are described elsewhere
NOT_HYPERPARAMETERS = {"policy", "env", "policy_kwargs", "tensorboard_log", "verbose", "seed", "device"}
NOT_HYPERPARAMETERS |= {"_init_setup_model", "rollout_buffer_class", "rollout_buffer_kwargs"}
# Arguments of a policy that its algorithm passes
NOT_POLICY_KWARGS = {"observation_space", "action_space", "lr_schedule", "use_sde"}


@dataclass(kw_only=True)
class Description:
    """The contents of ``model.json``, which reading replaces by what they stand for."""

    format: Literal["sb3-dapo"] = "sb3-dapo"
    format_version: int = FORMAT_VERSION
    algorithm: str
    versions: dict[str, str]
    observation_space: Any
    action_space: Any
    policy: str | None
    policy_kwargs: dict[str, Any]
    is_fast: bool
    hyperparameters: dict[str, Any]
    num_timesteps: int
    vec_normalize: dict[str, Any] | None
    not_exported: list[str]
    sha256: dict[str, str]


class Exportable(OnPolicyAlgorithm):
    """
    An algorithm whose models can be written as data alone.

    What is described are the arguments of ``type(self)`` and of its base classes
    (:func:`~sb3_dapo.arguments.arguments_of`), which must be attributes of the same name. Values that no description
    fits are left out, and asked for when the model is loaded.
    """

    def export(self, path: str | Path) -> None:
        """
        Write the model to a folder, without pickles: the safe way to share it, unlike ``save``, whose files run code
        when they are loaded. The optimizer's state and the kept rollouts are not in it. A warning says what else
        cannot be described as data.

        :param path: the folder. If it exists, it must be an exported model, which is replaced, or empty
        :raises ValueError: if it is something else, or if the model cannot be described
        """
        folder = Path(path).resolve()
        if folder.exists() and not _is_replaceable(folder):
            raise ExportError(f"{folder} is not replaced, as it is not an exported model, or holds other files as well")
        description, contents = self._describe()
        left_out = description.not_exported
        # A folder that would be refused is not worth having
        own = {name: self._argument(name) for name in left_out if name != "policy" and "." not in name}
        own["policy_kwargs"] = {k: v for k, v in self.policy_kwargs.items() if f"policy_kwargs.{k}" in left_out}
        policy: Any = self.policy_class if "policy" in left_out else None
        contents = {files.DESCRIPTION: files.dump_json(vars(description)), **contents}
        files.write_folder(folder, contents, lambda new: self._read_exported(new, policy, own))
        if left_out:
            warnings.warn(
                f"{', '.join(left_out)} cannot be described as data: whoever loads this model must pass it to "
                f"{type(self).__name__}.load_exported",
                stacklevel=2,
            )

    @classmethod
    def load_exported(
        cls: type[SelfExportable],
        path: str | Path,
        env: GymEnv | str | None = None,
        device: th.device | str = "auto",
        *,
        policy: str | PolicyClass | None = None,
        **kwargs: Any,
    ) -> SelfExportable:
        """
        Read a model from a folder of :meth:`export`. Nothing in the folder is executed, and what does not fit is
        refused.

        :param path: the folder
        :param env: environment to evaluate or to go on learning in. If the model was trained with ``VecNormalize`` and
            this is not wrapped in it, it will be, with statistics that don't change. Without an environment,
            ``model.get_vec_normalize_env().normalize_obs(obs)`` gives what ``predict`` expects
        :param device: PyTorch device
        :param policy: policy class, needed if it is a custom class
        :param kwargs: arguments of the class in place of the exported ones, needed if these could not be described;
            ``policy_kwargs`` has only those to replace
        :return: the model
        :raises ValueError: if something in the folder, or the environment, does not fit
        """
        for name in kwargs:
            if name not in arguments_of(cls) or name == "_init_setup_model":
                raise ValueError(f"`{name}` is not an argument of {cls.__name__}")
        with naming(path):
            description, policy_class, parameters, normalization = cls._read_exported(Path(path), policy, kwargs)
            venv: Any = None if env is None else vectorized(env)
            if venv is not None:
                if normalization is not None and not is_vecenv_wrapped(venv, VecNormalize):
                    venv = normalization.restore(venv)
                venv = cls._wrap_env(venv)  # transposes images
                check_for_correct_spaces(venv, description.observation_space, description.action_space)

        with naming(path), refusing("no model can be built of what it describes"):
            arguments = {**description.hyperparameters, "policy_kwargs": deepcopy(description.policy_kwargs)}
            model = cls(policy_class, venv, device=device, _init_setup_model=False, **arguments)
            # Also with an environment: the keys of a Dict space may be in another order there
            model.observation_space, model.action_space = description.observation_space, description.action_space
            if venv is None:
                model.n_envs = 1
            if not {"n_steps", "n_rollouts"} <= set(kwargs):
                model._check_ring()
            model._setup_model()
        model.policy.load_state_dict(parameters, strict=False)  # whose names have been checked
        set_fast(model.policy, description.is_fast)
        if model.use_sde:
            model.policy.reset_noise()  # it was drawn with other parameters
        if venv is None and normalization is not None:
            model._vec_normalize_env = normalization.restore(None)
        model.num_timesteps = description.num_timesteps
        return model

    def _setup_learn(self, *args: Any, **kwargs: Any) -> Any:
        try:
            self._fixed_parts()
        except Exception as error:  # spaces and modules of users may raise anything
            warnings.warn(f"This model can be trained and saved, but not exported: {error}", stacklevel=2)
        return super()._setup_learn(*args, **kwargs)

    # --- what is written ---

    def _fixed_parts(self) -> tuple[dict[str, Any], Tensors]:
        """:return: what training does not change, and no description can leave out: spaces and tensors"""
        described = {
            name: describing.encode_space(getattr(self, name)) for name in ("observation_space", "action_space")
        }
        files.dump_json(described)
        for name, space in described.items():
            decode_space(space, name)
        tensors = files.distinct_tensors(self.policy)
        files.n_bytes_of(files.PARAMETERS, tensors)
        return described, tensors

    def _describe(self) -> tuple[Description, dict[str, bytes]]:
        """:return: the description, and the contents of the other files"""
        described_spaces, tensors = self._fixed_parts()
        policy_class: Any = self.policy_class
        policy = next((name for name, cls in self.policy_aliases.items() if cls is policy_class), None)
        values = dict(self.policy_kwargs)
        net_arch = values.get("net_arch")
        if isinstance(net_arch, list) and net_arch and isinstance(net_arch[0], dict):
            net_arch = values["net_arch"] = net_arch[0]  # SB3's old form, read as SB3 reads it
        if policy and isinstance(net_arch, dict):
            values["net_arch"] = {name: net_arch[name] for name in ("pi", "vf") if name in net_arch}
        policy_kwargs, own = _describe_arguments(
            values, lambda found, own: self._decode_policy_kwargs(found, policy_class, not policy, own)
        )
        kinds = self._hyperparameter_types()
        values = {name: self._argument(name) for name in kinds}
        hyperparameters, left_out = _describe_arguments(values, lambda found, _: decode_arguments(found, kinds, ""))
        not_exported = [*([] if policy else ["policy"]), *(f"policy_kwargs.{name}" for name in own), *left_out]
        if self.rollout_buffer_class is not RolloutRing:
            not_exported.append("rollout_buffer_class")
        if not set(self.rollout_buffer_kwargs) <= set(kinds):  # the model adds its own arguments
            not_exported.append("rollout_buffer_kwargs")

        contents = {files.PARAMETERS: files.dump_tensors(tensors)}
        vec_normalize = self.get_vec_normalize_env()
        normalization = None if vec_normalize is None else Normalization.of(vec_normalize)
        if normalization is not None:
            contents[files.STATISTICS] = files.dump_tensors(normalization.statistics)
        modules = {module.__name__: str(module.__version__) for module in (stable_baselines3, th, gym, np)}
        description = Description(
            algorithm=type(self).__name__,
            versions={"python": platform.python_version(), "sb3-dapo": version("sb3-dapo"), **modules},
            **described_spaces,
            policy=policy,
            policy_kwargs=policy_kwargs,
            is_fast=is_fast(self.policy),
            hyperparameters=hyperparameters,
            num_timesteps=self.num_timesteps,
            vec_normalize=normalization and normalization.settings,
            not_exported=not_exported,
            sha256={name: hashlib.sha256(data).hexdigest() for name, data in contents.items()},
        )
        return description, contents

    def _argument(self, name: str) -> Any:
        """:return: value of an argument: an attribute of the same name, but for `stats_window_size`"""
        return getattr(self, name, getattr(self, f"_{name}", ...))

    # --- what is read ---

    @classmethod
    def _read_exported(
        cls, folder: Path, policy: str | PolicyClass | None, kwargs: dict[str, Any]
    ) -> tuple[Description, PolicyClass, Tensors, Normalization | None]:
        """:return: what the folder holds, all checked, values in place of their descriptions, and what was passed"""
        found = _read_description(folder)
        if found.algorithm != cls.__name__:
            raise ExportError(f"it is a model of {short(found.algorithm)}, not of {cls.__name__}")
        _check_not_exported(found.not_exported, policy, kwargs)
        found.observation_space = decode_space(found.observation_space, "observation_space")
        found.action_space = space = decode_space(found.action_space, "action_space")
        if isinstance(space, spaces.Dict) or (isinstance(space, spaces.Box) and not space.is_bounded()):
            raise ExportError(f"`action_space` must be bounded and not a Dict, got {space}")
        if found.num_timesteps < 0:
            raise ExportError(f"`num_timesteps` must be at least 0, got {found.num_timesteps}")

        kinds = cls._hyperparameter_types()
        found.hyperparameters = decode_arguments(found.hyperparameters, kinds, "hyperparameters")
        found.hyperparameters |= {name: value for name, value in kwargs.items() if name != "policy_kwargs"}
        policy_class: Any = policy or found.policy
        is_own = isinstance(policy_class, type)
        if not is_own and policy_class not in cls.policy_aliases:
            raise ExportError(f"`policy` must be one of {sorted(cls.policy_aliases)}, got {short(policy_class)}")
        if not is_own and isinstance(found.observation_space, spaces.Dict) != policy_class.startswith("MultiInput"):
            space = found.observation_space
            raise ExportError(f"`policy` must suit the observations, {short(space)}, got {policy_class!r}")
        policy_class = policy_class if is_own else cls.policy_aliases[policy_class]
        given = kwargs.get("policy_kwargs") or {}
        found.policy_kwargs = cls._decode_policy_kwargs(found.policy_kwargs, policy_class, is_own, given)
        # The policy is first built without memory, so that later it takes no more than its file does
        with refusing("the policy cannot be built"):
            skeleton = _skeleton(policy_class, found)
        n_bytes = files.n_bytes_of(files.PARAMETERS, skeleton)
        parameters = files.read_tensors(folder, files.PARAMETERS, found.sha256, n_bytes)
        files.check_tensors(files.PARAMETERS, parameters, skeleton)
        return found, policy_class, parameters, Normalization.read(folder, found.vec_normalize, found.sha256)

    @classmethod
    def _hyperparameter_types(cls) -> dict[str, Any]:
        return {name: kind for name, kind in annotations_of(cls).items() if name not in NOT_HYPERPARAMETERS}

    @classmethod
    def _decode_policy_kwargs(
        cls, described: dict[str, Any], policy_class: PolicyClass, is_own: bool, given: dict[str, Any]
    ) -> dict[str, Any]:
        """:return: arguments of the policy, of which some are given. Those of an own class may not be known here"""
        described = {name: value for name, value in described.items() if name not in given}
        arguments = arguments_of(next(iter(cls.policy_aliases.values())) if is_own else policy_class)
        kinds = dict.fromkeys(described, Any) if is_own else {}
        kinds |= {name: parameter.annotation for name, parameter in arguments.items()}
        kinds = {name: kind for name, kind in kinds.items() if name not in NOT_POLICY_KWARGS}
        kwargs = decode_arguments(described, kinds, "policy_kwargs")

        net_arch = kwargs.get("net_arch") or []
        if isinstance(net_arch, dict) and not set(net_arch) <= {"pi", "vf"}:
            raise ExportError(f"`policy_kwargs.net_arch` must have the entries 'pi' and 'vf', got {short(net_arch)}")
        for layers in net_arch.values() if isinstance(net_arch, dict) else [net_arch]:
            if len(layers) > (limit := describing.MAX_LENGTH):
                raise ExportError(f"`policy_kwargs.net_arch` must have at most {limit} layers, got {len(layers)}")

        # Arguments for the arguments that are classes
        for part, base in (("features_extractor", BaseFeaturesExtractor), ("optimizer", th.optim.Optimizer)):
            name = f"{part}_kwargs"
            default = getattr(arguments.get(f"{part}_class"), "default", None)
            receiver: Any = given.get(f"{part}_class", kwargs.get(f"{part}_class", default))
            if kwargs.get(name) is not None and receiver in describing.CLASSES[base].values():
                kwargs[name] = decode_arguments(kwargs[name], annotations_of(receiver), f"policy_kwargs.{name}")
        return {**kwargs, **given}

    def _check_ring(self) -> None:
        """Refuse a rollout buffer, still to be built, that would take more memory than a file may ask for."""
        n_rollouts = getattr(self, "n_rollouts", 1)
        parts: Any = [*observation_spaces(self.observation_space).values(), self.action_space]
        # Besides observation and action, a step has a dozen numbers; a rollout has objects, which also take time
        step_bytes = 64 + sum(math.prod(part.shape) * part.dtype.itemsize for part in parts)
        n_bytes = n_rollouts * (self.n_steps * self.n_envs * step_bytes + 2**16)
        if n_bytes > MAX_RING_BYTES:
            raise ExportError(
                f"the rollouts would take {n_bytes / 2**30:.3g} GiB of memory (n_rollouts={n_rollouts}, "
                f"n_steps={self.n_steps}, {self.n_envs} environments). Pass `n_rollouts` and `n_steps` to allow it"
            )


def load_vec_normalize(path: str | Path, venv: VecEnv) -> VecNormalize:
    """
    Wrap environments with the statistics of an exported model, as ``VecNormalize.load`` does with a pickle. For those
    who wrap them further, as with ``VecFrameStack``; else :meth:`~sb3_dapo.export.Exportable.load_exported` does it.

    :param path: folder of the model
    :param venv: environments, as they were before ``VecNormalize`` in training
    :return: the wrapped environments, whose statistics don't change
    :raises ExportError: if the folder holds no statistics, or something does not fit
    """
    with naming(path):
        description = _read_description(Path(path))
        normalization = Normalization.read(Path(path), description.vec_normalize, description.sha256)
        if normalization is None:
            raise ExportError("the model was trained without VecNormalize")
        return normalization.restore(venv)


def vectorized(env: GymEnv | str) -> VecEnv:
    """:return: an environment, or the one of that name, as a ``VecEnv`` with a ``Monitor``, if it is none yet"""
    if isinstance(env, str):
        env = gym.make(env)
    if isinstance(env, VecEnv):
        return env
    monitored = env if is_wrapped(env, Monitor) else Monitor(env)
    return DummyVecEnv([lambda: monitored])


# --- parts of a description ---------------------------------------------------------------------------


def _is_replaceable(folder: Path) -> bool:
    """:return: whether a path that exists is an exported model and nothing else, or an empty folder"""
    try:
        names = {path.name for path in folder.iterdir()}
        known = {files.DESCRIPTION, files.PARAMETERS, files.STATISTICS}
        return not names or (names <= known and bool(_read_description(folder)))
    except (NotADirectoryError, ExportError):
        return False


def _describe_arguments(
    values: dict[str, Any], decode: Callable[[dict[str, Any], dict[str, Any]], Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """:return: descriptions of arguments; those left out: of no description, or of one that ``decode`` refuses"""
    described: dict[str, Any] = {}
    left_out: dict[str, Any] = {}
    for name in sorted(values, key=lambda name: name.endswith("_kwargs")):  # classes before what is passed to them
        try:
            candidate = {**described, name: describing.encode(values[name])}
            decode(files.parse_json(files.dump_json({"": candidate}))[""], left_out)
            described = candidate
        except ExportError:
            left_out[name] = values[name]
    return described, left_out


def _read_description(folder: Path) -> Description:
    """:return: the description in an exported model, of which the types of the fields alone are checked"""
    if not folder.is_dir():
        raise ExportError("it is not a folder. (A zip file of `save` is read by `load`, and runs the code in it)")
    data = files.read_file(folder, files.DESCRIPTION, files.MAX_JSON_BYTES)
    with naming(files.DESCRIPTION):
        described = files.parse_json(data)
        if not isinstance(described, dict) or described.get("format") != Description.format:
            raise ExportError(f"it does not describe a model of sb3-dapo: `format` must be {Description.format!r}")
        format_version = described.get("format_version")
        if type(format_version) is not int or format_version < 1:
            raise ExportError(f"`format_version` must be an integer of at least 1, got {short(format_version)}")
        if format_version > FORMAT_VERSION:
            got = f"version {format_version}, but this sb3-dapo knows {FORMAT_VERSION} at most"
            raise ExportError(f"its format has {got}: a newer sb3-dapo is needed")
        description = Description(**decode_fields(described, get_type_hints(Description), ""))
        expected = [files.PARAMETERS] if description.vec_normalize is None else [files.PARAMETERS, files.STATISTICS]
        if sorted(description.sha256) != expected:
            raise ExportError(f"`sha256` must have the entries {expected}, got {short(sorted(description.sha256))}")
        return description


def _check_not_exported(names: list[str], policy: object, kwargs: dict[str, Any]) -> None:
    """Ask for what the folder leaves out and was not passed."""
    given = {*kwargs, *(f"policy_kwargs.{name}" for name in kwargs.get("policy_kwargs") or {})}
    given |= set() if policy is None else {"policy"}
    missing = [name for name in names if name not in given]
    if missing:
        argument, _, key = missing[0].partition(".")
        example = f"{argument}={{{key!r}: ...}}" if key else f"{argument}=..."
        raise ExportError(
            f"{short(missing[0])} was left out, as it cannot be described as data (an own class or function, for "
            f"instance). Pass it: load_exported(path, {example})"
        )


def _skeleton(policy_class: PolicyClass, description: Description) -> Tensors:
    """:return: tensors of a policy on PyTorch's meta device, where they have shapes but no contents"""

    class Skeleton(policy_class):  # type: ignore[valid-type, misc]
        device = th.device("meta")

        def _build(self, lr_schedule: Schedule) -> None:
            # gSDE would draw noise here, for which it has to look at contents
            self.action_dist.sample_weights = lambda *args, **kwargs: None
            super()._build(lr_schedule)

    kwargs = deepcopy(description.policy_kwargs)  # policies write into it
    if description.hyperparameters.get("use_sde"):
        kwargs["use_sde"] = True
    with th.device("meta"):
        policy = Skeleton(description.observation_space, description.action_space, ConstantSchedule(0.0), **kwargs)
        return files.distinct_tensors(policy)
