"""ddddocr: a small line reader whose model comes inside its package. CPU, one thread; no download.

It shares no weights or training data with PP-OCR, which makes it the independent reader of an evaluation: an engine
that training never called. It confuses upper and lower case of letters that look alike at different sizes, so score
it with `case="insensitive"`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from importlib.metadata import version
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

from PIL import Image

from services.ocr.engines.base import EngineOptions, EngineUnavailableError, Line
from services.ocr.engines.line import line_strip

# It scales to a height of 64 and keeps the aspect ratio: these bound the width to 16 and 2560 pixels.
_MIN_ASPECT, _MAX_ASPECT = 0.25, 40.0


class DdddEngine:
    """Line mode only: it has no detector of text. It gives no confidence: every line has 1. Options used: mode."""

    def __init__(self, options: EngineOptions) -> None:
        if options.mode != "line":
            raise ValueError("engine ddddocr reads single lines only: add --mode line, or choose another engine")
        self._ocr: Any = None

    @cached_property
    def characters(self) -> frozenset[str]:
        # Its module of characters alone: the package's own import takes seconds.
        package = find_spec("ddddocr")
        assert package is not None and package.origin is not None, "pinned in the requirements"
        spec = spec_from_file_location("ddddocr_charsets", Path(package.origin).with_name("charsets.py"))
        assert spec is not None and spec.loader is not None
        charsets = module_from_spec(spec)
        spec.loader.exec_module(charsets)
        return frozenset(charsets.CHARSET_OLD)

    @property
    def revision(self) -> str:
        return f"ddddocr-{version('ddddocr')} onnxruntime-{version('onnxruntime')} line"

    def load(self) -> None:
        import ddddocr
        import onnxruntime

        model = Path(ddddocr.__file__).parent / "common_old.onnx"
        if not model.is_file():
            raise EngineUnavailableError(f"{model.name} is not in ddddocr {version('ddddocr')}: install ddddocr==1.6.1")
        self._ocr = ddddocr.DdddOcr(show_ad=False)
        # The package offers no thread count; its session would take every core from the other workers.
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._ocr.ocr_engine.session = onnxruntime.InferenceSession(
            str(model), options, providers=["CPUExecutionProvider"]
        )

    def read(self, images: Sequence[Image.Image]) -> list[list[Line]]:
        if self._ocr is None:
            raise RuntimeError("call load() before read()")
        return [self._read_one(image) for image in images]

    def _read_one(self, image: Image.Image) -> list[Line]:
        strip, box = line_strip(image)
        width = math.ceil(min(max(strip.width, _MIN_ASPECT * strip.height), _MAX_ASPECT * strip.height))
        if width != strip.width:
            strip = strip.resize((width, strip.height))
        text = str(self._ocr.classification(strip))
        return [Line(text, 1.0, box)] if text.strip() else []
