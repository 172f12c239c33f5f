"""The engines on real images: what they read, that neighbours do not matter, and what they say when they cannot run."""

from __future__ import annotations

import random
import shutil
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from PIL import Image, ImageDraw, ImageFont

from services.ocr.engines import ENGINES, Engine, EngineOptions, EngineUnavailableError, Line, build_engine
from services.ocr.engines import paddle as paddle_module
from services.ocr.engines.line import line_strip
from services.ocr.layout import reading_orders
from trainer.quickstart.words import draw_word
from trainer.quickstart.words import render as render_word

needs_tesseract = pytest.mark.skipif(shutil.which("tesseract") is None, reason="the program tesseract is not installed")


def canvas(text: str, width: int, height: int, size: int, *, at: tuple[float, float] | None = None) -> Image.Image:
    image = Image.new("RGB", (width, height), (245, 240, 225))
    x, y = at or (width / 2, height / 2)
    ImageDraw.Draw(image).text((x, y), text, font=ImageFont.load_default(size), fill=(30, 40, 90), anchor="mm")
    return image


def loaded(name: str, **options: Any) -> Engine:
    engine = build_engine(name, EngineOptions(**options))
    engine.load()
    return engine


def texts(lines: Sequence[Line]) -> str:
    return " ".join(line.text for line in lines)


@pytest.fixture(scope="module")
def line_engine() -> Engine:
    return loaded("rapidocr", mode="line")


@pytest.fixture(scope="module")
def page_engine() -> Engine:
    return loaded("rapidocr", mode="page", min_confidence=0.5)


@pytest.fixture(scope="module")
def independent_engine() -> Engine:
    return loaded("ddddocr", mode="line")


def quickstart_words(count: int) -> tuple[list[str], list[Image.Image]]:
    rng = random.Random(3)
    words = [draw_word(rng, heldout=number % 2 == 0) for number in range(count)]
    return [word.text for word in words], [render_word(word, rng) for word in words]


def test_line_mode_reads_the_quickstarts_words(line_engine: Engine) -> None:
    words, images = quickstart_words(100)
    assert images[0].size == (48, 24)
    read = [texts(lines) for lines in line_engine.read(images)]
    assert sum(a == b for a, b in zip(read, words, strict=True)) >= 99


def test_the_independent_engine_reads_them_too(independent_engine: Engine) -> None:
    words, images = quickstart_words(60)
    read = [texts(lines).upper() for lines in independent_engine.read(images)]
    assert sum(a == b for a, b in zip(read, words, strict=True)) >= 58


@pytest.mark.parametrize(("width", "height", "size"), [(96, 48, 30), (256, 64, 36), (512, 512, 72), (512, 512, 28)])
@pytest.mark.parametrize("text", ["OPEN", "Bread 24"])
def test_line_mode_sizes(line_engine: Engine, text: str, width: int, height: int, size: int) -> None:
    if width == 96 and len(text) > 4:
        size = 20
    [lines] = line_engine.read([canvas(text, width, height, size)])
    assert texts(lines) == text


def test_line_mode_places_the_line_where_it_is(line_engine: Engine) -> None:
    [[line]] = line_engine.read([canvas("OPEN", 512, 512, 60, at=(150, 400))])
    (left, top), _, (right, bottom), _ = line.box
    assert 40 < left < 100 < 200 < right < 260
    assert 350 < top < 390 < 410 < bottom < 450
    [[whole]] = line_engine.read([canvas("OPEN", 96, 48, 30)])
    assert whole.box == ((0, 0), (96, 0), (96, 48), (0, 48))
    assert 0.9 < whole.confidence <= 1


def test_page_mode_finds_lines_with_their_boxes(page_engine: Engine) -> None:
    image = canvas("UPPER LINE", 512, 512, 48, at=(256, 120))
    ImageDraw.Draw(image).text((256, 400), "lower line", font=ImageFont.load_default(48), fill="black", anchor="mm")
    [lines] = page_engine.read([image])
    assert [line.text for line in lines] == ["UPPER LINE", "lower line"]
    for line, middle in zip(lines, (120, 400), strict=True):
        xs, ys = zip(*line.box, strict=True)
        assert min(ys) < middle < max(ys)
        assert max(ys) - min(ys) < 100
        assert 60 < min(xs) < 256 < max(xs) < 450


def mixed_images() -> list[Image.Image]:
    return [
        canvas("OPEN", 96, 48, 30),
        canvas("A longer line of text", 512, 48, 36),
        quickstart_words(1)[1][0],
        canvas("Bread 24", 256, 256, 40),
        Image.new("RGB", (64, 64), "white"),
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 48, 3), np.uint8)),
    ]


