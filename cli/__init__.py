"""The `concept` command: a module per subcommand, assembled in `app.py`."""


def main() -> None:
    """Run the command line; exits with one of `ExitCode`."""
    import sys

    from . import quick_start

    _open_streams()
    quick_start.install()
    try:
        with quick_start.quick_imports():
            from .app import app
        app()
    except KeyboardInterrupt:  # before a command had begun, which says more
        sys.exit(130)


def _open_streams() -> None:
    """Have all three standard streams, so that no file that is opened later takes their place."""
    import os
    import sys

    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # closed by whoever started us: concept list >&-
            stream = open(os.devnull, mode, encoding="utf-8")  # noqa: PTH123, SIM115
            setattr(sys, name, stream)
