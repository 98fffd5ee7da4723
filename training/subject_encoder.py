r"""Pre-training a subject encoder for a base model, on pictures with masks and captions.

    python -m conceptry.training.subject_encoder PICTURES --base sd15 --out runs/encoder \
        --vision openai/clip-vit-large-patch14 --control lllyasviel/sd-controlnet-depth \
        --control-pictures DEPTHS

The reference is the picture itself without its background, varied. Certain (DreamTuner, section
3.1): only ResBlocks and S-E-A learn, at β = 1, a batch of 16 and a learning rate of 1e-5, while a
depth ControlNet tells the frozen U-Net the layout: without one the encoder has to tell it, and what
is drawn stands as the reference does. Control pictures are named as the pictures that they are of.
Our defaults: warm-up and decay of the rate, the moving average, the share of captions left out, and
how long. The loop is the miniature recipe's: it writes a resume point every few minutes and goes on
from it when started again, to the same end.
"""

import argparse
import dataclasses
import json
import random
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from PIL import Image, ImageOps
from torch import Tensor, nn

from ..generation.control_request import read_control
from ..methods.diffusion_loss import diffusion_loss, diffusion_target
from ..methods.settings import Losses as LossSettings
from ..models.backbone import Backbone
from ..models.bases import find_control
from ..models.conditioning import Conditioning, Control
from ..models.control import LoadedControl, load_control
from ..models.loading import LoadedBase, load_base
from ..models.miniature.recipe.train import (
    CAPTION_DROPOUT,
    Context,
    Losses,
    Stage,
    Training,
    parameters_of,
)
from ..models.pixels import control_pixels, on_white
from ..models.reference_augmentation import augmented
from ..models.subject_encoder import SubjectAttention, SubjectEncoder, SubjectTokens
from ..models.subject_encoder_file import (
    FILE,
    metadata_for,
    write_subject_encoder,
)
from ..models.vision import LoadedVision, load_vision
from ..registry.documents import parse_json, read_text
from ..registry.errors import ConceptryError, InvalidInput, NotFound
from ..registry.files import write_file
from ..registry.hashes import sha256_of_json
from ..registry.images import inspect, open_stored_mask, read_file, read_mask, read_photo
from ..registry.sources import Source, collect
from .precision import cast

NAME = "pretraining"
BATCH, LEARNING_RATE, IMAGES = 16, 1e-5, 1_600_000
_PROMPT = "a photo"
"""Of pictures without a caption."""


@dataclass(frozen=True, slots=True)
class Example:
    """A picture with its mask and caption, and a ControlNet's picture of it."""

    source: Source
    control: Path | None = None


@dataclass(frozen=True, slots=True)
class PictureBatch:
    """Square pictures, the same without background, captions, and a ControlNet's pictures."""

    pictures: list[Image.Image]
    references: list[Image.Image]
    captions: list[str]
    controls: list[Image.Image]


