"""Settings: what is read, and what does not fit."""

from typing import Any

import pytest
from conceptry.methods.method import all_methods, find_method, read_presets, resolve_settings
from conceptry.registry.errors import InvalidInput

METHOD = find_method("attndreambooth")


@pytest.mark.parametrize(
    ("words", "name", "value"),
    [
        ("stage3.steps=300", "stage3.steps", 300),
        ("stage3.learning_rate=1e-4", "stage3.learning_rate", 1e-4),
        ("stage3.steps=010", "stage3.steps", 10),
        ("stage3.learning_rate=1", "stage3.learning_rate", 1),
        ("mixed_precision=no", "mixed_precision", "no"),
        ("mixed_precision= bf16", "mixed_precision", "bf16"),
        ("gradient_checkpointing=true", "gradient_checkpointing", True),
        ('prompts=["a photo of {}", "{}"]', "prompts", ("a photo of {}", "{}")),
    ],
)
def test_values_are_read(words: str, name: str, value: Any) -> None:
    assert dict(resolve_settings(METHOD, base="", overrides=(words,)).flat())[name] == value


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("stage3.steps=-1", "stage3.steps is -1: expected 0 to"),
        ("stage3.steps=2.5", "a whole number"),
        ("stage3.steps=true", "a whole number"),
        ("stage3=3", "is a group of settings"),
        ("gradient_checkpointing=yes", "true or false"),
        ("mixed_precision=fp8", "expected"),
        ("prompts=[]", "a list of texts"),
        ('prompts=["a photo"]', "has no {}"),
        ("mixed_precision=fp16", "expected auto or no or bf16"),
        ("stage3.step=1", "there is no setting"),
        ("=1", "sets nothing"),
        ("optimizer=lion", "adamw or adamw8bit or adafactor or prodigy or came or schedule-free"),
        ("optimizer=prodigy", "stage1.learning_rate is 0.001: prodigy finds the rate itself"),
        ("schedule.kind=cosin", "constant_with_warmup or linear or cosine or"),
        ("schedule.kind=piecewise_constant", "schedule.rules is '': expected factors and steps"),
        ("stage3.warmup=10", "stage3.warmup is 10, but schedule.kind=constant has no warm-up"),
        ("loss.kind=l1", "expected l2 or huber"),
        ("noise.density=normal", "expected uniform or logit-normal"),
        ("fused_backward=yes", "true or false"),
        ("noise.lowest=1", "noise.lowest is 1, noise.highest 1: expected a range"),
    ],
)
def test_what_does_not_fit_is_told(words: str, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        resolve_settings(METHOD, base="", overrides=(words,))


SECOND = {"sefi": "network"}
FURTHER = {"dreamtuner": ["instant", "encoder"]}


@pytest.mark.parametrize("name", list(all_methods()))
def test_every_method_has_its_presets_and_they_survive_being_recorded(name: str) -> None:
    method = find_method(name)
    presets = read_presets(method)
    names = [
        "paper",
        SECOND.get(name, "fast"),
        "miniature",
        "8gb",
        *(["8gb-sdxl"] if name != "dreamtuner" else []),
        "12gb",
        "24gb",
        *FURTHER.get(name, []),
    ]
    assert list(presets) == names
    for preset in presets.values():
        assert method.settings().updated(preset.settings.to_mapping()) == preset.settings


def test_textual_inversion_mirrors_photos_and_turns_none() -> None:
    """As its official code; the miniature's preset cuts smaller crops as well."""
    for name, preset in read_presets(find_method("textual-inversion")).items():
        found = preset.settings.augmentation
        smallest = 0.8 if name == "miniature" else 1.0
        assert (found.rotation_probability, found.flip, found.smallest) == (0.0, True, smallest)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("lora.layers=all",), "are for LoRA, but rank is 0"),
        (("schedule.kind=linear", "stage3.warmup=501"), "stage3.warmup is 501: the stage has 500"),
        (("schedule.kind=polynomial", "stage2.learning_rate=1e-7"), "polynomial ends at 1e-07"),
        (("schedule.kind=piecewise_constant", "schedule.rules=1:x,1"), "schedule.rules is '1:x,1'"),
        (("optimizer=schedule-free", "schedule.kind=cosine"), "schedule-free takes the place"),
        (("optimizer=schedule-free", "ema=0.9"), "schedule-free has its own average"),
        (("quantize=8bit",), "freezes the U-Net's weights, which stage2 trains"),
        (("quantize=4bit", "rank=4", "lora.dora=true"), "lora.dora needs whole weights"),
        (("captions.dropout=0.5",), "captions.dropout does nothing without captions.share"),
        (("mask.background=0",), "mask.background does nothing without mask.use"),
        (("schedule.cycles=3", "schedule.kind=cosine"), "does nothing without schedule.kind"),
        (("schedule.rules=1:10,0.1",), "schedule.rules does nothing without schedule.kind"),
        (("noise.logit_std=2",), "noise.logit_std does nothing without noise.density"),
        (("loss.huber_c=0.5",), "loss.huber_c does nothing without loss.kind"),
        (("captions={dropout: 0.5}",), "captions.dropout does nothing without captions.share"),
        (("prior.num_images=3",), "prior.num_images does nothing without prior.weight"),
        (("reference.share=0.5",), "reference.share does nothing without reference.photos"),
        (
            ("augmentation.rotation=20", "augmentation.rotation_probability=0"),
            "augmentation.rotation does nothing without augmentation.rotation_probability",
        ),
        (
            ("augmentation.rotation=0", "augmentation.rotation_probability=0.5"),
            "augmentation.rotation_probability does nothing without augmentation.rotation",
        ),
        (
            ("reference.photos=1", "reference.share=0", "reference.guidance=2"),
            "reference.guidance does nothing without reference.share",
        ),
        (
            ("gradient_accumulation=4", *(f"stage{i}.batch=1" for i in (1, 2, 3))),
            "gradient_accumulation does nothing without STAGE.batch",
        ),
        (
            (
                "loss_reduction=mean",
                *(f"stage{i}.{word}_weight=0" for i in (1, 2, 3) for word in ("mean", "variance")),
            ),
            "loss_reduction does nothing without STAGE.mean_weight",
        ),
        (("stage2.steps=0", "stage2.batch=2"), "stage2.batch does nothing: stage2 has 0 steps"),
        (("stage2.steps=0", "stage3.steps=0", "rank=4"), "rank is for LoRA, but stage1 trains"),
        (
            ("schedule.kind=polynomial", "stage2.text_encoder_rate=1e-8"),
            "stage2.text_encoder_rate is 1e-08: schedule.kind=polynomial ends at 1e-07",
        ),
    ],
)
def test_settings_that_contradict_each_other_are_told(words: tuple[str, ...], message: str) -> None:
    with pytest.raises(InvalidInput, match=message) as error:
        resolve_settings(METHOD, base="", overrides=words)
    assert "--set" in str(error.value.hint)


