"""What is sent: images of mixed sizes with real texts in them, and when each request is due."""

from __future__ import annotations

import base64
import json
import random
import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from wire.images import encode
from wire.schema import MediaType

ENCODINGS: Mapping[str, MediaType] = {
    "jpeg": "image/jpeg",
    "png": "image/png",
    "webp": "image/webp",
    "rgb8": "image/x-rgb8",
}
Mix = tuple[tuple[int, int, float], ...]  # width, height in pixels, and weight

_PICTURES_PER_SIZE = 16
_MAX_SIDE = 8192
_BOUNDARY = "loadtest-part"
_QUOTED = re.compile(r'"([^"]+)"|“([^”]+)”')
_WORDS = (
    "HARBOUR",
    "LANTERN",
    "Café Luna",
    "OPEN 24 H",
    "Fresh Bread",
    "PLATFORM 9",
    "Museum",
    "SALE",
    "EXIT",
    "River",
)
_INKS = {"red": (200, 30, 30), "blue": (30, 60, 190), "green": (20, 120, 50), "black": (20, 20, 20)}


@dataclass(frozen=True)
class Prompt:
    """What an image is to show; `text` is drawn in it."""

    prompt: str
    text: str
    targets: tuple[str, ...] | None = None
    ink: tuple[int, int, int] = (20, 20, 20)


@dataclass(frozen=True)
class Body:
    """One request, ready to be sent."""

    content: bytes
    content_type: str
    items: int


def arrival_times(rate: float, duration: float, kind: str, rng: random.Random) -> Iterator[float]:
    """Seconds from the start at which requests are due, below `duration`; `rate` of them a second on average.

    `poisson`: gaps are exponential, as those of many independent callers; `fixed`: all gaps are 1 / `rate`.
    """
    number, due = 0, rng.expovariate(rate) if kind == "poisson" else 0.0
    while due < duration:
        yield due
        number += 1
        due = due + rng.expovariate(rate) if kind == "poisson" else number / rate


def parse_mix(text: str) -> Mix:
    """`256:0.5,512:0.4,1024x512:0.1`: sizes with weights (1 where none is given). Raises ValueError."""
    mix = []
    for entry in text.split(","):
        found = re.fullmatch(r"(\d+)(?:x(\d+))?(?::(\d*\.?\d+))?", entry.strip())
        if found is None:
            raise ValueError(f"--mix {entry!r} is not a size such as 512, 1024x512 or 512:0.4")
        width = int(found[1])
        height, weight = int(found[2] or width), float(found[3] or 1)
        if not (1 <= width <= _MAX_SIDE and 1 <= height <= _MAX_SIDE):
            raise ValueError(f"--mix {entry!r}: sides are from 1 to {_MAX_SIDE} pixels")
        if weight > 0:
            mix.append((width, height, weight))
    if not mix:
        raise ValueError(f"--mix {text!r} has no size with a weight above 0")
    return tuple(mix)


