"""Atari games emulated by ale_py's C++ threads, as an SB3 ``VecEnv``."""

import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import AutoresetMode
from stable_baselines3.common import atari_wrappers
from stable_baselines3.common.monitor import Monitor, ResultsWriter
from stable_baselines3.common.vec_env.base_vec_env import VecEnv, VecEnvIndices, VecEnvStepReturn

from sb3_dapo.arguments import Range, check_arguments

try:
    import cv2
    from ale_py.env import AtariEnv
    from ale_py.vector_env import AtariVectorEnv
except ImportError as error:
    raise ImportError("sb3_dapo.atari_vec_env needs ale_py and OpenCV: pip install 'sb3-dapo[atari]'") from error

NOOP, FIRE = 0, 1  # their places in the action set; most games have FIRE
NUM_SEEDS = 2**31  # the emulator's seeds are non-negative 32-bit integers
NO_LIMIT = 2**30  # more frames than any game lasts
ALL = slice(None)
COUNTERS = ("lives", "episode_frame_number", "frame_number")  # of the emulator, in infos

# What the numbers among the arguments of `AtariVecEnv` may be
RANGES = {
    "n_envs": Range(1, is_integer=True),
    "seed": Range(0, is_integer=True),
    "n_stack": Range(1, is_integer=True),
    "noop_max": Range(0, is_integer=True),
    "frame_skip": Range(1, is_integer=True),
    "screen_size": Range(1, is_integer=True),
    "repeat_action_probability": Range(0, 1),
    "max_num_frames_per_episode": Range(1, is_integer=True),
}
# What the registration of a game may set for `AtariVectorEnv` to be able to play it.
SUPPORTED_KWARGS = {"game", "repeat_action_probability", "full_action_space", "frameskip", "max_num_frames_per_episode"}


