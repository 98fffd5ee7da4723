"""Prompts with weights and in chunks: what is encoded, and where its tokens are."""

from typing import Any

import pytest
import torch
from conceptry.adapters.adapter import injected
from conceptry.adapters.timestep_tokens import TimestepTokens, timestep_routing
from conceptry.models.backbone import Backbone
from conceptry.models.loading import backbone_of
from conceptry.models.weighted_prompts import parse_weights
from conceptry.registry.errors import InvalidInput
from tiny_base import make_tiny_base, make_tiny_sdxl
from torch import Tensor

TOKEN = "<rex@1#0>"


@pytest.fixture(params=[make_tiny_base, make_tiny_sdxl], ids=["SD", "SDXL"])
def backbone(request: pytest.FixtureRequest) -> Backbone:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made: Any = request.param()
        found = backbone_of(made)
        for each in found.text_encoders:  # the mean of states is not 0, as in trained ones
            for name, parameter in each.network.named_parameters():
                if "layer_norm" in name and name.endswith("bias"):
                    parameter.data.fill_(0.3)
    return found


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a cat", [("a cat", 1)]),
        ("a (red) cat", [("a ", 1), ("red", 1.1), (" cat", 1)]),
        ("a ((red)) [cat]", [("a ", 1), ("red", 1.21), (" ", 1), ("cat", 1 / 1.1)]),
        ("(red:1.3) (a (cat:0.5):2)", [("red", 1.3), (" ", 1), ("a ", 2), ("cat", 1)]),
        (r"a \(red\) cat", [("a ", 1), ("(", 1), ("red", 1), (")", 1), (" cat", 1)]),
        ("one BREAK two", [("one", 1), (None, 1), ("two", 1)]),
        ("at 12:30) (open", [("at 12", 1), (":30)", 1), (" ", 1), ("open", 1.1)]),
        ("(<rex:0.8>:1.2)", [("<rex", 1.2), (":", 1.2), ("0.8>", 1.2)]),
        ("BREAKFAST", [("BREAKFAST", 1)]),
    ],
)
def test_weights_are_those_of_the_brackets(
    prompt: str, expected: list[tuple[str | None, float]]
) -> None:
    found = [(each.text, each.weight) for each in parse_weights(prompt) if each.text != ""]
    assert [text for text, _ in found] == [text for text, _ in expected]
    assert [weight for _, weight in found] == pytest.approx([weight for _, weight in expected])


def states_of(backbone: Backbone, *prompts: str, weighs: bool = True) -> Tensor:
    with torch.no_grad(), backbone.weighing_words(weighs):
        return backbone.encode_prompts(prompts, 16).states


def test_a_prompt_without_weights_is_encoded_as_without_the_option(backbone: Backbone) -> None:
    prompts = ("a photo of a red cat, on the beach", "a dog")
    assert torch.equal(states_of(backbone, *prompts), states_of(backbone, *prompts, weighs=False))
    with torch.no_grad():
        plain = backbone.encode_guided(prompts, ["blue", ""], 16, 16)
        with backbone.weighing_words():
            weighed = backbone.encode_guided(prompts, ["blue", ""], 16, 16)
    for one, other in zip(plain, weighed, strict=True):
        assert torch.equal(one.states, other.states)
        assert one.added.keys() == other.added.keys()
        assert all(torch.equal(one.added[name], other.added[name]) for name in one.added)


def test_words_count_by_their_weights_and_the_mean_stays(backbone: Backbone) -> None:
    plain = states_of(backbone, "a photo of a red cat", weighs=False)
    (position,) = [
        i
        for i, each in enumerate(backbone.text_encoders[0].ids("a photo of a red cat"))
        if each == backbone.text_encoders[0].ids("red", whole=False)[0]
    ]
    weights = torch.ones(plain.shape[1])
    weights[position] = 1.4
    heavy = plain * weights[:, None]
    expected = heavy * plain.mean() / heavy.mean()
    torch.testing.assert_close(states_of(backbone, "a photo of a (red:1.4) cat"), expected)


def test_a_long_prompt_is_encoded_in_chunks(backbone: Backbone) -> None:
    encoder = backbone.text_encoders[0]
    room = encoder.tokenizer.model_max_length - 2
    many = "red " * (room - 4) + "cat, blue "
    assert len(encoder.ids(many, whole=False)) < room
    prompt = many + "dog dog dog dog on the beach"
    found = states_of(backbone, prompt)
    first = "red " * (room - 4) + "cat,"
    rest = "blue dog dog dog dog on the beach"
    expected = states_of(backbone, first, rest, weighs=False)
    assert torch.equal(found[0], expected.flatten(0, 1)), "it is cut after the comma"
    with backbone.weighing_words():
        tokens = backbone.tokens_of(prompt)
    assert len(tokens.ids) == 2 * (room + 2) == found.shape[1]
    plain = [each for text in (first, rest) for each in encoder.ids(text, whole=False)]
    assert [tokens.ids[place] for place in tokens.places] == plain
    broken = states_of(backbone, "a cat BREAK a dog")
    assert torch.equal(broken[0], states_of(backbone, "a cat", "a dog", weighs=False).flatten(0, 1))


def test_all_of_a_batch_have_as_many_chunks(backbone: Backbone) -> None:
    with torch.no_grad(), backbone.weighing_words():
        prompt, negative = backbone.encode_guided(["a cat", "a BREAK b BREAK c"], None, 16, 16)
    assert prompt.states.shape == negative.states.shape
    assert prompt.states.shape[1] == 3 * backbone.text_encoders[0].tokenizer.model_max_length
    assert {len(each) for each in prompt.added.values()} <= {2}


def test_tokens_of_timesteps_are_weighed_and_not_parted(backbone: Backbone) -> None:
    token = TimestepTokens.from_word(backbone, TOKEN, "dog", num_stages=3)
    room = backbone.text_encoders[0].tokenizer.model_max_length - 2
    long = "red " * (room - 1) + f"{TOKEN} dog"
    with injected(backbone, [token, *timestep_routing([token])]):
        plain = states_of(backbone, f"a photo of {TOKEN} dog", weighs=False)
        heavy = states_of(backbone, f"a photo of ({TOKEN} dog:1.3)")
        assert heavy.shape == plain.shape
        assert plain.shape[-1] == 3 * 2 * states_of(backbone, "a dog", weighs=False).shape[-1]
        for now, before in zip(
            heavy.chunk(6, -1), plain.chunk(6, -1), strict=True
        ):  # each as if it were alone
            weights = torch.ones(before.shape[1])
            with backbone.weighing_words():
                places = backbone.tokens_of(f"a photo of {TOKEN} dog").places
            weights[list(places)[-2:]] = 1.3
            scaled = before * weights[:, None]
            torch.testing.assert_close(now, scaled * before.mean() / scaled.mean())
        with backbone.weighing_words():
            tokens = backbone.tokens_of(long)
        own = [backbone.text_encoders[0].id_of(TOKEN)]
        assert tokens.ids.index(own[0]) == room + 2 + 1, "both words begin the second chunk"


def test_a_word_that_no_chunk_has_room_for_is_told(backbone: Backbone) -> None:
    with pytest.raises(InvalidInput, match="reads 75 at once"), backbone.weighing_words():
        backbone.tokens_of("a " + "!?" * 200)
