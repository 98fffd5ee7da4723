"""Feed the program odd files of every kind that it reads, and see that it keeps its head.

    python tests/faults/fuzz.py --cases 20000 --seed 1 --json bench/results/fuzz.json
    python tests/faults/fuzz.py --seed 1 --only 137 --keep odd

Each case begins with sound files, makes one of them odd and runs commands on it, in a process that
is forked for it and may not have more than `ROOM` bytes of memory beyond what it begins with.
No command may end as a bug, be killed or hang, nothing may change outside the registry and the
folder for pictures, and no trace may be printed. A case follows from the seed, its number and the
list of kinds. After Ctrl-C the result tells of the cases that were done.
"""

import argparse
import gc
import json
import os
import random
import resource
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import bundles
import fake_training
from conceptry.registry import Registry
from drawing import draw, draw_file, draw_folder
from odd import WORDS, dumped, odd_bytes, odd_csv, odd_safetensors, odd_text, odd_tree, odd_value
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from program import DEADLINE, invoke
from snapshot import files_below

ROOM = 2 << 30
OURS = ("registry", "pictures", "home")
"""What a case may change in its folder."""
BUG = 1
FINE = (0, 2, 3, 4, 5)

Line = list[str]
Make = Callable[[random.Random, "Sound", Path], list[Line]]


@dataclass(frozen=True, slots=True)
class Sound:
    """Sound files, from which odd ones are made; a base model and encoders, if need be."""

    folder: Path
    base: Any = None
    encoders: Any = None

    def read(self, name: str) -> bytes:
        return (self.folder / name).read_bytes()

    def copy(self, name: str, to: Path) -> Path:
        if (self.folder / name).is_dir():
            shutil.copytree(self.folder / name, to)
        else:
            shutil.copy(self.folder / name, to)
        return to


@dataclass(slots=True)
class Outcome:
    """What a series of cases found: how many, exit codes, and what should not have been."""

    cases: Counter[str] = field(default_factory=Counter)
    codes: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    findings: list[dict[str, Any]] = field(default_factory=list)


# --- sound files ----------------------------------------------------------------------------------

SUITE = {
    "about": "places",
    "fits": ["dog"],
    "prompts": [
        {"text": "a {} on the beach", "tests": "place", "sees": {"place": "beach"}},
        {"text": "a red {} by a {second}", "looks": "other", "second": ["mug", "house"]},
    ],
}
PROMPTS = [
    {"prompt": "a <rex> asleep", "n": 1, "seed": 3, "steps": 2, "guidance": 2.5},
    {"prompt": "a cat", "negative": "blurred", "scheduler": "ddim", "size": "16x16"},
]
ALIASES = {"mine": {"source": "./tiny", "about": "one of mine"}, "sd": {"source": "a/b"}}
SETTINGS = ("stage3.steps", "prompts", "optimizer", "seed", "loss.subject_wise", "stage3", "a.b.c")


def make_sound(folder: Path, *, with_models: bool) -> Sound:
    """Files of every kind; models take the large libraries."""
    draw_folder(folder / "photos", 2, size=(96, 96))
    for kind in ("jpg", "webp", "tif", "bmp"):
        draw_file(folder / f"photo.{kind}", 5, (96, 80))
    draw(6, (96, 80), "RGBA").save(folder / "photo.png", exif=Image.Exif())
    draw(7, (96, 80), "L").save(folder / "mask.png")
    (folder / "caption.txt").write_text("a photo of a dog")
    with Registry.open(folder / "registry/concepts.db", create=True) as registry:
        registry.add("rex", [folder / "photos"], category="dog", tags=["pets"])
        fake_training.train(registry, "rex", folder / "weights")
        fake_training.begin(registry, "rex")
        registry.export_bundle(["rex"], folder / "rex.concept")
    if not with_models:
        return Sound(folder)
    from conceptry.models.loading import load_base
    from conceptry.registry.errors import TrainingInterrupted
    from conceptry.training import Hooks, train
    from tiny_base import write_tiny_base

    write_tiny_base(folder / "tiny")
    base = load_base(str(folder / "tiny"))
    shutil.copytree(folder / "registry", folder / "interrupted")
    stopped = iter((False, True, True))
    hooks = Hooks(should_stop=lambda: next(stopped, True))
    words = ["augmentation.crops=2", *(f"stage{i}.steps=2" for i in (1, 2, 3))]
    opened = Registry.open(folder / "interrupted/concepts.db")
    with opened as registry, suppress(TrainingInterrupted):
        train(registry, "rex", base, overrides=words, hooks=hooks)
    return Sound(folder, base, _make_kept(folder, base))


