"""`concept import` of other tools' files and folders."""

import hashlib
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from conceptry.registry import Registry
from drawing import draw_file
from foreign_files import write_embedding, write_lora
from program import UNPRIVILEGED, Ask, Run, invoke, run_concept
from raw_safetensors import framed, raw_safetensors
from safetensors.numpy import save_file


@pytest.fixture
def collection(tmp_path: Path) -> Path:
    """A folder as collections have it: LoRA and an embedding, and what is none."""
    folder = tmp_path / "loras"
    write_lora(folder / "Ohwx Man.safetensors", 1)
    draw_file(folder / "Ohwx Man.preview.png")
    told = {"trainedWords": ["ohwx man", "red hat"], "baseModel": "SD 1.5", "description": "<p>Hi"}
    (folder / "Ohwx Man.civitai.info").write_text(json.dumps(told))
    write_embedding(folder / "style/shiny.safetensors", 2)
    write_lora(folder / "xl.safetensors", 3, width=2048)
    (folder / "xl.json").write_text(
        json.dumps({"activation text": "neon", "preferred weight": 0.7})
    )
    return folder


def test_a_folder_becomes_concepts(registry: Registry, collection: Path, run: Run) -> None:
    result = run("import", str(collection), "--tag", "bought")
    assert result.exit_code == 0
    assert result.stdout.splitlines() == [
        "imported ohwx-man: a LoRA for SD 1.x, <ohwx-man>, trigger words: ohwx man; red hat",
        "imported xl: a LoRA for SDXL, <xl:0.7>, trigger words: neon",
        "imported shiny: an embedding for SD 1.x, <shiny>",
    ]
    assert result.stderr == "3 files: 3 imported\n"
    concept = registry.show("ohwx-man")
    assert (concept.category, concept.tags) == ("thing", ["bought"])
    assert concept.notes == "Hi\nother trigger words: red hat"
    [version] = concept.versions
    assert [each.kind for each in version.artifacts] == ["original", "preview"]
    assert [each.name for each in registry.find(text="hat").concepts] == ["ohwx-man"]
    assert run("check", "--read-data").exit_code == 0
    run("gc", "--grace", "0")
    assert run("check").exit_code == 0


def test_a_second_time_nothing_happens(registry: Registry, collection: Path, run: Run) -> None:
    run("import", str(collection))
    before = registry.history(), sorted(Path(registry.location.blobs).rglob("*"))
    result = run("import", str(collection))
    assert result.stdout == ""
    assert "is there already, as ohwx-man" in result.stderr
    assert result.stderr.endswith("3 files: 3 there already\n")
    assert (registry.history(), sorted(Path(registry.location.blobs).rglob("*"))) == before


