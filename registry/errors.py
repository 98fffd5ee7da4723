"""The errors a user can act on: what happened, why, and the next command to type."""

import difflib
import shlex
from collections.abc import Iterable
from typing import ClassVar


class ConceptryError(Exception):
    """Base of every expected error.

    `code` is a stable word for programs, `hint` the next thing to do, usually a command.
    """

    code: ClassVar[str] = "error"

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __reduce__(self) -> tuple[object, ...]:
        """So that one process can send it to another, whatever its constructor takes."""
        return _rebuilt, (type(self), self.message, self.hint)

    def at(self, place: str, joint: str = ": ") -> "ConceptryError":
        """The same error, which says first where what is wrong was asked for."""
        return _rebuilt(type(self), f"{place}{joint}{self.message}", self.hint)


def _rebuilt(kind: type[ConceptryError], message: str, hint: str | None) -> ConceptryError:
    error = kind.__new__(kind)
    ConceptryError.__init__(error, message, hint=hint)
    return error


class InvalidInput(ConceptryError, ValueError):
    """Something the user gave cannot be used; nothing was changed."""

    code = "invalid_input"


class AlreadyExists(InvalidInput):
    """A name is taken."""

    code = "already_exists"


class InvalidImage(InvalidInput):
    """A photo or mask that cannot be read, or is larger than the cap on pixels."""

    code = "invalid_image"


class InvalidBundle(InvalidInput):
    """An export file that is damaged, hostile, or made by a newer program."""

    code = "invalid_bundle"


class InvalidWeights(InvalidInput):
    """A weights file that is not sound safetensors, or not the tensors expected."""

    code = "invalid_weights"


class NotFinite(InvalidInput):
    """A base model, with or without adapters, computed values that are not finite."""

    code = "not_finite"


class NotFound(ConceptryError, LookupError):
    """The thing that was named does not exist."""

    code = "not_found"


class ConceptNotFound(NotFound):
    """No concept has this name, or the one with this id was removed."""

    code = "concept_not_found"

    def __init__(self, key: str | int, known: Iterable[str]) -> None:
        if isinstance(key, int):
            super().__init__("the concept was removed", hint="concept list")
        else:
            super().__init__(f'no concept is named "{key}"', hint=suggest(key, known))


class RegistryMissing(NotFound):
    """There is no registry at the path."""

    code = "registry_not_found"


class RegistryError(ConceptryError):
    """The registry itself is at fault: busy, damaged, too new, or out of room."""

    code = "registry_error"


class RegistryBusy(RegistryError):
    """Another process held the registry for longer than the time-out."""

    code = "registry_busy"


class RegistryCorrupt(RegistryError):
    """The database or a stored file is damaged."""

    code = "registry_corrupt"


class RegistryTooNew(RegistryError):
    """The database was written by a newer program."""

    code = "registry_too_new"


class StorageError(RegistryError):
    """The disk is full, read-only or failing."""

    code = "storage"


class TrainingFailed(ConceptryError):
    """A training cannot go on: numbers that are not finite, or no memory."""

    code = "training_failed"


class TrainingInterrupted(ConceptryError):
    """A training was stopped; its state is saved."""

    code = "interrupted"


def quoted(word: object) -> str:
    """A word quoted for a shell, for commands in hints; it may come from an untrusted file."""
    return shlex.quote(str(word))


def suggest(name: str, known: Iterable[str]) -> str:
    """Say which of `known` look like `name`, or how to list them all."""
    near = difflib.get_close_matches(name, list(known), n=3, cutoff=0.5)
    if near:
        return "did you mean " + " or ".join(near) + "?"
    return "concept list"
