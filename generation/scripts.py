"""Scripts: scenes of a story, each a prompt with wildcards and roles that concepts take."""

import math
import random
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, product
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from ..registry.documents import parse_yaml, read_text, shown
from ..registry.errors import ConceptryError, InvalidInput
from ..registry.validation import Line, validated
from .prompt_entries import MAX_PICTURES, PromptSettings, seeds_of
from .wildcards import Expansion, Pattern, Wildcards, names_in

_ROLE = r"[a-z0-9][a-z0-9_-]*"
_REFERENCE = re.compile(rf"^<?({_ROLE})>?(?=[=:]|$)")
_CAST = re.compile(rf"<?({_ROLE})((?:@{_ROLE})?(?::[\d.]+)?)>?")
_FOLDER_NAME = re.compile(r"[^\W_][\w .-]*")
_EXAMPLE = "scenes: [{scene: morning, prompt: a photo of <rex>}]"


def _as_roles(value: object) -> object:
    """`[rex, mia]` as roles that have the names of their concepts."""
    if isinstance(value, list) and all(isinstance(each, str) for each in value):
        value = {each: each for each in value}
    for role, name in value.items() if isinstance(value, dict) else ():
        if not (isinstance(role, str) and re.fullmatch(_ROLE, role)):
            raise InvalidInput(
                f"{shown(role)} in concepts is no name: small letters, digits, - and _",
                hint="hero: rex",
            )
        if not isinstance(name, str):
            raise InvalidInput(f"{role} in concepts is {shown(name)}", hint=f"{role}: rex")
    return value


def _as_scenes(value: object) -> object:
    for number, each in enumerate(value if isinstance(value, list) else (), 1):
        if not isinstance(each, (str, dict)):
            raise InvalidInput(f"scene {number} of scenes is {shown(each)}", hint=_EXAMPLE)
    return value


_Concepts = Annotated[
    dict[str, str],
    Field(max_length=16, description="[rex, mia], or hero: rex"),
    BeforeValidator(_as_roles),
]


class _Scene(PromptSettings):
    scene: Line | None = None
    prompt: str
    concepts: _Concepts | None = None


class _Script(PromptSettings):
    title: Line | None = None
    wildcards: Line | None = None
    choose: Literal["each", "one"] = "each"
    concepts: _Concepts | None = None
    scenes: Annotated[
        list[dict[str, Any] | str],
        Field(min_length=1, max_length=MAX_PICTURES, description="a list of scenes"),
        BeforeValidator(_as_scenes),
    ]


_MAX_DRAWS = 300
"""For a role that bring nobody new, until it is taken that nobody else can have it."""
_MAX_TRIES = 1000
"""To give all roles somebody, where some are together in one scene and others in another."""
_OF_SCRIPT = ("title", "wildcards", "choose", "concepts", "scenes")
_COUNTS = ("n", "seed", "seeds")

SceneEntry = tuple[str, dict[str, object], frozenset[str]]
"""(place; keys as other files have them, all seeds listed; which of n, seed, seeds were said)."""


@dataclass(frozen=True, slots=True)
class _Cast:
    """Who takes each role, as prompts mention it (`rex`, `rex@2`), and what was chosen for it."""

    roles: Mapping[str, str]
    chosen: tuple[str, ...] = ()

    def in_prompt(self, prompt: str) -> str:
        def mention(match: re.Match[str]) -> str:
            taken = self.roles.get(match[1])
            if taken is None:
                return match[0]
            if match[2] and "".join(_parts(taken)[1:]):
                raise InvalidInput(
                    f"{match[0]} and {match[1]}: {taken} both say which version or strength",
                    hint=f"<{match[1]}>",
                )
            return f"<{taken}{match[2] or ''}>"

        return re.sub(rf"<({_ROLE})([@:][^<>]*)?>", mention, prompt)

    def name(self, role: str) -> str:
        """The name of the concept that takes a role, or of what is no role."""
        return _parts(self.roles[role])[0] if role in self.roles else role


