"""The field's own scripts beside ours: the same individuals, steps, class pictures and ruler.

    python bench/peers.py --diffusers DIFFUSERS/examples --attndreambooth OFFICIAL --out runs/peers
    python bench/peers.py … --out runs/a --split tuning --concepts 3 --peers dreambooth

Peers are diffusers' train_dreambooth.py, train_dreambooth_lora.py and textual_inversion.py, and the
official train_attndreambooth.py, from folders that you name (a checkout of huggingface/diffusers,
of lyuPang/AttnDreamBooth); those without a folder are left out. Nothing of them is in this
repository. Each teaches each individual of bench/methods.py from the same photos, with the steps,
rate, batch and class pictures of our preset `miniature` and all else as the script has it: once
with equal steps, once with as many steps as take our time (--equal-seconds). What it learned is
taken over as a version without loss, so pictures are drawn and scored by the same code.

Prompts name the subject as the script's users do: "sks dog" for DreamBooth (the two pieces that the
miniature's tokenizer makes of sks), a placeholder for Textual Inversion, a placeholder and the
category for AttnDreamBooth. Individuals are taught with --training-seeds different seeds, and
scores are means over them. Interrupted, it goes on where it was. Intervals of differences are from
resampling individuals.

With all individuals of the split `measured`, writes bench/results/peers.json and peers.png; else
the same into the folder --out.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from conceptry.adapters.file_format import AdapterMetadata, write_adapter
from conceptry.adapters.token_embedding import TokenEmbedding
from conceptry.adapters.weight_delta import WeightDelta
from conceptry.evaluation.suites import find_suite
from conceptry.methods import find_method
from conceptry.models.sd import StableDiffusion
from conceptry.registry.hashes import sha256_of_json
from conceptry.training.class_pictures import class_pictures
from environment import is_as_published
from laboratory import (
    BARE_WAY,
    Individual,
    Laboratory,
    Row,
    Way,
    opened,
    parser,
    write_results,
)
from safetensors.torch import load_file
from torch import Tensor

RESULTS = Path(__file__).parent / "results"
SHOWN = (0, 5, 8, 10)
HEADLINES = ("identity", "likeness", "recognised", "seen", "both", "drift")
RARE = "sks"
LORA_RANK = 16


# --- peers ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Lesson:
    """What a script is to teach: photos and class pictures in folders, and our own settings."""

    who: Individual
    folder: Path
    base: Path
    photos: Path
    class_pictures: Path
    settings: Any
    seed: int
    size: int
    """Side in pixels of what the base model draws."""

    @property
    def category(self) -> str:
        """The individual's."""
        return self.who.identity.category


@dataclass(frozen=True, slots=True)
class Peer(ABC):
    """A script, and the way of ours that it is compared with."""

    label: str
    script: Path
    ours: Way

    @abstractmethod
    def teach(self, lesson: Lesson, share: float) -> None:
        """Run the script with a share of our steps, 1 for all."""

    @abstractmethod
    def learned(self, lesson: Lesson, backbone: StableDiffusion) -> dict[str, Tensor]:
        """What it wrote, as an adapter's tensors."""

    def run(self, lesson: Lesson, output: Path, **flags: object) -> None:
        """Run the script with flags; True stands for a flag alone."""
        output.mkdir(parents=True, exist_ok=True)
        given = {
            "pretrained_model_name_or_path": lesson.base,
            "output_dir": output,
            "resolution": lesson.size,
            "seed": lesson.seed,
            "lr_scheduler": "constant",
            "lr_warmup_steps": 0,
        } | flags
        words = [word for name, value in given.items() for word in _words(name, value)]
        runner = Path(__file__).with_name("peer_script.py")
        with (lesson.folder / "log.txt").open("a") as log:
            subprocess.run(
                [sys.executable, str(runner), str(self.script), *words],
                stdout=log,
                stderr=subprocess.STDOUT,
                env=os.environ | {"HF_HUB_OFFLINE": "1"},
                check=True,
            )


