"""The training of one concept: its embedding, prompts, sample sources and trained parameters."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from PIL import Image
from torch import Tensor, nn

from ..adapters.prompt_encoding import caption_prompt, class_prompt, phrase_of
from ..adapters.references import References
from ..adapters.subject_encoding import SubjectEncoding
from ..adapters.weight_delta import WeightDelta
from ..generation.sampler import check_length
from ..methods.attention_losses import TrainingPrompts
from ..methods.method import Method, Stage, active_stages
from ..methods.settings import TrainingSettings
from ..models.backbone import Backbone, Lora
from ..models.compiling import check_compiler
from ..models.seeds import seed_of
from ..registry.documents import shown
from ..registry.errors import InvalidInput
from .callbacks import Hooks, LearnedAdapters
from .checkpoints import ResumePoint, copy_values
from .crops import Crop, Photos, bucket_step, varied_crops
from .distributed import num_processes
from .latents import LatentPool, encode_pictures, loss_weights
from .packages import check_packages
from .placement import AUTOENCODER, DENOISER, keep_on_device
from .precision import cast, dtype_of, make_accelerator
from .sources import Captions, SampleSource

_MAGNITUDE = ".lora_magnitude_vector."


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What is to be learned: photos, their category, and the placeholder tokens to be trained.

    `sizes` are the photos' own (width, height), which may have been decoded smaller. `masks`, if
    any, are as large as their photos and white on the subject; `captions`, if any, are those of the
    photos. `class_pictures`, of one size, show other members of the category, for prior
    preservation; `references` are what the version is drawn after, with {} for the concept in their
    prompts.
    """

    photos: Sequence[Image.Image]
    category: str
    tokens: tuple[str, ...]
    sizes: Sequence[tuple[int, int]] = ()
    masks: Sequence[Image.Image] = ()
    captions: Sequence[str | None] = ()
    class_pictures: Sequence[Image.Image] = ()
    references: References = field(default_factory=lambda: References(()))


def _scaled(pictures: Sequence[Image.Image], number: int, side: int) -> Image.Image:
    return pictures[number].resize((side, side))


def training_resolution(backbone: Backbone, settings: TrainingSettings) -> int:
    """Side of the crops in pixels: the setting `resolution`, else the base model's own."""
    return settings.resolution or backbone.size


def lora_of(method: Method, settings: TrainingSettings) -> Lora:
    """The LoRA that the settings ask for; ranks are those of the first stages that train layers."""
    stages = [(stage.learns, own) for stage, own in active_stages(method, settings)]
    ranks: dict[str, int] = {}
    for learns, own in stages:
        ranks.setdefault(learns, own.rank or settings.rank)
    return Lora(
        rank=ranks.get("denoiser", settings.rank),
        cross_attention_rank=ranks.get("cross-attention", 0),
        layers=settings.lora.layers,
        alpha=settings.lora.alpha,
        dora=settings.lora.dora,
        text_encoder_rank=next(
            (own.rank or settings.rank for _, own in stages if own.text_encoder_rate), 0
        ),
    )


def has_lora(method: Method, settings: TrainingSettings) -> bool:
    """Whether any stage trains LoRA: one that trains tokens alone needs none."""
    stages = (stage for stage, _ in active_stages(method, settings))
    return bool(settings.rank) and any(stage.learns != "embedding" for stage in stages)


def check_fitting(backbone: Backbone, method: Method, settings: TrainingSettings) -> None:
    """Raise `InvalidInput` for settings that do not fit the base model, or what is installed."""
    check_packages(settings)
    if settings.compile:
        check_compiler(backbone.device)
    size, factor = training_resolution(backbone, settings), backbone.latent_factor
    if size % factor or size < 2 * factor:
        raise InvalidInput(
            f"resolution is {size}: expected a multiple of {factor}",
            hint=f"--set resolution={max(2, round(size / factor)) * factor}",
        )
    _check_batches(method, settings)


def _check_batches(method: Method, settings: TrainingSettings) -> None:
    """Each process needs a share of each step, or the others would wait for it."""
    processes = num_processes()
    if processes > 1 and settings.fused_backward:
        raise InvalidInput(
            "fused_backward updates weights before processes have exchanged gradients",
            hint="--set fused_backward=false, or --processes 1",
        )
    shares = processes * settings.gradient_accumulation
    for stage, own in active_stages(method, settings):
        if processes > 1 and own.batch < shares:
            raise InvalidInput(
                f"a batch of {own.batch} in {stage.name} is too small for {processes} processes",
                hint=f"--set {stage.name}.batch={shares}",
            )


