"""Prompts that name concepts: `<rex>`, `<rex@3>`, `<rex@best>`, `<rex:0.8>`. Loads no weights."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from ..adapters.formats.description import GENERAL_CATEGORY, read_description
from ..registry import Registry
from ..registry.errors import InvalidInput, NotFound, RegistryCorrupt
from ..registry.hashes import sha256_of, sha256_of_json
from ..registry.names import check_text
from ..registry.records import (
    IMPORT,
    ORIGINAL,
    ArtifactRecord,
    Concept,
    RunRecord,
    VersionRecord,
    originals_of,
)
from ..registry.running import ADAPTER_FILE

MAX_STRENGTH = 4.0
_BRACKETS = re.compile(r"<([^<>]*)>")
_UNCLOSED = re.compile(r"<[a-z]\S*")
_MENTION = re.compile(r"([a-z0-9][a-z0-9_-]*)(?:@([a-z0-9][a-z0-9_-]*))?(?::([\d.]+))?")
_OTHER_TOOLS = re.compile(r"(?:lora|lyco|hypernet|embedding):([a-z0-9][a-z0-9_-]*(?::[\d.]+)?).*")


@dataclass(frozen=True, slots=True)
class Mention:
    """A concept in a prompt, as it was written."""

    text: str
    name: str
    version: str | None
    strength: float


@dataclass(frozen=True, slots=True)
class ChosenVersion:
    """The version that a mention refers to; `path` and `sha256` are its adapter file's.

    Of an imported version `originals` are its files, and `sha256` covers what is said of them too.
    """

    mention: Mention
    concept: Concept
    version: VersionRecord
    path: str
    sha256: str
    originals: tuple[str, ...] = ()

    @property
    def run(self) -> RunRecord | None:
        """What made it: a training, or an import."""
        return next((run for run in self.concept.runs if run.run == self.version.run), None)

    @property
    def label(self) -> str:
        """`rex@3`."""
        return f"{self.concept.name}@{self.version.number}"

    @property
    def is_general(self) -> bool:
        """Whether it is imported and nobody said of what: a style, perhaps."""
        return bool(self.originals) and self.concept.category == GENERAL_CATEGORY

    @property
    def has_words(self) -> bool:
        """Whether it has words in prompts; weights that were imported without any have none."""
        if not self.originals:
            return True
        assert self.run
        return bool(read_description(self.run.config).phrase)

    @property
    def is_subject(self) -> bool:
        """Whether it is a subject of pictures, instead of changing them as a whole."""
        return self.has_words and not self.is_general

    def tokens(self, count: int) -> tuple[str, ...]:
        """Names of `count` placeholder tokens, unique to this version."""
        return tuple(f"<{self.label}#{i}>" for i in range(count))


def mention_of(name: str, version: str | int | None = None) -> str:
    """The text of a mention: `<rex>`, or with a version `<rex@3>`."""
    return f"<{name}>" if version is None else f"<{name}@{version}>"


def mentions(prompt: str) -> list[Mention]:
    """The concepts that a prompt names, each once, in order.

    Raises `InvalidInput` for an empty prompt, other text in angle brackets, one concept in two
    versions or strengths, and control characters.
    """
    if not prompt.strip():
        raise InvalidInput("the prompt is empty", hint='concept generate "a photo of <NAME>"')
    check_text(prompt, "prompt")
    if unclosed := _UNCLOSED.search(_BRACKETS.sub("", prompt)):
        raise InvalidInput(f'a ">" is missing after "{unclosed.group()}"', hint="<rex>, <rex@3>")
    found: dict[str, Mention] = {}
    for match in _BRACKETS.finditer(prompt):
        mention = _mention(match.group(0), match.group(1))
        if found.setdefault(mention.name, mention) != mention:
            raise InvalidInput(
                f"the prompt names {mention.name} as {found[mention.name].text} and {mention.text}",
                hint="name one version and strength of a concept",
            )
    return list(found.values())


def check_negative(prompt: str) -> None:
    """Raise `InvalidInput` for a negative prompt with a concept or control characters."""
    check_text(prompt, "negative prompt")
    if found := _BRACKETS.search(prompt) or _UNCLOSED.search(prompt):
        raise InvalidInput(
            f"a negative prompt names no concept: {found.group()}", hint="name its category"
        )


def _mention(text: str, inside: str) -> Mention:
    match = _MENTION.fullmatch(inside)
    if match is None:
        other = _OTHER_TOOLS.fullmatch(inside)
        hint = f"<{other[1]}>" if other else "<rex>, <rex@3>, <rex@best> or <rex:0.8>"
        raise InvalidInput(f"{text} names no concept", hint=hint)
    name, version, strength = match.groups()
    try:
        value = float(strength or 1)
    except ValueError:
        value = -1.0
    if not 0 <= value <= MAX_STRENGTH:
        raise InvalidInput(
            f"{text}: a strength lies between 0 and {MAX_STRENGTH:g}", hint=f"<{name}:0.8>"
        )
    return Mention(text, name, version, value)


def resolve_prompt(
    registry: Registry, prompt: str, *, pinned: Mapping[str, tuple[str, int]] | None = None
) -> list[ChosenVersion]:
    """The versions that a prompt names; a plain `<rex>` is version `best`, else the latest.

    `pinned` overrides them: it maps names in the prompt to (present name, version number).

    Raises `ConceptNotFound`, `NotFound` for an unknown version or an untrained concept, and
    `RegistryCorrupt` if a stored file is damaged.
    """
    pinned = pinned or {}
    return [_resolve(registry, each, pinned.get(each.name)) for each in mentions(prompt)]


def resolve_version(registry: Registry, concept: Concept, word: str | None = None) -> ChosenVersion:
    """The version that `<rex@word>` would refer to; `word` is a number or an alias.

    Raises what `resolve_prompt` raises.
    """
    (mention,) = mentions(mention_of(concept.name, word))
    return _resolved(registry, concept, mention, mention.version)


def _resolve(registry: Registry, mention: Mention, pinned: tuple[str, int] | None) -> ChosenVersion:
    name, wanted = (mention.name, mention.version) if pinned is None else pinned
    return _resolved(
        registry, registry.show(name), mention, None if wanted is None else str(wanted)
    )


def _resolved(
    registry: Registry, concept: Concept, mention: Mention, wanted: str | None
) -> ChosenVersion:
    version = _version(concept, wanted)
    for artifact in version.artifacts:
        if artifact.name == ADAPTER_FILE and artifact.kind != ORIGINAL:
            path = _checked_path(registry, concept, artifact)
            return ChosenVersion(mention, concept, version, str(path), artifact.sha256)
    if sha256 := imported_sha256(concept, version):
        paths = [_checked_path(registry, concept, each) for each in originals_of(version)]
        originals = tuple(map(str, paths))
        return ChosenVersion(mention, concept, version, originals[0], sha256, originals)
    raise NotFound(
        f"{concept.name}@{version.number} has no adapter to draw with",
        hint=f"concept train {concept.name}",
    )


def imported_sha256(concept: Concept, version: VersionRecord) -> str | None:
    """A hash of an imported version's files and of what is said of them; None of another version.

    Equal files that stand for other words in prompts draw other pictures.
    """
    run = next((run for run in concept.runs if run.run == version.run), None)
    files = [each.sha256 for each in originals_of(version)]
    return sha256_of_json([files, run.config]) if run and run.method == IMPORT and files else None


def _checked_path(registry: Registry, concept: Concept, artifact: ArtifactRecord) -> Path:
    """The file of stored weights. Raises `RegistryCorrupt` unless it is whole."""
    path = registry.path_of(artifact.sha256)
    try:
        is_whole = _sha256_of(path, path.stat().st_mtime_ns) == artifact.sha256
    except OSError as error:
        raise RegistryCorrupt(
            f"the stored weights of {concept.name} cannot be read: {error.strerror}",
            hint="concept check",
        ) from error
    if not is_whole:
        raise RegistryCorrupt(
            f"the stored weights of {concept.name} are damaged",
            hint="concept check --read-data",
        )
    return path


def _version(concept: Concept, wanted: str | None) -> VersionRecord:
    default = concept.default_version
    if default is None:
        raise NotFound(f"{concept.name} has not been trained", hint=f"concept train {concept.name}")
    if wanted is None:
        return default
    by_word: dict[str, VersionRecord] = {}
    for version in concept.versions:
        by_word |= {str(version.number): version} | dict.fromkeys(version.aliases, version)
    if wanted not in by_word:
        raise NotFound(
            f"{concept.name} has no version {wanted}", hint=f"there are {', '.join(by_word)}"
        )
    return by_word[wanted]


@cache
def _sha256_of(path: Path, modified: int) -> str:
    """SHA-256 of a file, cached while it is unmodified: a flipped bit must not go unnoticed."""
    del modified
    with path.open("rb") as file:
        return sha256_of(file)


def split_prompt(prompt: str) -> list[str]:
    """The prompt in pieces: mentions, as written, and what is between them."""
    return [piece for piece in re.split(r"(<[^<>]*>)", prompt) if piece]


def replaced(prompt: str, phrases: dict[str, str]) -> str:
    """The prompt with each mention, as written, replaced by a phrase."""
    return _BRACKETS.sub(lambda match: phrases[match.group(0)], prompt)
