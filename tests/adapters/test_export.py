"""Exported versions, drawn by plain diffusers and by other tools' rules: the same pictures."""

import base64
import hashlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conceptry.adapters.formats import exporting
from conceptry.adapters.formats.exporting import export_version
from conceptry.adapters.formats.layouts import difference_tensors, kohya_tensors, low_rank
from conceptry.adapters.formats.options import ExportOptions, parse_format
from conceptry.adapters.timestep_tokens import STAGE_ORDER
from conceptry.adapters.weight_delta import WeightDelta
from conceptry.generation.injection import inject_concepts
from conceptry.generation.prompt_syntax import resolve_version
from conceptry.models.hashes import hash_of_folder
from conceptry.models.loading import load_base
from conceptry.registry import InvalidInput, Registry
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from diffusers.loaders.lora_conversion_utils import _convert_non_diffusers_lora_to_diffusers
from diffusers.utils.state_dict_utils import convert_unet_state_dict_to_peft
from exported import (
    Taught,
    a1111_layers,
    add_embedding,
    comfyui_layers,
    header,
    patch_as_comfyui,
    plain,
)
from full_size import UNETS, make_full_unet
from long import quick_for
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from tiny_base import write_tiny_base

WORD = "<it>"
TOLERANCE = 2
"""Of 255, between two programs that draw the same."""
PIPELINES: Any = {"SD": StableDiffusionPipeline, "SDXL": StableDiffusionXLPipeline}


def assert_alike(found: np.ndarray, expected: np.ndarray) -> None:
    assert np.abs(found - expected).max() <= TOLERANCE


def worn(taught: Taught, path: Path) -> Any:
    """The base model with the embedding that was exported to, or beside, a path."""
    pipeline = taught.reloaded()
    add_embedding(pipeline, path, WORD)
    return pipeline


PROMPT = f"a photo of a {WORD} dog"


# --- the same pictures ----------------------------------------------------------------------------


def test_an_embedding_draws_the_same(taught: Taught) -> None:
    taught.add(taught.vectors(2))
    done = taught.export("embedding")
    assert done.trigger == "rex dog"
    found = plain(worn(taught, taught.folder / "rex.safetensors"), PROMPT)
    assert_alike(found, taught.drawn())
    other = plain(taught.reloaded(), "a photo of a dog")
    assert np.abs(found - other).max() > 4 * TOLERANCE


@pytest.mark.parametrize(
    "case",
    quick_for(
        3,
        [
            ("lora-kohya", "factors"),
            ("lora-diffusers", "directed"),
            ("lora-kohya", "text_factors"),
            ("lora-diffusers", "factors"),
            ("lora-diffusers", "text_factors"),
        ],
    ),
    ids=str,
)
def test_a_lora_draws_the_same_by_diffusers(taught: Taught, case: tuple[str, str]) -> None:
    form, learned = case
    taught.add(taught.vectors(2) | getattr(taught, learned)())
    done = taught.export(form)
    assert done.trigger == "rex-embedding dog"
    pipeline = worn(taught, taught.folder / "rex-embedding.safetensors")
    before = plain(pipeline, PROMPT)
    pipeline.load_lora_weights(taught.folder / "rex.safetensors")
    found = plain(pipeline, PROMPT)
    assert_alike(found, taught.drawn())
    assert np.abs(found - before).max() > 4 * TOLERANCE


