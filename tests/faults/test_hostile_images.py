"""Fault 19: bombs, files that are no photos, and broken photos are refused, all or nothing."""

import contextlib
import io
import random
import re
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conceptry.registry import InvalidImage, Registry, images
from drawing import draw, draw_file
from PIL import Image, ImageFile, features
from snapshot import files_below, rows_of

SMALL = (64, 48)
AVIF = features.check("avif")
FORMATS = ["JPEG", "PNG", "WEBP", "BMP", "TIFF", *(["AVIF"] if AVIF else [])]

READERS: dict[str, Callable[[bytes], object]] = {
    "inspect": lambda data: images.inspect(data, "evil.png"),
    "photo": lambda data: images.read_photo(data, "evil.png"),
    "mask": lambda data: images.read_mask(data, "evil.png", SMALL),
}


def saved(image: Image.Image, format: str = "PNG", **options: object) -> bytes:  # noqa: A002
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def refused_by_all(data: bytes) -> set[str]:
    """Show that every reader refuses it; returns the messages."""
    messages: set[str] = set()
    for read in READERS.values():
        with pytest.raises(InvalidImage) as caught:
            read(data)
        messages.add(caught.value.message)
    assert all("evil.png" in message for message in messages)
    return messages


def read_or_refused(data: bytes) -> None:
    """Show that no reader raises anything but our own error."""
    for read in READERS.values():
        with images.strict_decoding(), contextlib.suppress(InvalidImage):
            read(data)


# --- bombs --------------------------------------------------------------------------------------


MEGABYTE = zlib.compress(bytes(1 << 20))


def chunk(kind: bytes, content: bytes) -> bytes:
    return (
        struct.pack(">I", len(content))
        + kind
        + content
        + struct.pack(">I", zlib.crc32(kind + content))
    )


def png(width: int, height: int, *chunks: bytes) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(bytes(1000)))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + pixels + chunk(b"IEND", b"")


def jpeg(width: int, height: int) -> bytes:
    data = saved(draw(1, SMALL), "JPEG")
    place = data.index(b"\xff\xc0") + 5
    return data[:place] + struct.pack(">HH", height, width) + data[place + 4 :]


def bmp(width: int, height: int) -> bytes:
    data = saved(draw(1, SMALL), "BMP")
    return data[:18] + struct.pack("<ii", width, height) + data[26:]


def tiff(width: int, height: int) -> bytes:
    data = bytearray(saved(draw(1, SMALL), "TIFF"))
    for tag, value in ((256, width), (257, height)):
        place = data.index(struct.pack("<HHI", tag, 4, 1))
        data[place + 8 : place + 12] = struct.pack("<I", value)
    return bytes(data)


CLAIMS = {
    "PNG far beyond": png(60_000, 60_000),
    "PNG between once and twice the limit": png(12_000, 10_000),
    "PNG just beyond": png(images.MAX_PIXELS + 1, 1),
    "PNG of 2^31 columns": png(2**31 - 1, 2**31 - 1),
    "JPEG far beyond": jpeg(65_500, 65_500),
    "JPEG between once and twice the limit": jpeg(10_000, 12_000),
    "BMP far beyond": bmp(60_000, 60_000),
    "BMP upside down": bmp(60_000, -60_000),
    "BMP between once and twice the limit": bmp(12_000, 10_000),
    "TIFF far beyond": tiff(60_000, 60_000),
    "TIFF between once and twice the limit": tiff(12_000, 10_000),
}
TOLD = {
    "PNG between once and twice the limit": "is damaged: it ends early",
    "PNG just beyond": "is too large for a PNG that is longer than 65,536 pixels",
    "JPEG far beyond": "has more than 268,435,456 pixels",
    "JPEG between once and twice the limit": "is damaged: it has too few bytes for so many pixels",
}
"""JPEGs and PNGs can be reduced while they are decoded: faults, row 48."""


