"""What `sb3-dapo train` writes down about a run beside RL Zoo's own files."""

import os
from pathlib import Path
from typing import Any

import numpy as np
from rl_zoo3.callbacks import SaveVecNormalizeCallback
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import TensorBoardOutputFormat
from tensorboard.compat.proto.event_pb2 import Event, SessionLog

# File in the folder of a run that says where its TensorBoard log is, as the Zoo numbers the two independently
TENSORBOARD_FILE = "tensorboard.txt"
# File there with the training episodes
EPISODES_FILE = "episodes.csv"
# File beside the Zoo's statistics of VecNormalize, which those of the run's end replace
BEST_STATISTICS = "best_vecnormalize.pkl"


def read_tensorboard_path(run_path: str | Path) -> str:
    """
    :param run_path: folder of a run
    :return: folder of its TensorBoard log
    """
    return os.path.normpath(Path(run_path, Path(run_path, TENSORBOARD_FILE).read_text().strip()))


def episode_of(info: Any) -> tuple[Any, Any] | None:
    """
    :param info: of a step
    :return: score and length of the episode that ended there, None if none did: some simulators send an empty entry
        with every step, or one of their own
    """
    episode = info.get("episode") if isinstance(info, dict) else None
    try:
        return (np.asarray(episode["r"]).item(), np.asarray(episode["l"]).item())  # type: ignore[index]
    except (IndexError, KeyError, TypeError, ValueError):
        return None


class EpisodeLog(BaseCallback):
    """
    Writes down when each training episode ended, which `Monitor` does not know: it counts frames, and the steps of
    whole episodes only. Of a resumed run, what came after the checkpoint is taken out.

    :param run_path: folder of the run
    """

    def __init__(self, run_path: str) -> None:
        super().__init__()
        self.path = Path(run_path, EPISODES_FILE)

    def _on_training_start(self) -> None:
        header, *rows = self.path.read_text().splitlines() if self.path.is_file() else ["timesteps,score,length"]
        kept = [row for row in rows if int(row.split(",")[0]) <= self.model.num_timesteps]
        self.path.write_text("\n".join([header, *kept, ""]))

    def _on_step(self) -> bool:
        episodes = [episode for info in self.locals.get("infos") or () if (episode := episode_of(info)) is not None]
        if episodes:
            with self.path.open("a") as file:
                file.writelines(f"{self.num_timesteps},{score},{length}\n" for score, length in episodes)
        return True


class BestStatistics(SaveVecNormalizeCallback):
    """The Zoo's, which writes the statistics of `VecNormalize` that the best model has, under a lasting name too."""

    def _on_step(self) -> bool:
        vec_normalize = self.model.get_vec_normalize_env()
        if vec_normalize is not None:
            vec_normalize.save(os.path.join(self.save_path, BEST_STATISTICS))
        return bool(super()._on_step())


class TensorBoardFolder(BaseCallback):
    """
    Writes down which TensorBoard log belongs to a run, and in a resumed run's what is no longer true.

    :param run_path: folder of the run
    """

    def __init__(self, run_path: str) -> None:
        super().__init__()
        self.run_path = run_path

    def _on_training_start(self) -> None:
        # Relative to the run, so that the folder of all logs may be moved
        path = os.path.relpath(str(self.logger.dir), self.run_path)
        Path(self.run_path, TENSORBOARD_FILE).write_text(f"{path}\n")
        if self.model.num_timesteps > 0:
            # TensorBoard then leaves out what was logged after the checkpoint, before the run was interrupted
            start = Event(session_log=SessionLog(status=SessionLog.START))
            for output in self.logger.output_formats:
                if isinstance(output, TensorBoardOutputFormat):
                    output.writer._get_file_writer().add_event(start, self.model.num_timesteps + 1)

    def _on_step(self) -> bool:
        return True
