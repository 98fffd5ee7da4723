"""`concept train`: train concepts on a base model."""

import sys
from dataclasses import asdict, replace
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from .arguments import ClipName, DinoName, SuiteName
from .errors import usage
from .framework import Session, session_of
from .output import Output, count, size, unused_in_training
from .quick_start import quick_imports
from .training_options import (
    BaseName,
    EvalEvery,
    Everything,
    KeepEvery,
    MethodName,
    Names,
    Offline,
    Overrides,
    Photos,
    PresetName,
    PreviewEvery,
    Resume,
    Seed,
    StopEarly,
    Tags,
    TensorboardFolder,
    Together,
    base_of_unfinished,
    check_options,
    checked_settings,
    chosen_concepts,
    given,
)
from .trainings_shown import TrainingsShown, notes_on, stopping_politely

if TYPE_CHECKING:
    from ..methods.settings import TrainingSettings
    from ..models.loading import LoadedBase
    from ..registry import Registry
    from ..training.estimating import Estimate
    from ..training.memory import MemoryCount
    from ..training.queued import TrainOptions


def train(
    context: typer.Context,
    names: Names = None,
    everything: Everything = False,
    tag: Tags = None,
    method: MethodName = "attndreambooth",
    preset: PresetName = None,
    base: BaseName = "miniature",
    overrides: Overrides = None,
    photos: Photos = None,
    seed: Seed = 0,
    resume: Resume = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Count the memory of a GPU, run a few steps, and estimate time, memory and disk.",
        ),
    ] = False,
    preview_every: PreviewEvery = 100,
    keep_every: KeepEvery = 0,
    eval_every: EvalEvery = 0,
    stop_early: StopEarly = False,
    suite: SuiteName = None,
    clip: ClipName = None,
    dino: DinoName = None,
    tensorboard: TensorboardFolder = None,
    together: Together = None,
    processes: Annotated[
        int, typer.Option(metavar="N", min=1, max=64, help="Train on N GPUs at once.")
    ] = 1,
    offline: Offline = False,
) -> None:
    """Train concepts on a base model; each training makes a new version.

    Methods that keep the base model train several at once, the others one after another.
    Ctrl-C stops at the next step and saves; a second one stops at once.
    """
    session = session_of(context)
    from ..training.distributed import is_main_process, launch, num_processes, own_device
    from ..training.queued import TrainOptions

    options = TrainOptions(
        base=base,
        method=method,
        preset=preset,
        overrides=tuple(overrides or ()),
        photos=tuple(photos or ()),
        seed=seed,
        resume=resume,
        preview_every=preview_every,
        keep_every=keep_every,
        eval_every=eval_every,
        stop_early=stop_early,
        suite=suite,
        clip=clip,
        dino=dino,
        tensorboard=None if tensorboard is None else str(tensorboard),
        together=together,
        offline=offline,
    )
    check_options(context, options, names, tag or [], everything=everything)
    if dry_run and (resume or processes > 1):
        option = "--resume" if resume else "--processes"
        raise usage("--dry-run estimates a whole training in one process", f"without {option}")
    with session.registry() as registry:
        registry.check_folder(tensorboard)
        chosen = chosen_concepts(
            registry, names, tag or [], options
        )  # by id: they may be renamed during the training
        if resume and not given(context, "base"):
            options = replace(options, base=base_of_unfinished(registry, chosen))
        settings = checked_settings(registry, chosen, options)
        if not resume:
            _end_without_photos(session, registry, chosen, dry_run=dry_run)
        if processes > 1 and num_processes() == 1 and not dry_run:
            sys.exit(launch(sys.argv[1:], processes))
        if not is_main_process():
            session.output = Output(is_silent=True)
        counted = partial(_counted_memory, session, registry, chosen, options, settings)
        memory = counted() if dry_run else None
        session.output.note(f"loading {options.base}")
        with quick_imports():
            from ..models.loading import load_base

            loaded = load_base(options.base, device=own_device(), offline=offline)
            from ..training.queue import train_queue
        if dry_run:
            _print_estimates(session, registry, loaded, chosen, options, settings, memory)
            return
        with (
            TrainingsShown(session, registry) as shown,
            stopping_politely(session) as is_asked,
        ):
            shown.show(options, settings, loaded)
            for outcomes in train_queue(
                registry,
                chosen,
                loaded,
                method=method,
                preset=preset,
                overrides=options.overrides,
                photos=options.photos,
                seed=seed,
                resume=resume,
                together=options.together,
                hooks=partial(shown.hooks, is_asked),
                on_batch=partial(shown.begin, resume=resume),
                should_stop=is_asked,
            ):
                shown.end(outcomes)
        if is_main_process() and not is_asked():
            shown.choose(shown.done)
        if is_main_process():  # another exit code of one process would end them all
            session.output.lines(shown.document(), shown.lines())
            shown.exit_if_failed()
            shown.note_next()


