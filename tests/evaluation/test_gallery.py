"""A gallery shows what there is, again and again, and nothing that is gone."""

import json
import re
from collections.abc import Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from conceptry.evaluation import gallery
from conceptry.evaluation.gallery import GalleryReport, GalleryRequest, status_of, write_gallery
from conceptry.generation.provenance import save_picture
from conceptry.registry import Registry
from conceptry.registry.errors import AlreadyExists, InvalidInput, RegistryCorrupt, StorageError
from drawing import draw, draw_file, draw_folder
from fake_training import train, weights_file

REGIONS = {
    "rex": [[(0.1, 0.2), (0.5, 0.2), (0.5, 0.9)]],
    "a <b>": [[(0.5, 0.2), (0.9, 0.2), (0.9, 0.9)]],
}


@pytest.fixture
def pets(registry: Registry, tmp_path: Path) -> Registry:
    """A trained dog with two photos, and a cat with one."""
    registry.add("rex", [draw_folder(tmp_path / "rex", 2)], category="dog", tags=["pets"])
    registry.add("mia", [draw_file(tmp_path / "mia.png", 9)], category="cat", notes="<b>&")
    train(registry, "rex", tmp_path)
    return registry


def drawn(
    registry: Registry,
    folder: Path,
    seed: int,
    *,
    on_record: bool = True,
    prompt: str = "a photo of <rex>",
    **settings: Any,
) -> Path:
    """A picture of rex that was drawn, with what it was drawn from in its file."""
    (artifact,) = registry.show("rex").versions[0].artifacts
    made_by = {"prompt": prompt, "seed": seed, "base": "sd21", "base_sha256": "0" * 64}
    versions = [{"concept": "rex", "version": 1, "sha256": artifact.sha256}]

    def record(sha256: str) -> None:
        if on_record:
            registry.add_generation(sha256, **made_by, settings=settings, versions=[("rex", 1)])

    metadata = {**made_by, "settings": settings, "versions": versions}
    path, _ = save_picture(draw(100 + seed), folder, f"rex-{seed}", metadata, record=record)
    return path


def write(registry: Registry, tmp_path: Path, **request: Any) -> GalleryReport:
    return write_gallery(registry, GalleryRequest(**request), tmp_path / "gallery")


