"""Rows of edits in other projects' files: their pictures are found under every name, in order, and never lost as metadata."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from trainer.config import ConfigError
from trainer.data.prompts import DataError, PromptFile, read_prompt_file
from trainer.data.prompts.fields import is_input
from trainer.policies.flow.sources import refuse_sources


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a.png", "b.png", "images/c.png", "elsewhere/d.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    return tmp_path


def read(folder: Path, row: dict[str, Any], **options: Any) -> PromptFile:
    (folder / "rows.jsonl").write_text(json.dumps(row) + "\n")
    return read_prompt_file(folder / "rows.jsonl", dataset="set", **options)


INPUTS = [
    "images",
    "image",
    "img",
    "image_path",
    "image_paths",
    "ctrl_image",
    "ctrl_img",
    "control_image",
    "control_images",
    "ref_image",
    "ref_images",
    "reference_image",
    "source_image",
    "source_img",
    "src_image",
    "src_img_path",
    "source_images",
    "input_image",
    "input_images",
    "input_img",
    "cond_image",
    "condition_image",
    "condition_images",
    "conditioning_image",
    "edit_image",
    "kontext_images",
    "original_image",
    "init_image",
    "before_image",
    "before_image_path",
    "context_image",
    "Image",
    "source-image",
    "control_path",
    "image_1",
]
NOT_INPUTS = [
    "sup_image",
    "target_image",
    "output_image",
    "edited_image",
    "gt_image",
    "mask_image",
    "after_image",
    "after_image_path",
    "image_id",
    "image_size",
    "image_width",
    "num_images",
    "has_image",
    "file_name",
    "tag",
    "source",
    "reference",
    "imagery",
]


def test_which_names_are_inputs() -> None:
    assert [name for name in INPUTS if not is_input(name)] == []
    assert [name for name in NOT_INPUTS if is_input(name)] == []


@pytest.mark.parametrize("name", INPUTS)
@pytest.mark.parametrize("form", ["text", "list"])
def test_a_picture_under_any_name(folder: Path, name: str, form: str) -> None:
    value = "a.png" if form == "text" and name != "source_images" else ["a.png", "b.png"]
    ours = {"format": "rows"} if name == "source_images" else {}  # else our own row, which has no `tag`
    (prompt,) = read(folder, {"prompt": "make it red", name: value, "tag": "x"}, **ours).prompts
    expected = [value] if isinstance(value, str) else value
    assert prompt.source_images == tuple(str(folder / each) for each in expected)
    assert prompt.metadata == {"tag": "x"}


def test_control_and_reference_in_the_rows_order(folder: Path) -> None:
    """As flow_grpo's edits with two pictures have them; what supervises is no input."""
    row = {
        "tag": "dual",
        "prompt": "as the reference",
        "ctrl_image": "b.png",
        "ref_image": "a.png",
        "sup_image": "z.png",
    }
    (prompt,) = read(folder, row).prompts
    assert prompt.source_images == (str(folder / "b.png"), str(folder / "a.png"))
    assert prompt.metadata == {"tag": "dual", "sup_image": "z.png"}


@pytest.mark.parametrize("name", ["source", "input", "Control", "ref", "original"])
def test_a_bare_name_is_an_input_where_it_names_pictures(folder: Path, name: str) -> None:
    """As in fill50k's `source`, `target`, `prompt`."""
    (prompt,) = read(folder, {name: "a.png", "target": "z.png", "prompt": "a circle"}).prompts
    assert (prompt.source_images, prompt.metadata) == ((str(folder / "a.png"),), {"target": "z.png"})
    (prompt,) = read(folder, {name: ["a.png", "b.png"], "prompt": "a circle"}).prompts
    assert len(prompt.source_images) == 2
    (prompt,) = read(folder, {name: "the web", "prompt": "a circle"}, format="rows").prompts
    assert (prompt.source_images, prompt.metadata) == ((), {name: "the web"})


def test_what_could_be_the_result_is_not_guessed(folder: Path) -> None:
    with pytest.raises(DataError, match=r"rows\.jsonl:1: image and edit_image all name pictures.*as `source_images`"):
        read(folder, {"prompt": "make it red", "image": "a.png", "edit_image": "b.png"})
    assert read(folder, {"prompt": "make it red", "image": None, "edit_image": "b.png"}).prompts[0].source_images