@pytest.mark.parametrize("kind", ["SD"])
def test_magnitudes_are_those_of_the_base_model_whatever_else_is_added(taught: Taught) -> None:
    for _ in range(2):
        taught.add(taught.vectors(2) | taught.directed())
    concept = taught.registry.show("rex")
    first, second = (resolve_version(taught.registry, concept, word) for word in ("1", "2"))
    plain = {name: each.detach().clone() for name, each in taught.base.backbone.weights().items()}
    found: list[dict[str, torch.Tensor]] = []
    for chosen in ([first, second], [second, first], [first], [second]):
        with inject_concepts(taught.base, chosen):
            weights = taught.base.backbone.weights().items()
            found.append({name: each.detach() - plain[name] for name, each in weights})
    together, turned, *alone = found
    for name, change in together.items():
        torch.testing.assert_close(change, turned[name], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(change, alone[0][name] + alone[1][name], atol=1e-5, rtol=1e-4)
    assert any(change.abs().max() > 0.1 for change in together.values())


@pytest.mark.parametrize(
    ("form", "learned"),
    [("lora-kohya", "factors"), ("diff", "factors"), ("diff", "deltas"), ("diff", "directed")],
)
def test_weights_draw_the_same_by_comfyuis_rules(taught: Taught, form: str, learned: str) -> None:
    taught.add(taught.vectors(2) | getattr(taught, learned)())
    taught.export(form)
    pipeline = worn(taught, taught.folder / "rex-embedding.safetensors")
    patch_as_comfyui(pipeline.unet, taught.folder / "rex.safetensors")
    assert_alike(plain(pipeline, PROMPT), taught.drawn())


def test_peft_takes_a_lora(taught: Taught) -> None:
    from peft import LoraConfig, inject_adapter_in_model, set_peft_model_state_dict

    taught.add(taught.vectors(2) | taught.factors())
    taught.export("lora-diffusers")
    path = taught.folder / "rex.safetensors"
    tensors = {name.removeprefix("unet."): each for name, each in load_file(path).items()}
    pipeline = worn(taught, taught.folder / "rex-embedding.safetensors")
    targets = sorted({name.partition(".lora_")[0] for name in tensors})
    inject_adapter_in_model(LoraConfig(r=2, lora_alpha=2, target_modules=targets), pipeline.unet)
    result: Any = set_peft_model_state_dict(pipeline.unet, tensors)
    assert not result.unexpected_keys
    assert_alike(plain(pipeline, PROMPT), taught.drawn())


def test_a_checkpoint_draws_the_same(taught: Taught, kind: str) -> None:
    taught.add(taught.vectors(2) | taught.deltas())
    taught.export("checkpoint")
    pipeline = PIPELINES[kind].from_single_file(
        taught.folder / "rex.safetensors", config=taught.base.base.name, local_files_only=True
    )
    add_embedding(pipeline, taught.folder / "rex-embedding.safetensors", WORD)
    assert_alike(plain(pipeline, PROMPT), taught.drawn())


@pytest.mark.parametrize(
    "learned", quick_for(1, ["texts", "directed", "deltas", "factors", "nothing"])
)
def test_a_folder_draws_the_same(taught: Taught, kind: str, learned: str) -> None:
    state = {} if learned == "nothing" else getattr(taught, learned)()
    taught.add(taught.vectors(2) | state)
    done = taught.export("diffusers", "mine")
    assert done.trigger == "<rex> dog"
    files = [path.suffix for path in (taught.folder / "mine").rglob("*") if path.is_file()]
    assert set(files) <= {".json", ".safetensors", ".txt"}
    pipeline = PIPELINES[kind].from_pretrained(taught.folder / "mine", local_files_only=True)
    assert_alike(plain(pipeline, "a photo of a <rex> dog"), taught.drawn())
    again = load_base(str(taught.folder / "mine"))
    assert again.sha256 == done.files[0].sha256


def test_a_checkpoint_of_a_single_file_changes_only_its_unet(
    rex: Registry, bases: dict[str, Path], tmp_path: Path
) -> None:
    import shutil

    from safetensors.torch import save_file

    folder = Taught(rex, load_base(str(bases["SD"])), tmp_path)
    folder.add(folder.vectors(1) | folder.deltas(), num_tokens=1)
    folder.export("checkpoint", "base.safetensors")
    tensors = load_file(tmp_path / "base.safetensors") | {"of the author": torch.ones(3)}
    (tmp_path / "base.safetensors").unlink()
    save_file(tensors, tmp_path / "base.safetensors")
    shutil.copytree(bases["SD"], tmp_path / "base")
    taught = Taught(rex, load_base(str(tmp_path / "base.safetensors")), tmp_path, seed=100)
    name = "mid_block.resnets.0.conv1.weight"
    shape = taught.base.backbone.parameters("denoiser")[name].shape
    delta = taught.random(*shape, scale=0.1)
    taught.add(taught.vectors(1) | {f"delta.{name}": delta}, num_tokens=1)
    taught.export("checkpoint")
    found = load_file(tmp_path / "rex.safetensors")
    changed = [each for each in tensors if not tensors[each].equal(found.pop(each))]
    assert changed == ["model.diffusion_model.middle_block.0.in_layers.2.weight"]
    assert not found


def test_half_is_half_as_large(taught: Taught) -> None:
    taught.add(taught.vectors(2) | taught.deltas())
    whole = taught.export("checkpoint").files[0].bytes
    half = taught.export("checkpoint", "half.safetensors", half=True).files[0].bytes
    assert 0.45 < half / whole < 0.6
    folder = taught.export("diffusers", "mine", half=True)
    with safe_open(taught.folder / "mine/unet/diffusion_pytorch_model.safetensors", "pt") as opened:
        assert opened.get_slice("conv_in.weight").get_dtype() == "F16"
    assert folder.files[0].bytes > 0


@pytest.mark.parametrize("kind", ["SD"])
@pytest.mark.parametrize("name", quick_for(1, sorted(UNETS)))
def test_other_tools_know_the_names_of_all_layers(name: str, kind: str) -> None:
    with torch.device("meta"):
        shapes = {key: each.shape for key, each in make_full_unet(name).named_parameters()}
    whole = WeightDelta({key: torch.zeros(1) for key in shapes})
    layers = {key.partition(".")[0] for key in difference_tensors(whole)}
    assert set(a1111_layers(layers, shapes).values()) == {key.rpartition(".")[0] for key in shapes}
    assert layers <= comfyui_layers(shapes).keys()
    one = torch.ones(1, 1)
    matrices = [key for key, shape in shapes.items() if len(shape) > 1]
    for used in (matrices, [key for key in matrices if ".to_" in key]):
        tensors = kohya_tensors(WeightDelta({}, dict.fromkeys(used, (one, one))))
        layers = {key.partition(".")[0] for key in tensors}
        expected = {key.rpartition(".")[0] for key in used}
        assert {comfyui_layers(shapes)[layer] for layer in layers} == expected
        converted, _ = _convert_non_diffusers_lora_to_diffusers(tensors)
        peft = convert_unet_state_dict_to_peft(converted)
        found = {key.partition(".lora_")[0].removeprefix("unet.") for key in peft}
        assert found == expected
        if name != "SDXL" or used is not matrices:  # where A1111 misses an upsampler
            assert set(a1111_layers(layers, shapes).values()) == expected


# --- with loss ------------------------------------------------------------------------------------


def test_svd_of_full_rank_loses_only_what_is_no_matrix(taught: Taught) -> None:
    deltas = {name: each for name, each in taught.deltas().items() if each.ndim > 1}
    taught.add(taught.vectors(2) | deltas)
    done = taught.export("svd:1024")
    assert done.kept == pytest.approx(1, abs=1e-3)
    pipeline = worn(taught, taught.folder / "rex-embedding.safetensors")
    patch_as_comfyui(pipeline.unet, taught.folder / "rex.safetensors")
    assert_alike(plain(pipeline, PROMPT), taught.drawn())


def test_svd_is_a_lora_that_diffusers_loads(taught: Taught) -> None:
    taught.add(taught.vectors(2) | taught.deltas())
    done = taught.export("svd:4")
    assert done.kept is not None
    assert 0.1 < done.kept < 0.9
    path = taught.folder / "rex.safetensors"
    pipeline = worn(taught, taught.folder / "rex-embedding.safetensors")
    patch_as_comfyui(pipeline.unet, path)
    expected = plain(pipeline, PROMPT)
    pipeline = worn(taught, taught.folder / "rex-embedding.safetensors")
    pipeline.load_lora_weights(path)
    assert_alike(plain(pipeline, PROMPT), expected)


def test_svd_finds_the_leading_part_and_the_same_again() -> None:
    generator = torch.Generator().manual_seed(1)
    up, down = (torch.randn(shape, generator=generator) for shape in ((400, 3), (3, 500)))
    noise = 1e-3 * torch.randn(400, 500, generator=generator)
    change = WeightDelta({"layer.weight": up @ down + noise, "layer.bias": torch.zeros(400)})
    found, kept = low_rank(change, 3)
    first, second = found.factors["layer.weight"]
    assert (first.shape, second.shape) == ((400, 3), (3, 500))
    assert (first @ second).sub(up @ down).norm() / (up @ down).norm() < 1e-2
    assert 0.999 < kept <= 1
    again, _ = low_rank(change, 3)
    assert again.factors["layer.weight"][0].equal(first)


def test_the_mean_of_vectors_that_depend_on_the_timestep(taught: Taught) -> None:
    staged = taught.vectors(3, 2, name="staged")
    taught.add(staged, num_tokens=1, stage_order=STAGE_ORDER)
    taught.export("embedding-mean")
    found = load_file(taught.folder / "rex.safetensors")
    for name, own in zip(sorted(found, reverse=True), staged.values(), strict=True):
        assert found[name][0].allclose(own.mean((0, 1)), atol=1e-6)
    said, _ = header(taught.folder / "rex.safetensors")
    assert "mean" in said["modelspec.usage_hint"]


# --- what files say of themselves -----------------------------------------------------------------


@pytest.mark.parametrize("form", ["embedding", "lora-kohya", "lora-diffusers", "checkpoint"])
def test_hashes_are_right(taught: Taught, form: str) -> None:
    taught.add(taught.vectors(2) | ({} if form == "embedding" else taught.factors()))
    done = taught.export(form)
    for file in done.files:
        said, data = header(Path(file.path))
        digest = hashlib.sha256(data).hexdigest()
        assert said["sshs_model_hash"] == digest
        assert said["modelspec.hash_sha256"] == f"0x{digest}"
        assert file.autov3 == digest[:12]
        assert file.sha256 == hashlib.sha256(Path(file.path).read_bytes()).hexdigest()
        assert file.autov2 == file.sha256[:10]


def test_what_a_lora_says_of_itself(taught: Taught, kind: str) -> None:
    taught.add(taught.vectors(2) | taught.factors())
    taught.export("lora-kohya")
    said, _ = header(taught.folder / "rex.safetensors")
    expected = {
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": "stable-diffusion/lora",
        "modelspec.title": "rex@1",
        "modelspec.resolution": "16x16",
        "modelspec.trigger_phrase": "rex-embedding dog",
        "modelspec.tags": "dog",
        "ss_network_module": "networks.lora",
        "ss_network_dim": "2",
        "ss_network_alpha": "2.0",
        "ss_v2": "False",
        "ss_seed": "7",
        "ss_output_name": "rex",
        "ss_sd_model_name": kind,
        "ss_num_train_images": "3",
    }
    assert said | expected == said
    assert "modelspec.thumbnail" not in said
    assert str(taught.folder) not in str(said)


@pytest.mark.parametrize(
    ("widths", "architecture", "keys"),
    [
        ((768,), "stable-diffusion-v1/textual-inversion", ["emb_params"]),
        ((1024,), "stable-diffusion-v2-512/textual-inversion", ["emb_params"]),
        ((768, 1280), "stable-diffusion-xl-v1-base/textual-inversion", ["clip_g", "clip_l"]),
    ],
    ids=["SD 1.5", "SD 2.1", "SDXL"],
)
@pytest.mark.parametrize("kind", ["SD"])
def test_embeddings_of_full_width(
    taught: Taught, widths: tuple[int, ...], architecture: str, keys: list[str]
) -> None:
    taught.add({f"token.{i}": torch.ones(2, width) for i, width in enumerate(widths)})
    taught.export("embedding")
    said, _ = header(taught.folder / "rex.safetensors")
    assert said["modelspec.architecture"] == architecture
    assert sorted(load_file(taught.folder / "rex.safetensors")) == keys


@pytest.mark.parametrize("kind", ["SD"])
def test_a_thumbnail_is_small_and_says_nothing_more(taught: Taught) -> None:
    taught.add(taught.vectors(2))
    exif = Image.Exif()
    exif[0x010E] = "at home"
    Image.radial_gradient("L").resize((900, 600)).convert("RGB").save(
        taught.folder / "me.jpg", exif=exif
    )
    taught.export("embedding", thumbnail=taught.folder / "me.jpg")
    said, _ = header(taught.folder / "rex.safetensors")
    start, _, data = said["modelspec.thumbnail"].partition(",")
    assert start == "data:image/jpeg;base64"
    with Image.open(io.BytesIO(base64.b64decode(data))) as thumbnail:
        assert max(thumbnail.size) <= 256
        assert not thumbnail.getexif()


@pytest.mark.parametrize("kind", ["SD"])
def test_equal_versions_make_equal_files(taught: Taught) -> None:
    taught.add(taught.vectors(2) | taught.deltas())
    first, second = (
        [each.sha256 for each in taught.export("svd:4", overwrite=True).files] for _ in range(2)
    )
    assert first == second


# --- what a format cannot hold --------------------------------------------------------------------

REFUSED = {
    ("embedding", "factors"): "--format lora-kohya",
    ("embedding", "deltas"): "--format diff",
    ("lora-kohya", "deltas"): "--format diff (without loss) or svd:64",
    ("lora-diffusers", "deltas"): "--format diff (without loss) or svd:64",
    ("lora-kohya", "nothing"): "--format embedding or diffusers",
    ("diff", "nothing"): "--format embedding or diffusers",
    ("checkpoint", "nothing"): "--format embedding or diffusers",
    ("svd:8", "factors"): "--format lora-kohya or lora-diffusers",
    ("embedding-mean", "nothing"): "--format embedding",
    ("embedding", "stages"): "--format embedding-mean",
    ("diffusers", "stages"): "--format embedding-mean",
    ("lora-kohya", "directed"): "--format lora-diffusers or diff (without loss)",
    ("embedding", "directed"): "--format lora-diffusers",
    ("svd:8", "directed"): "--format lora-diffusers",
    ("diff", "text_factors"): "--format lora-kohya, lora-diffusers or diffusers",
    **dict.fromkeys(
        [(form, "texts") for form in ("diff", "svd:8", "checkpoint", "lora-kohya")],
        "--format diffusers",
    ),
}


@pytest.mark.parametrize(("form", "learned"), REFUSED, ids=str)
@pytest.mark.parametrize("kind", ["SD"])
def test_what_a_format_cannot_hold_is_said_first(taught: Taught, form: str, learned: str) -> None:
    if learned == "stages":
        taught.add(taught.vectors(3, 2, name="staged"), num_tokens=1, stage_order=STAGE_ORDER)
    else:
        taught.add(taught.vectors(2) | (getattr(taught, learned)() if learned != "nothing" else {}))
    before = sorted(taught.folder.iterdir())
    with pytest.raises(InvalidInput) as refused:
        taught.export(form)
    assert REFUSED[form, learned] in (refused.value.hint or "")
    assert refused.value.message.startswith("rex@1 ")
    assert sorted(taught.folder.iterdir()) == before


@pytest.mark.parametrize("form", ["embedding", "diff", "diffusers"])
@pytest.mark.parametrize("kind", ["SD"])
def test_references_fit_a_bundle_alone(taught: Taught, form: str) -> None:
    state = {
        "reference.0.latents": torch.zeros(4, 8, 8),
        "reference.0.mask": torch.ones(8, 8),
    }
    one = {"prompt": "a photo of {}", "weight": 1.0, "share": 0.5, "guidance": 5.0}
    from conceptry.adapters.references import ReferenceMetadata

    taught.add(taught.vectors(2) | state, references=(ReferenceMetadata(**one),))
    with pytest.raises(InvalidInput, match="references") as refused:
        taught.export(form)
    assert refused.value.hint == "concept export rex FILE.concept"


def test_formats_by_name() -> None:
    assert str(parse_format("svd:64")) == "svd:64"
    for wrong in (
        "",
        "lora",
        "svd",
        "svd:0",
        "svd:1025",
        "svd:٣",
        "svd:1e3",
        "diff:3",
        "svd:" * 99,
    ):
        with pytest.raises(InvalidInput, match="format"):
            parse_format(wrong)


# --- where it is written --------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["SD"])
def test_nothing_is_replaced_unasked(taught: Taught) -> None:
    taught.add(taught.vectors(2) | taught.factors())
    beside = taught.folder / "rex-embedding.safetensors"
    beside.write_text("mine")
    with pytest.raises(InvalidInput, match="exists"):
        taught.export("lora-kohya")
    assert not (taught.folder / "rex.safetensors").exists()
    assert beside.read_text() == "mine"
    taught.export("lora-kohya", overwrite=True)
    assert load_file(beside)
    (taught.folder / "mine").mkdir()
    (taught.folder / "mine/letter.txt").write_text("dear")
    for overwrite in (False, True):
        with pytest.raises(InvalidInput, match=r"exists|no diffusers folder"):
            taught.export("diffusers", "mine", overwrite=overwrite)
    assert (taught.folder / "mine/letter.txt").read_text() == "dear"
    taught.export("diffusers", "other")
    taught.export("diffusers", "other", overwrite=True)
    assert not list(taught.folder.glob(".*unfinished"))


@pytest.mark.parametrize("kind", ["SD"])
@pytest.mark.parametrize("name", ["rex.pt", "rex", "no/rex.safetensors", "registry/concepts.blobs"])
def test_unfit_paths_are_refused(taught: Taught, name: str) -> None:
    taught.add(taught.vectors(2))
    with pytest.raises(InvalidInput):
        taught.export("embedding", name)


@pytest.mark.parametrize("kind", ["SD"])
def test_files_that_fail_leave_nothing(taught: Taught, monkeypatch: pytest.MonkeyPatch) -> None:
    from conceptry.registry.errors import StorageError

    taught.add(taught.vectors(2) | taught.factors())
    real, written = exporting.write_tensors, []

    def failing(path: Path, *rest: Any) -> None:
        if written:
            raise OSError(28, "No space left on device")
        written.append(path)
        real(path, *rest)

    before = sorted(taught.folder.iterdir())
    monkeypatch.setattr(exporting, "write_tensors", failing)
    with pytest.raises(StorageError, match="No space left"):
        taught.export("lora-kohya")
    assert sorted(taught.folder.iterdir()) == before


@pytest.mark.parametrize("kind", ["SD"])
def test_a_folder_that_fails_leaves_the_former_one(
    taught: Taught, monkeypatch: pytest.MonkeyPatch
) -> None:
    from conceptry.models.backbone import Backbone
    from conceptry.registry.errors import StorageError

    taught.add(taught.vectors(2) | taught.deltas())
    first = taught.export("diffusers", "mine").files[0].sha256

    def failing(self: Backbone, folder: Path, *, half: bool) -> None:
        (folder / "vae").mkdir()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Backbone, "save", failing)
    for name in ("mine", "other"):
        with pytest.raises(StorageError, match="No space left"):
            taught.export("diffusers", name, overwrite=True)
    assert hash_of_folder(taught.folder / "mine") == first
    assert not (taught.folder / "other").exists()
    assert not list(taught.folder.glob(".*"))