@pytest.mark.parametrize("name", ["line_engine", "page_engine", "independent_engine"])
def test_a_result_never_depends_on_neighbours(name: str, request: pytest.FixtureRequest) -> None:
    """Bit for bit, confidences and boxes too: an exactly resumed run may batch its images differently."""
    engine: Engine = request.getfixturevalue(name)
    images = mixed_images()
    alone = [engine.read([image])[0] for image in images]
    assert engine.read(images) == alone
    assert engine.read(images[::-1]) == alone[::-1]
    assert engine.read([images[1]] * 3) == [alone[1]] * 3
    assert alone[0]


@pytest.mark.parametrize("name", ["line_engine", "page_engine", "independent_engine"])
@pytest.mark.parametrize("size", [(1, 1), (2, 2), (1, 400), (400, 1), (3000, 8), (64, 64)])
def test_blank_and_odd_shapes_hold_no_text(name: str, size: tuple[int, int], request: pytest.FixtureRequest) -> None:
    engine: Engine = request.getfixturevalue(name)
    [lines] = engine.read([Image.new("RGB", size, "white")])
    # A reader without a detector may see a stroke in a plain strip; it may not fail or invent words.
    assert len(texts(lines)) <= 1


@pytest.mark.parametrize("mode", ["L", "1", "P", "LA", "RGBA", "CMYK"])
def test_every_pillow_mode_is_read(line_engine: Engine, mode: str) -> None:
    image = Image.new("RGB", (96, 48), "white")
    ImageDraw.Draw(image).text((48, 24), "OPEN", font=ImageFont.load_default(30), fill="black", anchor="mm")
    assert texts(line_engine.read([image.convert(mode)])[0]) == "OPEN"


def test_transparent_ground_is_white(line_engine: Engine) -> None:
    """Black text on transparent black would vanish if the alpha channel were dropped."""
    image = Image.new("RGBA", (96, 48), (0, 0, 0, 0))
    ImageDraw.Draw(image).text((48, 24), "OPEN", font=ImageFont.load_default(30), fill=(0, 0, 0, 255), anchor="mm")
    assert texts(line_engine.read([image])[0]) == "OPEN"


def test_uncertain_lines_are_dropped() -> None:
    image = canvas("OPEN", 96, 48, 30)
    for mode in ("line", "page"):
        assert texts(loaded("rapidocr", mode=mode, min_confidence=0.5).read([image])[0]) == "OPEN"
        assert loaded("rapidocr", mode=mode, min_confidence=1.0).read([image]) == [[]]


def test_line_strip_cuts_a_canvas_to_its_ink_and_leaves_a_line_alone() -> None:
    wide, box = line_strip(Image.new("RGB", (96, 48), "red"))
    assert wide.size == (96, 48)
    assert box == ((0, 0), (96, 0), (96, 48), (0, 48))
    square = Image.new("RGB", (200, 200), "white")
    square.paste("black", (50, 90, 150, 110))  # 100 x 20 of ink: margin 0.2 * 20 + 1 = 5
    strip, box = line_strip(square)
    assert box == ((45, 85), (155, 85), (155, 115), (45, 115))
    assert strip.size == (110, 30)
    plain, _ = line_strip(Image.new("RGB", (30, 30), "white"))
    assert plain.size == (30, 30)


@pytest.mark.parametrize("name", ["rapidocr", "ddddocr"])
def test_an_engine_adds_no_threads(name: str) -> None:
    image = canvas("OPEN", 96, 48, 30)
    loaded(name, mode="line").read([image])  # the packages' own imports may start threads, once
    before = psutil.Process().num_threads()
    engine = loaded(name, mode="line")
    engine.read([image])
    assert psutil.Process().num_threads() == before


def test_a_revision_changes_with_whatever_changes_a_reading() -> None:
    options = [
        EngineOptions(),
        EngineOptions(mode="line"),
        EngineOptions(min_confidence=0.3),
        EngineOptions(det_side=512),
        EngineOptions(det_limit="min"),
    ]
    revisions = [build_engine("rapidocr", option).revision for option in options]
    assert len(set(revisions)) == len(options)
    assert all(revision.startswith("rapidocr-") and "onnxruntime-" in revision for revision in revisions)


