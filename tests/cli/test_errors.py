"""Exit codes, error messages, and the options that every command takes."""

import json
import sqlite3
from pathlib import Path

import pytest
from bundles import pack
from conceptry.cli.errors import EXIT_CODES_HELP, ExitCode
from conceptry.registry import Registry, RegistryBusy
from program import Run, error_of, invoke, run_concept

WRONG_USAGE = [
    ["sohw"],
    ["show"],
    ["show", "rex", "mia"],
    ["show", "rex", "--jsn"],
    ["list", "--limit", "many"],
    ["list", "--limit", "-1"],
    ["list", "--page", "0"],
    ["list", "--sort", "weight"],
    ["add", "rex"],
    ["add", "rex", "photos", "--category"],
    ["add", "rex", "photos", "--category", "<dog>"],
    ["add", "rex", "photos", "--tag", "Two Words"],
    ["edit", "rex"],
    ["edit", "rex", "--caption", "on a sofa"],
    ["edit", "rex", "--caption", "on\na sofa"],
    ["rename", "rex"],
    ["rm"],
    ["export", "rex"],
    ["import"],
    ["backup"],
    ["check", "--from", "photos"],
    ["gc", "--grace", "soon"],
    ["--registry"],
]


def assert_one_line(text: str) -> None:
    assert text.startswith("error: ")
    assert text.count("\n") == 1
    assert len(text) < 300


@pytest.mark.parametrize("arguments", WRONG_USAGE, ids=" ".join)
def test_wrong_usage_is_one_line(rex: Registry, run: Run, arguments: list[str]) -> None:
    result = run(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert_one_line(result.stderr)
    assert " -> " in result.stderr, "what to do next"


@pytest.mark.parametrize("arguments", WRONG_USAGE, ids=" ".join)
def test_wrong_usage_in_json(rex: Registry, run: Run, arguments: list[str]) -> None:
    result = run("--json", *arguments)
    assert (result.exit_code, result.stderr) == (2, "")
    assert error_of(result)["code"] in ("usage", "invalid_input")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["list", "--limit", "many"], "'--limit': must be a whole number, not many"),
        (["list", "--limit", "1.5"], "'--limit': must be a whole number, not 1.5"),
        (["list", "--limit", "-1"], "'--limit': must be at least 0, not -1"),
        (["generate", "x", "--steps", "1001"], "'--steps': must be at most 1000, not 1001"),
        (["generate", "x", "--guidance", "much"], "'--guidance': must be a number, not much"),
        (["queue", "rm", "rex"], "must be a whole number, not rex"),
        (["queue", "first", ""], "must be a whole number, not ''"),
    ],
    ids=str,
)
def test_a_value_of_the_wrong_kind_is_shown(
    rex: Registry, run: Run, arguments: list[str], told: str
) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert told in result.stderr


