"""Arguments that several commands take, with their completion."""

from typing import Annotated

import typer


def complete_concept(context: typer.Context, incomplete: str) -> list[str]:
    """The concept names that begin with what was typed; never an error."""
    from ..registry.completion import concept_names

    path = context.params.get("registry") or context.find_root().params.get("registry")
    return concept_names(path, incomplete)


ConceptName = Annotated[
    str,
    typer.Argument(
        metavar="NAME",
        help="The concept's name.",
        autocompletion=complete_concept,
        show_default=False,
    ),
]
ConceptNames = Annotated[
    list[str],
    typer.Argument(
        metavar="NAME", help="Concept names.", autocompletion=complete_concept, show_default=False
    ),
]
TagsOption = Annotated[
    list[str] | None,
    typer.Option("--tag", "-t", metavar="T", help="Only with this tag; may be repeated."),
]
CategoryOption = Annotated[
    str | None, typer.Option("--category", "-c", metavar="WORD", help="Only of this category.")
]

SuiteName = Annotated[
    str | None,
    typer.Option(
        metavar="SUITE",
        help="Prompts to score with: a name of concept suites, or a file of your own.",
        show_default=False,
    ),
]
ClipName = Annotated[
    str | None,
    typer.Option(
        metavar="ID",
        help="CLIP to score with: a hub repository, a folder, or miniature.",
        show_default=False,
    ),
]
DinoName = Annotated[
    str | None,
    typer.Option(metavar="ID", help="DINO or DINOv2 to score with, or none.", show_default=False),
]

LayoutOption = Annotated[
    list[str] | None,
    typer.Option(
        "--layout",
        metavar="NAME=BOX",
        help="Draw a concept, or a word of the prompt, in its place: left,top,right,bottom as "
        "shares, rex=0,.3,.5,1; repeatable. Or auto, the default for several concepts: where each "
        "is found; or none: all at once.",
        show_default=False,
    ),
]
LayoutControlOption = Annotated[
    bool,
    typer.Option(
        "--layout-control",
        help="Show the boxes of --layout to the base model's ControlNet for layouts; the miniature "
        "has one.",
    ),
]
StepsOption = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        min=1,
        max=1000,
        help="Denoising steps; by default the base model's (concept bases).",
        show_default=False,
    ),
]
PerturbedAttentionOption = Annotated[
    float | None,
    typer.Option(
        metavar="S",
        min=0,
        max=100,
        help="Scale of perturbed-attention guidance, for better structure; 0 is none. By default "
        "the base model's (concept bases).",
        show_default=False,
    ),
]
GuidanceOption = Annotated[
    float | None,
    typer.Option(
        metavar="X",
        min=0,
        max=100,
        help="Guidance scale, 1 is none; by default the base model's (concept bases).",
        show_default=False,
    ),
]
