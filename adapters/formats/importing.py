"""`concept import` of other tools' files: each becomes a concept, or is told what it is instead.

The bytes are stored as they came and become a base model's layers only where they are drawn with:
nothing is stored twice or lost, no base model is needed, and what one file is for fits every base
model of its shape. Loads no deep-learning library.
"""

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal

from ...registry import Registry
from ...registry.documents import parse_json, read_text
from ...registry.errors import (
    ConceptryError,
    InvalidInput,
    InvalidWeights,
    NotFound,
    quoted,
)
from ...registry.names import MAX_NAME, check_category, check_name
from ...registry.originals import Original, TakenIn
from ...registry.records import IMPORT
from ...registry.tensors import Header, pickled, read_header
from .beside import Beside, is_plain_file, read_beside, trigger_word
from .description import (
    GENERAL_CATEGORY,
    MAX_CONFIG,
    MAX_PHRASE,
    MAX_SCALE,
    PLACE,
    ImportDescription,
)
from .recognising import (
    FAMILIES,
    HASH_KEY,
    Contents,
    Layer,
    base_of,
    check_said_base,
    recognise,
)
from .report import embedding_beside
from .returning import PEFT_CONFIG

UNKNOWN_BASE = "unknown"
_ENDING = ".safetensors"
_PICKLES = (".pt", ".ckpt", ".bin", ".pth", ".pkl")
_OTHERS = {
    ".gguf": "a GGUF model",
    ".onnx": "an ONNX model",
    ".zip": "an archive: unpack it first",
    ".7z": "an archive: unpack it first",
    ".rar": "an archive: unpack it first",
    ".concept": "a bundle: import it by itself",
}
_CONVERT = "in Python: safetensors.torch.save_file(torch.load(FILE, weights_only=True), NEW)"
_GENERAL_STEMS = re.compile(
    r"(adapter_)?model|pytorch_lora_weights|learned_embeds|diffusion_pytorch_model|lora"
)
_PEFT = "base_model.model."
_PEFT_KINDS = {"LORA": "lora_alpha", "LOHA": "alpha", "LOKR": "alpha"}
"""The settings that hold alpha."""
_FILES_AT_ONCE = 2_048
_BYTES_AT_ONCE = 4 << 30
_HEADERS_AT_ONCE = 64 << 20
"""Bytes, which take several times the room in memory."""

