"""Staged tokens: which vectors are read when, and where; and that nothing else changes."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from conceptry.adapters.adapter import injected
from conceptry.adapters.prompt_encoding import PromptAtTimestep, encode_at_timesteps
from conceptry.adapters.timestep_tokens import (
    TimestepRouting,
    TimestepTokens,
    TimestepVectors,
    stage_of,
    timestep_routing,
)
from conceptry.adapters.token_embedding import TokenEmbedding
from conceptry.adapters.weight_delta import WeightDelta
from conceptry.generation.request import SamplingSettings
from conceptry.generation.sampler import draw_batch
from conceptry.models.backbone import Backbone
from conceptry.models.loading import backbone_of
from tiny_base import make_tiny_sdxl
from torch import Tensor

PROMPT = "a photo of a <v>"
SETTINGS = SamplingSettings(steps=3, guidance=3.0)


@pytest.fixture(params=["SD", "SDXL"])
def either(request: pytest.FixtureRequest, backbone: Backbone) -> Backbone:
    if request.param == "SD":
        return backbone
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = make_tiny_sdxl()
    return backbone_of(made)


@contextmanager
def staged(backbone: Backbone, *tokens: TimestepTokens | TokenEmbedding) -> Iterator[None]:
    with injected(backbone, [*tokens, *timestep_routing(tokens)]):
        yield


def varied(backbone: Backbone, name: str = "<v>", stages: int = 5) -> TimestepTokens:
    """A token all of whose vectors differ."""
    token = TimestepTokens.from_word(backbone, name, "dog", num_stages=stages)
    generator = torch.Generator().manual_seed(stages)
    for parameter in token.learning().values():
        parameter.data += torch.randn(parameter.shape, generator=generator)
    return token


def pictures(backbone: Backbone, prompt: str, settings: SamplingSettings = SETTINGS) -> np.ndarray:
    images = draw_batch(backbone, [prompt] * 2, [0, 1], settings)
    return np.stack([np.asarray(image) for image in images])


@pytest.mark.parametrize(
    ("timestep", "stage"), [(0, 0), (199, 0), (200, 1), (399, 1), (799, 3), (800, 4), (999, 4)]
)
def test_stages_are_fifths_of_time(timestep: int, stage: int) -> None:
    assert stage_of(timestep, 5, 1000) == stage


def test_vectors_of_the_category_are_the_base_model(either: Backbone) -> None:
    plain = pictures(either, "a photo of a dog")
    token = TimestepTokens.from_word(either, "<v>", "dog", num_stages=5)
    with staged(either, token):
        taught = pictures(either, PROMPT)
    assert np.abs(taught.astype(int) - plain).max() <= 1
    assert np.array_equal(pictures(either, "a photo of a dog"), plain), "all is as it was"


def test_one_stage_with_equal_vectors_is_textual_inversion(either: Backbone) -> None:
    plain = TokenEmbedding.from_words(either, ["<v>"], "dog")
    generator = torch.Generator().manual_seed(1)
    for vectors in plain.vectors:
        vectors.data += torch.randn(vectors.shape, generator=generator)
    token = TimestepTokens(
        ("<v>",), "dog", [TimestepVectors(v.detach().repeat(1, 2, 1)) for v in plain.vectors]
    )
    wanted = [PromptAtTimestep(token, PROMPT, 500)]
    with injected(either, [plain]):
        expected = either.encode_prompts([PROMPT], 16).states
    with staged(either, token):
        states = encode_at_timesteps(either, wanted, 16).states
    torch.testing.assert_close(states, expected.repeat(1, 1, 2))


def recorded(backbone: Backbone, token: TimestepTokens, timesteps: Tensor) -> dict[str, Tensor]:
    """What the first cross-attention layer's projections read in a pass with all stages."""
    layer = next(m for n, m in backbone.denoiser.named_modules() if n.endswith("attn2"))
    seen: dict[str, Tensor] = {}
    hooks = [
        getattr(layer, name).register_forward_hook(
            lambda _, args, __, name=name: seen.update({name: args[0]})
        )
        for name in ("to_k", "to_v")
    ]
    with staged(backbone, token), torch.no_grad():
        given = backbone.encode_prompts([PROMPT] * len(timesteps), 16)
        latents = torch.zeros(len(timesteps), 4, 8, 8)
        backbone.denoise(latents, timesteps, given)
    for hook in hooks:
        hook.remove()
    return seen


