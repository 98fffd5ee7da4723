"""`concept export` in the formats of other tools: what fits is written, or nothing."""

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import AddedToken

from ...models.backbone import TextEncoder
from ...models.bases import find_base, is_believed
from ...models.compatibility import as_invalid_weights
from ...models.hashes import hash_of_folder
from ...models.loading import LoadedBase, load_base, without_bars
from ...models.native import Native, native_of
from ...models.single_file import original_tensors, unet_names
from ...registry import Registry
from ...registry.errors import (
    ConceptryError,
    InvalidInput,
    InvalidWeights,
    StorageError,
    quoted,
)
from ...registry.files import replacing, replacing_folder
from ...registry.hashes import sha256_of
from ...registry.records import Concept, RunRecord, VersionRecord, originals_of
from ..adapter import injected
from ..file_format import AdapterMetadata, read_adapter
from ..merging import merged
from ..prompt_encoding import phrase_of
from ..tensor_file import write_tensors
from ..token_embedding import TokenEmbedding, check_vectors
from ..weight_delta import WeightDelta
from . import layouts
from .metadata import About, Kind, describe, describe_training, thumbnail_of
from .options import MERGING, ExportOptions, Format
from .recognising import HASH_KEY
from .report import (
    ExportedFile,
    ExportReport,
    MergedConcept,
    MergedReport,
    check_target,
    merged_paths,
    paths_of,
)


def export_version(
    registry: Registry,
    concept: Concept,
    version: VersionRecord,
    adapter: Path,
    path: Path,
    options: ExportOptions,
    *,
    on_progress: Callable[[int, int], None] | None = None,
) -> ExportReport:
    """Write a version, whose adapter is in the file `adapter`, in another tool's format.

    `on_progress` gets (done, total) of what takes long.
    Raises `InvalidInput` for what the format cannot hold, before anything is written,
    `AlreadyExists`, `InvalidWeights` for a broken adapter, what `load_base` raises, and
    `StorageError`.
    """
    check_target(registry, [f"{concept.name}@{version.number}"], path, options)
    export = _read_export(registry, concept, version, adapter, path, options, on_progress)
    _check_holds(options.format, export.name, path, export.metadata, export.change)
    _check_options(options, export.change)
    try:
        return export.write()
    except OSError as error:
        raise StorageError(
            f"cannot write {path}: {error.strerror or error}",
            hint="free some space or name another file",
        ) from error


def export_merged(
    registry: Registry,
    versions: Sequence[tuple[Concept, VersionRecord, Path]],
    path: Path,
    options: ExportOptions,
) -> MergedReport:
    """Write versions of several concepts as one model, in another tool's format.

    Their changes of weights are merged (`merged`); each has an embedding, or in a folder words, of
    its own. `versions` have the files of adapters. Raises as `export_version`, and `InvalidInput`
    for versions that cannot be in one model.
    """
    names = [concept.name for concept, _, _ in versions]
    labels = [f"{concept.name}@{version.number}" for concept, version, _ in versions]
    if twice := [name for name in names if names.count(name) > 1]:
        raise InvalidInput(f"{twice[0]} is named twice", hint="name each concept once")
    check_target(registry, labels, path, options)
    exports = [_read_export(registry, *each, path, options) for each in versions]
    changing = [each for each in exports if each.change.names]
    form = options.format
    if not changing and form.name != "diffusers":
        raise InvalidInput(
            f"none of {', '.join(labels)} changes weights of the base model",
            hint="--format embedding, one by one, or --format diffusers",
        )
    for each in exports:
        wanted = form if each.change.names else Format("diffusers")
        wanted = Format("diff") if wanted.name == "svd" else wanted
        _check_holds(wanted, each.name, path, each.metadata, each.change)
        if each.metadata.base_sha256 != exports[0].metadata.base_sha256:
            raise InvalidInput(
                f"{each.name} was trained on another base model than {exports[0].name}",
                hint="concept show NAME says which",
            )
    if options.half and form.name not in MERGING[2:]:
        raise InvalidInput(f"--half is for formats that contain the base model, unlike {form}")
    if options.thumbnail and form.name == "diffusers":
        raise InvalidInput("a folder has no thumbnail", hint="leave out --thumbnail")
    try:
        return _write_merged(exports, labels)
    except OSError as error:
        raise StorageError(
            f"cannot write {path}: {error.strerror or error}",
            hint="free some space or name another file",
        ) from error


