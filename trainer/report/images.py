"""Before and after: evaluation samples of two steps, matched by prompt, as data URIs."""

from __future__ import annotations

import base64
import io
import math
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from trainer.records.numbers import plain
from trainer.report.run_folder import RunFolder
from trainer.report.source import number
from wire.images import ImageLimits, decode
from wire.quotes import quoted_texts

MAX_SIDE = 256  # larger images are scaled down: the page stays mailable
PIXELATED_SIDE = 128  # smaller ones are shown with hard pixels, as they are
MAX_IMAGE_PIXELS = 64 * 1024 * 1024


@dataclass(frozen=True)
class Score:
    """`text` is the number as shown; `change` compares with the first image: up, down, same, or empty.

    `level` is the score itself, for a bar, where the reward's scores lie in 0 to 1; None for others and for no score.
    """

    text: str
    change: str
    level: float | None


@dataclass(frozen=True)
class Shot:
    """One image of a card. `right` is None where nothing was read or nothing was asked to be written; `plan` is what the policy
    wrote before it drew, None where it wrote nothing."""

    label: str
    uri: str | None
    missing: str
    width: int
    height: int
    read: str | None
    right: bool | None
    plan: str | None = None

    @property
    def pixelated(self) -> bool:
        return max(self.width, self.height) <= PIXELATED_SIDE


@dataclass(frozen=True)
class Card:
    """A prompt's images, and per reward a score for each of them. `pair` names the pair that the prompt is a side of; `given` are the
    images of the prompt itself."""

    prompt: str
    shots: tuple[Shot, ...]
    scores: tuple[tuple[str, tuple[Score, ...]], ...]
    pair: str = ""
    given: tuple[Shot, ...] = ()


@dataclass(frozen=True)
class Gallery:
    """Cards in the order of the held-out set, with how many were read right at each end."""

    cards: tuple[Card, ...]
    labels: tuple[str, ...]
    read_right: tuple[int, ...]
    readable: int


def build_gallery(run: RunFolder, problems: list[str]) -> Gallery | None:
    """The first and the last step that kept samples; None when none did. `problems` takes what could not be read."""
    kept = {step: [record for record in records if _is_image(record)] for step, records in run.samples.items()}
    kept = {step: records for step, records in kept.items() if records}
    if not kept:
        return None
    steps = sorted({min(kept), max(kept)})
    labels = tuple(label_of(run, step) for step in steps)
    bounded = bounded_rewards([record for step in steps for record in kept[step]])
    columns = [{match_of(record): record for record in kept[step]} for step in steps]
    cards = []
    for key, first in columns[0].items():
        records = [column[key] for column in columns if key in column]
        shots = [_shot(run.path, label, record, problems) for label, record in zip(labels, records, strict=False)]
        scores = tuple(score_table(records, bounded))
        given = _given_images(run, first, problems)
        cards.append(Card(str(first.get("prompt", "")), tuple(shots), scores, pair_of(first), given))
    judged = [card for card in cards if len(card.shots) == len(labels) and all(s.right is not None for s in card.shots)]
    right = tuple(sum(bool(card.shots[n].right) for card in judged) for n in range(len(labels)))
    return Gallery(tuple(cards), labels, right, len(judged))


def read_right(gallery: Gallery | None) -> str:
    """How many images say what was asked for, before and after; empty where nothing was read."""
    if gallery is None or not gallery.readable:
        return ""
    counts = [
        f"{count} of {gallery.readable} {label}"
        for count, label in zip(gallery.read_right, gallery.labels, strict=True)
    ]
    return f"Read as asked: {', '.join(counts)}."


def read_correctly(read: str, targets: Sequence[str]) -> bool:
    """Whether what was read is what was asked for; case, width of characters and white space do not count."""
    return _folded(read) == _folded("".join(targets))


def _folded(text: str) -> str:
    return "".join(unicodedata.normalize("NFKC", text).casefold().split())


def _is_image(record: Mapping[str, Any]) -> bool:
    """Whether a record is of an image, or of one that is missing; texts without an image have cards of their own."""
    return record.get("image") is not None or not isinstance(record.get("text"), str)


