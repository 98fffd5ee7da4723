"""The words that can be names, categories, tags, and the texts that can be stored."""

import re

import pytest
from conceptry.registry import InvalidInput
from conceptry.registry.names import (
    MAX_FILE_NAME,
    MAX_TEXT,
    check_category,
    check_file_name,
    check_line,
    check_name,
    check_text,
    plain_file_name,
    plain_text,
    printable,
)
from hypothesis import example, given
from hypothesis import strategies as st

ANY_TEXT = st.text(st.characters(codec=None), max_size=100)


@pytest.mark.parametrize("name", ["rex", "r2-d2", "a_b", "0", "7-", "a" * 64])
def test_a_plain_name_is_accepted(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize(
    "name",
    [
        "", " ", "Rex", "my dog", "-rex", "_rex", "a" * 65, "réx", "rex\n", "../rex", "a/b", "a\\b",
        "<rex>", "rex:0.8", "rex@2", "re\0x", "re\x1bx", "\udcff", "rex.", "ｒｅｘ", "٣",
    ],
)  # fmt: skip
def test_another_name_is_refused(name: str) -> None:
    with pytest.raises(InvalidInput, match=re.escape(repr(name))):
        check_name(name)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("Rex", 'try "rex"'),
        ("My Dog!", 'try "my-dog"'),
        ("A" * 70, f'try "{"a" * 64}"'),
        ("!", None),
    ],
)
def test_a_refused_name_comes_with_a_proposal(name: str, hint: str | None) -> None:
    with pytest.raises(InvalidInput) as caught:
        check_name(name)
    assert caught.value.hint == hint


@given(ANY_TEXT)
def test_any_name_is_accepted_as_it_is_or_its_proposal_is(name: str) -> None:
    try:
        assert check_name(name) == name
    except InvalidInput as error:
        if error.hint is not None:
            proposal = error.hint.removeprefix('try "').removesuffix('"')
            assert check_name(proposal) == proposal
    else:
        assert re.fullmatch("[a-z0-9_-]{1,64}", name)


def test_the_message_says_what_was_to_be_named() -> None:
    with pytest.raises(InvalidInput, match="'A B' is not a tag"):
        check_name("A B", "tag")


@pytest.mark.parametrize(
    "category",
    ["dog", "teddy bear", "T-shirt", "child's toy", "Blume", "chien", "犬", "собака", "7up can"],
)
def test_a_plain_word_is_a_category(category: str) -> None:
    assert check_category(category) == category


@pytest.mark.parametrize(
    "category",
    ["कुत्ता", "สุนัข", "cha\N{COMBINING CIRCUMFLEX ACCENT}teau"],
    ids=["hindi", "thai", "decomposed"],
)
def test_a_word_written_with_combining_marks_is_a_category(category: str) -> None:
    check_category(category)


def test_a_category_is_single_spaced() -> None:
    assert check_category("  teddy \t bear\n") == "teddy bear"


@pytest.mark.parametrize(
    "category",
    [
        "",
        "  ",
        "dog, cat",
        "a <b>",
        "dog.",
        "-dog",
        "dog-",
        "a - b",
        "a_b",
        "dog\0",
        "x" * 65,
        "\udcff",
    ],
)
def test_another_category_is_refused(category: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        check_category(category)
    assert caught.value.hint == "for example --category dog"


def test_a_text_is_stripped_and_its_lines_end_as_here() -> None:
    assert check_text("  a dog\r\non a\tsofa \r\n", "caption") == "a dog\non a\tsofa"


@pytest.mark.parametrize("text", ["a\0b", "a\x1b[31mb", "a\rb", "a\x85b", "a\x7fb", "a\udcffb"])
def test_a_text_with_control_characters_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match="the caption is not plain text"):
        check_text(text, "caption")


def test_a_text_is_limited() -> None:
    assert len(check_text("x" * MAX_TEXT, "notes")) == MAX_TEXT
    with pytest.raises(InvalidInput, match="the notes has 10,001 characters; 10,000 is the limit"):
        check_text("x" * (MAX_TEXT + 1), "notes")


@given(ANY_TEXT)
def test_a_checked_text_stays_as_it_is(text: str) -> None:
    try:
        checked = check_text(text, "notes")
    except InvalidInput:
        return
    assert check_text(checked, "notes") == checked
    checked.encode()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("größe 1.jpg", "größe 1.jpg"),
        ("a\nb.jpg", "a\N{REPLACEMENT CHARACTER}b.jpg"),
        ("\udcff.jpg", "\N{REPLACEMENT CHARACTER}.jpg"),
        ("\x1b]0;x\x07.jpg", "\N{REPLACEMENT CHARACTER}]0;x\N{REPLACEMENT CHARACTER}.jpg"),
        ("a\N{RIGHT-TO-LEFT OVERRIDE}b", "a\N{REPLACEMENT CHARACTER}b"),
        ("👩\N{ZERO WIDTH JOINER}🔬", "👩\N{ZERO WIDTH JOINER}🔬"),
        ("3.45\N{NARROW NO-BREAK SPACE}PM.png", "3.45\N{NARROW NO-BREAK SPACE}PM.png"),
        ("赤い\N{IDEOGRAPHIC SPACE}犬", "赤い\N{IDEOGRAPHIC SPACE}犬"),
        ("a\N{LINE SEPARATOR}b", "a\N{REPLACEMENT CHARACTER}b"),
    ],
    ids=["plain", "newline", "surrogate", "escape", "override", "emoji", "mac", "wide", "line"],
)
def test_a_text_is_made_printable(text: str, shown: str) -> None:
    assert printable(text) == shown


@pytest.mark.parametrize("name", ["01.jpg", " a.png", "größe 犬.png", "a\\b.png", "...", "C:x"])
def test_a_plain_file_name_is_accepted(name: str) -> None:
    assert check_file_name(name) == name


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../a", "/a", "a/b", "a/", "a\nb", "a\0", "\udcff"]
)
def test_another_file_name_is_refused(name: str) -> None:
    with pytest.raises(InvalidInput, match="is not a file name"):
        check_file_name(name)


@given(st.text(st.characters(codec=None, exclude_characters="/"), min_size=3))
@example("\x1f" * 100)  # each becomes three bytes
def test_any_file_name_that_is_made_plain_is_accepted(name: str) -> None:
    plain = plain_file_name(name)
    assert check_file_name(plain) == plain
    assert len(plain.encode()) <= MAX_FILE_NAME


@given(ANY_TEXT | st.text(st.sampled_from("\r\n\t\0 a\x1f\x85\u3000"), max_size=6))
def test_any_text_can_be_made_plain(text: str) -> None:
    plain = plain_text(text)
    assert plain_text(plain) == check_text(plain, "notes") == plain
    plain.encode()


def test_a_plain_text_is_cut_and_has_no_space_at_its_end() -> None:
    plain = plain_text("x" * (MAX_TEXT - 1) + "   y")
    assert plain == plain_text(plain) == "x" * (MAX_TEXT - 1)


@pytest.mark.parametrize("text", ["", " a", "a\n", "a\nb", "a\rb", "a\0", "\x1b[0m", "x" * 10_001])
def test_what_is_no_plain_line_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match=r"the host .* is not a line of plain text"):
        check_line(text, "host")
