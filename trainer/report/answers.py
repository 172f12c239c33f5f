"""Before and after, for policies of texts: a prompt with its images, and what was thought and said of it at two steps."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trainer.report.images import Score, bounded_rewards, data_uri, label_of, match_of, pair_of, score_table
from trainer.report.run_folder import RunFolder
from trainer.report.source import number

_THOUGHT = re.compile(r"<think>(.*?)(?:</think>|$)", re.DOTALL)
_ANSWER = re.compile(r"<answer>(.*?)(?:</answer>|$)", re.DOTALL)
_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class Said:
    """A text, taken apart.

    Attributes:
        thought: what stands in `<think>`; None without one.
        answer: what stands in `<answer>`, else what is left beside the thought.
        unsaid: there is a thought and an answer, and a word of the answer does not occur in the thought.
    """

    thought: str | None
    answer: str
    unsaid: bool


@dataclass(frozen=True)
class Reply:
    """A text of one step. `note` says its length, and where it was cut off."""

    label: str
    said: Said
    note: str


@dataclass(frozen=True)
class AnswerCard:
    """A prompt with its images (data URI, width, height; None where one cannot be shown), its right answers, and what was
    answered, with a score of each reward for each answer. `pair` names the pair that the prompt is a side of."""

    prompt: str
    images: tuple[tuple[str, int, int] | None, ...]
    targets: str
    replies: tuple[Reply, ...]
    scores: tuple[tuple[str, tuple[Score, ...]], ...]
    pair: str = ""


@dataclass(frozen=True)
class Answers:
    """Cards in the order of the held-out set, and a sentence about the thoughts of the newest answers."""

    cards: tuple[AnswerCard, ...]
    labels: tuple[str, ...]
    thoughts: str


def build_answers(run: RunFolder, problems: list[str]) -> Answers | None:
    """The first and the last step that kept texts; None when none did. `problems` takes what could not be read."""
    kept = {step: [r for r in records if _is_answer(r)] for step, records in run.samples.items()}
    kept = {step: records for step, records in kept.items() if records}
    if not kept:
        return None
    steps = sorted({min(kept), max(kept)})
    labels = tuple(label_of(run, step) for step in steps)
    bounded = bounded_rewards([record for step in steps for record in kept[step]])
    columns = [{match_of(record): record for record in kept[step]} for step in steps]
    cards = []
    for key, first in columns[0].items():
        records = [(label, column[key]) for label, column in zip(labels, columns, strict=True) if key in column]
        cards.append(_card(run, first, records, bounded, problems))
    return Answers(tuple(cards), labels, _thoughts([card.replies[-1].said for card in cards]))


def take_apart(text: str) -> Said:
    """A text as thought and answer; tags that were never closed count to the end, so that broken ones can be seen."""
    thoughts, answers = _THOUGHT.findall(text), _ANSWER.findall(_THOUGHT.sub(" ", text))
    answer = " ".join(each.strip() for each in answers) if answers else _THOUGHT.sub(" ", text).strip()
    thought = "\n".join(each.strip() for each in thoughts) if thoughts else None
    return Said(thought, answer, bool(thought and answer) and not _words(answer) <= _words(thought or ""))


def _is_answer(record: Mapping[str, Any]) -> bool:
    """Whether a record is of a text; what a policy wrote before it drew an image is no answer, and stands with the image."""
    return isinstance(record.get("text"), str) and record.get("image") is None


def _card(
    run: RunFolder,
    first: Mapping[str, Any],
    records: Sequence[tuple[str, Mapping[str, Any]]],
    bounded: set[str],
    problems: list[str],
) -> AnswerCard:
    sources, targets = first.get("sources"), first.get("targets")
    images = []
    for name in sources if isinstance(sources, list) else []:
        uri, width, height = data_uri(run.path, name, problems)
        images.append(None if uri is None else (uri, width, height))
    return AnswerCard(
        prompt=str(first.get("prompt", "")),
        images=tuple(images),
        targets=", ".join(map(str, targets)) if isinstance(targets, list) else "",
        replies=tuple(Reply(label, take_apart(str(record["text"])), _note(record)) for label, record in records),
        scores=tuple(score_table([record for _, record in records], bounded)),
        pair=pair_of(first),
    )


def _note(record: Mapping[str, Any]) -> str:
    length = number(record.get("length"))
    told = f"{length:.0f} token{'' if length == 1 else 's'}" if length > 0 else ""
    cut = "cut off" if record.get("finished") is False else ""
    return ", ".join(part for part in (told, cut) if part)


def _thoughts(said: Sequence[Said]) -> str:
    """How many of the newest answers have a thought, and in how many of these the answer is not in it."""
    thought = [each for each in said if each.thought]
    if not thought:
        return ""
    unsaid = sum(each.unsaid for each in thought)
    return (
        f"{len(thought)} of these {len(said)} answers come with a thought; in {unsaid} of them a word of the answer does not "
        "occur in the thought. Such a thought may be unfaithful, or the answer follows from it without being in it, as a count "
        "does."
    )


def _words(text: str) -> set[str]:
    return set(_WORD.findall(text.casefold()))
