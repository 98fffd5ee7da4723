"""Models of transformers beside base models: fetched once, loaded from safetensors alone."""

from collections.abc import Callable
from typing import Any, TypeVar

from transformers import AutoConfig

from ..registry.errors import InvalidInput, InvalidWeights
from .compatibility import short
from .fetching import Kind
from .loading import without_bars

_MODEL = Kind(
    "model", "--model FOLDER, or a hub id", ("*.json", "*.txt", "*.model", "*.safetensors")
)
_OPTIONS: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
_T = TypeVar("_T")


class HubModel:
    """The folder of a model, a hub repository's in the cache or one's own; its code is never run.

    Raises `NotFound` if there is none, `InvalidInput` if transformers does not know its kind.
    """

    def __init__(self, name: str, *, offline: bool = False) -> None:
        self.name = name
        self._folder = _MODEL.folder(name, offline=offline)
        self.config = self._loaded(lambda: AutoConfig.from_pretrained(self._folder, **_OPTIONS))

    def part(self, kind: Any) -> Any:
        """A processor or tokenizer of this class. Raises `InvalidInput`."""
        return self._loaded(lambda: kind.from_pretrained(self._folder, **_OPTIONS))

    def network(self, kind: Any) -> Any:
        """The network, of this class, in float32. Raises `InvalidInput` and `InvalidWeights`."""
        with without_bars():
            network, found = self._loaded(
                lambda: kind.from_pretrained(
                    self._folder,
                    config=self.config,
                    use_safetensors=True,
                    output_loading_info=True,
                    **_OPTIONS,
                )
            )
        if missing := sorted(found["missing_keys"]):
            first = f"{missing[0]} ({len(missing)} in all)"
            raise InvalidWeights(f"the model {self.name} lacks tensors: {first}")
        return network.float().eval().requires_grad_(False)

    def _loaded(self, load: Callable[[], _T]) -> _T:
        try:
            return load()
        except (OSError, ValueError, RuntimeError, KeyError, TypeError, ImportError) as error:
            raise InvalidInput(
                f"the model {self.name} cannot be loaded: {short(error)}", hint="another --model"
            ) from error
