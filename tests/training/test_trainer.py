"""The trainer: what learns, how it goes on, and how it ends when it cannot."""

import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conceptry.adapters.adapter import injected
from conceptry.adapters.token_embedding import ExtendedEmbedding
from conceptry.adapters.weight_delta import WeightDelta
from conceptry.methods.method import find_method, resolve_settings
from conceptry.models.backbone import Backbone
from conceptry.models.conditioning import Conditioning
from conceptry.models.loading import load_base
from conceptry.registry.errors import (
    InvalidInput,
    InvalidWeights,
    StorageError,
    TrainingFailed,
    TrainingInterrupted,
)
from conceptry.training import loop
from conceptry.training.callbacks import Checkpoint, Hooks, StepReport
from conceptry.training.checkpoints import ResumePoint, read_resume_point, write_resume_point
from conceptry.training.trainer import run_one
from conceptry.training.training import Subject, Training, lora_of
from long import quick_for
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

SMALL = ("augmentation.crops=4",)
THREE = (*SMALL, *(f"stage{i}.{word}" for i in (1, 2, 3) for word in ("steps=3", "batch=4")))
Pictures = list[Image.Image]


def train(
    backbone: Backbone,
    pictures: Pictures,
    path: Path,
    overrides: tuple[str, ...] = THREE,
    method: str = "attndreambooth",
    **hooks: Any,
) -> dict[str, Tensor]:
    settings = resolve_settings(find_method(method), base="tiny", overrides=overrides)
    count = find_method(method).count_tokens(backbone, settings)
    tokens = tuple(f"<v{i}>" for i in range(count))
    subject = Subject(photos=pictures, category="dog", tokens=tokens)
    if settings.prior.weight:
        subject = replace(subject, class_pictures=[photo.resize((16, 16)) for photo in pictures])
    training = Training(
        backbone, find_method(method), settings, subject, seed=7, hooks=Hooks(**hooks)
    )
    return run_one(training, path / "resume.safetensors").state()


def skip_where_missing(overrides: tuple[str, ...]) -> None:
    if {f"optimizer={name}" for name in ("prodigy", "came", "schedule-free")} & set(overrides):
        pytest.importorskip("pytorch_optimizer")
    if "quantize=4bit" in overrides:
        pytest.importorskip("bitsandbytes")


def stops_after(count: int) -> Callable[[], bool]:
    calls = iter(range(1, 1000))
    return lambda: next(calls) >= count


def changed(before: dict[str, Tensor], module: Any) -> set[str]:
    return {name for name, value in module.named_parameters() if not value.equal(before[name])}


def copied(module: Any) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in module.named_parameters()}


def test_each_stage_changes_what_it_names_and_nothing_else(
    backbone: Backbone, pictures: Pictures, tmp_path: Path
) -> None:
    networks = (backbone.denoiser, backbone.autoencoder, backbone.text_encoders[0].network)
    denoiser, autoencoder, text = map(copied, networks)
    seen: dict[str, set[str]] = {}
    tokens: dict[str, Tensor] = {}

    def look(report: StepReport) -> None:
        seen[report.stage] = changed(denoiser, networks[0])
        embedding = networks[2].get_input_embeddings()
        assert isinstance(embedding, ExtendedEmbedding)
        tokens[report.stage] = embedding.rows().clone()

    train(backbone, pictures, tmp_path, on_step=look)
    assert seen["stage1"] == set()
    assert seen["stage2"] == {name for name in denoiser if ".attn2." in name}
    assert seen["stage3"] == set(denoiser)
    assert tokens["stage1"].equal(tokens["stage3"])
    assert not changed(autoencoder, networks[1])
    assert not changed(text, networks[2])
    assert not changed(denoiser, networks[0]), "the denoiser has its own weights back"


@pytest.mark.parametrize("rank", quick_for(1, [0, 2]))
def test_small_steps_are_not_lost_in_half_precision(
    rank: int, backbone: Backbone, pictures: Pictures, tmp_path: Path
) -> None:
    """A base model in bfloat16 learns as it does in float32, and is given back as it came."""
    tiny_rate = (*THREE, f"rank={rank}", *(f"stage{i}.learning_rate=1e-6" for i in (2, 3)))
    whole = train(backbone, pictures, tmp_path / "whole", tiny_rate)
    for network in backbone.networks.values():
        network.to(torch.bfloat16)
    before = copied(backbone.denoiser)
    words = (*tiny_rate, "mixed_precision=bf16")
    half = train(backbone, pictures, tmp_path / "half", words)
    assert not changed(before, backbone.denoiser)
    networks = backbone.networks.values()
    assert {each.dtype for part in networks for each in part.parameters()} == {torch.bfloat16}
    for name, value in whole.items():
        assert half[name].dtype == value.dtype
        if not name.startswith(("token.", "down.")):  # the steps of what begins elsewhere
            kept = (half[name].float() != 0).float().mean()
            assert kept > 0.8 * (value.float() != 0).float().mean()


