"""Teach many subjects, some at a time: a folder of photos for each, in a folder of its category.

    photos/dog/rex/01.jpg
    photos/dog/max/01.jpg
    photos/cat/mia/01.jpg

    python examples/many_subjects.py photos

What is there already stays as it is: run it again when there are more folders.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

from conceptry.generation import Request, SamplingSettings, generate
from conceptry.models import load_base
from conceptry.registry import Registry
from conceptry.training import train_queue


def main() -> None:
    """Add and train new subjects, and draw each once."""
    parser = argparse.ArgumentParser(description="Teach many subjects, some at a time.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--base", default="miniature")
    parser.add_argument("--method", default="sefi", help="one that keeps the base model")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--together", type=int, default=8)
    parser.add_argument("--steps", type=int, default=25, help="denoising steps of a picture")
    options = parser.parse_args()

    with Registry.open("concepts.db", create=True) as registry:
        for photos in subjects(options.folder):
            if photos.name not in registry.names():
                registry.add(photos.name, [photos], category=photos.parent.name)
        untaught = [name for name in registry.names() if not registry.show(name).versions]
        base = load_base(options.base)
        for outcomes in train_queue(
            registry,
            untaught,
            base,
            method=options.method,
            overrides=options.set,
            together=options.together,
        ):
            for each in outcomes:
                if each.trained:
                    print(f"{each.name}@{each.trained.version}, {each.trained.seconds:.0f} s")
                else:
                    print(f"{each.name}: {each.error}")  # the others are done, or go on

        settings = SamplingSettings(steps=options.steps)
        requests = [
            Request(prompt=f"a photo of <{name}> in a meadow", seeds=[0], settings=settings)
            for name in registry.names()
            if registry.show(name).versions
        ]
        for picture in generate(registry, base, requests, Path("pictures")):
            print(picture.path)


def subjects(folder: Path) -> Iterator[Path]:
    """The folders of photos, sorted."""
    yield from sorted(path for path in folder.glob("*/*") if path.is_dir())


if __name__ == "__main__":
    main()
