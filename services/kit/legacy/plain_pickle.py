"""Pickles as data: lists, dicts, text, bytes and numbers are read, everything else is refused.

A pickle is a program for a small stack machine (the standard library's `pickletools` lists its instructions), and the
standard reader lets it call any function. The reader here has no instruction that names, builds or calls anything. It
admits what plain data is written with in protocols 3 to 5; older ones cannot hold bytes without a function call.

Tuples come back as lists, and bytes as views of the input. A list or dict that occurs twice is copied and each copy
counts against the limit, so a few bytes cannot stand for a large tree, and no value can contain itself.
"""

from __future__ import annotations

import pickle
import pickletools
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias, TypeVar, Union

Plain: TypeAlias = Union[bool, int, float, str, memoryview, "list[Plain]", "dict[str, Plain]", None]
Writable: TypeAlias = Union[bool, int, float, str, bytes, "Sequence[Writable]", "Mapping[str, Writable]", None]
Container = TypeVar("Container", list[Plain], dict[str, Plain])

_PROTOCOL = 4  # every Python 3 that these clients run on reads it
_CHARGED = 4096  # steps at a time
_STEP_BYTES = 220  # of one value, at most: an object of one number takes 184
_QUOTED = 80  # how much of a refused name is repeated


class PickleError(ValueError):
    """The bytes are not a pickle of plain data; the message says why and what to send."""


class PickleTooLarge(PickleError):
    """More instructions, or deeper nesting, than the limits allow."""


@dataclass(frozen=True)
class PickleLimits:
    """Upper bounds: on instructions (a value takes one to three, a copied value one), and on lists within lists."""

    max_steps: int = 250_000
    max_depth: int = 24


def load_plain(
    data: bytes | bytearray, limits: PickleLimits | None = None, charge: Callable[[int], None] | None = None
) -> Plain:
    """The value of a pickle of protocol 3, 4 or 5. Raises PickleError, and PickleTooLarge above the limits.

    `charge` is told of the memory that is about to be taken, in bytes, and may raise to forbid it.
    """
    return _Machine(memoryview(data), limits or PickleLimits(), charge or (lambda _count: None)).run()


def dump_plain(value: Writable) -> bytes:
    """A pickle of plain data."""
    return pickle.dumps(value, _PROTOCOL)


class _Mark:
    """Stands on the stack where the items of a list, tuple or dict begin."""


_MARK = _Mark()


