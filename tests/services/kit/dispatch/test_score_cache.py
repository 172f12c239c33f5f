"""The cache key separates all that may change a score; the cache forgets the least recently used."""

from __future__ import annotations

import pytest

from services.kit.dispatch.cache import ScoreCache, cache_key
from services.kit.scorer import Score
from wire.schema import ImageRef, ScoreItem, ScorerInfo

INFO = ScorerInfo(name="r", revision="1", range=(0, 1))


def ref(media_type="image/png", **size):
    return ImageRef(media_type=media_type, part="p", **size)


def key(encoded=(b"picture",), info=INFO, **changes):
    """The key of one item with as many images as there are encodings, of which `sources` are source images."""
    sources = changes.pop("sources", 0)
    refs = changes.pop("refs", [ref()] * len(encoded))
    fields = {"id": "a", "prompt": "p", "metadata": {"k": 1}, "targets": ["x"], "completion": "c"} | changes
    split = len(refs) - sources
    return cache_key(info, ScoreItem(images=refs[:split], source_images=refs[split:] or None, **fields), encoded)


OTHERS = {
    "prompt": {"prompt": "q"},
    "completion": {"completion": ""},
    "no completion": {"completion": None},
    "targets": {"targets": ["y"]},
    "no targets": {"targets": None},
    "empty targets": {"targets": []},
    "split targets": {"targets": ["x", ""]},
    "metadata": {"metadata": {"k": 2}},
    "metadata type": {"metadata": {"k": "1"}},
    "metadata bool": {"metadata": {"k": True}},
    "metadata float": {"metadata": {"k": 1.0}},
    "picture": {"encoded": (b"another",)},
    "media type": {"refs": [ref("image/jpeg")]},
    "raw, wide": {"refs": [ref("image/x-rgb8", width=4, height=1)]},
    "raw, tall": {"refs": [ref("image/x-rgb8", width=1, height=4)]},
    "two images": {"encoded": (b"picture", b"picture")},
    "two images, cut elsewhere": {"encoded": (b"pict", b"urepicture")},
    "two images, turned round": {"encoded": (b"urepicture", b"pict")},
    "image as source": {"sources": 1},
    "with source": {"encoded": (b"picture", b"picture"), "sources": 1},
}


def test_every_scored_field_changes_the_key():
    keys = {name: key(**changes) for name, changes in (OTHERS | {"base": {}}).items()}
    assert len(set(keys.values())) == len(keys)


@pytest.mark.parametrize("change", [{"name": "s"}, {"revision": "2"}, {"template_sha256": "0" * 64}])
def test_the_scorer_changes_the_key(change):
    assert key(info=INFO.model_copy(update=change)) != key()


def test_names_and_the_way_an_image_travelled_do_not_change_the_key():
    inline = ImageRef(media_type="image/png", data="cGljdHVyZQ==")
    assert key(id="b", group_id="g", refs=[inline], encoded=(memoryview(b"picture"),)) == key()
    assert key(metadata={"a": 1, "b": 2}) == key(metadata={"b": 2, "a": 1})


def test_least_recently_used_goes_first():
    cache = ScoreCache(2)
    for name in (b"a", b"b"):
        cache.put(name, (Score(1.0),))
    cache.get(b"a")
    cache.put(b"c", (Score(3.0),))
    assert [cache.get(name) is not None for name in (b"a", b"b", b"c")] == [True, False, True]
    assert len(cache) == 2


def test_the_scores_of_a_group_count_each():
    cache = ScoreCache(5)
    group = (Score(1.0), Score(2.0))
    for name in (b"a", b"b", b"b", b"c"):
        cache.put(name, group)
    assert (cache.get(b"a"), cache.get(b"b"), cache.get(b"c")) == (None, group, group)
    assert len(cache) == 4
    cache.put(b"d", (Score(0.0),) * 6)
    assert (cache.get(b"d"), len(cache)) == (None, 0), "a group that is larger than the cache is not kept"


def test_size_zero_keeps_nothing():
    cache = ScoreCache(0)
    cache.put(b"a", (Score(1.0),))
    assert (cache.enabled, cache.get(b"a")) == (False, None)
