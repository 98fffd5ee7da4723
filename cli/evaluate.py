"""`concept eval`: score versions of concepts. `concept suites`: the prompt suites."""

from dataclasses import asdict
from functools import partial
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated

import typer

from .arguments import (
    ClipName,
    ConceptNames,
    DinoName,
    GuidanceOption,
    LayoutControlOption,
    LayoutOption,
    PerturbedAttentionOption,
    StepsOption,
    SuiteName,
)
from .errors import usage
from .framework import Session, session_of
from .output import count, table

if TYPE_CHECKING:
    from rich.console import RenderableType

    from ..evaluation.plan import Plan
    from ..evaluation.record import Evaluation, Interval
    from ..evaluation.running import EvalRequest
    from ..registry import Registry


def evaluate(
    context: typer.Context,
    names: ConceptNames,
    versions: Annotated[
        str | None,
        typer.Option(
            metavar="WHICH",
            help="all, or numbers and aliases: 1,2 or best; by default the one that <rex> means.",
            show_default=False,
        ),
    ] = None,
    checkpoints: Annotated[
        bool,
        typer.Option(
            "--all-checkpoints",
            help="Also kept checkpoints; the best becomes a version with the alias best.",
        ),
    ] = False,
    suite: SuiteName = None,
    seeds: Annotated[
        int, typer.Option(metavar="N", min=1, max=1000, help="Pictures of each prompt.")
    ] = 4,
    base: Annotated[
        str | None,
        typer.Option(
            metavar="BASE",
            help="The base model; by default the one it was trained on.",
            show_default=False,
        ),
    ] = None,
    steps: StepsOption = None,
    guidance: GuidanceOption = None,
    perturbed_attention: PerturbedAttentionOption = None,
    clip: ClipName = None,
    dino: DinoName = None,
    report: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Also write report.html, scores.csv and scores.json, in place of earlier ones.",
            show_default=False,
        ),
    ] = None,
    best: Annotated[
        bool,
        typer.Option("--mark-best", help="Give the version that scored highest the alias best."),
    ] = False,
    separate: Annotated[
        bool, typer.Option("--separate", help="Keep the concepts of a picture apart.")
    ] = False,
    layout: LayoutOption = None,
    layout_control: LayoutControlOption = False,
    offline: Annotated[bool, typer.Option("--offline", help="Download nothing.")] = False,
) -> None:
    """Draw a suite of prompts with versions of concepts, and score the pictures.

    Recorded scores of the same evaluation, and pictures that were drawn before, are reused. Best is
    the highest harmonic mean of prompt and identity score.
    """
    session = session_of(context)
    from ..evaluation import running
    from ..generation.layout import parse_layout
    from ..generation.request import SamplingSettings

    request = running.EvalRequest(
        names=list(dict.fromkeys(names)),
        versions=versions,
        all_checkpoints=checkpoints,
        marks_best=best or checkpoints,
        shows_pictures=report is not None,
        suite=suite,
        base=base,
        num_seeds=seeds,
        settings=partial(
            SamplingSettings.for_base,
            steps=steps,
            guidance=guidance,
            perturbed_attention=perturbed_attention,
            separate=separate,
            layout=parse_layout(layout or ()),
            layout_control=layout_control,
        ),
        clip=clip,
        dino=dino,
    )
    parts = [name.partition("@") for name in names]
    if wanted := [version for _, at, version in parts if at]:
        concepts = " ".join(dict.fromkeys(quote(concept) for concept, _, _ in parts))
        raise usage(
            "versions are chosen for all names at once",
            f"concept eval {concepts} --versions {quote(','.join(wanted) or 'all')}",
        )
    if checkpoints and versions:
        raise usage("--all-checkpoints takes all versions", "leave --versions out")
    if best and versions is None and not checkpoints:
        every = " ".join(quote(name) for name in names)
        raise usage(
            "--mark-best compares versions", f"concept eval {every} --versions all --mark-best"
        )
    with session.registry() as registry:
        registry.check_folder(report)  # before hours are spent
        found = _scored(session, registry, request, offline)
        marked = running.mark_best(registry, found) if best or checkpoints else []
        page = _reported(registry, found, report) if report else None
    document = {
        "results": [each.document() for each in found],
        "best": [{"concept": each.concept, "version": each.version} for each in marked],
        "report": str(page) if page else None,
    }
    session.output.result(document, *([] if session.output.as_json else _render(found)))
    for each in marked:
        session.output.note(f"best of {each.concept} is version {each.version}")
    if page:
        session.output.note(f"report: {page}")


