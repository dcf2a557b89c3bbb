"""All of SB3's callbacks, and runs that a callback stops in mid-rollout."""

import pathlib
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from algos import make_model
from envs import RandomEnv
from gymnasium import spaces
from stable_baselines3.common.callbacks import (
    BaseCallback,
    CallbackList,
    CheckpointCallback,
    EvalCallback,
    EveryNTimesteps,
    LogEveryNTimesteps,
    StopTrainingOnMaxEpisodes,
    StopTrainingOnNoModelImprovement,
    StopTrainingOnRewardThreshold,
)
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import BitFlippingEnv
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_dapo import DAPO

N_STEPS = 64


def test_callbacks(algo: type[DAPO], tmp_path: pathlib.Path) -> None:
    model = make_model(algo, "MlpPolicy", "Pendulum-v1", n_rollouts=2)
    checkpoint = CheckpointCallback(save_freq=96, save_path=str(tmp_path), name_prefix="step")
    evaluation = EvalCallback(
        gym.make("Pendulum-v1", max_episode_steps=20),
        callback_on_new_best=StopTrainingOnRewardThreshold(reward_threshold=0.0, verbose=1),
        callback_after_eval=StopTrainingOnNoModelImprovement(max_no_improvement_evals=100),
        best_model_save_path=str(tmp_path),
        log_path=str(tmp_path),
        eval_freq=64,
        n_eval_episodes=1,
        warn=False,
    )
    on_event = CheckpointCallback(save_freq=1, save_path=str(tmp_path), name_prefix="event")
    event = EveryNTimesteps(n_steps=100, callback=on_event)
    callbacks = [checkpoint, evaluation, event, LogEveryNTimesteps(n_steps=50), StopTrainingOnMaxEpisodes(1000)]
    together = CallbackList(callbacks)
    model.learn(4 * N_STEPS, callback=together)
    # Each has been shown the same variables, and has counted the same steps
    assert model.env.observation_space.contains(together.locals["new_obs"][0])
    assert all(callback.locals["new_obs"] is together.locals["new_obs"] for callback in (*callbacks, on_event))
    assert event.num_timesteps == event.n_calls == model.num_timesteps == 4 * N_STEPS
    written = {path.name for path in tmp_path.iterdir()}
    assert {"step_96_steps.zip", "step_192_steps.zip", "event_100_steps.zip"} <= written
    assert {"best_model.zip", "evaluations.npz"} <= written
    algo.load(tmp_path / "best_model").predict(np.zeros(3))
    # Other ways to give callbacks
    model.learn(N_STEPS, callback=None)
    model.learn(N_STEPS, callback=[checkpoint, evaluation], progress_bar=True)
    model.learn(N_STEPS, callback=lambda local_variables, global_variables: True)


class RolloutVariables(BaseCallback):
    """Looks at what users' callbacks look at."""

    def __init__(self) -> None:
        super().__init__()
        self.called: list[str] = []

    def _on_training_start(self) -> None:
        self.called.append("training start")
        assert self.model.rollout_buffer is not None

    def _on_rollout_start(self) -> None:
        self.called.append("rollout start")

    def _on_step(self) -> bool:
        names = ("env", "rollout_buffer", "n_rollout_steps", "obs_tensor", "actions", "values", "log_probs")
        assert all(name in self.locals for name in (*names, "clipped_actions", "new_obs", "rewards", "dones", "infos"))
        assert self.locals["env"].num_envs == self.training_env.num_envs
        return True

    def _on_rollout_end(self) -> None:
        self.called.append("rollout end")
        buffer, n_envs = self.model.rollout_buffer, self.training_env.num_envs
        assert buffer.full
        assert buffer.size() == buffer.pos == self.model.n_steps
        for name in ("rewards", "values", "log_probs", "advantages", "returns", "episode_starts"):
            assert getattr(buffer, name).shape == (self.model.n_steps, n_envs), name
        assert buffer.observations.shape == (self.model.n_steps, n_envs, 4)
        assert buffer.actions.shape == (self.model.n_steps, n_envs, 1)
        np.testing.assert_allclose(buffer.returns, buffer.advantages + buffer.values, atol=1e-5)

    def _on_training_end(self) -> None:
        self.called.append("training end")


@pytest.mark.parametrize("n_envs", [1, 2])
def test_what_a_callback_sees(algo: type[DAPO], n_envs: int) -> None:
    callback = RolloutVariables()
    model = make_model(algo, "MlpPolicy", make_vec_env("CartPole-v1", n_envs=n_envs), n_rollouts=2)
    model.learn(3 * N_STEPS * n_envs, callback=callback)
    assert callback.called == ["training start", *["rollout start", "rollout end"] * 3, "training end"]


class StopAt(BaseCallback):
    """Stops training after some steps."""

    def __init__(self, n_calls: int, answer: Any = False) -> None:
        super().__init__()
        self.stop_at, self.answer = n_calls, answer

    def _on_step(self) -> Any:
        return self.answer if self.n_calls >= self.stop_at else True


@pytest.mark.parametrize("answer", [False, np.bool_(False), th.tensor(False)], ids=lambda x: type(x).__name__)
def test_stop(algo: type[DAPO], answer: Any) -> None:
    callback = StopAt(1, answer)
    model = make_model(algo, "MlpPolicy", "CartPole-v1")
    model.learn(10 * N_STEPS, callback=callback)
    assert callback.n_calls == model.num_timesteps == 1


