"""What is known of imported files: kept as the configuration of their run. Loads nothing.

A bundle may bring it, so it is checked again wherever it is read.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from typing import Annotated, ClassVar

from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError

from ...registry.errors import InvalidWeights
from ...registry.names import check_category, check_text
from ...registry.validation import problem

GENERAL_CATEGORY = "thing"
"""Of a file of which nobody says what it is."""
MAX_SCALE = 1e6
PLACE = "{}"
"""Stands for an embedding's words in a phrase."""
MAX_CONFIG = 1 << 18
_MAX_LAYERS = 20_000
MAX_PHRASE = 1_000

_Scale = Annotated[float, Field(ge=-MAX_SCALE, le=MAX_SCALE)]


def _line(text: str) -> str:
    if "\n" in text or "<" in text:
        raise ValueError("has a line break or a bracket in it")
    return check_text(text, "phrase")


_Line = Annotated[str, Field(max_length=MAX_PHRASE), AfterValidator(_line)]


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportDescription:
    """What imported files hold, and what prompts say for them.

    `phrase` takes the place of `<rex>` in a prompt, with {} where the embedding's words stand; of
    weights alone it may be empty. Layers count `scale`, or what `scales` has for network and path,
    times alpha / rank where they have an alpha.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True)

    holds: _Line
    category: Annotated[str, AfterValidator(check_category)]
    phrase: _Line
    trigger_words: Annotated[tuple[_Line, ...], Field(max_length=1_000, strict=False)] = ()
    scale: _Scale = 1.0
    scales: Annotated[dict[str, _Scale], Field(max_length=_MAX_LAYERS)] = field(
        default_factory=dict
    )
    peft_config: Annotated[str, Field(max_length=MAX_CONFIG)] = ""
    """The text of PEFT's configuration, with which the file goes."""
    hashes: dict[str, str] = field(default_factory=dict)
    """That of each file's tensors, by the file's."""

    def to_mapping(self) -> dict[str, object]:
        """As JSON; the registry adds the hashes of files and of their tensors."""
        found = asdict(self)
        del found["hashes"]
        return found


def read_description(config: Mapping[str, object]) -> ImportDescription:
    """What the configuration of an import says. Raises `InvalidWeights`."""
    try:
        return _form().validate_json(json.dumps(config))
    except ValidationError as error:
        raise InvalidWeights(f"what its import says is damaged: {problem(error)}") from None


@cache
def _form() -> TypeAdapter[ImportDescription]:
    return TypeAdapter(ImportDescription)
