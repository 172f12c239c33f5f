"""The fixed sentences that stand before rows with reasoning. A published checkpoint expects the ones it was trained with, letter
for letter: name a file with them. Its sha256 tells whether they are those."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from trainer.config.packed import PackedConfig
from trainer.config.paths import nearest_path
from trainer.data.formats.fields import LONGEST_TEXT
from trainer.data.formats.tables import assigned_texts
from trainer.data.prompts.checks import DataError, check_text

THINK = (
    "Before you draw, think about what the image should show and write it down between <think> and </think>. "
    "Then draw the image."
)
REFINE = (
    "Draw an image as you are asked to, then look at what you have drawn: does it show what was asked for, with the right objects, "
    "colours and style, and does it look real? If something should be better, write what to change between <sugg> and </sugg> "
    "and draw the image again."
)
# sha256 of the UTF-8 bytes of UniReason's two sentences, of 208 and 668 characters, as its repository has them.
PUBLISHED = {
    "think": "9af41a830c37c8c71428328f48b06037cd5871b2cc90cd6c97e352f6858057bf",
    "refine": "793f79aed09f179cd8235758475b3a68216fb33dc9ec981aabca4597dab99221",
}
_IN_PYTHON = "prompt"  # the name that UniReason's data sets give the sentence


@dataclass(frozen=True)
class Instructions:
    """Both sentences.

    Attributes:
        notes: what is to be said of the files they come from.
    """

    think: str = THINK
    refine: str = REFINE
    notes: tuple[str, ...] = ()


def read_instructions(config: PackedConfig) -> Instructions:
    """The sentences of `think_instruction` and `refine_instruction`, or this trainer's own. Raises DataError naming the field."""
    think, about_think = _read("think", config.think_instruction, THINK)
    refine, about_refine = _read("refine", config.refine_instruction, REFINE)
    return Instructions(think, refine, (*about_think, *about_refine))


def _read(kind: str, name: str | None, own: str) -> tuple[str, tuple[str, ...]]:
    """A sentence, and what is to be said of it.

    A Python file is read for the text that is assigned to `prompt`, as UniReason's data sets do it; nothing in it is run.
    The line end with which an editor closes a text file is no part of the sentence.
    """
    if name is None:
        return own, ()
    field = f"packed.{kind}_instruction = {name}"
    path = Path(name)
    if path.suffix == ".py":
        texts = assigned_texts(path, _IN_PYTHON)
        if len(set(texts)) != 1:
            raise DataError(
                f"{field}: {len(set(texts))} texts are assigned to `{_IN_PYTHON}` there; save the sentence alone as a text file"
            )
        text = texts[0]
    else:
        text = _text(field, path)
    sha256 = hashlib.sha256(text.encode()).hexdigest()
    published = next((each for each, known in PUBLISHED.items() if known == sha256), None)
    if published not in (None, kind):
        raise DataError(f"{field}: is UniReason's {published} instruction; name it as packed.{published}_instruction")
    what = "UniReason's, as published" if published else "not UniReason's published one, which its checkpoints expect"
    return text, (f"{field} ({len(text)} characters, sha256 {sha256}) is {what}",)


def _text(field: str, path: Path) -> str:
    if not os.path.isfile(path):
        raise DataError(f"{field}: no file at {path.absolute()}; {nearest_path(path)}")
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise DataError(f"{field}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{field}: not UTF-8 text (byte {error.start}); save the file as UTF-8") from error
    return check_text(field, text.removesuffix("\n").removesuffix("\r"), LONGEST_TEXT)
