"""Help texts: complete, plain, and with examples that work."""

import shlex
from typing import Any

import pytest
import typer
from conceptry.cli.app import COMMANDS, app
from program import Run, command_named

NAMES = [name for name, _, _ in COMMANDS]


@pytest.mark.parametrize(("name", "example"), [(name, example) for name, _, example in COMMANDS])
def test_help_shows_an_example(run: Run, name: str, example: str) -> None:
    for option in ("--help", "-h"):
        result = run(*name.split(), option)
        assert (result.exit_code, result.stderr) == (0, "")
        assert f"  Example:\n    {example}\n" in result.stdout


@pytest.mark.parametrize("example", [example for _, _, example in COMMANDS])
def test_examples_parse(example: str) -> None:
    root: Any = typer.main.get_command(app)
    program, *words = shlex.split(example.partition(" | ")[0])
    assert program == "concept"
    command, name, arguments = command_named(words)
    parent = root.make_context("concept", words[:1])
    context = command.make_context(name, arguments, parent=parent)
    assert context.params["registry"] is None, "the command's own parser has read it"


@pytest.mark.parametrize("name", NAMES)
def test_every_command_takes_the_global_options(run: Run, name: str) -> None:
    text = run(*name.split(), "--help").stdout
    for option in ("--registry PATH", "--json", "--quiet", "--debug"):
        assert f"{option} " in text


def test_help_is_in_the_users_words(run: Run) -> None:
    texts = "".join(run(*name.split(), "--help").stdout for name in NAMES)
    for word in ("<str>", "<path>", "list[str]", "int range"):
        assert word not in texts


@pytest.mark.parametrize(
    "arguments", [[], ["queue"], *(name.split() for name in NAMES)], ids=" ".join
)
def test_help_fits_a_terminal_and_is_plain(run: Run, arguments: list[str]) -> None:
    text = run(*arguments, "--help").stdout
    assert max(map(len, text.splitlines())) <= 80
    assert "\x1b" not in text


def test_help_of_the_program_lists_every_command(run: Run) -> None:
    lines = run("--help").stdout.splitlines()
    for name in {name.split()[0] for name in NAMES}:
        assert any(line.split()[:1] == [name] for line in lines)


def test_no_arguments_print_the_help(run: Run) -> None:
    result = run()
    assert result.output == run("--help").output
    assert result.exit_code in (0, 2)


def test_the_data_that_help_needs_is_not_the_users(run: Run) -> None:
    assert run("list", "--help", "--registry", "nowhere").exit_code == 0
