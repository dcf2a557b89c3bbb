"""DAPO for environments that say which actions are allowed. Needs the extra ``contrib``."""

from sb3_dapo.maskable.maskable_dapo import MaskableCnnPolicy, MaskableDAPO

__all__ = ["MaskableCnnPolicy", "MaskableDAPO"]