def _read_export(
    registry: Registry,
    concept: Concept,
    version: VersionRecord,
    adapter: Path,
    path: Path,
    options: ExportOptions,
    on_progress: Callable[[int, int], None] | None = None,
) -> "_Export":
    """A version to export. Raises `InvalidInput` for one that was imported."""
    name = f"{concept.name}@{version.number}"
    if originals_of(version):
        file = path if path.suffix else path.with_name(f"{concept.name}.safetensors")
        raise InvalidInput(
            f"{name} was imported: it is written as it came, and in no other format",
            hint=f"concept export {name} {quoted(file)} --format original",
        )
    try:
        state, metadata = read_adapter(adapter)
        change = WeightDelta.from_state(state).with_whole_products()
    except InvalidWeights as error:
        raise InvalidWeights(
            f"{name} cannot be exported: {error.message}",
            hint=f"concept train {quoted(concept.name)}",
        ) from error
    return _Export(
        concept=concept,
        version=version,
        path=path,
        options=options,
        metadata=metadata,
        change=change,
        vectors=[state[each] for each in sorted(state) if each.startswith(("token.", "staged."))],
        run=next((each for each in concept.runs if each.run == version.run), None),
        on_progress=on_progress,
        bases={each.base_sha256: each.base for each in concept.runs if is_believed(registry, each)},
    )


# --- before anything is written -------------------------------------------------------------------


def _check_holds(
    wanted: Format, name: str, path: Path, metadata: AdapterMetadata, change: WeightDelta
) -> None:
    """Raise `InvalidInput`, with the nearest format that does, unless a format holds a version."""
    form = wanted.name

    def refused(why: str, *others: str) -> InvalidInput:
        *first, last = others
        said = f"{', '.join(first)} or {last}" if first else last
        return InvalidInput(
            f"{name} {why}", hint=f"concept export {name} {quoted(path)} --format {said}"
        )

    if metadata.references:
        hint = f"concept export {quoted(name.partition('@')[0])} FILE.concept"
        raise InvalidInput(
            f"{name} draws after references, which no format of other tools holds", hint=hint
        )
    texts = {each for each in change.names if each.startswith("text_encoder.")}
    is_embedding = form.startswith("embedding")
    if is_embedding and change.names:
        factors = "lora-diffusers" if change.magnitudes else "lora-kohya"
        nearest = ("diffusers" if texts else "diff") if change.deltas else factors
        raise refused(
            "changes the base model's weights too, which an embedding cannot hold", nearest
        )
    if metadata.stage_order and form != "embedding-mean":
        raise refused(
            "has a token that depends on the timestep, which no other tool knows",
            "embedding-mean (the mean of its vectors, with loss)",
        )
    if form == "embedding-mean" and not metadata.stage_order:
        raise refused("has vectors that are no mean: nothing has to be lost", "embedding")
    if not change.names and not is_embedding and form != "diffusers":
        raise refused("changes no weights of the base model", "embedding", "diffusers")
    loras = ("lora-diffusers",) if change.magnitudes else ("lora-kohya", "lora-diffusers")
    is_lora = not change.deltas
    if texts and form != "diffusers" and not (is_lora and form.startswith("lora")):
        raise refused("changes text encoders too", *(loras if is_lora else ()), "diffusers")
    if form.startswith("lora") and change.deltas:
        raise refused(
            "has whole differences of weights, which a LoRA cannot hold",
            "diff (without loss)",
            "svd:64 (a LoRA, with loss)",
        )
    if form == "svd" and is_lora:
        raise refused("is a LoRA already", *loras)
    if form in ("lora-kohya", "svd") and change.magnitudes:
        raise refused(
            "has magnitudes (DoRA), which other readers of this format apply in another way",
            *(("lora-diffusers",) if is_lora else ()),
            "diff (without loss)",
        )


