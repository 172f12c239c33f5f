"""Base64 as people send it: plain, as a `data:` URL, in lines, or in the alphabet of URLs."""

from __future__ import annotations

import base64
import binascii
import re

_LONGEST_PREFIX = 200
_PREFIX = re.compile(r"data:[^,]{0,180}?;base64,", re.IGNORECASE)
_SHOWN = 20  # characters of a wrong value that are repeated


def decode_base64(text: str) -> bytes:
    """The bytes that `text` stands for.

    A `data:...;base64,` before it is skipped, white space is ignored, `-` and `_` stand for `+` and `/`, and the `=` at
    its end may be missing. Raises ValueError, which says what is to be removed.
    """
    try:
        return base64.b64decode(text, validate=True)  # what most send costs no look at its characters
    except (binascii.Error, ValueError):
        pass
    plain = _plain(text)
    try:
        return base64.b64decode(plain + "=" * (-len(plain) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(_what_is_wrong(plain, str(error))) from error


def first_bytes(text: str, count: int) -> bytes:
    """The first `count` bytes that `text` stands for, or fewer; none where it is not base64."""
    plain = _plain(text[: 2 * count + _LONGEST_PREFIX])
    try:
        return base64.b64decode(plain[: len(plain) // 4 * 4], validate=True)[:count]
    except (binascii.Error, ValueError):
        return b""


def base64_length(text: str) -> int:
    """How many characters of `text` are base64: without what `decode_base64` skips."""
    return len(_plain(text))


def _plain(text: str) -> str:
    plain = "".join(text.split())
    prefix = _PREFIX.match(plain)
    if prefix is not None:
        plain = plain[prefix.end() :]
    return plain.replace("-", "+").replace("_", "/")


def _what_is_wrong(plain: str, reason: str) -> str:
    if plain[:2] in ("b'", 'b"'):
        return "not base64: it begins as Python shows bytes: remove the b and the quotes, with .decode()"
    if plain[:1] in ("'", '"'):
        return "not base64: remove the quotes around it"
    if plain.startswith("data:"):
        return "not base64: after `data:` a media type and `;base64,` are needed"
    if plain.startswith(("http:", "https:")):
        return "not base64 but an address: send the bytes, or the address as `url`"
    wrong = re.search(r"[^A-Za-z0-9+/=]", plain)
    if wrong is not None:
        seen = plain[wrong.start() : wrong.start() + _SHOWN]
        return f"not base64: remove {wrong[0]!r}, the first of {seen!r} at character {wrong.start()}"
    return f"not base64: {reason}"
