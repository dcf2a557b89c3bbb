"""Divergence-Augmented Policy Optimization for Stable-Baselines3."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sb3_dapo.controllers import AdaptiveController, Controller, DualController  # noqa: F401
    from sb3_dapo.dapo import DAPO  # noqa: F401
    from sb3_dapo.divergences import DIVERGENCES, Divergence  # noqa: F401
    from sb3_dapo.faults import NonFiniteError  # noqa: F401
    from sb3_dapo.maskable import MaskableDAPO  # noqa: F401
    from sb3_dapo.policies import CnnPolicy, MlpPolicy, MultiInputPolicy  # noqa: F401
    from sb3_dapo.recurrent import RecurrentDAPO  # noqa: F401

__version__ = "0.2.0"

# Where the names are defined. Modules are imported on first use: `sb3-dapo --help` needs no PyTorch
_MODULES = {
    "DAPO": "dapo",
    "DIVERGENCES": "divergences",
    "AdaptiveController": "controllers",
    "CnnPolicy": "policies",
    "Controller": "controllers",
    "Divergence": "divergences",
    "DualController": "controllers",
    "MaskableDAPO": "maskable",
    "MlpPolicy": "policies",
    "MultiInputPolicy": "policies",
    "NonFiniteError": "faults",
    "RecurrentDAPO": "recurrent",
}
# A star loads no extra
__all__ = [name for name, module in _MODULES.items() if module not in ("maskable", "recurrent")]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        value = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
        globals()[name] = value
        return value
    if not name.startswith("_"):
        try:
            return import_module(f"{__name__}.{name}")  # sb3_dapo.buffers, after `import sb3_dapo` alone
        except ModuleNotFoundError as error:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from error
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
