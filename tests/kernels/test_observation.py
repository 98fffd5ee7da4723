"""Watching a U-Net: its output stays, what is seen is what a materialised map would show."""

import copy
import gc
import weakref
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import Any

import pytest
import torch
from conceptry.kernels import observation, observe
from conceptry.kernels.inputs import check_columns
from conceptry.kernels.observation import AttentionStack
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor2_0
from eager_attention import EagerProcessor
from full_size import UNETS, make_full_unet
from torch import Tensor

BLOCKS: dict[str, Any] = {
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "block_out_channels": (32, 64),
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "sample_size": 16,
}
SHAPES: dict[str, dict[str, Any]] = {
    "SD 1.5": {"cross_attention_dim": 24, "attention_head_dim": 8},
    "SD 2.1": {
        "cross_attention_dim": 32,
        "attention_head_dim": (4, 8),
        "use_linear_projection": True,
    },
    "SDXL": {
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "cross_attention_dim": 48,
        "attention_head_dim": (4, 8),
        "transformer_layers_per_block": (1, 2),
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 6 * 8 + 20,
    },
}
COLUMNS = [2, 5, 6]


def make_unet(options: dict[str, Any]) -> UNet2DConditionModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return UNet2DConditionModel(**(BLOCKS | options))


@pytest.fixture(params=list(SHAPES))
def unet(request: pytest.FixtureRequest) -> UNet2DConditionModel:
    return make_unet(SHAPES[request.param])


def inputs_for(unet: Any, batch: int = 2, side: int = 16) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    given: dict[str, Any] = {
        "sample": normal(batch, 4, side, side),
        "timestep": torch.tensor([10, 900][:batch]),
        "encoder_hidden_states": normal(batch, 9, unet.config.cross_attention_dim),
    }
    if unet.config.addition_embed_type == "text_time":
        pooled = unet.config.projection_class_embeddings_input_dim
        pooled -= 6 * unet.config.addition_time_embed_dim
        given["added_cond_kwargs"] = {
            "text_embeds": normal(batch, pooled),
            "time_ids": torch.ones(batch, 6),
        }
    return given


def test_self_attention_carries_maps(unet: Any) -> None:
    """What it carries is the product with the whole matrix; the output stays what it is."""
    inputs = inputs_for(unet)
    plain = unet(**inputs).sample
    stack, kept = AttentionStack.of(unet), dict[str, Tensor]()
    own = unet.attn_processors
    names = [name for name in own if "attn1" in name]
    with stack.follow() as followed:
        watched = unet(**inputs).sample
    assert torch.equal(plain, watched)
    assert {f"{layer}.processor" for layer in followed.kept} == set(names)
    replaced = {name: EagerProcessor(kept, name.removesuffix(".processor")) for name in names}
    unet.set_attn_processor(own | replaced)
    unet(**inputs)
    for layer, whole in kept.items():
        generator = torch.Generator().manual_seed(2)
        values = torch.rand(len(whole), 3, whole.shape[-1], generator=generator)
        wanted = (whole.double().mean(1) @ values.double().mT).mT
        carried = followed.carry(layer, values)
        assert carried.shape == values.shape
        assert torch.allclose(carried.double(), wanted, atol=1e-5)


def test_places_of_perturbed_rows_attend_themselves_alone(unet: Any) -> None:
    """The values pass as they are; other rows, maps and the U-Net afterwards are as before."""
    stack = AttentionStack.of(unet)
    layer = next(name for name in stack.layers if name.endswith("attn1"))
    attention = unet.get_submodule(layer)
    generator = torch.Generator().manual_seed(1)
    states = torch.randn(2, 9, attention.to_q.in_features, generator=generator)
    plain = attention(states)
    with stack.perturb(torch.tensor([False, True])):
        perturbed = attention(states)
    assert torch.allclose(perturbed[0], plain[0], atol=1e-6)
    expected = attention.to_out[0](attention.to_v(states[1]))
    assert torch.allclose(perturbed[1], expected, atol=1e-6)
    assert torch.equal(attention(states), plain)
    inputs = inputs_for(unet)
    with stack.perturb(torch.zeros(2, dtype=torch.bool)):
        check(unet, inputs)


def materialised(unet: Any, inputs: dict[str, Any]) -> dict[str, Tensor]:
    """The whole map (B, H, N, T) of every cross-attention layer."""
    own, maps = unet.attn_processors, {}
    names = [name for name in own if "attn2" in name]
    replaced = {name: EagerProcessor(maps, name.removesuffix(".processor")) for name in names}
    unet.set_attn_processor(own | replaced)
    unet(**inputs)
    unet.set_attn_processor(own)
    return maps