def read_prompts(path: Path | None, rng: random.Random) -> list[Prompt]:
    """The prompts of a file (text: one a line; .jsonl: `prompt` and maybe `targets`), or our own. Raises ValueError."""
    if path is None:
        return [
            Prompt(f'a sign that says "{word}" in {name}', word, ink=ink)
            for word in _WORDS
            for name, ink in _INKS.items()
        ]
    try:
        lines = [line for line in path.read_text("utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"--prompt-file {path} cannot be read: {error}") from error
    prompts = [_read_prompt(line, f"{path}:{number}", path.suffix, rng) for number, line in enumerate(lines, 1)]
    if not prompts:
        raise ValueError(f"--prompt-file {path} holds no prompt")
    return prompts


def _read_prompt(line: str, place: str, suffix: str, rng: random.Random) -> Prompt:
    prompt, targets = line.strip(), None
    if suffix == ".jsonl":
        try:
            row = json.loads(line)
            prompt = str(row["prompt"])
            targets = None if row.get("targets") is None else tuple(map(str, row["targets"]))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f'--prompt-file {place} is not an object such as {{"prompt": "..."}}: {error}') from error
    quoted = ["".join(pair) for pair in _QUOTED.findall(prompt)]
    return Prompt(prompt, " ".join(targets or quoted) or rng.choice(_WORDS), targets)


def draw(prompt: Prompt, width: int, height: int, rng: random.Random) -> Image.Image:
    """The prompt's text on a ground with a little grain, somewhere in the upper, middle or lower part."""
    ground = Image.effect_noise((width, height), 12).convert("L").point(lambda value: 216 + value // 8)
    image = Image.merge("RGB", (ground, ground, ground.point(lambda value: value - 8)))
    size = max(6, min(height // 4, int(1.6 * width / max(4, len(prompt.text)))))
    place = (width / 2, height * rng.choice((0.3, 0.5, 0.7)))
    ImageDraw.Draw(image).text(place, prompt.text, prompt.ink, ImageFont.load_default(size), anchor="mm")
    return image


@dataclass(frozen=True)
class _Picture:
    prompt: Prompt
    data: bytes
    ref: Mapping[str, Any]


class Workload:
    """Makes bodies. Images are drawn and encoded beforehand; a number in `metadata` makes every request a new one.

    `repeat_share` of the requests carry the number of an earlier one of the same size and image. With `grouped`,
    the items of a request are one group.
    """

    def __init__(
        self,
        mix: Mix,
        prompts: Sequence[Prompt],
        *,
        encoding: str,
        body_format: str,
        items: int,
        reward: str,
        grouped: bool,
        repeat_share: float,
        rng: random.Random,
    ) -> None:
        self._rng = rng
        self._run = secrets.token_hex(6)  # not from `rng`: a second test with the same seed must not meet the cache
        self._body_format, self._items, self._reward, self._grouped = body_format, items, reward, grouped
        self._repeat_share = repeat_share
        self._weights = [weight for _, _, weight in mix]
        self._pictures = [
            [self._make(prompt, width, height, ENCODINGS[encoding]) for prompt in self._choose(prompts)]
            for width, height, _ in mix
        ]
        self._sent: list[tuple[str, list[_Picture]]] = []

    def make(self) -> Body:
        """The next request."""
        if self._sent and self._rng.random() < self._repeat_share:
            number, pictures = self._rng.choice(self._sent)
        else:
            [shelf] = self._rng.choices(self._pictures, self._weights)
            number, pictures = f"{self._run}-{len(self._sent)}", self._rng.choices(shelf, k=self._items)
            self._sent.append((number, pictures))
        request = {"items": [self._item(n, number, each) for n, each in enumerate(pictures)], "reward": self._reward}
        text = json.dumps(request).encode()
        if self._body_format == "json":
            return Body(text, "application/json", self._items)
        parts = [(b"request", text), *((f"image{n}".encode(), each.data) for n, each in enumerate(pictures))]
        head = f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="'.encode()
        content = b"".join(b"".join((head, name, b'"\r\n\r\n', data, b"\r\n")) for name, data in parts)
        kind = f"multipart/form-data; boundary={_BOUNDARY}"
        return Body(content + f"--{_BOUNDARY}--\r\n".encode(), kind, self._items)

    def _choose(self, prompts: Sequence[Prompt]) -> list[Prompt]:
        return self._rng.sample(prompts, min(_PICTURES_PER_SIZE, len(prompts)))

    def _make(self, prompt: Prompt, width: int, height: int, media_type: MediaType) -> _Picture:
        data = encode(draw(prompt, width, height, self._rng), media_type)
        ref: dict[str, Any] = {"media_type": media_type, "width": width, "height": height}
        if self._body_format == "json":
            ref["data"] = base64.b64encode(data).decode()
        return _Picture(prompt, data, ref)

    def _item(self, place: int, number: str, picture: _Picture) -> dict[str, Any]:
        ref = picture.ref if self._body_format == "json" else {**picture.ref, "part": f"image{place}"}
        item: dict[str, Any] = {"id": str(place), "prompt": picture.prompt.prompt, "images": [ref]}
        item["metadata"] = {"loadtest": f"{number}-{place}"}
        if picture.prompt.targets is not None:
            item["targets"] = list(picture.prompt.targets)
        if self._grouped:
            item["group_id"] = number
        return item
