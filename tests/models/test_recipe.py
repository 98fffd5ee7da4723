"""The recipe of the miniature: every stage learns, and goes on after a kill as if nothing was."""

import dataclasses
import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from conceptry.models.miniature.identity import IdentityEncoder
from conceptry.models.miniature.recipe import muon, train
from long import quick_for
from safetensors.torch import load_file, save_file
from small_networks import SMALL, small_unet, small_vae
from torch import nn
from torch.nn import functional as F  # noqa: N812 (everyone's name for it)

BATCH = 8
STEPS = dict.fromkeys(train.STAGES, 20) | {"unet": 150}
"""As many as show that a stage learns: where batches are small, noise is loud."""
DRAWING = ("vae", "decoder", "unet", "control")
"""The stages that are slow at the miniature's size."""
TOLD_BY_NOISE = ("unet", "control", "subject-encoder")
"""Those that need many steps before a loss is seen to fall."""
RENDERED = (*DRAWING, "subject-encoder")
"""Those that see pictures at that size."""


@pytest.fixture(autouse=True)
def _quick_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rate is whole after five steps."""
    quick = {name: dataclasses.replace(each, warmup_steps=5) for name, each in train.STAGES.items()}
    monkeypatch.setattr(train, "STAGES", quick)


def run(
    stage: str,
    folder: Path,
    *,
    steps: int,
    batch: int = BATCH,
    stop_at: int | None = None,
    full_size: bool = False,
) -> None:
    """Take steps of a stage; the loop is the same for small pictures and networks."""
    numbers = dataclasses.replace(train.STAGES[stage], batch=batch)
    with pytest.MonkeyPatch.context() as patched:
        if not full_size:
            patched.setattr(train, "SIZE", SMALL)
            patched.setattr(train, "make_vae", small_vae)
            patched.setattr(train, "make_unet", small_unet)
            if stage in RENDERED:
                numbers = dataclasses.replace(numbers, size=SMALL)
        patched.setitem(train.STAGES, stage, numbers)
        train.train(
            stage,
            folder,
            images=batch * steps,
            device="cpu",
            num_workers=0,
            stop_at=stop_at,
        )


def filled(folder: Path, *, full_size: bool) -> Path:
    """Where each stage finds what the ones before it left: weights that have seen a picture."""
    for stage in train.STAGES:
        run(stage, folder, steps=1, batch=2, full_size=full_size)
    return folder


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of small networks."""
    return filled(tmp_path_factory.mktemp("context"), full_size=False)


@pytest.fixture(scope="module")
def large_workshop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of networks as they ship."""
    return filled(tmp_path_factory.mktemp("context"), full_size=True)


def begin(stage: str, context: Path, folder: Path) -> Path:
    """A folder in which a stage can be run."""
    folder.mkdir(exist_ok=True)
    for earlier in train.STAGES:
        if earlier != stage:
            name = f"{earlier}.safetensors"
            shutil.copyfile(context / name, folder / name)
    return folder


@pytest.mark.long
@pytest.mark.parametrize("stage", [name for name in train.STAGES if name not in TOLD_BY_NOISE])
def test_some_steps_of_a_stage_lower_its_loss(
    stage: str, context: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "LOG_EVERY_STEPS", STEPS[stage] // 5)
    run(stage, begin(stage, context, tmp_path), steps=STEPS[stage])
    assert_learned(stage, tmp_path)


@pytest.mark.long
def test_some_steps_of_the_control_net_lower_its_loss_and_change_nothing_else(
    context: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the same scenes and noise: that of others is louder than what is learned."""
    monkeypatch.setattr(train, "scaling_factor", lambda *_: 0.2)
    found: list[float] = []
    for steps in (1, 40):
        folder = begin("control", context, tmp_path / str(steps))
        run("control", folder, steps=steps)
        found.append(control_loss(folder, monkeypatch))
    assert found[1] < found[0]
    before, after = (load_file(tmp_path / f"{n}/control.safetensors") for n in (1, 40))
    changed = {name.partition(".")[0] for name in before if not before[name].equal(after[name])}
    assert changed == {"control"}
    earlier = train.parameters_of(load_file(context / "unet.safetensors"), "unet")
    kept = train.parameters_of(after, "unet")
    assert all(kept[name].equal(value) for name, value in earlier.items())


