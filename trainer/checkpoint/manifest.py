"""What a checkpoint consists of, with checksums: a damaged or incomplete one is known before it is used."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from trainer.checkpoint.layout import CheckpointError, DamagedError, UnreadableError, write_whole

MANIFEST = "manifest.json"
FORMAT = 1


@dataclass(frozen=True)
class FileRecord:
    """SHA-256 (hexadecimal) and size in bytes of a file."""

    sha256: str
    bytes: int

    @classmethod
    def of(cls, path: Path) -> FileRecord:
        """Read a file whole. Hashing leaves other threads running."""
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256")
            return cls(digest.hexdigest(), file.tell())


@dataclass(frozen=True)
class Manifest:
    """The files of a checkpoint by name, and the number of the shard that holds each parameter."""

    step: int
    files: Mapping[str, FileRecord]
    shard_of: Mapping[str, int]

    def write(self, folder: Path) -> None:
        """Write `manifest.json`, with a checksum of its own."""
        body = {"format": FORMAT, "step": self.step, "files": _plain(self.files), "parameters": dict(self.shard_of)}
        write_whole(folder / MANIFEST, json.dumps({"sha256": _digest(body), **body}, indent=1))

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Read a folder's manifest.

        Raises:
            DamagedError: there is none, or it is not what was written.
            UnreadableError: the file system does not give it, or not even the folder.
            CheckpointError: another version of this program wrote it.
        """
        path = folder / MANIFEST
        try:
            body = json.loads(path.read_text(encoding="utf-8"))
            if body.pop("sha256") != _digest(body):
                raise ValueError("its own checksum does not match")
            if body["format"] != FORMAT:
                raise CheckpointError(
                    f"{folder} has format {body['format']}, this program reads format {FORMAT}: go on with the version "
                    "that wrote it, or choose another run_name"
                )
            files = {name: FileRecord(**record) for name, record in body["files"].items()}
            return cls(body["step"], files, body["parameters"])
        except OSError as error:
            raise _not_read(folder, MANIFEST, error) from error
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise damaged(folder, f"{MANIFEST}: {error}") from error

    def verify(self, folder: Path, names: Collection[str]) -> None:
        """Check these files' sizes and checksums. Raises DamagedError or UnreadableError naming the first that fails."""
        for name in names:
            record = self.files[name]
            try:
                size = (folder / name).stat().st_size
                found = FileRecord.of(folder / name) if size == record.bytes else None
            except OSError as error:
                raise _not_read(folder, name, error) from error
            if found is None:
                raise damaged(folder, f"{name} has {size} bytes, {record.bytes} were written")
            if found != record:
                raise damaged(folder, f"{name}: its checksum is not the one that was written")


def damaged(folder: Path, problem: str) -> DamagedError:
    """The error for a checkpoint that cannot be used."""
    return DamagedError(
        f"{folder} is not a usable checkpoint ({problem}); delete it to go on from an older one, or use resume=never "
        "with another run_name"
    )


def _not_read(folder: Path, name: str, error: OSError) -> CheckpointError:
    """A file that is gone out of a folder that is there was taken away; anything else may pass."""
    if isinstance(error, FileNotFoundError) and os.path.isdir(folder):  # Path.is_dir raises what the file system says
        return damaged(folder, f"{name} is missing")
    return UnreadableError(f"{folder / name} cannot be read ({error.strerror or error})")


def _plain(files: Mapping[str, FileRecord]) -> dict[str, dict[str, object]]:
    return {name: asdict(record) for name, record in sorted(files.items())}


def _digest(body: Mapping[str, object]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
