"""Packages that a training may need beside those that are always installed. Imports none."""

from importlib.util import find_spec

from ..methods.settings import TrainingSettings
from ..registry.errors import InvalidInput

PACKAGES = {
    ("optimizer", "adamw8bit"): ("bitsandbytes", "bitsandbytes", "adamw"),
    ("optimizer", "came"): ("pytorch_optimizer", "pytorch-optimizer", "adamw"),
    ("optimizer", "prodigy"): ("pytorch_optimizer", "pytorch-optimizer", "adamw"),
    ("optimizer", "schedule-free"): ("pytorch_optimizer", "pytorch-optimizer", "adamw"),
    ("quantize", "4bit"): ("bitsandbytes", "bitsandbytes", "8bit"),
}
"""(setting, value) -> (module, package to install, a value that needs none)."""


def check_packages(settings: TrainingSettings) -> None:
    """Raise `InvalidInput` if a setting needs a package that is not installed."""
    for (name, value), (module, package, other) in PACKAGES.items():
        if getattr(settings, name) == value and find_spec(module) is None:
            raise InvalidInput(
                f"{name}={value} needs the package {package}",
                hint=f"pip install {package}, or --set {name}={other}",
            )
