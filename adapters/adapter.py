"""The interface of adapters: injected into a base model, and ejected again."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Protocol

from ..models.backbone import Backbone


class Adapter(Protocol):
    """A change of a base model; after `eject` its module tree and weights are as before."""

    def inject(self, backbone: Backbone) -> None:
        """Apply it. Raises `RuntimeError` if it is already injected."""
        ...

    def eject(self, backbone: Backbone) -> None:
        """Undo `inject`."""
        ...


@contextmanager
def injected(backbone: Backbone, adapters: Sequence[Adapter]) -> Iterator[None]:
    """Inject adapters in order, and eject them in reverse on exit."""
    with ExitStack() as stack:
        for adapter in adapters:
            adapter.inject(backbone)
            stack.callback(adapter.eject, backbone)
        yield
