"""From what the user names (files, folders, globs) to a list of photos with captions and masks."""

import difflib
import glob
import os
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from .errors import InvalidInput, NotFound
from .images import SUFFIXES
from .names import check_text


@dataclass(frozen=True, slots=True)
class Source:
    """A photo file to add."""

    path: Path
    caption: str | None = None
    mask: Path | None = None


def collect(
    paths: Iterable[str | os.PathLike[str]],
    *,
    caption: str | None = None,
    masks: str | os.PathLike[str] | None = None,
) -> list[Source]:
    """Find the photos in `paths`, each once, with their captions and masks.

    A folder stands for the photos directly in it, sorted by name; a pattern that no file bears
    literally is expanded (`**` descends). A `.txt` file beside a photo is its caption, else
    `caption`. The mask of `01.jpg` is the picture in the folder `masks` called `01` plus any
    photo suffix.

    Raises `NotFound` for a path that does not exist, `InvalidInput` for a folder or pattern with
    no photo and for masks that fit no photo or several.
    """
    files: dict[Path, None] = {}
    for path in paths:
        files.update(dict.fromkeys(_expand(path)))
    if not files:
        raise InvalidInput("no photos were named", hint="concept add NAME PHOTO… --category WORD")
    found = _masks_for(list(files), _at_home(masks)) if masks is not None else {}
    if caption is not None:
        caption = check_text(caption, "caption")
    return [
        Source(path, _sidecar_caption(path) or caption or None, found.get(path)) for path in files
    ]


def _expand(path: str | os.PathLike[str]) -> list[Path]:
    named = _at_home(path)
    if os.path.isdir(named):
        return _photos_in(named)
    if os.path.exists(named):
        if not named.is_file():
            raise InvalidInput(f"{named} is not a regular file")
        return [named]
    if glob.has_magic(str(named)):
        matches = sorted(Path(match) for match in glob.glob(str(named), recursive=True))
        photos = [match for match in matches if _is_photo(match)]
        if photos:
            return photos
        raise NotFound(f'no photo matches "{path}"', hint=_near(named))
    raise NotFound(f"{path} does not exist", hint=_near(named))


def _at_home(path: str | os.PathLike[str]) -> Path:
    """A path with `~` expanded, unless something is called just that."""
    return Path(path if os.path.exists(path) else os.path.expanduser(path))


def _near(path: Path) -> str:
    """What to type instead of a path that does not exist."""
    while not os.path.isdir(path.parent):
        path = path.parent
    try:
        siblings = os.listdir(path.parent)
    except OSError:
        siblings = []
    near = difflib.get_close_matches(path.name, siblings, n=1)
    return f"did you mean {path.parent / near[0]}?" if near else f"ls {path.parent}"


def _photos_in(folder: Path) -> list[Path]:
    photos = sorted(path for path in folder.iterdir() if _is_photo(path))
    if not photos:
        raise InvalidInput(f"there is no photo in the folder {folder}")
    return photos


def _is_photo(path: Path) -> bool:
    hidden = path.name.startswith(".")
    return path.suffix.lower() in SUFFIXES and not hidden and path.is_file()


def _sidecar_caption(photo: Path) -> str | None:
    sidecar = photo.with_suffix(".txt")
    if not sidecar.is_file():
        return None
    try:
        text = sidecar.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise InvalidInput(f"the caption file {sidecar} is not UTF-8 text") from None
    except OSError as error:
        raise InvalidInput(f"cannot read {sidecar}: {error.strerror}") from error
    return check_text(text, f"caption in {sidecar}") or None


def _masks_for(photos: list[Path], folder: Path) -> dict[Path, Path]:
    if not os.path.isdir(folder):
        raise NotFound(f"the mask folder {folder} does not exist")
    by_stem: defaultdict[str, list[Path]] = defaultdict(list)
    for photo in photos:
        by_stem[photo.stem].append(photo)
    found: dict[Path, Path] = {}
    for mask in _photos_in(folder):
        candidates = by_stem.get(mask.stem, [])
        if len(candidates) > 1 or (candidates and candidates[0] in found):
            raise InvalidInput(f"the mask {mask} fits more than one photo, or one photo has two")
        if candidates:
            found[candidates[0]] = mask
    if not found:
        raise InvalidInput(
            f"no mask in {folder} bears the name of a photo",
            hint="the mask of 01.jpg is called 01.png",
        )
    return found