@pytest.mark.parametrize("kind", ["SD"])
def test_a_broken_adapter_is_refused(taught: Taught) -> None:
    number = taught.add(taught.vectors(2))
    version = taught.registry.show("rex").versions[0]
    with pytest.raises(InvalidInput, match=rf"rex@{number} cannot be exported: .* no adapter"):
        export_version(
            taught.registry,
            taught.registry.show("rex"),
            version,
            Path(taught.base.base.source) / "vae/diffusion_pytorch_model.safetensors",
            taught.folder / "rex.safetensors",
            ExportOptions(format=parse_format("embedding")),
        )


@pytest.mark.parametrize("kind", ["SD"])
def test_another_base_model_is_refused(
    taught: Taught, bases: dict[str, Path], tmp_path: Path
) -> None:
    taught.add(taught.vectors(2) | taught.deltas())
    other = write_tiny_base(tmp_path / "other", seed=1)
    with pytest.raises(InvalidInput, match="another base model"):
        taught.export("checkpoint", base=str(other))
    with pytest.raises(InvalidInput, match="contain the base model"):
        taught.export("diff", base=str(other))


@pytest.mark.parametrize("kind", ["SD"])
def test_a_base_model_that_a_bundle_names_is_not_looked_for(
    taught: Taught, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taught.add(taught.vectors(2) | taught.deltas())
    taught.registry.export_bundle(["rex"], tmp_path / "rex.concept")
    asked: list[str] = []
    monkeypatch.setattr(exporting, "load_base", lambda name, **_: asked.append(name))
    with Registry.open(tmp_path / "other" / "concepts.db", create=True) as other:
        other.import_bundle(tmp_path / "rex.concept")
        there = Taught(other, taught.base, tmp_path)
        with pytest.raises(InvalidInput, match="which says it was"):
            there.export("checkpoint")
    assert not asked
