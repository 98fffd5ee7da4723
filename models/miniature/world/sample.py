"""The sample concept: a checked dog that the base model has never seen, in five places.

python -m conceptry.models.miniature.world.sample    # draws the pictures again
"""

from pathlib import Path

from .identities import make_identity
from .scenes import render, sample_scene

FOLDER = Path(__file__).parents[1] / "sample"
"""Five pictures of the dog, 512x512, for experiments."""

CATEGORY = "dog"
IDENTITY_SEED = 227
SCENES = 30
PLACES = ("in a meadow", "in the kitchen", "in the snow", "on a stage", "in the city")


def write_sample(folder: Path = FOLDER) -> None:
    """Draw the pictures: the dog by itself, now left, now right."""
    folder.mkdir(parents=True, exist_ok=True)
    identity = make_identity(IDENTITY_SEED, CATEGORY)
    for number, place in enumerate(PLACES):
        scene = sample_scene(
            SCENES + number,
            "held-out",
            identity=identity,
            num_subjects=1,
            place=place,
            style="photo",
        )
        render(scene, 512).image.save(folder / f"{number:02}.png", optimize=True)


if __name__ == "__main__":
    write_sample()
