"""What only a CUDA GPU can settle, as one command that fits into minutes and loses nothing.

    python bench/on_gpu.py --pack                      # wheels that such a machine may lack
    python bench/on_gpu.py --minutes 8 --out runs/gpu  # the open items in order
    python bench/on_gpu.py --minutes 2 --out runs/try --tiny      # rehearsal, on a CPU as well

Each item runs in a process of its own for at most its share of the time that is left, and writes
`DIR/ITEM.json` as soon as it knows something: what a cut leaves is found again by the next run,
which measures only what is missing. `gpu_items.py` says what the items are.
"""

import argparse
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path

os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"  # asking otherwise forbids CUDA after a fork

ROOT = Path(__file__).parent.parent
WHEELS = ROOT / "wheels"
NEEDED = (
    "annotated-types",
    "diffusers",
    "filelock",
    "importlib_metadata",
    "lazy-importer",
    "pillow",
    "pydantic",
    "pydantic_core",
    "requests",
    "charset-normalizer",
    "urllib3",
    "SQLAlchemy",
    "sqlmodel",
    "typing-inspection",
)
PACKAGES = (
    "adapters",
    "cli",
    "evaluation",
    "generation",
    "kernels",
    "methods",
    "models",
    "registry",
    "training",
)
THERE = "/tmp/site"
TO_END = 10.0
"""Seconds that an item has to end in once its time is over."""


def pack(python: str) -> None:
    """Download what a machine with torch and transformers may lack; ours travels as it is."""
    shutil.rmtree(WHEELS, ignore_errors=True)
    pinned = (ROOT / "constraints.txt").read_text().split()
    pins = {pin.partition("==")[0].lower().replace("_", "-"): pin for pin in pinned if "==" in pin}
    pip = [sys.executable, "-m", "pip", "--quiet"]
    platforms = [f"manylinux_2_{n}_x86_64" for n in (28, 27, 17)] + ["manylinux2014_x86_64"]
    only = ["--no-deps", "--only-binary=:all:", "--python-version", python]
    for name in NEEDED:
        words = [word for each in platforms for word in ("--platform", each)]
        pin = pins[name.lower().replace("_", "-")]
        subprocess.run([*pip, "download", *only, *words, "-d", WHEELS, pin], check=True)
    subprocess.run([*pip, "wheel", "--no-deps", "-w", WHEELS, ROOT], check=True)
    print(
        f"{len(list(WHEELS.iterdir()))} wheels in {WHEELS}; there: pip install --no-deps wheels/*"
    )


def run(out: Path, minutes: float, only: list[str], *, is_tiny: bool) -> None:
    """Run the items that are not settled, one after another, until the time is over."""
    from gpu_items import ITEMS, Report

    end = time.monotonic() + 60 * minutes
    out = out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    context = multiprocessing.get_context("fork")
    reports = {item.name: Report(out / f"{item.name}.json") for item in ITEMS}
    open_items = [
        item
        for item in ITEMS
        if not reports[item.name].get("settled") and (not only or item.name in only)
    ]
    for number, item in enumerate(open_items):
        report = reports[item.name]
        left = end - time.monotonic() - TO_END
        of_those_left = item.share / sum(each.share for each in open_items[number:])
        seconds = min(left, max(item.share * 60 * minutes, of_those_left * left))
        if seconds < 5:
            break
        started = time.monotonic()
        child = context.Process(target=_child, args=(item, report, seconds, is_tiny))
        child.start()
        child.join(seconds + TO_END)
        if child.is_alive():
            os.killpg(child.pid or 0, signal.SIGKILL)
            child.join()
        took = time.monotonic() - started
        state = "settled" if report.get("settled") else f"not settled (exit {child.exitcode})"
        print(f"{item.name}: {state}, {took:.0f} s of {seconds:.0f}", flush=True)


def _child(item: object, report: object, seconds: float, is_tiny: bool) -> None:
    from gpu_items import Item, Report, Time

    assert isinstance(item, Item)
    assert isinstance(report, Report)
    os.setpgid(0, 0)
    try:
        report.put("settled", item.measure(report, Time(seconds), is_tiny))
        report.put("error", None)
    except Exception:  # noqa: BLE001 (the others go on)
        report.put("error", traceback.format_exc(limit=-6))
        traceback.print_exc()
        raise SystemExit(1) from None


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pack", action="store_true")
    parser.add_argument("--python", default="3.12", help="of the machine that is packed for")
    parser.add_argument("--minutes", type=float, default=8)
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"))
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--tiny", action="store_true", help="small shapes, to rehearse")
    options = parser.parse_args()
    if options.pack:
        pack(options.python)
    else:
        run(options.out, options.minutes, options.only, is_tiny=options.tiny)


if __name__ == "__main__":
    main()
