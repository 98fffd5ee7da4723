"""Weight changes of a base model: what DreamBooth and AttnDreamBooth train, in full or as LoRA."""

from collections.abc import Mapping, Set
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn

from ..models.backbone import Backbone
from ..registry.errors import InvalidWeights
from .limits import MAX_RANK
from .quantized import KINDS, SCALE, Kind, Quantized

UP, DOWN = "up", "down"
"""The factors of a LoRA, as files name them. No base model's weights are called so."""
FACTOR_KINDS: tuple[Kind, ...] = ("int4", "int8")
"""Of factors in few bits."""


class Difference(Protocol):
    """A whole difference of a weight that is computed when it is converted to a tensor."""

    @property
    def shape(self) -> torch.Size:
        """Of the weight."""
        ...

    def to(self, device: torch.device, dtype: torch.dtype, /) -> Tensor:
        """The tensor."""
        ...


@dataclass(slots=True)
class WeightDelta:
    """Weight changes of a base model: full differences, or low-rank factors (LoRA).

    W becomes W + strength · Δ, with Δ = `deltas[name]`, or Δ = up · down where `factors[name]` is
    (up (out, r), down (r, in), or a kernel (r, in, k, k)). With `magnitudes[name]` m (out,) beside
    factors, Δ = m V / ‖V‖ - W, where V = W + up · down and norms are those of what makes one output
    (DoRA, arXiv 2402.09353, eq. 5). `products` are whole differences that are computed as
    they are added. Names are those of `Backbone.weights`.
    """

    deltas: dict[str, Tensor]
    factors: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    magnitudes: dict[str, Tensor] = field(default_factory=dict)
    strength: float = 1.0
    products: dict[str, Difference] = field(default_factory=dict)
    _original: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor], strength: float = 1.0) -> "WeightDelta":
        """The inverse of `state`; factors in few bits are multiplied by their scales.

        Raises `InvalidWeights` if such factors have scales of another shape.
        """
        deltas, magnitudes, products = {}, {}, dict[str, Difference]()
        ups, downs = dict[str, Tensor](), dict[str, Tensor]()
        for name, tensor in state.items():
            kind, _, parameter = name.partition(".")
            if kind == "delta":
                deltas[parameter] = tensor
            elif kind == UP:
                ups[parameter] = tensor
            elif kind == DOWN:
                downs[parameter] = tensor
            elif kind == "magnitude":
                magnitudes[parameter] = tensor
            elif kind in KINDS:
                part, own = factor_in_few_bits(parameter)
                found = Quantized(kind, tensor, state[f"{SCALE}.{parameter}"])
                if part == UP:
                    ups[own] = _factor(own, found).movedim(0, -1)
                elif part == DOWN:
                    downs[own] = _factor(own, found)
                else:
                    products[parameter] = found
        factors = {name: (up, downs[name]) for name, up in ups.items()}
        return cls(deltas, factors, magnitudes, strength, products)

    def state(self) -> dict[str, Tensor]:
        """`delta.NAME`, or `up.NAME` and `down.NAME`, and with them `magnitude.NAME`.

        Of products those in few bits, see `Quantized.state`; others are never stored. Factors in
        few bits are stored by `factors_in_few_bits`.
        """
        state = {f"delta.{name}": tensor for name, tensor in self.deltas.items()}
        for name, (up, down) in self.factors.items():
            state |= {f"up.{name}": up, f"down.{name}": down}
        for name, product in self.products.items():
            if isinstance(product, Quantized):
                state |= product.state(name)
        return state | {f"magnitude.{name}": each for name, each in self.magnitudes.items()}

    def check(self, backbone: Backbone) -> None:
        """Raise `InvalidWeights` if names or shapes do not fit this base model."""
        parameters = backbone.weights()
        for name in self.names:
            if name not in parameters:
                raise InvalidWeights(f"the base model has no weights {name[:80]!r}")
            if not self.fits(name, parameters[name].shape):
                raise InvalidWeights(f"a change of {name} has another shape")

    @property
    def names(self) -> Set[str]:
        """The parameters that are changed."""
        return self.deltas.keys() | self.factors.keys() | self.products.keys()

    def fits(self, name: str, shape: torch.Size) -> bool:
        """Whether the change of a parameter has its shape."""
        if name in self.deltas:
            return self.deltas[name].shape == shape
        if product := self.products.get(name):
            is_sound = not isinstance(product, Quantized) or product.is_sound
            return is_sound and product.shape == shape
        up, down = self.factors[name]
        if up.ndim != 2 or down.ndim < 2 or not 0 < up.shape[1] <= MAX_RANK:
            return False
        if name in self.magnitudes and self.magnitudes[name].shape != up.shape[:1]:
            return False
        found = (up.shape[0], *down.shape[:1], down.shape[1:].numel())
        return found == (shape[0], up.shape[1], shape[1:].numel())

    def inject(self, backbone: Backbone) -> None:
        """Add the changes to the weights. Raises `RuntimeError` if they are already injected."""
        if self._original:
            raise RuntimeError("these weights are changed already")
        parameters = backbone.weights()
        with ExitStack() as undo:
            undo.callback(self.eject, backbone)
            for name in self.names:
                parameter = parameters[name]
                changed = self.added_to(name, parameter)
                self._original[name] = parameter.data
                parameter.data = changed
            undo.pop_all()

    def computed(self, backbone: Backbone) -> "ChangedWeights":
        """The weights as they are with the change, to be exchanged with the base model's.

        They take as much memory as those that are changed, and no time to inject.
        """
        parameters = backbone.weights()
        with torch.no_grad():
            changed = {name: self.added_to(name, parameters[name]) for name in self.names}
        return ChangedWeights(changed)

    def computed_for(self, network: nn.Module) -> "ChangedWeights":
        """The same of a network that has copies of some of a base model's layers, by their names.

        What it has not, or in another shape, is passed over.
        """
        own = dict(network.named_parameters())
        names = [name for name in self.names & own.keys() if self.fits(name, own[name].shape)]
        with torch.no_grad():
            changed = {name: self.added_to(name, own[name]) for name in sorted(names)}
        return ChangedWeights(changed, network)

    def added_to(self, name: str, parameter: Tensor) -> Tensor:
        """A parameter with its change, in its dtype."""
        changed = parameter.data.float() + self.strength * self._change(name, parameter)
        return changed.to(parameter.dtype)

    def _change(self, name: str, parameter: Tensor) -> Tensor:
        if name in self.deltas:
            return self.deltas[name].to(parameter.device, torch.float32)
        if name in self.products:
            return self.products[name].to(parameter.device, torch.float32)
        up, down = (part.to(parameter.device, torch.float32) for part in self.factors[name])
        change = (up @ down.flatten(1)).reshape(parameter.shape)
        if name not in self.magnitudes:
            return change
        plain = parameter.data.float()
        directed = (plain + change).flatten(1)
        norms = directed.norm(dim=1).clamp(min=torch.finfo(torch.float32).tiny)
        wanted = self.magnitudes[name].to(directed) / norms
        return (wanted[:, None] * directed).reshape(parameter.shape) - plain

    def with_whole_products(self) -> "WeightDelta":
        """The same change, in which differences that are computed are whole ones, in float32."""
        cpu = torch.device("cpu")
        wholes = {name: each.to(cpu, torch.float32) for name, each in self.products.items()}
        return WeightDelta(self.deltas | wholes, self.factors, self.magnitudes, self.strength)

    def multiplied_out(self, backbone: Backbone) -> "WeightDelta":
        """The same change of this base model as whole differences, in float32.

        With magnitudes it depends on the weights that the base model has now.
        """
        parameters = backbone.weights()
        deltas = {name: self._change(name, parameters[name]).cpu() for name in self.names}
        return WeightDelta(deltas, strength=self.strength)

    def eject(self, backbone: Backbone) -> None:
        """Restore the original weights, bit for bit."""
        parameters = backbone.weights()
        for name, original in self._original.items():
            parameters[name].data = original
        self._original.clear()


