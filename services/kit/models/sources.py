"""Which weights a folder or file holds, found out without loading them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

CLIPS = ("clip", "siglip")
_PROCESSOR = "preprocessor_config.json"
_WEIGHTS = ("*.safetensors", "pytorch_model*.bin")
_CHUNK = 16 * 1024 * 1024


class SourceError(ValueError):
    """The weights are missing, damaged or of another kind; the message names the remedy."""


@dataclass(frozen=True)
class Source:
    """A model on disk. sha256: over the weights' bytes, and for a folder over its configuration, too."""

    path: Path
    kind: str
    sha256: str

    @property
    def name(self) -> str:
        """As it is named in a revision: the folder or file, and which bytes it holds."""
        return f"{self.path.name} sha256:{self.sha256[:16]}"


def inspect_folder(
    path: Path, flag: str, kinds: Sequence[str] = CLIPS, example: str = "openai/clip-vit-large-patch14"
) -> Source:
    """Look at a model's folder as transformers writes it. Its weights are read once for their sha256.

    kinds: the values of `model_type` that will do. example: a published folder, for the message.

    Raises:
        SourceError: it is no such folder; the message names `flag`, the setting it came from.
    """
    remedy = f"give the folder of a model of type {' or '.join(kinds)}, such as {example} downloaded whole"
    config_path = path / "config.json"
    if not config_path.is_file():
        raise SourceError(f"{flag} {path}: there is no config.json; {remedy}")
    try:
        kind = json.loads(config_path.read_text("utf-8"))["model_type"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SourceError(f"{flag} {path}: config.json names no model_type ({error!r}); {remedy}") from error
    if kind not in kinds:
        raise SourceError(f"{flag} {path}: model_type is {kind!r}, not one of {', '.join(kinds)}; {remedy}")
    if not (path / _PROCESSOR).is_file():
        raise SourceError(f"{flag} {path}: there is no {_PROCESSOR}; {remedy}")
    weights = next((found for pattern in _WEIGHTS if (found := sorted(path.glob(pattern)))), [])
    if not weights:
        raise SourceError(f"{flag} {path}: there are no weights ({' or '.join(_WEIGHTS)}); {remedy}")
    return Source(path, kind, _sha256([config_path, path / _PROCESSOR, *weights]))


def inspect_file(path: Path, flag: str) -> Source:
    """Look at a file of weights. Raises SourceError when there is none."""
    if not path.is_file():
        raise SourceError(f"{flag} {path}: there is no such file")
    return Source(path, "file", _sha256([path]))


def _sha256(paths: list[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
    return digest.hexdigest()