def _make_kept(folder: Path, base: Any) -> Any:
    """A registry with all that is kept beside one; returns the encoders that it was scored with."""
    from conceptry.evaluation.encoder_names import encoder_names_for
    from conceptry.evaluation.encoders import load_encoders
    from conceptry.evaluation.evaluating import evaluate
    from conceptry.evaluation.plan import Plan
    from conceptry.evaluation.suites import find_suite
    from conceptry.generation.prompt_syntax import resolve_prompt
    from conceptry.generation.request import SamplingSettings
    from conceptry.registry.errors import TrainingInterrupted
    from conceptry.training import Hooks, train

    (folder / "suite.txt").write_text("a photo of a {}\n")
    names = encoder_names_for(base.base, clip="miniature", dino="none")
    encoders = load_encoders(names, offline=True)
    with Registry.open(folder / "kept/concepts.db", create=True) as registry:
        registry.add("rex", [folder / "photos"], category="dog")
        words = [word for word in KEPT if "=" in word]
        hooks = Hooks(preview_every=100, checkpoint_every=1)
        train(registry, "rex", base, overrides=words, hooks=hooks)
        plan = Plan(
            chosen=tuple(resolve_prompt(registry, "<rex>")),
            suite=find_suite(str(folder / "suite.txt")),
            encoders=names,
            base="tiny",
            base_sha256=base.sha256,
            seeds=(0, 1),
            settings=SamplingSettings(steps=1),
        )
        evaluate(registry, base, encoders, plan)
        stopped = iter((False,))
        hooks = Hooks(should_stop=lambda: next(stopped, True), preview_every=1)
        with suppress(TrainingInterrupted):
            train(registry, "rex", base, overrides=words[:-2], hooks=hooks)
    return encoders


# --- odd files, and what is run on them -----------------------------------------------------------


def _bundle(rng: random.Random, sound: Sound, folder: Path) -> list[Line]:
    if rng.random() < 0.3:
        (folder / "odd.concept").write_bytes(odd_bytes(rng, sound.read("rex.concept")))
    else:
        parts = bundles.unpack(sound.folder / "rex.concept")
        if rng.random() < 0.3:
            sha256 = rng.choice(list(parts.blobs))
            data = parts.drop(sha256)
            odd = odd_safetensors if data[8:9] == b"{" else odd_bytes
            new = parts.put(odd(rng, data))
            text = json.dumps(parts.manifest).replace(sha256, new)
            manifest: Any = json.loads(text)
            for concept in manifest["concepts"]:
                for each in [*concept["images"], *concept["versions"][0]["artifacts"]]:
                    each["bytes"] = len(parts.blobs[each["sha256"]])
        else:
            manifest = dumped(odd_tree(rng, parts.manifest)).encode()
        bundles.pack(folder / "odd.concept", manifest, parts.blobs)
    registry = folder / "registry"
    registry.mkdir()
    return [
        ["import", "odd.concept"],
        ["list"],
        ["--json", "show", "rex"],
        ["history"],
        ["train", "--all", "--resume", "--base", "nobody"],
        ["train", "rex", "--resume"],
        ["export", "rex", "registry/again.concept"],
        ["gc", "--grace", "0"],
        ["check", "--read-data"],
    ]


def _photo(rng: random.Random, sound: Sound, folder: Path) -> list[Line]:
    name = f"photo.{rng.choice(('png', 'jpg', 'webp', 'tif', 'bmp'))}"
    (folder / name).write_bytes(odd_bytes(rng, sound.read(name)))
    return [["add", "leo", name, "--category", "dog"], ["check", "--read-data"]]


