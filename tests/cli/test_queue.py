"""`concept queue`: what waits, who takes it, and what a failure, a stop and a kill leave."""

import json
import signal
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from conceptry.cli.trainings_shown import TrainingsShown
from conceptry.registry import Registry
from conceptry.training import queued
from drawing import draw_folder
from forked import Forked
from program import Ask, Run, wait_until
from tiny_base import write_tiny_base

SHORT = ["--set", "augmentation.crops=2", "--preview-every", "0"]
SHORT += [word for i in (1, 2, 3) for word in ("--set", f"stage{i}.steps=2")]
LONG = [*SHORT, "--set", "stage3.steps=2000"]

TELLS_OF_A_STEP = """
from pathlib import Path
from conceptry.training import loop
step = loop._Loop._step
def told(self, number):
    step(self, number)
    Path("in a step").touch()
loop._Loop._step = told
"""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_tiny_base(tmp_path_factory.mktemp("bases") / "tiny"))


@pytest.fixture
def three(rex: Registry) -> Registry:
    for name in ("mia", "leo"):
        rex.add(name, [draw_folder(Path(name), 1)], category="cat")
    return rex


def states(registry: Registry) -> list[tuple[str, str]]:
    return [(each.concept, each.state) for each in registry.queue()]


def test_what_waits_is_worked_off_in_turn(three: Registry, run: Run, ask: Ask, tiny: str) -> None:
    added = ask("queue", "add", "rex", "mia", "--base", tiny, *SHORT, "--seed", "3")["added"]
    assert [(each["concept"], each["state"]) for each in added] == [
        ("rex", "waiting"),
        ("mia", "waiting"),
    ]
    assert added[0]["command"].startswith(f"concept train rex --base {tiny} --method attndream")
    assert added[0]["command"].endswith("--seed 3 --preview-every 0")
    ask("queue", "add", "leo", "--first", "--base", tiny, *SHORT)
    assert [name for name, _ in states(three)] == ["leo", "rex", "mia"]
    ask("queue", "first", added[1]["id"])
    assert [name for name, _ in states(three)] == ["mia", "leo", "rex"]
    shown = run("queue", "list").stdout
    assert shown.index("mia") < shown.index("leo") < shown.index("rex")
    three.rename("rex", "max")  # by id: it is known all the same
    done = ask("queue", "run")
    assert [each["concept"] for each in done["runs"]] == ["mia", "leo", "max"]
    assert (done["failed"], done["waiting"]) == ([], [])
    assert three.queue() == []
    assert three.show("max").runs[0].seed == 3
    empty = run("queue", "list")
    assert empty.stdout == ""
    assert "nothing is in the queue" in empty.stderr


def test_a_method_that_keeps_the_base_shares_batches(three: Registry, ask: Ask, tiny: str) -> None:
    words = ["--base", tiny, "--method", "textual-inversion", *SHORT[:4]]
    ask("queue", "add", "rex", "mia", *words, "--set", "embedding.steps=1")
    ask("queue", "add", "leo", *words, "--set", "embedding.steps=2")
    done = ask("queue", "run")["runs"]
    assert [(each["concept"], each["together"]) for each in done] == [
        ("rex", 2),
        ("mia", 2),
        ("leo", 1),
    ]