def check(unet: Any, inputs: dict[str, Any]) -> None:
    plain = unet(**inputs).sample
    truth = materialised(unet, inputs)
    with observe(unet, columns=COLUMNS, want=("maps", "moments")) as seen:
        watched = unet(**inputs).sample
    assert torch.allclose(watched, plain, rtol=1e-4, atol=1e-5)
    assert list(seen.maps) == list(seen.moments) == list(truth)
    for name, whole in truth.items():
        columns = whole[..., COLUMNS]
        assert torch.allclose(seen.maps[name], columns.mean(1).mT, rtol=1e-4, atol=1e-7)
        values = columns.permute(0, 3, 1, 2).flatten(2)
        expected = torch.stack([values.mean(-1), values.var(-1)], -1)
        assert torch.allclose(seen.moments[name], expected, rtol=1e-3, atol=1e-9)


def test_output_and_maps_are_those_of_diffusers(unet: Any) -> None:
    with torch.no_grad():
        check(unet, inputs_for(unet))


@pytest.mark.slow
@pytest.mark.parametrize("name", list(UNETS))
def test_output_and_maps_at_full_size(name: str) -> None:
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(0)
        whole = make_full_unet(name)
        check(whole, inputs_for(whole, side=32))


def test_the_processors_are_given_back(unet: Any) -> None:
    own = unet.attn_processors
    with observe(unet, columns=COLUMNS):
        assert unet.attn_processors != own
    assert unet.attn_processors == own
    with pytest.raises(ZeroDivisionError), observe(unet, columns=COLUMNS):
        print(1 / 0)
    assert unet.attn_processors == own


# --- processors that stay -----------------------------------------------------------------------


def all_bits(tensors: Iterable[Tensor | None]) -> list[bytes | None]:
    return [None if each is None else each.detach().numpy().tobytes() for each in tensors]


def output_and_gradients(unet: Any, inputs: dict[str, Any]) -> list[bytes | None]:
    unet.zero_grad(set_to_none=True)
    output = unet(**inputs).sample
    output.square().mean().backward()
    return all_bits([output, *(each.grad for each in unet.parameters())])


@pytest.mark.parametrize("is_checkpointing", [False, True])
def test_where_nobody_watches_nothing_changes(unet: Any, is_checkpointing: bool) -> None:
    inputs = inputs_for(unet)
    if is_checkpointing:
        unet.train().enable_gradient_checkpointing()
    names, before = list(unet.state_dict()), output_and_gradients(unet, inputs)
    stack = AttentionStack.of(unet)
    assert output_and_gradients(unet, inputs) == before
    with stack.observe(columns=COLUMNS):
        unet(**inputs)
    assert output_and_gradients(unet, inputs) == before
    with pytest.raises(ZeroDivisionError), stack.observe(columns=COLUMNS):
        print(1 / 0)
    assert output_and_gradients(unet, inputs) == before
    with stack.observe(columns=COLUMNS, layers="mid_block.*attn2") as seen:
        for _ in range(2):
            unet(**inputs)
    assert set(seen.moments) == {name for name in stack.layers if "mid_block" in name} & set(
        cross_attention(stack)
    )
    assert list(unet.state_dict()) == names


def cross_attention(stack: AttentionStack) -> list[str]:
    return [name for name in stack.layers if name.endswith("attn2")]


@torch.no_grad()
def test_layers_that_nobody_watches_compute_what_they_did(unet: Any) -> None:
    """Each by the processor that it had, whoever watches others."""
    calls: list[Any] = []

    class Counted:
        def __init__(self, own: Any) -> None:
            self.own = own

        def __call__(self, attn: Any, *args: Any, **kwargs: Any) -> Tensor:
            calls.append(attn)
            return self.own(attn, *args, **kwargs)

    unet.set_attn_processor({name: Counted(own) for name, own in unet.attn_processors.items()})
    stack = AttentionStack.of(unet)
    with stack.observe(columns=COLUMNS):
        unet(**inputs_for(unet))
    watched = {unet.get_submodule(name) for name in cross_attention(stack)}
    assert len(calls) == len(stack.layers) - len(watched)
    assert not watched & set(calls)


