"""The tokenizer against open_clip's own, and against what makes transformers' CLIP tokenizer another one."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.hps.tokenizer import CONTEXT_LENGTH, Tokenizer, clean

START, END = 49_406, 49_407
PROMPTS = Path(__file__).resolve().parents[3].parent / "shared" / "reference" / "unigenbench"


def content(ids: tuple[int, ...]) -> list[int]:
    """What stands between start and end token."""
    assert ids[0] == START
    return list(ids[1 : ids.index(END)])


def test_the_row_is_start_tokens_end_and_zeros(tokenizer: Tokenizer) -> None:
    tokens = tokenizer.encode("a cat")
    # "a" and "cat" as whole words: 320 and 2368 in CLIP's published vocabulary.
    assert tokens.ids == (START, 320, 2368, END, *[0] * 73)
    assert tokens.truncated == 0


def test_an_empty_prompt_is_start_and_end(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode(" \n").ids == (START, END, *[0] * 75)


@pytest.mark.parametrize(("words", "truncated"), [(75, 0), (76, 1), (200, 125)])
def test_long_prompts_lose_their_tail_and_keep_the_end_token(tokenizer: Tokenizer, words: int, truncated: int) -> None:
    tokens = tokenizer.encode("cat " * words)
    assert tokens.ids == (START, *[2368] * 75, END)
    assert len(tokens.ids) == CONTEXT_LENGTH
    assert tokens.truncated == truncated


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("  A\tRed \n Cat ", "a red cat"),
        ("“quoted” it’s", '"quoted" it\'s'),
        ("salt &amp; pepper", "salt & pepper"),
        ("salt &amp;amp; pepper", "salt & pepper"),
        ("< &amp;amp;lt;", "< &lt;"),  # twice, no more; ftfy leaves entities alone where it sees markup
        ("schÃ¶n", "schön"),
        ("ﬁne Ｗｉｄｅ", "fine wide"),
        ("一只　猫", "一只 猫"),
        ("lone \ud800 half", "lone \ufffd half"),
    ],
)
def test_cleaning(text: str, cleaned: str) -> None:
    assert clean(text) == cleaned


@pytest.mark.parametrize("special", ["<end_of_text>", "<START_OF_TEXT>"])
def test_a_special_token_in_the_text_is_that_token(
    tokenizer: Tokenizer, open_clip_tokenizer: Any, special: str
) -> None:
    ids = tokenizer.encode(f"a {special} cat").ids
    assert ids[2] in (START, END)
    assert list(ids) == open_clip_tokenizer([f"a {special} cat"])[0].tolist()


CHARACTERS = st.characters() | st.sampled_from("abc ABC'’“”&;#039 éİſß中あ한😀\u0301\u00ad\u200b<>_|\n")
FRAGMENTS = st.sampled_from(["&amp;", "&amp;lt;", "&#101;&#769;", "it's", "I'LL", "â€™", "<end_of_text>", "photo "])


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(CHARACTERS | FRAGMENTS, max_size=120).map("".join))
def test_any_text_has_open_clips_ids(tokenizer: Tokenizer, open_clip_tokenizer: Any, text: str) -> None:
    tokens = tokenizer.encode(text)
    assert list(tokens.ids) == open_clip_tokenizer([text])[0].tolist()
    assert tokens.truncated == max(len(open_clip_tokenizer.encode(text)) - 75, 0)


@pytest.mark.skipif(not PROMPTS.is_dir(), reason="UniGenBench's prompts are not beside the project")
@pytest.mark.parametrize(("name", "truncated"), [("test_prompts_en.csv", 0), ("test_prompts_zh.csv", 595)])
def test_benchmark_prompts_have_open_clips_ids(
    tokenizer: Tokenizer, open_clip_tokenizer: Any, name: str, truncated: int
) -> None:
    with (PROMPTS / name).open(encoding="utf-8", newline="") as file:
        prompts = [row["prompt_en" if "_en" in name else "prompt_zh"] for row in csv.DictReader(file)]
    tokens = [tokenizer.encode(prompt) for prompt in prompts]
    assert [list(each.ids) for each in tokens] == open_clip_tokenizer(prompts).tolist()
    assert sum(each.truncated > 0 for each in tokens) == truncated


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("A photo of 3 cats, it's raining!", True),
        ("the word “K7” on a sign", False),
        ("salt &amp; pepper", False),
        ("<end_of_text>", False),
        ("schÃ¶n", False),
    ],
)
def test_where_transformers_tokenizer_differs(tokenizer: Tokenizer, vocabulary: Path, text: str, same: bool) -> None:
    from transformers import CLIPTokenizer

    from services.hps.vocabulary import read_merges

    merges = read_merges(vocabulary)
    letters = list(tokenizer._letters.values())
    words = [*letters, *(f"{letter}</w>" for letter in letters), *map("".join, merges)]
    words += ["<|startoftext|>", "<|endoftext|>"]
    fast = CLIPTokenizer(vocab={word: number for number, word in enumerate(words)}, merges=merges)
    assert (fast(text)["input_ids"][1:-1] == content(tokenizer.encode(text).ids)) is same


def test_a_hostile_prompt_is_encoded_in_linear_time(tokenizer: Tokenizer) -> None:
    """A pair-by-pair search takes minutes for one word of 65,536 letters."""
    assert tokenizer.encode("x" * 65_536).truncated > 10_000