class _Machine:
    def __init__(self, data: memoryview, limits: PickleLimits, charge: Callable[[int], None]) -> None:
        self._data = data
        self._limits = limits
        self._charge = charge
        self._at = 0
        self._steps = 0
        self._stack: list[Plain | _Mark] = []
        self._memo: dict[int, Plain] = {}
        self._closed: set[int] = set()  # by id: what may not change any more (tuples, what has copies, and the copies)

    def run(self) -> Plain:
        if self._data[:1] != bytes([_PROTO]):
            raise PickleError("not a pickle of protocol 3 to 5, such as `pickle.dumps` of Python 3 makes")
        while (code := self._uint(1)) != _STOP:
            self._count(1)
            step = _STEPS.get(code)
            if step is None:
                raise PickleError(self._why_not(code))
            step(self)
        if self._at != len(self._data):
            raise PickleError(f"{len(self._data) - self._at} bytes follow the end of the pickle")
        value = self._pop()
        self._check_depth(value)
        return value

    def _count(self, steps: int) -> None:
        if (self._steps + steps) // _CHARGED > self._steps // _CHARGED:
            self._charge(max(steps, _CHARGED) * _STEP_BYTES)
        self._steps += steps
        if self._steps > self._limits.max_steps:
            raise PickleTooLarge(f"the pickle takes more than {self._limits.max_steps} steps: send fewer items in one")

    def _take(self, count: int) -> memoryview:
        if count > len(self._data) - self._at:
            raise PickleError(f"the pickle is cut off: {count} bytes are announced at {self._at}, fewer follow")
        taken = self._data[self._at : self._at + count]
        self._at += count
        return taken

    def _uint(self, width: int) -> int:
        return int.from_bytes(self._take(width), "little")

    def _pop(self) -> Plain:
        value = self._stack.pop() if self._stack else _MARK
        if isinstance(value, _Mark):
            raise PickleError(f"the pickle takes a value that is not there, at {self._at}")
        return value

    def _pop_to_mark(self) -> list[Plain]:
        items: list[Plain] = []
        while self._stack:
            value = self._stack.pop()
            if isinstance(value, _Mark):
                items.reverse()
                return items
            items.append(value)
        raise PickleError(f"the pickle closes a list that was not opened, at {self._at}")

    def _pop_items(self, count: int) -> list[Plain]:
        return [self._pop() for _ in range(count)][::-1]

    def _open(self, kind: type[Container]) -> Container:
        """The list or dict on top of the stack, to be filled."""
        value = self._stack[-1] if self._stack else None
        if not isinstance(value, kind):
            raise PickleError(f"the pickle fills a {kind.__name__} that is not there, at {self._at}")
        if id(value) in self._closed:
            raise PickleError(f"a {kind.__name__} contains itself, or changes after it was complete: send a tree")
        return value

    def protocol(self) -> None:
        version = self._uint(1)
        if version not in (3, 4, 5):
            raise PickleError(f"pickle protocol {version} is not served: use 3, 4 or 5 (`pickle.dumps(data)` does)")

    def frame(self) -> None:
        length = self._uint(8)
        if length > len(self._data) - self._at:
            raise PickleError(f"the pickle is cut off: a frame of {length} bytes is announced at {self._at}")

    def push(self, value: Plain | _Mark) -> None:
        self._stack.append(value)

    def push_tuple(self, items: list[Plain]) -> None:
        self._closed.add(id(items))
        self.push(items)

    def uint(self, width: int) -> None:
        self.push(self._uint(width))

    def int32(self) -> None:
        self.push(int.from_bytes(self._take(4), "little", signed=True))

    def long(self) -> None:
        self.push(int.from_bytes(self._take(self._uint(1)), "little", signed=True))

    def float64(self) -> None:
        [number] = struct.unpack(">d", self._take(8))
        self.push(number)

    def text(self, width: int) -> None:
        data = self._take(self._uint(width))
        try:
            self._charge(4 * len(data))  # a string is as wide as the widest of its characters
            self.push(str(data, "utf-8"))
        except UnicodeDecodeError as error:
            raise PickleError(f"a text of the pickle is not valid Unicode: {error.reason}") from error

    def bytes_(self, width: int) -> None:
        self.push(self._take(self._uint(width)))

    def append(self) -> None:
        self._extend([self._pop()])

    def appends(self) -> None:
        self._extend(self._pop_to_mark())

    def _extend(self, items: list[Plain]) -> None:
        self._open(list).extend(items)

    def set_item(self) -> None:
        self._update(self._pop_items(2))

    def set_items(self) -> None:
        self._update(self._pop_to_mark())

    def _update(self, items: list[Plain]) -> None:
        target = self._open(dict)
        if len(items) % 2:
            raise PickleError("a dict has a key without a value")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if not isinstance(key, str):
                raise PickleError(f"dict keys must be text, not {_kind(key)}")
            if key in target:
                raise PickleError(f"the key {key[:_QUOTED]!r} appears twice in a dict")
            target[key] = value

    def put(self, width: int) -> None:
        self._remember(self._uint(width))

    def memoize(self) -> None:
        self._remember(len(self._memo))

    def _remember(self, index: int) -> None:
        value = self._pop()
        self._memo[index] = value
        self.push(value)

    def get(self, width: int) -> None:
        index = self._uint(width)
        if index not in self._memo:
            raise PickleError(f"the pickle asks for value {index}, which it has not stored")
        self.push(self._copy(self._memo[index], 0))

    def _copy(self, value: Plain, depth: int) -> Plain:
        if not isinstance(value, list | dict):
            return value
        if depth > self._limits.max_depth:
            raise self._too_deep()
        self._count(len(value))
        copy: Plain
        if isinstance(value, list):
            copy = [self._copy(each, depth + 1) for each in value]
        else:
            copy = {key: self._copy(each, depth + 1) for key, each in value.items()}
        self._closed |= {id(value), id(copy)}
        return copy

    def _check_depth(self, value: Plain) -> None:
        level = [value]
        for _ in range(self._limits.max_depth + 1):
            containers = [each for each in level if isinstance(each, list | dict)]
            level = [child for each in containers for child in (each.values() if isinstance(each, dict) else each)]
            if not level:
                return
        raise self._too_deep()

    def _too_deep(self) -> PickleTooLarge:
        return PickleTooLarge(f"lists and dicts are nested more than {self._limits.max_depth} deep")

    def _why_not(self, code: int) -> str:
        """Why an instruction is refused, with the remedy where people meet it."""
        name = _NAMES.get(code)
        if name is None:
            return f"not a pickle: there is no instruction {code:#04x}"
        if code == _STACK_GLOBAL and len(self._stack) >= 2:
            name = ".".join(str(part) for part in self._stack[-2:])
        elif code in (_GLOBAL, _INST):
            name = str(bytes(self._data[self._at : self._at + _QUOTED]), "utf-8", "replace")
            name = ".".join(name.split("\n")[:2])
        advice = "send lists, dicts, text, bytes and numbers only"
        if name.startswith("numpy"):
            advice = "send `array.tolist()` for arrays and numbers, and encoded images (JPEG or PNG) as bytes"
        return f"the pickle asks for {name[:_QUOTED]!r}, and this service runs nothing that a request names: {advice}"


