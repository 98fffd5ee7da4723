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
from manual_session import prepare
from program import DEADLINE, ROOT, command_named

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
        is_toy = (ROOT / "tests/toys" / path).exists()
        assert is_toy or "NAME" in path or (ROOT / path).exists(), path


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_taken_for_a_tag(name: str) -> None:
    """`<rex>` outside code would be invisible."""
    text = re.sub(r"<!--.*?-->", "", _SPAN.sub("", without_code(read(name))))
    indented = re.compile(r"^ {4}.*$", re.MULTILINE)
    assert set(re.findall(r"<[a-zA-Z][^>]*>", indented.sub("", text))) <= {"<br>"}


# --- what is typed --------------------------------------------------------------------------------


_COMMAND = re.compile(r"(?:^|[|;] *)(concept [^|]+)")
_IN_COLUMNS = re.compile(r"concept [a-z]+ {3,}\w")
"""In the README: what commands are for."""


def typed(name: str) -> Iterator[str]:
    """Each command line in a page's blocks of code."""
    for block in blocks(read(name)):
        if block.language in ("", "console"):
            for line in block.text.splitlines():
                match = _COMMAND.search(line.removeprefix("$ "))
                if match and not _IN_COLUMNS.match(line):
                    yield match[1]


def mentioned(name: str) -> Iterator[str]:
    """Each command in a page's sentences, whole or with a part of its options."""
    for span in _SPAN.findall(without_code(read(name))):
        if span.startswith("concept ") and not span.split()[1].isupper():
            yield span


def ids(pairs: Iterator[tuple[str, str]]) -> list[Any]:
    return [pytest.param(line, id=f"{name}: {line}") for name, line in dict.fromkeys(pairs)]


TYPED = ids((name, line) for name in NAMES for line in typed(name))
MENTIONED = ids((name, line) for name in NAMES for line in mentioned(name))


def words_of(line: str) -> list[str]:
    return shlex.split(line.replace("…", "..."), comments=True)[1:]


def parse(line: str) -> Any:
    """What the program's own parser makes of a command line. Raises what it does."""
    root: Any = typer.main.get_command(app)
    whole = root.make_context("concept", words_of(line))
    name, command, words = root.resolve_command(whole, [*whole._protected_args, *whole.args])
    if hasattr(command, "commands"):
        command, name, words = command_named(words_of(line))
    return command.make_context(name, words, parent=whole)


def options_of(line: str) -> tuple[list[str], set[str]]:
    """The options in a command line, and those that its command has."""
    root: Any = typer.main.get_command(app)
    name, *words = words_of(line)
    whole = root.make_context("concept", ["list"])
    if name.startswith("-"):
        name, words, command = "", [name, *words], root
    else:
        command, _, words = command_named([name, *words])
    context = command.context_class(command, info_name=name, parent=whole)
    known = {opt for each in command.get_params(context) for opt in each.opts}
    return [word for word in words if re.match(r"--?[a-z]", word)], known


@pytest.mark.parametrize("line", TYPED)
def test_command_lines_parse(line: str) -> None:
    parse(line)
    _, name, _ = command_named(words_of(line))
    assert name in {name for name, _, _ in COMMANDS}


@pytest.mark.parametrize("line", MENTIONED)
def test_options_that_are_mentioned_are_there(line: str) -> None:
    given, known = options_of(line)
    assert set(given) <= known


def test_there_are_lines_to_be_parsed() -> None:
    assert len(TYPED) > 60
    assert len(MENTIONED) > 60
    reference = {command_named(words_of(line))[1] for line in typed("docs/command-line.md")}
    assert reference == {name for name, _, _ in COMMANDS}


@pytest.mark.parametrize(
    "line", ["concept train rex --sat x=1", "concept trian rex", "concept rename rex"]
)
def test_lines_that_are_wrong_do_not_parse(line: str) -> None:
    with pytest.raises(typer.TyperException):
        parse(line)


def test_options_that_are_not_there_are_seen() -> None:
    given, known = options_of("concept train --sat")
    assert given == ["--sat"]
    assert "--sat" not in known


# --- what is from the program ---------------------------------------------------------------------


def test_pages_have_what_the_program_says() -> None:
    stale = [str(path.relative_to(ROOT)) for path in docs_pages.stale()]
    assert stale == [], "make pages"


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


@pytest.mark.long
def test_examples_of_python_run(tmp_path: Path) -> None:
    prepare(tmp_path)
    names: dict[str, Any] = {}
    pieces = [each for each in blocks(read("docs/scripting.md")) if each.language == "python"]
    whole = [each for each in pieces if not each.title]
    assert len(whole) == 4
    Path("day.yaml").write_text("scenes: [a cat]")
    for piece in whole:
        exec(piece.text, names)
    assert names["photo"].size == (512, 512)
    assert Path("1.png").exists()
    assert names["seen"].maps
    assert names["story"].page.exists()


def test_the_suite_that_is_shown_can_be_read() -> None:
    from conceptry.evaluation import find_suite

    (block,) = [each for each in blocks(read("docs/scoring.md")) if each.language == "yaml"]
    Path("mine.yaml").write_text(block.text)
    first, second = find_suite("mine.yaml").prompts
    assert (first.tests, second.keeps_looks) == ("place", False)


def test_the_prompts_that_are_shown_can_be_read() -> None:
    from conceptry.generation import PromptDefaults, SamplingSettings, read_prompts

    (block,) = [each for each in blocks(read("docs/drawing.md")) if each.text.startswith("prompt,")]
    Path("wanted.csv").write_text(block.text)
    found = read_prompts(
        Path("wanted.csv"), PromptDefaults(n=1, seed=0, settings=SamplingSettings())
    )
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
