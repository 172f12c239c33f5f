"""The text a judge is asked with. It is part of the model: another wording, another reward.

Ours is the default. A text published with a model is loaded from a file the user names and recognised by its hash.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

PLACEHOLDER = "<<PROMPT>>"
_MAX_BYTES = 1 << 20


@dataclass(frozen=True)
class Template:
    """`name` is `own`, the name of the published text it equals, or `custom`; `sha256` is of its UTF-8 bytes."""

    name: str
    text: str
    sha256: str

    def fill(self, prompt: str) -> str:
        """The text with the prompt in the placeholder's place; nothing in the prompt is escaped or read."""
        return self.text.replace(PLACEHOLDER, prompt)


def own_template(text: str) -> Template:
    """One of our own wordings."""
    return Template("own", text, _sha256(text.encode()))


def load_template(path: Path, published: Mapping[str, str]) -> Template:
    """Read a template byte for byte: spaces and line ends belong to the format a model was trained with.

    `published` maps sha256 to name. Raises ValueError, with the remedy, when the file cannot be used.
    """
    try:
        data = path.read_bytes()
        text = data.decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"template {path} cannot be read as UTF-8 text: {error}") from error
    if not text.strip() or len(data) > _MAX_BYTES:
        raise ValueError(f"template {path} has {len(data)} bytes; it needs at least a word and at most {_MAX_BYTES}")
    digest = _sha256(data)
    return Template(published.get(digest, "custom"), text, digest)


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