def control_loss(folder: Path, monkeypatch: pytest.MonkeyPatch) -> float:
    """Of 32 scenes, with what the stage left."""
    with monkeypatch.context() as patched:
        patched.setattr(train, "SIZE", SMALL)
        patched.setattr(train, "make_vae", small_vae)
        patched.setattr(train, "make_unet", small_unet)
        context = train.Context(folder, torch.device("cpu"))
        modules = train.build_control(context)
        context.load("control", modules["control"], "control")
        batch = train.layouts_batch(0, split="taught", offset=70, batch=32, size=SMALL)
        scenes = train.encode_layouts(modules, batch, context)
        with torch.no_grad():
            generator = torch.Generator().manual_seed(0)
            return float(train.control_losses(modules, scenes, context, generator)["noise"])


@pytest.mark.parametrize("stage", ["control", "subject-encoder"])
def test_late_stages_see_by_the_autoencoder_that_is_there(
    stage: str, context: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be later, and of another shape, than the one that the U-Net learned with."""
    monkeypatch.setattr(train, "SIZE", SMALL)
    monkeypatch.setattr(train, "make_vae", small_vae)
    monkeypatch.setattr(train, "make_unet", small_unet)
    monkeypatch.setattr(train, "scaling_factor", lambda *_: 0.2)
    begin(stage, context, tmp_path)
    learned = load_file(tmp_path / "unet.safetensors")
    earlier = {f"vae.{n}": p for n, p in small_vae(SMALL // 2).state_dict().items()}
    others = {name: each for name, each in learned.items() if not name.startswith("vae.")}
    save_file(others | earlier, tmp_path / "unet.safetensors")
    modules = train.STAGES[stage].build(train.Context(tmp_path, torch.device("cpu")))
    for part, file in (("vae", "vae"), ("unet", "unet"), ("text", "unet")):
        expected = train.parameters_of(load_file(tmp_path / f"{file}.safetensors"), part)
        found = modules[part].state_dict()
        assert all(found[name].equal(value) for name, value in expected.items())


@pytest.mark.long
def test_every_stage_takes_a_step_at_full_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "scaling_factor", lambda *_: 0.2)  # of 256 pictures
    monkeypatch.setattr(train, "LOG_EVERY_STEPS", 1)
    filled(tmp_path, full_size=True)
    for stage in train.STAGES:
        (line,) = (tmp_path / f"{stage}.jsonl").read_text().splitlines()
        assert all(math.isfinite(value) for value in json.loads(line).values())
        assert (tmp_path / f"{stage}.safetensors").exists()


@pytest.mark.slow
@pytest.mark.parametrize("stage", [name for name in DRAWING if name != "control"])
def test_some_steps_of_a_stage_lower_its_loss_at_full_size(
    stage: str, large_workshop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "LOG_EVERY_STEPS", STEPS[stage] // 5)
    run(stage, begin(stage, large_workshop, tmp_path), steps=STEPS[stage], full_size=True)
    assert_learned(stage, tmp_path)


def assert_learned(stage: str, folder: Path) -> None:
    lines = [json.loads(line) for line in (folder / f"{stage}.jsonl").read_text().splitlines()]
    opponents = {"adversary", "discriminator", "features"}  # they move against each other
    names = lines[0].keys() - {"step", "images", "images_per_second"} - opponents
    first, *_, last = [sum(line[name] for name in names) for line in lines]
    assert last < first
    assert (folder / f"{stage}.safetensors").exists()


@pytest.mark.parametrize("stage", quick_for(2, train.STAGES))
def test_a_stage_that_was_stopped_ends_bit_equal(
    stage: str, context: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batches follow from the seed and the step; the rest is in the resume point.

    All begin with the same autoencoder, whose scale takes as long to find as all steps here.
    """
    monkeypatch.setattr(train, "scaling_factor", lambda *_: 0.2)
    whole, stopped = (begin(stage, context, tmp_path / name) for name in ("whole", "stopped"))
    run(stage, whole, steps=6, batch=4)
    run(stage, stopped, steps=6, batch=4, stop_at=4)
    run(stage, stopped, steps=6, batch=4)
    ours, theirs = (load_file(place / f"{stage}.safetensors") for place in (stopped, whole))
    assert ours.keys() == theirs.keys()
    assert all(ours[name].equal(theirs[name]) for name in ours)


def test_a_stage_goes_on_with_what_it_was_begun_with(tmp_path: Path) -> None:
    """Not with another batch, as a GPU has, another seed, or other weights to begin from."""
    save_file({"none": torch.zeros(1)}, tmp_path / "earlier.safetensors")
    begun: dict[str, Any] = {"images": 8, "stop_at": 1, "device": "cpu", "num_workers": 0}
    changes: dict[str, dict[str, Any]] = {
        "has seed 0, not 1: go on with that, or remove it": {"seed": 1},
        "has learning_rate .*, not 0.5": {"learning_rate": 0.5},
        "has start_sha256 None, not": {"start": tmp_path / "earlier.safetensors"},
    }
    stage = dataclasses.replace(train.STAGES["identity"], batch=4, size=SMALL)
    train.train(stage, tmp_path, **begun)
    kept = (tmp_path / "identity.resume.safetensors").read_bytes()
    for message, change in changes.items():
        with pytest.raises(ValueError, match=message):
            train.train(stage, tmp_path, **begun | change)
    with pytest.raises(ValueError, match="has batch 4, not 8"):
        train.train(dataclasses.replace(stage, batch=8), tmp_path, **begun)
    with pytest.raises(ValueError, match="has 4 images behind it: as many, or more"):
        train.train(stage, tmp_path, **{**begun, "images": 2})
    assert (tmp_path / "identity.resume.safetensors").read_bytes() == kept


@pytest.mark.long
def test_a_stopped_stage_finds_its_window_of_scenes_again(
    context: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scenes that are used several times are those of the uninterrupted run."""
    windowed = dataclasses.replace(train.STAGES["unet"], window=2, reuse=2)
    monkeypatch.setitem(train.STAGES, "unet", windowed)
    whole, stopped = (begin("unet", context, tmp_path / name) for name in ("whole", "stopped"))
    run("unet", whole, steps=8, batch=2)
    run("unet", stopped, steps=8, batch=2, stop_at=5)
    run("unet", stopped, steps=8, batch=2)
    ours, theirs = (load_file(place / "unet.safetensors") for place in (stopped, whole))
    assert all(ours[name].equal(theirs[name]) for name in theirs)


def test_a_stage_begins_from_earlier_weights_where_they_fit(tmp_path: Path) -> None:
    context = train.Context(tmp_path, torch.device("cpu"))
    stage = train.STAGES["identity"]
    fresh = train.Training(stage, context).learning
    earlier = {name: torch.full(value.shape, 0.5) for name, value in fresh.items()}
    other, *same = fresh
    earlier[other] = torch.ones(2, 2)
    save_file(earlier, tmp_path / "earlier.safetensors")
    begun = train.Training(stage, context, start=tmp_path / "earlier.safetensors").learning
    assert all(begun[name].eq(0.5).all() for name in same)
    assert begun[other].equal(fresh[other])


def test_what_does_not_learn_any_more_is_as_the_earlier_run_left_it(tmp_path: Path) -> None:
    """Of the stage's own parts: others, such as an autoencoder, are those of the folder."""
    context = train.Context(tmp_path, torch.device("cpu"))
    both = nn.ModuleDict({"identity": IdentityEncoder(), "vae": nn.Linear(2, 2)})
    stage = dataclasses.replace(train.STAGES["identity"], build=lambda _: both)
    earlier = {name: torch.full(value.shape, 0.5) for name, value in both.named_parameters()}
    save_file(earlier, tmp_path / "earlier.safetensors")
    chosen = next(name for name in earlier if name.startswith("identity."))
    limited = dataclasses.replace(stage, learns=(chosen,))
    begun = train.Training(limited, context, start=tmp_path / "earlier.safetensors")
    assert list(begun.learning) == [chosen]
    for name, value in begun.modules.named_parameters():
        assert value.eq(0.5).all() == name.startswith("identity.")
        assert value.requires_grad == (name == chosen)


def test_parts_learn_at_their_own_rates(tmp_path: Path) -> None:
    context = train.Context(tmp_path, torch.device("cpu"))
    stage = dataclasses.replace(
        train.STAGES["identity"], muon=("identity",), slow={"identity": 0.25}, warmup_steps=1
    )
    both = nn.ModuleDict({"identity": IdentityEncoder(), "other": nn.Linear(2, 2)})
    stage = dataclasses.replace(stage, build=lambda _: both, learns=("identity", "other"))
    training = train.Training(stage, context)
    training.stage = dataclasses.replace(stage, losses=lambda *_: {"none": sum_of(both)})
    training._learn({}, 0.0)
    rates = {
        parameter: float(group["lr"])
        for optimizer in training.optimizers
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    for name, parameter in training.learning.items():
        share = 0.25 if name.startswith("identity.") else 1.0
        assert rates[parameter] == pytest.approx(stage.learning_rate * share)
    by_muon = {p for p in rates if p in training.optimizers[1].state}
    assert by_muon == {p for p in both["identity"].parameters() if p.ndim > 1}


def sum_of(modules: nn.Module) -> torch.Tensor:
    """A loss with a gradient for every parameter."""
    return torch.stack([parameter.sum() for parameter in modules.parameters()]).sum()


def test_orthogonal_keeps_directions_and_levels_their_sizes() -> None:
    torch.manual_seed(0)
    for shape in ((8, 24), (24, 8)):
        matrix = torch.randn(shape) @ torch.diag(torch.logspace(0, -1, shape[1]))
        found = muon.orthogonal(matrix)
        singular = torch.linalg.svdvals(found)
        assert singular.min() > 0.6
        assert singular.max() < 1.3
        left, _, right = torch.linalg.svd(matrix, full_matrices=False)
        assert F.cosine_similarity(found.flatten(), (left @ right).flatten(), 0) > 0.97


def test_quarters_are_whole_places_and_where_weights_are_large() -> None:
    torch.manual_seed(0)
    weights = torch.ones(256, 1, 16, 16)
    weights[:, :, 10:12, 3:5] = 30.0
    across = torch.arange(32.0).expand(32, 32)
    pixels = torch.stack([across, across.T, across * 0]).expand(256, -1, -1, -1)
    cut, of_them = train.quarters(pixels, weights, torch.Generator().manual_seed(0))
    assert cut.shape == (256, 3, 16, 16)
    assert of_them.shape == (256, 1, 8, 8)
    left, top = (cut[:, i, 0, 0].long() for i in (0, 1))
    assert (left % 2 == 0).all()
    assert (top % 2 == 0).all()
    for i in range(256):
        y, x = int(top[i]) // 2, int(left[i]) // 2
        assert of_them[i, 0].equal(weights[i, 0, y : y + 8, x : x + 8])
        assert cut[i].equal(pixels[i, :, 2 * y : 2 * y + 16, 2 * x : 2 * x + 16])
    sees_all = of_them.sum((1, 2, 3)) > 64 + 100
    assert sees_all.float().mean() > 0.5  # of all squares, a quarter
    assert len({(int(y), int(x)) for y, x in zip(top, left, strict=True)}) > 10


def test_a_stage_without_its_forerunner_says_which(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="train the stage 'clip' first"):
        run("unet", tmp_path, steps=1)
