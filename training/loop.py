"""The training loop: one stage, step by step; trainings of one batch share each forward pass."""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from PIL import Image
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..adapters.adapter import injected
from ..adapters.prompt_encoding import PromptAtTimestep, encode_at_timesteps
from ..generation.sampler import draw_batch
from ..kernels import Observation
from ..methods.attention_losses import AttentionLoss
from ..methods.diffusion_loss import diffusion_loss, diffusion_target
from ..methods.method import Stage, active_stages
from ..methods.settings import StageSettings
from ..models.backbone import Backbone
from ..models.conditioning import Conditioning
from ..models.seeds import seed_of
from ..registry.errors import (
    ConceptryError,
    NotFinite,
    NotFound,
    TrainingFailed,
    TrainingInterrupted,
)
from . import previews
from .callbacks import Checkpoint, StepReport
from .checkpoints import ResumePoint, copy_values, write_resume_point
from .distributed import broadcast, broadcast_flag
from .optimizers import learning_rates, load_state, make_optimizer, saved_state
from .placement import DENOISER, all_on_device, keep_on_device, texts_of
from .precision import autocast_within
from .sources import Minibatch, Samples
from .training import Training

SAVE_EVERY_SECONDS = 120.0


def run_stage(runs: "Sequence[StageRun]", failed: dict[Training, ConceptryError]) -> None:
    """Run all steps of a stage; errors of trainings that fail are put into `failed`, as they do."""
    try:
        _Loop(runs, failed).run()
    finally:
        for run in runs:
            run.release()


