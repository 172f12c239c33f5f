"""A picture whose file ends early is an error wherever the trainer reads one, and never a picture that is black below."""

from __future__ import annotations

import io
import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from trainer.config import SftLossConfig
from trainer.data.captions import CaptionData
from trainer.data.prompts import read_prompt_file
from trainer.data.prompts.checks import DataError, check_targets
from trainer.evaluation.files import read_samples, save_samples
from trainer.evaluation.sampling import Placed
from trainer.evaluation.sets import EvaluationSet
from trainer.policies.flow.deepgen.sources import read_source
from trainer.policies.flow.frozen import read_image
from trainer.processes.distributed import World
from trainer.report.images import data_uri
from trainer.types import Prompt, Sample
from wire.schema import MAX_TARGET_LENGTH, MAX_TARGETS, ScoreItem

WHITE = np.full((40, 40, 3), 255, np.uint8)


def short_png() -> bytes:
    """40 x 40 white pixels of which ten rows are there, in a stream that is whole as a stream."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 40, 40, 8, 2, 0, 0, 0))
    rows = (b"\0" + b"\xff" * 120) * 10
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def cut_jpeg() -> bytes:
    """Half of a JPEG's data, then its end marker: Pillow reads it as grey below."""
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 40, 3), dtype=np.uint8)).save(buffer, "JPEG")
    data = buffer.getvalue()
    return data[: len(data) * 2 // 3] + b"\xff\xd9"


CUT = {"png": short_png(), "jpg": cut_jpeg(), "jpg called png": cut_jpeg()}


@pytest.fixture(params=CUT)
def cut(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / f"cut.{request.param[-3:]}"
    path.write_bytes(CUT[request.param])
    Image.open(path).load()  # Pillow alone takes it
    return path


def test_source_pictures_of_edits(cut: Path) -> None:
    for read in (lambda: read_image(cut, 32 * 32, 16), lambda: read_source(cut, 32 * 32)):
        with pytest.raises(ValueError, match=r"cut\.(png|jpg): not a readable image/"):
            read()


def test_source_pictures_are_upright(tmp_path: Path) -> None:
    """As the judge sees them, and as editing models were trained."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (64, 32), "red").save(tmp_path / "photo.jpg", exif=exif)
    assert read_image(tmp_path / "photo.jpg", 64 * 32, 32).shape == (64, 32, 3)
    assert read_source(tmp_path / "photo.jpg", 64 * 32).shape == (64, 32, 3)


def test_captioned_pictures_are_passed_over_and_counted(cut: Path) -> None:
    Image.fromarray(WHITE).save(cut.parent / "whole.png")
    rows = [{"image_path": name, "txt": name} for name in (cut.name, "whole.png")]
    (cut.parent / "data.json").write_text(json.dumps(rows))
    config = SftLossConfig.model_validate({"path": str(cut.parent / "data.json"), "batch_size": 8, "size": [40, 40]})
    drawn = CaptionData(config, seed=1).draw(0, range(8))
    assert set(drawn.texts) == {"whole.png"} and drawn.skipped > 0
    assert int(drawn.pixels_BHWC.min()) == 255


def test_an_evaluations_own_pictures(tmp_path: Path) -> None:
    prompt = Prompt("p", "a")
    chosen = EvaluationSet("held_out", (prompt,), 1, 2, 1.0, ("r",))
    sample = Sample("p#0", "p", prompt, images=(WHITE,))
    save_samples(tmp_path, chosen, [Placed(0, 0, sample)])
    alone = World(rank=0, size=1, device=torch.device("cpu"))
    [[back]] = read_samples(tmp_path, chosen, alone, 4)
    assert np.array_equal(back.sample.images[0], WHITE)
    [path] = tmp_path.glob("**/*.png")
    path.write_bytes(short_png())
    with pytest.raises(OSError, match="its data ends before its last row"):
        list(read_samples(tmp_path, chosen, alone, 4))


def test_the_reports_pictures(cut: Path) -> None:
    problems: list[str] = []
    assert data_uri(cut.parent, cut.name, problems) == (None, 0, 0)
    assert len(problems) == 1 and "not a readable image" in problems[0]


def test_a_prompt_file_takes_a_source_image_by_its_first_bytes(tmp_path: Path) -> None:
    def read(name: str) -> tuple[str, ...]:
        (tmp_path / "rows.jsonl").write_text(json.dumps({"prompt": "edit", "source_images": [name]}))
        return read_prompt_file(tmp_path / "rows.jsonl", dataset="set").prompts[0].source_images

    Image.fromarray(WHITE).save(tmp_path / "cat.jpg", "PNG")
    assert read("cat.jpg") == (str(tmp_path / "cat.jpg"),)
    Image.fromarray(WHITE).save(tmp_path / "dog.png", "GIF")
    with pytest.raises(DataError, match=r"dog\.png begins as a GIF does; save it as PNG, JPEG or WebP"):
        read("dog.png")
    (tmp_path / "page.png").write_text("<html>404</html>")
    with pytest.raises(DataError, match=r"page\.png does not begin as an image does"):
        read("page.png")


def test_targets_are_bounded_as_the_services_bound_them() -> None:
    most = ["x" * MAX_TARGET_LENGTH] * MAX_TARGETS
    assert ScoreItem(id="a", prompt="p", completion="", targets=most).targets == list(check_targets("row", most) or ())
    with pytest.raises(DataError, match="257 texts are more than 256"):
        check_targets("row", [*most, "y"])
    with pytest.raises(DataError, match=r"row\[0\]: 4097 characters are more than 4096"):
        check_targets("row", ["x" * 4097])
