"""`concept compress`: a version in a fraction of its bytes."""

from dataclasses import asdict
from typing import Annotated

import typer

from ..registry.errors import quoted
from .arguments import complete_concept
from .framework import session_of
from .output import size
from .quick_start import quick_imports


def compress(
    context: typer.Context,
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME[@VERSION]",
            help="A version that changes the base model's weights in full.",
            autocompletion=complete_concept,
            show_default=False,
        ),
    ],
    to: Annotated[
        str,
        typer.Option(
            metavar="WAY",
            help="svd:RANK or svd:SHARE% makes a LoRA, with :int4 or :int8 behind it in few bits; "
            "1bit, int4, fp8 and int8 keep whole differences so.",
        ),
    ] = "svd:128:int4",
    alias: Annotated[
        str | None,
        typer.Option(metavar="WORD", help="Call the new version so.", show_default=False),
    ] = None,
) -> None:
    """Make a small version of one whose training changed weights.

    The new version is drawn with, scored and exported like any other; the original stays.
    """
    session = session_of(context)
    from ..adapters.ways import Way
    from ..registry.names import check_alias

    way = Way.parse(to)
    if alias is not None:
        check_alias(alias)
    word, has_version, version = name.partition("@")
    with session.registry() as registry:
        concept = registry.show(word)  # before torch is loaded
        with quick_imports():
            from ..adapters.compression import compress_version
            from ..generation.prompt_syntax import resolve_version

        chosen = resolve_version(registry, concept, version if has_version else None)
        with session.output.progress("compressing") as advance:
            done = compress_version(
                registry, concept, chosen.version, way, alias=alias, on_progress=advance
            )
    session.output.lines(asdict(done), [f"{done.concept}@{done.version}"])
    session.output.note(
        f"{size(done.of_bytes)} became {size(done.bytes)}, {done.bytes / done.of_bytes:.1%}; it "
        f"keeps {done.kept:.1%} of the change of weights (of its squared norm)"
    )
    versions = f"--versions {done.of},{done.version}"
    session.output.note(
        f"compare them: concept eval {quoted(done.concept)} {versions}, and "
        f'concept generate "a photo of <{done.concept}@{done.version}>"'
    )
