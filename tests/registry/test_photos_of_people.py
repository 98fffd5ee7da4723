"""Photos as people have them: what stands beside the pixels, colours, depth, size, labels."""

import io
import struct
import subprocess
import sys
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conceptry.registry import InvalidImage, bands, colour, images
from conceptry.registry.colour import matrix_profile
from drawing import draw
from PIL import Image, ImageCms, ImageFile, ImageOps, PngImagePlugin
from program import DEADLINE

SIZE = (96, 64)
D65 = (0.3127, 0.3290)
P3 = matrix_profile(((0.680, 0.320), (0.265, 0.690), (0.150, 0.060)), D65, None)
ADOBE_RGB = matrix_profile(((0.64, 0.33), (0.21, 0.71), (0.15, 0.06)), D65, 563 / 256)
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def saved(image: Image.Image, format: str = "PNG", **options: Any) -> bytes:  # noqa: A002
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def chunk(kind: bytes, content: bytes) -> bytes:
    check = struct.pack(">I", zlib.crc32(kind + content))
    return struct.pack(">I", len(content)) + kind + content + check


def with_chunks(data: bytes, *chunks: bytes, at_end: bool = False) -> bytes:
    place = data.rindex(b"IEND") - 4 if at_end else 33
    return data[:place] + b"".join(chunks) + data[place:]


def apart(one: Image.Image, other: Image.Image) -> float:
    """Mean absolute difference of pixels."""
    assert one.size == other.size
    return float(np.abs(np.asarray(one, np.float32) - np.asarray(other, np.float32)).mean())


# --- faults, row 43: what stands beside the pixels ------------------------------------------------

MEGABYTE = zlib.compress(bytes(1 << 20))
WORKFLOW = b'{"nodes": [' + b'{"id": 1}, ' * 300_000 + b"]}"
BESIDE = {
    "a workflow": chunk(b"tEXt", b"workflow\0" + WORKFLOW),
    "a packed workflow": chunk(b"zTXt", b"workflow\0\0" + zlib.compress(WORKFLOW)),
    "an international workflow": chunk(b"iTXt", b"workflow\0\0\0\0\0" + WORKFLOW),
    "a packed bomb": chunk(b"zTXt", b"note\0\0" + zlib.compress(bytes(80 << 20), 1)),
    "many texts": b"".join(chunk(b"zTXt", b"%d\0\0" % i + MEGABYTE) for i in range(70)),
    "a huge XMP": chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + WORKFLOW),
    "an unknown chunk": chunk(b"prVt", WORKFLOW),
    "a text of another check sum": chunk(b"tEXt", b"a\0b")[:-1] + b"!",
}


