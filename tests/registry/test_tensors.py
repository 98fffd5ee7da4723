"""Weights files that are sound are accepted, whatever they hold. The others: `test_hostile.py`."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conceptry.registry import (
    InvalidImage,
    InvalidInput,
    InvalidWeights,
    NotFound,
    documents,
    images,
    tensors,
)
from conceptry.registry.tensors import Tensor, check_weights
from hypothesis import given
from hypothesis import strategies as st
from raw_safetensors import ITEM_BYTES, raw_safetensors
from safetensors.numpy import save, save_file


def checked(path: Path, data: bytes) -> dict[str, Tensor]:
    path.write_bytes(data)
    return check_weights(path)


@pytest.mark.parametrize("dtype", ITEM_BYTES)
def test_every_dtype_is_told_by_its_name(tmp_path: Path, dtype: str) -> None:
    data = raw_safetensors({"a": (dtype, [2, 3], bytes(6 * ITEM_BYTES[dtype]))})
    assert checked(tmp_path / "w", data) == {"a": Tensor(dtype, (2, 3))}


def test_several_tensors_are_told(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_file({"b": np.ones((2, 3), np.float16), "a": np.ones(4, np.int64)}, path)
    assert check_weights(path) == {"a": Tensor("I64", (4,)), "b": Tensor("F16", (2, 3))}


@pytest.mark.parametrize("shape", [[], [0], [3, 0], [1, 1, 1, 1]])
def test_odd_shapes_are_sound(tmp_path: Path, shape: list[int]) -> None:
    data = bytes(4 * int(np.prod(shape)))
    assert checked(tmp_path / "w", raw_safetensors({"a": ("F32", shape, data)})) == {
        "a": Tensor("F32", tuple(shape))
    }


def test_tensor_names_may_be_in_any_script(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_file({"größe.犬": np.ones(2, np.float32)}, path)
    assert check_weights(path) == {"größe.犬": Tensor("F32", (2,))}


@pytest.mark.parametrize("padding", range(0, 256, 8))
def test_a_header_of_any_length_is_sound(tmp_path: Path, padding: int) -> None:
    data = save({"a": np.ones(3, np.float32)}, metadata={"note": "x" * padding})
    assert checked(tmp_path / "w", data) == {"a": Tensor("F32", (3,))}


EXTREMES = {
    "F64": np.array([np.finfo(np.float64).max, np.finfo(np.float64).smallest_subnormal, -0.0]),
    "F32": np.array(
        [np.finfo(np.float32).max, np.finfo(np.float32).smallest_subnormal, -0.0], "<f4"
    ),
    "F16": np.array(
        [np.finfo(np.float16).max, np.finfo(np.float16).smallest_subnormal, -0.0], "<f2"
    ),
    "BF16": np.array([0x7F7F, 0x0001, 0x8000], "<u2"),
}


@pytest.mark.parametrize("dtype", EXTREMES)
def test_the_largest_and_smallest_numbers_are_finite(tmp_path: Path, dtype: str) -> None:
    data = raw_safetensors({"a": (dtype, [3], EXTREMES[dtype].tobytes())})
    assert checked(tmp_path / "w", data)


def test_integers_of_any_bits_are_finite(tmp_path: Path) -> None:
    data = raw_safetensors({"a": ("I32", [2], b"\xff" * 8), "b": ("U8", [8], b"\x7f\x80" * 4)})
    assert checked(tmp_path / "w", data)


@given(bits=st.lists(st.integers(0, 2**16 - 1), min_size=1, max_size=8))
def test_finite_is_what_numpy_calls_finite(
    tmp_path_factory: pytest.TempPathFactory, bits: list[int]
) -> None:
    values = np.array(bits, "<u2")
    path = tmp_path_factory.getbasetemp() / "half.safetensors"
    try:
        checked(path, raw_safetensors({"a": ("F16", [len(bits)], values.tobytes())}))
        found = True
    except InvalidWeights:
        found = False
    assert found == bool(np.isfinite(values.view(np.float16)).all())


@pytest.mark.parametrize("place", range(10))
def test_no_place_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: int
) -> None:
    monkeypatch.setattr(tensors, "_FINITE_CHUNK", 12)  # three values
    values = np.ones((2, 5), np.float32)
    values.flat[place] = np.inf
    parts = {
        "a": ("U8", [3], b"abc"),
        "b": ("F32", [2, 5], values.tobytes()),
        "c": ("F32", [1], bytes(4)),
    }
    with pytest.raises(InvalidWeights, match="tensor b has values that are not finite"):
        checked(tmp_path / "w", raw_safetensors(parts))


def test_expected_tensors_are_accepted(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_file({"a": np.ones((2, 3), np.float32)}, path)
    expected = {"a": Tensor("F32", (2, 3))}
    assert check_weights(path, expected) == expected


@pytest.mark.parametrize("what", ["nothing", "a folder"])
def test_a_path_that_is_no_file_is_named(tmp_path: Path, what: str) -> None:
    path = tmp_path / "gone.safetensors"
    if what == "a folder":
        path.mkdir()
    with pytest.raises((InvalidWeights, NotFound), match=r"gone\.safetensors"):
        check_weights(path)


def test_a_side_that_is_no_number_is_refused(tmp_path: Path) -> None:
    header = b'{"t": {"dtype": "F32", "shape": [1e999], "data_offsets": [0, 0]}}'
    (tmp_path / "odd.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(InvalidWeights, match="its header cannot be read"):
        tensors.read_header(tmp_path / "odd.safetensors")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no named pipes")
@pytest.mark.parametrize(
    ("read", "error"),
    [
        (tensors.read_header, InvalidWeights),
        (documents.read_text, InvalidInput),
        (images.read_file, InvalidImage),
    ],
)
def test_nobody_waits_for_who_writes_into_a_pipe(
    tmp_path: Path, read: Callable[[Path], object], error: type[Exception]
) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(error, match="not a regular file"):
        read(tmp_path / "pipe")
