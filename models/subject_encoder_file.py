"""The file of a subject encoder: its learned parts, and what it was trained with.

It is `subject_encoder.safetensors`, in a folder, in a hub repository, or beside a base model. Its
metadata names the base model's hash and the picture encoder. Pictures are drawn with its sublayers
alone (`load_subject_attention`). It may be untrusted: metadata and shapes are checked before
tensors are read.
"""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import torch
from huggingface_hub import hf_hub_download
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ..registry.errors import InvalidInput, InvalidWeights, NotFinite, NotFound, quoted
from ..registry.files import replacing
from ..registry.validation import Line, problem
from .bases import HUB_ID, Base
from .compatibility import short
from .fetching import fetching
from .hashes import hash_of
from .loading import LoadedBase
from .subject_encoder import SubjectAttention, SubjectEncoder
from .vision import OWN, LoadedVision, load_vision

FILE = "subject_encoder.safetensors"
_KEY = "conceptry_subject_encoder"
_ATTENTION = "attention."
"""What the names of the sublayers' tensors begin with."""
_MAX_METADATA = 4096
_DTYPES = ("F32", "F16", "BF16")
_Hash = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


@dataclass(frozen=True, slots=True, kw_only=True)
class SubjectEncoderMetadata:
    """What a subject encoder was trained with: a base model and a picture encoder.

    `vision` is `miniature`, a hub id, or "" for a folder, which whoever loads it has to name.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True)

    base: Line
    base_sha256: _Hash
    vision: Annotated[str, Field(pattern=rf"^({OWN}|{HUB_ID.pattern}|)$", max_length=200)]
    vision_sha256: _Hash


@dataclass(frozen=True, slots=True)
class LoadedSubjectEncoder:
    """A subject encoder in memory, on its base model's device, and the hash of its file."""

    encoder: SubjectEncoder
    sha256: str


def metadata_for(base: LoadedBase, vision: LoadedVision) -> SubjectEncoderMetadata:
    """The metadata of an encoder that is trained with these."""
    is_named = vision.name == OWN or (HUB_ID.fullmatch(vision.name) and not _is_path(vision.name))
    return SubjectEncoderMetadata(
        base=base.base.name,
        base_sha256=base.sha256,
        vision=vision.name if is_named else "",
        vision_sha256=vision.sha256,
    )


def write_subject_encoder(
    path: Path, learned: Mapping[str, Tensor], metadata: SubjectEncoderMetadata
) -> None:
    """Write learned parts (`SubjectEncoder.learned_state`) in half precision, atomically.

    Raises `NotFinite` for values that are not finite.
    """
    half = {name: value.detach().half().cpu().contiguous() for name, value in learned.items()}
    if not all(value.isfinite().all() for value in half.values()):
        raise NotFinite("what the subject encoder learned is not finite")
    with replacing(path) as unfinished:
        save_file(half, unfinished, {_KEY: json.dumps(asdict(metadata))})


def load_subject_encoder(
    base: LoadedBase,
    source: str | None = None,
    *,
    vision: str | None = None,
) -> LoadedSubjectEncoder:
    """Load the subject encoder for a base model, in the base model's precision.

    `source` is a folder, a file or a hub repository; without it, the one that the base model's
    alias names, or beside the base model's own files. `vision` names the picture encoder where the
    file does not; by default as the alias says.

    Raises `NotFound` if there is none, `InvalidInput` for one of another base model, and
    `InvalidWeights` if it is damaged.
    """
    path, metadata = _found(base, source)
    chosen = _vision(path, base, metadata, vision)
    with torch.device("meta"):  # shapes alone
        encoder = SubjectEncoder.for_denoiser(chosen.encoder, base.backbone.denoiser)
    encoder.load_state_dict(_read_tensors(path, encoder.learned_state()), strict=False, assign=True)
    _make_ready(encoder, base)
    return LoadedSubjectEncoder(encoder, hash_of(path))


def check_same_encoder(what: str, base: LoadedBase, sha256: str, made_with: str | None) -> None:
    """Raise `InvalidInput` if `what` was made with another subject encoder than the base's."""
    if sha256 != made_with:
        raise InvalidInput(
            f"{what} was made with another subject encoder than {base.base.name} has now",
            hint="name that one in bases.yaml, as subject_encoder",
        )


def hash_of_subject_encoder(base: LoadedBase) -> str:
    """The hash of the file of a base model's subject encoder.

    Raises `NotFound` if there is none, and `InvalidInput` for one of another base model.
    """
    path, _ = _found(base, None)
    return hash_of(path)


def load_subject_attention(base: LoadedBase, sha256: str, what: str) -> SubjectAttention:
    """Load the sublayers of a base model's subject encoder, in the base model's precision.

    They have to be those of the file, by its hash, that `what` was made with. Raises as
    `load_subject_encoder` does.
    """
    path, _ = _found(base, None)
    check_same_encoder(what, base, hash_of(path), sha256)
    with torch.device("meta"):
        attention = SubjectAttention(base.backbone.denoiser)
    wanted = {f"{_ATTENTION}{name}": value for name, value in attention.state_dict().items()}
    state = _read_tensors(path, wanted, within=_ATTENTION)
    own = {name.removeprefix(_ATTENTION): value for name, value in state.items()}
    attention.load_state_dict(own, assign=True)
    _make_ready(attention, base)
    return attention


