"""Exported models: data alone, which can be loaded from strangers."""

from sb3_dapo.export.exporting import Exportable, load_vec_normalize
from sb3_dapo.export.folder import DESCRIPTION, PARAMETERS, STATISTICS, ExportError

export_model = Exportable.export
load_model = Exportable.load_exported.__func__  # type: ignore[attr-defined]

__all__ = ["DESCRIPTION", "PARAMETERS", "STATISTICS", "ExportError", "Exportable", "export_model", "load_model"]
__all__ += ["load_vec_normalize"]
