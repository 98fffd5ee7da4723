"""What large photos and their crops take: CPU seconds and peak memory, each in its own process.

    python bench/photos.py

read        a photo as `concept add` looks at it, and as training reads it
crop        one crop of 1024 pixels of a photo of 9400x9400 that is in memory, the mean of 16
pool        64 crops of 512 pixels from five photos of 12 megapixels, decoded one at a time

Peak memory is what the process took beyond its imports; the files' own bytes are part of it. On
Linux alone, where a process can tell it.
Writes bench/results/photos.json.
"""

import argparse
import io
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from environment import describe
from PIL import Image

RESULTS = Path(__file__).parent / "results" / "photos.json"
MEGAPIXELS = {12: (4000, 3000), 108: (12_032, 9024), 200: (16_320, 12_240)}

_BEGIN = """
import json, sys, time
import imagehash, scipy.fftpack, PIL.ImageCms
from conceptry.registry import images
from conceptry.training.crops import Photos, needed_side, varied_crops
from conceptry.methods.settings import Augmentation
def peak():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
paths, before, start = sys.argv[1:], peak(), time.process_time()
times = 1
"""
_END = """
seconds = (time.process_time() - start) / times
print(json.dumps({"cpu seconds": round(seconds, 3), "MB": round((peak() - before) / 1024)}))
"""
PROGRAMS = {
    "look": """
with images.strict_decoding():
    images.inspect(open(paths[0], "rb").read(), paths[0])
""",
    "read for 512": """
side = needed_side(512, Augmentation())
with images.strict_decoding():
    images.read_photo(open(paths[0], "rb").read(), paths[0], at_least=side)
""",
    "crop": """
photo = PIL.Image.new("RGB", (9400, 9400), "brown")
photo.putpixel((1, 1), (0, 0, 0))
before, start, times = peak(), time.process_time(), 16
varied_crops([photo], 1024, Augmentation(crops=times, rotation_probability=1.0), 0)
""",
    "pool": """
side = needed_side(512, Augmentation())
def reader(path):
    return lambda: images.read_photo(open(path, "rb").read(), path, at_least=side)
varied_crops(Photos([reader(path) for path in paths]), 512, Augmentation(), 0)
""",
}


def measured(program: str, *paths: Path) -> dict[str, Any]:
    """CPU seconds and memory of one of `PROGRAMS`, or why it refused."""
    done = subprocess.run(
        [sys.executable, "-c", _BEGIN + PROGRAMS[program] + _END, *map(str, paths)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        return {"refused": done.stderr.strip().splitlines()[-1].rpartition(": ")[2]}
    return json.loads(done.stdout)


def draw_photos(folder: Path) -> Iterator[tuple[str, Path]]:
    """Photos of several sizes and kinds, by name."""
    tile = Image.effect_noise((544, 512), 60).resize((272, 256)).convert("RGB")
    for megapixels, size in MEGAPIXELS.items():
        photo = Image.new("RGB", size)
        for top in range(0, size[1], tile.height):
            for left in range(0, size[0], tile.width):
                photo.paste(tile, (left, top))
        for kind, options in {
            "JPEG": {"quality": 85},
            "progressive JPEG": {"quality": 85, "progressive": True},
            "PNG": {"compress_level": 1},
        }.items():
            path = folder / f"{megapixels}-{kind.replace(' ', '-')}"
            buffer = io.BytesIO()
            photo.save(buffer, kind.split()[-1], **options)
            path.write_bytes(buffer.getvalue())
            yield f"{megapixels} megapixels, {kind}", path


def main() -> None:
    """Measure, print and keep."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.parse_args()
    result: dict[str, Any] = {"read": {}}
    with tempfile.TemporaryDirectory() as temporary:
        for name, path in draw_photos(Path(temporary)):
            programs = ("look", "read for 512")
            result["read"][name] = {each: measured(each, path) for each in programs}
            print(name, result["read"][name], flush=True)
            if name == "12 megapixels, JPEG":
                result["pool"] = measured("pool", *[path] * 5)
                print("pool", result["pool"], flush=True)
            path.unlink()
        result["crop"] = measured("crop")
        print("crop", result["crop"], flush=True)
    RESULTS.write_text(json.dumps(describe() | result, indent=2) + "\n")


if __name__ == "__main__":
    main()
