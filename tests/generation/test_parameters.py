"""What pictures say to other tools and hear from them: texts, hashes, and the like of a picture."""

import hashlib
import io
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conceptry.adapters.formats.importing import ImportOptions, import_path
from conceptry.generation import Request, SamplingSettings, generate, read_provenance, reproduce
from conceptry.generation.foreign_pictures import read_foreign_picture, request_like
from conceptry.generation.generating import animate
from conceptry.generation.parameters import Parameters, parse_parameters
from conceptry.generation.picture_texts import FILE_FORMATS, FileFormat, encode_picture
from conceptry.generation.provenance import read_texts
from conceptry.generation.reproducing import reproduce_foreign
from conceptry.generation.request import with_layout
from conceptry.models.loading import LoadedBase
from conceptry.registry import InvalidImage, InvalidInput, Registry
from copies import copied, made_with_rex
from exported import Taught
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors.torch import load_file, save_file

SETTINGS = SamplingSettings(steps=2, guidance=3.0, scheduler="ddim", negative="two (blue) dogs")
A1111 = """a (red:1.2) cat, <lora:{lora}:0.8> by ohwx
on the beach
Negative prompt: blurred, <lora:x:1>
Steps: 3, Sampler: DPM++ 2M Karras, CFG scale: 4.5, Seed: 17, Size: 16x16, \
Model hash: 0123456789, Model: dreams, Clip skip: 2, Lora hashes: "{lora}: {digest}", \
Version: v1.10.1"""