@pytest.mark.parametrize("action", ["error", "default", "ignore"])
@pytest.mark.parametrize("kind", CLAIMS)
def test_fault_19_a_bomb_is_refused_before_it_is_decoded(
    monkeypatch: pytest.MonkeyPatch, kind: str, action: str
) -> None:
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda _: pytest.fail("it was decoded"))
    with warnings.catch_warnings(record=True):
        warnings.simplefilter(action)  # pyright: ignore[reportArgumentType]
        (message,) = refused_by_all(CLAIMS[kind])
        assert message.startswith(f"evil.png {TOLD.get(kind, 'has more than 89,478,485 pixels')}")


def test_fault_19_a_bomb_is_refused_in_a_batch_too() -> None:
    with images.strict_decoding():
        for data in CLAIMS.values():
            refused_by_all(data)


def test_fault_19_a_sound_photo_between_once_and_twice_pillows_limit_is_refused() -> None:
    data = saved(Image.new("1", (9_500, 9_500)))
    assert len(data) < 100_000
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        refused_by_all(data)


def test_fault_19_the_limit_itself_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "MAX_PIXELS", 64 * 48)
    assert images.inspect(saved(draw(1, SMALL), "BMP"), "photo").width == 64
    refused_by_all(saved(draw(1, (64, 49)), "BMP"))


def test_fault_19_nobody_can_raise_the_limit_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    refused_by_all(CLAIMS["PNG between once and twice the limit"])


@pytest.mark.parametrize(
    "bomb",
    [
        chunk(b"zTXt", b"note\0\0" + zlib.compress(bytes(80 << 20), 1)),
        chunk(b"iCCP", b"icc\0\0" + zlib.compress(bytes(80 << 20), 1)),
        b"".join(chunk(b"zTXt", b"%d\0\0" % i + MEGABYTE) for i in range(70)),
    ],
    ids=["text", "colour profile", "many texts"],
)
def test_fault_19_a_bomb_in_the_margins_is_refused_or_left_alone(bomb: bytes) -> None:
    data = saved(draw(1, SMALL))
    read_or_refused(data[:33] + bomb + data[33:])


# --- files that are no photos -------------------------------------------------------------------


def document(format: str) -> bytes:  # noqa: A002
    return saved(draw(1, SMALL), format)


NO_PHOTOS = {
    "SVG": b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"><script>x()</script></svg>',
    "GIF": document("GIF"),
    "PDF": document("PDF"),
    "EPS": document("EPS"),
    "ICO": document("ICO"),
    "PPM": document("PPM"),
    "TGA": document("TGA"),
    "DDS": document("DDS"),
    "JPEG 2000": document("JPEG2000"),
    "PCX": document("PCX"),
    "PSD": b"8BPS\0\1" + bytes(6) + struct.pack(">HIIHH", 3, 48, 64, 8, 3) + bytes(100),
    "MP4": b"\0\0\0\x18ftypmp42" + bytes(100),
    "HTML": b"<!DOCTYPE html><html><body>404 Not Found</body></html>",
    "zip": b"PK\x03\x04" + bytes(60),
    "text": b"a photo of a dog",
    "nothing": b"",
    "zeros": bytes(10_000),
}


@pytest.mark.parametrize("kind", NO_PHOTOS)
def test_fault_19_only_photos_are_photos_whatever_their_name(kind: str) -> None:
    (message,) = refused_by_all(NO_PHOTOS[kind])
    assert message.startswith(
        "evil.png is not a photo in a known format (JPEG, PNG, WebP, BMP, TIFF"
    )


# --- photos that are broken ---------------------------------------------------------------------


