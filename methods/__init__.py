"""How a concept is taught and drawn: a file per method, one engine, and Python calls for it all.

    from conceptry.methods import generate, train

Everything that `concept train`, `generate` and `reproduce` do is one of these calls; each is
loaded when it is first asked for, as most of them need torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..models.request import Request, Settings
    from .estimating import Estimate, estimate, estimate_together
    from .generating import Picture, generate, reproduce, save_grid
    from .hooks import Hooks, StepReport
    from .made import Made, read_made
    from .method import all_methods, find_method, read_presets, settings_of
    from .prompt_files import Defaults, read_prompts
    from .training import (
        StageSummary,
        Trained,
        class_pictures,
        resume,
        resume_together,
        train,
        train_together,
    )

_HOMES = {
    "Defaults": ".prompt_files",
    "Estimate": ".estimating",
    "Hooks": ".hooks",
    "Made": ".made",
    "Picture": ".generating",
    "Request": "..models.request",
    "Settings": "..models.request",
    "StageSummary": ".training",
    "StepReport": ".hooks",
    "Trained": ".training",
    "all_methods": ".method",
    "class_pictures": ".training",
    "estimate": ".estimating",
    "estimate_together": ".estimating",
    "find_method": ".method",
    "generate": ".generating",
    "read_made": ".made",
    "read_presets": ".method",
    "read_prompts": ".prompt_files",
    "reproduce": ".generating",
    "resume": ".training",
    "resume_together": ".training",
    "save_grid": ".generating",
    "settings_of": ".method",
    "train": ".training",
    "train_together": ".training",
}

__all__ = [
    "Defaults",
    "Estimate",
    "Hooks",
    "Made",
    "Picture",
    "Request",
    "Settings",
    "StageSummary",
    "StepReport",
    "Trained",
    "all_methods",
    "class_pictures",
    "estimate",
    "estimate_together",
    "find_method",
    "generate",
    "read_made",
    "read_presets",
    "read_prompts",
    "reproduce",
    "resume",
    "resume_together",
    "save_grid",
    "settings_of",
    "train",
    "train_together",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name], __name__), name)
