"""Crops of photos: near to what turning the whole photo gave, in bounded memory, one at a time."""

import math
import random
import subprocess
import sys

import numpy as np
import pytest
from conceptry.methods.settings import Augmentation
from conceptry.training.crops import Photos, bucket_of, bucket_step, needed_side, varied_crops
from drawing import draw
from long import quick_for
from PIL import Image
from program import DEADLINE

ALWAYS_TURNED = Augmentation(crops=6, rotation_probability=1)


def turned_as_a_whole(
    photo: Image.Image, side: int, settings: Augmentation, rng: random.Random
) -> Image.Image:
    """The definition: turn the photo about its middle, mirrored at its edges, cut, then shrink."""
    if rng.random() < settings.rotation_probability:
        degrees = rng.uniform(-settings.rotation, settings.rotation)
        pad = math.ceil(0.5 * max(photo.size))
        pixels = np.pad(np.asarray(photo), ((pad, pad), (pad, pad), (0, 0)), mode="symmetric")
        turned = Image.fromarray(pixels).rotate(degrees, Image.Resampling.BILINEAR)
        photo = turned.crop((pad, pad, pad + photo.width, pad + photo.height))
    cut = round(min(photo.size) * rng.uniform(settings.smallest, 1.0))
    left = rng.randint(0, photo.width - cut)
    top = rng.randint(0, photo.height - cut)
    crop = photo.crop((left, top, left + cut, top + cut))
    crop = crop.resize((side, side), Image.Resampling.BILINEAR, reducing_gap=3.0)
    if settings.flip and rng.random() < 0.5:
        crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return crop


def apart(photo: Image.Image, side: int, settings: Augmentation) -> float:
    """The largest mean difference of a crop from its definition, of 255."""
    found = [crop.image for crop in varied_crops([photo], side, settings, seed=0)]
    expected = [
        turned_as_a_whole(photo, side, settings, random.Random(f"crop 0 {i}"))
        for i in range(settings.crops)
    ]
    pairs = zip(found, expected, strict=True)
    return max(
        float(np.abs(np.asarray(one, float) - np.asarray(other, float)).mean())
        for one, other in pairs
    )


@pytest.mark.parametrize("size", [(300, 200), (90, 400), (128, 128)])
def test_row_47_crops_that_need_no_shrinking_are_what_they_were(size: tuple[int, int]) -> None:
    assert apart(draw(1, size), 64 if min(size) <= 128 else 128, ALWAYS_TURNED) < 0.05


@pytest.mark.parametrize("side", quick_for(1, [16, 32, 48, 64]))
@pytest.mark.parametrize("size", [(601, 403), (240, 900), (512, 512)])
def test_row_47_crops_that_are_shrunk_first_are_near(size: tuple[int, int], side: int) -> None:
    assert apart(draw(2, size), side, ALWAYS_TURNED) < 4


def test_row_47_crops_that_are_not_turned_are_what_they_were() -> None:
    assert apart(draw(1, (400, 300)), 64, Augmentation(crops=6, rotation_probability=0)) == 0


@pytest.mark.parametrize("size", [(1, 1), (3, 2), (2, 400)])
def test_crops_of_the_smallest_photos_are_not_empty(size: tuple[int, int]) -> None:
    for turned in (0.0, 1.0):
        settings = Augmentation(crops=20, smallest=0.1, rotation_probability=turned)
        found = varied_crops([Image.new("RGB", size, "red")], 8, settings, seed=0)
        assert {each.image.getpixel((4, 4)) for each in found} == {(255, 0, 0)}


def test_row_37_each_photo_is_decoded_once_and_alone() -> None:
    asked: list[int] = []

    def reader(number: int) -> Image.Image:
        asked.append(number)
        return draw(number, (96, 96))

    settings = Augmentation(crops=10)
    lazy = Photos([lambda i=i: reader(i) for i in range(4)])
    found = varied_crops(lazy, 32, settings, seed=0)
    assert asked == [0, 1, 2, 3]
    plain = varied_crops([draw(i, (96, 96)) for i in range(4)], 32, settings, seed=0)
    assert [crop.image.tobytes() for crop in found] == [crop.image.tobytes() for crop in plain]
    assert len(lazy[1:3]) == 2


