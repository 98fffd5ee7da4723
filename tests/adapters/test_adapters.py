"""Adapters go on and come off, and change only what they are for."""

from typing import Any

import pytest
import torch
from conceptry.adapters.adapter import TokenEmbedding, WeightDelta, injected
from conceptry.adapters.conditioning import encode, token_columns
from conceptry.registry.errors import InvalidInput


def tree(pipeline: Any) -> list[tuple[str, int]]:
    """Every module and parameter of a pipeline, by name and identity."""
    parts = (pipeline.unet, pipeline.text_encoder)
    modules = [(name, id(module)) for part in parts for name, module in part.named_modules()]
    return modules + [(name, id(p)) for part in parts for name, p in part.named_parameters()]


def test_a_token_that_starts_as_its_category_says_the_same(pipeline: Any) -> None:
    plain = encode(pipeline, ["a photo of a dog"], 16).states
    token = TokenEmbedding.from_words(pipeline, ["<v>"], "dog")
    with injected(pipeline, [token]):
        worn = encode(pipeline, ["a photo of a <v>"], 16).states
    torch.testing.assert_close(worn, plain)


def test_gradients_reach_the_vectors_alone(pipeline: Any) -> None:
    pipeline.text_encoder.requires_grad_(False)
    token = TokenEmbedding.from_words(pipeline, ["<v0>", "<v1>"], "dog")
    with injected(pipeline, [token]):
        encode(pipeline, ["a photo of a <v1>"], 16).states.square().sum().backward()
    (gradient,) = [vectors.grad for vectors in token.vectors]
    assert gradient is not None
    assert gradient[0].eq(0).all()
    assert gradient[1].ne(0).any()
    assert all(p.grad is None for p in pipeline.text_encoder.parameters())


def test_after_eject_the_modules_are_the_very_ones(pipeline: Any) -> None:
    before, tokenizer = tree(pipeline), pipeline.tokenizer
    weights = {name: value.clone() for name, value in pipeline.unet.state_dict().items()}
    name = "conv_in.weight"
    token = TokenEmbedding.from_words(pipeline, ["<v>"], "dog")
    other = TokenEmbedding.from_words(pipeline, ["<w>"], "cat")
    change = WeightDelta({name: torch.ones_like(weights[name])}, strength=0.5)
    with injected(pipeline, [token, other, change]):
        assert tree(pipeline) != before
        assert pipeline.unet.conv_in.weight.allclose(weights[name] + 0.5)
    assert tree(pipeline) == before
    assert pipeline.tokenizer is tokenizer
    assert all(value.equal(weights[key]) for key, value in pipeline.unet.state_dict().items())


def test_two_concepts_keep_their_own_vectors(pipeline: Any) -> None:
    dog = TokenEmbedding.from_words(pipeline, ["<v>"], "dog")
    cat = TokenEmbedding.from_words(pipeline, ["<w0>", "<w1>"], "cat")
    plain = encode(pipeline, ["a dog and a cat cat"], 16).states
    with injected(pipeline, [dog, cat]):
        worn = encode(pipeline, ["a <v> and a <w0> <w1>"], 16).states
    torch.testing.assert_close(worn, plain)


def test_nothing_is_worn_twice(pipeline: Any) -> None:
    token = TokenEmbedding.from_words(pipeline, ["<v>"], "dog")
    change = WeightDelta({"conv_in.bias": torch.ones(16)})
    with injected(pipeline, [token, change]):
        for adapter in (token, change):
            with pytest.raises(RuntimeError, match="already"):
                adapter.inject(pipeline)


def test_thin_factors_are_their_product(pipeline: Any) -> None:
    name = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q.weight"
    own = dict(pipeline.unet.named_parameters())[name]
    up, down = torch.randn(own.shape[0], 3), torch.randn(3, own.shape[1])
    before = own.detach().clone()
    with injected(pipeline, [WeightDelta({}, {name: (up, down)}, strength=2.0)]):
        torch.testing.assert_close(own.detach(), before + 2 * up @ down)


def test_states_survive_storage() -> None:
    state = {"delta.a": torch.rand(2), "up.b": torch.rand(2, 1), "down.b": torch.rand(1, 2)}
    again = WeightDelta.from_state(state).state()
    assert again.keys() == state.keys()
    token = TokenEmbedding.from_state(["<v>"], {"token.0": torch.rand(1, 4), **state})
    assert token.state().keys() == {"token.0"}


def test_columns_are_those_of_tokens_and_category(pipeline: Any) -> None:
    token = TokenEmbedding.from_words(pipeline, ["<v0>", "<v1>"], "dog")
    with injected(pipeline, [token]):
        columns = token_columns(pipeline, "a dog: a <v0> <v1> dog", ("<v0>", "<v1>"), "dog")
        ids = pipeline.tokenizer("a dog: a <v0> <v1> dog").input_ids
        with pytest.raises(InvalidInput, match="does not name"):
            token_columns(pipeline, "a <v0> dog", ("<v0>", "<v1>"), "dog")
    assert ids[columns[-1]] == pipeline.tokenizer("dog", add_special_tokens=False).input_ids[0]
    assert columns == [columns[0], columns[0] + 1, columns[0] + 2]
