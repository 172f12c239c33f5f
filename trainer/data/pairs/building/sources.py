"""Rows of captions and of questions, merged into images: what is said of an image in both files belongs together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from trainer.config.texts import RowsConfig
from trainer.data.pairs.options import options_of, right_option
from trainer.data.prompts.checks import DataError, check_text, shown
from trainer.data.rows.pictures import COLUMNS, row_images
from trainer.data.rows.table import open_table

Kind = Literal["captions", "questions"]
_QUESTIONS = ("question", "problem", "query", "instruction")
_ANSWERS = ("answer", "solution")
_SHOWN = 3


@dataclass(frozen=True)
class Row:
    """A row of a source.

    Attributes:
        number: its place in the file, from 0, where its features stand.
        place: its file and line, for messages.
        image: the path of its image.
        side: `prompt`, `question` and `answer` as far as it has them, and its other columns.
    """

    number: int
    place: str
    image: str
    side: Mapping[str, Any]

    @property
    def captioned(self) -> bool:
        return "prompt" in self.side

    @property
    def asked(self) -> bool:
        return "question" in self.side and "answer" in self.side


@dataclass(frozen=True)
class Source:
    """A file of rows: those that can be used, how many it has, and a sentence for each that cannot."""

    kind: Kind
    path: Path
    rows: tuple[Row, ...]
    total: int
    problems: tuple[str, ...] = ()


@dataclass(frozen=True)
class Picture:
    """An image with what is said of it.

    Attributes:
        image: its path.
        caption: the side to draw; None where no row has a caption.
        question: the side to ask; None where no row has a question with its answer.
        source, row: where its features are: a source's kind and the row's number.
    """

    image: str
    caption: Mapping[str, Any] | None
    question: Mapping[str, Any] | None
    source: Kind
    row: int

    @property
    def is_complete(self) -> bool:
        """Whether it can be both sides of a pair."""
        return self.caption is not None and self.question is not None


def read_source(kind: Kind, path: Path, image_dir: Path | None, bad_rows: Literal["refuse", "leave_out"]) -> Source:
    """The rows of a file: .jsonl, .json or .parquet.

    Args:
        image_dir: where relative paths of images count from; None: the file's folder, or `images` in it.

    Raises:
        DataError: no such file, rows that cannot be used, or none that can.
    """
    table = open_table(
        RowsConfig(), field=f"--{kind}", path=str(path), image_dir=None if image_dir is None else str(image_dir)
    )
    rows: list[Row] = []
    problems: list[str] = []
    for number, (where, row) in enumerate(table.read()):
        try:
            if isinstance(row, DataError):
                raise row
            images, _ = row_images(where, row, table.folders(where), table.store, most=1)
            if not images:
                raise DataError(f"{where}: image_path: missing; a row is about an image")
            rows.append(Row(number, where, images[0], _side(where, row, kind)))
        except DataError as error:
            problems.append(str(error))
    if problems and bad_rows == "refuse":
        listed = "\n  ".join(problems[:_SHOWN])
        raise DataError(
            f"--{kind} {path}: {len(problems)} of {len(table)} rows cannot be used; correct them, or give --bad-rows leave_out. "
            f"The first:\n  {listed}"
        )
    if not rows:
        raise DataError(f"--{kind} {path}: no row can be used; the first: {problems[0]}")
    return Source(kind, path, tuple(rows), len(table), tuple(problems))


def merged(captions: Source, questions: Source) -> tuple[list[Picture], int]:
    """The images of both files in the order of their paths, and how many rows say more of an image that has what they say.

    Of several captions or questions about one image the first is taken, since no image is used twice.
    """
    by_image: dict[str, list[tuple[Kind, Row]]] = {}
    for source in (captions, questions):
        for row in source.rows:
            by_image.setdefault(str(Path(row.image).resolve()), []).append((source.kind, row))
    pictures, more = [], 0
    for _, rows in sorted(by_image.items()):
        caption = next((row for _, row in rows if row.captioned), None)
        # A question is taken from the file of questions before one that stands beside a caption.
        question = next((row for _, row in sorted(rows, key=lambda each: each[0] != "questions") if row.asked), None)
        kind, first = rows[0]
        both = _joined(caption, question)
        pictures.append(Picture(first.image, *both, kind, first.number))
        more += sum(row not in (caption, question) for _, row in rows)
    return pictures, more


def _joined(caption: Row | None, question: Row | None) -> tuple[Mapping[str, Any] | None, Mapping[str, Any] | None]:
    """Both sides of an image; each also has what the other one says, as a completed row of PairUni has."""
    if caption is None or question is None:
        return (None if caption is None else caption.side), (None if question is None else question.side)
    drawn = {**{name: question.side[name] for name in ("question", "answer")}, **caption.side}
    asked = {"prompt": caption.side["prompt"], **question.side}
    return drawn, asked


def _side(where: str, row: Mapping[str, Any], kind: Kind) -> dict[str, Any]:
    """What a row says, under the names of a pair's side. Raises DataError: it does not say what its file is for."""
    rest = {name: value for name, value in row.items() if name not in COLUMNS and value is not None}
    asked = next((name for name in _QUESTIONS if name in rest), None)
    if asked is None and kind == "questions" and "prompt" in rest:
        asked = "prompt"  # as files of questions call it
    names = ("caption",) if asked == "prompt" else ("prompt", "caption", "text")
    said = next((name for name in names if name in rest), None)
    answer = next((name for name in _ANSWERS if name in rest), None)
    side: dict[str, Any] = {}
    if said is not None:
        side["prompt"] = check_text(f"{where}: {said}", rest.pop(said))
    elif kind == "captions":
        raise DataError(f"{where}: prompt: missing; a captioned image has a text in prompt, caption or text")
    if asked is not None and answer is not None:
        side["question"] = check_text(f"{where}: {asked}", rest.pop(asked))
        side["answer"] = _answer(f"{where}: {answer}", rest.pop(answer), side["question"])
    elif kind == "questions":
        missing = "question" if asked is None else "answer"
        raise DataError(
            f"{where}: {missing}: missing; a question about an image has its text in question, and its answer in answer"
        )
    return side | rest


def _answer(where: str, value: Any, question: str) -> str | int | float:
    """The answer as a pair's row may hold it: the letter of an option where the question lists some."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise DataError(f"{where}: {shown(value)} is a {type(value).__name__}, not a text or a number")
    text = check_text(where, str(value))
    return right_option(where, text, options_of(question)) or value
