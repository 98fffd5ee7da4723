"""The pages: what they link to is there, what they tell to type parses, and nothing is stale."""

import importlib.util
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import docs_pages
import pytest
import typer
import yaml
from conceptry.cli.app import COMMANDS, app
from conceptry.cli.errors import ExitCode
from docs_pages import Block, blocks, pages, without_code
from program import DEADLINE, ROOT
from manual_session import prepare

NAMES = [path.relative_to(ROOT).as_posix() for path in pages()]
_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#{1,6} (.+)$", re.MULTILINE)
_SPAN = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


# --- links ----------------------------------------------------------------------------------------


def anchors(text: str) -> set[str]:
    """Of a page's headings, as GitHub and the site have them."""
    plain = (re.sub(r"[^\w\- ]", "", each.lower()) for each in _HEADING.findall(without_code(text)))
    return {each.strip().replace(" ", "-") for each in plain}


def links(name: str) -> Iterator[tuple[Path, str]]:
    """(file, anchor) of each relative link of a page."""
    for link in _LINK.findall(without_code(read(name))):
        if not link.startswith(("http://", "https://", "mailto:")):
            path, _, anchor = link.partition("#")
            yield (ROOT / name).parent / path if path else ROOT / name, anchor


@pytest.mark.parametrize("name", NAMES)
def test_links_have_targets(name: str) -> None:
    for path, anchor in links(name):
        assert path.is_file(), f"{name} links to {path}"
        if anchor:
            assert anchor in anchors(path.read_text(encoding="utf-8")), f"{path}#{anchor}"


def test_there_are_links_to_be_tested() -> None:
    assert sum(len(list(links(name))) for name in NAMES) > 100
    assert anchors("# What `add` takes\n```\n# no heading\n```\n## A, b") == {
        "what-add-takes",
        "a-b",
    }


@pytest.mark.parametrize("name", NAMES)
def test_names_that_link_to_code_are_in_it(name: str) -> None:
    for called, path in re.findall(r"\[`(\w+)`\]\(([^)\s]+\.py)\)", read(name)):
        text = ((ROOT / name).parent / path).read_text(encoding="utf-8")
        assert re.search(rf"^ *(?:def |class )?{called}\b", text, re.MULTILINE), f"{path}: {called}"


@pytest.mark.parametrize("name", [each for each in NAMES if each != "CHANGELOG.md"])
def test_modules_that_are_named_are_there(name: str) -> None:
    for path in re.findall(r"`((?:\w+/)+\w+\.(?:py|yaml|md))`", without_code(read(name))):
        is_example = path.startswith("tests/methods/") and "NAME" in path
        assert is_example or (ROOT / path).exists(), path


# --- what is typed --------------------------------------------------------------------------------


def typed(name: str) -> list[str]:
    """Each `concept …` of a page, in blocks of code and in its sentences."""
    text = read(name)
    lines = [
        line.removeprefix("$ ")
        for block in blocks(text)
        if block.language in ("", "console", "bash")
        for line in block.text.splitlines()
    ]
    lines += [span for span in _SPAN.findall(without_code(text)) if span.startswith("concept ")]
    found = (re.search(r"(?:^|[|;] *|xargs )(concept [^|]+)", line) for line in lines)
    return [match[1] for match in found if match]


LINES = {f"{name}: {line}": line for name in NAMES for line in typed(name)}
_OUTPUT = re.compile(r"concept [a-z]+ {4,}\w")
"""In the README: what commands are for, in columns."""
_NOT_REAL = {"COMMAND", "NAME"}


def parse(line: str) -> Any:
    """What the program's own parser makes of a command line. Raises what it does."""
    root: Any = typer.main.get_command(app)
    _, *words = shlex.split(line, comments=True)
    whole = root.make_context("concept", words)
    rest = [*whole._protected_args, *whole.args]
    if not rest:
        return whole
    name, *words = rest
    assert name in root.commands, f"there is no command {name}"
    return root.commands[name].make_context(name, words, parent=whole)


def is_a_line(line: str) -> bool:
    return not _OUTPUT.match(line) and line.split()[1] not in _NOT_REAL


