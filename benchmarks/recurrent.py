"""
Does RecurrentDAPO remember, and does reuse work with it? Three tasks that take memory, five seeds of each agent.

    python benchmarks/recurrent.py                  # trains what is missing in results/recurrent.csv
    python benchmarks/recurrent.py --tasks cue      # of some tasks
    python benchmarks/recurrent.py --report         # only recurrent.md and the figure, from the CSV file
    python benchmarks/recurrent.py --states         # states recomputed or not: results/recurrent_states.csv

A run that was killed has left no rows, and is made again. All agents of a task use each step equally often.
"""

import argparse
import importlib.util
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import gymnasium as gym
import matplotlib as mpl
import numpy as np
import torch as th
from gymnasium import spaces
from matplotlib.figure import Figure
from sb3_contrib import RecurrentPPO
from sb3_contrib.common.recurrent.type_aliases import RNNStates
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import VecEnv, VecNormalize
from store import half_width, read_csv, write_csv, write_table

from sb3_dapo import DAPO, RecurrentDAPO
from sb3_dapo.recurrent.policies import process_step

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "recurrent.csv"
FIGURE = ROOT / "docs" / "figures" / "recurrent.svg"
COLUMNS = ["task", "agent", "seed", "timesteps", "score"]
N_MARKS = 10  # evaluations of a run


