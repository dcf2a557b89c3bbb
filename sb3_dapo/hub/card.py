"""The text of an agent's page on the Hugging Face Hub: what it is, how well it plays, and how to use it."""

import datetime
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from sb3_dapo.hub.repository import CARD, RESULTS, client, foreign_module, read_description, requirement

Scores = npt.NDArray[np.float64]  # (n_episodes,)

INTRODUCTION = """\
{subject} was trained by **Divergence-Augmented Policy Optimization** of
[Wang, Li, Xiong and Zhang (NeurIPS 2019)](https://arxiv.org/abs/2501.15034), with the class `{algorithm}` of the
package `sb3-dapo` for [Stable-Baselines3](https://stable-baselines3.readthedocs.io). The method is PPO that may train
on old data, because its loss holds a multi-step estimate of how far the policy has moved from the policies that
collected them.

It is **not** the method for training language models that has the same initials (*Decoupled Clip and Dynamic Sampling
Policy Optimization*, ByteDance, 2025): this agent plays, and knows no language."""

SAFETY = """\
`from_pretrained` reads the folder `export`, which holds numbers and their description as JSON: loading it runs no code
of this repository. The zip file is a pickle, and loading that does. It is not touched unless you pass
`trust_pickle=True`."""

CITATION = """\
## Citation

```bibtex
@inproceedings{wang2019divergence,
  title     = {Divergence-Augmented Policy Optimization},
  author    = {Wang, Qing and Li, Yingru and Xiong, Jiechao and Zhang, Tong},
  booktitle = {Advances in Neural Information Processing Systems 32},
  pages     = {6099--6110},
  year      = {2019}
}
```"""


class Evaluation(NamedTuple):
    """How well an agent plays, and how that was found out."""

    scores: Scores  # of whole episodes
    is_deterministic: bool  # whether the most likely actions were played
    protocol: str  # what the scores are, in sentences
    random_scores: Scores | None = None  # of the uniform random policy, if it played as well


def confidence_interval(scores: Scores) -> tuple[float, float]:
    """:return: 95% confidence interval of the mean of at least two scores, from percentiles of the bootstrap"""
    draws = np.random.default_rng(0).choice(scores, size=(10_000, len(scores)))
    low, high = np.percentile(draws.mean(axis=1), [2.5, 97.5])
    return float(low), float(high)


# --- files --------------------------------------------------------------------------------------------


def write_results(folder: Path, evaluation: Evaluation) -> None:
    """Write ``results.json`` into a folder, with the names that huggingface_sb3 uses, and some more."""
    scores = evaluation.scores
    results: dict[str, Any] = {
        "mean_reward": float(scores.mean()),
        "std_reward": float(scores.std()),
        "is_deterministic": evaluation.is_deterministic,
        "n_eval_episodes": len(scores),
        "eval_datetime": datetime.datetime.now().isoformat(),
        "episode_rewards": scores.tolist(),
    }
    if len(scores) > 1:
        results["confidence_interval_95"] = confidence_interval(scores)
    if evaluation.random_scores is not None:
        results["random_policy_episode_rewards"] = evaluation.random_scores.tolist()
    (folder / RESULTS).write_text(json.dumps(results, indent=2))


def write_card(
    folder: Path, env_id: str | None, evaluation: Evaluation | None, usage: str, settings: str, figures: str = ""
) -> None:
    """
    Write the model card into a folder that has an exported model, and the results of its evaluation. Sections on how to
    use the model and how it was trained, and pictures, are given. Metadata come before the text.
    """
    if evaluation is not None:
        write_results(folder, evaluation)
    description = read_description(folder)
    algorithm = description["algorithm"]
    versions = ", ".join(f"{name} {version}" for name, version in description["versions"].items())
    sections = [
        f"# {algorithm} on {env_id}" if env_id else f"# {algorithm} agent",
        INTRODUCTION.format(subject=f"This agent for `{env_id}`" if env_id else "This agent", algorithm=algorithm),
        score_section(evaluation),
        figures,
        usage,
        settings,
        f"## Details\n\nTrained for {description['num_timesteps']:,} steps. Uploaded with {versions}.",
        CITATION,
    ]
    (folder / CARD).write_text("\n\n".join(filter(None, sections)) + "\n", encoding="utf-8")
    # What the Hub and its leaderboards read of a model card, in the form that huggingface_sb3 gives it
    tags = ["deep-reinforcement-learning", "reinforcement-learning", "stable-baselines3"]
    tags += ["sb3-dapo", "divergence-augmented-policy-optimization"]
    data: dict[str, Any] = {"library_name": "stable-baselines3", "tags": [env_id, *tags] if env_id else tags}
    if env_id is not None and evaluation is not None:
        data |= client().metadata_eval_result(
            model_pretty_name=algorithm,
            task_pretty_name="reinforcement-learning",
            task_id="reinforcement-learning",
            metrics_pretty_name="mean_reward",
            metrics_id="mean_reward",
            metrics_value=f"{evaluation.scores.mean():.2f} +/- {evaluation.scores.std():.2f}",
            dataset_pretty_name=env_id,
            dataset_id=env_id,
        )
    client().metadata_save(folder / CARD, data)


# --- text ---------------------------------------------------------------------------------------------


def score_section(evaluation: Evaluation | None) -> str:
    """:return: section with the score, its interval and the protocol"""
    if evaluation is None:
        return "## Score\n\nNo evaluation was made when this agent was uploaded."
    rows = []
    for name, scores in (("this agent", evaluation.scores), ("uniform random policy", evaluation.random_scores)):
        if scores is not None:
            interval = "{:.2f} to {:.2f}".format(*confidence_interval(scores)) if len(scores) > 1 else "-"
            rows.append(f"| {name} | {scores.mean():.2f} | {interval} | {scores.std():.2f} | {len(scores)} |")
    choices = ("draws its actions from its policy (stochastic)", "plays its most likely action (deterministic)")
    choice = choices[evaluation.is_deterministic]
    table = "\n".join(rows)
    return f"""\
## Score

| | mean | 95% interval of the mean | standard deviation | episodes |
|---|---|---|---|---|
{table}

{evaluation.protocol} The agent {choice}. The interval (percentiles of the bootstrap) is for the mean score of this
one agent; agents of other training runs may differ by more."""


def python_section(description: dict[str, Any], code: str, env_id: str | None, *extras: str) -> str:
    """:return: section on how to use the agent: what pip installs, a program, and a module that pip does not install"""
    notes, module = "", foreign_module(env_id)
    if module:
        notes += f"\n\nThe environment comes from the Python module `{module}`, which must be installed as well."
    names = sorted({name.partition(".")[0] for name in description["not_exported"]})
    if names:
        listed = ", ".join(f"`{name}`" for name in names)
        notes += f"\n\nPass {listed} to `from_pretrained` as well: the agent has own classes or functions there."
    return f"""\
## Use it

```sh
pip install "{requirement(env_id, *extras)}"
```

```python
{code}
```

{SAFETY}{notes}"""


def settings_section(description: dict[str, Any]) -> str:
    """:return: section with the arguments of the model's class"""
    arguments = {"policy": description["policy"], **description["hyperparameters"]}
    if description["policy_kwargs"]:
        arguments["policy_kwargs"] = description["policy_kwargs"]
    rows = "\n".join(f"| `{name}` | `{json.dumps(value)}` |" for name, value in arguments.items())
    return f"## Hyperparameters\n\n| argument of `{description['algorithm']}` | value |\n|---|---|\n{rows}"
