"""Models on the Hugging Face Hub."""

from sb3_dapo.hub.card import confidence_interval
from sb3_dapo.hub.repository import entry_point, requirement
from sb3_dapo.hub.sharing import HubModel

push_to_hub = HubModel.push_to_hub
from_pretrained = HubModel.from_pretrained.__func__  # type: ignore[attr-defined]

__all__ = ["HubModel", "confidence_interval", "entry_point", "from_pretrained", "push_to_hub", "requirement"]