def load_module(path: Path) -> ModuleType:
    """:return: a module that is in no package"""
    spec = importlib.util.spec_from_file_location(f"example_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


CueEnv = load_module(ROOT / "examples" / "recurrent.py").CueEnv


def without(env_id: str, kept: Sequence[int]) -> gym.Env:
    """:return: an environment that shows some of its observations' numbers"""
    env, indices = gym.make(env_id), list(kept)
    space: Any = env.observation_space
    shown = spaces.Box(space.low[indices], space.high[indices])
    return gym.wrappers.TransformObservation(env, lambda observation: observation[indices], shown)


TITLES = {
    "cue": "Cue, ten steps ago",
    "cartpole": "CartPole without velocities",
    "pendulum": "Pendulum without velocity",
}
# Agents of the figure, with their colours
DRAWN = {
    "DAPO, one frame": "#969696",
    "RecurrentPPO": "#1f6fb5",
    "RecurrentDAPO": "#e7298a",
    "RecurrentDAPO, K = 2": "#980043",
}


class Task(NamedTuple):
    """A task, and what all agents are trained with."""

    make_env: Callable[[], gym.Env]
    timesteps: int
    settings: dict[str, Any]
    policy_kwargs: dict[str, Any]
    n_envs: int = 8
    normalizes: bool = False


# Settings of RL Zoo's ppo_lstm where it has the task. Gradients go through 32 steps in both implementations
SMALL = {"lstm_hidden_size": 64, "ortho_init": False, "activation_fn": th.nn.ReLU, "net_arch": {"pi": [64], "vf": [64]}}
TASKS = {
    "cue": Task(
        lambda: CueEnv(10),
        20_000,
        {"n_steps": 64, "batch_size": 128, "n_epochs": 8, "gamma": 0.99, "learning_rate": 3e-3},
        {"lstm_hidden_size": 32},
    ),
    "cartpole": Task(
        lambda: without("CartPole-v1", (0, 2)),
        100_000,
        {
            **{"n_steps": 32, "batch_size": 256, "n_epochs": 20, "gamma": 0.98, "gae_lambda": 0.8},
            **{"learning_rate": LinearSchedule(0.001, 0.0, 1.0), "clip_range": LinearSchedule(0.2, 0.0, 1.0)},
        },
        SMALL,
        normalizes=True,
    ),
    "pendulum": Task(
        lambda: without("Pendulum-v1", (0, 1)),
        100_000,
        {
            **{"n_steps": 1024, "batch_size": 128, "n_epochs": 10, "gamma": 0.9, "gae_lambda": 0.95},
            **{"learning_rate": 1e-3, "use_sde": True, "sde_sample_freq": 4},
        },
        SMALL,
        n_envs=4,
        normalizes=True,
    ),
}


class Recomputing(RecurrentDAPO):
    """
    Begins each epoch with a pass of the present LSTM over the kept rollouts, which replaces the states that sequences
    begin with: the longest burn-in there can be, from the first step of each rollout on.
    """

    def _update_targets(self, exact: bool) -> None:
        self.rollout_buffer.join()
        self.recompute_states()
        super()._update_targets(exact)

    @th.no_grad()
    def recompute_states(self) -> None:
        """Step through all kept rollouts side by side."""
        ring, policy = self.rollout_buffer, self.policy
        length, n_steps = ring.sequence_length, ring.buffer_size
        kept = ring.input_stores["lstm_states"].kept[: ring.n_kept].flatten(0, 1)  # (K N, T / L, C, layers, H), a view
        starts = ring.input_stores["episode_starts"].kept[: ring.n_kept].flatten(0, 1)  # (K * N, T)
        rows = th.arange(len(kept)) * n_steps
        states = policy.split_states(kept[:, 0])
        for step in range(n_steps - length):
            if step > 0 and step % length == 0:
                kept[:, step // length] = policy.stack_states(states)
            observations = {key: store.gather(rows + step) for key, store in ring.observation_stores.items()}
            features: Any = policy.extract_features(ring._from_dict(observations))
            begins = starts[:, step].float()
            after = [
                process_step(features, state, begins, lstm)[1]
                for state, lstm in ((states.pi, policy.lstm_actor), (states.vf, policy.lstm_critic))
            ]
            states = RNNStates(*after)
        if n_steps > length:
            kept[:, -1] = policy.stack_states(states)


class AgentKind(NamedTuple):
    """An algorithm, and how many rollouts it learns from."""

    algo: type[Any]
    n_rollouts: int = 1
    settings: dict[str, Any] = {}  # noqa: RUF012


# With K rollouts there is a K-th of the epochs. Reuse is with the multi-step divergence of the paper
AGENTS = {
    "DAPO, one frame": AgentKind(DAPO),
    "RecurrentPPO": AgentKind(RecurrentPPO),
    "RecurrentDAPO": AgentKind(RecurrentDAPO),
    "RecurrentDAPO, K = 2": AgentKind(RecurrentDAPO, 2),
    "RecurrentDAPO, K = 4": AgentKind(RecurrentDAPO, 4),
    "RecurrentDAPO, K = 4, exact": AgentKind(RecurrentDAPO, 4, {"exact_targets": True}),
}
# Sequences so short that much depends on the states that they begin with
STATES = {
    f"K = {k}, sequences of 8{text}": AgentKind(algo, k, {"sequence_length": 8})
    for k in (1, 2, 4)
    for text, algo in (("", RecurrentDAPO), (", recomputed", Recomputing))
}
AGENTS |= STATES


def make_model(task: Task, kind: AgentKind, env: VecEnv, seed: int) -> Any:
    """:return: a model that is not trained yet"""
    settings = {**task.settings, **kind.settings, "n_epochs": max(task.settings["n_epochs"] // kind.n_rollouts, 1)}
    policy_kwargs = dict(task.policy_kwargs)
    if kind.algo is DAPO:
        del policy_kwargs["lstm_hidden_size"]
    if kind.algo is not RecurrentPPO:
        settings |= {"n_rollouts": kind.n_rollouts, "advantage": "vtrace_gae"}
    policy = "MlpPolicy" if kind.algo is DAPO else "MlpLstmPolicy"
    return kind.algo(policy, env, seed=seed, device="cpu", policy_kwargs=policy_kwargs, **settings)


def train(name: str, agent: str, seed: int) -> Iterator[dict[str, Any]]:
    """
    :param name: key of ``TASKS``
    :param agent: key of ``AGENTS``
    :param seed: of the run
    :return: a row per evaluation: the mean return of 20 episodes of the most likely actions
    """
    task = TASKS[name]
    env, test_env = (make_vec_env(task.make_env, task.n_envs, seed=s) for s in (seed, 1000 + seed))
    if task.normalizes:
        env = VecNormalize(env)
        test_env = VecNormalize(test_env, training=False, norm_reward=False)
    model = make_model(task, AGENTS[agent], env, seed)

    scores: list[dict[str, Any]] = []

    def evaluate(local_variables: dict[str, Any], _: dict[str, Any]) -> bool:
        done, mark = model.num_timesteps, len(scores) + 1
        if done >= task.timesteps * mark // N_MARKS and mark <= N_MARKS:
            if isinstance(test_env, VecNormalize):
                test_env.obs_rms = env.obs_rms
            with th.random.fork_rng():
                score, _ = evaluate_policy(model, test_env, n_eval_episodes=20, warn=False)
            scores.append({"task": name, "agent": agent, "seed": seed, "timesteps": done, "score": f"{score:.2f}"})
        return True

    model.learn(task.timesteps, callback=evaluate)
    yield from scores


def means(rows: Sequence[dict[str, str]], task: str, agent: str, first: int = 0) -> list[float]:
    """:return: mean score of the evaluations from one on, of each seed"""
    runs: dict[str, list[float]] = {}
    for row in rows:
        if (row["task"], row["agent"]) == (task, agent):
            runs.setdefault(row["seed"], []).append(float(row["score"]))
    return [float(np.mean(scores[first:])) for scores in runs.values()]


def table(rows: Sequence[dict[str, str]]) -> str:
    """:return: a Markdown table: means of the last three evaluations, with 95 % intervals of Student's t; of all"""
    tasks = [task for task in TASKS if any(row["task"] == task for row in rows)]
    lines = [f"| agent | {' | '.join(f'{TITLES[t]}, {TASKS[t].timesteps:,} steps' for t in tasks)} |"]
    lines.append(f"| --- |{' --: |' * len(tasks)}")
    for agent in [agent for agent in AGENTS if any(row["agent"] == agent for row in rows)]:
        cells = []
        for task in tasks:
            scores = means(rows, task, agent, N_MARKS - 3)
            all_marks = np.mean(means(rows, task, agent)) if scores else 0
            cells.append(
                f"{np.mean(scores):.2f} ± {half_width(scores):.2f}; {all_marks:.2f} ({len(scores)})" if scores else ""
            )
        lines.append(f"| {agent} | {' | '.join(cells)} |")
    return "\n".join(lines)


def draw(rows: Sequence[dict[str, str]]) -> None:
    """Draw the learning curves of some agents: a line per run, and their mean."""
    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "recurrent"
    tasks = [task for task in TASKS if any(row["task"] == task for row in rows)]
    figure = Figure(figsize=(3.4 * len(tasks), 3.2), layout="constrained", facecolor="white")
    for axes, task in zip(figure.subplots(1, len(tasks), squeeze=False)[0], tasks, strict=True):
        for agent, color in DRAWN.items():
            runs: dict[str, list[tuple[int, float]]] = {}
            for row in rows:
                if (row["task"], row["agent"]) == (task, agent):
                    runs.setdefault(row["seed"], []).append((int(row["timesteps"]), float(row["score"])))
            if runs:
                steps = np.mean([[step for step, _ in run] for run in runs.values()], axis=0)
                scores = np.array([[score for _, score in run] for run in runs.values()])
                axes.plot(steps, scores.T, color=color, alpha=0.25, linewidth=0.8)
                axes.plot(steps, scores.mean(axis=0), color=color, label=agent, linewidth=2)
        axes.set_title(TITLES[task], fontsize=10)
        axes.set_xlabel("environment steps", fontsize=9)
        axes.tick_params(labelsize=8)
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.locator_params(axis="x", nbins=3)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("score", fontsize=9)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, fontsize=9, frameon=False, ncols=len(labels), loc="outside lower center")
    figure.savefig(FIGURE, metadata={"Date": None})


def main() -> None:
    """Train what is missing, write the scores, the table and the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, help="seeds 1 to N (default: 5)")
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--agents", nargs="+", choices=list(AGENTS))
    parser.add_argument("--states", action="store_true", help="compare states that are recomputed with those kept")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--report", action="store_true", help="only write table and figure, from what is in the output")
    args = parser.parse_args()
    args.agents = args.agents or [agent for agent in AGENTS if (agent in STATES) == args.states]
    args.output = args.output or (RESULTS.with_name("recurrent_states.csv") if args.states else RESULTS)
    th.set_num_threads(1)

    missing = [(task, agent, seed) for seed in range(1, args.seeds + 1) for task in args.tasks for agent in args.agents]
    for task, agent, seed in [] if args.report else missing:
        rows = read_csv(args.output)
        if any((row["task"], row["agent"], row["seed"]) == (task, agent, str(seed)) for row in rows):
            continue
        new = list(train(task, agent, seed))
        write_csv(args.output, COLUMNS, [*rows, *new])
        print(f"{task:9} {agent:28} seed {seed}  {new[-1]['score']}", flush=True)
    write_table(args.output, table)
    if args.output == RESULTS:
        draw(read_csv(args.output))


if __name__ == "__main__":
    main()
