"""Several concepts in one batch: how long it takes, and whether each learns what it learns alone.

    python bench/together.py                  # some minutes on two idle cores

Eight individuals are taught by SeFi-IDE's `miniature` preset with fewer steps (the time is
proportional to them), one after another and then in one batch; a second round of both says how far
the machine can be trusted. `difference` is the largest one between the vectors of a concept that
was taught alone and in the batch, `distance` the largest one between a vector and where it began.
Writes bench/results/together.json.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import torch
from conceptry.adapters.file_format import read_adapter
from conceptry.adapters.timestep_tokens import TimestepTokens
from conceptry.generation.prompt_syntax import resolve_prompt
from conceptry.models.loading import LoadedBase, load_base
from conceptry.registry import Registry
from conceptry.training import Trained, train, train_many
from environment import describe as describe_machine
from environment import is_as_published
from laboratory import Laboratory, individuals
from torch import Tensor

RESULT = Path(__file__).parent / "results" / "together.json"


def vectors_of(registry: Registry, name: str) -> Tensor:
    """Those of the latest version, (S, 2, d)."""
    (chosen,) = resolve_prompt(registry, f"<{name}>")
    return read_adapter(Path(chosen.path))[0]["staged.0"]


def measured(base: LoadedBase, count: int, steps: int) -> dict[str, float]:
    """Seconds of both ways, and how far what they learn is apart."""
    words = (f"embedding.steps={steps}",)
    subjects = list(individuals("measured", count))
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        with Registry.open(out / "concepts.db", create=True) as registry:
            laboratory = Laboratory(registry, base, subjects)
            laboratory.enter(out)
            names = [who.name for who in subjects]
            started = time.monotonic()
            for name in names:
                train(registry, name, base, method="sefi", overrides=words)
            alone = time.monotonic() - started
            before = [vectors_of(registry, name) for name in names]
            started = time.monotonic()
            outcomes = train_many(registry, names, base, method="sefi", overrides=words)
            together = time.monotonic() - started
            assert all(isinstance(outcome, Trained) for outcome in outcomes)
            after = [vectors_of(registry, name) for name in names]
    begun = [
        TimestepTokens.from_word(
            base.backbone, "<v>", who.identity.category, num_stages=before[0].shape[0]
        ).state()["staged.0"]
        for who in subjects
    ]
    return {
        "alone_seconds": round(alone, 1),
        "together_seconds": round(together, 1),
        "ratio": round(together / alone, 3),
        "difference": _largest(before, after),
        "distance": _largest(before, begun),
    }


def _largest(some: list[Tensor], others: list[Tensor]) -> float:
    gaps = [(a - b).abs().max() for a, b in zip(some, others, strict=True)]
    return float(f"{float(torch.stack(gaps).max()):.2g}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--concepts", type=int, default=8)
    parser.add_argument("--steps", type=int, default=300)
    options = parser.parse_args()
    base = load_base()
    rounds = [measured(base, options.concepts, options.steps) for _ in range(2)]
    document = {
        "environment": describe_machine(),
        "concepts": options.concepts,
        "steps": options.steps,
        "rounds": rounds,
    }
    print(json.dumps(document, indent=1))
    if is_as_published(parser, options):
        RESULT.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
