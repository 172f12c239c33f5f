"""RapidOCR: the PP-OCR models as ONNX, which come inside its package. CPU, one thread; no download."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property
from importlib.metadata import files, version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from services.ocr.engines.base import Box, EngineOptions, EngineUnavailableError, Line, to_bgr
from services.ocr.engines.line import line_strip

# Width over height of what the recogniser is given. Below 1 a strip is padded to a square; above 40 (1920 pixels wide
# at the model's height of 48) it is squeezed, which bounds the memory that one image can ask for.
_MIN_ASPECT, _MAX_ASPECT = 1.0, 40.0
# Page mode pads slimmer images, right or below, by repeating their edge: RapidOCR refuses some of them, and with
# det_limit "min" it would scale others to any size.
_MAX_PAGE_ASPECT = 16


class RapidEngine:
    """Page mode runs RapidOCR whole, without its classifier of upside-down lines: upside-down text is not right.

    Line mode calls its recogniser on the image alone, resized to the model's height with its aspect ratio kept.
    RapidOCR would pad it to 320 pixels, which costs a 48x96 image three times the time.
    Options used: mode, min_confidence, det_side, det_limit, rec_model (an ONNX file in place of the package's own).
    """

    def __init__(self, options: EngineOptions) -> None:
        self._options = options
        self._ocr: Any = None
        self._recogniser: Any = None
        self._model, self._model_name = _recognition_model(options.rec_model)

    @cached_property
    def characters(self) -> frozenset[str]:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        # Only the list that is stored in the file is wanted, so nothing is prepared for running it.
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        session = onnxruntime.InferenceSession(str(self._model), options, providers=["CPUExecutionProvider"])
        listed = session.get_modelmeta().custom_metadata_map.get("character", "")
        if not listed:
            raise EngineUnavailableError(
                f"--rec-model {self._model}: the file holds no list of characters (metadata `character`): take a "
                "recognition model that was exported for RapidOCR"
            )
        return frozenset(listed.splitlines())

    @property
    def revision(self) -> str:
        options = self._options
        detector = f" det={options.det_limit}{options.det_side}" if options.mode == "page" else ""
        versions = f"rapidocr-{version('rapidocr')} onnxruntime-{version('onnxruntime')}"
        return f"{versions} {options.mode}{detector}{self._model_name} min_confidence={options.min_confidence:g}"

    def load(self) -> None:
        import cv2
        from rapidocr import RapidOCR

        assert self.characters, "checked when the list was read: without one RapidOCR would download another"
        # One thread per engine; more workers are more processes. OpenCV's pool would compete with them.
        cv2.setNumThreads(1)
        self._ocr = RapidOCR(
            params={
                "Global.log_level": "error",
                "Global.text_score": self._options.min_confidence,
                "Global.use_cls": False,
                "Rec.model_path": str(self._model),
                "Det.limit_side_len": self._options.det_side,
                "Det.limit_type": self._options.det_limit,
                "EngineConfig.onnxruntime.intra_op_num_threads": 1,
                "EngineConfig.onnxruntime.inter_op_num_threads": 1,
            }
        )
        # RapidOCR loads a model when it is first used; loading belongs here, and line mode calls the recogniser itself.
        self._ocr.recognize_txt([np.full((48, 48, 3), 255, np.uint8)])
        self._recogniser = self._ocr.text_rec

    def read(self, images: Sequence[Image.Image]) -> list[list[Line]]:
        if self._ocr is None:
            raise RuntimeError("call load() before read()")
        read_one = self._read_line if self._options.mode == "line" else self._read_page
        return [read_one(image) for image in images]

    def _read_page(self, image: Image.Image) -> list[Line]:
        pixels = to_bgr(image)
        height, width, _ = pixels.shape
        below, right = max(-(-width // _MAX_PAGE_ASPECT) - height, 0), max(-(-height // _MAX_PAGE_ASPECT) - width, 0)
        if below or right:
            pixels = np.pad(pixels, ((0, below), (0, right), (0, 0)), mode="edge")
        output = self._ocr(pixels)
        if output.txts is None or output.boxes is None:
            return []
        return [
            Line(text, float(score), _box(points))
            for text, score, points in zip(output.txts, output.scores, output.boxes, strict=True)
        ]

    def _read_line(self, image: Image.Image) -> list[Line]:
        strip, box = line_strip(image)
        aspect = min(max(strip.width / strip.height, _MIN_ASPECT), _MAX_ASPECT)
        # One image per run: in a batch it would be padded to its widest neighbour, and read differently.
        scores = self._recogniser.session(self._recogniser.resize_norm_img(to_bgr(strip), aspect)[None])
        lines, _ = self._recogniser.postprocess_op(scores)
        least = self._options.min_confidence
        return [Line(text, float(score), box) for text, score in lines if text.strip() and score >= least]


def _recognition_model(path: str | None) -> tuple[Path, str]:
    """(the ONNX file, what the revision says of it). Raises EngineUnavailableError when there is none."""
    if path is not None:
        file = Path(path)
        if not file.is_file():
            raise EngineUnavailableError(f"--rec-model {path}: no such file")
        return file, f" rec={file.name}@{hashlib.sha256(file.read_bytes()).hexdigest()[:12]}"
    own = [file.locate() for file in files("rapidocr") or () if file.match("rapidocr/models/*_rec_*.onnx")]
    if len(own) != 1:
        raise EngineUnavailableError(
            f"rapidocr {version('rapidocr')} comes with {len(own)} recognition models, not 1: install rapidocr==3.10.0, or "
            "name one with --rec-model"
        )
    return Path(str(own[0])), ""


def _box(points: NDArray[np.float32]) -> Box:
    a, b, c, d = ((float(x), float(y)) for x, y in points)
    return (a, b, c, d)
