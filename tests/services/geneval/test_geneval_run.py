"""`python -m services.geneval run`: a folder of images becomes the benchmark's table, and a cut-off run goes on."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from benchmarks.shapes_detector import draw
from services.geneval.__main__ import main
from services.geneval.prompts import find_images, read_rows
from services.geneval.table import OVERALL, PROMPTS, Judged, tabulate
from tests.support.service_process import ready_service
from wire.images import to_ref

DETECTOR = Path(__file__).with_name("shapes_detector")
ROWS = [
    {"tag": "single_object", "include": [{"class": "circle", "count": 1}], "prompt": "a circle"},
    {"tag": "single_object", "include": [{"class": "square", "count": 1}], "prompt": "a square"},
    {
        "tag": "two_object",
        "include": [{"class": "circle", "count": 1}, {"class": "triangle", "count": 1}],
        "prompt": "a circle and a triangle",
    },
    {"tag": "colors", "include": [{"class": "circle", "count": 1, "color": "red"}], "prompt": "a red circle"},
]


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "evaluation_metadata.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """In GenEval's layout: rows 0 and 2 as asked, row 1 wrong, row 3 asks for a colour."""
    folder = tmp_path / "images"
    for index, names in enumerate([["circle"], ["circle"], ["circle", "triangle"], ["circle"]]):
        samples = folder / f"{index:05d}" / "samples"
        samples.mkdir(parents=True)
        for number in range(2):
            draw(10 * index + number, names)[0].resize((128, 128)).save(samples / f"{number:04d}.png")
    return folder


def flags_of(prompts: Path, images: Path, out: Path) -> list[str]:
    flags = ["run", "--prompts", str(prompts), "--images", str(images), "--out", str(out), "--detector", str(DETECTOR)]
    return [*flags, "--device", "cpu", "--resamples", "200"]


@dataclass
class Run:
    """The command in this process, which has torch and transformers by now, with what it printed."""

    capture: pytest.CaptureFixture[str]

    def __call__(self, prompts: Path, images: Path, out: Path) -> tuple[str, str]:
        main(flags_of(prompts, images, out))
        return self.capture.readouterr()


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    return Run(capsys)


@pytest.mark.slow
def test_the_command_as_a_process(prompts: Path, images: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "services.geneval", *flags_of(prompts, images, tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0 and (tmp_path / "out" / "table.csv").is_file(), done.stderr


def test_a_folder_becomes_a_table_and_nothing_is_judged_twice(
    prompts: Path, images: Path, tmp_path: Path, run: Run
) -> None:
    out = tmp_path / "out"
    output, errors = run(prompts, images, out)
    table = {row["name"]: row for row in json.loads((out / "table.json").read_text())["rows"]}
    assert table["single_object"]["value"] == 0.5 and table["two_object"]["value"] == 1
    # No CLIP was given: the colour is not judged, and so there is no number for all tasks.
    assert table["colors"]["judged"] == 0 and table["colors"]["value"] is None and table[OVERALL]["value"] is None
    assert "2 images without a verdict (2 not_applicable)" in errors
    assert "not asked: counting, position, color_attr: no number for the leaderboard" in output
    log = (out / "results.jsonl").read_text().splitlines()
    (out / "results.jsonl").write_text("\n".join(log[:3]) + '\n{"key": "cut o')
    _, again = run(prompts, images, out)
    assert "8 images, 3 judged before" in again and "a line is cut off" in again
    assert json.loads((out / "table.json").read_text())["rows"][0] == table["single_object"]


def test_the_table_is_the_benchmarks_with_intervals_over_prompts() -> None:
    images = [Judged(0, "single_object", True), Judged(0, "single_object", False), Judged(1, "single_object", True)]
    images += [Judged(2, "position", False), Judged(3, "position", None)]
    lines = {line.name: line for line in tabulate(images, resamples=500)}
    assert lines["single_object"].value == pytest.approx(2 / 3)
    assert lines["position"].value == 0 and (lines["position"].judged, lines["position"].asked) == (1, 2)
    assert lines[OVERALL].value == pytest.approx((2 / 3 + 0) / 2)
    assert lines[PROMPTS].value == pytest.approx(2 / 3) and lines[PROMPTS].asked == 4
    assert lines["single_object"].low == pytest.approx(0.5) and lines["single_object"].high == pytest.approx(1)


def test_both_layouts_and_what_does_not_fit(prompts: Path, tmp_path: Path) -> None:
    rows = read_rows(prompts)
    folder = tmp_path / "flat"
    folder.mkdir()
    for name in ("0_0.png", "0_1.jpg", "2.0.webp", "9_0.png", "notes.txt"):
        (folder / name).write_bytes(b"")
    places, notes = find_images(folder, rows)
    assert [(place.index, place.image) for place in places] == [(0, 0), (0, 1), (2, 0)]
    assert notes == [
        "1 images belong to no row of the metadata file",
        "1 files are not named like images, such as notes.txt",
        "2 of 4 rows have no image",
    ]
    with pytest.raises(ValueError, match="no image such as 00000/samples"):
        find_images(tmp_path, rows)


def test_a_wrong_row_names_its_line(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(ROWS[0]) + '\n{"tag": "colors", "include": [{"count": 1}]}\n')
    with pytest.raises(ValueError, match=r"rows.jsonl, line 2: metadata.include\[0\].class must be a name"):
        read_rows(path)


def test_an_unreadable_image_is_counted_not_judged(prompts: Path, images: Path, tmp_path: Path, run: Run) -> None:
    (images / "00000" / "samples" / "0000.png").write_bytes(b"no image")
    _, errors = run(prompts, images, tmp_path / "out")
    assert "1 bad_input" in errors


@pytest.mark.slow
def test_the_process_serves_boxes_and_reasons(images: Path) -> None:
    image, _ = draw(3, ["square"])
    with ready_service("geneval", "--device", "cpu", "--threads", "1", "--detector", DETECTOR) as url:
        reference = to_ref(image, "image/png").model_dump(exclude_none=True)
        item = {"id": "0", "prompt": "a circle", "images": [reference], "metadata": ROWS[0]}
        [result] = httpx.post(f"{url}/v1/score", json={"items": [item]}, timeout=300).json()["results"]
    assert result["score"] == 0 and result["details"]["clauses"][0]["reason"] == "expected 1 circle, found 0"
