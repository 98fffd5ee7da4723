"""Pre-training of a subject encoder on a folder of pictures, for any base model."""

import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from conceptry.models.conditioning import Control
from conceptry.models.control import LoadedControl
from conceptry.models.loading import LoadedBase
from conceptry.models.miniature.recipe.data import prefetched
from conceptry.models.pixels import control_pixels
from conceptry.models.subject_encoder_file import FILE, load_subject_encoder
from conceptry.models.vision import LoadedVision, load_vision
from conceptry.registry.errors import InvalidInput, NotFound
from conceptry.training.subject_encoder import (
    Example,
    check_examples,
    main,
    pictures_batch,
    pictures_with_masks,
    pretrain,
    with_controls,
)
from PIL import Image
from safetensors.torch import load_file
from tiny_control import make_tiny_control
from tiny_encoder import write_tiny_vision
from torch import Tensor


@pytest.fixture
def album(tmp_path: Path) -> Path:
    """Three pictures of 40x32: two with a mask beside them, one of which with a caption."""
    folder = tmp_path / "album"
    folder.mkdir()
    for i in range(3):
        picture = Image.radial_gradient("L").resize((40, 32)).rotate(40 * i).convert("RGB")
        mask = Image.new("L", (40, 32))
        mask.paste(255, (10, 4, 30, 28))
        if i == 2:
            picture.putalpha(mask)
        else:
            mask.save(folder / f"{i}-masklabel.png")
        picture.save(folder / f"{i}.png")
    (folder / "0.txt").write_text("a photo of a dog")
    return folder


@pytest.fixture
def vision(tmp_path: Path) -> LoadedVision:
    return load_vision(str(write_tiny_vision(tmp_path / "vision")))


def test_pictures_come_with_masks_and_captions(album: Path) -> None:
    sources = pictures_with_masks(album)
    assert [each.path.name for each in sources] == ["0.png", "1.png", "2.png"]
    examples = [Example(each) for each in sources]
    batch = pictures_batch(0, split="", offset=0, batch=8, size=16, examples=examples)
    assert {each.size for each in (*batch.pictures, *batch.references)} == {(16, 16)}
    assert set(batch.captions) == {"a photo of a dog", "a photo"}
    for picture, reference in zip(batch.pictures, batch.references, strict=True):
        assert reference.getpixel((0, 0)) == (255, 255, 255)
        assert reference.getpixel((8, 8)) == picture.getpixel((8, 8))
    again = pictures_batch(0, split="", offset=0, batch=8, size=16, examples=examples)
    assert again.captions == batch.captions


def test_pictures_without_masks_are_named(album: Path) -> None:
    (album / "1-masklabel.png").unlink()
    with pytest.raises(InvalidInput, match=r"1\.png has no mask \(1 of 3 pictures have none\)"):
        pictures_with_masks(album)


def trained(
    base: LoadedBase, vision: LoadedVision, album: Path, folder: Path, **options: Any
) -> Path | None:
    examples = [Example(each) for each in pictures_with_masks(album)]
    settings = {"num_steps": 4, "batch": 2, "num_workers": 0, "learning_rate": 1e-2} | options
    return pretrain(base, vision, examples, folder, **settings)


def test_what_it_leaves_is_a_subject_encoder_for_the_base_model(
    base: LoadedBase, vision: LoadedVision, album: Path, tmp_path: Path
) -> None:
    before = {name: value.clone() for name, value in base.backbone.denoiser.state_dict().items()}
    path = trained(base, vision, album, tmp_path / "run")
    assert path == tmp_path / "run" / FILE
    loaded = load_subject_encoder(base, str(path), vision=vision.name)
    outputs = {
        name: value
        for name, value in loaded.encoder.learned_state().items()
        if "attention.to_out.0" in name
    }
    assert outputs
    assert all(value.any() for value in outputs.values())
    after = base.backbone.denoiser.state_dict()
    assert all(value.equal(after[name]) for name, value in before.items())
    settings = json.loads((tmp_path / "run/pretraining.json").read_text())
    assert settings["batch"] == 2
    learned = load_file(tmp_path / "run/pretraining.safetensors")
    assert learned.keys() == loaded.encoder.learned_state().keys()  # not the base model's weights


def test_one_that_was_stopped_ends_bit_equal(
    base: LoadedBase, vision: LoadedVision, album: Path, tmp_path: Path
) -> None:
    whole = trained(base, vision, album, tmp_path / "whole")
    assert trained(base, vision, album, tmp_path / "stopped", stop_at=2) is None
    assert not (tmp_path / "stopped" / FILE).exists()
    stopped = trained(base, vision, album, tmp_path / "stopped")
    assert whole is not None
    assert stopped is not None
    assert whole.read_bytes() == stopped.read_bytes()


def test_it_does_not_go_on_with_something_else(
    base: LoadedBase, vision: LoadedVision, album: Path, tmp_path: Path
) -> None:
    trained(base, vision, album, tmp_path / "run", stop_at=1)
    with pytest.raises(InvalidInput, match="was begun with another vision"):
        trained(base, load_vision("miniature"), album, tmp_path / "run")
    for name, value in (("batch", 1), ("steps", 9), ("learning_rate", 0.1), ("seed", 7)):
        changed: Any = {"num_steps" if name == "steps" else name: value}
        with pytest.raises(InvalidInput, match=f"was begun with another {name.replace('_', ' ')}"):
            trained(base, vision, album, tmp_path / "run", **changed)
    photo = (album / "1.png").read_bytes()
    (album / "1.png").write_bytes(photo + b"\0")
    with pytest.raises(InvalidInput, match="was begun with other pictures"):
        trained(base, vision, album, tmp_path / "run")
    (album / "1.png").write_bytes(photo)
    (album / "2.png").unlink()
    with pytest.raises(InvalidInput, match="was begun with other pictures"):
        trained(base, vision, album, tmp_path / "run")


