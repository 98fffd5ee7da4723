"""`concept queue`: trainings that wait in the registry, and outlive command and machine."""

import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..registry.errors import quoted
from ..registry.records import TO_DO
from .arguments import ClipName, DinoName, SuiteName
from .errors import ExitCode, usage
from .framework import Session, session_of
from .output import count, table
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
from .trainings_shown import TrainingsShown, stopping_politely

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..models.loading import LoadedBase
    from ..registry import Registry
    from ..registry.records import QueuedTraining
    from ..training.queue import Outcome
    from ..training.queued import TrainOptions


def add(
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
    preview_every: PreviewEvery = 100,
    keep_every: KeepEvery = 0,
    eval_every: EvalEvery = 0,
    stop_early: StopEarly = False,
    suite: SuiteName = None,
    clip: ClipName = None,
    dino: DinoName = None,
    tensorboard: TensorboardFolder = None,
    together: Together = None,
    offline: Offline = False,
    first: Annotated[
        bool, typer.Option("--first", help="Before all others, instead of behind them.")
    ] = False,
) -> None:
    """Let trainings wait for their turn; concept queue run works them off.

    Takes what concept train takes, and refuses what it would refuse before it loads anything.
    Photos, masks and captions are those that a concept has when its training begins.
    """
    session = session_of(context)
    from ..training.queued import TrainOptions

    options = TrainOptions(
        base=_absolute(base),
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
        suite=suite and _absolute(suite),
        clip=clip and _absolute(clip),
        dino=dino and _absolute(dino),
        tensorboard=None if tensorboard is None else str(tensorboard.absolute()),
        together=together,
        offline=offline,
    )
    check_options(context, options, names, tag or [], everything=everything)
    with session.registry() as registry:
        registry.check_folder(tensorboard)
        chosen = chosen_concepts(registry, names, tag or [], options)
        if resume and not given(context, "base"):
            options = replace(options, base=base_of_unfinished(registry, chosen))
        checked_settings(registry, chosen, options)
        for concept in chosen:
            registry.show(concept).check_photos()
        options = _with_hashes(registry, chosen, options)
        added = registry.enqueue(chosen, options.to_mapping(), first=first)
        waiting = len(registry.queue())
    lines = [f"{each.id}  {each.concept}" for each in added]
    session.output.lines({"added": [_document(each) for each in added]}, lines)
    session.output.note(
        f"{count(waiting, 'training')} in the queue; concept queue run works it off"
    )


def _absolute(word: str) -> str:
    """The absolute path of what is there in this folder; `queue run` may be called in another."""
    path = Path(os.path.expanduser(word))
    return str(path.absolute()) if _is_path(word) else word


def _is_path(word: str) -> bool:
    from ..models.bases import read_aliases

    return os.path.exists(os.path.expanduser(word)) and word not in read_aliases()


def _with_hashes(
    registry: "Registry", concepts: Sequence[int], options: "TrainOptions"
) -> "TrainOptions":
    """The options with photos by hash, as their numbers may change while they wait."""
    from ..generation.reference_syntax import find_photo

    concept = registry.show(concepts[0])
    photos = (find_photo(concept, word).sha256 for word in options.photos)
    return replace(options, photos=tuple(photos))


def list_queue(context: typer.Context) -> None:
    """List the trainings in the queue in the order of their turns, and how far they are.

    First those that were begun, in the end those that failed, with the reason.
    """
    session = session_of(context)
    with session.registry() as registry:
        found = registry.queue()
    _show(session, found)
    states = [each.state for each in found]
    session.output.note(
        ", ".join(f"{states.count(each)} {each}" for each in dict.fromkeys(states))
        or "nothing is in the queue: concept queue add NAME"
    )
    if any(each in TO_DO for each in states):
        session.output.note("concept queue run works off what waits, and goes on with the rest")
    if "failed" in states:
        session.output.note("concept queue run --failed tries again; concept queue rm ID forgets")


def _show(session: Session, found: "Sequence[QueuedTraining]") -> None:
    document = {"trainings": [_document(each) for each in found]}
    shown = [_table(found)] if found and not session.output.as_json else []
    session.output.result(document, *shown)


def _table(found: "Sequence[QueuedTraining]") -> Any:
    rows = [
        (
            str(each.id),
            each.concept,
            each.state,
            f"{each.steps_done} of {each.steps} steps" if each.steps else "",
            " ".join(_words(each)) + (f"\n{each.error}" if each.error else ""),
        )
        for each in found
    ]
    return table(("id", "concept", "state", "progress", "options"), rows)


def _words(training: "QueuedTraining") -> list[str]:
    """The options as they would be typed; what is none of ours is left out."""
    from ..registry.errors import InvalidInput
    from ..training.queued import TrainOptions

    try:
        return [quoted(word) for word in TrainOptions.from_mapping(training.options).words()]
    except InvalidInput:
        return []


def _document(training: "QueuedTraining") -> dict[str, Any]:
    command = ["concept", "train", training.concept, *_words(training)]
    return asdict(training) | {"command": " ".join(command)}


