"""`compress`: a small version of one that changes the base model's weights in full."""

import math
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from ..registry import Registry
from ..registry.errors import InvalidInput, InvalidWeights, quoted
from ..registry.names import check_alias
from ..registry.records import ArtifactRecord, Concept, VersionRecord, originals_of
from ..registry.running import ADAPTER_FILE
from .file_format import AdapterMetadata, CompressionMetadata, read_adapter, write_adapter
from .formats.layouts import low_rank, squared_norm
from .limits import MAX_RANK
from .quantized import KINDS, Kind, Quantized
from .ways import Bits, Way
from .weight_delta import DOWN, UP, WeightDelta, factors_in_few_bits

Progress = Callable[[int, int], None]
_KINDS: dict[Bits, Kind] = {"1bit": "sign", "int4": "int4", "fp8": "fp8", "int8": "int8"}


@dataclass(frozen=True, slots=True)
class Compressed:
    """A version that was made of another one, the sizes of both files, and what it keeps.

    `kept` is the share of the change of weights, by squared norm.
    """

    concept: str
    version: int
    of: int
    way: str
    bytes: int
    of_bytes: int
    kept: float


def compress(
    change: WeightDelta, way: Way, *, on_progress: Progress | None = None
) -> tuple[dict[str, Tensor], float]:
    """The state of a change of weights that is compressed, and the share that it keeps.

    The share is 1 - ‖Δ - Δ'‖² / ‖Δ‖². By SVD the differences of biases and norms are left out, so
    that a LoRA is left; else they stay as they are, as they are small.
    """
    shrink = _low_rank if way.is_low_rank else _in_few_bits
    state = shrink(change, way, on_progress)
    return state, _kept(change, WeightDelta.from_state(state))


def _in_few_bits(change: WeightDelta, way: Way, on_progress: Progress | None) -> dict[str, Tensor]:
    assert way.bits
    small = WeightDelta({}, change.factors, change.magnitudes)
    for done, (name, delta) in enumerate(change.deltas.items(), 1):
        if on_progress:
            on_progress(done, len(change.deltas))
        if delta.ndim < 2:
            small.deltas[name] = delta
        else:
            small.products[name] = Quantized.of(delta, _KINDS[way.bits])
    return small.state()


def _low_rank(change: WeightDelta, way: Way, on_progress: Progress | None) -> dict[str, Tensor]:
    ranks = way.rank or _ranks_for(change, way.share or 1.0, on_progress)
    found, _ = low_rank(change, ranks, on_progress)
    state = replace(found, factors=change.factors).state()
    for name in change.deltas.keys() & found.factors.keys():
        up, down = found.factors[name]
        if way.bits is None:
            state |= {f"{UP}.{name}": up.half(), f"{DOWN}.{name}": down.half()}
        else:
            state |= factors_in_few_bits(name, (up, down), _KINDS[way.bits])
    return state


def _kept(change: WeightDelta, small: WeightDelta) -> float:
    """The share of whole differences that is kept; not finite if what is stored is not."""
    lost = total = 0.0
    for name, delta in change.deltas.items():
        whole = delta.float()
        total += squared_norm(whole)
        lost += squared_norm(small.added_to(name, -whole) if name in small.names else whole)
    return 1 - lost / total if total else 1.0


def _ranks_for(change: WeightDelta, share: float, on_progress: Progress | None) -> dict[str, int]:
    """The rank of each layer with which all keep a share of the change, in the smallest file.

    A singular value costs as many numbers as its matrix has rows and columns: those that keep most
    for each number come first.
    """
    gains: list[tuple[float, float, str]] = []
    total = 0.0
    for done, (name, delta) in enumerate(change.deltas.items(), 1):
        if on_progress:
            on_progress(done, len(change.deltas))
        if delta.ndim < 2:
            total += squared_norm(delta)
            continue
        matrix = delta.float().flatten(1)
        squares = torch.linalg.svdvals(matrix).square().tolist()
        total += sum(squares)
        gains += [(each / sum(matrix.shape), each, name) for each in squares]
    ranks = dict[str, int]()
    kept = 0.0
    for _, square, name in sorted(gains, reverse=True):
        if kept >= share * total or ranks.get(name, 0) == MAX_RANK:
            continue
        ranks[name] = ranks.get(name, 0) + 1
        kept += square
    return ranks


def compress_version(
    registry: Registry,
    concept: Concept,
    version: VersionRecord,
    way: Way,
    *,
    alias: str | None = None,
    on_progress: Progress | None = None,
) -> Compressed:
    """Store a version in few bytes, as the concept's next version; the original stays.

    Raises `InvalidInput` for a version without whole differences of weights, `InvalidWeights` for
    differences that are too large, and what reading and storing an adapter does.
    """
    name = f"{concept.name}@{version.number}"
    if alias is not None:
        check_alias(alias)
    if originals_of(version):
        raise InvalidInput(
            f"{name} was imported: it is kept as it came",
            hint=f"concept export {name} FILE.safetensors --format original",
        )
    artifact = _adapter_of(version)
    state, metadata = read_adapter(registry.path_of(artifact.sha256))
    change = WeightDelta.from_state(state)
    if metadata.compressed:
        first = f"{concept.name}@{metadata.compressed.version}"
        raise InvalidInput(
            f"{name} is compressed already, by {metadata.compressed.way}",
            hint=f"concept compress {quoted(first)} --to {way}",
        )
    if not change.deltas or any(each.partition(".")[0] in KINDS for each in state):
        raise InvalidInput(
            f"{name} has no whole differences of weights: there is nothing to compress",
            hint=f"concept show {quoted(concept.name)}",
        )
    small, kept = compress(change, way, on_progress=on_progress)
    if not math.isfinite(kept):
        raise InvalidWeights(f"{name} changes weights by more than 16 bits hold: it stays as it is")
    others = {each: state[each] for each in state.keys() - change.state().keys()}
    metadata = replace(
        metadata,
        compressed=CompressionMetadata(
            version=version.number, sha256=artifact.sha256, way=str(way), kept=round(kept, 6)
        ),
    )
    number = _stored(registry, concept, version, others | small, metadata, alias)
    (made,) = [each for each in registry.show(concept.id).versions if each.number == number]
    size = _adapter_of(made).bytes
    return Compressed(
        concept.name, number, version.number, str(way), size, artifact.bytes, round(kept, 4)
    )


def _adapter_of(version: VersionRecord) -> ArtifactRecord:
    (found,) = [each for each in version.artifacts if each.name == ADAPTER_FILE]
    return found


def _stored(
    registry: Registry,
    concept: Concept,
    version: VersionRecord,
    state: dict[str, Tensor],
    metadata: AdapterMetadata,
    alias: str | None,
) -> int:
    """Store an adapter as a version that the original's run has made; returns its number."""
    assert metadata.compressed
    origin = {"compressed_from": version.number, "to": metadata.compressed.way}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / ADAPTER_FILE
        write_adapter(path, dict(sorted(state.items())), metadata)
        return registry.add_version(
            concept.id, {ADAPTER_FILE: path}, run=version.run, alias=alias, origin=origin
        )
