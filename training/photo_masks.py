"""Masks of the photos that are trained on: stored ones, and found ones where there are none."""

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, Protocol

from PIL import Image, ImageOps

from ..generation.photo_regions import regions_of_photos
from ..generation.pictures import SheetRow, contact_sheet
from ..models.loading import LoadedBase
from ..registry import Registry
from ..registry.errors import StorageError
from ..registry.files import below, make_folder, write_file
from ..registry.images import size_as_read, stored_mask
from ..registry.names import MAX_FILE_NAME
from ..registry.records import Concept, ImageRecord
from .crops import Photos

SIDE = 512
"""Photos are reduced to this, on the shorter side, before a subject is looked for in them."""
ON_SHEET = 200
_SHEET_SIDE = 192
_ELSEWHERE = set('/\\:*?"<>|')
"""What a file's name must not have on some system."""
_RED = (200, 0, 0)
Size = tuple[int, int]


def masks_for_training(
    registry: Registry,
    base: LoadedBase,
    concept: Concept,
    photos: Photos,
    use: Literal["none", "stored", "auto"],
) -> Photos:
    """A mask for each of a concept's photos, as large as the photo, white on the subject.

    With `stored` a photo without one counts as a whole, with `auto` its mask is the region of its
    category's word in the attention of the base model, which must have no adapters. Decodes each
    photo once or twice, even where no masks are used; raises what that raises.
    """
    sizes = [photo.size for photo in photos]
    if use == "none":
        return Photos([])
    lacking = [i for i, image in enumerate(concept.images) if image.mask is None]
    found: dict[int, Image.Image] = {}
    if use == "auto" and lacking:
        seen = (photos[i] for i in lacking)
        found = dict(zip(lacking, regions_of_photos(base, seen, concept.category), strict=True))
    return Photos(
        [
            partial(_mask, registry, image, found.get(i), size)
            for i, (image, size) in enumerate(zip(concept.images, sizes, strict=True))
        ]
    )


def _mask(
    registry: Registry, image: ImageRecord, found: Image.Image | None, size: Size
) -> Image.Image:
    mask = found or registry.read_mask(image)
    if mask is None:
        return Image.new("L", size, 255)
    return mask.convert("L").resize(size, Image.Resampling.BILINEAR)


class MaskFinder(Protocol):
    """Finds a subject in a photo."""

    def find(self, photo: Image.Image, category: str) -> Image.Image | None:
        """Its mask, 8-bit grey of any size, white on the subject; None if there is none."""
        ...


@dataclass(frozen=True, slots=True)
class ByAttention:
    """By the attention of a base model without adapters to the category's word."""

    base: LoadedBase

    def find(self, photo: Image.Image, category: str) -> Image.Image | None:
        """See `MaskFinder`."""
        (mask,) = regions_of_photos(self.base, [photo], category)
        return unless_empty(mask)


def unless_empty(mask: Image.Image) -> Image.Image | None:
    """The mask, unless it is black all over."""
    return mask if mask.getbbox() else None


def find_masks(
    registry: Registry,
    concept: Concept,
    finder: MaskFinder,
    *,
    replace: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
) -> dict[str, Image.Image]:
    """Masks of a concept's photos that have none, by hash; with `replace` of all of them.

    Those in which the finder sees no subject are left out. No mask is larger than it needs to be:
    `SIDE` on its shorter side.
    """
    wanted = [image for image in concept.images if replace or image.mask is None]
    found: dict[str, Image.Image] = {}
    for done, image in enumerate(wanted, 1):
        photo = registry.read_photo(image, at_least=SIDE)
        photo.thumbnail((2 * SIDE, 2 * SIDE))
        if mask := finder.find(photo, concept.category):
            found[image.sha256] = mask
        if on_progress:
            on_progress(done, len(wanted))
    return found


def write_masks(
    concept: Concept, found: Mapping[str, Image.Image], folder: Path, *, replace: bool = False
) -> tuple[dict[str, Path], list[Path]]:
    """Write found masks as `FOLDER/CONCEPT/PHOTO.png`, as large as their photos.

    A file that is there is kept, unless `replace`: somebody may have painted on it. Returns the
    files by the hash of the photo, and those that were kept.
    """
    files: dict[str, Path] = {}
    kept: list[Path] = []
    taken: set[str] = set()
    for image in concept.images:
        if image.sha256 not in found:
            continue
        name = f"{Path(image.filename).stem}.png"
        is_unfit = set(name) & _ELSEWHERE or len(name.encode()) > MAX_FILE_NAME
        if is_unfit or name in taken:
            name = f"{image.sha256[:16]}.png"
        taken.add(name)
        files[image.sha256] = path = below(folder, concept.name, name)
        if path.exists() and not replace:
            kept.append(path)
            continue
        size = size_as_read(image.width, image.height)
        _write(stored_mask(found[image.sha256], size), path, folder)
    return files, kept


def _write(data: bytes, path: Path, root: Path) -> None:
    try:
        make_folder(root, path.parent)
        write_file(path, data, root=root)
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror}", hint="--out DIR") from error


def sheet_of_masks(
    registry: Registry, concept: Concept, found: Mapping[str, Image.Image], folder: Path
) -> Path:
    """Write `FOLDER/CONCEPT.png`, a sheet of the first `ON_SHEET` photos and their masks.

    Each photo stands beside itself with red outside its mask, the one in `found`, by hash, else the
    stored one. Returns the path.
    """
    rows: list[SheetRow] = []
    for image in concept.images[:ON_SHEET]:
        photo = registry.read_photo(image, at_least=SIDE)
        mask = found.get(image.sha256) or registry.read_mask(image)
        seen = [_square(each) for each in (photo, _laid_over(photo, mask))]
        how = "no mask" if mask is None else "found" if image.sha256 in found else "stored"
        rows.append(((image.filename, how), seen))
    encoded = io.BytesIO()
    contact_sheet(rows, side=_SHEET_SIDE).save(encoded, "png")
    path = below(folder, f"{concept.name}.png")
    _write(encoded.getvalue(), path, folder)
    return path


def _laid_over(photo: Image.Image, mask: Image.Image | None) -> Image.Image:
    if mask is None:
        return photo
    inside = mask.convert("L").resize(photo.size, Image.Resampling.BILINEAR)
    return Image.composite(
        photo, Image.blend(photo, Image.new("RGB", photo.size, _RED), 0.7), inside
    )


def _square(image: Image.Image) -> Image.Image:
    return ImageOps.pad(image, (_SHEET_SIDE, _SHEET_SIDE), color="white")