def factors_in_few_bits(name: str, factors: tuple[Tensor, Tensor], kind: Kind) -> dict[str, Tensor]:
    """The state of a weight's factors in few bits, with a scale for each of the r ranks.

    That is `Quantized.state` of `up.NAME`, (r, out), and of `down.NAME`, (r, in, …).
    """
    up, down = factors
    ranks = Quantized.of(up.T, kind).state(f"{UP}.{name}")
    return ranks | Quantized.of(down, kind).state(f"{DOWN}.{name}")


def factor_in_few_bits(parameter: str) -> tuple[str, str]:
    """Which factor of which weight something in few bits is: (`up`, NAME); ("", …) for none."""
    part, _, name = parameter.partition(".")
    return (part, name) if part in (UP, DOWN) else ("", parameter)


def _factor(name: str, found: Quantized) -> Tensor:
    if not found.is_sound:
        raise InvalidWeights(f"a change of {name[:80]} has another shape")
    return found.to(found.values.device, torch.float16)


@dataclass(slots=True)
class ChangedWeights:
    """Weights in place of a base model's, or of a `network` beside it, by name.

    See `WeightDelta.computed` and `computed_for`.
    """

    weights: dict[str, Tensor]
    network: nn.Module | None = None
    _is_injected: bool = False

    def inject(self, backbone: Backbone) -> None:
        """Exchange the weights. Raises `RuntimeError` if they are already exchanged."""
        if self._is_injected:
            raise RuntimeError("these weights are exchanged already")
        self._exchange(backbone)

    def eject(self, backbone: Backbone) -> None:
        """Exchange them back."""
        if self._is_injected:
            self._exchange(backbone)

    def _exchange(self, backbone: Backbone) -> None:
        parameters = dict(self.network.named_parameters()) if self.network else backbone.weights()
        for name, other in self.weights.items():
            own, parameters[name].data = parameters[name].data, other
            self.weights[name] = own
        self._is_injected = not self._is_injected
