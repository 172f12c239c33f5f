"""Content-addressed score cache: the same input, scored by the same revision, is scored once."""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Sequence

from services.kit.scorer import Score
from wire.schema import ScoreItem, ScorerInfo


def cache_key(info: ScorerInfo, item: ScoreItem, encoded: Sequence[bytes | memoryview]) -> bytes:
    """A hash over all that may change the score: reward, revision, template, texts, metadata and images.

    `encoded` are the bytes of the item's images, then of its source images, or hashes of them. They stand for the pixels,
    of which there are many more: two encodings of the same pixels are scored twice. The item's id and group do not enter: they name
    the item, they are not scored.
    """
    parts = [
        info.name,
        info.revision,
        info.template_sha256,
        item.prompt,
        item.completion,
        item.targets,
        item.metadata,
        len(item.images),
        [(ref.media_type, ref.width, ref.height, len(data)) for ref, data in zip(item.refs, encoded, strict=True)],
    ]
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False, allow_nan=False)
    digest = hashlib.sha256(text.encode("utf-8"))  # in hardware where it counts: 2 GB/s
    for data in encoded:
        digest.update(data)
    return digest.digest()


def group_key(keys: Sequence[bytes]) -> bytes:
    """The key of a group from its items' keys. The order counts: it decides which image is shown first."""
    return hashlib.sha256(b"group" + b"".join(keys)).digest()


class ScoreCache:
    """Least-recently-used scores by key, one per item of a job, at most `max_scores` of all jobs. Not thread-safe.

    Failures are never kept: the next try may succeed.
    """

    def __init__(self, max_scores: int) -> None:
        self._max_scores = max_scores
        self._scores: OrderedDict[bytes, tuple[Score, ...]] = OrderedDict()
        self._count = 0

    @property
    def enabled(self) -> bool:
        return self._max_scores > 0

    def __len__(self) -> int:
        return self._count

    def get(self, key: bytes) -> tuple[Score, ...] | None:
        scores = self._scores.get(key)
        if scores is not None:
            self._scores.move_to_end(key)
        return scores

    def put(self, key: bytes, scores: tuple[Score, ...]) -> None:
        if not self.enabled:
            return
        self._count += len(scores) - len(self._scores.pop(key, ()))
        self._scores[key] = scores
        while self._count > self._max_scores:
            _, oldest = self._scores.popitem(last=False)
            self._count -= len(oldest)
