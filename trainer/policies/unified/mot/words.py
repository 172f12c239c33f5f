"""The tokenizer: a folder's own, or one of whole words for a fresh small model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trainer.config import ConfigError

START, END = "<|im_start|>", "<|im_end|>"  # of a text
IMAGE_START, IMAGE_END = "<|vision_start|>", "<|vision_end|>"
_TAGS = (START, END, IMAGE_START, IMAGE_END)
_MARKUP = ("<think>", "</think>", "<sugg>", "</sugg>")
_UNKNOWN = "<unk>"
_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"  # stands for a space inside a token
_LETTERS = tuple(chr(code) for code in range(33, 127))
_WORD, _LETTER = -1.0, -10.0  # log-probabilities: one word always beats its letters


class Words:
    """Texts to ids and back, and the ids of the four tags. Several threads may encode at once.

    Attributes:
        start, end: of a text.
        image_start, image_end: around an image, seen or drawn.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.start, self.end, self.image_start, self.image_end = (self._id(tag) for tag in _TAGS)
        self._unknown = tokenizer.unk_token_id

    @classmethod
    def fresh(cls, words: Sequence[str]) -> Words:
        """Each of `words` is one token, at the beginning of a text and after a space; all else is spelt in letters."""
        from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
        from transformers import PreTrainedTokenizerFast

        pieces = dict.fromkeys((*_TAGS, *_MARKUP, _UNKNOWN), 0.0)
        for word in words:
            pieces |= {word: _WORD, _SPACE + word: _WORD}
        for letter in (*_LETTERS, _SPACE, "\n"):
            pieces.setdefault(letter, _LETTER)
        names = list(pieces.items())
        made = Tokenizer(models.Unigram(names, unk_id=names.index((_UNKNOWN, 0.0)), byte_fallback=False))
        made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
        made.decoder = decoders.Metaspace(prepend_scheme="never")
        made.add_special_tokens([AddedToken(tag, special=True) for tag in _TAGS])
        made.add_tokens([AddedToken(tag, special=False) for tag in _MARKUP])
        kind: Any = PreTrainedTokenizerFast  # its signature has no types
        return cls(kind(tokenizer_object=made, bos_token=START, eos_token=END, pad_token=END, unk_token=_UNKNOWN))

    @classmethod
    def load(cls, folder: Path) -> Words:
        """The folder's; tags that it lacks are added. Raises ConfigError where it has none."""
        from transformers import AutoTokenizer

        try:
            tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        except (OSError, ValueError) as error:
            raise ConfigError(f"{folder}: its tokenizer cannot be read: {error}; download its files too") from error
        if not hasattr(tokenizer, "backend_tokenizer"):
            raise ConfigError(f"{folder} has no tokenizer.json; write it with transformers' fast tokenizer")
        lacking = [tag for tag in _TAGS if tag not in tokenizer.get_vocab()]
        tokenizer.add_tokens(lacking, special_tokens=True)
        return cls(tokenizer)

    def __len__(self) -> int:
        return len(self.tokenizer)

    def encode(self, text: str) -> list[int]:
        """Raises ValueError where a character has no token."""
        # By the tokenizer below: transformers' own sets its truncation at each call, which two threads must not do at once.
        ids: list[int] = self.tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids
        if self._unknown is not None and self._unknown in ids:
            known = set(_LETTERS) | set(" \n")
            odd = next((letter for letter in text if letter not in known), text)
            raise ValueError(f"{odd!r} of {text!r} has no token")
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Without the tags."""
        text: str = self.tokenizer.decode(list(ids), skip_special_tokens=True)
        return text

    def save(self, folder: Path) -> None:
        self.tokenizer.save_pretrained(folder)

    def _id(self, tag: str) -> int:
        return int(self.tokenizer.convert_tokens_to_ids(tag))
