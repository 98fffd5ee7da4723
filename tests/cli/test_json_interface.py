"""Holds the program to `cli/README.md`, the documented JSON interface, and the document to it."""

import errno
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conceptry.cli.app import COMMANDS
from conceptry.cli.errors import ExitCode, explain
from conceptry.models.loading import load_base
from conceptry.registry import Registry, errors, files
from drawing import draw, draw_file
from exported import Taught
from foreign_files import write_embedding
from program import ROOT, Ask, Run, change_rows, make_old
from tiny_base import write_tiny_base

DOCUMENT = (ROOT / "cli/README.md").read_text(encoding="utf-8")
EVERY_KEY = "…"
PLAIN: dict[str, Callable[[Any], bool]] = {
    "string": lambda value: isinstance(value, str),
    "integer": lambda value: isinstance(value, int) and not isinstance(value, bool),
    "boolean": lambda value: isinstance(value, bool),
    "number": lambda value: isinstance(value, int | float) and not isinstance(value, bool),
    "object": lambda value: isinstance(value, dict),
    "null": lambda value: value is None,
}


# --- reading the document -------------------------------------------------------------------------


def sections() -> dict[str, str]:
    """The text under each heading."""
    parts = re.split(r"^#+ (.+)$", DOCUMENT, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


SECTIONS = sections()


def tables(title: str) -> Iterator[list[list[str]]]:
    """The tables under a heading, as rows of cells, without the headings."""
    for block in re.findall(r"(?:^\|.*\n)+", SECTIONS[title], flags=re.MULTILINE):
        rows = [line.strip("| ").split(" | ") for line in block.splitlines()]
        yield [[cell.strip(" `|") for cell in row] for row in rows[2:]]


def keys(title: str) -> dict[str, str]:
    """The type of each key of a document or object."""
    found: dict[str, str] = {}
    for key, kind, *_ in next(tables(title)):
        found |= keys(kind) if key == EVERY_KEY else {key: kind}
    return found


def column(title: str, number: int, table: int) -> list[str]:
    return [row[number] for row in list(tables(title))[table]]


def examples(title: str) -> list[Any]:
    blocks = re.findall(r"```json\n(.*?)```", SECTIONS[title], flags=re.DOTALL)
    return [json.loads(block) for block in blocks]


DOCUMENTS = [title for title in SECTIONS if title.startswith("concept ")]
OBJECTS = [
    title
    for title in list(SECTIONS)[list(SECTIONS).index("Objects") + 1 :]
    if not title.startswith("concept ")
]


# --- comparing ------------------------------------------------------------------------------------


class Comparison:
    """Compares JSON with the document, and remembers which objects it has met."""

    def __init__(self, *, whole: bool) -> None:
        self.whole = whole
        self.met: set[str] = set()

    def document(self, value: Any, title: str) -> None:
        """`value` has the keys of a section, all of them if `whole`, and no others."""
        self.met.add(title)
        types = keys(title)
        assert set(value) <= set(types), f"undocumented keys in {title}"
        if self.whole:
            assert set(types) == set(value), f"missing keys in {title}"
        for key, item in value.items():
            self.value(item, types[key], f"{title}.{key}")

    def value(self, value: Any, kind: str, where: str) -> None:
        """`value` is what a cell of a table says."""
        if kind.startswith("list of "):
            assert isinstance(value, list), where
            for item in value:
                self.value(item, kind.removeprefix("list of "), where)
        elif kind in OBJECTS:
            self.document(value, kind)
        else:
            assert any(PLAIN[word](value) for word in kind.split(" or ")), f"{where}: {value!r}"


# --- the document by itself -----------------------------------------------------------------------


def test_every_command_is_documented() -> None:
    names = {name for name, _, _ in COMMANDS}
    documented = {
        title.partition(" ")[2] if title.partition(" ")[2] in names else title.split()[1]
        for title in DOCUMENTS
    }
    assert documented == names | {"--version"}


def test_every_type_is_known() -> None:
    for title in [*DOCUMENTS, *OBJECTS, "Errors", "error"]:
        for kind in keys(title).values():
            words = kind.removeprefix("list of ").split(" or ")
            assert set(words) <= {*PLAIN, *OBJECTS}, title


@pytest.mark.parametrize("title", [*DOCUMENTS, "Errors", "concept"])
def test_examples_are_as_documented(title: str) -> None:
    shown = examples(title)
    assert len(shown) == (title != "concept show")
    for example in shown:
        Comparison(whole=False).document(example, title)


def test_exit_codes_are_those_of_the_program() -> None:
    assert column("Exit codes", 0, 0) == [str(code.value) for code in ExitCode]


def test_error_codes_are_those_of_the_program() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    known = {
        (failure.code, str(failure.exit_code.value))
        for failure in (
            explain(kind("rex", []) if kind is errors.ConceptNotFound else kind("rex"))
            for kind in kinds
            if issubclass(kind, errors.ConceptryError) and kind is not errors.ConceptryError
        )
    }
    known |= {("usage", "2"), ("bug", "1"), ("interrupted", "130"), ("out_of_memory", "2")}
    assert known == set(zip(column("error", 0, 1), column("error", 1, 1), strict=True))


# --- the document and the program -----------------------------------------------------------------


@pytest.fixture
def compare() -> Callable[[Any, str], set[str]]:
    """Compares a whole document with its section; returns the objects in it."""

    def compare(document: Any, title: str) -> set[str]:
        comparison = Comparison(whole=True)
        comparison.document(document, title)
        return comparison.met - {title}

    return compare


Compare = Callable[[Any, str], set[str]]


def test_add(rex: Registry, ask: Ask, compare: Compare) -> None:
    draw_file(Path("small.png"), 90, (300, 200))
    draw(0).save("again.jpg")
    done = ask("add", "rex", "photos", "small.png", "again.jpg", "--caption", "a dog")
    assert compare(done, "concept add") == {"image", "added", "duplicate", "warning"}


def test_show_and_what_prints_the_same(trained: Registry, ask: Ask, compare: Compare) -> None:
    met = {"image", "version", "artifact", "run"}
    assert compare(ask("show", "rex"), "concept show") == met
    assert compare(ask("edit", "rex", "--notes", "old"), "concept edit") == met
    assert compare(ask("rename", "rex", "max"), "concept rename") == met


def test_show_of_a_photo_with_caption_and_mask(rex: Registry, ask: Ask, compare: Compare) -> None:
    Path("masks").mkdir()
    draw(1, mode="L").save("masks/00.png")
    ask("add", "rex", "photos", "--masks", "masks", "--caption", "a dog")
    shown = ask("show", "rex")
    assert isinstance(shown["images"][0]["mask"], str)
    compare(shown, "concept show")


def test_generate(ask: Ask, compare: Compare, tmp_path: Path) -> None:
    base = write_tiny_base(tmp_path / "tiny")
    words = ("a cat", "--base", base, "-n", "1", "--steps", "1")
    assert compare(ask("generate", *words), "concept generate") == {"picture"}
    planned = ask("generate", *words, "--dry-run")
    assert compare(planned, "concept generate --dry-run") == {"planned picture"}
    drawn = ask("generate", *words, "--grid", "--maps")
    assert compare(drawn, "concept generate") == {"picture"}
    again = ask("reproduce", drawn["images"][0]["path"])
    assert compare(again, "concept reproduce") == {"picture"}


def test_train(rex: Registry, ask: Ask, run: Run, compare: Compare, tmp_path: Path) -> None:
    base = write_tiny_base(tmp_path / "tiny")
    words = ["rex", "--base", base, "--set", "augmentation.crops=2"]
    words += [word for i in (1, 2, 3) for word in ("--set", f"stage{i}.steps=1")]
    estimated = Comparison(whole=False)
    estimated.document(ask("train", *words, "--dry-run"), "concept train")
    assert estimated.met == {"concept train", "estimate", "stage estimate", "stage memory"}
    trained = Comparison(whole=False)
    trained.document(ask("train", *words), "concept train")
    rex.edit("rex", remove_images=[image.sha256 for image in rex.show("rex").images])
    failed = run("--json", "train", *words)
    assert failed.exit_code == ExitCode.USAGE
    trained.document(json.loads(failed.stdout), "concept train")
    assert trained.met == {"concept train", "trained", "stage", "failure"}


def test_queue(rex: Registry, ask: Ask, compare: Compare, tmp_path: Path) -> None:
    base = write_tiny_base(tmp_path / "tiny")
    words = ["rex", "--base", base, "--method", "textual-inversion", "--preview-every", "0"]
    words += ["--set", "augmentation.crops=2", "--set", "embedding.steps=1"]
    for _ in range(2):
        assert compare(ask("queue", "add", *words), "concept queue add") == {"queued training"}
    first, second = (each.id for each in rex.queue())
    assert compare(ask("queue", "first", second), "concept queue first") == {"queued training"}
    assert compare(ask("queue", "list"), "concept queue list") == {"queued training"}
    assert compare(ask("queue", "rm", first), "concept queue rm") == {"queued training"}
    assert compare(ask("queue", "run"), "concept queue run") == {"trained", "stage"}


def test_mask(rex: Registry, ask: Ask, compare: Compare, tmp_path: Path) -> None:
    base = write_tiny_base(tmp_path / "tiny")
    assert compare(ask("mask", "rex", "--base", base), "concept mask") == {"found mask"}


def test_caption(rex: Registry, ask: Ask, compare: Compare) -> None:
    assert compare(ask("caption", "rex", "--preview"), "concept caption") == {"draft"}


def test_methods_and_presets(ask: Ask, compare: Compare) -> None:
    assert compare(ask("methods"), "concept methods") == {"method"}
    assert compare(ask("presets"), "concept presets") == {"preset"}
    assert compare(ask("presets", "paper"), "concept presets") == {"preset"}


def test_eval(rex: Registry, ask: Ask, compare: Compare, tmp_path: Path) -> None:
    base = write_tiny_base(tmp_path / "tiny")
    short = [word for i in (1, 2, 3) for word in ("--set", f"stage{i}.steps=1")]
    ask("train", "rex", "--base", base, "--set", "augmentation.crops=2", *short)
    Path("mine.txt").write_text("a {} asleep\n")
    words = ("--suite", "mine.txt", "--steps", "1", "--clip", "miniature", "--dino", "none")
    found = ask("eval", "rex", *words, "--versions", "all", "--mark-best", "--report", "report")
    met = {"evaluation", "prompt scores", "picture scores", "best version"}
    assert compare(found, "concept eval") == met
    assert compare(ask("suites"), "concept suites") == {"suite", "suite prompt"}


def test_bases(ask: Ask, compare: Compare) -> None:
    assert compare(ask("bases"), "concept bases") == {"base"}


def test_list(rex: Registry, ask: Ask, compare: Compare) -> None:
    assert compare(ask("list"), "concept list") == {"summary"}


def test_rm(rex: Registry, ask: Ask, compare: Compare) -> None:
    compare(ask("rm", "rex", "--yes"), "concept rm")


def test_history(rex: Registry, ask: Ask, compare: Compare) -> None:
    assert compare(ask("history"), "concept history") == {"event"}


def test_every_action_in_history_is_documented(trained: Registry, ask: Ask) -> None:
    trained.add_evaluation("rex", 1, suite="quick", config={}, scores={})
    trained.edit("rex", notes="old")
    trained.resume_run(trained.show("rex").runs[0].run)
    [waiting] = trained.enqueue(["rex"], {"method": "sefi"})
    trained.dequeue([waiting.id])
    ask("export", "rex", "rex.concept")
    ask("import", "rex.concept", "--as", "max")
    ask("rename", "max", "mo")
    ask("rm", "mo", "--yes")
    ask("rm", "rex@1", "--yes")
    actions = {event["action"] for event in ask("history", "--limit", "0")["events"]}
    [meaning] = [row[2] for row in next(tables("event")) if row[0] == "action"]
    assert set(re.split(r", | or ", meaning)) == actions


def test_path(rex: Registry, ask: Ask, compare: Compare) -> None:
    compare(ask("path"), "concept path")
    assert compare(ask("path", "rex"), "concept path NAME") == {"file"}


def test_export_and_import(trained: Registry, ask: Ask, compare: Compare) -> None:
    compare(ask("export", "rex", "rex.concept"), "concept export")
    met = compare(ask("import", "rex.concept", "--as", "max"), "concept import")
    assert met == {"concept", "image", "version", "artifact", "run"}


def test_import_of_other_tools(
    registry: Registry, ask: Ask, compare: Compare, tmp_path: Path
) -> None:
    draw_file(tmp_path / "files/rex.preview.png")
    write_embedding(tmp_path / "files/rex.safetensors")
    (tmp_path / "files/old.pt").write_bytes(b"PK")
    met = compare(ask("import", "files"), "concept import")
    assert met == {"concept", "version", "artifact", "run", "imported file"}
    assert compare(ask("path", "rex"), "concept path NAME") == {"file"}
    done = ask("export", "rex", "again.safetensors", "--format", "original")
    assert compare(done, "concept export NAME FILE --format FORMAT") == {"exported file"}


def test_export_for_other_tools(rex: Registry, ask: Ask, compare: Compare, tmp_path: Path) -> None:
    taught = Taught(rex, load_base("miniature"), tmp_path)
    taught.add(taught.vectors(2))
    done = ask("export", "rex", "rex.safetensors", "--format", "embedding")
    assert compare(done, "concept export NAME FILE --format FORMAT") == {"exported file"}
    rex.add("mia", [draw_file(tmp_path / "mia.png", 9)], category="cat")
    taught.add(taught.vectors(2) | taught.factors(), to="mia")
    done = ask("export", "rex", "mia", "pets", "--format", "diffusers")
    expected = {"merged concept", "exported file"}
    assert compare(done, "concept export NAME NAME FILE --format FORMAT") == expected


def test_compress(rex: Registry, ask: Ask, compare: Compare, run: Run, tmp_path: Path) -> None:
    taught = Taught(rex, load_base(str(write_tiny_base(tmp_path / "tiny"))), tmp_path)
    taught.add(taught.vectors(2) | taught.deltas())
    done = ask("compress", "rex@1", "--to", "1bit", "--alias", "small")
    assert compare(done, "concept compress") == set()
    assert done["bytes"] < done["of_bytes"]
    small = rex.show("rex").versions[1]
    assert (small.aliases, small.origin) == (["small"], {"compressed_from": 1, "to": "1bit"})
    assert "version 1, 1bit" in run("show", "rex").stdout
    told = run("compress", "rex@1", "--to", "svd:4")
    assert told.stdout == "rex@3\n"
    assert "concept eval rex --versions 1,3" in told.stderr
    assert run("compress", "rex@small").exit_code == 2
    assert run("compress", "rex@1", "--to", "zip").exit_code == 2


def test_backup(rex: Registry, ask: Ask, compare: Compare) -> None:
    compare(ask("backup", "copy"), "concept backup")


def test_gc(rex: Registry, ask: Ask, compare: Compare) -> None:
    compare(ask("gc", "--dry-run"), "concept gc")


def test_version(ask: Ask, compare: Compare) -> None:
    compare(ask("--version"), "concept --version")


def test_check(rex: Registry, run: Run, compare: Compare) -> None:
    rex.path_of(rex.show("rex").images[0].sha256).unlink()
    document = json.loads(run("check", "--json").stdout)
    assert compare(document, "concept check") == {"problem"}


def test_every_kind_of_problem_is_documented(
    rex: Registry, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    documented = {(row[0], row[1]) for row in list(tables("problem"))[1]}
    assert cause_every_problem(rex, run, monkeypatch) == documented


def test_errors(rex: Registry, run: Run, compare: Compare) -> None:
    for line in (["show", "mia"], ["import", "nothing"], ["gc", "--grace", "x"]):
        document = json.loads(run("--json", *line).stdout)
        compare(document, "Errors")
        compare(document["error"], "error")


def cause_every_problem(
    rex: Registry, run: Run, monkeypatch: pytest.MonkeyPatch
) -> set[tuple[str, str]]:
    """Do every kind of damage; returns what `check` calls each, and whether it is an error."""
    blobs = rex.location.blobs
    rex.add("rex", [draw_file(Path(f"{i}.png"), 91 + i) for i in range(4)])
    rex.add("mia", [draw_file(Path("mia.png"), 95)], category="cat")
    missing, truncated, damaged, aside, moved, sized, unreadable = (
        rex.path_of(image.sha256) for image in rex.show("rex").images
    )
    rex.remove(["mia"])
    aside.write_bytes(b"x")
    rex.check(repair=True)
    missing.unlink()
    truncated.write_bytes(b"x")
    damaged.write_bytes(bytes(damaged.stat().st_size))
    moved.rename(moved.with_name(moved.name.upper()))
    (blobs / "notes.txt").touch()
    left = blobs / "tmp" / f"123-{'0' * 16}"
    left.touch()
    make_old(left)
    (blobs / "stamp").write_text("another's")
    change_rows(rex.location.database, "UPDATE concept SET search = ''")
    change_rows(rex.location.database, f"UPDATE image SET bytes = 7 WHERE sha256 = '{sized.name}'")

    def refuse(handle: int | None, path: Path, opened: Any = files._opened) -> int:
        if path == unreadable:
            raise OSError(errno.EIO, "Input/output error")
        return opened(handle, path)

    monkeypatch.setattr(files, "_opened", refuse)
    found = json.loads(run("check", "--read-data", "--json").stdout)["problems"]
    change_rows(rex.location.database, "INSERT INTO tag VALUES (999, 'dangling')")
    found += json.loads(run("check", "--json").stdout)["problems"]
    return {(problem["kind"], str(problem["is_error"]).lower()) for problem in found}
