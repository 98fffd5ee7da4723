"""`score` and `mark_best`: `concept eval` as Python calls; earlier scores are reused."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, product
from typing import TYPE_CHECKING, Any

from ..generation.control_request import LAYOUT
from ..generation.layout import settled
from ..generation.prompt_syntax import ChosenVersion, mention_of, resolve_version
from ..generation.request import Request, SamplingSettings, check_control_kinds
from ..models.bases import Base, find_base, find_control, is_believed
from ..models.hashes import hash_of_base, hash_of_configuration
from ..registry import Registry
from ..registry.errors import (
    InvalidInput,
    NotFound,
    quoted,
)
from ..registry.records import Concept, ConceptKey, Scored
from ..registry.running import ADAPTER_FILE
from .encoder_names import EncoderNames, check_there, encoder_names_for
from .plan import Plan, checkpoints
from .record import HARMONIC, Evaluation
from .suites import Suite, find_suite, suite_for

if TYPE_CHECKING:
    from ..models.loading import LoadedBase
    from .encoders import Encoders


BEST = "best"
_EXAMPLES = {2: "REX MIA", 3: "REX MIA BOB"}


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalRequest:
    """Which versions to score, and how.

    `versions` is `all`, or comma-separated version numbers and aliases; by default the version that
    `<rex>` in a prompt refers to. `suite` and `base` default to those of the concept's category and
    of its training. `clip` and `dino` are encoders as `encoder_names_for` takes them.
    `settings` may follow from the base model, as they do by default. `all_checkpoints` scores,
    instead of `versions`, the kept checkpoints and final versions of all trainings. `marks_best`
    refuses suites that cannot say which version is best, before anything is drawn.
    With `shows_pictures` recorded scores whose pictures are gone are measured again.
    """

    names: Sequence[ConceptKey]
    versions: str | None = None
    all_checkpoints: bool = False
    marks_best: bool = False
    shows_pictures: bool = False
    suite: str | None = None
    base: str | None = None
    num_seeds: int = 4
    settings: SamplingSettings | Callable[[Base], SamplingSettings] = SamplingSettings.for_base
    clip: str | None = None
    dino: str | None = None

    def settings_for(self, base: Base) -> SamplingSettings:
        """The settings for a base model."""
        return self.settings(base) if callable(self.settings) else self.settings


def score(
    registry: Registry,
    request: EvalRequest,
    *,
    base: "LoadedBase | None" = None,
    offline: bool = False,
    on_start: Callable[[Plan], None] | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Iterator[Evaluation]:
    """Score versions one after another; recorded scores of the same evaluation are reused.

    All names are checked before anything is loaded. For suites with several concepts, all
    combinations of that many are scored. `base` is a loaded base model without adapters, used where
    it is the requested one. `on_start` gets the plan of each evaluation that is not recorded,
    `on_progress` (done, total) pictures. Raises `NotFound` for unknown concepts, versions, suites,
    base models and encoders, `InvalidInput` for a suite that does not fit.
    """
    trusted = [base.base.name] if base else []
    tasks = [
        _Task.of(registry, request, chosen, trusted) for chosen in _subjects(registry, request)
    ]
    for each in tasks:
        each.plan(request, "")  # which is refused before anything is loaded
        if request.marks_best:
            check_can_choose(each.suite)
    if request.marks_best:
        _check_comparable(request, tasks)
    at_rest: dict[Base, tuple[str, str] | None] = {}
    loaded: dict[tuple[Base, EncoderNames], tuple[LoadedBase, Encoders]] = {}
    for each in tasks:
        if hashes := each.encoders.known_hashes():
            if each.base not in at_rest:
                at_rest[each.base] = _hashes_at_rest(each.base)
            of_base = at_rest[each.base]
            at_rest_plan = each.plan(request, *of_base, offline=offline) if of_base else None
            if at_rest_plan and (found := _recorded(registry, request, at_rest_plan, hashes)):
                yield found
                continue
        key = (each.base, each.encoders)
        if key not in loaded:
            loaded.clear()  # one base model at a time
            loaded[key] = _loaded(each, base, offline)
        at_hand, encoders = loaded[key]
        plan = each.plan(request, at_hand.sha256, at_hand.configuration_sha256, offline=offline)
        found = _recorded(registry, request, plan, encoders.hashes())
        if found is None:
            from .evaluating import evaluate

            if on_start:
                on_start(plan)
            found = evaluate(registry, at_hand, encoders, plan, on_progress=on_progress)
            if found.version:
                keep(registry, found)
        yield found


def _hashes_at_rest(base: Base) -> tuple[str, str] | None:
    """Those of the weights and of the configuration of a base model that is on this machine."""
    sha256 = hash_of_base(base)
    return (sha256, hash_of_configuration(base.configuration)) if sha256 else None


def _recorded(
    registry: Registry, request: EvalRequest, plan: Plan, hashes: Mapping[str, object]
) -> Evaluation | None:
    """The recorded result, if there is one, with all its pictures if they are to be shown."""
    found = plan.recorded(registry, hashes)
    if found is None or not request.shows_pictures:
        return found
    from .picture_cache import PictureCache

    pictures = PictureCache.of(registry)
    keys = [each.picture for prompt in found.all_prompts for each in prompt.pictures]
    return found if all(pictures.path(key).exists() for key in keys) else None


def _check_comparable(request: EvalRequest, tasks: Sequence["_Task"]) -> None:
    """Raise `InvalidInput` if versions of a concept would not be scored on the same base model."""
    first: dict[int, _Task] = {}
    for each in tasks:
        (chosen,) = each.chosen
        former = first.setdefault(chosen.concept.id, each)
        if former.base == each.base:
            continue
        of_first = [
            str(other.chosen[0].version.number)
            for other in tasks
            if other.chosen[0].concept.id == chosen.concept.id and other.base == former.base
        ]
        which = f"--versions {','.join(of_first)} --mark-best"
        if request.all_checkpoints:
            which = "--all-checkpoints"
        raise InvalidInput(
            f"{former.chosen[0].label} and {chosen.label} are of different base models: scores "
            "cannot be compared",
            hint=f"concept eval {chosen.concept.name} --base {quoted(former.base.name)} {which}",
        )


def _subjects(registry: Registry, request: EvalRequest) -> list[tuple[ChosenVersion, ...]]:
    """The versions in each evaluation: single ones, or combinations for suites with several."""
    suite = find_suite(request.suite) if request.suite is not None else None
    for word in (*map(str, request.names), request.versions or ""):
        if ":" in word:
            raise InvalidInput(
                f"{word}: only full strength can be scored", hint="leave the strength out"
            )
    if suite is not None and suite.num_subjects > 1:
        if request.all_checkpoints:
            raise InvalidInput(
                f"the suite {suite.name} is for several concepts: checkpoints are of one",
                hint="--suite living",
            )
        if len(set(request.names)) < suite.num_subjects:
            raise InvalidInput(
                f"the suite {suite.name} is for {suite.num_subjects} concepts in a picture",
                hint=f"concept eval {_EXAMPLES[suite.num_subjects]} --suite {quoted(suite.name)}",
            )
        each = [
            _versions(registry, name, request.versions) for name in dict.fromkeys(request.names)
        ]
        return [some for few in combinations(each, suite.num_subjects) for some in product(*few)]
    names = dict.fromkeys(request.names)
    if request.all_checkpoints:
        base = None if request.base is None else find_base(request.base).name
        return [(chosen,) for name in names for chosen in _with_checkpoints(registry, name, base)]
    return [(chosen,) for name in names for chosen in _versions(registry, name, request.versions)]


def _with_checkpoints(registry: Registry, key: ConceptKey, base: str | None) -> list[ChosenVersion]:
    """The checkpoints of a concept's trainings on a base model, and its versions of that.

    Without a base model: on those that checkpoints are of.
    """
    concept = registry.show(key)
    found: list[ChosenVersion] = []
    keeping = [run for run in concept.runs if registry.checkpoints(run.run)]
    bases = {run.base for run in keeping if base in (None, run.base)}
    runs = [run for run in concept.runs if run.base in bases]
    of_several = sum(run in runs for run in keeping) > 1
    for run in runs:
        kept = checkpoints(registry, concept, run.run, names_run=of_several)
        versions = [version for version in concept.versions if version.run == run.run]
        made = {artifact.sha256 for version in versions for artifact in version.artifacts}
        found += [each for each in kept if each.sha256 not in made]
        for version in versions:
            found.append(resolve_version(registry, concept, str(version.number)))
    if not found:
        raise NotFound(
            f"no training of {concept.name} kept checkpoints",
            hint=f"concept train {concept.name} --keep-every 50",
        )
    return found


def _versions(registry: Registry, key: ConceptKey, versions: str | None) -> list[ChosenVersion]:
    concept = registry.show(key)
    if versions is None:
        return [resolve_version(registry, concept)]
    if versions == "all" and concept.versions:
        words = [str(version.number) for version in concept.versions]
    else:
        words = [] if versions == "all" else [word.strip() for word in versions.split(",")]
    if not all(words):
        raise InvalidInput(f'"{versions}" names no versions', hint="--versions all, 1,2 or best")
    found = [resolve_version(registry, concept, word) for word in words or [None]]
    return list({each.version.number: each for each in found}.values())


@dataclass(frozen=True, slots=True)
class _Task:
    """An evaluation: versions, suite, base model and encoders."""

    chosen: tuple[ChosenVersion, ...]
    suite: Suite
    base: Base
    encoders: EncoderNames

    @classmethod
    def of(
        cls,
        registry: Registry,
        request: EvalRequest,
        chosen: tuple[ChosenVersion, ...],
        trusted: Sequence[str],
    ) -> "_Task":
        base = request.base
        base = find_base(_trained_on(registry, chosen[0], trusted) if base is None else base)
        encoders = encoder_names_for(base, clip=request.clip, dino=request.dino)
        check_there(encoders)
        suite = suite_of(request, encoders, chosen[0].concept)
        return cls(chosen, suite, base, encoders)

    def plan(
        self,
        request: EvalRequest,
        base_sha256: str,
        configuration_sha256: str = "",
        *,
        offline: bool = False,
    ) -> Plan:
        """The plan; with no hash of the base model, only to be checked."""
        settings = request.settings_for(self.base)
        check_control_kinds(self.base, [Request(prompt="", seeds=(0,), settings=settings)])
        shows_boxes = settings.layout_control and bool(base_sha256)
        return Plan(
            chosen=self.chosen,
            suite=self.suite,
            encoders=self.encoders,
            base=self.base.name,
            base_sha256=base_sha256,
            configuration_sha256=configuration_sha256,
            seeds=tuple(range(request.num_seeds)),
            settings=replace(settings, layout=self._layout(request, settings.layout)),
            control_sha256=self._control_sha256(offline) if shows_boxes else None,
        )

    def _layout(self, request: EvalRequest, layout: Any) -> Any:
        """The layout of these concepts: of boxes, those of them alone."""
        layout = settled(layout, len(self.chosen))
        if not isinstance(layout, Mapping):
            return layout
        others = {str(name) for name in request.names}
        others -= {each.mention.name for each in self.chosen}
        return {name: box for name, box in layout.items() if name not in others}

    def _control_sha256(self, offline: bool) -> str:
        from ..models.control import hash_of_control

        return hash_of_control(find_control(self.base, LAYOUT), offline=offline)


def suite_of(request: EvalRequest, encoders: EncoderNames, concept: Concept) -> Suite:
    """The requested suite, else the one that fits."""
    if request.suite is not None:
        return find_suite(request.suite)
    return find_suite("miniature") if encoders.is_miniature else suite_for(concept.category)


def _trained_on(registry: Registry, chosen: ChosenVersion, trusted: Sequence[str]) -> str:
    """The base model of the run that made a version.

    An imported run is trusted only if it names an alias or one of `trusted`.
    """
    run = next((run for run in chosen.concept.runs if run.run == chosen.version.run), None)
    if run is None:
        return "miniature"
    if run.base not in trusted and not is_believed(registry, run):
        raise InvalidInput(
            f"{chosen.label} was imported, and says it was trained on {run.base}: name its base",
            hint=f"concept eval {chosen.concept.name} --base …",
        )
    return run.base


def _loaded(
    task: _Task, at_hand: "LoadedBase | None", offline: bool
) -> "tuple[LoadedBase, Encoders]":
    from ..models.loading import load_base
    from .encoders import load_encoders

    encoders = load_encoders(task.encoders, offline=offline)  # first, as they may be missing
    is_requested = at_hand is not None and at_hand.base == task.base
    base = at_hand if at_hand and is_requested else load_base(task.base.name, offline=offline)
    encoders.to(base.backbone.device)
    return base, encoders


# --- the best -------------------------------------------------------------------------------------


def check_can_choose(suite: Suite) -> None:
    """Raise `InvalidInput` if the scores of a suite cannot say which version is best."""
    if suite.num_subjects > 1 or not any(each.keeps_looks for each in suite.prompts):
        raise InvalidInput(
            f"the suite {suite.name} cannot say which version is best",
            hint="take one for single concepts, whose prompts keep the subject's appearance",
        )


def mark_best(registry: Registry, found: Sequence[Evaluation]) -> list[Evaluation]:
    """Give the best version of each concept the alias `best`; returns their evaluations.

    Best is the highest harmonic mean of prompt and identity score; of equal ones the latest. The
    best checkpoint is made a version. Raises `InvalidInput` if a suite has no such mean, or if
    versions of a concept were not scored on the same suite and base model.
    """
    best: dict[int, Evaluation] = {}
    for each in found:
        if HARMONIC not in each.scores or each.others:
            raise InvalidInput(
                f"the suite {each.suite} cannot say which version is best",
                hint="take one for single concepts, whose prompts keep the subject's appearance",
            )
        former = best.get(each.concept_id, each)
        if _conditions_of(former) != _conditions_of(each):
            raise InvalidInput(
                f"{former.label} and {each.label} were not scored on the same base model",
                hint=f"--base {quoted(each.made_by['base'])} --versions …",
            )
        if _rank(each) >= _rank(former):
            best[each.concept_id] = each
    return [_marked(registry, each) for each in best.values()]


def _rank(found: Evaluation) -> tuple[float, int, bool]:
    """What the best version has the highest of: of equal ones the latest, checkpoints first."""
    return found.harmonic_mean, found.version or 0, found.checkpoint is None


def _conditions_of(found: Evaluation) -> tuple[object, ...]:
    """What scores must have in common to be compared."""
    return (found.made_by["base_sha256"], found.made_by["suite_sha256"], *found.chosen_by)


def _marked(registry: Registry, found: Evaluation) -> Evaluation:
    """Set the alias `best`; a checkpoint that is no version yet is made one, with its scores."""
    number = found.version if found.checkpoint is None else _version_of(registry, found)
    if number is not None:
        registry.set_alias(found.concept_id, number, BEST)
        return found if number == found.version else _as_version(found, number)
    concept = registry.show(found.concept_id)
    (sha256,) = found.weights
    kept = [each for run in concept.runs for each in checkpoints(registry, concept, run.run)]
    chosen = next((each for each in kept if each.sha256 == sha256), None)
    if chosen is None:
        raise NotFound(
            f"the checkpoint {found.checkpoint} of {found.concept} is not there any more",
            hint=f"concept eval {found.concept} --all-checkpoints",
        )
    number = registry.add_version(
        found.concept_id,
        {ADAPTER_FILE: chosen.path},
        run=chosen.version.run,
        alias=BEST,
        evaluation=lambda number: _record(_as_version(found, number)),
    )
    return _as_version(found, number)


def _version_of(registry: Registry, found: Evaluation) -> int | None:
    """The version with the weights of a checkpoint, if there is one."""
    (sha256,) = found.weights
    versions = registry.show(found.concept_id).versions
    known = (v.number for v in versions for a in v.artifacts if a.sha256 == sha256)
    return next(known, None)


def _as_version(found: Evaluation, number: int) -> Evaluation:
    """A checkpoint's evaluation as that of a version."""
    before, now = mention_of(found.concept, 0), mention_of(found.concept, number)
    prompts = [replace(each, prompt=each.prompt.replace(before, now)) for each in found.prompts]
    return replace(found, version=number, checkpoint=None, prompts=prompts)


def keep(registry: Registry, found: Evaluation) -> None:
    """Record the scores of a version in the registry."""
    registry.add_evaluation(found.concept_id, found.version, **_record(found))


def _record(found: Evaluation) -> Scored:
    """The scores of a version, as the registry keeps them."""
    document = found.document()
    return {
        "suite": found.suite,
        "config": found.made_by,
        "scores": {name: document[name] for name in ("scores", "prompts", "others", "drift")},
    }
