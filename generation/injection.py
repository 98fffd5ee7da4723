"""From a prompt that names concepts to a base model with their adapters injected."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from ..adapters.adapter import Adapter, injected
from ..adapters.file_format import AdapterMetadata, read_adapter, read_adapter_metadata
from ..adapters.formats.description import PLACE, read_description
from ..adapters.formats.reading import read_foreign
from ..adapters.formats.recognising import FAMILIES
from ..adapters.lora_branch import LoraBranch
from ..adapters.prompt_encoding import phrase_of
from ..adapters.references import References
from ..adapters.subject_encoding import SubjectEncoding
from ..adapters.timestep_tokens import TimestepTokens, timestep_routing
from ..adapters.token_embedding import TokenEmbedding, check_vectors
from ..adapters.weight_delta import ChangedWeights, WeightDelta
from ..models.backbone import Backbone
from ..models.loading import LoadedBase
from ..models.subject_encoder import SubjectAttention
from ..models.subject_encoder_file import load_subject_attention
from ..registry.errors import (
    InvalidInput,
    InvalidWeights,
)
from ..registry.records import IMPORT
from .prompt_syntax import ChosenVersion, Mention, replaced

_WORD = "a"
"""One token, of any tokenizer."""


@dataclass(frozen=True, slots=True)
class InjectedConcept:
    """A concept whose adapters are injected: its placeholder tokens, and its phrase in a prompt.

    `phrase` is `[V] dog`, `[V]` or, without tokens, `dog`, and of an imported concept its trigger
    words, which may be none; `label` is the version, `rex@3`; `change` is that of the base model's
    weights, if there is one. If it was injected apart, it is there as a `branch` beside their
    layers, if it can be, else `weights` are these with it. `is_subject` says whether it has a place
    in pictures.
    """

    mention: Mention
    category: str
    tokens: tuple[str, ...]
    phrase: str
    label: str
    change: WeightDelta | None = None
    weights: ChangedWeights | None = None
    branch: LoraBranch | None = None
    is_subject: bool = True

    @property
    def is_apart(self) -> bool:
        """Whether its change of weights was injected apart."""
        return self.weights is not None or self.branch is not None

    @property
    def apart(self) -> str:
        """Its phrase for the base model's weights: the category, if it changes them."""
        return self.category if self.weights else self.phrase

    def computed(self, backbone: Backbone) -> "InjectedConcept":
        """It, injected apart if it is a subject that changes weights."""
        if not self.is_subject or self.change is None or not self.change.names:
            return self
        branch = LoraBranch.of(self.change, backbone)
        weights = None if branch else self.change.computed(backbone)
        return replace(self, weights=weights, branch=branch)

    @property
    def weight(self) -> str:
        """Version and strength: `rex@3 at strength 2`."""
        return f"{self.label} at strength {self.mention.strength:g}"


@contextmanager
def inject_concepts(
    base: LoadedBase, chosen: Sequence[ChosenVersion], *, apart: bool = False
) -> Iterator[list[InjectedConcept]]:
    """Inject the versions that a prompt names; see `expand_prompt`.

    Weight changes are added, each times its strength, as are the weights of references and the
    strengths of their subject encoder. With `apart` those of subjects are not, but are there to be
    exchanged for the base model's. Before anything is changed, raises `InvalidInput` for a version
    of another base model or subject encoder, `NotFound` if that is not there, and `InvalidWeights`
    for a broken adapter.
    """
    attentions: dict[str, SubjectAttention] = {}
    embeddings: list[TokenEmbedding | TimestepTokens] = []
    changes: list[Adapter] = []
    concepts: list[InjectedConcept] = []
    for each in chosen:
        with _naming(each):
            read = _read(base, each)
        state, metadata = read.state, read.metadata
        encoder = metadata.subject.encoder_sha256 if metadata.subject else None
        if encoder and encoder not in attentions:
            attentions[encoder] = load_subject_attention(base, encoder, each.label)
        with _naming(each):
            tokens = each.tokens(metadata.num_tokens)
            embedding = _embedding(tokens, metadata, state) if tokens else None
            if embedding is not None:
                embedding.check(base.backbone)
            change = read.change
            change.check(base.backbone)
            if change.magnitudes:  # of its change of the base model, whatever else changes that
                change = change.multiplied_out(base.backbone)
            encoding = None
            if subject := metadata.subject:
                attention = attentions[subject.encoder_sha256]
                strength = each.mention.strength
                encoding = SubjectEncoding.from_state(attention, state, subject, strength)
            references = References.from_state(
                state, metadata.references, each.mention.strength, encoding
            )
            references.check(base.backbone)
        if embedding is not None:
            if each.mention.strength != 1:
                embedding.apply_strength(base.backbone, metadata.category, each.mention.strength)
            embeddings.append(embedding)
        phrase = read.phrase_of(tokens)
        concept = InjectedConcept(
            each.mention,
            metadata.category,
            tokens,
            phrase,
            each.label,
            change,
            is_subject=each.is_subject,
        )
        if change.names and not (apart and concept.is_subject):
            changes.append(change)
        if references.references:
            changes.append(references.of_subject(each.mention.name).in_words(phrase))
        concepts.append(concept)
    with injected(base.backbone, [*embeddings, *timestep_routing(embeddings), *changes]):
        yield [each.computed(base.backbone) for each in concepts] if apart else concepts


