"""What pages have from the program: the command line, settings, numbers, floors, and files.

python tests/docs_pages.py            # say which pages are stale
python tests/docs_pages.py --write    # and put what the program says into them

In a page, what stands between `<!-- begin NAME -->` and `<!-- end NAME -->` is from `PARTS`, and a
block of code with the path of a file in `examples/` or `tests/` as its title is that file.
"""

import ast
import inspect
import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from functools import cache
from html import escape
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import test_floors
import typer
from conceptry.cli.app import COMMANDS, app
from conceptry.cli.framework import GLOBAL_OPTIONS
from conceptry.methods.method import Method, all_methods, read_presets
from conceptry.methods.settings import Settings, TrainingSettings
from program import command_named

ROOT = Path(__file__).parents[1]
FOLDERS_WITHOUT_PAGES = ("build", "dist", "runs", "wheels")
_PART = re.compile(r"(<!-- begin (.+?) -->\n).*?(<!-- end \2 -->)", re.DOTALL)
_BLOCK = re.compile(r"^```(\S*)(?: title=\"(.+?)\")?\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def pages() -> list[Path]:
    """All pages of the repository."""
    return sorted(
        path
        for path in ROOT.rglob("*.md")
        if not any(
            part.startswith(".") or part in FOLDERS_WITHOUT_PAGES
            for part in path.relative_to(ROOT).parts
        )
    )


@dataclass(frozen=True, slots=True)
class Block:
    """A block of code in a page."""

    language: str
    title: str
    text: str


def blocks(text: str) -> Iterator[Block]:
    """Those of a page."""
    for match in _BLOCK.finditer(text):
        yield Block(match[1], match[2] or "", match[3])


def without_code(text: str) -> str:
    """A page without its blocks."""
    return _BLOCK.sub("", text)


def rewritten(text: str) -> str:
    """A page with what the program says by now."""
    text = _PART.sub(lambda match: f"{match[1]}\n{PARTS[match[2]]().strip()}\n\n{match[3]}", text)
    return _BLOCK.sub(_with_its_file, text)


def _with_its_file(match: re.Match[str]) -> str:
    if not (match[2] or "").startswith(("examples/", "tests/")):
        return match[0]
    text = (ROOT / match[2]).read_text(encoding="utf-8")
    return f'```{match[1]} title="{match[2]}"\n{text}```'


# --- the command line -----------------------------------------------------------------------------

_TYPE = re.compile(r" <[^>]*>$")


def command_line() -> str:
    """Every command with its arguments and options, then the options of all."""
    root: Any = typer.main.get_command(app)
    whole = root.make_context("concept", ["list"])
    parts: list[str] = []
    for name, _, example in COMMANDS:
        command, _, _ = command_named(name.split())
        context = command.context_class(command, info_name=name, parent=whole)
        own = [each for each in command.get_params(context) if each.name not in _EVERYWHERE]
        about = escape(inspect.getdoc(command.callback) or "", quote=False)
        usage = " ".join(command.collect_usage_pieces(context))
        parts += [f"## concept {name}", about, f"    concept {name} {usage}"]
        parts += [_table(own, context), f"```\n{example}\n```"]
    shared = [each for each in root.get_params(whole) if each.name in (*GLOBAL_OPTIONS, "_version")]
    return "\n\n".join([*filter(None, parts), *_SHARED, _table(shared, whole)])


_SHARED = (
    "## Options of all commands",
    "They stand before the command or after it; `--version` needs none.",
)


_EVERYWHERE = (*GLOBAL_OPTIONS, "help")


def _table(parameters: list[Any], context: Any) -> str:
    records = [record for each in parameters if (record := each.get_help_record(context))]
    rows = [f"| `{_TYPE.sub('', name)}` | {_cell(about)} |" for name, about in records]
    return "\n".join(["| | |", "|---|---|", *rows]) if rows else ""


def _cell(text: str) -> str:
    """A text in a table, in which angle brackets are no tags."""
    return escape(" ".join(text.split()), quote=False).replace("|", "\\|")


# --- settings -------------------------------------------------------------------------------------


def common_settings() -> str:
    """What every training can be told."""
    return _settings_table(TrainingSettings)


def settings_of_methods() -> str:
    """Of each method, its presets: what differs from the common defaults."""
    return "\n\n".join(_of_method(method) for method in all_methods().values())


def _of_method(method: Method) -> str:
    presets = read_presets(method)
    common = dict(TrainingSettings().flat())
    values = {name: dict(preset.settings.flat()) for name, preset in presets.items()}
    own = _descriptions(method.settings)
    rows: list[str] = []
    for name in next(iter(values.values())):
        found = [each[name] for each in values.values()]
        if name not in common or any(value != common[name] for value in found):
            about, bounds = own[name]
            cells = [f"`{name}`", *map(_shown, found), _cell(bounds), _cell(about)]
            rows.append(f"| {' | '.join(cells)} |")
    heads = ["setting", *presets, "range", "what it is"]
    abouts = "\n".join(f"- `{name}`: {preset.about}" for name, preset in presets.items())
    table = "\n".join([f"| {' | '.join(heads)} |", "|---" * len(heads) + "|", *rows])
    return f"### {method.name}\n\n{method.about} ({method.paper}).\n\n{abouts}\n\n{table}"


def _settings_table(kind: type[Settings]) -> str:
    own = _descriptions(kind)
    rows = [
        f"| `{name}` | {_shown(value)} | {_cell(own[name][1])} | {_cell(own[name][0])} |"
        for name, value in kind().flat()
    ]
    return "\n".join(["| setting | default | range | what it is |", "|---|---|---|---|", *rows])


def _shown(value: Any) -> str:
    """A value as `--set` takes it."""
    if isinstance(value, tuple):
        return "<br>".join(f"`{each}`" for each in value)
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def _descriptions(kind: type, at: str = "") -> dict[str, tuple[str, str]]:
    """(what it is, its range) of each setting, by its whole name."""
    found: dict[str, tuple[str, str]] = {}
    texts: dict[str, str] = {}
    kinds = get_type_hints(kind)
    for each in reversed(kind.__mro__[:-1]):
        texts |= _texts_under_fields(each)
    for each in fields(kind):
        default: Any = None if each.default_factory is not None else each.default
        if callable(each.default_factory):
            default = each.default_factory()
        if isinstance(default, Settings):
            found |= _descriptions(type(default), f"{at}{each.name}.")
        else:
            bounds = _range(each.metadata) or _words(kinds[each.name])
            found[f"{at}{each.name}"] = (texts.get(each.name, ""), bounds)
    return found


def _range(metadata: Mapping[str, Any]) -> str:
    low, high = metadata.get("ge"), metadata.get("le")
    if low is None or high is None:
        return ""
    return f"{low:g} to {high:g}" if high < 10_000 else f"{low:g} to {high:,.0f}"


def _words(kind: Any) -> str:
    return " or ".join(get_args(kind)) if get_origin(kind) is Literal else ""


@cache
def _texts_under_fields(kind: type) -> dict[str, str]:
    """The text that stands under each field of a class, as far as there is one."""
    try:
        (body,) = ast.parse(inspect.getsource(kind)).body
    except (OSError, TypeError):
        return {}
    assert isinstance(body, ast.ClassDef)
    found: dict[str, str] = {}
    for before, after in zip(body.body, body.body[1:], strict=False):
        is_text = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
        if isinstance(before, ast.AnnAssign) and is_text and isinstance(before.target, ast.Name):
            found[before.target.id] = inspect.cleandoc(str(after.value.value))  # pyright: ignore[reportAttributeAccessIssue]
    return found


# --- numbers --------------------------------------------------------------------------------------

_ASKED = {
    "seen_category": "the category",
    "seen_place": "place",
    "seen_accessory": "accessory",
    "seen_colour": "another colour",
    "seen_second": "a second thing",
    "seen_style": "pencil sketch or photo",
    "replay": "nearest photo",
    "diversity": "diversity",
}


def what_is_seen() -> str:
    """Of each method, the shares of what prompts ask for that are seen, and more."""
    found = json.loads((ROOT / "bench/results/methods.json").read_text(encoding="utf-8"))["methods"]
    heads = ["", *_ASKED.values()]
    rows = [
        " | ".join([label, *(f"{each['scores'][name]['mean']:.2f}" for name in _ASKED)])
        for label, each in found.items()
    ]
    return "\n".join(
        [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|", *(f"| {row} |" for row in rows)]
    )


def counted_memory() -> str:
    """Gigabytes that trainings need, by method and preset, for each family of base models."""
    rows = json.loads((ROOT / "bench/results/memory.json").read_text(encoding="utf-8"))["rows"]
    families = list(dict.fromkeys(row["base"] for row in rows))
    found: dict[tuple[str, str], dict[str, str]] = {}
    for row in sorted(rows, key=lambda row: row["method"]):
        fits = f"{row['fits']} GB" if row["fits"] else "none of these"
        told = f"{max(row['stages'].values()):.1f}, {fits}"
        found.setdefault((row["method"], row["preset"]), {})[row["base"]] = told
    heads = ["method", "preset", *families]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    lines += [
        f"| {' | '.join([*names, *(told.get(each, '') for each in families)])} |"
        for names, told in found.items()
    ]
    return "\n".join(lines)


# --- floors ---------------------------------------------------------------------------------------

_ROW, _CELL, _LEFT, _TOP = 46, 62, 470, 74


def floors() -> str:
    """A picture of the packages, from the top down, and of which imports which."""
    known = test_floors.modules()
    found = {
        (name.split(".")[0], target.split(".")[0])
        for name, path in known.items()
        for target in test_floors.imports(path, known)
    }
    packages = test_floors.FLOORS
    width, height = _LEFT + _CELL * len(packages) + 10, _TOP + _ROW * len(packages) + 34
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        'font-family="sans-serif">',
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        _text(10, 24, "the packages, from the top down", "#555555"),
        _text(_LEFT, 24, "what each imports from", "#555555"),
    ]
    for row, package in enumerate(packages):
        y = _TOP + row * _ROW
        fill = "#e0f2f1" if row % 2 else "#b2dfdb"
        parts += [
            _box(10, y, 440, fill),
            _text(22, y + 25, package, "#004d40", weight="bold"),
            _text(132, y + 25, _ABOUT[package], "#333333", size=12),
            _text(_middle(row), _TOP - 10, package, "#004d40", anchor="middle", size=11),
        ]
        parts += [
            _box(_LEFT + column * _CELL, y, _CELL - 6, "#80cbc4")
            for column, target in enumerate(packages)
            if (package, target) in found and package != target
        ]
    below = "A box left of the diagonal would be an import upwards: there is none."
    parts += [_text(10, height - 12, below, "#555555", size=13), "</svg>"]
    return "\n".join(parts) + "\n"


def _middle(column: int) -> float:
    return _LEFT + column * _CELL + (_CELL - 6) / 2


def _box(x: float, y: float, width: float, fill: str) -> str:
    size = f'width="{width:g}" height="{_ROW - 6}"'
    return f'<rect x="{x:g}" y="{y:g}" {size} rx="6" fill="{fill}"/>'


_ABOUT = {
    "cli": "one module per command: parse, call, print",
    "evaluation": "suites, encoders, scores, reports",
    "training": "photos to adapter: loop, checkpoints",
    "generation": "prompt to pictures: the sampler",
    "methods": "published methods, a module each",
    "adapters": "what is trained and injected",
    "models": "base models, and the miniature",
    "kernels": "attention that returns token maps",
    "registry": "photos, versions, lineage",
}


def _text(
    x: float,
    y: float,
    text: str,
    fill: str,
    weight: str = "normal",
    *,
    anchor: str = "start",
    size: int = 15,
) -> str:
    return (
        f'<text x="{x:g}" y="{y:g}" fill="{fill}" font-weight="{weight}" '
        f'font-size="{size}" text-anchor="{anchor}">{escape(text)}</text>'
    )


# --- the whole ------------------------------------------------------------------------------------

PARTS: dict[str, Callable[[], str]] = {
    "commands": command_line,
    "common settings": common_settings,
    "settings of methods": settings_of_methods,
    "what is seen": what_is_seen,
    "counted memory": counted_memory,
}
FILES: dict[str, Callable[[], str]] = {"docs/floors.svg": floors}


def stale() -> dict[Path, str]:
    """Each file that is not what the program says, with what it ought to be."""
    wanted = {path: rewritten(path.read_text(encoding="utf-8")) for path in pages()}
    wanted |= {ROOT / name: make() for name, make in FILES.items()}
    return {
        path: text
        for path, text in wanted.items()
        if not path.exists() or path.read_text(encoding="utf-8") != text
    }


def main() -> None:
    """Say what is stale, and mend it if that is asked for."""
    found = stale()
    for path, text in found.items():
        print(path.relative_to(ROOT))
        if "--write" in sys.argv:
            path.write_text(text, encoding="utf-8")
    sys.exit(bool(found) and "--write" not in sys.argv)


if __name__ == "__main__":
    main()
