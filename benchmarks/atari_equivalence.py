"""
Compare :class:`sb3_dapo.atari_vec_env.AtariVecEnv` with SB3's Atari wrappers.

``exact``: both play every game with the same actions, emulator seeds and numbers of no-op frames, and what differs is
counted.

``distribution``: both play whole games with seeds of their own, and the no-op frames, lengths and scores of 200 games
are compared by the two-sample Kolmogorov-Smirnov test. One setting has sticky actions, drawn in different places.

    python benchmarks/atari_equivalence.py exact
    python benchmarks/atari_equivalence.py distribution

They write ``benchmarks/results/atari_equivalence_exact.csv`` and ``atari_equivalence_distribution.csv``.
"""

import argparse
import csv
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import ale_py  # noqa: F401  registers the games
import gymnasium as gym
import numpy as np
from scipy.stats import ks_2samp  # type: ignore[import-untyped]
from stable_baselines3.common.atari_wrappers import FireResetEnv, NoopResetEnv
from stable_baselines3.common.env_util import make_atari_env, unwrap_wrapper
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecFrameStack, VecTransposeImage

from sb3_dapo.atari_vec_env import AtariVecEnv

RESULTS = Path(__file__).parent / "results"

# id, options of the native environment, options of AtariWrapper
DISTRIBUTION_SETTINGS: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("BreakoutNoFrameskip-v4", {}, {}),
    ("BreakoutNoFrameskip-v4", {"repeat_action_probability": 0.25}, {"action_repeat_probability": 0.25}),
    ("QbertNoFrameskip-v4", {}, {}),
    ("SpaceInvadersNoFrameskip-v4", {}, {}),
]

DIFFERENCES = ("observation", "reward", "done", "info", "terminal_observation", "final_frame")


class Game(NamedTuple):
    """What is compared of a game that was played to its end."""

    noop_frames: int
    length: int
    score: float


def make_classic(
    env_id: str, n_envs: int, seed: int | None = None, env_kwargs: dict[str, Any] | None = None, **wrapper_kwargs: Any
) -> VecEnv:
    """
    :param env_id: id of the game
    :param n_envs: number of games
    :param seed: seed of the first game
    :param env_kwargs: options of ``AtariEnv``
    :param wrapper_kwargs: options of ``AtariWrapper``
    :return: SB3's wrappers, as a model sees them
    """
    env = make_atari_env(env_id, n_envs, seed, env_kwargs=env_kwargs, wrapper_kwargs=wrapper_kwargs)
    return VecTransposeImage(VecFrameStack(env, 4))


def fix_emulator_seeds(classic: VecEnv, seed: int) -> None:
    """
    Give the emulators the seeds that the native environment gives them. ``AtariEnv`` would hash them first.

    :param classic: SB3's wrappers
    :param seed: seed of the first game
    """

    def fix(game: Any, emulator_seed: int) -> None:
        def seed_game(_seed: int | None = None) -> tuple[int, int]:
            game.ale.setInt("random_seed", emulator_seed)
            return emulator_seed, emulator_seed

        game.seed_game = seed_game

    for rank, game in enumerate(classic.get_attr("unwrapped")):
        fix(game, seed + rank)


def copy_noop_frames(native: AtariVecEnv, classic: VecEnv) -> None:
    """
    Have the wrappers begin their next games with as many no-op frames as the native environment's newest games had.

    :param native: native environment
    :param classic: SB3's wrappers
    """
    assert isinstance(classic.unwrapped, DummyVecEnv)
    for env, noop_frames in zip(classic.unwrapped.envs, native.get_attr("noop_frames"), strict=True):
        noop_env = unwrap_wrapper(env, NoopResetEnv)
        if isinstance(noop_env, NoopResetEnv):
            noop_env.override_num_noops = noop_frames


def count_unequal(native: Any, classic: Any) -> int:
    """
    :param native: array with an entry for each environment
    :param classic: another
    :return: number of entries that are not equal throughout
    """
    return sum(not np.array_equal(ours, theirs) for ours, theirs in zip(native, classic, strict=True))


def count_differences(native: AtariVecEnv, classic: VecEnv, n_steps: int, seed: int) -> Counter[str]:
    """
    Play the same random actions in both environments.

    :param native: native environment
    :param classic: SB3's wrappers with the same options
    :param n_steps: steps of the vectorised environments
    :param seed: of emulators and actions
    :return: numbers of steps, episodes and games, and of the observations, rewards, dones, infos (without the time and
        the emulator's total of frames) and terminal observations that differ; those of which only the newest frame
        does, when the game is over, count as ``final_frame``
    """
    counts: Counter[str] = Counter()
    rng = np.random.default_rng(seed)
    native.seed(seed)
    fix_emulator_seeds(classic, seed)
    first_observations = native.reset()
    copy_noop_frames(native, classic)
    counts["observation"] += count_unequal(first_observations, classic.reset())
    for _ in range(n_steps):
        actions = rng.integers(native.action_space.n, size=native.num_envs)
        native_observations, native_rewards, native_dones, native_infos = native.step(actions)
        copy_noop_frames(native, classic)
        classic_observations, rewards, dones, infos = classic.step(actions)
        counts["step"] += native.num_envs
        counts["observation"] += count_unequal(native_observations, classic_observations)
        counts["reward"] += count_unequal(native_rewards, rewards)
        counts["done"] += count_unequal(native_dones, dones)
        for done, info, native_info in zip(dones & native_dones, infos, native_infos, strict=True):
            for either in (info, native_info):
                either.pop("frame_number")
                either.get("episode", {}).pop("t", None)
            if done:
                final, native_final = info.pop("terminal_observation"), native_info.pop("terminal_observation")
                counts["episode"] += 1
                counts["game"] += "episode" in info
                game_over = "episode" in info and not info["TimeLimit.truncated"]
                kind = (
                    "final_frame" if game_over and (final[:-1] == native_final[:-1]).all() else "terminal_observation"
                )
                counts[kind] += not np.array_equal(final, native_final)
            counts["info"] += info != native_info
    return counts