BAD = {
    "cut.safetensors": (lambda: write_lora(Path("whole"), 7).read_bytes()[:-9], "not a sound"),
    "empty.safetensors": (lambda: b"", "not a sound safetensors file"),
    "old.pt": (lambda: b"PK\x03\x04anything", "is a pickle"),
    "hidden.safetensors": (lambda: b"\x80\x04anything", "is a pickle"),
    "whole.safetensors": (
        lambda: raw_safetensors({"model.diffusion_model.x": ("F16", [1], b"\0\0")}),
        "is a base model",
    ),
    "vae.safetensors": (
        lambda: raw_safetensors({"encoder.conv_in.weight": ("F16", [1], b"\0\0")}),
        "is a VAE",
    ),
    "control.safetensors": (
        lambda: raw_safetensors({"control_model.x": ("F16", [1], b"\0\0")}),
        "is a ControlNet",
    ),
    "flux.safetensors": (
        lambda: raw_safetensors(
            {"lora_unet_double_blocks_0_img_attn_qkv.alpha": ("F16", [], b"\0\0")}
        ),
        "layers that neither SD 1.x, 2.x nor SDXL has",
    ),
    "nan.safetensors": (
        lambda: raw_safetensors({"emb_params": ("F16", [1, 2], b"\xff\xff\0\0")}),
        "not finite",
    ),
    "many.safetensors": (
        lambda: framed(
            {"emb_params": {"dtype": "F16", "shape": [9**9, 768], "data_offsets": [0, 0]}}
        ),
        "a prompt has room for 75",
    ),
    "deep.safetensors": (lambda: framed(b'{"a":' * 90_000), "header cannot be read"),
    "huge.safetensors": (lambda: b"\xff\xff\xff\x7f\0\0\0\0{", "is the limit"),
    "numbers.safetensors": (
        lambda: framed({"emb_params": {"dtype": 1, "shape": "x", "data_offsets": None}}),
        "header cannot be read",
    ),
    "peft.safetensors": (
        lambda: raw_safetensors(
            {
                "base_model.model.conv_in.lora_A.weight": ("F16", [1, 1], b"\0\0"),
                "base_model.model.conv_in.lora_B.weight": ("F16", [1, 1], b"\0\0"),
            }
        ),
        "adapter_config.json is not beside it",
    ),
    "half.safetensors": (
        lambda: raw_safetensors({"lora_unet_conv_in.lora_up.weight": ("F16", [1, 1], b"\0\0")}),
        "is not whole",
    ),
    "model.gguf": (lambda: b"GGUF", "is a GGUF model"),
}


def test_what_is_no_concept_is_told_one_by_one(
    registry: Registry, collection: Path, run: Run
) -> None:
    for name, (made, _) in BAD.items():
        (collection / name).write_bytes(made())
    (collection / "copy.safetensors").write_bytes(
        (collection / "Ohwx Man.safetensors").read_bytes()
    )
    (collection / "linked.safetensors").symlink_to(collection / "xl.safetensors")
    result = run("import", str(collection))
    assert result.exit_code == 0
    lines = result.stderr.splitlines()
    for name, (_, why) in BAD.items():
        [line] = [each for each in lines if each.startswith(f"warning: {collection / name}:")]
        assert why in line
        assert len(line) < 600
    assert any("linked.safetensors: " in each and "is a link" in each for each in lines)
    assert any("copy.safetensors is there already" in each for each in lines)
    assert lines[-1] == f"{len(BAD) + 5} files: 3 imported, 1 there already, {len(BAD) + 1} refused"
    assert registry.names() == ["ohwx-man", "shiny", "xl"]
    stored = [each for each in registry.location.blobs.rglob("*") if len(each.name) == 64]
    assert len(stored) == 4
    assert not list(registry.location.blobs.glob("tmp/*"))


def test_a_folder_of_which_nothing_can_be_imported_is_a_failure(registry: Registry) -> None:
    Path("old").mkdir()
    for name in ("a.pt", "b.ckpt"):
        Path("old", name).write_bytes(b"anything")
    result = invoke("--json", "import", "old")
    assert result.exit_code == 2
    assert [each["outcome"] for each in json.loads(result.stdout)["files"]] == ["refused"] * 2
    assert registry.names() == []


@pytest.mark.skipif(
    sys.platform != "linux" and os.geteuid() == 0, reason="root may read everything"
)
def test_a_folder_that_cannot_be_read_is_told(registry: Registry, collection: Path) -> None:
    write_lora(collection / "private/a.safetensors", 9)
    (collection / "private").chmod(0)
    line = ("--registry", registry.location.database, "import", "--json")
    try:
        done = run_concept(*line, collection, prelude=UNPRIVILEGED)
        alone = run_concept(*line, collection / "private", prelude=UNPRIVILEGED)
    finally:
        (collection / "private").chmod(0o700)
    [refused] = [each for each in json.loads(done.stdout)["files"] if each["outcome"] == "refused"]
    assert refused["path"] == str(collection / "private")
    assert refused["message"] == "the folder cannot be read: Permission denied"
    assert (done.returncode, alone.returncode) == (0, 2)
    assert len(registry.names()) == 3