@pytest.mark.parametrize("tenths", [1, 3, 5, 7, 9])
@pytest.mark.parametrize("format", FORMATS)
def test_fault_19_a_photo_that_ends_early_is_refused(format: str, tenths: int) -> None:  # noqa: A002
    data = saved(draw(1, (200, 150)), format)
    refused_by_all(data[: len(data) * tenths // 10])


LIES = {
    "PNG with fewer rows": png(64, 64),
    "JPEG with fewer rows": jpeg(*SMALL)[:-40],
    "BMP with fewer rows": bmp(64, 480),
    "BMP with fewer columns": bmp(640, 48),
    "PNG without pixels": saved(draw(1, SMALL))[:33] + chunk(b"IEND", b""),
    "PNG without rows": png(64, 0),
    "BMP without columns": bmp(0, 48),
}


@pytest.mark.parametrize("kind", LIES)
def test_fault_19_a_header_that_lies_is_refused(kind: str) -> None:
    refused_by_all(LIES[kind])


def test_fault_19_a_wrong_checksum_is_refused() -> None:
    data = bytearray(saved(draw(1, SMALL)))
    place = data.index(b"IDAT") + 20
    data[place] ^= 0xFF
    refused_by_all(bytes(data))


@pytest.mark.skipif(not AVIF, reason="Pillow without AVIF")
@pytest.mark.parametrize("size", [(60_000, 60_000), (12_000, 10_000)])
def test_fault_19_an_avif_whose_header_lies_is_refused(size: tuple[int, int]) -> None:
    data = saved(draw(1, SMALL), "AVIF")
    place = data.index(b"ispe") + 8
    refused_by_all(data[:place] + struct.pack(">II", *size) + data[place + 8 :])


def test_fault_19_a_webp_whose_header_lies_is_refused() -> None:
    data = saved(draw(1, SMALL), "WEBP", exif=b"Exif\0\0II*\0\x08\0\0\0\0\0")
    place = data.index(b"VP8X") + 12
    refused_by_all(data[:place] + b"\xff\xff\xff" * 2 + data[place + 6 :])


def second_page(tag: int, value: int) -> bytes:
    """A TIFF of two pages, the second with a broken entry."""
    data = bytearray(saved(draw(1, SMALL), "TIFF", save_all=True, append_images=[draw(2, SMALL)]))
    place = data.rindex(
        struct.pack("<H", tag), 0, data.rindex(struct.pack("<HHI", 257, 4, 1)) + 200
    )
    data[place : place + 2] = struct.pack("<H", value)
    return bytes(data)


@pytest.mark.parametrize(("tag", "value"), [(256, 255), (257, 258), (262, 263), (273, 9)])
def test_fault_19_a_broken_second_page_is_no_bug(tag: int, value: int) -> None:
    read_or_refused(second_page(tag, value))


def exif_ifd(kind: int, count: int, value: bytes) -> bytes:
    """EXIF whose orientation is an entry of any kind."""
    entry = struct.pack("<HHI", 0x0112, kind, count) + value
    return b"Exif\0\0II*\0\x08\0\0\0\x01\0" + entry + bytes(4)


EXIF = {
    "nothing": b"Exif\0\0",
    "no header": b"Exif\0\0junk",
    "wrong header": b"Exif\0\0MM\0\x2b\0\0\0\x08",
    "offset beyond the end": b"Exif\0\0II*\0\xff\xff\xff\x7f",
    "offset to itself": b"Exif\0\0II*\0\0\0\0\0",
    "more entries than there are": b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + bytes(30),
    "orientation 0": exif_ifd(3, 1, struct.pack("<HH", 0, 0)),
    "orientation 9": exif_ifd(3, 1, struct.pack("<HH", 9, 0)),
    "orientation 65535": exif_ifd(3, 1, b"\xff\xff\0\0"),
    "orientation that is a word": exif_ifd(2, 4, b"abc\0"),
    "orientation that is a fraction": exif_ifd(5, 1, b"\x08\0\0\0"),
    "orientation that is a float": exif_ifd(11, 1, struct.pack("<f", float("nan"))),
    "orientation in several": exif_ifd(3, 2, struct.pack("<HH", 6, 6)),
    "orientation of no kind": exif_ifd(99, 1, bytes(4)),
    "orientation without end": exif_ifd(3, 0xFFFFFFFF, bytes(4)),
    "turned, then junk": exif_ifd(3, 1, struct.pack("<HH", 6, 0)) + b"\xff" * 50,
}


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("kind", EXIF)
def test_fault_19_broken_exif_is_no_bug(kind: str, format: str) -> None:  # noqa: A002
    read_or_refused(saved(draw(1, SMALL), format, exif=EXIF[kind]))


def samples() -> Iterator[bytes]:
    """A photo of every kind, small."""
    photo = draw(1, SMALL)
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010F] = "maker"
    for format in FORMATS:  # noqa: A001
        yield saved(photo, format, **({} if format == "BMP" else {"exif": exif}))
    for compression in ("tiff_lzw", "tiff_deflate", "jpeg", "packbits"):
        yield saved(photo, "TIFF", compression=compression)
    yield saved(photo.quantize(16), "PNG", transparency=3)
    yield saved(photo.convert("CMYK"), "JPEG")
    for format in ("MPO", "PNG", "TIFF", "WEBP"):  # noqa: A001
        yield saved(photo, format, save_all=True, append_images=[photo])


def spoilt(data: bytes, rng: random.Random) -> bytes:
    spoilt = bytearray(data)
    for _ in range(rng.randrange(1, 5)):
        place = rng.randrange(min(len(spoilt), rng.choice([100, 400, len(spoilt)])))
        if rng.random() < 0.6:
            spoilt[place] = rng.choice([0, 1, 127, 128, 255, rng.randrange(256)])
        elif rng.random() < 0.5:
            del spoilt[place : place + rng.randrange(1, 9)]
        else:
            spoilt[place:place] = rng.randbytes(rng.randrange(1, 9))
    return bytes(spoilt)


def test_fault_19_bytes_that_changed_on_the_way_are_no_bug() -> None:
    rng = random.Random(19)
    unexpected: set[str] = set()
    for sample in samples():
        for _ in range(80):
            data = spoilt(sample, rng)
            try:
                read_or_refused(data)
            except Exception as error:  # noqa: BLE001 (the very thing that is looked for)
                unexpected.add(f"{sample[:8]!r} {error!r:.90}")
    assert sorted(unexpected) == []


# --- all or nothing -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    folder = tmp_path_factory.mktemp("library")
    with Registry.open(folder / "registry/concepts.db", create=True) as registry:
        registry.add("mia", [draw_file(folder / "mia.png", 7, SMALL)], category="cat")
        yield registry


AMONG_GOOD_ONES = {
    **{kind: CLAIMS[kind] for kind in ("PNG between once and twice the limit", "JPEG far beyond")},
    **{kind: NO_PHOTOS[kind] for kind in ("SVG", "GIF", "PDF", "EPS", "nothing")},
    "truncated": saved(draw(1, SMALL), "JPEG")[:600],
    "lie": LIES["BMP with fewer rows"],
}


@pytest.mark.parametrize("kind", AMONG_GOOD_ONES)
@pytest.mark.parametrize("concept", ["mia", "new"])
def test_fault_19_one_among_good_photos_keeps_all_out(
    library: Registry, tmp_path: Path, kind: str, concept: str
) -> None:
    for i in range(3):
        draw_file(tmp_path / f"photos/{i}.png", 100 + i, SMALL)
    evil = tmp_path / "photos/1.png"
    evil.write_bytes(AMONG_GOOD_ONES[kind])
    around = library.location.database.parent.parent
    before = files_below(around), files_below(tmp_path), rows_of(library.location.database)
    with pytest.raises(InvalidImage, match=re.escape(str(evil))):
        library.add(concept, [tmp_path / "photos"], category="cat")
    after = files_below(around), files_below(tmp_path), rows_of(library.location.database)
    assert after == before


def test_fault_19_a_mask_that_is_a_bomb_keeps_all_out(library: Registry, tmp_path: Path) -> None:
    draw_file(tmp_path / "photos/1.png", 1, SMALL)
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks/1.png").write_bytes(CLAIMS["PNG between once and twice the limit"])
    before = files_below(library.location.blobs), rows_of(library.location.database)
    with pytest.raises(InvalidImage, match=r"masks/1\.png"):
        library.add("new", [tmp_path / "photos"], category="cat", masks=tmp_path / "masks")
    assert (files_below(library.location.blobs), rows_of(library.location.database)) == before


def test_fault_19_a_photo_that_is_turned_is_upright(library: Registry, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 8
    draw(1, SMALL).transpose(Image.Transpose.ROTATE_270).save(tmp_path / "turned.png", exif=exif)
    done = library.add("turned", [tmp_path / "turned.png"], category="cat")
    (image,) = done.concept.images
    assert library.read_photo(image).tobytes() == draw(1, SMALL).tobytes()
    library.remove(["turned"])
