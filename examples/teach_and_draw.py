"""Teach a subject from a folder of photos, and draw it.

    python examples/teach_and_draw.py photos/rex --category dog

The registry is concepts.db in the folder where you are; `concept show rex` knows of it too.
"""

import argparse
from pathlib import Path

from conceptry.generation import Request, SamplingSettings, generate, save_grid
from conceptry.models import load_base
from conceptry.registry import Registry
from conceptry.training import Hooks, StepReport, train

PROMPTS = (
    "a photo of <{name}> on the beach",
    "a photo of <{name}> in the snow",
    "a pencil sketch of <{name}>",
)


def main() -> None:
    """Add, train, and draw."""
    parser = argparse.ArgumentParser(description="Teach a subject, and draw it.")
    parser.add_argument("photos", type=Path)
    parser.add_argument("--name", help="by default that of the folder")
    parser.add_argument("--category", required=True, help="what it is, in a word")
    parser.add_argument("--base", default="miniature")
    parser.add_argument("--method", default="attndreambooth")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--steps", type=int, default=25, help="denoising steps of a picture")
    parser.add_argument("--out", type=Path, default=Path("pictures"))
    options = parser.parse_args()
    name = options.name or options.photos.name

    with Registry.open("concepts.db", create=True) as registry:
        registry.add(name, [options.photos], category=options.category)
        base = load_base(options.base)
        hooks = Hooks(on_step=print_step)
        done = train(
            registry, name, base, method=options.method, overrides=options.set, hooks=hooks
        )
        print(f"{name}@{done.version} by {done.method}, {done.seconds:.0f} s")

        settings = SamplingSettings(steps=options.steps)
        requests = [
            Request(prompt=prompt.format(name=name), seeds=range(2), settings=settings)
            for prompt in PROMPTS
        ]
        pictures = list(generate(registry, base, requests, options.out))
    for picture in pictures:
        print(picture.path)
    print(save_grid(pictures, options.out))


def print_step(report: StepReport) -> None:
    """Print every hundredth step, and the last one."""
    if report.step % 100 == 0 or report.step == report.num_steps:
        losses = ", ".join(f"{name} {value:.4f}" for name, value in report.losses.items())
        print(f"{report.stage} {report.step}/{report.num_steps}: {losses}")


if __name__ == "__main__":
    main()
