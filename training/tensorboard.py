"""Losses for TensorBoard, beside the registry's own record of them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ..registry.errors import InvalidInput
from .callbacks import StepReport


@contextmanager
def written_for_tensorboard(folder: Path) -> Iterator[Callable[[StepReport], None]]:
    """Yields a `Hooks.on_step` that writes each loss as `stage/name`, and the rate of steps.

    Raises `InvalidInput` where the package tensorboard is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise InvalidInput(
            "event files need the package tensorboard", hint="pip install tensorboard"
        ) from None
    writer = SummaryWriter(log_dir=str(folder))

    def on_step(report: StepReport) -> None:
        for name, value in report.losses.items():
            writer.add_scalar(f"{report.stage}/{name}", value, report.step)
        if report.seconds:
            writer.add_scalar(f"{report.stage}/steps per second", 1 / report.seconds, report.step)

    try:
        yield on_step
    finally:
        writer.close()