@pytest.mark.parametrize("line", [pytest.param(LINES[key], id=key) for key in LINES])
def test_command_lines_parse(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if not is_a_line(line):
        return
    try:
        parse(line)
    except typer.Exit:
        assert "--" in line
    except typer.TyperException as error:
        lacks_words = type(error).__name__ == "MissingParameter"
        assert lacks_words and not line.partition(" -")[2], error


def test_there_are_lines_to_be_parsed() -> None:
    lines = [line for line in LINES.values() if is_a_line(line)]
    assert len(lines) > 80
    named = {line.split()[1] for line in lines}
    assert named >= {name for name, _, _ in COMMANDS}


@pytest.mark.parametrize("line", ["concept train rex --sat x=1", "concept trian rex"])
def test_lines_that_are_wrong_do_not(line: str) -> None:
    with pytest.raises((typer.TyperException, AssertionError)):
        parse(line)


# --- what is from the program ---------------------------------------------------------------------


def test_pages_have_what_the_program_says() -> None:
    stale = [str(path.relative_to(ROOT)) for path in docs_pages.stale()]
    assert stale == [], "python tests/docs_pages.py --write"


def test_every_part_is_on_a_page() -> None:
    whole = "".join(map(read, NAMES))
    assert [name for name in docs_pages.PARTS if f"<!-- begin {name} -->" not in whole] == []


def test_every_command_and_method_has_its_section() -> None:
    reference = docs_pages.command_line()
    assert all(f"## concept {name}\n" in reference for name, _, _ in COMMANDS)
    assert "`--set NAME=VALUE`" in reference
    assert "### sefi" in docs_pages.settings_of_methods()


def test_every_setting_is_described() -> None:
    tables = docs_pages.common_settings() + docs_pages.settings_of_methods()
    assert [line for line in tables.splitlines() if line.endswith("|  |")] == []


def test_a_page_that_is_stale_is_seen() -> None:
    text = "<!-- begin common settings -->\nold\n<!-- end common settings -->\n"
    assert "augmentation.flip" in docs_pages.rewritten(text)
    block = '```yaml title="tests/toys/methods/presets/frozen-word.yaml"\nold: 1\n```\n'
    assert "two steps that change nothing" in docs_pages.rewritten(block)


def test_exit_codes_are_those_of_the_program() -> None:
    section = read("docs/scripting.md").partition("## Exit codes")[2].partition("\n## ")[0]
    codes = re.findall(r"^\| (\d+) \|", section, re.MULTILINE)
    assert codes == [str(code.value) for code in ExitCode]


def test_examples_of_python_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare(tmp_path)
    names: dict[str, Any] = {}
    pieces = [each for each in blocks(read("docs/scripting.md")) if each.language == "python"]
    whole = [each for each in pieces if not each.title]
    assert len(whole) == 3
    for piece in whole:
        exec(piece.text, names)
    assert names["photo"].size == (512, 512)
    assert Path("1.png").exists()
    assert names["seen"].maps


def test_the_suite_that_is_shown_can_be_read() -> None:
    from conceptry.evaluation import find_suite

    (block,) = [each for each in blocks(read("docs/scoring.md")) if each.language == "yaml"]
    Path("mine.yaml").write_text(block.text)
    first, second = find_suite("mine.yaml").prompts
    assert (first.tests, second.keeps_looks) == ("place", False)


def test_the_prompts_that_are_shown_can_be_read() -> None:
    from conceptry.generation import Defaults, Settings, read_prompts

    (block,) = [
        each for each in blocks(read("docs/drawing.md")) if each.text.startswith("prompt,")
    ]
    Path("wanted.csv").write_text(block.text)
    found = read_prompts(Path("wanted.csv"), Defaults(n=1, seed=0, settings=Settings()))
    assert [len(each.seeds) for each in found] == [4, 2]


# --- the site -------------------------------------------------------------------------------------


def navigation() -> list[str]:
    """The pages that the site lists."""
    entries = yaml.safe_load(read("mkdocs.yml"))["nav"]
    found: list[str] = []
    while entries:
        entry = entries.pop(0)
        inner = next(iter(entry.values())) if isinstance(entry, dict) else entry
        if isinstance(inner, list):
            entries = inner + entries
        else:
            found.append(inner)
    return found


def test_every_page_is_on_the_site() -> None:
    assert sorted(navigation()) == NAMES


def test_the_readme_is_short() -> None:
    assert len(read("README.md").splitlines()) <= 150


def test_the_site_has_all_that_its_pages_link_to() -> None:
    from site_layout import site_files

    files = set(site_files(ROOT))
    wanted = {
        path.resolve().relative_to(ROOT.resolve()).as_posix()
        for name in NAMES
        for path, _ in links(name)
    }
    assert wanted <= files
    assert set(NAMES) <= files


@pytest.mark.skipif(not importlib.util.find_spec("mkdocs"), reason="needs the extra docs")
def test_the_site_is_built_without_a_warning(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path / "site"],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    assert (tmp_path / "site" / "docs" / "teaching.html").exists()


def test_blocks_are_read() -> None:
    text = 'a\n```python title="x.py"\nb\n```\n```\nc\n```\n'
    assert list(blocks(text)) == [Block("python", "x.py", "b\n"), Block("", "", "c\n")]
    assert without_code(text).split() == ["a"]
