"""Reads a file of pairs: every row checked, the pairs that are too unlike left out, each pair a prompt with two sides."""

from __future__ import annotations

import hashlib
import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from trainer.config.texts import RowsConfig
from trainer.data.pairs.options import options_of, right_option
from trainer.data.prompts import PromptFile
from trainer.data.prompts.checks import DataError, check_metadata, check_targets, check_text, shown
from trainer.data.questions import QuestionFile, right_answers
from trainer.data.rows.pictures import COLUMNS, mark_count, row_images
from trainer.data.rows.table import Table, left_out, open_table
from trainer.data.same_images import same_image
from trainer.types import Prompt

TASKS: Final = ("understand", "generate")
_SIDES: Final = {"understand": "understand_ann", "generate": "generate_ann"}
_OWN: Final = ("similarity", *_SIDES.values())


def read_pairs(
    config: RowsConfig,
    *,
    path: str,
    field: str,
    dataset: str,
    split: str = "train",
    image_dir: str | None = None,
    threshold: float = 0.0,
    threshold_field: str = "sampling.similarity_threshold",
) -> QuestionFile:
    """The pairs of a section, each a prompt whose sides are what is asked and what is drawn.

    Args:
        field: the section's name, for messages.
        split: what is read where the section names none.
        image_dir: where relative paths of images count from; None: the file's folder, `images` in it, or the working directory.
        threshold: pairs of a smaller similarity are left out.

    Raises:
        DataError: no such data, a row that cannot be used, each named, unless `config.bad_rows` leaves them out, or no pair
            that is similar enough.
    """
    table = open_table(config, field=field, path=path, split=split, image_dir=image_dir)
    reader = _Reader(table, dataset, here=image_dir is None)
    made, skipped = table.make(field, reader.pair)
    kept = [(number, pair) for number, _, pair in made if pair.similarity >= threshold]
    if not kept:
        nearest = max(pair.similarity for _, _, pair in made)
        raise DataError(
            f"{field}: all of the {len(made)} pairs of {path} are below {threshold_field} = {threshold:g} (the most similar has "
            f"{nearest:g}); lower it"
        )
    pairs = tuple(pair for _, pair in kept)
    notes = [*table.notes, *left_out(field, len(table), skipped), _what_they_are(field, pairs)]
    if below := len(made) - len(kept):
        notes.append(
            f"{field}: {below} of {len(made)} pairs are left out, less similar than {threshold_field} = {threshold:g}"
        )
    notes += reader.notes(field)
    file = PromptFile(Path(path), pairs, tuple(number + 1 for number, _ in kept), 0, tuple(skipped))
    return QuestionFile(file, (), tuple(notes))


class _Reader:
    """Makes pairs of rows, and remembers which it has seen and what is to be said of them.

    Args:
        here: whether images may count from the working directory, as PairUni's do.
    """

    def __init__(self, table: Table, dataset: str, *, here: bool) -> None:
        self._table, self._dataset, self._here = table, dataset, here
        self._seen: dict[str, str] = {}
        self._unchecked: list[str] = []
        self._made_equal: list[str] = []

    def pair(self, where: str, row: Mapping[str, Any]) -> Prompt:
        """A row as a pair. Raises DataError: what is wrong, with place, field, value and remedy."""
        similarity = _similarity(where, row)
        by_task: dict[str, Callable[[str, Mapping[str, Any]], Prompt]] = {
            "understand": self._question,
            "generate": self._drawing,
        }
        sides = {task: make(where, _side(where, row, _SIDES[task])) for task, make in by_task.items()}
        known_by = [[side.text, *_image_names(row[_SIDES[task]], side)] for task, side in sides.items()]
        name = f"{self._dataset}-{_hash(known_by)}"
        if name in self._seen:
            raise DataError(f"{where}: the pair of {self._seen[name]} again; leave one of them out")
        asked, drawn = (sides[task].source_images for task in TASKS)
        if asked and drawn and similarity < 1 and same_image(asked[0], drawn[0]):
            self._made_equal.append(where)
            similarity = 1.0
        self._seen[name] = where
        named = tuple(
            Prompt(
                f"{name}/{task}",
                side.text,
                self._dataset,
                targets=side.targets,
                metadata=side.metadata,
                source_images=side.source_images
                if task == "understand"
                else (),  # a drawing starts from its prompt alone
                place=where,
                task=task,
                similarity=similarity,
            )
            for task, side in sides.items()
        )
        others = {key: value for key, value in row.items() if key not in _OWN}
        return Prompt(
            name,
            sides["generate"].text,
            self._dataset,
            metadata=check_metadata(f"{where}: row", others),
            place=where,
            sides=named,
            similarity=similarity,
        )

    def _question(self, where: str, side: Mapping[str, Any]) -> Prompt:
        where = f"{where}: {_SIDES['understand']}"
        images = self._images(where, side)
        if not images:
            raise DataError(f"{where}: image_path: missing; a question needs the image that it is about")
        text = _text(where, side, "question", "what is asked")
        mark_count(where, "question", [text], len(images))
        answer = side.get("answer")
        if answer is None or (isinstance(answer, str) and not answer.strip()):
            raise DataError(f"{where}: answer: missing; without it no answer can be scored")
        if isinstance(answer, bool) or not isinstance(answer, str | int | float):
            raise DataError(f"{where}: answer: {shown(answer)} is a {type(answer).__name__}, not a text or a number")
        letter = right_option(f"{where}: answer", str(answer), options_of(text))
        if letter is None:
            self._unchecked.append(where)
        targets = check_targets(f"{where}: targets", side.get("targets")) or (
            right_answers(where, {"answer": answer}) if letter is None else (letter,)
        )
        return Prompt(
            "", text, targets=targets, metadata=_rest(where, side, "question", prompt="caption"), source_images=images
        )

    def _drawing(self, where: str, side: Mapping[str, Any]) -> Prompt:
        where = f"{where}: {_SIDES['generate']}"
        images = self._images(where, side)
        text = _text(where, side, "prompt", "what is drawn")
        targets = check_targets(f"{where}: targets", side.get("targets"))
        return Prompt("", text, targets=targets, metadata=_rest(where, side, "prompt"), source_images=images)

    def _images(self, where: str, side: Mapping[str, Any]) -> tuple[str, ...]:
        """The side's image: none or one, and it is there."""
        place = where.rpartition(": ")[0]
        folders = [*self._table.folders(place), *([Path()] if self._here else [])]
        images, _ = row_images(where, side, folders, self._table.store, most=1)
        return images

    def notes(self, field: str) -> list[str]:
        """What is to be said of the rows that were read."""
        said = []
        if self._made_equal:
            said.append(
                f"{field}: {len(self._made_equal)} pairs have the same image on both sides and a similarity below 1; they are "
                f"aligned, and have 1: such as {self._made_equal[0]}"
            )
        if self._unchecked:
            said.append(
                f"{field}: {len(self._unchecked)} of {len(self._seen)} questions list no options like A. and B. on lines of their "
                f"own, so that their answers could not be compared with them: such as {self._unchecked[0]}"
            )
        return said


