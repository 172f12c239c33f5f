"""The page of a run: what stands in it, and what a real browser makes of it."""

from __future__ import annotations

import base64
import io
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from services.eval.dimensions import DIMENSIONS
from services.eval.page import choose, thumbnail
from services.eval.prompts import Prompt, read_points
from services.eval.report import write_report
from services.eval.settings import ReportOptions
from services.eval.store import Place, Plan, Record, ResultLog, write_plan
from tests.support.chromium import look_at

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'&lt;{{ 7 * 7 }}"


def make_run(folder: Path, *, prompts: int = 27, hostile: bool = False) -> Path:
    """A run with a prompt for each dimension, two images each; image 1 fails, every tenth has no verdicts."""
    (folder / "images").mkdir(parents=True)
    (folder / "run").mkdir()
    text = HOSTILE if hostile else "a red cat in ink, "
    made, places, records = [], [], []
    for index in range(prompts):
        names = [DIMENSIONS[index % 27].name, "Style"]
        made.append(Prompt(index, f"{text}{index}", *read_points(names, [text, text])))
        for image in range(2):
            place = Place(index, image, f"{index}_{image}.png", f"{index}-{image}")
            Image.new("RGBA", (300, 200), (index * 9, 90, 90, 255)).save(folder / "images" / place.file)
            places.append(place)
            answer = f"<analysis>['a', 'b']</analysis><score>[{1 - image}, '1']</score>"
            record = Record(place.key, index, image, place.file, (1 - image, 1), (f"{text} seen", "ink"), answer=answer)
            if index % 10 == 5 and image:
                record = Record(place.key, index, image, place.file, None, code="parse_error", message=f"no tag {text}")
            records.append(record)
    notes = (f"row 3: {text}",)
    plan = Plan("judge-32b", "1 own", "p.csv", str(folder / "images"), tuple(made), tuple(places), notes)
    write_plan(folder / "run", plan)
    with ResultLog(folder / "run") as log:
        for record in records:
            log.append(record)
    return folder / "run"


def build(folder: Path, **options: Any) -> str:
    write_report(folder, ReportOptions(resamples=200, **options))
    return (folder / "page.html").read_text("utf-8")


