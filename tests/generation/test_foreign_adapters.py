"""Adapters that mean harm, or are none: refused before anything is computed, by the version's name.

Whatever fails, the base model is as it was, bit for bit.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from conceptry.adapters.adapter import injected
from conceptry.adapters.file_format import AdapterMetadata, read_adapter
from conceptry.adapters.limits import MAX_RANK, MAX_STAGES, MAX_TOKENS
from conceptry.adapters.timestep_tokens import (
    STAGE_ORDER,
    TimestepRouting,
    TimestepTokens,
    TimestepVectors,
)
from conceptry.adapters.token_embedding import NewTokens, TokenEmbedding
from conceptry.adapters.weight_delta import WeightDelta
from conceptry.generation import Request, SamplingSettings, generate
from conceptry.models.backbone import Backbone
from conceptry.models.loading import LoadedBase
from conceptry.registry import Registry
from conceptry.registry.errors import InvalidWeights
from conceptry.registry.running import ADAPTER_FILE
from conceptry.registry.tensors import ADAPTER_FORMAT
from long import quick_for
from safetensors.torch import save_file
from torch import Tensor, nn

WIDTH = 32
TOKEN = {"token.0": torch.zeros(1, WIDTH)}
KEPT = "conv_in.bias"
NAME = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q.weight"


def staged(*shape: int) -> dict[str, Tensor]:
    return {"staged.0": torch.zeros(shape)}


def thin(up: tuple[int, ...], down: tuple[int, ...]) -> dict[str, Tensor]:
    return TOKEN | {f"up.{NAME}": torch.zeros(up), f"down.{NAME}": torch.zeros(down)}


ONE = {"prompt": "a {}", "weight": 3.0, "share": 0.9, "guidance": 2.5}
AFTER: dict[str, object] = {"references": [ONE]}


def after(
    latents: tuple[int, ...] = (4, 8, 8), mask: tuple[int, ...] = (8, 8)
) -> dict[str, Tensor]:
    return {"reference.0.latents": torch.zeros(latents), "reference.0.mask": torch.ones(mask)}


TOLD: dict[str, object] = {
    "tokens without end": {"num_tokens": 10**9},
    "more tokens than taught": {"num_tokens": MAX_TOKENS + 1},
    "no token": {"num_tokens": 0},
    "fewer than none": {"num_tokens": -1},
    "a number as a text": {"num_tokens": "1"},
    "half a token": {"num_tokens": 1.5},
    "true tokens": {"num_tokens": True},
    "other than there are": {"num_tokens": 3},
    "categories": {"category": ["dog"]},
    "null category": {"category": None},
    "empty category": {"category": ""},
    "long category": {"category": "dog " * 10},
    "very long category": {"category": "dog " * 100_000},
    "category of spaces": {"category": " dog"},
    "category that is a token": {"category": "<rex@1#0>"},
    "category with an escape": {"category": "\x1b[2Jdog"},
    "null base": {"base_sha256": None},
    "base as a mapping": {"base_sha256": {}},
    "base that is no hash": {"base_sha256": "x"},
    "method of two lines": {"method": "a\nb"},
    "yes": {"names_category": "yes"},
    "unknown order": {"stage_order": "stage 0 has the most noise"},
    "orders": {"stage_order": [STAGE_ORDER]},
    "stages without vectors": {"stage_order": STAGE_ORDER},
    "a key more": {"further": 1},
}
IN_STAGES: dict[str, object] = {"stage_order": STAGE_ORDER}
TENSORS: dict[str, tuple[dict[str, Tensor], dict[str, object]]] = {
    "no vectors": ({"z": torch.zeros(1)}, {}),
    "another width": ({"token.0": torch.zeros(1, WIDTH + 1)}, {}),
    "one dimension": ({"token.0": torch.zeros(WIDTH)}, {}),
    "a number": ({"token.0": torch.zeros(())}, {}),
    "empty": ({"token.0": torch.zeros(0, WIDTH)}, {}),
    "no width": ({"token.0": torch.zeros(1, 0)}, {}),
    "integers": ({"token.0": torch.zeros(1, WIDTH, dtype=torch.int64)}, {}),
    "doubles": ({"token.0": torch.full((1, WIDTH), 1e300, dtype=torch.float64)}, {}),
    "an encoder more": ({**TOKEN, "token.1": torch.zeros(1, WIDTH)}, {}),
    "a gap": ({"token.1": torch.zeros(1, WIDTH)}, {}),
    "vectors of both kinds": ({**TOKEN, **staged(2, 2, WIDTH)}, {}),
    "a tensor more": ({**TOKEN, "x": torch.zeros(1)}, {}),
    "unknown weights": ({**TOKEN, "delta.nope": torch.zeros(1)}, {}),
    "a change, then an unknown one": (
        {**TOKEN, f"delta.{KEPT}": torch.full((16,), 9.0), "delta.zzz": torch.zeros(1)},
        {},
    ),
    "another shape": ({**TOKEN, "delta.conv_in.weight": torch.zeros(7)}, {}),
    "a shape that broadcasts": ({**TOKEN, f"delta.{KEPT}": torch.zeros(2000, 1)}, {}),
    "up without down": ({**TOKEN, f"up.{NAME}": torch.zeros(32, 1)}, {}),
    "down without up": ({**TOKEN, f"down.{NAME}": torch.zeros(1, 32)}, {}),
    "up beside a change": ({**thin((32, 1), (1, 32)), f"delta.{NAME}": torch.zeros(32, 32)}, {}),
    "a product without end": (thin((100_000, 1), (1, 100_000)), {}),
    "ranks that differ": (thin((32, 4), (5, 32)), {}),
    "a rank without end": (thin((32, MAX_RANK + 1), (MAX_RANK + 1, 32)), {}),
    "no rank": (thin((32, 0), (0, 32)), {}),
    "down as a number": (thin((32, 4), ()), {}),
    "down as a row": (thin((32, 32), (32,)), {}),
    "no stages": (staged(0, 2, WIDTH), IN_STAGES),
    "stages as a row": (staged(3), IN_STAGES),
    "one role": (staged(3, 1, WIDTH), IN_STAGES),
    "stages without end": (staged(MAX_STAGES + 1, 2, WIDTH), IN_STAGES),
    "stages of another width": (staged(3, 2, WIDTH + 1), IN_STAGES),
    "two tokens in stages": (staged(3, 2, WIDTH), IN_STAGES | {"num_tokens": 2}),
    "references that are not described": ({**TOKEN, **after()}, {}),
    "a reference that is not there": (TOKEN, AFTER),
    "a reference without a mask": ({**TOKEN, "reference.0.latents": torch.zeros(4, 8, 8)}, AFTER),
    "a mask of another size": ({**TOKEN, **after(mask=(8, 9))}, AFTER),
    "latents of another model": ({**TOKEN, **after((5, 8, 8))}, AFTER),
    "latents without a size": ({**TOKEN, **after((4, 0, 8), (0, 8))}, AFTER),
    "flat latents": ({**TOKEN, **after((64,), (64,))}, AFTER),
    "latents without end": ({**TOKEN, **after((4, 1, 1 << 19), (1, 1 << 19))}, AFTER),
    "a negative weight": ({**TOKEN, **after()}, {"references": [ONE | {"weight": -1.0}]}),
    "a weight without end": ({**TOKEN, **after()}, {"references": [ONE | {"weight": 1e9}]}),
    "a share above one": ({**TOKEN, **after()}, {"references": [ONE | {"share": 1.5}]}),
    "a prompt without end": ({**TOKEN, **after()}, {"references": [ONE | {"prompt": "a " * 999}]}),
    "a key of a reference": ({**TOKEN, **after()}, {"references": [ONE | {"path": "/etc"}]}),
    "references without end": ({**TOKEN, **after()}, {"references": [ONE] * 65}),
}


def fits(base: LoadedBase) -> dict[str, Any]:
    return asdict(
        AdapterMetadata(
            base_sha256=base.sha256,
            method="attndreambooth",
            category="dog",
            num_tokens=1,
            names_category=True,
        )
    )


def state_of(backbone: Backbone) -> dict[str, Any]:
    """All that an adapter could change: modules by identity, weights by value."""
    parts = {"denoiser": backbone.denoiser}
    parts |= {f"text {i}": each.network for i, each in enumerate(backbone.text_encoders)}
    modules = {f"{p} {n}": id(m) for p, part in parts.items() for n, m in part.named_modules()}
    hooks = {
        f"{p} {n} hooks": len(m._forward_pre_hooks)
        for p, part in parts.items()
        for n, m in part.named_modules()
    }
    weights = {
        f"{p} {n} weight": w.detach().clone().numpy().tobytes()
        for p, part in parts.items()
        for n, w in part.named_parameters()
    }
    readers = {f"tokenizer {i}": id(e.tokenizer) for i, e in enumerate(backbone.text_encoders)}
    return (
        modules
        | hooks
        | weights
        | readers
        | {
            "wrappers": len(backbone._text_wrappers),
            "references": len(backbone.references),
        }
    )


def refused(
    rex: Registry, base: LoadedBase, tmp_path: Path, tensors: dict[str, Tensor], told: Any
) -> None:
    save_file(tensors, tmp_path / "rex.safetensors", told)
    rex.add_version("rex", {ADAPTER_FILE: tmp_path / "rex.safetensors"})
    before = state_of(base.backbone)
    for strength in ("", ":0.5"):
        wanted = Request(prompt=f"<rex{strength}>", seeds=(3,), settings=SamplingSettings(steps=1))
        with pytest.raises(InvalidWeights, match=r"rex@1 cannot be drawn with: ") as caught:
            list(generate(rex, base, [wanted], tmp_path / "out"))
        assert len(caught.value.message) < 600
        assert caught.value.hint == "concept train rex"
        assert state_of(base.backbone) == before
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("change", quick_for(4, TOLD.values()), ids=TOLD)
def test_what_says_something_odd_of_itself_is_refused(
    rex: Registry, base: LoadedBase, tmp_path: Path, change: dict[str, object]
) -> None:
    told = {ADAPTER_FORMAT: json.dumps(fits(base) | change)}
    refused(rex, base, tmp_path, TOKEN, told)


@pytest.mark.parametrize(
    "told",
    [
        None,
        {"format": "pt"},
        *({ADAPTER_FORMAT: text} for text in ("", "null", "[1]", "{}", "[" * 2000 + "]" * 2000)),
    ],
    ids=["nothing", "another tool's", "empty", "null", "a list", "no keys", "deep"],
)
def test_what_does_not_say_what_it_fits_is_refused(
    rex: Registry, base: LoadedBase, tmp_path: Path, told: dict[str, str] | None
) -> None:
    refused(rex, base, tmp_path, TOKEN, told)


@pytest.mark.parametrize("name", quick_for(6, TENSORS))
def test_tensors_that_do_not_fit_are_refused(
    rex: Registry, base: LoadedBase, tmp_path: Path, name: str
) -> None:
    tensors, change = TENSORS[name]
    told = {ADAPTER_FORMAT: json.dumps(fits(base) | change)}
    refused(rex, base, tmp_path, tensors, told)


def test_what_is_taught_stays_within_the_bounds(base: LoadedBase, tmp_path: Path) -> None:
    told = fits(base) | {"num_tokens": MAX_TOKENS}
    tensors = {"token.0": torch.zeros(MAX_TOKENS, WIDTH), f"delta.{KEPT}": torch.zeros(16)}
    save_file(tensors, tmp_path / "a.safetensors", {ADAPTER_FORMAT: json.dumps(told)})
    state, found = read_adapter(tmp_path / "a.safetensors")
    assert (state.keys(), asdict(found)) == (tensors.keys(), told)


# --- injections that fail halfway -----------------------------------------------------------------


class _FailsLater:
    """Rows of new tokens for the first text encoder, and none for those after it."""

    def __len__(self) -> int:
        return 2

    def __iter__(self) -> Iterator[Any]:
        yield lambda: torch.zeros(1, WIDTH)
        raise MemoryError


def test_new_tokens_that_fail_leave_nothing(
    backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = state_of(backbone)
    rows: Any = _FailsLater()
    encoders = backbone.text_encoders * 2
    monkeypatch.setattr(type(backbone), "text_encoders", property(lambda _: encoders))
    tokens = NewTokens(("<v>",), rows)
    with pytest.raises(MemoryError):
        tokens.inject(backbone)
    monkeypatch.undo()
    assert state_of(backbone) == before


def test_a_change_that_fails_leaves_nothing(backbone: Backbone) -> None:
    before = state_of(backbone)
    token = TokenEmbedding.from_words(backbone, ["<v>"], "dog")
    change = WeightDelta({KEPT: torch.ones(16), "conv_in.weight": torch.ones(7)})
    for _ in range(2):  # and it can be tried again
        with pytest.raises(RuntimeError), injected(backbone, [token, change]):
            pytest.fail("it went in")
        assert state_of(backbone) == before


def test_stages_that_fail_leave_nothing(
    backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = state_of(backbone)
    token = TimestepTokens(("<v>",), "dog", [TimestepVectors(torch.zeros(2, 2, WIDTH))])
    projections = list(backbone.cross_attention())
    failing: Any = [*projections[:1], (nn.Identity(), None)]
    monkeypatch.setattr(type(backbone), "cross_attention", lambda _: iter(failing))
    for _ in range(2):
        with (
            pytest.raises(AttributeError),
            injected(backbone, [token, TimestepRouting([token])]),
        ):
            pytest.fail("it went in")
        assert state_of(backbone) == before


def test_what_is_in_already_stays_in(backbone: Backbone) -> None:
    change = WeightDelta({KEPT: torch.ones(16)})
    own = backbone.parameters("denoiser")[KEPT].detach().clone()
    with injected(backbone, [change]):
        with pytest.raises(RuntimeError, match="already"):
            change.inject(backbone)
        assert backbone.parameters("denoiser")[KEPT].equal(own + 1)
    assert backbone.parameters("denoiser")[KEPT].equal(own)
