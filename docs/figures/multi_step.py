"""Draw multi_step.svg: what the divergence of later steps costs the actions that lead to them.

Run from anywhere, with sb3-dapo installed: ``python docs/figures/multi_step.py``.
"""

from pathlib import Path

import torch as th

from sb3_dapo.divergences import DIVERGENCES
from sb3_dapo.estimators import importance_ratios, multi_step_divergence

GAMMA, LAM = 0.99, 0.9
STEPS, LAST_OF_FIRST_EPISODE = 24, 14
#: steps at which the policy has changed, and by how much: log pi(a|s) - log mu(a|s) of the action taken
CHANGES = {10: 0.8, 20: 0.4}
#: n, its label, colour and marker size: drawn in this order, so that each stays visible where they coincide
VARIANTS = (
    (None, "n = None: whole episode", "#2f6db3", 11.0),
    (3, "n = 3", "#e0a030", 7.5),
    (0, "n = 0: 1-step", "#222222", 4.0),
)


def example() -> tuple[th.Tensor, dict[int | None, th.Tensor]]:
    """
    :return: f at each step of the trajectory, shape ``(T,)``, and for each n the divergence D, shape ``(T,)``
    """
    behavior_log_prob = th.full((STEPS, 1), 0.25).log()  # (T, N): one trajectory, four equally likely actions
    log_prob = behavior_log_prob.clone()
    for step, change in CHANGES.items():
        log_prob[step] += change
    continues = th.ones(STEPS, 1)
    continues[LAST_OF_FIRST_EPISODE] = 0.0
    f = DIVERGENCES["kl"](log_prob, behavior_log_prob)
    ratios = importance_ratios(log_prob, behavior_log_prob)
    divergences = {
        n_steps: multi_step_divergence(f, ratios, continues, gamma=GAMMA, lam=LAM, n_steps=n_steps).squeeze(1)
        for n_steps, *_ in VARIANTS
    }
    return f.squeeze(1), divergences


def draw(path: Path) -> None:
    """
    :param path: the SVG file to write
    """
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    f, divergences = example()
    plt.rcParams.update(
        {"font.size": 13, "svg.hashsalt": "sb3-dapo", "axes.spines.top": False, "axes.spines.right": False}
    )
    figure, (top, bottom) = plt.subplots(
        2, 1, figsize=(6.4, 6.4), sharex=True, height_ratios=(1, 2), layout="constrained"
    )
    top.bar(range(STEPS), f, color="#444444", width=0.7)
    top.set_title("Where the policy has changed:  $f_t = \\log \\pi - \\log \\mu$", loc="left", fontsize=13)
    top.set_ylabel("$f_t$")
    for n_steps, label, color, size in VARIANTS:
        bottom.plot(range(STEPS), divergences[n_steps], "o", color=color, label=label, markersize=size)
    bottom.set_title(f"What each action is charged:  $D_t$  (λ = {LAM}, γ = {GAMMA})", loc="left", fontsize=13)
    bottom.set_ylabel("$D_t$")
    bottom.set_xlabel("step t of the trajectory")
    bottom.set_ylim(top=1.3)
    bottom.legend(loc="upper left", frameon=False, fontsize=12)
    for axes in (top, bottom):
        axes.axvline(LAST_OF_FIRST_EPISODE + 0.5, color="#b3541e", linestyle="--", linewidth=1.5)
    top.text(LAST_OF_FIRST_EPISODE + 0.8, 0.72, "episode ends", color="#b3541e", fontsize=12)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


if __name__ == "__main__":
    draw(Path(__file__).with_suffix(".svg"))