def _words(name: str, value: object) -> list[str]:
    return [f"--{name}"] if value is True else [f"--{name}", str(value)]


def _stage(lesson: Lesson, name: str) -> Any:
    return lesson.settings.stages()[name]


class DreamBooth(Peer):
    """diffusers' train_dreambooth.py: the whole U-Net, and a rare word."""

    def teach(self, lesson: Lesson, share: float) -> None:
        """With our steps, rate, batch, class pictures and weight of the prior."""
        stage = _stage(lesson, "unet")
        self.run(
            lesson,
            lesson.folder / "result",
            instance_data_dir=lesson.photos,
            instance_prompt=f"a photo of a {RARE} {lesson.category}",
            with_prior_preservation=True,
            class_data_dir=lesson.class_pictures,
            class_prompt=f"a photo of a {lesson.category}",
            prior_loss_weight=lesson.settings.prior.weight,
            num_class_images=lesson.settings.prior.num_images,
            max_train_steps=max(1, round(share * stage.steps)),
            learning_rate=stage.learning_rate,
            train_batch_size=stage.batch,
            checkpointing_steps=1_000_000,
            **self.further(lesson),
        )

    def further(self, lesson: Lesson) -> dict[str, object]:
        """Flags of its own."""
        del lesson
        return {}

    def learned(self, lesson: Lesson, backbone: StableDiffusion) -> dict[str, Tensor]:
        """The differences of the U-Net, and the vectors of the rare word's pieces."""
        return rare_word(backbone) | difference(backbone, load_folder(lesson.folder / "result"))


class DreamBoothLora(DreamBooth):
    """diffusers' train_dreambooth_lora.py."""

    def further(self, lesson: Lesson) -> dict[str, object]:
        """The rank."""
        return {"rank": lesson.settings.rank}

    def learned(self, lesson: Lesson, backbone: StableDiffusion) -> dict[str, Tensor]:
        """What diffusers makes of its file, multiplied out."""
        from diffusers import StableDiffusionPipeline

        pipeline: Any = StableDiffusionPipeline.from_pretrained(lesson.base)
        pipeline.load_lora_weights(lesson.folder / "result")
        pipeline.fuse_lora()
        pipeline.unload_lora_weights()
        return rare_word(backbone) | difference(backbone, pipeline.unet.state_dict())


class TextualInversion(Peer):
    """diffusers' textual_inversion.py, with its own templates."""

    def teach(self, lesson: Lesson, share: float) -> None:
        """With our steps, rate and batch."""
        stage = _stage(lesson, "embedding")
        self.run(
            lesson,
            lesson.folder / "result",
            train_data_dir=lesson.photos,
            placeholder_token="<individual>",
            initializer_token=lesson.category,
            learnable_property="object",
            max_train_steps=max(1, round(share * stage.steps)),
            learning_rate=stage.learning_rate,
            train_batch_size=stage.batch,
            checkpointing_steps=1_000_000,
            save_steps=1_000_000,
        )

    def learned(self, lesson: Lesson, backbone: StableDiffusion) -> dict[str, Tensor]:
        """The vector."""
        del backbone
        (vector,) = load_file(lesson.folder / "result" / "learned_embeds.safetensors").values()
        return {"token.0": vector.reshape(1, -1)}


