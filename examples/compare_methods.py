"""Teach a subject by several methods, score them, and keep the best.

    python examples/compare_methods.py models/miniature/sample --name rex --category dog

Each method is a version of the same concept, scored on the same prompts and seeds; afterwards
`<rex>` stands for the best one.
"""

import argparse
from pathlib import Path

from conceptry.evaluation import EvalRequest, mark_best, score, write_report
from conceptry.generation import SamplingSettings
from conceptry.methods import all_methods, find_method
from conceptry.models import load_base
from conceptry.registry import Registry
from conceptry.training import train


def main() -> None:
    """Teach, score, and write a report."""
    parser = argparse.ArgumentParser(description="Compare methods on one subject.")
    parser.add_argument("photos", type=Path)
    parser.add_argument("--name", required=True)
    parser.add_argument("--category", required=True)
    parser.add_argument("--methods", nargs="+", default=list(all_methods()))
    parser.add_argument("--base", default="miniature")
    parser.add_argument("--suite", help="prompts to score with; by default what fits")
    parser.add_argument("--clip", help="encoders, by default those that fit the base model")
    parser.add_argument("--dino")
    parser.add_argument("--seeds", type=int, default=4, help="pictures of each prompt")
    parser.add_argument("--steps", type=int, default=25, help="denoising steps of a picture")
    parser.add_argument("--training-steps", type=int, help="of each stage, for a quick try")
    parser.add_argument("--out", type=Path, default=Path("report"))
    options = parser.parse_args()

    with Registry.open("concepts.db", create=True) as registry:
        registry.add(options.name, [options.photos], category=options.category)
        base = load_base(options.base)
        methods: dict[int, str] = {}
        for method in options.methods:
            overrides = shortened(method, options.training_steps)
            done = train(registry, options.name, base, method=method, overrides=overrides)
            methods[done.version] = method
            print(f"{method}: {done.seconds:.0f} s")

        request = EvalRequest(
            names=[options.name],
            versions=",".join(map(str, methods)),
            suite=options.suite,
            clip=options.clip,
            dino=options.dino,
            num_seeds=options.seeds,
            settings=SamplingSettings(steps=options.steps),
        )
        found = list(score(registry, request, base=base))
        for each in found:
            scores = [
                f"{name} {value.mean:.2f} ({value.low:.2f} to {value.high:.2f})"
                for name, value in each.scores.items()
                if name in each.headlines
            ]
            print(f"{methods[each.version]}: {', '.join(scores)}")
        (best,) = mark_best(registry, found)
        print(f"best: {methods[best.version]}; {write_report(registry, found, options.out)}")


def shortened(method: str, steps: int | None) -> list[str]:
    """Settings for so many steps in each stage, or the preset's own."""
    if steps is None:
        return []
    return [f"{stage}.steps={steps}" for stage in find_method(method).settings().stages()]


if __name__ == "__main__":
    main()
