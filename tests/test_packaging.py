"""What is packaged: every package, with its types, and exact versions of all that it needs."""

import re
import tomllib
from typing import Any

import yaml
from program import ROOT

PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PACKAGES: list[str] = PROJECT["tool"]["setuptools"]["packages"]


def test_every_folder_with_code_is_a_package() -> None:
    top = {name.split(".")[1] for name in PACKAGES}
    found = {
        path.parent.relative_to(ROOT).as_posix()
        for name in top
        for path in (ROOT / name).rglob("__init__.py")
    }
    assert found == {name.removeprefix("conceptry.").replace(".", "/") for name in PACKAGES}


def test_every_package_has_types() -> None:
    assert PROJECT["tool"]["setuptools"]["package-data"]["*"] == ["py.typed"]
    for name in PACKAGES:
        marker = ROOT / name.removeprefix("conceptry.").replace(".", "/") / "py.typed"
        assert marker.read_bytes() == b"", name


def test_all_that_is_named_is_pinned() -> None:
    project = PROJECT["project"]
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *extras["dev"], *extras["docs"]]
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()[1:]
    pinned = {_plain(line.partition("==")[0]) for line in pins}
    assert {_plain(re.split(r"[<>=; ]", each)[0]) for each in wanted} <= pinned


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_checks_before_a_commit_are_those_of_make() -> None:
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    (local,) = config["repos"]
    assert local["repo"] == "local"
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    checks = makefile.partition("\ncheck:")[2].partition("\n\n")[0]
    for hook in local["hooks"]:
        tool = re.search(r"\.venv/bin/(\w+(?: check| format --check)?)", hook["entry"])
        assert tool, hook
        assert f"$(BIN)/{tool[1]}" in checks