def script_entries(
    script: Mapping[str, object], folder: Path, *, usual: range
) -> Iterator[SceneEntry]:
    """The prompts of a script, in order.

    `folder` is the script's own; `usual` are the seeds of scenes that name none. Raises
    `InvalidInput` and `NotFound`, before anything is made of what would be too much.
    """
    asked = validated(_Script, script, at="the script", noun="setting")
    common = {key: value for key, value in script.items() if key not in _OF_SCRIPT}
    wildcards = Wildcards(_wildcard_folder(asked.wildcards, folder))
    counted = {key: getattr(asked, key) for key in _COUNTS}
    seeds = seeds_of("the script", **counted, usual=usual)
    scenes = [
        _Planned.of(f"scene {number}", each, asked, common, wildcards, seeds)
        for number, each in enumerate(asked.scenes, 1)
    ]
    named = {role for each in scenes for role in each.named}
    for role in (asked.concepts or {}).keys() - named:
        raise InvalidInput(
            f"no scene has the concept {role} in its prompt or reference",
            hint=f"<{role}> in a prompt",
        )
    if sum(each.count for each in scenes) > MAX_PICTURES:
        raise InvalidInput(
            f"the script stands for more than {MAX_PICTURES:,} pictures",
            hint="choose: one, fewer wildcards, or fewer seeds",
        )
    chosen = _Chosen(scenes) if asked.choose == "one" else None
    for each in scenes:
        yield from each.every() if chosen is None else each.one(chosen)


def title_of(path: Path) -> str:
    """The title of a prompt file that could be read: a script's own, or the file's name."""
    found = parse_yaml(read_text(path)) if path.suffix.lower() in (".yaml", ".yml") else None
    title = found.get("title") if isinstance(found, Mapping) else None
    return title if isinstance(title, str) and title else path.stem


@dataclass(frozen=True, slots=True)
class _Planned:
    """A scene before its wildcards are replaced."""

    place: str
    scene: str
    entry: Mapping[str, object]
    prompt: Pattern
    roles: Mapping[str, Pattern]
    own: frozenset[str]
    """Those of its roles that are not the script's."""
    named: frozenset[str]
    seeds: Sequence[int]
    said: frozenset[str]
    """Which of n, seed and seeds the script or the scene says."""
    count: int

    @classmethod
    def of(
        cls,
        place: str,
        given: Mapping[str, object] | str,
        script: _Script,
        common: Mapping[str, object],
        wildcards: Wildcards,
        usual: Sequence[int],
    ) -> "_Planned":
        given = {"prompt": given} if isinstance(given, str) else given
        asked = validated(_Scene, given, at=place, noun="setting")
        counted = {key: getattr(asked, key) for key in _COUNTS}
        seeds = seeds_of(place, **counted, usual=usual)
        said = frozenset(
            key for key in _COUNTS if (counted[key], getattr(script, key)) != (None, None)
        )
        names = (script.concepts or {}) | (asked.concepts or {})
        try:
            prompt = wildcards.parse(asked.prompt)
            named = names_in(prompt, names) | (_referenced({**common, **given}) & names.keys())
            roles = {role: wildcards.parse(names[role]) for role in names if role in named}
        except ConceptryError as error:
            raise error.at(place) from None
        for role in (asked.concepts or {}).keys() - named:
            raise InvalidInput(
                f"{place} has the concept {role}, which neither its prompt nor its reference names",
                hint=f"<{role}>",
            )
        patterns = [prompt, *roles.values()]
        if script.choose == "each" and any(each.has_weights for each in patterns):
            raise InvalidInput(
                f"{place} has wildcards with weights, but each is drawn", hint="choose: one"
            )
        ways = math.prod(each.count for each in patterns) if script.choose == "each" else 1
        own = {
            key: value
            for key, value in given.items()
            if value is not None and key not in (*_COUNTS, "concepts")
        }
        entry = {key: value for key, value in common.items() if key not in _COUNTS} | own
        scene = asked.scene or ""
        mine = frozenset(asked.concepts or {})
        count = ways * len(seeds)
        return cls(place, scene, entry, prompt, roles, mine, named, seeds, said, count)

    def one(self, chosen: "_Chosen") -> Iterator[SceneEntry]:
        """An entry for each seed."""
        for seed in self.seeds:
            yield self._entry(chosen.cast(self, seed), self.chosen_prompt(seed), [seed])

    def chosen_prompt(self, seed: int) -> Expansion:
        return self.prompt.one(random.Random(f"{seed} {self.entry['prompt']}"))

    def every(self) -> Iterator[SceneEntry]:
        """An entry for each combination in which nobody is there twice."""
        is_empty = True
        for roles in product(*(list(each.every()) for each in self.roles.values())):
            cast = _cast(self.place, self.roles, roles)
            names = {cast.name(role) for role in cast.roles}
            if len(names) < len(cast.roles):
                continue
            for prompt in self.prompt.every():
                if not names & self.called(prompt):
                    is_empty = False
                    yield self._entry(cast, prompt, self.seeds)
        if is_empty:
            raise _nobody_left(self.place, self.roles)

    def called(self, prompt: Expansion) -> frozenset[str]:
        """The concepts that a prompt calls by their own names."""
        return frozenset(re.findall(rf"<({_ROLE})(?=[@:>])", prompt.text)) - self.roles.keys()

    def _entry(self, cast: _Cast, prompt: Expansion, seeds: Sequence[int]) -> SceneEntry:
        try:
            text = cast.in_prompt(" ".join(prompt.text.split()))
        except InvalidInput as error:
            raise error.at(self.place) from None
        chosen = [*cast.chosen, *prompt.chosen]
        made: dict[str, object] = {
            **self.entry,
            "prompt": text,
            "seeds": list(seeds),
            "scene": " ".join([self.scene, *chosen]) if self.scene else text,
        }
        if (layout := made.get("layout")) is not None:
            made["layout"] = named = _renamed(layout, cast)
            if (
                isinstance(layout, Mapping)
                and isinstance(named, Mapping)
                and len(named) < len(layout)
            ):
                raise InvalidInput(
                    f"{self.place}: the layout has two boxes for one concept", hint="a box for each"
                )
        if (reference := made.get("reference")) is not None:
            words = reference.split() if isinstance(reference, str) else reference
            made["reference"] = _renamed(words, cast)
        return self.place, made, self.said


