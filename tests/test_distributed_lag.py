"""The source of the benchmark of lag: its rollouts are as old as it says."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from algos import flat_parameters, make_model
from stable_baselines3.common.env_util import make_vec_env

from sb3_dapo import DAPO
from sb3_dapo.buffers import Rollout
from sb3_dapo.distributed.actor import Actor

pytest.importorskip("rl_zoo3", reason="the extra `zoo` is not installed")

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
from lag import MARKS, LaggingEnv, last_means, table

pytestmark = pytest.mark.filterwarnings("ignore:The last minibatch of every epoch")
N_STEPS, N_ENVS = 16, 2


def lagging(lag: int, env_class: type[LaggingEnv] = LaggingEnv) -> LaggingEnv:
    make_env = lambda seed: make_vec_env("CartPole-v1", N_ENVS, seed=seed)  # noqa: E731
    return env_class(Actor(make_env, 1, (), 0, np.random.SeedSequence([0, 0, 0])), lag)


class Watched(LaggingEnv):
    """Compares each rollout with the policies that the learner has had."""

    def __init__(self, actor: Actor, lag: int) -> None:
        super().__init__(actor, lag)
        self.lag, self.policies = lag, []
        self.policy = make_model(DAPO, "MlpPolicy", make_vec_env("CartPole-v1", N_ENVS)).policy

    def rollouts_for(self, model: DAPO) -> Iterator[Rollout]:
        self.policies.append({name: tensor.clone() for name, tensor in model.policy.state_dict().items()})
        for rollout in super().rollouts_for(model):
            assert rollout.version == max(0, model._policy_version - self.lag)
            errors = [
                np.abs(self.log_probs(number, rollout) - rollout.log_probs).max()
                for number in range(len(self.policies))
            ]
            assert errors.pop(rollout.version) < 1e-5
            assert min(errors, default=1.0) > 1e-4
            yield rollout

    def log_probs(self, number: int, rollout: Rollout) -> np.ndarray:
        self.policy.load_state_dict(self.policies[number])
        observations = th.as_tensor(np.array(rollout.observations["observation"]).reshape(-1, 4))
        log_probs = self.policy.evaluate_actions(observations, th.as_tensor(rollout.actions.ravel()))[1]
        return log_probs.detach().numpy().reshape(rollout.rewards.shape)


def train(env: Any, n_updates: int = 8) -> DAPO:
    model = make_model(DAPO, "MlpPolicy", env, n_steps=N_STEPS, n_rollouts=2, learning_rate=0.01)
    return model.learn(n_updates * N_STEPS * N_ENVS)


@pytest.mark.parametrize("lag", [0, 1, 3])
def test_rollouts_are_those_of_an_earlier_policy(lag: int) -> None:
    env = lagging(lag, Watched)
    train(env)
    assert env.lags == [*range(lag), *[lag] * (8 - lag)]


def test_without_lag_it_is_one_process() -> None:
    alone = train(make_vec_env("CartPole-v1", N_ENVS, seed=0))
    assert th.equal(flat_parameters(train(lagging(0))), flat_parameters(alone))


def test_the_table_is_of_the_last_evaluations_of_each_seed() -> None:
    numbers = {"measured_lag": "4", "kl": "0.01"}
    run = {"game": "Asterix", "algo": "dapo", "lag": "4", **numbers}
    rows = [
        {**run, "seed": str(seed), "timesteps": str(mark), "score": str(seed + index)}
        for seed in (1, 2)
        for index, mark in enumerate(MARKS)
    ]
    # Of five evaluations the fourth and the fifth count, and half the width for two seeds is 12.71 * 0.5
    assert last_means(rows, "score")["Asterix", "dapo", 4].tolist() == [4.5, 5.5]
    assert table(rows).splitlines()[-1] == "| Asterix | 4 | 4.0 | DAPO, multi-step | 2 | 5.00 ± 6.35 | 0.0100 |"
