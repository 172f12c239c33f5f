"""The cache key separates all that may change a score; the cache forgets the least recently used."""

from __future__ import annotations

from dataclasses import replace

import pytest
from PIL import Image

from services.common.cache import ScoreCache, cache_key
from services.common.scorer import Item, Score
from wire.schema import ScorerInfo

INFO = ScorerInfo(name="r", revision="1", range=(0, 1))


def image(color="red", size=(4, 4), mode="RGB"):
    return Image.new("RGB", size, color).convert(mode)


def paletted(colors):
    made = Image.new("P", (4, 4), 0)
    made.putpalette(colors)
    return made


def rotated():
    made = image()
    made.info["exif"] = b"rotate me"
    return made


BASE = Item(id="a", prompt="p", images=(image(),), metadata={"k": 1}, targets=("x",))
OTHERS = {
    "prompt": replace(BASE, prompt="q"),
    "completion": replace(BASE, completion=""),
    "targets": replace(BASE, targets=("y",)),
    "no targets": replace(BASE, targets=None),
    "empty targets": replace(BASE, targets=()),
    "split targets": replace(BASE, targets=("x", "")),
    "metadata": replace(BASE, metadata={"k": 2}),
    "metadata type": replace(BASE, metadata={"k": "1"}),
    "metadata bool": replace(BASE, metadata={"k": True}),
    "metadata float": replace(BASE, metadata={"k": 1.0}),
    "pixel": replace(BASE, images=(image("blue"),)),
    "size": replace(BASE, images=(image(size=(2, 8)),)),
    "mode": replace(BASE, images=(image(mode="RGBA"),)),
    "grey": replace(BASE, images=(image(mode="L"),)),
    "exif": replace(BASE, images=(rotated(),)),
    "palette one": replace(BASE, images=(paletted([1, 2, 3]),)),
    "palette two": replace(BASE, images=(paletted([3, 2, 1]),)),
    "two images": replace(BASE, images=(image(), image())),
    "image as source": replace(BASE, images=(), source_images=(image(),)),
    "with source": replace(BASE, source_images=(image(),)),
}


def test_every_scored_field_changes_the_key():
    keys = {name: cache_key(INFO, item) for name, item in (OTHERS | {"base": BASE}).items()}
    assert len(set(keys.values())) == len(keys)


@pytest.mark.parametrize("change", [{"name": "s"}, {"revision": "2"}, {"template_sha256": "0" * 64}])
def test_the_scorer_changes_the_key(change):
    assert cache_key(INFO.model_copy(update=change), BASE) != cache_key(INFO, BASE)


def test_names_do_not_change_the_key():
    renamed = replace(BASE, id="b", group_id="g", images=(image(),), metadata=dict(BASE.metadata))
    assert cache_key(INFO, renamed) == cache_key(INFO, BASE)
    one, two = replace(BASE, metadata={"a": 1, "b": 2}), replace(BASE, metadata={"b": 2, "a": 1})
    assert cache_key(INFO, one) == cache_key(INFO, two)


def test_least_recently_used_goes_first():
    cache = ScoreCache(2)
    for name in (b"a", b"b"):
        cache.put(name, (Score(1.0),))
    cache.get(b"a")
    cache.put(b"c", (Score(3.0),))
    assert [cache.get(name) is not None for name in (b"a", b"b", b"c")] == [True, False, True]
    assert len(cache) == 2


def test_size_zero_keeps_nothing():
    cache = ScoreCache(0)
    cache.put(b"a", (Score(1.0),))
    assert (cache.enabled, cache.get(b"a")) == (False, None)