def pair_of(record: Mapping[str, Any]) -> str:
    """The pair that a record's prompt is a side of; empty without one."""
    pair = record.get("pair")
    return pair if isinstance(pair, str) else ""


def label_of(run: RunFolder, step: int) -> str:
    """How a step is called beside its samples."""
    if step == 0:
        return "before"
    return "after" if step == run.max_steps else f"step {step}"


def match_of(record: Mapping[str, Any]) -> str:
    """By what samples of two steps are known to be of one prompt."""
    return str(record.get("prompt_id", record.get("id", "")))


def _shot(run_dir: Path, label: str, record: Mapping[str, Any], problems: list[str]) -> Shot:
    uri, width, height = data_uri(run_dir, record.get("image"), problems)
    read = record.get("read")
    targets = record.get("targets") or quoted_texts(str(record.get("prompt", "")))
    known = isinstance(read, str) and isinstance(targets, list) and bool(targets)
    return Shot(
        label=label,
        uri=uri,
        missing="no image" if record.get("image") is None else "image missing",
        width=width,
        height=height,
        read=read if isinstance(read, str) else None,
        right=read_correctly(str(read), [str(target) for target in targets]) if known else None,
        plan=record["text"] if isinstance(record.get("text"), str) else None,
    )


def _given_images(run: RunFolder, record: Mapping[str, Any], problems: list[str]) -> tuple[Shot, ...]:
    sources = record.get("sources")
    shots = []
    for name in sources if isinstance(sources, list) else []:
        uri, width, height = data_uri(run.path, name, problems)
        shots.append(Shot("given", uri, "image missing", width, height, read=None, right=None))
    return tuple(shots)


def bounded_rewards(records: Sequence[Mapping[str, Any]]) -> set[str]:
    """Rewards whose scores lie in 0 to 1 and come near 1: only there does a bar mean anything."""
    values: dict[str, list[float]] = {}
    for record in records:
        for reward, value in _given(record).items():
            if not math.isnan(number(value)):
                values.setdefault(str(reward), []).append(number(value))
    return {reward for reward, given in values.items() if min(given) >= 0 and 0.5 < max(given) <= 1}


def score_table(records: Sequence[Mapping[str, Any]], bounded: set[str]) -> list[tuple[str, tuple[Score, ...]]]:
    """Per reward of any record its scores in the records' order."""
    rewards = dict.fromkeys(reward for record in records for reward in _given(record))
    table = []
    for reward in rewards:
        values = [number(_given(record).get(reward)) for record in records]
        table.append((str(reward), tuple(_score(value, values[0], str(reward) in bounded) for value in values)))
    return table


def _score(value: float, first: float, bounded: bool) -> Score:
    if math.isnan(value):
        return Score("no score", "", None)
    change = ""
    if not math.isnan(first):
        change = "same" if abs(value - first) < 0.0005 else "up" if value > first else "down"
    return Score(plain(value), change, value if bounded else None)


def _given(record: Mapping[str, Any]) -> Mapping[Any, Any]:
    scores = record.get("scores")
    return scores if isinstance(scores, Mapping) else {}


def data_uri(run_dir: Path, name: object, problems: list[str]) -> tuple[str | None, int, int]:
    """An image of the run folder as a data URI with its shown size; None where there is none that can be read."""
    if not isinstance(name, str):
        return None, 0, 0
    path = (run_dir / name).resolve()
    try:
        if not path.is_relative_to(run_dir.resolve()):
            raise OSError("it lies outside the run folder")
        image = decode(path.read_bytes(), "image/png", limits=ImageLimits(max_pixels=MAX_IMAGE_PIXELS))
        small = max(image.size) <= MAX_SIDE
        image = image.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # damaged or absurd files
        problems.append(f"sample {name}: {error}")
        return None, 0, 0
    buffer = io.BytesIO()
    if small:
        image.save(buffer, "PNG", optimize=True)
    else:
        image.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.LANCZOS)
        image.save(buffer, "WEBP", quality=82)
    kind = "png" if small else "webp"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}", image.width, image.height
