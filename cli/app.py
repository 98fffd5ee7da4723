"""The program, assembled from the commands' modules."""

from collections.abc import Iterator, Mapping
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.main import get_command

from .errors import EXIT_CODES_HELP
from .framework import CommandGroup, ConceptCommand, ConceptGroup, Session
from .output import Output
from .quick_start import quick_imports

if TYPE_CHECKING:
    from typer._click import Command

COMMANDS = (
    ("add", "add.add", "concept add rex photos/ --category dog --tag pets"),
    ("train", "train.train", "concept train rex --set stage3.steps=300"),
    ("queue add", "queue.add", "concept queue add rex mia --method sefi --first"),
    ("queue list", "queue.list_queue", "concept queue list"),
    ("queue run", "queue.run", "concept queue run --watch"),
    ("queue first", "queue.first", "concept queue first 3"),
    ("queue rm", "queue.rm", "concept queue rm 3"),
    ("mask", "mask.mask", "concept mask rex --preview"),
    ("caption", "caption.caption", "concept caption rex --preview"),
    ("methods", "methods.methods", "concept methods"),
    ("presets", "methods.presets", "concept presets miniature --method attndreambooth"),
    (
        "generate",
        "generate.generate",
        'concept generate "a photo of a red teapot in the snow" -n 4',
    ),
    ("reproduce", "generate.reproduce", "concept reproduce pictures/a-photo-of-rex-7.png"),
    ("eval", "evaluate.evaluate", "concept eval rex --versions all --mark-best --report report"),
    ("compress", "compress.compress", "concept compress rex@1 --to svd:90%"),
    ("suites", "evaluate.suites", "concept suites living"),
    ("bases", "bases.bases", "concept bases"),
    ("gallery", "gallery.gallery", "concept gallery gallery --tag pets --pictures pictures"),
    ("list", "listing.list_concepts", "concept list beach --tag pets --sort updated --reverse"),
    ("show", "show.show", "concept show rex"),
    ("edit", "edit.edit", 'concept edit rex --tag old --caption 03.jpg="a dog on a sofa"'),
    ("rename", "rename.rename", "concept rename rex max"),
    ("rm", "rm.rm", "concept rm rex --yes"),
    ("history", "history.history", "concept history rex"),
    ("path", "path.path", "concept path rex | xargs -d '\\n' ls -l"),
    ("export", "bundles.export", "concept export rex mia pets.concept"),
    ("import", "bundles.import_", "concept import pets.concept"),
    ("backup", "backup.backup", "concept backup /mnt/disk/concepts"),
    ("check", "check.check", "concept check --read-data"),
    ("gc", "gc.gc", "concept gc --dry-run"),
)
GROUPS = {"queue": "Trainings that wait, and outlive the command and the machine."}
HELP_OPTIONS = {"help_option_names": ["-h", "--help"]}


class _Commands(Mapping[str, "Command"]):
    """The commands by their first words; one is loaded when it is asked for.

    All of them together would take longer than all else that `list` does.
    """

    def __init__(self) -> None:
        self._words = dict.fromkeys(name.split()[0] for name, _, _ in COMMANDS)

    def __getitem__(self, word: str) -> "Command":
        if word not in self._words:
            raise KeyError(word)
        return _load(word)

    def __iter__(self) -> Iterator[str]:
        return iter(self._words)

    def __len__(self) -> int:
        return len(self._words)


@cache
def _load(word: str) -> "Command":
    """The command of a name, or all that begin with a word."""
    loaded = typer.Typer(
        cls=CommandGroup,
        name=word,
        help=GROUPS.get(word),
        rich_markup_mode=None,
        add_completion=False,
        context_settings=HELP_OPTIONS,
    )
    for name, place, example in COMMANDS:
        first, *others = name.split()
        if first == word:
            module, _, function = place.partition(".")
            with quick_imports():
                run = getattr(import_module(f".{module}", __package__), function)
            own = " ".join(others) or first
            loaded.command(own, cls=ConceptCommand, epilog=f"\b\nExample:\n  {example}")(run)
    return get_command(loaded)


class _Program(ConceptGroup):
    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.commands = _Commands()


app = typer.Typer(
    cls=_Program,
    rich_markup_mode=None,  # rich help pages would double the start-up time
    invoke_without_command=True,
    epilog=EXIT_CODES_HELP,
    context_settings=HELP_OPTIONS,
)


def _print_version(context: typer.Context, wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        number = version("conceptry")
        Output(as_json=context.params.get("as_json", False)).lines(
            {"version": number}, [f"conceptry {number}"]
        )
        raise typer.Exit


@app.callback()
def concept(
    context: typer.Context,
    registry: Annotated[
        str | None,
        typer.Option(
            metavar="PATH",
            help="The registry: concepts.db or its folder. Else $CONCEPT_REGISTRY, ./concepts.db, "
            "then the user's data folder.",
            show_default=False,
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON document.", is_eager=True)
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print results only.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Print the trace of an error.")] = False,
    _version: Annotated[
        bool,
        typer.Option(
            "--version",
            help="Print the version.",
            callback=_print_version,  # not eager, so that --json has been read
        ),
    ] = False,
) -> None:
    """Teach a text-to-image model your dog, doll or face, and keep track of hundreds of them."""
    if context.invoked_subcommand is None:
        print(context.get_help())  # noqa: T201
        raise typer.Exit
    context.obj = Session()
    context.obj.update(registry=registry, as_json=as_json, quiet=quiet, debug=debug)
