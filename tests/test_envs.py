"""The environments of the tests keep Gymnasium's rules; without that the other tests would mean little."""

import gymnasium as gym
import numpy as np
import pytest
from envs import CatchEnv, EndlessEnv, RandomEnv
from gymnasium import spaces
from stable_baselines3.common.env_checker import check_env

FLOATS = spaces.Box(-1, 1, (3,))


@pytest.mark.filterwarnings("ignore:Your observation .* has an unconventional shape")
@pytest.mark.parametrize(
    "env",
    [
        RandomEnv(FLOATS, spaces.Discrete(3)),
        RandomEnv(spaces.Dict({"a": FLOATS, "b": spaces.Discrete(3)}), FLOATS),
        EndlessEnv(),
        EndlessEnv(as_dict=True),
        CatchEnv(),
    ],
    ids=lambda env: type(env).__name__,
)
def test_env(env: gym.Env) -> None:
    check_env(env, skip_render_check=True)


def test_random_env_is_reproducible_and_ends_in_both_ways() -> None:
    def run() -> tuple[list[np.ndarray], set[tuple[bool, bool]]]:
        env = RandomEnv(FLOATS, spaces.Discrete(2))
        observations, ends = [env.reset(seed=3)[0]], set()
        for _ in range(200):
            observation, _, terminated, truncated, _ = env.step(1)
            observations.append(observation)
            ends.add((terminated, truncated))
        return observations, ends

    first, ends = run()
    np.testing.assert_array_equal(first, run()[0])
    assert {(True, False), (False, True), (False, False)} <= ends


def test_catch_can_be_won_and_lost() -> None:
    """By following the ball, and by fleeing it."""
    for direction, expected in ((1, 5.0), (-1, -5.0)):
        env = CatchEnv()
        env.reset(seed=0)
        total, terminated = 0.0, False
        while not terminated:
            if direction > 0:
                move = np.sign(env.column - env.paddle)
            else:
                move = 1 if env.column < env.n_columns / 2 else -1
            _, reward, terminated, _, _ = env.step(1 + move)
            total += reward
        assert total == expected