@torch.no_grad()
def test_the_latest_who_watches_a_layer_sees_it(unet: Any) -> None:
    """The others see it again afterwards, in whatever order they go."""
    inputs, stack = inputs_for(unet), AttentionStack.of(unet)
    names = set(cross_attention(stack))
    middle = {name for name in names if "mid_block" in name}
    assert middle < names

    def seen_by(*observations: Any) -> list[set[str]]:
        for each in observations:
            each.clear()
        unet(**inputs)
        return [{*each.moments, *each.maps} for each in observations]

    with ExitStack() as first, ExitStack() as second:
        whole = first.enter_context(stack.observe(columns=COLUMNS))
        part = second.enter_context(
            stack.observe(columns=[1], want="maps", layers="mid_block.*attn2")
        )
        assert seen_by(whole, part) == [names - middle, middle]
        with stack.observe(columns=[3]) as last:
            assert seen_by(whole, part, last) == [set(), set(), names]
        assert seen_by(whole, part) == [names - middle, middle]
        first.close()
        assert seen_by(whole, part) == [set(), middle]
    assert seen_by(whole, part) == [set(), set()]


@torch.no_grad()
def test_a_unet_has_one_stack(unet: Any) -> None:
    inputs, own = inputs_for(unet), unet.attn_processors
    stack = AttentionStack.of(unet)
    ours = unet.attn_processors
    assert AttentionStack.of(unet) is stack
    with stack.observe(columns=COLUMNS) as outer, observe(unet, columns=COLUMNS) as inner:
        assert unet.attn_processors == ours
        unet(**inputs)
    assert not outer.moments
    assert set(inner.moments) == set(cross_attention(stack))
    assert unet.attn_processors == ours
    unet.set_attn_processor(own)
    again = AttentionStack.of(unet)
    assert again is not stack
    with stack.observe(columns=COLUMNS) as outer, again.observe(columns=COLUMNS) as inner:
        unet(**inputs)
    assert (len(outer.moments), len(inner.moments)) == (0, len(cross_attention(stack)))


@torch.no_grad()
def test_where_somebody_replaced_some_processors_all_layers_are_seen(unet: Any) -> None:
    stack = AttentionStack.of(unet)
    replaced = cross_attention(stack)[0]
    plain = AttnProcessor2_0()
    unet.set_attn_processor(unet.attn_processors | {f"{replaced}.processor": plain})
    with observe(unet, columns=COLUMNS) as seen:
        unet(**inputs_for(unet))
    assert set(seen.moments) == set(cross_attention(stack))


@torch.no_grad()
def test_a_copy_has_a_stack_of_its_own(unet: Any) -> None:
    inputs, stack = inputs_for(unet), AttentionStack.of(unet)
    before = unet(**inputs).sample
    with stack.observe(columns=COLUMNS):
        copied = copy.deepcopy(unet)  # not who watches
    assert all_bits([copied(**inputs).sample]) == all_bits([before])
    with stack.observe(columns=COLUMNS) as ours, observe(copied, columns=COLUMNS) as theirs:
        unet(**inputs)
        assert len(ours.moments) == len(cross_attention(stack))
        assert not theirs.moments
        ours.clear()
        copied(**inputs)
        assert not ours.moments
        assert len(theirs.moments) == len(cross_attention(stack))
    other = AttentionStack.of(copied)
    assert other is not stack
    assert not {id(each) for each in copied.attn_processors.values()} & {
        id(each) for each in unet.attn_processors.values()
    }
    for each in copied.parameters():
        each.zero_()
    assert all_bits([unet(**inputs).sample]) == all_bits([before])
    assert not copied(**inputs).sample.any()


# --- gradients, layers, columns -------------------------------------------------------------------


def loss_of(seen: Any) -> Tensor:
    return sum((m[..., 0] * 3 + m[..., 1] * 50).sum() for m in seen.moments.values())  # pyright: ignore[reportReturnType]


def gradients(unet: Any, inputs: dict[str, Any]) -> dict[str, Tensor]:
    unet.zero_grad(set_to_none=True)
    with observe(unet, columns=COLUMNS) as seen:
        output = unet(**inputs).sample
        (output.square().mean() + loss_of(seen)).backward()
    assert len(seen.moments) == sum("attn2" in name for name in unet.attn_processors)
    return {name: p.grad for name, p in unet.named_parameters() if p.grad is not None}


def test_gradients_flow_through_what_is_seen(unet: Any) -> None:
    inputs = inputs_for(unet)
    with observe(unet, columns=COLUMNS) as seen:
        unet(**inputs)
    found = torch.autograd.grad(loss_of(seen), list(unet.parameters()), allow_unused=True)
    with_gradient = {
        name
        for (name, _), gradient in zip(unet.named_parameters(), found, strict=True)
        if gradient is not None and gradient.any()
    }
    assert any("attn2.to_k" in name for name in with_gradient)
    assert any("attn2.to_q" in name for name in with_gradient)
    assert any("conv_in" in name for name in with_gradient)


