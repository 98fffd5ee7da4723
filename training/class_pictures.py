"""Class pictures for prior preservation: drawn once, and kept for all concepts of a category."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from PIL import Image

from ..adapters.adapter import injected
from ..adapters.prompt_encoding import class_prompt
from ..adapters.references import References
from ..generation.pictures import kept_picture, replace_picture
from ..generation.request import SamplingSettings
from ..generation.sampler import draw
from ..models.loading import LoadedBase
from ..models.references import SHARE
from ..models.seeds import seed_of
from ..registry import Registry
from ..registry.errors import StorageError, TrainingInterrupted
from ..registry.hashes import sha256_of, sha256_of_json
from ..registry.running import CLASS_PICTURES
from .callbacks import Hooks
from .crops import Photos

CLASS_PICTURES_AT_ONCE = 8


def class_pictures(
    registry: Registry,
    base: LoadedBase,
    category: str,
    count: int,
    *,
    after: References | None = None,
    hooks: Hooks | None = None,
) -> Photos:
    """`count` pictures of a category for prior preservation, drawn once as the base model draws.

    Those `after` references, without their masks, are DreamTuner's regular images: alike in all but
    the subject (section 3.3), and described as the first of these is, by its caption if it has one,
    in words of the category. References lead as many of their steps as is published, whatever share
    they lead of other pictures. All concepts of the category share the others in the registry's
    cache; the same batches are drawn whatever `count` is, and after an interruption. Raises
    `TrainingInterrupted` when `should_stop` is true, and `StorageError` if the disk refuses, or if
    one is gone when it is read; finished pictures are kept.
    """
    hooks = hooks or Hooks()
    whole = (after or References(())).unmasked().leading(SHARE).in_words(category)
    prompt, settings = class_prompt(category), SamplingSettings.for_base(base.base)
    drawn_with = sha256_of_json(settings.to_mapping())
    if whole.references and (described := whole.references[0].prompt) != prompt:
        prompt = described
        drawn_with = sha256_of_json([settings.to_mapping(), prompt])
    drawn_by = sha256_of_json([base.sha256, base.configuration_sha256])
    kind = f"{drawn_by[:16]}{whole.fingerprint()[:16]}{drawn_with[:8]}"
    folder = registry.cache_folder(CLASS_PICTURES, _class_folder(kind, category))
    size = (base.backbone.size, base.backbone.size)
    readers: list[Callable[[], Image.Image]] = []
    for first in range(0, count, CLASS_PICTURES_AT_ONCE):
        numbers = range(first, first + CLASS_PICTURES_AT_ONCE)
        paths = [folder / f"{i:05}.png" for i in numbers]
        found = [kept_picture(folder, path, size) for path in paths]
        if not all(found):
            seeds = [seed_of(i, "class picture") % (1 << 32) for i in numbers]
            with injected(base.backbone, [whole]):
                found = _drawn(base, prompt, seeds, settings)
            _keep_pictures(found, paths)
            done = min(first + len(found), count)
            hooks.on_class_picture(done, count)
            if hooks.should_stop():
                raise TrainingInterrupted(f"stopped after class picture {done} of {count}")
        readers += [partial(_class_picture, folder, path, size) for path in paths]
    return Photos(readers[:count])


def _drawn(
    base: LoadedBase, prompt: str, seeds: Sequence[int], settings: SamplingSettings
) -> list[Image.Image]:
    """A picture from each seed: all at once or, where a GPU has no room for that, in parts."""
    batch = len(seeds)
    while True:
        try:
            return [each.image for each in draw(base, prompt, seeds, settings, batch=batch)]
        except torch.OutOfMemoryError:
            if batch == 1:
                raise
        batch //= 2
        torch.cuda.empty_cache()


def _class_picture(folder: Path, path: Path, size: tuple[int, int]) -> Image.Image:
    picture = kept_picture(folder, path, size)
    if picture is None:
        raise StorageError(f"{path} is gone", hint="train again, which draws it again")
    return picture


def _class_folder(base: str, category: str) -> str:
    """A folder name of bounded length; categories may be longer."""
    name = category if len(category.encode()) < 200 else sha256_of(category.encode())
    return f"{base}-{name}"


def _keep_pictures(pictures: Sequence[Image.Image | None], paths: Sequence[Path]) -> None:
    try:
        for picture, path in zip(pictures, paths, strict=True):
            assert picture is not None
            replace_picture(picture, path, root=path.parent)
    except OSError as error:
        raise StorageError(f"cannot write {paths[0].parent}: {error}", hint="make room") from error
