"""What made a picture, as A1111's web UI and the sites that read it say it: the `parameters`.

    a photo of a cat
    Negative prompt: blurred
    Steps: 25, Sampler: DDIM, CFG scale: 5, Seed: 7, Size: 512x512, Model hash: 6ce0161689, …

Model hashes are AutoV2 (10 digits of a file's SHA-256), those of LoRA AutoV3 (12 digits of that of
its tensors, or what its header says), those of embeddings 12 digits of a file's SHA-256.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from ..adapters.formats.description import PLACE, read_description
from ..adapters.formats.recognising import HASH_KEY, changes_weights
from ..registry.hashes import is_sha256
from ..registry.records import originals_of
from ..registry.tensors import read_header
from .prompt_syntax import ChosenVersion, replaced, split_prompt
from .request import SamplingSettings

if TYPE_CHECKING:
    from .injection import InjectedConcept

AUTOV2, AUTOV3 = 10, 12
NEGATIVE = "Negative prompt:"
_MAX_TEXT = 100_000
_MIN_FIELDS = 3
"""A last line with fewer is a part of the prompt."""
_FIELD = re.compile(r'\s{0,9}(\w[\w \-/]{0,60}):\s{0,9}("(?:\\.|[^\\"])*"|[^,]*)(?:,|$)')
_MEANS_SOMETHING = re.compile(r"([\\()\[\]])")
SAMPLERS = {"ddim": "DDIM", "euler": "Euler", "dpm++": "DPM++ 2M"}
"""Our schedulers, as A1111 calls them."""
_OWN_SAMPLERS = {
    "DDIMScheduler": "DDIM",
    "EulerDiscreteScheduler": "Euler",
    "EulerAncestralDiscreteScheduler": "Euler a",
    "DPMSolverMultistepScheduler": "DPM++ 2M",
    "PNDMScheduler": "PLMS",
    "HeunDiscreteScheduler": "Heun",
    "UniPCMultistepScheduler": "UniPC",
}
"""The kinds of base models' own schedulers."""


@dataclass(frozen=True, slots=True)
class Parameters:
    """A `parameters` text: prompt, negative prompt, and the other fields by name."""

    prompt: str
    negative: str
    fields: Mapping[str, str]

    def to_text(self) -> str:
        """As it stands in pictures."""
        fields = ", ".join(f"{name}: {_quoted(value)}" for name, value in self.fields.items())
        negative = [f"{NEGATIVE} {self.negative}"] if self.negative else []
        return "\n".join([self.prompt, *negative, fields])

    def with_seed(self, seed: int) -> "Parameters":
        """The same for another seed."""
        return replace(self, fields={**self.fields, "Seed": str(seed)})

    def hashes(self, name: str) -> dict[str, str]:
        """Hashes by file name, as `Lora hashes` and `TI hashes` have them."""
        pairs = (each.rpartition(":") for each in self.fields.get(name, "").split(","))
        return {key.strip(): value.strip().lower() for key, _, value in pairs if key.strip()}


def parse_parameters(text: str) -> Parameters | None:
    """Read a `parameters` text; None if it has no fields, or more than anybody writes."""
    if len(text) > _MAX_TEXT:
        return None
    *lines, last = text.strip().split("\n")
    fields = {name.strip(): _unquoted(value) for name, value in _FIELD.findall(last)}
    if len(fields) < _MIN_FIELDS or "Steps" not in fields:
        return None
    first = next((i for i, line in enumerate(lines) if line.startswith(NEGATIVE)), len(lines))
    negative = "\n".join(lines[first:]).removeprefix(NEGATIVE)
    return Parameters("\n".join(lines[:first]).strip(), negative.strip(), fields)


def _quoted(value: str) -> str:
    has_mark = any(mark in value for mark in ',:\n"')
    return json.dumps(value, ensure_ascii=False) if has_mark else value


def _unquoted(value: str) -> str:
    value = value.strip()
    if not value.startswith('"'):
        return value
    try:
        found = json.loads(value)
    except ValueError:
        return value
    return found if isinstance(found, str) else value


# --- ours, in their words -------------------------------------------------------------------------


