"""Changes of weights of several concepts, merged into one by least squares instead of added up.

Each changed layer of the denoiser gets the change that answers the inputs which it has in pictures
of each concept as that concept's own change does,

    D = argmin Σ_i ‖D X_i - D_i X_i‖² + λ ‖D‖² = (Σ_i D_i G_i) (Σ_i G_i + λ I)⁻¹, G_i = X_i X_iᵀ,

as gradient fusion in Mix-of-Show (arXiv 2305.18292, eq. 5) asks, in closed form (RegMean, arXiv
2212.09849, eq. 1). Inputs of cross-attention's keys and values are text states, those of other
layers features of pictures under way. What has no such inputs (norms, biases, text encoders) and
wide layers are added up.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 (everyone's name for it)

from ..models.backbone import Backbone
from .adapter import injected
from .prompt_encoding import class_prompt
from .weight_delta import WeightDelta

MAX_INPUTS = 3000
"""The widest layer that is solved for; its matrix takes 36 MB."""
_STEPS = 10
_PLACES = ("", " on the beach", " in the snow", " in a garden")
_RIDGE = 1e-3
"""λ, in mean squared inputs."""


def merged(
    backbone: Backbone, changes: Sequence[WeightDelta], phrases: Sequence[str]
) -> WeightDelta:
    """One change for several concepts, which may change nothing, each at its strength.

    `phrases` name them in prompts; their tokens are injected.
    """
    total: dict[str, Tensor] = {}
    answers: dict[str, Tensor] = {}
    summed: dict[str, Tensor] = {}
    wholes = [each.multiplied_out(backbone) for each in changes]
    names = dict.fromkeys(name for each in wholes for name in each.deltas)
    modules = _layers(backbone, names)
    for change, phrase in zip(wholes, phrases, strict=True):
        with injected(backbone, [change]):
            grams = _input_grams(backbone, modules, phrase)
        for name, delta in change.deltas.items():
            own = change.strength * delta
            if name in grams:
                _add_to(answers, name, own.flatten(1) @ grams[name])
            else:
                _add_to(summed, name, own)
        for name, gram in grams.items():
            _add_to(total, name, gram)
    parameters = backbone.weights()
    for name, answer in answers.items():
        gram = total[name].double()
        gram.diagonal().add_(_RIDGE * gram.diagonal().mean())
        solved = torch.linalg.solve(gram, answer.double().T).T
        summed[name] = solved.float().reshape(parameters[name].shape)
    return WeightDelta(summed)


def _add_to(sums: dict[str, Tensor], name: str, value: Tensor) -> None:
    sums[name] = sums[name] + value if name in sums else value


def _layers(backbone: Backbone, names: Mapping[str, None]) -> dict[str, nn.Module]:
    """Changed linear layers and convolutions that are solved for, by their weights' names."""
    modules = dict(backbone.denoiser.named_modules())
    found: dict[str, nn.Module] = {}
    for name in names:
        module = modules.get(name.removesuffix(".weight")) if name.endswith(".weight") else None
        if isinstance(module, nn.Linear | nn.Conv2d) and module.weight[0].numel() <= MAX_INPUTS:
            found[name] = module
    return found


@torch.no_grad()
def _input_grams(
    backbone: Backbone, modules: Mapping[str, nn.Module], phrase: str
) -> dict[str, Tensor]:
    """G (in, in), per input, of each layer while pictures of a concept are drawn."""
    prompts = [f"{class_prompt(phrase)}{place}" for place in _PLACES]
    side = backbone.size // backbone.latent_factor
    shape = (len(prompts), backbone.latent_channels, side, side)
    conditioning = backbone.encode_prompts(prompts, backbone.size)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    latents = noise.to(conditioning.states)
    scheduler = backbone.sampling_scheduler("ddim")
    scheduler.set_timesteps(_STEPS, device=backbone.device)
    sums, counts = dict[str, Tensor](), dict[str, int]()
    with _watched(modules, sums, counts):
        for timestep in scheduler.timesteps:
            predicted = backbone.denoise(latents, timestep.expand(len(prompts)), conditioning)
            latents = scheduler.step(predicted, timestep, latents, return_dict=False)[0]
    return {name: each / counts[name] for name, each in sums.items()}


@contextmanager
def _watched(
    modules: Mapping[str, nn.Module], sums: dict[str, Tensor], counts: dict[str, int]
) -> Iterator[None]:
    """Inside the context, products of layers' inputs are added to `sums`."""
    with ExitStack() as stack:
        for name, module in modules.items():
            hook = partial(_add, name, sums, counts)
            stack.callback(module.register_forward_pre_hook(hook).remove)
        yield


def _add(
    name: str,
    sums: dict[str, Tensor],
    counts: dict[str, int],
    module: nn.Module,
    inputs: tuple[Tensor, ...],
) -> None:
    given = inputs[0].float()
    if isinstance(module, nn.Conv2d):
        assert not isinstance(module.padding, str)
        columns = F.unfold(
            given, module.weight.shape[-2:], padding=module.padding, stride=module.stride
        )
        rows = columns.transpose(1, 2).flatten(0, 1)
    else:
        rows = given.flatten(0, -2)
    _add_to(sums, name, (rows.T @ rows).cpu())
    counts[name] = counts.get(name, 0) + len(rows)