def _kind(value: Plain) -> str:
    return "bytes" if isinstance(value, memoryview) else type(value).__name__


_NAMES = {ord(opcode.code): opcode.name for opcode in pickletools.opcodes}
_CODES = {name: code for code, name in _NAMES.items()}
_PROTO, _STOP = _CODES["PROTO"], _CODES["STOP"]
_GLOBAL, _INST, _STACK_GLOBAL = _CODES["GLOBAL"], _CODES["INST"], _CODES["STACK_GLOBAL"]

_STEPS: dict[int, Callable[[_Machine], None]] = {
    _CODES[name]: step
    for name, step in {
        "PROTO": _Machine.protocol,
        "FRAME": _Machine.frame,
        "NONE": lambda m: m.push(None),
        "NEWTRUE": lambda m: m.push(True),
        "NEWFALSE": lambda m: m.push(False),
        "BININT1": lambda m: m.uint(1),
        "BININT2": lambda m: m.uint(2),
        "BININT": _Machine.int32,
        "LONG1": _Machine.long,
        "BINFLOAT": _Machine.float64,
        "SHORT_BINUNICODE": lambda m: m.text(1),
        "BINUNICODE": lambda m: m.text(4),
        "BINUNICODE8": lambda m: m.text(8),
        "SHORT_BINBYTES": lambda m: m.bytes_(1),
        "BINBYTES": lambda m: m.bytes_(4),
        "BINBYTES8": lambda m: m.bytes_(8),
        "MARK": lambda m: m.push(_MARK),
        "EMPTY_LIST": lambda m: m.push([]),
        "APPEND": _Machine.append,
        "APPENDS": _Machine.appends,
        "EMPTY_TUPLE": lambda m: m.push_tuple([]),
        "TUPLE": lambda m: m.push_tuple(m._pop_to_mark()),
        "TUPLE1": lambda m: m.push_tuple(m._pop_items(1)),
        "TUPLE2": lambda m: m.push_tuple(m._pop_items(2)),
        "TUPLE3": lambda m: m.push_tuple(m._pop_items(3)),
        "EMPTY_DICT": lambda m: m.push({}),
        "SETITEM": _Machine.set_item,
        "SETITEMS": _Machine.set_items,
        "BINPUT": lambda m: m.put(1),
        "LONG_BINPUT": lambda m: m.put(4),
        "MEMOIZE": _Machine.memoize,
        "BINGET": lambda m: m.get(1),
        "LONG_BINGET": lambda m: m.get(4),
    }.items()
}
