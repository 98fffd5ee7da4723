"""Trainings: what one needs, and several that run together. The loop itself is in `stage_run.py`.

What a step draws at random follows from (seed, stage, step), so a training that was interrupted
and resumed ends bit-equal to one that was not, on a CPU; on a GPU up to the order of its sums.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler
from PIL import Image
from torch import Tensor, nn

from ..adapters.adapter import TokenEmbedding, WeightDelta, injected, text_encoders
from ..adapters.timestep_tokens import TimestepTokens, staging_for
from ..generation.sampler import check_length
from ..methods.method import Method, Stage, active_stages
from ..methods.settings import TrainingSettings
from ..models.latents import name_of_broken
from ..registry.errors import InvalidInput, TrainingFailed
from .callbacks import Hooks, Learned
from .checkpoints import ResumePoint, read_resume_point, take_values
from .latents import encode_pictures, varied_crops
from .loop import StageRun, run_stage
from .precision import cast, make_accelerator
from .seeds import seed_of

ATTENTION_PROJECTIONS = ("to_q", "to_k", "to_v", "to_out.0")


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What is to be learned: photos, the word for what they show, and the tokens to learn it as.

    `class_pictures` are for prior preservation, drawn from the bare category.
    """

    photos: Sequence[Image.Image]
    category: str
    tokens: tuple[str, ...]
    class_pictures: Sequence[Image.Image] = ()


def drawn_size(pipeline: Any, settings: TrainingSettings) -> int:
    """Side of the pictures that a training learns from: set, or the base model's own."""
    return settings.resolution or (pipeline.unet.config.sample_size * pipeline.vae_scale_factor)


