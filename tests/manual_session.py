"""The session in docs/managing.md, run for real on drawn photos.

python tests/manual_session.py            # run it in a new folder and show it
python tests/manual_session.py --write    # and put its output into the page
"""

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from drawing import draw, draw_file, draw_folder
from PIL import Image, ImageFilter

PAGE = Path(__file__).parents[1] / "docs" / "managing.md"
_BLOCK = re.compile(r"```console\n(.*?)```", re.DOTALL)
_MOMENT = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d(:\d\d)?")


def prepare(folder: Path) -> None:
    """Draw the photos that the session adds."""
    photos = folder / "photos"
    draw_folder(photos / "rex", 3, seed=1)
    (photos / "rex" / "00.txt").write_text("a photo of a dog lying on orange paper")
    draw_folder(photos / "mia", 4, seed=2)
    draw_folder(photos / "sloth", 2, seed=3)
    draw_file(photos / "more" / "small.png", 5, (300, 300))
    draw(1000).resize((600, 600)).save(photos / "more" / "again.jpg")
    draw(6).filter(ImageFilter.GaussianBlur(4)).save(photos / "more" / "shaken.png")
    mask = Image.new("L", (512, 512))
    mask.paste(255, (128, 96, 384, 480))
    (photos / "sloth" / "masks").mkdir()
    mask.save(photos / "sloth" / "masks" / "00.png")


def in_a_shell(line: str, folder: Path) -> str:
    """Run it; returns what it printed, to whichever stream."""
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "CONCEPT_REGISTRY": "concepts.db",
    }
    return subprocess.run(
        ["bash", "-c", line],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    ).stdout


def play(
    text: str, folder: Path, run: Callable[[str, Path], str] = in_a_shell
) -> Iterator[tuple[str, str]]:
    """Run each `$ command` of the page; yields it with what it printed."""
    for block in _BLOCK.findall(text):
        for line in block.splitlines():
            if line.startswith("$ "):
                printed = run(line[2:], folder)
                yield line, "".join(f"{row.rstrip()}\n" for row in printed.splitlines())


def rewritten(text: str, session: dict[str, str]) -> str:
    """The page with the session's output under each command."""

    def fill(match: re.Match[str]) -> str:
        commands = [line for line in match[1].splitlines() if line.startswith("$ ")]
        shown = "\n".join(f"{line}\n{session[line]}" for line in commands)
        return f"```console\n{shown}```"

    return _BLOCK.sub(fill, text)


def without_moments(text: str) -> str:
    """`text` with every date replaced, as those differ from run to run."""
    return _MOMENT.sub("MOMENT", text)


def main() -> None:
    """Run the session in a new folder, which stays."""
    folder = Path(tempfile.mkdtemp(prefix="concept-demo-"))
    prepare(folder)
    session: dict[str, str] = {}
    for line, output in play(PAGE.read_text(), folder):
        session[line] = output
        print(f"{line}\n{output}")
    if "--write" in sys.argv:
        PAGE.write_text(rewritten(PAGE.read_text(), session))
    print(f"The photos and the registry are in {folder}")


if __name__ == "__main__":
    main()
