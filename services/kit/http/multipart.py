"""`multipart/form-data` bodies: parts by name. Wraps python-multipart's parser; the body is already in memory."""

from __future__ import annotations

from typing import cast

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from services.kit.errors import ApiError


def parse_multipart(body: bytes | bytearray, content_type: str, max_parts: int) -> dict[str, memoryview]:
    """The parts of a body by name, as views of it: images are large, and each copy of one costs a millisecond.

    Raises ApiError: 400 malformed or a name twice, 413 too many parts.
    """
    _, options = parse_options_header(content_type)
    boundary = options.get(b"boundary")
    if not boundary:
        raise ApiError(400, "multipart/form-data without a boundary", field="content-type")
    parts: dict[str, memoryview] = {}
    collector = _Collector(parts, max_parts)
    try:
        parser = MultipartParser(
            boundary,
            {
                "on_part_begin": collector.begin,
                "on_header_field": collector.header_field,
                "on_header_value": collector.header_value,
                "on_header_end": collector.header_end,
                "on_part_data": collector.data,
                "on_part_end": collector.end,
                "on_end": collector.finish,
            },
        )
        parser.write(cast(bytes, body))  # which it only searches and indexes
        parser.finalize()
    except FormParserError as error:
        raise ApiError(400, f"the body is not well-formed multipart/form-data: {error}") from error
    if not collector.complete:
        raise ApiError(400, "the multipart body ends before its closing boundary")
    return parts


class _Collector:
    def __init__(self, parts: dict[str, memoryview], max_parts: int) -> None:
        self.complete = False
        self._parts = parts
        self._max_parts = max_parts
        self._field = bytearray()
        self._value = bytearray()
        self._name: str | None = None
        self._data: list[memoryview] = []

    def begin(self) -> None:
        if len(self._parts) >= self._max_parts:
            raise ApiError(413, f"more than {self._max_parts} multipart parts: send fewer items in one request")
        self._name = None
        self._data = []

    def header_field(self, data: bytes, start: int, end: int) -> None:
        self._field += data[start:end]

    def header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def header_end(self) -> None:
        if bytes(self._field).lower() == b"content-disposition":
            _, options = parse_options_header(bytes(self._value))
            name = options.get(b"name")
            self._name = name.decode("utf-8", "replace") if name is not None else None
        self._field.clear()
        self._value.clear()

    def data(self, data: bytes, start: int, end: int) -> None:
        self._data.append(memoryview(data)[start:end])

    def end(self) -> None:
        if not self._name:
            raise ApiError(400, "a multipart part has no name: give it `Content-Disposition: form-data; name=...`")
        if self._name in self._parts:
            raise ApiError(400, f"two multipart parts are named {self._name!r}", field=self._name)
        self._parts[self._name] = self._data[0] if len(self._data) == 1 else memoryview(b"".join(self._data))

    def finish(self) -> None:
        self.complete = True
