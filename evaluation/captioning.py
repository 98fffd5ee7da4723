"""Drafts of captions: by a model of transformers or, on the miniature, by its own CLIP."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor
from transformers import AutoModelForImageTextToText, AutoProcessor

from ..adapters.prompt_encoding import class_prompt
from ..models.hub import HubModel
from ..models.loading import best_device
from ..models.miniature.world.places import ACCESSORIES, PLACES
from ..registry import Registry
from ..registry.errors import InvalidInput
from ..registry.names import plain_text
from ..registry.records import Concept
from .encoder_names import SHIPPED
from .encoders import ClipEncoder

SIDE = 512
"""Photos are reduced to this, on the shorter side, before they are described."""
_ASKED = "Describe this photo in one short sentence."
_MAX_TOKENS = 60


class Captioner(Protocol):
    """Describes photos."""

    def describe(self, photo: Image.Image, category: str) -> str:
        """A line of text."""
        ...


@dataclass(frozen=True, slots=True)
class ByWords:
    """The sentence of the miniature's vocabulary that is most similar by its CLIP: what is where.

    It names the category, what the subject wears or holds, if anything, and a place.
    """

    clip: ClipEncoder

    def describe(self, photo: Image.Image, category: str) -> str:
        """See `Captioner`."""
        sentences, vectors = self._known(category)
        return sentences[int((vectors @ self.clip.embed([photo])[0]).argmax())]

    def _known(self, category: str) -> tuple[list[str], Tensor]:
        return _embedded(self.clip.embed_texts, category)


@cache
def _embedded(embed: Callable[[list[str]], Tensor], category: str) -> tuple[list[str], Tensor]:
    sentences = [
        " ".join(filter(None, (class_prompt(category), accessory, place)))
        for accessory, place in product((None, *ACCESSORIES), PLACES)
    ]
    return sentences, embed(sentences)


@dataclass(frozen=True, slots=True)
class ByModel:
    """A model that writes text about pictures; one that follows instructions is given one."""

    model: Any
    processor: Any

    @torch.no_grad()
    def describe(self, photo: Image.Image, category: str) -> str:
        """See `Captioner`."""
        del category
        inputs = self._inputs(photo).to(self.model.device)
        ids = self.model.generate(**inputs, max_new_tokens=_MAX_TOKENS, do_sample=False)
        asked = inputs["input_ids"].shape[1] if self._follows_instructions else 0
        (text,) = self.processor.batch_decode(ids[:, asked:], skip_special_tokens=True)
        return text

    @property
    def _follows_instructions(self) -> bool:
        return bool(getattr(self.processor, "chat_template", None))

    def _inputs(self, photo: Image.Image) -> Any:
        if not self._follows_instructions:
            return self.processor(images=photo, return_tensors="pt")
        content = [{"type": "image", "image": photo}, {"type": "text", "text": _ASKED}]
        return self.processor.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )


def load_captioner(name: str = SHIPPED, *, offline: bool = False) -> Captioner:
    """What describes photos: `miniature`, or a model in a folder or a hub repository.

    A model is put on the GPU, if there is one. Raises `NotFound`, and `InvalidInput` for a model of
    another kind.
    """
    if name == SHIPPED:
        return ByWords(ClipEncoder.load(SHIPPED))
    source = HubModel(name, offline=offline)
    if type(source.config) not in AutoModelForImageTextToText._model_mapping:
        raise InvalidInput(
            f"{name} is a {source.config.model_type}, which does not describe pictures",
            hint="a model that turns images into text, as BLIP",
        )
    model = source.network(AutoModelForImageTextToText).to(best_device())
    return ByModel(model, source.part(AutoProcessor))


def draft_captions(
    registry: Registry,
    concept: Concept,
    captioner: Captioner,
    *,
    on_progress: Callable[[int, int], None] | None = None,
) -> dict[str, str]:
    """Captions of a concept's photos that have none, by hash; empty ones are left out."""
    wanted = [image for image in concept.images if not image.caption]
    drafts: dict[str, str] = {}
    for done, image in enumerate(wanted, 1):
        photo = registry.read_photo(image, at_least=SIDE)
        photo.thumbnail((2 * SIDE, 2 * SIDE))
        text = " ".join(plain_text(captioner.describe(photo, concept.category)).split())
        if text:
            drafts[image.sha256] = text
        if on_progress:
            on_progress(done, len(wanted))
    return drafts
