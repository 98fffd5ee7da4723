"""What `concept train` and `concept queue add` take, and what of it does not go together."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..registry.errors import quoted
from .arguments import complete_concept
from .errors import usage
from .output import count

if TYPE_CHECKING:
    from ..methods.method import Method
    from ..methods.settings import TrainingSettings
    from ..models.bases import Base
    from ..registry import Registry
    from ..registry.records import RunRecord
    from ..training.queued import TrainOptions

Names = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="NAME...",
        help="Concept names.",
        autocompletion=complete_concept,
        show_default=False,
    ),
]
Everything = Annotated[bool, typer.Option("--all", help="Every concept.")]
Tags = Annotated[
    list[str] | None,
    typer.Option("--tag", "-t", metavar="TAG", help="With --all: those with this tag."),
]
MethodName = Annotated[
    str, typer.Option("--method", metavar="METHOD", help="The method; concept methods lists them.")
]
PresetName = Annotated[
    str | None,
    typer.Option(
        "--preset",
        metavar="PRESET",
        help="Which settings; by default those for the base model, else the paper's.",
        show_default=False,
    ),
]
BaseName = Annotated[
    str,
    typer.Option(
        "--base",
        metavar="BASE",
        help="The base model; concept bases lists some. With --resume, the one it began with.",
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="Change a setting: stage3.steps=300."),
]
Photos = Annotated[
    list[str] | None,
    typer.Option(
        "--photo",
        metavar="PHOTO",
        help="Learn this photo, by number, hash or name; repeatable. All by default.",
    ),
]
Seed = Annotated[
    int, typer.Option("--seed", metavar="SEED", min=0, help="Seed of all random numbers.")
]
Resume = Annotated[bool, typer.Option("--resume", help="Continue an unfinished training.")]
PreviewEvery = Annotated[
    int,
    typer.Option(
        "--preview-every",
        metavar="N",
        min=0,
        help="Draw a strip of previews every N steps; 0 draws none.",
    ),
]
KeepEvery = Annotated[
    int,
    typer.Option(
        "--keep-every",
        metavar="N",
        min=0,
        help="Keep a checkpoint every N steps of the last stage, for concept eval.",
    ),
]
EvalEvery = Annotated[
    int,
    typer.Option(
        "--eval-every",
        metavar="N",
        min=0,
        help="Keep and score a checkpoint every N steps; the best one gets the alias best.",
    ),
]
StopEarly = Annotated[bool, typer.Option("--stop-early", help="Stop when scores no longer rise.")]
TensorboardFolder = Annotated[
    Path | None,
    typer.Option(
        "--tensorboard",
        metavar="DIR",
        help="Also write losses for TensorBoard.",
        show_default=False,
    ),
]
Together = Annotated[
    int | None,
    typer.Option(
        "--together",
        metavar="N",
        min=1,
        max=1024,
        help="Train up to N concepts in one batch, with methods that keep the base model; by "
        "default 8, or 1 with presets that are named after a GPU, as 8gb.",
        show_default=False,
    ),
]
Offline = Annotated[bool, typer.Option("--offline", help="Download nothing.")]


def given(context: typer.Context, *names: str) -> bool:
    """Whether any of these options stands on the command line."""
    sources = [context.get_parameter_source(name) for name in names]
    return any(source is not None and source.name == "COMMANDLINE" for source in sources)


def check_options(
    context: typer.Context,
    options: "TrainOptions",
    names: list[str] | None,
    tags: list[str],
    *,
    everything: bool,
) -> None:
    """Raise `Failure` for options that do not go together, before any registry is opened."""
    call = context.command_path
    if bool(names) == everything:
        raise usage("name concepts, or ask for all", f"{call} rex, or {call} --all")
    if options.resume and (
        options.overrides or options.preset or options.photos or given(context, "method", "seed")
    ):
        raise usage("--resume keeps the settings it began with", f"{call} NAME --resume")
    if options.stop_early and not options.eval_every:
        raise usage("--stop-early needs scores", f"{call} NAME --eval-every 50 --stop-early")
    if not options.eval_every and given(context, "suite", "clip", "dino"):
        raise usage("--suite, --clip and --dino are for scores", f"{call} NAME --eval-every 50")
    if options.keep_every and options.eval_every:
        raise usage("--eval-every keeps what it scores", "leave --keep-every out")
    if tags and not everything:
        raise usage("--tag goes with --all", f"{call} --all --tag {quoted(tags[0])}")
    if options.photos and (everything or len(dict.fromkeys(names or [])) > 1):
        raise usage("--photo is for one concept", f"{call} rex --photo 2")


def chosen_concepts(
    registry: "Registry", names: list[str] | None, tags: list[str], options: "TrainOptions"
) -> list[int]:
    """The ids of the named concepts, or of all with the tags."""
    if names:
        return [registry.show(name).id for name in dict.fromkeys(names)]
    found = [registry.show(each.name).id for each in registry.find(tags=tags, limit=0).concepts]
    if not found:
        raise usage("no concept fits", "concept list --tag TAG")
    if options.resume and not (found := [each for each in found if unfinished(registry, each)]):
        raise usage("no concept has an unfinished training", "concept train --all")
    return found


def unfinished(registry: "Registry", concept: int) -> "RunRecord | None":
    """The unfinished training of a concept, if there is one."""
    from ..registry.errors import NotFound

    try:
        return registry.resumable_run(concept)
    except NotFound:
        return None


def _check_scores(
    registry: "Registry", concepts: list[int], options: "TrainOptions", base: "Base"
) -> None:
    """Raise what scores of checkpoints would be refused for."""
    if not options.eval_every:
        return
    from ..evaluation.encoder_names import check_there, encoder_names_for
    from ..evaluation.running import EvalRequest, check_can_choose, suite_of

    encoders = encoder_names_for(base, clip=options.clip, dino=options.dino)
    check_there(encoders)
    for each in concepts:
        request = EvalRequest(names=[each], suite=options.suite)
        check_can_choose(suite_of(request, encoders, registry.show(each)))


def base_of_unfinished(registry: "Registry", concepts: list[int]) -> str:
    """The base model that trainings began with."""
    bases = {registry.resumable_run(each).base: each for each in concepts}
    if len(bases) > 1:
        (base, concept), *_ = bases.items()
        raise usage(
            f"trainings began with {' and '.join(bases)}: one base model at a time",
            f"concept train {registry.show(concept).name} --resume --base {quoted(base)}",
        )
    (base,) = bases
    return base


def checked_settings(
    registry: "Registry", concepts: list[int], options: "TrainOptions"
) -> "TrainingSettings":
    """The settings of a new training. Reports wrong options before anything is loaded."""
    from ..generation.reference_syntax import find_photo
    from ..methods.method import find_method, resolve_settings
    from ..models.bases import find_base
    from ..training.packages import check_packages

    method = find_method(options.method)
    base = find_base(options.base)
    settings = resolve_settings(
        method, preset=options.preset, base=base.name, overrides=options.overrides
    )
    _check_scores(registry, concepts, options, base)
    if options.resume:
        _check_kept_of_unfinished(registry, concepts, options)
        return settings
    check_packages(settings)
    _check_together(method, settings, options)
    name, steps = _last_stage(method, settings) or (f"the preset {options.preset or base}", 0)
    _check_kept(options, name, steps)
    usual = type(options)().preview_every
    if not steps and (options.tensorboard or options.preview_every not in (0, usual)):
        option = "--tensorboard" if options.tensorboard else "--preview-every"
        raise usage(f"{name} has 0 steps: nothing to show", f"leave {option} out")
    for concept in concepts:
        for photo in options.photos:
            find_photo(registry.show(concept), photo)
    return settings


def _last_stage(method: "Method", settings: "TrainingSettings") -> tuple[str, int] | None:
    """Its name and steps; None if no stage has any."""
    from ..methods.method import active_stages

    stages = [(stage.name, own.steps) for stage, own in active_stages(method, settings)]
    return stages[-1] if stages else None


def _check_together(
    method: "Method", settings: "TrainingSettings", options: "TrainOptions"
) -> None:
    """Raise `Failure` for a number of concepts that could never share a batch."""
    if (options.together or 1) == 1:
        return
    if not method.keeps_base:
        raise usage(
            f"{method.name} changes the base model: --together is for methods that keep it",
            "--method sefi, or leave --together out",
        )
    if settings.augmentation.buckets:
        raise usage(
            "crops of a batch have one shape: --together is without augmentation.buckets",
            "leave --together out",
        )


def _check_kept(options: "TrainOptions", name: str, steps: int) -> None:
    """Raise `Failure` if no step of the last stage is one whose checkpoint is kept."""
    every = options.eval_every or options.keep_every
    if every and every >= steps:
        option = "--eval-every" if options.eval_every else "--keep-every"
        raise usage(
            f"{name} has {count(steps, 'step')}: none to keep every {every}",
            f"{option} {max(1, steps // 4)}" if steps else f"leave {option} out",
        )
    from ..evaluation.patience import PATIENCE

    scored = (steps - 1) // every if every else 0
    if options.stop_early and scored <= PATIENCE:
        often = (steps - 1) // (PATIENCE + 1)
        raise usage(
            f"{name} has {count(steps, 'step')}: --stop-early needs {PATIENCE + 1} scored "
            f"checkpoints before the end, and there are {scored}",
            f"--eval-every {often}" if often else "leave --stop-early out",
        )


def _check_kept_of_unfinished(
    registry: "Registry", concepts: list[int], options: "TrainOptions"
) -> None:
    """The same of trainings that go on; raises `NotFound` for a concept that has none."""
    runs = [registry.resumable_run(concept) for concept in concepts]
    lasts = [_last_stage_of_run(run) for run in runs]
    _check_kept(options, *max(lasts, key=lambda each: each[1]))


def _last_stage_of_run(run: "RunRecord") -> tuple[str, int]:
    from ..methods.method import find_method

    for stage in reversed(find_method(run.method).stages):
        match run.config.get(stage.name):
            case {"steps": int(steps)} if steps:
                return stage.name, steps
            case _:
                pass
    return f"run {run.run}", 0
