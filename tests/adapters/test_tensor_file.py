"""Files of tensors are what safetensors itself would write."""

from pathlib import Path

import pytest
import torch
from conceptry.adapters import tensor_file
from conceptry.adapters.tensor_file import write_tensors
from safetensors.torch import load_file, save

TENSORS = {
    "b.half": torch.arange(6, dtype=torch.float16).reshape(2, 3),
    "a.ünï": torch.arange(4, dtype=torch.bfloat16),
    "none": torch.zeros(0, 3),
    "one": torch.tensor(7),
    "turned": torch.arange(6.0).reshape(2, 3).T,
    "yes": torch.tensor([True, False, True]),
}


def test_the_bytes_are_those_of_the_library(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_tensors(path, TENSORS, {"about": 'a "b"\n'})
    whole = {name: tensor.contiguous() for name, tensor in TENSORS.items()}
    assert path.read_bytes() == save(whole, {"about": 'a "b"\n'})


@pytest.mark.parametrize("dtype", tensor_file._TYPES, ids=str)
def test_each_type_is_read_again(tmp_path: Path, dtype: torch.dtype) -> None:
    path = tmp_path / "a.safetensors"
    value = torch.tensor([0, 1, 2], dtype=torch.float32).to(dtype)
    write_tensors(path, {"a": value}, {})
    found = load_file(path)["a"]
    assert found.dtype == dtype
    assert torch.equal(found, value)
