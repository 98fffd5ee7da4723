"""The program, assembled from the commands' modules."""

from functools import cache
from typing import Annotated

import typer

from . import (
    add,
    backup,
    bases,
    bundles,
    caption,
    check,
    compress,
    edit,
    evaluate,
    gallery,
    gc,
    generate,
    history,
    listing,
    mask,
    methods,
    path,
    queue,
    rename,
    rm,
    show,
    train,
)
from .errors import EXIT_CODES_HELP
from .framework import CommandGroup, ConceptCommand, ConceptGroup, Session
from .output import Output

app = typer.Typer(
    cls=ConceptGroup,
    rich_markup_mode=None,  # rich help pages would double the start-up time
    invoke_without_command=True,
    epilog=EXIT_CODES_HELP,
    context_settings={"help_option_names": ["-h", "--help"]},
)

COMMANDS = (
    ("add", add.add, "concept add rex photos/ --category dog --tag pets"),
    ("train", train.train, "concept train rex --set stage3.steps=300"),
    ("queue add", queue.add, "concept queue add rex mia --method sefi --first"),
    ("queue list", queue.list_queue, "concept queue list"),
    ("queue run", queue.run, "concept queue run --watch"),
    ("queue first", queue.first, "concept queue first 3"),
    ("queue rm", queue.rm, "concept queue rm 3"),
    ("mask", mask.mask, "concept mask rex --preview"),
    ("caption", caption.caption, "concept caption rex --preview"),
    ("methods", methods.methods, "concept methods"),
    ("presets", methods.presets, "concept presets miniature --method attndreambooth"),
    ("generate", generate.generate, 'concept generate "a photo of a red teapot in the snow" -n 4'),
    ("reproduce", generate.reproduce, "concept reproduce pictures/a-photo-of-rex-7.png"),
    ("eval", evaluate.evaluate, "concept eval rex --versions all --mark-best --report report"),
    ("compress", compress.compress, "concept compress rex@1 --to svd:90%"),
    ("suites", evaluate.suites, "concept suites living"),
    ("bases", bases.bases, "concept bases"),
    ("gallery", gallery.gallery, "concept gallery gallery --tag pets --pictures pictures"),
    ("list", listing.list_concepts, "concept list beach --tag pets --sort updated --reverse"),
    ("show", show.show, "concept show rex"),
    ("edit", edit.edit, 'concept edit rex --tag old --caption 03.jpg="a dog on a sofa"'),
    ("rename", rename.rename, "concept rename rex max"),
    ("rm", rm.rm, "concept rm rex --yes"),
    ("history", history.history, "concept history rex"),
    ("path", path.path, "concept path rex | xargs -d '\\n' ls -l"),
    ("export", bundles.export, "concept export rex mia pets.concept"),
    ("import", bundles.import_, "concept import pets.concept"),
    ("backup", backup.backup, "concept backup /mnt/disk/concepts"),
    ("check", check.check, "concept check --read-data"),
    ("gc", gc.gc, "concept gc --dry-run"),
)
GROUPS = {"queue": "Trainings that wait, and outlive the command and the machine."}


@cache
def _group(name: str) -> typer.Typer:
    """The commands whose names begin with a word, listed where the first of them stands."""
    made = typer.Typer(
        cls=CommandGroup,
        name=name,
        help=GROUPS[name],
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.add_typer(made)
    return made


for name, function, example in COMMANDS:
    group, _, own = name.rpartition(" ")
    home = _group(group) if group else app
    home.command(own, cls=ConceptCommand, epilog=f"\b\nExample:\n  {example}")(function)


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
