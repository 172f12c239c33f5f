"""Messages between a service and its worker processes: JSON, with pixels as raw buffers behind it.

Only what is named in `_KINDS`, containers and plain values can travel, so nothing that arrives is run. Every container is a
JSON list that begins with its kind; a mapping, which holds JSON by the contract, goes as it is: what a user wrote is never taken
for one of ours.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import fields
from multiprocessing.connection import Connection
from typing import Any

from PIL import Image

from services.kit.scorer import Failure, Item, Score
from wire.schema import ErrorCode

_COUNT_BYTES = 4
_KINDS: dict[str, type[Any]] = {"item": Item, "score": Score, "failure": Failure}
_NAMES = {kind: name for name, kind in _KINDS.items()}


def send(pipe: Connection, message: object) -> None:
    """Send one message; images in it arrive as plain Pillow images.

    Raises:
        OSError: the other end is gone.
        TypeError: the message holds what cannot travel; its type is named.
    """
    buffers: list[bytes] = []
    head = json.dumps(_plain(message, buffers), ensure_ascii=False).encode("utf-8", "surrogatepass")
    pipe.send_bytes(len(buffers).to_bytes(_COUNT_BYTES, "little") + head)
    for buffer in buffers:
        pipe.send_bytes(buffer)


def receive(pipe: Connection) -> Any:
    """The next message, or None for the stop sign. Raises EOFError or OSError when the other end is gone."""
    message = pipe.recv_bytes()
    if not message:
        return None
    buffers = [pipe.recv_bytes() for _ in range(int.from_bytes(message[:_COUNT_BYTES], "little"))]
    return _built(json.loads(message[_COUNT_BYTES:].decode("utf-8", "surrogatepass")), buffers)


def send_stop(pipe: Connection) -> None:
    """Send the stop sign. Raises OSError when the other end is gone."""
    pipe.send_bytes(b"")


def _plain(value: object, buffers: list[bytes]) -> Any:
    """What JSON holds of a value; the pixels of images are appended to `buffers`."""
    if isinstance(value, ErrorCode):
        return ["code", value.value]
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, bytes):
        return ["bytes", base64.b64encode(value).decode("ascii")]
    if isinstance(value, Image.Image):
        info, *state, pixels = Image.Image.__getstate__(value)  # the base class: a plain image travels, not a file
        buffers.append(bytes(pixels))
        return ["image", len(buffers) - 1, _plain(_known(info), buffers), _plain(state, buffers)]
    return _plain_container(value, buffers)


def _plain_container(value: object, buffers: list[bytes]) -> list[Any]:
    if isinstance(value, Mapping):
        return ["json", dict(value)]  # written by json itself: ids of a long answer are thousands of numbers
    if isinstance(value, list | tuple):
        kind = "tuple" if isinstance(value, tuple) else "list"
        return [kind, *(_plain(each, buffers) for each in value)]
    name = _NAMES.get(type(value))
    if name is None:
        raise TypeError(f"a {type(value).__name__} cannot travel to or from a worker process")
    return [name, *(_plain(getattr(value, field.name), buffers) for field in fields(_KINDS[name]))]


def _built(tree: Any, buffers: list[bytes]) -> Any:
    """The value that `_plain` made `tree` of."""
    if not isinstance(tree, list):
        return tree
    kind, *rest = tree
    if kind == "image":
        image = Image.Image()
        image.__setstate__([dict(_built(rest[1], buffers)), *_built(rest[2], buffers), buffers[rest[0]]])
        return image
    if kind == "json":
        return rest[0]
    if kind in ("bytes", "code"):
        return base64.b64decode(rest[0]) if kind == "bytes" else ErrorCode(rest[0])
    values = [_built(each, buffers) for each in rest]
    if kind in _KINDS:
        return _KINDS[kind](*values)
    return tuple(values) if kind == "tuple" else values


def _known(info: Mapping[Any, Any]) -> list[tuple[Any, Any]]:
    """What can travel of an image's notes; a decoder's own objects, which no scorer reads, are left behind."""
    kinds = (str, bytes, bool, int, float)
    return [
        (key, value)
        for key, value in info.items()
        if isinstance(value, kinds) or (isinstance(value, tuple) and all(isinstance(each, kinds) for each in value))
    ]
