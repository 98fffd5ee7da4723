"""The one training loop. A method says which stages there are; this runs them.

What a step draws at random follows from (seed, stage, step), so a training that was interrupted
and resumed ends bit-equal to one that was not, on a CPU; on a GPU up to the order of its sums.
"""

import hashlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler
from PIL import Image
from torch import Tensor, nn

from ..kernels import observe
from ..models.drawing import check_length, draw_batch
from ..registry.errors import InvalidInput, TrainingFailed, TrainingInterrupted
from . import previews
from .adapters import TokenEmbedding, WeightChange, text_encoders
from .conditioning import Conditioning, encode, token_columns
from .config import StageSettings, TrainingSettings
from .losses import diffusion_loss, diffusion_target, moment_matching_loss
from .method import Method, Stage, active_stages
from .photos import encode_pictures, varied_crops
from .precision import cast, make_accelerator
from .processes import agreed, told
from .resume_point import ResumePoint, read_resume_point, write_resume_point

SAVE_EVERY_SECONDS = 120.0
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


@dataclass(frozen=True, slots=True)
class StepReport:
    """What happened in a step: its losses, each with its weight."""

    stage: str
    step: int
    num_steps: int
    losses: dict[str, float]
    seconds: float


@dataclass(frozen=True, slots=True)
class Learned:
    """What a training leaves: vectors for the tokens and, if it changed the U-Net, the changes."""

    embedding: TokenEmbedding
    weights: WeightChange | None

    def state(self) -> dict[str, Tensor]:
        """All tensors, as they are stored."""
        return self.embedding.state() | (self.weights.state() if self.weights else {})


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What is learned after a step of the last stage; the pipeline wears it meanwhile.

    `phrase` is the concept in a prompt, `[V] dog`.
    """

    stage: str
    step: int
    learned: Learned
    phrase: str


@dataclass(slots=True)
class Hooks:
    """What a training tells while it runs, and asks."""

    on_step: Callable[[StepReport], None] = lambda _: None
    on_saved: Callable[[Path], None] = lambda _: None
    should_stop: Callable[[], bool] = lambda: False
    on_class_picture: Callable[[int, int], None] = lambda *_: None
    """Gets how many class pictures are drawn, and of how many."""
    on_preview: Callable[[str, int, list[Image.Image]], None] = lambda *_: None
    """Gets stage, step and a strip of pictures, every `preview_every` steps and after a stage."""
    preview_every: int = 0
    """0 draws none."""
    on_checkpoint: Callable[["Checkpoint"], None] = lambda _: None
    """Gets what is learned so far every `checkpoint_every` steps of the last stage."""
    checkpoint_every: int = 0
    """0 makes none."""
    is_enough: Callable[[], bool] = lambda: False
    """Asked after each checkpoint; the training then ends as if all steps were done."""


class Training:
    """One concept under way on one pipeline.

    The pipeline's U-Net learns in place while it runs; `run` gives it its own weights back.
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
        self.size = settings.resolution or (
            pipeline.unet.config.sample_size * pipeline.vae_scale_factor
        )
        self.embedding = self._first_embedding()
        self.prompts = [prompt.replace("{}", self._phrase) for prompt in settings.prompts]
        self.class_prompt = f"a photo of a {subject.category}"
        self._check_resolution()
        self._check_batches()
        self.noise_scheduler: Any = DDPMScheduler.from_config(pipeline.scheduler.config)
        self._own: dict[str, Tensor] = {}
        parts: tuple[Any, ...] = (pipeline.unet, pipeline.vae, *encoders)
        self._dtypes = [(part, part.dtype) for part in parts]

    def _first_embedding(self) -> TokenEmbedding:
        """Where vectors learn they begin as the category's; where they do not, as a rare word."""
        pipeline, subject = self.pipeline, self.subject
        if any(stage.learns == "embedding" for stage in self.method.stages):
            return TokenEmbedding.from_words(pipeline, subject.tokens, subject.category)
        generator = torch.Generator().manual_seed(seed_of(self.seed, "rare word"))
        return TokenEmbedding.rare(pipeline, subject.tokens, generator)

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
    def _phrase(self) -> str:
        """The concept in a prompt: `[V] dog`."""
        words = " ".join(self.subject.tokens)
        return f"{words} {self.subject.category}" if self.method.names_category else words

    # --- the whole --------------------------------------------------------------------------------

    def run(self, resume_path: Path) -> Learned:
        """Run the stages; goes on from `resume_path` if it is there, and writes it now and then.

        Raises `TrainingFailed` where a loss or gradient is not finite, `StorageError` if the state
        cannot be saved, `TrainingInterrupted` once `should_stop` says so and it is saved.
        """
        self.embedding.inject(self.pipeline)
        try:
            self._prepare()
            point = read_resume_point(resume_path) if resume_path.exists() else ResumePoint()
            self._take_over(point)
            for stage, numbers in active_stages(self.method, self.settings):
                if stage.name in point.done:
                    continue
                _StageRun(self, stage, numbers).run(point, resume_path)
                point = ResumePoint(done=(*point.done, stage.name), learned=self._learned())
                if self.accelerator.is_main_process:
                    write_resume_point(resume_path, point)
                    self.hooks.on_saved(resume_path)
            return Learned(self.embedding, self._weight_change())
        finally:
            self.embedding.eject(self.pipeline)
            self._restore()

    def _prepare(self) -> None:
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
        if settings.rank:
            self._add_lora()
        for stage, _ in active_stages(self.method, settings):
            for name, parameter in self.learning(stage).items():
                if name.startswith("token."):
                    continue
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

    def _restore(self) -> None:
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

    # --- what learns ------------------------------------------------------------------------------

    def learning(self, stage: Stage) -> dict[str, nn.Parameter]:
        """The parameters that a stage changes, by name; those of the embedding as `token.0`, ….

        With LoRA, its factors stand for the layers that they change.
        """
        if stage.learns == "embedding":
            return {f"token.{i}": vectors for i, vectors in enumerate(self.embedding.vectors)}
        return {
            name: parameter
            for name, parameter in self.pipeline.unet.named_parameters()
            if (stage.learns == "unet" or ".attn2." in name)
            and (not self.settings.rank or ".lora_" in name)
        }

    def _learned(self) -> dict[str, Tensor]:
        """All that has been learned so far, in every stage."""
        everything: dict[str, Tensor] = {}
        for stage, _ in active_stages(self.method, self.settings):
            everything |= self.learning(stage)
        return everything

    def _take_over(self, point: ResumePoint) -> None:
        current = self._learned()
        for name, value in point.learned.items():
            current[name].data.copy_(value)

    def _weight_change(self) -> WeightChange | None:
        parameters = dict(self.pipeline.unet.named_parameters())
        if self.settings.rank:
            return WeightChange({}, dict(_lora_factors(parameters)))
        deltas = {
            name: (parameters[name].detach().cpu() - own.float()).half()
            for name, own in self._own.items()
        }
        return WeightChange(deltas) if deltas else None


