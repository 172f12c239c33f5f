"""Both sides of a pair beside each other: the image with its question and what was answered, the prompt with what was drawn."""

from __future__ import annotations

from dataclasses import dataclass, replace

from trainer.report.answers import AnswerCard, Answers
from trainer.report.images import Card, Gallery


@dataclass(frozen=True)
class Pair:
    """One pair before and after."""

    asked: AnswerCard
    drawn: Card


def match_pairs(answers: Answers | None, gallery: Gallery | None) -> list[Pair]:
    """The pairs of which both sides were kept, in the order of the questions; none where the run has no pairs."""
    if answers is None or gallery is None:
        return []
    drawn = {card.pair: card for card in gallery.cards if card.pair}
    return [Pair(card, drawn[card.pair]) for card in answers.cards if card.pair in drawn]


def without_pairs(
    answers: Answers | None, gallery: Gallery | None, pairs: list[Pair]
) -> tuple[Answers | None, Gallery | None]:
    """What is left to be shown by itself."""
    shown = {pair.asked.pair for pair in pairs}
    if answers is not None:
        cards = tuple(card for card in answers.cards if card.pair not in shown)
        answers = replace(answers, cards=cards) if cards else None
    if gallery is not None:
        left = tuple(card for card in gallery.cards if card.pair not in shown)
        gallery = replace(gallery, cards=left) if left else None
    return answers, gallery
