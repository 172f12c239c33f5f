"""The samples of evaluations, side by side: one prompt over steps, or over runs, and what the services saw in each."""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trainer.records.numbers import plain
from trainer.report.answers import Said, take_apart
from trainer.report.images import match_of, pair_of, read_correctly
from trainer.report.source import number
from trainer.runs.folder import Folder
from wire.quotes import quoted_texts

MAX_LISTING = 32 * 1024 * 1024  # bytes of a step's list of samples
MAX_IMAGE = 32 * 1024 * 1024  # bytes
SMALL_SIDE = 128  # images up to this are shown with hard pixels
_LISTING = re.compile(r"^step_(\d{6,})\.json$")
_IMAGE = re.compile(r"^samples/step_\d{6,}/[\w.-]{1,100}\.png$")
_MAX_LINES, _MAX_WORDS = 60, 40
_PNG = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class Line:
    """Something that a service placed in an image: its words, how sure it is (empty: it did not say), and the corners of its
    box as an SVG's points, empty without one."""

    text: str
    sure: str
    points: str


@dataclass(frozen=True)
class Seen:
    """What one reward's service said of a sample: what it placed in the image, and the rest as name and value."""

    reward: str
    lines: tuple[Line, ...]
    words: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Picture:
    """An image of a run folder by its path there, with its size in pixels; None where it cannot be shown."""

    path: str
    width: int
    height: int

    @property
    def small(self) -> bool:
        return max(self.width, self.height) <= SMALL_SIDE


@dataclass(frozen=True)
class Shot:
    """One sample of a prompt: of a step, or of a run. `right` is None where nothing was read or nothing asked for."""

    label: str
    run: str
    image: Picture | None
    scores: Mapping[str, float]
    read: str | None
    right: bool | None
    said: Said | None
    note: str
    seen: tuple[Seen, ...]

    @property
    def boxes(self) -> list[str]:
        """Where services found something in the image; what several of them found at one place, once."""
        return list(dict.fromkeys(line.points for each in self.seen for line in each.lines if line.points))


@dataclass(frozen=True)
class Card:
    """A prompt with its samples; `sources` are the images that it is about."""

    key: str
    prompt: str
    task: str
    targets: str
    pair: str
    sources: tuple[Picture | None, ...]
    shots: tuple[Shot, ...]

    def score(self, reward: str, at: int) -> float:
        """The score of its first (0) or last (-1) sample; NaN without one."""
        return self.shots[at].scores.get(reward, math.nan) if self.shots else math.nan

    def change(self, reward: str) -> float:
        """How far a score has moved from the first sample to the last; NaN where either has none."""
        return self.score(reward, -1) - self.score(reward, 0)

    def has(self, words: Sequence[str]) -> bool:
        """Whether all of `words`, folded, occur in its prompt, its answers, or what was read."""
        texts = [self.prompt, self.targets, self.key]
        texts += [
            part
            for shot in self.shots
            for part in (shot.read, shot.said and f"{shot.said.thought} {shot.said.answer}")
            if part
        ]
        text = " ".join(texts).casefold()
        return all(word in text for word in words)


def steps_of(folder: Folder) -> list[int]:
    """The steps whose evaluation kept samples."""
    return sorted(int(match.group(1)) for name, _ in folder.entries("samples") if (match := _LISTING.match(name)))


def records_of(folder: Folder, step: int) -> list[Mapping[str, Any]]:
    """The samples of a step; none where the list cannot be read."""
    try:
        listed = json.loads(folder.read("samples", f"step_{step:06d}.json", limit=MAX_LISTING))
    except (OSError, ValueError, RecursionError):
        return []
    return [record for record in listed if isinstance(record, dict)] if isinstance(listed, list) else []


def cards(columns: Iterable[tuple[str, str, Folder, Sequence[Mapping[str, Any]]]]) -> list[Card]:
    """A card for each prompt of the first column, in its order.

    Args:
        columns: label, run, the run's folder and its samples; prompts are known by their ids in all of them.
    """
    columns = list(columns)
    known = [{match_of(record): record for record in records} for _, _, _, records in columns]
    found = []
    for key in dict.fromkeys(key for column in known for key in column):
        first = next(column[key] for column in known if key in column)
        shots = tuple(
            _shot(label, run, folder, column[key])
            for (label, run, folder, _), column in zip(columns, known, strict=True)
            if key in column
        )
        folder = next(folder for (_, _, folder, _), column in zip(columns, known, strict=True) if key in column)
        sources, targets = first.get("sources"), first.get("targets")
        found.append(
            Card(
                key=key,
                prompt=str(first.get("prompt", "")),
                task=str(first.get("task") or ""),
                targets=", ".join(map(str, targets)) if isinstance(targets, list) else "",
                pair=pair_of(first),
                sources=tuple(picture(folder, name) for name in sources) if isinstance(sources, list) else (),
                shots=shots,
            )
        )
    return found