@pytest.mark.parametrize("name", BAD)
def test_a_single_file_that_is_none_is_an_error(registry: Registry, run: Run, name: str) -> None:
    if not name.endswith(".gguf"):
        Path(name).write_bytes(BAD[name][0]())
        result = run("import", name)
        assert result.exit_code == 2
        assert BAD[name][1] in result.stderr
        assert result.stderr.count("\n") == 1
    assert registry.names() == []


def test_equal_tensors_under_another_header_are_found(registry: Registry, run: Run) -> None:
    write_lora(Path("a.safetensors"), 1)
    write_lora(Path("b.safetensors"), 1, output_name="b")
    run("import", "a.safetensors")
    assert run("import", "b.safetensors").stderr == "b.safetensors is there already, as a\n"


def test_what_a_known_file_does_not_take_is_told(registry: Registry, run: Run) -> None:
    write_lora(Path("a.safetensors"), 1)
    said = ("--trigger", "ohwx man", "--category", "man", "--tag", "bought")
    run("import", "a.safetensors", *said)
    known = "a.safetensors is there already, as a\n"
    assert run("import", "a.safetensors", *said).stderr == known
    said = ("--trigger", "ohwx dog", "--category", "dog", "--tag", "bought", "--tag", "old")
    assert run("import", "a.safetensors", *said).stderr == known + (
        "warning: a.safetensors keeps the category man -> concept edit a --category WORD\n"
        "warning: a.safetensors gets no tag old -> concept edit a --tag old\n"
        "warning: a.safetensors keeps what prompts say for it"
        " -> concept rm a, and import it again\n"
    )


def test_names(registry: Registry, run: Run) -> None:
    write_lora(Path("one/Rex.safetensors"), 1)
    write_lora(Path("two/rex.safetensors"), 2)
    write_lora(Path("龙/龙.safetensors"), 3)
    write_lora(Path("My Dog/pytorch_lora_weights.safetensors"), 4)
    run("import", ".")
    assert registry.names() == ["imported", "my-dog", "rex", "rex-2"]
    write_lora(Path("other.safetensors"), 5)
    result = run("import", "other.safetensors", "--as", "rex")
    assert (result.exit_code, result.stderr) == (2, 'error: "rex" is taken -> concept show rex\n')
    assert run("import", "other.safetensors", "--as", "max").exit_code == 0


WRONG = {
    "a name for many": (["import", "loras", "--as", "rex"], "is a folder"),
    "a category": (["import", "loras", "--category", "<dog>"], "not a category"),
    "a tag": (["import", "loras", "--tag", "A B"], "is not a tag"),
    "brackets": (["import", "loras", "--trigger", "<rex>"], "cannot stand in a prompt"),
    "a bundle": (["import", "x.concept", "--trigger", "rex"], "a bundle takes no"),
    "nothing": (["import", "empty"], "holds no weights"),
}


@pytest.mark.parametrize("words", WRONG)
def test_wrong_usage_is_one_line(
    registry: Registry, collection: Path, run: Run, words: str
) -> None:
    Path("x.concept").write_text("x")
    Path("empty").mkdir()
    arguments, message = WRONG[words]
    result = run(*arguments)
    assert result.exit_code in (2, 3)
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert registry.names() == []


def test_the_original_bytes_come_back(registry: Registry, collection: Path, run: Run) -> None:
    path = collection / "Ohwx Man.safetensors"
    run("import", str(path))
    result = run("export", "ohwx-man", "again.safetensors", "--format", "original")
    assert result.stdout.splitlines() == [
        "wrote ohwx-man@1 as weights to again.safetensors",
        "in prompts: ohwx man",
    ]
    assert Path("again.safetensors").read_bytes() == path.read_bytes()
    result = run("export", "ohwx-man", "other.safetensors", "--format", "lora-kohya")
    assert result.exit_code == 2
    assert "--format original" in result.stderr
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert f"AutoV2 {digest[:10]}, AutoV3 " in run("show", "ohwx-man").stdout


