"""What a base model's configuration says of the pictures it was trained on. Loads no weights."""

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ..registry.errors import InvalidInput
from .bases import Base
from .folder import CONFIG_FILE, read_object


@dataclass(frozen=True, slots=True)
class Native:
    """The side of its pictures in pixels, and what it predicts: epsilon, v_prediction or sample."""

    size: int
    prediction: str


def native_of(base: Base) -> Native | None:
    """It; None if its configuration is not on this machine, or says nothing of it."""
    with suppress(InvalidInput):
        if folder := configuration_of(base):
            unet = read_object(folder / "unet" / CONFIG_FILE)
            vae = read_object(folder / "vae" / CONFIG_FILE)
            scheduler = read_object(folder / "scheduler" / "scheduler_config.json")
            match unet.get("sample_size"), vae.get("block_out_channels"):
                case int(side), [*levels] if 0 < side <= 1 << 10:
                    prediction = scheduler.get("prediction_type", "epsilon")
                    return Native(side << max(len(levels) - 1, 0), str(prediction))
    return None


def configuration_of(base: Base) -> Path | None:
    """The folder with the configurations of a base model's parts; None if it has none here."""
    if base.kind == "folder":
        return Path(base.source)
    if base.kind == "file":
        return Path(base.config) if base.config else None
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(base.source, f"unet/{CONFIG_FILE}")
    return Path(found).parent.parent if isinstance(found, str) else None