def run(
    context: typer.Context,
    watch: Annotated[
        bool, typer.Option("--watch", help="When nothing is left, wait for more until Ctrl-C.")
    ] = False,
    failed: Annotated[
        bool, typer.Option("--failed", help="Give those that failed another turn.")
    ] = False,
) -> None:
    """Work off the queue: train what waits, one after another.

    Methods that keep the base model train several with the same options at once. Ctrl-C stops at
    the next step and saves; that training goes on with the next run, as after a crash. What fails
    is marked, and the others go on. Several runs share the work.
    """
    session = session_of(context)
    from ..training.queued import work_off

    with (
        session.registry() as registry,
        TrainingsShown(session, registry) as shown,
        stopping_politely(session) as is_asked,
    ):
        if failed:
            registry.retry_failed()
        for outcomes in work_off(
            registry,
            _Worker(session, registry, shown, is_asked).train,
            watch=watch,
            should_stop=is_asked,
            on_wait=lambda: session.output.note("waiting for more; Ctrl-C ends it"),
        ):
            shown.end(outcomes)
            if not is_asked():
                shown.choose(outcomes)
        left = [each for each in registry.queue() if each.state != "failed"]
    waiting = {"waiting": [_document(each) for each in left]}
    session.output.lines(shown.document() | waiting, shown.lines())
    shown.exit_if_failed()
    if is_asked() and left:
        session.output.note("concept queue run goes on")
        sys.exit(ExitCode.INTERRUPTED)


class _Worker:
    """Trains what was taken from the queue, on the base model that it needs, and shows it."""

    def __init__(
        self,
        session: Session,
        registry: "Registry",
        shown: TrainingsShown,
        is_asked: "Callable[[], bool]",
    ) -> None:
        self._session = session
        self._registry = registry
        self._shown = shown
        self._is_asked = is_asked
        self._loaded: tuple[tuple[str, bool], LoadedBase] | None = None

    def train(
        self, trainings: "Sequence[QueuedTraining]", options: "TrainOptions"
    ) -> "Iterator[list[Outcome]]":
        """Train some concepts with the same options; see `train_queued`."""
        from ..registry.errors import ConceptryError, TrainingFailed
        from ..training.queued import train_queued

        self._registry.check_folder(options.tensorboard)
        ids = [each.concept_id for each in trainings]
        settings = checked_settings(self._registry, ids, options)
        base = self._base(options)
        self._shown.show(options, settings, base)
        try:
            for outcomes in train_queued(
                self._registry,
                base,
                trainings,
                options,
                hooks=partial(self._shown.hooks, self._is_asked),
                on_batch=self._shown.begin,
                should_stop=self._is_asked,
            ):
                if any(isinstance(each.error, TrainingFailed) for each in outcomes):
                    self._loaded = None  # a GPU without memory may not have got it back whole
                yield outcomes
        except Exception as error:
            if not isinstance(error, ConceptryError):
                self._loaded = None  # who knows what state it is in
            raise

    def _base(self, options: "TrainOptions") -> "LoadedBase":
        """The base model, which stays loaded until another one is needed."""
        from ..training.distributed import own_device

        wanted = (options.base, options.offline)
        if self._loaded is None or self._loaded[0] != wanted:
            self._loaded = None
            self._shown.forget_base()
            self._session.output.note(f"loading {options.base}")
            with quick_imports():
                from ..models.loading import load_base

                base = load_base(options.base, device=own_device(), offline=options.offline)
            self._loaded = (wanted, base)
        return self._loaded[1]


def rm(
    context: typer.Context,
    ids: Annotated[
        list[int] | None,
        typer.Argument(
            metavar="[ID]...",
            help="Numbers that concept queue list shows.",
            show_default=False,
        ),
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="All that are not under way.")] = False,
    failed: Annotated[bool, typer.Option("--failed", help="All that failed.")] = False,
) -> None:
    """Take trainings out of the queue; nothing that was trained goes.

    One that was begun can still go on with concept train NAME --resume.
    """
    session = session_of(context)
    if bool(ids) + everything + failed != 1:
        raise usage("say which trainings", "concept queue rm 3, or concept queue rm --all")
    with session.registry() as registry:
        states = ("failed",) if failed else ("failed", *TO_DO)
        found = [each.id for each in registry.queue() if each.state in states]
        removed = registry.dequeue(ids or found)
    lines = [f"removed {each.id}  {each.concept}" for each in removed]
    session.output.lines({"removed": [_document(each) for each in removed]}, lines)


def first(
    context: typer.Context,
    ids: Annotated[
        list[int],
        typer.Argument(
            metavar="ID...", help="Numbers that concept queue list shows.", show_default=False
        ),
    ],
) -> None:
    """Let trainings that wait be the next ones, in this order.

    Those that were begun go before them all the same.
    """
    session = session_of(context)
    with session.registry() as registry:
        registry.put_first(ids)
        found = registry.queue()
    _show(session, found)