def test_reading_before_loading_is_refused() -> None:
    for name in ("rapidocr", "ddddocr"):
        with pytest.raises(RuntimeError, match=r"load\(\)"):
            build_engine(name, EngineOptions(mode="line")).read([canvas("A", 48, 24, 12)])


def test_an_unknown_engine_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"easyocr.*rapidocr, paddleocr, tesseract, ddddocr"):
        build_engine("easyocr", EngineOptions())
    assert list(ENGINES) == ["rapidocr", "paddleocr", "tesseract", "ddddocr"]


def test_ddddocr_has_no_page_mode() -> None:
    with pytest.raises(ValueError, match=r"single lines.*--mode line"):
        build_engine("ddddocr", EngineOptions(mode="page"))


@needs_tesseract
@pytest.mark.parametrize("mode", ["line", "page"])
def test_tesseract_reads(mode: Any) -> None:
    engine = loaded("tesseract", mode=mode)
    image = canvas("Fresh Bread", 512, 512, 60, at=(256, 300))
    [lines, nothing] = engine.read([image, Image.new("RGB", (64, 64), "white")])
    assert texts(lines) == "Fresh Bread"
    assert len(texts(nothing)) <= 1
    (left, top), _, (right, bottom), _ = lines[0].box
    assert left < 256 < right
    assert top < 300 < bottom
    assert engine.revision.startswith("tesseract-")


@needs_tesseract
def test_sparse_text_of_tesseract_is_put_in_reading_order() -> None:
    image = canvas("left", 600, 300, 40, at=(90, 83))
    draw = ImageDraw.Draw(image)
    draw.text((500, 78), "right", font=ImageFont.load_default(40), fill="black", anchor="mm")
    draw.text((300, 220), "below", font=ImageFont.load_default(40), fill="black", anchor="mm")
    [lines] = loaded("tesseract").read([image])
    [first, *_] = reading_orders([line.box for line in lines])
    assert [lines[place].text for place in first] == ["left", "right", "below"]


@needs_tesseract
def test_tesseract_names_a_missing_language() -> None:
    with pytest.raises(EngineUnavailableError, match=r"tlh.*apt-get install tesseract-ocr-tlh"):
        loaded("tesseract", language="eng+tlh")


def test_tesseract_missing_names_the_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EngineUnavailableError, match="apt-get install tesseract-ocr"):
        build_engine("tesseract", EngineOptions())


