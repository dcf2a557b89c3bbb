"""The panels that show how a run goes: in TensorBoard, and in the figure of ``sb3-dapo plot``."""

import re

from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import TensorBoardOutputFormat

# Title and logged values of each panel. docs/metrics.md says what they mean
PANELS: dict[str, tuple[str, ...]] = {
    "Score": ("rollout/ep_rew_mean", "eval/mean_reward"),
    "Divergence": ("train/divergence", "train/divergence_loss"),
    "KL": ("train/behavior_kl", "train/approx_kl"),
    "Ratios": ("train/ratio_mean", "train/rho_clip_fraction", "train/clip_fraction"),
    "Reuse: age of the data in updates": ("train/policy_lag",),
    "1/η": ("train/divergence_coef",),
}
# And of runs with actors (docs/distributed.md)
ACTOR_PANELS: dict[str, tuple[str, ...]] = {
    "Actors: age of their rollouts": ("distributed/lag_mean", "distributed/lag_max"),
    "Actors: alive, and lost so far": ("distributed/actors_alive", "distributed/restarts"),
    "Share of time that the learner waited": ("distributed/wait_share",),
}


class TensorBoardPanels(BaseCallback):
    """
    Lays out the panels in TensorBoard, under "Custom Scalars": score, divergence, KL, ratios and reuse side by side.
    ``sb3-dapo train`` does so by itself.

    :raises ValueError: at the beginning of training, if the model does not log to TensorBoard
    """

    def _on_training_start(self) -> None:
        outputs = [output for output in self.logger.output_formats if isinstance(output, TensorBoardOutputFormat)]
        if not outputs:
            raise ValueError("`tensorboard_log` of the model must be a folder for TensorBoardPanels, got None")
        panels = PANELS | (ACTOR_PANELS if hasattr(self.training_env, "n_sources") else {})
        # TensorBoard takes the names as regular expressions, and matches their beginnings
        charts = {title: ["Multiline", [f"^{re.escape(key)}$" for key in keys]] for title, keys in panels.items()}
        for output in outputs:
            output.writer.add_custom_scalars({"DAPO": charts})

    def _on_step(self) -> bool:
        return True
