"""The pickle reader: agrees with the standard one on plain data, refuses everything else, and runs nothing."""

from __future__ import annotations

import contextlib
import datetime
import decimal
import fractions
import io
import os
import pickle
import pickletools
import struct
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from services.kit.legacy.plain_pickle import PickleError, PickleLimits, PickleTooLarge, dump_plain, load_plain
from tests.support.audit_events import recorded

CODE = {opcode.name: opcode.code.encode("latin-1") for opcode in pickletools.opcodes}
PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(1 << 80), 1 << 80)
    | st.floats(allow_nan=False)
    | st.text(st.characters(exclude_categories=["Cs"]))
    | st.binary(max_size=300),
    lambda inner: (
        st.lists(inner, max_size=5) | st.tuples(inner, inner) | st.dictionaries(st.text(max_size=4), inner, max_size=4)
    ),
    max_leaves=30,
)


def as_plain(value):
    """A value as the reader gives it back: lists for tuples, views for bytes."""
    if isinstance(value, list | tuple):
        return [as_plain(each) for each in value]
    if isinstance(value, dict):
        return {key: as_plain(each) for key, each in value.items()}
    return memoryview(value) if isinstance(value, bytes) else value


@given(PLAIN, st.sampled_from([3, 4, 5]), st.booleans())
def test_reads_what_was_pickled(value, protocol, twice):
    value = {"first": value, "second": value} if twice else value
    assert load_plain(pickle.dumps(value, protocol)) == as_plain(value)


@given(PLAIN, st.sampled_from([3, 4, 5]))
def test_reads_what_the_slow_pickler_writes(value, protocol):
    buffer = io.BytesIO()
    pickle._Pickler(buffer, protocol).dump(value)
    assert load_plain(buffer.getvalue()) == as_plain(value)


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_reads_long_lists_and_large_bytes(protocol):
    """Past 1000 entries and 64 KiB the writer uses other instructions."""
    value = {"images": [bytes([n % 256]) * 70_000 for n in range(3)], "prompts": [f"p{n}" for n in range(2500)]}
    value["metadata"] = {f"k{n}": n for n in range(2500)}
    assert load_plain(pickle.dumps(value, protocol)) == as_plain(value)


@given(st.lists(st.floats()))
def test_every_reader_takes_what_is_written(scores):
    data = dump_plain({"scores": scores, "outputs": scores})
    assert np.array_equal(pickle.loads(data)["scores"], scores, equal_nan=True)
    assert np.array_equal(load_plain(data)["outputs"], scores, equal_nan=True)


def test_bytes_are_not_copied():
    data = pickle.dumps([b"x" * 5_000_000])
    tracemalloc.start()
    [value] = load_plain(data)
    assert tracemalloc.get_traced_memory()[1] < 100_000
    tracemalloc.stop()
    assert len(value) == 5_000_000


class Command:
    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


class WithState:
    def __init__(self):
        self.state = 1


class Persistent(pickle.Pickler):
    def persistent_id(self, obj):
        return "an id" if obj == "me" else None


def persistent(value, protocol=4):
    buffer = io.BytesIO()
    Persistent(buffer, protocol).dump(value)
    return buffer.getvalue()


def looped_list():
    loop = [1]
    loop.append(loop)
    return loop


def looped_dict():
    loop = {}
    loop["self"] = [loop]
    return loop


HOSTILE = {
    "command": (Command(os.system, "true"), "posix.system"),
    "eval": (Command(eval, "1"), "builtins.eval"),
    "import": (Command(__import__, "os"), "builtins.__import__"),
    "object with state": (WithState(), "WithState"),
    "class": (dict, "builtins.dict"),
    "numpy array": (np.zeros(3), r"array.tolist\(\)"),
    "numpy text": (np.array_split(["a", "b"], 1)[0], r"array.tolist\(\)"),
    "numpy number": (np.float32(1), r"array.tolist\(\)"),
    "image object": (Image.new("RGB", (2, 2)), "PIL.Image"),
    "date": (datetime.date(2026, 1, 1), "datetime.date"),
    "decimal": (decimal.Decimal(1), "decimal.Decimal"),
    "fraction": (fractions.Fraction(1, 2), "fractions.Fraction"),
    "complex": (1j, "builtins.complex"),
    "number keys": ({1: 2}, "keys must be text, not int"),
    "bytes keys": ({b"a": 2}, "keys must be text, not bytes"),
    "tuple keys": ({(1,): 2}, "keys must be text, not list"),
    "lone surrogate": ("\ud800", "not valid Unicode"),
    "list in itself": (looped_list(), "contains itself"),
    "dict in itself": (looped_dict(), "contains itself"),
}