class Training:
    """The training of one concept on one base model.

    Between `begin` and `restore` the denoiser is trained in place; `restore` gives it its original
    weights back. Raises `InvalidInput` for settings that do not fit the base model or the number of
    processes.
    """

    def __init__(
        self,
        backbone: Backbone,
        method: Method,
        settings: TrainingSettings,
        subject: Subject,
        *,
        seed: int,
        hooks: Hooks | None = None,
    ) -> None:
        self.backbone = backbone
        self.method = method
        self.settings = settings
        self.subject = subject
        self.seed = seed
        self.hooks = hooks or Hooks()
        check_fitting(backbone, method, settings)
        self.accelerator = make_accelerator(settings.mixed_precision, backbone.device)
        self.device = self.accelerator.device if num_processes() > 1 else backbone.device
        self.size = training_resolution(backbone, settings)
        self.prompts = [prompt.replace("{}", self.phrase) for prompt in settings.prompts]
        self._captions = self._caption_prompts()
        if any(self._captions):
            self.prompts += [self.phrase, *dict.fromkeys(filter(None, self._captions))]
        self.class_prompt = class_prompt(subject.category)
        self._check_prompts()
        self.noise_scheduler = backbone.training_scheduler()
        self._original: dict[str, Tensor] = {}
        self._dtypes = [(network, dtype_of(network)) for network in backbone.networks.values()]

    def _check_prompts(self) -> None:
        """Raise `InvalidInput` for prompts that are too long, or that a loss cannot be had of."""
        category = self.subject.category
        for prompt in (*self.prompts, self.class_prompt):
            check_length(self.backbone, self._counted(prompt))
        for stage, own in active_stages(self.method, self.settings):
            name = "mean_weight" if own.mean_weight else "variance_weight"
            for prompt in self.prompts if getattr(own, name) else ():
                *_, after = prompt.partition(self.phrase)
                if not self.method.names_category and category not in after:
                    raise InvalidInput(
                        f"{stage.name}.{name} compares the concept with its category, which the "
                        f"training prompt {shown(self._counted(prompt))} does not name after it",
                        hint=f"--set {stage.name}.{name}=0",
                    )

    def _counted(self, prompt: str) -> str:
        """A prompt before its tokens are injected: any word is as long."""
        for token in self.subject.tokens:
            prompt = prompt.replace(token, "a")
        return prompt

    def _caption_prompts(self) -> list[str | None]:
        """The caption of each photo as a training prompt, None without; none if none is used.

        Raises `InvalidInput` for one that is too long.
        """
        if not self.settings.captions.share:
            return []
        return [each and self._caption_prompt(each) for each in self.subject.captions]

    def _caption_prompt(self, caption: str) -> str:
        prompt = caption_prompt(caption, self.phrase, self.subject.category)
        try:
            check_length(self.backbone, self._counted(prompt))
        except InvalidInput as error:
            raise InvalidInput(
                f"the caption {shown(caption)}: {error.message}",
                hint="a shorter one: concept edit NAME --caption PHOTO=TEXT",
            ) from None
        return prompt

    @property
    def phrase(self) -> str:
        """How training prompts name the concept: `[V] dog`, or `[V]`."""
        subject, names_category = self.subject, self.method.names_category
        return phrase_of(subject.tokens, subject.category, names_category=names_category)

    @property
    def encoding(self) -> SubjectEncoding | None:
        """The subject encoder's tokens that are seen in training, where the denoiser learns."""
        return None if self.method.keeps_base else self.subject.references.encoding

    @property
    def training_prompts(self) -> TrainingPrompts:
        """The prompts that attention losses are made from."""
        return TrainingPrompts(
            self.backbone,
            self.prompts,
            self.subject.tokens,
            self.subject.category,
            self.method.names_category,
            self.size,
        )

    # --- begin and restore ----------------------------------------------------------------------

    def begin(self) -> None:
        """Make the embedding and freeze the base model; stages unfreeze what they train."""
        backbone, subject = self.backbone, self.subject
        backbone.to(self.device)
        if self.encoding is not None:
            self.encoding.to(self.device)
        for network in backbone.networks.values():
            network.requires_grad_(False)
        if self.settings.quantize != "none":  # before adapters find the layers
            backbone.quantize(self.settings.quantize)
        self.embedding = self.method.make_embedding(
            backbone, subject.tokens, subject.category, self.settings, self.seed
        )

    def prepare(self) -> None:
        """Encode all pictures, and convert what is trained to float32.

        In half precision a step of 1e-6 would be rounded away. Text encoders are float32 too, as
        they run outside autocast.
        """
        backbone, settings = self.backbone, self.settings
        keep_on_device(backbone, self.device, [AUTOENCODER])
        for encoder in backbone.text_encoders:
            cast(encoder.network, torch.float32)
        cast(backbone.autoencoder, torch.float32)  # SDXL's overflows in half precision
        if self.accelerator.mixed_precision == "no":
            cast(backbone.denoiser, torch.float32)
        if self.encoding is not None:  # gradients pass it, in half precision to nothing
            cast(self.encoding.attention, torch.float32)
        self.sources = [self._subject_source(), *self._class_sources()]
        keep_on_device(backbone, self.device, [DENOISER])
        if settings.gradient_checkpointing:
            backbone.set_gradient_checkpointing(True)
        if has_lora(self.method, settings):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed_of(self.seed, "lora", 0))
                backbone.add_lora(lora_of(self.method, settings))
        if settings.compile:
            backbone.set_compiled(True)
        for stage, _ in active_stages(self.method, settings):
            if stage.learns == "embedding":
                continue
            changed = self.backbone.weights()
            for name, parameter in self.learning(stage).items():
                if name in changed and ".lora_" not in name and name not in self._original:
                    self._original[name] = parameter.detach().to("cpu", copy=True)
                parameter.data = parameter.data.float()

    def _subject_source(self) -> SampleSource:
        crops = self._crops(self.subject.photos)
        masks = self._crops(self.subject.masks) if self.subject.masks else []
        prompts = self._captions_of(crops)
        by_shape: dict[tuple[int, int], list[int]] = {}
        for i, crop in enumerate(crops):
            by_shape.setdefault(crop.image.size, []).append(i)
        pools = [
            self._pool(
                [crops[i] for i in rows],
                [masks[i].image for i in rows] if masks else [],
                [prompts[i] for i in rows] if prompts else [],
            )
            for rows in by_shape.values()
        ]
        settings = self.settings.captions
        captions = Captions(len(self.settings.prompts), settings.share, settings.dropout)
        return SampleSource(
            "diffusion", pools, self.prompts, captions=captions if prompts else None
        )

    def _crops(self, pictures: Sequence[Image.Image]) -> list[Crop]:
        augmentation = self.settings.augmentation
        step = bucket_step(self.size, self.backbone.latent_factor) if augmentation.buckets else 0
        return varied_crops(pictures, self.size, augmentation, self.seed, step)

    def _captions_of(self, crops: Sequence[Crop]) -> list[int]:
        """The number of the prompt that each crop's photo has alone, or -1; none if unused."""
        if not any(self._captions):
            return []
        first = len(self.settings.prompts)
        own = [self.prompts.index(each, first + 1) if each else -1 for each in self._captions]
        return [own[crop.photo] for crop in crops]

    def _pool(
        self, crops: Sequence[Crop], masks: Sequence[Image.Image], prompts: Sequence[int]
    ) -> LatentPool:
        """Crops of one shape, encoded, with their masks and the numbers of their own prompts."""
        factor, background = self.backbone.latent_factor, self.settings.mask.background
        sizes = [each.sizes(self.subject.sizes[each.photo]) for each in crops if self.subject.sizes]
        return encode_pictures(
            self.backbone,
            [each.image for each in crops],
            weights=loss_weights(masks, factor, background) if masks else None,
            captions=torch.tensor(prompts) if prompts else None,
            sizes=torch.tensor(sizes) if sizes else None,
        )

    def _class_sources(self) -> Iterator[SampleSource]:
        """The source for prior preservation (DreamBooth, arXiv 2208.12242, eq. 2), if weighted."""
        if not self.settings.prior.weight:
            return
        if not self.subject.class_pictures:
            raise InvalidInput("prior preservation needs class pictures")
        pictures, side = self.subject.class_pictures, self.size
        sized = Photos([partial(_scaled, pictures, i, side) for i in range(len(pictures))])
        sizes = torch.tensor([Crop(sized[0], 0, (0, 0)).sizes(pictures[0].size)])
        pool = encode_pictures(self.backbone, sized, sizes=sizes.expand(len(pictures), -1))
        yield SampleSource("prior", [pool], [self.class_prompt], self.settings.prior.weight)

    def restore(self) -> None:
        """Give the denoiser its original weights and layers back."""
        parameters = self.backbone.weights()
        for name, original in self._original.items():
            parameters[name].data = original.to(parameters[name].device)
        self._original.clear()
        self.backbone.remove_lora()
        self.backbone.unquantize()
        if self.settings.gradient_checkpointing:
            self.backbone.set_gradient_checkpointing(False)
        if self.settings.compile:
            self.backbone.set_compiled(False)
        for network, dtype in self._dtypes:
            cast(network, dtype)
        self.backbone.to(self.device)
        self.backbone.denoiser.requires_grad_(False).eval()
        for encoder in self.backbone.text_encoders:
            encoder.network.requires_grad_(False)

    def non_finite_weight(self) -> str | None:
        """A parameter of the base model that was not finite before training; None if all were."""
        return self.backbone.non_finite_parameter(self._original)

    # --- trained parameters ---------------------------------------------------------------------

    def learning(self, stage: Stage) -> dict[str, nn.Parameter]:
        """The parameters that a stage trains, by name; of layers that LoRA adapts, its own."""
        return {name: each for part in self.learning_at(stage).values() for name, each in part}

    def learning_at(self, stage: Stage) -> dict[float, list[tuple[str, nn.Parameter]]]:
        """The parameters that a stage trains, by name, at each learning rate."""
        settings = self.settings.stages()[stage.name]
        parts: list[tuple[float, dict[str, nn.Parameter]]] = []
        if stage.learns == "embedding":
            parts.append((settings.learning_rate, self.embedding.learning()))
        else:
            of_denoiser = self.backbone.parameters(stage.learns)
            parts.append((settings.learning_rate, self._adapted(of_denoiser)))
        if settings.embedding_rate:
            parts.append((settings.embedding_rate, self.embedding.learning()))
        if settings.text_encoder_rate:
            of_texts = self.backbone.read_text_parameters()
            parts.append((settings.text_encoder_rate, self._adapted(of_texts)))
        if settings.subject_encoder_rate and self.encoding is not None:
            parts.append((settings.subject_encoder_rate, self.encoding.learning()))
        found: dict[float, list[tuple[str, nn.Parameter]]] = {}
        for rate, parameters in parts:
            found.setdefault(rate, []).extend(parameters.items())
        return found

    def _adapted(self, parameters: dict[str, nn.Parameter]) -> dict[str, nn.Parameter]:
        """Those of some layers' parameters that are trained: with LoRA, its own."""
        if not self.settings.rank:
            return parameters
        return {name: each for name, each in parameters.items() if ".lora_" in name}

    def all_learning(self) -> dict[str, Tensor]:
        """The parameters that any stage trains, by name."""
        everything: dict[str, Tensor] = {}
        for stage, _ in active_stages(self.method, self.settings):
            everything |= self.learning(stage)
        return everything

    def load_learned(self, point: ResumePoint) -> None:
        """Load what was learned up to a resume point."""
        if point.done or point.stage:
            copy_values(point.learned, self.all_learning())

    def learned(self) -> LearnedAdapters:
        """What has been learned so far, as adapters."""
        self.update_encoding()
        return LearnedAdapters(self.embedding, self._weight_delta(), self.subject.references)

    @torch.no_grad()
    def update_encoding(self) -> None:
        """Make the subject encoder's tokens by its ResBlocks as they are now."""
        if self.encoding is not None:
            self.encoding.update()

    def references(self) -> References:
        """The references as drawing needs them, with the concept's phrase in their prompts.

        An encoding that is injected in training is not with them.
        """
        references = self.subject.references.in_words(self.phrase)
        return references.without_encoding() if self.encoding else references

    def _weight_delta(self) -> WeightDelta | None:
        if self.method.keeps_base:
            return None
        parameters = self.backbone.weights()
        factors = dict(_lora_factors(parameters, self.settings.lora.alpha))
        magnitudes = {
            f"{name.partition(_MAGNITUDE)[0]}.weight": each.detach().flatten().cpu().clone()
            for name, each in parameters.items()
            if _MAGNITUDE in name
        }
        deltas = {
            name: (parameters[name].detach().cpu() - original.float()).half()
            for name, original in self._original.items()
        }
        return WeightDelta(deltas, factors, magnitudes) if deltas or factors else None


def _lora_factors(
    parameters: dict[str, nn.Parameter], alpha: float
) -> Iterator[tuple[str, tuple[Tensor, Tensor]]]:
    """(up, down) of each adapted layer, by the name of the weight that it changes.

    `up` (out, r) has alpha / r in it, if alpha is not 0; `down` is (r, in), or a kernel
    (r, in, k, k).
    """
    for name, down in parameters.items():
        if ".lora_A." in name:
            up = parameters[name.replace(".lora_A.", ".lora_B.")]
            layer = name.partition(".lora_A.")[0]
            scaled = (up.detach().flatten(1) * (alpha / len(down) if alpha else 1.0)).cpu()
            yield f"{layer}.weight", (scaled, down.detach().cpu().clone())
