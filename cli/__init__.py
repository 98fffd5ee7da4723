"""The `concept` command: a module per subcommand, assembled in `app.py`."""


def main() -> None:
    """Run the command line; exits with one of `ExitCode`."""
    import sys

    from . import quick_start

    quick_start.install()
    try:
        with quick_start.quick_imports():
            from .app import app
    except KeyboardInterrupt:  # while it was still loading
        sys.exit(130)
    app()
