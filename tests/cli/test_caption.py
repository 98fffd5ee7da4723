"""`concept caption`: drafts, an editor, and nothing overwritten."""

import sys
from pathlib import Path

import pytest
from conceptry.registry import Registry
from program import Ask, Run, error_of


def captions(registry: Registry) -> list[str | None]:
    return [image.caption for image in registry.show("rex").images]


@pytest.fixture
def edits(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An editor that runs the lines of a file, in which `text` is what it edits."""
    script = tmp_path / "edits.py"
    program = "import sys; from pathlib import Path; path = Path(sys.argv[2])\n"
    program += "text = path.read_text(); names = {'text': text}\n"
    program += "exec(Path(sys.argv[1]).read_text(), names); path.write_text(names['text'])\n"
    editor = tmp_path / "editor.py"
    editor.write_text(program)
    monkeypatch.delenv("VISUAL", raising=False)
    monkeypatch.setenv("EDITOR", f"{sys.executable} {editor} {script}")
    return script


def test_photos_that_have_none_get_a_caption(rex: Registry, run: Run, ask: Ask) -> None:
    (first, *_) = rex.show("rex").images
    rex.edit("rex", captions={first.sha256: "my own words"})
    drafted = ask("caption", "rex", "--preview")["captions"]
    assert captions(rex) == ["my own words", None, None]
    done = ask("caption", "rex")["captions"]
    assert [each["filename"] for each in done] == ["01.png", "02.png"]
    assert [each["caption"] for each in done] == [each["caption"] for each in drafted]
    assert captions(rex) == ["my own words", *(each["caption"] for each in done)]
    assert all(each["caption"].startswith("a photo of a dog") for each in done)
    assert ask("caption", "rex", "--model", "none-is-loaded")["captions"] == []
    assert "all photos of rex have captions, which are kept" in run("caption", "rex").stderr


def test_an_editor_gets_all_of_them(rex: Registry, run: Run, edits: Path) -> None:
    (first, *_) = rex.show("rex").images
    rex.edit("rex", captions={first.sha256: "my own words"})
    edits.write_text(
        "lines = text.splitlines()\n"
        "assert lines[2] == '1 | 00.png | my own words', lines\n"
        "lines[2] = '1 | 00.png | better | words'\n"
        "text = '\\n'.join(lines[:4])\n"
    )
    result = run("caption", "rex", "--edit")
    assert result.exit_code == 0, result.stderr
    one, two, three = captions(rex)
    assert one == "better | words"
    assert two is not None
    assert two.startswith("a photo of a dog")
    assert three is None, "its line was taken out"


@pytest.mark.parametrize("line", ["9 | 00.png | x", "nonsense", "1 | 00.png | " + "x" * 20000])
def test_a_text_that_cannot_be_used_is_kept(
    line: str, rex: Registry, run: Run, edits: Path
) -> None:
    for image in rex.show("rex").images:
        rex.edit("rex", captions={image.sha256: "mine"})
    edits.write_text(f"text = text + {line!r}")
    result = run("caption", "rex", "--edit")
    assert result.exit_code == 2
    path = Path(result.stderr.rsplit("your text is in ", 1)[1].strip())
    assert line in path.read_text()
    path.unlink()
    assert captions(rex) == ["mine"] * 3


def test_what_was_written_meanwhile_is_kept(rex: Registry, run: Run, edits: Path) -> None:
    for image in rex.show("rex").images:
        rex.edit("rex", captions={image.sha256: "mine"})
    program = "from conceptry.registry import Registry\n"
    program += f"with Registry.open({str(rex.location.database)!r}) as registry:\n"
    program += "    registry.edit('rex', captions={'01.png': 'theirs'})\n"
    edits.write_text(program + "text = text.replace('mine', 'new')")
    result = run("caption", "rex", "--edit")
    assert "changed meanwhile" in result.stderr
    assert captions(rex) == ["new", "theirs", "new"]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["caption", "max"], 3, 'no concept is named "max"'),
        (["caption", "rex", "--model", "nowhere"], 3, 'there is no model "nowhere"'),
        (["caption", "rex", "--edit"], 2, "--edit is without --json"),
    ],
)
def test_mistakes_are_told(
    arguments: list[str], code: int, message: str, rex: Registry, run: Run
) -> None:
    result = run("--json", *arguments)
    assert result.exit_code == code
    assert message in error_of(result)["message"]


def test_an_editor_is_needed(rex: Registry, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VISUAL", raising=False)
    monkeypatch.delenv("EDITOR", raising=False)
    assert "needs an editor" in run("caption", "rex", "--edit").stderr
    monkeypatch.setenv("EDITOR", "no-such-editor")
    for image in rex.show("rex").images:
        rex.edit("rex", captions={image.sha256: "mine"})
    assert "cannot be run" in run("caption", "rex", "--edit").stderr
    monkeypatch.setenv("EDITOR", "false")
    assert "nothing was stored" in run("caption", "rex", "--edit").stderr