def ordered(found: Sequence[Card], order: str, reward: str) -> list[Card]:
    """Cards as they lie in the set (`file`), by a reward's last score (`worst` or `best` first), or by how far it has
    moved since the first (`changed`, whichever way; `gained`, `lost`). Those without that number come last."""
    keys: dict[str, Callable[[Card], float]] = {
        "worst": lambda card: card.score(reward, -1),
        "best": lambda card: -card.score(reward, -1),
        "changed": lambda card: -abs(card.change(reward)),
        "gained": lambda card: -card.change(reward),
        "lost": lambda card: card.change(reward),
    }
    if order not in keys:
        return list(found)
    places = [(keys[order](card), card) for card in found]
    known = sorted((each for each in places if not math.isnan(each[0])), key=lambda each: each[0])
    return [card for _, card in known] + [card for place, card in places if math.isnan(place)]


def rewards_in(found: Iterable[Card]) -> list[str]:
    """Every reward that scored any sample."""
    return list(dict.fromkeys(name for card in found for shot in card.shots for name in shot.scores))


def image_bytes(folder: Folder, path: str) -> bytes:
    """A PNG among a run's samples. Raises OSError: the path names none, or what is there is no PNG."""
    if not _IMAGE.match(path):
        raise OSError(f"{path[:100]} is no image among samples")
    data = folder.read(*path.split("/"), limit=MAX_IMAGE)
    if not data.startswith(_PNG):
        raise OSError(f"{path} is no PNG")
    return data


def picture(folder: Folder, path: object) -> Picture | None:
    """An image by its path; None where it is none that can be shown."""
    if not isinstance(path, str) or not _IMAGE.match(path):
        return None
    try:
        with folder.open(*path.split("/")) as file:
            head = file.read(24)
    except OSError:
        return None
    if not head.startswith(_PNG) or len(head) < 24:
        return None
    width, height = struct.unpack(">II", head[16:24])  # of IHDR, which every PNG begins with
    return Picture(path, width, height)


def _shot(label: str, run: str, folder: Folder, record: Mapping[str, Any]) -> Shot:
    given = record.get("scores")
    read, text = record.get("read"), record.get("text")
    targets = record.get("targets") or quoted_texts(str(record.get("prompt", "")))
    known = isinstance(read, str) and isinstance(targets, list) and bool(targets)
    length = number(record.get("length"))
    cut = ["cut off"] if record.get("finished") is False else []
    told = record.get("seen")
    return Shot(
        label=label,
        run=run,
        image=picture(folder, record.get("image")),
        scores={str(name): number(value) for name, value in given.items()} if isinstance(given, Mapping) else {},
        read=read if isinstance(read, str) else None,
        right=read_correctly(str(read), [str(target) for target in targets]) if known else None,
        said=take_apart(text) if isinstance(text, str) else None,
        note=", ".join([*([f"{length:.0f} tokens"] if length > 0 else []), *cut]),
        seen=tuple(_seen(str(name), each) for name, each in told.items()) if isinstance(told, Mapping) else (),
    )


def _seen(reward: str, told: Any) -> Seen:
    images = told.get("images") if isinstance(told, Mapping) else None
    first = images[0] if isinstance(images, list) and images and isinstance(images[0], Mapping) else {}
    rows: list[Any] = next((first[name] for name in ("lines", "objects") if isinstance(first.get(name), list)), [])
    lines = [_line(row) for row in rows if isinstance(row, Mapping) and "text" in row][:_MAX_LINES]
    rest = {k: v for k, v in told.items() if k != "images" or not rows} if isinstance(told, Mapping) else told
    return Seen(reward, tuple(lines), tuple(_words("", rest))[:_MAX_WORDS])


def _line(row: Mapping[str, Any]) -> Line:
    sure, box = number(row.get("confidence")), row.get("box")
    corners = box if isinstance(box, list) else []
    points = [(number(p[0]), number(p[1])) for p in corners if isinstance(p, list) and len(p) == 2]
    whole = len(points) == len(corners) and all(math.isfinite(x) and math.isfinite(y) for x, y in points)
    return Line(
        text=str(row["text"]),
        sure="" if math.isnan(sure) else f"{100 * sure:.0f} %",
        points=" ".join(f"{x:g},{y:g}" for x, y in points) if whole else "",
    )


def _words(name: str, value: Any) -> Iterable[tuple[str, str]]:
    """Any JSON as names and values, names by their path."""
    if isinstance(value, Mapping):
        for key, each in value.items():
            yield from _words(f"{name}.{key}" if name else str(key), each)
    elif isinstance(value, list) and any(isinstance(each, Mapping | list) for each in value):
        for place, each in enumerate(value, 1):
            yield from _words(f"{name} {place}", each)
    elif isinstance(value, list):
        if value:
            yield name, ", ".join(map(str, value))
    elif isinstance(value, float):
        yield name, plain(value)
    elif value is not None:
        yield name, str(value)