def test_a_controlnet_shows_the_unet_the_layout(
    base: LoadedBase, vision: LoadedVision, album: Path, tmp_path: Path
) -> None:
    controls = write_controls(album, tmp_path / "controls")
    asked: list[Control | None] = []
    denoise = type(base.backbone).denoise

    def noted(*given: Any) -> Tensor:
        asked.append(given[4])
        return denoise(*given)

    control = LoadedControl("depth", make_tiny_control(base.backbone.pipeline.unet), "1" * 64)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(type(base.backbone), "denoise", noted)
        examples = with_controls(pictures_with_masks(album), controls)
        options: Any = {"num_steps": 2, "batch": 2, "num_workers": 0, "learning_rate": 1e-2}
        shown = pretrain(base, vision, examples, tmp_path / "run", control=control, **options)
    assert shown is not None
    assert len(asked) == 2
    for each in asked:
        assert each is not None
        assert each.network is control.network
        assert each.pixels.shape == (2, 3, 16, 16)
    batch = pictures_batch(0, split="", offset=0, batch=2, size=16, examples=examples)
    assert asked[0] is not None
    assert asked[0].pixels.equal(torch.cat([control_pixels(each) for each in batch.controls]))
    plain = trained(base, vision, album, tmp_path / "plain", num_steps=2)
    assert plain is not None
    assert plain.read_bytes() != shown.read_bytes()
    with pytest.raises(InvalidInput, match="was begun with another control"):
        trained(base, vision, album, tmp_path / "run", num_steps=2)


def write_controls(album: Path, folder: Path) -> Path:
    """A control picture of each picture, as wide as it."""
    folder.mkdir()
    for i in range(3):
        Image.linear_gradient("L").resize((40, 32)).rotate(90 * i).save(folder / f"{i}.png")
    return folder


def test_control_pictures_that_are_missing_or_of_another_shape_are_named(
    album: Path, tmp_path: Path
) -> None:
    controls = write_controls(album, tmp_path / "controls")
    sources = pictures_with_masks(album)
    examples = with_controls(sources, controls)
    check_examples(examples)
    Image.new("RGB", (32, 32)).save(controls / "1.png")
    with pytest.raises(InvalidInput, match=r"1\.png is 32x32, which is another shape"):
        check_examples(examples)
    with pytest.raises(InvalidInput, match=r"1\.png is 32x32, which is another shape"):
        list(prefetched(partial(one_batch, examples), range(1), 0))
    (controls / "1.png").unlink()
    with pytest.raises(InvalidInput, match=r"1\.png has no control picture .*\(1 of 3 pictures"):
        with_controls(sources, controls)
    with pytest.raises(NotFound):
        with_controls(sources, tmp_path / "none")
    Image.new("RGB", (40, 32)).save(controls / "0.jpg")
    with pytest.raises(InvalidInput, match="are control pictures of one picture"):
        with_controls(sources, controls)


def one_batch(examples: list[Example], step: int) -> Any:
    """A batch of so many that all pictures are in it."""
    return pictures_batch(step, split="", offset=0, batch=32, size=16, examples=examples)


def test_checkpointing_is_the_same(
    base: LoadedBase, vision: LoadedVision, album: Path, tmp_path: Path
) -> None:
    trained(base, vision, album, tmp_path / "whole", num_steps=2)
    base.backbone.set_gradient_checkpointing(True)
    trained(base, vision, album, tmp_path / "again", num_steps=2)
    ours, theirs = (load_file(tmp_path / name / FILE) for name in ("again", "whole"))
    assert all(torch.allclose(value, theirs[name], atol=1e-3) for name, value in ours.items())


def test_the_command_tells_what_is_wrong_in_a_line(
    tmp_path: Path,
    album: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    options = ["--base", "miniature", "--vision", str(tmp_path / "nowhere"), "--out", "run"]
    monkeypatch.setattr(sys, "argv", ["subject_encoder", str(album), *options])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 3
    assert "there is no picture encoder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--learning-rate", "-1"], "--learning-rate is -1: expected more than 0"),
        (["--learning-rate", "nan"], "--learning-rate is nan: expected more than 0"),
        (["--workers", "-1"], "--workers is -1: expected 0 or more"),
        (["--device", "nosuch"], "there is no device nosuch"),
        (["--out", __file__], "is no folder -> --out FOLDER"),
        (["--control", "depth"], "--control needs pictures for it"),
    ],
)
def test_options_that_make_no_sense_are_told_in_a_line(
    tmp_path: Path,
    given: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    options = ["--base", "miniature", "--vision", "miniature", "--out", str(tmp_path / "run")]
    monkeypatch.setattr(sys, "argv", ["subject_encoder", str(tmp_path), *options, *given])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    told = capsys.readouterr().err
    assert message in told
    assert told.count("\n") == 1


def test_a_training_that_is_asked_to_stop_leaves_a_resume_point(
    base: LoadedBase, vision: LoadedVision, album: Path, tmp_path: Path
) -> None:
    whole = trained(base, vision, album, tmp_path / "whole")
    assert trained(base, vision, album, tmp_path / "run", should_stop=lambda: True) is None
    assert (tmp_path / "run" / "pretraining.resume.safetensors").exists()
    again = trained(base, vision, album, tmp_path / "run")
    assert whole is not None
    assert again is not None
    assert whole.read_bytes() == again.read_bytes()
