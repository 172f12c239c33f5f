"""The OCR engines, by the name that `--engine` takes. A package is imported when its engine is built or loaded."""

from __future__ import annotations

from collections.abc import Callable

from services.ocr.engines.base import Box, Engine, EngineOptions, EngineUnavailableError, Line, Mode


def _rapidocr(options: EngineOptions) -> Engine:
    from services.ocr.engines.rapid import RapidEngine

    return RapidEngine(options)


def _paddleocr(options: EngineOptions) -> Engine:
    from services.ocr.engines.paddle import PaddleEngine

    return PaddleEngine(options)


def _tesseract(options: EngineOptions) -> Engine:
    from services.ocr.engines.tesseract import TesseractEngine

    return TesseractEngine(options)


def _ddddocr(options: EngineOptions) -> Engine:
    from services.ocr.engines.dddd import DdddEngine

    return DdddEngine(options)


ENGINES: dict[str, Callable[[EngineOptions], Engine]] = {
    "rapidocr": _rapidocr,
    "paddleocr": _paddleocr,
    "tesseract": _tesseract,
    "ddddocr": _ddddocr,
}


def build_engine(name: str, options: EngineOptions) -> Engine:
    """The engine called `name`, not loaded yet. Raises ValueError or EngineUnavailableError with the remedy."""
    if name not in ENGINES:
        raise ValueError(f"unknown OCR engine {name!r}; there are {', '.join(ENGINES)}")
    return ENGINES[name](options)


__all__ = ["ENGINES", "Box", "Engine", "EngineOptions", "EngineUnavailableError", "Line", "Mode", "build_engine"]
