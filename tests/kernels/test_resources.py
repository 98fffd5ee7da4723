"""The Triton kernels compile for GPUs that are not here, and keep everything in registers."""

import os
import subprocess
import sys

import pytest
from program import ROOT


@pytest.mark.parametrize(
    ("options", "architectures"),
    [
        pytest.param(["--quick"], {"sm_80"}, id="quick", marks=pytest.mark.long),
        pytest.param(["--check"], {"sm_80", "sm_90"}, id="all", marks=pytest.mark.long),
    ],
)
def test_no_kernel_spills(options: list[str], architectures: set[str]) -> None:
    pytest.importorskip("triton")
    environment = {name: os.environ[name] for name in os.environ if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, ROOT / "bench" / "kernel_resources.py", *options],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert {line.split("\t")[0] for line in done.stdout.splitlines()} == architectures
