"""From exceptions to exit codes and messages."""

import errno
import traceback
from enum import IntEnum

import typer


class ExitCode(IntEnum):
    """The meanings of the exit status."""

    DONE = 0
    BUG = 1
    USAGE = 2
    NOT_FOUND = 3
    REGISTRY = 4
    TRAINING = 5
    INTERRUPTED = 130


EXIT_CODES_HELP = """\b
Exit codes:
    0  done
    1  a bug in this program
    2  wrong usage or unusable input
    3  a concept, file or registry that was named does not exist
    4  the registry is busy, damaged, too new, or its disk refuses
    5  training failed
  130  interrupted"""


class Failure(Exception):
    """An exception as it is reported: exit code, stable code, message and hint."""

    def __init__(self, exit_code: ExitCode, code: str, message: str, hint: str | None) -> None:
        super().__init__(message)
        self.exit_code = exit_code
        self.code = code
        self.message = message
        self.hint = hint

    def document(self) -> dict[str, dict[str, str | None]]:
        """The JSON form."""
        return {"error": {"code": self.code, "message": self.message, "hint": self.hint}}


_MAX_MESSAGE = 8000
_WANTED = {
    "int_parsing": "a whole number",
    "int_parsing_size": "a smaller whole number",
    "float_parsing": "a number",
    "greater_than_equal": "at least {ge:g}",
    "greater_than": "more than {gt:g}",
    "less_than_equal": "at most {le:g}",
    "less_than": "less than {lt:g}",
}
_REFUSED = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EFBIG, errno.EROFS)


class OutputLost(Failure):
    """What was to be printed cannot be written."""

    def __init__(self, error: OSError) -> None:
        what = error.filename or "the output"
        message = f"cannot write {what}: {error.strerror}"
        hint = "free some space, or write elsewhere"
        super().__init__(ExitCode.REGISTRY, "storage", message, hint)


def usage(message: str, hint: str) -> Failure:
    """The error for options that do not go together; `hint` is a call that works."""
    return Failure(ExitCode.USAGE, "usage", message, hint)


def interrupted(hint: str | None = None) -> Failure:
    """What an interruption means; `hint` is a command that goes on."""
    message = "interrupted; the registry is whole"
    return Failure(ExitCode.INTERRUPTED, "interrupted", message, hint)


def explain(error: BaseException) -> Failure:
    """Say what an exception means to the user; an unexpected one is a bug."""
    if isinstance(error, Failure):
        return error
    if isinstance(error, typer.TyperException):
        context = getattr(error, "ctx", None)
        error.message = _of_a_value(error) or error.message
        message = _one_line(error.format_message()).replace("Value error, ", "")
        return usage(message, f"{context.command_path} --help" if context else "concept --help")
    if isinstance(error, (typer.Abort, KeyboardInterrupt)):
        return interrupted()
    from ..registry import errors as registry_errors  # not before an error has happened

    table: tuple[tuple[type[registry_errors.ConceptryError], ExitCode], ...] = (
        (registry_errors.InvalidInput, ExitCode.USAGE),
        (registry_errors.NotFound, ExitCode.NOT_FOUND),
        (registry_errors.RegistryError, ExitCode.REGISTRY),
        (registry_errors.TrainingFailed, ExitCode.TRAINING),
        (registry_errors.TrainingInterrupted, ExitCode.INTERRUPTED),
    )
    for kind, exit_code in table:
        if isinstance(error, kind):
            hint = _one_line(error.hint) if error.hint else None
            return Failure(exit_code, error.code, _one_line(error.message), hint)
    return _of_the_machine(error) or _bug(error)


def _of_a_value(error: typer.TyperException) -> str | None:
    """What an option or argument has to be, and what it is; None for errors of other kinds."""
    find = getattr(error.__cause__, "errors", None)  # of pydantic, which is not imported for this
    found = find(include_url=False)[0] if find else {}
    wanted = _WANTED.get(found.get("type", ""))
    if wanted is None:
        return None
    from ..registry.errors import quoted

    return f"must be {wanted.format(**found.get('ctx', {}))}, not {quoted(found['input'])}"


def _of_the_machine(error: BaseException) -> Failure | None:
    """A disk or a GPU that is too small."""
    if isinstance(error, OSError) and error.errno in _REFUSED:
        return OutputLost(error)
    if type(error).__name__ == "OutOfMemoryError":  # torch's, which is not imported for this
        message, hint = "the GPU has too little memory for this", "a smaller --batch or --size"
        return Failure(ExitCode.USAGE, "out_of_memory", message, hint)
    return None


def _bug(error: BaseException) -> Failure:
    summary = "".join(traceback.format_exception_only(error)).strip()
    hint = "run it again with --debug and report the trace"
    return Failure(ExitCode.BUG, "bug", f"unexpected {_one_line(summary)}", hint)


def _one_line(message: str) -> str:
    """A message on one line, of bounded length."""
    message = " ".join(message[: 4 * _MAX_MESSAGE].splitlines())
    return message if len(message) <= _MAX_MESSAGE else message[:_MAX_MESSAGE] + "…"
