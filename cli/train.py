"""`concept train`: train concepts on a base model."""

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self

import typer

from ..registry.errors import quoted
from .arguments import ClipName, DinoName, SuiteName, complete_concept
from .errors import Failure, explain, usage
from .framework import Session, session_of
from .output import Output, count, size, unused_in_training
from .quick_start import quick_imports

if TYPE_CHECKING:
    from collections.abc import Sequence

    from PIL import Image

    from ..evaluation.choosing import CheckpointChooser
    from ..evaluation.record import Evaluation
    from ..methods.settings import TrainingSettings
    from ..models.loading import LoadedBase
    from ..registry import Registry
    from ..registry.records import Concept, RunRecord
    from ..training.callbacks import Hooks, StepReport
    from ..training.estimating import Estimate
    from ..training.memory import MemoryCount
    from ..training.queue import Outcome
    from ..training.runs import Trained
    from .output import StepsShown


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainOptions:
    """The options of `concept train`."""

    method: str
    preset: str | None
    overrides: list[str]
    photos: list[str]
    seed: int
    resume: bool
    preview_every: int
    keep_every: int
    eval_every: int
    stop_early: bool
    suite: str | None
    clip: str | None
    dino: str | None
    tensorboard: Path | None
    together: int | None
    offline: bool


def train(
    context: typer.Context,
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="NAME...",
            help="Concept names.",
            autocompletion=complete_concept,
            show_default=False,
        ),
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Every concept.")] = False,
    tag: Annotated[
        list[str] | None,
        typer.Option("--tag", "-t", metavar="TAG", help="With --all: those with this tag."),
    ] = None,
    method: Annotated[
        str, typer.Option(metavar="METHOD", help="The method; concept methods lists them.")
    ] = "attndreambooth",
    preset: Annotated[
        str | None,
        typer.Option(
            metavar="PRESET",
            help="Which settings; by default those for the base model, else the paper's.",
            show_default=False,
        ),
    ] = None,
    base: Annotated[
        str,
        typer.Option(
            metavar="BASE",
            help="The base model; concept bases lists some. With --resume, the one it began with.",
        ),
    ] = "miniature",
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="Change a setting: stage3.steps=300."),
    ] = None,
    photos: Annotated[
        list[str] | None,
        typer.Option(
            "--photo",
            metavar="PHOTO",
            help="Learn this photo, by number, hash or name; repeatable. All by default.",
        ),
    ] = None,
    seed: Annotated[
        int, typer.Option(metavar="SEED", min=0, help="Seed of all random numbers.")
    ] = 0,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue an unfinished training.")
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Count the memory of a GPU, run a few steps, and estimate time, memory and disk.",
        ),
    ] = False,
    preview_every: Annotated[
        int,
        typer.Option(
            metavar="N", min=0, help="Draw a strip of previews every N steps; 0 draws none."
        ),
    ] = 100,
    keep_every: Annotated[
        int,
        typer.Option(
            metavar="N",
            min=0,
            help="Keep a checkpoint every N steps of the last stage, for concept eval.",
        ),
    ] = 0,
    eval_every: Annotated[
        int,
        typer.Option(
            metavar="N",
            min=0,
            help="Keep and score a checkpoint every N steps; the best one gets the alias best.",
        ),
    ] = 0,
    stop_early: Annotated[
        bool, typer.Option("--stop-early", help="Stop when scores no longer rise.")
    ] = False,
    suite: SuiteName = None,
    clip: ClipName = None,
    dino: DinoName = None,
    tensorboard: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Also write losses for TensorBoard.", show_default=False),
    ] = None,
    together: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            max=1024,
            help="Train up to N concepts in one batch, with methods that keep the base model; by "
            "default 8, or 1 with the presets 8gb and 8gb-sdxl.",
            show_default=False,
        ),
    ] = None,
    processes: Annotated[
        int, typer.Option(metavar="N", min=1, max=64, help="Train on N GPUs at once.")
    ] = 1,
    offline: Annotated[bool, typer.Option("--offline", help="Download nothing.")] = False,
) -> None:
    """Train concepts on a base model; each training makes a new version.

    Methods that keep the base model train several at once, the others one after another.
    Ctrl-C stops at the next step and saves; a second one stops at once.
    """
    session = session_of(context)
    from ..training.distributed import is_main_process, launch, num_processes, own_device

    if bool(names) == everything:
        raise usage("name concepts, or ask for all", "concept train rex, or concept train --all")
    if resume and (overrides or preset or photos or _given(context, "method", "seed")):
        raise usage("--resume keeps the settings it began with", "concept train NAME --resume")
    if stop_early and not eval_every:
        raise usage("--stop-early needs scores", "concept train NAME --eval-every 50 --stop-early")
    if keep_every and eval_every:
        raise usage("--eval-every keeps what it scores", "leave --keep-every out")
    if tag and not everything:
        raise usage("--tag goes with --all", f"concept train --all --tag {quoted(tag[0])}")
    if photos and (everything or len(dict.fromkeys(names or [])) > 1):
        raise usage("--photo is for one concept", "concept train rex --photo 2")
    options = TrainOptions(
        method=method,
        preset=preset,
        overrides=overrides or [],
        photos=photos or [],
        seed=seed,
        resume=resume,
        preview_every=preview_every,
        keep_every=keep_every,
        eval_every=eval_every,
        stop_early=stop_early,
        suite=suite,
        clip=clip,
        dino=dino,
        tensorboard=tensorboard,
        together=together,
        offline=offline,
    )
    with session.registry() as registry:
        registry.check_outside(tensorboard)
        chosen = _chosen(
            registry, names, tag or [], options
        )  # by id: they may be renamed during the training
        if resume and not _given(context, "base"):
            base = _base_of(registry, chosen)
        settings = _checked(registry, chosen, options, base)
        if processes > 1 and num_processes() == 1 and not dry_run:
            sys.exit(launch(sys.argv[1:], processes))
        if not is_main_process():
            session.output = Output(is_silent=True)
        counted = partial(_counted_memory, session, registry, base, chosen, options, settings)
        memory = counted() if dry_run else None
        session.output.note(f"loading {base}")
        with quick_imports():
            from ..models.loading import load_base

            loaded = load_base(base, device=own_device(), offline=offline)
            from ..training.queue import train_queue
            from ..training.training import training_resolution
        if dry_run:
            _print_estimates(session, registry, loaded, chosen, options, settings, memory)
            return
        side = training_resolution(loaded.backbone, settings)
        with (
            _Shown(session, registry, options, settings, side) as shown,
            _stopping_politely(session) as is_asked,
        ):
            chooser = _chooser(registry, loaded, options, shown)
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
                hooks=partial(_hooks, shown, chooser, is_asked),
                on_batch=shown.begin,
                should_stop=is_asked,
            ):
                shown.end(outcomes)
        if chooser and is_main_process() and not is_asked():
            shown.choose(chooser)
    shown.finish()


