"""Tesseract, as the program of that name. CPU, one thread."""

from __future__ import annotations

import csv
import io
import os
import shutil
import struct
import subprocess
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

from PIL import Image

from services.kit.models.pixels import to_rgb
from services.ocr.engines.base import EngineOptions, EngineUnavailableError, Line, rectangle
from services.ocr.engines.line import line_strip

_INSTALL = "install it (Debian, Ubuntu: apt-get install tesseract-ocr; macOS: brew install tesseract)"
_TIMEOUT_S = 30.0
# Tesseract reads capitals of about 30 pixels best; line images below this height are scaled up to it.
_LINE_HEIGHT = 64
_SPARSE_TEXT, _SINGLE_LINE = "11", "7"
# Places of components in a data file, and entries of a character set that are no characters.
_UNICHARSET, _LSTM_UNICHARSET = 1, 21
_PLACEHOLDERS = {"NULL", "Joined", "|Broken|0|1"}


class TesseractEngine:
    """Page mode looks for sparse text (page segmentation 11), line mode reads one line (7).

    Options used: mode, min_confidence, language (a `tesseract --list-langs` name; several joined by "+").
    """

    def __init__(self, options: EngineOptions) -> None:
        self._options = options
        program = shutil.which("tesseract")
        if program is None:
            raise EngineUnavailableError(f"the program `tesseract` is not on PATH: {_INSTALL}")
        self._program = program
        self._version = self._run(["--version"]).split()[1]

    @cached_property
    def characters(self) -> frozenset[str] | None:
        """From the character sets in the languages' data files; None where one is missing or of another format."""
        # The list begins: List of available languages in "/usr/share/tesseract-ocr/5/tessdata/" (2):
        _, _, folder = self._run(["--list-langs"]).split("\n")[0].partition('"')
        files = [Path(folder.rpartition('"')[0]) / f"{name}.traineddata" for name in self._options.language.split("+")]
        found = [_character_set(file) for file in files]
        return frozenset().union(*(each for each in found if each)) if all(found) else None

    @property
    def revision(self) -> str:
        options = self._options
        return f"tesseract-{self._version} {options.language} {options.mode} min_confidence={options.min_confidence:g}"

    def load(self) -> None:
        languages = self._run(["--list-langs"]).split("\n")[1:]
        missing = [name for name in self._options.language.split("+") if name not in languages]
        if missing:
            remedy = f"install its data (Debian, Ubuntu: apt-get install tesseract-ocr-{missing[0]})"
            raise EngineUnavailableError(f"tesseract has no language {missing[0]!r}: {remedy}")

    def read(self, images: Sequence[Image.Image]) -> list[list[Line]]:
        return [self._read_one(image) for image in images]

    def _read_one(self, image: Image.Image) -> list[Line]:
        if self._options.mode == "page":
            return self._lines(to_rgb(image), _SPARSE_TEXT)
        strip, box = line_strip(image)
        if strip.height < _LINE_HEIGHT:
            width = max(round(strip.width * _LINE_HEIGHT / strip.height), 1)
            strip = strip.resize((width, _LINE_HEIGHT), Image.Resampling.BICUBIC)
        return [Line(line.text, line.confidence, box) for line in self._lines(strip, _SINGLE_LINE)]

    def _lines(self, image: Image.Image, segmentation: str) -> list[Line]:
        buffer = io.BytesIO()
        image.save(buffer, "PPM")
        arguments = ["stdin", "stdout", "--psm", segmentation, "--dpi", "300", "-l", self._options.language, "tsv"]
        words: dict[tuple[str, ...], list[Mapping[str, str]]] = {}
        for row in csv.DictReader(
            io.StringIO(self._run(arguments, buffer.getvalue())), delimiter="\t", quoting=csv.QUOTE_NONE
        ):
            if row["level"] == "5" and row["text"].strip():
                words.setdefault((row["block_num"], row["par_num"], row["line_num"]), []).append(row)
        lines = [_line(row) for row in words.values()]
        return [line for line in lines if line.confidence >= self._options.min_confidence]

    def _run(self, arguments: list[str], data: bytes = b"") -> str:
        """Raises RuntimeError with the program's own words when it fails or takes too long."""
        try:
            done = subprocess.run(
                [self._program, *arguments],
                input=data,
                capture_output=True,
                check=True,
                timeout=_TIMEOUT_S,
                # Its OpenMP threads fight over the cores of the other workers; measured, they only cost time.
                env={**os.environ, "OMP_THREAD_LIMIT": "1"},
            )
        except subprocess.CalledProcessError as error:
            words = error.stderr.decode("utf-8", "replace").strip()
            raise RuntimeError(f"tesseract failed with status {error.returncode}: {words}") from error
        except subprocess.TimeoutExpired as error:
            raise RuntimeError(f"tesseract took more than {_TIMEOUT_S:g} s") from error
        return done.stdout.decode("utf-8")


def _character_set(file: Path) -> frozenset[str]:
    """Characters of a `.traineddata` file: a count, that many offsets of its components, the components."""
    try:
        data = file.read_bytes()
        count = int.from_bytes(data[:4], "little")
        offsets = struct.unpack_from(f"<{count}q", data, 4)
        begin = next(offsets[n] for n in (_LSTM_UNICHARSET, _UNICHARSET) if offsets[n] >= 0)
        end = min(offset for offset in (*offsets, len(data)) if offset > begin)
        _, *lines = data[begin:end].decode("utf-8").splitlines()
    except (OSError, ValueError, struct.error, LookupError, StopIteration):
        return frozenset()
    units = (line.partition(" ")[0] for line in lines)
    return frozenset(character for unit in units if unit not in _PLACEHOLDERS for character in unit)


def _line(words: Sequence[Mapping[str, str]]) -> Line:
    """The words of one line; its confidence is the mean over its words."""
    left = min(int(word["left"]) for word in words)
    top = min(int(word["top"]) for word in words)
    right = max(int(word["left"]) + int(word["width"]) for word in words)
    bottom = max(int(word["top"]) + int(word["height"]) for word in words)
    confidence = sum(float(word["conf"]) for word in words) / len(words) / 100
    return Line(" ".join(word["text"] for word in words), confidence, rectangle(left, top, right, bottom))