class Elements(HTMLParser):
    """Every tag with its attributes, and the text outside of style."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_says_what_was_judged_and_what_is_missing(tmp_path: Path) -> None:
    page = build(make_run(tmp_path))
    text = " ".join(Elements(page).text.split())
    assert "51 of 54 images judged" in text and "3 parse_error" in text and "no tag" in text
    assert "102 / 108" in text  # test points
    assert "what the leaderboard prints" in text and "Official reading, mean of primary dimensions" in text
    assert "0.0 of 6" in text, "a dimension whose passes stand in quotes, by the official reading"
    assert "row 3: a red cat" in text
    assert "parse_error: no tag" in text and "a red cat in ink, seen" in text


def test_a_run_over_a_part_of_the_dimensions_is_not_called_comparable(tmp_path: Path) -> None:
    text = " ".join(Elements(build(make_run(tmp_path, prompts=2))).text.split())
    assert "Over 2 of 10 dimensions, so not comparable with the leaderboard's." in text
    assert "all 4 images judged" in text and "What is missing" in text  # the note on the prompt file


def test_the_page_has_no_script_and_refers_to_nothing_outside(tmp_path: Path) -> None:
    page = build(make_run(tmp_path))
    tags = Elements(page).tags
    assert not [tag for tag, _ in tags if tag in {"script", "iframe", "object", "embed", "form", "base"}]
    outside = [value for _, attrs in tags for name, value in attrs.items() if name in {"src", "href"}]
    assert outside and all(str(value).startswith("data:") for value in outside)
    policy = next(attrs["content"] for tag, attrs in tags if attrs.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None and "default-src 'none'" in policy and "script" not in policy
    assert "url(" not in page and "@import" not in page


def test_hostile_texts_stay_texts(tmp_path: Path) -> None:
    page = build(make_run(tmp_path, hostile=True))
    elements = Elements(page)
    assert not [tag for tag, _ in elements.tags if tag == "script"]
    assert not [attrs for _, attrs in elements.tags if "onerror" in attrs]
    assert HOSTILE in elements.text


def record(number: int, *verdicts: int) -> Record:
    return Record(str(number), number, 0, "", verdicts or None)


def test_failures_come_first_when_not_all_pictures_fit() -> None:
    records = [record(n, 1, 0) if n % 4 == 0 else record(n, 1, 1) for n in range(40)] + [record(40)]
    assert [each.index for each in choose(records, 11)] == [*range(0, 40, 4), 40]
    assert len(choose(records, 20)) == 20 and set(choose(records, 11)) <= set(choose(records, 20))
    few = [each.index for each in choose(records, 5)]
    assert len(few) == 5 and all(index % 4 == 0 for index in few) and few[0] < 10 < 30 < few[-1]
    assert choose(records, 0) == [] and choose(records, 100) == records


def test_a_picture_that_is_gone_leaves_its_verdicts(tmp_path: Path) -> None:
    run = make_run(tmp_path, prompts=2)
    (tmp_path / "images" / "0_1.png").unlink()
    (tmp_path / "images" / "1_1.png").write_bytes(b"no image")
    text = Elements(build(run)).text
    assert text.count("picture missing") == 2 and text.count("Prompt ") == 4


def test_thumbnails_are_small(tmp_path: Path) -> None:
    Image.effect_noise((2048, 1024), 90).save(tmp_path / "n.png")
    uri = thumbnail(tmp_path / "n.png")
    assert uri is not None and uri.startswith("data:image/jpeg;base64,") and len(uri) < 40_000


def test_thumbnails_are_upright_and_on_white(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees to show
    Image.new("RGBA", (40, 20), (255, 0, 0, 0)).save(tmp_path / "turned.png", exif=exif)
    uri = thumbnail(tmp_path / "turned.png")
    assert uri is not None
    shown = Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))
    assert shown.size == (20, 40) and shown.getpixel((0, 0)) == (255, 255, 255)


def test_pages_limit_their_pictures(tmp_path: Path) -> None:
    page = build(make_run(tmp_path), page_images=5)
    assert len([tag for tag, _ in Elements(page).tags if tag == "img"]) == 5
    assert "5 are shown here" in page


FILTERS = """(d, outside) => {
  const shown = () => [...d.querySelectorAll('.card')].filter(c => c.getBoundingClientRect().height > 0).length;
  const dimension = d.getElementById('dimension'), only = d.getElementById('only');
  const counts = {all: shown()};
  only.checked = true; counts.failed = shown();
  dimension.value = 's2'; counts.failed_color = shown();
  only.checked = false; counts.color = shown();
  dimension.value = 'p2'; counts.attribute = shown();
  dimension.value = 'all'; counts.all_again = shown();
  const bars = [...d.querySelectorAll('.fill')].map(b => b.getBoundingClientRect());
  const wide = [...d.body.querySelectorAll('*')].filter(outside);
  return {counts: counts, wide: wide.slice(0, 5).map(e => e.outerHTML.slice(0, 120)),
    bars: bars.filter(b => b.width > 5 && b.height > 5).length};
}"""


@pytest.mark.browser
@pytest.mark.usefixtures("chromium")
@pytest.mark.parametrize("width", [360, pytest.param(1280, marks=pytest.mark.slow)])
def test_a_browser_shows_and_filters_the_page_without_errors(tmp_path: Path, width: int) -> None:
    seen = look_at(build(make_run(tmp_path)), tmp_path, width, FILTERS)
    assert (seen["scroll"], seen["wide"]) == (seen["client"], [])
    assert (seen["broken"], seen["scripts"]) == (0, 0)
    assert seen["bars"] == 10 + 23  # primaries, and the parts of the six that have parts
    # Image 1 of each prompt fails its first point or has no verdicts; one prompt asks for a color, six for an attribute.
    expected = {"all": 54, "failed": 27, "failed_color": 1, "color": 2, "attribute": 12, "all_again": 54}
    assert seen["counts"] == expected


@pytest.mark.browser
@pytest.mark.usefixtures("chromium")
def test_a_browser_takes_hostile_texts_for_texts(tmp_path: Path) -> None:
    seen = look_at(build(make_run(tmp_path, hostile=True)), tmp_path, 360, FILTERS)
    assert (seen["scripts"], seen["broken"]) == (0, 0)
    assert (seen["scroll"], seen["wide"]) == (seen["client"], [])
