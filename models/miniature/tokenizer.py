"""The miniature's tokenizer: CLIP's, with the words of the synthetic scenes as whole tokens.

Any other word is spelt in bytes, so nothing is unknown.
"""

from transformers import CLIPTokenizer

from .world.identities import CATEGORIES, COLOURS, PATTERNS
from .world.places import ACCESSORIES, PLACES
from .world.scenes import RELATIONS

MAX_TOKENS = 77
START, END = "<|startoftext|>", "<|endoftext|>"
"""The marks of a text's beginning and its end; CLIP pads with the latter."""

_TEMPLATE_WORDS = """a an and the of with in on to at for photo picture image drawing pencil sketch
stripes spots checks background s close up rendering art painting style cute small big new old nice
two three one animal thing toy plush face person man woman child its his her"""


def make_tokenizer() -> CLIPTokenizer:
    """Build the tokenizer; the same words give the same ids everywhere."""
    alphabet = list(_bytes_to_characters().values())
    vocabulary = [*alphabet, *(character + "</w>" for character in alphabet)]
    merges: list[tuple[str, str]] = []
    for word in _words():
        first, *others = _split(word, merges)
        for other in others:
            merges.append((first, other))
            vocabulary.append(first := first + other)
    vocabulary += [START, END]
    return CLIPTokenizer(
        vocab={token: number for number, token in enumerate(vocabulary)},
        merges=merges,  # pyright: ignore[reportArgumentType]
        model_max_length=MAX_TOKENS,
    )


def _split(word: str, merges: list[tuple[str, str]]) -> list[str]:
    """What byte-pair encoding makes of a word: the earliest merge that fits goes first."""
    pieces = [*word[:-1], word[-1] + "</w>"]
    for first, second in merges:
        i = 0
        while i < len(pieces) - 1:
            if (pieces[i], pieces[i + 1]) == (first, second):
                pieces[i : i + 2] = [first + second]
            i += 1
    return pieces


def _words() -> list[str]:
    texts = [*CATEGORIES, *COLOURS, *PATTERNS, *ACCESSORIES, *PLACES, *RELATIONS, _TEMPLATE_WORDS]
    return sorted({word for text in texts for word in text.split() if len(word) > 1})


def _bytes_to_characters() -> dict[int, str]:
    """The printable stand-in of each byte in byte-level BPE, as GPT-2 and CLIP have it."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    stand_ins = {byte: chr(byte) for byte in printable}
    return stand_ins | {byte: chr(256 + i) for i, byte in enumerate(others)}
