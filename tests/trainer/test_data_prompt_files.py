"""Prompt files: what is read, and that everything wrong is a DataError with the line, the field and the remedy."""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from trainer.config import DataConfig
from trainer.config.data import PromptFormat
from trainer.data.datasets import DataError, check_disjoint, load_prompts, load_train_prompts
from trainer.data.overlap import find_overlaps
from trainer.data.prompts import MAX_ID_LENGTH, MAX_METADATA_DEPTH, MAX_PROMPT_LENGTH, read_prompt_file
from trainer.types import Prompt


def write(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def prompts_of(folder: Path, name: str, content: str | bytes) -> list[Prompt]:
    return load_prompts(write(folder, name, content), dataset="set", weights={"ocr": 1.0})


def test_txt_has_a_prompt_a_line_with_ids_made_from_the_text(tmp_path: Path) -> None:
    prompts = prompts_of(tmp_path, "a.txt", "a cat\n\n  a dog  \n")
    assert [p.text for p in prompts] == ["a cat", "a dog"]
    assert prompts[0].id == "set-" + hashlib.sha256(b"a cat").hexdigest()[:16]
    assert (prompts[0].dataset, prompts[0].weights, prompts[0].targets) == ("set", {"ocr": 1.0}, None)


def test_ids_stay_when_lines_move(tmp_path: Path) -> None:
    before = {p.text: p.id for p in prompts_of(tmp_path, "a.txt", "a\nb\nc\n")}
    after = {p.text: p.id for p in prompts_of(tmp_path, "a.txt", "c\nnew\nb\na\n")}
    assert {text: after[text] for text in before} == before


def test_byte_order_mark_crlf_and_blank_lines_do_no_harm(tmp_path: Path) -> None:
    plain = prompts_of(tmp_path, "a.txt", "a cat\na dog\n")
    assert prompts_of(tmp_path, "b.txt", b"\xef\xbb\xbfa cat\r\n\r\na dog\r\n\r\n") == plain
    rows = prompts_of(tmp_path, "a.jsonl", '{"prompt": "a cat"}\n{"prompt": "a dog"}')
    assert prompts_of(tmp_path, "b.jsonl", b'\xef\xbb\xbf{"prompt": "a cat"}\r\n{"prompt": "a dog"}\r\n\n') == rows
    assert rows == plain


def test_only_line_feeds_end_lines(tmp_path: Path) -> None:
    """U+2028 is a character of the text (in JSON it need not be escaped), not the end of a line."""
    assert [p.text for p in prompts_of(tmp_path, "a.txt", "one\u2028two\n")] == ["one\u2028two"]


def test_repeated_txt_lines_are_dropped_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write(tmp_path, "a.txt", "a cat\na dog\na cat\n")
    with caplog.at_level(logging.WARNING):
        file = read_prompt_file(path, dataset="set")
    assert [p.text for p in file.prompts] == ["a cat", "a dog"]
    assert (file.lines, file.repeated) == ((1, 2), 1)
    assert f"{path}:3: the prompt of line 1 again" in caplog.text


def test_jsonl_carries_id_targets_and_metadata(tmp_path: Path) -> None:
    row = {"id": "x1", "prompt": 'a sign "中文"', "targets": ["中文"], "metadata": {"color": "red", "box": [1, 2.5]}}
    (prompt,) = prompts_of(tmp_path, "a.jsonl", json.dumps(row))
    assert prompt == Prompt("x1", 'a sign "中文"', "set", {"ocr": 1.0}, ("中文",), {"color": "red", "box": [1, 2.5]})
    nulls = {"id": None, "prompt": "a", "targets": None, "metadata": None}
    (bare,) = prompts_of(tmp_path, "b.jsonl", json.dumps(nulls))
    assert (bare.targets, bare.metadata, bare.id[:4]) == (None, {}, "set-")


GOOD = '{"prompt": "fine"}\n'

BROKEN_ROWS = {
    "not_json": ("{prompt: 1}", ["not a JSON object", "double quotes"]),
    "cut_off": ('{"prompt": "a', ["not a JSON object"]),
    "a_list": ('["a"]', ["a JSON list", '{"prompt": "..."}']),
    "a_number": ("12", ["a JSON int"]),
    "nested_without_end": ("[" * 100_000, ["not a JSON object"]),
    "huge_number": ('{"prompt": ' + "9" * 5000 + "}", ["not a JSON object"]),
    "key_twice": ('{"prompt": "a", "prompt": "b"}', ["'prompt' comes twice"]),
    "unknown_field": ('{"prompt": "a", "promt": "b"}', ["promt: unknown field", "did you mean 'prompt'?"]),
    "unknown_field_far": ('{"prompt": "a", "zzz": 1}', ["zzz: unknown field", "`metadata`"]),
    "missing_prompt": ('{"id": "a"}', ["prompt: missing"]),
    "null_prompt": ('{"prompt": null}', ["prompt: missing"]),
    "number_prompt": ('{"prompt": 3}', ["prompt: 3 is a int, not a text"]),
    "empty_prompt": ('{"prompt": " "}', ["prompt: the text is empty"]),
    "long_prompt": ('{"prompt": "' + "a" * (MAX_PROMPT_LENGTH + 1) + '"}', ["prompt: 65537 characters", "65536"]),
    "control_character": ('{"prompt": "a\\u0000b"}', ["prompt: the character U+0000"]),
    "half_surrogate": ('{"prompt": "\\ud83d"}', ["prompt: the character U+D83D"]),
    "number_id": ('{"prompt": "a", "id": 7}', ["id: 7 is a int, not a text; put it in double quotes"]),
    "empty_id": ('{"prompt": "a", "id": ""}', ["id: the text is empty"]),
    "long_id": ('{"prompt": "a", "id": "' + "i" * (MAX_ID_LENGTH + 1) + '"}', ["id: 201 characters", "200"]),
    "text_targets": ('{"prompt": "a", "targets": "SALE"}', ["targets: 'SALE' is not a list"]),
    "no_targets": ('{"prompt": "a", "targets": []}', ["targets: [] is not a list of texts", "leave it out"]),
    "number_target": ('{"prompt": "a", "targets": ["A", 2]}', ["targets[1]: 2 is a int"]),
    "empty_target": ('{"prompt": "a", "targets": [""]}', ["targets[0]: the text is empty"]),
    "list_metadata": ('{"prompt": "a", "metadata": [1]}', ["metadata: [1] is not an object"]),
    "nan_metadata": ('{"prompt": "a", "metadata": {"x": [NaN]}}', ["metadata.x[0]: nan is not a finite"]),
    "inf_metadata": ('{"prompt": "a", "metadata": {"x": {"y": 1e999}}}', ["metadata.x.y: inf is not a finite"]),
    "half_text_metadata": ('{"prompt": "a", "metadata": {"x": "\\ud83d"}}', ["metadata.x: half a surrogate"]),
    "deep_metadata": (
        '{"prompt": "a", "metadata": ' + '{"a":' * (MAX_METADATA_DEPTH + 2) + "1" + "}" * (MAX_METADATA_DEPTH + 3),
        ["nested deeper than 32"],
    ),
}


@pytest.mark.parametrize("case", BROKEN_ROWS)
def test_a_broken_row_is_refused_with_its_line_and_field(tmp_path: Path, case: str) -> None:
    row, expected = BROKEN_ROWS[case]
    path = write(tmp_path, "a.jsonl", GOOD + "\n" + row + "\n")
    with pytest.raises(DataError) as raised:
        load_prompts(path, dataset="set")
    message = str(raised.value)
    assert message.startswith(f"{path}:3: "), message
    for words in expected:
        assert words in message
    assert len(message) < 600


def test_ids_that_come_twice_are_refused_with_both_lines(tmp_path: Path) -> None:
    path = write(tmp_path, "a.jsonl", '{"id": "x", "prompt": "a"}\n{"id": "x", "prompt": "b"}\n')
    with pytest.raises(DataError, match=r":2: id: 'x' is already on line 1"):
        load_prompts(path, dataset="set")


def test_the_same_text_without_ids_is_refused_in_jsonl(tmp_path: Path) -> None:
    """Two rows may differ in targets, so dropping one would be a guess."""
    path = write(tmp_path, "a.jsonl", '{"prompt": "a", "targets": ["x"]}\n{"prompt": "a", "targets": ["y"]}\n')
    with pytest.raises(DataError, match=r":2: prompt: the same text without an id is on line 1.*give each an `id`"):
        load_prompts(path, dataset="set")


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
@pytest.mark.parametrize("content", ["", "\n \n\t\n", "\ufeff"])
def test_an_empty_file_is_refused(tmp_path: Path, name: str, content: str) -> None:
    with pytest.raises(DataError, match=rf"{name} holds no prompt: write one a line"):
        prompts_of(tmp_path, name, content)


def test_bytes_that_are_not_utf8_are_refused_with_their_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a\.txt:2: not UTF-8 text \(byte 0xe9\); save the file as UTF-8"):
        prompts_of(tmp_path, "a.txt", b"fine\ncaf\xe9\n")
    with pytest.raises(DataError, match=r"a\.txt:1: not UTF-8 text \(byte 0xff\)"):
        prompts_of(tmp_path, "a.txt", "a cat".encode("utf-16"))
    with pytest.raises(DataError, match=r"a\.txt:1: prompt: the character U\+0000 does not belong"):
        prompts_of(tmp_path, "a.txt", b"PNG\x00\x01")


def test_a_missing_file_is_named_with_its_absolute_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError) as raised:
        load_prompts("data/none.txt", dataset="set")
    assert str(tmp_path / "data" / "none.txt") in str(raised.value)
    assert "working directory" in str(raised.value)


