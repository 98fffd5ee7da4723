"""The one form in which the registry writes a moment."""

from datetime import UTC, datetime


def now() -> str:
    """The time in UTC, as `2026-01-31T12:34:56.789Z`; sorts as text."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