@pytest.mark.long
def test_what_fails_is_marked_and_the_rest_goes_on(
    three: Registry, run: Run, ask: Ask, tiny: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask("queue", "add", "rex", "--base", tiny, *SHORT)
    ask("queue", "add", "mia", "leo", "--base", tiny, *SHORT)
    three.edit("rex", remove_images=[image.sha256 for image in three.show("rex").images])
    real = queued.train_queued

    def odd(
        registry: Registry, base: Any, trainings: Sequence[Any], *rest: Any, **more: Any
    ) -> Any:
        if trainings[0].concept == "mia":
            raise ZeroDivisionError("no step at all")
        return real(registry, base, trainings, *rest, **more)

    monkeypatch.setattr(queued, "train_queued", odd)
    result = run("--json", "queue", "run")
    document = json.loads(result.stdout)
    assert result.exit_code == 2
    assert [each["concept"] for each in document["runs"]] == ["leo"]
    assert [(each["concept"], each["code"]) for each in document["failed"]] == [
        ("rex", "invalid_input"),
        ("mia", "training_failed"),
    ]
    assert states(three) == [("rex", "failed"), ("mia", "failed")]
    reasons = [each.error or "" for each in three.queue()]
    assert reasons[0].startswith("rex has no photos -> concept add rex")
    assert "ZeroDivisionError: no step at all" in reasons[1]
    listed = run("queue", "list")
    assert "rexhasnophotos" in "".join(listed.stdout.split())  # folded where paths are long
    assert "concept queue run --failed tries again" in listed.stderr
    assert run("queue", "first", str(three.queue()[0].id)).exit_code == 2
    monkeypatch.setattr(queued, "train_queued", real)
    three.add("rex", ["photos"])
    again = ask("queue", "run", "--failed")
    assert [each["concept"] for each in again["runs"]] == ["rex", "mia"]
    assert three.queue() == []


@pytest.mark.parametrize(
    ("words", "exit_code", "text"),
    [
        ([], 2, "name concepts, or ask for all -> concept queue add rex"),
        (["rexx"], 3, "did you mean rex"),
        (["rex", "--method", "dreamboth"], 3, "did you mean dreambooth"),
        (["rex", "--set", "stage3.stepz=1"], 2, "did you mean stage3.steps?"),
        (["rex", "--base", "sd12"], 3, "no base model"),
        (["rex", "--resume"], 3, "concept train rex"),
        (["rex", "--photo", "9"], 3, ""),
        (["rex", "--stop-early"], 2, "needs scores"),
        (["rex", "--eval-every", "1", "--suite", "nobody"], 3, ""),
        (["rex", "--tensorboard", "registry/concepts.blobs"], 2, ""),
        (["bare"], 2, "bare has no photos"),
    ],
)
def test_what_train_would_refuse_is_not_queued(
    rex: Registry, run: Run, words: list[str], exit_code: int, text: str
) -> None:
    rex.add("bare", [draw_folder(Path("bare"), 1)], category="dog")
    rex.edit("bare", remove_images=[rex.show("bare").images[0].sha256])
    result = run("queue", "add", *words)
    assert result.exit_code == exit_code
    assert text in result.stderr
    assert rex.queue() == []


def test_paths_and_photos_are_kept_as_they_are_now(
    rex: Registry, ask: Ask, tiny: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("one.txt").write_text("a photo of a {}")
    here = Path.cwd()
    monkeypatch.chdir(Path(tiny).parent)
    words = ("--photo", "2", "--suite", here / "one.txt", "--tensorboard", "events")
    words += ("--eval-every", "1")
    (added,) = ask("queue", "add", "rex", "--base", "tiny", *words)["added"]
    assert added["options"]["base"] == tiny
    assert added["options"]["photos"] == [rex.show("rex").images[1].sha256]
    assert added["options"]["tensorboard"] == str(Path(tiny).parent / "events")
    ask("queue", "rm", added["id"])
    assert rex.queue() == []


def test_a_number_that_is_not_there(rex: Registry, run: Run) -> None:
    for words in (["rm", "7"], ["first", "7"]):
        result = run("queue", *words)
        assert result.exit_code == 3
        assert "no training 7 in the queue -> concept queue list" in result.stderr
    for words in ([], ["1", "--all"], ["--all", "--failed"]):
        assert run("queue", "rm", *words).exit_code == 2


def test_ctrl_c_leaves_the_current_one_resumable_and_the_rest_waiting(
    three: Registry, run: Run, ask: Ask, tiny: str
) -> None:
    ask("queue", "add", "rex", "--base", tiny, *LONG)
    ask("queue", "add", "mia", "--base", tiny, *SHORT)
    with Forked("queue", "run", prelude=TELLS_OF_A_STEP) as process:
        wait_until(Path("in a step").exists, process)
        refused = run("queue", "rm", str(three.queue()[0].id))
        assert (refused.exit_code, "is under way" in refused.stderr) == (4, True)
        assert states(three) == [("rex", "running"), ("mia", "waiting")]
        process.send_signal(signal.SIGINT)
        _, notes = process.communicate()
    assert process.returncode == 130, notes
    assert "-> concept queue run" in notes
    assert states(three) == [("rex", "interrupted"), ("mia", "waiting")]
    begun = three.queue()[0]
    assert begun.run == three.show("rex").runs[0].run
    assert begun.steps == 2004
    ask("queue", "first", three.queue()[1].id)
    assert states(three)[0] == ("rex", "interrupted"), "what was begun goes first"


@pytest.mark.long
def test_a_kill_loses_nothing_and_the_next_run_goes_on(
    three: Registry, ask: Ask, tiny: str
) -> None:
    ask("queue", "add", "rex", "--base", tiny, *LONG)
    with Forked("queue", "run", prelude=TELLS_OF_A_STEP) as process:
        wait_until(Path("in a step").exists, process)
        process.kill()
    (left,) = three.queue()
    assert left.state == "interrupted"
    with three.claim_queued(lambda _: 1) as taken:
        assert [(each.run, queued.goes_on(three, each)) for each in taken] == [(left.run, True)]
        assert states(three) == [("rex", "running")]
        with (
            Registry.open(three.location.database) as other,
            other.claim_queued(lambda _: 1) as nothing,
        ):
            assert nothing == [], "two runs do not take the same"
    assert states(three) == [("rex", "interrupted")]


def test_what_is_trained_by_hand_is_free_again_when_that_ends(
    three: Registry, ask: Ask, tiny: str
) -> None:
    """Who passed it over holds nothing of it while he trains another."""
    ask("queue", "add", "rex", "mia", "--base", tiny, *LONG)
    with ExitStack() as by_hand:
        by_hand.enter_context(three.training_lock("rex"))
        with three.claim_queued(lambda _: 1) as taken:
            assert [each.concept for each in taken] == ["mia"]
            by_hand.close()
            with (
                Registry.open(three.location.database) as other,
                other.claim_queued(lambda _: 1) as left,
            ):
                assert [each.concept for each in left] == ["rex"]


@pytest.mark.long
def test_what_is_trained_but_not_scored_is_scored_by_the_next_run(
    three: Registry, run: Run, ask: Ask, tiny: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("one.txt").write_text("a photo of a {}")
    scored = ("--eval-every", "1", "--suite", "one.txt", "--clip", "miniature", "--dino", "none")
    ask("queue", "add", "rex", "--base", tiny, *SHORT, *scored)
    with monkeypatch.context() as patched:
        patched.setattr(TrainingsShown, "choose", interrupt)
        assert run("queue", "run").exit_code == 130
    assert states(three) == [("rex", "trained")]
    assert "1 trained" in run("queue", "list").stderr
    done = ask("queue", "run")
    assert [each["version"] for each in done["runs"]] == [1]
    assert [each["concept"] for each in done["best"]] == ["rex"]
    rex = three.show("rex")
    assert (len(rex.runs), three.queue()) == (1, [])
    assert any("best" in each.aliases for each in rex.versions)


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt
