"""`concept train`: teach concepts to a base model."""

import shlex
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..registry.errors import quoted
from .arguments import ClipName, DinoName, SuiteName, complete_concept
from .errors import ExitCode, Failure, explain, usage
from .framework import Session, session_of
from .output import Output, count, size, unused_in_training
from .quick_start import quick_imports

if TYPE_CHECKING:
    from PIL import Image

    from ..evaluation.encoders import Encoders
    from ..evaluation.record import Evaluation
    from ..evaluation.running import EvalRequest as ToScore
    from ..models.loading import LoadedBase
    from ..registry import Registry
    from ..registry.errors import ConceptryError
    from ..registry.records import RunRecord
    from ..training.callbacks import Hooks, StepReport
    from ..training.estimating import Estimate
    from ..training.runs import Trained


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainOptions:
    """What the options ask for."""

    method: str
    preset: str | None
    overrides: list[str]
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
    together: int
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
        str, typer.Option(metavar="METHOD", help="How; concept methods lists them.")
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
    seed: Annotated[int, typer.Option(metavar="SEED", min=0, help="Of all that is random.")] = 0,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with a training that did not end.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Try some steps, and say what it would take.")
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
            help="Keep and score one every N steps; in the end the best one gets the alias best.",
        ),
    ] = 0,
    stop_early: Annotated[
        bool, typer.Option("--stop-early", help="Stop when scores do not rise any more.")
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
            help="Teach up to N concepts in one batch, by methods that keep the base model; by "
            "default 8, or 1 with the preset low-vram.",
            show_default=False,
        ),
    ] = None,
    processes: Annotated[
        int, typer.Option(metavar="N", min=1, max=64, help="Train on N GPUs at once.")
    ] = 1,
    offline: Annotated[bool, typer.Option("--offline", help="Download nothing.")] = False,
) -> None:
    """Teach concepts to a base model; each result is a new version.

    Methods that keep the base model as it is teach several at once, the others one after another.
    Ctrl-C stops at the next step and saves; a second one stops at once.
    """
    session = session_of(context)
    from ..training.distributed import is_main_process, launch, num_processes, own_device

    if bool(names) == everything:
        raise usage("name concepts, or ask for all", "concept train rex, or concept train --all")
    if resume and (overrides or preset or _given(context, "method", "seed")):
        raise usage("--resume goes on as it began", "concept train NAME --resume")
    if stop_early and not eval_every:
        raise usage("--stop-early needs scores", "concept train NAME --eval-every 50 --stop-early")
    if keep_every and eval_every:
        raise usage("--eval-every keeps what it scores", "leave --keep-every out")
    if tag and not everything:
        raise usage("--tag goes with --all", f"concept train --all --tag {quoted(tag[0])}")
    options = TrainOptions(
        method=method,
        preset=preset,
        overrides=overrides or [],
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
        together=together or (1 if preset == "low-vram" else 8),
        offline=offline,
    )
    with session.registry() as registry:
        registry.check_outside(tensorboard)
        chosen = _chosen(
            registry, names, tag or [], options
        )  # by id: they may be renamed meanwhile
        if resume and not _given(context, "base"):
            base = _base_of(registry, chosen)
        _check(registry, chosen, options, base)
        if processes > 1 and num_processes() == 1 and not dry_run:
            sys.exit(launch(sys.argv[1:], processes))
        if not is_main_process():
            session.output = Output(is_silent=True)
        session.output.note(f"loading {base}")
        with quick_imports():
            from ..models.loading import load_base

            loaded = load_base(base, device=own_device(), offline=offline)
        queue = _Queue(session, registry, loaded, options)
        if dry_run:
            queue.tell_estimates(chosen)
            return
        with _stopping_politely(session) as is_asked:
            batches = queue.batches(chosen)
            while batches and not is_asked():
                queue.train(batches.pop(0), is_asked)
        if is_asked():
            queue.leave([concept for batch in batches for concept in batch])
        else:
            queue.choose()
    queue.tell()


def _given(context: typer.Context, *names: str) -> bool:
    """Whether any of these options stands on the command line."""
    sources = [context.get_parameter_source(name) for name in names]
    return any(source is not None and source.name == "COMMANDLINE" for source in sources)


def _chosen(
    registry: "Registry", names: list[str] | None, tags: list[str], options: TrainOptions
) -> list[int]:
    """The ids of the concepts that are meant."""
    if names:
        return [registry.show(name).id for name in dict.fromkeys(names)]
    found = [registry.show(each.name).id for each in registry.find(tags=tags, limit=0).concepts]
    if not found:
        raise usage("no concept fits", "concept list --tag TAG")
    if options.resume and not (found := [each for each in found if _waiting(registry, each)]):
        raise usage("no concept has a training to go on with", "concept train --all")
    return found


def _waiting(registry: "Registry", concept: int) -> "RunRecord | None":
    """The training of a concept to go on with, if there is one."""
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


def _check(registry: "Registry", concepts: list[int], options: TrainOptions, base: str) -> None:
    """Tell a wrong word before anything is loaded."""
    from ..methods.method import active_stages, find_method, settings_of
    from ..models.bases import find_base

    method = find_method(options.method)
    settings = settings_of(
        method, preset=options.preset, base=find_base(base).name, overrides=tuple(options.overrides)
    )
    *_, (last, numbers) = active_stages(method, settings)
    if not options.resume and (every := options.eval_every or options.keep_every) >= numbers.steps:
        raise usage(
            f"{last.name} has {count(numbers.steps, 'step')}: none to keep every {every}",
            f"--{'eval' if options.eval_every else 'keep'}-every {max(1, numbers.steps // 4)}",
        )
    if options.resume:
        for concept in concepts:
            registry.resumable_run(concept)


class _Queue:
    """Trains concepts, by their ids, some at a time; one that fails does not stop the rest."""

    def __init__(
        self, session: Session, registry: "Registry", base: "LoadedBase", options: TrainOptions
    ) -> None:
        self._session = session
        self._registry = registry
        self._base = base
        self._options = options
        self._done: dict[int, Trained] = {}
        self._names: dict[int, str] = {}
        self._failed: list[tuple[str, Failure]] = []
        self._best: list[Evaluation] = []
        self._encoders: Encoders | None = None

    def _name(self, concept: int) -> str:
        """What a concept is called by now; what it was called, if it was removed."""
        from ..registry.errors import ConceptNotFound

        with suppress(ConceptNotFound):
            self._names[concept] = self._registry.show(concept).name
        return self._names.get(concept, "a concept that was removed")

    def batches(self, concepts: list[int]) -> list[list[int]]:
        """Which concepts are taught at once."""
        from ..methods.method import find_method

        def can_share(concept: int) -> bool:
            options = self._options
            method = (
                self._registry.resumable_run(concept).method if options.resume else options.method
            )
            return find_method(method).keeps_base

        size, batches = self._options.together, list[list[int]]()
        for concept in concepts:
            has_room = bool(batches) and len(batches[-1]) < size
            if has_room and can_share(batches[-1][0]) and can_share(concept):
                batches[-1].append(concept)
            else:
                batches.append([concept])
        return batches

    def tell_estimates(self, concepts: list[int]) -> None:
        """Print what it would take."""
        from ..training.estimating import estimate_many

        options = self._options
        told = [
            each
            for batch in self.batches(concepts)
            for each in estimate_many(
                self._registry,
                batch,
                self._base,
                method=options.method,
                preset=options.preset,
                overrides=options.overrides,
            )
        ]
        document = {"estimates": [asdict(each) for each in told]}
        self._session.output.lines(document, list(map(_line, told)))
        for concept in map(self._registry.show, concepts):
            if unused := unused_in_training(concept.images):
                self._session.output.note(
                    f"{concept.name} has {unused}: training does not use them yet"
                )

    def train(self, concepts: list[int], is_asked_to_stop: Any) -> None:
        """Train a batch."""
        from ..registry.errors import ConceptryError
        from ..training.distributed import num_processes

        output = self._session.output
        output.note(f"teaching {', '.join(map(self._name, concepts))}", style="bold")
        for concept in concepts:
            self._note_what_was_left(concept)
        try:
            with self._hooks(concepts, is_asked_to_stop) as hooks:
                watched: dict[int, Hooks] = {}
                for concept, own in hooks.items():
                    try:
                        watched[concept] = self._watched(concept, own)
                    except ConceptryError as error:
                        self._fail([concept], error)
                concepts = list(watched)
                outcomes = self._train(concepts, watched) if concepts else []
        except ConceptryError as error:
            if num_processes() > 1:
                raise  # the others cannot follow any further
            self._fail(concepts, error)
            return
        for error in dict.fromkeys(each for each in outcomes if isinstance(each, ConceptryError)):
            whose = [n for n, each in zip(concepts, outcomes, strict=True) if each is error]
            self._fail(whose, error)
        for concept, outcome in zip(concepts, outcomes, strict=True):
            if isinstance(outcome, ConceptryError):
                continue
            self._done[concept] = outcome
            output.note(f"{outcome.concept}@{outcome.version} is ready, {outcome.seconds:.0f} s")
            if outcome.previews:
                output.note(f"previews: {outcome.previews}")

    def _note_what_was_left(self, concept: int) -> None:
        """Say so where work is left behind, or was lost."""
        from ..registry.running import RESUME_FILE

        if (left := _waiting(self._registry, concept)) is None:
            return
        name = self._name(concept)
        is_saved = (self._registry.run_folder(left.run) / RESUME_FILE).exists()
        if self._options.resume and not is_saved:
            self._session.output.note(f"nothing was saved of {name}: it begins again")
        elif is_saved and not self._options.resume:
            self._session.output.note(
                f"{name} has a training that did not end; this one replaces it "
                f"(concept train {name} --resume would go on with it)"
            )

    def leave(self, concepts: list[int]) -> None:
        """Tell which concepts a Ctrl-C left untaught; those under way have told already."""
        if not concepts:
            return
        options, names = self._options, list(map(self._name, concepts))
        words = ["concept", "train", *names, "--base", self._base.base.name]
        words += ["--method", options.method, "--seed", str(options.seed)]
        words += ["--preset", options.preset] if options.preset else []
        words += [word for each in options.overrides for word in ("--set", each)]
        hint = (
            f"concept train {shlex.join(names)} --resume" if options.resume else shlex.join(words)
        )
        message = f"{', '.join(names)}: not begun"
        failure = Failure(ExitCode.INTERRUPTED, "interrupted", message, hint)
        self._tell_failure(concepts, failure)

    def _fail(self, concepts: list[int], error: Exception) -> None:
        self._tell_failure(concepts, explain(error))

    def _tell_failure(self, concepts: list[int], failure: Failure) -> None:
        self._failed += [(self._name(concept), failure) for concept in concepts]
        if not self._session.output.as_json:
            self._session.output.error(failure.message, failure.hint)

    def _watched(self, concept: int, hooks: "Hooks") -> "Hooks":
        """With what is kept and scored on the way; scores are of the first process."""
        from ..training.distributed import is_main_process

        options, output = self._options, self._session.output
        hooks.checkpoint_every = options.keep_every or options.eval_every
        if not options.eval_every or not is_main_process():
            return hooks
        from ..evaluation.choosing import Watch

        def on_score(found: "Evaluation") -> None:
            told = ", ".join(f"{each} {found.scores[each].mean:.3f}" for each in found.headlines)
            output.note(f"{found.checkpoint}: {told}")

        watch = Watch(
            self._registry,
            self._base,
            self._to_score(concept),
            options.eval_every,
            stop_early=options.stop_early,
            encoders=self._encoders,
            on_score=on_score,
            offline=options.offline,
        )
        self._encoders = watch.encoders
        return watch.hooks(hooks)

    def choose(self) -> None:
        """Score all that was kept, if that is wished, and mark the best of each concept."""
        from ..registry.errors import ConceptryError
        from ..training.distributed import is_main_process

        if not self._options.eval_every or not self._done or not is_main_process():
            return
        self._session.output.note("scoring what was kept")
        for concept in self._done:
            try:
                self._best += self._best_of(concept)
            except ConceptryError as error:
                self._fail([concept], error)
        for each in self._best:
            self._session.output.note(f"best of {each.concept} is version {each.version}")

    def _best_of(self, concept: int) -> "list[Evaluation]":
        from ..evaluation.running import mark_best, score

        with self._session.output.progress("drawing") as advance:
            found = score(
                self._registry,
                self._to_score(concept),
                base=self._base,
                offline=self._options.offline,
                on_progress=advance,
            )
            return mark_best(self._registry, list(found))

    def _to_score(self, concept: int) -> "ToScore":
        from ..evaluation.running import EvalRequest as ToScore

        options = self._options
        return ToScore(
            names=[concept],
            all_checkpoints=True,
            suite=options.suite,
            base=self._base.base.name,
            clip=options.clip,
            dino=options.dino,
        )

    def _train(
        self, concepts: list[int], hooks: "Mapping[int, Hooks]"
    ) -> "list[Trained | ConceptryError]":
        with quick_imports():
            from ..training import runs as training

        options = self._options
        if options.resume:
            return training.resume_many(self._registry, concepts, self._base, hooks=hooks)
        return training.train_many(
            self._registry,
            concepts,
            self._base,
            method=options.method,
            preset=options.preset,
            overrides=options.overrides,
            seed=options.seed,
            hooks=hooks,
        )

    @contextmanager
    def _hooks(self, concepts: list[int], is_asked_to_stop: Any) -> "Iterator[dict[int, Hooks]]":
        """What is shown and written while a batch is taught."""
        from ..registry.files import below
        from ..training.callbacks import Hooks
        from ..training.tensorboard import written_for_tensorboard

        options = self._options
        with ExitStack() as stack:
            shown = stack.enter_context(self._session.output.steps())
            told: dict[int, Hooks] = {}
            for concept in concepts:
                name = self._name(concept)
                write: Any = (
                    stack.enter_context(written_for_tensorboard(below(options.tensorboard, name)))
                    if options.tensorboard
                    else None
                )
                told[concept] = Hooks(
                    on_step=partial(_on_step, write, shown),
                    on_class_picture=partial(_on_class_picture, shown),
                    on_preview=partial(_on_preview, name if len(concepts) > 1 else "", shown),
                    preview_every=options.preview_every,
                    should_stop=is_asked_to_stop,
                )
            yield told

    def tell(self) -> None:
        """Print what came out; ends with the first failure's exit code.

        Only the first process has a say: one that ended otherwise would end them all.
        """
        from ..training.distributed import is_main_process

        if not is_main_process():
            return
        document: dict[str, Any] = {
            "runs": [_document(done) for done in self._done.values()],
            "failed": [
                {"concept": name, **failure.document()["error"]} for name, failure in self._failed
            ],
            "best": [{"concept": each.concept, "version": each.version} for each in self._best],
        }
        lines = [f"{done.concept}@{done.version}" for done in self._done.values()]
        self._session.output.lines(document, lines)
        if self._failed:
            sys.exit(self._failed[0][1].exit_code)
        if len(self._done) == 1:
            (name,) = (done.concept for done in self._done.values())
            self._session.output.note(f'next: concept generate "a photo of <{name}>"')


