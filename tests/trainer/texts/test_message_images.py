"""Images that stand in the parts of messages: each has its image, in its place, or the row is refused. None is ever lost."""

from __future__ import annotations

import base64
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.text_rows import png, text_file, write_jsonl, write_parquet
from trainer.data.answers import read_answers
from trainer.data.conversations import read_conversations
from trainer.data.prompts import DataError
from trainer.data.questions import read_questions

ASKED, SAID = "What is it?", "A cat."
RED, BLUE = png((200, 0, 0)), png((0, 0, 200))


def image(**own: Any) -> dict[str, Any]:
    return {"type": "image", **own}


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


def user(*parts: Any) -> dict[str, Any]:
    return {"role": "user", "content": list(parts)}


def assistant(*parts: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": list(parts)}


@pytest.fixture
def pictures(tmp_path: Path) -> tuple[Path, Path]:
    paths = tmp_path / "red.png", tmp_path / "blue.png"
    for path, data in zip(paths, (RED, BLUE), strict=True):
        path.write_bytes(data)
    return paths


def talk(folder: Path, row: dict[str, Any]) -> tuple[list[str], list[bytes]]:
    """What each turn says, and the images."""
    path = write_jsonl(folder / "a.jsonl", [row])
    (found,) = read_conversations(text_file(path), field="conversations", max_images=4).train
    return [turn.text for turn in found.turns], [Path(each).read_bytes() for each in found.images]


def pair(folder: Path, row: dict[str, Any]) -> tuple[list[str], list[bytes]]:
    path = write_jsonl(folder / "a.jsonl", [row])
    rows = read_answers(text_file(path), field="preferences", dataset="d", max_images=4)
    prompt = rows.train[0].prompt
    return [prompt.text], [Path(each).read_bytes() for each in prompt.source_images]


def question(folder: Path, row: dict[str, Any]) -> tuple[list[str], list[bytes]]:
    path = write_jsonl(folder / "a.jsonl", [row])
    rows = read_questions(text_file(path), path=str(path), field="data.train.0", dataset="d", max_images=4)
    prompt = rows.train.prompts[0]
    return [prompt.text], [Path(each).read_bytes() for each in prompt.source_images]


READERS: list[tuple[Callable[..., Any], Callable[[Any], dict[str, Any]]]] = [
    (talk, lambda message: {"messages": [message, assistant(text(SAID))]}),
    (talk, lambda message: {"prompt": [message], "completion": [assistant(text(SAID))]}),
    (question, lambda message: {"prompt": [message]}),
    (pair, lambda message: {"prompt": [message], "chosen": SAID, "rejected": "A dog."}),
    (pair, lambda message: {name: [message, assistant(text(name))] for name in ("chosen", "rejected")}),
]


@pytest.mark.parametrize(("read", "row"), READERS)
def test_a_part_may_hold_its_image(read: Callable[..., Any], row: Callable[[Any], dict[str, Any]], tmp_path: Path, pictures: tuple[Path, Path]) -> None:  # fmt: skip
    """By the names that messages of Qwen, transformers and OpenAI have for it."""
    url = "data:image/png;base64," + base64.b64encode(RED).decode()
    for part in (
        image(image="red.png"),
        image(image=f"file://{pictures[0]}"),
        image(path=str(pictures[0]), url=None),
        image(image=url),
        {"type": "image_url", "image_url": {"url": url}},
    ):
        texts, images = read(tmp_path, row(user(part, text(ASKED))))
        assert texts[0] == ASKED and images == [RED], part


@pytest.mark.parametrize(("read", "row"), READERS)
@pytest.mark.parametrize(
    ("parts", "column", "words"),
    [
        ([image(), text(ASKED)], None, "1 message part of type image for 0 images; give each its image, in the part itself or in the column images"),
        ([image(), image(), text(ASKED)], ["red.png"], "2 message parts of type image for 1 image"),
        ([image(), text(ASKED)], ["red.png", "blue.png"], "1 message part of type image for 2 images"),
        ([image(image="red.png"), image(), text(ASKED)], None, "2 message parts of type image for 1 image"),
        ([image(image="red.png"), text(ASKED)], ["red.png"], "images and the messages' own parts both have images; keep one of them, by rename_columns: {images: null}"),
        ([image(image="https://x.org/a.png"), text(ASKED)], None, "content: 'https://x.org/a.png' is a web address, which is not fetched"),
        ([image(image="red.png")] * 5 + [text(ASKED)], None, "content: 5 images are more than 4"),
    ],
)  # fmt: skip
@pytest.mark.usefixtures("pictures")
def test_no_image_is_lost(read: Callable[..., Any], row: Callable[[Any], dict[str, Any]], parts: list[Any], column: Any, words: str, tmp_path: Path) -> None:  # fmt: skip
    """A message whose image is not found would be trained on as a text, and the model would learn not to look."""
    with pytest.raises(DataError) as told:
        read(tmp_path, row(user(*parts)) | ({} if column is None else {"images": column}))
    assert f"{tmp_path / 'a.jsonl'}:1: " in str(told.value) and words in str(told.value)


@pytest.mark.usefixtures("pictures")
def test_an_image_of_a_later_turn_stays_there(tmp_path: Path) -> None:
    first, later = user(text("hello")), user(image(), text(ASKED))
    texts, _ = talk(tmp_path, {"messages": [first, assistant(text("hi")), later, assistant(text(SAID))], "images": ["red.png"]})  # fmt: skip
    assert texts == ["hello", "hi", f"<image>{ASKED}", SAID]
    texts, images = talk(tmp_path, {"messages": [later, assistant(text("hi")), later, assistant(text(SAID))], "images": ["red.png", "blue.png"]})  # fmt: skip
    assert texts == [f"<image>{ASKED}", "hi", f"<image>{ASKED}", SAID] and images == [RED, BLUE]


@pytest.mark.usefixtures("pictures")
def test_an_answer_shows_no_image(tmp_path: Path) -> None:
    answer = assistant(image(), text(SAID))
    with pytest.raises(DataError, match="<image> marks an image in the assistant's turn"):
        talk(tmp_path, {"messages": [user(text(ASKED)), answer], "images": ["red.png"]})


def test_parquet_gives_every_part_all_keys(tmp_path: Path) -> None:
    """Those that are not there are null; images are bytes with a path."""
    held = {"bytes": RED, "path": None}
    content = [image(image=held, text=None), {"type": "text", "text": ASKED, "image": None}]
    rows = [{"messages": [{"role": "user", "content": content}, {"role": "assistant", "content": [text(SAID)]}]}]
    path = write_parquet(tmp_path / "a.parquet", rows)
    (found,) = read_conversations(text_file(path), field="conversations", max_images=4).train
    assert found.turns[0].text == ASKED and [Path(each).read_bytes() for each in found.images] == [RED]
