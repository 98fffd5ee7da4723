"""What a run's record keeps of its concept, so that later edits do not change what is resumed."""

from contextlib import suppress
from dataclasses import dataclass, replace

from ..methods.settings import TrainingSettings
from ..models.loading import LoadedBase
from ..models.subject_encoder_file import hash_of_subject_encoder
from ..registry import Registry
from ..registry.errors import InvalidInput, RegistryCorrupt
from ..registry.names import check_category
from ..registry.records import Concept, RunRecord


@dataclass(frozen=True, slots=True)
class TrainingData:
    """What a run keeps of its concept, as later edits must not change it.

    Photos, masks and the subject encoder are hashes. What is not of all trainings is kept where it
    is used.
    """

    photos: list[str]
    category: str
    masks: list[str | None] | None = None
    captions: list[str | None] | None = None
    subject_encoder: str | None = None


def training_data_of(
    base: LoadedBase, concept: Concept, settings: TrainingSettings
) -> dict[str, object]:
    """`TrainingData` as the run's record has it, beside the settings.

    Raises what `hash_of_subject_encoder` does.
    """
    data: dict[str, object] = {
        "photos": [image.sha256 for image in concept.images],
        "category": concept.category,
    }
    has_references = bool(settings.reference.photos)
    if settings.mask.use != "none" or settings.augmentation.white_background or has_references:
        data["photo_masks"] = [image.mask for image in concept.images]
    if settings.captions.share or has_references:
        data["photo_captions"] = [image.caption for image in concept.images]
    if settings.reference.encoder_strength:
        data["subject_encoder"] = hash_of_subject_encoder(base)
    return data


def recorded_data_of(record: RunRecord, name: str) -> tuple[TrainingData, dict[str, object]]:
    """What a run began with, and its settings, from its record."""
    config = dict(record.config)
    photos, category = config.pop("photos", None), config.pop("category", None)
    if isinstance(photos, list) and isinstance(category, str):
        with suppress(InvalidInput, ValueError):
            masks, captions = (
                _of_photos(config.pop(key, None), len(photos))
                for key in ("photo_masks", "photo_captions")
            )
            hashes = [str(photo) for photo in photos]
            encoder = config.pop("subject_encoder", None)
            encoder = None if encoder is None else str(encoder)
            category = check_category(category)
            return TrainingData(hashes, category, masks, captions, encoder), config
    raise RegistryCorrupt(
        f"the record of run {record.run} of {name} is damaged", hint=f"concept train {name}"
    )


def _of_photos(value: object, count: int) -> list[str | None] | None:
    """A recorded text or None of each of `count` photos. Raises `ValueError`."""
    if value is None:
        return None
    if not isinstance(value, list) or len(value) != count:
        raise ValueError("expected one for each photo")
    return [None if each is None else str(each) for each in value]


def restored_concept(registry: Registry, concept: Concept, data: TrainingData) -> Concept:
    """The concept with the photos, masks, captions and the category that a run began with."""
    by_hash = {image.sha256: image for image in concept.images}
    if missing := [sha256 for sha256 in data.photos if sha256 not in by_hash]:
        raise InvalidInput(
            f"{len(missing)} of the photos that the run of {concept.name} began with are gone",
            hint=f"concept train {concept.name}",
        )
    images = [by_hash[sha256] for sha256 in data.photos]
    if data.masks is not None:
        images = [replace(i, mask=mask) for i, mask in zip(images, data.masks, strict=True)]
        if lost := [mask for mask in data.masks if mask and not registry.path_of(mask).exists()]:
            raise InvalidInput(
                f"{len(lost)} of the masks that the run of {concept.name} began with are gone",
                hint=f"concept train {concept.name}",
            )
    if data.captions is not None:
        pairs = zip(images, data.captions, strict=True)
        images = [replace(image, caption=caption) for image, caption in pairs]
    return replace(concept, images=images, category=data.category)
