"""Reader of UniGenBench's prompt files: short and long, English and Chinese, and the copies other projects made.

The columns are `index`, `prompt` and `sub_dims`, the last two with or without `_en` or `_zh`. `sub_dims` is a JSON object
with the test points and their descriptions under English or Chinese keys. Published files have rows that are damaged
and test points that occur twice in a row, so rows stand for themselves and test points are known by position.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from services.eval.dimensions import Dimension, Language, find_dimension

_PROMPT_COLUMNS = ("prompt_en", "prompt_zh", "prompt")
_DIMS_COLUMNS = ("sub_dims_en", "sub_dims_zh", "sub_dims")
_KEYS = (("Testpoints", "Testpoint Description"), ("考点", "考点对应描述"))


class PromptFileError(ValueError):
    """The file as a whole cannot be used; the message says what is wrong and what is expected."""


@dataclass(frozen=True)
class Point:
    """One thing the judge is asked about an image. `name` is as the file writes it."""

    name: str
    description: str
    dimension: Dimension


@dataclass(frozen=True)
class Prompt:
    """A row: the image that is asked for and what is judged in it."""

    index: int
    text: str
    points: tuple[Point, ...]
    language: Language


@dataclass(frozen=True)
class RowProblem:
    """Why a row was skipped. `row` counts from 1 below the header."""

    row: int
    field: str
    reason: str


@dataclass(frozen=True)
class PromptFile:
    """The good rows in the file's order, and what was wrong with each of the others."""

    path: Path
    prompts: tuple[Prompt, ...]
    problems: tuple[RowProblem, ...]

    @property
    def num_points(self) -> int:
        return sum(len(prompt.points) for prompt in self.prompts)

    def report(self) -> list[str]:
        """A line for each skipped row."""
        return [f"{self.path}: row {each.row}: {each.field}: {each.reason}" for each in self.problems]


def read_prompts(path: Path) -> PromptFile:
    """Read a prompt file. A bad row is skipped and named in `problems`.

    Raises PromptFileError when the file cannot be read, lacks a column, or has no good row.
    """
    prompts: dict[int, Prompt] = {}
    problems: list[RowProblem] = []
    for number, row in _rows(path):
        try:
            prompt = _read_row(row)
            if prompt.index in prompts:
                raise _BadRowError("index", f"{prompt.index} has occurred before; the first row with it is kept")
            prompts[prompt.index] = prompt
        except _BadRowError as error:
            problems.append(RowProblem(number, error.field, str(error)))
    if not prompts:
        first = f"; the first: {problems[0].field}: {problems[0].reason}" if problems else ""
        raise PromptFileError(f"{path} has no good row; {len(problems)} are bad{first}")
    return PromptFile(path, tuple(prompts.values()), tuple(problems))


def read_points(names: object, descriptions: object) -> tuple[tuple[Point, ...], Language]:
    """Test points from their names and descriptions, two lists of texts of one length, in one language.

    A description may be empty, as one of the published English file is. Raises PointsError, which names the list and position at fault.
    """
    for field, values in (("names", names), ("descriptions", descriptions)):
        if not isinstance(values, list) or not values:
            raise PointsError(field, f"must be a list of texts with at least one; got {_shown(values)}")
        for place, value in enumerate(values):
            if not isinstance(value, str):
                raise PointsError(field, f"entry {place} must be a text; got {_shown(value)}")
    assert isinstance(names, list) and isinstance(descriptions, list)
    if len(names) != len(descriptions):
        raise PointsError("descriptions", f"{len(descriptions)} descriptions for {len(names)} test points")
    found = [find_dimension(name) for name in names]
    unknown = [repr(name) for name, dimension in zip(names, found, strict=True) if dimension is None]
    if unknown:
        raise PointsError("names", f"not among the 27 test points of UniGenBench: {', '.join(unknown)}")
    known = [each for each in found if each is not None]
    languages = {language for _, language in known}
    if len(languages) > 1:
        raise PointsError("names", "English and Chinese test points are mixed")
    points = tuple(
        Point(name.strip(), description, dimension)
        for name, description, (dimension, _) in zip(names, descriptions, known, strict=True)
    )
    return points, languages.pop()


class PointsError(ValueError):
    """`field` is `names` or `descriptions`."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


class _BadRowError(Exception):
    def __init__(self, field: str, reason: str) -> None:
        super().__init__(reason)
        self.field = field


def _rows(path: Path) -> Iterator[tuple[int, Mapping[str, str | None]]]:
    """Each row with its number, under the plain column names `index`, `prompt`, `sub_dims`."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, restkey="")
            header = reader.fieldnames or []
            columns = {
                "index": _column(path, header, ("index",)),
                "prompt": _column(path, header, _PROMPT_COLUMNS),
                "sub_dims": _column(path, header, _DIMS_COLUMNS),
            }
            for number, row in enumerate(reader, 1):
                given = {name: row[column] for name, column in columns.items()}
                yield number, given | ({"": "more"} if "" in row else {})
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise PromptFileError(f"{path} cannot be read as CSV in UTF-8: {error}") from error


def _column(path: Path, header: Sequence[str], names: Sequence[str]) -> str:
    for name in names:
        if name in header:
            return name
    raise PromptFileError(f"{path} has the columns {', '.join(header) or '(none)'}; expected {' or '.join(names)}")


def _read_row(row: Mapping[str, str | None]) -> Prompt:
    for field in ("index", "prompt", "sub_dims"):
        if not (row[field] or "").strip():
            raise _BadRowError(field, "is empty")
    if "" in row:
        raise _BadRowError("row", "has more fields than the header; is a quote missing?")
    index, text, tree = str(row["index"]).strip(), str(row["prompt"]), _object(str(row["sub_dims"]))
    if not (index.isascii() and index.isdigit()):
        raise _BadRowError("index", f"must be a whole number of at least 0; got {index!r}")
    names_key, descriptions_key = _keys(tree)
    try:
        points, language = read_points(tree[names_key], tree.get(descriptions_key))
    except PointsError as error:
        key = names_key if error.field == "names" else descriptions_key
        raise _BadRowError(f"sub_dims.{key}", str(error)) from error
    return Prompt(int(index), text, points, language)


def _object(text: str) -> dict[str, object]:
    try:
        tree = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _BadRowError("sub_dims", f"is not JSON: {error}") from error
    if not isinstance(tree, dict):
        raise _BadRowError("sub_dims", f"must be a JSON object; got {_shown(tree)}")
    return tree


def _keys(tree: Mapping[str, object]) -> tuple[str, str]:
    for names, descriptions in _KEYS:
        if names in tree:
            return names, descriptions
    raise _BadRowError("sub_dims", f"has no test points: none of its keys is {' or '.join(key for key, _ in _KEYS)}")


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
