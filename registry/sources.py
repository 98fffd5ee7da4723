"""From what the user names (files, folders, globs) to a list of photos with captions and masks."""

import contextlib
import difflib
import glob
import json
import os
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from .errors import (
    InvalidInput,
    NotFound,
    quoted,
)
from .files import open_given
from .images import SUFFIXES
from .names import check_text
from .records import PhotoWarning

CAPTION_SUFFIXES = (".txt", ".caption")
METADATA = "metadata.jsonl"

_UNREAD_METADATA = "metadata.csv"
"""Another form of it, of the datasets library."""
_NO_CAPTIONS = ("readme", "license", "licence")
"""Texts that may lie in any folder."""
_METADATA_KEYS = ("text", "caption", "prompt")
_MASK_LABEL = "-masklabel"
_TEXT_SUFFIXES = (*CAPTION_SUFFIXES, ".json", ".jsonl", ".csv", ".md", ".yaml", ".yml", ".toml")
_MAX_TEXT_BYTES = 16 << 20
_SHOWN = 4
"""Messages list at most this many names."""


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
    literally is expanded (`**` descends). The caption of `01.jpg` is in `01.txt`, `01.caption` or
    `01.jpg.txt` beside it, or in its folder's `metadata.jsonl`, else `caption`. Its mask is the
    picture `01`, `01-masklabel` or `01.jpg` plus any photo suffix in the folder `masks`, else
    `01-masklabel` beside it.

    Raises `NotFound` for a path that does not exist, `InvalidInput` for a folder or pattern with
    no photo, for captions that cannot be read, and for masks that fit no photo or several.
    """
    found: dict[Path, None] = {}
    for path in paths:
        found.update(dict.fromkeys(_expand(path)))
    if not found:
        raise InvalidInput("no photos were named", hint="concept add NAME PHOTO… --category WORD")
    beside = _beside(found)
    files = [path for path in found if path not in beside.masks and path not in beside.captions]
    photo_masks = {photo: mask for mask, photo in beside.masks.items()}
    if masks is not None:
        matched = _match_masks(files, _at_home(masks))
        files = [path for path in files if path not in matched.by_name]
        photo_masks |= matched.masks
    if caption is not None:
        caption = check_text(caption, "caption")
    captions = _Captions()
    return [
        Source(path, captions.of(path) or caption or None, photo_masks.get(path)) for path in files
    ]


def passed_over(
    paths: Iterable[str | os.PathLike[str]],
    found: Sequence[Source],
    *,
    masks: str | os.PathLike[str] | None = None,
) -> list[PhotoWarning]:
    """Warnings about what is not in `found`: files, subfolders, unused captions and masks."""
    warnings: list[PhotoWarning] = []
    mask_folder = None if masks is None else _at_home(masks)
    for folder in dict.fromkeys(map(_at_home, paths)):
        if not os.path.isdir(folder):
            continue
        files = [path.name for path in _entries(folder) if _is_left_out(path)]
        if files:
            many = f"{len(files)} files are" if len(files) > 1 else "a file is"
            warnings.append(
                PhotoWarning(
                    "left_out", str(folder), f"{many} left out, as no photo: {listed(files)}"
                )
            )
        below = [each for each in _folders_with_photos(folder) if each != mask_folder]
        if below:
            names = listed([f"{each.name}/" for each in below])
            warnings.append(
                PhotoWarning("left_out", str(folder), f"has more photos, left out, in {names}")
            )
        if texts := _unused_captions(folder):
            message = f"has captions that no photo takes: {listed(texts)}"
            warnings.append(PhotoWarning("unused_captions", str(folder), message))
    if mask_folder is not None:
        unused = _match_masks([source.path for source in found], mask_folder).unused
        if unused:
            fit = "fit no photo" if len(unused) > 1 else "fits no photo"
            names = listed([mask.name for mask in unused])
            warnings.append(PhotoWarning("unused_masks", str(mask_folder), f"{names} {fit}"))
    return warnings


def listed(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


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
    return f"did you mean {path.parent / near[0]}?" if near else f"ls {quoted(path.parent)}"


def _photos_in(folder: Path) -> list[Path]:
    photos = [path for path in _entries(folder) if _is_photo(path)]
    if photos:
        return photos
    left_out = [path.name for path in _entries(folder) if _is_left_out(path)]
    why = f": {listed(left_out)} cannot be read" if left_out else ""
    deeper = _folders_with_photos(folder)
    raise InvalidInput(
        f"there is no photo in the folder {folder}{why}",
        hint=f"its folders have some: concept add NAME {quoted(deeper[0])}" if deeper else None,
    )


def _entries(folder: Path) -> list[Path]:
    """What is in a folder, by name."""
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        raise InvalidInput(f"cannot read the folder {folder}: {error.strerror}") from error


def _folders_with_photos(folder: Path) -> list[Path]:
    """Those directly in a folder."""
    found: list[Path] = []
    for each in _entries(folder):
        if each.is_dir() and not each.name.startswith("."):
            with contextlib.suppress(InvalidInput):
                if any(_is_photo(path) for path in _entries(each)):
                    found.append(each)
    return found


def _is_photo(path: Path) -> bool:
    hidden = path.name.startswith(".")
    return path.suffix.lower() in SUFFIXES and not hidden and path.is_file()


def _is_left_out(path: Path) -> bool:
    """Whether a person may take a file for a photo that is none here."""
    hidden = path.name.startswith(".") or path.name.lower() in ("thumbs.db", "desktop.ini")
    is_text = path.suffix.lower() in _TEXT_SUFFIXES
    return path.is_file() and not (hidden or is_text or _is_photo(path))


# --- captions -------------------------------------------------------------------------------------


class _Captions:
    """Finds captions of photos; each folder is looked through once."""

    def __init__(self) -> None:
        self._texts: dict[Path, dict[str, list[Path]]] = {}
        self._described: dict[Path, dict[str, str]] = {}

    def of(self, photo: Path) -> str | None:
        """The caption that is written beside a photo."""
        folder = photo.parent
        if folder not in self._texts:
            self._texts[folder] = _caption_files(folder)
            metadata = folder / METADATA
            rows = _read_metadata(metadata) if metadata.is_file() else ()
            self._described[folder] = {
                name: caption for _, name, caption in rows if caption is not None
            }
        texts = self._texts[folder]
        for path in [*texts.get(photo.stem, []), *texts.get(photo.name, [])]:
            if caption := check_text(_read_text(path), f"caption in {path}"):
                return caption
        return self._described[folder].get(photo.name)


def _caption_files(folder: Path) -> dict[str, list[Path]]:
    """Text files by their stem, those in front of others first; suffixes in any case."""
    found: dict[str, list[Path]] = {}
    try:
        paths = [path for path in folder.iterdir() if path.suffix.lower() in CAPTION_SUFFIXES]
    except OSError:  # files may be readable where their folder is not
        return found
    for path in sorted(paths, key=lambda path: (CAPTION_SUFFIXES.index(path.suffix.lower()), path)):
        if path.is_file():
            found.setdefault(path.stem, []).append(path)
    return found


def _read_text(path: Path) -> str:
    try:
        with open_given(path) as file:
            data = file.read(_MAX_TEXT_BYTES + 1)
        if len(data) > _MAX_TEXT_BYTES:
            raise InvalidInput(f"{path} has more than {_MAX_TEXT_BYTES:,} bytes, the limit")
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise InvalidInput(f"the caption file {path} is not UTF-8 text") from None
    except OSError as error:
        raise InvalidInput(f"cannot read {path}: {error.strerror}") from error


def _read_metadata(path: Path) -> Iterator[tuple[int, str, str | None]]:
    """Line, file name and caption of each row of an image folder as the datasets library has it."""
    for number, line in enumerate(_read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict):
            raise InvalidInput(f"line {number} of {path} is not a JSON object")
        captions = [row[key] for key in _METADATA_KEYS if isinstance(row.get(key), str)]
        name = row["file_name"] if isinstance(row.get("file_name"), str) else ""
        caption = check_text(captions[0], f"caption in {path}") if name and captions else None
        yield number, name.removeprefix("./"), caption


def _unused_captions(folder: Path) -> list[str]:
    """Texts in a folder that fit none of its photos, and rows without a photo or a caption."""
    entries = [path for path in _entries(folder) if path.is_file()]
    photos = [path for path in entries if _is_photo(path)]
    stems = {name for photo in photos for name in (photo.stem, photo.name)}
    unused = [
        path.name
        for path in entries
        if path.suffix.lower() in CAPTION_SUFFIXES
        and path.stem not in stems
        and path.stem.lower() not in _NO_CAPTIONS
        and not path.name.startswith(".")
    ]
    names = {path.name for path in photos}
    metadata = folder / METADATA
    rows = _read_metadata(metadata) if metadata in entries else ()
    unused += [
        f"line {number} of {METADATA}"
        for number, name, caption in rows
        if name not in names or caption is None
    ]
    return [*unused, _UNREAD_METADATA] if folder / _UNREAD_METADATA in entries else unused


# --- masks ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Beside:
    """What is no photo but belongs to a named one: masks, by their photo, and named captions."""

    masks: dict[Path, Path]
    captions: set[Path]


def _beside(files: Collection[Path]) -> _Beside:
    by_stem = {path.with_suffix(""): path for path in files if path.suffix.lower() in SUFFIXES}
    masks = {
        path: by_stem[photo]
        for path in [*files, *(label for photo in by_stem.values() for label in _labels_of(photo))]
        if path.stem.endswith(_MASK_LABEL)
        and (photo := path.with_name(path.stem.removesuffix(_MASK_LABEL))) in by_stem
    }
    photos = {*by_stem, *files}
    captions = {
        path
        for path in files
        if path.name == METADATA
        or (path.suffix.lower() in CAPTION_SUFFIXES and path.with_suffix("") in photos)
    }
    return _Beside(masks, captions if by_stem else set())


def _labels_of(photo: Path) -> Iterator[Path]:
    """Masks that lie beside a photo."""
    for suffix in SUFFIXES:
        label = photo.with_name(f"{photo.stem}{_MASK_LABEL}{suffix}")
        if label.is_file():
            yield label


@dataclass(frozen=True, slots=True)
class _Matched:
    """Masks by their photo, those of them that only a mask is called like, and those of none."""

    masks: dict[Path, Path]
    by_name: set[Path]
    unused: list[Path]


def _match_masks(photos: Sequence[Path], folder: Path) -> _Matched:
    if not os.path.isdir(folder):
        raise NotFound(f"the mask folder {folder} does not exist")
    by_name: defaultdict[str, list[Path]] = defaultdict(list)
    for photo in photos:
        for name in {photo.stem, photo.name, photo.stem + _MASK_LABEL}:
            by_name[name].append(photo)
    found: dict[Path, Path] = {}
    explicit: set[Path] = set()
    unused: list[Path] = []
    for mask in _photos_in(folder):
        fits = [photo for photo in by_name.get(mask.stem, []) if photo != mask]
        if not fits:
            if mask not in photos:
                unused.append(mask)
            continue
        if len(fits) > 1 or fits[0] in found:
            raise InvalidInput(f"the mask {mask} fits more than one photo, or one photo has two")
        found[fits[0]] = mask
        if mask in photos and mask.stem != fits[0].stem:
            explicit.add(mask)
    if not found:
        raise InvalidInput(
            f"no mask in {folder} bears the name of a photo",
            hint="the mask of 01.jpg is called 01.png",
        )
    return _Matched(found, explicit, unused)