def test_usual_values_may_be_given_wherever_they_count() -> None:
    words = ("captions.dropout=0", "schedule.cycles=1", "loss.huber_c=0.1", "rank=0")
    assert resolve_settings(METHOD, base="", overrides=words)
    words = ("loss.kind=huber", "loss.huber_c=0.5")
    assert resolve_settings(METHOD, base="", overrides=words).loss.huber_c == 0.5


@pytest.mark.parametrize("name", [name for name, each in all_methods().items() if each.keeps_base])
def test_a_method_without_changes_of_weights_has_no_rank(name: str) -> None:
    with pytest.raises(InvalidInput, match=f"rank is for LoRA, but {name} trains tokens alone"):
        resolve_settings(find_method(name), base="", overrides=("rank=16",))


def test_without_a_training_only_references_have_settings() -> None:
    method = find_method("dreamtuner")
    for words in (("rank=16",), ("unet.batch=2",), ("prior.num_images=3",), ("mask.use=auto",)):
        with pytest.raises(InvalidInput, match=r"does nothing: (no stage has|unet has 0) steps"):
            resolve_settings(method, preset="instant", base="", overrides=words)
    words = ("reference.photos=2", "reference.weight=1.5")
    assert resolve_settings(method, preset="instant", base="", overrides=words)


def test_tokens_alone_can_be_trained_over_few_bits() -> None:
    words = ("quantize=8bit", "stage2.steps=0", "stage3.steps=0")
    assert resolve_settings(METHOD, base="", overrides=words).quantize == "8bit"


def test_a_stage_without_steps_contradicts_nothing() -> None:
    words = ("optimizer=prodigy", "stage1.steps=0", "stage2.steps=0", "stage3.learning_rate=1")
    assert resolve_settings(METHOD, base="", overrides=words).optimizer == "prodigy"


def test_rules_of_a_schedule_are_read_as_they_are_written() -> None:
    words = ("schedule.kind=piecewise_constant", "schedule.rules=1:10,0.1:20,0.01")
    assert resolve_settings(METHOD, base="", overrides=words).schedule.rules == words[1][15:]