def pretrain(
    base: LoadedBase,
    vision: LoadedVision,
    examples: Sequence[Example],
    folder: Path,
    *,
    control: LoadedControl | None = None,
    num_steps: int = IMAGES // BATCH,
    batch: int = BATCH,
    learning_rate: float = LEARNING_RATE,
    num_workers: int = 1,
    seed: int = 0,
    stop_at: int | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Path | None:
    """Train in a folder, or go on there; returns the subject encoder's file, once it is finished.

    The base model's denoiser is frozen, and on a GPU left in bfloat16; so is the ControlNet
    `control`, which the control pictures of `examples` are for. `stop_at` and `should_stop`
    end sooner, with a resume point.

    Raises `InvalidInput` for a folder of another training: of other pictures, settings or seed, or
    with another ControlNet.
    """
    folder.mkdir(parents=True, exist_ok=True)
    metadata = metadata_for(base, vision)
    asked = {"steps": num_steps, "batch": batch, "learning_rate": learning_rate, "seed": seed}
    told = dataclasses.asdict(metadata) | {"control_sha256": control.sha256 if control else None}
    _check_begun(folder, told, examples, asked)
    backbone, device = base.backbone, base.backbone.device
    backbone.denoiser.requires_grad_(False)
    if device.type == "cuda":
        cast(backbone.denoiser, torch.bfloat16)
        if control is not None:
            cast(control.network, torch.bfloat16)
        backbone.set_gradient_checkpointing(True)
    subject = SubjectTokens(torch.empty(0), 1.0)
    recipe = Stage(
        name=NAME,
        images=num_steps * batch,
        batch=batch,
        learning_rate=learning_rate,
        offset=0,
        learns=("mapper", "attention"),
        make_batch=partial(pictures_batch, examples=list(examples)),
        build=partial(_build, backbone, vision),
        losses=partial(subject_losses, backbone, control, vision, subject),
        size=backbone.size,
    )
    training = Training(recipe, Context(folder, device, seed))
    attention = training.modules["attention"]
    assert isinstance(attention, SubjectAttention)
    with attention.insert(backbone.denoiser, subject):  # also while gradients are computed
        training.run(num_steps, num_workers, stop_at, should_stop=should_stop)
    if training.step < num_steps:
        return None
    learned = {
        f"{part}.{name}": value
        for part in recipe.learns
        for name, value in parameters_of(training.average, part).items()
    }
    write_subject_encoder(folder / FILE, learned, metadata)
    return folder / FILE


def _check_begun(
    folder: Path,
    told: Mapping[str, object],
    examples: Sequence[Example],
    asked: Mapping[str, float],
) -> None:
    """Raise `InvalidInput` if a folder's training was begun with something else."""
    path = folder / "begun.json"
    sources = [each.source for each in examples]
    seen = [(each.path.name, each.path.stat().st_size, each.caption) for each in sources]
    pictures = {"pictures": len(sources), "pictures_sha256": sha256_of_json(seen)}
    now = {**told, **pictures, **asked}
    if not path.exists():
        write_file(path, (json.dumps(now, indent=2) + "\n").encode())
        return
    begun = parse_json(read_text(path))
    begun = begun if isinstance(begun, dict) else {}
    for name, value in now.items():
        is_older = name in ("pictures_sha256", *asked) and name not in begun
        if name != "base" and not is_older and begun.get(name) != value:
            what = name.removesuffix("_sha256").replace("_", " ")
            other = "other" if what == "pictures" else "another"
            raise InvalidInput(
                f"the training in {folder} was begun with {other} {what}", hint="--out NEW_FOLDER"
            )


# --- pictures -------------------------------------------------------------------------------------


def pictures_with_masks(folder: Path, masks: Path | None = None) -> list[Source]:
    """The pictures in a folder, with captions and masks. Raises `InvalidInput` if one has none.

    A mask stands beside its picture or in the folder `masks`, as `concept add` reads them; a
    picture with transparency is its own.
    """
    sources = collect([folder], masks=masks)
    bare = [each.path for each in sources if each.mask is None and not _has_alpha(each.path)]
    if bare:
        raise InvalidInput(
            f"{bare[0]} has no mask ({len(bare)} of {len(sources)} pictures have none): a "
            "reference's background is removed",
            hint=f"{bare[0].stem}-masklabel.png beside it, or --masks FOLDER",
        )
    return sources


def _has_alpha(path: Path) -> bool:
    return inspect(read_file(path), str(path)).alpha is not None


def with_controls(sources: Sequence[Source], folder: Path) -> list[Example]:
    """Each picture with the control picture in a folder that is called as it is.

    Raises `InvalidInput` if one is missing or there twice, and as `collect` does.
    """
    by_stem: dict[str, Path] = {}
    for each in collect([folder]):
        if (former := by_stem.setdefault(each.path.stem, each.path)) != each.path:
            raise InvalidInput(
                f"{former} and {each.path} are control pictures of one picture", hint="keep one"
            )
    bare = [each.path for each in sources if each.path.stem not in by_stem]
    if bare:
        raise InvalidInput(
            f"{bare[0]} has no control picture in {folder} ({len(bare)} of {len(sources)} "
            "pictures have none)",
            hint=f"{bare[0].stem}.png there",
        )
    return [Example(source, by_stem[source.path.stem]) for source in sources]


def check_examples(examples: Sequence[Example]) -> None:
    """Raise `InvalidInput` for a picture, mask or control picture that a training would fail on."""
    for each in examples:
        _read(each, size=16)


def pictures_batch(
    step: int, *, split: str, offset: int, batch: int, size: int, examples: Sequence[Example]
) -> PictureBatch:
    """Batch `step`: pictures drawn by lot, `size` pixels wide, cut to squares about the middle."""
    del split
    chosen = [
        random.Random(f"picture {offset} {i}").choice(examples)
        for i in range(step * batch, (step + 1) * batch)
    ]
    read = [_read(example, size) for example in chosen]
    return PictureBatch(
        pictures=[picture for picture, _, _ in read],
        references=[reference for _, reference, _ in read],
        captions=[example.source.caption or _PROMPT for example in chosen],
        controls=[control for _, _, control in read if control is not None],
    )


def _read(example: Example, size: int) -> tuple[Image.Image, Image.Image, Image.Image | None]:
    """A square picture, the same on white outside its mask, and its control picture."""
    source = example.source
    data, name = read_file(source.path), str(source.path)
    photo = read_photo(data, name)
    if source.mask is not None:
        stored = read_mask(read_file(source.mask), str(source.mask), photo.size)
    else:
        stored = inspect(data, name).alpha
        assert stored is not None, "pictures_with_masks has seen to it"
    mask = open_stored_mask(stored).resize(photo.size)
    square = ImageOps.fit(photo, (size, size), Image.Resampling.BICUBIC)
    cut = on_white(square, ImageOps.fit(mask, (size, size), Image.Resampling.BILINEAR))
    if example.control is None:
        return square, cut, None
    control = read_control(example.control).fitted(photo.size, name, hint="control pictures anew")
    return square, cut, ImageOps.fit(control, (size, size), Image.Resampling.BICUBIC)


# --- what is minimised ----------------------------------------------------------------------------


def _build(backbone: Backbone, vision: LoadedVision, context: Context) -> nn.ModuleDict:
    """Only what learns: that is what is saved."""
    del context
    vision.encoder.to(backbone.device)
    encoder = SubjectEncoder.for_denoiser(vision.encoder, backbone.denoiser)
    encoder.attention.copy_cross_attention(backbone.denoiser)
    return nn.ModuleDict({"mapper": encoder.mapper, "attention": encoder.attention})


def subject_losses(
    backbone: Backbone,
    control: LoadedControl | None,
    vision: LoadedVision,
    subject: SubjectTokens,
    modules: nn.ModuleDict,
    batch: PictureBatch,
    context: Context,
    generator: torch.Generator,
) -> Losses:
    """The diffusion loss of a U-Net that attends to the tokens of `subject`, which are set here.

    With a ControlNet, the U-Net sees the batch's control pictures as well.
    """
    device, dtype = backbone.device, next(backbone.denoiser.parameters()).dtype

    def random_like(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator, device=device)

    with torch.no_grad():
        posterior = backbone.encode_images(batch.pictures)
        latents = posterior.mean + posterior.std * random_like(posterior.mean)
        left_out = torch.rand(len(latents), generator=generator, device=device) < CAPTION_DROPOUT
        captions = [
            "" if is_left_out else caption
            for is_left_out, caption in zip(left_out.tolist(), batch.captions, strict=True)
        ]
        known = backbone.encode_prompts(captions, batch.pictures[0].width)
    conditioning = Conditioning(known.states.to(dtype), known.added, known.starts)
    shown = None
    if control is not None:
        pixels = torch.cat([control_pixels(each) for each in batch.controls])
        shown = Control(control.network, pixels.to(device))
    last = backbone.num_timesteps
    timesteps = torch.randint(0, last, (len(latents),), generator=generator, device=device)
    noise, scheduler = random_like(latents), backbone.training_scheduler()
    noisy = scheduler.add_noise(latents, noise, timesteps)
    references = augmented(vision.encoder.prepare(batch.references).to(device), generator)
    with context.autocast():
        subject.tokens = modules["mapper"](vision.encoder(references))
        predicted = backbone.denoise(noisy.to(dtype), timesteps, conditioning, shown)
    target = diffusion_target(scheduler, latents, noise, timesteps)
    errors = diffusion_loss(predicted, target, timesteps, scheduler, LossSettings())
    return {"noise": errors.mean()}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("pictures", type=Path)
    parser.add_argument("--masks", type=Path, help="a folder of masks, if not beside the pictures")
    parser.add_argument("--base", required=True)
    parser.add_argument("--vision", required=True, help="a hub id or folder of CLIP, or miniature")
    parser.add_argument("--control", help="a ControlNet: short name, hub id or folder")
    parser.add_argument("--control-pictures", type=Path, help="a folder of pictures for it")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--images", type=int, default=IMAGES, help="how many it sees in all")
    parser.add_argument("--batch", type=int, default=BATCH)
    parser.add_argument("--learning-rate", type=float, default=LEARNING_RATE)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--offline", action="store_true")
    options = parser.parse_args()
    if (wrong := _wrong(options)) is not None:
        parser.exit(2, f"{wrong}\n")
    try:
        written = _pretrained(options)
    except ConceptryError as error:
        hint = f" -> {error.hint}" if error.hint else ""
        parser.exit(3 if isinstance(error, NotFound) else 2, f"{error.message}{hint}\n")
    except OSError as error:
        parser.exit(2, f"cannot write into {options.out}: {error.strerror}\n")
    if written is None:
        parser.exit(
            130, f"stopped, with a resume point in {options.out}: the same command goes on\n"
        )
    sys.stdout.write(f"{written}\n")


def _wrong(options: argparse.Namespace) -> str | None:
    """What is wrong with options by themselves, and what to do."""
    rate = options.learning_rate
    wrong = {
        f"--batch is {options.batch}: expected 1 to --images {options.images}": not (
            0 < options.batch <= options.images
        ),
        f"--learning-rate is {rate:g}: expected more than 0, less than 1": not 0 < rate < 1,
        f"--workers is {options.workers}: expected 0 or more": options.workers < 0,
        "--control needs pictures for it -> --control-pictures FOLDER": (
            options.control and not options.control_pictures
        ),
        f"{options.out} is no folder -> --out FOLDER": (
            options.out.exists() and not options.out.is_dir()
        ),
    }
    try:
        torch.empty(0, device=options.device)
    except (RuntimeError, AssertionError):
        wrong[f"there is no device {options.device} -> --device cpu, or leave it out"] = True
    return next((line for line, is_so in wrong.items() if is_so), None)


def _pretrained(options: argparse.Namespace) -> Path | None:
    sources = pictures_with_masks(options.pictures, options.masks)
    folder = options.control_pictures
    examples = with_controls(sources, folder) if folder else [Example(each) for each in sources]
    check_examples(examples)
    base = load_base(options.base, device=options.device, offline=options.offline)
    control = None
    if folder:
        if options.control is None and len(base.base.controls) != 1:
            raise InvalidInput(
                f"which ControlNet of {base.base.name} are {folder} for?", hint="--control NAME"
            )
        control = load_control(find_control(base.base, options.control), base)
    with _asked_to_stop() as should_stop:
        return pretrain(
            base,
            load_vision(options.vision, base.base, offline=options.offline),
            examples,
            options.out,
            control=control,
            num_steps=options.images // options.batch,
            batch=options.batch,
            learning_rate=options.learning_rate,
            num_workers=options.workers,
            seed=options.seed,
            should_stop=should_stop,
        )


@contextmanager
def _asked_to_stop() -> Iterator[Callable[[], bool]]:
    """Whether Ctrl-C was pressed inside the context; a second one ends at once."""
    asked: list[int] = []

    def note(number: int, frame: object) -> None:
        del frame
        if asked:
            raise KeyboardInterrupt
        asked.append(number)

    before = signal.signal(signal.SIGINT, note)
    try:
        yield lambda: bool(asked)
    finally:
        signal.signal(signal.SIGINT, before)


if __name__ == "__main__":
    main()
