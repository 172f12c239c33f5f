"""Conversations about images as sequences: marks, turns, lists of rows, videos; and every row that cannot be used by its name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support.packed_rows import plans_of, write_images, write_rows
from trainer.data.formats.neo.frames import _spaced
from trainer.data.prompts.checks import DataError
from trainer.data.sequences import ImageItem, SequencePlan


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_images(tmp_path_factory.mktemp("pictures"))
    write_images(folder / "video")
    (folder / "empty").mkdir()
    (folder / "clip.mp4").write_bytes(b"x")
    return folder


def human(text: str) -> dict[str, Any]:
    return {"from": "human", "value": text}


def gpt(text: Any, **fields: Any) -> dict[str, Any]:
    return {"from": "gpt", "value": text, **fields}


def row(*turns: Any, **fields: Any) -> dict[str, Any]:
    return {"conversations": list(turns), "width": 32, "height": 32, **fields}


def brief(plan: SequencePlan) -> list[str]:
    """Each item on a line: who begins a turn, the text or image, and whether it is learnt."""
    return [
        f"[{Path(item.path).stem}]"
        if isinstance(item, ImageItem)
        else f"{f'{item.role}: ' if item.role else ''}{item.text}{' (CE)' * item.learnt}"
        for item in plan.items
    ]


def test_one_image_without_a_mark_stands_before_what_the_human_says_first(tmp_path: Path, pictures: Path) -> None:
    rows = [row({"from": "system", "value": "be brief"}, human("what?"), gpt("red"), image="red.png")]
    plan = plans_of(write_rows(tmp_path / "rows.json", rows), "conversations", image_folder=str(pictures)).plan(0)
    assert brief(plan) == ["system: be brief", "user: ", "[red]", "\nwhat?", "assistant: red (CE)"]
    assert {item.use for item in plan.items if isinstance(item, ImageItem)} == {"seen"}


@pytest.mark.parametrize("field", ["image", "images"])
def test_marks_are_filled_from_left_to_right(tmp_path: Path, pictures: Path, field: str) -> None:
    rows = [
        row(human("<image> or <image>?"), gpt("one"), human("and <image>"), gpt("two"), **{field: ["red.png", "green.png", "blue.png"]})
    ]  # fmt: skip
    plan = plans_of(write_rows(tmp_path / "rows.json", rows), "conversations", image_folder=str(pictures)).plan(0)
    assert brief(plan) == [
        "user: ", "[red]", " or ", "[green]", "?", "assistant: one (CE)", "user: and ", "[blue]", "assistant: two (CE)"
    ]  # fmt: skip


def test_an_answer_that_is_given_is_not_learnt(tmp_path: Path) -> None:
    rows = [row(human("hello"), gpt("given", is_input=True), human("go on"), gpt("learnt", is_input=False))]
    plan = plans_of(write_rows(tmp_path / "rows.json", rows), "conversations").plan(0)
    assert brief(plan) == ["user: hello", "assistant: given", "user: go on", "assistant: learnt (CE)"]


@pytest.mark.parametrize("array", [True, False], ids=["array", "lines"])
def test_a_list_of_rows_is_as_many_rows_each_the_same_whenever_it_is_read(
    tmp_path: Path, pictures: Path, array: bool
) -> None:
    first, second, third = (row(human(f"{n}?"), gpt(f"{n}!"), image="red.png") for n in range(3))
    path = write_rows(tmp_path / ("rows.json" if array else "rows.jsonl"), [[first, second], third], array=array)
    plans = plans_of(path, "conversations", image_folder=str(pictures))
    assert [plans.plan(n).id.removeprefix(str(path)) for n in range(3)] == [":1[0]", ":1[1]", ":2" if array else ":3"]
    assert [brief(plans.plan(n))[-1] for n in (2, 1, 0, 1)] == [f"assistant: {n}! (CE)" for n in (2, 1, 0, 1)]
    assert plans.plan(1) == plans.plan(1)


@pytest.mark.parametrize(
    ("video", "frames", "expected"),
    [
        ("video", 8, ["[blue]", "[green]", "[red]"]),
        ("video", 2, ["[blue]", "[red]"]),
        ("video", 1, ["[green]"]),
        (["video"], 8, ["[blue]", "[green]", "[red]"]),
    ],
)
def test_a_video_is_so_many_of_its_frames(
    tmp_path: Path, pictures: Path, video: Any, frames: int, expected: list[str]
) -> None:
    rows = [row(human("what moves?"), gpt("nothing"), video=video), row(human("a <video> b"), gpt("x"), video=video)]
    path = write_rows(tmp_path / "rows.json", rows)
    plans = plans_of(path, "conversations", image_folder=str(pictures), frames=frames)
    assert brief(plans.plan(0)) == ["user: ", *expected, "\nwhat moves?", "assistant: nothing (CE)"]
    assert brief(plans.plan(1)) == ["user: a ", *expected, " b", "assistant: x (CE)"]


def test_images_of_a_conversation_share_what_one_may_have(tmp_path: Path, pictures: Path) -> None:
    """Frames count as images."""
    rows = [
        row(human("a"), gpt("b"), image="red.png"),
        row(human("<image> <image> <video>"), gpt("b"), image=["red.png", "blue.png"], video="video"),
    ]
    plans = plans_of(write_rows(tmp_path / "rows.json", rows), "conversations", image_folder=str(pictures))
    among = [[item.among for item in plans.plan(n).items if isinstance(item, ImageItem)] for n in (0, 1)]
    assert among == [[1], [5] * 5]


def test_frames_are_spaced_evenly() -> None:
    assert _spaced(9, 5) == [0, 2, 4, 6, 8]
    assert _spaced(100, 4) == [0, 33, 66, 99]


TURNS = (human("a"), gpt("b"))


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ({"image": "red.png"}, "conversations: missing; the row's fields are image"),
        (row(), "conversations: [] is no list of turns"),
        ({"conversations": "hello"}, "conversations: 'hello' is no list of turns"),
        (row("hello"), "conversations[0]: 'hello' is no turn"),
        (row({"from": "human"}), "conversations[0]: {'from': 'human'} is no turn; a turn has `from` and `value`"),
        (row(human("a"), {"from": "tool", "value": "b"}), "conversations[1]: from: 'tool' is none of human, gpt, system"),
        (row(human("a"), gpt("")), "conversations[1]: value: the text is empty"),
        (row(human("a"), gpt(3)), "conversations[1]: value: 3 is a int, not a text"),
        (row(human("a"), gpt("b", is_input="yes")), "conversations[1]: is_input: 'yes' is neither true nor false"),
        (row(human("a"), gpt("b", is_inputs=True)), "conversations[1]: is_inputs: not known; did you mean is_input, by which"),
        (row(human("a"), gpt("b", is_input=None)), "conversations[1]: is_input: None is neither true nor false"),
        (row(human("a")), "conversations: no turn of gpt's is learnt"),
        (row(human("a"), gpt("b", is_input=True)), "conversations: no turn of gpt's is learnt"),
        (row(human("a"), gpt("see <image>"), image="red.png"), "conversations[1]: value: <image> stands in an answer"),
        (row(*TURNS, image=["red.png", "blue.png"]), "conversations: 0 <image> marks for 2 images; write one for each"),
        (row(human("<image>"), gpt("b"), image=["red.png", "blue.png"]), "conversations: 1 <image> mark for 2 images"),
        (row(human("<image><image>"), gpt("b"), image="red.png"), "conversations: 2 <image> marks for 1 image"),
        (row(human("<image>"), gpt("b")), "conversations: 1 <image> mark for 0 images"),
        (row(human("<video>"), gpt("b")), "conversations: 1 <video> mark for 0 videos"),
        (row(gpt("b"), image="red.png"), "conversations: 0 <image> marks for 1 image"),
        (row(*TURNS, image="red.png", images=["blue.png"]), "image and images are both given; keep one"),
        (row(*TURNS, image="gone.png"), "image: no image at"),
        (row(*TURNS, images=["red.png", None]), "images[1]: None is a NoneType"),
        (row(*TURNS, video="clip.mp4"), "clip.mp4 is a file; videos are read as folders of frames: write them with ffmpeg"),
        (row(*TURNS, video="nowhere"), "video: no folder at"),
        (row(*TURNS, video="x" * 5000), "video: no folder at"),
        (row(*TURNS, image="x" * 5000 + ".png"), "cannot be read: File name too long"),
        (row(*TURNS, image=[["red.png"]]), "image[0]: ['red.png'] is a list, not a text"),
        (row(*TURNS, image=0), "image: 0 is a int, not a text"),
        (row(human("<image_1> <image_2>"), gpt("b"), image=["red.png", "blue.png"]), "0 <image> marks for 2 images"),
        (row(*TURNS, image="red.png", video=[["red.png"]]), "conversations: 0 <image> marks for 1 image"),
        (row(*TURNS, video="empty"), "video: 'empty' holds no image in .png"),
        ([], "[] is a list, not an object"),
        ([3], "3 is a int, not an object"),
    ],
)  # fmt: skip
def test_a_row_that_cannot_be_used_is_named(tmp_path: Path, pictures: Path, broken: Any, message: str) -> None:
    path = write_rows(tmp_path / "rows.json", [row(*TURNS), broken, row(*TURNS)])
    plans = plans_of(path, "conversations", image_folder=str(pictures))
    with pytest.raises(DataError) as error:
        plans.plan(1)
    assert str(error.value).startswith(f"{path}:2: ") and message in str(error.value)
    assert brief(plans.plan(0)) == brief(plans.plan(2)) == ["user: a", "assistant: b (CE)"]
