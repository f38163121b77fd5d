"""Calibri: calibrate Diffusion Transformers.

Public names are imported on first use, so that ``import calibri`` and ``calibri --help`` do not
wait for torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from calibri.version import __version__

if TYPE_CHECKING:
    from calibri.applied import AppliedCalibration, load
    from calibri.artifact import Calibration
    from calibri.authors import export_authors_vector, import_authors_vector
    from calibri.catalogue import ModelStatus, models
    from calibri.config import RunConfig, load_config
    from calibri.costs import Plan, plan
    from calibri.errors import CalibriError
    from calibri.evaluation import evaluate
    from calibri.exports import export
    from calibri.fusing import fuse
    from calibri.generation import generate
    from calibri.inspection import Inspection, inspect
    from calibri.presets import preset
    from calibri.reporting import report
    from calibri.results import Evaluation, RunSummary
    from calibri.runner import calibrate, resume
    from calibri.sites.discovered import Discovery
    from calibri.sites.discovery import discover

# No module below may bear the name of a public function: importing it would hide the function.
_WHERE = {
    "AppliedCalibration": "applied",
    "Calibration": "artifact",
    "CalibriError": "errors",
    "Discovery": "sites.discovered",
    "Evaluation": "results",
    "Inspection": "inspection",
    "ModelStatus": "catalogue",
    "Plan": "costs",
    "RunConfig": "config",
    "RunSummary": "results",
    "calibrate": "runner",
    "discover": "sites.discovery",
    "evaluate": "evaluation",
    "export": "exports",
    "export_authors_vector": "authors",
    "fuse": "fusing",
    "generate": "generation",
    "import_authors_vector": "authors",
    "inspect": "inspection",
    "load": "applied",
    "load_config": "config",
    "models": "catalogue",
    "plan": "costs",
    "preset": "presets",
    "report": "reporting",
    "resume": "runner",
}

__all__ = [
    "AppliedCalibration",
    "Calibration",
    "CalibriError",
    "Discovery",
    "Evaluation",
    "Inspection",
    "ModelStatus",
    "Plan",
    "RunConfig",
    "RunSummary",
    "__version__",
    "calibrate",
    "discover",
    "evaluate",
    "export",
    "export_authors_vector",
    "fuse",
    "generate",
    "import_authors_vector",
    "inspect",
    "load",
    "load_config",
    "models",
    "plan",
    "preset",
    "report",
    "resume",
]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'calibri' has no attribute '{name}'")
    return getattr(importlib.import_module(f"calibri.{_WHERE[name]}"), name)


def __dir__() -> list[str]:
    return __all__
