"""Adapters go on and come off, and change only what they are for."""

import pytest
import torch
from conceptry.adapters.adapter import injected
from conceptry.adapters.prompt_encoding import token_columns
from conceptry.adapters.token_embedding import TokenEmbedding
from conceptry.adapters.weight_delta import WeightDelta
from conceptry.models.backbone import Backbone
from conceptry.registry.errors import InvalidInput
from tiny_fixtures import tree


def test_a_token_that_starts_as_its_category_says_the_same(backbone: Backbone) -> None:
    plain = backbone.encode_prompts(["a photo of a dog"], 16).states
    token = TokenEmbedding.from_words(backbone, ["<v>"], "dog")
    with injected(backbone, [token]):
        taught = backbone.encode_prompts(["a photo of a <v>"], 16).states
    torch.testing.assert_close(taught, plain)


def test_gradients_reach_the_vectors_alone(backbone: Backbone) -> None:
    network = backbone.text_encoders[0].network
    network.requires_grad_(False)
    token = TokenEmbedding.from_words(backbone, ["<v0>", "<v1>"], "dog")
    with injected(backbone, [token]):
        backbone.encode_prompts(["a photo of a <v1>"], 16).states.square().sum().backward()
    (gradient,) = [vectors.grad for vectors in token.vectors]
    assert gradient is not None
    assert gradient[0].eq(0).all()
    assert gradient[1].ne(0).any()
    assert all(p.grad is None for p in network.parameters())


def test_after_eject_the_modules_are_the_very_ones(backbone: Backbone) -> None:
    before, tokenizer = tree(backbone), backbone.text_encoders[0].tokenizer
    weights = {name: value.clone() for name, value in backbone.denoiser.state_dict().items()}
    name = "conv_in.weight"
    token = TokenEmbedding.from_words(backbone, ["<v>"], "dog")
    other = TokenEmbedding.from_words(backbone, ["<w>"], "cat")
    change = WeightDelta({name: torch.ones_like(weights[name])}, strength=0.5)
    with injected(backbone, [token, other, change]):
        assert tree(backbone) != before
        assert backbone.parameters("denoiser")[name].allclose(weights[name] + 0.5)
    assert tree(backbone) == before
    assert backbone.text_encoders[0].tokenizer is tokenizer
    assert all(value.equal(weights[key]) for key, value in backbone.denoiser.state_dict().items())


def test_two_concepts_keep_their_own_vectors(backbone: Backbone) -> None:
    dog = TokenEmbedding.from_words(backbone, ["<v>"], "dog")
    cat = TokenEmbedding.from_words(backbone, ["<w0>", "<w1>"], "cat")
    plain = backbone.encode_prompts(["a dog and a cat cat"], 16).states
    with injected(backbone, [dog, cat]):
        taught = backbone.encode_prompts(["a <v> and a <w0> <w1>"], 16).states
    torch.testing.assert_close(taught, plain)


def test_nothing_is_injected_twice(backbone: Backbone) -> None:
    token = TokenEmbedding.from_words(backbone, ["<v>"], "dog")
    change = WeightDelta({"conv_in.bias": torch.ones(16)})
    with injected(backbone, [token, change]):
        for adapter in (token, change):
            with pytest.raises(RuntimeError, match="already"):
                adapter.inject(backbone)


def test_thin_factors_are_their_product(backbone: Backbone) -> None:
    name = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q.weight"
    own = backbone.parameters("denoiser")[name]
    up, down = torch.randn(own.shape[0], 3), torch.randn(3, own.shape[1])
    before = own.detach().clone()
    with injected(backbone, [WeightDelta({}, {name: (up, down)}, strength=2.0)]):
        torch.testing.assert_close(own.detach(), before + 2 * up @ down)


def test_states_survive_storage() -> None:
    state = {"delta.a": torch.rand(2), "up.b": torch.rand(2, 1), "down.b": torch.rand(1, 2)}
    again = WeightDelta.from_state(state).state()
    assert again.keys() == state.keys()
    token = TokenEmbedding.from_state(["<v>"], {"token.0": torch.rand(1, 4), **state})
    assert token.state().keys() == {"token.0"}


def test_columns_are_those_of_tokens_and_category(backbone: Backbone) -> None:
    token = TokenEmbedding.from_words(backbone, ["<v0>", "<v1>"], "dog")
    with injected(backbone, [token]):
        columns = token_columns(backbone, "a dog: a <v0> <v1> dog", ("<v0>", "<v1>"), "dog")
        encoder = backbone.text_encoders[0]
        ids = encoder.tokenizer("a dog: a <v0> <v1> dog").input_ids
        with pytest.raises(InvalidInput, match="does not name"):
            token_columns(backbone, "a <v0> dog", ("<v0>", "<v1>"), "dog")
    assert ids[columns[-1]] == encoder.tokenizer("dog", add_special_tokens=False).input_ids[0]
    assert columns == [columns[0], columns[0] + 1, columns[0] + 2]


def test_a_former_end_token_is_given_back(backbone: Backbone) -> None:
    """Configurations from before 2023 say 2, for which the highest id is read."""
    network = backbone.text_encoders[0].network
    read = [each for each in network.modules() if "eos_token_id" in vars(each)]
    assert read
    for module in read:
        module.eos_token_id = 2  # pyright: ignore[reportArgumentType]
    token = TokenEmbedding.from_words(backbone, ["<v>"], "dog")
    own = backbone.text_encoders[0].tokenizer.eos_token_id
    with injected(backbone, [token]):
        assert all(each.eos_token_id == own for each in read)
    assert all(each.eos_token_id == 2 for each in read)