def _check_options(options: ExportOptions, change: WeightDelta) -> None:
    has_base = options.format.name in ("checkpoint", "diffusers")
    if options.base is not None and options.format.name == "diff" and change.magnitudes:
        return  # which are of the base model's weights
    for is_given, name in ((options.base is not None, "--base"), (options.half, "--half")):
        if is_given and not has_base:
            raise InvalidInput(
                f"{name} is for formats that contain the base model, which {options.format} does "
                "not",
                hint=f"leave out {name}",
            )
    if options.thumbnail and options.format.name == "diffusers":
        raise InvalidInput("a folder has no thumbnail", hint="leave out --thumbnail")


# --- writing --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _Export:
    concept: Concept
    version: VersionRecord
    path: Path
    options: ExportOptions
    metadata: AdapterMetadata
    change: WeightDelta
    vectors: list[Tensor]
    run: RunRecord | None
    on_progress: Callable[[int, int], None] | None
    bases: Mapping[str, str]
    loaded: LoadedBase | None = None

    @property
    def name(self) -> str:
        return f"{self.concept.name}@{self.version.number}"

    @property
    def form(self) -> str:
        return self.options.format.name

    def write(self) -> ExportReport:
        if self.form == "diffusers":
            return self._write_folder()
        about = self.about()
        if self.form.startswith("embedding"):
            return self._write_files({"embedding": self.embedding(about, self.path.stem)})
        beside = paths_of(self.path, self.options.format)[1]
        hint = f"Load the embedding {beside.name} too: prompts name it"
        contents, kept = self.weights(about, self.phrase(beside.stem), hint)
        embedding = self.embedding(about, beside.stem)
        return self._write_files({"weights": contents, "embedding": embedding}, kept)

    def about(self) -> About:
        """What files say of the version."""
        options, run = self.options, self.run
        return About(
            title=self.name,
            category=self.metadata.category,
            method=self.metadata.method,
            created=self.version.created,
            widths=tuple(each.shape[-1] for each in self.vectors),
            base=Path(run.base).name if run else None,
            native=self._native(),
            seed=run.seed if run else None,
            num_photos=len(self.concept.images),
            thumbnail=thumbnail_of(options.thumbnail) if options.thumbnail else None,
        )

    def _native(self) -> Native | None:
        named = self.options.base or self.bases.get(self.metadata.base_sha256)
        with suppress(ConceptryError):  # it may be gone; nothing of it is needed
            return native_of(find_base(named)) if named else None
        return None

    # --- contents ---------------------------------------------------------------------------------

    def embedding(self, about: About, word: str) -> "_Contents":
        """The file of its tokens."""
        vectors, hint = self.vectors, ""
        if self.form == "embedding-mean":
            vectors = [each.float().mean((0, 1))[None] for each in vectors]
            hint = "The mean of vectors that depend on the timestep: it draws less like the subject"
        elif self.form != "embedding":
            hint = f"Goes with the weights of {self.path.name}"
        tensors = layouts.embedding_tensors([each.contiguous() for each in vectors])
        metadata = describe(
            about, "textual-inversion", tensors, trigger=self.phrase(word), hint=hint, title=word
        )
        return _Contents(tensors, metadata)

    def weights(self, about: About, trigger: str, hint: str) -> "tuple[_Contents, float | None]":
        """The file of the change, and how much of it a format with loss keeps."""
        change, kept, metadata = self.change, None, dict[str, str]()
        kind: Kind = "lora"
        if self.form == "svd":
            change, kept = layouts.low_rank(change, self.options.format.rank, self.on_progress)
        if self.form == "checkpoint":
            tensors, kind = self._checkpoint(), "checkpoint"
        elif self.form == "diff":
            if change.magnitudes:  # of which the base model's weights are a part
                change = change.multiplied_out(self.load_base_model().backbone)
            tensors = layouts.difference_tensors(change)
        elif self.form == "lora-diffusers":
            tensors, metadata = layouts.diffusers_tensors(change), layouts.peft_description(change)
        else:
            tensors = layouts.kohya_tensors(change, len(self.vectors))
            ranks = [len(down) for _, down in change.factors.values()]
            metadata = describe_training(about, ranks, self.path.stem)
        metadata |= describe(about, kind, tensors, trigger=trigger, hint=hint)
        return _Contents(tensors, metadata), kept

    def placeholders(self) -> TokenEmbedding:
        """Its tokens, to be injected."""
        names = [f"<{self.name}#{i}>" for i in range(self.metadata.num_tokens)]
        state = {f"token.{i}": each for i, each in enumerate(self.vectors)}
        return TokenEmbedding.from_state(names, state)

    def phrase(self, word: str) -> str:
        """What prompts say, where its tokens are a word."""
        return phrase_of(
            (word,), self.metadata.category, names_category=self.metadata.names_category
        )

    def _checkpoint(self) -> dict[str, Tensor]:
        base = self.load_base_model()
        if base.base.kind == "file":
            tensors = self._changed_file(base)
        else:
            with injected(base.backbone, [self.change]):
                tensors = original_tensors(base.backbone)
        if self.options.half:
            return {
                name: tensor.half() if tensor.is_floating_point() else tensor
                for name, tensor in tensors.items()
            }
        return tensors

    def _changed_file(self, base: LoadedBase) -> dict[str, Tensor]:
        """The base model's own file, in which only the changed tensors are others."""
        backbone = base.backbone
        with as_invalid_weights(base.base):
            tensors = load_file(base.base.source)
        parameters = backbone.parameters("denoiser")
        names = unet_names(parameters.keys())
        for name in self.change.names:
            own = names[name]
            if own not in tensors or tensors[own].shape != parameters[name].shape:
                raise InvalidWeights(f"{base.base.name} has no tensor {own}")
            tensors[own] = self.change.added_to(name, tensors[own])
        return tensors

    def load_base_model(self) -> LoadedBase:
        """The base model that the version was trained on, in float32."""
        if self.loaded is not None:
            return self.loaded
        if (named := self.options.base) is None:
            named = self.bases.get(self.metadata.base_sha256)
        if named is None:
            says = f", which says it was {self.run.base}" if self.run else ""
            raise InvalidInput(
                f"it is not known here what base model {self.name} was trained on{says}",
                hint="--base NAME",
            )
        base = load_base(named, device="cpu")
        if base.sha256 != self.metadata.base_sha256:
            raise InvalidInput(
                f"{self.name} was trained on another base model than {named}", hint="--base NAME"
            )
        self.check(base)
        return base

    def check(self, base: LoadedBase) -> None:
        """Raise `InvalidWeights` unless the version fits a base model."""
        self.change.check(base.backbone)
        shapes = [each.shape for each in self.vectors]
        check_vectors(base.backbone, shapes, [self.metadata.num_tokens])

    # --- files ------------------------------------------------------------------------------------

    def _write_files(
        self, contents: "Mapping[str, _Contents]", kept: float | None = None
    ) -> ExportReport:
        """Write files of one export: all, or none."""
        paths = paths_of(self.path, self.options.format)
        files = _written(zip(paths, contents.items(), strict=True))
        return self._report(self.phrase(paths[-1].stem), files, kept)

    def _write_folder(self) -> ExportReport:
        base = self.load_base_model()
        self.change.inject(base.backbone)
        word = f"<{self.concept.name}>"
        _add_words(base, word, self.vectors)
        file = _saved(base, self.path, self.options)
        return self._report(self.phrase(word), [file])

    def _report(
        self, trigger: str, files: list[ExportedFile], kept: float | None = None
    ) -> ExportReport:
        form = str(self.options.format)
        return ExportReport(self.concept.name, self.version.number, form, trigger, files, kept)


