"""Takes a body of known length straight out of the socket: the kernel writes it where it is read from.

Through h11, Uvicorn and Starlette each byte is copied six times and each piece wakes the application, so that raw pixels cost
more to receive than a JPEG of them to decode. Here a connection hands its socket over for the rest of a body.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

LEAST_POURED = 16 * 1024  # bytes of a body; what is smaller comes with its head, and is copied in no time
_FIRST, _FACTOR = 64 * 1024, 16


class Pour(asyncio.BufferedProtocol):
    """A body on its way into `body`, of which the first `count` bytes are there.

    Its room is at most `_FACTOR` times what has come, and `_FIRST`: who declares a size and sends nothing takes little. Room
    is charged before it is touched, and in the end it is the body's length.
    """

    def __init__(
        self,
        length: int,
        charge: Callable[[int], None],
        on_bytes: Callable[[int], None],
        on_end: Callable[[], None],
        connection: asyncio.Protocol,
    ) -> None:
        """`charge` is called with bytes of more room and raises where there is none; `on_bytes` with how many have come from the
        socket; `on_end` at once when no more are to be read, before another byte is. `connection` hears of all that is not about
        reading. `ended` says whether the whole body is there; if not, the client left.
        """
        self.body = bytearray()
        self.count = 0
        self.ended: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._length = length
        self._charge = charge
        self._on_bytes = on_bytes
        self._on_end = on_end
        self._connection = connection
        self._room = 0

    def put(self, data: bytes | bytearray | memoryview) -> int:
        """Take what was read before, up to the body's end. Returns how many bytes that were; raises what `charge` does."""
        taken = min(len(data), self._length - self.count)
        self._make_room(self.count + taken)
        self.get_buffer()[:taken] = data[:taken]
        self._took(taken)
        return taken

    def get_buffer(self, sizehint: int = -1) -> memoryview:
        if len(self.body) < self._room:  # a new one: of the last a buffer may be out, which nothing may make longer
            grown = bytearray(self._room)
            grown[: self.count] = memoryview(self.body)[: self.count]
            self.body = grown
        return memoryview(self.body)[self.count :]

    def buffer_updated(self, nbytes: int) -> None:
        self._on_bytes(nbytes)
        try:
            self._took(nbytes)
        except Exception as error:  # of `charge`; raised here it would end the connection without an answer
            self.ended.set_exception(error)
        if self.ended.done():
            self._on_end()

    def eof_received(self) -> None:
        self._connection.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self._connection.connection_lost(exc)
        if not self.ended.done():  # as it is where nobody waits any more
            self.ended.set_result(False)

    def pause_writing(self) -> None:
        self._connection.pause_writing()

    def resume_writing(self) -> None:
        self._connection.resume_writing()

    def _took(self, count: int) -> None:
        self.count += count
        if self.count == self._length:
            self.ended.set_result(True)
        elif self.count == self._room:
            self._make_room(self.count)

    def _make_room(self, come: int) -> None:
        room = min(self._length, max(_FIRST, _FACTOR * come))
        if room > self._room:
            self._charge(room - self._room)
            self._room = room