class Training:
    """One concept under way on one pipeline.

    The pipeline's U-Net learns in place while it runs; `run` gives it its own weights back. Make
    all trainings that are to run together before the first of them runs.
    """

    def __init__(
        self,
        pipeline: Any,
        method: Method,
        settings: TrainingSettings,
        subject: Subject,
        *,
        seed: int,
        hooks: Hooks | None = None,
    ) -> None:
        self.pipeline = pipeline
        self.method = method
        self.settings = settings
        self.subject = subject
        self.seed = seed
        self.hooks = hooks or Hooks()
        self.accelerator = make_accelerator(settings.mixed_precision)
        pipeline.to(self.accelerator.device)
        encoders = [encoder for _, encoder in text_encoders(pipeline)]
        for part in (pipeline.unet, pipeline.vae, *encoders):
            part.requires_grad_(False)
        self.size = drawn_size(pipeline, settings)
        self.embedding = self._first_embedding()
        self.prompts = [prompt.replace("{}", self.phrase) for prompt in settings.prompts]
        self.class_prompt = f"a photo of a {subject.category}"
        self._check_resolution()
        self._check_batches()
        self.noise_scheduler: Any = DDPMScheduler.from_config(pipeline.scheduler.config)
        self._own: dict[str, Tensor] = {}
        parts: tuple[Any, ...] = (pipeline.unet, pipeline.vae, *encoders)
        self._dtypes = [(part, part.dtype) for part in parts]

    def _first_embedding(self) -> TokenEmbedding | TimestepTokens:
        pipeline, subject = self.pipeline, self.subject
        match self.method.word:
            case "category":
                return TokenEmbedding.from_words(pipeline, subject.tokens, subject.category)
            case "rare":
                generator = torch.Generator().manual_seed(seed_of(self.seed, "rare word"))
                return TokenEmbedding.rare(pipeline, subject.tokens, generator)
            case "staged":
                options: Any = self.settings
                return TimestepTokens.from_word(
                    pipeline,
                    subject.tokens[0],
                    subject.category,
                    num_stages=options.num_stages,
                    parametrisation=options.parametrisation,
                    seed=seed_of(self.seed, "network"),
                )

    def _check_resolution(self) -> None:
        factor = self.pipeline.vae_scale_factor
        if self.size % factor or self.size < 2 * factor:
            raise InvalidInput(
                f"resolution is {self.size}: expected a multiple of {factor}",
                hint=f"--set resolution={max(2, round(self.size / factor)) * factor}",
            )

    def _check_batches(self) -> None:
        """Each process has to have a part in each step, or the others would wait for it."""
        processes = self.accelerator.num_processes
        shares = processes * self.settings.gradient_accumulation
        for stage, numbers in active_stages(self.method, self.settings):
            if processes > 1 and numbers.batch < shares:
                raise InvalidInput(
                    f"a batch of {numbers.batch} in {stage.name} is too small for "
                    f"{processes} processes",
                    hint=f"--set {stage.name}.batch={shares}",
                )

    @property
    def phrase(self) -> str:
        """The concept in a prompt: `[V] dog`."""
        words = " ".join(self.subject.tokens)
        return f"{words} {self.subject.category}" if self.method.names_category else words

    # --- the whole --------------------------------------------------------------------------------

    def run(self, resume_path: Path) -> Learned:
        """Run the stages; see `run_batch`. Raises what that does, and `TrainingFailed`."""
        (outcome,) = run_batch([self], [resume_path])
        if isinstance(outcome, TrainingFailed):
            raise outcome
        return outcome

    def prepare(self) -> None:
        """Encode all photos, and lay the models out for what is to be learned.

        What learns is float32, whatever the base model came in: a step of 1e-6 would be lost in
        the rounding of half precision. So are text encoders, which see no autocast.
        """
        unet, settings = self.pipeline.unet, self.settings
        for prompt in (*self.prompts, self.class_prompt):
            check_length(self.pipeline, prompt)
        for _, encoder in text_encoders(self.pipeline):
            cast(encoder, torch.float32)
        cast(self.pipeline.vae, torch.float32)  # SDXL's overflows in half precision
        if self.accelerator.mixed_precision == "no":
            cast(unet, torch.float32)
        crops = varied_crops(self.subject.photos, self.size, settings.augmentation, self.seed)
        self.pool = encode_pictures(self.pipeline, crops)
        self.class_pool = None
        if settings.prior.weight:
            if not self.subject.class_pictures:
                raise InvalidInput("prior preservation needs class pictures")
            sized = [each.resize((self.size, self.size)) for each in self.subject.class_pictures]
            self.class_pool = encode_pictures(self.pipeline, sized)
        if settings.gradient_checkpointing:
            unet.enable_gradient_checkpointing()
        if settings.rank and not self.method.keeps_base:
            self._add_lora()
        for stage, _ in active_stages(self.method, settings):
            if stage.learns == "embedding":
                continue
            for name, parameter in self.learning(stage).items():
                if not settings.rank and name not in self._own:
                    self._own[name] = parameter.detach().to("cpu", copy=True)
                parameter.data = parameter.data.float()

    def _add_lora(self) -> None:
        from peft import LoraConfig

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_of(self.seed, "lora", 0))
            self.pipeline.unet.add_adapter(
                LoraConfig(
                    r=self.settings.rank,
                    lora_alpha=self.settings.rank,
                    target_modules=list(ATTENTION_PROJECTIONS),
                )
            )
        self.pipeline.unet.requires_grad_(False)

    def restore(self) -> None:
        """Give the U-Net its own weights and layers back."""
        unet = self.pipeline.unet
        parameters = dict(unet.named_parameters())
        for name, own in self._own.items():
            parameters[name].data = own.to(parameters[name].device)
        self._own.clear()
        if getattr(unet, "peft_config", None):
            unet.unload_lora()
        if self.settings.gradient_checkpointing:
            unet.disable_gradient_checkpointing()
        for part, dtype in self._dtypes:
            cast(part, dtype)
        unet.requires_grad_(False).eval()

    def broken_weights(self) -> str | None:
        """A parameter that was not finite before anything was learned."""
        return name_of_broken(self.pipeline, self._own)

    # --- what learns ------------------------------------------------------------------------------

    def learning(self, stage: Stage) -> dict[str, nn.Parameter]:
        """The parameters that a stage changes, by name.

        With LoRA, its factors stand for the layers that they change.
        """
        if stage.learns == "embedding":
            return self.embedding.learning()
        return {
            name: parameter
            for name, parameter in self.pipeline.unet.named_parameters()
            if (stage.learns == "unet" or ".attn2." in name)
            and (not self.settings.rank or ".lora_" in name)
        }

    def all_learning(self) -> dict[str, Tensor]:
        """All that has been learned so far, in every stage."""
        everything: dict[str, Tensor] = {}
        for stage, _ in active_stages(self.method, self.settings):
            everything |= self.learning(stage)
        return everything

    def take_over(self, point: ResumePoint) -> None:
        """Begin with what was learned up to a resume point."""
        take_values(point.learned, self.all_learning())

    def learned(self) -> Learned:
        """What has been learned, as it is stored."""
        return Learned(self.embedding, self._weight_delta())

    def _weight_delta(self) -> WeightDelta | None:
        if self.method.keeps_base:
            return None
        parameters = dict(self.pipeline.unet.named_parameters())
        if self.settings.rank:
            return WeightDelta({}, dict(_lora_factors(parameters)))
        deltas = {
            name: (parameters[name].detach().cpu() - own.float()).half()
            for name, own in self._own.items()
        }
        return WeightDelta(deltas) if deltas else None