WARM = tuple(f"stage{i}.warmup=2" for i in (1, 2, 3))
AT_ONE = tuple(f"stage{i}.learning_rate=1" for i in (1, 2, 3))
NOISE = ("noise.offset=0.1", "noise.density=logit-normal", "loss.kind=huber")


@pytest.mark.parametrize(
    "extra",
    quick_for(
        2,
        [
            (),
            ("rank=2", "quantize=8bit", "ema=0.9"),
            ("ema=0.9",),
            ("rank=2",),
            ("prior.weight=1",),
            ("rank=2", "quantize=4bit", "gradient_checkpointing=true", "mixed_precision=bf16"),
            ("schedule.kind=cosine", *WARM, "loss.min_snr_gamma=5"),
            ("optimizer=adafactor", "max_grad_norm=0.1", *NOISE),
            ("optimizer=adafactor", "rank=2", "schedule.kind=polynomial"),
            ("augmentation.buckets=true", "augmentation.crops=7", "rank=2", "lora.dora=true"),
            ("fused_backward=true", "optimizer=adafactor", "gradient_checkpointing=true"),
            ("optimizer=prodigy", *AT_ONE, "ema=0.9", "gradient_accumulation=2"),
            ("optimizer=prodigy", *AT_ONE, "rank=2", "schedule.kind=linear", *WARM),
            ("optimizer=came", "ema=0.9"),
            ("optimizer=came", "rank=2", "gradient_accumulation=2"),
            ("optimizer=schedule-free", "max_grad_norm=0.1"),
            ("optimizer=schedule-free", "rank=2", "schedule.kind=constant_with_warmup", *WARM),
        ],
    ),
    ids=str,
)
def test_a_training_that_was_stopped_ends_bit_equal(
    extra: tuple[str, ...], backbone: Backbone, pictures: Pictures, tmp_path: Path
) -> None:
    """What is random follows from seed, stage and step; all else is in the resume point.

    It is stopped in each stage: after 2, 4 and 8 of 9 steps.
    """
    skip_where_missing(extra)
    overrides = (*THREE, *extra)
    whole = train(backbone, pictures, tmp_path / "whole", overrides)
    done: list[StepReport] = []
    for steps in (2, 4, 8):
        stopping = stops_after(steps - len(done))
        with pytest.raises(TrainingInterrupted, match="after step"):
            train(
                backbone,
                pictures,
                tmp_path,
                overrides,
                should_stop=stopping,
                on_step=done.append,
            )
        assert len(done) == steps
    resumed = train(backbone, pictures, tmp_path, overrides, on_step=done.append)
    assert len(done) == 9
    assert resumed.keys() == whole.keys()
    assert all(resumed[name].equal(whole[name]) for name in whole)


@pytest.mark.parametrize(
    "extra",
    quick_for(
        1,
        [
            (),
            ("prior.weight=1", "gradient_checkpointing=true"),
            ("optimizer=adafactor", "ema=0.9", "schedule.kind=cosine"),
            ("rank=2", "stage3.text_encoder_rate=0.01", "stage3.embedding_rate=0.1"),
        ],
    ),
    ids=str,
)
def test_weights_that_are_updated_during_the_backward_pass_are_the_same(
    extra: tuple[str, ...], backbone: Backbone, pictures: Pictures, tmp_path: Path
) -> None:
    """Bit for bit: a gradient is whole before its weight changes, and nothing uses that later."""
    overrides = (*THREE, *extra)
    plain = train(backbone, pictures, tmp_path / "plain", overrides)
    parameters = [each for each in backbone.denoiser.parameters() if each.ndim > 1]
    at_a_time: list[int] = []

    def look(_: Tensor) -> None:
        at_a_time.append(sum(each.grad is not None for each in parameters))

    hooks = [
        each.requires_grad_(True).register_post_accumulate_grad_hook(look)
        for each in parameters[::7]
    ]
    words = (*overrides, "fused_backward=true")
    fused = train(backbone, pictures, tmp_path / "fused", words)
    assert fused.keys() == plain.keys()
    assert all(fused[name].equal(plain[name]) for name in plain)
    if "rank=2" not in extra:  # else only layers that come and go have gradients
        assert set(at_a_time) == {1}
        at_a_time.clear()
        train(backbone, pictures, tmp_path / "once more", overrides)
        assert max(at_a_time) > 10
    for hook in hooks:
        hook.remove()
    assert not any(each._post_accumulate_grad_hooks for each in backbone.denoiser.parameters())