def _chooser(
    registry: "Registry", base: "LoadedBase", options: TrainOptions, shown: "_Shown"
) -> "CheckpointChooser | None":
    """The chooser for --eval-every, if that is set."""
    if not options.eval_every:
        return None
    from ..evaluation.choosing import CheckpointChooser

    return CheckpointChooser(
        registry=registry,
        base=base,
        every=options.eval_every,
        suite=options.suite,
        clip=options.clip,
        dino=options.dino,
        stop_early=options.stop_early,
        on_score=shown.score,
        offline=options.offline,
    )


def _hooks(
    shown: "_Shown",
    chooser: "CheckpointChooser | None",
    is_asked_to_stop: Callable[[], bool],
    concept: int,
) -> "Hooks":
    hooks = shown.hooks(concept, is_asked_to_stop)
    return chooser.hooks(concept, hooks) if chooser else hooks


def _given(context: typer.Context, *names: str) -> bool:
    """Whether any of these options stands on the command line."""
    sources = [context.get_parameter_source(name) for name in names]
    return any(source is not None and source.name == "COMMANDLINE" for source in sources)


def _chosen(
    registry: "Registry", names: list[str] | None, tags: list[str], options: TrainOptions
) -> list[int]:
    """The ids of the named concepts, or of all with the tags."""
    if names:
        return [registry.show(name).id for name in dict.fromkeys(names)]
    found = [registry.show(each.name).id for each in registry.find(tags=tags, limit=0).concepts]
    if not found:
        raise usage("no concept fits", "concept list --tag TAG")
    if options.resume and not (found := [each for each in found if _waiting(registry, each)]):
        raise usage("no concept has an unfinished training", "concept train --all")
    return found


def _waiting(registry: "Registry", concept: int) -> "RunRecord | None":
    """The unfinished training of a concept, if there is one."""
    from ..registry.errors import NotFound

    try:
        return registry.resumable_run(concept)
    except NotFound:
        return None


def _base_of(registry: "Registry", concepts: list[int]) -> str:
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


