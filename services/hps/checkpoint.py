"""Which weights a file or folder holds: a published `HPS_v2*_compressed.pt`, or a folder written by `convert`."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast, get_args

from services.hps.vocabulary import FILE_NAME

Version = Literal["v2", "v2.1"]
REWARDS: dict[Version, str] = {"v2": "hpsv2", "v2.1": "hpsv2.1"}
SOURCE = "the published files are HPS_v2_compressed.pt and HPS_v2.1_compressed.pt of huggingface.co/xswu/HPSv2"
WEIGHTS_NAME, CONFIG_NAME = "model.safetensors", "config.json"
VERSION_FIELD, SHA256_FIELD = "hps_version", "hps_checkpoint_sha256"
_CONVERT = "a converted folder is written by `python -m services.hps convert CHECKPOINT FOLDER`"

_NAMED_VERSION = re.compile(r"v2(\.1)?(?![\d.]*\d)", re.IGNORECASE)
_CHUNK = 16 * 1024 * 1024


class CheckpointError(ValueError):
    """The weights are missing, damaged or not HPSv2's; the message names the remedy."""


@dataclass(frozen=True)
class Checkpoint:
    """Weights on disk. sha256: of the published file, also where `path` is a folder converted from it."""

    path: Path
    version: Version
    sha256: str

    @property
    def converted(self) -> bool:
        return self.path.is_dir()

    @property
    def vocabulary(self) -> Path:
        """Where the vocabulary is when nobody says: in the converted folder, or beside the published file."""
        return self.path if self.converted else self.path.with_name(FILE_NAME)


def inspect(path: Path, version: Version | None = None, progress: Callable[[int], object] | None = None) -> Checkpoint:
    """Find out version and identity without loading. A published file is read once for its sha256.

    The version comes from the folder's config or the file's name; `version` is for a file whose name does not say it.
    `progress` is called with the number of bytes read. Raises CheckpointError.
    """
    if path.is_dir():
        return _inspect_folder(path, version)
    if not path.is_file():
        raise CheckpointError(f"checkpoint {path}: no such file or folder; {SOURCE}")
    match = _NAMED_VERSION.search(path.name)
    named = cast(Version, match[0].lower()) if match else None
    return Checkpoint(path, _agreed(path, named, version), _sha256(path, progress))


def _inspect_folder(path: Path, version: Version | None) -> Checkpoint:
    missing = [name for name in (CONFIG_NAME, WEIGHTS_NAME) if not (path / name).is_file()]
    if missing:
        raise CheckpointError(f"checkpoint {path}: no {' and no '.join(missing)} there; {_CONVERT}")
    try:
        config = json.loads((path / CONFIG_NAME).read_text("utf-8"))
        named, sha256 = config[VERSION_FIELD], config[SHA256_FIELD]
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"checkpoint {path}: {CONFIG_NAME} is not one of ours ({error!r}); {_CONVERT}") from error
    if named not in get_args(Version):
        raise CheckpointError(f"checkpoint {path}: {VERSION_FIELD} is {named!r}, not one of {get_args(Version)}")
    return Checkpoint(path, _agreed(path, named, version), str(sha256))


def _agreed(path: Path, named: Version | None, asked: Version | None) -> Version:
    if named is not None and asked is not None and named != asked:
        raise CheckpointError(f"checkpoint {path}: is {named} by its name or config, and --version says {asked}")
    found = named or asked
    if found is None:
        raise CheckpointError(
            f"checkpoint {path}: the name does not say which HPS this is, and the two have the same shapes: "
            f"give --version v2 or --version v2.1"
        )
    return found


def _sha256(path: Path, progress: Callable[[int], object] | None) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            if progress is not None:
                progress(len(chunk))
    return digest.hexdigest()
