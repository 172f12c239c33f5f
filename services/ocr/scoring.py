"""How a reading is scored: pure functions, no engine, no image. Three variants, each with a fixed definition.

Lev is the Levenshtein distance; `sim(c, t) = 1 - min(Lev(c, t), |t|) / |t|`, between 0 and 1.

`flow_grpo` (not case-sensitive). One target: the prompt's first straight-quoted text, else its first quoted text.
    All recognised lines are joined. Spaces are removed and case is folded on both sides. 1 if the target is contained
    in the joined text, otherwise `sim(joined, target)`. Extra text around a wrong target is punished, extra text around
    a right one is not, and "art" inside "party" counts as right.

`multi` (case-sensitive). All targets. NFKC; whitespace and punctuation are dropped, letters of every script, digits
    and symbols stay. Candidates: the recognised lines, their adjacent runs of up to 3, everything joined; and the
    same runs over single words, so that the score does not depend on whether an engine returns words or lines.
    `r(t)` is the best `sim` over the candidates, plain or after folding look-alikes (0=o, 1=i=j=l, 5=s, v=w) on both
    sides. The value is the mean of `r(t)` weighted by `|t|`. One line may satisfy several targets.

`strict` (case-sensitive). All targets, normalised as in `multi` but word by word. Candidates: runs of adjacent
    recognised words with exactly as many words as the target (all words, where fewer were recognised), joined by one
    space. `r(t)` is the best `sim`; no look-alikes, no credit for a part of a word beyond its edit distance. The value
    is the mean of `r(t)` weighted by `|t|`.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from rapidfuzz.distance import Levenshtein

Variant = Literal["flow_grpo", "multi", "strict"]
Case = Literal["variant", "sensitive", "insensitive"]

MAX_TARGETS = 64
MAX_RUN = 3
_LOOK_ALIKES = str.maketrans({"0": "o", "1": "l", "i": "l", "j": "l", "5": "s", "v": "w"})

# An opening mark never occurs inside its own pair, which keeps the scan linear on hostile prompts. A curly single
# quote closes only where no letter follows: it is also the apostrophe.
_QUOTED = re.compile(
    r'"(?P<straight>[^"]*)"'
    r"|“([^“”]*)”"
    r"|‘((?:[^‘’]|’(?=\w))*)’(?!\w)"
    r"|「([^「」]*)」"
    r"|『([^『』]*)』"
)


class NoTargetError(ValueError):
    """There is no text to look for; the message says where it was looked for."""


@dataclass(frozen=True)
class TextScore:
    """One image's score.

    value: 0 to 1. similarities: one per target, 0 to 1. exact: the targets were read without a fault and nothing else
    was. extra_text: the share of the recognised characters that exceeds the targets' length, 0 (none) to below 1.
    """

    value: float
    similarities: tuple[float, ...]
    exact: bool
    extra_text: float


def quoted_texts(prompt: str) -> list[str]:
    """Texts in double quotes (straight or curly), curly single quotes, or CJK corner brackets, in order of appearance.

    Straight single quotes are apostrophes and quote nothing. Blank quotations and unclosed quotes are skipped.
    """
    return [text for _, text in _quotations(prompt)]


def find_targets(variant: Variant, prompt: str, targets: Sequence[str] | None) -> list[str]:
    """The texts `variant` scores: explicit `targets` where given, otherwise the prompt's quotations.

    `flow_grpo` uses one. Raises NoTargetError when nothing is left to look for, ValueError for too many.
    """
    if targets is not None:
        found = [text for text in targets if text.strip()]
        if not found:
            raise NoTargetError("`targets` holds no text that is not blank")
    else:
        quotations = _quotations(prompt)
        straight_first = sorted(quotations, key=lambda quotation: not quotation[0]) if variant == "flow_grpo" else None
        found = [text for _, text in straight_first or quotations]
        if not found:
            raise NoTargetError("no `targets` given and the prompt quotes no text")
    if len(found) > MAX_TARGETS:
        raise ValueError(f"{len(found)} texts to look for; the limit is {MAX_TARGETS}")
    return found[:1] if variant == "flow_grpo" else found


def score_text(variant: Variant, lines: Sequence[str], targets: Sequence[str], case: Case = "variant") -> TextScore:
    """Score the recognised `lines` (reading order) against `targets` (from `find_targets`).

    `case` overrides the variant's own case sensitivity. Raises NoTargetError when no target survives normalisation.
    """
    return VARIANTS[variant](lines, targets, case)


def _quotations(prompt: str) -> list[tuple[bool, str]]:
    """(is straight, text) of each quotation that is not blank."""
    found = []
    for match in _QUOTED.finditer(prompt):
        text = match.group(match.lastindex or 0)
        if text.strip():
            found.append((match.group("straight") is not None, text))
    return found


def _flow_grpo(lines: Sequence[str], targets: Sequence[str], case: Case) -> TextScore:
    def normalise(text: str) -> str:
        return _cased(text.replace(" ", ""), case, sensitive=False)

    target, read = normalise(targets[0]), normalise("".join(lines))
    if not target:
        raise NoTargetError(f"target {targets[0]!r} is blank")
    similarity = 1.0 if target in read else _similarity(read, target)
    return TextScore(similarity, (similarity,), read == target, _extra(read, [target]))


def _multi(lines: Sequence[str], targets: Sequence[str], case: Case) -> TextScore:
    def normalise(text: str) -> str:
        return _cased(_letters(text), case, sensitive=True)

    wanted = _survivors(targets, normalise)
    tokens = _nonempty(normalise(line) for line in lines)
    words = _nonempty(normalise(word) for line in lines for word in line.split())
    read = "".join(tokens)
    candidates = dict.fromkeys([*_runs(tokens), *_runs(words), read])
    folded = dict.fromkeys(candidate.translate(_LOOK_ALIKES) for candidate in candidates)
    plain = [_best(candidates, target) for target in wanted]
    similarities = tuple(
        max(similarity, _best(folded, target.translate(_LOOK_ALIKES)))
        for similarity, target in zip(plain, wanted, strict=True)
    )
    extra = _extra(read, wanted)
    return TextScore(_weighted(similarities, wanted), similarities, min(plain) == 1.0 and extra == 0.0, extra)


def _strict(lines: Sequence[str], targets: Sequence[str], case: Case) -> TextScore:
    def words_of(text: str) -> list[str]:
        return _nonempty(_cased(_letters(word), case, sensitive=True) for word in text.split())

    def joined(text: str) -> str:
        return " ".join(words_of(text))

    wanted = _survivors(targets, joined)
    words = [word for line in lines for word in words_of(line)]
    read = " ".join(words)
    similarities = []
    for target in wanted:
        size = min(target.count(" ") + 1, len(words))
        runs = [" ".join(words[start : start + size]) for start in range(len(words) - size + 1)]
        similarities.append(_best(runs, target))
    extra = _extra(read.replace(" ", ""), [target.replace(" ", "") for target in wanted])
    exact = min(similarities) == 1.0 and extra == 0.0
    return TextScore(_weighted(similarities, wanted), tuple(similarities), exact, extra)


VARIANTS: dict[Variant, Callable[[Sequence[str], Sequence[str], Case], TextScore]] = {
    "multi": _multi,
    "flow_grpo": _flow_grpo,
    "strict": _strict,
}


def _letters(text: str) -> str:
    """NFKC without separators (Z), punctuation (P) and control or format characters (C)."""
    return "".join(c for c in unicodedata.normalize("NFKC", text) if unicodedata.category(c)[0] not in "ZPC")


def _cased(text: str, case: Case, *, sensitive: bool) -> str:
    return text if case == "sensitive" or (case == "variant" and sensitive) else text.lower()


def _survivors(targets: Sequence[str], normalise: Callable[[str], str]) -> list[str]:
    wanted = _nonempty(normalise(target) for target in targets)
    if not wanted:
        raise NoTargetError(f"targets {list(targets)!r} hold no letter, digit or symbol")
    return wanted


def _nonempty(texts: Iterable[str]) -> list[str]:
    return [text for text in texts if text]


def _runs(tokens: Sequence[str]) -> list[str]:
    """Tokens and their adjacent runs of up to MAX_RUN, joined."""
    return [
        "".join(tokens[start : start + size])
        for size in range(1, MAX_RUN + 1)
        for start in range(len(tokens) - size + 1)
    ]


def _similarity(candidate: str, target: str) -> float:
    # The cutoff stops the distance early: above |target| the similarity is 0 whatever the distance.
    distance = Levenshtein.distance(candidate, target, score_cutoff=len(target))
    return 1.0 - min(distance, len(target)) / len(target)


def _best(candidates: Iterable[str], target: str) -> float:
    return max((_similarity(candidate, target) for candidate in candidates), default=0.0)


def _weighted(similarities: Sequence[float], targets: Sequence[str]) -> float:
    lengths = [len(target) for target in targets]
    # Exactly 1 for a perfect reading, whatever the lengths: no rounding may leave 0.9999999.
    if min(similarities) == 1.0:
        return 1.0
    return sum(r * n for r, n in zip(similarities, lengths, strict=True)) / sum(lengths)


def _extra(read: str, targets: Sequence[str]) -> float:
    surplus = len(read) - sum(len(target) for target in targets)
    return max(surplus, 0) / len(read) if read else 0.0