@pytest.mark.parametrize("stop_at", [1, N_STEPS - 1, N_STEPS, N_STEPS + 1, 3 * N_STEPS, 3 * N_STEPS + 20])
def test_stop_in_mid_rollout_and_go_on(algo: type[DAPO], stop_at: int, tmp_path: pathlib.Path) -> None:
    """The unfinished rollout is dropped, the finished ones stay, and learning goes on, also after saving."""
    model = make_model(algo, "MlpPolicy", "CartPole-v1", n_rollouts=3)
    model.learn(100 * N_STEPS, callback=StopAt(stop_at))
    assert model.num_timesteps == stop_at
    n_complete = (stop_at - 1) // N_STEPS  # the step at which training stops is not kept
    assert model.rollout_buffer.n_kept == min(n_complete, 3)
    assert model._n_updates == n_complete * model.n_epochs
    model.save(tmp_path / "model")
    for going_on in (model, algo.load(tmp_path / "model", env=model.get_env())):
        going_on.learn(4 * N_STEPS, reset_num_timesteps=False)
        assert going_on.rollout_buffer.n_kept == 3
        assert all(parameter.isfinite().all() for parameter in going_on.policy.parameters())


def test_an_unfinished_rollout_leaves_no_trace(algo: type[DAPO]) -> None:
    """What is learned from afterwards is complete rollouts only, each step of them as it was collected."""
    env = make_vec_env(lambda: RandomEnv(spaces.Box(-1, 1, (1,)), spaces.Discrete(2)), n_envs=2, seed=0)
    model = make_model(algo, "MlpPolicy", env, n_rollouts=2, n_steps=8, n_epochs=1, batch_size=16)

    class Collected(BaseCallback):
        rollouts: list[set[float]] = []  # noqa: RUF012

        def _on_rollout_start(self) -> None:
            self.rollouts.append(set())

        def _on_step(self) -> bool:
            self.rollouts[-1] |= set(self.locals["obs_tensor"].flatten().tolist())
            return True

    collected = Collected()
    model.learn(10_000, callback=[collected, StopAt(8 * 4 + 5)])
    model.learn(8 * 2, callback=collected, reset_num_timesteps=False)
    *_, before, unfinished, last = collected.rollouts
    assert len(unfinished) == 2 * 5
    kept = {x for samples in model.rollout_buffer.get(16) for x in samples.observations.flatten().tolist()}
    assert kept == before | last


def test_stop_on_max_episodes(algo: type[DAPO]) -> None:
    n_envs, length = 2, 50
    env = make_vec_env("Pendulum-v1", n_envs=n_envs, env_kwargs={"max_episode_steps": length})
    callback = StopTrainingOnMaxEpisodes(max_episodes=1, verbose=1)
    model = make_model(algo, "MlpPolicy", env)
    model.learn(1000, callback=callback)
    assert callback.n_episodes == n_envs
    assert model.num_timesteps == n_envs * length


def test_stop_on_reward_threshold(algo: type[DAPO]) -> None:
    stop = StopTrainingOnRewardThreshold(reward_threshold=1.0, verbose=1)
    evaluation = EvalCallback(gym.make("CartPole-v1"), callback_on_new_best=stop, eval_freq=30, n_eval_episodes=1)
    model = make_model(algo, "MlpPolicy", "CartPole-v1")
    model.learn(1000, callback=evaluation)
    assert model.num_timesteps == 30
    assert evaluation.best_mean_reward >= 1.0


def test_evaluation_on_several_envs_and_success_rate(algo: type[DAPO], tmp_path: pathlib.Path) -> None:
    def make_env() -> gym.Env:
        return BitFlippingEnv(n_bits=1, max_steps=10)

    evaluation = EvalCallback(
        DummyVecEnv([make_env] * 3), eval_freq=N_STEPS, n_eval_episodes=6, log_path=str(tmp_path), warn=False
    )
    model = make_model(algo, "MultiInputPolicy", make_env(), learning_rate=0.02)
    model.learn(8 * N_STEPS, callback=evaluation)
    assert len(evaluation._is_success_buffer) == 6
    assert np.mean(evaluation._is_success_buffer) > 0.5
    assert "successes" in np.load(tmp_path / "evaluations.npz")


def test_evaluation_synchronizes_vec_normalize(algo: type[DAPO]) -> None:
    train_env, eval_env = (VecNormalize(make_vec_env("CartPole-v1", n_envs=1, seed=seed)) for seed in (0, 1))
    eval_env.training = False
    model = make_model(algo, "MlpPolicy", train_env)
    model.learn(2 * N_STEPS, callback=EvalCallback(eval_env, eval_freq=2 * N_STEPS, n_eval_episodes=1, warn=False))
    observations = np.ones((1, 4))
    np.testing.assert_allclose(train_env.normalize_obs(observations), eval_env.normalize_obs(observations), rtol=1e-5)


def test_checkpoints_with_vec_normalize(algo: type[DAPO], tmp_path: pathlib.Path) -> None:
    env = VecNormalize(make_vec_env("CartPole-v1", n_envs=1))
    callback = CheckpointCallback(save_freq=100, save_path=str(tmp_path), save_vecnormalize=True, verbose=2)
    make_model(algo, "MlpPolicy", env).learn(128, callback=callback)
    restored = VecNormalize.load(str(tmp_path / "rl_model_vecnormalize_100_steps.pkl"), env.venv)
    algo.load(tmp_path / "rl_model_100_steps", env=restored).learn(N_STEPS)