@dataclass(frozen=True, slots=True)
class _Contents:
    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str]


def _written(
    contents: "Iterable[tuple[Path, tuple[str, _Contents]]]",
) -> list[ExportedFile]:
    """Write files with what they hold: all, or none."""
    every = list(contents)
    with ExitStack() as stack:
        for path, (_, each) in every:
            folder = path.parent.resolve()  # which may be a link of the user's
            unfinished = stack.enter_context(replacing(folder / path.name))
            write_tensors(unfinished, each.tensors, each.metadata)
    return [_described(path, holds, each.metadata[HASH_KEY]) for path, (holds, each) in every]


def _saved(base: LoadedBase, path: Path, options: ExportOptions) -> ExportedFile:
    """Write a base model as it is now as a diffusers folder."""
    with replacing_folder(path) as unfinished, without_bars():
        try:
            base.backbone.save(unfinished, half=options.half)
        except SafetensorError as error:  # in which the disk's own is hidden
            raise OSError(str(error)) from error
    size = sum(each.stat().st_size for each in path.rglob("*") if each.is_file())
    return ExportedFile(str(path), "pipeline", size, hash_of_folder(path), None, None)


def _write_merged(exports: "Sequence[_Export]", labels: Sequence[str]) -> MergedReport:
    first = exports[0]
    path, options = first.path, first.options
    abouts = [each.about() for each in exports]  # before anything takes long
    base = first.load_base_model()
    for each in exports:
        each.check(base)
    tokens = [each.placeholders() for each in exports]
    phrases = [
        phrase_of(own.tokens, each.metadata.category, names_category=each.metadata.names_category)
        for own, each in zip(tokens, exports, strict=True)
    ]
    with injected(base.backbone, tokens):
        change = merged(base.backbone, [each.change for each in exports], phrases)
    whole = replace(first, change=change, loaded=base)
    if options.format.name == "diffusers":
        change.inject(base.backbone)
        words = [f"<{each.concept.name}>" for each in exports]
        for each, word in zip(exports, words, strict=True):
            _add_words(base, word, each.vectors)
        files, kept = [_saved(base, path, options)], None
    else:
        _, *beside = paths = merged_paths(path, [each.concept.name for each in exports])
        words = [each.stem for each in beside]
        triggers = [each.phrase(word) for each, word in zip(exports, words, strict=True)]
        about = replace(abouts[0], title=", ".join(labels))
        hint = f"Load {', '.join(each.name for each in beside)} too: prompts name them"
        weights, kept = whole.weights(about, ", ".join(triggers), hint)
        embeddings = [
            ("embedding", each.embedding(about_it, word))
            for each, about_it, word in zip(exports, abouts, words, strict=True)
        ]
        files = _written(zip(paths, [("weights", weights), *embeddings], strict=True))
    merged_concepts = [
        MergedConcept(each.concept.name, each.version.number, each.phrase(word))
        for each, word in zip(exports, words, strict=True)
    ]
    return MergedReport(merged_concepts, str(options.format), files, kept)