@dataclass(eq=False)
class AtariGame:
    """
    One game of an :class:`AtariVecEnv`: a C++ environment of size one, with the bookkeeping of ``Monitor`` and of
    ``EpisodicLifeEnv``. The attributes and methods of this class are what ``get_attr`` and ``env_method`` reach.

    :meth:`send` hands an action to the game's own thread, :meth:`receive` waits for what came of it; between the two,
    other games are emulated. After :meth:`receive` the game can be played on: a game that ended has been replaced.

    :param make_emulator: makes a C++ environment of one game, in same-step mode, giving single frames
    :param spec: what is registered under the game's id
    :param action_meanings: names of the actions
    :param reset_frames: what the emulator's frame counter shows after a reset (not 0 in games that open with a menu)
    :param noop_start: whether a game begins with no-op frames
    :param episodic_life: whether the loss of a life ends the episode
    :param max_frames: what the emulator's frame counter may reach before the game is truncated
    :param results_writer: log of finished games, if any
    """

    make_emulator: Callable[[], AtariVectorEnv]
    spec: EnvSpec
    action_meanings: list[str]
    reset_frames: int
    noop_start: bool
    episodic_life: bool
    max_frames: int
    results_writer: ResultsWriter | None

    metadata = AtariEnv.metadata
    render_mode = "rgb_array"

    def __post_init__(self) -> None:
        self.lives = self.frame_number = self.episode_frame_number = 0
        self.episode_return = 0.0
        self.is_sent = False  # whether there may be an action whose outcome is not received
        self._emulator = self.make_emulator()
        self.action_space = self._emulator.single_action_space
        self._t_start = time.time()

    def get_action_meanings(self) -> list[str]:
        """
        :return: the names of the actions
        """
        return self.action_meanings

    def render(self) -> np.ndarray:
        """
        :return: the current screen, (height, width, 3)
        """
        return self.screen if self.screen.ndim == 3 else np.repeat(self.screen[:, :, None], 3, axis=2)

    def close(self) -> None:
        """Close the log of finished games."""
        if self.results_writer is not None:
            self.results_writer.close()

    def reset(self, seed: int | None = None) -> None:
        """
        Replace the game by a new one.

        :param seed: seed of the emulator and of the number of no-op frames, None to continue their random streams
        """
        if self.is_sent:
            # A step was interrupted, as by Ctrl+C: the next outcome may be that of the action, or never come
            self._emulator, self.is_sent = self.make_emulator(), False
            seed = int(np.random.randint(NUM_SEEDS, dtype=np.int64)) if seed is None else seed
        self._start(*self._emulator.reset(seed=seed))

    def send(self, action: np.ndarray) -> None:
        """
        Have the game's thread hold an action for some frames.

        :param action: integer array of shape (1,)
        """
        self.is_sent = True
        self._emulator.send(action)

    def receive(self) -> None:
        """
        Wait for the outcome of the action sent last: ``reward``, ``game_over``, ``life_lost``, ``truncated``, ``info``,
        and ``last_screen``, which is the screen before a new game replaced it.
        """
        screens, rewards, terminations, _, emulator_info = self._emulator.recv()
        self.is_sent = False
        lives, episode_frame_number, frame_number = _read_counters(emulator_info)
        self.game_over = bool(terminations[0])
        if self.game_over:
            # The counters are of the next game already; the total less that game's frames is where this one ended.
            lives, frame_number = 0, frame_number - episode_frame_number
            episode_frame_number = self.episode_frame_number + frame_number - self.frame_number
        self.reward = float(rewards[0])
        self.episode_return += self.reward
        # As in EpisodicLifeEnv: some games show 0 lives for a few frames before they are over.
        self.life_lost = self.episodic_life and 0 < lives < self.lives
        self.truncated = episode_frame_number >= self.max_frames
        self.last_screen = self.screen = emulator_info["final_obs"][0, 0] if self.game_over else screens[0, 0]
        self.lives, self.frame_number, self.episode_frame_number = lives, frame_number, episode_frame_number
        self.info = self.counters()
        if self.game_over or self.truncated:
            self.info["episode"] = self._log_game()
        if self.game_over:
            self._start(screens, emulator_info)
        elif self.truncated:
            self.reset()

    def counters(self) -> dict[str, Any]:
        """
        :return: what the emulator counts, under the names that ale_py gives them in infos
        """
        return {name: getattr(self, name) for name in COUNTERS}

    def begin_episode(self, new_game: bool) -> None:
        """
        Send the first of the actions that SB3's wrappers take before it is the agent's turn.

        :param new_game: whether the game has just begun, or goes on after the loss of a life
        """
        self._opening = self._opening_actions(new_game)
        self.continue_opening()

    def continue_opening(self) -> None:
        """Send the next of these actions, if there is one left."""
        action = next(self._opening, None)
        if action is not None:
            self.send(np.array([action]))

    def _opening_actions(self, new_game: bool) -> Iterator[int]:
        if not new_game:  # EpisodicLifeEnv
            yield NOOP
        if "FIRE" in self.action_meanings:  # FireResetEnv, which resets EpisodicLifeEnv where a life is lost meanwhile
            for action in (FIRE, FIRE + 1):
                yield action
                if self.life_lost:
                    yield NOOP

    def _start(self, screens: np.ndarray, emulator_info: dict[str, np.ndarray]) -> None:
        # The emulator takes 0 to noop_max no-op frames, NoopResetEnv 1 to noop_max: after 0, draw again.
        while self.noop_start and emulator_info["episode_frame_number"][0] == self.reset_frames:
            screens, emulator_info = self._emulator.reset()
        self.lives, self.episode_frame_number, self.frame_number = _read_counters(emulator_info)
        self.noop_frames = self.episode_frame_number - self.reset_frames
        self.screen = screens[0, 0]
        self.episode_return = 0.0

    def _log_game(self) -> dict[str, Any]:
        # Monitor counts the frames that were asked for since the reset.
        episode = {
            "r": round(self.episode_return, 6),
            "l": self.episode_frame_number - self.reset_frames,
            "t": round(time.time() - self._t_start, 6),
        }
        if self.results_writer is not None:
            self.results_writer.write_row(episode)
        return episode