def _found(base: LoadedBase, source: str | None) -> tuple[Path, SubjectEncoderMetadata]:
    named = base.base.subject_encoder
    if source is None and named is not None:
        path = _path_at(*named, base.offline)
    else:
        path = _path_of(base.base, source, base.offline)
    with _opened(path) as opened:
        metadata = _read_metadata(opened.metadata() or {})
    if metadata.base_sha256 != base.sha256:
        raise _of_another_base(path, base, metadata)
    return path, metadata


def _make_ready(module: nn.Module, base: LoadedBase) -> None:
    dtype = next(base.backbone.denoiser.parameters()).dtype
    module.requires_grad_(False).eval().to(base.backbone.device, dtype)


def _path_of(base: Base, source: str | None, offline: bool) -> Path:
    if source is None:
        path = Path(base.source) / FILE
        if base.kind != "folder" or not os.path.isfile(path):
            raise NotFound(
                f"{base.name} has no subject encoder: without one its strength (β) has to be 0",
                hint="train one: python -m conceptry.training.subject_encoder --help",
            )
        return path
    return _path_at("folder" if _is_path(source) else "hub", source, offline)


def _path_at(kind: Literal["folder", "hub"], source: str, offline: bool) -> Path:
    if kind == "folder":
        path = Path(os.path.expanduser(source))
        path = path / FILE if os.path.isdir(path) else path
        if not os.path.isfile(path):
            raise NotFound(f"there is no {path}")
        return path
    with fetching(f"the subject encoder {source}", offline=offline):
        return Path(hf_hub_download(source, FILE, local_files_only=offline))


def _is_path(source: str) -> bool:
    exists = os.path.exists(os.path.expanduser(source))
    return exists or source.startswith(".") or not HUB_ID.fullmatch(source)


def _read_metadata(header: Mapping[str, str]) -> SubjectEncoderMetadata:
    text = header.get(_KEY, "")
    if not text or len(text) > _MAX_METADATA:
        raise InvalidWeights("it does not say what it was trained with")
    try:
        return _form().validate_json(text)
    except ValidationError as error:
        raise InvalidWeights(problem(error)) from None


@cache
def _form() -> TypeAdapter[SubjectEncoderMetadata]:
    return TypeAdapter(SubjectEncoderMetadata)


def _of_another_base(
    path: Path, base: LoadedBase, metadata: SubjectEncoderMetadata
) -> InvalidInput:
    return InvalidInput(
        f"the subject encoder {path} was trained for another base model than {base.base.name}",
        hint=f"--base {quoted(metadata.base)}"
        if metadata.base != base.base.name
        else "train it again: this base model has other weights by that name",
    )


def _vision(
    path: Path, base: LoadedBase, metadata: SubjectEncoderMetadata, named: str | None
) -> LoadedVision:
    of_alias = base.base.vision if not (named or metadata.vision) else None
    if of_alias is not None:
        kind, name = of_alias
        is_foreign = kind == "hub"  # a folder of that name is not meant
    else:
        name, is_foreign = named or metadata.vision, named is None
    if not name:
        raise InvalidInput(
            f"{path} was trained with a picture encoder in a folder: name that",
            hint="as vision, beside subject_encoder, in bases.yaml",
        )
    vision = load_vision(name, base.base, offline=base.offline, is_foreign=is_foreign)
    if vision.sha256 != metadata.vision_sha256:
        raise InvalidInput(f"{path} was trained with another picture encoder than {name}")
    return vision


def _read_tensors(
    path: Path, expected: Mapping[str, Tensor], *, within: str = ""
) -> dict[str, Tensor]:
    """The tensors, once names and shapes are seen to be those of this base model.

    Only those whose names begin with `within` are looked at.
    """
    with _opened(path) as opened:
        names = {name for name in opened.keys() if name.startswith(within)}  # noqa: SIM118
        if names != expected.keys():
            odd = min(names ^ expected.keys())
            raise InvalidWeights(f"it {'has' if odd in names else 'lacks'} a tensor {odd[:80]!r}")
        for name, wanted in expected.items():
            part = opened.get_slice(name)
            if part.get_dtype() not in _DTYPES or tuple(part.get_shape()) != tuple(wanted.shape):
                raise InvalidWeights(f"its tensor {name} has another shape or type")
        state = {name: opened.get_tensor(name) for name in expected}
        if not all(value.isfinite().all() for value in state.values()):
            raise InvalidWeights("it holds values that are not finite")
        return state


@contextmanager
def _opened(path: Path) -> Iterator[safe_open]:
    try:
        with safe_open(path, "pt") as opened:
            yield opened
    except (SafetensorError, OSError) as error:
        raise InvalidWeights(
            f"{path} cannot be loaded: it is not sound safetensors: {short(error)}",
            hint="get the file again: it is damaged, or was not written to its end",
        ) from error
    except InvalidWeights as error:
        raise InvalidWeights(
            f"{path} is no subject encoder that can be used: {error.message}"
        ) from error