def test_a_failing_tesseract_is_an_error_with_its_own_words(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = tmp_path / "tesseract"
    program.write_text(
        '#!/bin/sh\nif [ "$1" = --version ]; then echo "tesseract 5.3.0"; exit 0; fi\necho "no memory" >&2\nexit 3\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    engine = build_engine("tesseract", EngineOptions())
    with pytest.raises(RuntimeError, match="status 3: no memory"):
        engine.read([canvas("A", 48, 24, 12)])


# PaddleOCR is 1.4 GB and ships no models, so a stand-in with its documented 3.x signatures and results takes its place.


class _PaddleOCR:
    def __init__(
        self,
        *,
        text_detection_model_name: str,
        text_detection_model_dir: str,
        text_recognition_model_name: str,
        text_recognition_model_dir: str,
        use_doc_orientation_classify: bool,
        use_doc_unwarping: bool,
        use_textline_orientation: bool,
        text_det_limit_side_len: int,
        text_det_limit_type: str,
        text_rec_score_thresh: float,
        device: str,
        cpu_threads: int,
    ) -> None:
        self.arguments = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        _PaddleOCR.last = self

    last: _PaddleOCR

    def predict(self, input: np.ndarray) -> list[dict[str, Any]]:
        assert input.dtype == np.uint8 and input.ndim == 3
        self.first_pixel = input[0, 0].tolist()
        if input.min() == 255:
            return [{"rec_texts": [], "rec_scores": [], "rec_polys": []}]
        polygon = np.array([[1, 2], [30, 2], [30, 12], [1, 12]], np.int16)
        return [{"rec_texts": ["OPEN", ""], "rec_scores": [0.97, 0.6], "rec_polys": [polygon, polygon]}]


class _TextRecognition:
    def __init__(self, *, model_name: str, model_dir: str, device: str, cpu_threads: int) -> None:
        self.arguments = (model_name, model_dir, device, cpu_threads)
        _TextRecognition.last = self

    last: _TextRecognition

    def predict(self, input: np.ndarray) -> list[dict[str, Any]]:
        return [{"input_path": None, "rec_text": "OPEN", "rec_score": 0.4}]


def model_folder(path: Path, name: str) -> str:
    path.mkdir()
    (path / "inference.yml").write_text(f"Global:\n  model_name: {name}\nPreProcess: {{}}\n")
    return str(path)


@pytest.fixture
def paddle(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, str]:
    module = types.ModuleType("paddleocr")
    module.PaddleOCR = _PaddleOCR  # type: ignore[attr-defined]
    module.TextRecognition = _TextRecognition  # type: ignore[attr-defined]
    monkeypatch.setitem(__import__("sys").modules, "paddleocr", module)
    monkeypatch.setattr(paddle_module, "version", lambda _: "3.7.0")
    monkeypatch.setenv("PADDLE_PDX_DISABLE_MODEL_SOURCE_CHECK", "True")
    return {
        "det_model_dir": model_folder(tmp_path / "det", "PP-OCRv5_server_det"),
        "rec_model_dir": model_folder(tmp_path / "rec", "PP-OCRv5_server_rec"),
    }


def test_paddleocr_page_mode(paddle: dict[str, str]) -> None:
    engine = loaded("paddleocr", device="gpu:1", det_side=960, det_limit="min", min_confidence=0.5, **paddle)
    image = Image.new("RGB", (40, 20), (255, 0, 7))
    [lines, nothing] = engine.read([image, Image.new("RGB", (40, 20), "white")])
    assert lines == [Line("OPEN", 0.97, ((1, 2), (30, 2), (30, 12), (1, 12)))]
    assert nothing == []
    fake = _PaddleOCR.last
    assert fake.arguments == {
        "text_detection_model_name": "PP-OCRv5_server_det",
        "text_detection_model_dir": paddle["det_model_dir"],
        "text_recognition_model_name": "PP-OCRv5_server_rec",
        "text_recognition_model_dir": paddle["rec_model_dir"],
        "use_doc_orientation_classify": False,
        "use_doc_unwarping": False,
        "use_textline_orientation": False,
        "text_det_limit_side_len": 960,
        "text_det_limit_type": "min",
        "text_rec_score_thresh": 0.5,
        "device": "gpu:1",
        "cpu_threads": 1,
    }
    assert engine.revision == ("paddleocr-3.7.0 page PP-OCRv5_server_det=min960 PP-OCRv5_server_rec min_confidence=0.5")


def test_paddleocr_gets_blue_green_red(paddle: dict[str, str]) -> None:
    engine = loaded("paddleocr", **paddle)
    engine.read([Image.new("RGB", (40, 20), (255, 0, 7))])
    assert _PaddleOCR.last.first_pixel == [7, 0, 255]


def test_paddleocr_line_mode_uses_the_recogniser_alone(paddle: dict[str, str]) -> None:
    engine = loaded("paddleocr", mode="line", rec_model_dir=paddle["rec_model_dir"])
    assert engine.read([Image.new("RGB", (40, 20))]) == [[Line("OPEN", 0.4, ((0, 0), (40, 0), (40, 20), (0, 20)))]]
    assert _TextRecognition.last.arguments == ("PP-OCRv5_server_rec", paddle["rec_model_dir"], "cpu", 1)
    strict = loaded("paddleocr", mode="line", rec_model_dir=paddle["rec_model_dir"], min_confidence=0.5)
    assert strict.read([Image.new("RGB", (40, 20))]) == [[]]


def test_paddleocr_downloads_nothing(paddle: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(EngineUnavailableError, match="--rec-model-dir"):
        build_engine("paddleocr", EngineOptions())
    with pytest.raises(EngineUnavailableError, match="--det-model-dir"):
        build_engine("paddleocr", EngineOptions(rec_model_dir=paddle["rec_model_dir"]))
    with pytest.raises(EngineUnavailableError, match=r"no inference\.yml"):
        build_engine("paddleocr", EngineOptions(mode="line", rec_model_dir=str(tmp_path)))
    for number, content in enumerate(["Global: {}", "- 1", "a: [", ""]):
        folder = tmp_path / f"bad{number}"
        folder.mkdir()
        (folder / "inference.yml").write_text(content)
        with pytest.raises(EngineUnavailableError, match="does not name a model"):
            build_engine("paddleocr", EngineOptions(mode="line", rec_model_dir=str(folder)))


@pytest.mark.skipif(shutil.which("paddleocr") is not None, reason="paddleocr is installed")
def test_paddleocr_missing_names_the_packages() -> None:
    with pytest.raises(EngineUnavailableError, match=r"paddleocr>=3.*paddlepaddle"):
        build_engine("paddleocr", EngineOptions())