def test_a_folder_and_another_suffix_are_refused(tmp_path: Path) -> None:
    (tmp_path / "folder.txt").mkdir()
    with pytest.raises(DataError, match=r"folder\.txt cannot be read: Is a directory"):
        load_prompts(tmp_path / "folder.txt", dataset="set")
    with pytest.raises(DataError, match=r"a\.xml: a prompt file ends in \.txt .*, \.jsonl .*\.csv or \.parquet"):
        load_prompts(write(tmp_path, "a.xml", "a\n"), dataset="set")


def data_config(*datasets: dict[str, object]) -> DataConfig:
    return DataConfig.model_validate({"train": [{"rewards": {"ocr": 1.0}, **d} for d in datasets]})


def test_training_sets_have_names_weights_and_prompts_of_their_own(tmp_path: Path) -> None:
    one, two = write(tmp_path, "one.txt", "a\nb\n"), write(tmp_path, "two.txt", "a\n")
    config = data_config({"path": str(one)}, {"path": str(two), "name": "second", "weight": 3, "rewards": {"hps": 0.5}})
    first, second = load_train_prompts(config)
    assert (first.name, first.weight, len(first.prompts)) == ("one", 1.0, 2)
    assert (second.name, second.weight, second.prompts[0].weights) == ("second", 3.0, {"hps": 0.5})
    assert first.prompts[0].text == second.prompts[0].text
    assert first.prompts[0].id != second.prompts[0].id


