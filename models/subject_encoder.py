"""DreamTuner's subject encoder (arXiv 2312.13691, section 3.1): a reference seen by the U-Net.

A frozen CLIP picture encoder gives features of the reference, ResBlocks make tokens of them, and in
every transformer block a new sublayer (S-E-A) attends to the tokens, between self-attention and
cross-attention:

    z ← z + β · SEA(z, SE(r))

Certain: the encoder and its layers, S-E-A's place and its output layer that begins at zero.
Inferred from ELITE: a token for each patch, as wide as text states. Our defaults: the number of
ResBlocks, norms, and that S-E-A otherwise begins as the block's cross-attention.
"""

import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D
from PIL import Image
from torch import Tensor, nn

from .vision import VisionEncoder

STRENGTH = 0.2
"""β when a picture is drawn: certain (0.5 hurts editing). In pre-training it is 1."""
_NUM_BLOCKS = 2
_GROUPS = 32


class TokenMapper(nn.Module):
    """ResBlocks from features (B, channels, g, g) to tokens (B, g², width)."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(channels, width, 1)
        groups = math.gcd(_GROUPS, width)
        self.blocks = nn.ModuleList(
            ResnetBlock2D(in_channels=width, temb_channels=None, groups=groups)  # pyright: ignore[reportArgumentType]
            for _ in range(_NUM_BLOCKS)
        )
        self.norm = nn.LayerNorm(width)

    def forward(self, features: Tensor) -> Tensor:
        """Map features to tokens."""
        states = self.reduce(features.to(self.reduce.weight.dtype))
        for block in self.blocks:
            states = block(states, None)
        return self.norm(states.flatten(2).mT)


class SubjectAttentionLayer(nn.Module):
    """The sublayer S-E-A of one transformer block: a norm and cross-attention, at first zero."""

    def __init__(self, block: BasicTransformerBlock) -> None:
        super().__init__()
        cross = _cross_attention(block)
        self.widths = _widths(block)
        self.norm = nn.LayerNorm(block.dim)
        self.attention = Attention(
            query_dim=block.dim,
            cross_attention_dim=cross.cross_attention_dim,
            heads=cross.heads,
            dim_head=cross.inner_dim // cross.heads,
        )
        for parameter in self._output().parameters():
            nn.init.zeros_(parameter)

    def copy_cross_attention(self, block: BasicTransformerBlock) -> None:
        """Begin as a block's cross-attention and its norm, with an output of zero."""
        self.norm.load_state_dict(_part(block, "norm2").state_dict())
        self.attention.load_state_dict(_cross_attention(block).state_dict())
        for parameter in self._output().parameters():
            nn.init.zeros_(parameter)

    def _output(self) -> nn.Module:
        return self.attention.get_submodule("to_out.0")

    def forward(self, states: Tensor, tokens: Tensor) -> Tensor:
        """SEA(z, tokens), (B, N, C), for states z (B, N, C) and tokens (1 or B, n, d)."""
        if len(tokens) not in (1, len(states)):
            raise ValueError(
                f"there are tokens for {len(tokens)} rows: expected 1 or {len(states)}"
            )
        dtype = self.norm.weight.dtype
        seen = tokens.to(states.device, dtype).expand(len(states), -1, -1)
        return self.attention(self.norm(states.to(dtype)), encoder_hidden_states=seen).to(states)


@dataclass(slots=True)
class SubjectTokens:
    """Tokens of references, (1, n, d) for all rows of a batch or (B, n, d), and β."""

    tokens: Tensor
    strength: float = STRENGTH


