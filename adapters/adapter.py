"""What is injected into a base model and ejected again."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Protocol

from ..models.backbone import Backbone


class Adapter(Protocol):
    """Something that is injected into a base model; after `eject` its modules are as before."""

    def inject(self, backbone: Backbone) -> None:
        """Put it in. Raises `RuntimeError` if it is in already."""
        ...

    def eject(self, backbone: Backbone) -> None:
        """Take it out."""
        ...


@contextmanager
def injected(backbone: Backbone, adapters: Sequence[Adapter]) -> Iterator[None]:
    """Inject adapters, one after another, and eject them in reverse whatever happens."""
    with ExitStack() as stack:
        for adapter in adapters:
            adapter.inject(backbone)
            stack.callback(adapter.eject, backbone)
        yield
