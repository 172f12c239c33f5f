"""Which weights a folder or file holds, found out without loading them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from machine.hub import HubError, fetch_file, fetch_folder, is_hub_file, is_hub_id, shown

CLIPS = ("clip", "siglip")
_PROCESSOR = "preprocessor_config.json"
_WEIGHTS = ("*.safetensors", "pytorch_model*.bin")
TOKENIZER_FILES = ("*.json", "*.txt", "*.model", "*.jinja")
MODEL_FILES = (*TOKENIZER_FILES, *_WEIGHTS)
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
        """As it is named in a revision: the folder or file, or its id with the commit, and which bytes it holds."""
        return f"{shown(self.path)} sha256:{self.sha256[:16]}"


def at_hand(path: Path, flag: str, files: Sequence[str] = MODEL_FILES) -> Path:
    """What a setting names: the path itself, or where huggingface_hub's cache has `owner/name` or a file of it, fetched if need be.

    files: patterns of what is needed of a whole model. Raises SourceError: the hub did not give it.
    """
    try:
        if is_hub_id(path):
            return fetch_folder(str(path), flag, files)
        return fetch_file(str(path), flag) if is_hub_file(path) else path
    except HubError as error:
        raise SourceError(str(error)) from error


def inspect_folder(
    path: Path, flag: str, kinds: Sequence[str] = CLIPS, example: str = "openai/clip-vit-large-patch14"
) -> Source:
    """Look at a model's folder as transformers writes it. Its weights are read once for their sha256.

    kinds: the values of `model_type` that will do. example: a published folder, for the message.

    Raises:
        SourceError: it is no such folder; the message names `flag`, the setting it came from.
    """
    path = at_hand(path, flag)
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


def inspect_any(path: Path, flag: str) -> Source:
    """Look at a file of weights, or at a folder of any kind of model: all its weights and JSON files count. Raises SourceError."""
    if path.is_file():
        return inspect_file(path, flag)
    files = sorted(found for pattern in ("*.json", *_WEIGHTS) for found in path.glob(pattern))
    if not files:
        raise SourceError(
            f"{flag} {path}: nothing there to load (*.json, {', '.join(_WEIGHTS)}); give a model's folder or file"
        )
    return Source(path, "folder", _sha256(files))


def inspect_file(path: Path, flag: str) -> Source:
    """Look at a file of weights. Raises SourceError when there is none."""
    path = at_hand(path, flag)
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
