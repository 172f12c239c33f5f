"""The kinds of rewards: what is asked, how the answer is read, and which checkpoint family knows which kind."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

from services.unifiedreward import prompts
from services.unifiedreward.parsing import flex, numbers, verdicts
from services.unifiedreward.parsing.common import Judgement

T = TypeVar("T")
Family = Literal["think", "v1", "v2", "flex", "edit"]
KindName = Literal["think_pairwise", "pair_rank", "flex", "pair_score", "pointwise", "edit_pair", "edit_pointwise"]
Numbers = Mapping[str, float]


@dataclass(frozen=True)
class Question(Generic[T]):
    """One call to the judge: our wording, the reader of its answers, and the schema if they are JSON.

    The images are shown in this order: the source if `shows_source`, then those that are judged.
    """

    text: str
    read: Callable[[str], T]
    schema: Mapping[str, Any] | None = None
    shows_source: bool = False
    takes_prompt: bool = True


def _object(**properties: object) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


_TEXT = {"type": "string"}
_WINNER = {"enum": ["Image 1", "Image 2"]}
_POINTS = {"type": "number", "minimum": 0, "maximum": 10}
_DIMENSION = _object(name=_TEXT, reason_1=_TEXT, reason_2=_TEXT, score_1=_POINTS, score_2=_POINTS)
_CATEGORY = _object(
    name=_TEXT,
    dims={"type": "array", "items": _DIMENSION, "minItems": 1, "maxItems": 8},
    cat_reason=_TEXT,
    cat_winner=_WINNER,
)
FLEX_SCHEMA = _object(
    prompt=_TEXT,
    categories={"type": "array", "items": _CATEGORY, "minItems": 3, "maxItems": 5},
    reason=_TEXT,
    winner=_WINNER,
)
_POINTS_25 = {"type": "number", "minimum": 0, "maximum": 25}
EDIT_POINTS_SCHEMA = _object(
    reasoning=_TEXT, score={"type": "array", "items": _POINTS_25, "minItems": 2, "maxItems": 2}
)

# Kinds that compare two images; a group's scores are made of its comparisons.
PAIR_QUESTIONS: dict[str, Question[Judgement]] = {
    "think_pairwise": Question(prompts.THINK_PAIRWISE, verdicts.read_think),
    "pair_rank": Question(prompts.PAIR_RANK, verdicts.read_rank),
    "flex": Question(prompts.FLEX, flex.read_flex, FLEX_SCHEMA),
    "pair_score": Question(prompts.PAIR_SCORE, numbers.read_pair_scores),
    "edit_pair": Question(prompts.EDIT_PAIR, verdicts.read_edit_rank, shows_source=True),
}

# Kinds that judge one image; its score is the mean of all numbers that the questions give.
POINT_QUESTIONS: dict[str, dict[str, Question[Numbers]]] = {
    "pointwise": {"pointwise": Question(prompts.POINTWISE, numbers.read_aspects)},
    "edit_pointwise": {
        "edit_pointwise_instruction": Question(
            prompts.EDIT_POINTWISE_INSTRUCTION, numbers.read_edit_success, EDIT_POINTS_SCHEMA, shows_source=True
        ),
        "edit_pointwise_quality": Question(
            prompts.EDIT_POINTWISE_QUALITY, numbers.read_edit_quality, EDIT_POINTS_SCHEMA, takes_prompt=False
        ),
    },
}

RANGES: dict[str, tuple[float, float]] = dict.fromkeys(PAIR_QUESTIONS, (0.0, 1.0)) | {
    "pointwise": (1.0, 5.0),
    "edit_pointwise": (0.0, 25.0),
}

FAMILY_KINDS: dict[Family, tuple[KindName, ...]] = {
    "think": ("think_pairwise",),
    "v1": ("pair_rank", "pointwise"),
    "v2": ("pointwise", "pair_score"),
    "flex": ("flex",),
    "edit": ("edit_pair", "edit_pointwise"),
}


def questions_of(kind: str) -> Mapping[str, Question[Judgement] | Question[Numbers]]:
    """The questions of a kind by the names that `--template` knows them by."""
    if kind in PAIR_QUESTIONS:
        return {kind: PAIR_QUESTIONS[kind]}
    return dict(POINT_QUESTIONS[kind])
