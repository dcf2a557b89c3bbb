"""DAPO for environments that say which actions are allowed."""

try:
    import sb3_contrib  # noqa: F401
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "MaskableDAPO needs sb3-contrib: pip install 'sb3-dapo[contrib]'", name=error.name
    ) from error

from sb3_dapo.maskable.maskable_dapo import MaskableCnnPolicy, MaskableDAPO

__all__ = ["MaskableCnnPolicy", "MaskableDAPO"]