def test_gradient_checkpointing_changes_nothing(unet: Any) -> None:
    inputs = inputs_for(unet)
    unet.train()
    plain = gradients(unet, inputs)
    unet.enable_gradient_checkpointing()
    again = gradients(unet, inputs)
    assert plain.keys() == again.keys()
    assert all(torch.allclose(plain[name], again[name], rtol=1e-4, atol=1e-6) for name in plain)


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        (r"mid_block.*attn2", lambda name: name.startswith("mid_block") and "attn2" in name),
        (lambda name: name.endswith("attn1"), lambda name: "attn1" in name),
    ],
    ids=["expression", "function"],
)
def test_layers_are_chosen(
    unet: Any, layers: str | Callable[[str], bool], expected: Callable[[str], bool]
) -> None:
    with torch.no_grad(), observe(unet, columns=[0], layers=layers) as seen:
        unet(**inputs_for(unet))
    names = [name.removesuffix(".processor") for name in unet.attn_processors]
    assert set(seen.moments) == set(filter(expected, names))


def test_each_sample_may_have_its_own_columns(unet: Any) -> None:
    inputs = inputs_for(unet)
    truth = materialised(unet, inputs)
    with torch.no_grad(), observe(unet, columns=torch.tensor([[1], [4]]), want="maps") as seen:
        unet(**inputs)
    for name, whole in truth.items():
        expected = torch.stack([whole[0, ..., 1].mean(0), whole[1, ..., 4].mean(0)])
        assert torch.allclose(seen.maps[name][:, 0], expected, rtol=1e-4, atol=1e-7)


