"""From a prompt to pictures: prompt syntax, concepts in it, the sampler, and what made a picture.

    from conceptry.generation import generate

Everything that `concept generate` and `reproduce` do is one of these calls. Names are imported on
first use, as most of them need torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .drawing import Picture
    from .foreign_pictures import read_foreign_picture
    from .frames import FrameWeights
    from .generating import animate, generate, save_animation, save_grid
    from .prompt_files import PromptDefaults, read_prompts
    from .provenance import Provenance, read_provenance
    from .reproducing import reproduce, reproduce_foreign
    from .request import Request, SamplingSettings
    from .story import Story

_HOMES = {
    "FrameWeights": ".frames",
    "PromptDefaults": ".prompt_files",
    "Provenance": ".provenance",
    "Picture": ".drawing",
    "Request": ".request",
    "SamplingSettings": ".request",
    "Story": ".story",
    "animate": ".generating",
    "generate": ".generating",
    "read_foreign_picture": ".foreign_pictures",
    "read_provenance": ".provenance",
    "read_prompts": ".prompt_files",
    "reproduce": ".reproducing",
    "reproduce_foreign": ".reproducing",
    "save_animation": ".generating",
    "save_grid": ".generating",
}

__all__ = [
    "FrameWeights",
    "Picture",
    "PromptDefaults",
    "Provenance",
    "Request",
    "SamplingSettings",
    "Story",
    "animate",
    "generate",
    "read_foreign_picture",
    "read_prompts",
    "read_provenance",
    "reproduce",
    "reproduce_foreign",
    "save_animation",
    "save_grid",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name], __name__), name)