class SubjectAttention(nn.Module):
    """The sublayers S-E-A for all transformer blocks of a U-Net, which stays as it is."""

    def __init__(self, denoiser: nn.Module) -> None:
        super().__init__()
        blocks = transformer_blocks(denoiser)
        self.width = next(_cross_attention(each).cross_attention_dim for each in blocks.values())
        self.layers = nn.ModuleDict(
            {_key(name): SubjectAttentionLayer(block) for name, block in blocks.items()}
        )

    def copy_cross_attention(self, denoiser: nn.Module) -> None:
        """Begin as the U-Net's cross-attention, with outputs of zero."""
        for name, block in transformer_blocks(denoiser).items():
            self._layer(name).copy_cross_attention(block)

    def fits(self, denoiser: nn.Module) -> bool:
        """Whether a U-Net has the same blocks, as wide as these sublayers."""
        blocks = transformer_blocks(denoiser)
        widths = {_key(name): _widths(block) for name, block in blocks.items()}
        return widths == {name: layer.widths for name, layer in self.layers.items()}

    def _layer(self, name: str) -> SubjectAttentionLayer:
        layer = self.layers[_key(name)]
        assert isinstance(layer, SubjectAttentionLayer)
        return layer

    def insert(self, denoiser: nn.Module, subject: SubjectTokens) -> ExitStack:
        """Insert the sublayers into a U-Net's blocks by hooks; closing the stack removes them.

        Tokens and strength are read at each pass. With a strength of 0 nothing is computed. With
        gradient checkpointing, call `backward` before they are removed.
        """
        with ExitStack() as hooks:
            for name, block in transformer_blocks(denoiser).items():
                sublayer = _Sublayer(self._layer(name), subject)
                before = _part(block, "norm1").register_forward_pre_hook(sublayer.before)
                hooks.callback(before.remove)
                after = _part(block, "attn1").register_forward_hook(sublayer.after)
                hooks.callback(after.remove)
            return hooks.pop_all()


class _Sublayer:
    """Adds S-E-A to the output of self-attention, so that the block's own sum is z + β·SEA(z).

    A block adds its input to what self-attention returns; that input is the one of `norm1`.
    """

    def __init__(self, layer: SubjectAttentionLayer, subject: SubjectTokens) -> None:
        self._layer, self._subject = layer, subject
        self._input: Tensor | None = None

    def before(self, _norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        """Keep a block's input (B, N, C)."""
        if self._subject.strength:
            self._input = inputs[0]

    def after(self, _attention: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        """Self-attention's output and β·SEA(z), for z the sum of its output and the input."""
        states, self._input = self._input, None
        if states is None:
            return output
        found = self._layer(output + states, self._subject.tokens)
        return output + self._subject.strength * found


class SubjectEncoder(nn.Module):
    """All parts: the picture encoder, which is frozen, the ResBlocks, and the sublayers."""

    def __init__(
        self, vision: VisionEncoder, mapper: TokenMapper, attention: SubjectAttention
    ) -> None:
        super().__init__()
        self.vision, self.mapper, self.attention = vision, mapper, attention

    @classmethod
    def for_denoiser(cls, vision: VisionEncoder, denoiser: nn.Module) -> "SubjectEncoder":
        """One that has not learned yet; its sublayers change nothing."""
        attention = SubjectAttention(denoiser)
        return cls(vision, TokenMapper(vision.channels, attention.width), attention)

    def forward(self, pixels: Tensor) -> Tensor:
        """References as `prepare` makes them, (R, 3, s, s), to tokens (R, n, d)."""
        return self.mapper(self.vision(pixels))

    def prepare(self, pictures: Sequence[Image.Image]) -> Tensor:
        """References whose background is removed (`on_white`), as pixels on its device."""
        return self.vision.prepare(pictures).to(self.mapper.norm.weight.device)

    def learned_state(self) -> dict[str, Tensor]:
        """What pre-training teaches: ResBlocks and sublayers, by name."""
        return learned_part(self.state_dict())


def learned_part(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of ResBlocks and sublayers."""
    return {name: value for name, value in state.items() if not name.startswith("vision.")}


def transformer_blocks(denoiser: nn.Module) -> dict[str, BasicTransformerBlock]:
    """A U-Net's transformer blocks, by name."""
    return {
        name: module
        for name, module in denoiser.named_modules()
        if isinstance(module, BasicTransformerBlock)
    }


def _cross_attention(block: BasicTransformerBlock) -> Attention:
    part = _part(block, "attn2")
    assert isinstance(part, Attention)
    return part


def _widths(block: BasicTransformerBlock) -> tuple[int, int]:
    """Of its states, and of those that its cross-attention attends to."""
    return block.dim, _cross_attention(block).cross_attention_dim


def _part(block: BasicTransformerBlock, name: str) -> nn.Module:
    return block.get_submodule(name)


def _key(name: str) -> str:
    return name.replace(".", "_")  # a dot would be another level
