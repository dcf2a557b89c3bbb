"""The command `sb3-dapo report`: what an agent has learned, beside those who have learned nothing, and humans."""

import os
import shlex
import shutil
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from rl_zoo3.utils import ALGOS

from sb3_dapo.arguments import arguments_of
from sb3_dapo.atari_scores import atari_scores
from sb3_dapo.zoo.curves import EVALUATIONS, Curve, draw_curves, number, read_curve, text_curves
from sb3_dapo.zoo.evaluation import Agent, Scores, constant_scores, evaluate, random_scores
from sb3_dapo.zoo.exp_manager import NOISE
from sb3_dapo.zoo.parsers import ACTOR_OPTIONS, agent_parser, numbered_runs, positive
from sb3_dapo.zoo.registration import CONF_FILES
from sb3_dapo.zoo.video import record

SCORES_FILE = "scores.csv"
BAR = 32  # characters
# Options of the Zoo that always have a value, and which
UNLESS_DEFAULT = {"device": "auto", "vec_env": "dummy", "save_freq": -1}


def report() -> None:
    """The command `sb3-dapo report`."""
    text = "Play whole games with a trained agent, compare its score with those of random actions, of a constant "
    text += "action and of a human, and draw the learning curve from the evaluations made during training."
    parser = agent_parser(text, n_envs=8)
    parser.add_argument("-n", "--n-episodes", help="number of episodes (default: 20)", type=positive, default=20)
    text = "also record a video, of 300 steps unless a number is given"
    parser.add_argument("--video", metavar="STEPS", help=text, type=positive, nargs="?", const=300)
    args = parser.parse_args()
    agent = Agent(args)
    env_id, name = agent.env.gym_id, args.algo.upper()
    print(f"Playing {args.n_episodes} games each with the agent and without")
    env = agent.make_env()
    model = agent.load(env)
    steps = model.num_timesteps
    played = {name: evaluate(model, env, args.n_episodes, agent.is_deterministic)}
    settings = (env_id, agent.hyperparams, agent.env_kwargs, args.n_envs, args.seed)
    played["random actions"] = random_scores(*settings, args.n_episodes)
    constant = constant_scores(*settings)
    if constant is not None:
        played[f"always {constant[0]}"] = constant[1]
    write_scores(agent.folder / SCORES_FILE, played, steps)
    known = atari_scores(env_id)
    lines = {who: scores.mean() for who, scores in list(played.items())[1:]} | ({"a human": known[1]} if known else {})

    print(f"\n{env_id} after {steps:,} steps, score of whole games\n\n{bars(played, lines)}\n")
    files = {"model": agent.model_path, "learning curve": agent.folder / "learning_curve.png"}
    curve = own_curve(agent)
    if curve is not None:
        print(f"{text_curves([curve], lines)}\n")
    save_learning_curve(files["learning curve"], f"{name} on {env_id}", curve, played[name], lines, steps)
    if args.video is not None:
        files["video"] = record(agent, agent.folder / "videos", args.video)
    for what, path in files.items():
        print(f"  {what:15} {path}")
    print(f"\n{commands(agent)}\n")


def bars(played: Mapping[str, Scores], lines: Mapping[str, float]) -> str:
    """Mean, standard error and number of games of each that played, and the means as bars; a human's last."""
    means = {who: scores.mean() for who, scores in played.items()} | dict(lines)
    low = min(*means.values(), 0.0)
    unit = (max(*means.values(), 0.0) - low) / BAR or 1.0
    text = []
    for who, mean in means.items():
        spread = f"+/- {number(played[who].std() / np.sqrt(len(played[who])))}" if who in played else ""
        games = f"{len(played[who])} games" if who in played else ""
        text.append(f"  {who:20} {number(mean):>9} {spread:12} {games:10} {'#' * round((mean - low) / unit)}".rstrip())
    best = next((f". {who}: the best single action" for who in means if who.startswith("always ")), "")
    return "\n".join([*text, f"  (+/-: standard error of the mean{best})"])


def write_scores(path: Path, played: Mapping[str, Scores], steps: int) -> None:
    """Keep the scores of all games as a table."""
    rows = [f"{who},{steps},{score}" for who, scores in played.items() for score in scores]
    path.write_text("\n".join(["player,timesteps,score", *rows, ""]))