class _Loop:
    """The only training loop: samples of all runs go through the denoiser as one batch."""

    def __init__(self, runs: "Sequence[StageRun]", failed: dict[Training, ConceptryError]) -> None:
        self.all = list(runs)
        self.active = list(runs)
        self.failed = failed
        first = runs[0]
        self.training = first.training
        self.settings, self.stage, self.stage_settings = (
            first.settings,
            first.stage,
            first.stage_settings,
        )
        self.accelerator = first.training.accelerator
        learning = [
            vectors for run in runs for vectors in run.training.embedding.learning().values()
        ]
        if first.stage_settings.text_encoder_rate:
            learning += first.training.backbone.read_text_parameters().values()
        if first.training.encoding is not None and first.stage_settings.subject_encoder_rate:
            learning += first.training.encoding.learning().values()
        optimizers = [run.unprepared for run in runs]
        needs_texts = any(state is None for run in runs for state in run.states)
        texts = texts_of(first.training.backbone) if needs_texts else []
        keep_on_device(first.training.backbone, self.training.device, [DENOISER, *texts])
        model = _Denoiser(first.training.backbone, nn.ParameterList(learning))
        self.model, *prepared = self.accelerator.prepare(
            model, *optimizers, device_placement=[False] * (1 + len(optimizers))
        )
        for run, optimizer in zip(runs, prepared, strict=True):
            run.begin(optimizer)

    def run(self) -> None:
        """Run all steps, or those after the resume points."""
        hooks, num_steps = self.training.hooks, self.stage_settings.steps
        saved = time.monotonic()
        self.training.backbone.denoiser.train()
        for step in range(self.active[0].first_step, num_steps):
            self._step(step)
            for run in list(self.active):
                with self._isolated(run):
                    if run.checkpoint_after(step + 1):
                        self._leave(run)
            if not self.active:
                break
            stops = broadcast_flag(hooks.should_stop())
            if stops or time.monotonic() - saved > SAVE_EVERY_SECONDS:
                for run in list(self.active):
                    with self._isolated(run):
                        run.save(step + 1)
                saved = time.monotonic()
            if stops:
                broadcast()  # no process leaves before the main one has saved
                raise TrainingInterrupted(
                    f"stopped in {self.stage.name} after step {step + 1} of {num_steps}"
                )
        for run in list(self.active):
            with self._isolated(run):
                self._leave(run)
        for run in self.all:
            run.freeze()
        self.accelerator.free_memory()  # else it keeps the optimiser states of every stage

    def _leave(self, run: "StageRun") -> None:
        self._drop(run)
        run.finish()

    @contextmanager
    def _isolated(self, run: "StageRun") -> Iterator[None]:
        """If a run fails, or its concept is removed, the others go on.

        What fails in the main process alone, as a preview, ends all processes.
        """
        try:
            yield
        except TrainingFailed as error:
            self._fail(run, error)
        except (NotFinite, NotFound) as error:
            failed = error
            if isinstance(error, NotFinite):
                failed = TrainingFailed(error.message, hint=error.hint)
            if self.accelerator.num_processes > 1:
                raise failed from error
            self._fail(run, failed)

    def _fail(self, run: "StageRun", error: ConceptryError) -> None:
        self._drop(run)
        self.failed[run.training] = error

    def _drop(self, run: "StageRun") -> None:
        """Take a run out of the batch; its token stays injected, and no longer changes."""
        if run not in self.active:
            return
        self.active.remove(run)
        run.training.embedding.end_pass()

    # --- a step -----------------------------------------------------------------------------------

    def _step(self, step: int) -> None:
        """One update of each run; a run that fails is dropped before its update."""
        if not self.settings.fused_backward:
            self._take_step(step)
            return
        (run,) = self.active
        with self._isolated(run):  # it may fail before the backward pass, which updates it
            self._take_step(step)

    def _take_step(self, step: int) -> None:
        started = time.monotonic()
        sums: list[dict[str, Tensor]] = [{} for _ in self.active]
        rounds = list(zip(*(run.parts(step, self.accelerator) for run in self.active), strict=True))
        for i, parts in enumerate(rounds):
            is_last = i == len(rounds) - 1
            with nullcontext() if is_last else self.accelerator.no_sync(self.model):
                for total, losses in zip(sums, self._backward(parts, step, i), strict=True):
                    for name, value in losses.items():
                        total[name] = total.get(name, torch.zeros_like(value)) + value
        for run, total in zip(list(self.active), sums, strict=True):
            losses = {name: float(self._sum_over_processes(value)) for name, value in total.items()}
            with self._isolated(run):
                run.update(step, losses, self.accelerator)
                run.report(step + 1, losses, time.monotonic() - started)

    def _sum_over_processes(self, share: Tensor) -> Tensor:
        """A loss, summed over the shares of all processes."""
        if self.accelerator.num_processes == 1:
            return share
        total = self.accelerator.reduce(share, "sum")
        assert isinstance(total, Tensor)
        return total

    def _backward(
        self, parts: Sequence[Minibatch], step: int, number: int
    ) -> list[dict[str, Tensor]]:
        """The losses of each run's part, as shares of its whole batch's; adds their gradients."""
        pairs = list(zip(self.active, parts, strict=True))
        for run, _ in pairs:
            run.training.embedding.begin_pass(seed_of(run.training.seed, "pass", step, number))
            if run.stage_settings.subject_encoder_rate and run.training.encoding is not None:
                run.training.encoding.update()
        losses: list[dict[str, Tensor]] = [{} for _ in pairs]
        with self._observe(pairs) as seen:
            for source in range(len(self.training.sources)):
                self._add_diffusion_losses(pairs, source, losses)
                if seen is not None and source == 0:
                    self._add_attention_losses(pairs, seen, losses)
            zero = torch.zeros((), device=self.training.device)
            total = sum((value for each in losses for value in each.values()), zero)
            if self.settings.fused_backward:
                self._check_before_update(total, step)
            self.accelerator.backward(total * self.accelerator.num_processes)
        return [{name: value.detach() for name, value in each.items()} for each in losses]

    def _check_before_update(self, total: Tensor, step: int) -> None:
        """Raise `TrainingFailed` for a loss that is not finite, before any weight is updated."""
        if not bool(total.isfinite()):
            raise self.active[0].not_finite(f"step {step + 1}: a loss is not finite")
        for run in self.active:
            run.set_rates(step)

    def _observe(
        self, pairs: "Sequence[tuple[StageRun, Minibatch]]"
    ) -> AbstractContextManager[Observation | None]:
        """Observe what the attention losses need; None if there are none."""
        needs = [(run.losses, part.samples[0].prompts) for run, part in pairs]
        columns = [losses.columns[rows] for losses, rows in needs if losses.columns is not None]
        references = [
            (losses.reference.states[rows], losses.reference.reduction)
            for losses, rows in needs
            if losses.reference is not None
        ]
        if not columns and not references:
            return nullcontext()
        return self.training.backbone.attention.observe(
            columns=torch.cat(columns) if columns else None,
            reference=torch.cat([states for states, _ in references]) if references else None,
            reduction=references[0][1] if references else "sum",
        )

    def _conditioning(
        self, pairs: "Sequence[tuple[StageRun, Minibatch]]", source: int
    ) -> Conditioning:
        """Text states, encoded now or, if nothing in them is trained, once before the stage."""
        samples = [part.samples[source] for _, part in pairs]
        fixed = [run.states[source] for run, _ in pairs]
        known = [
            states.pick(each.prompts)
            for states, each in zip(fixed, samples, strict=True)
            if states is not None
        ]
        if known:
            return _sized(Conditioning.cat(known), samples)
        prompts = [
            PromptAtTimestep(
                run.training.embedding, run.training.sources[source].prompts[int(prompt)], timestep
            )
            for (run, _), each in zip(pairs, samples, strict=True)
            for prompt, timestep in zip(each.prompts.tolist(), each.timesteps.tolist(), strict=True)
        ]
        found = encode_at_timesteps(self.training.backbone, prompts, self.training.size)
        return _sized(found, samples)

    def _add_diffusion_losses(
        self,
        pairs: "Sequence[tuple[StageRun, Minibatch]]",
        source: int,
        losses: list[dict[str, Tensor]],
    ) -> None:
        """Add the diffusion losses of the samples of each run's source number `source`."""
        samples = [part.samples[source] for _, part in pairs]
        latents = torch.cat([each.latents for each in samples])
        noise = torch.cat([each.noise for each in samples])
        timesteps = torch.cat([each.timesteps for each in samples])
        scheduler = self.training.noise_scheduler
        noisy = scheduler.add_noise(latents, noise, timesteps)
        predicted = self.model(noisy, timesteps, self._conditioning(pairs, source))
        target = diffusion_target(scheduler, latents, noise, timesteps)
        weights = [each.weights for each in samples if each.weights is not None]
        errors = diffusion_loss(  # (B,)
            predicted,
            target,
            timesteps,
            scheduler,
            self.settings.loss,
            torch.cat(weights) if weights else None,
        )
        for (run, _), each, rows in zip(pairs, losses, _row_ranges(pairs), strict=True):
            own = run.training.sources[source]
            each[own.name] = own.weight * errors[rows].sum() / run.stage_settings.batch

    def _add_attention_losses(
        self,
        pairs: "Sequence[tuple[StageRun, Minibatch]]",
        seen: Observation,
        losses: list[dict[str, Tensor]],
    ) -> None:
        """Add the attention losses of the first source's samples."""
        for (run, part), each, rows in zip(pairs, losses, _row_ranges(pairs), strict=True):
            each.update(run.losses.values(seen, rows, len(part) / run.stage_settings.batch))


