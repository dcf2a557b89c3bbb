"""The command `sb3-dapo record-video`: videos at the speed of the game, as mp4 and as GIF."""

import argparse
import os
from contextlib import redirect_stderr, redirect_stdout, suppress
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from stable_baselines3.common.vec_env import VecEnv, VecVideoRecorder

from sb3_dapo.zoo.evaluation import Agent, player
from sb3_dapo.zoo.parsers import agent_parser, positive

# Frames per second of the console, of which ale_py's metadata tell half
ATARI_FPS = 60
# Games of a few pixels, such as MinAtar's 10 x 10, are enlarged to at least this
MIN_HEIGHT = 160
MAX_GIF_FPS = 25


def visible(frame: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """A frame as bytes, also where MinAtar gives numbers from 0 to 1, with pixels repeated if there are only a few."""
    if np.issubdtype(frame.dtype, np.floating):
        frame = (255 * frame).astype(np.uint8)
    scale = ceil(MIN_HEIGHT / len(frame))
    return frame.repeat(scale, axis=0).repeat(scale, axis=1) if scale > 1 else frame


class VideoRecorder(VecVideoRecorder):
    """SB3's recorder, at the speed of the game where a step is several frames."""

    frames_per_sec: Any  # a number

    def __init__(self, venv: VecEnv, *args: Any, **kwargs: Any) -> None:
        super().__init__(venv, *args, **kwargs)
        if venv.has_attr("_frameskip"):  # ale_py's; (2, 5) is 2 to 4
            frame_skip = venv.get_attr("_frameskip")[0]
            self.frames_per_sec = ATARI_FPS / (frame_skip if isinstance(frame_skip, int) else (sum(frame_skip) - 1) / 2)
        if venv.has_attr("_skip"):  # SB3's MaxAndSkipEnv and the Zoo's FrameSkip
            self.frames_per_sec /= venv.get_attr("_skip")[0]

    def _capture_frame(self) -> None:
        super()._capture_frame()
        if self.recorded_frames:
            self.recorded_frames[-1] = visible(self.recorded_frames[-1])

    def _stop_recording(self) -> None:
        with open(os.devnull, "w") as devnull, redirect_stdout(devnull), redirect_stderr(devnull):
            super()._stop_recording()  # it reports on every frame


def record(agent: Agent, folder: Path, n_steps: int) -> Path:
    """Write a video of `n_steps` steps, and return its path."""
    env = agent.make_env(render_mode="rgb_array")
    name = f"{agent.args.kind}-{agent.algo}-{agent.env}"
    recorder = VideoRecorder(env, str(folder), lambda step: step == 0, n_steps, name)
    observations = recorder.reset()
    plays, state, starts = player(agent.load(env), env), None, np.ones(env.num_envs, dtype=bool)
    with suppress(KeyboardInterrupt):  # what there is is written
        for _ in range(n_steps):
            actions, state = plays.predict(observations, state, starts, agent.is_deterministic)
            observations, _, starts, _ = recorder.step(actions)
    recorder.close()
    return folder / recorder.video_name


def write_gif(video: Path) -> None:
    """Write a GIF of a video beside it."""
    from moviepy import VideoFileClip

    path = video.with_suffix(".gif")
    print(f"Saving GIF to {os.path.relpath(path)}")
    with VideoFileClip(str(video)) as clip:
        # GIFs count time in hundredths of a second
        clip.write_gif(str(path), fps=100 / ceil(100 / min(clip.fps, MAX_GIF_FPS)), logger=None)


def record_video() -> None:
    """The command `sb3-dapo record-video`, with the arguments of the Zoo's script."""
    parser = agent_parser("Record a trained agent as mp4.")
    parser.add_argument("-n", "--n-timesteps", help="length of the video (default: 1000)", type=positive, default=1000)
    parser.add_argument("-o", "--output-folder", help="where to write it (default: videos in the folder of the run)")
    parser.add_argument("--gif", action="store_true", help="write a GIF as well")
    # The Zoo's, which have no effect there
    parser.add_argument("--no-render", "--custom-objects", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    agent = Agent(args)
    print(f"Loading {agent.model_path}")
    video = record(agent, Path(args.output_folder or agent.folder / "videos"), args.n_timesteps)
    if args.gif:
        write_gif(video)
