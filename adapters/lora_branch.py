"""LoRA beside the layers that it changes, to count more in some places than in others."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 (everyone's name for it)

from ..models.backbone import Backbone
from ..models.sd import cross_attention_of
from .weight_delta import WeightDelta

_WITHOUT_PLACES = ("time_emb", "add_embedding")
Share = Callable[[tuple[int, ...], bool], Tensor]
"""How much a branch counts: of each place of a layer's result, (R, N, 1) or (R, 1, h, w), or with
True of each word that cross-attention reads, (R, M, 1); the shape is the result's."""


@dataclass(frozen=True, slots=True)
class LoraBranch:
    """Low-rank changes of the denoiser's layers, computed beside these.

    A layer's W x becomes W x + share · strength · up down x. With a share of 1 everywhere that is
    what `WeightDelta` adds to the weights. `layers` are (up (out, r), down (r, in), or a kernel
    (r, in, k, k)) by the names of modules.
    """

    layers: Mapping[str, tuple[Tensor, Tensor]]
    strength: float

    @classmethod
    def of(cls, change: WeightDelta, backbone: Backbone) -> "LoraBranch | None":
        """The change as a branch; None if it changes more than layers that have places.

        Whole differences, text encoders, magnitudes (DoRA) and what reads the timestep, or SDXL's
        pooled text and sizes, do not.
        """
        if change.deltas or change.magnitudes or change.products:
            return None
        modules = dict(backbone.denoiser.named_modules())
        layers = {name.removesuffix(".weight"): each for name, each in change.factors.items()}
        for name in layers:
            has_places = not any(part in name for part in _WITHOUT_PLACES)
            if not isinstance(modules.get(name), (nn.Linear, nn.Conv2d)) or not has_places:
                return None
        example = next(backbone.denoiser.parameters())
        moved = {name: (up.to(example), down.to(example)) for name, (up, down) in layers.items()}
        return cls(moved, change.strength)

    @contextmanager
    def beside(
        self, backbone: Backbone, share: Share, beside: Sequence[nn.Module] = ()
    ) -> Iterator[None]:
        """The denoiser's layers have the branch inside the context.

        So have the same layers of networks beside it that have copies of some: of a ControlNet.
        """
        pairs = [*backbone.cross_attention()]
        pairs += [pair for network in beside for pair in cross_attention_of(network)]
        text = {id(each) for pair in pairs for each in pair}
        networks = [dict(each.named_modules()) for each in (backbone.denoiser, *beside)]
        with ExitStack() as stack:
            for name, factors in self.layers.items():
                for module in (own[name] for own in networks if name in own):
                    hook = partial(self._added, factors, share, id(module) in text)
                    stack.callback(module.register_forward_hook(hook).remove)
            yield

    def _added(
        self,
        factors: tuple[Tensor, Tensor],
        share: Share,
        is_text: bool,
        module: nn.Module,
        inputs: tuple[Tensor, ...],
        result: Tensor,
    ) -> Tensor:
        up, down = factors
        if isinstance(module, nn.Conv2d):
            kernel = down.view(len(down), *module.weight.shape[1:])
            low = F.conv2d(inputs[0], kernel, None, module.stride, module.padding)
            change = F.conv2d(low, up[:, :, None, None])
        else:
            change = F.linear(F.linear(inputs[0], down.flatten(1)), up)
        counted = self.strength * share(tuple(result.shape), is_text).to(change.dtype)
        return torch.addcmul(result, counted, change)