@pytest.fixture(scope="module")
def made(_one_base: LoadedBase, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")

    def fill(registry: Registry, _: Path) -> None:
        taught = Taught(registry, _one_base, folder)
        taught.add(taught.vectors(1) | taught.factors(), num_tokens=1)
        taught.export("lora-kohya", "max.safetensors")
        (folder / "max-embedding.safetensors").unlink()
        save_file(load_file(folder / "max.safetensors"), folder / "max.safetensors")
        taught.add(taught.vectors(2))
        taught.export("embedding", "moritz.safetensors")
        import_path(registry, folder / "max.safetensors", ImportOptions(trigger="ohwx dog"))
        import_path(registry, folder / "moritz.safetensors", ImportOptions())

    return made_with_rex(folder, fill)


@pytest.fixture
def taught(made: Path, base: LoadedBase, tmp_path: Path) -> Iterator[Taught]:
    """A tiny base model, and two imported concepts: the LoRA max and the embedding moritz."""
    with copied(made, tmp_path) as registry:
        yield Taught(registry, base, tmp_path)


def drawn(taught: Taught, prompt: str, file_format: FileFormat = "png", **settings: object) -> Path:
    asked = Request(prompt=prompt, seeds=(7,), settings=replace(SETTINGS, **settings))
    folder = taught.folder / "drawn"
    (picture,) = generate(taught.registry, taught.base, [asked], folder, file_format=file_format)
    return picture.path


def said(path: Path) -> str:
    """The `parameters`, as A1111's web UI reads them."""
    with Image.open(path) as image:
        if image.format == "PNG":
            return image.info["parameters"]
        comment = image.getexif().get_ifd(0x8769)[0x9286]
    assert comment.startswith(b"UNICODE\0")
    return comment[8:].decode("utf-16-be")


def of_tensors(path: Path) -> str:
    """AutoV3: SHA-256 of what follows a safetensors header."""
    data = path.read_bytes()
    return hashlib.sha256(data[8 + int.from_bytes(data[:8], "little") :]).hexdigest()


@pytest.mark.parametrize("file_format", FILE_FORMATS)
def test_each_format_says_what_made_it_and_is_drawn_again(
    taught: Taught, file_format: FileFormat
) -> None:
    path = drawn(taught, "a photo of a <max:0.5>", file_format)
    assert path.suffix == f".{file_format}"
    made = read_provenance(path)
    assert made.prompt == "a photo of a <max:0.5>"
    assert made.settings == SETTINGS
    again, is_same = reproduce(taught.registry, taught.base, path, taught.folder / "again")
    assert is_same
    assert again.path.read_bytes() == path.read_bytes()
    png = drawn(taught, "a photo of a <max:0.5>")
    with Image.open(path) as one, Image.open(png) as other:
        far = np.abs(np.asarray(one, dtype=int) - np.asarray(other, dtype=int)).max()
    assert far == 0 if file_format != "jpg" else 0 < far < 64
    assert said(path) == said(png)


def test_the_text_is_what_a1111_reads_and_its_hashes_are_those_of_the_bytes(
    taught: Taught,
) -> None:
    weights = taught.folder / "max.safetensors"
    model = taught.folder / "dreams.safetensors"
    model.write_bytes(b"any bytes")
    sha256 = hashlib.sha256(model.read_bytes()).hexdigest()
    own = taught.base
    taught.base = replace(own, base=replace(own.base, name=str(model), kind="file"), sha256=sha256)
    path = drawn(taught, "a <max:0.5> (wet), <moritz>\nand all", "png")
    first, negative, fields = said(path).split("\n")
    assert first == r"a ohwx dog \(wet\), moritz dog and all <lora:max:0.5>"
    assert negative == r"Negative prompt: two \(blue\) dogs"
    embedding = hashlib.sha256((taught.folder / "moritz.safetensors").read_bytes()).hexdigest()
    assert re.fullmatch(
        r"Steps: 2, Sampler: DDIM, CFG scale: 3, Seed: 7, Size: 16x16, "
        rf"Model hash: {sha256[:10]}, Model: dreams, "
        rf'Lora hashes: "max: {of_tensors(weights)[:12]}", '
        rf'TI hashes: "moritz: {embedding[:12]}", RNG: CPU, Version: conceptry [\d.]+',
        fields,
    )


def test_brackets_that_weigh_words_are_left(taught: Taught) -> None:
    path = drawn(taught, "a (red:1.2) cat", prompt_weights=True, negative="(dogs)")
    assert said(path).split("\n")[:2] == ["a (red:1.2) cat", "Negative prompt: (dogs)"]
    assert read_provenance(path).settings.prompt_weights
    _, is_same = reproduce(taught.registry, taught.base, path, taught.folder / "again")
    assert is_same
    plain = drawn(taught, "a red cat", prompt_weights=True, negative="(dogs)")
    with Image.open(path) as one, Image.open(plain) as other:
        assert one.tobytes() != other.tobytes()


@pytest.mark.parametrize(
    "text",
    ["a cat", "", "Steps: 3", "a cat\nSeed: 1, Size: 2x2, Sampler: x", "x" * 200_000, "a: b," * 9],
)
def test_what_is_no_parameters_text(text: str) -> None:
    assert parse_parameters(text) is None


def test_a_text_is_read_back() -> None:
    fields = {
        "Steps": "3",
        "Model": 'a, "b"',
        "Seed": "1",
        "Size": "8x8",
        "Lora hashes": "a: 1, b: 2",
    }
    parameters = Parameters("one\ntwo", "not\nthree", fields)
    assert parse_parameters(parameters.to_text()) == parameters
    assert parameters.hashes("Lora hashes") == {"a": "1", "b": "2"}


def theirs(path: Path, text: str) -> Path:
    """A picture as A1111's web UI writes it."""
    image = Image.new("RGB", (16, 16))
    if path.suffix == ".png":
        info = PngInfo()
        info.add_text("parameters", text)
        image.save(path, pnginfo=info)
        return path
    exif = Image.Exif()
    code = "utf-16-le" if "little" in path.stem else "utf-16-be"
    exif[0x8769] = {0x9286: b"UNICODE\0" + text.encode(code)}
    image.save(path, exif=exif.tobytes())
    return path


@pytest.mark.parametrize("name", ["a.png", "a.webp", "a.jpg", "little.jpg"])
def test_the_like_of_their_picture_is_drawn_and_what_is_not_used_is_said(
    taught: Taught, name: str
) -> None:
    digest = of_tensors(taught.folder / "max.safetensors")[:12]
    text = A1111.format(lora="their-name", digest=digest)
    found = read_foreign_picture(theirs(taught.folder / name, text))
    assert found is not None
    like = request_like(taught.registry, found, taught.base.base, taught.base.sha256)
    request = like.request
    assert request.prompt.startswith("a (red:1.2) cat,")
    assert request.prompt.endswith("by ohwx\non the beach <max:0.8>")
    assert list(request.seeds) == [17]
    settings = request.settings
    assert (settings.steps, settings.guidance, settings.scheduler) == (3, 4.5, "dpm++")
    assert (settings.size, settings.negative) == ((16, 16), "blurred,")
    assert settings.prompt_weights
    lines = "\n".join(like.unused)
    for part in ("Karras", "dreams [0123456789]", "Clip skip: 2", "noise"):
        assert part in lines
    assert "their-name" not in lines
    picture, is_same, unused = reproduce_foreign(
        taught.registry, taught.base, found, taught.folder / "like"
    )
    assert not is_same
    assert unused == like.unused
    assert picture.path.suffix == Path(name).suffix
    trace = taught.registry.trace(picture.sha256)
    assert [each.concept for each in trace.sources] == ["max"]


def test_trigger_words_become_the_concept_and_unknown_files_are_told(taught: Taught) -> None:
    digest = of_tensors(taught.folder / "max.safetensors")[:12]
    text = (
        f"an ohwx dog with moritz <lora:max:1> <lora:gone:0.5>\nSteps: 2, Seed: 1, Sampler: LCM, "
        f'Lora hashes: "max: {digest}, gone: 111111111111", TI hashes: "moritz: 222222222222"'
    )
    found = read_foreign_picture(theirs(taught.folder / "a.png", text))
    assert found is not None
    like = request_like(taught.registry, found, taught.base.base, taught.base.sha256)
    assert like.request.prompt == "an <max> with moritz"
    lines = "\n".join(like.unused)
    assert "<lora:gone:0.5> [111111111111], which is not in this registry" in lines
    assert "the embedding moritz, which is not in this registry" in lines
    assert "sampler LCM" in lines


def imported(taught: Taught, name: str, trigger: str) -> None:
    """Import a LoRA as `name`, with a trigger word."""
    path = taught.folder / f"{name}.safetensors"
    found = load_file(taught.folder / "max.safetensors")
    tensors = {key: each * len(name) for key, each in found.items()}
    save_file(tensors, path)
    import_path(taught.registry, path, ImportOptions(trigger=trigger))


@pytest.mark.parametrize(
    ("trigger", "prompt", "expected"),
    [
        ("cat", "a category, art deco", "a category, art deco <ohwx-man:0.8> <tom>"),
        ("cat", "a category, a cat, a cat", "a category, a <tom>, a cat <ohwx-man:0.8>"),
        ("man", "one ohwx", "one <ohwx-man:0.8> <tom>"),
        ("man", "one ohwx and a man", "one <ohwx-man:0.8> and a <tom>"),
    ],
)
def test_trigger_words_are_whole_words_of_the_prompt(
    taught: Taught, trigger: str, prompt: str, expected: str
) -> None:
    """Neither a part of another word, nor of another concept's mention."""
    imported(taught, "ohwx-man", "ohwx")
    imported(taught, "tom", trigger)
    text = f"{prompt} <lora:ohwx-man:0.8> <lora:tom:1>\nSteps: 2, Seed: 1, CFG scale: 3"
    found = read_foreign_picture(theirs(taught.folder / "a.png", text))
    assert found is not None
    like = request_like(taught.registry, found, taught.base.base, taught.base.sha256)
    assert like.request.prompt == expected
    assert with_layout(like.request).settings.layout is None  # all over the picture, as theirs


def test_a_name_that_begins_another_s_is_another(taught: Taught) -> None:
    digest = of_tensors(taught.folder / "max.safetensors")[:12]
    taught.registry.rename("rex", "max2")
    text = f'a dog <lora:max2:0.5> <lora:max:1>\nSteps: 2, Seed: 1, Lora hashes: "max: {digest}"'
    found = read_foreign_picture(theirs(taught.folder / "a.png", text))
    assert found is not None
    like = request_like(taught.registry, found, taught.base.base, taught.base.sha256)
    assert "<max>" in like.request.prompt


@pytest.mark.parametrize(
    "fields",
    [
        "Steps: 100000, Seed: 1, CFG scale: 3",
        "Steps: 3, Seed: -1, CFG scale: 3",
        "Steps: x, Seed: 1, CFG scale: 3",
        "Steps: 3, Seed: 1, CFG scale: nan",
        "Steps: 3, Seed: 1, Size: 999999x999999",
        "Steps: 3, Seed: 1, Size: 7x7",
        f"Steps: 3, Seed: {'9' * 5000}, CFG scale: 3",
        "Steps: 3, CFG scale: 3, Size: 8x8",
    ],
)
def test_settings_that_cannot_be_drawn_are_told(taught: Taught, fields: str) -> None:
    found = read_foreign_picture(theirs(taught.folder / "a.png", f"a cat\n{fields}"))
    assert found is not None
    with pytest.raises(InvalidImage, match=r"a\.png says of itself cannot be drawn"):
        request_like(taught.registry, found, taught.base.base, taught.base.sha256)


def test_a_jpeg_has_room_or_says_so(taught: Taught) -> None:
    image = Image.new("RGB", (8, 8))
    with pytest.raises(InvalidInput, match="too long for what a JPEG says"):
        encode_picture(image, {"prompt": "é" * 12_000}, file_format="jpg")
    long = Request(prompt="é" * 8_000, seeds=(1,), settings=SETTINGS)
    with pytest.raises(InvalidInput, match="too long"):
        next(generate(taught.registry, taught.base, [long], taught.folder, file_format="jpg"))


def test_frames_are_not_drawn_after_what_a_jpeg_leaves(taught: Taught) -> None:
    asked = [Request(prompt=each, seeds=(1,), settings=SETTINGS) for each in ("a", "b")]
    with pytest.raises(InvalidInput, match="of which a JPEG loses some"):
        next(animate(taught.registry, taught.base, asked, taught.folder, file_format="jpg"))


@pytest.mark.parametrize("data", [b"", b"UNICODE\0", b"UNICODE\0\xd8", b"ASCII\0\0\0\xff", b"\xff"])
def test_any_comment_is_read(data: bytes, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x8769] = {0x9286: data}
    encoded = io.BytesIO()
    Image.new("RGB", (8, 8)).save(encoded, "jpeg", exif=exif.tobytes())
    path = tmp_path / "a.jpg"
    path.write_bytes(encoded.getvalue())
    assert read_texts(path) is not None
    assert read_foreign_picture(path) is None
