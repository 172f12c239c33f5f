"""Jobs and answers as they lie in Redis: what comes out is what went in, to the bit; anything else is refused."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.kit.dispatch.base import Job, Outcome
from services.kit.scale.messages import (
    Answer,
    DamagedMessage,
    decode_answer,
    decode_job,
    decode_scores,
    encode_answer,
    encode_job,
    encode_scores,
)
from services.kit.scorer import Failure, Item, Score
from wire.schema import ErrorCode, ImageRef, ScoreItem

KEY = bytes(range(32))
FINITE = st.floats(allow_nan=False, allow_infinity=False)
TEXT = st.text(st.characters(exclude_categories=["Cs"]))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | FINITE | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
SCORES = st.builds(
    Score,
    FINITE,
    st.dictionaries(TEXT, FINITE, max_size=3),
    st.dictionaries(TEXT, JSON, max_size=3),
    st.booleans(),
)
FAILURES = st.builds(Failure, st.sampled_from(ErrorCode), TEXT)


def stored(fields):
    """As Redis gives back what XADD was given."""
    texts = [
        each if isinstance(each, bytes) else bytes(each) if isinstance(each, memoryview) else str(each).encode()
        for each in fields
    ]
    return dict(zip(texts[::2], texts[1::2], strict=True))


def job_of(*sent, parts=None, key=KEY):
    return Job(tuple(Item(item.id, item.prompt) for item in sent), key, sent, parts or {})


PLAIN = ScoreItem(id="a", prompt="two \N{CHECK MARK}\n", completion="", targets=[], metadata={"k": None, "x": [1, 2.5]})


def test_an_item_comes_through_with_its_images_as_raw_bytes():
    png, raw = b"\x89PNG\r\n\x00 not really", bytes(range(12))
    sent = ScoreItem(
        id="a",
        prompt="p",
        images=[
            ImageRef(media_type="image/png", part="theirs"),
            ImageRef(media_type="image/x-rgb8", part="mine", width=2, height=2),
        ],
        source_images=[ImageRef(media_type="image/x-rgb8", part="mine", width=2, height=2)],
    )
    fields = stored(
        encode_job(
            b"id",
            "front",
            job_of(sent, parts={"mine": memoryview(raw), "theirs": memoryview(png), "other": memoryview(b"no")}),
            5,
        )
    )
    found = decode_job(fields)
    assert (found.job_id, found.front, found.key, found.wait_ms) == (b"id", "front", KEY, 5)
    [item] = found.items
    refs = [*item.images, *item.source_images]
    assert [bytes(found.parts[ref.part]) for ref in refs] == [png, raw, raw]
    assert [(ref.media_type, ref.width, ref.height) for ref in refs[1:]] == [("image/x-rgb8", 2, 2)] * 2
    assert b"no" not in fields.values(), "another item's image came along"


def test_all_other_fields_come_through():
    group = [PLAIN, PLAIN.model_copy(update={"id": "b", "group_id": "g", "completion": "text", "targets": ["T"]})]
    found = decode_job(stored(encode_job(b"id", "front", job_of(*group, key=None), 1)))
    assert list(found.items) == group and found.key is None and found.parts == {}


@pytest.mark.parametrize(
    "change",
    [
        {b"items": b"not json"},
        {b"items": b"[]"},
        {b"items": b'[{"id": "a"}]'},
        {b"items": None},
        {b"job": None},
        {b"front": b"\xff"},
        {b"wait_ms": b"soon"},
        {b"key": None},
    ],
)
def test_a_damaged_job_is_refused(change):
    fields = stored(encode_job(b"id", "front", job_of(PLAIN), 1)) | change
    with pytest.raises(DamagedMessage, match=r"not a job|no items"):
        decode_job({name: value for name, value in fields.items() if value is not None})


@settings(max_examples=200, deadline=None)
@given(st.lists(SCORES | FAILURES, min_size=1, max_size=3), st.booleans(), st.booleans(), st.floats(0, 1e6))
def test_an_answer_is_bit_equal(results, cached, expired, seconds):
    answer = Answer(Outcome(tuple(results), cached, seconds, seconds / 3), expired)
    found = decode_answer(encode_answer(answer), len(results))
    assert found == answer
    assert repr(found) == repr(answer), "equal is not the same: -0.0 == 0.0, 1 == 1.0 == True"


@settings(max_examples=50, deadline=None)
@given(st.lists(SCORES, min_size=1, max_size=3))
def test_saved_scores_are_bit_equal(scores):
    assert repr(decode_scores(KEY, encode_scores(KEY, scores), len(scores))) == repr(tuple(scores))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not a _Answer"),
        (b"\x80\x04K\x01.", "not a _Answer"),
        (b'{"results":[{"value":NaN}],"cached":false,"queue_s":0,"compute_s":0,"expired":false}', "not a _Answer"),
        (b'{"results":[{"value":1e999}],"cached":false,"queue_s":0,"compute_s":0,"expired":false}', "not a _Answer"),
        (b'{"results":[],"cached":false,"queue_s":0,"compute_s":0,"expired":false}', "0 results for 1 items"),
        (b'{"results":[{"value":1}],"cached":false,"queue_s":-1,"compute_s":0,"expired":false}', "queue_s"),
    ],
)
def test_a_damaged_answer_is_refused(data, message):
    with pytest.raises(DamagedMessage, match=message):
        decode_answer(data, 1)


def test_scores_under_a_wrong_key_or_for_another_number_of_items_are_refused():
    data = encode_scores(KEY, [Score(1.0)])
    for key, items in ((KEY[::-1], 1), (KEY, 2)):
        with pytest.raises(DamagedMessage):
            decode_scores(key, data, items)
    with pytest.raises(DamagedMessage):
        decode_scores(KEY, json.dumps({"key": KEY.hex(), "scores": [{"value": "0.5"}]}).encode()[:-3], 1)


def test_a_part_that_several_items_of_a_job_name_travels_once():
    ref = ImageRef(media_type="image/png", part="source")
    own = [ImageRef(media_type="image/png", part=f"p{n}") for n in range(3)]
    group = [ScoreItem(id=str(n), group_id="g", prompt="p", images=[own[n]], source_images=[ref]) for n in range(3)]
    parts = {"source": memoryview(b"the source"), **{f"p{n}": memoryview(b"picture %d" % n) for n in range(3)}}
    found = decode_job(stored(encode_job(b"id", "front", job_of(*group, parts=parts), 5)))
    assert sorted(bytes(part) for part in found.parts.values()) == [
        b"picture 0",
        b"picture 1",
        b"picture 2",
        b"the source",
    ]
    for number, item in enumerate(found.items):
        assert bytes(found.parts[item.images[0].part]) == b"picture %d" % number
        assert bytes(found.parts[item.source_images[0].part]) == b"the source"