@pytest.mark.parametrize("protocol", [3, 4, 5])
@pytest.mark.parametrize("name", HOSTILE)
def test_refuses_what_is_not_plain(name, protocol):
    value, message = HOSTILE[name]
    with pytest.raises(PickleError, match=message):
        load_plain(pickle.dumps({"images": [value]}, protocol))


@pytest.mark.parametrize("value", [{1, 2}, frozenset({1}), bytearray(b"x"), 1 << 3000, ...])
@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_refuses_rare_kinds(value, protocol):
    with pytest.raises(PickleError, match="runs nothing that a request names"):
        load_plain(pickle.dumps(value, protocol))


@pytest.mark.parametrize("protocol", [0, 1, 2])
def test_old_protocols_say_which_to_use(protocol):
    with pytest.raises(PickleError, match="protocol"):
        load_plain(pickle.dumps({"images": [b"x"]}, protocol))


def program(*steps):
    """A pickle from instruction names and raw arguments."""
    return b"\x80\x04" + b"".join(CODE[step] if isinstance(step, str) else step for step in steps) + b"."


HAND_MADE = {
    "persistent id": persistent(["me"]),
    "persistent text id": program("PERSID", b"x\n"),
    "extension": program("EXT1", b"\x01"),
    "instance": program("MARK", "INST", b"os\nsystem\n"),
    "global": program("GLOBAL", b"os\nsystem\n"),
    "build": program("EMPTY_LIST", "EMPTY_DICT", "BUILD"),
    "reduce": program("NONE", "EMPTY_TUPLE", "REDUCE"),
    "new object": program("NONE", "EMPTY_TUPLE", "NEWOBJ"),
    "out-of-band buffer": program("NEXT_BUFFER"),
    "duplicate value": program("EMPTY_LIST", "DUP", "APPEND"),
    "number as text": program("LONG", b"9" * 1_000_000 + b"L\n"),
    "long number": program("LONG4", struct.pack("<i", 4), b"1234"),
    "key twice": program("EMPTY_DICT", "MARK", *("SHORT_BINUNICODE", b"\x01a", "NONE") * 2, "SETITEMS"),
    "key without value": program("EMPTY_DICT", "MARK", "NONE", "SETITEMS"),
    "nothing": program(),
    "only a mark": program("MARK"),
    "append to nothing": program("NONE", "APPEND"),
    "append to a dict": program("EMPTY_DICT", "NONE", "APPEND"),
    "append to a mark": program("MARK", "NONE", "APPEND"),
    "items of a list": program("EMPTY_LIST", "MARK", "NONE", "NONE", "SETITEMS"),
    "close unopened": program("NONE", "TUPLE"),
    "tuple of nothing": program("TUPLE3"),
    "store nothing": program("BINPUT", b"\0"),
    "store a mark": program("MARK", "MEMOIZE"),
    "never stored": program("BINGET", b"\x07"),
    "no such instruction": program(b"\xff"),
    "trailing bytes": program("NONE") + b"x",
    "huge text": program("BINUNICODE8", struct.pack("<Q", 1 << 62)),
    "huge bytes": program("BINBYTES8", struct.pack("<Q", (1 << 64) - 1)),
    "huge bytes, short form": program("BINBYTES", struct.pack("<I", (1 << 32) - 1)),
    "huge frame": program("FRAME", struct.pack("<Q", 1 << 63)),
    "changed after use": program(
        *("EMPTY_LIST", "EMPTY_LIST", "MEMOIZE", "BINGET", b"\0", "APPEND", "NONE", "APPEND", "APPEND")
    ),
    "tuple that changes": program("EMPTY_TUPLE", "NONE", "APPEND"),
    "changed through its copy": program("EMPTY_LIST", "MEMOIZE", "BINGET", b"\0", "NONE", "APPEND", "TUPLE2"),
    "empty": b"",
    "text": b'{"images": []}',
    "protocol 9": b"\x80\x09N.",
}


