"""What a file of weights is, by the names of its tensors. Loads nothing."""

import re
from collections.abc import Iterable

_KINDS = {
    r".*(\.lora_|lora_(unet|te|up|down)|lora_A\.|lora_B\.).*": "a LoRA",
    r".*double_blocks\..*": "a FLUX model",
    r".*joint_blocks\..*": "a Stable Diffusion 3 model",
    r"(control_model\.|controlnet_|input_hint_block).*": "a ControlNet",
    r"(token|delta|up|down)\..*|emb_params|clip_[gl]|string_to_param.*": "a concept, or embedding",
    r"(transformer\.)?(text_model\.)?encoder\.layers\..*": "a text encoder",
    r"(encoder|decoder)\.(conv_in|mid_block|mid)\..*": "a VAE",
    r"(unet\.)?(down_blocks|up_blocks|input_blocks)\..*": "a U-Net alone",
}


def kind_of_tensors(names: Iterable[str]) -> str | None:
    """What tensors with these names are, such as `a ControlNet`; None if nobody knows."""
    known = list(names)
    return next(
        (
            kind
            for pattern, kind in _KINDS.items()
            if any(re.fullmatch(pattern, name) for name in known)
        ),
        None,
    )