class _StageRun:
    """One stage of a training."""

    def __init__(self, training: Training, stage: Stage, numbers: StageSettings) -> None:
        self.training = training
        self.stage = stage
        self.numbers = numbers
        self.settings = training.settings
        self.accelerator = training.accelerator
        self.learning = training.learning(stage)
        for parameter in self.learning.values():
            parameter.requires_grad_(True)
        optimizer = _make_optimizer(list(self.learning.values()), numbers, self.settings)
        embedding = nn.ParameterList(training.embedding.vectors)
        self.model, self.optimizer = self.accelerator.prepare(
            _Denoiser(training.pipeline.unet, embedding), optimizer
        )
        self.average = (
            {name: value.detach().clone() for name, value in self.learning.items()}
            if self.settings.ema
            else {}
        )
        self.watches = bool(numbers.mean_weight or numbers.variance_weight)
        self.columns = self._columns() if self.watches else None
        self.states = self._fixed_states()
        self.class_states = self._encode([training.class_prompt])

    def _columns(self) -> Tensor:
        """(P, n + 1): of each prompt, where the tokens and the category stand."""
        training = self.training
        return torch.tensor(
            [
                token_columns(
                    training.pipeline, prompt, training.subject.tokens, training.subject.category
                )
                for prompt in training.prompts
            ],
            device=self.accelerator.device,
        )

    def _fixed_states(self) -> Conditioning | None:
        """The prompts, encoded once, unless their embedding learns."""
        return None if self.stage.learns == "embedding" else self._encode(self.training.prompts)

    @torch.no_grad()
    def _encode(self, prompts: list[str]) -> Conditioning:
        return encode(self.training.pipeline, prompts, self.training.size)

    # --- the loop ---------------------------------------------------------------------------------

    def run(self, point: ResumePoint, resume_path: Path) -> None:
        """All steps of the stage, or those after a resume point."""
        hooks, num_steps = self.training.hooks, self.numbers.steps
        first = 0
        if point.stage == self.stage.name:
            first = point.step
            self._load(point)
        saved = time.monotonic()
        self.training.pipeline.unet.train()
        for step in range(first, num_steps):
            started = time.monotonic()
            losses = self._step(step)
            seconds = time.monotonic() - started
            hooks.on_step(StepReport(self.stage.name, step + 1, num_steps, losses, seconds))
            if self._is_preview_due(step + 1):
                hooks.on_preview(self.stage.name, step + 1, self._preview())
            if self._is_checkpoint_due(step + 1):
                if self.accelerator.is_main_process:
                    self._checkpoint(step + 1)
                if agreed(hooks.is_enough()):
                    break
            stops = agreed(hooks.should_stop())
            if stops or time.monotonic() - saved > SAVE_EVERY_SECONDS:
                self._save(step + 1, point.done, resume_path)
                saved = time.monotonic()
            if stops:
                told()  # nobody leaves before the first process has saved
                raise TrainingInterrupted(
                    f"stopped in {self.stage.name} after step {step + 1} of {num_steps}"
                )
        self._put(self.average)
        for parameter in self.learning.values():
            parameter.requires_grad_(False)
        self.accelerator.free_memory()  # it would keep the moments of every stage

    def _step(self, step: int) -> dict[str, float]:
        """One update. Raises `TrainingFailed` before it, if a loss or gradient is not finite."""
        sums: dict[str, Tensor] = {}
        parts = list(self._parts(step))
        for i, part in enumerate(parts):
            is_last = i == len(parts) - 1
            with nullcontext() if is_last else self.accelerator.no_sync(self.model):
                for name, value in self._backward(part).items():
                    sums[name] = sums.get(name, torch.zeros_like(value)) + value
        losses = {name: float(self._of_all(value)) for name, value in sums.items()}
        norm = self._clip()
        if not all(map(math.isfinite, [norm, *losses.values()])):
            raise TrainingFailed(
                f"{self.stage.name}, step {step + 1}: a loss or gradient is not finite",
                hint=f"--set {self.stage.name}.learning_rate=… lower, or mixed_precision=no",
            )
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.average:
            torch._foreach_lerp_(
                list(self.average.values()), list(self.learning.values()), 1 - self.settings.ema
            )
        return losses

    def _of_all(self, share: Tensor) -> Tensor:
        """The sum of what each process has of a loss."""
        accelerator: Any = self.accelerator
        return accelerator.reduce(share, "sum") if accelerator.num_processes > 1 else share

    def _clip(self) -> float:
        limit = self.settings.max_grad_norm or math.inf
        norm: Any = self.accelerator.clip_grad_norm_(self.learning.values(), limit)
        return float(norm)

    def _parts(self, step: int) -> Iterator["_Part"]:
        """The step's batch, of this process, in as many parts as gradients are accumulated over."""
        training, accelerator = self.training, self.accelerator
        generator = torch.Generator().manual_seed(seed_of(training.seed, self.stage.name, step))
        whole = _Part.drawn(self, generator)
        shares = accelerator.num_processes * self.settings.gradient_accumulation
        rows = torch.arange(self.numbers.batch).tensor_split(shares)
        for i in range(self.settings.gradient_accumulation):
            own = rows[i * accelerator.num_processes + accelerator.process_index]
            if len(own):
                yield whole.rows(own)

    def _backward(self, part: "_Part") -> dict[str, Tensor]:
        """Losses of a part, as its share of the whole batch's, and their gradients."""
        unet = self.training.pipeline.unet
        watch = (
            observe(unet, columns=self.columns[part.prompts], want="moments")
            if self.columns is not None
            else nullcontext()
        )
        with watch as seen:
            losses = {"diffusion": self._diffusion(part)}
            if seen is not None:
                losses["attention"] = self._attention(seen.moments, len(part.prompts))
            if self.training.class_pool is not None:
                losses["prior"] = self._prior(part)
            total = sum(losses.values(), torch.zeros((), device=self.accelerator.device))
            self.accelerator.backward(total * self.accelerator.num_processes)
        return {name: value.detach() for name, value in losses.items()}

    def _diffusion(self, part: "_Part") -> Tensor:
        states = self.states.pick(part.prompts) if self.states else self._encoded(part.prompts)
        errors = self._errors(part.latents, part.noise, part.timesteps, states)
        return errors.sum() / self.numbers.batch

    def _encoded(self, index: Tensor) -> Conditioning:
        """The prompts of an index (B,) with the embedding as it is now, equal ones once."""
        training = self.training
        unique, places = index.unique(return_inverse=True)
        prompts = [training.prompts[i] for i in unique.tolist()]
        return encode(training.pipeline, prompts, training.size).pick(places)

    def _prior(self, part: "_Part") -> Tensor:
        states = self.class_states.pick(torch.zeros_like(part.prompts))
        errors = self._errors(part.class_latents, part.class_noise, part.timesteps, states)
        return self.settings.prior.weight * errors.sum() / self.numbers.batch

    def _errors(
        self, latents: Tensor, noise: Tensor, timesteps: Tensor, conditioning: Conditioning
    ) -> Tensor:
        scheduler = self.training.noise_scheduler
        noisy = scheduler.add_noise(latents, noise, timesteps)
        predicted = self.model(noisy, timesteps, conditioning)
        return diffusion_loss(predicted, diffusion_target(scheduler, latents, noise, timesteps))

    def _attention(self, moments: dict[str, Tensor], count: int) -> Tensor:
        loss = moment_matching_loss(
            moments,
            mean_weight=self.numbers.mean_weight,
            variance_weight=self.numbers.variance_weight,
            reduction=self.settings.loss_reduction,
        )
        is_mean = self.settings.loss_reduction == "mean"
        return loss * (count / self.numbers.batch) if is_mean else loss

    def _is_preview_due(self, step: int) -> bool:
        every = self.training.hooks.preview_every
        is_time = bool(every) and (step % every == 0 or step == self.numbers.steps)
        return is_time and self.accelerator.is_main_process

    def _is_checkpoint_due(self, step: int) -> bool:
        """In the last stage, but for its end, which is the result itself."""
        *_, (last, _) = active_stages(self.training.method, self.settings)
        every = self.training.hooks.checkpoint_every
        return bool(every) and self.stage == last and not step % every and step < self.numbers.steps

    def _checkpoint(self, step: int) -> None:
        training = self.training
        before = {name: self.learning[name].detach().clone() for name in self.average}
        self._put(self.average)
        learned = Learned(training.embedding, training._weight_change())
        checkpoint = Checkpoint(self.stage.name, step, learned, training._phrase)
        unet = training.pipeline.unet.eval()
        try:
            with torch.no_grad(), self.accelerator.autocast():
                training.hooks.on_checkpoint(checkpoint)
        finally:
            unet.train()
            self._put(before)

    def _put(self, values: Mapping[str, Tensor]) -> None:
        for name, value in values.items():
            self.learning[name].data.copy_(value)

    def _preview(self) -> list[Image.Image]:
        """Pictures with what has been learned so far; drawing them changes nothing."""
        training = self.training
        unet = training.pipeline.unet.eval()
        prompts = [prompt.replace("{}", training._phrase) for prompt in previews.PROMPTS]
        seeds = [seed_of(training.seed, "preview", i) for i in range(len(prompts))]
        try:
            with self.accelerator.autocast():
                return draw_batch(training.pipeline, prompts, seeds, previews.SETTINGS)
        finally:
            unet.train()

    # --- resume points ----------------------------------------------------------------------------

    def _save(self, step: int, done: tuple[str, ...], path: Path) -> None:
        if not self.accelerator.is_main_process:
            return
        moments = {
            f"{key}.{name}": torch.as_tensor(value)
            for name, parameter in self.learning.items()
            for key, value in self.optimizer.state[parameter].items()
        }
        point = ResumePoint(
            done=done,
            stage=self.stage.name,
            step=step,
            learned=self.training._learned(),
            optimizer=moments,
            average=self.average,
        )
        write_resume_point(path, point)
        self.training.hooks.on_saved(path)

    def _load(self, point: ResumePoint) -> None:
        for name, parameter in self.learning.items():
            state: dict[str, Any] = {}
            for key in {key.partition(".")[0] for key in point.optimizer}:
                value = point.optimizer.get(f"{key}.{name}")
                if value is not None:
                    state[key] = _as_state_of(parameter, value)
            self.optimizer.state[parameter] = state
        for name, value in point.average.items():
            self.average[name].copy_(value)


