"""The Triton kernels compile for GPUs that are not here, and keep everything in registers."""

import os
import subprocess
import sys

import pytest
from program import ROOT


@pytest.mark.long
@pytest.mark.parametrize("architecture", ["80", "90"])
def test_no_kernel_spills(architecture: str) -> None:
    pytest.importorskip("triton")
    environment = {name: os.environ[name] for name in os.environ if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, ROOT / "bench" / "kernel_resources.py", "--check", architecture],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert {line.split("\t")[0] for line in done.stdout.splitlines()} == {f"sm_{architecture}"}
