"""The file of an adapter: one safetensors file whose metadata says what it was made for.

Files may be untrusted: metadata and shapes are checked before tensors are read.
"""

import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, ClassVar

import torch
from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..models.references import MAX_REFERENCES
from ..registry.errors import InvalidWeights, NotFinite, StorageError
from ..registry.names import check_category, check_line
from ..registry.tensors import ADAPTER_FORMAT
from ..registry.validation import problem
from .limits import MAX_RANK, MAX_STAGES, MAX_TOKENS
from .quantized import KINDS, SCALE, belong_together
from .references import ReferenceMetadata, tensor_names
from .subject_encoding import TOKENS as SUBJECT_TOKENS
from .subject_encoding import SubjectMetadata
from .tensor_file import write_tensors
from .timestep_tokens import ROLES, STAGE_ORDER
from .weight_delta import DOWN, FACTOR_KINDS, UP, factor_in_few_bits

_MAX_METADATA = 1 << 17
_MAX_LATENTS = 1 << 18
"""Positions of a reference: 4096 x 4096 pixels."""
_MAX_SUBJECT_VALUES = 1 << 26
"""Of a subject's tokens: 64 references of 1024 patches are fewer."""
_DTYPES = ("F32", "F16", "BF16")
_DTYPES_OF = {"sign": "U8", "int4": "U8", "fp8": "F8_E4M3", "int8": "I8"}
"""Of what is in few bits, see `quantized`."""
_VECTORS = re.compile(r"(token|staged)\.([01])")
_CHANGES = ("delta", UP, DOWN, "magnitude", *KINDS, SCALE)


def _as_it_is(check: Callable[..., str], *arguments: str) -> AfterValidator:
    def unchanged(text: str) -> str:
        if check(text, *arguments) != text:
            raise ValueError(f"{text!r} is written in another way")
        return text

    return AfterValidator(unchanged)


def _known_order(order: str) -> str:
    if order not in ("", STAGE_ORDER):
        raise ValueError("its stages are in an order that is not known")
    return order


@dataclass(frozen=True, slots=True, kw_only=True)
class CompressionMetadata:
    """What a compressed version came from, a version's number and file, how, and what it keeps.

    `kept` is the share of the change of weights, by squared norm.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True)

    version: Annotated[int, Field(ge=1)]
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    way: Annotated[str, _as_it_is(check_line, "way")]
    kept: Annotated[float, Field(ge=-1e6, le=1)]


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterMetadata:
    """What an adapter was made for: base model (weights' hash), method, category, tokens."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True)

    base_sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    method: Annotated[str, _as_it_is(check_line, "method")]
    category: Annotated[str, _as_it_is(check_category)]
    num_tokens: Annotated[int, Field(ge=0, le=MAX_TOKENS)]
    """0 for references alone: prompts then name the category."""
    names_category: bool
    stage_order: Annotated[str, AfterValidator(_known_order)] = ""
    """The order of a timestep token's stages; empty for other tokens."""
    references: Annotated[tuple[ReferenceMetadata, ...], Field(max_length=MAX_REFERENCES)] = ()
    subject: SubjectMetadata | None = None
    compressed: CompressionMetadata | None = None

    def to_json(self) -> str:
        """As the file has it; a version without references says nothing of them."""
        fields = asdict(self)
        for name in ("references", "subject", "compressed"):
            if not fields[name]:
                del fields[name]
        return json.dumps(fields)


def write_adapter(path: Path, state: Mapping[str, Tensor], metadata: AdapterMetadata) -> None:
    """Write an adapter's tensors and metadata atomically; equal input gives equal files.

    Raises `NotFinite` for values that are not finite, and `StorageError` if the disk refuses.
    """
    if not all(map(_is_finite, state.values())):
        raise NotFinite(
            "what was learned is not finite",
            hint="a lower learning rate, as --set stage3.learning_rate=1e-6",
        )
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    try:
        write_tensors(path, tensors, {ADAPTER_FORMAT: metadata.to_json()})
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error}", hint="make room, and go on") from error


def read_adapter(path: Path) -> tuple[dict[str, Tensor], AdapterMetadata]:
    """Read an adapter's tensors and metadata. Raises `InvalidWeights` for another kind of file.

    Whether they fit a base model is checked by the adapters (`check`).
    """
    with _opened(path) as opened:
        names, metadata = _described(opened)
        state = {name: opened.get_tensor(name) for name in names}
    if not all(map(_is_finite, state.values())):
        raise InvalidWeights("the file holds values that are not finite")
    return state, metadata


def read_adapter_metadata(path: Path) -> AdapterMetadata:
    """Read an adapter's metadata alone. Raises `InvalidWeights`."""
    with _opened(path) as opened:
        return _described(opened)[1]


def _is_finite(tensor: Tensor) -> bool:
    is_small = tensor.dtype == torch.float8_e4m3fn  # of which torch does not say it
    return bool((tensor.float() if is_small else tensor).isfinite().all())


def acts_unnamed(path: Path) -> bool:
    """Whether an adapter changes pictures of prompts that do not name it, once it is injected.

    Changes of weights and references do, tokens alone do not. Raises `InvalidWeights`.
    """
    with _opened(path) as opened:
        names, metadata = _described(opened)
    return bool(metadata.references) or any(name.partition(".")[0] in _CHANGES for name in names)


@contextmanager
def _opened(path: Path) -> Iterator[safe_open]:
    try:
        with safe_open(path, "pt") as opened:
            yield opened
    except (SafetensorError, InvalidWeights) as error:
        raise InvalidWeights(f"the file is no adapter that can be used: {error}") from error