def _mask(rng: random.Random, sound: Sound, folder: Path) -> list[Line]:
    (folder / "masks").mkdir()
    sound.copy("photo.jpg", folder / "photo.jpg")
    (folder / "masks/photo.png").write_bytes(odd_bytes(rng, sound.read("mask.png")))
    return [["add", "leo", "photo.jpg", "--category", "dog", "--masks", "masks"]]


def _caption(rng: random.Random, sound: Sound, folder: Path) -> list[Line]:
    sound.copy("photo.jpg", folder / "photo.jpg")
    (folder / "photo.txt").write_bytes(odd_text(rng, "a photo of a dog\non the beach"))
    return [["add", "leo", "photo.jpg", "--category", "dog"], ["show", "leo"], ["list", "dog"]]


def _words(rng: random.Random, sound: Sound, folder: Path) -> list[Line]:
    """Odd words in the command line itself."""

    def word() -> str:
        text = rng.choice([each for each in WORDS if isinstance(each, str)])
        return text.replace("\0", "").replace("\ud800", "\udcff")

    sound.copy("photo.jpg", folder / "photo.jpg")
    return [
        ["add", "leo", "photo.jpg", "--category", word(), "--notes", word(), "--caption", word()],
        ["add", word(), word(), "--category", "dog"],
        ["show", word()],
        ["list", word(), "--tag", word()],
        ["suites", word()],
        ["generate", word(), "--base", word(), "--size", word()],
        ["eval", "rex", "--suite", word()],
        ["import", word()],
        ["reproduce", word()],
    ]


def _suite(rng: random.Random, sound: Sound, folder: Path) -> list[Line]:
    name = rng.choice(("odd.yaml", "odd.yaml", "odd.txt"))
    (folder / name).write_bytes(_odd_document(rng, SUITE))
    return [["suites", name], ["--json", "suites", name], ["eval", "rex", "--suite", name]]


def _odd_document(rng: random.Random, value: Any) -> bytes:
    if rng.random() < 0.6:
        return dumped(odd_tree(rng, value)).encode("utf-8", "replace")
    import yaml

    return odd_text(rng, yaml.safe_dump(value))


def _prompts(rng: random.Random, sound: Sound, folder: Path) -> list[Line]:
    name = f"odd.{rng.choice(('yaml', 'csv', 'jsonl', 'txt', 'tsv'))}"
    if name.endswith(("csv", "tsv")):
        keys = list(dict.fromkeys(key for each in PROMPTS for key in each))
        data = odd_csv(rng, [keys, *([each.get(key, "") for key in keys] for each in PROMPTS)])
    elif name.endswith("jsonl"):
        lines = [dumped(odd_tree(rng, each)) for each in PROMPTS]
        data = odd_text(rng, "\n".join(lines)) if rng.random() < 0.3 else "\n".join(lines).encode()
    elif name.endswith("txt"):
        data = odd_text(rng, "a <rex> asleep\n# no\na cat\n")
    else:
        data = _odd_document(rng, PROMPTS)
    (folder / name).write_bytes(data)
    return [["generate", "--prompts", name, "--base", "miniature"]]


def _setting(rng: random.Random, sound: Sound, folder: Path) -> list[Line]:
    value = dumped(odd_value(rng))[:20_000]
    if rng.random() < 0.5:
        value = odd_text(rng, "[1, a]").decode("utf-8", "replace").replace("\0", "")[:20_000]
    words = f"{rng.choice(SETTINGS)}={value}"
    return [["train", "rex", "--set", words, "--dry-run"]]


def _aliases(rng: random.Random, sound: Sound, folder: Path) -> list[Line]:
    (folder / "bases.yaml").write_bytes(_odd_document(rng, ALIASES))
    return [["bases"], ["--json", "bases"], ["generate", "a cat", "--base", "nobody"]]


TOLD = {
    "prompt": "a cat",
    "seed": 3,
    "base": "tiny",
    "base_sha256": "",
    "settings": {
        "steps": 1,
        "guidance": 5.0,
        "negative": "",
        "scheduler": None,
        "size": [16, 16],
        "batch_seeds": [2, 3],
        "maps": False,
    },
    "versions": [{"concept": "rex", "version": 1, "sha256": "0" * 64}],
}