@pytest.mark.parametrize("at_end", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("kind", BESIDE)
def test_row_43_pixels_are_read_whatever_stands_beside_them(kind: str, at_end: bool) -> None:
    photo = draw(1, SIZE)
    data = with_chunks(saved(photo), BESIDE[kind], at_end=at_end)
    assert images.read_photo(data).tobytes() == photo.tobytes()
    assert images.inspect(data, "a.png") == images.inspect(saved(photo), "a.png")


def test_row_43_a_large_profile_is_used_and_a_bomb_of_one_is_told() -> None:
    assert P3 is not None
    padded = struct.pack(">I", len(P3) + 1_500_000) + P3[4:] + bytes(range(250)) * 6000
    data = saved(draw(1, SIZE), icc_profile=P3)
    large = saved(draw(1, SIZE), icc_profile=padded)
    assert images.read_photo(large).tobytes() == images.read_photo(data).tobytes()
    bomb = with_chunks(
        saved(draw(1, SIZE)), chunk(b"iCCP", b"x\0\0" + zlib.compress(bytes(80 << 20), 1))
    )
    assert images.inspect(bomb, "a.png").colour == colour.UNUSABLE
    assert images.read_photo(bomb).tobytes() == draw(1, SIZE).tobytes()


def test_row_43_a_png_is_turned_by_its_texts_all_the_same() -> None:
    info = PngImagePlugin.PngInfo()
    info.add_itxt("XML:com.adobe.xmp", '<x tiff:Orientation="6"/>')
    assert images.read_photo(saved(draw(1, SIZE), pnginfo=info)).size == SIZE[::-1]


def tiff(values: np.ndarray, *entries: tuple[int, int, int, int], photometric: int = 2) -> bytes:
    """An uncompressed TIFF of (h, w, channels), with further entries (tag, type, count, value)."""
    height, width, channels = values.shape
    bits = values.dtype.itemsize * 8
    kind = {"u": 1, "i": 2, "f": 3}[values.dtype.kind]
    table: dict[int, tuple[int, int, int]] = {
        256: (4, 1, width),
        257: (4, 1, height),
        258: (3, channels, bits),
        259: (3, 1, 1),
        262: (3, 1, photometric),
        273: (4, 1, 0),
        277: (3, 1, channels),
        278: (4, 1, height),
        279: (4, 1, values.nbytes),
        339: (3, 1, kind),
    }
    table |= {tag: rest for tag, *rest in entries}  # pyright: ignore[reportAssignmentType]
    end = 8 + 2 + 12 * len(table) + 4
    if channels > 1:
        table[258] = (3, channels, end)
    table[273] = (4, 1, end + 2 * channels)
    directory = b"".join(struct.pack("<HHII", tag, *table[tag]) for tag in sorted(table))
    start = b"II*\0" + struct.pack("<IH", 8, len(table)) + directory + bytes(4)
    return start + struct.pack(f"<{channels}H", *[bits] * channels) + values.tobytes()


def grey(values: np.ndarray) -> np.ndarray:
    return values[:, :, None]


RAMP = np.linspace(0, 1, 64 * 96).reshape(64, 96)
UNREADABLE = {
    "LAB": (saved(Image.merge("LAB", draw(1, SIZE).split()), "TIFF"), "TIFF in LAB colours"),
    "float colours": (tiff(np.zeros((4, 4, 3), np.float32)), "3 x 32 floating-point bits"),
    "double": (tiff(np.zeros((4, 4, 1)), photometric=1), "1 x 64 floating-point bits"),
    "raw": (
        tiff(np.zeros((4, 4, 3), np.uint8), (50706, 1, 4, 0x00000401)),
        "it is a camera's raw file",
    ),
    "12-bit JPEG": (
        saved(draw(1, SIZE), "JPEG").replace(b"\xff\xc0\0\x11\x08", b"\xff\xc0\0\x11\x0c"),
        "a JPEG with 12-bit layers, a kind that cannot be read",
    ),
    "JPEG XL": (b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(50), "it is JPEG XL"),
    "GIF": (saved(draw(1, SIZE), "GIF"), "it is a GIF"),
    "film": (b"\0\0\0\x18ftypmp42" + bytes(100), "it is a film"),
    "LFS": (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS"),
}


@pytest.mark.parametrize("kind", UNREADABLE)
def test_row_43_a_kind_that_cannot_be_read_is_named(kind: str) -> None:
    data, named = UNREADABLE[kind]
    with pytest.raises(InvalidImage) as caught:
        images.inspect(data, "evil.tif")
    assert named in caught.value.message
    assert "damaged" not in caught.value.message


# --- faults, row 44: colour -----------------------------------------------------------------------

IN_SRGB = [(255, 0, 0), (0, 255, 0), (200, 120, 40), (90, 90, 90), (10, 60, 130)]


def patches(colours: list[tuple[int, ...]], mode: str = "RGB") -> Image.Image:
    image = Image.new(mode, (32 * len(colours), 32))
    for i, each in enumerate(colours):
        image.paste(each, (32 * i, 0, 32 * i + 32, 32))
    return image


def colours_of(image: Image.Image) -> list[Any]:
    return [image.getpixel((32 * i + 16, 16)) for i in range(image.width // 32)]


def in_space(profile: bytes | None) -> Image.Image:
    """The colours as a photo in another space stores them."""
    assert profile is not None
    target = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    source = ImageCms.createProfile("sRGB")
    found = ImageCms.profileToProfile(patches(IN_SRGB), source, target)
    assert found is not None
    return found


@pytest.mark.parametrize("profile", [P3, ADOBE_RGB], ids=["Display P3", "Adobe RGB"])
@pytest.mark.parametrize("format", ["PNG", "TIFF", "JPEG", "WEBP", "AVIF"])
def test_row_44_a_profile_is_converted_to_srgb(format: str, profile: bytes) -> None:  # noqa: A002
    options = {"PNG": {}, "TIFF": {}, "WEBP": {"lossless": True}}.get(format, {"quality": 100})
    stored = in_space(profile)
    assert apart(stored, patches(IN_SRGB)) > 5
    data = saved(stored, format, icc_profile=profile, **options)
    read = np.array(colours_of(images.read_photo(data)))
    assert np.abs(read - np.array(IN_SRGB)).max() <= (4 if format in "PNG TIFF WEBP" else 8)
    assert images.inspect(data, "a").colour is None


class _Heic(ImageFile.ImageFile):
    """HEIC as pillow-heif gives it to Pillow; within, a PNG."""

    format = "HEIF"
    format_description = "HEIF container"

    def _open(self) -> None:
        assert self.fp is not None
        self._inner = Image.open(io.BytesIO(self.fp.read()[len(HEIC_HEAD) :]))
        self._size, self._mode = self._inner.size, self._inner.mode
        self.info["icc_profile"] = self._inner.info["icc_profile"]
        self.tile = []

    def load(self) -> Any:
        if not self.is_loaded:
            self.im, self.is_loaded = self._inner.convert(self.mode).im, True
        return super().load()

    is_loaded = False


HEIC_HEAD = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"


def test_row_44_heic_with_a_profile_is_converted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Row 44, by what Pillow is given where pillow-heif is installed."""
    assert P3 is not None
    data = HEIC_HEAD + saved(in_space(P3), icc_profile=P3)
    Image.init()
    accepts = (_Heic, lambda prefix: prefix[4:12] == b"ftypheic")
    monkeypatch.setitem(Image.OPEN, "HEIF", accepts)
    monkeypatch.setattr(Image, "ID", [*dict.fromkeys([*Image.ID, "HEIF"])])
    inspected = images.inspect(data, "a.heic")
    assert (inspected.format, inspected.colour) == ("HEIF", None)
    read = np.array(colours_of(images.read_photo(data)))
    assert np.abs(read - np.array(IN_SRGB)).max() <= 4


def test_row_44_transparency_and_grey_are_converted_too() -> None:
    assert P3 is not None
    stored = in_space(P3).convert("RGBA")
    stored.putpixel((0, 0), (0, 0, 0, 0))
    read = images.read_photo(saved(stored, icc_profile=P3))
    assert read.getpixel((0, 0)) == (255, 255, 255)
    assert np.abs(np.array(colours_of(read)) - np.array(IN_SRGB)).max() <= 4
    dark = matrix_profile(((0.64, 0.33), (0.30, 0.60), (0.15, 0.06)), D65, 1.0)
    assert images.read_photo(saved(Image.new("L", (8, 8), 55), icc_profile=dark)).getpixel(
        (0, 0)
    ) == pytest.approx((128, 128, 128), abs=1)


def cmyk_profile() -> bytes:
    """A profile that takes CMYK for its complement, scaled, in Lab: a table of 2^4 points."""
    grid = np.stack(np.meshgrid(*[[0, 1]] * 4, indexing="ij"), -1).reshape(-1, 4)
    light = (1 - grid[:, 3]) * (1 - grid[:, :3].mean(1))
    lab = np.stack([light * 65280, np.full(16, 32768), np.full(16, 32768)], -1).astype(">u2")
    curve = np.array([0, 65535], ">u2").tobytes()
    table = b"mft2" + bytes(4) + bytes([4, 3, 2, 0])
    table += struct.pack(">9i", 65536, 0, 0, 0, 65536, 0, 0, 0, 65536) + struct.pack(">HH", 2, 2)
    table += curve * 4 + lab.tobytes() + curve * 3
    white = b"XYZ \0\0\0\0" + struct.pack(">3i", 63190, 65536, 54061)
    start = 128 + 4 + 24
    tags = struct.pack(">I4sII4sII", 2, b"A2B0", start, len(table), b"wtpt", start + len(table), 20)
    body = tags + table + white
    header = struct.pack(
        ">I4sI4s4s4s12s4s28s12s48s", 128 + len(body), b"", 0x02400000, b"prtr", b"CMYK", b"Lab ",
        bytes(12), b"acsp", b"", white[8:], b"",
    )  # fmt: skip
    return header + body


@pytest.mark.parametrize("format", ["JPEG", "TIFF"])
def test_row_44_cmyk_with_a_profile_is_converted_by_it(format: str) -> None:  # noqa: A002
    ink = Image.new("CMYK", (32, 32), (255, 0, 0, 0))
    profile = cmyk_profile()
    expected = ImageCms.profileToProfile(
        ink,
        ImageCms.ImageCmsProfile(io.BytesIO(profile)),
        ImageCms.createProfile("sRGB"),
        outputMode="RGB",
    )
    assert expected is not None
    read = images.read_photo(saved(ink, format, icc_profile=profile))
    assert apart(read, expected) <= 3
    assert apart(read, ink.convert("RGB")) > 50


@pytest.mark.parametrize(
    "profile",
    [b"junk", b"", P3[:200] if P3 else b"", cmyk_profile(), bytes(3000)],
    ids=["junk", "empty", "cut short", "of other colours", "zeros"],
)
def test_row_44_a_broken_profile_is_a_warning(profile: bytes) -> None:
    photo = draw(1, SIZE)
    data = with_chunks(saved(photo), chunk(b"iCCP", b"x\0\0" + zlib.compress(profile)))
    assert images.inspect(data, "a.png").colour == colour.UNUSABLE
    assert images.read_photo(data).tobytes() == photo.tobytes()


def test_row_44_a_png_tells_its_colours_in_chunks_too() -> None:
    stored = saved(in_space(P3))
    p3 = struct.pack(">8I", 31270, 32900, 68000, 32000, 26500, 69000, 15000, 6000)
    told = {
        "cICP": [chunk(b"cICP", bytes([12, 13, 0, 1]))],
        "cHRM": [chunk(b"gAMA", struct.pack(">I", 45455)), chunk(b"cHRM", p3)],
    }
    for chunks in told.values():
        read = np.array(colours_of(images.read_photo(with_chunks(stored, *chunks))))
        assert np.abs(read - np.array(IN_SRGB)).max() <= 4
    linear = with_chunks(
        saved(Image.new("RGB", (8, 8), (55,) * 3)), chunk(b"gAMA", struct.pack(">I", 100_000))
    )
    assert images.read_photo(linear).getpixel((0, 0)) == pytest.approx((128,) * 3, abs=1)


def test_row_44_a_camera_tells_adobe_rgb_in_its_exif_alone() -> None:
    exif = Image.Exif()
    exif[0x8769] = {0xA001: 0xFFFF, 0xA005: {1: "R03"}}
    data = saved(in_space(ADOBE_RGB), "JPEG", quality=100, exif=exif)
    read = np.array(colours_of(images.read_photo(data)))
    assert np.abs(read - np.array(IN_SRGB)).max() <= 8


@pytest.mark.parametrize("options", [{}, {"icc_profile": SRGB}], ids=["plain", "sRGB profile"])
@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_row_44_ordinary_photos_stay_what_they_were(format: str, options: dict[str, Any]) -> None:  # noqa: A002
    data = saved(draw(1, SIZE), format, **options)
    with Image.open(io.BytesIO(data)) as image:
        expected = image.convert("RGB")
        image.load()
        thumbnail = image.convert("L")
    import imagehash

    assert images.read_photo(data).tobytes() == expected.tobytes()
    assert images.inspect(data, "a").phash == str(imagehash.phash(thumbnail))


@pytest.mark.parametrize("gamma", [45455, 0, 2**32 - 1])
def test_row_44_a_gamma_that_is_srgbs_or_nonsense_changes_nothing(gamma: int) -> None:
    photo = draw(1, SIZE)
    data = with_chunks(saved(photo), chunk(b"gAMA", struct.pack(">I", gamma)))
    assert images.read_photo(data).tobytes() == photo.tobytes()


# --- faults, row 45: deep pictures ----------------------------------------------------------------


def levels(data: bytes) -> np.ndarray:
    return np.asarray(images.read_photo(data))[:, :, 0].astype(int)


def highlights(value: float) -> np.ndarray:
    values = RAMP.astype(np.float32).copy()
    values[0, 0] = value
    return values


HIGHEST = 281
DEEP = {
    "a highlight": saved(Image.fromarray(highlights(37.0)), "TIFF"),
    "a highlight of 300": saved(Image.fromarray(highlights(300.0)), "TIFF"),
    "an infinite highlight": saved(Image.fromarray(highlights(np.inf)), "TIFF"),
    "below zero": saved(Image.fromarray(highlights(-5.0)), "TIFF"),
    "told 12 bits": tiff(grey(RAMP * 4095).astype(np.uint16), (HIGHEST, 3, 1, 4095), photometric=1),
    "told what is used": tiff(
        grey(RAMP * 4095).astype(np.uint16), (HIGHEST, 3, 1, 4000), photometric=1
    ),
    "told 12 bits in colour": tiff(
        np.repeat(grey(RAMP * 4095), 3, 2).astype(np.uint16), (HIGHEST, 3, 1, 4095)
    ),
    "PNG told 12 bits": with_chunks(
        saved(Image.fromarray((RAMP * 4095).astype(np.uint16))), chunk(b"sBIT", bytes([12]))
    ),
    "16 bits with a sign": tiff(grey(RAMP * 32767).astype(np.int16), photometric=1),
    "32 bits": tiff(grey(RAMP * (2**32 - 1)).astype(np.uint32), photometric=1),
    "white is zero": tiff(grey((1 - RAMP) * 65535).astype(np.uint16), photometric=0),
}


@pytest.mark.parametrize("kind", DEEP)
def test_row_45_deep_pictures_are_read_by_type_and_tags(kind: str) -> None:
    differences = np.abs(levels(DEEP[kind]) - RAMP * 255)[1:]
    assert differences.max() <= 6 if "used" in kind else differences.max() <= 1.5


def test_row_45_what_no_tag_tells_is_dark_and_told() -> None:
    told = images.inspect(saved(Image.fromarray((RAMP * 4095).astype(np.uint16))), "a.png")
    assert told.brightest < images.DARK
    assert images.inspect(saved(draw(1, SIZE)), "a.png").brightest >= images.DARK


# --- faults, row 46: masks ------------------------------------------------------------------------

INSIDE = np.zeros((64, 96), bool)
INSIDE[16:48, 24:72] = True


def palette(first: tuple[int, int, int], second: tuple[int, int, int]) -> bytes:
    mask = Image.fromarray(INSIDE.astype(np.uint8), "P")
    mask.putpalette([*first, *second])
    return saved(mask)


def of_values(low: int, high: int, kind: type = np.uint8) -> np.ndarray:
    return np.where(INSIDE, high, low).astype(kind)


HARD = {
    "0 and 1": saved(Image.fromarray(of_values(0, 1))),
    "0 and 255": saved(Image.fromarray(of_values(0, 255))),
    "3 and 7": saved(Image.fromarray(of_values(3, 7))),
    "16 bits": saved(Image.fromarray(of_values(0, 1, np.uint16))),
    "16 bits full": saved(Image.fromarray(of_values(0, 65535, np.uint16))),
    "32 bits": saved(Image.fromarray(of_values(0, 1, np.int32)), "TIFF"),
    "float": saved(Image.fromarray(of_values(0, 1, np.float32)), "TIFF"),
    "one bit": saved(Image.fromarray(INSIDE)),
    "palette of labels": palette((0, 0, 0), (128, 0, 0)),
    "palette all black": palette((0, 0, 0), (0, 0, 0)),
    "red on black": saved(Image.fromarray(INSIDE[:, :, None] * np.array([200, 0, 0], np.uint8))),
    "alpha 0 and 1": saved(
        Image.merge("LA", [Image.new("L", SIZE, 9), Image.fromarray(of_values(0, 1))])
    ),
    "WebP": saved(Image.fromarray(of_values(0, 1)).convert("RGB"), "WEBP", lossless=True),
}


@pytest.mark.parametrize("kind", HARD)
def test_row_46_two_values_are_a_mask(kind: str) -> None:
    mask = images.open_stored_mask(images.read_mask(HARD[kind], "m.png", SIZE))
    assert (np.asarray(mask) == INSIDE * 255).all()


def labels(*values: int, kind: type = np.uint8) -> bytes:
    found = np.zeros((64, 96), kind)
    for i, value in enumerate(values):
        found[8 * i : 8 * i + 8] = value
    return saved(Image.fromarray(found))


LABELS = {
    "three": labels(0, 1, 2),
    "many": labels(0, 1, 5, 9, 12, 40),
    "with a border of 255": labels(1, 2, 15, 15, 15, 255),
    "16 bits": labels(0, 1, 2, kind=np.uint16),
    "colours": saved(draw(1, SIZE)),
    "palette": saved(draw(1, SIZE).quantize(5)),
    "nearly black": saved(Image.fromarray((RAMP * 40).astype(np.uint8))),
}


@pytest.mark.parametrize("kind", LABELS)
def test_row_46_other_labels_are_refused_by_name(kind: str) -> None:
    with pytest.raises(InvalidImage, match=r"the mask m\.png (has|is nearly black)"):
        images.read_mask(LABELS[kind], "m.png", SIZE)


def test_row_46_soft_masks_stay_as_they_are() -> None:
    soft = Image.fromarray((RAMP * 255).astype(np.uint8))
    edges = of_values(0, 255)
    edges[15], edges[48] = 64, 20
    for stored in (soft, Image.fromarray(edges)):
        for mode in ("L", "RGB"):
            read = images.read_mask(saved(stored.convert(mode)), "m.png", SIZE)
            assert images.open_stored_mask(read).tobytes() == stored.tobytes()


# --- faults, rows 37 and 48: large photos ---------------------------------------------------------


def measured(program: str, limit: int) -> str:
    """What a program prints that may take so many bytes more than its imports."""
    prelude = f"""
import resource
from conceptry.registry import images
import imagehash, scipy.fftpack, PIL.ImageCms
taken = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (taken + {limit},) * 2)
"""
    done = subprocess.run(
        [sys.executable, "-c", prelude + program],
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A JPEG of 108 million pixels."""
    path = tmp_path_factory.mktemp("large") / "large.jpg"
    row = draw(1, (1200, 16)).resize((12_032, 16))
    image = Image.new("RGB", (12_032, 9_024))
    for top in range(0, 9_024, 16):
        image.paste(row, (0, top))
    image.save(path, quality=80)
    return path


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="no /proc here")
def test_row_48_a_photo_of_108_million_pixels_is_reduced_while_decoded(large: Path) -> None:
    found = measured(
        f"""
data = open({str(large)!r}, "rb").read()
seen = images.inspect(data, "large.jpg")
read = images.read_photo(data)
small = images.read_photo(data, at_least=640)
print(seen.width, seen.height, read.size, small.size)
""",
        400 << 20,
    )
    assert found == "12032 9024 (6016, 4512) (1504, 1128)"
    assert images.size_as_read(12_032, 9_024) == (6016, 4512)


def noise(mode: str, size: tuple[int, int]) -> Image.Image:
    """A picture that no two neighbours are alike in."""
    channels = len(Image.new(mode, (1, 1)).getbands())
    values = np.random.default_rng(3).integers(0, 256, (size[1], size[0], channels), np.uint8)
    return Image.fromarray(values[..., 0] if channels == 1 else values, mode)


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA", "P", "P with transparency"])
@pytest.mark.parametrize("size", [(97, 64), (96, 63), (640, 3), (3, 201)], ids=str)
def test_row_48_a_large_png_is_reduced_band_by_band(
    monkeypatch: pytest.MonkeyPatch, mode: str, size: tuple[int, int]
) -> None:
    """To the bytes that it would be reduced to whole."""
    plain, _, is_clear = mode.partition(" ")
    photo = noise("L", size).convert("P") if plain == "P" else noise(mode, size)
    options: dict[str, Any] = {"transparency": 7} if is_clear else {}
    photo.info |= {"dpi": (72, 72)}
    data = saved(photo, icc_profile=P3, **options)
    colours = {"P": "RGBA" if is_clear else "RGB"}.get(plain, plain)
    expected = Image.open(io.BytesIO(data)).convert(colours).reduce(2)
    monkeypatch.setattr(bands, "_BAND", 5 * size[0])
    monkeypatch.setattr(images, "MAX_PIXELS", size[0] * size[1] // 2)
    opened = bands.open_large_png(data, "a.png")
    found = bands.reduced_png(opened, data, 2)
    assert (found.mode, found.size) == (expected.mode, expected.size)
    assert found.tobytes() == expected.tobytes()
    inspected = images.inspect(data, "a.png")
    assert (inspected.width, inspected.height, inspected.format) == (*size, "PNG")
    assert (inspected.alpha is not None) == (colours in ("LA", "RGBA"))
    read = images.read_photo(data)
    assert read.size == images.size_as_read(*size)
    small = Image.open(io.BytesIO(saved(expected, icc_profile=P3)))
    assert read.tobytes() == images.read_photo(saved(small, icc_profile=P3)).tobytes()


def test_row_48_a_large_png_is_turned_as_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = saved(draw(1, (96, 64)), exif=exif)
    monkeypatch.setattr(images, "MAX_PIXELS", 96 * 63)
    inspected = images.inspect(data, "a.png")
    assert (inspected.width, inspected.height) == (64, 96)
    assert images.read_photo(data).size == (32, 48)


def test_row_48_a_damaged_large_png_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    data = saved(noise("RGB", (96, 64)))
    monkeypatch.setattr(images, "MAX_PIXELS", 96 * 63)
    place = data.index(b"IDAT") + 4
    for odd in (
        data[:-300],
        data[:place] + bytes(40) + data[place + 40 :],
        data[:place] + b"\xff" * 9 + data[place + 9 :],
        data[: place - 8] + data[data.index(b"IEND") - 4 :],
    ):
        with pytest.raises(InvalidImage, match=r"a\.png is damaged"):
            images.inspect(odd, "a.png")


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (lambda: saved(Image.new("1", (96, 64))), "of 1 bits a channel"),
        (lambda: saved(Image.new("I;16", (96, 64))), "of 16 bits a channel"),
        (lambda: INTERLACED, "interlaced"),
    ],
    ids=["1 bit", "16 bits", "interlaced"],
)
def test_row_48_what_cannot_be_reduced_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, data: Any, why: str
) -> None:
    monkeypatch.setattr(images, "MAX_PIXELS", 96 * 63)
    with pytest.raises(InvalidImage, match=f"{why}: save it smaller, or as a plain PNG"):
        images.inspect(data(), "a.png")
    for kind in ("TIFF", "BMP", "WEBP"):
        with pytest.raises(InvalidImage, match="save it smaller, or as a JPEG or PNG"):
            images.inspect(saved(draw(1, (96, 64)), kind), "a")