def _described(opened: safe_open) -> tuple[list[str], AdapterMetadata]:
    """Names of tensors, and metadata, once both and the tensors' shapes are seen to be sound."""
    metadata = _read_metadata(opened.metadata() or {})
    names = list(opened.keys())
    parts = {name: opened.get_slice(name) for name in names}
    for name, part in parts.items():
        kind = _DTYPES_OF.get(name.partition(".")[0])
        if part.get_dtype() not in ((kind,) if kind else _DTYPES):
            raise InvalidWeights(f"{name} is {part.get_dtype()}")
    _check_names(names, metadata)
    shapes = {name: part.get_shape() for name, part in parts.items()}
    _check_changes(shapes)
    _check_vectors(shapes, metadata)
    _check_references(shapes, metadata)
    _check_subject(shapes.get(SUBJECT_TOKENS), metadata)
    return names, metadata


def _read_metadata(header: Mapping[str, str]) -> AdapterMetadata:
    if ADAPTER_FORMAT not in header:
        raise InvalidWeights("it does not say what it was made for")
    text = header[ADAPTER_FORMAT]
    if len(text) > _MAX_METADATA:
        raise InvalidWeights("what it says of itself is too long")
    try:
        return _form().validate_json(text)
    except ValidationError as error:
        raise InvalidWeights(problem(error)) from None


@cache
def _form() -> TypeAdapter[AdapterMetadata]:
    return TypeAdapter(AdapterMetadata)


def _check_names(names: Collection[str], metadata: AdapterMetadata) -> None:
    """Raise `InvalidWeights` unless vectors are of one kind and weight changes complete."""
    wanted = "staged" if metadata.stage_order else "token"
    vectors = sorted(name for name in names if _VECTORS.fullmatch(name))
    references = {name for i in range(len(metadata.references)) for name in tensor_names(i)}
    if bool(vectors) != bool(metadata.num_tokens) or not (vectors or references):
        raise InvalidWeights("it has no vectors for its tokens")
    if vectors != [f"{wanted}.{i}" for i in range(len(vectors))]:
        raise InvalidWeights(f"its vectors are {', '.join(vectors) or 'missing'}")
    found: list[tuple[str, str]] = []
    in_few_bits = set[str]()
    for name in names:
        kind, _, parameter = name.partition(".")
        if kind in KINDS:
            in_few_bits.add(parameter)
            part, own = factor_in_few_bits(parameter)
            found.append((part or kind, own))
        elif kind in _CHANGES:
            found.append((kind, parameter))
        elif name not in vectors and name not in references and name != SUBJECT_TOKENS:
            raise InvalidWeights(f"it has a tensor {name[:80]!r}")
    if not references <= set(names):
        raise InvalidWeights("its references are not whole")
    changes = {kind: {name for other, name in found if other == kind} for kind in _CHANGES}
    is_whole = changes[UP] == changes[DOWN] and changes["magnitude"] <= changes[UP]
    of_one_kind = [changes[kind] for kind in ("delta", UP, *KINDS)]
    is_whole &= len(set().union(*of_one_kind)) == sum(map(len, of_one_kind))
    is_whole &= len(set(found)) == len(found)
    if not is_whole or changes[SCALE] != in_few_bits:
        raise InvalidWeights("its changes of weights are not whole")


def _check_changes(shapes: Mapping[str, list[int]]) -> None:
    """Raise `InvalidWeights` for changes without numbers, or in few bits that do not fit."""
    for name, shape in shapes.items():
        kind, _, parameter = name.partition(".")
        is_odd = kind in _CHANGES and 0 in shape
        if kind in KINDS:
            scale = shapes[f"{SCALE}.{parameter}"]
            is_odd |= not belong_together(kind, shape, scale)
            if factor_in_few_bits(parameter)[0]:
                is_odd |= kind not in FACTOR_KINDS or scale[0] > MAX_RANK
        if is_odd:
            raise InvalidWeights(f"{name[:80]} has the shape {shape}")


def _check_vectors(shapes: Mapping[str, list[int]], metadata: AdapterMetadata) -> None:
    if metadata.stage_order:
        stages = shapes["staged.0"][:1]
        fit = stages <= [MAX_STAGES] and metadata.num_tokens == 1
        wanted = [*stages, len(ROLES)]
    else:
        fit, wanted = True, [metadata.num_tokens]
    vectors = [shape for name, shape in shapes.items() if _VECTORS.fullmatch(name)]
    if not fit or not all(shape[:-1] == wanted and 0 not in shape for shape in vectors):
        raise InvalidWeights(f"its vectors have the shape {vectors[0]}")


def _check_references(shapes: Mapping[str, list[int]], metadata: AdapterMetadata) -> None:
    """Raise `InvalidWeights` unless each reference has latents (C, h, w) and a mask (h, w)."""
    for i in range(len(metadata.references)):
        latents, mask = (shapes[name] for name in tensor_names(i))
        if len(latents) != 3 or latents[1:] != mask or not 0 < mask[0] * mask[-1] <= _MAX_LATENTS:
            raise InvalidWeights(f"a reference has the shape {latents}, its mask {mask}")


def _check_subject(shape: list[int] | None, metadata: AdapterMetadata) -> None:
    """Raise `InvalidWeights` unless there are tokens (1, n, d) where the metadata say so."""
    if (shape is None) != (metadata.subject is None) or (shape and not metadata.references):
        raise InvalidWeights("its subject's tokens are not whole")
    if shape is None:
        return
    is_row = len(shape) == 3 and shape[0] == 1
    if not is_row or not 0 < shape[1] * shape[2] <= _MAX_SUBJECT_VALUES:
        raise InvalidWeights(f"its subject's tokens have the shape {shape}")
