"""`concept eval` as a call: which versions on which suite, scored now or told from the record."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import TYPE_CHECKING

from ..methods.prompts import Chosen, choose
from ..models.bases import Base, find_base
from ..models.hashes import hash_of_base
from ..models.request import Settings
from ..registry import Registry
from ..registry.errors import InvalidInput
from .plan import Plan
from .record import Evaluation
from .suites import Suite, find_suite, suite_for
from .wanted import Wanted, wanted_for

if TYPE_CHECKING:
    from ..models.loading import LoadedBase
    from .encoders import Encoders


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What is to be scored, and how.

    `versions` is `all`, or version numbers and aliases with commas between; without it, of each
    concept the one that a prompt would get. `suite` and `base` are, if left out, those that fit
    the concept's category and the base model that it was taught on. `clip` and `dino` are encoders
    as `wanted_for` takes them.
    """

    names: Sequence[str]
    versions: str | None = None
    suite: str | None = None
    base: str | None = None
    num_seeds: int = 4
    settings: Settings = field(default_factory=Settings)
    clip: str | None = None
    dino: str | None = None


def score(
    registry: Registry,
    wish: Wish,
    *,
    offline: bool = False,
    on_start: Callable[[Plan], None] | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Iterator[Evaluation]:
    """Score versions one after another; what was scored before in the same way is told at once.

    All names are checked before anything is loaded. In suites for two concepts, every pair of the
    concepts is scored. Raises `NotFound` for concepts, versions, suites, base models and encoders
    that are not there, `InvalidInput` for suites that do not fit.
    """
    wanted = [_Wanted.of(registry, wish, chosen) for chosen in _casts(registry, wish)]
    loaded: dict[tuple[Base, Wanted], tuple[LoadedBase, Encoders]] = {}
    for each in wanted:
        plan = each.plan_unloaded(wish)
        hashes = each.encoders.known_hashes()
        if plan and hashes and (found := plan.recorded(registry, hashes)):
            yield found
            continue
        key = (each.base, each.encoders)
        if key not in loaded:
            loaded.clear()  # one base model at a time
            loaded[key] = _loaded(each, offline)
        base, encoders = loaded[key]
        plan = each.plan(wish, base.sha256)
        found = plan.recorded(registry, encoders.hashes())
        if found is None:
            from .evaluating import evaluate

            if on_start:
                on_start(plan)
            found = evaluate(registry, base, encoders, plan, on_progress=on_progress)
        yield found


def _casts(registry: Registry, wish: Wish) -> list[tuple[Chosen, ...]]:
    """Who is in the pictures: each version by itself, or two concepts together."""
    suite = find_suite(wish.suite) if wish.suite else None
    if suite is not None and suite.num_subjects > 1:
        if len(set(wish.names)) < 2:
            raise InvalidInput(
                f"the suite {suite.name} is for two concepts in a picture",
                hint=f"concept eval REX MIA --suite {suite.name}",
            )
        each = [_versions(registry, name, wish.versions) for name in dict.fromkeys(wish.names)]
        return [(a, b) for some, others in combinations(each, 2) for a in some for b in others]
    names = dict.fromkeys(wish.names)
    return [(chosen,) for name in names for chosen in _versions(registry, name, wish.versions)]


def _versions(registry: Registry, name: str, wanted: str | None) -> list[Chosen]:
    if wanted is None:
        return choose(registry, f"<{name}>")
    concept = registry.show(name)
    if wanted == "all" and concept.versions:
        words = [str(version.number) for version in concept.versions]
    else:
        words = [] if wanted == "all" else [word.strip() for word in wanted.split(",")]
    if not all(words):
        raise InvalidInput(f'"{wanted}" names no versions', hint="--versions all, 1,2 or best")
    return [
        chosen
        for word in words or [""]
        for chosen in choose(registry, f"<{name}@{word}>" if word else f"<{name}>")
    ]


@dataclass(frozen=True, slots=True)
class _Wanted:
    """A cast with what it is scored on and by."""

    cast: tuple[Chosen, ...]
    suite: Suite
    base: Base
    encoders: Wanted

    @classmethod
    def of(cls, registry: Registry, wish: Wish, cast: tuple[Chosen, ...]) -> "_Wanted":
        del registry
        base = find_base(wish.base or _taught_on(cast[0]))
        encoders = wanted_for(base, clip=wish.clip, dino=wish.dino)
        if wish.suite:
            suite = find_suite(wish.suite)
        elif encoders.is_drawn_world:
            suite = find_suite("miniature")
        else:
            suite = suite_for(cast[0].concept.category)
        return cls(cast, suite, base, encoders)

    def plan_unloaded(self, wish: Wish) -> Plan | None:
        """The plan, if the base model's hash is known without loading it."""
        sha256 = hash_of_base(self.base)
        return self.plan(wish, sha256) if sha256 else None

    def plan(self, wish: Wish, base_sha256: str) -> Plan:
        return Plan(
            chosen=self.cast,
            suite=self.suite,
            wanted=self.encoders,
            base=self.base.name,
            base_sha256=base_sha256,
            seeds=tuple(range(wish.num_seeds)),
            settings=wish.settings,
        )


def _taught_on(chosen: Chosen) -> str:
    """The base model of the run that made a version."""
    runs = {run.run: run.base for run in chosen.concept.runs}
    return runs.get(chosen.version.run or "", "miniature")


def _loaded(wanted: _Wanted, offline: bool) -> "tuple[LoadedBase, Encoders]":
    from ..models.loading import load_base
    from .encoders import load_encoders

    encoders = load_encoders(wanted.encoders, offline=offline)  # what may be missing comes first
    base = load_base(wanted.base.name, offline=offline)
    encoders.to(base.pipeline.device)
    return base, encoders


# --- the best -------------------------------------------------------------------------------------


def mark_best(registry: Registry, found: Sequence[Evaluation]) -> dict[str, int]:
    """Let `best` stand for the version of each concept that scored best; returns their numbers.

    Best is the highest harmonic mean of prompt and identity score; of equal ones the latest.
    """
    best: dict[str, Evaluation] = {}
    for each in sorted(found, key=lambda one: (one.both, one.version)):
        if not each.others:
            best[each.concept] = each
    for name, each in best.items():
        registry.set_alias(name, each.version, "best")
    return {name: each.version for name, each in best.items()}