@pytest.mark.parametrize("name", HAND_MADE)
def test_refuses_hand_made(name):
    with pytest.raises(PickleError) as refused:
        load_plain(HAND_MADE[name])
    assert len(str(refused.value)) < 400, "what was sent is not repeated at length"


@pytest.mark.parametrize("end", range(len(pickle.dumps({"images": [b"abc"], "prompts": ["x"], "n": 1.5}))))
def test_refuses_every_truncation(end):
    with pytest.raises(PickleError):
        load_plain(pickle.dumps({"images": [b"abc"], "prompts": ["x"], "n": 1.5})[:end])


def doubling(times):
    """`times` lists, each holding the one before twice: 2 ** times values in a few bytes."""
    steps = ["EMPTY_LIST", "BINPUT", b"\0"]
    for n in range(1, times):
        get = ("BINGET", bytes([n - 1]))
        steps += ["EMPTY_LIST", "MARK", *get, *get, "APPENDS", "BINPUT", bytes([n])]
    return program(*steps, "MARK", "TUPLE", *["TUPLE2"] * (times - 1))


TOO_LARGE = {
    "lists in lists": program(*["EMPTY_LIST"] * 5000, *["APPEND"] * 4999),
    "tuples in tuples": program("EMPTY_TUPLE", *["TUPLE1"] * 5000),
    "stored lists in lists": program("EMPTY_LIST", "BINPUT", b"\0", *("TUPLE1", "BINPUT", b"\0", "BINGET", b"\0") * 50),
    "doubling": doubling(22),
    "items": pickle.dumps([b""] * 30_000),
    "marks": program(*["MARK"] * 30_000),
    "names": program("NONE", *["MEMOIZE"] * 30_000),
}


@pytest.mark.parametrize("name", TOO_LARGE)
def test_bombs_are_refused_in_little_memory(name):
    tracemalloc.start()
    with pytest.raises(PickleTooLarge):
        load_plain(TOO_LARGE[name], PickleLimits(max_steps=20_000))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4_000_000


def test_a_number_of_a_stored_value_costs_nothing():
    """The standard reader would make room for two billion values. Found by fuzzing."""
    tracemalloc.start()
    assert load_plain(program("NONE", "LONG_BINPUT", b"\xf3\x77\x77\x88")) is None
    assert tracemalloc.get_traced_memory()[1] < 100_000
    tracemalloc.stop()


def test_limits_are_the_callers():
    data = pickle.dumps([[["deep"]]])
    assert load_plain(data, PickleLimits(max_depth=3)) == [[["deep"]]]
    with pytest.raises(PickleTooLarge, match="more than 2 deep"):
        load_plain(data, PickleLimits(max_depth=2))
    with pytest.raises(PickleTooLarge, match="more than 3 steps"):
        load_plain(data, PickleLimits(max_steps=3))


@given(st.binary(max_size=60))
@settings(max_examples=2000)
def test_any_bytes_are_read_or_refused(data):
    """And what is read is what the standard reader makes of it, where that accepts how the bytes are framed."""
    data = b"\x80\x04" + data
    try:
        value = load_plain(data)
    except PickleError:
        return
    with contextlib.suppress(pickle.UnpicklingError):
        expected = as_plain(pickle._loads(data))  # plain, as we know now, so this runs nothing
        assert value == expected or b"G" in data  # a float may be NaN, which equals nothing


def test_nothing_is_imported_or_opened():
    """By the interpreter's own audit events."""
    payloads = [pickle.dumps(Command(open, "/etc/hostname"), 4), HAND_MADE["global"], HAND_MADE["instance"]]
    with recorded() as events:
        for data in payloads:
            with pytest.raises(PickleError):
                load_plain(data)
    assert not [event for event, _ in events if event.startswith(("open", "import", "exec", "os.", "pickle"))]
