"""Base64 in the shapes that people send."""

from __future__ import annotations

import base64
import textwrap

import pytest

from wire.base64_text import decode_base64, first_bytes
from wire.images import BadImageError, ImageLimits, ref_bytes
from wire.schema import ImageRef

DATA = bytes(range(256)) * 3 + b"\xff"
PLAIN = base64.b64encode(DATA).decode()
LINES = "\n".join(textwrap.wrap(PLAIN, 76))

SHAPES = {
    "plain": PLAIN,
    "in lines": LINES,
    "in lines of MIME": LINES.replace("\n", "\r\n") + "\r\n",
    "a data URL": "data:image/png;base64," + PLAIN,
    "a data URL with a parameter": "data:image/png;name=a.png;base64," + PLAIN,
    "a data URL without a type": "data:;base64," + PLAIN,
    "a data URL in capitals": "DATA:IMAGE/PNG;BASE64," + PLAIN,
    "a data URL in lines": "data:image/png;base64,\n" + LINES,
    "spaces around": f"  {PLAIN}\t",
    "the alphabet of URLs": base64.urlsafe_b64encode(DATA).decode(),
    "without padding": PLAIN.rstrip("="),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_gives_the_same_bytes(shape):
    assert decode_base64(SHAPES[shape]) == DATA
    assert first_bytes(SHAPES[shape], 12) == DATA[:12]


WRONG = {
    f"b'{PLAIN}'": "remove the b and the quotes",
    f'"{PLAIN}"': "remove the quotes around it",
    "data:image/png," + PLAIN: "`;base64,` are needed",
    "https://host/a.png": "an address: send the bytes, or the address as `url`",
    PLAIN[:8] + "@" + PLAIN[8:]: f"remove '@', the first of '@{PLAIN[8:27]}' at character 8",
    "<base64>" + PLAIN: "remove '<'",
    "A": "not base64",
    "AAAA=AAA": "not base64",
}


@pytest.mark.parametrize("text", WRONG)
def test_what_is_not_base64_says_what_to_remove(text):
    with pytest.raises(BadImageError) as caught:
        ref_bytes(ImageRef(media_type="image/png", data=text), {})
    assert str(caught.value).startswith("`data` is not base64") and WRONG[text] in str(caught.value)
    assert len(str(caught.value)) < 200


def test_the_limit_counts_the_picture_and_not_its_lines():
    limits = ImageLimits(max_bytes=len(DATA))
    for shape in SHAPES.values():
        assert ref_bytes(ImageRef(media_type="image/png", data=shape), {}, limits) == DATA
    with pytest.raises(BadImageError, match=rf"image of {len(PLAIN)} base64 characters; the limit is 300 bytes"):
        ref_bytes(ImageRef(media_type="image/png", data="data:image/png;base64," + LINES), {}, ImageLimits(300))
