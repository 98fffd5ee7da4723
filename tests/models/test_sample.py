"""The sample concept is one individual that the base model has never seen."""

from pathlib import Path

from conceptry.models.miniature.world import sample
from conceptry.models.miniature.world.identities import split_of
from PIL import Image


def test_the_shipped_pictures_are_those_that_the_script_draws(tmp_path: Path) -> None:
    sample.write_sample(tmp_path)
    drawn = sorted(path.name for path in tmp_path.iterdir())
    assert drawn == sorted(path.name for path in sample.FOLDER.iterdir())
    assert len(drawn) == 5
    for name in drawn:
        with Image.open(tmp_path / name) as ours, Image.open(sample.FOLDER / name) as shipped:
            assert ours.size == (512, 512)
            assert ours.tobytes() == shipped.tobytes()


def test_the_base_model_has_not_seen_it() -> None:
    assert split_of(sample.IDENTITY_SEED) == "held-out"
