"""What benches teach from and measure with."""

import sys

import pytest
from conceptry.models.loading import load_base
from PIL import Image
from program import ROOT

sys.path.insert(0, str(ROOT / "bench"))
try:
    from laboratory import embed, individuals
finally:
    sys.path.remove(str(ROOT / "bench"))


@pytest.mark.long
def test_photos_are_as_large_as_pictures_and_known_at_any_size() -> None:
    (who,) = individuals("tuning", 1)
    side = load_base().backbone.size
    assert {photo.size for photo in who.photos} == {(side, side)}
    enlarged = [each.resize((512, 512), Image.Resampling.BICUBIC) for each in who.photos]
    for photos in (who.photos, enlarged):
        vectors = embed(photos)
        assert who.whole.recognises(vectors).float().mean() >= 0.8
        assert (vectors @ who.whole.references.T).mean() > 0.7