def test_row_37_photos_are_read_as_large_as_crops_need_them() -> None:
    assert needed_side(512, Augmentation(smallest=0.8)) == 1280


@pytest.mark.skipif(sys.platform != "linux", reason="no /proc here")
@pytest.mark.parametrize(
    "size",
    [(16_000, 1_000), (1_000, 16_000), (9_400, 9_400)],
)
@pytest.mark.long
def test_row_47_a_crop_takes_bounded_memory(size: tuple[int, int]) -> None:
    program = f"""
import resource
from PIL import Image
from conceptry.methods.settings import Augmentation
from conceptry.training.crops import varied_crops
photo = Image.new("RGB", {size}, "red")
taken = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (taken + (300 << 20),) * 2)
settings = Augmentation(crops=4, rotation_probability=1)
crops = varied_crops([photo], 512, settings, 0)
assert all(crop.image.getextrema() == ((255, 255), (0, 0), (0, 0)) for crop in crops)
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    assert done.returncode == 0, done.stderr


# --- crops near a photo's own shape ---------------------------------------------------------------

WHOLE = Augmentation(crops=1, rotation_probability=0, flip=False, smallest=1)


@pytest.mark.parametrize(
    ("side", "factor", "step"), [(1024, 8, 64), (512, 8, 64), (128, 8, 16), (64, 4, 8), (16, 2, 2)]
)
def test_shapes_leave_out_little_and_are_large(side: int, factor: int, step: int) -> None:
    assert bucket_step(side, factor) == step
    for aspect in np.geomspace(1 / 6, 6, 101):
        size = (round(4000 * math.sqrt(aspect)), round(4000 / math.sqrt(aspect)))
        width, height = bucket_of(size, side, step)
        assert width % step == height % step == 0
        assert width * height <= side**2
        largest = min(size[0] / width, size[1] / height)
        assert width * height * largest**2 >= 0.9 * size[0] * size[1]
        if 1 / 2 <= aspect <= 2:
            assert width * height >= 0.75 * side**2


@pytest.mark.parametrize(
    ("size", "shape"),
    [
        ((700, 700), (512, 512)),
        ((4000, 3000), (576, 448)),
        ((3000, 4000), (448, 576)),
        ((6000, 4000), (576, 384)),
        ((1920, 1080), (640, 384)),
        ((30000, 100), (4096, 64)),
    ],
)
def test_shapes_of_photos_as_cameras_take_them(
    size: tuple[int, int], shape: tuple[int, int]
) -> None:
    assert bucket_of(size, 512, 64) == shape


def test_a_crop_of_its_own_shape_is_the_photo() -> None:
    photo = draw(5, (192, 128))
    (crop,) = varied_crops([photo], 64, WHOLE, seed=0, step=8)
    assert crop.image.size == (72, 48)
    assert crop.corner == (0, 0)
    expected = photo.resize((72, 48), Image.Resampling.BILINEAR, reducing_gap=3.0)
    assert crop.image.tobytes() == expected.tobytes()


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("size", [(600, 400), (400, 600)])
def test_what_sdxl_is_told_is_what_diffusers_tells_it(size: tuple[int, int], flip: bool) -> None:
    """Its script shrinks to the shorter side, mirrors, then crops, and tells where."""
    photo, side = draw(6, size), 64
    settings = Augmentation(crops=8, rotation_probability=0, flip=flip, smallest=1)
    seen = set[tuple[int, int]]()
    for crop in varied_crops([photo], side, settings, seed=1):
        scale = side / min(size)
        shrunk = photo.resize((round(size[0] * scale), round(size[1] * scale)))
        turned = [shrunk, shrunk.transpose(Image.Transpose.FLIP_LEFT_RIGHT)][: 1 + flip]
        left, top = crop.corner
        box = (left, top, left + side, top + side)
        differences = [
            np.abs(np.asarray(each.crop(box), float) - np.asarray(crop.image, float)).mean()
            for each in turned
        ]
        assert min(differences) < 6
        width, height = size
        assert crop.sizes(size) == [height, width, top, left, side, side]
        seen.add(crop.corner)
    assert len(seen) > 2
    assert all(min(corner) == 0 for corner in seen)