def _picture(rng: random.Random, sound: Sound, folder: Path) -> list[Line]:
    told = TOLD | {"base_sha256": sound.base.sha256 if sound.base else "0" * 64}
    if rng.random() < 0.7:
        told |= {"versions": []}
    is_odd = rng.random() < 0.8
    text = PngInfo()
    text.add_itxt(
        "conceptry", dumped(odd_tree(rng, told) if is_odd else told), zip=rng.random() < 0.3
    )
    draw(3, (16, 16)).save(folder / "odd.png", pnginfo=text)
    if not is_odd:
        (folder / "odd.png").write_bytes(odd_bytes(rng, (folder / "odd.png").read_bytes()))
    return [["reproduce", "odd.png", "--base", "tiny"]]


def _base(rng: random.Random, sound: Sound, folder: Path) -> list[Line]:
    sound.copy("tiny", folder / "odd-base")
    files = sorted(path for path in (folder / "odd-base").rglob("*") if path.is_file())
    path = rng.choice(files)
    data = path.read_bytes()
    if path.suffix == ".safetensors":
        path.write_bytes(odd_safetensors(rng, data))
    elif path.suffix == ".json" and rng.random() < 0.7:
        path.write_text(dumped(odd_tree(rng, json.loads(data))))
    elif rng.random() < 0.1:
        path.unlink()
    else:
        path.write_bytes(odd_bytes(rng, data))
    words = ["-n", "1", "--steps", "1", "--size", "16x16", "--offline"]
    return [["generate", "a cat", "--base", "odd-base", *words]]


def _weights(rng: random.Random, sound: Sound, folder: Path) -> list[Line]:
    source = sound.folder / "tiny/unet/diffusion_pytorch_model.safetensors"
    data = source.read_bytes() if source.exists() else b"\x02" + bytes(7) + b"{}"
    (folder / "odd.safetensors").write_bytes(odd_safetensors(rng, data))
    if rng.random() < 0.5 and source.exists():
        sound.copy("tiny", folder / "odd")
    return [
        ["import", "odd.safetensors"],
        ["generate", "a cat", "-n", "1", "--steps", "1", "--base", "odd.safetensors", "--offline"],
    ]


def _resume(rng: random.Random, sound: Sound, folder: Path) -> list[Line]:
    shutil.rmtree(folder / "registry", ignore_errors=True)
    sound.copy("interrupted", folder / "registry")
    (path,) = (folder / "registry").glob("concepts.runs/*/resume.safetensors")
    path.write_bytes(odd_safetensors(rng, path.read_bytes()))
    return [["train", "rex", "--resume", "--base", "tiny", "--preview-every", "0"], ["list"]]


def _cache(rng: random.Random, sound: Sound, folder: Path) -> list[Line]:
    """What is kept to be read again: class pictures, pictures with maps, previews, checkpoints."""
    registry = sound.copy("kept", folder / "registry")
    sound.copy("suite.txt", folder / "suite.txt")
    kept = [*registry.glob("concepts.cache/*/*/*"), *registry.glob("concepts.runs/*/*.png")]
    kept += registry.glob("concepts.runs/*/checkpoint*")
    kept.sort(key=lambda path: (path.name, len(os.listdir(path.parent))))  # a run's id is random
    groups = list(dict.fromkeys(path.relative_to(registry).parts[:2] for path in kept))
    group = rng.choice(groups)
    kept = [path for path in kept if path.relative_to(registry).parts[:2] == group]
    chosen = rng.sample(kept, min(rng.choice((1, 1, 2, 5)), len(kept)))
    for path in chosen:
        _make_odd(rng, path, folder)
    score = ["eval", "rex", "--suite", "suite.txt", "--base", "tiny", "--dino", "none"]
    score += ["--clip", "miniature", "--seeds", "2", "--steps", "1"]
    if "evaluations" in group:
        line = [*score, "--report", "registry/report"]
    elif "class-pictures" in group:
        line = ["train", "rex", "--base", "tiny", "--preview-every", "0", *KEPT]
    elif "previews" in chosen[-1].name:
        line = ["train", "rex", "--resume", "--base", "tiny", "--preview-every", "100"]
    else:
        line = [*score, "--all-checkpoints"]
    return [line, ["show", "rex"], ["check"], ["gc", "--grace", "0"]]


