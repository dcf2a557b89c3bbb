"""The statistics of ``VecNormalize`` in a checkpoint."""

import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from sb3_dapo.checkpoint.checkpoints import ENVIRONMENTS_ENTRY, EntryUnpickler


class _WithoutEnvironments(pickle.Unpickler):
    """Reads the state of wrappers without the environments that it refers to."""

    def persistent_load(self, pid: Any) -> None:
        return None


def vec_normalize_of(path: str | Path, venv: VecEnv | None = None) -> VecNormalize | None:
    """
    :param path: a checkpoint, or a file of SB3's ``save``. It holds pickles: read only what you trust
    :param venv: vectorized environment to wrap, ``None`` to leave that to ``set_venv``
    :return: ``VecNormalize`` as it was when the checkpoint was written, with its statistics and settings; ``None`` if
        the file is no checkpoint, or its environment was not normalized
    """
    with zipfile.ZipFile(path) as archive:
        if ENVIRONMENTS_ENTRY not in archive.namelist():
            return None
        env_state, _ = EntryUnpickler(io.BytesIO(archive.read(ENVIRONMENTS_ENTRY))).load()
    for state in _WithoutEnvironments(io.BytesIO(env_state.wrappers_state)).load():
        if "ret_rms" in state:
            vec_normalize = VecNormalize.__new__(VecNormalize)
            # What its own pickles leave out, to which `returns` belongs, is made by set_venv()
            vec_normalize.__setstate__({name: value for name, value in state.items() if name != "returns"})
            # SB3 expects what leads to the environment when it pickles one
            vec_normalize.class_attributes, vec_normalize.returns = {}, state["returns"]
            if venv is not None:
                vec_normalize.set_venv(venv)
            return vec_normalize
    return None
