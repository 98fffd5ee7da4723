"""Where the subjects of a picture are to be: what is refused and said before anything is loaded."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from .unused import LookedUp

if TYPE_CHECKING:
    from ..generation.request import Request


def check_layout(request: "Request", found: LookedUp | None) -> None:
    """Raise `InvalidInput` for a layout that does not fit its prompt, or the ControlNet for it.

    `found` is what the request names, if there is a registry.
    """
    from ..generation.layout import check_places

    chosen = found.chosen if found else ()
    referenced = {each.name: each.concept.category for each in (found.references if found else ())}
    check_places(request.settings.layout, request.prompt, chosen, referenced)
    if boxes := request.settings.shown_boxes:
        from ..generation.control_request import categories_in

        own = {each.mention.name: each.concept.category for each in chosen}
        categories_in(boxes, referenced | own)


def where_concepts_are(found: Sequence[LookedUp]) -> list[str]:
    """Lines: that several concepts are kept apart where nobody asked for it, and which are not."""
    lines: dict[str, None] = {}
    for each in found:
        if each.request.settings.layout is not None or len(each.chosen) < 2:
            continue
        if sum(one.is_subject for one in each.chosen) > 1:
            lines.setdefault("several concepts: each in its place (--layout none: all at once)")
        for one in each.chosen:
            if one.has_words and not one.is_subject:
                name = one.concept.name
                lines.setdefault(
                    f"{name} changes the whole picture: nobody said of what it is "
                    f"(concept edit {name} --category WORD)"
                )
    return [*lines]
