"""Whether an answer that is passed on came to its end: a caller who takes half an answer for a whole one scores with it.

`length`, `tool_calls` and the like are ends that a caller asked for and knows. Any other, such as vLLM's `abort` when it
sleeps or stops, is none.
"""

from __future__ import annotations

import json

from services.kit.judge.answers import CUT, WHOLE, BrokenOffError

_ENDS = WHOLE | {CUT, "tool_calls", "function_call", "content_filter"}
_MAX_LINE = 16 * 1024 * 1024


class EventWatch:
    """Reads a stream of events on its way: gives whole lines on, and stops at the one that says it was broken off.

    `error` says that the server sent an error as an event, too late for a status: the caller reads it there.
    """

    def __init__(self) -> None:
        self.error: str | None = None
        self._kept = bytearray()
        self._ended = False

    def take(self, chunk: bytes) -> bytes:
        """The lines that are complete with this chunk. Raises BrokenOffError."""
        lines, newline, rest = chunk.rpartition(b"\n")
        if newline:
            lines, self._kept = bytes(self._kept) + lines + newline, bytearray()
        self._kept += rest
        if len(self._kept) > _MAX_LINE:
            raise BrokenOffError(f"the judge sent an event of more than {_MAX_LINE} bytes")
        for line in lines.splitlines():
            self._look_at(line)
        return lines

    def end(self) -> bytes:
        """What is left when the stream is over. Raises BrokenOffError when nothing said that it would be."""
        self._look_at(bytes(self._kept))
        if not self._ended:
            raise BrokenOffError("the judge's stream ended in the middle")
        return bytes(self._kept)

    def _look_at(self, line: bytes) -> None:
        field, _, value = line.partition(b":")
        if field != b"data":
            return
        if value.strip() == b"[DONE]":
            self._ended = True
        elif b"finish_reason" in value:
            self._ended |= check_ending(value)
        elif value.lstrip().startswith(b'{"error"'):
            self.error = "an error in the middle of its stream"


def check_ending(body: bytes) -> bool:
    """Whether a chat completion, or an event of one, names an end. Raises BrokenOffError when it names one that is none.

    What is no chat completion is passed on as it is.
    """
    try:
        tree = json.loads(body)
        reasons = [choice.get("finish_reason") for choice in tree["choices"]]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return False
    for reason in reasons:
        if not (reason is None or isinstance(reason, str)) or reason not in _ENDS:
            raise BrokenOffError(f"the judge broke its answer off (finish_reason {reason!r:.40})")
    return any(reason is not None for reason in reasons)
