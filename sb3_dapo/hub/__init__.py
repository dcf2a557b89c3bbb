"""Models on the Hugging Face Hub."""

from sb3_dapo.hub.card import Evaluation, confidence_interval, model_card, python_section, write_card, write_results
from sb3_dapo.hub.repository import (
    CARD,
    CONFIGS,
    CURVE,
    EXPORT,
    METRICS,
    RESULTS,
    STATISTICS_PICKLE,
    VIDEO,
    entry_point,
    foreign_module,
    read_description,
    requirement,
    upload,
)
from sb3_dapo.hub.sharing import HubModel, program

push_to_hub = HubModel.push_to_hub
from_pretrained = HubModel.from_pretrained.__func__  # type: ignore[attr-defined]

__all__ = ["CARD", "CONFIGS", "CURVE", "EXPORT", "METRICS", "RESULTS", "STATISTICS_PICKLE", "VIDEO"]
__all__ += ["Evaluation", "HubModel", "confidence_interval", "entry_point", "foreign_module"]
__all__ += ["from_pretrained", "model_card", "program", "push_to_hub", "python_section", "read_description"]
__all__ += ["requirement", "upload", "write_card", "write_results"]
