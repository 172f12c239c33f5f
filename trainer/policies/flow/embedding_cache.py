"""Embeddings of frozen encoders, made once: in memory up to a bound, then on disk, where ranks and runs share them."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

logger = logging.getLogger(__name__)

_SAMPLED_BYTES = 1 << 20


class EmbeddingCache:
    """Maps a text to the tensors that an encoder makes of it, on the CPU.

    What is on disk is named by a hash of the encoder's fingerprint and the text, and written under a temporary name
    first: of ranks that write the same entry at once the last one's stays, and none reads half of one.

    Args:
        fingerprint: of the encoder and its settings, as `fingerprint` makes it; another one shares no entries.
        max_bytes: bound on what is kept in memory, an attribute, too; the least recently used go first.
        folder: where entries are kept over runs; None keeps none.
    """

    def __init__(self, fingerprint: str, *, max_bytes: int, folder: Path | None = None) -> None:
        self._fingerprint, self.max_bytes, self._folder = fingerprint, max_bytes, folder
        self._memory: OrderedDict[str, dict[str, Tensor]] = OrderedDict()
        self._bytes = 0

    def get(self, text: str, encode: Callable[[str], Mapping[str, Tensor]]) -> Mapping[str, Tensor]:
        """The tensors of `text`: from memory, from disk, or from `encode`, which is then not asked again."""
        if text in self._memory:
            self._memory.move_to_end(text)
            return self._memory[text]
        tensors = self._read(text)
        if tensors is None:
            tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in encode(text).items()}
            self._write(text, tensors)
        self._remember(text, tensors)
        return tensors

    def _remember(self, text: str, tensors: dict[str, Tensor]) -> None:
        self._memory[text] = tensors
        self._bytes += num_bytes(tensors)
        while self._bytes > self.max_bytes and len(self._memory) > 1:
            _, oldest = self._memory.popitem(last=False)
            self._bytes -= num_bytes(oldest)

    def _path(self, text: str) -> Path:
        assert self._folder is not None
        name = hashlib.sha256(f"{self._fingerprint}\0{text}".encode()).hexdigest()
        return self._folder / name[:2] / f"{name}.safetensors"

    def _read(self, text: str) -> dict[str, Tensor] | None:
        """What the disk holds for `text`; None for nothing, or for a damaged file, which is then written anew."""
        if self._folder is None:
            return None
        path = self._path(text)
        try:
            with safe_open(str(path), framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
                expected = (file.metadata() or {}).get("crc32")
        except FileNotFoundError:
            return None
        except (SafetensorError, OSError) as error:
            logger.warning("%s cannot be read (%s); its prompt is encoded again", path, error)
            return None
        if expected != _checksum(tensors):
            logger.warning("%s is damaged (checksum %s); its prompt is encoded again", path, expected)
            return None
        return tensors

    def _write(self, text: str, tensors: dict[str, Tensor]) -> None:
        if self._folder is None:
            return
        path = self._path(text)
        temporary = path.with_name(f"{path.name}.{uuid4().hex}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            save_file(tensors, str(temporary), metadata={"text": text, "crc32": _checksum(tensors)})
            os.replace(temporary, path)
        except (SafetensorError, OSError) as error:  # a full disk costs time, never the run
            with suppress(OSError):
                temporary.unlink()
            logger.warning("%s cannot be written (%s); the embedding stays in memory only", path, error)


def fingerprint(files: Iterable[Path], settings: Mapping[str, object]) -> str:
    """A hash of an encoder's files and settings. Of a large file it takes the size, the first and the last MiB."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    for path in sorted(files):
        size = path.stat().st_size
        digest.update(f"{path.parent.name}/{path.name}:{size}".encode())
        with path.open("rb") as file:
            digest.update(file.read(_SAMPLED_BYTES))
            file.seek(max(size - _SAMPLED_BYTES, 0))
            digest.update(file.read(_SAMPLED_BYTES))
    return digest.hexdigest()


def num_bytes(tensors: Mapping[str, Tensor]) -> int:
    """Of all of them."""
    return sum(tensor.nbytes for tensor in tensors.values())


def _checksum(tensors: Mapping[str, Tensor]) -> str:
    value = 0
    for name in sorted(tensors):
        value = zlib.crc32(
            tensors[name].reshape(-1).view(torch.uint8).numpy().tobytes(), zlib.crc32(name.encode(), value)
        )
    return str(value)