class AttnDreamBooth(Peer):
    """The official train_attndreambooth.py, in three runs."""

    def teach(self, lesson: Lesson, share: float) -> None:
        """With the steps, rates, batches and weights of our stages."""
        place = lesson.folder
        stages = lesson.settings.stages().items()
        steps = {name: max(1, round(share * stage.steps)) for name, stage in stages}
        tokens = place / "tokens" / f"learned_embeds_steps_{steps['stage1']}.bin"
        between = place / "attention" / f"checkpoint-{steps['stage2']}"
        first: dict[str, object] = {"train_ti": True, "object_token": "individual"}
        first |= {"n_object_embedding": 1, "initialize_token": lesson.category}
        later: dict[str, object] = {"embedding_path": tokens, "only_save_checkpoint": True}
        for stage, output, flags in (
            ("stage1", "tokens", first | {"save_step": steps["stage1"]}),
            ("stage2", "attention", later | {"train_cross_attn": True}),
            ("stage3", "unet", later | {"train_unet": True, "load_from_checkpoint": between}),
        ):
            own = _stage(lesson, stage)
            self.run(
                lesson,
                place / output,
                instance_data_dir=lesson.photos,
                instance_prompt=f"a photo of a {{}} {lesson.category}",
                with_cross_attn_reg=True,
                reg_mean_weight=own.mean_weight,
                reg_var_weight=own.variance_weight,
                max_train_steps=steps[stage],
                checkpointing_steps=steps[stage],
                learning_rate=own.learning_rate,
                train_batch_size=own.batch,
                **flags,
            )

    def learned(self, lesson: Lesson, backbone: StableDiffusion) -> dict[str, Tensor]:
        """The vector, and the differences of the U-Net."""
        (tokens,) = (lesson.folder / "tokens").glob("*.bin")
        (vector,) = torch.load(tokens, weights_only=True).values()
        (last,) = (lesson.folder / "unet").glob("checkpoint-*")
        changed = difference(backbone, load_folder(last))
        return {"token.0": vector.detach().reshape(1, -1)} | changed


def load_folder(folder: Path) -> dict[str, Tensor]:
    """The U-Net in a folder of diffusers."""
    return load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")


