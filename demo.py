"""From five pictures of a dog to new ones of it, by the commands that you would type.

    python demo.py [--out FOLDER] [--base BASE] [words for concept train]

Everything lands in FOLDER (build/demo): a registry, the pictures, demo.png with the photos above
what was drawn and, on the miniature, report/report.html with scores. Interrupted, it goes on where
it was; finished, it only draws again.
"""

import argparse
import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from conceptry.generation.pictures import contact_sheet
from conceptry.models.bases import DEFAULT_BASE
from conceptry.models.miniature.world.sample import CATEGORY
from conceptry.models.miniature.world.sample import FOLDER as PHOTOS
from PIL import Image

NAME = "rex"
PROMPTS = (
    "a photo of <rex> on the beach",
    "a photo of <rex> in space",
    "a photo of <rex> wearing a hat in the snow",
    "a photo of <rex> wearing sunglasses in the city",
    "a photo of <rex> on a skateboard in the kitchen",
    "a photo of <rex> under an umbrella in the forest",
    "a photo of <rex> next to a red house",
    "a pencil sketch of <rex>",
)
PER_PROMPT = 4
SCORED = ("--seeds", "2")


def main() -> None:
    """Add, train, generate, and put it all on one sheet."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("build/demo"))
    parser.add_argument("--base", default="miniature")
    options, training_words = parser.parse_known_args()
    folder: Path = options.out
    folder.mkdir(parents=True, exist_ok=True)
    registry = ["--registry", str(folder / "concepts.db")]
    base = ["--base", options.base]

    concept = _known(registry)
    if concept is None:
        _concept("add", NAME, str(PHOTOS), "--category", CATEGORY, *registry)
        concept = _known(registry) or {}
    if not concept["versions"]:
        goes_on = ["--resume"] if concept["runs"] else training_words
        _concept("train", NAME, *base, *goes_on, *registry)
    pictures = folder / "pictures"
    shutil.rmtree(pictures, ignore_errors=True)
    prompts = folder / "prompts.txt"
    prompts.write_text("\n".join(PROMPTS) + "\n")
    words = ["--prompts", str(prompts), "-n", str(PER_PROMPT), "--seed", "0"]
    drawn = _concept("generate", *words, "--out", str(pictures), *base, *registry, "--json")
    sheet = folder / "demo.png"
    _save_sheet(json.loads(drawn)["images"], sheet)
    print(f"\nthe photos, and what was drawn: {sheet}")
    if options.base == DEFAULT_BASE:  # for others, encoders would have to be fetched
        report = folder / "report"
        _concept("eval", NAME, *SCORED, "--report", str(report), *base, *registry, "--quiet")
        print(f"scores, and the worst pictures first: {report / 'report.html'}")
    print(_farewell(sheet, base if options.base != DEFAULT_BASE else []))


def _farewell(sheet: Path, base: Sequence[str]) -> str:
    """Where the picture is, and what to type next."""
    command = Path(sys.executable).with_name("concept")
    here = Path.cwd()
    start = str(command.relative_to(here) if command.is_relative_to(here) else command)
    commands = (
        ("add", "mia", "PHOTOS", "--category", "cat"),
        ("train", "mia", *base),
        ("generate", "a photo of <mia> on the beach", *base),
    )
    typed = [" ".join(map(_quoted, (start, *words))) for words in commands]
    hint = "" if base else "\n(for real photos, add --base sd21 to the last two, and a GPU)"
    return f"\nlook at {sheet}; then go on with photos of your own:\n" + "\n".join(typed) + hint


def _quoted(word: str) -> str:
    return f'"{word}"' if "<" in word else shlex.quote(word)


def _concept(*words: str) -> str:
    """Run a command as one would type it; ends the program if it fails."""
    print(f"$ concept {shlex.join(words)}", flush=True)
    as_json = "--json" in words
    done = subprocess.run(
        [sys.executable, "-m", "conceptry.cli", *words],
        stdout=subprocess.PIPE if as_json else None,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(done.returncode)
    return done.stdout or ""


def _known(registry: Sequence[str]) -> dict[str, Any] | None:
    """What the registry knows of the concept."""
    done = subprocess.run(
        [sys.executable, "-m", "conceptry.cli", "show", NAME, "--json", *registry],
        capture_output=True,
        text=True,
        check=False,
    )
    return json.loads(done.stdout) if done.returncode == 0 else None


def _save_sheet(images: Sequence[dict[str, Any]], path: Path) -> None:
    photos = [_opened(photo) for photo in sorted(PHOTOS.glob("*.png"))]
    rows: list[tuple[str, list[Image.Image]]] = [("the photos", photos[:PER_PROMPT])]
    rows += [
        (prompt, [_opened(image["path"]) for image in images if image["prompt"] == prompt])
        for prompt in PROMPTS
    ]
    left, right = rows[: len(rows) // 2 + 1], rows[len(rows) // 2 + 1 :]
    sheets = [contact_sheet(half, side=128) for half in (left, right)]
    whole = Image.new("RGB", (sum(s.width for s in sheets), max(s.height for s in sheets)), "white")
    whole.paste(sheets[0], (0, 0))
    whole.paste(sheets[1], (sheets[0].width, 0))
    whole.save(path)


def _opened(path: str | Path) -> Image.Image:
    return Image.open(path)


if __name__ == "__main__":
    main()
