"""Which of two ways draws better, as a person says who does not know which is which.

    python bench/blind.py sheets OLD NEW --out runs/blind    # two folders of pictures
    python bench/blind.py count runs/blind lrl=…             # what was preferred, pair by pair

`sheets` pairs pictures by their file names (as `concept generate` gives them: prompt and seed),
takes `--pairs` of them by lot, and draws each pair twice, in both orders and far apart, so that a
liking for a side counts for nothing. Pictures are enlarged to one size. The key lies beside the
sheets, to be opened by `count` alone: `l` is for the left, `r` for the right, `=` for neither, one
for each numbered pair. `count --as NAME` also writes bench/results/blind-NAME.json: a pair is won
by a way that is preferred in both orders, or in one where the other says neither; the share is of
all pairs that are won, with its 95 % Wilson interval.
"""

import argparse
import json
import random
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from conceptry.generation.pictures import contact_sheet
from environment import describe
from miniature import share
from PIL import Image

RESULTS = Path(__file__).parent / "results"
KEY, ROWS_OF_A_SHEET, SIDE = "key.json", 10, 160
SIDES = {"l": 0, "r": 1}


def sheets(folders: Sequence[Path], out: Path, num_pairs: int, seed: int) -> int:
    """Write the sheets and their key; returns how many pairs there are to judge."""
    first, second = ({each.name for each in folder.glob("*.png")} for folder in folders)
    names = sorted(first & second)
    rng = random.Random(f"blind {seed}")
    chosen = rng.sample(names, min(num_pairs, len(names)))
    if not chosen:
        sys.exit(f"{folders[0]} and {folders[1]} have no picture of the same name")
    orders = {name: rng.randrange(2) for name in chosen}
    shown = [(name, orders[name]) for name in chosen]
    again = [(name, 1 - orders[name]) for name in chosen]
    rng.shuffle(again)
    shown += again
    out.mkdir(parents=True, exist_ok=True)
    for start in range(0, len(shown), ROWS_OF_A_SHEET):
        rows = [
            (str(start + i + 1), [_picture(folders[way] / name) for way in (order, 1 - order)])
            for i, (name, order) in enumerate(shown[start : start + ROWS_OF_A_SHEET])
        ]
        sheet = contact_sheet(rows, side=SIDE)
        sheet.save(out / f"sheet-{start // ROWS_OF_A_SHEET + 1:02}.png")
    key = {"folders": [str(each) for each in folders], "shown": shown}
    (out / KEY).write_text(json.dumps(key) + "\n")
    return len(shown)


def _picture(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("RGB")


def count(out: Path, answers: str) -> dict[str, Any]:
    """How often each folder's picture was preferred."""
    key = json.loads((out / KEY).read_text())
    shown: list[tuple[str, int]] = [(name, order) for name, order in key["shown"]]
    if len(answers) != len(shown) or set(answers) - {*SIDES, "="}:
        sys.exit(f"expected {len(shown)} letters of l, r and =, got {len(answers)}: {answers}")
    votes: defaultdict[str, int] = defaultdict(int)
    for (name, order), answer in zip(shown, answers, strict=True):
        if answer != "=":
            is_second = SIDES[answer] != order
            votes[name] += 1 if is_second else -1
    names = {name for name, _ in shown}
    won = [votes[name] > 0 for name in sorted(names) if votes[name]]
    return {
        "folders": [Path(each).name for each in key["folders"]],
        "pairs": len(names),
        "undecided": len(names) - len(won),
        "second_preferred": share(won) if won else None,
    }


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    making = commands.add_parser("sheets")
    making.add_argument("folders", nargs=2, type=Path)
    making.add_argument("--out", type=Path, required=True)
    making.add_argument("--pairs", type=int, default=40)
    making.add_argument("--seed", type=int, default=0)
    counting = commands.add_parser("count")
    counting.add_argument("out", type=Path)
    counting.add_argument("answers", help="one letter for each numbered pair")
    counting.add_argument("--as", dest="name", metavar="NAME", help="write it as a result")
    options = parser.parse_args()
    if options.command == "sheets":
        print(sheets(options.folders, options.out, options.pairs, options.seed), "pairs to judge")
        return
    result = describe() | count(options.out, options.answers)
    print(json.dumps(result, indent=1))
    if options.name:
        path = RESULTS / f"blind-{options.name}.json"
        path.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
