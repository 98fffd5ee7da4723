"""torch's compiler, for the blocks of a network one by one."""

import torch
from diffusers.models.attention import FeedForward
from diffusers.models.resnet import ResnetBlock2D
from torch import nn

from ..registry.errors import InvalidInput

BLOCKS: tuple[type[nn.Module], ...] = (ResnetBlock2D, FeedForward)
"""The parts of a denoiser without attention, of which something may be observed at any time."""
MOST_KINDS = 512
"""How many kinds of a block are compiled, by channels and sizes; others run as they are."""


def compile_blocks(network: nn.Module, kinds: tuple[type[nn.Module], ...] = BLOCKS) -> None:
    """Have blocks of some kinds compiled when they first run, for each size anew.

    Hooks that layers of theirs get later are seen. Whole networks must not be compiled: with torch
    2.13 on a CPU, gradients of the autoencoder's decoder then vanish below its last block.
    """
    settings = torch._dynamo.config
    settings.recompile_limit = MOST_KINDS  # blocks of one kind share their code
    settings.accumulated_recompile_limit = 8 * MOST_KINDS
    settings.skip_nnmodule_hook_guards = False
    for module in network.modules():
        if isinstance(module, kinds):
            module.compile(dynamic=False)  # else results would depend on what sizes came before


def run_uncompiled(network: nn.Module) -> None:
    """Have all blocks run as they are again."""
    for module in network.modules():
        module._compiled_call_impl = None


def check_compiler(device: torch.device) -> None:
    """Raise `InvalidInput` where the compiler cannot compile: on a CPU it needs one of C++."""
    try:
        torch.compile(torch.exp)(torch.zeros(8, device=device))
    except Exception as error:
        line = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InvalidInput(
            f"torch cannot compile on this machine: {line[:200]}",
            hint="go without --compile or --set compile=true, or install a C++ compiler",
        ) from error