def _reported(registry: "Registry", found: "list[Evaluation]", folder: Path) -> Path:
    from ..evaluation.report import write_report

    return write_report(registry, found, folder)


def _scored(
    session: Session, registry: "Registry", request: "EvalRequest", offline: bool
) -> "list[Evaluation]":
    from ..evaluation.plan import checkpoint_of
    from ..evaluation.running import score

    found: list[Evaluation] = []
    with session.output.progress("drawing") as advance:

        def on_start(plan: "Plan") -> None:
            names = " and ".join(checkpoint_of(each) or each.label for each in plan.chosen)
            total = len(plan.suite.prompts) * len(plan.seeds)
            session.output.note(f"{names}: {plan.suite.name}, {count(total, 'picture')}")

        try:
            found.extend(
                score(registry, request, offline=offline, on_start=on_start, on_progress=advance)
            )
        except KeyboardInterrupt:
            session.output.note("the same command goes on: what was drawn and scored is kept")
            raise
    return found


def _render(found: "list[Evaluation]") -> "list[RenderableType]":
    from ..evaluation.record import metrics_of

    shown_names = {name for each in found for name in each.scores if not name.endswith("_subject")}
    names = [metric.name for metric in metrics_of(shown_names)]
    rows = [
        [each.label, each.suite, *(_described(each.scores.get(name)) for name in names)]
        for each in found
    ]
    headings = ("version", "suite", *(name.replace("_", "-") for name in names))
    return [table(headings, rows, numbers=len(names)), "", *_meanings(found)]


def _described(score: "Interval | None") -> str:
    """`0.92 (0.88-0.95)`."""
    return f"{score.mean:.2f} ({score.low:.2f}-{score.high:.2f})" if score else ""


def _meanings(found: "list[Evaluation]") -> list[str]:
    from ..evaluation.record import REPLAY_ABOVE

    ways = {tuple(each.chosen_by) for each in found}
    lines = [f"both: harmonic mean of {a} and {b}" for a, b in sorted(ways)]
    lines.append("with 95 % intervals from resampling prompts")
    for each in found:
        copies = [
            (prompt.prompt, picture.seed)
            for prompt in each.prompts
            for picture in prompt.pictures
            if picture.scores.get("replay", 0) > REPLAY_ABOVE
        ]
        if copies:
            prompt, seed = copies[0]
            lines.append(
                f"{each.label}: {count(len(copies), 'picture')} close to a photo, "
                f'such as "{prompt}", seed {seed}'
            )
    return lines


def suites(
    context: typer.Context,
    name: Annotated[
        str | None,
        typer.Argument(metavar="SUITE", help="Show all of its prompts.", show_default=False),
    ] = None,
) -> None:
    """List the prompt suites for concept eval, or the prompts of one of them."""
    session = session_of(context)
    from ..evaluation.suites import find_suite, shipped_suites

    found = [find_suite(name)] if name else list(shipped_suites().values())
    documents = [
        {"name": each.name, "about": each.about, "prompts": [asdict(p) for p in each.prompts]}
        for each in found
    ]
    if name:
        shown = table(("tests", "prompt"), [(p.tests, p.text) for p in found[0].prompts])
    else:
        rows = [(each.name, str(len(each.prompts)), each.about) for each in found]
        shown = table(("name", "prompts", "about"), rows)
    session.output.result({"suites": documents}, shown)
