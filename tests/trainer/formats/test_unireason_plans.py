"""UniReason's six kinds of rows as sequences, item by item, and every row that cannot be used by its name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support.packed_rows import ROWS, plans_of, write_images, write_rows
from trainer.data.formats.unireason.instructions import REFINE, THINK
from trainer.data.prompts.checks import DataError
from trainer.data.sequences import ImageItem, Plans, TextItem


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("pictures"))


def plans(tmp_path: Path, kind: str, rows: list[Any], pictures: Path, *, array: bool = True) -> Plans:
    path = write_rows(tmp_path / "rows.json", rows, array=array)
    return plans_of(path, kind, image_folder=str(pictures))


def brief(item: TextItem | ImageItem) -> str:
    """An item on a line: its text or image, what becomes of it, ? where it may be left out, and what its end leads to."""
    if isinstance(item, ImageItem):
        return f"{item.use} {Path(item.path).stem}" + "?" * item.droppable
    return f"{'CE ' * item.learnt}{item.text}" + "?" * item.droppable + " -> image" * item.then_image


EXPECTED = {
    "t2i": ["a red square?", "drawn red"],
    "edit": ["make it green?", "clean red?", "seen red?", "drawn green"],
    "t2i_reason": [f"{THINK}?", "the colour of blood?", "CE <think>blood is red</think>?", "drawn red"],
    "edit_reason": [
        f"{THINK}?",
        "as grass?",
        "clean red?",
        "seen red?",
        "CE <think>grass is green</think>?",
        "drawn green",
    ],
    "t2i_refine": [
        f"{REFINE}?",
        "a green square?",
        "a square in the middle?",
        "clean red?",
        "seen red?",
        "CE <sugg>it is red, make it green</sugg>? -> image",
        "drawn green",
        "clean green?",
        "seen green?",
        "CE <sugg></sugg>? -> image",
    ],
    "edit_refine": [
        f"{REFINE}?",
        "make it blue?",
        "clean red?",
        "seen red?",
        "<think>blue it is</think>?",
        "clean green?",
        "seen green?",
        "CE <sugg>still green</sugg>? -> image",
        "drawn green",
        "clean green?",
        "seen green?",
        "CE <sugg>more blue</sugg>? -> image",
        "drawn blue",
        "clean blue?",
        "seen blue?",
        "CE <sugg>done</sugg>? -> image",
    ],
}


@pytest.mark.parametrize("array", [True, False], ids=["array", "lines"])
@pytest.mark.parametrize("kind", list(ROWS))
def test_each_kind_gives_its_sequence(tmp_path: Path, pictures: Path, kind: str, array: bool) -> None:
    found = plans(tmp_path, kind, [dict(ROWS[kind])] * 2, pictures, array=array)
    assert len(found) == 2
    plan = found.plan(1)
    assert [brief(item) for item in plan.items] == EXPECTED[kind]
    assert plan.id == f"{tmp_path}/rows.json:{2 if array else 3}"
    assert plan == found.plan(1)  # read again, nothing has changed


def test_a_plan_of_a_draft_may_be_missing_and_a_thought_of_an_edit_is_always_there(
    tmp_path: Path, pictures: Path
) -> None:
    drawn = {**ROWS["t2i_refine"], "explanation": "  "}
    edited = {key: value for key, value in ROWS["edit_refine"].items() if key != "explanation"}
    items = plans(tmp_path, "t2i_refine", [drawn], pictures).plan(0).items
    assert [brief(item) for item in items[:3]] == [f"{REFINE}?", "a green square?", "clean red?"]
    assert brief(plans(tmp_path, "edit_refine", [edited], pictures).plan(0).items[4]) == "<think></think>?"


def test_a_trace_without_images_is_one_suggestion(tmp_path: Path, pictures: Path) -> None:
    row = {**ROWS["t2i_refine"], "Text Reasoning Trace": "THOUGHT 12:  it is right"}
    items = plans(tmp_path, "t2i_refine", [row], pictures).plan(0).items
    assert [brief(item) for item in items[5:]] == ["CE <sugg>it is right</sugg>? -> image"]


def test_every_image_of_an_edit_is_read(tmp_path: Path, pictures: Path) -> None:
    row = {**ROWS["edit"], "input_image": ["red.png", "blue.png"]}
    items = plans(tmp_path, "edit", [row], pictures).plan(0).items
    assert [brief(item) for item in items[1:5]] == ["clean red?", "seen red?", "clean blue?", "seen blue?"]


def test_images_are_scaled_as_the_group_says(tmp_path: Path, pictures: Path) -> None:
    path = write_rows(tmp_path / "rows.json", [ROWS["edit"]])
    sizes = {
        "image_size": {"stride": 16, "longest": 64, "shortest": 32},
        "seen_size": {"stride": 14, "longest": 56, "shortest": 28},
    }
    found = plans_of(path, "edit", image_folder=str(pictures), group=sizes)
    strides = [item.resize.stride for item in found.plan(0).items if isinstance(item, ImageItem) and item.resize]
    assert strides == [16, 14, 16]  # clean, seen, drawn


def test_images_count_from_the_folder_of_the_file(tmp_path: Path) -> None:
    write_images(tmp_path / "in")
    found = plans_of(write_rows(tmp_path / "in" / "rows.json", [ROWS["t2i"]]), "t2i")
    image = found.plan(0).items[-1]
    assert isinstance(image, ImageItem) and image.path == str(tmp_path / "in" / "red.png")


TRACE = "Text Reasoning Trace"


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("t2i", {"txt": ""}, "txt: the text is empty"),
        ("t2i", {"txt": 3}, "txt: 3 is a int, not a text"),
        ("t2i", {"txt": None}, "txt: null; the row's other fields are type, image, image_path"),
        ("t2i", {"image_path": "gone.png"}, "image_path: no image at"),
        ("t2i", {"image_path": ["red.png", "blue.png"]}, "image_path: 2 images, where one is drawn"),
        ("t2i", {"image_path": []}, "image_path: the list is empty"),
        ("t2i", {"image_path": ...}, "image_path: missing; did you mean"),
        ("edit", {"instruction": " "}, "instruction: the text is empty"),
        ("edit", {"input_image": ...}, "input_image: missing; did you mean output_image?"),
        ("edit", {"output_image": ["red.png", 7]}, "output_image[1]: 7 is a int"),
        ("t2i_reason", {"Reasoning": ""}, "Reasoning: the text is empty"),
        ("t2i_reason", {"Reasoning": ..., "reasoning": "x"}, "Reasoning: missing; did you mean reasoning?"),
        ("edit_reason", {"reasoning": ..., "Reasoning": "x"}, "reasoning: missing; did you mean Reasoning?"),
        ("t2i_refine", {"prompt": ...}, "prompt: missing"),
        ("t2i_refine", {"img_path": ...}, "img_path: missing"),
        ("t2i_refine", {TRACE: ""}, f"{TRACE}: the text is empty"),
        ("t2i_refine", {"second": "gone.png"}, "second: no image at"),
        ("t2i_refine", {"second": None}, "second: null"),
        ("t2i_refine", {TRACE: "a<image_start>[third]<image_end>"}, f"{TRACE}: the image [third] is no field of the row"),
        ("t2i_refine", {TRACE: "a<image_start>second"}, f"{TRACE}: <image_start> in 'a<image_start>second' belongs to no image"),
        ("t2i_refine", {"explanation": 4}, "explanation: 4 is a int, not a text"),
        ("edit_refine", {"before_image_path": "gone.png"}, "before_image_path: no image at"),
        ("edit_refine", {"after_image_path": ...}, "after_image_path: missing; did you mean before_image_path?"),
    ],
)  # fmt: skip
def test_a_row_that_cannot_be_used_is_named(
    tmp_path: Path, pictures: Path, kind: str, change: dict[str, Any], message: str
) -> None:
    broken = {
        name: value for name, value in {**ROWS[kind], **change}.items() if value is not ...
    }  # ... leaves a field out
    found = plans(tmp_path, kind, [ROWS[kind], broken], pictures)
    assert found.plan(0).items
    with pytest.raises(DataError) as error:
        found.plan(1)
    assert f"{tmp_path}/rows.json:2: {message}" in str(error.value)


def test_no_image_is_said_with_the_field_that_names_the_folder(tmp_path: Path, pictures: Path) -> None:
    found = plans(tmp_path, "t2i", [{**ROWS["t2i"], "image_path": "gone.png"}], pictures)
    with pytest.raises(DataError, match=r"relative paths count from `image_folder`"):
        found.plan(0)
    elsewhere = plans(tmp_path, "t2i", [ROWS["t2i"]], pictures.parent)
    with pytest.raises(DataError, match=r"it is in .*: set `image_folder` to that"):
        elsewhere.plan(0)