@pytest.mark.long
@pytest.mark.parametrize("method", ["textual-inversion", "attndreambooth", "sefi"])
def test_threads_take_sums_in_the_same_order(
    method: str, pictures: Pictures, tmp_path: Path
) -> None:
    """In the miniature's width, since small sums are taken by one thread.

    No gradient is scattered by an index, which would add in whatever order threads come.
    """
    backbone = load_base("miniature").backbone
    words = ["augmentation.crops=2"]
    words += [f"{stage.name}.steps=2" for stage in find_method(method).stages]
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        results = [
            train(backbone, pictures, tmp_path / str(i), tuple(words), method) for i in range(3)
        ]
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(other[name].equal(value) for name, value in results[0].items())


@pytest.mark.parametrize(
    "method", quick_for(1, ["attndreambooth", "dreambooth", "textual-inversion"])
)
def test_every_method_learns(
    method: str, backbone: Backbone, pictures: Pictures, tmp_path: Path
) -> None:
    """On one crop and a large rate, the diffusion loss falls."""
    stage = {"textual-inversion": "embedding", "dreambooth": "unet"}.get(method, "stage3")
    overrides = [f"{stage}.steps=60", f"{stage}.batch=8", f"{stage}.learning_rate=3e-3"]
    overrides += ["augmentation.crops=1", "prior.weight=0"]
    if method == "attndreambooth":
        overrides += ["stage1.steps=0", "stage2.steps=0"]
    losses: list[float] = []
    train(
        backbone,
        pictures[:1],
        tmp_path,
        tuple(overrides),
        method,
        on_step=lambda report: losses.append(report.losses["diffusion"]),
    )
    assert sum(losses[-15:]) < sum(losses[:15])


