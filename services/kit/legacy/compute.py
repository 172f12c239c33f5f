"""Flow-Factory's remote-reward protocol: JSON with base64 PNGs in, `{"rewards": [float]}` out.

Its clients send `prompt`, `image`, `condition_images`; its server template reads `prompts`, `images`. Both are taken.
"""

from __future__ import annotations

import json
import math
from typing import Any

from services.kit.errors import ApiError
from services.kit.guard.memory import Hold
from services.kit.http.intake import Parsed, read_json
from services.kit.legacy.items import (
    check_column,
    check_count,
    check_prompts,
    check_shared,
    count_of,
    to_parsed,
)
from services.kit.settings import ServiceSettings
from wire.base64_text import first_bytes
from wire.containers import media_type_of

_HEAD_BYTES = 12  # of an image, to tell what it is


def parse_compute(
    reward: str,
    body: bytes | bytearray,
    _content_type: str,
    settings: ServiceSettings,
    hold: Hold | None = None,
    *,
    needs_prompt: bool = True,
) -> Parsed:
    """Read a request. `condition_images` (a list per item) are what an edit started from. Raises ApiError.

    `kwargs`, which older clients send, becomes metadata: a list with one entry per item is dealt out to the items.
    """
    tree = read_json(body, hold)
    if not isinstance(tree, dict):
        raise ApiError(422, "an object with `prompt` and `image` is needed")
    if _either(tree, "video", "videos") or tree.get("condition_videos"):
        raise ApiError(422, "videos are not scored here: send `image`", field="video")
    prompts, images = _either(tree, "prompt", "prompts"), _either(tree, "image", "images")
    counted = "image" if prompts is None else "prompt"
    count = count_of(counted, tree, images if prompts is None else prompts)
    check_count(counted, count, settings)
    prompts = check_prompts("prompt", tree, prompts, count, reward, needs_prompt)
    extra = _either(tree, "kwargs", "extra") or {}
    if not isinstance(extra, dict):
        raise ApiError(422, f"an object is needed, not {type(extra).__name__}", field="kwargs")
    sources = tree.get("condition_images") or [[]] * count
    shared = {name: value for name, value in extra.items() if not _is_dealt(value, count)}
    check_shared("kwargs", shared, count)
    dealt = {name: value for name, value in extra.items() if _is_dealt(value, count)}
    columns = {
        "prompt": prompts,
        "images": [[_ref(image)] for image in check_column("image", images, count)],
        "source_images": [_refs(row) for row in check_column("condition_images", sources, count)],
        "metadata": [shared | {name: values[place] for name, values in dealt.items()} for place in range(count)],
    }
    items = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    return to_parsed(reward, items, {}, settings)


def dump_rewards(rewards: list[float]) -> str:
    """The answer. NaN, where it was asked for, is `null`: JSON has no NaN.

    `requests` reads with simplejson where that is installed, which refuses a whole answer for one NaN.
    """
    return json.dumps({"rewards": [None if math.isnan(reward) else reward for reward in rewards]})


def _either(tree: dict[str, Any], name: str, other: str) -> Any:
    value = tree.get(name)
    return tree.get(other) if value is None else value


def _is_dealt(value: Any, count: int) -> bool:
    return isinstance(value, list) and len(value) == count


def _refs(images: Any) -> Any:
    return [_ref(image) for image in images] if isinstance(images, list) else images


def _ref(image: Any) -> dict[str, Any]:
    """An image as the contract has it; what is not base64 text is refused there, with its place."""
    head = first_bytes(image, _HEAD_BYTES) if isinstance(image, str) else b""
    return {"data": image, "media_type": media_type_of(head) or "image/jpeg"}
