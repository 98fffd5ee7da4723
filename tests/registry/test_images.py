"""Reading photos and masks: formats, rotation, transparency, sharpness and likeness."""

import io
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from conceptry.registry import InvalidImage, images
from drawing import draw, draw_bytes
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageFilter, features

NEEDS_AVIF = pytest.mark.skipif(not features.check("avif"), reason="Pillow without AVIF")
FORMATS = ["JPEG", "PNG", "WEBP", "BMP", "TIFF", pytest.param("AVIF", marks=NEEDS_AVIF)]

# What a camera held in each position stores of an upright picture.
STORED_FOR = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


@pytest.fixture(autouse=True)
def _strict() -> Iterator[None]:
    with images.strict_decoding():
        yield


def saved(image: Image.Image, format: str = "PNG", **options: object) -> bytes:  # noqa: A002
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def held(upright: Image.Image, orientation: int) -> tuple[Image.Image, Image.Exif]:
    """The picture as stored, and the EXIF that says how to turn it."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    turn = STORED_FOR[orientation]
    return (upright if turn is None else upright.transpose(turn)), exif


def difference(one: Image.Image, other: Image.Image) -> float:
    """Mean absolute difference of pixels, in 0..255."""
    assert (one.size, one.mode) == (other.size, other.mode)
    return float(np.abs(np.asarray(one, np.float32) - np.asarray(other, np.float32)).mean())


def opened_mask(data: bytes | None) -> Image.Image:
    assert data is not None
    return images.open_stored_mask(data)


# --- formats ------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", FORMATS)
def test_a_photo_of_each_format_is_read(format: str) -> None:  # noqa: A002
    photo = draw(1, (96, 64))
    data = saved(photo, format, quality=95)
    inspected = images.inspect(data, "photo")
    assert (inspected.format, inspected.width, inspected.height) == (format, 96, 64)
    assert (inspected.frames, inspected.alpha) == (1, None)
    assert difference(images.read_photo(data), photo) < (0.01 if format in "PNG BMP TIFF" else 6)


def test_a_heic_photo_is_read_where_pillow_can() -> None:
    pytest.importorskip("pillow_heif")
    data = saved(draw(1, (96, 64)), "HEIF")
    assert images.inspect(data, "photo").format == "HEIF"


@pytest.mark.parametrize("orientation", STORED_FOR)
@pytest.mark.parametrize(
    "format", ["JPEG", "PNG", "WEBP", "TIFF", pytest.param("AVIF", marks=NEEDS_AVIF)]
)
def test_exif_rotation_makes_a_photo_upright(format: str, orientation: int) -> None:  # noqa: A002
    upright = draw(2, (96, 64))
    stored, exif = held(upright, orientation)
    data = saved(stored, format, exif=exif, quality=95)
    inspected = images.inspect(data, "photo")
    assert (inspected.width, inspected.height) == (96, 64)
    assert difference(images.read_photo(data), upright) < 6


@pytest.mark.parametrize("orientation", [3, 6])
def test_the_perceptual_hash_is_of_the_upright_photo(orientation: int) -> None:
    upright = draw(3)
    stored, exif = held(upright, orientation)
    turned = images.inspect(saved(stored, exif=exif), "photo")
    assert turned.phash == images.inspect(saved(upright), "photo").phash


def test_an_orientation_that_is_none_is_ignored() -> None:
    exif = Image.Exif()
    exif[0x0112] = 99
    assert images.inspect(saved(draw(1, (96, 64)), exif=exif), "photo").width == 96


@pytest.mark.parametrize("mode", ["L", "LA", "P", "1", "CMYK", "YCbCr"])
def test_a_photo_of_any_mode_is_read_as_rgb(mode: str) -> None:
    format = "TIFF" if mode in ("CMYK", "YCbCr") else "PNG"  # noqa: A001
    data = saved(draw(4, (96, 64)).convert(mode), format)
    assert images.read_photo(data).mode == "RGB"
    assert images.inspect(data, "photo").width == 96


def test_a_photo_in_colours_that_pillow_cannot_convert_is_refused() -> None:
    data = saved(Image.merge("LAB", draw(4, (96, 64)).split()), "TIFF")
    with pytest.raises(InvalidImage, match=r"lab\.tif"):
        images.inspect(data, "lab.tif")


@pytest.mark.parametrize("format", ["JPEG", "TIFF"])
def test_cmyk_keeps_its_colours(format: str) -> None:  # noqa: A002
    colours = draw(4, (96, 64))
    data = saved(colours.convert("CMYK"), format)
    assert difference(images.read_photo(data), colours) < 8


def grey_ramp() -> np.ndarray:
    return np.linspace(0, 65535, 64 * 96).reshape(64, 96).astype(np.uint16)


@pytest.mark.parametrize(
    "data",
    [
        saved(Image.fromarray(grey_ramp()), "PNG"),
        saved(Image.fromarray(grey_ramp()), "TIFF"),
        saved(Image.fromarray(grey_ramp().astype(np.int32)), "TIFF"),
        saved(Image.fromarray(grey_ramp()), "PNG", transparency=65535),
        saved(Image.fromarray(grey_ramp() / np.float32(257)), "TIFF"),
        saved(Image.fromarray(grey_ramp() / np.float32(65535)), "TIFF"),
    ],
    ids=["png", "tiff", "tiff32", "png-transparent", "float-255", "float-1"],
)
def test_deep_grey_is_scaled_not_clipped(data: bytes) -> None:
    grey = np.asarray(images.read_photo(data))[:, :, 0]
    assert np.abs(grey - grey_ramp() / 257).max() <= 1


def test_a_float_photo_with_nan_is_refused() -> None:
    values = grey_ramp().astype(np.float32)
    values[5, 5] = np.nan
    with pytest.raises(InvalidImage):
        images.inspect(saved(Image.fromarray(values), "TIFF"), "photo.tif")


@pytest.mark.parametrize("format", ["PNG", "WEBP", "TIFF"])
def test_of_several_frames_the_first_is_read(format: str) -> None:  # noqa: A002
    first, second = draw(1, (96, 64)), draw(2, (96, 64))
    options = {"lossless": True} if format == "WEBP" else {}
    data = saved(first, format, save_all=True, append_images=[second], **options)
    assert images.inspect(data, "photo").frames == 2
    assert difference(images.read_photo(data), first) < 0.01


def test_the_preview_in_a_camera_jpeg_is_no_second_frame() -> None:
    data = saved(draw(1), "MPO", save_all=True, append_images=[draw(1, (64, 64))])
    assert images.inspect(data, "photo").frames == 1


# --- transparency -------------------------------------------------------------------------------


def with_alpha(photo: Image.Image, alpha: np.ndarray) -> Image.Image:
    result = photo.copy()
    result.putalpha(Image.fromarray(alpha))
    return result


def half_opaque(width: int = 96, height: int = 64) -> np.ndarray:
    alpha = np.zeros((height, width), np.uint8)
    alpha[:, : width // 2] = 255
    alpha[0, 0] = 7
    return alpha


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("format", ["PNG", "WEBP", "TIFF", pytest.param("AVIF", marks=NEEDS_AVIF)])
def test_an_alpha_channel_becomes_the_mask(format: str, mode: str) -> None:  # noqa: A002
    photo = with_alpha(draw(5, (96, 64), mode), half_opaque())
    options = {"quality": 100} if format == "AVIF" else {}
    mask = opened_mask(images.inspect(saved(photo, format, **options), "photo").alpha)
    assert (mask.mode, mask.format) == ("L", "PNG")
    assert difference(mask, Image.fromarray(half_opaque())) < 1


def test_the_mask_of_a_turned_photo_is_upright() -> None:
    upright = with_alpha(draw(5, (96, 64)), half_opaque())
    stored, exif = held(upright, 6)
    mask = opened_mask(images.inspect(saved(stored, exif=exif), "photo").alpha)
    assert difference(mask, Image.fromarray(half_opaque())) == 0


def test_a_transparent_colour_of_a_palette_becomes_the_mask() -> None:
    squares = np.zeros((64, 96), np.uint8)
    squares[:, 48:] = 1
    photo = Image.new("P", (96, 64))
    photo.putdata(squares.ravel().tolist())
    photo.putpalette([255, 0, 0, 0, 255, 0])
    data = saved(photo, "PNG", transparency=1)
    mask = np.asarray(opened_mask(images.inspect(data, "photo").alpha))
    assert (mask == np.where(squares == 1, 0, 255)).all()
    assert images.read_photo(data).getpixel((0, 0)) == (255, 0, 0)
    assert images.read_photo(data).getpixel((95, 0)) == (255, 255, 255)


def test_a_photo_that_is_opaque_all_over_has_no_mask() -> None:
    opaque = with_alpha(draw(5, (96, 64)), np.full((64, 96), 255, np.uint8))
    assert images.inspect(saved(opaque), "photo").alpha is None


def test_a_photo_that_is_transparent_all_over_is_refused() -> None:
    nothing = with_alpha(draw(5, (96, 64)), np.zeros((64, 96), np.uint8))
    with pytest.raises(InvalidImage, match=r"ghost\.png is fully transparent"):
        images.inspect(saved(nothing), "ghost.png")


def test_what_is_transparent_becomes_white() -> None:
    photo = Image.new("RGBA", (4, 1), (0, 0, 0, 0))
    photo.putpixel((1, 0), (10, 20, 30, 255))
    photo.putpixel((2, 0), (0, 0, 0, 128))
    read = images.read_photo(saved(photo))
    assert read.getpixel((0, 0)) == (255, 255, 255)
    assert read.getpixel((1, 0)) == (10, 20, 30)
    assert read.getpixel((2, 0)) == (127, 127, 127)


# --- masks --------------------------------------------------------------------------------------


def mask_image(width: int = 96, height: int = 64) -> Image.Image:
    return Image.fromarray(half_opaque(width, height))


def test_a_mask_of_the_photos_size_is_taken_as_it_is() -> None:
    mask = opened_mask(images.read_mask(saved(mask_image()), "mask.png", (96, 64)))
    assert difference(mask, mask_image()) == 0


@pytest.mark.parametrize("mode", ["1", "RGB", "P", "I;16"])
def test_a_mask_of_any_mode_becomes_grey(mode: str) -> None:
    hard = mask_image().point([0] * 128 + [255] * 128)
    stored = (
        Image.fromarray(np.asarray(hard, np.uint16) * 257) if mode == "I;16" else hard.convert(mode)
    )
    mask = opened_mask(images.read_mask(saved(stored), "mask.png", (96, 64)))
    assert difference(mask, hard) == 0


@pytest.mark.parametrize("size", [(48, 32), (192, 128), (97, 64), (24, 16)])
def test_a_mask_of_another_size_is_resized(size: tuple[int, int]) -> None:
    data = images.read_mask(saved(mask_image(*size)), "mask.png", (96, 64))
    assert images.is_stored_mask(data, (96, 64))
    assert difference(opened_mask(data), mask_image()) < 8


@pytest.mark.parametrize("size", [(64, 96), (96, 96), (96, 62), (48, 34), (100, 64)])
def test_a_mask_of_other_proportions_is_refused(size: tuple[int, int]) -> None:
    with pytest.raises(InvalidImage, match=r"the mask m.png is \d+x\d+, its photo 96x64"):
        images.read_mask(saved(mask_image(*size)), "m.png", (96, 64))


def test_a_black_mask_is_refused() -> None:
    with pytest.raises(InvalidImage, match=r"the mask m\.png is black all over"):
        images.read_mask(saved(Image.new("L", (96, 64))), "m.png", (96, 64))


def test_a_mask_with_transparency_counts_by_its_alpha_channel() -> None:
    cut_out = with_alpha(draw(6, (96, 64)), half_opaque())
    mask = opened_mask(images.read_mask(saved(cut_out), "m.png", (96, 64)))
    assert difference(mask, mask_image()) == 0


def test_a_mask_that_is_opaque_all_over_counts_by_its_grey() -> None:
    opaque = with_alpha(mask_image().convert("RGB"), np.full((64, 96), 255, np.uint8))
    mask = opened_mask(images.read_mask(saved(opaque), "m.png", (96, 64)))
    assert difference(mask, mask_image()) == 0


def test_exif_rotation_turns_a_mask_too() -> None:
    stored, exif = held(mask_image(), 6)
    mask = opened_mask(images.read_mask(saved(stored, exif=exif), "m.png", (96, 64)))
    assert difference(mask, mask_image()) == 0


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"junk",
        saved(mask_image(), "JPEG"),
        saved(mask_image().convert("RGB")),
        saved(mask_image(64, 96)),
        saved(mask_image())[:60],
    ],
    ids=["empty", "junk", "jpeg", "rgb", "turned", "truncated"],
)
def test_only_what_read_mask_makes_is_a_stored_mask(data: bytes) -> None:
    assert not images.is_stored_mask(data, (96, 64))


# --- sharpness ----------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
def test_blur_separates_sharp_from_blurred(seed: int) -> None:
    sharp = draw(seed, (800, 600))
    blurred = sharp.filter(ImageFilter.GaussianBlur(6))
    assert images.inspect(saved(sharp), "photo").blur < 0.4
    assert images.inspect(saved(blurred), "photo").blur > images.BLURRED


def test_blur_grows_with_blurring() -> None:
    blurs = [
        images.inspect(saved(draw(1).filter(ImageFilter.GaussianBlur(radius))), "photo").blur
        for radius in (0, 1, 2, 4)
    ]
    assert blurs == sorted(blurs)


def naive_blur_effect(grey: np.ndarray, kernel: int) -> float:
    """Crete et al. 2007, pixel by pixel."""
    height, width = grey.shape
    results = []
    for vertical in (True, False):
        before = lost = 0.0
        for y in range(height):
            for x in range(width):
                dy, dx = (1, 0) if vertical else (0, 1)
                if y + dy == height or x + dx == width:
                    continue
                sharp = abs(grey[y + dy, x + dx] - grey[y, x])
                means = [
                    np.mean(
                        [
                            grey[
                                min(max(y + dy * (i + step), 0), height - 1),
                                min(max(x + dx * (i + step), 0), width - 1),
                            ]
                            for i in range(-(kernel // 2), kernel // 2 + 1)
                        ]
                    )
                    for step in (0, 1)
                ]
                before += sharp
                lost += max(0.0, sharp - abs(means[1] - means[0]))
        results.append((before - lost) / before)
    return max(results)


@pytest.mark.parametrize(
    ("shape", "kernel"), [((13, 17), 11), ((11, 12), 11), ((9, 8), 5), ((6, 7), 3)]
)
def test_blur_agrees_with_a_naive_computation(shape: tuple[int, int], kernel: int) -> None:
    rng = np.random.default_rng(shape[0])
    for grey in (rng.random(shape), np.sort(rng.random(shape), axis=0), rng.random(shape) > 0.8):
        expected = naive_blur_effect(grey.astype(np.float64), kernel)
        found = images.blur_effect(grey.astype(np.float32), kernel)
        assert found == pytest.approx(expected, abs=1e-4)


def test_a_picture_of_one_colour_is_not_called_blurred() -> None:
    assert images.blur_effect(np.full((64, 64), 0.3, np.float32)) == 0


def test_a_tiny_picture_is_not_called_blurred() -> None:
    assert images.inspect(saved(Image.new("RGB", (1, 1))), "photo").blur == 0


# --- likeness -----------------------------------------------------------------------------------

PHASHES = st.integers(0, 2**64 - 1).map(lambda value: f"{value:016x}")


@given(PHASHES, st.lists(PHASHES, max_size=5))
def test_distances_count_differing_bits(phash: str, others: list[str]) -> None:
    expected = [(int(phash, 16) ^ int(other, 16)).bit_count() for other in others]
    assert images.distances(phash, images.hash_bits(others)).tolist() == expected


def phash_of(image: Image.Image, format: str = "PNG") -> str:  # noqa: A002
    return images.inspect(saved(image, format), "photo").phash


@pytest.mark.parametrize("seed", range(3))
def test_the_same_shot_is_near_and_others_are_far(seed: int) -> None:
    shot = draw(seed, (800, 600))
    versions = {
        "smaller": phash_of(shot.resize((400, 300))),
        "compressed": phash_of(shot, "JPEG"),
        "cropped": phash_of(shot.crop((16, 12, 784, 588))),
    }
    others = [phash_of(draw(seed + i, (800, 600))) for i in (10, 20)]
    near = images.distances(phash_of(shot), images.hash_bits(list(versions.values())))
    far = images.distances(phash_of(shot), images.hash_bits(others))
    assert near.max() <= images.NEAR < far.min()


def test_a_phash_is_16_digits() -> None:
    assert len(phash_of(Image.new("RGB", (64, 64)))) == 16


# --- files --------------------------------------------------------------------------------------


def test_a_file_is_read_up_to_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "MAX_FILE_BYTES", 4)
    path = tmp_path / "photo.png"
    path.write_bytes(b"1234")
    assert images.read_file(path) == b"1234"
    path.write_bytes(b"12345")
    with pytest.raises(InvalidImage, match=r"photo\.png has 5 bytes; 4 is the limit"):
        images.read_file(path)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidImage, match=r"cannot read .*/gone\.png: No such file"):
        images.read_file(tmp_path / "gone.png")


def test_strict_decoding_leaves_the_warning_filters_as_they_were() -> None:
    before = list(warnings.filters)
    with images.strict_decoding():
        pass
    assert warnings.filters == before


def test_reading_twice_gives_the_same(tmp_path: Path) -> None:
    data = draw_bytes(9)
    assert images.inspect(data, "a") == images.inspect(data, "b")
