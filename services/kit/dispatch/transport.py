"""Objects between a service and its worker processes. Pixels travel beside the pickle, which would copy them thrice."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from PIL import Image

_COUNT_BYTES = 4


def send(pipe: Connection, message: object) -> None:
    """Send one object; images in it arrive as plain Pillow images. Raises OSError when the other end is gone."""
    buffers: list[pickle.PickleBuffer] = []
    stream = io.BytesIO()
    stream.write(bytes(_COUNT_BYTES))
    _Pickler(stream, protocol=5, buffer_callback=buffers.append).dump(message)
    stream.getbuffer()[:_COUNT_BYTES] = len(buffers).to_bytes(_COUNT_BYTES, "little")
    pipe.send_bytes(stream.getbuffer())
    for buffer in buffers:
        pipe.send_bytes(buffer.raw())


def receive(pipe: Connection) -> Any:
    """The next object, or None for the stop sign. Raises EOFError or OSError when the other end is gone.

    Both ends are processes of one service; nothing from outside reaches this pipe.
    """
    message = memoryview(pipe.recv_bytes())
    if not message:
        return None
    buffers = [pipe.recv_bytes() for _ in range(int.from_bytes(message[:_COUNT_BYTES], "little"))]
    return pickle.loads(message[_COUNT_BYTES:], buffers=buffers)


def send_stop(pipe: Connection) -> None:
    """Send the stop sign. Raises OSError when the other end is gone."""
    pipe.send_bytes(b"")


class _Pickler(pickle.Pickler):
    def reducer_override(self, obj: object) -> tuple[Callable[..., Image.Image], tuple[object, ...]] | Any:
        if not isinstance(obj, Image.Image):
            return NotImplemented
        *state, pixels = Image.Image.__getstate__(obj)  # the base class: a plain image arrives, not a file
        return _image, (state, pickle.PickleBuffer(pixels))


def _image(state: list[object], pixels: bytes) -> Image.Image:
    image = Image.Image()
    image.__setstate__([*state, pixels])
    return image
