"""Files of pairs: the published row, both sides as prompts, and each malformed case by file, line and field."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from services.kit.scorer import Item, Score
from services.rules.answers import option_letter
from tests.support.pair_rows import QUESTION, pair, rows_section, side, write_pairs
from tests.support.text_rows import png, write_parquet
from trainer.data.fingerprints import fingerprint
from trainer.data.pairs.file import read_pairs, sides_of
from trainer.data.prompts import DataError
from trainer.data.questions import QuestionFile


def read(path: Path, *, image_dir: str | None = None, threshold: float = 0.0, **fields: Any) -> QuestionFile:
    return read_pairs(
        rows_section(**fields),
        path=str(path),
        field="data.train.0",
        dataset="ug",
        image_dir=image_dir,
        threshold=threshold,
    )


def test_the_published_row_is_a_prompt_with_two_sides(tmp_path: Path) -> None:
    path = write_pairs(tmp_path, pair())
    file = read(path)
    (found,) = file.train.prompts
    asked, drawn = found.side("understand"), found.side("generate")
    assert (asked.id, drawn.id) == (f"{found.id}/understand", f"{found.id}/generate")
    assert found.similarity == asked.similarity == drawn.similarity == 0.88
    assert (asked.text, asked.source_images, asked.targets) == (QUESTION, (str(tmp_path / "a.png"),), ("A",))
    assert (drawn.text, drawn.source_images, drawn.targets) == ("a green ring", (), None)
    assert asked.metadata == {"answer": "A", "tag": "made", "caption": "a red disc"}
    assert drawn.metadata["tag"] == "geneval_train"
    assert (asked.task, drawn.task, asked.dataset, asked.place) == ("understand", "generate", "ug", f"{path}:1")
    assert "data.train.0: 1 pairs, 0 aligned, 1 retrieved with similarities from 0.88 to 0.88" in file.notes[0]


@pytest.mark.parametrize("similarity", [1, 1.0])
def test_similarity_1_is_aligned(tmp_path: Path, similarity: float) -> None:
    file = read(write_pairs(tmp_path, pair(similarity)))
    assert file.train.prompts[0].similarity == 1.0 and "1 pairs, 1 aligned" in file.notes[0]


@pytest.mark.parametrize("copied", [False, True])
def test_the_same_image_on_both_sides_is_aligned_whatever_it_is_called(tmp_path: Path, copied: bool) -> None:
    path = write_pairs(tmp_path, pair(0.93, drawn="c.png" if copied else "a.png"), pair(0.5, drawn="b.png"))
    if copied:
        shutil.copy(tmp_path / "a.png", tmp_path / "c.png")
    file = read(path)
    assert [each.similarity for each in file.train.prompts] == [1.0, 0.5]
    assert file.train.prompts[0].side("generate").similarity == 1.0
    assert any("1 pairs have the same image on both sides" in note and f"{path}:1" in note for note in file.notes)


def test_a_drawing_needs_no_image_and_no_question(tmp_path: Path) -> None:
    (found,) = read(write_pairs(tmp_path, pair(generate_ann={"prompt": "a ring"}))).train.prompts
    assert found.side("generate").text == "a ring" and found.similarity == 0.88


def test_pairs_below_the_threshold_are_left_out_and_counted(tmp_path: Path) -> None:
    rows = [pair(0.59, "b.png"), pair(0.6, "c.png"), pair(1.0, "d.png")]
    path = write_pairs(tmp_path, *rows)
    file = read(path, threshold=0.6)
    assert [each.similarity for each in file.train.prompts] == [0.6, 1.0]
    assert any("1 of 3 pairs are left out" in n and "similarity_threshold = 0.6" in n for n in file.notes)
    with pytest.raises(
        DataError, match=r"all of the 1 pairs .* sampling.similarity_threshold = 0.9 .* has 0.59\); lower"
    ):
        read(write_pairs(tmp_path, rows[0]), threshold=0.9)


def test_images_start_in_image_dir_the_files_folder_or_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_pairs(tmp_path / "rows", pair(), images=0)
    write_pairs(tmp_path / "elsewhere", images=4)
    (found,) = read(path, image_dir=str(tmp_path / "elsewhere")).train.prompts
    assert found.side("understand").source_images == (str(tmp_path / "elsewhere" / "a.png"),)
    monkeypatch.chdir(tmp_path / "elsewhere")  # as PairUni's paths count
    assert read(path).train.prompts[0].side("understand").source_images == ("a.png",)


def test_rows_of_parquet_may_hold_their_images(tmp_path: Path) -> None:
    image = {"bytes": png((9, 9, 9)), "path": None}
    row = pair(understand_ann=side(None, image=image), generate_ann={"prompt": "a ring"})
    path = write_parquet(tmp_path / "pairs.parquet", [row])
    (found,) = read(path, image_cache=str(tmp_path / "cache")).train.prompts
    assert Path(found.side("understand").source_images[0]).read_bytes() == image["bytes"]


OPEN = "How many discs are there?"
INLINE = "what colour left ? A red B orange C green answer"
MALFORMED = [
    (pair(None), "similarity: missing; give a number from 0 to 1"),
    (pair("0.88"), "similarity: '0.88' is a str, not a number"),
    (pair(True), "similarity: True is a bool, not a number"),
    (pair([0.8]), "similarity: [0.8] is a list, not a number"),
    (pair(float("nan")), "similarity = nan must be from 0 to 1"),
    (pair(float("inf")), "similarity = inf must be from 0 to 1"),
    (pair(1.01), "similarity = 1.01 must be from 0 to 1"),
    (pair(-0.2), "similarity = -0.2 must be from 0 to 1"),
    (pair(10**400), "similarity = 1000000"),
    (pair(understand_ann=None), "understand_ann: missing; a pair has understand_ann and generate_ann, and the row has similarity, generate_ann"),
    (pair(generate_ann=None), "generate_ann: missing"),
    (pair(generate_ann="a ring"), "generate_ann: 'a ring' is a str, not an object with image_path"),
    (pair(understand_ann=side("a.png", answer="C")), "understand_ann: answer: 'C' is none of the question's options A, B"),
    (pair(understand_ann=side("a.png", answer="A, B")), "understand_ann: answer: 'A, B' is none of the question's options"),
    (pair(understand_ann=side("a.png", answer="A. a blue bar")), "answer: 'A. a blue bar' is none of"),
    (pair(understand_ann=side("a.png", answer="a green ring")), "answer: 'a green ring' is none of"),
    (pair(understand_ann=side("a.png", question=INLINE, answer="D")), "answer: 'D' is none of the question's options A, B, C"),
    (pair(understand_ann=side("a.png", answer=None)), "understand_ann: answer: missing; without it no answer can be scored"),
    (pair(understand_ann=side("a.png", answer=" ")), "understand_ann: answer: missing"),
    (pair(understand_ann=side("a.png", answer=["A"])), "understand_ann: answer: ['A'] is a list, not a text or a number"),
    (pair(understand_ann=side("a.png", question=None)), "understand_ann: question: missing; it says what is asked"),
    (pair(understand_ann=side("a.png", question="")), "understand_ann: question: the text is empty"),
    (pair(understand_ann=side("a.png", question=f"<image><image>{QUESTION}")), "question: 2 <image> marks for 1 image"),
    (pair(understand_ann=side(None)), "understand_ann: image_path: missing; a question needs the image"),
    (pair(asked="none.png"), "understand_ann: image_path: no image at"),
    (pair(drawn="none.png"), "generate_ann: image_path: no image at"),
    (pair(understand_ann=side("a.png", image="b.png")), "understand_ann: image and image_path both have images"),
    (pair(generate_ann=side("b.png", "")), "generate_ann: prompt: the text is empty"),
    (pair(generate_ann={"image_path": "b.png"}), "generate_ann: prompt: missing; it says what is drawn"),
    (pair(generate_ann={"prompt": 4}), "generate_ann: prompt: 4 is a int, not a text"),
    (pair(generate_ann=side("b.png", metadata={"tag": "x"})), "generate_ann: tag is a column and also in metadata"),
    (pair(generate_ann=side("b.png", targets="SALE")), "generate_ann: targets: 'SALE' is not a list"),
    (pair(0.5), "the pair of {path}:1 again; leave one of them out"),
]  # fmt: skip


@pytest.mark.parametrize(("row", "words"), MALFORMED, ids=[words[:40] for _, words in MALFORMED])
def test_a_malformed_row_is_named_by_file_line_and_field(tmp_path: Path, row: dict[str, Any], words: str) -> None:
    path = write_pairs(tmp_path, pair(), row)
    words = words.format(path=path)
    with pytest.raises(DataError) as raised:
        read(path)
    said = str(raised.value)
    assert "data.train.0: 1 of 2 rows cannot be used; correct them, or set data.train.0.bad_rows: leave_out" in said
    assert f"{path}:2: " in said and words in said, said
    left = read(path, bad_rows="leave_out")
    assert len(left.train.prompts) == 1 and words in left.train.skipped[0]
    assert any("1 of 2 rows are left out" in note for note in left.notes)


@pytest.mark.parametrize("line", ['{"similarity": 1,', "[1, 2]", "\x00", '"text"'])
def test_a_line_that_is_no_row_is_named(tmp_path: Path, line: str) -> None:
    path = write_pairs(tmp_path, pair())
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(DataError, match=r"pairs\.jsonl:2: "):
        read(path)
    assert len(read(path, bad_rows="leave_out").train.prompts) == 1


@pytest.mark.parametrize(
    ("question", "answer", "targets"),
    [
        (QUESTION, "b", ("B",)),
        (QUESTION, "(B)", ("B",)),
        (QUESTION, "B.", ("B",)),
        (QUESTION, "B. a blue bar", ("B",)),
        (QUESTION, "A Blue  bar", ("B",)),
        ("Which?\n(A) one\n(B) two\n(C) three", "C", ("C",)),
        ("Which?\n  A) one\n  B) two", "A", ("A",)),
        ("Which? A. one B. two C. three", "C", ("C",)),
        (INLINE, "B", ("B",)),
        (OPEN, "3", ("3",)),
        (OPEN, 3, ("3",)),
        (OPEN, "a few", ("a few",)),
        ("Which letter is on the sign?", "B", ("B",)),
        ("Is person A taller than B ?", "yes", ("yes",)),
    ],
)  # fmt: skip
def test_answers_become_what_a_reward_compares(
    tmp_path: Path, question: str, answer: Any, targets: tuple[str, ...]
) -> None:
    path = write_pairs(tmp_path, pair(understand_ann=side("a.png", question=question, answer=answer)))
    file = read(path)
    assert file.train.prompts[0].side("understand").targets == targets
    unchecked = any("1 of 1 questions list no options" in note for note in file.notes)
    assert unchecked == (question in (OPEN, "Which letter is on the sign?", "Is person A taller than B ?"))


def test_a_pair_keeps_its_name_and_another_answer_changes_the_fingerprint(tmp_path: Path) -> None:
    rows = [pair(), pair(0.7, "c.png")]
    before = read(write_pairs(tmp_path / "one", *rows)).train.prompts
    after = read(write_pairs(tmp_path / "two", *reversed(rows))).train.prompts
    assert {each.id for each in before} == {each.id for each in after}
    assert fingerprint(before) == fingerprint(after)
    rows[1]["understand_ann"]["answer"] = "B"
    assert fingerprint(read(write_pairs(tmp_path / "two", *rows)).train.prompts) != fingerprint(before)
    rows[1]["understand_ann"]["answer"], rows[1]["similarity"] = "A", 0.71
    assert fingerprint(read(write_pairs(tmp_path / "two", *rows)).train.prompts) != fingerprint(before)


def test_sides_that_stand_in_several_pairs_are_held_out_once(tmp_path: Path) -> None:
    pairs = read(write_pairs(tmp_path, pair(), pair(0.7, generate_ann={"prompt": "a bar"}))).train.prompts
    assert len(sides_of(pairs, "understand")) == 1 and len(sides_of(pairs, "generate")) == 2


def test_columns_beside_a_pair_are_kept_and_must_be_json(tmp_path: Path) -> None:
    path = write_pairs(tmp_path, pair(cluster=7))
    assert read(path).train.prompts[0].metadata == {"cluster": 7}
    path.write_text(json.dumps(pair(cluster=float("nan"))) + "\n")
    with pytest.raises(DataError, match=r"pairs\.jsonl:1: .*nan is not a finite number"):
        read(path)


@pytest.mark.parametrize("written", ["A", "(a)", "A.", "A. a red disc", "a red disc"])
def test_what_is_read_is_what_the_letter_reward_compares(tmp_path: Path, written: str) -> None:
    path = write_pairs(tmp_path, pair(understand_ann=side("a.png", answer=written)))
    asked = read(path).train.prompts[0].side("understand")
    for said, right in (("<answer>A</answer>", 1.0), ("(A) a red disc", 1.0), ("B", 0.0), ("a red disc", 0.0)):
        item = Item(id="i", prompt=asked.text, images=(), completion=said, targets=asked.targets)
        found = option_letter(item)
        assert isinstance(found, Score) and found.value == right, (said, found)
