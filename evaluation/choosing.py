"""Scoring checkpoints during trainings, early stopping, and the choice of the best version.

    chooser = CheckpointChooser(registry=registry, base=base, every=50, stop_early=True)
    for outcomes in train_queue(registry, ["rex", "mia"], base, hooks=chooser.hooks):
        for each in outcomes:
            print(chooser.choose(each.concept_id) if each.trained else each.error)

`concept train --eval-every 50 --stop-early` does this.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from ..generation.injection import InjectedConcept
from ..models.loading import LoadedBase
from ..registry import Registry
from ..registry.records import ConceptKey
from ..training.callbacks import Checkpoint, Hooks
from ..training.distributed import is_main_process
from .encoder_names import EncoderNames, encoder_names_for
from .encoders import Encoders, load_encoders
from .evaluating import EvalSubject, Evaluator, masks_of
from .patience import has_plateaued
from .picture_cache import PictureCache
from .plan import Plan, as_chosen
from .record import Evaluation
from .running import EvalRequest, check_can_choose, mark_best, score, suite_of
from .scoring import ReferenceEmbeddings, embed_references
from .suites import Suite


@dataclass(slots=True, kw_only=True)
class CheckpointChooser:
    """Scores a checkpoint every `every` steps of trainings, and marks the best version.

    `suite`, `clip` and `dino` are as in `EvalRequest`; `on_score` gets each checkpoint's scores.
    With several processes, only the main one scores.
    """

    registry: Registry
    base: LoadedBase
    every: int
    suite: str | None = None
    clip: str | None = None
    dino: str | None = None
    stop_early: bool = False
    on_score: Callable[[Evaluation], None] = lambda _: None
    offline: bool = False
    _encoders: Encoders | None = None

    def hooks(self, concept: ConceptKey, hooks: Hooks | None = None) -> Hooks:
        """Hooks for a concept's training; call it before. Raises what `score` raises."""
        if not is_main_process():
            return replace(hooks or Hooks(), checkpoint_every=self.every)
        scorer = CheckpointScorer(
            self.registry,
            self.base,
            self._request(concept),
            self.every,
            stop_early=self.stop_early,
            encoders=self._encoders,
            on_score=self.on_score,
            offline=self.offline,
        )
        self._encoders = scorer.encoders
        return scorer.hooks(hooks or Hooks())

    def choose(
        self, concept: ConceptKey, on_progress: Callable[[int, int], None] | None = None
    ) -> Evaluation:
        """Score a concept's checkpoints and versions, set the alias `best`, return the best one."""
        found = score(
            self.registry,
            self._request(concept),
            base=self.base,
            offline=self.offline,
            on_progress=on_progress,
        )
        (best,) = mark_best(self.registry, list(found))
        return best

    def _request(self, concept: ConceptKey) -> EvalRequest:
        return EvalRequest(
            names=[concept],
            all_checkpoints=True,
            suite=self.suite,
            base=self.base.base.name,
            clip=self.clip,
            dino=self.dino,
        )


@dataclass(slots=True)
class CheckpointScorer:
    """Scores the checkpoints of one training, one picture per prompt.

    Construct it before the training, while no adapter is injected. `request` names one concept;
    `encoders` can be shared between scorers. `on_score` gets each checkpoint's scores. Raises what
    `score` raises.
    """

    registry: Registry
    base: LoadedBase
    request: EvalRequest
    every: int
    stop_early: bool = False
    encoders: Encoders | None = None
    on_score: Callable[[Evaluation], None] = lambda _: None
    offline: bool = False
    found: list[Evaluation] = field(default_factory=list)
    _names: EncoderNames = field(init=False)
    _suite: Suite = field(init=False)
    _subject: EvalSubject = field(init=False)
    _references: list[ReferenceEmbeddings] = field(init=False)

    def __post_init__(self) -> None:
        (name,), request = self.request.names, self.request
        concept = self.registry.show(name)
        self._names = encoder_names_for(self.base.base, clip=request.clip, dino=request.dino)
        self._suite = suite_of(request, self._names, concept)
        check_can_choose(self._suite)
        self.encoders = self.encoders or load_encoders(self._names, offline=self.offline)
        self.encoders.to(self.base.backbone.device)
        self._subject = EvalSubject.of(self.registry, as_chosen(concept, name="", run=None))
        masks = masks_of(self.base, self._subject)
        self._references = [
            embed_references(self.encoders, concept.category, self._subject.photos, masks)
        ]

    def hooks(self, hooks: Hooks) -> Hooks:
        """The hooks, which also score checkpoints."""
        return replace(
            hooks,
            checkpoint_every=self.every,
            on_checkpoint=self._score,
            should_finish=lambda: self.stop_early and self.has_plateaued,
        )

    @property
    def has_plateaued(self) -> bool:
        """Whether it is time to stop early."""
        return has_plateaued([each.harmonic_mean for each in self.found])

    def _score(self, checkpoint: Checkpoint) -> None:
        """Draw with the injected adapters, and keep no picture, as the weights still change."""
        chosen, encoders = self._subject.chosen, self.encoders
        assert chosen is not None
        assert encoders is not None
        now = replace(chosen, version=replace(chosen.version, aliases=[checkpoint.name]))
        plan = Plan(
            chosen=(now,),
            suite=self._suite,
            encoders=self._names,
            base=self.base.base.name,
            base_sha256=self.base.sha256,
            seeds=(0,),
            settings=self.request.settings_for(self.base.base),
        )
        embedding = checkpoint.learned.embedding
        concept = InjectedConcept(
            now.mention,
            self._subject.category,
            embedding.tokens if embedding else (),
            checkpoint.phrase,
            f"{now.concept.name}, {checkpoint.name},",
        )
        with TemporaryDirectory() as folder:
            evaluator = Evaluator(
                self.base,
                encoders,
                PictureCache(Path(folder)),
                plan,
                [replace(self._subject, chosen=now)],
                concepts=[concept],
                references=self._references,
            )
            self.found.append(evaluator.run())
        self.on_score(self.found[-1])