def test_an_explicit_id_may_not_come_again_in_another_set(tmp_path: Path) -> None:
    one, two = (
        write(tmp_path, "one.jsonl", '{"id": "x", "prompt": "a"}'),
        write(tmp_path, "two.jsonl", '{"prompt": "c"}\n{"id": "x", "prompt": "b"}'),
    )
    with pytest.raises(DataError) as raised:
        load_train_prompts(data_config({"path": str(one)}, {"path": str(two)}))
    assert f"{two}:2: id: 'x' is also at {one}:1" in str(raised.value)


TRAIN = [Prompt("t1", 'A sign "SALE"', "shop", targets=("SALE",)), Prompt("t2", "a cat")]


@pytest.mark.parametrize(
    ("heldout", "why"),
    [
        (Prompt("t2", "something else"), "same id 't2'"),
        (Prompt("h", "A  ｃat "), "same prompt 'a cat'"),
        (Prompt("h", 'a poster "sale"', targets=("sale",)), "same targets 'sale'"),
    ],
)
def test_held_out_prompts_that_training_knows_are_refused(heldout: Prompt, why: str) -> None:
    with pytest.raises(DataError) as raised:
        check_disjoint(TRAIN, [Prompt("h0", "new", targets=("NEW",)), heldout])
    message = str(raised.value)
    assert why in message and repr(heldout.id) in message
    assert "1 of 2 held-out prompts" in message and "take them out" in message