def play_games(env: VecEnv, n_games: int, seed: int) -> list[Game]:
    """
    Play games to their end with random actions, the same number in each environment: the first ones to end would be the
    short ones.

    :param env: native environment, or SB3's wrappers
    :param n_games: number of games, a multiple of the number of environments
    :param seed: of the games and actions
    :return: the games
    """
    rng = np.random.default_rng(seed)
    env.seed(seed)
    env.reset()
    fire_frames = 8 if env.env_is_wrapped(FireResetEnv)[0] else 0  # it takes two actions
    games: list[list[Game]] = [[] for _ in range(env.num_envs)]
    noop_frames = dict[int, int]()
    while min(map(len, games)) < n_games // env.num_envs:
        _, _, _, infos = env.step(rng.integers(env.action_space.n, size=env.num_envs))  # type: ignore[attr-defined]
        for index, info in enumerate(infos):
            if index not in noop_frames:  # the first step of a game
                noop_frames[index] = info["episode_frame_number"] - fire_frames - 4
            if "episode" in info:
                games[index].append(Game(noop_frames.pop(index), info["episode"]["l"], info["episode"]["r"]))
    return [game for games_of_env in games for game in games_of_env[: n_games // env.num_envs]]


def compare_games(native: list[Game], classic: list[Game]) -> list[dict[str, Any]]:
    """
    :param native: games of the native environment
    :param classic: games of SB3's wrappers
    :return: means, standard deviations and the Kolmogorov-Smirnov test for all that is compared of a game
    """
    rows = []
    for measure in Game._fields:
        ours, theirs = ([getattr(game, measure) for game in games] for games in (native, classic))
        test = ks_2samp(ours, theirs)
        row = {"measure": measure, "games": len(ours)}
        for name, values in (("native", ours), ("classic", theirs)):
            row |= {f"{name}_mean": round(float(np.mean(values)), 3), f"{name}_std": round(float(np.std(values)), 3)}
        rows.append(row | {"ks_statistic": round(float(test.statistic), 4), "p_value": round(float(test.pvalue), 4)})
    return rows


def exact(n_steps: int, seed: int) -> list[dict[str, Any]]:
    """
    :param n_steps: number of steps in each game
    :param seed: of emulators and actions
    :return: a row of differences for every game that has a NoFrameskip-v4 id
    """
    rows = []
    for env_id in (env_id for env_id in gym.registry if env_id.endswith("NoFrameskip-v4")):
        native, classic = AtariVecEnv(env_id), make_classic(env_id, 1)
        counts = count_differences(native, classic, n_steps, seed)
        native.close()
        classic.close()
        sizes: dict[str, Any] = {"env_id": env_id}
        sizes |= {f"{kind}s": counts[kind] for kind in ("step", "episode", "game")}
        differences = {f"{kind}_differences": counts[kind] for kind in DIFFERENCES}
        rows.append(sizes | differences)
        print(*sizes.values(), differences, flush=True)
    return rows


def distribution(n_games: int, seed: int) -> list[dict[str, Any]]:
    """
    :param n_games: number of games in each setting
    :param seed: of games and actions
    :return: rows of :func:`compare_games` for every setting
    """
    rows = []
    # Seeds apart: nothing that is random is shared by two sets of games
    seeds = iter(range(seed, seed + 2000 * len(DISTRIBUTION_SETTINGS), 1000))
    for env_id, native_kwargs, wrapper_kwargs in DISTRIBUTION_SETTINGS:
        native, classic = AtariVecEnv(env_id, 8, **native_kwargs), make_classic(env_id, 8, **wrapper_kwargs)
        setting = {"env_id": env_id, "sticky_actions": native_kwargs.get("repeat_action_probability", 0.0)}
        games = play_games(native, n_games, next(seeds)), play_games(classic, n_games, next(seeds))
        native.close()
        classic.close()
        for row in compare_games(*games):
            rows.append(setting | row)
            print(rows[-1], flush=True)
    return rows


def main() -> None:
    """Run one of the comparisons from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("comparison", choices=["exact", "distribution"])
    parser.add_argument("--steps", type=int, default=500, help="exact: steps of each game")
    parser.add_argument("--games", type=int, default=200, help="distribution: games of each setting")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="CSV file to write instead of the one in benchmarks/results")
    args = parser.parse_args()
    rows = exact(args.steps, args.seed) if args.comparison == "exact" else distribution(args.games, args.seed)
    output = args.output or RESULTS / f"atari_equivalence_{args.comparison}.csv"
    with output.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    print(f"written to {output}")


if __name__ == "__main__":
    main()