KEPT = ["--set", "augmentation.crops=2"]
for _word in (*(f"stage{i}.steps=1" for i in (1, 2, 3)), "prior.weight=1", "prior.num_images=2"):
    KEPT += ["--set", _word]


def _make_odd(rng: random.Random, path: Path, folder: Path) -> None:
    """Put something else in place of a file, or of the folder that it is in."""
    if path.parent.is_symlink() or not path.is_file():
        return  # its folder is odd already
    what, data = rng.random(), path.read_bytes()
    if what < 0.5 and path.suffix == ".png":
        path.write_bytes(odd_bytes(rng, data))
    elif what < 0.5:
        path.write_bytes(odd_safetensors(rng, data) if data[8:9] == b"{" else odd_bytes(rng, data))
    elif what < 0.6 and path.suffix == ".png":
        size = rng.choice(((1, 1), (16, 24), (3000, 2), (700, 700)))
        mode, kind = rng.choice((("RGB", "GIF"), ("RGB", "EPS"), ("L", "PNG"), ("RGBA", "PNG")))
        draw(4, (16, 16), mode).resize(size).save(path, kind)
    elif what < 0.6:
        path.write_bytes(_odd_tensors(rng, data))
    elif what < 0.65:
        with path.open("wb") as file:
            file.truncate(rng.choice((0, 7, 8, 1 << 20, 1 << 33)))
    elif what < 0.9:
        path.unlink()
        if rng.random() < 0.2:
            os.mkfifo(path)
        elif rng.random() < 0.9:
            path.symlink_to(folder / rng.choice(("outside/kept", "outside", "nowhere", path.name)))
    else:
        shutil.rmtree(path.parent)
        path.parent.symlink_to(folder / rng.choice(("outside", "outside/kept", "nowhere")))


def _odd_tensors(rng: random.Random, data: bytes) -> bytes:
    """A sound file whose tensors have other values, shapes or types."""
    import torch
    from safetensors.torch import load, save

    tensors = load(data)
    if not tensors:
        return odd_bytes(rng, data)
    name = rng.choice(list(tensors))
    value = tensors[name].float()
    changed = (
        torch.full_like(value, rng.choice((float("nan"), float("inf"), 1e30, -1.0, 0.0))),
        value[None],
        value[:0],
        value.reshape(-1),
        value.to(rng.choice((torch.int64, torch.bool, torch.float64, torch.complex64))),
        torch.zeros(rng.choice(((), (1, 2, 1, 50_000), (100, 2, 4, 4)))),
    )
    return save(tensors | {name: rng.choice(changed).contiguous()})


def _database(rng: random.Random, sound: Sound, folder: Path) -> list[Line]:
    sound.copy("registry", folder / "registry")
    path = folder / "registry/concepts.db"
    path.write_bytes(odd_bytes(rng, path.read_bytes()))
    return [["list"], ["--json", "show", "rex"], ["history"], ["check"], ["list", "dog"]]


KINDS: Mapping[str, Make] = {
    "bundle": _bundle,
    "photo": _photo,
    "mask": _mask,
    "caption": _caption,
    "words": _words,
    "suite": _suite,
    "prompts": _prompts,
    "setting": _setting,
    "aliases": _aliases,
    "picture": _picture,
    "database": _database,
}
WITH_MODELS: Mapping[str, Make] = {
    "base": _base,
    "weights": _weights,
    "resume": _resume,
    "cache": _cache,
}
NO_REGISTRY = ("bundle", "database", "resume", "cache")


# --- running --------------------------------------------------------------------------------------


def run_cases(
    numbers: Sequence[int],
    seed: int,
    folder: Path,
    kinds: Mapping[str, Make],
    *,
    on_case: Callable[[int, Outcome], None] | None = None,
    keep: bool = False,
) -> Outcome:
    """Run cases by number in folders under `folder`, until all are done or Ctrl-C."""
    outcome = Outcome()
    with suppress(KeyboardInterrupt):
        _run_cases(numbers, seed, folder, kinds, outcome, on_case, keep)
    return outcome


