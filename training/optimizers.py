"""Optimisers and learning rates of a stage, and what resume points keep of them."""

from collections.abc import Callable, Mapping, Sequence

import torch
from diffusers.optimization import get_scheduler
from torch import Tensor, nn
from torch.optim import Optimizer

from ..methods.settings import Schedule, StageSettings, TrainingSettings
from ..registry.errors import InvalidWeights

_GROUP = "group"
"""In resume points, the name of what an optimiser counts for all parameters together."""
_COUNTED = {
    "came": ("step",),
    "prodigy": ("step", "d", "d_max", "d_numerator"),
    "schedule-free": ("step", "weight_sum", "lr_max"),
}
"""What optimisers count there; schedules need nothing, as rates follow from the step."""

Shapes = dict[str, torch.Size]


def make_optimizer(
    learning: Mapping[float, Sequence[nn.Parameter]], settings: TrainingSettings
) -> Optimizer:
    """The optimiser that the settings name, of the parameters at each learning rate.

    Its other options are those of its paper or author.
    """
    parameters = [{"params": list(own), "lr": rate} for rate, own in learning.items()]
    rate, decay = next(iter(learning)), settings.weight_decay
    match settings.optimizer:
        case "adamw":
            return torch.optim.AdamW(parameters, lr=rate, weight_decay=decay, fused=True)
        case "adamw8bit":
            from bitsandbytes.optim import AdamW8bit

            return AdamW8bit(parameters, lr=rate, weight_decay=decay)
        case "adafactor":
            from transformers.optimization import Adafactor

            # the rate is that of the settings, as it is for the others
            return Adafactor(
                parameters, lr=rate, weight_decay=decay, scale_parameter=False, relative_step=False
            )
        case "prodigy":
            from pytorch_optimizer import Prodigy

            # as its author advises for diffusion models
            return Prodigy(
                parameters, lr=rate, weight_decay=decay, bias_correction=True, safeguard_warmup=True
            )
        case "came":
            from pytorch_optimizer import CAME

            return CAME(parameters, lr=rate, weight_decay=decay)
        case "schedule-free":
            from pytorch_optimizer import ScheduleFreeAdamW

            return ScheduleFreeAdamW(parameters, lr=rate, weight_decay=decay)


def learning_rates(
    rate: float, stage_settings: StageSettings, schedule: Schedule
) -> Callable[[int], float]:
    """What becomes of a rate in each step of a stage, from 0; nothing but the step decides it."""
    unused = torch.optim.SGD([torch.zeros(1)], lr=rate)
    (factor,) = get_scheduler(
        schedule.kind,
        unused,
        step_rules=schedule.rules,
        num_warmup_steps=stage_settings.warmup,
        num_training_steps=stage_settings.steps,
        num_cycles=schedule.cycles,
        power=schedule.power,
    ).lr_lambdas
    return lambda step: rate * factor(step)


# --- in resume points -----------------------------------------------------------------------------


def saved_state(
    optimizer: Optimizer, learning: Mapping[str, nn.Parameter], kind: str
) -> dict[str, Tensor]:
    """What an optimiser has counted, of each parameter as `exp_avg.NAME`, of all as `group.d`."""
    group, *_ = optimizer.param_groups
    counted = {f"{_GROUP}.{key}": _as_tensor(group[key]) for key in _COUNTED.get(kind, ())}
    return counted | {
        f"{key}.{name}": _as_tensor(value)
        for name, parameter in learning.items()
        for key, value in optimizer.state[parameter].items()
    }


def load_state(
    optimizer: Optimizer,
    learning: Mapping[str, nn.Parameter],
    saved: Mapping[str, Tensor],
    kind: str,
) -> None:
    """Load a saved state. Raises `InvalidWeights` for one that does not fit the optimiser."""
    group, *_ = optimizer.param_groups
    keys = {key.partition(".")[0] for key in saved} - {_GROUP}
    for name, parameter in learning.items():
        found = {key: saved[full] for key in keys if (full := f"{key}.{name}") in saved}
        expected = state_shapes(kind, parameter.shape)
        shapes = {key: value.shape for key, value in found.items()}
        if expected is not None and shapes not in ({}, expected):
            raise _unfit(name)
        optimizer.state[parameter] = {
            key: _restored(value, parameter) for key, value in found.items()
        }
    first = next(iter(learning.values()))
    for key in _COUNTED.get(kind, ()):
        value = saved.get(f"{_GROUP}.{key}")
        if value is None or value.numel() != 1:
            raise _unfit(key)
        group[key] = _restored(value, first)


def _unfit(name: str) -> InvalidWeights:
    return InvalidWeights(
        f"the saved state of the training does not fit: the optimiser's of {name}",
        hint="concept train NAME starts over",
    )


def state_shapes(kind: str, shape: torch.Size) -> Shapes | None:
    """What an optimiser keeps of a parameter of a shape; None where it is its own secret."""
    one = torch.Size()
    rows, columns = shape[:-1], shape[:-2] + shape[-1:]
    squares = {"exp_avg_sq": shape}
    if len(shape) > 1:
        squares = {"exp_avg_sq_row": rows, "exp_avg_sq_col": columns}
    residuals = {"exp_avg_res_row": rows, "exp_avg_res_col": columns} if len(shape) > 1 else {}
    known: dict[str, Shapes] = {
        "adamw": {"step": one, "exp_avg": shape, "exp_avg_sq": shape},
        "adafactor": {"step": one, "RMS": one, **squares},
        "prodigy": dict.fromkeys(("s", "p0", "exp_avg", "exp_avg_sq"), shape),
        "came": {"exp_avg": shape, "RMS": one, **squares, **residuals},
        "schedule-free": {"z": shape, "exp_avg_sq": shape},
    }
    return known.get(kind)


def bytes_of_state(kind: str, parameter: Tensor) -> int:
    """How much an optimiser keeps of a parameter: float32, or bytes if it says 8-bit."""
    shapes = state_shapes(kind, parameter.shape)
    if shapes is None:
        return 2 * parameter.numel()
    return 4 * sum(each.numel() for each in shapes.values())


def bytes_per_weight(kind: str) -> int:
    """How many bytes an optimiser keeps of each weight of a large matrix; see `bytes_of_state`."""
    shape = torch.Size((2, 3))
    shapes = state_shapes(kind, shape)
    return 2 if shapes is None else 4 * sum(each == shape for each in shapes.values())


def _as_tensor(value: object) -> Tensor:
    """A number as a scalar that `_restored` makes one again: float64, int64 or bool."""
    if isinstance(value, float):
        return torch.tensor(value, dtype=torch.float64)
    return torch.as_tensor(value)


def _restored(value: Tensor, parameter: Tensor) -> Tensor | float:
    """A value of an optimiser's state, as it was before it was stored."""
    if value.dim() == 0 and value.dtype in (torch.float64, torch.int64, torch.bool):
        return value.item()
    if value.shape == parameter.shape:
        # laid out like the parameter: fused optimisers go by memory, not by index
        return torch.empty_like(parameter, dtype=value.dtype).copy_(value)
    return value.to(parameter.device)
