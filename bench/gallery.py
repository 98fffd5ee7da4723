"""What a gallery of 1,000 concepts costs: to write, to write again, to open, and to search.

    python bench/gallery.py              # some minutes on two cores; needs Chromium

A registry is made of concepts with three photos, a version with scores, and four pictures each, 256
pixels wide, all different. The gallery is written, then again with nothing changed, then again with
one concept changed and one removed. Chromium opens the page from the disk, at the size of a desk
and of a phone, in turn, each time with a new profile: `open` is the time from the start of the
navigation to the end of the load event and of the first frame after that, `search` from an input to
the end of the next frame, for words that fit all, some and none. Medians are reported, of a search
the longest too. Writes bench/results/gallery.json.
"""

import argparse
import json
import re
import shutil
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from conceptry.evaluation.gallery import GalleryRequest, write_gallery
from conceptry.generation.provenance import save_picture
from conceptry.registry import Registry
from environment import describe
from PIL import Image
from safetensors.numpy import save_file

RESULTS = Path(__file__).parent / "results" / "gallery.json"
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser")
SIZES = {"desk": "1280,900", "phone": "390,844"}
SIDE, PHOTOS, PICTURES = 256, 3, 4
CATEGORIES = ("dog", "cat", "teapot", "teddy bear", "face")
SEARCHES = ("", "d", "dog", "concept-07", "beach dog", "nothing has this")
SCORES = {"both": 0.6, "clip_t": 0.3, "dino": 0.7}

MEASURE = """
<script>
const shown = () => new Promise(done => requestAnimationFrame(() => setTimeout(done)))
onload = async () => {
  await new Promise(done => setTimeout(done))
  await shown()
  const open = performance.now(), searches = []
  for (const text of SEARCHES) {
    const words = document.getElementById("words"), began = performance.now()
    words.value = text
    words.dispatchEvent(new Event("input"))
    await shown()
    searches.push([text, performance.now() - began, document.getElementById("found").value])
  }
  console.log("measured " + JSON.stringify({ open, searches }))
}
</script></body>"""


def picture(random: np.random.Generator) -> Image.Image:
    """Soft colours with some grain, which take as many bytes as a photo."""
    coarse = Image.fromarray(random.integers(0, 256, (8, 8, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((SIDE, SIDE), Image.Resampling.BICUBIC), dtype=np.int16)
    grain = random.integers(-12, 13, (SIDE, SIDE, 1))
    return Image.fromarray((smooth + grain).clip(0, 255).astype(np.uint8))


def make_registry(registry: Registry, place: Path, count: int) -> None:
    """Concepts with all that a gallery shows."""
    random = np.random.default_rng(0)
    weights = place / "adapter.safetensors"
    for number in range(count):
        name, category = f"concept-{number:04}", CATEGORIES[number % len(CATEGORIES)]
        photos = place / "photos" / name
        photos.mkdir(parents=True)
        for i in range(PHOTOS):
            picture(random).save(photos / f"{i}.jpg", quality=85)
        registry.add(name, [photos], category=category, tags=[f"set-{number % 20}"], notes="a note")
        save_file({"token": random.standard_normal((4, 768), dtype=np.float32)}, weights)
        version = registry.add_version(name, {"adapter.safetensors": weights}, alias="best")
        scores = {key: {"mean": value, "low": 0.0, "high": 1.0} for key, value in SCORES.items()}
        registry.add_evaluation(
            name,
            version,
            suite="living",
            config={"chosen_by": ["clip_t", "dino"]},
            scores={"scores": scores, "prompts": [], "others": []},
        )
        for seed in range(PICTURES):
            prompt = f"a photo of <{name}> on the {('beach', 'moon')[seed % 2]}"
            drawn = {"prompt": prompt, "seed": seed, "base": "sd21", "base_sha256": "0" * 64}

            def record(sha256: str, drawn: Any = drawn, key: Any = (name, version)) -> None:
                registry.add_generation(sha256, **drawn, settings={}, versions=[key])

            save_picture(picture(random), place / "pictures", name, drawn, record=record)


def written(registry: Registry, place: Path) -> dict[str, Any]:
    """How long it takes, and what it did."""
    began = time.perf_counter()
    request = GalleryRequest(pictures=[place / "pictures"])
    report = write_gallery(registry, request, place / "gallery")
    seconds = round(time.perf_counter() - began, 2)
    return {"seconds": seconds, "made": report.made, "removed": report.removed}


def opened(folder: Path, profile: Path, size: str) -> dict[str, Any]:
    """What Chromium measures in the page, in ms."""
    text = (folder / "gallery.html").read_text(encoding="utf-8")
    probe = folder / "probe.html"
    script = MEASURE.replace("SEARCHES", json.dumps(SEARCHES))
    probe.write_text(text.replace("</body>", script), encoding="utf-8")
    command = [
        str(BROWSER),
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--no-first-run",
        "--disable-background-networking",
        "--enable-logging=stderr",
        "--remote-debugging-port=0",  # or it would end as soon as the page is loaded
        f"--user-data-dir={profile}",
        f"--window-size={size}",
        probe.as_uri(),
    ]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as browser:
        try:
            assert browser.stderr is not None
            for line in browser.stderr:
                if said := re.search(r'CONSOLE.*?"measured (.*)", source:', line):
                    return json.loads(said[1])
        finally:
            browser.kill()
            probe.unlink()
    raise RuntimeError("the page said nothing")


def measure(place: Path, count: int, rounds: int) -> dict[str, Any]:
    with Registry.open(place / "concepts.db", create=True) as registry:
        make_registry(registry, place, count)
        result: dict[str, Any] = {"first": written(registry, place)}
        result["unchanged"] = written(registry, place)
        folder = place / "gallery"
        sizes = [each.stat().st_size for each in (folder / "thumbnails").glob("*.webp")]
        result["bytes"] = {
            "page": (folder / "gallery.html").stat().st_size,
            "thumbnails": sum(sizes),
        }
        runs: dict[str, list[dict[str, Any]]] = {name: [] for name in SIZES}
        for number in range(rounds):
            for name, size in SIZES.items():
                runs[name].append(opened(folder, place / f"profile-{name}-{number}", size))
        for name, each in runs.items():
            searches = [ms for run in each for _, ms, _ in run["searches"]]
            result[name] = {
                "open_ms": round(statistics.median(run["open"] for run in each)),
                "search_ms": round(statistics.median(searches)),
                "longest_search_ms": round(max(searches)),
                "found": {text: found for text, _, found in each[0]["searches"]},
            }
        registry.edit("concept-0001", notes="another note", tag=["new"])
        registry.remove(["concept-0002"])
        result["one_changed"] = written(registry, place)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--concepts", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--keep", type=Path, help="a new folder for all of it, which stays")
    options = parser.parse_args()
    if BROWSER is None:
        raise SystemExit("needs Chromium: apt install chromium")
    with tempfile.TemporaryDirectory() as temporary:
        place = options.keep or Path(temporary)
        place.mkdir(exist_ok=True)
        found = measure(place, options.concepts, options.rounds)
    document = describe() | {
        "concepts": options.concepts,
        "photos_each": PHOTOS,
        "pictures_each": PICTURES,
        "rounds": options.rounds,
    }
    RESULTS.write_text(json.dumps(document | found, indent=2) + "\n")
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