def _sized(conditioning: Conditioning, samples: Sequence[Samples]) -> Conditioning:
    """Conditioning for samples with their own sizes, if they have them."""
    sizes = [each.sizes for each in samples if each.sizes is not None]
    return conditioning.with_sizes(torch.cat(sizes)) if sizes else conditioning


def _row_ranges(pairs: "Sequence[tuple[StageRun, Minibatch]]") -> list[slice]:
    """The rows of each run's part in the shared batch."""
    ranges, first = [], 0
    for _, part in pairs:
        ranges.append(slice(first, first + len(part)))
        first += len(part)
    return ranges


class _AttentionLosses:
    """The attention losses of a stage, computed from one forward pass.

    For P training prompts, `columns` (P, T) are those of all losses, concatenated, and `reference`
    that of the one loss that has one.
    """

    def __init__(self, losses: Sequence[AttentionLoss]) -> None:
        self._losses = losses
        columns = [loss.columns for loss in losses if loss.columns is not None]
        self.columns = torch.cat(columns, 1) if columns else None
        references = [loss.reference for loss in losses if loss.reference is not None]
        if len(references) > 1:
            raise ValueError("two losses have a reference: expected one at most")
        self.reference = references[0] if references else None

    def values(self, seen: Observation, rows: slice, share: float) -> dict[str, Tensor]:
        """Losses by name, of the samples `rows`, which are the share `share` of a step's batch."""
        values: dict[str, Tensor] = {}
        first = 0
        for loss in self._losses:
            end = first + (loss.columns.shape[1] if loss.columns is not None else 0)
            values[loss.name] = loss.value(seen.part(rows, slice(first, end)), share)
            first = end
        return values


