"""How much memory a training needs on a GPU, counted before anything is loaded.

Networks are made on torch's meta device, whose tensors have shapes and no values, and a step of
each stage is done with them: what is alive at a time is summed, in blocks of 512 bytes as CUDA's
allocator has them. Attention keeps what the fused kernels keep, and types are those of autocast.
Not counted are what CUDA takes for itself, what lies unused between blocks, workspaces of
convolutions, pictures that are drawn on the way, and a subject encoder, which no base model's
shapes tell of.
"""

import gc
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 (everyone's name for it)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..methods.method import Method, Stage, active_stages, read_presets
from ..methods.settings import StageSettings, TrainingSettings
from ..models.bases import Base
from ..models.quantized import quantize
from ..models.sd import add_lora
from ..models.shapes import Shapes, shapes_of
from .distributed import num_processes
from .optimizers import bytes_of_state
from .precision import best_precision
from .training import has_lora, lora_of

CARDS = (8, 12, 16, 24)
"""Gigabytes of GPUs that people have."""
OVERHEAD = 500_000_000
"""Bytes that CUDA takes for itself."""
_MARGIN = 1.1
"""For what a step computes; counts were off by 7 % at most on an H200 (bench/memory.py)."""
_BLOCK = 512
_META = torch.device("meta")


@dataclass(frozen=True, slots=True)
class StageMemory:
    """Bytes that a stage needs on a GPU, at most at a time.

    `weights` are those of networks that stay there; `learning` what is kept of trained ones beside
    them, which is the optimiser's; `peak` has both, gradients and what a step computes. `needed` is
    what a card should have: with a margin, and what CUDA takes.
    """

    name: str
    weights: int
    learning: int
    peak: int
    needed: int


def _stage(name: str, weights: int, learning: int, peak: int) -> StageMemory:
    kept = weights + learning
    needed = kept + round(_MARGIN * (peak - kept)) + OVERHEAD
    return StageMemory(name, weights, learning, peak, needed)


@dataclass(frozen=True, slots=True)
class MemoryCount:
    """What a training needs on a GPU; `fits` are the `CARDS` that are enough."""

    stages: list[StageMemory]
    peak: int
    fits: list[int]


def memory_of(
    base: Base, method: Method, settings: TrainingSettings, together: int = 1
) -> MemoryCount | None:
    """The memory of a training on a base model.

    None if that is not on this machine, or cannot be counted: loading it says what is wrong.
    """
    with suppress(Exception):
        if shapes := shapes_of(base):
            return count_memory(shapes, method, settings, together=together)
    return None


def count_memory(
    shapes: Shapes,
    method: Method,
    settings: TrainingSettings,
    *,
    half: torch.dtype = torch.float16,
    together: int = 1,
) -> MemoryCount:
    """What loading the base model, encoding the photos, and each stage needs.

    `half` is the type of the base model's weights on a GPU; `together` concepts share a batch.
    """
    side = settings.resolution or shapes.size
    found = [_loading(shapes), _encoding(shapes, side)]
    for stage, own in active_stages(method, settings):
        counted = _Counted(shapes, method, settings, stage, own, side, half, together)
        found.append(counted.count())
        gc.collect()  # networks refer to themselves in circles
    peak = max(each.peak for each in found)
    needed = max(each.needed for each in found)
    return MemoryCount(found, peak, [size for size in CARDS if needed <= size << 30])


def less_memory(
    method: Method, settings: TrainingSettings, *, is_sdxl: bool, together: int = 1
) -> str:
    """What to type so that a training needs less memory, of which its settings have nothing yet."""
    stages = list(active_stages(method, settings))
    if not stages:
        return "end what else is on the GPU"
    ways = ["--together 1"] if together > 1 else []
    if not settings.rank and any(stage.learns != "embedding" for stage, _ in stages):
        wanted = ["8gb-sdxl", "8gb"] if is_sdxl else ["8gb"]
        presets = [f"--preset {name}" for name in wanted if name in read_presets(method)]
        ways.append(next(iter(presets), "--set rank=16"))
    words = [] if settings.gradient_checkpointing else ["gradient_checkpointing=true"]
    parts = max(own.batch for _, own in stages) // num_processes()
    if settings.gradient_accumulation < parts and not settings.fused_backward:
        words.append(f"gradient_accumulation={parts}")
    fewer_bits = {"none": "8bit", "8bit": "4bit"}.get(settings.quantize)
    if not words and fewer_bits and (settings.rank or method.keeps_base) and not settings.lora.dora:
        words.append(f"quantize={fewer_bits}")
    if words:
        ways.append(" ".join(f"--set {word}" for word in words))
    return ", or ".join(ways) or "--set resolution=… lower"


def _loading(shapes: Shapes) -> StageMemory:
    """All networks, in half precision."""
    networks = [shapes.make_unet(), shapes.make_autoencoder(), *shapes.make_text_encoders()]
    weights = sum(2 * each.numel() for network in networks for each in network.parameters())
    return _stage("loading", weights, 0, weights)


def _encoding(shapes: Shapes, side: int) -> StageMemory:
    """One photo at a time in float32, while nothing else is on the GPU."""
    autoencoder = shapes.make_autoencoder()
    with Live(autoencoder.parameters()) as live, torch.no_grad(), _as_on_gpu(None):
        weights = live.bytes
        autoencoder.encode(torch.empty(1, 3, side, side, device=_META))
    return _stage("encoding photos", weights, 0, live.peak)


class _Counted:
    """A stage whose step is counted: its networks, with what is trained of them."""

    def __init__(
        self,
        shapes: Shapes,
        method: Method,
        settings: TrainingSettings,
        stage: Stage,
        own: StageSettings,
        side: int,
        half: torch.dtype,
        together: int,
    ) -> None:
        self.shapes, self.settings, self.stage, self.own = shapes, settings, stage, own
        self.side, self.half, self.together = side, half, together
        self.denoiser, self.encoders = shapes.make_unet(), shapes.make_text_encoders()
        for network in (self.denoiser, *self.encoders):
            network.requires_grad_(False)
        if settings.quantize != "none":
            quantize(self.denoiser, settings.quantize)
        if has_lora(method, settings):
            add_lora(self.denoiser, self.encoders, lora_of(method, settings))
        self.learning = list(self._learning(stage, own))
        for parameter in self.learning:
            parameter.requires_grad_(True)
        if settings.gradient_checkpointing:
            self.denoiser.enable_gradient_checkpointing()
        self.precision = _precision(settings)
        if self.precision:
            self._halve_what_no_stage_learns(method)
        self.learns_tokens = stage.learns == "embedding" or bool(own.embedding_rate)
        self.needs_texts = self.learns_tokens or bool(own.text_encoder_rate)

    def count(self) -> StageMemory:
        """Count a step, with what the optimiser keeps; before it all prompts are encoded."""
        networks = [self.denoiser, *(self.encoders if self.needs_texts else [])]
        kept = [each for network in networks for each in _tensors_of(network)]
        state = sum(bytes_of_state(self.settings.optimizer, each) for each in self.learning)
        if self.settings.ema:
            state += sum(each.nbytes for each in self.learning)
        everything = (self.denoiser, *self.encoders)
        before = sum(each.nbytes for network in everything for each in _tensors_of(network))
        with Live(kept) as live, _as_on_gpu(self.precision):
            weights = live.bytes
            self._step()
        peak = max(live.peak + state, before)
        return _stage(self.stage.name, weights, state, peak)

    def _learning(self, stage: Stage, own: StageSettings) -> Iterator[nn.Parameter]:
        """What a stage trains, beside tokens."""
        trained = [(self.denoiser, stage.learns)] if stage.learns != "embedding" else []
        if own.text_encoder_rate:
            trained += [(each, "text encoder") for each in self.encoders]
        for network, group in trained:
            for name, parameter in network.named_parameters():
                is_left_out = (group == "cross-attention" and ".attn2." not in name) or (
                    group == "text encoder" and "embedding" in name
                )
                if not is_left_out and (not self.settings.rank or ".lora_" in name):
                    yield parameter

    def _halve_what_no_stage_learns(self, method: Method) -> None:
        """What any stage learns is float32 from the first one on."""
        wide = {
            id(each)
            for stage, own in active_stages(method, self.settings)
            for each in self._learning(stage, own)
        }
        for parameter in self.denoiser.parameters():
            if parameter.is_floating_point() and id(parameter) not in wide:
                parameter.data = parameter.data.to(self.half)

    def _step(self) -> None:
        """The forward passes of all sources, and one backward pass."""
        batch = self.together * -(-self.own.batch // self.settings.gradient_accumulation)
        if self.settings.fused_backward:
            for parameter in self.learning:
                parameter.register_post_accumulate_grad_hook(_forget)
        dtype = next(self.denoiser.parameters()).dtype
        total = torch.zeros((), device=_META)
        for is_subject in (True, False)[: 2 if self.settings.prior.weight else 1]:
            side = self.side // self.shapes.factor
            latents = torch.empty(
                batch, self.denoiser.config["in_channels"], side, side, device=_META
            )
            timesteps = torch.zeros(batch, dtype=torch.long, device=_META)
            states = self._states(batch, is_subject=is_subject)
            unet: Any = self.denoiser.train()
            predicted: Tensor = unet(
                latents.to(dtype),
                timesteps,
                states.to(dtype),
                added_cond_kwargs=self._added(batch),
            ).sample
            total = total + (predicted.float() - latents).square().mean()
        total.backward()

    def _states(self, batch: int, *, is_subject: bool) -> Tensor:
        """Text states, encoded if something in them is trained."""
        if not self.needs_texts:
            return torch.empty(batch, 77, self.denoiser.config["cross_attention_dim"], device=_META)
        ids = torch.zeros(batch, 77, dtype=torch.long, device=_META)
        found: list[Tensor] = []
        encoder: Any
        for encoder in self.encoders:
            with ExitStack() as stack:
                if is_subject and self.learns_tokens:
                    words = encoder.get_input_embeddings()
                    stack.callback(words.register_forward_hook(_as_learned).remove)
                found.append(encoder(ids, output_hidden_states=True).hidden_states[-1])
        return torch.cat(found, -1)

    def _added(self, batch: int) -> dict[str, Tensor]:
        if self.denoiser.config["addition_embed_type"] is None:
            return {}
        pooled = self.shapes.texts[-1]["projection_dim"]
        return {
            "text_embeds": torch.empty(batch, pooled, device=_META),
            "time_ids": torch.empty(batch, 6, device=_META),
        }


def _tensors_of(network: nn.Module) -> Iterator[Tensor]:
    """All that a network takes with it to a device."""
    yield from network.parameters()
    yield from network.buffers()


def _precision(settings: TrainingSettings) -> torch.dtype | None:
    """That of autocast on the GPU here or, where there is none, on one that has bf16."""
    chosen = settings.mixed_precision
    if chosen == "auto" and torch.cuda.is_available():
        chosen = best_precision(torch.device("cuda"))
    return None if chosen == "no" else torch.bfloat16


def _as_learned(_: nn.Module, __: object, output: Tensor) -> Tensor:
    """Vectors of words, of which some are trained."""
    return output.detach().requires_grad_(True)


def _forget(parameter: Tensor) -> None:
    parameter.grad = None


# --- what is alive --------------------------------------------------------------------------------


class Live(TorchDispatchMode):
    """Counts the bytes of tensors that are alive inside the context, from some on."""

    def __init__(self, tensors: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.bytes = self.peak = 0
        self._known: weakref.WeakSet[Any] = weakref.WeakSet()
        for tensor in tensors:
            self._add(tensor)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        found = func(*args, **(kwargs or {}))
        for each in tree_leaves(found):
            if isinstance(each, Tensor):
                self._add(each)
        return found

    def _add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage in self._known:
            return
        size = -(-storage.nbytes() // _BLOCK) * _BLOCK
        self._known.add(storage)
        self.bytes += size
        self.peak = max(self.peak, self.bytes)
        weakref.finalize(storage, self._remove, size)

    def _remove(self, size: int) -> None:
        self.bytes -= size


class _Fused(torch.autograd.Function):
    """Attention that keeps what the fused kernels keep, and computes nothing."""

    @staticmethod
    def forward(ctx: Any, *inputs: Tensor) -> Tensor:
        queries = inputs[0]
        output = torch.empty_like(queries)
        sums = torch.empty(queries.shape[:-1], device=queries.device)
        ctx.save_for_backward(*inputs, output, sums)
        return output

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> tuple[Tensor, ...]:
        return tuple(torch.empty_like(each) for each in ctx.saved_tensors[:3])


@contextmanager
def _as_on_gpu(dtype: torch.dtype | None) -> Iterator[None]:
    """Layers compute in the types of CUDA's autocast, and attention is fused.

    Autocast itself does not know the meta device.
    """
    cached: dict[int, Tensor] = {}

    def cast(value: object, wanted: torch.dtype) -> object:
        if not isinstance(value, Tensor) or not value.is_floating_point():
            return value
        if not isinstance(value, nn.Parameter) or not value.requires_grad:
            return value.to(wanted)
        return cached.setdefault(id(value), value.to(wanted))

    def in_type(function: Callable[..., Tensor], wanted: torch.dtype) -> Callable[..., Tensor]:
        def called(*args: object, **options: object) -> Tensor:
            if dtype is None:
                return function(*args, **options)
            converted = {name: cast(value, wanted) for name, value in options.items()}
            return function(*(cast(each, wanted) for each in args), **converted)

        return called

    def fused(q: Tensor, k: Tensor, v: Tensor, *_: object, **__: object) -> Tensor:
        return _Fused.apply(*(cast(each, dtype) if dtype else each for each in (q, k, v)))

    low = dtype or torch.float32
    types = {"linear": low, "conv2d": low, "group_norm": torch.float32, "layer_norm": torch.float32}
    with ExitStack() as stack:
        stack.enter_context(patch.object(F, "scaled_dot_product_attention", fused))
        for name, wanted in types.items():
            stack.enter_context(patch.object(F, name, in_type(getattr(F, name), wanted)))
        yield
