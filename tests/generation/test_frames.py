"""Animations: the order of frames, what each is drawn after, their file, and a frame again."""

import os
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conceptry.generation import (
    FrameWeights,
    Picture,
    Request,
    SamplingSettings,
    animate,
    generate,
    read_provenance,
    reproduce,
    save_animation,
)
from conceptry.generation.control_request import ControlRequest
from conceptry.generation.frames import (
    PHOTO_WEIGHT,
    ChosenFrame,
    check_frame_rate,
    durations,
    find_frames,
    parse_controls,
)
from conceptry.generation.init_request import InitRequest
from conceptry.generation.provenance import DrawnFrame, read_metadata
from conceptry.generation.reference_syntax import ReferenceRequest
from conceptry.generation.references import frame_reference
from conceptry.models.loading import LoadedBase
from conceptry.registry import Registry
from conceptry.registry.errors import InvalidInput, NotFound
from conceptry.registry.files import open_file
from conceptry.registry.hashes import sha256_of
from conceptry.training import train
from PIL import Image
from tiny_control import control_picture, write_tiny_control

SETTINGS = SamplingSettings(steps=2, guidance=3.0)
AFTER_REX = (ReferenceRequest("rex", None, PHOTO_WEIGHT),)
SHORT = ("augmentation.crops=2", "num_tokens=2", *(f"stage{i}.steps=1" for i in (1, 2, 3)))


def request(prompt: str = "a dog", *, seeds: Sequence[int] = (3,), **options: Any) -> Request:
    return Request(prompt=prompt, seeds=seeds, settings=SETTINGS, **options)


@pytest.fixture
def places() -> list[Request]:
    """Three frames of a dog, after a photo of rex."""
    prompts = ("a dog on the beach", "a dog in the snow", "a dog in the forest")
    return [request(each, references=AFTER_REX) for each in prompts]


def frames_of(picture: Picture) -> list[tuple[str, float]]:
    return [(each.sha256, each.weight) for each in read_provenance(picture.path).frames]


def pixels(pictures: Sequence[Picture]) -> list[bytes]:
    return [each.image.tobytes() for each in pictures]


# --- drawing --------------------------------------------------------------------------------------


def test_each_frame_is_drawn_after_the_photo_and_the_frame_before(
    rex: Registry, base: LoadedBase, tmp_path: Path, places: list[Request]
) -> None:
    first, second, third = animate(rex, base, places, tmp_path)
    assert first.path.name == "a-dog-on-the-beach-3-frame-001.png"
    assert third.path.name == "a-dog-on-the-beach-3-frame-003.png", "so that they sort"
    assert {each.seed for each in (first, second, third)} == {3}
    assert frames_of(first) == []
    assert frames_of(second) == [(first.sha256, 1.0)]
    assert frames_of(third) == [(second.sha256, 1.0)]
    made = read_provenance(third.path)
    assert [each.weight for each in made.references] == [10.0]
    assert made.frames[0].prompt == "a dog in the snow"
    recorded: Any = rex.trace(third.sha256).settings
    assert recorded["frames"][0]["sha256"] == second.sha256


def test_without_earlier_frames_it_is_what_generate_draws(
    rex: Registry, base: LoadedBase, tmp_path: Path, places: list[Request]
) -> None:
    plain = list(generate(rex, base, places, tmp_path))
    alone = list(animate(rex, base, places, tmp_path, weights=FrameWeights(previous=0.0)))
    chained = list(animate(rex, base, places, tmp_path))
    assert pixels(alone) == pixels(plain)
    assert "frames" not in rex.trace(alone[2].sha256).settings
    pairs = zip(pixels(chained), pixels(plain), strict=True)
    assert [one == other for one, other in pairs] == [True, False, False]


def test_the_first_frame_too(
    rex: Registry, base: LoadedBase, tmp_path: Path, places: list[Request]
) -> None:
    """Where it is the previous one as well, it is there once with both weights."""
    weights = FrameWeights(previous=1.0, first=2.0)
    first, second, third = animate(rex, base, places, tmp_path, weights=weights)
    assert frames_of(second) == [(first.sha256, 3.0)]
    assert frames_of(third) == [(second.sha256, 1.0), (first.sha256, 2.0)]
    only = list(animate(rex, base, places, tmp_path, weights=FrameWeights(previous=0, first=2)))
    assert frames_of(only[2]) == [(only[0].sha256, 2.0)]
    with pytest.raises(InvalidInput, match="previous"):
        FrameWeights(previous=-1.0)
    with pytest.raises(InvalidInput, match="are 60 and 60: 100 together at most"):
        FrameWeights(previous=60, first=60)