def run_batch(
    trainings: Sequence[Training], resume_paths: Sequence[Path]
) -> list[Learned | TrainingFailed]:
    """Run trainings of one method and one set of settings, on one pipeline, as one batch.

    Each goes on from its resume path, if it is there, and writes it now and then; all have to be at
    the same step. A training learns what it would learn alone, up to the order of sums. More than
    one have to leave the base model as it is.

    One that fails because a loss or gradient is not finite leaves the others alone. Raises
    `StorageError` if a state cannot be saved, and `TrainingInterrupted` once the first one's
    `should_stop` says so and all are saved.
    """
    first = trainings[0]
    if len(trainings) > 1 and not first.method.keeps_base:
        raise ValueError(f"{first.method.name} changes the base model: expected one training")
    embeddings = [training.embedding for training in trainings]
    failed: dict[Training, TrainingFailed] = {}
    try:
        with injected(first.pipeline, [*embeddings, *staging_for(embeddings)]):
            points: list[ResumePoint] = []
            for training, path in zip(trainings, resume_paths, strict=True):
                training.prepare()
                points.append(read_resume_point(path) if path.exists() else ResumePoint())
                training.take_over(points[-1])
            if len({(point.done, point.stage, point.step) for point in points}) > 1:
                raise ValueError("trainings that run together have to be at the same step")
            for stage, numbers in active_stages(first.method, first.settings):
                if stage.name in points[0].done:
                    continue
                runs = [
                    StageRun(training, stage, numbers, point, path)
                    for training, point, path in zip(trainings, points, resume_paths, strict=True)
                    if training not in failed
                ]
                if not runs:
                    break
                failed |= {run.training: error for run, error in run_stage(runs).items()}
                points = [ResumePoint(done=(*point.done, stage.name)) for point in points]
            return [failed.get(training) or training.learned() for training in trainings]
    finally:
        for training in trainings:
            training.restore()


def _lora_factors(
    parameters: dict[str, nn.Parameter],
) -> Iterator[tuple[str, tuple[Tensor, Tensor]]]:
    """(up, down) of each adapted layer, by the name of the weight that it changes."""
    for name, down in parameters.items():
        if ".lora_A." in name:
            up = parameters[name.replace(".lora_A.", ".lora_B.")]
            layer = name.partition(".lora_A.")[0]
            yield f"{layer}.weight", (up.detach().cpu().clone(), down.detach().cpu().clone())
