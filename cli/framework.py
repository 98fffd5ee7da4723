"""What all commands share: the global options, the error boundary, and the open registry."""

import logging
import os
import re
import sys
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NoReturn

import typer
from typer.core import TyperCommand, TyperGroup, TyperOption

from .errors import ExitCode, OutputLost, explain
from .output import Output, deliver
from .quick_start import check_only_what_is_given

if TYPE_CHECKING:
    from typer._click import Context, HelpFormatter, Parameter
    from typer._click.parser import _OptionParser

    from ..registry import Registry

check_only_what_is_given()

_TYPE_NAMES = re.compile(r" <[^>]*>$")
_GIVEN = "parameters by the order of words"
GLOBAL_OPTIONS = ("registry", "as_json", "quiet", "debug")


@dataclass(slots=True)
class Session:
    """One invocation: which registry, and how to print."""

    registry_path: str | None = None
    output: Output = field(default_factory=Output)

    def update(self, *, registry: str | None, as_json: bool, quiet: bool, **_: object) -> None:
        """Take over global options; what was not given stays."""
        self.registry_path = registry or self.registry_path
        self.output.as_json |= as_json
        self.output.quiet |= quiet

    def lacks_registry(self) -> bool:
        """Whether nothing is left of a registry: none should be made for what is then refused."""
        from ..registry import locate

        location = locate(self.registry_path)
        return not (location.database.exists() or location.blobs.exists())

    @contextmanager
    def registry(self, *, create: bool = False) -> "Iterator[Registry]":
        """The registry that the options name, open."""
        from ..registry import Registry  # loads the database libraries

        with Registry.open(self.registry_path, create=create) as registry:
            yield registry


def _with_global_options(
    command: "TyperCommand | TyperGroup", own: "list[Parameter]", ctx: "Context"
) -> "list[Parameter]":
    """A command's own options, those of the whole program, then `--help`."""
    root = ctx.find_root().command
    shared = [param for param in root.params if param.name in GLOBAL_OPTIONS]
    return [*own[:-1], *shared, *own[-1:]] if root is not command else own


def _take_global_options(ctx: "Context") -> None:
    """Hand the global options to the session, so that the command gets the others alone."""
    given = {name: ctx.params.pop(name) for name in GLOBAL_OPTIONS if name in ctx.params}
    if given:
        ctx.obj.update(**given)


def _repeated(order: "Sequence[Parameter]") -> list[str]:
    """Options of one value that a command line has more than once, by the order of its words."""
    counts = Counter(
        max(each.opts, key=len)
        for each in order
        if isinstance(each, TyperOption) and not each.multiple and not each.is_flag
    )
    return [option for option, count in counts.items() if count > 1]


class _Noting:
    """A command or group that notes what is given, also of the groups before it."""

    def make_parser(self, ctx: "Context") -> "_OptionParser":
        """Typer's own, which also notes the parameters that it finds."""
        parser = super().make_parser(ctx)  # pyright: ignore[reportAttributeAccessIssue]
        parse = parser.parse_args

        def noting(args: list[str]) -> "tuple[dict[str, Any], list[str], list[Parameter]]":
            found = parse(args)
            ctx.meta.setdefault(_GIVEN, []).extend(found[2])
            return found

        parser.parse_args = noting
        return parser


class CommandGroup(_Noting, TyperGroup):
    """Some commands under one word; the global options may stand behind it too."""

    def get_params(self, ctx: "Context") -> "list[Parameter]":
        """Those of the whole program, and `--help`."""
        return _with_global_options(self, super().get_params(ctx), ctx)

    def invoke(self, ctx: "Context") -> object:
        """Hand the global options to the session."""
        _take_global_options(ctx)
        return super().invoke(ctx)


class ConceptCommand(_Noting, TyperCommand):
    """A command that takes the global options too, so that they may stand at the end."""

    def get_params(self, ctx: "Context") -> "list[Parameter]":
        """Its own options, those of the whole program, then `--help`."""
        return _with_global_options(self, super().get_params(ctx), ctx)

    def collect_usage_pieces(self, ctx: "Context") -> list[str]:
        """The words of the usage line, without braces."""
        pieces = [re.sub(r"[{}]", "", piece) for piece in super().collect_usage_pieces(ctx)]
        return [piece.removesuffix("...") if "... " in piece else piece for piece in pieces]

    def format_options(self, ctx: "Context", formatter: "HelpFormatter") -> None:
        """Arguments and options, without the names of Python types."""
        arguments, options = list[tuple[str, str]](), list[tuple[str, str]]()
        for param in self.get_params(ctx):
            is_argument = param.param_type_name == "argument"
            if record := param.get_help_record(ctx):
                name = _TYPE_NAMES.sub("", record[0])
                (arguments if is_argument else options).append((name, record[1]))
        for heading, records in (("Arguments", arguments), ("Options", options)):
            if records:
                with formatter.section(heading):
                    formatter.write_dl(records)

    def invoke(self, ctx: "Context") -> object:
        """Hand the global options to the session, the others to the command."""
        _take_global_options(ctx)
        for option in _repeated(ctx.meta[_GIVEN]):
            ctx.obj.output.warn(f"{option} is given several times: the last one counts")
        return super().invoke(ctx)


class ConceptGroup(_Noting, TyperGroup):
    """The program. Every way in passes `main`, so this is where errors become exit codes."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = "concept",
        complete_var: str | None = None,
        standalone_mode: bool = True,  # noqa: ARG002 (ignored: always false)
        windows_expand_args: bool = True,
        **extra: object,
    ) -> NoReturn:
        """Run a command line and exit; no exception leaves."""
        _silence_libraries()
        arguments = list(sys.argv[1:] if args is None else args)
        for stream in (sys.stdout, sys.stderr):
            stream.reconfigure(errors="backslashreplace")  # pyright: ignore[reportAttributeAccessIssue]
        try:
            status = super().main(
                arguments,
                prog_name,
                complete_var,
                standalone_mode=False,
                windows_expand_args=windows_expand_args,
                **extra,
            )
            if status == ExitCode.INTERRUPTED:
                raise KeyboardInterrupt
            deliver()
        except SystemExit as left:  # of `--help | true`; typer makes it a failure
            is_unheard = "Pacify" in type(sys.stdout).__name__
            status = ExitCode.DONE if is_unheard else left.code
        except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 (the boundary)
            status = _report(error, arguments)
        sys.exit(status or 0)


def _silence_libraries() -> None:
    """Silence libraries, as our errors say what is wrong; what the user has set is kept."""
    logging.getLogger("PIL").addHandler(logging.NullHandler())
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # warns of kernels it lacks
    for library in ("TRANSFORMERS", "DIFFUSERS"):
        os.environ.setdefault(f"{library}_VERBOSITY", "error")


def _report(error: BaseException, arguments: Sequence[str]) -> int:
    """Print what an exception means; the options are read again, as parsing may have failed."""
    flags = arguments[: arguments.index("--")] if "--" in arguments else arguments
    failure = explain(error)
    output = Output(as_json="--json" in flags)
    if "--debug" in flags:
        traceback.print_exception(error)
    if output.as_json and not isinstance(failure, OutputLost):
        with suppress(OutputLost):
            output.result(failure.document())
            return failure.exit_code
    output.error(failure.message, failure.hint)
    return failure.exit_code


def session_of(context: typer.Context) -> Session:
    """The session that the root command began."""
    return context.obj
