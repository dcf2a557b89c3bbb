"""Rollouts from elsewhere: a robot that writes files, and an agent that learns from them.

The two share a folder and nothing else. The robot drives with the newest policy that it finds there, by whatever loop
it has, and writes what happened. The learner takes one file per update; it may be some updates old, which is what
V-trace and the divergence are for.
"""

import pickle
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper

from sb3_dapo import DAPO
from sb3_dapo.buffers import Rollout, RolloutRecorder

N_STEPS = 128


def write(path: Path, content: Any) -> None:
    path.with_suffix(".part").write_bytes(pickle.dumps(content))
    path.with_suffix(".part").rename(path)  # complete or not there


def newest(folder: Path, pattern: str) -> Path:
    while not (found := sorted(folder.glob(pattern))):
        time.sleep(0.05)
    return found[-1]


class RobotEnv(VecEnvWrapper):
    """What the learner knows of the robot: its spaces, and a folder. (:param venv: is not stepped here.)"""

    def __init__(self, venv: VecEnv, folder: Path) -> None:
        super().__init__(venv)
        self.folder = folder

    def rollouts_for(self, model: DAPO) -> Iterator[Rollout]:
        parameters = {name: tensor.cpu() for name, tensor in model.policy.state_dict().items()}
        write(self.folder / f"policy_{model._policy_version:06}.pkl", (model._policy_version, parameters))
        path = newest(self.folder, "rollout_*.pkl")
        yield pickle.loads(path.read_bytes())
        path.unlink()

    def reset(self) -> Any:
        return self.venv.reset()

    def step_wait(self) -> Any:
        raise NotImplementedError("only the robot drives")


def drive(folder: Path) -> None:
    """The robot."""
    env = make_vec_env("CartPole-v1", n_envs=4)
    policy = DAPO("MlpPolicy", env, n_steps=N_STEPS, device="cpu").policy
    recorder = RolloutRecorder(N_STEPS, env.observation_space, env.action_space, "cpu", n_envs=env.num_envs)
    observations, starts = env.reset(), np.ones(env.num_envs, bool)
    for number in range(10**6):
        version, parameters = pickle.loads(newest(folder, "policy_*.pkl").read_bytes())
        policy.load_state_dict(parameters)
        recorder.reset()
        infos = []
        for _ in range(N_STEPS):
            with th.no_grad():
                actions, values, log_probs = policy(th.as_tensor(observations))
            answer, rewards, dones, step_infos = env.step(actions.numpy())
            recorder.record_step(answer, rewards, dones, step_infos)
            recorder.add(observations, actions.numpy(), rewards, starts, values, log_probs)
            observations, starts = answer, dones
            infos.append([{"episode": info["episode"]} if "episode" in info else {} for info in step_infos])
        with th.no_grad():
            recorder.compute_returns_and_advantage(policy.predict_values(th.as_tensor(observations)), starts)
        write(folder / f"rollout_{number:06}.pkl", replace(recorder.rollout(), version=version, infos=infos))


def main(folder: str = "robot", steps: int = 30_000) -> None:
    """
    :param folder: that the two share
    :param steps: to learn from
    """
    Path(folder).mkdir()
    env = RobotEnv(make_vec_env("CartPole-v1", n_envs=4), Path(folder))
    model = DAPO("MlpPolicy", env, n_steps=N_STEPS, batch_size=256, n_rollouts=2, n_epochs=4, device="cpu")
    robot = subprocess.Popen([sys.executable, __file__, folder])
    try:
        model.learn(steps)
    finally:
        robot.terminate()
    scores = [episode["r"] for episode in model.ep_info_buffer or ()]
    print(f"Score of the last {len(scores)} episodes that the robot drove: {np.mean(scores):.0f}")
    lag = model.logger.name_to_value["train/policy_lag"]
    print(f"Updates: {model._policy_version}, mean age of the data in the last: {lag}")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        drive(Path(sys.argv[1]))
    else:
        main()
