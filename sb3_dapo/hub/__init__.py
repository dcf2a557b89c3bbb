"""Models on the Hugging Face Hub."""

from sb3_dapo.hub.card import (
    Evaluation,
    confidence_interval,
    metadata,
    model_card,
    python_section,
    settings_section,
    write_card,
    write_results,
)
from sb3_dapo.hub.repository import (
    CURVE,
    EXPORT,
    VIDEO,
    client,
    entry_point,
    find_env_id,
    foreign_module,
    read_description,
    requirement,
    upload,
)
from sb3_dapo.hub.sharing import HubModel, evaluate, prepare_eval_env, program

push_to_hub = HubModel.push_to_hub
from_pretrained = HubModel.from_pretrained.__func__  # type: ignore[attr-defined]

__all__ = [
    "CURVE",
    "EXPORT",
    "VIDEO",
    "Evaluation",
    "HubModel",
    "client",
    "confidence_interval",
    "entry_point",
    "evaluate",
    "find_env_id",
    "foreign_module",
    "from_pretrained",
    "metadata",
    "model_card",
    "prepare_eval_env",
    "program",
    "push_to_hub",
    "python_section",
    "read_description",
    "requirement",
    "settings_section",
    "upload",
    "write_card",
    "write_results",
]
