"""Rewards of the form of a text: `<think>...</think>` and `<answer>...</answer>`, all of it or in parts.

They read the item's `completion` and need no target: the form is asked of every completion. A text that does not have it is
0, for the policy wrote it; an item without a completion is a mistake in the data, `bad_input`.
"""

from __future__ import annotations

from typing import Final

from services.kit.scorer import Item, Result, Score
from services.rules.answers import no_completion

THINK_FORMAT_REVISION: Final = "1"
ANSWER_FORMAT_REVISION: Final = "1"
TAG_COUNT_REVISION: Final = "1"

TAGS: Final = ("<think>", "</think>", "<answer>", "</answer>")


def think_format(item: Item) -> Result:
    """1 for `<think>...</think>` once and then `<answer>...</answer>` once, with nothing but blanks around; else 0.

    The answer must not be blank; the thinking may be.
    """
    return no_completion() if item.completion is None else Score(float(_thinks(item.completion.strip())))


def answer_format(item: Item) -> Result:
    """1 as `think_format`, and also for `<answer>...</answer>` alone: thinking is allowed, not asked for."""
    if item.completion is None:
        return no_completion()
    text = item.completion.strip()
    return Score(float(_thinks(text) or (not any(tag in text for tag in TAGS[:2]) and _answers(text))))


def tag_count(item: Item) -> Result:
    """A quarter for each of the four tags that is there exactly once; the components say which. Their order is not read."""
    if item.completion is None:
        return no_completion()
    found = {tag.strip("<>"): float(item.completion.count(tag) == 1) for tag in TAGS}
    return Score(sum(found.values()) / len(TAGS), found)


def _thinks(text: str) -> bool:
    """Whether a text without blanks around is thinking, then an answer, each tag once."""
    if not text.startswith(TAGS[0]) or any(text.count(tag) != 1 for tag in TAGS):
        return False
    before, _, after = text.partition(TAGS[1])
    return TAGS[2] not in before and TAGS[3] not in before and _answers(after.strip())


def _answers(text: str) -> bool:
    """Whether a text without blanks around is an answer that is not blank, each tag once."""
    if not (text.startswith(TAGS[2]) and text.endswith(TAGS[3])) or any(text.count(tag) != 1 for tag in TAGS[2:]):
        return False
    return bool(text.removeprefix(TAGS[2]).removesuffix(TAGS[3]).strip())
