"""From a prompt that names concepts to a base model with their adapters injected."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from ..adapters.adapter import Adapter, injected
from ..adapters.file_format import AdapterMetadata, read_adapter
from ..adapters.lora_branch import LoraBranch
from ..adapters.prompt_encoding import phrase_of
from ..adapters.references import References
from ..adapters.subject_encoding import SubjectEncoding
from ..adapters.timestep_tokens import TimestepTokens, timestep_routing
from ..adapters.token_embedding import TokenEmbedding
from ..adapters.weight_delta import ChangedWeights, WeightDelta
from ..models.loading import LoadedBase
from ..models.subject_encoder import SubjectAttention
from ..models.subject_encoder_file import load_subject_attention
from ..registry.errors import (
    InvalidInput,
    InvalidWeights,
    quoted,
)
from .prompt_syntax import ChosenVersion, Mention, replaced


@dataclass(frozen=True, slots=True)
class InjectedConcept:
    """A concept whose adapters are injected: its placeholder tokens, and its phrase in a prompt.

    `phrase` is `[V] dog`, `[V]` or, without tokens, `dog`; `label` is the version, `rex@3`;
    `change` is that of the base model's weights, if there is one. If it was injected apart, it is
    there as a `branch` beside their layers, if it can be, else `weights` are these with it.
    """

    mention: Mention
    category: str
    tokens: tuple[str, ...]
    phrase: str
    label: str
    change: WeightDelta | None = None
    weights: ChangedWeights | None = None
    branch: LoraBranch | None = None

    @property
    def apart(self) -> str:
        """Its phrase for the base model's weights: the category, if it changes them."""
        return self.category if self.weights else self.phrase

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
    strengths of their subject encoder; `apart` they are not, but are there to be exchanged for the
    base model's. Before anything is changed, raises `InvalidInput` for a
    version of another base model or subject encoder, `NotFound` if that is not there, and
    `InvalidWeights` for a broken adapter.
    """
    attentions: dict[str, SubjectAttention] = {}
    embeddings: list[TokenEmbedding | TimestepTokens] = []
    changes: list[Adapter] = []
    concepts: list[InjectedConcept] = []
    for each in chosen:
        with _naming(each):
            state, metadata = read_adapter(Path(each.path))
            _check_base(base, each, metadata)
        encoder = metadata.subject.encoder_sha256 if metadata.subject else None
        if encoder and encoder not in attentions:
            attentions[encoder] = load_subject_attention(base, encoder, each.label)
        with _naming(each):
            tokens = each.tokens(metadata.num_tokens)
            embedding = _embedding(tokens, metadata, state) if tokens else None
            if embedding is not None:
                embedding.check(base.backbone)
            change = WeightDelta.from_state(state, each.mention.strength)
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
        branch = LoraBranch.of(change, base.backbone) if change.names and apart else None
        weights = None
        if change.names and apart and not branch:
            weights = change.computed(base.backbone)
        if change.names and not apart:
            changes.append(change)
        phrase = phrase_of(tokens, metadata.category, names_category=metadata.names_category)
        if references.references:
            changes.append(references.of_subject(each.mention.name).in_words(phrase))
        concepts.append(
            InjectedConcept(
                each.mention,
                metadata.category,
                tokens,
                phrase,
                each.label,
                change,
                weights,
                branch,
            )
        )
    with injected(base.backbone, [*embeddings, *timestep_routing(embeddings), *changes]):
        yield concepts


@contextmanager
def _naming(chosen: ChosenVersion) -> Iterator[None]:
    """Name the version in errors about its adapter."""
    try:
        yield
    except InvalidWeights as error:
        raise InvalidWeights(
            f"{chosen.label} cannot be drawn with: {error.message}",
            hint=f"concept train {chosen.concept.name}",
        ) from error


def expand_prompt(prompt: str, concepts: Sequence[InjectedConcept]) -> str:
    """The prompt as the text encoder gets it: `<rex>` becomes the concept's phrase."""
    return replaced(prompt, {each.mention.text: each.phrase for each in concepts})


def _check_base(base: LoadedBase, chosen: ChosenVersion, metadata: AdapterMetadata) -> None:
    if metadata.base_sha256 != base.sha256:
        trained_on = next(
            (run.base for run in chosen.concept.runs if run.base_sha256 == metadata.base_sha256),
            None,
        )
        raise InvalidInput(
            f"{chosen.label} was trained on another base model than {base.base.name}",
            hint=f"--base {quoted(trained_on)}"
            if trained_on
            else f"concept train {chosen.concept.name}",
        )


def _embedding(
    tokens: tuple[str, ...], metadata: AdapterMetadata, state: Mapping[str, Tensor]
) -> TokenEmbedding | TimestepTokens:
    if not metadata.stage_order:
        return TokenEmbedding.from_state(tokens, state)
    return TimestepTokens.from_state(tokens[0], metadata.category, state)