def _described(path: Path, holds: str, of_tensors: str) -> ExportedFile:
    with path.open("rb") as file:
        sha256 = sha256_of(file)
    size = path.stat().st_size
    return ExportedFile(str(path), holds, size, sha256, sha256[:10], of_tensors[:12])


def _add_words(base: LoadedBase, word: str, vectors: list[Tensor]) -> None:
    """Add a word with vectors (n, d) to a base model's vocabularies, for good.

    diffusers reads `word` in a prompt as all of `word`, `word_1`, `word_2` and so on.
    """
    words = [word, *(f"{word}_{i}" for i in range(1, len(vectors[0])))]
    for i, (encoder, own) in enumerate(zip(base.backbone.text_encoders, vectors, strict=True)):
        network, tokenizer = encoder.network, copy.deepcopy(encoder.tokenizer)
        tokenizer.add_tokens([AddedToken(each, normalized=False) for each in words])
        ids = [TextEncoder(tokenizer, network).id_of(each) for each in words]
        table = network.get_input_embeddings().get_parameter("weight")
        if max(ids) >= len(table):
            network.resize_token_embeddings(max(ids) + 1, mean_resizing=False)
            table = network.get_input_embeddings().get_parameter("weight")
        with torch.no_grad():
            table[ids] = own.to(table)
        # those from before 2023 say 2, which means the highest id: now that of a word
        network.config.eos_token_id = tokenizer.eos_token_id
        base.backbone.set_tokenizer(i, tokenizer)