@dataclass(frozen=True, slots=True)
class _Read:
    """An adapter as it is stored; `phrase` is that of an imported one."""

    state: Mapping[str, Tensor]
    metadata: AdapterMetadata
    change: WeightDelta
    phrase: str | None = None

    def phrase_of(self, tokens: Sequence[str]) -> str:
        """What prompts say for it."""
        if self.phrase is not None:
            return self.phrase.replace(PLACE, " ".join(tokens))
        metadata = self.metadata
        return phrase_of(tokens, metadata.category, names_category=metadata.names_category)


def _read(base: LoadedBase, chosen: ChosenVersion) -> _Read:
    if chosen.originals:
        return _read_imported(base, chosen)
    state, metadata = read_adapter(Path(chosen.path))
    _check_base(base, chosen, metadata)
    return _Read(state, metadata, WeightDelta.from_state(state, chosen.mention.strength))


def _read_imported(base: LoadedBase, chosen: ChosenVersion) -> _Read:
    """An imported version, which is of any base model that it fits."""
    assert chosen.run
    description = read_description(chosen.run.config)
    paths = [Path(each) for each in chosen.originals]
    try:
        found = read_foreign(paths, description, base.backbone, chosen.mention.strength)
        found.change.check(base.backbone)
        if found.vectors:
            shapes = [each.shape for each in found.vectors]
            check_vectors(base.backbone, shapes, [len(found.vectors[0])])
    except InvalidWeights as error:
        made_for = FAMILIES.get(chosen.run.base, "another base model")
        raise InvalidInput(
            f"{chosen.label}, {description.holds} for {made_for}, does not fit {base.base.name}: "
            f"{error.message}",
            hint=f"--base {chosen.run.base}" if chosen.run.base in FAMILIES else "--base NAME",
        ) from error
    metadata = AdapterMetadata(
        base_sha256=base.sha256,
        method=IMPORT,
        category=chosen.concept.category,
        num_tokens=len(found.vectors[0]) if found.vectors else 0,
        names_category=False,
    )
    state = {f"token.{i}": each for i, each in enumerate(found.vectors)}
    return _Read(state, metadata, found.change, description.phrase)


@contextmanager
def _naming(chosen: ChosenVersion) -> Iterator[None]:
    """Name the version in errors about its adapter."""
    try:
        yield
    except InvalidWeights as error:
        name = chosen.concept.name
        raise InvalidWeights(
            f"{chosen.label} cannot be drawn with: {error.message}",
            hint="concept import FILE" if chosen.originals else f"concept train {name}",
        ) from error


def stand_ins(base: LoadedBase, chosen: Sequence[ChosenVersion]) -> list[InjectedConcept]:
    """What `inject_concepts` will make of versions, with a common word for each token.

    So that prompts can be checked before weights are loaded; an imported embedding counts as one
    word. Raises what can be told of the files' headers.
    """
    found: list[InjectedConcept] = []
    for each in chosen:
        if each.originals:
            assert each.run
            with _naming(each):
                description = read_description(each.run.config)
            category, phrase = each.concept.category, description.phrase.replace(PLACE, _WORD)
        else:
            with _naming(each):
                metadata = read_adapter_metadata(Path(each.path))
            _check_base(base, each, metadata)
            words = [_WORD] * metadata.num_tokens
            category = metadata.category
            phrase = phrase_of(words, category, names_category=metadata.names_category)
        own = InjectedConcept(each.mention, category, (), phrase, each.label)
        found.append(replace(own, is_subject=each.is_subject))
    return found


def expand_prompt(prompt: str, concepts: Sequence[InjectedConcept]) -> str:
    """The prompt as the text encoder gets it: `<rex>` becomes the concept's phrase."""
    return replaced(prompt, {each.mention.text: each.phrase for each in concepts})


def _check_base(base: LoadedBase, chosen: ChosenVersion, metadata: AdapterMetadata) -> None:
    wanted, runs = metadata.base_sha256, chosen.concept.runs
    trained_on = next((run.base for run in runs if run.base_sha256 == wanted), None)
    again = f"concept train {chosen.concept.name}"
    base.check_is(wanted, trained_on, f"{chosen.label} was trained on", otherwise=again)


def _embedding(
    tokens: tuple[str, ...], metadata: AdapterMetadata, state: Mapping[str, Tensor]
) -> TokenEmbedding | TimestepTokens:
    if not metadata.stage_order:
        return TokenEmbedding.from_state(tokens, state)
    return TimestepTokens.from_state(tokens[0], metadata.category, state)
