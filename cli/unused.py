"""What `concept generate` was asked for in vain: options that change nothing of its pictures."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..generation.prompt_syntax import ChosenVersion
    from ..generation.reference_syntax import ChosenReference
    from ..generation.request import Request


IN_FILES = {"n": "num_pictures"} | {
    name: name
    for name in (
        *("seed", "steps", "guidance", "negative", "scheduler", "size", "reference", "layout"),
        *("layout_control", "prompt_weights", "perturbed_attention", "control", "control_scale"),
        *("reference_control", "init", "inpaint", "strength"),
    )
}
"""What prompts of files may say themselves, and the parameters of the command for it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandOptions:
    """Options of a command beside those that requests have."""

    leak: bool
    points: bool
    control_scale: bool
    frames: bool = False
    """Whether pictures are an animation, whose frames are drawn after the one before."""
    given: frozenset[str] = frozenset()
    """Those on the command line, as prompts of files say them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LookedUp:
    """A request, with the versions that its prompt names and the photos that it is drawn after."""

    request: "Request"
    chosen: "Sequence[ChosenVersion]"
    references: "Sequence[ChosenReference]"


def unused(found: Sequence[LookedUp], options: CommandOptions) -> list[str]:
    """A line for each option that no picture uses.

    Loads no deep-learning library, but for concepts whose references would count.
    """
    requests = [each.request for each in found]
    seen = [_Seen.of(each, is_asked=options.points, frames=options.frames) for each in found]
    lines = [*_of_references(requests, seen, options), *_of_several(requests, seen, options)]
    if options.control_scale and not any(each.control for each in requests):
        lines.append("--control-scale is for pictures with a --control")
    is_guided = any(
        each.shares or request.settings.guidance > 1
        for each, request in zip(seen, requests, strict=True)
    )
    if not is_guided and any(each.settings.negative for each in requests):
        lines.append("--negative is for pictures with a --guidance above 1")
    for key in sorted(options.given):
        if all(_is_said(key, each.said) for each in requests):
            option = "-n" if key == "n" else f"--{key.replace('_', '-')}"
            lines.append(f"{option} is said by every prompt of the file itself")
    return lines


def _is_said(key: str, said: frozenset[str]) -> bool:
    """Whether a prompt says what an option would."""
    return key in said or (key in ("n", "seed") and "seeds" in said)


@dataclass(frozen=True, slots=True)
class _Seen:
    """Of a request: the shares of its references, its versions' too, and how many subjects."""

    shares: Sequence[float]
    subjects: int

    @classmethod
    def of(cls, found: LookedUp, *, is_asked: bool, frames: bool) -> "_Seen":
        from ..models.references import SHARE

        request = found.request
        shares = [each.share for each in found.references if each.weight]
        shares += [SHARE] if frames and not found.references else []  # the first of them leads
        if is_asked or _asks_of_references(request):
            shares += _held(found.chosen)
        if shares and request.settings.reference_share is not None:
            shares = [request.settings.reference_share]
        return cls(shares, _subjects(found))


def _subjects(found: LookedUp) -> int:
    """How many subjects a picture keeps apart, or measures the leak of."""
    from ..generation.layout import AUTO, has_word, plain_words, settled

    layout = settled(found.request.settings.layout, len(found.chosen))
    if layout is None:
        return len(found.chosen)
    if layout != AUTO:
        return len(layout)
    names = {each.mention.name for each in found.chosen}
    words = plain_words(found.request.prompt)
    kinds = {each.concept.category for each in found.references if each.name not in names}
    return sum(each.is_subject for each in found.chosen) + sum(has_word(words, it) for it in kinds)


def _asks_of_references(request: "Request") -> bool:
    """Whether an option of a request depends on whether it is drawn after photos."""
    settings = request.settings
    shares = (settings.reference_share, settings.reference_guidance)
    return shares != (None, None) or (bool(settings.negative) and settings.guidance <= 1)


def _held(chosen: "Sequence[ChosenVersion]") -> list[float]:
    """The shares of references that versions hold."""
    trained = [each for each in chosen if not each.originals]
    if not trained:
        return []
    from ..adapters.file_format import read_adapter_metadata

    found = (read_adapter_metadata(Path(each.path)).references for each in trained)
    return [reference.share for references in found for reference in references]


def _of_references(
    requests: "Sequence[Request]", seen: Sequence[_Seen], options: CommandOptions
) -> Iterator[str]:
    """Options for pictures that are drawn after photos: `--reference`, or a version's."""
    settings = [each.settings for each in requests]
    guides = any(each.reference_guidance is not None for each in settings)
    if any(each.shares for each in seen):
        if guides and not any(share for each in seen for share in each.shares):
            yield "--reference-guidance is for pictures with a --reference-share above 0"
        return
    given = {
        "--reference-share": any(each.reference_share is not None for each in settings),
        "--reference-guidance": guides,
        "--encoder-strength": any(each.encoder_strength for each in settings),
        "--point": options.points,
    }
    weightless = any(each.references for each in requests)
    needed = "a --reference whose weight is above 0" if weightless else "a --reference"
    yield from (f"{name} is for pictures with {needed}" for name, on in given.items() if on)


def _of_several(
    requests: "Sequence[Request]", seen: Sequence[_Seen], options: CommandOptions
) -> Iterator[str]:
    """Options for prompts with several subjects."""
    if max(each.subjects for each in seen) > 1:
        return
    given = {
        "--leak": options.leak,
        "--separate": any(each.settings.separate for each in requests),
        "--layout auto": any(each.settings.layout == "auto" for each in requests),
    }
    names = [name for name, on in given.items() if on]
    yield from (f"{name} is for prompts with several concepts" for name in names)
