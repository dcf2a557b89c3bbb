"""The text of an agent's page on the Hugging Face Hub: what it is, how well it plays, and how to use it."""

import json
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Scores = npt.NDArray[np.float64]  # (n_episodes,)

INTRODUCTION = """\
{subject} was trained by **Divergence-Augmented Policy Optimization** (DAPO) of
[Wang, Li, Xiong and Zhang (NeurIPS 2019)](https://arxiv.org/abs/2501.15034), with the package `sb3-dapo` for
[Stable-Baselines3](https://stable-baselines3.readthedocs.io). DAPO is PPO that may train on old data, because its loss
holds a multi-step estimate of how far the policy has moved from the policies that collected them.

It is **not** the method for training language models of the same name (*Decoupled Clip and Dynamic Sampling Policy
Optimization*, ByteDance, 2025): this agent plays, and knows no language."""

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

    scores: Scores
    """Of whole episodes."""
    is_deterministic: bool
    """Whether the most likely actions were played."""
    protocol: str
    """What the scores are, in sentences."""
    random_scores: Scores | None = None
    """Scores of the uniform random policy, if it played as well."""


def confidence_interval(scores: Scores) -> tuple[float, float]:
    """
    :param scores: scores of at least two episodes
    :return: 95% confidence interval of their mean, from percentiles of the bootstrap
    """
    draws = np.random.default_rng(0).choice(scores, size=(10_000, len(scores)))
    low, high = np.percentile(draws.mean(axis=1), [2.5, 97.5])
    return float(low), float(high)


def model_card(
    description: dict[str, Any],
    env_id: str | None,
    evaluation: Evaluation | None,
    usage: str,
    settings: str,
    figures: str = "",
) -> str:
    """
    :param description: of the exported model, the contents of its ``model.json``
    :param env_id: environment, if it is known
    :param evaluation: of the agent, if there is one
    :param usage: section on how to use it
    :param settings: section on how it was trained
    :param figures: pictures that belong to the score, if there are any
    :return: the card, without metadata
    """
    title = f"DAPO on {env_id}" if env_id else "DAPO agent"
    subject = f"This agent for `{env_id}`" if env_id else "This agent"
    sections = [
        f"# {title}",
        INTRODUCTION.format(subject=subject),
        score_section(evaluation),
        figures,
        usage,
        settings,
        details_section(description),
        CITATION,
    ]
    return "\n\n".join(filter(None, sections)) + "\n"


def score_section(evaluation: Evaluation | None) -> str:
    """
    :param evaluation: of the agent, if there is one
    :return: section with the score, its interval and the protocol
    """
    if evaluation is None:
        return "## Score\n\nNo evaluation was made when this agent was uploaded."
    rows = [score_row("this agent", evaluation.scores)]
    if evaluation.random_scores is not None:
        rows.append(score_row("uniform random policy", evaluation.random_scores))
    choice = "plays its most likely action (deterministic)"
    if not evaluation.is_deterministic:
        choice = "draws its actions from its policy (stochastic)"
    table = "\n".join(rows)
    return f"""\
## Score

| | mean | 95% interval of the mean | standard deviation | episodes |
|---|---|---|---|---|
{table}

{evaluation.protocol} The agent {choice}. The interval (percentiles of the bootstrap) is for the mean score of this
one agent; agents of other training runs may differ by more."""


def score_row(name: str, scores: Scores) -> str:
    """
    :param name: who played
    :param scores: of the episodes
    :return: row of the table
    """
    interval = "-"
    if len(scores) > 1:
        low, high = confidence_interval(scores)
        interval = f"{low:.2f} to {high:.2f}"
    return f"| {name} | {scores.mean():.2f} | {interval} | {scores.std():.2f} | {len(scores)} |"


def details_section(description: dict[str, Any]) -> str:
    """
    :param description: of the exported model
    :return: section with its size and the versions that made it
    """
    versions = ", ".join(f"{name} {version}" for name, version in description["versions"].items())
    return f"""\
## Details

Trained for {description["num_timesteps"]:,} steps. Uploaded with {versions}."""


def python_section(description: dict[str, Any], code: str, requirement: str, module: str) -> str:
    """
    :param description: of the exported model
    :param code: program that loads the agent
    :param requirement: what to install, as pip's argument
    :param module: that the environment comes from if pip does not install it, else empty
    :return: section on how to use it in Python
    """
    notes = ""
    if module:
        notes += f"\n\nThe environment comes from the Python module `{module}`, which must be installed as well."
    names = sorted({name.partition(".")[0] for name in description["not_exported"]})
    if names:
        listed = ", ".join(f"`{name}`" for name in names)
        notes += f"\n\nPass {listed} to `from_pretrained` as well: the agent has own classes or functions there."
    return f"""\
## Use it

```sh
pip install "{requirement}"
```

```python
{code}
```

{SAFETY}{notes}"""


def settings_section(description: dict[str, Any]) -> str:
    """
    :param description: of the exported model
    :return: section with the arguments of ``DAPO``
    """
    arguments = {"policy": description["policy"], **description["hyperparameters"]}
    if description["policy_kwargs"]:
        arguments["policy_kwargs"] = description["policy_kwargs"]
    rows = "\n".join(f"| `{name}` | `{json.dumps(value)}` |" for name, value in arguments.items())
    return f"## Hyperparameters\n\n| argument of `DAPO` | value |\n|---|---|\n{rows}"
