"""A subject encoder's tokens go on and come off, and are stored without the encoder."""

import pytest
import torch
from conceptry.adapters.adapter import injected
from conceptry.adapters.subject_encoding import SubjectEncoding
from conceptry.generation.request import SamplingSettings
from conceptry.generation.sampler import draw_batch
from conceptry.models.backbone import Backbone
from conceptry.models.loading import backbone_of
from conceptry.models.pixels import on_white
from conceptry.models.subject_encoder import SubjectTokens
from conceptry.registry.errors import InvalidWeights
from PIL import Image
from tiny_base import make_tiny_sdxl
from tiny_encoder import as_loaded, let_it_act, make_tiny_encoder
from tiny_fixtures import tree

SETTINGS = SamplingSettings(steps=2, guidance=3.0)


@pytest.fixture
def encoding(backbone: Backbone, pictures: list[Image.Image]) -> SubjectEncoding:
    encoder = let_it_act(make_tiny_encoder(backbone.denoiser))
    return SubjectEncoding.of(as_loaded(encoder), pictures[:2], 1.0)


def drawn(backbone: Backbone) -> list[bytes]:
    pictures = draw_batch(backbone, ["a dog", "a photo of a cat"], [0, 1], SETTINGS)
    return [each.tobytes() for each in pictures]


def test_it_changes_pictures_and_comes_off(backbone: Backbone, encoding: SubjectEncoding) -> None:
    """Under guidance both halves of the batch get the tokens."""
    before, plain = tree(backbone), drawn(backbone)
    hooks = [len(each._forward_hooks) for each in backbone.denoiser.modules()]
    with injected(backbone, [encoding]):
        assert drawn(backbone) != plain
        assert tree(backbone) == before  # the sublayers stand beside the U-Net
        with pytest.raises(RuntimeError, match="already"):
            encoding.inject(backbone)
        encoding.subject.strength = 0.0
        assert drawn(backbone) == plain
    assert tree(backbone) == before
    assert [len(each._forward_hooks) for each in backbone.denoiser.modules()] == hooks
    assert not any(each._forward_pre_hooks for each in backbone.denoiser.modules())
    assert drawn(backbone) == plain
    encoding.inject(backbone)
    encoding.eject(backbone)
    assert drawn(backbone) == plain


def test_an_encoder_that_has_not_learned_changes_no_picture(
    backbone: Backbone, pictures: list[Image.Image]
) -> None:
    plain = drawn(backbone)
    loaded = as_loaded(make_tiny_encoder(backbone.denoiser))
    with injected(backbone, [SubjectEncoding.of(loaded, pictures, 1.0)]):
        assert drawn(backbone) == plain


def test_maps_are_observed_through_it(backbone: Backbone, encoding: SubjectEncoding) -> None:
    states = torch.randn(1, 77, 32, generator=torch.Generator().manual_seed(0))
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))

    def maps() -> dict[str, torch.Tensor]:
        with backbone.attention.observe(columns=[1], want="maps") as seen, torch.no_grad():
            backbone.pipeline.unet(latents, 5, states)
        return seen.maps

    plain = maps()
    with injected(backbone, [encoding]):
        found = maps()
    assert found.keys() == plain.keys()
    assert not all(found[name].equal(plain[name]) for name in found)


def test_its_state_are_tokens_of_all_references(encoding: SubjectEncoding) -> None:
    state = encoding.state()
    assert {name: tuple(each.shape) for name, each in state.items()} == {
        "subject.tokens": (1, 2 * 16, 32)
    }
    again = SubjectEncoding.from_state(encoding.attention, state, encoding.describe(), 0.2)
    assert again.subject.strength == 0.2
    assert again.subject.tokens.equal(encoding.subject.tokens)


def test_what_does_not_fit_is_refused(backbone: Backbone, encoding: SubjectEncoding) -> None:
    encoding.check(backbone)
    for shape in ((1, 4, 31), (4, 32), (1, 0, 32)):
        odd = SubjectEncoding(encoding.attention, SubjectTokens(torch.zeros(shape)))
        with pytest.raises(InvalidWeights, match="its tokens have the shape"):
            odd.check(backbone)
    other = make_tiny_encoder(make_tiny_sdxl().unet).attention
    with pytest.raises(InvalidWeights, match="another base model"):
        SubjectEncoding(other, SubjectTokens(torch.zeros(1, 4, 80))).check(backbone)


def test_sdxl_draws_with_it(pictures: list[Image.Image]) -> None:
    torch.manual_seed(0)
    pipeline = make_tiny_sdxl()
    pipeline.set_progress_bar_config(disable=True)
    backbone = backbone_of(pipeline)
    plain = drawn(backbone)
    loaded = as_loaded(let_it_act(make_tiny_encoder(backbone.denoiser)))
    with injected(backbone, [SubjectEncoding.of(loaded, pictures[:1], 1.0)]):
        assert drawn(backbone) != plain


def test_the_background_becomes_white() -> None:
    mask = Image.new("L", (2, 2))
    mask.paste(255, (0, 0, 1, 2))
    picture = on_white(Image.new("RGB", (4, 4), "red"), mask.resize((4, 4)))
    assert picture.getpixel((0, 0)) == (255, 0, 0)
    assert picture.getpixel((3, 0)) == (255, 255, 255)
