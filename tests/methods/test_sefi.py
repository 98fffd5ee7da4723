"""SeFi-IDE: the subject-wise attention loss, and concepts that are taught in one batch."""

import pickle
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conceptry.adapters.adapter import injected
from conceptry.adapters.file_format import read_adapter
from conceptry.adapters.prompt_encoding import (
    PromptAtTimestep,
    encode_at_timesteps,
    encode_reference,
)
from conceptry.adapters.timestep_tokens import STAGE_ORDER, TimestepTokens, timestep_routing
from conceptry.adapters.token_embedding import TokenEmbedding
from conceptry.generation import Request, SamplingSettings, generate, read_provenance, reproduce
from conceptry.generation.guidance import Denoising, Unguided
from conceptry.generation.injection import expand_prompt, inject_concepts
from conceptry.generation.prompt_syntax import resolve_prompt
from conceptry.generation.regions import subject_columns
from conceptry.generation.sampler import Step
from conceptry.generation.separation import separating
from conceptry.methods.attention_losses import subject_wise_loss
from conceptry.methods.method import all_methods, find_method, resolve_settings
from conceptry.models.backbone import Backbone
from conceptry.models.conditioning import Conditioning
from conceptry.models.loading import LoadedBase
from conceptry.registry import Registry
from conceptry.registry.errors import (
    ConceptryError,
    InvalidInput,
    InvalidWeights,
    NotFound,
    TrainingFailed,
    TrainingInterrupted,
)
from conceptry.training import Trained, resume_many, train, train_many
from conceptry.training.callbacks import Hooks, LearnedAdapters, StepReport
from conceptry.training.checkpoints import read_position
from conceptry.training.trainer import Trainer, run_one
from conceptry.training.training import Subject, Training
from copies import copied, made_with_rex
from long import quick_for
from PIL import Image
from torch import Tensor

PROMPT = "a photo of a <v>"
WORDS = ("augmentation.crops=4", "embedding.steps=4", "embedding.batch=2")


@torch.no_grad()
def loss_of(backbone: Backbone, token: TimestepTokens) -> float:
    return float(subject_wise_loss(distances(backbone, token, conditioning_of(backbone, token))))


def distances(
    backbone: Backbone, token: TimestepTokens, conditioning: Conditioning
) -> dict[str, Tensor]:
    """Of each layer, with latents and a timestep that are always the same."""
    latents = torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(0))
    with injected(backbone, [token, *timestep_routing([token])]):
        reference = encode_reference(backbone, PROMPT, ("<v>",), "dog", 16)
        with backbone.attention.observe(reference=reference[None]) as seen:
            backbone.denoise(latents, torch.tensor([300]), conditioning)
    return seen.distances


def conditioning_of(backbone: Backbone, token: TimestepTokens) -> Conditioning:
    with injected(backbone, [token]):
        return encode_at_timesteps(backbone, [PromptAtTimestep(token, PROMPT, 300)], 16)


def moved(token: TimestepTokens) -> TimestepTokens:
    for parameter in token.learning().values():
        parameter.data += torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    return token


def test_vectors_of_the_category_have_no_loss(backbone: Backbone) -> None:
    token = TimestepTokens.from_word(backbone, "<v>", "dog", num_stages=5)
    assert loss_of(backbone, token) < 1e-10
    assert loss_of(backbone, moved(token)) > 1e-6


@pytest.mark.parametrize("is_detached", [False, True])
def test_only_queries_carry_the_loss_to_the_values(is_detached: bool, backbone: Backbone) -> None:
    """V's vector reaches the loss through the queries of later layers alone."""
    token = moved(TimestepTokens.from_word(backbone, "<v>", "dog", num_stages=5))
    token.begin_pass(0)
    handles = [
        layer.register_forward_hook(lambda _, __, out: out.detach() if is_detached else out)
        for name, layer in backbone.denoiser.named_modules()
        if name.endswith("attn2.to_q")
    ]
    subject_wise_loss(distances(backbone, token, conditioning_of(backbone, token))).sum().backward()
    for handle in handles:
        handle.remove()
    (gradient,) = (parameter.grad for parameter in token.learning().values())
    assert gradient is not None
    keys, values = gradient[1]
    assert keys.any()
    assert values.any() != is_detached


