"""`concept mask`: masks that are found, shown, corrected and never overwritten."""

from pathlib import Path

import pytest
from conceptry.registry import Registry
from drawing import draw_masks
from PIL import Image
from program import Ask, Run, error_of
from tiny_base import write_tiny_base


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_tiny_base(tmp_path_factory.mktemp("bases") / "tiny"))


def masks(registry: Registry) -> list[str | None]:
    return [image.mask for image in registry.show("rex").images]


def test_a_preview_stores_nothing(rex: Registry, run: Run, tiny: str) -> None:
    result = run("mask", "rex", "--preview", "--base", tiny)
    assert (result.exit_code, result.stdout) == (
        0,
        "rex: 3 masks found, 0 stored; masks/rex.png\n",
    )
    assert masks(rex) == [None] * 3
    with Image.open("masks/rex.png") as sheet:
        assert sheet.height > 3 * 192
    for number, image in enumerate(rex.show("rex").images):
        with Image.open(f"masks/rex/0{number}.png") as mask:
            assert (mask.mode, mask.size) == ("L", (image.width, image.height))


def test_masks_are_found_once(rex: Registry, run: Run, ask: Ask, tiny: str) -> None:
    done = ask("mask", "rex", "--base", tiny)
    assert [each["stored"] for each in done["masks"]] == [True] * 3
    assert all(0 < each["share"] < 1 for each in done["masks"])
    assert all(masks(rex))
    stored = rex.read_mask(rex.show("rex").images[0])
    assert stored is not None
    with Image.open("masks/rex/00.png") as file:
        assert file.tobytes() == stored.tobytes()
    assert "3 photos updated" in run("history", "rex").stdout
    again = ask("mask", "rex", "--base", "none-is-loaded")
    assert again["masks"] == []
    said = run("mask", "rex").stderr
    assert "all photos of rex have masks: --replace finds them anew" in said


def test_what_a_person_gave_is_kept(rex: Registry, ask: Ask, run: Run, tiny: str) -> None:
    rex.add("rex", ["photos/01.png"], masks=draw_masks(Path("own"), 2))
    own = masks(rex)[1]
    done = ask("mask", "rex", "--base", tiny)
    assert [each["filename"] for each in done["masks"]] == ["00.png", "02.png"]
    assert masks(rex)[1] == own
    done = ask("mask", "rex", "--base", tiny, "--replace")
    assert [each["stored"] for each in done["masks"]] == [True] * 3
    assert masks(rex)[1] != own


def test_masks_are_corrected_as_files(rex: Registry, run: Run, ask: Ask, tiny: str) -> None:
    """A file that was painted on is not written again, and can be given back."""
    ask("mask", "rex", "--preview", "--base", tiny)
    painted = Image.new("L", (512, 512))
    painted.paste(255, (100, 100, 200, 200))
    painted.save("masks/rex/01.png")
    before = Path("masks/rex/01.png").read_bytes()
    result = run("mask", "rex", "--preview", "--base", tiny)
    assert "masks/rex/01.png was there already and is kept" in result.stderr
    assert Path("masks/rex/01.png").read_bytes() == before
    ask("add", "rex", "photos", "--masks", "masks/rex")
    stored = rex.read_mask(rex.show("rex").images[1])
    assert stored is not None
    assert stored.tobytes() == painted.tobytes()


class Everything:
    """Sees a subject wherever it looks."""

    def find(self, photo: Image.Image, category: str) -> Image.Image:
        """See `MaskFinder`."""
        del category
        return Image.new("L", photo.size, 255)


def test_a_base_model_that_is_not_used_is_told(
    rex: Registry, run: Run, tiny: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = "conceptry.training.mask_models.load_mask_model"
    monkeypatch.setattr(where, lambda *_, **__: Everything())
    told = run("mask", "rex", "--model", "any", "--base", tiny, "--preview")
    assert (told.exit_code, "any needs no base model: --base is unused" in told.stderr) == (0, True)
    assert "--base" not in run("mask", "rex", "--model", "any").stderr
    assert all(masks(rex))


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["mask", "max"], 3, 'no concept is named "max"'),
        (["mask", "rex", "--model", "nowhere"], 3, 'there is no model "nowhere"'),
        (["mask", "rex", "--model", "a/b", "--offline"], 3, "a/b is not on this machine"),
        (["mask", "rex", "--out", "registry/concepts.blobs/x"], 2, "registry"),
    ],
)
def test_mistakes_are_told(
    arguments: list[str], code: int, message: str, rex: Registry, run: Run
) -> None:
    result = run("--json", *arguments)
    assert result.exit_code == code
    assert message in error_of(result)["message"]
    assert masks(rex) == [None] * 3