Outcome = Literal["imported", "known", "refused"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportOptions:
    """What is said of the files: a name for a single one, a category, words for prompts, tags."""

    name: str | None = None
    category: str | None = None
    trigger: str | None = None
    tags: Sequence[str] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportedFile:
    """What became of a file.

    `concept` is the one that it became, or the one that has the weights already; `message` says why
    it was refused, `hint` what to do; `prompt` is what to write. `autov2` and `autov3` are the
    hashes by which other tools know it.
    """

    path: str
    outcome: Outcome
    concept: str | None = None
    holds: str | None = None
    base: str | None = None
    prompt: str | None = None
    trigger_words: list[str] = field(default_factory=list)
    autov2: str | None = None
    autov3: str | None = None
    message: str | None = None
    hint: str | None = None
    warnings: list[str] = field(default_factory=list)

    def to_document(self) -> dict[str, object]:
        """As JSON."""
        return asdict(self)


def check_file(path: Path, options: ImportOptions) -> None:
    """Raise what `import_path` would for a file that cannot be imported, or options.

    Of a folder what it would where nothing in it is a file of weights.
    """
    _check_options(options)
    if os.path.isdir(path):
        _files_of(path, options)
    else:
        _planned(path, options)


def import_path(
    registry: Registry,
    path: Path,
    options: ImportOptions,
    *,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[ImportedFile]:
    """Import a file, or all files of a folder and those below it; links in it are not followed.

    A single file that is refused raises why: `InvalidWeights`, `InvalidInput`, `NotFound`. In a
    folder it stops no other, nor does a folder below that cannot be read, which is refused too.
    `on_progress` gets (done, total) files.
    """
    _check_options(options)
    if not os.path.isdir(path):
        outcomes = _imported(registry, [path], options, on_progress, named={path})
        if isinstance(only := outcomes[path], ConceptryError):
            raise only
        return [only]
    paths, unread = _files_of(path, options)
    outcomes = _imported(registry, paths, options, on_progress)
    for error in unread:
        why = f"the folder cannot be read: {error.strerror}"
        outcomes[Path(error.filename)] = InvalidInput(why)
    return [
        _refused(each, found) if isinstance(found, ConceptryError) else found
        for each, found in outcomes.items()
    ]


def _files_of(path: Path, options: ImportOptions) -> tuple[list[Path], list[OSError]]:
    """The files of a folder that are to be imported, and what of it cannot be read."""
    if options.name:
        raise InvalidInput(
            f"{path} is a folder, whose concepts are called as its files are",
            hint=f"concept import FILE --as {options.name}",
        )
    unread: list[OSError] = []
    paths = list(_files_below(path, unread))
    if not (paths or unread):
        raise NotFound(
            f"{path} holds no weights of other tools: no {_ENDING}",
            hint=f"concept add NAME {quoted(path)} --category WORD",
        )
    return paths, unread


def _check_options(options: ImportOptions) -> None:
    for tag in options.tags:
        check_name(tag, "tag")
    if options.name is not None:
        check_name(options.name)
    if options.category is not None:
        check_category(options.category)
    if options.trigger is not None and trigger_word(options.trigger) != options.trigger:
        raise InvalidInput(
            f"{options.trigger[:60]!r} cannot stand in a prompt", hint='--trigger "ohwx dog"'
        )


def _files_below(folder: Path, unread: list[OSError]) -> Iterator[Path]:
    """The files of weights in a folder and below it, by path; what cannot be read is appended."""
    for place, folders, names in os.walk(folder, onerror=unread.append):
        folders.sort()
        seconds = {second.name for name in names if (second := _pair(Path(place) / name))}
        for name in sorted(names):
            suffix = Path(name).suffix.lower()
            if name in seconds:
                continue  # comes with the first
            if suffix in (_ENDING, *_PICKLES, *_OTHERS):
                yield Path(place) / name


def _imported(
    registry: Registry,
    paths: Sequence[Path],
    options: ImportOptions,
    on_progress: Callable[[int, int], None] | None,
    named: "set[Path] | None" = None,
) -> "dict[Path, ImportedFile | ConceptryError]":
    """What became of each file, some hundreds of them in one transaction."""
    found: dict[Path, ImportedFile | ConceptryError] = dict.fromkeys(paths, NotFound(""))
    done = 0

    def advance() -> None:
        nonlocal done
        done += 1
        if on_progress:
            on_progress(done, len(paths))

    waiting: list[_Plan] = []

    def take_in() -> None:
        taken = registry.import_originals([each.original for each in waiting], on_progress=advance)
        for plan, outcome in zip(waiting, taken, strict=True):
            became = plan.outcome(outcome)
            if isinstance(became, ImportedFile) and became.outcome == "known":
                unused = _not_used(registry, became.concept, plan, options)
                became = replace(became, warnings=[*became.warnings, *unused])
            found[plan.path] = became
        waiting.clear()

    size = headers = 0
    for path in paths:
        try:
            if named is None and os.path.islink(path):
                raise InvalidInput(f"{path} is a link", hint="import the file itself")
            waiting.append(plan := _planned(path, options))
            size += _size_of(plan)
            headers += sum(header.start for _, header in plan.original.files)
        except (InvalidInput, NotFound) as error:
            found[path] = error
            advance()
        is_much = size > _BYTES_AT_ONCE or headers > _HEADERS_AT_ONCE
        if len(waiting) == _FILES_AT_ONCE or is_much:
            take_in()
            size = headers = 0
    take_in()
    return found


def _not_used(
    registry: Registry, name: str | None, plan: "_Plan", options: ImportOptions
) -> Iterator[str]:
    """What options say of a file that is there already, where the concept has something else."""
    is_asked = options.category is not None or options.trigger is not None or options.tags
    if name is None or not (is_asked or plan.description.peft_config):
        return
    concept = registry.show(name)
    configs = [run.config.get("peft_config") for run in concept.runs if run.method == IMPORT]
    if plan.description.peft_config and plan.description.peft_config not in configs:
        yield f"keeps what {PEFT_CONFIG} said before -> concept rm {name}, and import it again"
    edit = f"concept edit {concept.name}"
    if options.category is not None and check_category(options.category) != concept.category:
        yield f"keeps the category {concept.category} -> {edit} --category WORD"
    if missing := [each for each in options.tags if each not in concept.tags]:
        yield f"gets no tag {missing[0]} -> {edit} --tag {missing[0]}"
    said = {phrase for run in concept.runs if isinstance(phrase := run.config.get("phrase"), str)}
    if options.trigger is not None and plan.description.phrase not in said:
        yield f"keeps what prompts say for it -> concept rm {concept.name}, and import it again"


def _refused(path: Path, error: ConceptryError) -> ImportedFile:
    return ImportedFile(path=str(path), outcome="refused", message=error.message, hint=error.hint)


# --- a file ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Plan:
    """What a file is to become."""

    path: Path
    original: Original
    description: ImportDescription
    weight: float | None
    warnings: list[str]

    def outcome(self, found: TakenIn | ConceptryError) -> ImportedFile | ConceptryError:
        """What it became."""
        if isinstance(found, ConceptryError):
            return found
        first = found.files[0]
        base = self.original.base
        said = "1" if self.weight is None else f"{self.weight:.4f}".rstrip("0").rstrip(".")
        strength = f":{said}" if said not in ("1", "0", "-0") else ""
        return ImportedFile(
            path=str(self.path),
            outcome="imported" if found.is_new else "known",
            concept=found.concept,
            holds=self.description.holds,
            base=None if base == UNKNOWN_BASE else base,
            prompt=f"<{found.concept}{strength}>",
            trigger_words=list(self.description.trigger_words),
            autov2=first.sha256[:10] or None,
            autov3=first.of_tensors[:12],
            warnings=[*self.warnings, *self._wrong_hashes(found)],
        )

    def _wrong_hashes(self, found: TakenIn) -> Iterator[str]:
        for file, (_, header) in zip(found.files, self.original.files, strict=True):
            said = header.metadata.get(HASH_KEY, "").removeprefix("0x").lower()
            if said and said != file.of_tensors:
                yield (
                    f"says that its hash is {said[:12]}, but it is {file.of_tensors[:12]}: it was "
                    "changed since"
                )


def _size_of(plan: _Plan) -> int:
    return sum(path.stat().st_size for path, _ in plan.original.files if os.path.isfile(path))


def _planned(path: Path, options: ImportOptions) -> _Plan:
    _check_suffix(path)
    header, beside = read_header(path), read_beside(path)
    check_said_base(path.name, header, beside.base)
    files, contents = [(path, header)], [recognise(path.name, header)]
    if second := _pair(path, header):
        files.append((second, read_header(second)))
        contents.append(recognise(second.name, files[1][1]))
    base = base_of(contents[0], header, beside.base) or UNKNOWN_BASE
    category = options.category or _category_said(header) or GENERAL_CATEGORY
    words = _trigger_words(header, beside, options)
    has_vectors = any(each.vectors for each in contents)
    named = [each.stem for each, _ in files]
    named += [header.metadata.get("modelspec.title", ""), *contents[0].words]
    phrase = _phrase(words, named, has_vectors, options)
    if PLACE in phrase and not has_vectors:
        raise InvalidInput(
            f"{path.name} has no words of its own, which {PLACE} would stand for",
            hint=f"--trigger {quoted(phrase.replace(PLACE, '').strip() or 'WORDS')}",
        )
    if len(phrase) > MAX_PHRASE:
        raise InvalidInput(
            f"what prompts would say for {path.name} has {len(phrase):,} characters, more than "
            f"{MAX_PHRASE:,}",
            hint="a shorter --trigger",
        )
    peft = _peft_config(path, header)
    scale, scales = _scales(path, contents[0], header, peft)
    description = ImportDescription(
        holds=" and ".join(dict.fromkeys(each.holds for each in contents)),
        category=category,
        phrase=phrase,
        trigger_words=words,
        scale=scale,
        scales=scales,
        peft_config=peft,
    )
    original = Original(
        name=options.name or _name_of(path),
        is_given=options.name is not None,
        category=category,
        tags=options.tags,
        notes=_notes(beside, words),
        base=base,
        config=description.to_mapping(),
        files=files,
        preview=beside.preview,
    )
    return _Plan(path, original, description, beside.weight, _warnings(contents, beside))


def _check_suffix(path: Path) -> None:
    suffix = path.suffix.lower()
    if suffix in _PICKLES:
        raise InvalidWeights(pickled(path.name).message, hint=_CONVERT)
    if suffix in _OTHERS:
        ending = suffix if suffix == ".concept" else _ENDING
        raise InvalidInput(f"{path.name} is {_OTHERS[suffix]}", hint=f"concept import FILE{ending}")


def _pair(path: Path, header: Header | None = None) -> Path | None:
    """The embedding that goes with weights that are read, if there is one and they say so."""
    second = embedding_beside(path)
    if not os.path.isfile(second) or os.path.islink(second):
        return None
    try:
        header = header or read_header(path)
        recognise(path.name, header)
    except (InvalidInput, NotFound):
        return None
    said = header.metadata.get("modelspec.trigger_phrase", "")
    return second if _in_words(second.stem) in _in_words(said) else None


def _in_words(text: str) -> str:
    """A text, with a space before and after each of its words."""
    return f" {' '.join(text.split())} "


def _name_of(path: Path) -> str:
    """A concept's name from a file's, or from its folder's where the file's says nothing."""
    stem = path.stem
    if _GENERAL_STEMS.fullmatch(stem.lower()) and path.absolute().parent.name:
        stem = path.absolute().parent.name
    return re.sub(r"[^a-z0-9_-]+", "-", stem.lower()).strip("-_")[:MAX_NAME] or "imported"


def _category_said(header: Header) -> str | None:
    """The tag of a file that has one."""
    try:
        return check_category(header.metadata.get("modelspec.tags", ""))
    except InvalidInput:
        return None


def _trigger_words(header: Header, beside: Beside, options: ImportOptions) -> tuple[str, ...]:
    said = trigger_word(header.metadata.get("modelspec.trigger_phrase"))
    words = [options.trigger, said, *beside.trigger_words]
    return tuple(dict.fromkeys(filter(None, words)))


def _phrase(
    words: Sequence[str], named: Sequence[str], has_vectors: bool, options: ImportOptions
) -> str:
    """What prompts say: trigger words, with {} for the words of an embedding.

    Of weights of which nothing says any, the category if that is given.
    """
    if not has_vectors:
        return words[0] if words else options.category or ""
    first = words[0] if words else ""
    if PLACE in first:
        return first
    said = _in_words(first)
    names = [_in_words(each) for each in named if each.strip()]
    if place := next((each for each in names if each in said), None):
        return said.replace(place, f" {PLACE} ", 1).strip()
    return f"{PLACE} {options.trigger}" if options.trigger else PLACE


def _notes(beside: Beside, words: Sequence[str]) -> str:
    others = f"other trigger words: {'; '.join(words[1:])}"[:2_000] if len(words) > 1 else ""
    weight = f"preferred strength: {beside.weight:g}" if beside.weight is not None else ""
    return "\n".join(filter(None, (beside.notes, others, weight)))


def _warnings(contents: Sequence[Contents], beside: Beside) -> list[str]:
    found = [f"{name} beside it cannot be read" for name in beside.unread]
    if any(each.unused for each in contents):
        found.append("its vectors for text encoders' outputs are not used")
    return found


# --- what layers count ----------------------------------------------------------------------------


def _peft_config(path: Path, header: Header) -> str:
    """What stands beside a file that PEFT wrote; empty for one of others.

    Raises `InvalidWeights` if it is missing.
    """
    if not any(name.startswith(_PEFT) for name in header.tensors):
        return ""
    config = path.with_name(PEFT_CONFIG)
    if not is_plain_file(config):
        raise InvalidWeights(
            f"{path.name} does not say how much it counts: {config.name} is not beside it",
            hint="get both files that PEFT wrote",
        )
    if len(text := read_text(config)) > MAX_CONFIG:
        raise InvalidWeights(f"{config.name} has more than {MAX_CONFIG:,} characters")
    return text


def _scales(
    path: Path, contents: Contents, header: Header, peft: str
) -> tuple[float, dict[str, float]]:
    """What layers count by PEFT's configuration: most of them, and those that differ.

    Raises `InvalidWeights` if that is damaged.
    """
    if peft:
        configs = {"": _PeftConfig.of(_mapping(PEFT_CONFIG, peft))}
    elif said := header.metadata.get("lora_adapter_metadata"):
        whole = _mapping("lora_adapter_metadata", said)
        configs = {
            prefix: _PeftConfig.of(
                {
                    key.removeprefix(prefix): each
                    for key, each in whole.items()
                    if key.startswith(prefix)
                }
            )
            for prefix in ("unet.", "text_encoder.", "text_encoder_2.")
        }
    else:
        return 1.0, {}
    found = {layer: _scale_of(layer, configs) for layer in contents.layers}
    if not all(-MAX_SCALE <= each <= MAX_SCALE for each in found.values()):
        raise InvalidWeights(f"{path.name} counts more than anything can")
    values = list(found.values())
    most = max(dict.fromkeys(values), key=values.count, default=1.0)
    return most, {f"{net} {own}": each for (net, own), each in found.items() if each != most}


_NETWORKS = {"unet": "unet.", "text.0": "text_encoder.", "text.1": "text_encoder_2."}


_Patterns = Mapping[str, tuple[int, object]]
"""Values for layers whose path is, or ends with, a key; with their places in the file."""


@dataclass(frozen=True, slots=True)
class _PeftConfig:
    settings: Mapping[str, object]
    ranks: _Patterns
    alphas: _Patterns

    @classmethod
    def of(cls, settings: Mapping[str, object]) -> "_PeftConfig":
        ranks, alphas = (settings.get(f"{each}_pattern") for each in ("rank", "alpha"))
        return cls(settings, _patterns(ranks), _patterns(alphas))


def _scale_of(layer: Layer, configs: Mapping[str, _PeftConfig]) -> float:
    """Alpha / rank, or with rsLoRA alpha / √rank."""
    found = configs.get("") or configs.get(_NETWORKS.get(layer[0], ""))
    config = found.settings if found else {}
    kind = str(config.get("peft_type", "LORA"))
    if kind not in _PEFT_KINDS:
        raise InvalidWeights(f"it was trained by {kind[:40]}, which is not read")
    if not found or not config:
        return 1.0
    rank = _number(_of_pattern(found.ranks, layer[1], config.get("r")))
    alpha = _number(_of_pattern(found.alphas, layer[1], config.get(_PEFT_KINDS[kind])))
    return alpha / (rank**0.5 if config.get("use_rslora") is True else rank)


def _patterns(found: object) -> _Patterns:
    patterns: dict[str, tuple[int, object]] = {}
    for place, (key, value) in enumerate(found.items() if isinstance(found, dict) else ()):
        own = str(key).lstrip("^").rstrip("$").replace(".", "_").removeprefix("text_model_")
        patterns.setdefault(own, (place, value))
    return patterns


def _of_pattern(patterns: _Patterns, path: str, usual: object) -> object:
    """The value of the first key that a layer's path is, or ends with; else the usual one."""
    if not patterns:
        return usual
    ends = [path, *(path[i + 1 :] for i, letter in enumerate(path) if letter == "_")]
    found = [patterns[each] for each in ends if each in patterns]
    return min(found, key=lambda each: each[0])[1] if found else usual


def _number(value: object) -> float:
    match value:
        case int() | float() if not isinstance(value, bool) and 0 < value <= MAX_SCALE:
            return float(value)
        case _:
            said = str(value)[:40]
            raise InvalidWeights(f"what PEFT says of it is damaged: {said!r} is no rank")


def _mapping(name: str, text: str) -> dict[str, object]:
    try:
        found = parse_json(text)
    except InvalidInput as error:
        raise InvalidWeights(f"{name} is {error.message}") from None
    if not isinstance(found, dict):
        raise InvalidWeights(f"{name} is no mapping")
    return found


def family_of(base: str | None) -> str:
    """What a base model is called, for people."""
    return FAMILIES.get(base or "", "a base model that it does not name")