def test_accumulated_gradients_are_those_of_the_whole_batch(
    backbone: Backbone, pictures: Pictures, tmp_path: Path
) -> None:
    """Seen in AdamW's first moment, a tenth of the gradient; what it does hides a factor."""
    gradients: dict[str, dict[str, Tensor]] = {}
    for parts in ("1", "3"):
        words = (each for each in THREE if not each.startswith("stage1."))
        overrides = (*words, f"gradient_accumulation={parts}", "stage1.steps=0")
        with pytest.raises(TrainingInterrupted):
            train(backbone, pictures, tmp_path / parts, overrides, should_stop=stops_after(1))
        point = read_resume_point(tmp_path / parts / "resume.safetensors")
        gradients[parts] = {
            name: value for name, value in point.optimizer.items() if name.startswith("exp_avg.")
        }
    assert gradients["1"]
    for name, whole in gradients["1"].items():
        torch.testing.assert_close(gradients["3"][name], whole, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(
    "extra", quick_for(1, [("quantize=4bit",), (), ("quantize=8bit",)]), ids=str
)
def test_lora_leaves_thin_factors_and_the_layers_as_they_were(
    backbone: Backbone, pictures: Pictures, tmp_path: Path, extra: tuple[str, ...]
) -> None:
    skip_where_missing(extra)
    modules = [(name, id(module)) for name, module in backbone.denoiser.named_modules()]
    weights = copied(backbone.denoiser)
    state = train(backbone, pictures, tmp_path, (*THREE, "rank=2", *extra))
    assert not changed(weights, backbone.denoiser)
    assert [(name, id(module)) for name, module in backbone.denoiser.named_modules()] == modules
    ups = [tensor for name, tensor in state.items() if name.startswith("up.")]
    assert {tensor.shape[1] for tensor in ups} == {2}
    assert any(tensor.ne(0).any() for tensor in ups)
    assert not any(name.startswith("delta.") for name in state)


@pytest.mark.parametrize(
    "case",
    quick_for(
        3,
        [
            ((), "attn"),
            (("lora.alpha=8",), "attn"),
            (("lora.layers=attention+ff", "lora.alpha=1"), "attn ff"),
            (("lora.dora=true", "lora.alpha=2"), "attn"),
            (("stage2.rank=2", "stage3.rank=3"), "attn"),
            (("stage2.rank=2", "lora.alpha=6"), "attn"),
            (
                ("lora.layers=all", "lora.alpha=4"),
                "attn ff proj conv1 conv2 conv_shortcut time_emb_proj sampler",
            ),
            (
                ("lora.layers=all", "lora.dora=true"),
                "attn ff proj conv1 conv2 conv_shortcut time_emb_proj sampler",
            ),
        ],
    ),
    ids=str,
)
def test_what_lora_adapts_is_what_is_drawn_afterwards(
    backbone: Backbone, pictures: Pictures, tmp_path: Path, case: tuple[tuple[str, ...], str]
) -> None:
    """A checkpoint's factors, added to the weights, predict what its layers predicted."""
    words, kinds = case
    states = torch.randn(1, 77, 32, generator=torch.Generator().manual_seed(0))
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    seen: list[tuple[WeightDelta, Tensor]] = []

    @torch.no_grad()
    def predicted() -> Tensor:
        return backbone.pipeline.unet(latents, 5, states).sample

    def look(checkpoint: Checkpoint) -> None:
        assert checkpoint.learned.weights is not None
        seen.append((checkpoint.learned.weights, predicted()))

    plain = predicted()
    overrides = (*THREE, "rank=4", *words, "stage3.learning_rate=0.01")
    train(backbone, pictures, tmp_path, overrides, on_checkpoint=look, checkpoint_every=2)
    assert predicted().equal(plain)
    ((weights, in_training),) = seen
    wanted = kinds.split()
    found = {
        next((kind for kind in sorted(wanted, key=len)[::-1] if kind in name), name)
        for name in weights.names
    }
    assert found == set(wanted)
    weights.check(backbone)
    with injected(backbone, [weights]):
        assert not torch.allclose(predicted(), plain, atol=1e-3)
        torch.testing.assert_close(predicted(), in_training, rtol=1e-4, atol=1e-4)


@pytest.mark.long
@pytest.mark.parametrize(
    "method", quick_for(2, ["attndreambooth", "sefi", "dreambooth", "textual-inversion"])
)
def test_what_is_learned_over_8_bits_is_nearly_what_is_learned_over_all(
    method: str, backbone: Backbone, pictures: Pictures, tmp_path: Path
) -> None:
    """Previews on the way do not keep gradients from the layers that are adapted."""
    stages = [stage.name for stage in find_method(method).stages]
    words = (*SMALL, *(f"{s}.{word}" for s in stages for word in ("steps=4", "batch=2")))
    words += () if find_method(method).keeps_base else ("rank=2",)
    found = [
        train(backbone, pictures, tmp_path / name, (*words, name), method, preview_every=2)
        for name in ("quantize=none", "quantize=8bit")
    ]
    assert found[0].keys() == found[1].keys()
    changes = [tensor for name, tensor in found[1].items() if name.startswith("up.")]
    assert find_method(method).keeps_base or any(each.ne(0).any() for each in changes)
    both = [torch.cat([each[name].flatten() for name in found[0]]) for each in found]
    assert not both[0].equal(both[1])
    assert (both[0] - both[1]).norm() < 0.1 * both[0].norm()


@pytest.mark.parametrize(
    ("words", "ranks"),
    [
        ((), (8, 8, 0)),
        (("stage2.rank=4", "stage3.rank=64", "stage2.text_encoder_rate=1e-5"), (64, 4, 4)),
        (("stage3.rank=64", "stage3.text_encoder_rate=1e-5"), (64, 8, 64)),
        (("stage2.rank=4", "stage3.steps=0"), (8, 4, 0)),
        (("stage2.steps=0", "stage3.rank=2"), (2, 0, 0)),
    ],
)
def test_ranks_are_those_of_the_first_stages_that_train_layers(
    words: tuple[str, ...], ranks: tuple[int, int, int]
) -> None:
    method = find_method("attndreambooth")
    lora = lora_of(method, resolve_settings(method, base="", overrides=("rank=8", *words)))
    assert (lora.rank, lora.cross_attention_rank, lora.text_encoder_rank) == ranks


def spoiling(backbone: Backbone, steps: list[StepReport]) -> Callable[[StepReport], None]:
    """Notes steps, and breaks the denoiser after the fourth."""

    def spoil(report: StepReport) -> None:
        steps.append(report)
        if len(steps) == 4:
            with torch.no_grad():
                backbone.parameters("denoiser")["conv_out.bias"].fill_(float("nan"))

    return spoil


def test_numbers_that_are_not_finite_end_it_before_the_update(
    backbone: Backbone, pictures: Pictures, tmp_path: Path
) -> None:
    steps: list[StepReport] = []
    spoil = spoiling(backbone, steps)
    with pytest.raises(TrainingFailed, match="stage2, step 2: a loss or gradient is not finite"):
        train(backbone, pictures, tmp_path, on_step=spoil)
    kept = read_resume_point(tmp_path / "resume.safetensors")
    assert kept.done == ("stage1",)
    assert all(torch.isfinite(value).all() for value in kept.learned.values())


def test_a_loss_that_is_not_finite_ends_it_before_weights_are_updated(
    backbone: Backbone, pictures: Pictures, tmp_path: Path
) -> None:
    steps: list[StepReport] = []
    spoil = spoiling(backbone, steps)
    words = (*THREE, "fused_backward=true")
    with pytest.raises(TrainingFailed, match="stage2, step 2: a loss is not finite"):
        train(backbone, pictures, tmp_path, words, on_step=spoil)
    assert len(steps) == 4
    kept = read_resume_point(tmp_path / "resume.safetensors")
    assert kept.done == ("stage1",)
    assert not any(each._post_accumulate_grad_hooks for each in backbone.denoiser.parameters())


def _no_room(*_: object) -> None:
    raise OSError(28, "No space left on device")


def test_a_full_disk_leaves_the_former_point(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "resume.safetensors"
    write_resume_point(path, ResumePoint(stage="stage1", step=5, learned={"a": torch.ones(2)}))
    monkeypatch.setattr("conceptry.registry.files.sync_file", _no_room)
    with pytest.raises(StorageError, match="cannot save"):
        write_resume_point(path, ResumePoint(stage="stage1", step=6))
    assert read_resume_point(path).step == 5


def test_a_method_that_learns_no_vector_and_has_no_word_begins_with_random_ones(
    backbone: Backbone, pictures: Pictures, tmp_path: Path
) -> None:
    words = ("augmentation.crops=2", "unet.steps=1", "unet.batch=1", "word=")
    learned = train(backbone, pictures, tmp_path, words, "dreambooth")["token.0"]
    table = backbone.text_encoders[0].network.get_input_embeddings().get_parameter("weight")
    gap = (table - learned).norm(dim=1).min()
    assert gap > 0.5 * table.std(0).norm(), "it is no word that there is"
    again = train(backbone, pictures, tmp_path / "again", words, "dreambooth")["token.0"]
    assert again.equal(learned)


@pytest.mark.parametrize("resolution", [24, 32])
def test_class_pictures_of_another_size_are_scaled(
    resolution: int, backbone: Backbone, pictures: Pictures, tmp_path: Path
) -> None:
    words = ("augmentation.crops=2", "unet.steps=1", f"resolution={resolution}")
    train(backbone, pictures, tmp_path, words, "dreambooth")


@pytest.mark.parametrize("resolution", [1, 17])
def test_a_resolution_that_does_not_fit_is_told(
    resolution: int, backbone: Backbone, pictures: Pictures, tmp_path: Path
) -> None:
    with pytest.raises(InvalidInput, match="expected a multiple of 2"):
        train(backbone, pictures, tmp_path, (*THREE, f"resolution={resolution}"))


@pytest.mark.parametrize("part", ["learned", "average"])
def test_a_resume_point_that_lacks_something_is_refused(
    part: str, backbone: Backbone, pictures: Pictures, tmp_path: Path
) -> None:
    """What it lacks would begin again, without a word."""
    overrides = (*THREE, "ema=0.9")
    with pytest.raises(TrainingInterrupted):
        train(backbone, pictures, tmp_path, overrides, should_stop=stops_after(2))
    path = tmp_path / "resume.safetensors"
    point = read_resume_point(path)
    write_resume_point(path, replace(point, **{part: dict(list(getattr(point, part).items())[1:])}))
    with pytest.raises(InvalidWeights, match="does not fit"):
        train(backbone, pictures, tmp_path, overrides)


def test_tokens_alone_leave_no_lora(backbone: Backbone, pictures: Pictures, tmp_path: Path) -> None:
    method = find_method("attndreambooth")
    words = ("stage1.steps=1", "stage2.steps=0", "stage3.steps=0", *SMALL)
    settings = resolve_settings(method, preset="8gb", base="", overrides=words)
    assert settings.rank == 16
    subject = Subject(photos=pictures, category="dog", tokens=("<t>",))
    learned = run_one(
        Training(backbone, method, settings, subject, seed=0), tmp_path / "resume.safetensors"
    )
    assert learned.state().keys() == {"token.0"}


@pytest.mark.parametrize("text", [b"", b"not weights"])
def test_what_is_no_resume_point_is_told(text: bytes, tmp_path: Path) -> None:
    path = tmp_path / "resume.safetensors"
    path.write_bytes(text)
    with pytest.raises(InvalidWeights, match="not a sound resume point"):
        read_resume_point(path)
    save_file({"a": torch.ones(1)}, path)
    with pytest.raises(InvalidWeights, match="resume point"):
        read_resume_point(path)


def test_only_the_denoiser_runs_in_mixed_precision_where_pictures_are_drawn(
    backbone: Backbone, pictures: Pictures, tmp_path: Path
) -> None:
    """A preview's text encoders and decoder are float32, as scores of checkpoints are."""
    seen: dict[str, set[bool]] = {}

    def note(name: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            mixed = torch.is_autocast_enabled("cpu")
            seen.setdefault(name, set()).add(mixed)

        return hook

    text = backbone.text_encoders[0].network
    hooks = [
        text.register_forward_hook(note("text encoder")),
        backbone.autoencoder.get_submodule("decoder").register_forward_hook(note("decoder")),
        backbone.denoiser.get_submodule("conv_in").register_forward_hook(note("denoiser")),
    ]
    overrides = ("embedding.steps=1", "embedding.batch=1", "mixed_precision=bf16", *SMALL)
    train(backbone, pictures, tmp_path, overrides, "textual-inversion", preview_every=1)
    for each in hooks:
        each.remove()
    assert seen == {"text encoder": {False}, "decoder": {False}, "denoiser": {True}}
    assert "forward" not in vars(backbone.denoiser)


def test_a_preview_without_room_is_left_out_and_said(
    backbone: Backbone, pictures: Pictures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(loop, "draw_batch", full)
    said: list[str] = []
    overrides = ("embedding.steps=1", *SMALL)
    options: dict[str, Any] = {"preview_every": 1, "on_skipped": said.append}
    assert train(backbone, pictures, tmp_path, overrides, "textual-inversion", **options)
    assert said == ["embedding, step 1: the GPU has too little memory for a preview"]


def test_gradients_do_not_pass_float16_on_their_way_to_tokens() -> None:
    """They are as small as 1e-8, which float16 does not have."""
    linear = nn.Linear(4, 3).half()
    backbone: Any = SimpleNamespace(denoiser=linear, denoise=lambda _a, _b, c: linear(c.states))
    states = torch.ones(2, 4, requires_grad=True)
    model = loop._Denoiser(backbone, nn.ParameterList())
    with torch.autocast("cpu", torch.bfloat16):
        predicted = model(torch.zeros(2, 4), torch.zeros(2), Conditioning(states, {}))
    (1e-8 * predicted.float().sum()).backward()
    assert states.grad is not None
    assert states.grad.abs().min() > 0


def test_what_was_computed_is_let_go_before_the_base_model_is_restored(
    backbone: Backbone, pictures: Pictures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU without memory has room again for the weights of before."""
    alive: list[weakref.ref[Tensor]] = []
    at_restore: list[bool] = []

    def full(*_: object) -> None:
        large = torch.zeros(8)
        alive.append(weakref.ref(large))
        raise torch.OutOfMemoryError

    restore = Training.restore

    def watched(self: Training) -> None:
        at_restore.append(alive[0]() is None)
        restore(self)

    monkeypatch.setattr(loop._Loop, "_take_step", full)
    monkeypatch.setattr(Training, "restore", watched)
    before = {name: each.clone() for name, each in backbone.denoiser.named_parameters()}
    with pytest.raises(torch.OutOfMemoryError):
        train(backbone, pictures, tmp_path)
    assert at_restore == [True]
    assert not changed(before, backbone.denoiser)