def test_the_reference_has_the_category_in_the_tokens_place(backbone: Backbone) -> None:
    token = TimestepTokens.from_word(backbone, "<v>", "dog", num_stages=2)
    plain = backbone.encode_prompts(["a photo of a dog on the beach"], 16).states[0]
    with injected(backbone, [token]):
        found = encode_reference(backbone, f"{PROMPT} on the beach", ("<v>",), "dog", 16)
    torch.testing.assert_close(found, plain)


def test_words_of_a_long_category_are_lined_up(backbone: Backbone) -> None:
    """The last word of `red dog` stands where the token stands; what follows keeps its meaning."""
    token = TimestepTokens.from_word(backbone, "<v>", "red dog", num_stages=2)
    plain = backbone.encode_prompts(["a photo of a red dog on the beach"], 16).states[0]
    with injected(backbone, [token]):
        found = encode_reference(backbone, f"{PROMPT} on the beach", ("<v>",), "red dog", 16)
    torch.testing.assert_close(found[:5], plain[:5])  # start, a photo of a
    torch.testing.assert_close(found[5:-1], plain[6:])
    torch.testing.assert_close(found[-1], plain[-1])


@pytest.mark.parametrize("category", ["dog", "red dog"])
def test_a_category_that_follows_the_tokens_is_named_once(
    backbone: Backbone, category: str
) -> None:
    """No "red dog red dog": its words stand for themselves, the last one for the token too."""
    token = TokenEmbedding.from_words(backbone, ("<v>",), category)
    plain = backbone.encode_prompts([f"a photo of a {category} on the beach"], 16).states[0]
    words = ("<v>",), category, 16
    with injected(backbone, [token]):
        prompt = f"{PROMPT} {category} on the beach"
        found = encode_reference(backbone, prompt, *words, names_category=True)
    last = 4 + len(category.split())
    torch.testing.assert_close(found[:5], plain[:5])
    torch.testing.assert_close(found[5], plain[last])
    torch.testing.assert_close(found[6:], plain[5:-1])


# --- trainings ------------------------------------------------------------------------------------


def make(
    backbone: Backbone,
    pictures: Sequence[Image.Image],
    name: str = "v",
    method: str = "sefi",
    words: Sequence[str] = WORDS,
    seed: int = 0,
    **hooks: Any,
) -> Training:
    settings = resolve_settings(find_method(method), base="tiny", overrides=tuple(words))
    count = find_method(method).count_tokens(backbone, settings)
    subject = Subject(
        photos=pictures,
        category="dog",
        tokens=tuple(f"<{name}#{i}>" for i in range(count)),
        class_pictures=[photo.resize((16, 16)) for photo in pictures],
    )
    return Training(
        backbone, find_method(method), settings, subject, seed=seed, hooks=Hooks(**hooks)
    )


def state_of(outcome: LearnedAdapters | ConceptryError) -> dict[str, Tensor]:
    assert isinstance(outcome, LearnedAdapters)
    return outcome.state()


@pytest.mark.parametrize("name", quick_for(1, all_methods()))
def test_any_method_takes_the_loss(
    name: str, backbone: Backbone, pictures: list[Image.Image], tmp_path: Path
) -> None:
    """Its value is what the observation says, times λ, and it changes what is learned."""
    stages = [stage.name for stage in find_method(name).stages]
    words = ["augmentation.crops=4", *(f"{s}.{w}" for s in stages for w in ("steps=3", "batch=6"))]
    found: dict[float, list[StepReport]] = {}
    states: dict[float, dict[str, Tensor]] = {}
    for weight in (0.0, 1.0, 2.0):
        found[weight] = []
        training = make(
            backbone,
            pictures,
            method=name,
            words=[*words, f"loss.subject_wise={weight}"],
            on_step=found[weight].append,
        )
        states[weight] = run_one(training, tmp_path / f"{weight}.safetensors").state()
    assert all("subject-wise" not in report.losses for report in found[0.0])
    first = [found[weight][0].losses["subject-wise"] for weight in (1.0, 2.0)]
    assert first[1] == pytest.approx(2 * first[0], rel=1e-4, abs=1e-9)
    assert any(not value.equal(states[2.0][key]) for key, value in states[0.0].items())