def _run_cases(
    numbers: Sequence[int],
    seed: int,
    folder: Path,
    kinds: Mapping[str, Make],
    outcome: Outcome,
    on_case: Callable[[int, Outcome], None] | None,
    keep: bool,
) -> None:
    _warm_up(folder / "warm")
    sound = make_sound(folder / "sound", with_models=bool(set(kinds) & set(WITH_MODELS)))
    gc.freeze()
    names = list(kinds)
    for number in numbers:
        rng = random.Random(f"{seed} {number}")
        kind = names[number % len(names)]
        place = folder / f"case-{number}"
        outside = _make_place(place)
        if kind not in NO_REGISTRY:
            sound.copy("registry", place / "registry")
        lines = kinds[kind](rng, sound, place)
        before = _all_but_ours(place)
        endings = _run(lines, sound, place)
        outcome.cases[kind] += 1
        for line, ended in zip(lines, endings, strict=False):
            outcome.codes[kind][str(ended["code"])] += 1
            if ended["code"] in FINE and not ended["trace"]:
                continue
            finding = {"number": number, "kind": kind, "line": [w[:200] for w in line], **ended}
            outcome.findings.append(finding)
        if changed := set(_all_but_ours(place).items()) ^ set(before.items()):
            finding = {"number": number, "kind": kind, "line": lines, "code": "changed"}
            outcome.findings.append(finding | {"told": str(sorted(changed)[:5]), "trace": False})
        del outside
        if not keep:
            shutil.rmtree(place)
        if on_case:
            on_case(number, outcome)


def _warm_up(folder: Path) -> None:
    """Load every library once, for all processes that are forked."""
    import conceptry.evaluation.evaluating
    import conceptry.methods
    import conceptry.models.loading  # noqa: F401

    draw_folder(folder, 2, size=(64, 64))
    registry = ("--registry", folder / "registry/concepts.db")
    for line in (
        ("add", "rex", folder, "--category", "dog"),
        ("export", "rex", folder / "rex.concept"),
        ("import", folder / "rex.concept", "--as", "max"),
        ("list",),
        ("gc",),
        ("check",),
        ("suites",),
        ("bases",),
        ("eval", "rex"),
        ("generate", "a cat", "--base", "nobody"),
        ("train", "rex", "--base", "nobody"),
        ("reproduce", folder / "00.png"),
    ):
        invoke(*line, *registry)


def _make_place(place: Path) -> Path:
    """A folder for a case, with files of the user's that nothing may touch."""
    outside = place / "outside"
    outside.mkdir(parents=True)
    (place / "home").mkdir()
    (outside / "kept").write_text("mine")
    (outside / "deeper").mkdir()
    (outside / "deeper/photo.png").write_bytes(b"mine too")
    for path in (outside / "kept", outside / "deeper/photo.png"):
        os.utime(path, (0, 0))
    return outside


def _all_but_ours(place: Path) -> dict[str, str]:
    return {
        name: told
        for name, told in files_below(place).items()
        if name.partition("/")[0] not in OURS
    }