def test_row_48_a_large_progressive_jpeg_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    data = saved(noise("RGB", (96, 64)), "JPEG", progressive=True, quality=90)
    monkeypatch.setattr(images, "MAX_PIXELS", 96 * 63)
    assert images.read_photo(data).size == (48, 32)
    monkeypatch.setattr(images, "_MAX_SCANS", 5)
    with pytest.raises(InvalidImage, match="too large for a progressive JPEG: save it smaller"):
        images.read_photo(data)
    monkeypatch.undo()
    monkeypatch.setattr(images, "MAX_PIXELS", 96 * 63)
    monkeypatch.setattr(images, "_MAX_COEFFICIENT_BYTES", 96 * 64 * 3 - 1)
    with pytest.raises(InvalidImage, match="too large for a progressive JPEG: save it smaller"):
        images.read_photo(data)


INTERLACED = (
    bytes.fromhex("89504e470d0a1a0a")
    + chunk(b"IHDR", struct.pack(">IIBBBBB", 96, 64, 8, 2, 0, 0, 1))
    + chunk(b"IDAT", zlib.compress(bytes(96 * 64 * 3 + 64)))
    + chunk(b"IEND", b"")
)


def test_row_37_threads_share_one_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    under_way: list[str] = []
    most: list[int] = []
    transpose = ImageOps.exif_transpose

    def counted(*arguments: Any, **options: Any) -> Any:
        under_way.append("a photo")
        most.append(len(under_way))
        time.sleep(0.01)
        under_way.pop()
        return transpose(*arguments, **options)

    monkeypatch.setattr(ImageOps, "exif_transpose", counted)
    monkeypatch.setattr(images, "MAX_PIXELS", 2 * SIZE[0] * SIZE[1])
    data = saved(draw(1, SIZE))
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda _: images.read_photo(data), range(12)))
    assert max(most) <= 2
