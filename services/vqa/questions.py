"""What the judge is asked, and how the probabilities of its first token become a score.

VQAScore is the probability of "Yes" (Lin et al., "Evaluating Text-to-Visual Generation with Image-to-Text Generation",
2024, section 3); the share of yes in yes and no is how T2I-R1 reads its judge (Jiang et al., 2025). The mark is that of
DeQA-Score (You et al., "Teaching Large Language Models to Regress Accurate Image Quality Scores Using Score
Distribution", 2025): the mean of five levels under the softmax over their words.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

PLACEHOLDER = "{prompt}"
FLOOR = 0.01
"""The least probability of all asked words together. Below it, the judge says something else, and this is no answer."""

YES_NO = """\
Look at the picture and at this description of it:

{prompt}

Is everything that the description names in the picture, and as described? Answer with one word, Yes or No.
"""

QUALITY = """\
Judge the technical quality of this picture alone, not what it shows: sharpness, noise, exposure, colour, distortion and \
traces of compression. Answer with one word: Excellent, Good, Fair, Poor or Bad.
"""

LEVELS: Mapping[str, float] = {"excellent": 5.0, "good": 4.0, "fair": 3.0, "poor": 2.0, "bad": 1.0}
_MARKS_OF_SPACE = " \t\r\n\u0120\u2581"  # the last two are how tokenizers themselves write a space
_SHOWN, _SHOWN_CHARACTERS = 5, 20


class NoAnswerError(ValueError):
    """The judge's first token is none of the asked words; the message says what it is."""


@dataclass(frozen=True)
class Reading:
    """How a reward is made of the words' probabilities."""

    words: tuple[str, ...]
    score: Callable[[Mapping[str, float]], float]
    range: tuple[float, float]
    takes_prompt: bool = True


def mean_level(probabilities: Mapping[str, float]) -> float:
    """From 1 to 5. Dividing by the words' sum is the softmax over these words alone."""
    return sum(LEVELS[word] * p for word, p in probabilities.items()) / sum(probabilities.values())


READINGS: Mapping[str, Reading] = {
    "vqa_yes": Reading(("yes", "no"), lambda p: p["yes"], (0.0, 1.0)),
    "vqa_yes_ratio": Reading(("yes", "no"), lambda p: p["yes"] / (p["yes"] + p["no"]), (0.0, 1.0)),
    "deqa": Reading(tuple(LEVELS), mean_level, (1.0, 5.0), takes_prompt=False),
    "deqa_over_5": Reading(tuple(LEVELS), lambda p: mean_level(p) / 5, (0.2, 1.0), takes_prompt=False),
}


def probabilities(first_token: Sequence[tuple[str, float]], words: Sequence[str]) -> dict[str, float]:
    """The probability of each word: that of all tokens which are the word, in any case, with or without space around it.

    first_token: (token, log-probability), the likeliest ones. A word that is not among them has the probability 0.
    Raises NoAnswerError when the words have less than FLOOR together.
    """
    if not first_token:
        raise NoAnswerError(
            "the judge sent no log-probabilities: its server must give top_logprobs, as vLLM does with --max-logprobs of "
            "20 or more"
        )
    found = dict.fromkeys(words, 0.0)
    for token, logprob in first_token:
        word = token.strip(_MARKS_OF_SPACE).lower()
        if word in found:
            found[word] += math.exp(logprob)
    total = sum(found.values())
    if total < FLOOR:
        raise NoAnswerError(
            f"{', '.join(words)} have the probability {total:.2g} together, and an answer needs {FLOOR}; the judge would "
            f"begin with {likeliest(first_token)}: if it reasons first, switch that off with --extra-body"
        )
    # Rounding may bring the sum a little above 1; it must not bring a score out of its range.
    return {word: p / max(1.0, total) for word, p in found.items()}


def likeliest(first_token: Sequence[tuple[str, float]]) -> str:
    """The first few tokens with their probabilities, for messages and details."""
    best = sorted(first_token, key=lambda named: -named[1])[:_SHOWN]
    return ", ".join(f"{token[:_SHOWN_CHARACTERS]!r} {math.exp(logprob):.3g}" for token, logprob in best)