def _checked(
    registry: "Registry", concepts: list[int], options: TrainOptions, base: str
) -> "TrainingSettings":
    """The settings of a new training. Reports wrong options before anything is loaded."""
    from ..generation.reference_syntax import find_photo
    from ..methods.method import active_stages, find_method, resolve_settings
    from ..models.bases import find_base

    method = find_method(options.method)
    settings = resolve_settings(
        method, preset=options.preset, base=find_base(base).name, overrides=tuple(options.overrides)
    )
    every = options.eval_every or options.keep_every
    name, steps = f"the preset {options.preset or base}", 0
    for stage, own in active_stages(method, settings):
        name, steps = stage.name, own.steps
    if every and not options.resume and every >= steps:
        option = "--eval-every" if options.eval_every else "--keep-every"
        raise usage(
            f"{name} has {count(steps, 'step')}: none to keep every {every}",
            f"{option} {max(1, steps // 4)}" if steps else f"leave {option} out",
        )
    for concept in concepts:
        if options.resume:
            registry.resumable_run(concept)
        for photo in options.photos:
            find_photo(registry.show(concept), photo)
    return settings


class _Shown:
    """Shows the progress of a queue of trainings, and prints the results in the end."""

    def __init__(
        self,
        session: Session,
        registry: "Registry",
        options: TrainOptions,
        settings: "TrainingSettings",
        side: int,
    ) -> None:
        self._output = session.output
        self._registry = registry
        self._options = options
        self._settings = settings
        self._side = side
        self._of_batch = ExitStack()
        self._steps: StepsShown | None = None
        self._concepts: dict[int, Concept] = {}
        self._done: list[Outcome] = []
        self._failed: list[tuple[str, Failure]] = []
        self._best: list[Evaluation] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._of_batch.close()

    def begin(self, concepts: "Sequence[Concept]") -> None:
        """Say which concepts are trained, and show bars until the batch ends."""
        self._concepts = {concept.id: concept for concept in concepts}
        names = ", ".join(concept.name for concept in concepts)
        self._output.note(f"training {names}", style="bold")
        for concept in concepts:
            self._note_unfinished(concept)
            for note in () if self._options.resume else self._notes(concept):
                self._output.note(note)
        self._steps = self._of_batch.enter_context(self._output.steps())

    def _notes(self, concept: "Concept") -> Iterator[str]:
        yield from _missing(concept, self._settings)
        yield from _enlarged(concept, self._side)

    def hooks(self, concept: int, is_asked_to_stop: Callable[[], bool]) -> "Hooks":
        """The hooks that show and write a concept's progress."""
        from ..registry.files import below
        from ..training.callbacks import Hooks
        from ..training.tensorboard import written_for_tensorboard

        options, write, steps = self._options, None, self._steps
        name = self._concepts[concept].name
        if options.tensorboard:
            folder = below(options.tensorboard, name)
            write = self._of_batch.enter_context(written_for_tensorboard(folder))
        hooks = Hooks(
            on_step=partial(_on_step, write, steps),
            preview_every=options.preview_every,
            checkpoint_every=options.keep_every,
            should_stop=is_asked_to_stop,
        )
        if steps:
            hooks.on_class_picture = partial(_on_class_picture, steps)
            whose = name if len(self._concepts) > 1 else ""
            hooks.on_preview = partial(_on_preview, whose, steps)
        return hooks

    def score(self, found: "Evaluation") -> None:
        """Print the scores of a checkpoint."""
        scores = ", ".join(f"{each} {found.scores[each].mean:.3f}" for each in found.headlines)
        self._output.note(f"{found.checkpoint}: {scores}")

    def end(self, outcomes: "Sequence[Outcome]") -> None:
        """Print the outcomes of a batch."""
        self._of_batch.close()
        for error in dict.fromkeys(each.error for each in outcomes if each.error):
            self.fail([each.name for each in outcomes if each.error is error], error)
        for outcome in outcomes:
            if done := outcome.trained:
                self._done.append(outcome)
                self._output.note(f"{done.concept}@{done.version} is ready, {done.seconds:.0f} s")
                if done.previews:
                    self._output.note(f"previews: {done.previews}")

    def _note_unfinished(self, concept: "Concept") -> None:
        """Note an unfinished training that is replaced, or whose state is lost."""
        from ..registry.running import RESUME_FILE

        if (left := _waiting(self._registry, concept.id)) is None:
            return
        name = concept.name
        is_saved = (self._registry.run_folder(left.run) / RESUME_FILE).exists()
        if self._options.resume and not is_saved:
            self._output.note(f"nothing was saved of {name}: it begins again")
        elif is_saved and not self._options.resume:
            self._output.note(
                f"{name} has a training that did not end; this one replaces it "
                f"(concept train {name} --resume would go on with it)"
            )

    def fail(self, names: "Sequence[str]", error: Exception) -> None:
        """Print an error of one or several concepts once."""
        failure = explain(error)
        self._failed += [(name, failure) for name in names]
        if not self._output.as_json:
            self._output.error(failure.message, failure.hint)

    def choose(self, chooser: "CheckpointChooser") -> None:
        """Score the kept checkpoints, and print the best version of each concept."""
        from ..registry.errors import ConceptryError

        if self._done:
            self._output.note("scoring the checkpoints")
        for outcome in self._done:
            try:
                with self._output.progress("drawing") as advance:
                    self._best.append(chooser.choose(outcome.concept_id, advance))
            except ConceptryError as error:
                self.fail([outcome.name], error)
        for each in self._best:
            self._output.note(f"best of {each.concept} is version {each.version}")

    def finish(self) -> None:
        """Print the results; exits with the first failure's exit code.

        Only in the main process: another exit code of one process would end them all.
        """
        from ..training.distributed import is_main_process

        if not is_main_process():
            return
        done = [each.trained for each in self._done if each.trained]
        document: dict[str, Any] = {
            "runs": [_document(each) for each in done],
            "failed": [
                {"concept": name, **failure.document()["error"]} for name, failure in self._failed
            ],
            "best": [{"concept": each.concept, "version": each.version} for each in self._best],
        }
        self._output.lines(document, [f"{each.concept}@{each.version}" for each in done])
        if self._failed:
            sys.exit(self._failed[0][1].exit_code)
        if len(done) == 1:
            self._output.note(f'next: concept generate "a photo of <{done[0].concept}>"')