def test_a_large_weight_keeps_the_token_at_its_category(
    backbone: Backbone, pictures: list[Image.Image], tmp_path: Path
) -> None:
    words = [*WORDS, "embedding.steps=12", "embedding.learning_rate=0.02"]
    ends: list[float] = []
    for weight in (0.0, 10.0):
        training = make(backbone, pictures, words=[*words, f"loss.subject_wise={weight}"], seed=3)
        learned = run_one(training, tmp_path / f"{weight}.safetensors")
        token = TimestepTokens.from_state("<v>", "dog", learned.state())
        ends.append(loss_of(backbone, token))
    assert ends[1] < 0.5 * ends[0]


@pytest.mark.parametrize(
    "case",
    quick_for(
        1,
        [
            ("sefi", ("parametrisation=network", "embedding.learning_rate=1e-3")),
            ("sefi", ("ema=0.9", "embedding.batch=3", "gradient_accumulation=2")),
            ("textual-inversion", ("prior.weight=1", "max_grad_norm=0.01")),
            ("sefi", ()),
            ("textual-inversion", ("loss.subject_wise=0.1",)),
        ],
    ),
    ids=str,
)
def test_together_each_learns_what_it_learns_alone(
    case: tuple[str, tuple[str, ...]],
    backbone: Backbone,
    pictures: list[Image.Image],
    tmp_path: Path,
) -> None:
    method, extra = case
    words = (*WORDS, *extra)

    def three(**hooks: Any) -> list[Training]:
        photos = [pictures[i:] for i in range(3)]
        return [
            make(backbone, photos[i], f"v{i}", method, words, seed=i, **hooks) for i in range(3)
        ]

    alone = [
        run_one(training, tmp_path / f"alone{i}.safetensors").state()
        for i, training in enumerate(three())
    ]
    paths = [tmp_path / f"{i}.safetensors" for i in range(3)]
    together = [state_of(each) for each in Trainer(three(), paths).run()]
    for own, other in zip(alone, together, strict=True):
        assert own.keys() == other.keys()
        for name, value in own.items():
            torch.testing.assert_close(other[name], value, rtol=1e-3, atol=1e-5)
    assert not alone[0].popitem()[1].allclose(alone[1].popitem()[1], atol=1e-5)


def stops_after(count: int) -> Callable[[], bool]:
    calls = iter(range(1, 1000))
    return lambda: next(calls) >= count


def test_a_batch_that_was_stopped_ends_bit_equal(
    backbone: Backbone, pictures: list[Image.Image], tmp_path: Path
) -> None:
    def two(folder: str, **hooks: Any) -> list[dict[str, Tensor]]:
        trainings = [make(backbone, pictures, f"v{i}", seed=i, **hooks) for i in range(2)]
        paths = [tmp_path / f"{folder}{i}.safetensors" for i in range(2)]
        return [state_of(each) for each in Trainer(trainings, paths).run()]

    whole = two("whole")
    with pytest.raises(TrainingInterrupted, match="after step 2 of 4"):
        two("", should_stop=stops_after(2))
    assert read_position(tmp_path / "1.safetensors") == ((), "embedding", 2)
    done: list[StepReport] = []
    resumed = two("", on_step=done.append)
    assert len(done) == 4
    for own, other in zip(whole, resumed, strict=True):
        assert all(own[name].equal(other[name]) for name in own)


