"""PaddleOCR 3.x: PP-OCR models from local folders, on a GPU or the CPU. It never downloads.

One instance per process, one caller at a time: a shared instance mixes up the results of concurrent calls.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

from services.ocr.engines.base import Box, EngineOptions, EngineUnavailableError, Line, to_bgr
from services.ocr.engines.line import line_strip


class PaddleEngine:
    """Page mode is the OCR pipeline without its document models, line mode the text recogniser alone.

    Options used: mode, min_confidence, det_side, det_limit, device ("gpu:0", "cpu"), det_model_dir (page mode),
    rec_model_dir. The folders are exported inference models: `inference.yml` beside the weights.
    """

    def __init__(self, options: EngineOptions) -> None:
        self._options = options
        self._model: Any = None
        try:
            self._version = version("paddleocr")
        except PackageNotFoundError as error:
            remedy = 'install "paddleocr>=3" and the paddlepaddle build for your device'
            raise EngineUnavailableError(f"the package paddleocr is not installed: {remedy}") from error
        self._rec = _model_folder("rec_model_dir", options.rec_model_dir)
        self._det = _model_folder("det_model_dir", options.det_model_dir) if options.mode == "page" else None

    @cached_property
    def characters(self) -> frozenset[str] | None:
        config = yaml.safe_load((Path(self._rec[0]) / "inference.yml").read_text("utf-8"))
        listed = (config.get("PostProcess") or {}).get("character_dict")
        return frozenset(str(each) for each in listed) if listed else None

    @property
    def revision(self) -> str:
        options = self._options
        detector = f" {self._det[1]}={options.det_limit}{options.det_side}" if self._det else ""
        models = f"paddleocr-{self._version} {options.mode}{detector} {self._rec[1]}"
        return f"{models} min_confidence={options.min_confidence:g}"

    def load(self) -> None:
        # Without it the package asks the model hosts whether they are there, on every start.
        os.environ.setdefault("PADDLE_PDX_DISABLE_MODEL_SOURCE_CHECK", "True")
        import paddleocr

        options = self._options
        rec_dir, rec_name = self._rec
        common = {"device": options.device, "cpu_threads": 1}
        if self._det is None:
            self._model = paddleocr.TextRecognition(model_name=rec_name, model_dir=rec_dir, **common)
            return
        det_dir, det_name = self._det
        self._model = paddleocr.PaddleOCR(
            text_detection_model_name=det_name,
            text_detection_model_dir=det_dir,
            text_recognition_model_name=rec_name,
            text_recognition_model_dir=rec_dir,
            use_doc_orientation_classify=False,
            use_doc_unwarping=False,
            use_textline_orientation=False,
            text_det_limit_side_len=options.det_side,
            text_det_limit_type=options.det_limit,
            text_rec_score_thresh=options.min_confidence,
            **common,
        )

    def read(self, images: Sequence[Image.Image]) -> list[list[Line]]:
        if self._model is None:
            raise RuntimeError("call load() before read()")
        read_one = self._read_line if self._options.mode == "line" else self._read_page
        return [read_one(image) for image in images]

    def _read_page(self, image: Image.Image) -> list[Line]:
        (result,) = self._model.predict(to_bgr(image))
        found = zip(result["rec_texts"], result["rec_scores"], result["rec_polys"], strict=True)
        return [Line(text, float(score), _box(points)) for text, score, points in found if text.strip()]

    def _read_line(self, image: Image.Image) -> list[Line]:
        strip, box = line_strip(image)
        (result,) = self._model.predict(to_bgr(strip))
        text, score = result["rec_text"], float(result["rec_score"])
        return [Line(text, score, box)] if text.strip() and score >= self._options.min_confidence else []


def _model_folder(option: str, folder: str | None) -> tuple[str, str]:
    """(folder, the name of the model in it). PaddleOCR refuses a folder whose model is not the one it is told."""
    flag = "--" + option.replace("_", "-")
    if folder is None:
        raise EngineUnavailableError(
            f"engine paddleocr downloads nothing: give {flag} the folder of an exported inference model"
        )
    config = Path(folder) / "inference.yml"
    if not config.is_file():
        raise EngineUnavailableError(f"{flag} {folder}: no inference.yml there; it is not an exported inference model")
    try:
        name = yaml.safe_load(config.read_text("utf-8"))["Global"]["model_name"]
    except (yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise EngineUnavailableError(
            f"{flag} {folder}: inference.yml does not name a model (Global.model_name)"
        ) from error
    return folder, str(name)


def _box(points: Any) -> Box:
    a, b, c, d = ((float(x), float(y)) for x, y in points)
    return (a, b, c, d)
