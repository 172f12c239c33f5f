"""What an OCR engine is: images in, lines of text with their places out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from services.kit.models.pixels import to_rgb

Mode = Literal["page", "line"]
Point = tuple[float, float]
Box = tuple[Point, Point, Point, Point]


class EngineUnavailableError(RuntimeError):
    """The engine's package, program or model files are missing; the message says what to install."""


@dataclass(frozen=True)
class Line:
    """A recognised line. `box`: corners in the image's pixels, from top left clockwise. `confidence`: 0 to 1."""

    text: str
    confidence: float
    box: Box


@dataclass(frozen=True)
class EngineOptions:
    """What the engines can be told; each engine documents which of these it uses."""

    mode: Mode = "page"
    min_confidence: float = 0.0
    det_side: int = 736
    det_limit: Literal["max", "min"] = "max"
    device: str = "cpu"
    det_model_dir: str | None = None
    rec_model_dir: str | None = None
    rec_model: str | None = None
    language: str = "eng"


class Engine(Protocol):
    """One OCR engine, one instance per process; none of them is safe to share between threads."""

    @property
    def revision(self) -> str:
        """Engine, package version, models and the options that can change a reading. Known before `load`."""
        ...

    @property
    def characters(self) -> frozenset[str] | None:
        """What its model can write, from the model's own list; None where it has none. Known before `load`."""
        ...

    def load(self) -> None:
        """Load the models. Raises EngineUnavailableError with the remedy."""
        ...

    def read(self, images: Sequence[Image.Image]) -> list[list[Line]]:
        """Lines of each image, in any order (`services.ocr.layout` has it); an empty list where no text was found.

        Each image is read alone: its result does not depend on the others.
        """
        ...


def to_bgr(image: Image.Image) -> NDArray[np.uint8]:
    """[height, width, 3] in the channel order PP-OCR models were trained on."""
    # Pillow swaps the channels ten times as fast as a strided copy; the second copy makes the array writable.
    pixels = np.frombuffer(to_rgb(image).tobytes("raw", "BGR"), np.uint8)
    return pixels.reshape(image.height, image.width, 3).copy()


def rectangle(left: float, top: float, right: float, bottom: float) -> Box:
    return ((left, top), (right, top), (right, bottom), (left, bottom))