def _run(lines: Sequence[Line], sound: Sound, place: Path) -> list[dict[str, Any]]:
    """Run commands in a process of their own; how each ended, and the last of what it printed."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        _in_child(lines, sound, place, writing)
    os.close(writing)
    try:
        return _endings(lines, child, reading)
    except BaseException:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        raise


def _endings(lines: Sequence[Line], child: int, reading: int) -> list[dict[str, Any]]:
    with os.fdopen(reading, "rb", buffering=0) as told:
        found: list[dict[str, Any]] = []
        is_in_time = True
        while len(found) < len(lines) and is_in_time:
            is_in_time = bool(select.select([told], [], [], DEADLINE)[0])
            if not is_in_time or not (text := told.readline()):
                break
            found.append(json.loads(text))
        if not is_in_time:
            os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if len(found) < len(lines):
        ended = f"killed by {os.waitstatus_to_exitcode(status)}" if is_in_time else "hangs"
        found.append({"code": ended, "told": "", "trace": False})
    return found


def _in_child(lines: Sequence[Line], sound: Sound, place: Path, writing: int) -> None:
    try:
        os.chdir(place)
        names = {"CONCEPT_REGISTRY": "registry/concepts.db", "HOME": str(place / "home")}
        names |= {"XDG_DATA_HOME": str(place / "home"), "XDG_CONFIG_HOME": str(place / "home")}
        names |= {"HF_HUB_OFFLINE": "1", "TRITON_INTERPRET": "1"}
        os.environ.update(names)
        if os.path.exists("bases.yaml"):
            os.environ["CONCEPT_BASES"] = "bases.yaml"
        _stand_in(sound)
        begun_with = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (begun_with + ROOM, begun_with + ROOM))
        for line in lines:
            done = invoke(*line)
            told = done.output[-500:]
            if done.exit_code == BUG:
                told += invoke(*line, "--debug").output[-2000:]
            ended = {"code": int(done.exit_code), "trace": "Traceback" in done.output}
            os.write(writing, json.dumps(ended | {"told": told}).encode() + b"\n")
    except BaseException:  # noqa: BLE001 (told to the parent)
        ended = {"code": "crashed", "trace": True, "told": traceback.format_exc()[-2000:]}
        os.write(writing, json.dumps(ended).encode() + b"\n")
    finally:
        os._exit(0)


def _stand_in(sound: Sound) -> None:
    """The tiny base model is there already; the miniature, which takes seconds, is not."""
    from conceptry.models import loading
    from conceptry.registry.errors import NotFound

    load_base = loading.load_base

    def load(name: str, **options: Any) -> Any:
        if name == "tiny" and sound.base is not None:
            return sound.base
        if name in ("tiny", "miniature", "nobody"):
            raise NotFound(f"{name} is not loaded here")
        return load_base(name, **options)

    loading.load_base = load
    if sound.encoders is not None:
        from conceptry.evaluation import encoders

        encoders.load_encoders = lambda *_, **__: sound.encoders
    from conceptry.evaluation import running
    from conceptry.models import bases

    find_base = bases.find_base

    def find(name: str) -> Any:
        return (
            bases.Base(name, "folder", str(sound.folder / "tiny"))
            if name == "tiny"
            else find_base(name)
        )

    bases.find_base = running.find_base = find


def _quick_disk() -> str | None:
    """Where a file is on the disk at once, since each is synced; None where nothing is known."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def main() -> None:
    """Run cases as the command line says."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--cases", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", help="some of: " + ", ".join((*KINDS, *WITH_MODELS)))
    parser.add_argument("--only", type=int, nargs="+", help="these cases alone")
    parser.add_argument("--keep", type=Path, help="keep the cases' folders in here")
    parser.add_argument("--json", type=Path, help="write the result there")
    options = parser.parse_args()
    every = {**KINDS, **WITH_MODELS}
    kinds = {name: every[name] for name in (options.kinds or ",".join(every)).split(",")}
    numbers = options.only or range(options.cases)

    def say(number: int, outcome: Outcome) -> None:
        if number % 50 == 49:
            spent = time.perf_counter() - start
            told = f"{number + 1} cases, {len(outcome.findings)} findings, {spent:.0f} s"
            print(told, file=sys.stderr, flush=True)

    start = time.perf_counter()
    with tempfile.TemporaryDirectory(dir=_quick_disk()) as temporary:
        folder = options.keep.absolute() if options.keep else Path(temporary)
        outcome = run_cases(
            numbers, options.seed, folder, kinds, on_case=say, keep=bool(options.keep)
        )
    result = {
        "seed": options.seed,
        "cases": outcome.cases.total(),
        "cases that were wanted": len(numbers),
        "kinds": dict(outcome.cases),
        "findings": outcome.findings,
        "commands by exit code": {
            kind: dict(sorted(codes.items())) for kind, codes in outcome.codes.items()
        },
        "memory beyond the start, at most": ROOM,
        "seconds": round(time.perf_counter() - start, 1),
    }
    print(json.dumps(result, indent=2))
    if options.json:
        sys.path.insert(0, str(Path(__file__).parents[2] / "bench"))
        from environment import describe

        options.json.write_text(json.dumps(describe() | result, indent=2) + "\n")
    sys.exit(bool(outcome.findings))


if __name__ == "__main__":
    main()
