"""Decodes a request's images, and makes of its items what a scorer takes. Runs in threads, a little at a time.

An image that many items name is decoded once. Between two images the work asks whether anyone still waits for it, and
after each short turn it goes to the back of the queue: of many requests, each gets its share of the threads.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections import deque
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

from PIL import Image

from services.kit.dispatch.cache import cache_key
from services.kit.dispatch.caller import Caller
from services.kit.guard.memory import Hold
from services.kit.scorer import Failure, Item
from wire.images import BadImageError, ImageLimits, load, open_header, ref_bytes, shared
from wire.schema import ErrorCode, ImageRef, ScoreItem, ScorerInfo

TURN_S = 0.02
_PICTURES_A_STRAND = 4


@dataclass(frozen=True)
class Decoded:
    """An item ready to score, with its cache key; or why it cannot be scored. `sent` is the item as it came."""

    item: Item | Failure
    sent: ScoreItem
    key: bytes | None = None


@dataclass(frozen=True)
class _Seen:
    """An image, or why it is none, and the hash of the bytes it came in."""

    image: Image.Image | None
    problem: str
    digest: bytes


class Decoding:
    """One request's images and items. Several threads may take turns at it; `strands` of them are worth while."""

    def __init__(
        self,
        items: Sequence[ScoreItem],
        parts: Mapping[str, bytes | memoryview],
        limits: ImageLimits,
        hold: Hold,
        caller: Caller,
        *,
        info: ScorerInfo | None = None,
        failed: Mapping[int, Failure] | None = None,
    ) -> None:
        """Every image of `items` is one of `parts`. `info` is that of the reward; without, the items get no cache key.
        `failed`: items already lost, by place.
        """
        self._items = items
        self._parts = parts
        self._limits = limits
        self._hold = hold
        self._caller = caller
        self._info = info
        self._failed = failed or {}
        wanted = [item for place, item in enumerate(items) if place not in self._failed]
        pictures = {_name(ref): ref for item in wanted for ref in item.refs}
        self._todo = deque(pictures.items())
        self._seen: dict[Hashable, _Seen] = {}
        self._lock = threading.Lock()
        self.strands = max(1, -(-len(pictures) // _PICTURES_A_STRAND))
        self._working = 1

    def split(self, most: int) -> int:
        """How many threads are to take turns, at most `most`; each until its turn says that it is the last."""
        self._working = min(most, self.strands)
        return self._working

    def turn(self) -> list[Decoded] | bool:
        """Decode for a short while. True: more is left to do. False: other threads do the rest. Else all items, decoded.

        Raises NotAwaited when nobody waits any more, and ApiError 413 or 429 when the pixels would not fit in memory.
        """
        until = time.monotonic() + TURN_S
        while self._todo:
            self._caller.check()
            try:
                name, ref = self._todo.popleft()
            except IndexError:  # another thread was faster
                break
            self._seen[name] = self._look(ref)
            if time.monotonic() >= until:
                return True
        with self._lock:
            self._working -= 1
            last = self._working == 0
        return [self._item(place, item) for place, item in enumerate(self._items)] if last else False

    def run(self) -> list[Decoded]:
        """All turns in this thread. Raises as `turn` does."""
        while True:
            result = self.turn()
            if isinstance(result, list):
                return result

    def _look(self, ref: ImageRef) -> _Seen:
        digest = b""
        try:
            data = ref_bytes(ref, self._parts, self._limits)
            picture = open_header(data, ref.media_type, width=ref.width, height=ref.height, limits=self._limits)
            self._hold.take(picture.peak)
            image = load(picture)
            self._hold.give_back(picture.peak - picture.memory)
        except BadImageError as error:
            return _Seen(None, str(error), digest)
        if self._info is not None:
            digest = hashlib.sha256(data).digest()  # in hardware where it counts: 2 GB/s
        return _Seen(image, "", digest)

    def _item(self, place: int, item: ScoreItem) -> Decoded:
        self._caller.check()
        if place in self._failed:
            return Decoded(self._failed[place], item)
        try:
            images = self._images("images", item.images)
            source_images = self._images("source_images", item.source_images or [])
        except BadImageError as error:
            return Decoded(Failure(ErrorCode.BAD_INPUT, str(error)), item)
        decoded = Item(
            id=item.id,
            prompt=item.prompt,
            images=images,
            group_id=item.group_id,
            completion=item.completion,
            source_images=source_images,
            targets=None if item.targets is None else tuple(item.targets),
            metadata=item.metadata,
        )
        if self._info is None:
            return Decoded(decoded, item)
        return Decoded(decoded, item, cache_key(self._info, item, [self._seen[_name(ref)].digest for ref in item.refs]))

    def _images(self, field: str, refs: Sequence[ImageRef]) -> tuple[Image.Image, ...]:
        """Each item has image objects of its own: a scorer that writes to one does not change its neighbours'."""
        images = []
        for number, ref in enumerate(refs):
            seen = self._seen[_name(ref)]
            if seen.image is None:
                raise BadImageError(f"{field}.{number}: {seen.problem}")
            images.append(shared(seen.image))
        return tuple(images)


def _name(ref: ImageRef) -> Hashable:
    """What is the same for references to the same image: its part and, where the bytes do not say it, its size."""
    assert ref.part is not None, "what came as base64 or was fetched is a part by now"
    return (ref.part, ref.width, ref.height) if ref.media_type == "image/x-rgb8" else ref.part
