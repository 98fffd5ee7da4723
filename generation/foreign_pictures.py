"""Pictures of A1111's web UI, and of what writes as it does: a request for the like of them.

What they say is used as far as it means something here; what does not is said.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

from PIL import Image

from ..adapters.formats.description import read_description
from ..models.bases import Base
from ..registry import Registry
from ..registry.errors import InvalidImage, InvalidInput, InvalidWeights
from ..registry.names import printable
from ..registry.records import IMPORT, Concept, originals_of
from .init_request import InitRequest
from .layout import NONE
from .other_tools import find_other_tool_syntax
from .parameters import AUTOV2, SAMPLERS, Parameters, parse_parameters
from .picture_texts import FileFormat
from .prompt_syntax import MAX_STRENGTH, split_prompt
from .provenance import read_texts
from .request import MAX_SEED, Request, SamplingSettings

_TAG = re.compile(r"<(lora|lyco|hypernet):([^:<>]++)(?::([^:<>]*+))?+[^<>]*+>")
_NUMBER = re.compile(r"\d{1,20}(?:\.\d{1,20})?|\.\d{1,20}")
_MAX_TAGS = 64
_OF_TEXT = ("Version", "Model", "Model hash", "Hashes", "Lora hashes", "TI hashes", "RNG")
_USED = ("Steps", "Sampler", "CFG scale", "Seed", "Size", "Schedule type", "Denoising strength")
_SCHEDULERS = MappingProxyType({name.lower(): own for own, name in SAMPLERS.items()})


@dataclass(frozen=True, slots=True)
class ForeignPicture:
    """A picture whose file says in A1111's words what made it."""

    path: Path
    parameters: Parameters
    size: tuple[int, int]
    file_format: FileFormat

    @property
    def model(self) -> str:
        """The base model's name, for messages."""
        return printable(self.parameters.fields.get("Model", ""))


@dataclass(frozen=True, slots=True)
class ForeignRequest:
    """A request for the like of a picture, and a line about each thing that was not used."""

    request: Request
    unused: list[str]


def read_foreign_picture(path: Path) -> ForeignPicture | None:
    """What a picture says in A1111's words; None if it says nothing, or says it in ours.

    Raises what `read_texts` raises.
    """
    texts = read_texts(path)
    if texts is None or texts.ours or not texts.parameters:
        return None
    parameters = parse_parameters(texts.parameters)
    if parameters is None:
        return None
    with Image.open(path) as image:
        return ForeignPicture(path, parameters, image.size, texts.file_format)


def request_like(
    registry: Registry,
    picture: ForeignPicture,
    base: Base,
    base_sha256: str,
    init: InitRequest | None = None,
) -> ForeignRequest:
    """The request for a picture like one of another tool.

    Raises `InvalidImage` for settings that cannot be read, or are beyond what is drawn here.
    """
    parameters, fields = picture.parameters, picture.parameters.fields
    unused: list[str] = []
    prompt = _prompt(registry, parameters, unused)
    negative = _TAG.sub("", parameters.negative).replace("<", "").replace(">", "").strip()
    unused += [
        f"the embedding {printable(name)} in its negative prompt: plain words"
        for name in parameters.hashes("TI hashes")
        if _word(name).search(negative)
    ]
    unused += [str(each) for each in find_other_tool_syntax(prompt, has_weights=True)]
    scheduler = _scheduler(fields, unused)
    known = fields.get("Model hash", "")
    is_file = base.kind == "file"
    if known and not (is_file and base_sha256.startswith(known.lower())):
        unused.append(f"its model {picture.model} [{printable(known)}]: drawn by {base.name}")
    if fields.get("RNG") != "CPU":
        unused.append("its noise, which came from a GPU: from the same seed there is other noise")
    strength = fields.get("Denoising strength")
    unused += [
        f"{printable(name)}: {printable(value)[:80]}"
        for name, value in fields.items()
        if name not in (*_OF_TEXT, *_USED)
    ]
    try:
        if init and strength:
            init = replace(init, strength=float(strength))
        elif strength:
            unused.append(f"Denoising strength: {strength[:20]} (--init IMAGE: what it began with)")
        across, _, down = fields.get("Size", "").partition("x")
        settings = SamplingSettings.for_base(
            base,
            steps=int(fields["Steps"]),
            guidance=float(fields["CFG scale"]) if "CFG scale" in fields else None,
            negative=negative,
            scheduler=scheduler,
            size=(int(across), int(down)) if down else picture.size,
            prompt_weights=True,
            perturbed_attention=0,  # they say of none
            layout=NONE,  # their LoRA count everywhere
        )
        seed = int(fields["Seed"])
        if not 0 <= seed <= MAX_SEED:
            raise ValueError("its seed is out of range")
        return ForeignRequest(
            Request(prompt=prompt, seeds=[seed], settings=settings, init=init), unused
        )
    except (ValueError, KeyError, OverflowError, InvalidInput) as error:
        reason = error.message if isinstance(error, InvalidInput) else str(error)
        raise InvalidImage(
            f"what {picture.path} says of itself cannot be drawn: {printable(reason)[:200]}"
        ) from None