def break_show(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def show(registry: Registry, name: str) -> None:
        raise error

    monkeypatch.setattr(Registry, "show", show)


FAILURES = [
    (RuntimeError("a\n\x1b[31mbug"), ExitCode.BUG, "bug"),
    (RegistryBusy("busy", hint="try again"), ExitCode.REGISTRY, "registry_busy"),
    (KeyboardInterrupt(), ExitCode.INTERRUPTED, "interrupted"),
    (type("OutOfMemoryError", (RuntimeError,), {})(), ExitCode.USAGE, "out_of_memory"),
]


@pytest.mark.parametrize(("error", "status", "code"), FAILURES, ids=[code for *_, code in FAILURES])
def test_failures_in_both_forms(
    rex: Registry,
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    status: int,
    code: str,
) -> None:
    break_show(monkeypatch, error)
    result = run("show", "rex")
    assert (result.exit_code, result.stdout) == (status, "")
    assert_one_line(result.stderr.lstrip("\n"))
    in_json = run("show", "rex", "--json")
    assert in_json.exit_code == status
    assert error_of(in_json)["code"] == code


def test_an_unknown_concept_is_exit_code_3(rex: Registry, run: Run) -> None:
    result = run("show", "mia", "--json")
    assert result.exit_code == 3
    assert error_of(result) == {
        "code": "concept_not_found",
        "message": 'no concept is named "mia"',
        "hint": "concept list",
    }


@pytest.mark.parametrize("name", ["list", "check", "gc", "backup copy", "show rex", "rm rex -y"])
def test_no_registry_is_exit_code_3_and_none_is_made(run: Run, database: Path, name: str) -> None:
    result = run(*name.split())
    assert result.exit_code == 3
    assert str(database) in result.stderr
    assert "concept add" in result.stderr
    assert not database.parent.exists()


@pytest.mark.parametrize(
    ("line", "status"),
    [
        ("add rex nosuch.png --category dog", 3),
        ("add rex photos", 2),
        ("add Rex photos --category dog", 2),
        ("add rex photos --category dog --masks nosuch", 3),
        ("import rex.concept", 2),
        ("import empty", 3),
    ],
)
def test_no_registry_is_made_for_what_is_refused(
    run: Run, database: Path, photos: Path, line: str, status: int
) -> None:
    pack(Path("rex.concept"), {"format": "conceptry-bundle", "format_version": 1}, {})
    Path("empty").mkdir()
    result = run(*line.split())
    assert result.exit_code == status
    assert_one_line(result.stderr)
    assert not database.parent.exists()


def test_a_newer_registry_is_exit_code_4(rex: Registry, run: Run, database: Path) -> None:
    with sqlite3.connect(database) as connection:
        connection.execute("INSERT INTO migration VALUES ('from_the_future', 99, '9.9', '')")
    connection.close()
    result = run("list")
    assert result.exit_code == 4
    assert "it needs conceptry 9.9 -> pip install" in result.stderr


@pytest.mark.parametrize(
    "path",
    [
        pytest.param("~nobody-of-this-name/concepts.db", id="no-such-user"),
        pytest.param("x" * 5000, id="too-long"),
        pytest.param("photos/00.png/x", id="below-a-file"),
    ],
)
def test_a_registry_that_cannot_exist_is_no_bug(photos: Path, path: str) -> None:
    result = invoke("--registry", path, "list")
    assert result.exit_code in (2, 3, 4)
    assert path in result.stderr


def test_a_bug_says_how_to_report_it(
    rex: Registry, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_show(monkeypatch, ZeroDivisionError("division by zero"))
    result = run("show", "rex")
    assert result.stderr == (
        "error: unexpected ZeroDivisionError: division by zero"
        " -> run it again with --debug and report the trace\n"
    )


@pytest.mark.parametrize("arguments", [["--debug", "show", "mia"], ["show", "mia", "--debug"]])
def test_debug_prints_the_trace_too(rex: Registry, run: Run, arguments: list[str]) -> None:
    result = run(*arguments)
    assert result.exit_code == 3
    assert "Traceback (most recent call last)" in result.stderr
    assert result.stderr.splitlines()[-1].startswith("error: no concept")
    in_json = run(*arguments, "--json")
    assert error_of(in_json)["code"] == "concept_not_found"
    assert "Traceback" in in_json.stderr


def test_without_debug_there_is_no_trace(rex: Registry, run: Run) -> None:
    assert "Traceback" not in run("show", "mia").output


def test_json_stands_before_and_after(rex: Registry, run: Run) -> None:
    before, after = run("--json", "list"), run("list", "--json")
    assert before.stdout == after.stdout
    assert json.loads(before.stdout)["total"] == 1


def test_registry_stands_before_and_after(rex: Registry, database: Path) -> None:
    before = invoke("--registry", database.parent, "list")
    after = invoke("list", "--registry", database)
    assert before.stdout == after.stdout != ""


def test_the_last_registry_counts(rex: Registry, database: Path) -> None:
    result = invoke("--registry", "nowhere", "list", "--registry", database)
    assert result.exit_code == 0


def test_quiet_prints_results_only(rex: Registry, run: Run) -> None:
    assert run("list").stderr == "1 concept\n"
    assert run("--quiet", "list").stderr == run("list", "-q").stderr == ""
    assert run("-q", "list").stdout == run("list").stdout


def test_warnings_are_for_programs_too(rex: Registry, run: Run) -> None:
    words = ("generate", "a dog", "--dry-run", "--control-scale", "0.3", "--json")
    result = run(*words)
    assert result.stderr == "warning: --control-scale is for pictures with a --control\n"
    assert "error" not in json.loads(result.stdout)
    assert run(*words, "--quiet").stderr == ""


def test_quiet_does_not_hide_errors(rex: Registry, run: Run) -> None:
    assert_one_line(run("--quiet", "show", "mia").stderr)


def test_version(run: Run) -> None:
    assert run("--version").stdout == "conceptry 0.2.0\n"
    for arguments in (["--version", "--json"], ["--json", "--version"]):
        assert json.loads(run(*arguments).stdout) == {"version": "0.2.0"}


def test_a_value_that_looks_like_an_option_is_not_one(rex: Registry, run: Run) -> None:
    result = run("show", "--", "--json")
    assert (result.exit_code, result.stdout) == (3, "")


def test_help_lists_every_exit_code(run: Run) -> None:
    for code in ExitCode:
        assert f" {code.value}  " in EXIT_CODES_HELP
    assert "Exit codes:" in run("--help").stdout


def test_a_message_stays_on_one_line_with_its_hint(rex: Registry, run: Run) -> None:
    Path("two\nlines.concept").touch()
    assert_one_line(run("export", "rex", "two\nlines.concept").stderr)


@pytest.mark.parametrize(
    ("status", "arguments"),
    [
        (0, ["list"]),
        (4, ["list", "--registry", "photos/00.png"]),
    ],
)
def test_a_real_process_exits_with_the_code(
    rex: Registry, run: Run, status: int, arguments: list[str]
) -> None:
    done = run_concept("--json", *arguments)
    assert (done.returncode, done.stderr) == (status, "")
    assert ("error" in json.loads(done.stdout)) == bool(status)


def test_a_bug_in_a_real_process(rex: Registry, run: Run) -> None:
    broken = "from conceptry.registry import Registry; Registry.show = None"
    done = run_concept("show", "rex", "--debug", prelude=broken)
    assert (done.returncode, done.stdout) == (1, "")
    assert "show.py" in done.stderr
    assert "error: unexpected TypeError" in done.stderr.splitlines()[-1]


HERE = "the test's registry"


@pytest.mark.parametrize(
    ("words", "warned"),
    [
        (["list", "--limit", "3", "--limit=4"], ["--limit"]),
        (
            ["list", "--page", "1", "--limit", "3", "--limit", "4", "--page", "1"],
            ["--page", "--limit"],
        ),
        (["list", "--tag", "toy", "--tag", "dog"], []),
        (["list", "--json", "--json", "--limit", "3"], []),
        (["--registry", "elsewhere", "--registry", HERE, "list"], ["--registry"]),
        (["--registry", "elsewhere", "list", "--registry", HERE], ["--registry"]),
        (["queue", "--registry", "elsewhere", "list", "--registry", HERE], ["--registry"]),
        (["--quiet", "list", "--registry", HERE], []),
    ],
)
def test_an_option_of_one_value_that_is_given_again_is_told(
    rex: Registry, run: Run, database: Path, words: list[str], warned: list[str]
) -> None:
    result = run(*(str(database) if each == HERE else each for each in words))
    assert result.exit_code == 0
    lines = [each for each in result.stderr.splitlines() if each.startswith("warning: ")]
    assert lines == [
        f"warning: {each} is given several times: the last one counts" for each in warned
    ]
