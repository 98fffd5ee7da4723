"""What `concept train` and `concept queue run` show of trainings, and how they are stopped."""

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from .errors import Failure, explain
from .framework import Session
from .output import count
from .training_options import unfinished

if TYPE_CHECKING:
    from collections.abc import Sequence

    from PIL import Image

    from ..evaluation.choosing import CheckpointChooser
    from ..evaluation.record import Evaluation
    from ..methods.settings import TrainingSettings
    from ..models.loading import LoadedBase
    from ..registry import Registry
    from ..registry.records import Concept
    from ..training.callbacks import Hooks, StepReport
    from ..training.queue import Outcome
    from ..training.queued import TrainOptions
    from ..training.runs import Trained
    from .output import StepsShown


class TrainingsShown:
    """Shows the progress of trainings with some options, and collects the results."""

    _options: "TrainOptions"
    _settings: "TrainingSettings"
    _side: int

    def __init__(self, session: Session, registry: "Registry") -> None:
        self._output = session.output
        self._registry = registry
        self._of_batch = ExitStack()
        self._steps: StepsShown | None = None
        self._concepts: dict[int, Concept] = {}
        self._done: list[Outcome] = []
        self._failed: list[tuple[str, Failure]] = []
        self._best: list[Evaluation] = []
        self._chooser: CheckpointChooser | None = None

    def show(
        self, options: "TrainOptions", settings: "TrainingSettings", base: "LoadedBase"
    ) -> None:
        """Show trainings with these options from now on."""
        from ..training.training import training_resolution

        self._options = options
        self._settings = settings
        self._side = training_resolution(base.backbone, settings)
        self._chooser = self._chooser_for(base) if options.eval_every else None

    def forget_base(self) -> None:
        """Let the base model go, so that there is room for another one."""
        self._chooser = None

    def _chooser_for(self, base: "LoadedBase") -> "CheckpointChooser":
        from ..evaluation.choosing import CheckpointChooser

        options = self._options
        return CheckpointChooser(
            registry=self._registry,
            base=base,
            every=options.eval_every,
            suite=options.suite,
            clip=options.clip,
            dino=options.dino,
            stop_early=options.stop_early,
            on_score=self.score,
            offline=options.offline,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._of_batch.close()

    def begin(self, concepts: "Sequence[Concept]", resume: bool) -> None:
        """Say which concepts are trained, and show bars until the batch ends."""
        self._concepts = {concept.id: concept for concept in concepts}
        options = self._options
        names = ", ".join(concept.name for concept in concepts)
        self._output.note(f"training {names}", style="bold")
        for concept in concepts:
            self._note_unfinished(concept, resume=resume)
            if not resume:
                for note in notes_on(concept, self._settings, self._side, options.photos):
                    self._output.note(note)
        self._steps = self._of_batch.enter_context(self._output.steps())

    def hooks(self, is_asked_to_stop: Callable[[], bool], concept: int) -> "Hooks":
        """The hooks that show and write a concept's progress, and score its checkpoints."""
        from ..registry.files import below
        from ..training.callbacks import Hooks
        from ..training.tensorboard import written_for_tensorboard

        options, write, steps = self._options, None, self._steps
        name = self._concepts[concept].name
        if options.tensorboard:
            folder = below(Path(options.tensorboard), name)
            write = self._of_batch.enter_context(written_for_tensorboard(folder))
        hooks = Hooks(
            on_step=partial(_on_step, write, steps),
            preview_every=options.preview_every,
            checkpoint_every=options.keep_every,
            should_stop=is_asked_to_stop,
            on_skipped=self._output.warn,
        )
        if steps:
            hooks.on_class_picture = partial(_on_class_picture, steps)
            whose = name if len(self._concepts) > 1 else ""
            hooks.on_preview = partial(_on_preview, whose, steps)
        return self._chooser.hooks(concept, hooks) if self._chooser else hooks

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

    def _note_unfinished(self, concept: "Concept", *, resume: bool) -> None:
        """Note an unfinished training that is replaced, or whose state is lost."""
        from ..registry.running import RESUME_FILE

        if (left := unfinished(self._registry, concept.id)) is None:
            return
        name = concept.name
        is_saved = (self._registry.run_folder(left.run) / RESUME_FILE).exists()
        if resume and not is_saved:
            self._output.note(f"nothing was saved of {name}: it begins again")
        elif is_saved and not resume:
            self._output.note(
                f"{name} has a training that did not end; this one replaces it "
                f"(concept train {name} --resume would go on with it)"
            )

    def fail(self, names: "Sequence[str]", error: Exception) -> None:
        """Print an error of one or several concepts once."""
        failure = explain(self._with_options(error))
        self._failed += [(name, failure) for name in names]
        if not self._output.as_json:
            self._output.error(failure.message, failure.hint)

    def _with_options(self, error: Exception) -> Exception:
        """An error whose command that goes on has the options that are not kept with a run."""
        from ..registry.errors import TrainingInterrupted, quoted

        hint = error.hint if isinstance(error, TrainingInterrupted) else None
        if not hint or not hint.startswith("concept train "):
            return error
        words = [hint, *map(quoted, self._options.words_beside_run())]
        return TrainingInterrupted(str(error), hint=" ".join(words))

    def choose(self, outcomes: "Sequence[Outcome]") -> None:
        """With --eval-every: score kept checkpoints, and mark the best version of each concept."""
        from ..registry.errors import ConceptryError, TrainingInterrupted

        done = [each for each in outcomes if each.trained]
        if not self._chooser or not done:
            return
        self._output.note("scoring the checkpoints")
        for outcome in done:
            try:
                with self._output.progress("drawing") as advance:
                    best = self._chooser.choose(outcome.concept_id, advance)
            except ConceptryError as error:
                self.fail([outcome.name], error)
                continue
            except KeyboardInterrupt:
                again = ["concept eval", outcome.name, "--all-checkpoints", *self._suite]
                raise TrainingInterrupted(
                    "stopped while checkpoints were scored: all versions are stored",
                    hint=" ".join(again),
                ) from None
            self._best.append(best)
            self._output.note(f"best of {best.concept} is version {best.version}")

    @property
    def _suite(self) -> list[str]:
        """How an evaluation is told which prompts checkpoints were scored by."""
        from ..registry.errors import quoted

        suite = self._options.suite
        return ["--suite", quoted(suite)] if suite else []

    @property
    def done(self) -> "list[Outcome]":
        """The trainings that made a version so far."""
        return self._done

    def document(self) -> dict[str, Any]:
        """The results as JSON."""
        return {
            "runs": [_document(each.trained) for each in self._done if each.trained],
            "failed": [
                {"concept": name, **failure.document()["error"]} for name, failure in self._failed
            ],
            "best": [{"concept": each.concept, "version": each.version} for each in self._best],
        }

    def lines(self) -> list[str]:
        """The new versions."""
        return [
            f"{each.trained.concept}@{each.trained.version}" for each in self._done if each.trained
        ]

    def note_next(self) -> None:
        """Say what to type next, if there is one new version, and whether its name means it."""
        if len(self._done) != 1:
            return
        concept = self._registry.show(self._done[0].concept_id)
        trained = self._done[0].trained
        best = next((each.number for each in concept.versions if "best" in each.aliases), None)
        mention = concept.name
        if trained and best not in (None, trained.version):
            mention = f"{concept.name}@{trained.version}"
            self._output.note(f"<{concept.name}> is {concept.name}@{best}, the best so far")
        self._output.note(f'next: concept generate "a photo of <{mention}>"')

    def exit_if_failed(self) -> None:
        """Exit with the first failure's exit code, if anything failed."""
        if self._failed:
            sys.exit(self._failed[0][1].exit_code)


def notes_on(
    concept: "Concept", settings: "TrainingSettings", side: int, photos: "Sequence[str]" = ()
) -> Iterator[str]:
    """What of a concept's photos does not fit settings, or crops of a side in pixels.

    Only `photos` are learned, if any are named.
    """
    from ..training.subjects import with_photos

    concept = with_photos(concept, photos) if concept.images else concept
    yield from _missing(concept, settings)
    yield from _enlarged(concept, side)


def _missing(concept: "Concept", settings: "TrainingSettings") -> Iterator[str]:
    """What the settings ask for and none of a concept's photos has."""
    name = concept.name
    if settings.mask.use == "stored" and not any(image.mask for image in concept.images):
        hint = f"concept mask {name}, or --set mask.use=auto"
        yield f"{name} has no masks: mask.use=stored changes nothing ({hint})"
    if settings.captions.share and not any(image.caption for image in concept.images):
        hint = f"concept caption {name}"
        yield f"{name} has no captions: captions.share changes nothing ({hint})"
    if settings.reference.photos > len(concept.images):
        photos = count(len(concept.images), "photo")
        yield f"{name} has {photos}: reference.photos={settings.reference.photos} holds no more"


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
def stopping_politely(session: Session) -> Iterator[Callable[[], bool]]:
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