def _document(done: "Trained") -> dict[str, Any]:
    return asdict(done) | {"previews": str(done.previews) if done.previews else None}


def _on_step(write: Any, shown: Any, report: "StepReport") -> None:
    if write:
        write(report)
    if shown:
        shown.step(report.stage, report.step, report.num_steps, _line_of(report))


def _on_class_picture(shown: Any, done: int, total: int) -> None:
    if shown:
        shown.step("class pictures", done, total, "")


def _on_preview(whose: str, shown: Any, stage: str, step: int, images: "list[Image.Image]") -> None:
    if shown:
        shown.pictures(f"{whose} {stage}, step {step}".lstrip(), images)


def _line_of(report: "StepReport") -> str:
    losses = "  ".join(f"{name} {value:.4f}" for name, value in report.losses.items())
    rate = f"{1 / report.seconds:.1f} steps/s" if report.seconds else ""
    return f"{losses}  {rate}"


@contextmanager
def _stopping_politely(session: Session) -> Iterator[Any]:
    """The first Ctrl-C, or SIGTERM, or a terminal that closes, asks to stop; a second Ctrl-C stops.

    What was started so that it outlives its terminal (nohup) goes on.
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


def _line(told: "Estimate") -> str:
    stages = ", ".join(f"{stage.name} {count(stage.steps, 'step')}" for stage in told.stages)
    shared = f" for {told.together} at once" if told.together > 1 else ""
    return (
        f"{told.concept}: {told.method} on {told.base}, {stages}: "
        f"about {told.seconds:.0f} s{shared}, "
        f"{size(told.memory_bytes)} of memory, {size(told.disk_bytes)} on the disk"
    )
