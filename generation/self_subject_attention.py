"""Self-subject-attention: a picture attends to the features of references (DreamTuner, 3.2)."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 (everyone's name for it)

from ..kernels.observation import FurtherKeys
from ..models.backbone import Backbone
from ..models.conditioning import Conditioning, Control
from ..models.latents import layer_size
from ..models.references import Reference
from ..models.seeds import seed_of
from .regional import Sight


class ReferencePass:
    """The features of references at a step of denoising, for pictures to attend.

    References pass the denoiser by themselves, forward-noised to a time of their own, under their
    own prompts; each self-attention's input states are kept. The pictures' pass then attends
    softmax(q · [k, k_r]ᵀ/√d + log [1, ω m_r]) · [v, v_r], with k_r and v_r those of the states by
    the layer's own projections, and the subject's mask m_r at the layer's size (eq. 2 and 3). One
    pass serves all pictures of a batch. References with a layout of their own follow the pictures'
    ControlNet by it, at the same scale.
    """

    def __init__(
        self,
        backbone: Backbone,
        references: Sequence[Reference],
        sight: Sight | None = None,
        control: Control | None = None,
    ) -> None:
        self._groups = [_Group(backbone, each, sight, control) for each in in_groups(references)]

    @contextmanager
    def seen_at(
        self, backbone: Backbone, timesteps: Sequence[Tensor], rows: Sequence[Tensor]
    ) -> Iterator[None]:
        """Rows of a batch see the references, each as they are at one of some times, or do not.

        `rows` (B,), bool, say for each of the `timesteps` which rows see the references at it.
        """
        further = [group.further_keys(backbone, timesteps, rows) for group in self._groups]
        with backbone.attention.attend_also(further):
            yield


def in_groups(references: Sequence[Reference]) -> Iterator[list[Reference]]:
    """References that pass the denoiser together: of one size, all with layouts or all without."""
    groups: dict[tuple[torch.Size, bool], list[Reference]] = defaultdict(list)
    for each in references:
        groups[each.latents.shape, each.control is None].append(each)
    yield from groups.values()


class _Group:
    """References that pass the denoiser together; see `in_groups`."""

    def __init__(
        self,
        backbone: Backbone,
        references: Sequence[Reference],
        sight: Sight | None,
        control: Control | None,
    ) -> None:
        self._sight = sight
        self._control = control and _own(control, references)
        self._references = references
        self._subjects = [each.subject for each in references]
        *_, height, width = references[0].latents.shape
        factor = backbone.latent_factor
        with backbone.weighing_words(False):
            self._conditioning = backbone.encode_prompts(
                [each.prompt for each in references], width * factor, height * factor
            )
        self._scheduler = backbone.training_scheduler()
        device, dtype = backbone.device, self._conditioning.states.dtype
        self._latents = torch.stack([each.latents for each in references]).to(device)
        generator = torch.Generator().manual_seed(seed_of(0, "reference"))
        noise = torch.randn(self._latents.shape[1:], generator=generator)
        self._noise = noise.expand_as(self._latents).to(device)
        self._dtype = dtype
        self._masks = torch.stack([each.mask for each in references]).float()
        exact = torch.promote_types(dtype, torch.float32)
        weights = torch.tensor([each.weight for each in references], dtype=exact)
        self._log_weights = weights.log()[:, None]
        self._biases: dict[int, Tensor] = {}

    def further_keys(
        self, backbone: Backbone, timesteps: Sequence[Tensor], rows: Sequence[Tensor]
    ) -> FurtherKeys:
        """The references' states at some times; see `ReferencePass.seen_at`."""
        times = torch.stack(list(timesteps)).repeat_interleave(len(self._latents))
        count = len(timesteps)
        noisy = self._scheduler.add_noise(
            self._latents.repeat(count, 1, 1, 1), self._noise.repeat(count, 1, 1, 1), times
        )
        conditioning = Conditioning.cat([self._conditioning] * count)
        attention = backbone.attention
        with backbone.redrawing(None), attention.unobserved(), attention.record() as states:
            backbone.denoise(noisy.to(self._dtype), times, conditioning, self._control)
        sees = torch.stack(list(rows), 1).repeat_interleave(len(self._latents), 1)  # (B, S)
        hidden = torch.where(sees, 0.0, -torch.inf)[..., None]
        biases = {
            layer: hidden + self._bias(kept.shape[1]).repeat(count, 1)
            for layer, kept in states.items()
        }
        groups = None
        if self._sight:
            groups = self._sight.of_references(self._subjects * count, len(hidden))
        return FurtherKeys(dict(states), biases, groups, self._references)

    def _bias(self, positions: int) -> Tensor:
        """Log ω m (R, M) at a layer with M positions.

        A place is the subject's if half of it is, or if no place has more of it.
        """
        if positions not in self._biases:
            height, width = self._masks.shape[-2:]
            size = layer_size((height, width), positions)
            shares = F.adaptive_avg_pool2d(self._masks[:, None], size).flatten(1)
            level = shares.amax(1, keepdim=True).clamp(max=0.5)
            is_inside = (shares >= level) & (shares > 0)
            bias = torch.where(is_inside, self._log_weights, -torch.inf)
            self._biases[positions] = bias.to(self._latents.device)
        return self._biases[positions]


def _own(control: Control, references: Sequence[Reference]) -> Control | None:
    """The control of references by their own layouts, if they have any."""
    layouts = [each.control for each in references if each.control is not None]
    return replace(control, pixels=torch.stack(layouts).to(control.pixels)) if layouts else None