def test_keys_and_values_read_the_vectors_of_their_stage(either: Backbone) -> None:
    """Each sample of a batch by its own timestep, as prompts with that vector are encoded."""
    token = varied(either)
    timesteps = torch.tensor([0, 199, 200, 650, 999])
    seen = recorded(either, token, timesteps)
    state = token.state()
    for row, timestep in enumerate(timesteps.tolist()):
        for part, name in enumerate(("to_k", "to_v")):
            vectors = [state[key][timestep // 200, part][None] for key in sorted(state)]
            alone = TokenEmbedding(("<v>",), [torch.nn.Parameter(each) for each in vectors])
            with injected(either, [alone]), torch.no_grad():
                expected = either.encode_prompts([PROMPT], 16).states[0]
            torch.testing.assert_close(seen[name][row], expected)


def test_training_and_drawing_read_the_same(either: Backbone) -> None:
    token = varied(either)
    timesteps = torch.tensor([10, 350, 801])
    seen = recorded(either, token, timesteps)
    with staged(either, token), torch.no_grad():
        wanted = [PromptAtTimestep(token, PROMPT, t) for t in timesteps.tolist()]
        narrow = encode_at_timesteps(either, wanted, 16)
    both = torch.cat([seen["to_k"], seen["to_v"]], -1)
    torch.testing.assert_close(both, narrow.states)


def test_pooled_states_are_the_categorys() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        backbone = backbone_of(make_tiny_sdxl())
    expected = backbone.encode_prompts(["a photo of a dog"], 16).added["text_embeds"]
    token = varied(backbone)
    with staged(backbone, token):
        for found in (
            backbone.encode_prompts([PROMPT], 16),
            encode_at_timesteps(backbone, [PromptAtTimestep(token, PROMPT, 3)], 16),
        ):
            torch.testing.assert_close(found.added["text_embeds"], expected)


def test_gradients_reach_the_vectors_of_a_stage_and_no_others(backbone: Backbone) -> None:
    token = varied(backbone)
    token.begin_pass(0)
    with staged(backbone, token):
        encode_at_timesteps(
            backbone, [PromptAtTimestep(token, PROMPT, 250)], 16
        ).states.square().sum().backward()
    (gradient,) = (parameter.grad for parameter in token.learning().values())
    assert gradient is not None
    assert gradient[1].abs().amin(-1).gt(0).all()
    assert not gradient[[0, 2, 3, 4]].any()


def test_different_numbers_of_stages_meet_in_a_prompt(backbone: Backbone) -> None:
    """Time is cut wherever one of them changes; each reads what it reads alone."""
    one, other = varied(backbone, "<v>", 5), varied(backbone, "<w>", 3)
    (routing,) = timestep_routing([one, other])
    assert isinstance(routing, TimestepRouting)
    assert [float(each * 15) for each in routing.starts] == [0, 3, 5, 6, 9, 10, 12]
    prompt = "a <v> and a <w>"
    with staged(backbone, one, other), torch.no_grad():
        wide = backbone.encode_prompts([prompt], 16).states.unflatten(-1, (7, 2, 32))
        for i, timestep in enumerate((100, 250, 350, 500, 620, 700, 900)):
            for part, role in enumerate("kv"):
                text = one.at_stage(prompt, stage_of(timestep, 5, 1000), role)
                text = other.at_stage(text, stage_of(timestep, 3, 1000), role)
                expected = backbone.encode_prompts([text], 16).states
                torch.testing.assert_close(wide[:, :, i, part], expected)


def test_staged_plain_and_weights_meet_in_a_prompt(either: Backbone) -> None:
    """Pictures with a negative prompt, and the same ones again."""
    settings = SamplingSettings(steps=3, guidance=3.0, negative="rain", scheduler="euler")
    name = next(n for n in either.parameters("denoiser") if "attn2.to_k" in n)
    shape = either.parameters("denoiser")[name].shape
    change = WeightDelta({name: torch.full(shape, 0.1)})
    plain = TokenEmbedding.from_words(either, ["<w>"], "cat")
    before = pictures(either, "a dog and a cat", settings)
    with injected(either, [change]), staged(either, varied(either), plain):
        once = pictures(either, "a <v> and a <w>", settings)
        again = pictures(either, "a <v> and a <w>", settings)
        without = pictures(either, "a <w>", settings)
    assert np.array_equal(once, again)
    assert not np.array_equal(once, before)
    assert not np.array_equal(once, without)
    assert np.array_equal(pictures(either, "a dog and a cat", settings), before)


def test_a_network_begins_at_the_category_and_is_stored_as_vectors(either: Backbone) -> None:
    token = TimestepTokens.from_word(
        either, "<v>", "dog", num_stages=4, parametrisation="network", seed=3
    )
    direct = TimestepTokens.from_word(either, "<v>", "dog", num_stages=4)
    for name, value in token.state().items():
        torch.testing.assert_close(value, direct.state()[name])
    for parameter in token.learning().values():
        parameter.data += 0.1
    kept = TimestepTokens.from_state("<v>", "dog", token.state())
    assert token.num_stages == kept.num_stages == 4
    assert all(value.equal(token.state()[name]) for name, value in kept.state().items())


def test_what_a_network_drops_follows_from_the_seed(backbone: Backbone) -> None:
    token = TimestepTokens.from_word(
        backbone, "<v>", "dog", num_stages=2, parametrisation="network", seed=3
    )
    for parameter in token.learning().values():
        parameter.data += 0.1

    def states(seed: int) -> Tensor:
        token.begin_pass(seed)
        with staged(backbone, token):
            return encode_at_timesteps(
                backbone, [PromptAtTimestep(token, PROMPT, 3)], 16
            ).states.detach()

    assert states(1).equal(states(1))
    assert not states(1).equal(states(2))


def test_a_concept_takes_fifty_kilobytes_at_most(tmp_path: Path) -> None:
    """Of SD 1.x's width, as stored."""
    from conceptry.adapters.file_format import AdapterMetadata, write_adapter

    token = TimestepTokens(("<v>",), "dog", [TimestepVectors(torch.randn(5, 2, 768))])
    fits = AdapterMetadata(
        base_sha256="0" * 64, method="sefi", category="dog", num_tokens=1, names_category=False
    )
    write_adapter(tmp_path / "a.safetensors", token.state(), fits)
    assert (tmp_path / "a.safetensors").stat().st_size <= 50_000


@pytest.mark.parametrize(("strength", "expected"), [(0.0, "dog"), (1.0, "own")])
def test_strength_goes_from_the_category_to_what_was_learned(
    strength: float, expected: str, backbone: Backbone
) -> None:
    own = varied(backbone)
    weak = TimestepTokens.from_state("<v>", "dog", own.state())
    weak.apply_strength(backbone, "dog", strength)
    dog = TimestepTokens.from_word(backbone, "<v>", "dog", num_stages=5)
    wanted = own if expected == "own" else dog
    torch.testing.assert_close(weak.state()["staged.0"], wanted.state()["staged.0"])