def _referenced(entry: Mapping[str, object]) -> frozenset[str]:
    """The names in the references of an entry."""
    words = entry.get("reference")
    words = words.split() if isinstance(words, str) else words
    if not isinstance(words, list):
        return frozenset()
    found = (_REFERENCE.match(word) for word in words if isinstance(word, str))
    return frozenset(match[1] for match in found if match)


class _Chosen:
    """Who takes the roles of scenes with each seed; those of the script in all of its scenes."""

    def __init__(self, scenes: Sequence[_Planned]) -> None:
        self._scenes: dict[int, list[_Planned]] = {}
        for scene in scenes:
            for seed in scene.seeds:
                self._scenes.setdefault(seed, []).append(scene)
        self._taken: dict[int, dict[str, Expansion]] = {}

    def cast(self, scene: _Planned, seed: int) -> _Cast:
        """Raises `InvalidInput` if somebody would be in the scene twice."""
        if seed not in self._taken:
            self._taken[seed] = self._common(seed)
        common = {role: self._taken[seed][role] for role in scene.roles if role not in scene.own}
        others = {_name(each) for each in common.values()} | scene.called(scene.chosen_prompt(seed))
        own = {role: pattern for role, pattern in scene.roles.items() if role in scene.own}
        found = _distinct(scene.place, own, seed, {role: {*others} for role in own}, {*own})
        taken = common | found
        return _cast(scene.place, scene.roles, [taken[role] for role in scene.roles])

    def _common(self, seed: int) -> dict[str, Expansion]:
        """Who takes the script's roles."""
        roles: dict[str, Pattern] = {}
        others: dict[str, set[str]] = {}
        together = list[set[str]]()
        for scene in self._scenes[seed]:
            called = scene.called(scene.chosen_prompt(seed))
            fixed = {
                _name(next(scene.roles[x].every())) for x in scene.own if scene.roles[x].count == 1
            }
            common = {role: each for role, each in scene.roles.items() if role not in scene.own}
            roles |= common
            together.append({*common})
            for role in common:
                others.setdefault(role, set()).update(called, fixed)
        place = self._scenes[seed][0].place if len(self._scenes[seed]) == 1 else "the script"
        return _distinct(place, roles, seed, others, *together)


def _distinct(
    place: str,
    roles: Mapping[str, Pattern],
    seed: int,
    others: Mapping[str, set[str]],
    *together: set[str],
) -> dict[str, Expansion]:
    """A concept for each role, drawn until those `together` are different, and none of `others`."""
    groups = {frozenset(each) for each in together}
    found: dict[str, dict[str, Expansion]] = {}
    for role, pattern in roles.items():
        beside = {each for group in groups if role in group for each in group}
        names = _drawn(pattern, random.Random(f"{seed} {role}"), others[role])
        found[role] = dict(islice(names, len(beside)))  # one more than others can take away
    at = f"{place}, with the seed {seed}"
    taken = _taken(at, {role: [*names] for role, names in found.items()}, groups)
    if taken is None:
        raise _nobody_left(at, roles)
    return {role: found[role][name] for role, name in taken.items()}