def difference(backbone: StableDiffusion, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What a U-Net has become, less the base model's, as `delta.NAME`."""
    own = backbone.parameters("denoiser")
    return WeightDelta({name: weights[name] - own[name].detach() for name in own}).state()


def rare_word(backbone: StableDiffusion) -> dict[str, Tensor]:
    """The vectors of the pieces of `RARE`, as tokens."""
    (encoder,) = backbone.text_encoders
    pieces = encoder.tokenizer(RARE, add_special_tokens=False).input_ids
    table = encoder.network.get_input_embeddings().get_parameter("weight").detach()
    return TokenEmbedding.from_state(pieces, {"token.0": table[pieces]}).state()


def all_peers(diffusers: Path | None, official: Path | None) -> Iterator[Peer]:
    """The peers whose folders are known."""
    lora = Way("dreambooth, LoRA", "dreambooth", (f"rank={LORA_RANK}", "unet.learning_rate=1e-3"))
    for folder, script, kind, label, ours in (
        (diffusers, "dreambooth/train_dreambooth.py", DreamBooth, "dreambooth", None),
        (diffusers, "dreambooth/train_dreambooth_lora.py", DreamBoothLora, lora.label, lora),
        (
            *(diffusers, "textual_inversion/textual_inversion.py"),
            *(TextualInversion, "textual-inversion", None),
        ),
        (official, "train_attndreambooth.py", AttnDreamBooth, "attndreambooth", None),
    ):
        if folder is not None:
            found = (folder / script).resolve()
            if not found.exists():
                sys.exit(f"there is no {found}")
            yield kind(f"{label}, script", found, ours or Way(label, label))


# --- teaching -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class School:
    """Where scripts teach, and what they are given."""

    laboratory: Laboratory
    folder: Path

    @property
    def backbone(self) -> StableDiffusion:
        """The base model."""
        backbone = self.laboratory.base.backbone
        assert isinstance(backbone, StableDiffusion)
        return backbone

    def taught(self, peer: Peer, who: Individual, seed: int, share: float | None = None) -> Way:
        """The way to draw what a script has taught an individual, which it does if need be.

        `share` is that of our steps which takes as long as we did; None stands for equal steps.
        """
        words = [*peer.label.replace(",", "").split(), "seed", str(seed)]
        alias = "-".join([*words, "seconds"] if share else words) + f"-{self._key(peer)}"
        way = replace(peer.ours, label=peer.label, alias=alias)
        if self.laboratory.version(who, way) is None:
            lesson = self._lesson(peer, who, seed, alias)
            begun = time.monotonic()
            peer.teach(lesson, share or 1.0)
            seconds = time.monotonic() - begun
            (lesson.folder / "seconds.json").write_text(json.dumps(seconds))
            self._keep(peer, lesson, alias)
            print(who.name, alias, round(seconds, 1), flush=True)
        return way

    def _key(self, peer: Peer) -> str:
        """A hash of what scripts are asked for: after a change they teach anew."""
        base = self.laboratory.base
        settings = peer.ours.settings(base.base.name).to_mapping()
        return sha256_of_json([settings, base.sha256])[:8]

    def seconds(self, peer: Peer, who: Individual, seed: int) -> float:
        """What a script's steps took: without starting, loading and saving, as of ours."""
        alias = self.taught(peer, who, seed).alias
        whole = json.loads((self._place(who, alias) / "seconds.json").read_text())
        return max(1.0, whole - self._without_steps(peer, who))

    def _without_steps(self, peer: Peer, who: Individual) -> float:
        """What a script takes for a single step in each of its processes."""
        told = self.folder / "without-steps" / f"{peer.label}-{self._key(peer)}.json"
        if not told.exists():
            lesson = self._lesson(peer, who, 0, f"single-step-{self._key(peer)}")
            begun = time.monotonic()
            peer.teach(lesson, SINGLE_STEP)
            told.parent.mkdir(parents=True, exist_ok=True)
            told.write_text(json.dumps(time.monotonic() - begun))
        return json.loads(told.read_text())

    def class_pictures(self, peer: Peer, who: Individual) -> Path:
        """The folder of an individual's class pictures, which are drawn if the method has any."""
        prior = peer.ours.settings(self.laboratory.base.base.name).prior
        category = who.identity.category
        folder = self.folder / "class-pictures" / category
        if prior.weight and not folder.exists():
            found = class_pictures(
                self.laboratory.registry, self.laboratory.base, category, prior.num_images
            )
            folder.mkdir(parents=True)
            for i, picture in enumerate(found):
                picture.save(folder / f"{i:03}.png")
        return folder

    def _place(self, who: Individual, alias: str) -> Path:
        return self.folder / who.name / alias

    def _lesson(self, peer: Peer, who: Individual, seed: int, alias: str) -> Lesson:
        settings = peer.ours.settings(self.laboratory.base.base.name)
        folder = self._place(who, alias)
        folder.mkdir(parents=True, exist_ok=True)
        base = self.folder / "base"
        if not (base / "model_index.json").exists():
            self.backbone.save(base)
        pictures = self.class_pictures(peer, who)
        photos = self.folder / "photos" / who.name
        size = self.backbone.size
        return Lesson(who, folder, base, photos, pictures, settings, seed, size)

    def _keep(self, peer: Peer, lesson: Lesson, alias: str) -> None:
        state = peer.learned(lesson, self.backbone)
        method = find_method(peer.ours.method)
        path = lesson.folder / "adapter.safetensors"
        metadata = AdapterMetadata(
            base_sha256=self.laboratory.base.sha256,
            method=method.name,
            category=lesson.category,
            num_tokens=len(state["token.0"]),
            names_category=method.names_category,
        )
        write_adapter(path, state, metadata)
        self.laboratory.registry.add_version(lesson.who.name, {path.name: path}, alias=alias)
        path.unlink()


SINGLE_STEP = 1e-9
"""The share of steps that is a single one."""

# --- comparing ------------------------------------------------------------------------------------


def compared(
    school: School, peers: Sequence[Peer], seeds: Sequence[int], *, equal_seconds: bool
) -> Iterator[Row]:
    """A row for each individual and way, with means over seeds of training."""
    laboratory = school.laboratory
    for who in laboratory.subjects:
        yield laboratory.row(who, BARE_WAY, SHOWN)
        for peer in peers:
            ours = [replace(peer.ours, seed=seed) for seed in seeds]
            school.class_pictures(peer, who)  # which are ready for the script too
            for way in ours:
                replace(laboratory, subjects=[who]).teach(way)
            yield mean_row(laboratory, who, ours)
            scripts = [school.taught(peer, who, seed) for seed in seeds]
            yield mean_row(laboratory, who, scripts)
            if equal_seconds:
                yield _in_equal_seconds(school, peer, who, seeds)


def _in_equal_seconds(school: School, peer: Peer, who: Individual, seeds: Sequence[int]) -> Row:
    laboratory = school.laboratory
    ways: list[Way] = []
    for seed in seeds:
        ours = replace(peer.ours, seed=seed)
        share = seconds_of(laboratory, who, ours) / school.seconds(peer, who, seed)
        ways.append(school.taught(peer, who, seed, share))
    return mean_row(laboratory, who, ways) | {"method": f"{peer.label}, our seconds"}


def seconds_of(laboratory: Laboratory, who: Individual, way: Way) -> float:
    """What a training of ours took, with what it began and ended with."""
    from datetime import datetime

    number = laboratory.version(who, way)
    concept = laboratory.registry.show(who.name)
    run = next(each.run for each in concept.versions if each.number == number)
    record = next(each for each in concept.runs if each.run == run)
    assert record.finished is not None
    began, ended = map(datetime.fromisoformat, (record.started, record.finished))
    return (ended - began).total_seconds()


def mean_row(laboratory: Laboratory, who: Individual, ways: Sequence[Way]) -> Row:
    """The row of the first of some ways, with means of the scores of all."""
    rows = [laboratory.row(who, way, SHOWN) for way in ways]
    scores = {
        name: statistics.fmean(row["scores"][name] for row in rows) for name in rows[0]["scores"]
    }
    told = {name: round(scores[name], 3) for name in HEADLINES if name in scores}
    print(who.name, ways[0].label, told, flush=True)
    return rows[0] | {"scores": scores}


def main() -> None:
    asked = parser(__doc__)
    asked.add_argument("--split", choices=["measured", "tuning"], default="measured")
    asked.add_argument("--diffusers", type=Path, metavar="FOLDER", help="its examples")
    asked.add_argument("--attndreambooth", type=Path, metavar="FOLDER", help="the official code")
    asked.add_argument("--peers", nargs="*", metavar="LABEL", help="some of them")
    asked.add_argument("--training-seeds", type=int, default=2)
    asked.add_argument("--equal-seconds", action="store_true")
    options = asked.parse_args()
    peers = list(all_peers(options.diffusers, options.attndreambooth))
    if options.peers:
        peers = [each for each in peers if each.ours.label in options.peers]
    if not peers:
        sys.exit("nobody to compare with: name --diffusers or --attndreambooth")
    with opened(options, options.split) as laboratory:
        school = School(laboratory, options.out)
        seeds = range(options.training_seeds)
        rows = list(compared(school, peers, seeds, equal_seconds=options.equal_seconds))
        is_whole = is_as_published(asked, options, but=("diffusers", "attndreambooth"))
        is_whole = is_whole and bool(options.diffusers and options.attndreambooth)
        write_results(
            laboratory,
            rows,
            (RESULTS if is_whole else options.out) / "peers.json",
            key="methods",
            compared=[(peer.ours.label, f"{peer.label}{end}") for peer in peers for end in ENDS],
            headlines=HEADLINES,
            about={
                "training_seeds": options.training_seeds,
                "prompts": [prompt.text for prompt in find_suite("miniature").prompts],
            },
        )


ENDS = ("", ", our seconds")

if __name__ == "__main__":
    main()