def _scheduler(fields: Mapping[str, str], unused: list[str]) -> str | None:
    """Our scheduler for a sampler, whose name may say which steps it takes."""
    sampler, steps = fields.get("Sampler", ""), fields.get("Schedule type", "")
    for ending in (" Karras", " Exponential", " SGM Uniform"):
        if sampler.endswith(ending):
            sampler, steps = sampler.removesuffix(ending), ending.strip()
    if steps not in ("", "Automatic", "Uniform"):
        unused.append(f"the steps of its scheduler, {printable(steps)}")
    found = _SCHEDULERS.get(sampler.lower())
    if sampler and not found:
        unused.append(f"its sampler {printable(sampler)}: the base model's is taken")
    return found


# --- concepts -------------------------------------------------------------------------------------


def _prompt(registry: Registry, parameters: Parameters, unused: list[str]) -> str:
    """The prompt, in which files that the registry has are concepts."""
    loras, embeddings = parameters.hashes("Lora hashes"), parameters.hashes("TI hashes")
    tags = list(_TAG.finditer(parameters.prompt))[:_MAX_TAGS]
    prompt = _TAG.sub("", parameters.prompt)
    prompt = prompt.replace("<", "").replace(">", "").strip(" ,\n")
    wanted = {name: loras.get(name, "") for name in dict.fromkeys(tag[2] for tag in tags)}
    wanted |= {name: embeddings[name] for name in embeddings}
    known = _Known(registry, wanted) if wanted else None
    used = set[str]()
    for tag in tags:
        kind, name, weight = tag[1], tag[2], tag[3] or "1"
        found = known.find(name) if known and kind != "hypernet" else None
        strength = float(weight) if _NUMBER.fullmatch(weight) else -1.0
        if found is None:
            digest = f" [{printable(wanted[name])}]" if wanted[name] else ""
            unused.append(f"{printable(tag[0])}{digest}, which is not in this registry")
        elif not 0 <= strength <= MAX_STRENGTH:
            unused.append(f"{printable(tag[0])}: a strength lies between 0 and {MAX_STRENGTH:g}")
        elif found.name not in used:
            used.add(found.name)
            prompt = _with(prompt, found, f":{strength:g}" if strength != 1 else "")
    for name in embeddings:
        if not _word(name).search(prompt):
            continue
        found = known.find(name) if known else None
        if found is None:
            unused.append(f"the embedding {printable(name)}, which is not in this registry")
        elif found.name not in used:
            used.add(found.name)
            prompt = _word(name).sub(f"<{found.name}>", prompt)
    return prompt or "a picture"


def _with(prompt: str, concept: Concept, strength: str) -> str:
    """The prompt with a concept in place of its trigger words, else at its end.

    They are whole words, and none of another concept's mention.
    """
    mention = f"<{concept.name}{strength}>"
    phrase = _phrase_of(concept)
    pieces = split_prompt(prompt)
    for i, piece in enumerate(pieces):
        if phrase and not piece.startswith("<") and (found := _word(phrase).search(piece)):
            pieces[i] = piece[: found.start()] + mention + piece[found.end() :]
            return "".join(pieces)
    return f"{prompt} {mention}".strip()


def _phrase_of(concept: Concept) -> str:
    for run in concept.runs:
        if run.method == IMPORT:
            try:
                return read_description(run.config).phrase
            except InvalidWeights:
                continue
    return ""


def _word(name: str) -> re.Pattern[str]:
    return re.compile(rf"(?<![\w<-]){re.escape(name)}(?![\w>-])")


class _Known:
    """Imported concepts by the names and hashes of some files that are looked for."""

    def __init__(self, registry: Registry, wanted: Mapping[str, str]) -> None:
        self._found: dict[str, Concept] = {}
        named: dict[str, Concept] = {}
        for own in registry.names():
            concept = registry.show(own)
            for stem, digests in _files_of(concept):
                for name, digest in wanted.items():
                    if len(digest) >= AUTOV2 and any(each.startswith(digest) for each in digests):
                        self._found.setdefault(name, concept)
                    if stem == name and not digest:
                        named.setdefault(name, concept)
        self._found = named | self._found

    def find(self, name: str) -> Concept | None:
        """The concept of a file with this name and hash; by its name where it has no hash."""
        return self._found.get(name)


def _files_of(concept: Concept) -> list[tuple[str, tuple[str, ...]]]:
    """(file name, hashes) of all imported files of a concept."""
    found: list[tuple[str, tuple[str, ...]]] = []
    for version in concept.versions:
        run = next((run for run in concept.runs if run.run == version.run), None)
        if run is None or run.method != IMPORT:
            continue
        try:
            of_tensors = read_description(run.config).hashes
        except InvalidWeights:
            continue
        found += [
            (Path(each.name).stem, (each.sha256, of_tensors.get(each.sha256, "")))
            for each in originals_of(version)
        ]
    return found