def test_columns_are_looked_at_once_for_all_layers_and_passes(
    unet: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU each look waits for all that was asked of it."""
    looks: list[Any] = []
    monkeypatch.setattr(
        observation,
        "check_columns",
        lambda columns, *rest: looks.append(columns) or check_columns(columns, *rest),
    )
    with observe(unet, columns=[2, 3]) as seen:
        for batch in (1, 2):
            unet(**inputs_for(unet, batch))
            assert all(len(moments) == batch for moments in seen.moments.values())
    assert len(looks) == 1


def test_masks_of_tokens_are_respected(unet: Any) -> None:
    inputs = inputs_for(unet)
    mask = torch.ones(2, 9, dtype=torch.bool)
    mask[:, 5:] = False
    plain = unet(**inputs, encoder_attention_mask=mask).sample
    with observe(unet, columns=COLUMNS, want="maps") as seen:
        watched = unet(**inputs, encoder_attention_mask=mask).sample
    assert torch.allclose(watched, plain, rtol=1e-4, atol=1e-5)
    assert all(maps[:, 0].any() and not maps[:, 1:].any() for maps in seen.maps.values())


def test_low_precision(unet: Any) -> None:
    inputs = inputs_for(unet)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        plain = unet(**inputs).sample
        with observe(unet, columns=COLUMNS) as seen:
            watched = unet(**inputs).sample
    assert torch.allclose(watched.float(), plain.float(), rtol=0.05, atol=0.05)
    assert {m.dtype for m in seen.moments.values()} == {torch.float32}


@pytest.mark.long
def test_a_compiled_unet_can_be_watched() -> None:
    """Attention itself stays out of the compiled graph: one break at each watched layer.

    Code is compiled for a layer that is watched and for one that is not, not for every layer.
    """
    torch.compiler.reset()  # what was compiled before counts against a limit
    one_level = {"down_block_types": BLOCKS["down_block_types"][:1]}
    one_level |= {"up_block_types": BLOCKS["up_block_types"][1:], "block_out_channels": (32,)}
    unet = make_unet(SHAPES["SD 1.5"] | one_level)
    inputs = inputs_for(unet)
    compiled = torch.compile(unet, backend="eager")
    few = torch._dynamo.config.patch(recompile_limit=4, fail_on_recompile_limit_hit=True)
    with few, torch.no_grad():
        plain = compiled(**inputs).sample
        with observe(unet, columns=COLUMNS) as eager:
            unet(**inputs)
        with observe(unet, columns=COLUMNS) as seen:
            watched = compiled(**inputs).sample
        assert torch.allclose(compiled(**inputs).sample, plain)
        stack = AttentionStack.of(unet)
        whole = torch.compile(unet, backend="eager", fullgraph=True)
        assert torch.equal(whole(**inputs).sample, plain)
        with stack.observe(columns=COLUMNS) as by_stack:
            compiled(**inputs)
        assert torch.equal(whole(**inputs).sample, plain)
    assert by_stack.moments.keys() == eager.moments.keys()
    assert torch.allclose(watched, plain, rtol=1e-4, atol=1e-5)
    assert seen.moments.keys() == eager.moments.keys()
    assert all(torch.allclose(seen.moments[name], eager.moments[name]) for name in seen.moments)


def reference_for(inputs: dict[str, Any]) -> Tensor:
    states = inputs["encoder_hidden_states"]
    return states.flip(0) + 0.1 * torch.arange(states.shape[1])[:, None]


def test_distances_are_those_of_materialised_maps(unet: Any) -> None:
    """Of each layer: the same queries over the keys of two texts."""
    inputs = inputs_for(unet)
    reference = reference_for(inputs)
    queries: dict[str, Tensor] = {}
    layers = {name: m for name, m in unet.named_modules() if name.endswith("attn2")}
    hooks = [
        layer.to_q.register_forward_hook(lambda _, __, out, name=name: queries.update({name: out}))
        for name, layer in layers.items()
    ]
    with torch.no_grad(), observe(unet, reference=reference) as seen:
        watched = unet(**inputs).sample
        plain = unet(**inputs).sample
    for hook in hooks:
        hook.remove()
    assert torch.allclose(watched, plain)
    assert torch.allclose(watched, unet(**inputs).sample, rtol=1e-4, atol=1e-5)
    assert seen.distances.keys() == layers.keys()
    for name, layer in layers.items():
        maps = []
        for states in (inputs["encoder_hidden_states"], reference):
            q, k = (
                x.unflatten(-1, (layer.heads, -1)).transpose(1, 2)
                for x in (queries[name], layer.to_k(states))
            )
            maps.append((q @ k.mT * layer.scale).softmax(-1))
        expected = (maps[0] - maps[1]).square().sum((2, 3)).mean(1)
        assert torch.allclose(seen.distances[name], expected, rtol=1e-4, atol=1e-7)


def test_moments_and_distances_are_seen_in_one_pass(unet: Any) -> None:
    inputs = inputs_for(unet)
    with torch.no_grad():
        with observe(unet, columns=COLUMNS) as moments:
            unet(**inputs)
        with observe(unet, reference=reference_for(inputs)) as distances:
            unet(**inputs)
        with observe(unet, columns=COLUMNS, reference=reference_for(inputs)) as both:
            unet(**inputs)
    assert both.moments.keys() == moments.moments.keys()
    for name, expected in moments.moments.items():
        assert torch.allclose(both.moments[name], expected, rtol=1e-4, atol=1e-8)
        assert torch.allclose(both.distances[name], distances.distances[name], rtol=1e-4)


def test_a_text_is_at_no_distance_from_itself(unet: Any) -> None:
    inputs = inputs_for(unet)
    with torch.no_grad(), observe(unet, reference=inputs["encoder_hidden_states"]) as seen:
        unet(**inputs)
    assert all(not distance.any() for distance in seen.distances.values())


def test_distances_survive_gradient_checkpointing(unet: Any) -> None:
    inputs = inputs_for(unet)
    states = inputs["encoder_hidden_states"].requires_grad_(True)
    unet.train()
    found = []
    for begin in (lambda: None, unet.enable_gradient_checkpointing):
        begin()
        with observe(unet, reference=reference_for(inputs).detach()) as seen:
            unet(**inputs)
            sum(seen.distances.values()).sum().backward()  # pyright: ignore[reportAttributeAccessIssue]
        found.append(states.grad)
        states.grad = None
    assert found[0].any()
    assert torch.allclose(*found, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": "attn3"}, "no attention layer fits 'attn3'"),
        ({"want": "everything"}, "want is 'everything'"),
        ({"want": ()}, "expected 'maps', 'moments' or both"),
        ({"columns": None}, "columns and reference are both None"),
        ({"columns": None, "reference": torch.zeros(1), "want": "maps"}, "want is 'maps', but"),
        ({"reduction": "max"}, "reduction is 'max'"),
    ],
    ids=str,
)
def test_a_wrong_wish_is_told(options: dict[str, Any], message: str) -> None:
    unet = make_unet(SHAPES["SD 1.5"])
    given: dict[str, Any] = {"columns": [0]} | options
    with pytest.raises(ValueError, match=message), observe(unet, **given):
        pass


def test_a_unet_with_a_stack_is_gone_once_it_is_dropped() -> None:
    """Of two base models in turn, the first gives its memory back before the second is loaded."""
    gc.collect()
    gc.disable()
    try:
        unet = make_unet(next(iter(SHAPES.values())))
        AttentionStack.of(unet)
        layer = weakref.ref(next(unet.parameters()))
        del unet
        assert layer() is None
    finally:
        gc.enable()
