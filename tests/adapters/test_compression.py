"""Compressed versions: what is stored, what is kept, and that they are drawn with and exported."""

from pathlib import Path

import numpy as np
import pytest
import torch
from conceptry.adapters.compression import compress, compress_version
from conceptry.adapters.file_format import read_adapter, write_adapter
from conceptry.adapters.quantized import KINDS, Kind, Quantized
from conceptry.adapters.ways import Way
from conceptry.adapters.weight_delta import WeightDelta
from conceptry.models.loading import LoadedBase, load_base
from conceptry.registry import Registry
from conceptry.registry.errors import InvalidInput, InvalidWeights
from exported import Taught
from long import quick_for
from safetensors.torch import load_file
from tiny_base import write_tiny_base

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> LoadedBase:
    return load_base(str(write_tiny_base(tmp_path_factory.mktemp("bases") / "tiny")))


@pytest.fixture
def taught(rex: Registry, base: LoadedBase, tmp_path: Path) -> Taught:
    """Rex, whose version 1 is a difference of the whole U-Net."""
    made = Taught(rex, base, tmp_path)
    made.add(made.vectors(2) | made.deltas())
    return made


def compressed(taught: Taught, way: str, number: int = 1) -> int:
    concept = taught.registry.show("rex")
    (version,) = [each for each in concept.versions if each.number == number]
    return compress_version(taught.registry, concept, version, Way.parse(way)).version


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(8, 5), (13, 3), (1, 1), (9, 4, 3, 3)], ids=str)
def test_a_difference_in_few_bits_is_the_nearest(kind: Kind, shape: tuple[int, ...]) -> None:
    delta = torch.randn(*shape, generator=torch.Generator().manual_seed(0)) * 1e-4
    delta[0] = 0.0
    found = Quantized.of(delta, kind)
    assert found.shape == delta.shape
    assert found.is_sound
    back = found.to(CPU, torch.float32)
    assert back[0].abs().max() == 0
    rows = delta.flatten(1).abs()
    if kind == "sign":
        scale = rows.mean(1).bfloat16().float().reshape(-1, *(1,) * (delta.ndim - 1))
        assert torch.equal(back, torch.where(delta > 0, scale, -scale))
        assert found.values.numel() == -(-shape[0] // 8) * delta[0].numel()
    elif kind == "int4":
        assert found.values.numel() == -(-shape[0] // 2) * delta[0].numel()
        scale = (rows.amax(1) / 7).bfloat16().float().reshape(-1, *(1,) * (delta.ndim - 1))
        plain = (delta / scale.clamp(min=1e-30)).round() * scale
        error, of_plain = (((each - delta) ** 2).flatten(1).sum(1) for each in (back, plain))
        assert (error <= of_plain * 1.001).all(), "no more than without cutting any off"
        if shape == (9, 4, 3, 3):
            assert (error < of_plain).any()
    else:
        step = {"int8": 0.5 / 127 + 0.004, "fp8": 1 / 16 + 0.004}[kind]
        bound = rows.amax(1) * step
        assert ((back - delta).flatten(1).abs() <= bound[:, None]).all()


@pytest.mark.parametrize(
    "way", quick_for(3, ["svd:60%", "1bit", "svd:3:int4", "fp8", "svd:3", "int8", "int4"])
)
def test_a_compressed_version_is_drawn_with_and_exported(taught: Taught, way: str) -> None:
    concept = taught.registry.show("rex")
    before = taught.drawn()
    number = compressed(taught, way)
    made = taught.registry.show("rex").versions
    sizes = [version.artifacts[0].bytes for version in made]
    assert (number, len(made)) == (2, 2)
    assert sizes[1] < sizes[0]
    assert made[0] == concept.versions[0], "the original stays"
    assert made[1].run == made[0].run
    event = taught.registry.history("rex")[-1].detail
    assert (event["compressed_from"], event["to"]) == (1, way)
    state, metadata = read_adapter(taught.registry.path_of(made[1].artifacts[0].sha256))
    assert metadata.compressed
    assert metadata.compressed.sha256 == made[0].artifacts[0].sha256
    change = WeightDelta.from_state(state)
    drawn = taught.drawn()
    assert np.abs(drawn - before).mean() > 0
    if way.startswith("svd"):
        assert not change.deltas
        taught.export("lora-kohya")
        taught.export("lora-diffusers", "other.safetensors")
        return
    taught.export("diff")
    whole = change.with_whole_products()
    written = load_file(taught.folder / "rex.safetensors")
    assert len(written) == len(whole.deltas)
    total = sum(float(each.double().square().sum()) for each in whole.deltas.values())
    of_file = sum(float(each.double().square().sum()) for each in written.values())
    assert of_file == pytest.approx(total, rel=1e-5)
    with pytest.raises(InvalidInput, match="a LoRA cannot hold"):
        taught.export("lora-kohya", "no.safetensors")


def test_more_is_kept_the_more_is_stored(taught: Taught) -> None:
    change = WeightDelta.from_state(taught.deltas())
    kept = [compress(change, Way.parse(way))[1] for way in ("1bit", "int4", "fp8", "int8")]
    assert 0.5 < kept[0] < 0.7, "the share of normal numbers that signs keep is 2 / π"
    assert sorted({*kept}) == kept
    assert kept[-1] < 1
    by_rank = [compress(change, Way.parse(f"svd:{rank}"))[1] for rank in (1, 4, 8)]
    assert by_rank == sorted(by_rank)
    state, kept_by_share = compress(change, Way.parse("svd:50%"))
    assert kept_by_share == pytest.approx(0.5, abs=0.01)
    by_share = WeightDelta.from_state(state)
    assert len({len(down) for _, down in by_share.factors.values()}) > 1, "ranks of their own"


def test_factors_in_few_bits_take_less_and_keep_nearly_as_much(taught: Taught) -> None:
    change = WeightDelta.from_state(taught.deltas())
    (whole, kept), (small, less), (_, near) = (
        compress(change, Way.parse(f"svd:4{bits}")) for bits in ("", ":int4", ":int8")
    )
    sizes = [sum(each.nbytes for each in state.values()) for state in (whole, small)]
    assert sizes[1] < 0.45 * sizes[0], "a quarter, and scales of the tiny model's short rows"
    assert kept - 0.05 < less < near < kept
    lost = total = 0.0
    factors = WeightDelta.from_state(small).factors
    for name, delta in change.deltas.items():
        rest = delta.float()
        total += float(rest.square().sum())
        if name in factors:
            up, down = factors[name]
            rest = rest - (up @ down.flatten(1)).reshape(rest.shape)
        lost += float(rest.square().sum())
    assert less == pytest.approx(1 - lost / total, abs=1e-6)


@pytest.mark.parametrize(
    "text", ["svd", "svd:0", "svd:100%", "svd:9999", "2bit", "SVD:4", "svd:4:fp8", "svd:4:", ""]
)
def test_what_is_no_way_is_told(text: str) -> None:
    with pytest.raises(InvalidInput, match="no way to compress"):
        Way.parse(text)


def test_a_word_that_is_no_alias_is_told_before_anything_is_read(
    taught: Taught, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = "conceptry.adapters.compression.read_adapter"
    monkeypatch.setattr(read, lambda _: pytest.fail("it was read"))
    (version,) = taught.registry.show("rex").versions
    concept, way = taught.registry.show("rex"), Way.parse("1bit")
    with pytest.raises(InvalidInput, match="would be taken for a version number"):
        compress_version(taught.registry, concept, version, way, alias="2")


def test_what_cannot_be_compressed_is_told(taught: Taught) -> None:
    compressed(taught, "1bit")
    with pytest.raises(InvalidInput, match="compressed already"):
        compressed(taught, "fp8", 2)
    taught.add(taught.vectors(2) | taught.factors())
    with pytest.raises(InvalidInput, match="nothing to compress"):
        compressed(taught, "fp8", 3)
    assert len(taught.registry.show("rex").versions) == 3


def _renamed(state: dict[str, torch.Tensor], name: str, to: str) -> dict[str, torch.Tensor]:
    return {to if each == name else each: tensor for each, tensor in state.items()}


def test_what_is_in_few_bits_without_saying_so_is_not_compressed_again(taught: Taught) -> None:
    small, _ = compress(WeightDelta.from_state(taught.deltas()), Way.parse("svd:2:int4"))
    odd = {"delta.conv_in.bias": taught.deltas()["delta.conv_in.bias"]}
    taught.add(taught.vectors(2) | small | odd)
    with pytest.raises(InvalidInput, match="nothing to compress"):
        compressed(taught, "svd:2", 2)


def test_differences_that_16_bits_cannot_hold_are_refused(taught: Taught) -> None:
    large = {name: each.float() * 1e30 for name, each in taught.deltas().items()}
    taught.add(taught.vectors(2) | large)
    for way in ("svd:2", "svd:2:int4"):
        with pytest.raises(InvalidWeights):
            compressed(taught, way, 2)
    assert len(taught.registry.show("rex").versions) == 2


@pytest.mark.parametrize("way", ["svd:4", "svd:64", "svd:99%", "svd:4:int4", "int8"])
def test_no_more_than_all_is_kept(way: str) -> None:
    random = torch.Generator().manual_seed(0)
    for size in (4, 16, 64):
        first = torch.full((size, size), 65504.0).half()
        for delta in (first, torch.randn(size, size, generator=random).half()):
            assert compress(WeightDelta({"a": delta}), Way.parse(way))[1] <= 1


def test_factors_in_few_bits_that_do_not_fit_are_refused(taught: Taught, tmp_path: Path) -> None:
    compressed(taught, "svd:2:int4")
    artifact = taught.registry.show("rex").versions[1].artifacts[0]
    state, metadata = read_adapter(taught.registry.path_of(artifact.sha256))
    name = next(each for each in state if each.startswith("int4.up.")).removeprefix("int4.up.")
    for odd in (
        {each: state[each] for each in state if each != f"scale.up.{name}"},
        {each: state[each] for each in state if not each.endswith(f".down.{name}")},
        state | {f"up.{name}": torch.zeros(2, 2), f"down.{name}": torch.zeros(2, 2)},
        state | {f"delta.{name}": torch.zeros(2, 2)},
        state | {f"int8.up.{name}": state[f"int4.up.{name}"].to(torch.int8)},
        state | {f"int4.up.{name}": state[f"int4.up.{name}"].float()},
        state | {f"scale.up.{name}": torch.ones(5).bfloat16()},
        state | {f"scale.up.{name}": torch.ones(1, 2).bfloat16()},
        state | {f"delta.{name}-other": torch.zeros(3, 0)},
        _renamed(state, f"int4.up.{name}", f"sign.up.{name}"),
        state
        | {
            f"int4.up.{name}": torch.zeros(513, 8, dtype=torch.uint8),
            f"scale.up.{name}": torch.ones(1026).bfloat16(),
        },
    ):
        write_adapter(tmp_path / "odd.safetensors", odd, metadata)
        with pytest.raises(InvalidWeights):
            read_adapter(tmp_path / "odd.safetensors")
    for odd in (torch.ones(5), torch.ones(1, 2)):
        with pytest.raises(InvalidWeights, match="another shape"):
            WeightDelta.from_state(state | {f"scale.up.{name}": odd.bfloat16()})
    for odd in (state[f"int4.up.{name}"][:, :-1], state[f"int4.up.{name}"][..., None]):
        change = WeightDelta.from_state(state | {f"int4.up.{name}": odd})
        with pytest.raises(InvalidWeights, match="another shape"):
            change.check(taught.base.backbone)


@pytest.mark.parametrize("way", ["svd:2", "svd:2:int4", "svd:30%:int8", "1bit"])
def test_what_is_a_lora_already_stays_as_it_is_beside_what_is_compressed(
    taught: Taught, way: str
) -> None:
    directed = taught.directed()
    own = {name.partition(".")[2] for name in directed}
    mixed = directed | {
        name: each for name, each in taught.deltas().items() if name.partition(".")[2] not in own
    }
    state, _ = compress(WeightDelta.from_state(mixed), Way.parse(way))
    assert directed.keys() <= state.keys()
    for name, tensor in directed.items():
        torch.testing.assert_close(state[name].float(), tensor.float(), rtol=1e-3, atol=1e-3)
    assert len(WeightDelta.from_state(state).names) > len(own)


def test_a_lora_with_magnitudes_beside_differences_is_no_lora_of_other_tools(
    taught: Taught,
) -> None:
    directed = taught.directed()
    own = {name.partition(".")[2] for name in directed}
    others = {k: v for k, v in taught.deltas().items() if k.partition(".")[2] not in own}
    taught.add(taught.vectors(2) | directed | others)
    with pytest.raises(InvalidInput, match="has magnitudes") as refused:
        taught.export("svd:4")
    assert "diff (without loss)" in (refused.value.hint or "")
    assert "lora-" not in (refused.value.hint or "").rpartition("--format")[2]


def test_a_file_whose_parts_do_not_fit_is_refused(taught: Taught, tmp_path: Path) -> None:
    compressed(taught, "int8")
    artifact = taught.registry.show("rex").versions[1].artifacts[0]
    state, metadata = read_adapter(taught.registry.path_of(artifact.sha256))
    name = next(each for each in state if each.startswith("int8.")).partition(".")[2]
    for odd in (
        {each: state[each] for each in state if each != f"scale.{name}"},
        state | {f"delta.{name}": torch.zeros(2, 2)},
        state | {f"int8.{name}": state[f"int8.{name}"].float()},
    ):
        write_adapter(tmp_path / "odd.safetensors", odd, metadata)
        with pytest.raises(InvalidWeights):
            read_adapter(tmp_path / "odd.safetensors")
    for odd in (state[f"scale.{name}"][:-1], state[f"scale.{name}"][None]):
        change = WeightDelta.from_state(state | {f"scale.{name}": odd})
        with pytest.raises(InvalidWeights, match="another shape"):
            change.check(taught.base.backbone)