class AtariVecEnv(VecEnv):
    """
    Atari games in ale_py's C++ ``AtariVectorEnv``, as the ``VecEnv`` that
    ``VecTransposeImage(VecFrameStack(make_atari_env(env_id, n_envs), 4))`` is to a model: the same observations bit for
    bit, the same rewards, ends of episodes and infos. Since C++ threads emulate the games, it is faster. A model
    trained with one plays with the other.

    Every game is a C++ environment of its own, with its own thread, because the wrappers treat games one by one: where
    a life was lost they go on with a no-op and press FIRE, for which ``AtariVectorEnv`` alone has no means. Screens are
    turned grey and scaled down here, as ``WarpFrame`` does it; see ``exact_pixels``.

    Sticky actions and the longest game are what the registration of the id says, unless given here. Its frame skip is
    replaced by ``frame_skip``: ``ALE/Breakout-v5`` is played like
    ``make_atari_env("ALE/Breakout-v5", env_kwargs={"frameskip": 1})``, where an action lasts 4 frames, not 4 times 4.

    What differs from the wrappers is listed in docs/atari.md.

    :param env_id: a ``NoFrameskip`` id (``BreakoutNoFrameskip-v4``), or ``ALE/Breakout-v5``, which has sticky actions
    :param n_envs: number of games
    :param seed: seed of the first game; each next game has the next number
    :param n_stack: number of frames in an observation
    :param noop_max: games begin with a random number of no-op frames from 1 to this; 0 for none
    :param frame_skip: number of frames an action lasts
    :param screen_size: height and width of a frame in an observation
    :param terminal_on_life_loss: whether the loss of a life ends the episode
    :param clip_reward: whether the agent gets the sign of the reward; ``episode`` infos always have the game's score
    :param repeat_action_probability: probability that the emulator repeats the previous action at a frame (sticky
        actions), None for what the id stands for: 0 in v4, 0.25 in v0 and v5
    :param full_action_space: whether to offer all 18 actions, not only those that matter in the game; None for what the
        id stands for: not all
    :param max_num_frames_per_episode: frames after which a game is truncated, None for what the id stands for: 108,000
    :param exact_pixels: True for the frames of ``WarpFrame`` bit for bit. With False, the C++ threads turn screens grey
        and scale them down, which is faster, but takes the brighter of two frames after turning them grey, not before:
        up to 1.5 % of the pixels differ, at the edges of moving sprites, by up to 40 of 255 (none in Breakout, Enduro
        and Space Invaders). Videos then show these small grey frames.
    :param monitor_dir: folder for the ``monitor.csv`` files that ``Monitor`` would write, None for no files
    """

    def __init__(
        self,
        env_id: str,
        n_envs: int = 1,
        seed: int | None = None,
        *,
        n_stack: int = 4,
        noop_max: int = 30,
        frame_skip: int = 4,
        screen_size: int = 84,
        terminal_on_life_loss: bool = True,
        clip_reward: bool = True,
        repeat_action_probability: float | None = None,
        full_action_space: bool | None = None,
        max_num_frames_per_episode: int | None = None,
        exact_pixels: bool = True,
        monitor_dir: str | None = None,
    ):
        spec = atari_spec(env_id)
        rom = spec.kwargs["game"]
        if repeat_action_probability is None:
            repeat_action_probability = spec.kwargs.get("repeat_action_probability", 0.25)  # AtariEnv's default
        if full_action_space is None:
            full_action_space = spec.kwargs.get("full_action_space", False)
        if max_num_frames_per_episode is None:
            max_num_frames_per_episode = spec.kwargs.get("max_num_frames_per_episode") or NO_LIMIT
        check_arguments(AtariVecEnv, locals(), RANGES)

        # The Python environment tells what the C++ one does not.
        probe = AtariEnv(game=rom, full_action_space=full_action_space, repeat_action_probability=0.0)
        assert isinstance(probe.observation_space, spaces.Box)
        screen_height, screen_width = probe.observation_space.shape[:2] if exact_pixels else (screen_size, screen_size)
        action_meanings = probe.get_action_meanings()
        reset_frames = probe.reset()[1]["episode_frame_number"]
        has_fire = "FIRE" in action_meanings
        if action_meanings[NOOP] != "NOOP" or (has_fire and action_meanings[FIRE] != "FIRE"):
            needed = "NOOP first, and FIRE, if there is such an action, second"
            raise ValueError(f"env_id={env_id!r} has the actions {action_meanings}, but SB3's wrappers need {needed}")

        make_emulator = partial(
            AtariVectorEnv,
            rom,
            num_envs=1,
            num_threads=1,
            autoreset_mode=AutoresetMode.SAME_STEP,
            # In C++: the emulator, frame skip, maximum of two frames, no-op frames. The rest follows SB3 here.
            frameskip=int(frame_skip),  # it refuses integers of NumPy
            repeat_action_probability=repeat_action_probability,
            full_action_space=full_action_space,
            noop_max=noop_max + 1 if noop_max > 0 else 0,  # one more than it will take
            use_fire_reset=False,
            episodic_life=False,
            reward_clipping=False,
            max_num_frames_per_episode=NO_LIMIT,
            grayscale=not exact_pixels,
            img_height=screen_height,
            img_width=screen_width,
            stack_num=1,
        )
        self._games = [
            AtariGame(
                make_emulator,
                spec,
                action_meanings,
                reset_frames,
                noop_start=noop_max > 0,
                episodic_life=terminal_on_life_loss,
                max_frames=max_num_frames_per_episode,
                results_writer=None if monitor_dir is None else _results_writer(monitor_dir, rank, env_id),
            )
            for rank in range(n_envs)
        ]
        observation_space = spaces.Box(0, 255, (n_stack, screen_size, screen_size), np.uint8)
        super().__init__(n_envs, observation_space, spaces.Discrete(len(action_meanings)))
        self.metadata["render_fps"] = AtariEnv.metadata["render_fps"]
        self.action_space: spaces.Discrete
        # By these names, so that a resume can compare them
        self.env_id, self.noop_max, self.frame_skip, self.clip_reward = env_id, noop_max, frame_skip, clip_reward
        self.terminal_on_life_loss, self._exact_pixels = terminal_on_life_loss, exact_pixels
        self.repeat_action_probability = repeat_action_probability
        self.max_num_frames_per_episode = max_num_frames_per_episode
        self._observations = np.zeros((n_envs, *observation_space.shape), np.uint8)
        # The wrappers whose work is done, on AtariWrapper's conditions
        in_effect = {
            Monitor: True,
            atari_wrappers.AtariWrapper: True,
            atari_wrappers.NoopResetEnv: noop_max > 0,
            atari_wrappers.MaxAndSkipEnv: frame_skip > 1,
            atari_wrappers.EpisodicLifeEnv: terminal_on_life_loss,
            atari_wrappers.FireResetEnv: has_fire,
            atari_wrappers.WarpFrame: True,
            atari_wrappers.ClipRewardEnv: clip_reward,
        }
        self._wrappers = [wrapper for wrapper, condition in in_effect.items() if condition]
        self.action_space.seed(seed)
        self.seed(seed)

    def reset(self) -> np.ndarray:
        """
        Begin new games.

        :return: the first observations, (n_envs, n_stack, screen_size, screen_size)
        """
        self._check_open()
        self._observations = np.zeros_like(self._observations)
        for game, seed in zip(self._games, self._seeds, strict=True):
            game.reset(None if seed is None else seed % NUM_SEEDS)
            game.begin_episode(new_game=True)
        self._finish_openings(range(self.num_envs))
        self._reset_seeds()
        self._reset_options()
        return self._observations

    def step_async(self, actions: np.ndarray) -> None:
        self.send(actions)

    def step_wait(self) -> VecEnvStepReturn:
        return self.receive()

    def send(self, actions: np.ndarray, games: slice = ALL) -> None:
        """
        Have some games emulated, without waiting for them.

        :param actions: integers, one per game
        :param games: which
        """
        self._check_open()
        actions = np.asarray(actions)
        chosen = self._games[games]
        if any(game.is_sent for game in chosen):
            raise RuntimeError("step_async() was called twice without step_wait(): after an interrupt, call reset()")
        # The C++ side would wait for ever for a thread that was sent an action out of range.
        is_valid = actions.shape == (len(chosen),) and np.issubdtype(actions.dtype, np.integer)
        if not is_valid or actions.min() < 0 or actions.max() >= self.action_space.n:
            raise ValueError(f"actions={actions!r} must be {len(chosen)} integers of {self.action_space}")
        for game, action in zip(chosen, actions.astype(np.int64)[:, None], strict=True):
            game.send(action)

    def receive(self, games: slice = ALL) -> VecEnvStepReturn:
        """
        Wait for some games, and take those whose episode ended to the start of the next.

        :param games: which
        :return: their observations, rewards, dones and infos; arrays that were returned are never written to
        """
        if not all(game.is_sent for game in self._games[games]):
            raise RuntimeError("step_wait() was called without step_async()")
        observations = self._observations.copy()
        observations[games, :-1] = self._observations[games, 1:]
        self._observations = observations
        rewards = np.zeros(self.num_envs, np.float32)
        dones = np.zeros(self.num_envs, np.bool_)
        infos = []
        for index in range(self.num_envs)[games]:
            game = self._games[index]
            game.receive()
            self._draw(game.last_screen, index)
            terminated = game.game_over or game.life_lost
            info = game.info
            info["TimeLimit.truncated"] = game.truncated and not terminated
            if terminated or game.truncated:
                game.begin_episode(new_game=game.game_over or game.truncated)
                info["terminal_observation"] = observations[index].copy()
                observations[index] = 0
                dones[index] = True
            rewards[index] = game.reward
            infos.append(info)
        self._finish_openings(np.flatnonzero(dones))
        if self.clip_reward:
            rewards = np.sign(rewards)
        return observations[games], rewards[games], dones[games], infos

    def _finish_openings(self, indices: Iterable[int]) -> None:
        # Games in turn: while one is waited for, the others are emulated.
        waiting = deque(indices)
        while waiting:
            index = waiting.popleft()
            game = self._games[index]
            if game.is_sent:
                game.receive()
                game.continue_opening()
                waiting.append(index)
            else:
                self._draw(game.screen, index)
                self.reset_infos[index] = game.counters()

    def _draw(self, screen: np.ndarray, index: int) -> None:
        newest = self._observations[index, -1]
        if self._exact_pixels:  # WarpFrame
            grey = cv2.cvtColor(screen, cv2.COLOR_RGB2GRAY)
            cv2.resize(grey, newest.shape, dst=newest, interpolation=cv2.INTER_AREA)
        else:
            newest[:] = screen

    def close(self) -> None:
        """Stop the games and their threads."""
        for game in self._games:
            game.close()
        self._games = []

    def _check_open(self) -> None:
        if not self._games:
            raise RuntimeError("the environment has been closed")

    def get_images(self) -> Sequence[np.ndarray]:
        return [game.render() for game in self._games]

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        return [getattr(game, attr_name) for game in self._select(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """
        :param attr_name: name of an attribute of :class:`AtariGame`; others are refused, since they would do nothing
        :param value: its new value
        :param indices: which games, None for all
        """
        games = self._select(indices)
        for game in games:
            getattr(game, attr_name)
        for game in games:
            setattr(game, attr_name, value)

    def env_method(
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any
    ) -> list[Any]:
        return [getattr(game, method_name)(*method_args, **method_kwargs) for game in self._select(indices)]

    def env_is_wrapped(self, wrapper_class: type[gym.Wrapper], indices: VecEnvIndices = None) -> list[bool]:
        """
        :param wrapper_class: class of a wrapper
        :param indices: which games, None for all
        :return: whether the games behave as if it were there: ``Monitor`` and the parts of ``AtariWrapper`` in use
        """
        is_wrapped = any(issubclass(wrapper, wrapper_class) for wrapper in self._wrappers)
        return [is_wrapped for _ in self._select(indices)]

    def _select(self, indices: VecEnvIndices) -> list[AtariGame]:
        return [self._games[index] for index in self._get_indices(indices)]


def atari_spec(env_id: str) -> EnvSpec:
    """
    Look up the id of an Atari game and refuse what the C++ environment cannot play.

    :param env_id: for instance ``BreakoutNoFrameskip-v4`` or ``ALE/Breakout-v5``
    :return: what Gymnasium has registered under the id
    """
    try:
        spec = gym.spec(env_id)
    except gym.error.Error as error:
        message = f"env_id={env_id!r} is not a registered id such as 'BreakoutNoFrameskip-v4': {error}"
        raise ValueError(message) from error
    if spec.entry_point != "ale_py.env:AtariEnv":
        raise ValueError(f"env_id={env_id!r} is not an Atari game of ale_py: its entry point is {spec.entry_point!r}")
    if not isinstance(spec.kwargs.get("frameskip", 4), int):
        hint = "use the game's NoFrameskip-v4 or ALE/...-v5 id"
        raise ValueError(f"env_id={env_id!r} repeats actions a random number of times, which is not supported: {hint}")
    unsupported = [key for key, value in spec.kwargs.items() if key not in SUPPORTED_KWARGS and value is not None]
    if unsupported or spec.max_episode_steps is not None or spec.additional_wrappers:
        raise ValueError(
            f"env_id={env_id!r} is registered with settings that are not supported: keyword arguments {unsupported} "
            f"(allowed: {sorted(SUPPORTED_KWARGS)}), max_episode_steps={spec.max_episode_steps} (allowed: None), "
            f"additional_wrappers={spec.additional_wrappers} (allowed: none)"
        )
    return spec


def _results_writer(folder: str, rank: int, env_id: str) -> ResultsWriter:
    return ResultsWriter(os.path.join(folder, str(rank)), header={"t_start": time.time(), "env_id": env_id})


def _read_counters(emulator_info: dict[str, np.ndarray]) -> list[int]:
    return [int(emulator_info[name][0]) for name in COUNTERS]