class StageRun:
    """One training in a stage: its minibatches, losses, optimiser and resume points."""

    def __init__(
        self,
        training: Training,
        stage: Stage,
        stage_settings: StageSettings,
        point: ResumePoint,
        resume_path: Path,
    ) -> None:
        self.training = training
        self.stage = stage
        self.stage_settings = stage_settings
        self.settings = training.settings
        self.point = point
        self.resume_path = resume_path
        training.update_encoding()
        self.learning = training.learning(stage)
        for parameter in self.learning.values():
            parameter.requires_grad_(True)
        at_rate = {
            rate: [parameter for _, parameter in own]
            for rate, own in training.learning_at(stage).items()
        }
        self.unprepared = make_optimizer(at_rate, self.settings)
        self.learning_rates = [
            learning_rates(rate, stage_settings, self.settings.schedule) for rate in at_rate
        ]
        self.average = (
            {name: value.detach().clone() for name, value in self.learning.items()}
            if self.settings.ema
            else {}
        )
        losses = training.method.make_losses(
            training.training_prompts, self.settings, stage_settings
        )
        self.losses = _AttentionLosses(losses)
        self._hooks: list[RemovableHandle] = []
        subject, *others = training.sources
        is_fixed = not stage_settings.text_encoder_rate
        names_fixed = is_fixed and stage.learns != "embedding" and not stage_settings.embedding_rate
        self.states = [self._encode(subject.prompts) if names_fixed else None]
        self.states += [self._encode(source.prompts) if is_fixed else None for source in others]

    @torch.no_grad()
    def _encode(self, prompts: Sequence[str]) -> Conditioning:
        return self.training.backbone.encode_prompts(prompts, self.training.size)

    def begin(self, optimizer: AcceleratedOptimizer) -> None:
        """Take the prepared optimiser, and load the resume point if it is of this stage."""
        self.optimizer = optimizer
        if self.settings.fused_backward:
            self._hooks = [
                each.register_post_accumulate_grad_hook(self._update_one)
                for each in self.learning.values()
            ]
        if self.point.stage == self.stage.name:
            self._load(self.point)

    @property
    def first_step(self) -> int:
        """The number of steps that are done."""
        return self.point.step if self.point.stage == self.stage.name else 0

    # --- in a step --------------------------------------------------------------------------------

    def parts(self, step: int, accelerator: Accelerator) -> Iterator[Minibatch]:
        """The process's share of the step's batch, in parts for gradient accumulation."""
        generator = torch.Generator().manual_seed(
            seed_of(self.training.seed, self.stage.name, step)
        )
        whole = Minibatch.sample(
            self.training.sources,
            self.stage_settings.batch,
            self.training.backbone.num_timesteps,
            self.settings.noise,
            generator,
        )
        shares = accelerator.num_processes * self.settings.gradient_accumulation
        rows = torch.arange(self.stage_settings.batch).tensor_split(shares)
        for i in range(self.settings.gradient_accumulation):
            own = rows[i * accelerator.num_processes + accelerator.process_index]
            if len(own):
                yield whole.rows(own)

    def update(self, step: int, losses: Mapping[str, float], accelerator: Accelerator) -> None:
        """Take an optimiser step. Raises `TrainingFailed` before it, if a value is not finite.

        With `fused_backward` it is taken already.
        """
        if not self.settings.fused_backward:
            limit = self.settings.max_grad_norm or math.inf
            norm = accelerator.clip_grad_norm_(self.learning.values(), limit)
            assert norm is not None
            if not all(map(math.isfinite, [float(norm), *losses.values()])):
                raise self.not_finite(f"step {step + 1}: a loss or gradient is not finite")
            self.set_rates(step)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
        if self.average:
            self._update_average(step)

    def set_rates(self, step: int) -> None:
        """Set the learning rates of a step."""
        for group, rate in zip(self.optimizer.param_groups, self.learning_rates, strict=True):
            group["lr"] = rate(step)

    def _update_one(self, parameter: Tensor) -> None:
        """Update a parameter whose gradient is whole; no other has one now."""
        groups = self.optimizer.param_groups
        whole = [group["params"] for group in groups]
        for group, own in zip(groups, whole, strict=True):  # else a step would ask all of them
            group["params"] = [parameter] if any(each is parameter for each in own) else []
        self.optimizer.step()
        for group, own in zip(groups, whole, strict=True):
            group["params"] = own
        parameter.grad = None

    def not_finite(self, what: str) -> TrainingFailed:
        """The error for values that are not finite; names a broken weight of the base model."""
        if broken := self.training.non_finite_weight():
            return TrainingFailed(
                f"{self.stage.name}, {what}: {broken} of the base model is not finite",
                hint="get the base model's files again, or take another: concept bases",
            )
        return TrainingFailed(
            f"{self.stage.name}, {what}",
            hint=f"--set {self.stage.name}.learning_rate=… lower, or mixed_precision=no",
        )

    @torch.no_grad()
    def _update_average(self, step: int) -> None:
        """Update the EMA, faster at first: a stage may be shorter than 1 / (1 - ema)."""
        decay = min(self.settings.ema, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self.average.values()), list(self.learning.values()), 1 - decay)

    # --- after a step -----------------------------------------------------------------------------

    def report(self, step: int, losses: dict[str, float], seconds: float) -> None:
        """Report a step, and draw a preview if one is due."""
        hooks, num_steps = self.training.hooks, self.stage_settings.steps
        hooks.on_step(StepReport(self.stage.name, step, num_steps, losses, seconds))
        if self._is_preview_due(step):
            try:
                hooks.on_preview(self.stage.name, step, self._preview(step))
            except torch.OutOfMemoryError:
                hooks.on_skipped(
                    f"{self.stage.name}, step {step}: the GPU has too little memory for a preview"
                )

    def checkpoint_after(self, step: int) -> bool:
        """Make a checkpoint if one is due; returns whether the training should finish."""
        if not self._is_checkpoint_due(step):
            return False
        if self.training.accelerator.is_main_process:
            self._checkpoint(step)
        return broadcast_flag(self.training.hooks.should_finish())

    def finish(self) -> None:
        """End the stage: an average becomes its result, and a resume point records it."""
        self._take_result()
        done = (*self.point.done, self.stage.name)
        self._write(ResumePoint(done=done, learned=self.training.all_learning()))

    def release(self) -> None:
        """Let gradients of its parameters be as they come, however the stage ended."""
        for hook in self._hooks:
            hook.remove()

    def freeze(self) -> None:
        """Stop training its parameters; only after all runs are done, as processes wait for it."""
        for parameter in self.learning.values():
            parameter.requires_grad_(False)

    def _is_preview_due(self, step: int) -> bool:
        every = self.training.hooks.preview_every
        is_time = bool(every) and (step % every == 0 or step == self.stage_settings.steps)
        return is_time and self.training.accelerator.is_main_process

    def _is_checkpoint_due(self, step: int) -> bool:
        """In the last stage, before its end, which is the result itself."""
        *_, (last, _) = active_stages(self.training.method, self.settings)
        every = self.training.hooks.checkpoint_every
        return (
            bool(every)
            and self.stage == last
            and not step % every
            and step < self.stage_settings.steps
        )

    def _checkpoint(self, step: int) -> None:
        training = self.training
        with torch.no_grad(), self._as_result():
            checkpoint = Checkpoint(self.stage.name, step, training.learned(), training.phrase)
            training.hooks.on_checkpoint(checkpoint)

    @contextmanager
    def _as_result(self) -> Iterator[None]:
        """The model as it would draw if the stage ended now, and then as it was, bit for bit."""
        changes = self.average or self.settings.optimizer == "schedule-free"
        learning = self.learning if changes else {}
        before = {name: value.detach().clone() for name, value in learning.items()}
        training = self.training
        denoiser = training.backbone.denoiser.eval()
        self._take_result()
        try:
            training.update_encoding()
            references = [training.references()]
            with (
                all_on_device(training.backbone),
                injected(training.backbone, references),
                autocast_within(denoiser, training.accelerator),
            ):
                yield
        finally:
            denoiser.train()
            self.optimizer.train()
            self._load_values(before)

    def _take_result(self) -> None:
        """Load the EMA, or the average of an optimiser that has one; else nothing changes."""
        self.optimizer.eval()
        self._load_values(self.average)

    def _load_values(self, values: Mapping[str, Tensor]) -> None:
        for name, value in values.items():
            self.learning[name].data.copy_(value)

    def _preview(self, step: int) -> list[Image.Image]:
        """Pictures with what has been learned so far; drawing them does not affect the training.

        Raises `NotFinite` for a black picture: the base model or what was learned is broken.
        """
        training = self.training
        prompts = [prompt.replace("{}", training.phrase) for prompt in previews.PROMPTS]
        seeds = [seed_of(training.seed, "preview", i) for i in range(len(prompts))]
        try:
            with self._as_result():
                return draw_batch(training.backbone, prompts, seeds, previews.SETTINGS)
        except NotFinite:
            failed = self.not_finite(f"step {step}: a preview is not finite")
            raise NotFinite(failed.message, hint=failed.hint) from None

    # --- resume points ----------------------------------------------------------------------------

    def save(self, step: int) -> None:
        """Write a resume point after a step."""
        self._write(
            ResumePoint(
                done=self.point.done,
                stage=self.stage.name,
                step=step,
                learned=self.training.all_learning(),
                optimizer=saved_state(self.optimizer, self.learning, self.settings.optimizer),
                average=self.average,
            )
        )

    def _write(self, point: ResumePoint) -> None:
        """Raises `TrainingFailed`, and keeps the former file, if this point is not finite."""
        learned = [*point.learned.values(), *point.average.values()]
        if learned and not torch.stack([each.isfinite().all() for each in learned]).all():
            raise self.not_finite("what was learned is not finite")
        if self.training.accelerator.is_main_process:
            write_resume_point(self.resume_path, point)
            self.training.hooks.on_saved(self.resume_path)

    def _load(self, point: ResumePoint) -> None:
        load_state(self.optimizer, self.learning, point.optimizer, self.settings.optimizer)
        copy_values(point.average, self.average)


class _Denoiser(nn.Module):
    """The denoiser and the embeddings as one module, which DDP synchronises."""

    def __init__(self, backbone: Backbone, embedding: nn.ParameterList) -> None:
        super().__init__()
        self.denoiser = backbone.denoiser
        self.embedding = embedding
        self._denoise = backbone.denoise

    def forward(self, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """What the denoiser predicts, (B, C, h, w).

        States of texts stay in float32: gradients that pass float16 on their way to tokens would
        vanish.
        """
        dtype = next(self.denoiser.parameters()).dtype
        return self._denoise(noisy.to(dtype), timesteps, conditioning)
