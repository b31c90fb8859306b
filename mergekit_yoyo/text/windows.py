"""Token windows: what a model reads at once, and which of it counts."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mergekit_yoyo.errors import YoyoError
from mergekit_yoyo.text.reading import Text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LEAST_TOKENS = 8  # of a window: shorter ones say nothing
_DOCUMENTS_TO_SPLIT = 8  # below so many, a text is split by window


@dataclass(frozen=True)
class Window:
    """Tokens that a model reads at once.

    tokens: their ids. counted: the positions [begin, end) whose tokens are to be predicted; what
    stands outside of them is given, such as the beginning of text. document: the number of the
    document that it is of.
    """

    tokens: tuple[int, ...]
    counted: tuple[tuple[int, int], ...]
    document: int = 0

    @property
    def positions(self) -> list[int]:
        """The positions whose tokens are to be predicted, in order."""
        return [position for begin, end in self.counted for position in range(begin, end)]


def token_windows(
    text: Text, tokenizer: "PreTrainedTokenizerBase", length: int, most: int | None = None
) -> list[Window]:
    """Cut each document of a text into windows of at most `length` tokens.

    Each window begins with the beginning of text, where the tokenizer has one, and is read on its
    own. A rest of fewer than `LEAST_TOKENS` tokens is left out.

    Args:
        text: as read.
        tokenizer: of the model that is to read them.
        length: tokens that count in a window, at most.
        most: how many windows at most, taken evenly from all of the text; None: all.

    Raises:
        YoyoError: the text is too short for two windows, so that no half of it could be kept apart.
    """
    first = tokenizer.bos_token_id
    before = () if first is None else (int(first),)
    windows = []
    for number, document in enumerate(text.documents):
        ids = tokenizer(document, add_special_tokens=False, verbose=False)["input_ids"]
        for begin in range(0, len(ids), length):
            tokens = (*before, *ids[begin : begin + length])
            # without a beginning of text nothing stands before the first token to predict it from
            if len(tokens) > LEAST_TOKENS:
                windows.append(Window(tokens, ((1, len(tokens)),), number))
    if len(windows) < 2:
        raise YoyoError(
            f"{text.name}: this text is too short: {len(windows)} windows of {length} tokens, and "
            "two are needed, so that one can be kept apart. Give more text, or shorter windows."
        )
    if most is not None and len(windows) > most:
        windows = [windows[k * len(windows) // most] for k in range(most)]
    return windows


def halves(windows: Sequence[Window], seed: int) -> tuple[list[Window], list[Window]]:
    """Split windows in two halves by chance, the same for the same seed.

    Whole documents go to one side where there are many, so that no half knows the other; windows
    of few documents are dealt one by one.

    Raises:
        YoyoError: there are fewer than two.
    """
    if len(windows) < 2:
        raise YoyoError("a text of one window cannot be split in halves. Give more text.")
    documents = sorted({window.document for window in windows})
    by_document = len(documents) >= _DOCUMENTS_TO_SPLIT
    groups = (
        [[w for w in windows if w.document == document] for document in documents]
        if by_document
        else [[window] for window in windows]
    )
    random.Random(seed).shuffle(groups)
    one: list[Window] = []
    other: list[Window] = []
    for group in groups:
        (one if len(one) <= len(other) else other).extend(group)
    return one, other
