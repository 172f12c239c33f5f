"""The tokenizer HPSv2 was trained with: open_clip's byte-level BPE with its own cleaning of the text.

The CLIP tokenizer of transformers splits words alike but neither repairs text nor resolves HTML entities, normalises to
NFC instead, and knows the special tokens by other names: curly quotes and entities get other ids there. So the cleaning
and the splitting are here, and only the merging of bytes is the `tokenizers` package's.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import ftfy
import regex  # type: ignore[import-untyped]
from tokenizers.models import BPE

CONTEXT_LENGTH = 77
START, END = "<start_of_text>", "<end_of_text>"
_END_OF_WORD = "</w>"
_PIECE = regex.compile(
    rf"{START}|{END}|'(?:s|t|re|ve|m|ll|d)|\p{{L}}+|\p{{N}}|[^\s\p{{L}}\p{{N}}]+",
    regex.IGNORECASE,
)

Merge = tuple[str, str]


@dataclass(frozen=True)
class Tokens:
    """A prompt's ids: CONTEXT_LENGTH of them, from start to end token, padded with 0.

    truncated: how many of the prompt's tokens did not fit and were not seen by the model.
    """

    ids: tuple[int, ...]
    truncated: int


class Tokenizer:
    """Text to ids. `merges` in order of rank; `services.hps.vocabulary.read_merges` reads CLIP's."""

    def __init__(self, merges: Sequence[Merge]) -> None:
        self._letters = _byte_letters()
        singles = list(self._letters.values())
        words = [*singles, *(letter + _END_OF_WORD for letter in singles), *map("".join, merges), START, END]
        ids = {word: number for number, word in enumerate(words)}
        self.vocab_size = len(ids)
        self._special = {word: ids[word] for word in (START, END)}
        self._bpe = BPE(ids, list(merges), end_of_word_suffix=_END_OF_WORD)

    def encode(self, text: str) -> Tokens:
        """Clean, split and merge. Longer texts lose their tail; the end token stays.

        A special token written out in the text becomes that token, as in open_clip.
        """
        found = list(chain.from_iterable(map(self._merge, _PIECE.findall(clean(text)))))
        kept = found[: CONTEXT_LENGTH - 2]
        ids = [self._special[START], *kept, self._special[END]]
        return Tokens((*ids, *[0] * (CONTEXT_LENGTH - len(ids))), len(found) - len(kept))

    def _merge(self, piece: str) -> list[int]:
        if piece in self._special:
            return [self._special[piece]]
        spelled = "".join(self._letters[byte] for byte in piece.encode("utf-8"))
        return [token.id for token in self._bpe.tokenize(spelled)]


def clean(text: str) -> str:
    """Repair mojibake and odd quotes (ftfy), resolve HTML entities twice, single spaces, lower case."""
    repaired = html.unescape(html.unescape(ftfy.fix_text(text)))
    return " ".join(repaired.split()).lower()


def _byte_letters() -> dict[int, str]:
    """A printable letter for every byte, in the order of the vocabulary: printable Latin-1 stands for itself."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + n) for n, byte in enumerate(others)}
