"""Outlines enclose what they say, whatever the region."""

import math

import pytest
import torch
from conceptry.generation.outlines import (
    MAX_POINTS,
    MAX_POLYGONS,
    area,
    as_path,
    outlined,
    outlines,
)
from torch import Tensor


def disc(size: int, x: float, y: float, radius: float) -> Tensor:
    """A soft disc at shares of the sides."""
    places = (torch.arange(size) + 0.5) / size
    distance = ((places[None] - x) ** 2 + (places[:, None] - y) ** 2).sqrt()
    return torch.sigmoid((radius - distance) * 60)


@pytest.mark.parametrize("size", [16, 64])
def test_a_disc_is_one_polygon_of_its_area(size: int) -> None:
    (polygon,) = outlines(disc(size, 0.4, 0.6, 0.25))
    assert area(polygon) == pytest.approx(math.pi * 0.25**2, rel=0.05)
    middle = [sum(axis) / len(polygon) for axis in zip(*polygon, strict=True)]
    assert middle == pytest.approx([0.4, 0.6], abs=0.05)
    assert len(polygon) < 40


def test_what_fills_the_picture_goes_around_it() -> None:
    (polygon,) = outlines(torch.ones(8, 8))
    assert area(polygon) == pytest.approx(1, abs=0.02)


def test_nothing_has_no_outline() -> None:
    assert outlines(torch.zeros(8, 8)) == []
    assert as_path([]) == ""


def test_a_hole_is_a_polygon_too() -> None:
    ring = disc(32, 0.5, 0.5, 0.4) - disc(32, 0.5, 0.5, 0.2)
    outer, inner = sorted(map(area, outlines(ring)), reverse=True)
    assert outer > 3 * inner > 0


@pytest.mark.parametrize("strength", [1.0, 0.6])
def test_places_that_meet_at_a_corner_close_either_way(strength: float) -> None:
    checked = torch.tensor([[strength, 0.2], [0.2, strength]])
    assert 1 <= len(outlines(checked)) <= 2


def test_any_region_is_closed_and_small() -> None:
    for seed in range(20):
        noise = torch.rand(48, 64, generator=torch.Generator().manual_seed(seed))
        found = outlines(noise)
        assert 0 < len(found) <= MAX_POLYGONS
        assert all(len(each) <= MAX_POINTS for each in found)
        assert all(0 <= part <= 1 for each in found for point in each for part in point)


def test_each_subject_has_its_own() -> None:
    regions = torch.stack([disc(16, 0.25, 0.5, 0.2), disc(16, 0.75, 0.5, 0.2)])
    found = outlined(["rex", "mia"], regions)
    assert list(found) == ["rex", "mia"]
    assert max(x for x, _ in found["rex"][0]) < min(x for x, _ in found["mia"][0])
    path = as_path(found["rex"])
    assert path.startswith("M")
    assert path.endswith("Z")