def sides_of(pairs: Sequence[Prompt], task: str) -> list[Prompt]:
    """The sides of one task, in order; what stands in several pairs comes once."""
    found: dict[str, Prompt] = {}
    for pair in pairs:
        side = pair.side(task)
        found.setdefault(_hash([side.text, side.source_images, side.targets]), side)
    return list(found.values())


def _similarity(where: str, row: Mapping[str, Any]) -> float:
    value = row.get("similarity")
    if value is None:
        raise DataError(f"{where}: similarity: missing; give a number from 0 to 1, 1 for two sides about one image")
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise DataError(f"{where}: similarity: {shown(value)} is a {type(value).__name__}, not a number from 0 to 1")
    if not 0 <= value <= 1:  # which NaN is not, either
        raise DataError(
            f"{where}: similarity = {shown(value)} must be from 0 to 1; pairs of a negative cosine are left out"
        )
    return float(value)


def _side(where: str, row: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = row.get(name)
    if value is None:
        raise DataError(
            f"{where}: {name}: missing; a pair has {' and '.join(_SIDES.values())}, and the row has {', '.join(row) or 'no field'}"
        )
    if not isinstance(value, Mapping):
        raise DataError(
            f"{where}: {name}: {shown(value)} is a {type(value).__name__}, not an object with image_path, prompt, question, answer"
        )
    return value


def _text(where: str, side: Mapping[str, Any], name: str, what: str) -> str:
    if side.get(name) is None:
        raise DataError(f"{where}: {name}: missing; it says {what}")
    return check_text(f"{where}: {name}", side[name])


def _rest(where: str, side: Mapping[str, Any], text: str, **renamed: str) -> dict[str, Any]:
    """The side's other columns, for rewards: without its text, its images and its targets; an object in `metadata` is spread
    out among them."""
    gone = (*COLUMNS, text, "targets", "metadata")
    columns = {renamed.get(name, name): value for name, value in side.items() if name not in gone and value is not None}
    own = check_metadata(f"{where}: metadata", side.get("metadata"))
    if both := sorted(own.keys() & columns.keys()):
        raise DataError(f"{where}: {both[0]} is a column and also in metadata; keep one of them")
    return check_metadata(where, {**columns, **own})


def _image_names(row: Mapping[str, Any], side: Prompt) -> list[str]:
    """What a side's image is known by, wherever its folder is moved: the relative path that the row writes, else its name."""
    written = [row[name] for name in COLUMNS if isinstance(row.get(name), str)]
    if len(side.source_images) == len(written) == 1 and side.source_images[0].endswith(written[0]):
        return written
    return [Path(image).name for image in side.source_images]


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def _what_they_are(field: str, pairs: Sequence[Prompt]) -> str:
    retrieved = [pair.similarity for pair in pairs if pair.similarity < 1]
    said = f"{field}: {len(pairs)} pairs, {len(pairs) - len(retrieved)} aligned"
    if not retrieved:
        return said
    return (
        f"{said}, {len(retrieved)} retrieved with similarities from {min(retrieved):.3g} to {max(retrieved):.3g} (median "
        f"{statistics.median(retrieved):.3g})"
    )
