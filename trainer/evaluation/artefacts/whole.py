"""A held-out sample as a whole: images, a text, or both, as files and as numbers.

Of a sample with the stem `<prompt>.<duplicate>` there is `<stem>.png` where it has an image, and `<stem>.text.json` where it
has a text. The second is written last and says how many images belong to it, so that a sample is there as a whole or not at all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from trainer.evaluation.artefacts import images, texts
from trainer.evaluation.artefacts.image_statistics import Floats, diversity, thumbnail
from trainer.types import Sample

PATTERNS = (f"*{images.SUFFIX}", f"*{texts.SUFFIX}")  # of the files of samples; tables lie beside them


def save(folder: Path, stem: str, sample: Sample) -> None:
    """Write what a sample is made of into `folder`."""
    images.save(folder, stem, sample.images)
    if sample.text is not None:
        texts.save(folder, stem, sample)


def load(folder: Path, stem: str, sample: Sample) -> Sample:
    """`sample`, which has its prompt and nothing else, with what was saved of it. Raises OSError: missing or damaged."""
    if not texts.path(folder, stem).is_file():
        return replace(sample, images=images.load(folder, stem, 1))
    told = texts.load(folder, stem)
    return replace(
        sample,
        images=images.load(folder, stem, told.images),
        text=told.text,
        tokens=told.tokens,
        finished=told.finished,
    )


def saved(folder: Path, stem: str) -> bool:
    """Whether a sample of this stem was saved."""
    return texts.path(folder, stem).is_file() or images.path(folder, stem).is_file()


def statistics(sample: Sample) -> dict[str, float]:
    """The numbers of a sample by itself, without a model."""
    return images.statistics(sample.images) | texts.statistics(sample)


def shown(sample: Sample) -> dict[str, Any]:
    """A sample as `Recorder.save_samples` takes it, without its scores."""
    return {"images": sample.images, **texts.shown(sample)}


@dataclass
class Within:
    """The samples of one prompt, for how much they differ."""

    thumbnails: list[Floats] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)

    def add(self, sample: Sample) -> None:
        """Keep what is compared; the sample itself is let go."""
        self.thumbnails += map(thumbnail, sample.images)
        if sample.text is not None:
            self.texts.append(sample.text)

    def statistics(self) -> Mapping[str, float]:
        """`diversity` of images, `distinct` of texts, for prompts with several samples."""
        spread = diversity(self.thumbnails)
        return ({} if spread is None else {"diversity": spread}) | texts.distinct(self.texts)
