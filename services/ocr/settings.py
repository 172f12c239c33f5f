"""Settings of the OCR service."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Literal

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from services.kit.dispatch.workers import ProcessPool
from services.kit.settings import ServiceSettings
from services.ocr.engines import EngineOptions, Mode
from services.ocr.scorer import OcrScorer
from services.ocr.scoring import Case, Variant

# The detector's models drop what they are less sure of; a line reader has nothing else to read.
_MIN_CONFIDENCE: dict[Mode, float] = {"page": 0.5, "line": 0.0}


class OcrSettings(ServiceSettings):
    """Flags and environment variables (`OCR_ENGINE`, `OCR_PORT`, ...) of `python -m services.ocr`."""

    # No field may be called `url`: OCR_URL is where the trainer finds this service.
    model_config = SettingsConfigDict(env_prefix="OCR_")

    port: int = Field(default=18082, ge=0, le=65_535, description="Port to listen on; 0 takes a free one.")
    engine: Literal["rapidocr", "paddleocr", "tesseract", "ddddocr"] = Field(
        default="rapidocr", description="Which engine reads."
    )
    mode: Mode = Field(default="page", description="page finds the text first; line: each image is one line of text.")
    default_reward: Variant = Field(default="multi", description="The reward of requests that name none.")
    case: Case = Field(default="variant", description="Case sensitivity; variant: as each reward defines it.")
    min_confidence: float | None = Field(
        default=None, ge=0, le=1, description="Lines less certain are dropped; unset: 0.5 in page mode, 0 in line mode."
    )
    det_side: int = Field(
        default=736, ge=32, le=4096, description="Page mode: side in pixels to which images are scaled for detection."
    )
    det_limit: Literal["max", "min"] = Field(
        default="max",
        description="max: larger images are scaled down to det_side; min: smaller ones up to it (slower).",
    )
    device: str = Field(default="cpu", description="paddleocr: cpu, gpu, gpu:1, ...")
    det_model_dir: Path | None = Field(default=None, description="paddleocr: folder of the detection model.")
    rec_model_dir: Path | None = Field(default=None, description="paddleocr: folder of the recognition model.")
    rec_model: Path | None = Field(
        default=None, description="rapidocr: ONNX file of a recognition model of another script, exported for RapidOCR."
    )
    language: str = Field(
        default="eng", pattern=r"^\w+(\+\w+)*$", description="tesseract: language names, joined by +."
    )
    recycle_after: int = Field(
        default=100_000, ge=1, description="A worker process is replaced after that many items: engines leak memory."
    )

    def engine_options(self) -> EngineOptions:
        least = _MIN_CONFIDENCE[self.mode] if self.min_confidence is None else self.min_confidence
        return EngineOptions(
            mode=self.mode,
            min_confidence=least,
            det_side=self.det_side,
            det_limit=self.det_limit,
            device=self.device,
            det_model_dir=_text(self.det_model_dir),
            rec_model_dir=_text(self.rec_model_dir),
            rec_model=_text(self.rec_model),
            language=self.language,
        )


def make_scorer(settings: OcrSettings) -> ProcessPool:
    """The scorer in `settings.workers` processes, one engine with one thread in each."""
    factory = partial(
        OcrScorer,
        settings.engine,
        settings.engine_options(),
        default_reward=settings.default_reward,
        case=settings.case,
    )
    return ProcessPool(factory, settings.workers, recycle_after=settings.recycle_after)


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)