def _end_without_photos(
    session: Session, registry: "Registry", concepts: list[int], *, dry_run: bool
) -> None:
    """Fail before the base model is loaded, or fetched, if no concept has a photo."""
    from ..registry.errors import InvalidInput

    found = [registry.show(concept) for concept in concepts]
    if any(each.images for each in found):
        return
    with TrainingsShown(session, registry) as shown:
        for concept in found:
            try:
                concept.check_photos()
            except InvalidInput as error:
                if dry_run:
                    raise
                shown.fail([concept.name], error)
        session.output.lines(shown.document(), [])
        shown.exit_if_failed()


def _counted_memory(
    session: Session,
    registry: "Registry",
    concepts: list[int],
    options: "TrainOptions",
    settings: "TrainingSettings",
) -> "MemoryCount | None":
    """What the training would need on a GPU, told before anything is loaded.

    None of one that goes on, whose settings are in the registry.
    """
    if options.resume:
        return None
    with quick_imports():
        from ..methods.method import find_method
        from ..models.bases import find_base
        from ..training.memory import memory_of
        from ..training.queue import in_batches

    first, *_ = in_batches(
        registry, concepts, options.method, preset=options.preset, together=options.together
    )
    together = 1 if settings.augmentation.buckets else len(first)
    found = memory_of(find_base(options.base), find_method(options.method), settings, together)
    if found:
        stages = ", ".join(f"{each.name} {size(each.peak)}" for each in found.stages)
        fitting = ", ".join(f"{each} GB" for each in found.fits) or "none of 24 GB or less"
        note = f"on a GPU, counted without pictures drawn on the way: {stages}; fits: {fitting}"
        session.output.note(note)
    return found


def _print_estimates(
    session: Session,
    registry: "Registry",
    base: "LoadedBase",
    concepts: list[int],
    options: "TrainOptions",
    settings: "TrainingSettings",
    memory: "MemoryCount | None",
) -> None:
    """Print estimates of the trainings."""
    from ..training.estimating import estimate_many
    from ..training.queue import in_batches
    from ..training.training import training_resolution

    batches = in_batches(
        registry,
        concepts,
        options.method,
        preset=options.preset,
        together=options.together,
        resume=options.resume,
    )
    estimates = [
        each
        for batch in batches
        for each in estimate_many(
            registry,
            batch,
            base,
            method=options.method,
            preset=options.preset,
            overrides=options.overrides,
            photos=options.photos,
        )
    ]
    document = {
        "estimates": [asdict(each) for each in estimates],
        "memory": [asdict(each) for each in memory.stages] if memory else [],
        "fits": memory.fits if memory else [],
    }
    session.output.lines(document, list(map(_line, estimates)))
    for concept in map(registry.show, concepts):
        unused, words = unused_in_training(concept.images, settings)
        if unused:
            session.output.note(f"{concept.name} has {unused}: not used without {words}")
        side = training_resolution(base.backbone, settings)
        for note in notes_on(concept, settings, side, options.photos):
            session.output.note(note)


def _line(estimate: "Estimate") -> str:
    stages = ", ".join(f"{stage.name} {count(stage.steps, 'step')}" for stage in estimate.stages)
    shared = f" for {estimate.together} at once" if estimate.together > 1 else ""
    return (
        f"{estimate.concept}: {estimate.method} on {estimate.base}, {stages}: "
        f"about {estimate.seconds:.0f} s{shared}, "
        f"{size(estimate.memory_bytes)} of memory, {size(estimate.disk_bytes)} on the disk"
    )