def test_empty_values_are_no_pictures(folder: Path) -> None:
    for value in ("", [], None):
        (prompt,) = read(folder, {"prompt": "a cat", "image": value}).prompts
        assert (prompt.source_images, prompt.metadata) == ((), {})


def test_pictures_inside_a_table_are_refused(folder: Path) -> None:
    assert read(folder, {"prompt": "x", "image": {"bytes": None, "path": "a.png"}}).prompts[0].source_images
    with pytest.raises(DataError, match="image: holds the picture itself; save the pictures as files"):
        read(folder, {"prompt": "x", "image": {"bytes": "iVBOR", "path": "a.png"}})
    with pytest.raises(DataError, match=r'images: 3 is not a path like "cat\.png" or a list of paths'):
        read(folder, {"prompt": "x", "images": [3]})


def test_a_video_is_refused(folder: Path) -> None:
    with pytest.raises(DataError, match="video: starts from a video or a sound, which no policy takes"):
        read(folder, {"prompt": "x", "video": "a.mp4"}, format="rows")


def test_columns_of_a_table(folder: Path) -> None:
    content = 'Prompt;ctrl_image;images;n;negative_prompt\nx;a.png;;1;blurry\ny;;"[""a.png"", ""b.png""]";2;\n'
    (folder / "a.csv").write_text(content)
    first, second = read_prompt_file(folder / "a.csv", dataset="set").prompts
    assert first.source_images == (str(folder / "a.png"),) and first.metadata == {"n": "1"}
    assert second.source_images == (str(folder / "a.png"), str(folder / "b.png"))
    assert (first.negative_prompt, second.negative_prompt) == ("blurry", None)


def test_pictures_in_a_folder_beside_the_rows(folder: Path) -> None:
    assert read(folder, {"prompt": "x", "image": "c.png"}).prompts[0].source_images == (
        str(folder / "images" / "c.png"),
    )
    row = {"prompt": "x", "images": ["d.png"]}
    with pytest.raises(
        DataError, match=r"no image at .*/d\.png or .*images/d\.png; it is in .*elsewhere: set .*`image_dir` to that"
    ):
        read(folder, row)
    (prompt,) = read(folder, row, image_dir=str(folder / "elsewhere")).prompts
    assert prompt.source_images == (str(folder / "elsewhere" / "d.png"),)
    with pytest.raises(DataError, match=r"no image at [^ ]*elsewhere/a\.png;"):
        read(folder, {"prompt": "x", "images": ["a.png"]}, image_dir=str(folder / "elsewhere"))


def test_a_folder_with_rows_and_pictures(folder: Path) -> None:
    (folder / "train.jsonl").write_text('{"prompt": "x", "images": ["c.png"], "negative_prompt": "y"}\n')
    (prompt,) = read_prompt_file(folder, dataset="set").prompts
    assert prompt.source_images and prompt.negative_prompt == "y" and prompt.metadata == {}


def test_our_own_rows_have_a_negative_prompt(folder: Path) -> None:
    (prompt,) = read(folder, {"prompt": "a cat", "negative_prompt": "a dog"}).prompts
    assert prompt.negative_prompt == "a dog"
    with pytest.raises(DataError, match="negative_prompt: 3 is a int, not a text"):
        read(folder, {"prompt": "a cat", "negative_prompt": 3})
    other = read(folder, {"prompt": "a cat", "negative_prompt": "a cow"}).prompts[0]
    assert len({prompt.id, other.id, read(folder, {"prompt": "a cat"}).prompts[0].id}) == 3


def test_targets_of_a_row_are_targets(folder: Path) -> None:
    (prompt,) = read(folder, {"caption": "a sign", "targets": ["SALE"]}).prompts
    assert (prompt.targets, prompt.metadata) == (("SALE",), {})


def test_a_policy_without_edits_says_what_to_do(folder: Path) -> None:
    prompts = read(folder, {"prompt": "x", "images": ["a.png", "b.png"]}).prompts
    words = r"policy\.type = flux .*use sd3 or deepgen.*leave them out \(first .*a\.png\): .*such as image or ref_image"
    with pytest.raises(ConfigError, match=words):
        refuse_sources(prompts, "flux")