class _Page(HTMLParser):
    """Collects what a page is made of."""

    VOID = frozenset(("meta", "img", "br", "input", "path"))

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.text = (folder / "gallery.html").read_text(encoding="utf-8")
        self.open: list[str] = []
        self.tags: list[tuple[str, Mapping[str, str | None]]] = []
        self.feed(self.text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open += [] if tag in self.VOID else [tag]
        self.tags.append((tag, dict(attrs)))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def all(self, attribute: str) -> list[str]:
        return [given[attribute] or "" for _, given in self.tags if attribute in given]


def test_it_holds_photos_versions_and_pictures(pets: Registry, tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    for seed in range(3):
        drawn(pets, folder, seed)
    pets.set_alias("rex", 1, "best")
    scores = {"both": {"mean": 0.714, "low": 0.5, "high": 0.9}}
    pets.add_evaluation("rex", 1, suite="living", config={}, scores={"scores": scores})
    report = write(pets, tmp_path, pictures=[folder])
    assert (report.concepts, report.pictures, report.missing, report.unknown) == (2, 3, 0, 0)
    page = _Page(tmp_path / "gallery")
    sources = set(page.all("src"))
    assert all((tmp_path / "gallery" / each).is_file() for each in sources)
    assert len(sources) == report.made == 3 + 3
    assert all(
        alt is not None for tag, given in page.tags if tag == "img" for alt in [given["alt"]]
    )
    for text in (
        "rex@1",
        "best",
        "living: both 0.71",
        "seed 2",
        "trained by",
        "a photo of &lt;rex&gt;",
    ):
        assert text in page.text
    ids = page.all("id")
    assert len(ids) == len(set(ids))
    assert {link.removeprefix("#") for link in page.all("href")} <= set(ids)
    assert "http" not in page.text.replace("http-equiv", "")
    assert "\N{REPLACEMENT CHARACTER}" not in page.text
    assert "\N{NO-BREAK SPACE}kB" in page.text.replace("KB", "kB")
    assert page.text.index('id="c2"') < page.text.index('id="c1"'), "mia before rex"


def test_texts_are_escaped_and_cleaned(pets: Registry, tmp_path: Path) -> None:
    prompt = '<rex> "><script>alert(1)</script>\x1b[1m'
    folder = tmp_path / "pictures"
    drawn(pets, folder, 1, prompt=prompt, on_record=False, regions=REGIONS)
    write(pets, tmp_path, pictures=[folder])
    text = _Page(tmp_path / "gallery").text
    assert text.count("<script>") == 1, "our own"
    assert "&lt;script&gt;alert" in text
    assert "\x1b" not in text
    assert "&lt;b&gt;&amp;" in text
    assert "a &lt;b&gt;</li>" in text


def test_regions_are_drawn_and_odd_ones_left_out(pets: Registry, tmp_path: Path) -> None:
    drawn(pets, tmp_path / "pictures", 1, regions=REGIONS)
    drawn(pets, tmp_path / "pictures", 2, regions={"rex": [[("a", 1)]]})
    drawn(pets, tmp_path / "pictures", 3, regions="all over")
    assert write(pets, tmp_path, pictures=[tmp_path / "pictures"]).pictures == 3
    shown = re.findall(r'<svg class="regions".*?</svg>', _Page(tmp_path / "gallery").text)
    assert len(shown) == 1
    assert shown[0].count('class="edge"') == 2


def test_the_second_run_makes_nothing_and_writes_nothing(pets: Registry, tmp_path: Path) -> None:
    drawn(pets, tmp_path / "pictures", 1)
    first = write(pets, tmp_path, pictures=[tmp_path / "pictures"])
    page = tmp_path / "gallery/gallery.html"
    before = page.stat()
    again = write(pets, tmp_path, pictures=[tmp_path / "pictures"])
    assert (first.changed, again.changed) == (True, False)
    assert (again.made, again.kept, again.removed) == (0, first.made, 0)
    assert (page.stat().st_ino, page.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_only_what_is_new_is_read(
    pets: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "pictures"
    drawn(pets, folder, 1)
    write(pets, tmp_path, pictures=[folder])
    opened: list[str] = []
    read = gallery.read_file

    def noted(path: Path) -> bytes:
        opened.append(path.name)
        return read(path)

    monkeypatch.setattr("conceptry.evaluation.picture_files.read_file", noted)
    monkeypatch.setattr(gallery, "read_file", noted)
    drawn(pets, folder, 2)
    assert write(pets, tmp_path, pictures=[folder]).made == 1
    assert set(opened) == {"rex-2.png"}


def test_what_is_gone_is_removed(pets: Registry, tmp_path: Path) -> None:
    mine = tmp_path / "gallery/thumbnails/mine.webp"
    write(pets, tmp_path)
    mine.write_bytes(b"mine")
    pets.remove(["mia"])
    report = write(pets, tmp_path)
    assert (report.concepts, report.removed, report.changed) == (1, 1, True)
    page = _Page(tmp_path / "gallery")
    left = {f"thumbnails/{each.name}" for each in mine.parent.glob("*.webp")}
    left |= {f"thumbnails/{each.name}" for each in mine.parent.glob("*.png")}
    assert left == {*page.all("src"), "thumbnails/mine.webp"}


def test_one_that_fails_leaves_the_former_page_whole(
    pets: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(pets, tmp_path)
    before = _Page(tmp_path / "gallery")
    pets.remove(["mia"])
    drawn(pets, tmp_path / "pictures", 1)

    def fail(*_: object) -> bool:
        raise KeyboardInterrupt

    monkeypatch.setattr(gallery, "_replaced", fail)
    with pytest.raises(KeyboardInterrupt):
        write(pets, tmp_path, pictures=[tmp_path / "pictures"])
    assert _Page(tmp_path / "gallery").text == before.text
    assert all((tmp_path / "gallery" / each).is_file() for each in before.all("src"))
    monkeypatch.undo()
    assert write(pets, tmp_path).removed == 2


@pytest.mark.parametrize(
    ("request_", "found", "left_out"),
    [
        ({}, ["mia", "rex"], []),
        ({"names": ["rex", "mia", "rex"]}, ["rex", "mia"], []),
        ({"tags": ["pets"]}, ["rex"], []),
        ({"category": "cat"}, ["mia"], []),
        ({"status": "trained"}, ["rex"], []),
        ({"status": "untrained"}, ["mia"], []),
        ({"names": ["mia", "rex"], "status": "trained"}, ["rex"], ["mia"]),
        ({"tags": ["nothing"]}, [], []),
    ],
    ids=str,
)
def test_what_is_named_is_shown(
    pets: Registry,
    tmp_path: Path,
    request_: dict[str, Any],
    found: list[str],
    left_out: list[str],
) -> None:
    report = write(pets, tmp_path, **request_)
    names = re.findall(r"<b>([a-z]+)</b>", _Page(tmp_path / "gallery").text)
    assert (names, report.left_out) == (found, left_out)


def test_a_status_that_there_is_not_is_told(pets: Registry, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="is no status"):
        write(pets, tmp_path, status="asleep")


def test_statuses(pets: Registry, tmp_path: Path) -> None:
    assert [status_of(pets.show(name)) for name in ("rex", "mia")] == ["trained", "untrained"]
    pets.add_version("mia", {"adapter": weights_file(tmp_path / "w.safetensors")})
    assert status_of(pets.show("mia")) == "trained"
    run = pets.begin_run(
        "mia", method="x", config={}, base="b", base_sha256="", seed=0, packages={}
    )
    pets.end_run(run, "failed")
    assert status_of(pets.show("mia")) == "failed"


def test_the_newest_pictures_are_shown_and_the_rest_counted(pets: Registry, tmp_path: Path) -> None:
    for seed in range(4):
        drawn(pets, tmp_path / "pictures", seed)
    report = write(pets, tmp_path, pictures=[tmp_path / "pictures"], most=1)
    text = _Page(tmp_path / "gallery").text
    assert report.pictures == 1
    assert "seed 3," in text
    assert "seed 2," not in text
    assert "and 3 more" in text
    assert "and 1 more" in text, "photos"
    assert write(pets, tmp_path, pictures=[tmp_path / "pictures"], most=0).pictures == 4


def test_pictures_that_are_not_on_record_go_by_their_weights(
    pets: Registry, tmp_path: Path
) -> None:
    folder = tmp_path / "pictures/below"
    drawn(pets, folder, 1, on_record=False)
    drawn(pets, folder, 2)
    drawn(pets, folder, 3).unlink()
    draw(7).save(folder / "holiday.png")
    (folder / "broken.png").write_bytes(b"\x89PNG")
    strange = {"prompt": "x", "seed": 1, "base": "b", "settings": {}}
    save_picture(draw(8), folder, "other", strange | {"versions": [{"sha256": "1" * 64}]})
    report = write(pets, tmp_path, pictures=[tmp_path / "pictures"])
    assert (report.pictures, report.missing, report.unknown) == (2, 1, 1)
    text = _Page(tmp_path / "gallery").text
    assert text.count("by its own account") == 1
    assert "1 picture more on record" in text


def test_photos_that_are_damaged_leave_a_gap(pets: Registry, tmp_path: Path) -> None:
    first, _ = pets.show("rex").images
    pets.path_of(first.sha256).chmod(0o600)
    pets.path_of(first.sha256).write_bytes(b"damaged")
    assert write(pets, tmp_path).made == 2


def test_where_versions_came_from(pets: Registry, tmp_path: Path) -> None:
    config = {"compressed_from": 1, "merged_from": ["rex@1", "<mia>@2"]}
    run = pets.begin_run(
        "rex", method="svd", config=config, base="sd21", base_sha256="", seed=5, packages={}
    )
    pets.finish_run(run, {"adapter": weights_file(tmp_path / "w.safetensors", 3)})
    write(pets, tmp_path)
    text = _Page(tmp_path / "gallery").text
    assert "compressed from version 1, merged from rex@1, &lt;mia&gt;@2" in text


def test_a_compressed_version_is_told_from_the_one_it_was_made_of(
    pets: Registry, tmp_path: Path
) -> None:
    run = pets.show("rex").versions[0].run
    pets.add_version(
        "rex",
        {"adapter": weights_file(tmp_path / "w.safetensors", 3)},
        run=run,
        origin={"compressed_from": 1, "to": "svd:2"},
    )
    write(pets, tmp_path)
    text = _Page(tmp_path / "gallery").text
    assert "made of version 1, svd:2, trained by" in text
    assert "the same training" not in text


def test_a_concept_without_pictures_shows_two_photos(pets: Registry, tmp_path: Path) -> None:
    write(pets, tmp_path)
    cards = _Page(tmp_path / "gallery").text.split('class="covers"')[1:]
    shown = [card.partition("</summary>")[0].count("<img") for card in cards]
    assert shown == [min(2, len(pets.show(name).images)) for name in ("mia", "rex")]
    assert 2 in shown


def test_odd_scores_are_left_out(pets: Registry, tmp_path: Path) -> None:
    odd: list[dict[str, Any]] = [
        {"scores": {"both": {"mean": "high"}}},
        {"scores": [1], "prompts": {"a": 1}, "others": 3},
        {
            "prompts": [
                {"prompt": 3, "pictures": [{}]},
                4,
                {"prompt": "x", "pictures": [{"seed": "a"}]},
            ]
        },
        {"scores": {"both": {"mean": 1e300}}},
    ]
    for number, scores in enumerate(odd):
        pets.add_evaluation("rex", 1, suite=f"s{number}", config={"chosen_by": [3]}, scores=scores)
    assert write(pets, tmp_path).pictures == 0
    assert len(re.findall(r"s\d: no score", _Page(tmp_path / "gallery").text)) == 4


def test_nothing_else_is_replaced(pets: Registry, tmp_path: Path) -> None:
    page = tmp_path / "gallery/gallery.html"
    page.parent.mkdir()
    page.write_text("my own")
    with pytest.raises(AlreadyExists, match="is not a gallery"):
        write(pets, tmp_path)
    assert page.read_text() == "my own"


def test_links_are_not_followed(pets: Registry, tmp_path: Path) -> None:
    away = tmp_path / "away"
    away.mkdir()
    (tmp_path / "gallery").mkdir()
    (tmp_path / "gallery/thumbnails").symlink_to(away)
    with pytest.raises(RegistryCorrupt, match="is a link"):
        write(pets, tmp_path)
    assert list(away.iterdir()) == []


def test_the_registry_and_files_are_no_place_for_it(pets: Registry, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="belongs to the registry"):
        write_gallery(pets, GalleryRequest(), pets.location.blobs / "gallery")
    (tmp_path / "gallery").write_text("a file")
    with pytest.raises(StorageError, match="cannot"):
        write(pets, tmp_path)


def test_a_spoilt_memory_is_made_again(pets: Registry, tmp_path: Path) -> None:
    drawn(pets, tmp_path / "pictures", 1)
    write(pets, tmp_path, pictures=[tmp_path / "pictures"])
    memory = tmp_path / "gallery/thumbnails/pictures.json"
    for spoilt in ("[", "[]", json.dumps({"a": [1, 2, "../x", None]})):
        memory.write_text(spoilt)
        assert write(pets, tmp_path, pictures=[tmp_path / "pictures"]).pictures == 1
        assert str(tmp_path) not in memory.read_text()
