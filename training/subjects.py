"""What is to be learned of a concept: its photos, masks, captions and references."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from PIL import Image

from ..adapters.references import References
from ..generation.reference_syntax import choose_reference, find_photo
from ..generation.references import check_reference, load_references
from ..methods.method import Method, active_stages
from ..methods.settings import ReferenceSettings, TrainingSettings
from ..models.loading import LoadedBase
from ..models.pixels import on_white
from ..models.subject_encoder_file import LoadedSubjectEncoder, load_subject_encoder
from ..registry import Registry
from ..registry.records import Concept
from .crops import Photos, needed_side
from .photo_masks import masks_for_training
from .training import Subject, training_resolution


def with_photos(concept: Concept, words: Sequence[str]) -> Concept:
    """The concept with the photos that are to be learned: all, or those that are named.

    Raises `InvalidInput` for a concept without photos, and `NotFound`.
    """
    concept.check_photos()
    if not words:
        return concept
    return replace(concept, images=list(dict.fromkeys(find_photo(concept, word) for word in words)))


def subject_of(
    registry: Registry,
    base: LoadedBase,
    concept: Concept,
    method: Method,
    settings: TrainingSettings,
) -> Subject:
    """A concept's photos, as large as crops need them, its category and placeholder tokens.

    With them are the masks and captions that the settings ask for. Decodes each photo, to find
    damaged ones before training. Raises `RegistryCorrupt` for them, and `InvalidInput` if there are
    no photos.
    """
    side = needed_side(training_resolution(base.backbone, settings), settings.augmentation)
    concept.check_photos()
    images = concept.images
    photos = Photos([partial(registry.read_photo, image, at_least=side) for image in images])
    is_trained = any(active_stages(method, settings))
    use = settings.mask.use if is_trained else "none"
    masks = masks_for_training(registry, base, concept, photos, use)
    if settings.augmentation.white_background and is_trained:
        cut = masks
        if use != "auto":
            cut = masks_for_training(registry, base, concept, photos, "auto")
        photos = Photos([partial(_on_white, photos, cut, i) for i in range(len(images))])
    num_tokens = method.count_tokens(base.backbone, settings)
    return Subject(
        photos=photos,
        category=concept.category,
        tokens=tuple(f"<{concept.id}#{i}>" for i in range(num_tokens)),
        sizes=[(image.width, image.height) for image in images],
        masks=masks,
        captions=[image.caption for image in images],
    )


def _on_white(photos: Photos, masks: Photos, number: int) -> Image.Image:
    return on_white(photos[number], masks[number])


def references_of(
    registry: Registry,
    base: LoadedBase,
    concept: Concept,
    settings: ReferenceSettings,
    *,
    encoder: LoadedSubjectEncoder | None = None,
) -> References:
    """The references that a concept's version holds, with {} for the concept in their prompts.

    A subject `encoder` sees them with the settings' strength.
    """
    chosen = [
        replace(
            choose_reference(concept, image, settings.weight),
            share=settings.share,
            guidance=settings.guidance,
        )
        for image in concept.images[: settings.photos]
    ]
    for each in chosen:
        check_reference(base.backbone, each, f"a {concept.category}")
    names = {concept.id: "{}"}
    strength = settings.encoder_strength
    return load_references(
        registry, base, chosen, names, encoder=encoder, encoder_strength=strength
    )


def encoder_for(base: LoadedBase, settings: TrainingSettings) -> LoadedSubjectEncoder | None:
    """The subject encoder for a batch of trainings, which have the same settings."""
    return load_subject_encoder(base) if settings.reference.encoder_strength else None