def test_a_trained_version_has_no_original(trained: Registry, run: Run) -> None:
    result = run("export", "rex", "again.safetensors", "--format", "original")
    assert result.exit_code in (2, 3)
    assert not Path("again.safetensors").exists()


def test_a_wrong_hash_in_a_header_is_said(registry: Registry, ask: Ask) -> None:
    write_embedding(Path("rex.safetensors"), sshs_model_hash="0" * 64)
    [file] = ask("import", "rex.safetensors")["files"]
    assert ["says that its hash is 000000000000" in each for each in file["warnings"]] == [True]


def test_bundles_take_imported_concepts_along(
    registry: Registry, collection: Path, run: Run, ask: Ask, tmp_path: Path
) -> None:
    run("import", str(collection))
    before = ask("show", "ohwx-man")
    run("export", "ohwx-man", "shiny", "some.concept")
    run("rm", "ohwx-man", "shiny", "--yes")
    result = run("import", "some.concept")
    assert (result.exit_code, result.stderr) == (0, "")
    after = ask("show", "ohwx-man")
    assert after["versions"][0]["artifacts"] == before["versions"][0]["artifacts"]
    assert after["runs"][0]["config"] == before["runs"][0]["config"]
    assert ask("path", "ohwx-man")["previews"]


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["eval", "ohwx-man", "--base", "miniature"], "has no photos"),
        (["train", "ohwx-man"], "no photos"),
        (["mask", "ohwx-man"], "no photos"),
        (["caption", "ohwx-man"], "no photos"),
        (["generate", "a dog", "--reference", "ohwx-man"], "no photos"),
        (["generate", "a <ohwx-man>", "-n", "1"], "does not fit miniature"),
    ],
    ids=lambda each: each[0] if isinstance(each, list) else "",
)
def test_what_needs_photos_or_another_base_model_says_so(
    registry: Registry, collection: Path, run: Run, command: list[str], message: str
) -> None:
    run("import", str(collection))
    result = run(*command)
    assert result.exit_code in (2, 3)
    assert message in result.stderr
    assert result.stderr.count("error: ") == 1


def test_an_embedding_beside_what_is_not_read_comes_by_itself(
    registry: Registry, tmp_path: Path, run: Run
) -> None:
    said = {"modelspec.trigger_phrase": "whole-embedding dog"}
    name = "model.diffusion_model.x"
    header = {
        "__metadata__": said,
        name: {"dtype": "F16", "shape": [1], "data_offsets": [0, 2]},
    }
    (tmp_path / "bought").mkdir()
    (tmp_path / "bought/whole.safetensors").write_bytes(framed(header, b"\0\0"))
    write_embedding(tmp_path / "bought/whole-embedding.safetensors", 1)
    result = run("import", str(tmp_path / "bought"))
    assert registry.names() == ["whole-embedding"]
    assert "whole.safetensors" in result.stderr


def write_peft(folder: Path) -> Path:
    """The weights of a layer as PEFT writes them, without their configuration."""
    path = "base_model.model.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    parts = {
        f"{path}.lora_A.weight": ("F32", (1, 320), bytes(4 * 320)),
        f"{path}.lora_B.weight": ("F32", (320, 1), bytes(4 * 320)),
    }
    folder.mkdir()
    file = folder / "adapter_model.safetensors"
    file.write_bytes(raw_safetensors(parts))
    return file


def test_a_kind_that_is_no_word_refuses_its_file_alone(
    registry: Registry, tmp_path: Path, run: Run
) -> None:
    write_lora(tmp_path / "bought/plain.safetensors", 1)
    file = write_peft(tmp_path / "bought/peft")
    (file.parent / "adapter_config.json").write_text('{"peft_type": ["LORA"], "r": 1}')
    result = run("import", str(tmp_path / "bought"))
    assert "it was trained by ['LORA'], which is not read" in result.stderr
    assert registry.names() == ["plain"]


