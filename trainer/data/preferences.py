"""Pairs of images of which one is preferred: a list read once, images opened as they are drawn. Axes: N pairs."""

from __future__ import annotations

import json
from collections.abc import Sequence, Set
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from trainer.config import ConfigError, PreferencesConfig
from trainer.data.overlap import PREFERENCES
from trainer.data.pictures import BROKEN, BrokenPicturesError, open_picture
from trainer.seeds import sample_seed
from trainer.types import PreferredPairs, Prompt

_ATTEMPTS = 10  # pairs tried for one place before the data set is given up


class Pair(NamedTuple):
    """An entry of the file."""

    text: str
    chosen: Path
    rejected: Path


class PreferenceData:
    """A file of pairs. A place of a step is filled from the seed and the place alone, so that a restart or another number of
    ranks draws the same pairs. A pair with a broken image is passed over for the next draw of its place, at most ten times.

    Raises:
        ConfigError: no such file, not JSON, no entry, or an entry without its three texts.
    """

    def __init__(self, config: PreferencesConfig, seed: int) -> None:
        self.config, self.seed = config, seed
        self.pairs = read_pairs(config)

    @property
    def texts(self) -> list[str]:
        """All prompts."""
        return [pair.text for pair in self.pairs]

    def leave_out(self, texts: Set[str]) -> None:
        """Draw none of the pairs with these prompts from now on. Raises ConfigError where no other is left."""
        kept = [pair for pair in self.pairs if pair.text not in texts]
        if not kept:
            raise ConfigError(
                f"preferences.path = {self.config.path}: all of its {len(self.pairs)} prompts are held-out prompts, too; "
                "give another file, or set data.overlap: allow"
            )
        self.pairs = kept

    def draw(self, step: int, places: Sequence[int]) -> PreferredPairs:
        """The pairs of these places of the step after `step` finished ones.

        Raises:
            BrokenPicturesError: a place found no pair that can be read.
            ConfigError: images of different sizes, and no `size` to bring them to.
        """
        filled = [self._fill(step, place) for place in places]
        images = [image for chosen, rejected, _, _ in filled for image in (chosen, rejected)]
        shapes = {image.shape for image in images}
        if len(shapes) > 1:
            sizes = ", ".join(sorted(f"{height}x{width}" for height, width, _ in shapes))
            raise ConfigError(f"preferences.size is null, but the images have different sizes ({sizes}); give a size")
        pixels = torch.from_numpy(np.stack(images))
        return PreferredPairs(pixels, [text for _, _, text, _ in filled], sum(skipped for *_, skipped in filled))

    def _fill(self, step: int, place: int) -> tuple[np.ndarray, np.ndarray, str, int]:
        problem = ""
        for attempt in range(_ATTEMPTS):
            number = sample_seed(self.seed, "preferences", step, place, attempt)
            pair = self.pairs[number % len(self.pairs)]
            try:
                chosen, rejected = (open_picture(path, self.config.size) for path in (pair.chosen, pair.rejected))
                return chosen, rejected, pair.text, attempt
            except BROKEN as error:
                problem = f"{pair.chosen} and {pair.rejected} ({type(error).__name__}: {error})"
        raise BrokenPicturesError(
            f"preferences: {_ATTEMPTS} pairs in a row cannot be read, the last {problem}; correct preferences.path or "
            "preferences.image_folder"
        )


def preference_prompts(config: PreferencesConfig) -> list[Prompt]:
    """The prompts of a file of pairs, each once. Raises ConfigError."""
    texts = dict.fromkeys(pair.text for pair in read_pairs(config))
    return [Prompt(f"{PREFERENCES}-{n}", text, PREFERENCES) for n, text in enumerate(texts)]


def read_pairs(config: PreferencesConfig) -> list[Pair]:
    """The entries of `config.path`. Raises ConfigError naming the file and the entry."""
    path = Path(config.path)
    folder = Path(config.image_folder or path.parent)
    try:
        text = path.read_text(encoding="utf-8")
        entries = (
            json.loads(text) if text.lstrip().startswith("[") else [json.loads(line) for line in text.splitlines()]
        )
    except (OSError, ValueError) as error:
        raise ConfigError(f"preferences.path = {path} is neither a JSON array nor JSON lines: {error}") from error
    if not entries:
        raise ConfigError(f"preferences.path = {path} holds no entry")
    return [_pair(path, folder, number, entry) for number, entry in enumerate(entries, 1)]


def _pair(path: Path, folder: Path, number: int, entry: Any) -> Pair:
    match entry:
        case {"prompt": str(text), "chosen": str(chosen), "rejected": str(rejected)} if chosen and rejected:
            return Pair(text, folder / chosen, folder / rejected)
    raise ConfigError(f"{path}, entry {number}: needs the texts prompt, chosen and rejected")
