"""DAPO for environments that say which actions are allowed. Needs the extra ``contrib``."""

from sb3_dapo.maskable.dapo import MaskableDAPO
from sb3_dapo.maskable.policies import MaskableCnnPolicy

__all__ = ["MaskableCnnPolicy", "MaskableDAPO"]