class _Denoiser(nn.Module):
    """The U-Net and the embedding as one module, which is what several GPUs keep equal."""

    def __init__(self, unet: nn.Module, embedding: nn.ParameterList) -> None:
        super().__init__()
        self.unet = unet
        self.embedding = embedding

    def forward(self, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """What the U-Net predicts, (B, C, h, w)."""
        dtype = next(self.unet.parameters()).dtype
        return self.unet(
            noisy.to(dtype),
            timesteps,
            conditioning.states.to(dtype),
            added_cond_kwargs=conditioning.added,
        ).sample


@dataclass(frozen=True, slots=True)
class _Part:
    """Samples of a step: latents and noise (B, C, h, w), timesteps (B,), which prompts (B,)."""

    prompts: Tensor
    latents: Tensor
    noise: Tensor
    timesteps: Tensor
    class_latents: Tensor
    class_noise: Tensor

    @classmethod
    def drawn(cls, run: _StageRun, generator: torch.Generator) -> "_Part":
        """A whole batch, the same for any number of processes and parts."""
        training, batch = run.training, run.numbers.batch

        def index(pool: Any) -> Tensor:
            return torch.randint(len(pool), (batch,), generator=generator).to(device)

        def noise() -> Tensor:
            return torch.randn((batch, *shape), generator=generator).to(device)

        device, shape = run.accelerator.device, training.pool.mean.shape[1:]
        prompts = index(training.prompts)
        latents = training.pool.sample(index(training.pool), noise())
        timesteps = torch.randint(
            training.noise_scheduler.config.num_train_timesteps, (batch,), generator=generator
        ).to(device)
        own_noise, classes = noise(), training.class_pool
        class_latents = classes.sample(index(classes), noise()) if classes else latents[:0]
        class_noise = noise() if classes else latents[:0]
        return cls(prompts, latents, own_noise, timesteps, class_latents, class_noise)

    def rows(self, index: Tensor) -> "_Part":
        """Some of the samples."""
        return _Part(
            *(
                value[index.to(value.device)] if len(value) else value
                for value in (
                    self.prompts,
                    self.latents,
                    self.noise,
                    self.timesteps,
                    self.class_latents,
                    self.class_noise,
                )
            )
        )


def _make_optimizer(
    parameters: list[nn.Parameter], numbers: StageSettings, settings: TrainingSettings
) -> torch.optim.Optimizer:
    """AdamW (0.9, 0.999) at a constant rate."""
    options: dict[str, Any] = {"lr": numbers.learning_rate, "weight_decay": settings.weight_decay}
    if settings.optimizer == "adamw8bit":
        try:
            from bitsandbytes.optim import AdamW8bit  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise InvalidInput(
                "optimizer=adamw8bit needs the package bitsandbytes",
                hint="pip install bitsandbytes, or --set optimizer=adamw",
            ) from error
        return AdamW8bit(parameters, **options)
    return torch.optim.AdamW(parameters, **options, fused=True)


def _as_state_of(parameter: Tensor, value: Tensor) -> Tensor | int:
    """What an optimiser keeps for a parameter, as it was before it was stored."""
    if value.dim() == 0 and not value.is_floating_point():
        return int(value)
    if value.shape == parameter.shape:
        # laid out like the parameter: fused optimisers go by memory, not by index
        return torch.empty_like(parameter, dtype=value.dtype).copy_(value)
    return value.to(parameter.device)


def _lora_factors(
    parameters: dict[str, nn.Parameter],
) -> Iterator[tuple[str, tuple[Tensor, Tensor]]]:
    """(up, down) of each adapted layer, by the name of the weight that it changes."""
    for name, down in parameters.items():
        if ".lora_A." in name:
            up = parameters[name.replace(".lora_A.", ".lora_B.")]
            layer = name.partition(".lora_A.")[0]
            yield f"{layer}.weight", (up.detach().cpu().clone(), down.detach().cpu().clone())


def seed_of(seed: int, *place: str | int) -> int:
    """A 63-bit seed from a training's seed, a stage and a step; the same on every machine."""
    text = " ".join(map(str, (seed, *place)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1