def _counted_memory(
    session: Session,
    registry: "Registry",
    base: str,
    concepts: list[int],
    options: TrainOptions,
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
    found = memory_of(find_base(base), find_method(options.method), settings, together)
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
    options: TrainOptions,
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
        for note in (*_missing(concept, settings), *_enlarged(concept, side)):
            session.output.note(note)


def _missing(concept: "Concept", settings: "TrainingSettings") -> Iterator[str]:
    """What the settings ask for and none of a concept's photos has."""
    name = concept.name
    if settings.mask.use == "stored" and not any(image.mask for image in concept.images):
        hint = f"concept mask {name}, or --set mask.use=auto"
        yield f"{name} has no masks: mask.use=stored changes nothing ({hint})"
    if settings.captions.share and not any(image.caption for image in concept.images):
        hint = f"concept caption {name}"
        yield f"{name} has no captions: captions.share changes nothing ({hint})"


def _enlarged(concept: "Concept", side: int) -> Iterator[str]:
    """That photos are too small for crops of a side in pixels."""
    small = [each for each in concept.images if 2 * min(each.width, each.height) < side]
    if small:
        worst = min(small, key=lambda each: min(each.width, each.height))
        times = side / min(worst.width, worst.height)
        of = f"{len(small)} of {count(len(concept.images), 'photo')} of {concept.name}"
        yield (
            f"{of} enlarged more than twice ({worst.filename}: {times:.1f} times, from "
            f"{worst.width} x {worst.height}): larger ones would show more"
        )


def _document(done: "Trained") -> dict[str, Any]:
    return asdict(done) | {"previews": str(done.previews) if done.previews else None}


def _on_step(
    write: "Callable[[StepReport], None] | None", shown: "StepsShown | None", report: "StepReport"
) -> None:
    if write:
        write(report)
    if shown:
        shown.step(report.stage, report.step, report.num_steps, _line_of(report))


def _on_class_picture(shown: "StepsShown", done: int, total: int) -> None:
    shown.step("class pictures", done, total, "")


def _on_preview(
    whose: str, shown: "StepsShown", stage: str, step: int, images: "list[Image.Image]"
) -> None:
    shown.pictures(f"{whose} {stage}, step {step}".lstrip(), images)


def _line_of(report: "StepReport") -> str:
    losses = "  ".join(f"{name} {value:.4f}" for name, value in report.losses.items())
    rate = f"{1 / report.seconds:.1f} steps/s" if report.seconds else ""
    return f"{losses}  {rate}"


@contextmanager
def _stopping_politely(session: Session) -> Iterator[Callable[[], bool]]:
    """Yields whether to stop: after Ctrl-C, SIGTERM or a closed terminal (not with nohup).

    A second Ctrl-C stops at once.
    """
    from ..training.distributed import stop_signals

    asked = False

    def ask(number: int, _: object) -> None:
        nonlocal asked
        if asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        asked = True
        session.output.note("stopping after this step; once more to stop at once")

    before = {each: signal.signal(each, ask) for each in (signal.SIGINT, *stop_signals())}
    try:
        yield lambda: asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _line(estimate: "Estimate") -> str:
    stages = ", ".join(f"{stage.name} {count(stage.steps, 'step')}" for stage in estimate.stages)
    shared = f" for {estimate.together} at once" if estimate.together > 1 else ""
    return (
        f"{estimate.concept}: {estimate.method} on {estimate.base}, {stages}: "
        f"about {estimate.seconds:.0f} s{shared}, "
        f"{size(estimate.memory_bytes)} of memory, {size(estimate.disk_bytes)} on the disk"
    )
