"""The `concept` command: a module per subcommand, assembled in `app.py`."""


def main() -> None:
    """Run the command line; exits with one of `ExitCode`."""
    from .app import app

    app()