def test_an_animation_goes_on_where_it_was_stopped(
    rex: Registry, base: LoadedBase, tmp_path: Path, places: list[Request]
) -> None:
    """Frames that are there are read; those after one that is gone are drawn again."""
    both = [replace(each, seeds=(3, 4)) for each in places]
    whole = list(animate(rex, base, both, tmp_path / "whole"))
    there = list(islice(animate(rex, base, both, tmp_path), 5))
    found = list(animate(rex, base, both, tmp_path))
    assert [each.is_new for each in found] == [False] * 5 + [True]
    assert [each.path for each in found[:5]] == [each.path for each in there]
    assert pixels(found) == pixels(whole)
    assert frames_of(found[5]) == frames_of(whole[5]) == [(there[4].sha256, 1.0)]
    found[1].path.unlink()
    again = list(animate(rex, base, both, tmp_path))
    assert [each.is_new for each in again] == [False, True, False, False, False, False], (
        "the second is the same again, so the third was drawn after it"
    )
    assert pixels(again) == pixels(whole)


def test_what_is_not_there_any_more_is_drawn(
    rex: Registry,
    base: LoadedBase,
    tmp_path: Path,
    places: list[Request],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A frame that is gone by the time it is read; files that cannot be read are none of ours."""
    drawn = list(animate(rex, base, places, tmp_path))
    (tmp_path / "a-dog-on-the-beach-3-locked.png").write_bytes(b"")
    really = open_file

    def locked(root: Path, path: Path) -> Any:
        if "locked" in path.name:
            raise PermissionError(13, "Permission denied", path.name)
        return really(root, path)

    monkeypatch.setattr("conceptry.generation.resuming.open_file", locked)
    again = animate(rex, base, places, tmp_path)
    assert not next(again).is_new
    drawn[1].path.write_bytes(b"another")
    drawn[2].path.unlink()
    second, third = again
    assert (second.is_new, third.is_new) == (True, True)
    assert pixels([second, third]) == pixels(drawn[1:])


def test_an_animation_reads_its_own_frames_alone(
    rex: Registry,
    base: LoadedBase,
    tmp_path: Path,
    places: list[Request],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Not each picture of a large folder."""
    first = next(animate(rex, base, places[:1], tmp_path))
    (tmp_path / "another-9.png").write_bytes(first.path.read_bytes())
    read: list[str] = []
    really = read_metadata

    def noted(path: Path) -> Any:
        read.append(path.name)
        return really(path)

    monkeypatch.setattr("conceptry.generation.resuming.read_metadata", noted)
    assert not next(animate(rex, base, places[:1], tmp_path)).is_new
    assert read == [first.path.name]


def test_of_another_category_frames_are_other_ones(
    rex: Registry, base: LoadedBase, tmp_path: Path, places: list[Request]
) -> None:
    list(animate(rex, base, places, tmp_path))
    rex.edit("rex", category="cat")
    assert all(each.is_new for each in animate(rex, base, places, tmp_path))
    assert not any(each.is_new for each in animate(rex, base, places, tmp_path))


@pytest.mark.parametrize(
    "changed",
    [
        {"weights": FrameWeights(previous=2.0)},
        {"with_leaks": True},
        {"with_maps": True},
        {"file_format": "webp"},
    ],
    ids=str,
)
def test_frames_that_were_drawn_otherwise_are_drawn(
    rex: Registry,
    base: LoadedBase,
    tmp_path: Path,
    places: list[Request],
    changed: dict[str, Any],
) -> None:
    """A picture that is not called as a frame is none, though it shows the same."""
    list(generate(rex, base, places[:1], tmp_path))
    first = list(animate(rex, base, places, tmp_path))
    found = list(animate(rex, base, places, tmp_path, **changed))
    assert [each.is_new for each in first] == [True, True, True]
    assert [each.is_new for each in found] == ["weights" not in changed, True, True]
    assert all("frame" in each.path.name for each in [*first, *found])


def test_each_seed_is_an_animation_of_its_own(
    rex: Registry, base: LoadedBase, tmp_path: Path, places: list[Request]
) -> None:
    both = [replace(each, seeds=(3, 4)) for each in places]
    found = list(animate(rex, base, both, tmp_path))
    assert [each.seed for each in found] == [3, 3, 3, 4, 4, 4]
    assert frames_of(found[3]) == []
    assert frames_of(found[4]) == [(found[3].sha256, 1.0)]
    alone = list(animate(rex, base, [replace(each, seeds=(4,)) for each in places], tmp_path))
    assert pixels(alone) == pixels(found[3:])


def test_an_earlier_frame_is_its_subject_at_the_size_that_was_drawn(base: LoadedBase) -> None:
    drawn = DrawnFrame("0" * 64, "a dog", 1.0)
    picture = Image.radial_gradient("L").resize((32, 16)).convert("RGB")
    found = frame_reference(base, ChosenFrame(drawn, picture), ["dog"], (32, 16))
    assert tuple(found.latents.shape[1:]) == (8, 16)
    assert 0 < float(found.mask.mean()) < 1
    assert (found.prompt, found.weight) == ("a dog", 1.0)
    both = frame_reference(base, ChosenFrame(drawn, picture), ["dog", "cat"], (32, 16))
    assert (both.mask >= found.mask).all()
    whole = frame_reference(base, ChosenFrame(drawn, picture), [])
    assert tuple(whole.mask.shape) == (8, 8)
    assert float(whole.mask.min()) == 1


@pytest.mark.long
def test_concepts_may_change_from_frame_to_frame(
    rex: Registry, base: LoadedBase, tmp_path: Path, pictures: list[Image.Image]
) -> None:
    """What a frame does not name is described by its category, in another strength by this one."""
    pictures[0].save(tmp_path / "mia.png")
    rex.add("mia", [tmp_path / "mia.png"], category="cat")
    train(rex, "rex", base, overrides=SHORT, seed=1)
    train(rex, "mia", base, method="sefi", overrides=("embedding.steps=1",), seed=1)
    wanted = [request(each) for each in ("<rex:0.5> runs", "<rex> and <mia> run", "<mia> sleeps")]
    found = list(animate(rex, base, wanted, tmp_path))
    described = [read_provenance(each.path).frames[0].prompt for each in found[1:]]
    assert described == ["<rex> runs", "dog and <mia> run"]
    assert [len(rex.trace(each.sha256).sources) > 0 for each in found] == [True] * 3
    for each in found:
        _, is_same = reproduce(rex, base, each.path, tmp_path / "again")
        assert is_same


def test_maps_of_frames_have_a_row_for_the_frame_before(
    rex: Registry, base: LoadedBase, tmp_path: Path, places: list[Request]
) -> None:
    first, second = animate(rex, base, places[:2], tmp_path, with_maps=True)
    assert first.maps
    assert second.maps
    with Image.open(first.maps) as one, Image.open(second.maps) as two:
        assert one.height < two.height


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"seeds": (4,)}, "frame 2 has other seeds"),
        ({"settings": replace(SETTINGS, size=(32, 32))}, "frame 2 has another"),
    ],
)
def test_what_is_no_animation(
    rex: Registry,
    base: LoadedBase,
    tmp_path: Path,
    places: list[Request],
    changed: dict[str, Any],
    text: str,
) -> None:
    wrong = [places[0], replace(places[1], **changed)]
    for requests, message in ((wrong, text), ([], "not 0"), (places * 400, "not 1,200")):
        with pytest.raises(InvalidInput, match=message):
            next(animate(rex, base, requests, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


# --- control pictures -----------------------------------------------------------------------------


def test_a_folder_of_controls_is_in_the_order_of_its_numbers(tmp_path: Path) -> None:
    folder = tmp_path / "walk:1"
    folder.mkdir()
    for name in ("10.png", "2.png", "1.PNG", "a2.png", "a10.png", ".hidden.png"):
        control_picture(tmp_path / "one.png").rename(folder / name)
    (folder / "notes.txt").write_text("no picture")
    (folder / "more.png").mkdir()
    found = parse_controls(str(folder), scale=0.5)
    assert [each.picture.name for each in found] == [
        "1.PNG", "2.png", "10.png", "a2.png", "a10.png"
    ]  # fmt: skip
    assert {(each.kind, each.scale) for each in found} == {(None, 0.5)}
    assert parse_controls(f"{folder}:pose")[0].kind == "pose"
    (tmp_path / "empty").mkdir()
    with pytest.raises(InvalidInput, match="no picture in the folder"):
        parse_controls(str(tmp_path / "empty"))
    for text in ("gone", "gone:pose", f"{folder}:", "", str(folder / "2.png")):
        with pytest.raises(NotFound, match="no folder"):
            parse_controls(text)


def test_frames_follow_their_control_pictures(
    rex: Registry, base: LoadedBase, tmp_path: Path
) -> None:
    net = write_tiny_control(tmp_path / "net", base.backbone.pipeline.unet)
    (tmp_path / "walk").mkdir()
    for i in range(3):
        shifted = np.roll(np.asarray(Image.open(control_picture(tmp_path / "one.png"))), 4 * i, 1)
        Image.fromarray(shifted).save(tmp_path / f"walk/{i}.png")
    asked = request(references=AFTER_REX)
    controls = parse_controls(f"{tmp_path / 'walk'}:{net}")
    wanted = [replace(asked, control=each) for each in controls]
    found = list(animate(rex, base, wanted, tmp_path))
    used = [read_provenance(each.path).control for each in found]
    assert len({each.image_sha256 for each in used if each}) == 3
    again = ControlRequest(picture=tmp_path / "walk/2.png", kind=str(net))
    _, is_same = reproduce(rex, base, found[2].path, tmp_path, control=again)
    assert is_same


def test_earlier_frames_follow_the_control_net_by_their_own_control_pictures(
    rex: Registry, base: LoadedBase, tmp_path: Path
) -> None:
    net = write_tiny_control(tmp_path / "net", base.backbone.pipeline.unet)
    one = control_picture(tmp_path / "one.png")
    Image.open(one).transpose(Image.Transpose.ROTATE_90).save(tmp_path / "two.png")
    (tmp_path / "away").mkdir()
    moved = (tmp_path / "two.png").rename(tmp_path / "away/two.png")
    asked = request(references=AFTER_REX)
    controls = [ControlRequest(picture=each, kind=str(net)) for each in (moved, one)]
    wanted = [replace(asked, control=each) for each in controls]
    _, second = animate(rex, base, wanted, tmp_path)
    (before,) = read_provenance(second.path).frames
    assert before.control == sha256_of(moved.read_bytes())
    with pytest.raises(NotFound, match="a control picture of its own"):
        reproduce(rex, base, second.path, tmp_path, control=controls[1])
    again = partial(reproduce, rex, base, second.path, tmp_path, control=controls[1])
    assert again(layouts=[moved])[1]
    with pytest.raises(NotFound, match=r"no control picture gone\.png"):
        again(layouts=[Path("gone.png")])
    (alone,) = animate(rex, base, [wanted[0]], tmp_path)
    with pytest.raises(InvalidInput, match="not drawn after a reference with a control picture"):
        reproduce(rex, base, alone.path, tmp_path, control=controls[0], layouts=[moved])
    elsewhere = write_tiny_control(tmp_path / "other", base.backbone.pipeline.unet)
    other = replace(controls[0], kind=str(elsewhere))
    _, third = animate(rex, base, [replace(asked, control=other), wanted[1]], tmp_path)
    assert read_provenance(third.path).frames[0].control is None


# --- the animation --------------------------------------------------------------------------------


@pytest.mark.parametrize(("file_format", "shown"), [("webp", 125), ("gif", 120)])
def test_an_animation_has_all_frames(tmp_path: Path, file_format: Any, shown: int) -> None:
    images = [Image.new("RGB", (24, 16), colour) for colour in ("red", "green", "blue")]
    frames = [Picture(tmp_path, 3, "", "a <rex>", None, each) for each in images]
    path, other, again, same = (
        save_animation(each, tmp_path, file_format=file_format)
        for each in (frames, frames[::-1], frames[::-1], frames)
    )
    assert path.name == f"a-rex-3.{file_format}"
    assert other.name == f"a-rex-3-2.{file_format}"
    assert (same, again) == (path, other), "the very same is not written twice"
    with Image.open(path) as opened:
        animation: Any = opened
        assert animation.n_frames == 3
        assert animation.info["loop"] == 0
        for i in range(3):
            animation.seek(i)
            animation.load()
            assert abs(animation.info["duration"] - shown) <= 10


def test_durations_do_not_drift() -> None:
    assert durations(3, 8, 1) == [125, 125, 125]
    for rate in (8, 30):
        found = durations(rate, rate, 10)
        assert sum(found) == 1000
        assert max(found) - min(found) == 10
    for rate in (0.0, 51.0, float("nan")):
        with pytest.raises(InvalidInput, match=r"0\.1 to 50"):
            check_frame_rate(rate)


# --- a frame again --------------------------------------------------------------------------------


def test_a_frame_is_drawn_again_from_the_one_beside_it(
    rex: Registry, base: LoadedBase, tmp_path: Path, places: list[Request]
) -> None:
    album = tmp_path / "album"
    weights = FrameWeights(first=0.5)
    frames = list(animate(rex, base, places, album, weights=weights))
    frames[1].path.rename(album / "called otherwise.png")
    again, is_same = reproduce(rex, base, frames[2].path, tmp_path / "again")
    assert is_same
    before, now = (read_provenance(each.path) for each in (frames[2], again))
    assert before == now
    elsewhere = frames[2].path.rename(tmp_path / "elsewhere.png")
    given = [album / "called otherwise.png", frames[0].path]
    _, is_same = reproduce(rex, base, elsewhere, tmp_path / "again", frames=given)
    assert is_same
    with pytest.raises(NotFound, match="whose file is not beside it") as failure:
        reproduce(rex, base, elsewhere, tmp_path / "again", frames=given[:1])
    assert f"begins with {frames[0].sha256[:12]}" in (failure.value.hint or "")


@pytest.fixture
def begun(tmp_path: Path) -> Path:
    """A picture to begin with."""
    path = tmp_path / "begun.png"
    Image.radial_gradient("L").resize((16, 16)).convert("RGB").save(path)
    return path


def test_frames_may_begin_with_a_picture_and_are_drawn_again(
    rex: Registry, base: LoadedBase, tmp_path: Path, places: list[Request], begun: Path
) -> None:
    size = replace(SETTINGS, size=(16, 16))
    plain = [replace(each, settings=size) for each in places]
    asked = [replace(each, init=InitRequest(picture=begun, strength=0.6)) for each in places]
    frames = list(animate(rex, base, asked, tmp_path / "album"))
    assert frames_of(frames[2]) == [(frames[1].sha256, 1.0)]
    assert pixels(frames) != pixels(list(animate(rex, base, plain, tmp_path / "plain")))
    used = read_provenance(frames[2].path).init
    assert used is not None
    assert used.strength == 0.6
    again = InitRequest(picture=begun)
    for frame in frames:
        found, is_same = reproduce(rex, base, frame.path, tmp_path / "again", init=again)
        assert is_same
        assert read_provenance(found.path) == read_provenance(frame.path)


@pytest.mark.parametrize("strength", [0.6, 1.0])
def test_a_part_is_redrawn_after_a_photo_and_again(
    rex: Registry, base: LoadedBase, tmp_path: Path, begun: Path, strength: float
) -> None:
    mask = Image.new("L", (16, 16))
    mask.paste(255, (8, 0, 16, 16))
    mask.save(tmp_path / "mask.png")
    init = InitRequest(picture=begun, strength=strength, mask=tmp_path / "mask.png")
    asked = request(init=init, references=AFTER_REX, seeds=(3, 4))
    drawn = list(generate(rex, base, [asked], tmp_path / "album"))
    plain = generate(rex, base, [replace(asked, references=())], tmp_path / "plain")
    assert not set(pixels(drawn)) & set(pixels(list(plain)))
    with Image.open(begun) as before:
        for each in drawn:
            kept, was = (np.asarray(image)[:, 0] for image in (each.image, before))
            assert np.array_equal(kept, was)
    _, is_same = reproduce(rex, base, drawn[1].path, tmp_path / "again", init=init)
    assert is_same


def test_files_that_are_not_the_frame(
    rex: Registry, base: LoadedBase, tmp_path: Path, places: list[Request]
) -> None:
    """Links beside a picture are passed over, and names in metadata are none of files."""
    album = tmp_path / "album"
    first, second = animate(rex, base, places[:2], album)
    wanted = read_provenance(second.path).frames
    moved = first.path.rename(tmp_path / "moved.png")
    first.path.symlink_to(moved)
    os.mkfifo(album / "pipe.png")
    with pytest.raises(NotFound, match="not beside it"):
        find_frames(second.path, wanted, ())
    with pytest.raises(NotFound, match="there is no frame"):
        find_frames(second.path, wanted, [tmp_path / "gone.png"])
    assert find_frames(second.path, wanted, [moved]) == [moved]
    (tmp_path / "linked").symlink_to(album)
    moved.replace(first.path)
    assert find_frames(tmp_path / "linked" / second.path.name, wanted, ())
    with pytest.raises(InvalidInput, match="not drawn after another frame"):
        find_frames(first.path, (), [second.path])