def own_curve(agent: Agent) -> Curve | None:
    """The learning curve of the agent's run, if it was evaluated."""
    return read_curve(agent.algo.upper(), [agent.folder]) if (agent.folder / EVALUATIONS).is_file() else None


def save_learning_curve(
    file: Path, title: str, curve: Curve | None, scores: Scores, lines: Mapping[str, float], steps: int
) -> None:
    """Draw the evaluations during training, this agent's score, and those of others as lines."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    label = f"this agent, {len(scores)} games: mean, standard error"
    spread = scores.std() / np.sqrt(len(scores))
    axes.errorbar(steps, scores.mean(), spread, color="black", marker="s", capsize=4, linestyle="none", label=label)
    draw_curves(axes, [] if curve is None else [curve], lines)
    axes.set_title(title)
    figure.savefig(file, dpi=150)


def commands(agent: Agent) -> str:
    """What to do next."""
    env, given = f"--env {agent.env.gym_id}", agent.train_args.get("n_timesteps", -1)
    steps = int(given if given > 0 else agent.config.get("n_timesteps", -1))
    folder, exp_id = agent.args.folder, agent.args.exp_id
    latest = max(numbered_runs(agent.folder.parent, agent.env), default=0)
    this_run = f" --exp-id {exp_id}" if exp_id != latest else ""
    named = f"--algo {agent.algo} {env} -f {folder}{this_run}"
    other = "dapo" if agent.algo == "ppo" else "ppo"
    budget, longer = (f" -n {steps}", f" -n {4 * steps}") if steps > 0 else ("", "")
    rows = {
        "watch": f"enjoy {named}{agent.args.option} -n 5000",
        "film": f"record-video {named}{agent.args.option} -n 1000 --gif",
        "see how it went": f"plot {named}",
        "train longer": f"train {train_arguments(agent, agent.algo)}{longer}",
        f"compare with {other.upper()}": f"train {train_arguments(agent, other)}{budget}",
        "": f"compare {env} -f {folder}",
        "share": f"push-to-hub {named}{agent.args.option} -orga YOUR_NAME_ON_THE_HUB",
    }
    text = [f"  {what:17} {program('sb3-dapo')} {command}" for what, command in rows.items()]
    logs = agent.train_args.get("tensorboard_log")
    text += [f"  {'TensorBoard':17} {program('tensorboard')} --logdir {logs}"] if logs else []
    return "\n".join(["What next:", *text])


def train_arguments(agent: Agent, algo: str) -> str:
    """Arguments of `train` that an algorithm is trained with as the agent was, besides the number of steps."""
    args, lacking = agent.train_args, set[str]()
    names = ["gym_packages", "preset", "eval_freq", "eval_episodes", "n_eval_envs", "seed"]
    names += [name for name, default in UNLESS_DEFAULT.items() if args.get(name) != default]
    if algo == agent.algo:  # what these name is made for this algorithm
        names += ["conf_file", "trained_agent", "storage", "study_name", "trial_id"]
    else:
        lacking = {*arguments_of(ALGOS[agent.algo]), *NOISE} - {*arguments_of(ALGOS[algo])}
    hyperparams = {name: value for name, value in (args.get("hyperparams") or {}).items() if name not in lacking}
    # An entry of a file has them only for its own algorithm
    env_kwargs = args.get("env_kwargs") or agent.config.get("env_kwargs")
    if algo in CONF_FILES:
        names += ["actors", *sorted(ACTOR_OPTIONS)]
    words = ["--algo", algo, "--env", agent.env.gym_id, "-f", agent.args.folder, "--progress"]
    given = {**args, "hyperparams": hyperparams, "env_kwargs": env_kwargs}
    return shlex.join([*words, *options(given, [*names, "hyperparams", "env_kwargs", "eval_env_kwargs"])])


def options(args: Mapping[str, Any], names: Iterable[str]) -> list[str]:
    """Options of `train` by the names of its arguments, as words; those that were not given are left out."""
    words = []
    for name in names:
        value = args.get(name)
        if value is None or value is False or value in ("", [], {}):
            continue
        words.append(f"--{name.replace('_', '-')}")
        if isinstance(value, dict):
            words += [f"{key}:{entry!r}" for key, entry in value.items()]
        elif value is not True:
            words += map(str, value if isinstance(value, list) else [value])
    return words


def program(name: str) -> str:
    """How to call a command of this Python's environment from here."""
    return name if shutil.which(name) else os.path.relpath(Path(sys.executable).with_name(name))
