"""Images with their texts, for the supervised loss: a list read once, images opened as they are drawn."""

from __future__ import annotations

import bisect
import itertools
import json
from collections.abc import Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from trainer.config import ConfigError, SftLossConfig
from trainer.config.supervised_loss import SftSetConfig
from trainer.data.pictures import BROKEN, BrokenPicturesError, open_picture
from trainer.seeds import sample_seed
from trainer.types import Captioned, Prompt

_ATTEMPTS = 10  # images tried for one place before the data set is given up


class Row(NamedTuple):
    """An entry; `weight` says how often it is drawn relative to others."""

    picture: Path
    text: str
    weight: float


class CaptionData:
    """A data set in DeepGen's format: a JSON array or JSON lines of {image_path, txt}.

    A place of an update is filled from the seed and the place alone, so a restart or another number of ranks draws the
    same images. A broken one is passed over for the next draw of its place, at most ten times.

    Raises:
        ConfigError: no such file, not JSON, no entry, or an entry without its two texts.
    """

    def __init__(self, config: SftLossConfig, seed: int) -> None:
        self.config, self.seed = config, seed
        self._take([row for each in config.files for row in _read_rows(each, config.image_folder)])

    def _take(self, rows: list[Row]) -> None:
        self.rows = rows
        self._weights = list(itertools.accumulate(row.weight for row in rows))
        self._even = len({row.weight for row in rows}) == 1

    @property
    def texts(self) -> list[str]:
        """All texts."""
        return [row.text for row in self.rows]

    def leave_out(self, texts: Set[str]) -> None:
        """Draw none of the entries with these texts from now on. Raises ConfigError where no other is left."""
        kept = [row for row in self.rows if row.text not in texts]
        if not kept:
            named = ", ".join(each.path for each in self.config.files)
            raise ConfigError(
                f"sft.path = {named}: all of its {len(self.rows)} texts are held-out prompts, too; give "
                "another file, or set data.overlap: allow"
            )
        self._take(kept)

    def draw(self, update: int, places: Sequence[int]) -> Captioned:
        """The images of these places of update number `update`.

        Raises:
            BrokenPicturesError: a place found no image that can be read.
            ConfigError: images of different sizes, and no `size` to bring them to.
        """
        with ThreadPoolExecutor(max_workers=4, thread_name_prefix="pictures") as pool:
            drawn = list(pool.map(lambda place: self._fill(update, place), places))
        shapes = {pixels.shape for pixels, _, _ in drawn}
        if len(shapes) > 1:
            sizes = ", ".join(sorted(f"{height}x{width}" for height, width, _ in shapes))
            raise ConfigError(f"sft.size is null, but the pictures have different sizes ({sizes}); give a size")
        pixels = torch.from_numpy(np.stack([pixels for pixels, _, _ in drawn]))
        return Captioned(pixels, [text for _, text, _ in drawn], sum(skipped for _, _, skipped in drawn))

    def _fill(self, update: int, place: int) -> tuple[np.ndarray, str, int]:
        problem = ""
        for attempt in range(_ATTEMPTS):
            row = self._row(sample_seed(self.seed, "sft", update, place, attempt))
            try:
                return open_picture(row.picture, self.config.size), row.text, attempt
            except BROKEN as error:
                problem = f"{row.picture} ({type(error).__name__}: {error})"
        raise BrokenPicturesError(
            f"sft: {_ATTEMPTS} pictures in a row cannot be read, the last {problem}; correct sft.path or "
            "sft.image_folder"
        )

    def _row(self, number: int) -> Row:
        """The entry for a random number of 63 bits: each as likely as its weight says."""
        if self._even:
            return self.rows[number % len(self.rows)]
        place = bisect.bisect_right(self._weights, number / 2**63 * self._weights[-1])
        return self.rows[min(place, len(self.rows) - 1)]  # rounding may reach the end


def caption_prompts(config: SftLossConfig) -> list[Prompt]:
    """Its texts as prompts, for what is said of all prompts that training sees. Raises ConfigError."""
    texts = dict.fromkeys(row.text for each in config.files for row in _read_rows(each, config.image_folder))
    return [Prompt(f"sft-{n}", text, "sft") for n, text in enumerate(texts)]


def _read_rows(file: SftSetConfig, image_folder: str | None) -> list[Row]:
    path = Path(file.path)
    folder = Path(file.image_folder or image_folder or path.parent)
    try:
        text = path.read_text(encoding="utf-8")
        entries = (
            json.loads(text) if text.lstrip().startswith("[") else [json.loads(line) for line in text.splitlines()]
        )
    except (OSError, ValueError) as error:
        raise ConfigError(f"sft.path = {path} is neither a JSON array nor JSON lines: {error}") from error
    if not entries:
        raise ConfigError(f"sft.path = {path} holds no entry")
    found = (_row(path, number, entry) for number, entry in enumerate(entries, 1))
    return [Row(folder / picture, text, file.weight) for picture, text in found]


def _row(path: Path, number: int, entry: Any) -> tuple[str, str]:
    match entry:
        case {"image_path": str(image_path), "txt": str(text)} if image_path:
            return image_path, text
    raise ConfigError(f"{path}, entry {number}: needs the texts image_path and txt")