def _drawn(
    pattern: Pattern, rng: random.Random, others: set[str]
) -> Iterator[tuple[str, Expansion]]:
    """Concepts for a role by name, each once, those that are drawn often first; no others."""
    seen = set[str]()
    since = 0
    while since < _MAX_DRAWS and len(seen) < pattern.count:
        found = pattern.one(rng)
        since += 1
        if (name := _name(found)) not in seen:
            seen.add(name)
            since = 0
            if name not in others:
                yield name, found


def _taken(
    place: str, names: Mapping[str, Sequence[str]], groups: Collection[frozenset[str]]
) -> dict[str, str] | None:
    """A name for each role, the first that leaves others to all of its groups, if there is one."""
    tries = iter(range(_MAX_TRIES))

    def free(role: str, taken: Mapping[str, str]) -> list[str]:
        of_role = [group for group in groups if role in group]
        held = {taken[each] for group in of_role for each in group & taken.keys()}
        return [name for name in names[role] if name not in held]

    def fill(taken: dict[str, str]) -> dict[str, str] | None:
        left = {role: free(role, taken) for role in names if role not in taken}
        if not all(_can_differ({x: left[x] for x in group & left.keys()}) for group in groups):
            return None
        if not left:
            return taken
        role = next(iter(left))
        for name in left[role]:
            if next(tries, None) is None:
                raise InvalidInput(
                    f"{place}: {_MAX_TRIES:,} tries found nobody for one of {', '.join(names)} who "
                    "is not in a scene already",
                    hint="more concepts to choose from",
                )
            if whole := fill(taken | {role: name}):
                return whole
        return None

    return fill({})


def _can_differ(names: Mapping[str, Sequence[str]]) -> bool:
    """Whether each of some roles can have a name of its own: a matching, by augmenting paths."""
    taken: dict[str, str] = {}

    def finds(role: str, seen: set[str]) -> bool:
        for name in names[role]:
            if name not in seen:
                seen.add(name)
                if name not in taken or finds(taken[name], seen):
                    taken[name] = role
                    return True
        return False

    return all(finds(role, set()) for role in names)


def _nobody_left(place: str, roles: Iterable[str]) -> InvalidInput:
    return InvalidInput(
        f"{place}: no other concept is left for one of {', '.join(roles)}, "
        "and nobody is in a scene twice",
        hint="hero: {rex|mia}",
    )


def _name(found: Expansion) -> str:
    """The name of a concept that takes a role, or what is written in place of one."""
    text = found.text.strip()
    return _parts(text)[0] if _CAST.fullmatch(text) else text


def _cast(place: str, roles: Mapping[str, Pattern], found: Sequence[Expansion]) -> _Cast:
    """Raises `InvalidInput` for what is no concept's name."""
    taken = dict(zip(roles, (each.text.strip() for each in found), strict=True))
    for role, name in taken.items():
        if not _CAST.fullmatch(name):
            raise InvalidInput(
                f"{place}: the concept {role} is {shown(name)}",
                hint="rex, rex@2, rex:0.8, or {rex|mia}",
            )
    names = {role: name.strip("<>") for role, name in taken.items()}
    return _Cast(names, tuple(word for each in found for word in each.chosen))


def _parts(mention: str) -> tuple[str, str]:
    match = _CAST.fullmatch(mention)
    assert match is not None
    return match[1], match[2]


def _renamed(value: object, cast: _Cast) -> object:
    """A layout or references with concepts in place of roles."""
    if isinstance(value, Mapping):
        return {cast.name(str(role)): box for role, box in value.items()}
    words = value.split() if isinstance(value, str) else value
    if not isinstance(words, list):
        return value
    return [
        _REFERENCE.sub(lambda match: cast.name(match[1]), word) if isinstance(word, str) else word
        for word in words
    ]


def _wildcard_folder(name: str | None, folder: Path) -> Path | None:
    """The folder of wildcards, below that of the script and reached by no link."""
    if name is None:
        return None
    found = folder
    for part in name.removeprefix("./").rstrip("/").split("/"):
        if part != "." and not _FOLDER_NAME.fullmatch(part):
            raise InvalidInput(
                f"the folder of wildcards is {shown(name)}: it has to lie in the script's folder",
                hint="wildcards: wildcards",
            )
        found = found / part
        if found.is_symlink():
            raise InvalidInput(f"{found} is a link, which is not followed", hint="copy the folder")
    if not found.is_dir():
        raise InvalidInput(
            f"{found} is no folder of wildcards", hint="places.txt in it is __places__"
        )
    return found
