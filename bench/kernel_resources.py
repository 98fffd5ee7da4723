"""What the Triton kernels take of a GPU: compiled for it, without one.

    python bench/kernel_resources.py             # writes bench/results/kernel-resources.json
    python bench/kernel_resources.py --check 90  # compiles for sm_90, writes nothing

Every kernel in float16, for the head widths of Stable Diffusion (SD 1.x 40, 80, 160; 2.x and SDXL
64), for sm_80 and sm_90: registers per thread, bytes spilled, shared memory. Exits with 1 if any
kernel spills.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

os.environ.pop("TRITON_INTERPRET", None)

import torch
import triton
from conceptry.kernels import triton_attention, triton_distance
from conceptry.kernels.triton_common import padded_width
from environment import describe
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.compiler import ASTSource

RESULTS = Path(__file__).parent / "results" / "kernel-resources.json"
WIDTHS = (40, 64, 80, 160)
ARCHITECTURES = (80, 90)
FLOATS = {"ACC", "TOP", "TOTAL", "MAPS", "PARTS", "BIAS", "DELTA", "D_MAPS", "OFFSET"}
FLOATS |= {"VALUES", "SLOPE", "WEIGHTS", "TOP_A", "TOTAL_A", "TOP_B", "TOTAL_B", "INNER", "FACTOR"}
SHARED = {"HAS_BIAS": False, "HAS_GROUPS": False, "IS_FIRST": True, "IS_LAST": True}
MOMENTS = {"WANT_MAPS": False, "WANT_MOMENTS": True, "USES_MAPS": False, "USES_MOMENTS": True}
PLAIN = dict.fromkeys(MOMENTS, False)
GROUPS = {"HAS_BIAS": True, "HAS_GROUPS": True}


def variants() -> Iterator[tuple[str, Any, dict[str, bool], Any]]:
    """Name, kernel, constants and block sizes of each."""
    attention, distance = triton_attention, triton_distance
    kinds = {"plain": PLAIN, "moments": MOMENTS}
    kinds |= {f"{name} groups": own | GROUPS for name, own in kinds.items()}
    for name, constants in kinds.items():
        groups, columns = "groups" in name, "moments" in name
        forward = partial(attention.forward_blocks, groups=groups)
        backward = partial(attention.backward_blocks, groups=groups, columns=columns)
        for kernel, blocks in (
            (attention._forward, forward),
            (attention._backward_q, backward),
            (attention._backward_kv, backward),
        ):
            yield f"{kernel.__name__.strip('_')} {name}", kernel, SHARED | constants, blocks
    for kernel in (distance._forward, distance._backward_q, distance._backward_k):
        yield f"{kernel.__name__.strip('_')} distance", kernel, {}, attention.backward_blocks


def compile_for(kernel: Any, constants: dict[str, Any], architecture: int) -> Any:
    """Compile with pointers and strides known to be multiples of 16, as they are in practice."""
    signature = {name: _type_of(name, constants) for name in kernel.arg_names}
    aligned = [
        (i,)
        for i, name in enumerate(kernel.arg_names)
        if signature[name].startswith("*") or re.fullmatch(r"[a-z]+_[bhnm]", name)
    ]
    source = ASTSource(
        kernel,
        signature,
        {name: constants[name] for name in kernel.arg_names if name in constants},
        {place: [["tt.divisibility", 16]] for place in aligned},
    )
    options = {key: constants[key] for key in ("num_warps", "num_stages")}
    return triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)


def _type_of(name: str, constants: dict[str, Any]) -> str:
    if name in constants:
        return "constexpr"
    if name == "COLUMNS":
        return "*i64"
    if name == "GROUPS":
        return "*i32"
    if (name.isupper() and len(name) > 1) or name in ("Q", "K", "V"):
        return "*fp32" if name in FLOATS else "*fp16"
    return "fp32" if name.endswith("scale") else "i32"


def resources(compiled: Any, architecture: int) -> dict[str, int]:
    """Registers per thread, bytes spilled per thread and shared memory, as the assembler says."""
    tool = get_ptxas(architecture).path
    arch = re.search(r"^\.target (\w+)", compiled.asm["ptx"], re.MULTILINE)
    assert arch, "no target in the assembly"
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "kernel.ptx"
        source.write_text(compiled.asm["ptx"])
        told = subprocess.run(
            [tool, "-v", f"-arch={arch[1]}", source, "-o", source.with_suffix(".cubin")],
            capture_output=True,
            text=True,
            check=True,
        ).stderr
    registers = re.search(r"Used (\d+) registers", told)
    spilled = re.findall(r"(\d+) bytes spill (?:stores|loads)", told)
    assert registers, told
    assert spilled, told
    return {
        "registers": int(registers[1]),
        "spilled_bytes": sum(map(int, spilled)),
        "shared_bytes": compiled.metadata.shared,
    }


def table(architectures: Sequence[int], widths: Sequence[int]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for architecture in architectures:
        for width in widths:
            for name, kernel, constants, blocks in variants():
                chosen = blocks(width, torch.float16)
                sizes = {"D": width, "BD": padded_width(width), **chosen.options()}
                compiled = compile_for(kernel, constants | sizes, architecture)
                row = {"architecture": f"sm_{architecture}", "width": width, "kernel": name}
                row |= {"queries": chosen.queries, "keys": chosen.keys}
                row |= {"warps": chosen.num_warps, "stages": chosen.num_stages}
                rows.append(row | resources(compiled, architecture))
                print(*rows[-1].values(), sep="\t", flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", type=int, choices=ARCHITECTURES, help="of one GPU, writing none")
    options = parser.parse_args()
    rows = table([options.check] if options.check else ARCHITECTURES, WIDTHS)
    if not options.check:
        document = {"environment": describe(), "triton": triton.__version__, "kernels": rows}
        RESULTS.write_text(json.dumps(document, indent=1) + "\n")
    spilling = [row for row in rows if row["spilled_bytes"]]
    for row in spilling:
        print("spills:", *row.values(), file=sys.stderr)
    sys.exit(bool(spilling))


if __name__ == "__main__":
    main()
