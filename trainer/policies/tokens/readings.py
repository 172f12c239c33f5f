"""Readings of prompts, kept between steps while there is room: the least recently used go first."""

from __future__ import annotations

from collections import OrderedDict

from trainer.policies.tokens.draw import Reading

KEPT_BYTES = 256 * 2**20

Key = tuple[str, tuple[str, ...]]


class KeptReadings:
    """Readings by the prompt's text and the files of its images, which are taken to stay as they are while a run goes on."""

    def __init__(self, limit: int) -> None:
        self.limit, self._bytes = limit, 0
        self._readings: OrderedDict[Key, Reading] = OrderedDict()

    def get(self, key: Key) -> Reading | None:
        if key in self._readings:
            self._readings.move_to_end(key)
        return self._readings.get(key)

    def keep(self, key: Key, reading: Reading) -> Reading:
        """Keeps the reading, unless it is larger than all the room there is; gives it back."""
        size = _size(reading)
        if size <= self.limit:
            self._readings[key] = reading
            self._bytes += size
            while self._bytes > self.limit:
                _, dropped = self._readings.popitem(last=False)
                self._bytes -= _size(dropped)
        return reading


def _size(reading: Reading) -> int:
    return sum(tensor.nbytes for tensor in (reading.ids_T, *reading.inputs.values()))