@pytest.mark.parametrize("kind", quick_for(1, ["network", "direct"]))
def test_one_that_fails_leaves_the_others_alone(
    kind: str,
    backbone: Backbone,
    pictures: list[Image.Image],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    words = (*WORDS, f"parametrisation={kind}", "embedding.learning_rate=1e-3")
    paths = [tmp_path / f"{i}.safetensors" for i in range(3)]
    last = make(backbone, pictures, "v2", words=words, seed=2)
    expected = run_one(last, tmp_path / "alone.safetensors").state()
    trainings = [make(backbone, pictures, f"v{i}", words=words, seed=i) for i in range(3)]
    begin = trainings[1].begin

    def begin_broken() -> None:
        begin()
        for parameter in trainings[1].embedding.learning().values():
            parameter.data[:] = float("nan")

    monkeypatch.setattr(trainings[1], "begin", begin_broken)
    first, failed, last = Trainer(trainings, paths).run()
    assert isinstance(first, LearnedAdapters)
    assert isinstance(failed, TrainingFailed)
    assert "step 1: a loss or gradient is not finite" in failed.message
    for name, value in expected.items():
        torch.testing.assert_close(state_of(last)[name], value, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("kind", quick_for(1, ["network", "direct"]))
def test_one_that_has_had_enough_leaves_early(
    kind: str, backbone: Backbone, pictures: list[Image.Image], tmp_path: Path
) -> None:
    words = (*WORDS, f"parametrisation={kind}", "embedding.learning_rate=1e-3")
    reports: list[list[StepReport]] = [[], []]
    trainings = [
        make(
            backbone,
            pictures,
            f"v{i}",
            words=words,
            seed=i,
            on_step=reports[i].append,
            checkpoint_every=1,
            should_finish=lambda i=i: i == 0,
        )
        for i in range(2)
    ]
    Trainer(trainings, [tmp_path / f"{i}.safetensors" for i in range(2)]).run()
    assert [len(each) for each in reports] == [1, 4]


def test_what_changes_the_base_model_is_taught_alone(
    backbone: Backbone, pictures: list[Image.Image], tmp_path: Path
) -> None:
    words = ("augmentation.crops=4", "unet.steps=1")
    two = [make(backbone, pictures, f"v{i}", "dreambooth", words) for i in range(2)]
    with pytest.raises(ValueError, match="expected one training"):
        Trainer(two, [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]).run()


def test_sefi_learns_one_token() -> None:
    with pytest.raises(InvalidInput, match="sefi learns one token"):
        resolve_settings(find_method("sefi"), base="tiny", overrides=("num_tokens=2",))


# --- through a registry ---------------------------------------------------------------------------

SHORT = ("augmentation.crops=2", "embedding.steps=3", "embedding.batch=2")
TOGETHER = Request(
    prompt="<rex> and <mia> asleep", seeds=(1, 2), settings=SamplingSettings(steps=4, guidance=3.0)
)


@pytest.fixture
def two(rex: Registry, pictures: list[Image.Image], tmp_path: Path) -> Registry:
    """rex and mia, who have not been taught."""
    pictures[0].save(tmp_path / "mia.png")
    rex.add("mia", [tmp_path / "mia.png"], category="cat")
    return rex


@pytest.fixture(scope="module")
def made(_one_base: LoadedBase, tmp_path_factory: pytest.TempPathFactory) -> Path:
    def teach(registry: Registry, photos: Path) -> None:
        registry.add("mia", [photos / "00.png"], category="cat")
        words = ("augmentation.crops=2", *(f"stage{i}.steps=1" for i in (1, 2, 3)))
        train(registry, "rex", _one_base, method="sefi", overrides=SHORT)
        train(registry, "mia", _one_base, overrides=words)

    return made_with_rex(tmp_path_factory.mktemp("made"), teach)


@pytest.fixture
def pair(made: Path, tmp_path: Path) -> Iterator[Registry]:
    """rex by sefi, mia by AttnDreamBooth."""
    with copied(made, tmp_path) as registry:
        yield registry


def test_methods_meet_in_a_prompt(pair: Registry, base: LoadedBase, tmp_path: Path) -> None:
    drawn = list(generate(pair, base, [TOGETHER], tmp_path / "out"))
    _, is_same = reproduce(pair, base, drawn[1].path, tmp_path / "again")
    assert is_same
    version = pair.show("rex").versions[-1]
    (artifact,) = version.artifacts
    assert read_adapter(pair.path_of(artifact.sha256))[1].stage_order == STAGE_ORDER


def test_leaks_are_told_for_each_pair_and_direction(
    pair: Registry, base: LoadedBase, tmp_path: Path
) -> None:
    drawn = list(generate(pair, base, [TOGETHER], tmp_path / "a", with_leaks=True, with_maps=True))
    alone = list(generate(pair, base, [TOGETHER], tmp_path / "b", with_leaks=True))
    for picture, other in zip(drawn, alone, strict=True):
        assert [(leak.of, leak.on) for leak in picture.leaks] == [("rex", "mia"), ("mia", "rex")]
        assert all(0 <= leak.share <= 1 for leak in picture.leaks)
        assert picture.leaks == other.leaks
        assert picture.maps is not None
    single = Request(prompt="<rex>", seeds=(1,), settings=TOGETHER.settings)
    (picture,) = generate(pair, base, [single], tmp_path / "c", with_leaks=True)
    assert picture.leaks == []


@pytest.mark.parametrize("scheduler", quick_for(1, ["ddim", "euler"]))
def test_separation_changes_the_picture_and_is_recorded(
    scheduler: str, pair: Registry, base: LoadedBase, tmp_path: Path
) -> None:
    apart = replace(TOGETHER.settings, separate=True, scheduler=scheduler, layout="auto")
    wish = replace(TOGETHER, settings=apart)
    plain = replace(wish, settings=replace(apart, separate=False))
    drawn, usual = (list(generate(pair, base, [each], tmp_path / "out")) for each in (wish, plain))
    assert drawn[0].image.tobytes() != usual[0].image.tobytes()
    assert read_provenance(drawn[1].path).settings == apart
    _, is_same = reproduce(pair, base, drawn[1].path, tmp_path / "again")
    assert is_same
    single = replace(wish, prompt="<rex> asleep")
    with_wish, without = (
        next(generate(pair, base, [replace(single, settings=s)], tmp_path / "b"))
        for s in (apart, plain.settings)
    )
    assert with_wish.image.tobytes() == without.image.tobytes(), "one concept has nothing to keep"


def test_separation_lowers_the_overlap(pair: Registry, base: LoadedBase) -> None:
    """Of the maps of a moved latent, at the same timestep."""
    backbone = base.backbone
    apart = replace(TOGETHER.settings, separate=True)
    with inject_concepts(base, resolve_prompt(pair, TOGETHER.prompt)) as concepts:
        prompt = expand_prompt(TOGETHER.prompt, concepts)
        looks = subject_columns(backbone, prompt, concepts)
        scheduler = backbone.sampling_scheduler(None)
        scheduler.set_timesteps(10)
        latents = torch.randn((2, 4, 8, 8), generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            guidance = Unguided(backbone.encode_prompts([prompt] * 2, 16), Denoising())
        scale, timesteps = scheduler.scale_model_input, scheduler.timesteps
        first, fifth = (Step(backbone, guidance, timesteps, scale, i, latents) for i in (0, 4))
        (separation,) = separating(backbone, looks, apart)

        @torch.no_grad()
        def overlap(at: Tensor) -> Tensor:
            return separation._overlaps(first, at, scheduler.timesteps[1])

        moved = separation.after_step(first)
        assert (overlap(moved) < overlap(latents)).all()
        assert separation.after_step(fifth) is latents


@pytest.mark.long
def test_separation_works_in_half_precision(
    pair: Registry, base: LoadedBase, tmp_path: Path
) -> None:
    """As base models are on a GPU."""
    wish = replace(TOGETHER, settings=replace(TOGETHER.settings, separate=True))
    for dtype in (torch.bfloat16, torch.float16):
        base.backbone.pipeline.to(dtype)
        (picture, _) = generate(pair, base, [wish], tmp_path / str(dtype))
        assert np.asarray(picture.image).std() > 0


def test_a_picture_that_was_watched_for_leaks_is_watched_again(
    pair: Registry, base: LoadedBase, tmp_path: Path
) -> None:
    """Watched layers differ from others in the last bit."""
    picture, _ = generate(pair, base, [TOGETHER], tmp_path / "a", with_leaks=True)
    assert read_provenance(picture.path).with_leaks
    again, is_same = reproduce(pair, base, picture.path, tmp_path / "b")
    assert is_same
    assert again.leaks == picture.leaks
    plain, _ = generate(pair, base, [TOGETHER], tmp_path / "c")
    assert not read_provenance(plain.path).with_leaks


def test_a_damaged_photo_stops_one_concept_of_a_batch(two: Registry, base: LoadedBase) -> None:
    path = two.path_of(two.show("mia").images[0].sha256)
    path.chmod(0o600)
    path.write_bytes(b"nothing")
    failed, done = train_many(two, ["mia", "rex"], base, method="sefi", overrides=SHORT)
    assert isinstance(failed, ConceptryError)
    assert isinstance(done, Trained)
    assert [run.status for name in ("mia", "rex") for run in two.show(name).runs] == [
        "failed",
        "done",
    ]


def test_a_damaged_resume_point_stops_one_concept_of_a_batch(
    two: Registry, base: LoadedBase
) -> None:
    hooks = {"rex": Hooks(should_stop=stops_after(2))}
    train_many(two, ["rex", "mia"], base, method="sefi", overrides=SHORT, hooks=hooks)
    run = two.resumable_run("mia").run
    (two.run_folder(run) / "resume.safetensors").write_bytes(b"nothing")
    done, failed = resume_many(two, ["rex", "mia"], base)
    assert isinstance(done, Trained)
    assert isinstance(failed, InvalidWeights)
    assert two.resumable_run("mia").status == "interrupted"


def test_errors_can_be_sent_to_another_process(rex: Registry) -> None:
    with pytest.raises(NotFound) as caught:
        rex.show("rx")
    sent = pickle.loads(pickle.dumps(caught.value))
    assert (type(sent), sent.message, sent.hint) == (
        type(caught.value),
        caught.value.message,
        caught.value.hint,
    )


def test_several_are_taught_in_one_batch_and_one_that_cannot_be_is_told(
    two: Registry, base: LoadedBase
) -> None:
    names = ["rex", "nobody", "mia"]
    first, failed, last = train_many(two, names, base, method="sefi", overrides=SHORT)
    assert isinstance(first, Trained)
    assert isinstance(last, Trained)
    assert (first.concept, first.together, last.concept, last.version) == ("rex", 2, "mia", 1)
    assert isinstance(failed, NotFound)
    assert [run.status for name in ("rex", "mia") for run in two.show(name).runs] == ["done"] * 2
    with pytest.raises(InvalidInput, match="one concept at a time"):
        train_many(two, names, base, method="dreambooth")


def test_a_batch_that_was_interrupted_goes_on_together(two: Registry, base: LoadedBase) -> None:
    hooks = {"rex": Hooks(should_stop=stops_after(2))}
    stopped, same = train_many(
        two, ["rex", "mia"], base, method="sefi", overrides=SHORT, hooks=hooks
    )
    assert isinstance(stopped, TrainingInterrupted)
    assert same is stopped
    assert stopped.message.startswith("rex, mia: stopped")
    assert stopped.hint == "concept train rex mia --resume"
    assert [two.resumable_run(name).method for name in ("rex", "mia")] == ["sefi"] * 2
    done = resume_many(two, ["rex", "mia"], base)
    assert [each.together for each in done if isinstance(each, Trained)] == [2, 2]
    one = train(two, "rex", base, method="sefi", overrides=SHORT)
    states = [
        read_adapter(two.path_of(two.show("rex").versions[i].artifacts[0].sha256))[0]["staged.0"]
        for i in range(2)
    ]
    assert one.version == 2
    torch.testing.assert_close(states[0], states[1], rtol=1e-3, atol=1e-5)