def test_new_held_out_prompts_pass() -> None:
    for heldout in ([Prompt("h", "a dog", targets=("SALE", "TODAY"))], []):
        check_disjoint(TRAIN, heldout)  # raises where they overlap
        assert find_overlaps(TRAIN, heldout) == []


def test_the_first_three_overlaps_are_listed() -> None:
    train = [Prompt(f"p{i}", f"text {i}") for i in range(10)]
    with pytest.raises(DataError) as raised:
        check_disjoint(train, train)
    assert "10 of 10" in str(raised.value)
    assert [f"'p{i}'" in str(raised.value) for i in range(4)] == [True, True, True, False]


def test_shared_targets_can_be_admitted() -> None:
    heldout = [Prompt("h", 'a poster "SALE"', targets=("SALE",))]
    check_disjoint(TRAIN, heldout, may_share="targets")
    with pytest.raises(DataError, match="same prompt"):
        check_disjoint(TRAIN, [Prompt("h", "a cat")], may_share="targets")


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
ROWS = st.fixed_dictionaries(
    {}, optional={name: JSON_VALUES for name in ("prompt", "id", "targets", "metadata", "x")}
) | st.fixed_dictionaries(
    {"prompt": st.text(min_size=1)}, optional={"metadata": st.dictionaries(st.text(), JSON_VALUES)}
)


def check_read(path: Path, format: PromptFormat = "auto") -> None:
    """Either a DataError that names the file, or prompts that can be sent: unique ids, sendable text, finite numbers."""
    try:
        prompts = load_prompts(path, dataset="set", format=format)
    except DataError as error:
        assert path.name in str(error)
        return
    assert prompts
    assert len({p.id for p in prompts}) == len(prompts)
    for prompt in prompts:
        assert prompt.text.strip() and prompt.id.strip()
        json.dumps(
            [prompt.id, prompt.text, prompt.targets, prompt.metadata], ensure_ascii=False, allow_nan=False
        ).encode()


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=200), suffix=st.sampled_from([".txt", ".jsonl", ".csv"]))
@example(content=b"\xef\xbb\xbf", suffix=".jsonl")
@example(content=b"\xef\xbb\xbf\xef\xbb\xbfx", suffix=".txt")
@example(content=b'prompt,index\n"a\n\n",1\n"b', suffix=".csv")
@example(content=b'{"caption": 1}', suffix=".jsonl")
@example(content=b"\n\r\r0", suffix=".csv")
@example(content=b"0\r0", suffix=".csv")
@example(content=b"prompt,x\rred,1\r", suffix=".csv")
@example(content=b"a" * 140_000, suffix=".csv")
def test_random_bytes_are_prompts_or_a_data_error(tmp_path: Path, content: bytes, suffix: str) -> None:
    check_read(write(tmp_path, f"fuzz{suffix}", content))


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(ROWS | JSON_VALUES, max_size=4), ascii_only=st.booleans())
def test_random_rows_are_prompts_or_a_data_error(tmp_path: Path, rows: list[object], ascii_only: bool) -> None:
    text = "\n".join(json.dumps(row, ensure_ascii=ascii_only) for row in rows)
    path = write(tmp_path, "fuzz.jsonl", text.encode("utf-8", "surrogatepass"))
    check_read(path)
    check_read(path, "rows")
