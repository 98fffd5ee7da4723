"""Files of hub repositories: fetched once, or said not to be on this machine."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import snapshot_download

from ..registry.errors import ConceptryError, NotFound
from .bases import HUB_ID
from .compatibility import short


@contextmanager
def fetching(what: str, *, offline: bool, hint: str | None = None) -> Iterator[None]:
    """Raise `NotFound` where `what` is fetched inside the context and cannot be.

    Errors of ours pass.
    """
    try:
        yield
    except ConceptryError:
        raise
    except (OSError, ValueError) as error:  # hub errors are both
        why = "is not on this machine" if offline else f"cannot be fetched: {short(error)}"
        raise NotFound(f"{what} {why}", hint=hint) from error


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of model: what it is called in errors, what else to name, and the files that it has.

    `files` are patterns.
    """

    what: str
    hint: str
    files: tuple[str, ...]

    def folder(self, name: str, *, offline: bool) -> Path:
        """A folder of one's own, or else a hub repository's. Raises `NotFound`."""
        folder = Path(os.path.expanduser(name))
        if os.path.isdir(folder):
            return folder
        if not HUB_ID.fullmatch(name) or name.startswith("."):
            raise NotFound(f'there is no {self.what} "{name}"', hint=self.hint)
        return self.fetched(name, offline=offline)

    def fetched(self, name: str, *, offline: bool) -> Path:
        """The folder of a hub repository in the cache. Raises `NotFound`."""
        with fetching(f"the {self.what} {name}", offline=offline, hint=self.hint):
            found = snapshot_download(name, allow_patterns=[*self.files], local_files_only=offline)
        return Path(found)