def parameters_of(
    prompt: str,
    chosen: Sequence[ChosenVersion],
    concepts: "Sequence[InjectedConcept]",
    *,
    settings: SamplingSettings,
    size: tuple[int, int],
    sampler: str,
    model: str,
    model_sha256: str | None,
    strength: float | None = None,
) -> Parameters:
    """What makes pictures of a size (width, height), for other tools; their seeds are left open.

    `sampler` is the class of the scheduler; `model_sha256` that of the base model's file, if it is
    one. Imported concepts are named as their files are; own ones, which are no files, by words.
    """
    used = [_Files.of(each) for each in chosen if each.originals]
    words = dict(zip((each.mention.text for each in chosen if each.originals), used, strict=True))
    phrases = {
        each.mention.text: words[each.mention.text].phrase
        if each.mention.text in words
        else _own_phrase(each)
        for each in concepts
    }
    is_plain = not settings.prompt_weights
    text = replaced(_as_plain(prompt) if is_plain else prompt, phrases)
    tags = "".join(
        f" <lora:{name}:{each.mention.strength:g}>"
        for each in chosen
        if each.originals
        for name in words[each.mention.text].loras
    )
    loras = {name: digest for each in used for name, digest in each.loras.items()}
    embeddings = {name: digest for each in used for name, digest in each.embeddings.items()}
    scheduler = settings.scheduler
    fields = {
        "Steps": str(settings.steps),
        "Sampler": SAMPLERS[scheduler] if scheduler else _OWN_SAMPLERS.get(sampler, sampler),
        "CFG scale": f"{settings.guidance:g}",
        "Seed": "0",
        "Size": f"{size[0]}x{size[1]}",
        "Model hash": (model_sha256 or "")[:AUTOV2],
        "Model": Path(model).stem if model_sha256 else model,
        "Denoising strength": "" if strength is None else f"{strength:g}",
        "Lora hashes": _listed(loras),
        "TI hashes": _listed(embeddings),
        "RNG": "CPU",
        "Version": f"conceptry {version('conceptry')}",
    }
    negative = _MEANS_SOMETHING.sub(r"\\\1", settings.negative) if is_plain else settings.negative
    said = {name: value for name, value in fields.items() if value}
    return Parameters(_one_line(text + tags), _one_line(negative), said)


@dataclass(frozen=True, slots=True)
class _Files:
    """What other tools say for an imported concept: a phrase, and hashes by file name."""

    phrase: str
    loras: Mapping[str, str]
    embeddings: Mapping[str, str]

    @classmethod
    def of(cls, chosen: ChosenVersion) -> "_Files":
        assert chosen.run
        description = read_description(chosen.run.config)
        loras: dict[str, str] = {}
        embeddings: dict[str, str] = {}
        for artifact, path in zip(originals_of(chosen.version), chosen.originals, strict=True):
            stem = Path(artifact.name).stem
            if not changes_weights(Path(path)):
                embeddings[stem] = artifact.sha256[:AUTOV3]
            else:
                said = read_header(Path(path)).metadata.get(HASH_KEY, "")
                own = description.hashes.get(artifact.sha256, "")
                loras[stem] = (said if is_sha256(said) else own)[:AUTOV3]
        phrase = description.phrase.replace(PLACE, next(iter(embeddings), chosen.concept.name))
        return cls(phrase, loras, embeddings)


def _own_phrase(concept: "InjectedConcept") -> str:
    names_category = concept.phrase.endswith(concept.category)
    if not concept.tokens:
        return concept.phrase
    name = concept.mention.name
    return f"{name} {concept.category}" if names_category else name


def _as_plain(prompt: str) -> str:
    """The prompt with brackets that mean nothing, outside of mentions."""
    return "".join(
        piece if piece.startswith("<") else _MEANS_SOMETHING.sub(r"\\\1", piece)
        for piece in split_prompt(prompt)
    )


def _one_line(text: str) -> str:
    return " ".join(text.split("\n"))


def _listed(hashes: Mapping[str, str]) -> str:
    return ", ".join(f"{name}: {digest}" for name, digest in hashes.items() if digest)
