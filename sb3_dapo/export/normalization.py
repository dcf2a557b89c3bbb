"""``VecNormalize`` as data: its settings, and its statistics as tensors."""

from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecNormalize, is_vecenv_wrapped

from sb3_dapo.export.description import MAX_SPACE_SIZE, annotations_of, decode_fields, encode
from sb3_dapo.export.folder import STATISTICS, ExportError, Tensors, check_tensors, read_tensors, refusing, short

SETTINGS = {name: kind for name, kind in annotations_of(VecNormalize).items() if name not in ("venv", "training")}


class Normalization(NamedTuple):
    """What there is to know of a ``VecNormalize``."""

    settings: dict[str, Any]  # by the names of its arguments
    statistics: Tensors  # by name of a running mean and its part, such as "obs_rms.mean", all float64

    @classmethod
    def of(cls, vec_normalize: VecNormalize) -> "Normalization":
        """:return: what there is to know of what an environment is wrapped in, if that is all"""
        if type(vec_normalize) is not VecNormalize or is_vecenv_wrapped(vec_normalize.venv, VecNormalize):
            advice = "To export without the statistics, give the model another environment (`set_env`)"
            got = type(vec_normalize).__name__
            raise ExportError(f"the environment must be wrapped in VecNormalize itself, and once, got {got}. {advice}")
        settings = {name: encode(getattr(vec_normalize, name)) for name in SETTINGS}
        statistics = {
            f"{name}.{part}": th.from_numpy(np.array(getattr(rms, part), dtype=np.float64))
            for name, rms in _running_means(vec_normalize).items()
            for part in ("mean", "var", "count")
        }
        return cls(settings, statistics)

    @classmethod
    def read(cls, folder: Path, described: Any, sha256: dict[str, str]) -> "Normalization | None":
        """:return: what an exported model's folder, description and checksums tell of its ``VecNormalize``, if any"""
        if described is None:
            return None
        settings = decode_fields(described, SETTINGS, "vec_normalize")
        # Mean and variance of an observation, of 8 bytes each, and some single numbers
        statistics = read_tensors(folder, STATISTICS, sha256, 2 * 8 * MAX_SPACE_SIZE)
        normalization = cls(settings, statistics)
        with refusing("`vec_normalize`"):
            expected = cls.of(VecNormalize(normalization._stand_in(), **settings))
        check_tensors(STATISTICS, statistics, expected.statistics)
        for name, tensor in statistics.items():
            if not tensor.isfinite().all() or (not name.endswith(".mean") and (tensor < 0).any()):
                raise ExportError(f"{STATISTICS}: {short(name)} must be finite, and not negative unless it is a mean")
        return normalization

    def restore(self, venv: VecEnv | None) -> VecNormalize:
        """:return: wrapped environments, whose statistics don't change. Without any, it can only normalize"""
        with refusing("the statistics of VecNormalize don't fit the environment"):
            vec_normalize = VecNormalize(self._stand_in() if venv is None else venv, training=False, **self.settings)
            for name, rms in _running_means(vec_normalize).items():
                mean, var, count = (self.statistics[f"{name}.{part}"].numpy() for part in ("mean", "var", "count"))
                if mean.shape != np.shape(rms.mean):
                    raise ExportError(
                        f"the statistics of VecNormalize are of shape {mean.shape}, the observations of "
                        f"{np.shape(rms.mean)}. If it comes before other wrappers, use "
                        f"sb3_dapo.export.load_vec_normalize(path, venv)"
                    )
                rms.mean, rms.var, rms.count = mean.copy(), var.copy(), float(count)
        return vec_normalize

    def _stand_in(self) -> VecEnv:
        """:return: stands for environments, where nothing but the shapes of their observations matters"""

        def box(name: str) -> spaces.Space[Any]:
            return spaces.Box(-np.inf, np.inf, tuple(self.statistics.get(f"{name}.mean", th.empty(())).shape))

        keys = self.settings["norm_obs_keys"] if self.settings["norm_obs"] else None
        space = box("obs_rms") if keys is None else spaces.Dict({key: box(f"obs_rms.{key}") for key in keys})
        attributes = {"observation_space": space, "action_space": spaces.Discrete(1)}
        return DummyVecEnv([type("SpacesAlone", (gym.Env,), attributes)])


def _running_means(vec_normalize: VecNormalize) -> dict[str, RunningMeanStd]:
    obs_rms: Any = vec_normalize.obs_rms if vec_normalize.norm_obs else {}
    is_dict = isinstance(obs_rms, dict)
    parts = {f"obs_rms.{key}": rms for key, rms in obs_rms.items()} if is_dict else {"obs_rms": obs_rms}
    return {"ret_rms": vec_normalize.ret_rms, **parts}
