"""From a prompt that names concepts to a base model with their adapters injected."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from ..adapters.adapter import Adapter, injected
from ..adapters.file_format import AdapterMetadata, read_adapter
from ..adapters.prompt_encoding import phrase_of
from ..adapters.timestep_tokens import TimestepTokens, timestep_routing
from ..adapters.token_embedding import TokenEmbedding
from ..adapters.weight_delta import WeightDelta
from ..models.loading import LoadedBase
from ..registry.errors import (
    InvalidInput,
    InvalidWeights,
    quoted,
)
from .prompt_syntax import ChosenVersion, Mention, replaced


@dataclass(frozen=True, slots=True)
class InjectedConcept:
    """A concept whose adapters are injected: its placeholder tokens, and its phrase in a prompt.

    `label` is its version, `rex@3`.
    """

    mention: Mention
    category: str
    tokens: tuple[str, ...]
    phrase: str
    label: str

    @property
    def weight(self) -> str:
        """Version and strength: `rex@3 at strength 2`."""
        return f"{self.label} at strength {self.mention.strength:g}"


@contextmanager
def inject_concepts(base: LoadedBase, chosen: Sequence[ChosenVersion]) -> Iterator[list[InjectedConcept]]:
    """Inject the versions that a prompt asks for; see `expand_prompt`.

    Changes of weights add up, each by its strength; tokens stand side by side. Raises
    `InvalidInput` if one of them was taught on another base model, and `InvalidWeights` for what
    is no adapter of it, before anything is changed.
    """
    embeddings: list[TokenEmbedding | TimestepTokens] = []
    changes: list[Adapter] = []
    concepts: list[InjectedConcept] = []
    for each in chosen:
        with _naming(each):
            state, fits = read_adapter(Path(each.path))
            _check_base(base, each, fits)
            tokens = each.tokens(fits.num_tokens)
            embedding = _embedding(tokens, fits, state)
            embedding.check(base.backbone)
            change = WeightDelta.from_state(state, each.mention.strength)
            change.check(base.backbone)
        if each.mention.strength != 1:
            embedding.apply_strength(base.backbone, fits.category, each.mention.strength)
        embeddings.append(embedding)
        if change.deltas or change.factors:
            changes.append(change)
        phrase = phrase_of(tokens, fits.category, names_category=fits.names_category)
        concepts.append(InjectedConcept(each.mention, fits.category, tokens, phrase, each.label))
    with injected(base.backbone, [*embeddings, *timestep_routing(embeddings), *changes]):
        yield concepts


@contextmanager
def _naming(chosen: ChosenVersion) -> Iterator[None]:
    """Say whose adapter it is that is wrong."""
    try:
        yield
    except InvalidWeights as error:
        raise InvalidWeights(
            f"{chosen.label} cannot be drawn with: {error.message}",
            hint=f"concept train {chosen.concept.name}",
        ) from error


def expand_prompt(prompt: str, concepts: Sequence[InjectedConcept]) -> str:
    """The prompt as the text encoder gets it: `<rex>` becomes its tokens and category."""
    return replaced(prompt, {each.mention.text: each.phrase for each in concepts})


def _check_base(base: LoadedBase, chosen: ChosenVersion, fits: AdapterMetadata) -> None:
    if fits.base_sha256 != base.sha256:
        taught_on = next(
            (run.base for run in chosen.concept.runs if run.base_sha256 == fits.base_sha256), None
        )
        raise InvalidInput(
            f"{chosen.label} was taught on another base model than {base.base.name}",
            hint=f"--base {quoted(taught_on)}"
            if taught_on
            else f"concept train {chosen.concept.name}",
        )


def _embedding(
    tokens: tuple[str, ...], fits: AdapterMetadata, state: Mapping[str, Tensor]
) -> TokenEmbedding | TimestepTokens:
    if not fits.stage_order:
        return TokenEmbedding.from_state(tokens, state)
    return TimestepTokens.from_state(tokens[0], fits.category, state)