@pytest.mark.skipif(not hasattr(os, "symlink"), reason="the system has no links")
def test_a_link_beside_a_file_of_peft_is_not_followed(
    registry: Registry, tmp_path: Path, run: Run
) -> None:
    file = write_peft(tmp_path / "peft")
    (tmp_path / "elsewhere.json").write_text('{"peft_type": "LORA", "r": 1, "token": "secret"}')
    (file.parent / "adapter_config.json").symlink_to(tmp_path / "elsewhere.json")
    result = run("import", str(file))
    assert "adapter_config.json is not beside it" in result.stderr
    assert registry.names() == []


def pair(folder: Path, stem: str, seed: int = 5) -> Path:
    """A LoRA and the embedding that goes with it, as `concept export` writes them."""
    said = {"modelspec.trigger_phrase": f"{stem}-embedding dog"}
    layer = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k"
    generator = np.random.default_rng(seed)
    tensors = {
        f"{layer}.lora_down.weight": generator.standard_normal((4, 768), np.float32),
        f"{layer}.lora_up.weight": generator.standard_normal((1280, 4), np.float32),
    }
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / f"{stem}.safetensors", metadata=said)
    write_embedding(folder / f"{stem}-embedding.safetensors", seed)
    return folder / f"{stem}.safetensors"


def test_a_pair_whose_name_has_a_space_comes_whole(registry: Registry, run: Run) -> None:
    said = run("import", pair(Path("new"), "my dog")).stdout
    assert said.startswith("imported my-dog: a LoRA and an embedding for SD 1.x, <my-dog>")
    (concept_run,) = registry.show("my-dog").runs
    assert concept_run.config["phrase"] == "{} dog"


def test_a_pair_is_known_when_one_concept_has_both(registry: Registry, run: Run) -> None:
    """Not when its files are in two concepts; nor is an embedding known as half of a pair."""
    first = pair(Path("new"), "rexl")
    apart = Path("apart")
    apart.mkdir()
    (apart / "one.safetensors").write_bytes(first.read_bytes())
    (apart / "two.safetensors").write_bytes(Path("new/rexl-embedding.safetensors").read_bytes())
    assert run("import", "apart").stderr.endswith("2 files: 2 imported\n")
    assert run("import", first, "--as", "whole").stdout.startswith("imported whole: ")
    assert "is there already, as whole" in run("import", first, "--as", "again").stderr
    assert len(registry.show("whole").versions[0].artifacts) == 2
    registry.remove(["one", "two"])
    half = "new/rexl-embedding.safetensors"
    assert run("import", half, "--as", "half").stdout.startswith("imported half: an embedding")
    assert "is there already, as half" in run("import", half).stderr


def test_a_configuration_that_was_corrected_is_not_ignored_in_silence(
    registry: Registry, run: Run
) -> None:
    path, config = Path("adapter_model.safetensors"), Path("adapter_config.json")
    layer = "base_model.model.mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
    tensors = {
        f"{layer}.lora_A.weight": np.ones((4, 768), np.float32),
        f"{layer}.lora_B.weight": np.ones((1280, 4), np.float32),
    }
    save_file(tensors, path)
    for alpha in (4, 400):
        config.write_text(json.dumps({"peft_type": "LORA", "r": 4, "lora_alpha": alpha}))
        said = run("import", path, "--as", f"a{alpha}").stderr
    assert "keeps what adapter_config.json said before -> concept rm a4" in said


@pytest.mark.parametrize("name", ["rex.safetensors", "rex.bin"])
def test_a_bundle_is_known_by_what_it_is(rex: Registry, run: Run, name: str) -> None:
    assert run("export", "rex", "rex.concept").exit_code == 0
    Path("rex.concept").rename(name)
    assert run("import", name, "--as", "max").stdout.startswith("imported max (dog)")
