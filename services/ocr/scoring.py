"""How a reading is scored: pure functions, no engine, no image. Four variants, each with a fixed definition.

Lev is the Levenshtein distance; `sim(c, t) = 1 - min(Lev(c, t), |t|) / |t|`, between 0 and 1. A reading is the recognised
lines in reading order, and may have other plausible orders (down the columns, say): a target read in any of them is read.

`flow_grpo` (not case-sensitive). One target: the prompt's first straight-quoted text, else its first quoted text.
    All recognised lines are joined. Spaces are removed and case is folded on both sides. 1 if the target is contained
    in the joined text, otherwise `sim(joined, target)`. Extra text around a wrong target is punished, extra text around
    a right one is not, and "art" inside "party" counts as right. Beyond flow_grpo's rule, which knows Latin alone: in a
    target with Greek or Cyrillic letters that are drawn as Latin ones, these count as equal, as models write either.

`multi` (case-sensitive). All targets. NFKC; whitespace and punctuation are dropped, letters of every script, digits
    and symbols stay. Candidates: all runs of adjacent words, in the lines or across them, so that the score does not
    depend on whether an engine returns words or lines, nor on how many of them the target takes. A Chinese or Japanese
    character is a word. `r(t)` is the best `sim` over the candidates, where look-alikes (0=o, 1=i=j=l, 5=s, v=w, the
    same in capitals, l=I, and Greek and Cyrillic letters that are drawn as Latin ones) count as equal. The value is the
    mean of `r(t)` weighted by `|t|`. One line may satisfy several targets.

`strict` (case-sensitive). All targets, normalised as in `multi` but word by word. Candidates: runs of adjacent
    recognised words with exactly as many words as the target (all words, where fewer were recognised), joined by one
    space. `r(t)` is the best `sim`; no look-alikes, no credit for a part of a word beyond its edit distance. The value
    is the mean of `r(t)` weighted by `|t|`.

`deepgen_new` (case-sensitive). DeepGen-RL's newer scorer (`--ocr-impl new` there), for runs that were begun with it. All
    texts in straight double quotes; ASCII letters and digits alone stay. Candidates: lines, runs of up to 3 of them,
    everything. `r(t)` is the best `sim`, plain or with 0 as o, 1, i and j as l, 5 as s, v as w on both sides (small
    letters only). The value is the mean of `r(t)` weighted by `|t|`.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from rapidfuzz.distance import Levenshtein

from wire.quotes import quotations, quoted_texts

Variant = Literal["flow_grpo", "multi", "strict", "deepgen_new"]
Case = Literal["variant", "sensitive", "insensitive"]
Reading = Sequence[str]  # the recognised lines, in one order

MAX_TARGETS = 64
MAX_TARGET_CHARS = (
    4096  # of all targets together, as NFKC writes them: the work on a reading is at most this times its length
)

_DEEPGEN_RUN = 3
_DEEPGEN_FOLD = str.maketrans({"0": "o", "1": "l", "i": "l", "j": "l", "5": "s", "v": "w"})
# Drawn the same: Latin beside Greek, which ends in a delta and a triangle, and Latin beside Cyrillic.
_DRAWN_ALIKE = (
    *zip("ABEZHIKMNOPTYXov\u25b3", "ΑΒΕΖΗΙΚΜΝΟΡΤΥΧον\u0394", strict=True),
    *zip("ABEKMHOPCTXaeopcyx", "АВЕКМНОРСТХаеорсух", strict=True),
)
_AS_LATIN = str.maketrans({other: latin for latin, other in _DRAWN_ALIKE})
_LOOK_ALIKES = ("0o", "1ijl", "5s", "vw", "0O", "1IJL", "5S", "VW", "Il", *map("".join, _DRAWN_ALIKE))
# Han, Hiragana and Katakana are written without spaces between words; 々 and ー belong to what they follow.
_NO_SPACES = "\u3041-\u3096\u30a1-\u30fa\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003134f"
_WORD = re.compile(f"[{_NO_SPACES}][\u3005\u30fc\u3099\u309a]*|[^{_NO_SPACES}]+")


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


def find_targets(variant: Variant, prompt: str, targets: Sequence[str] | None) -> list[str]:
    """The texts `variant` scores: explicit `targets` where given, otherwise the prompt's quotations.

    `flow_grpo` uses one. Raises NoTargetError when nothing is left to look for, ValueError for too many or
    too long ones.
    """
    if targets is not None:
        found = [text for text in targets if text.strip()]
        if not found:
            raise NoTargetError("`targets` holds no text that is not blank")
    else:
        found = _FINDERS.get(variant, quoted_texts)(prompt)
        if not found:
            raise NoTargetError("no `targets` given and the prompt quotes no text")
    if variant == "flow_grpo":
        found = found[:1]
    if len(found) > MAX_TARGETS:
        raise ValueError(f"{len(found)} texts to look for; the limit is {MAX_TARGETS}")
    if (chars := _length(found)) > MAX_TARGET_CHARS:
        raise ValueError(f"the texts to look for have {chars} characters; the limit is {MAX_TARGET_CHARS}")
    return found


def folds_case(variant: Variant, case: Case) -> bool:
    """Whether a variant under this setting takes a letter for the same in both cases."""
    return case == "insensitive" or (case == "variant" and variant == "flow_grpo")


def score_text(
    variant: Variant,
    lines: Reading,
    targets: Sequence[str],
    case: Case = "variant",
    *,
    other_orders: Sequence[Reading] = (),
) -> TextScore:
    """Score the recognised `lines` (reading order) against `targets` (from `find_targets`).

    `other_orders`: the same lines as they may be read, too. `case` overrides the variant's own case sensitivity. Raises
    NoTargetError when no target survives normalisation.
    """
    return VARIANTS[variant]([lines, *other_orders], targets, case)


def _length(texts: Sequence[str]) -> int:
    """Characters of texts as NFKC writes them, which may be 18 for one; as they are, where that is too many already."""
    as_sent = sum(map(len, texts))
    return as_sent if as_sent > MAX_TARGET_CHARS else sum(len(unicodedata.normalize("NFKC", text)) for text in texts)


def _first_straight(prompt: str) -> list[str]:
    """The text after the first straight double quote, as far as the next or the end, as flow_grpo's scorer cuts it; other
    quotations where that is blank.
    """
    _, _, rest = prompt.partition('"')
    text = rest.partition('"')[0]
    return [text] if text.strip() else quoted_texts(prompt, straight_first=True)


def _all_straight(prompt: str) -> list[str]:
    """The texts in straight double quotes; other quotations where there are none."""
    found = quotations(prompt)
    return [each.text for each in found if each.straight] or [each.text for each in found]


_FINDERS: dict[Variant, Callable[[str], list[str]]] = {"flow_grpo": _first_straight, "deepgen_new": _all_straight}


def _flow_grpo(readings: Sequence[Reading], targets: Sequence[str], case: Case) -> TextScore:
    def normalise(text: str) -> str:
        return _cased(text.replace(" ", ""), case, sensitive=False)

    def compare(target: str, joined: Sequence[str]) -> tuple[float, bool]:
        # Another order can only make a target right that this one tears apart; a wrong one is measured in reading order.
        whole = any(target in read for read in joined)
        return 1.0 if whole else _similarity(joined[0], target), target in joined

    target = normalise(targets[0])
    if not target:
        raise NoTargetError(f"target {targets[0]!r} is blank")
    joined = ["".join(lines) for lines in readings]
    read = [normalise(each) for each in joined]
    similarity, exact = compare(target, read)
    if (drawn := targets[0].translate(_AS_LATIN)) != targets[0]:
        alike = compare(normalise(drawn), [normalise(each.translate(_AS_LATIN)) for each in joined])
        similarity, exact = max((similarity, exact), alike)
    return TextScore(similarity, (similarity,), exact, _extra(read[0], [target]))


def _multi(readings: Sequence[Reading], targets: Sequence[str], case: Case) -> TextScore:
    def normalise(text: str) -> str:
        return _cased(_letters(text), case, sensitive=True)

    wanted = _survivors(targets, normalise)
    orders = [_Words(_nonempty(normalise(word) for line in lines for word in _split(line))) for lines in readings]
    plain = [any(words.has(target) for words in orders) for target in wanted]
    similarities = tuple(
        1.0 if found else max(words.similarity(target) for words in orders)
        for found, target in zip(plain, wanted, strict=True)
    )
    extra = _extra(orders[0].text, wanted)
    return TextScore(_weighted(similarities, wanted), similarities, all(plain) and extra == 0.0, extra)


def _strict(readings: Sequence[Reading], targets: Sequence[str], case: Case) -> TextScore:
    def words_of(text: str) -> list[str]:
        return _nonempty(_cased(_letters(word), case, sensitive=True) for word in text.split())

    def joined(text: str) -> str:
        return " ".join(words_of(text))

    wanted = _survivors(targets, joined)
    orders = [[word for line in lines for word in words_of(line)] for lines in readings]
    similarities = []
    for target in wanted:
        size = min(target.count(" ") + 1, len(orders[0]))
        starts = range(len(orders[0]) - size + 1)
        similarities.append(
            _best((" ".join(words[start : start + size]) for words in orders for start in starts), target)
        )
    extra = _extra("".join(orders[0]), [target.replace(" ", "") for target in wanted])
    exact = min(similarities) == 1.0 and extra == 0.0
    return TextScore(_weighted(similarities, wanted), tuple(similarities), exact, extra)


def _deepgen_new(readings: Sequence[Reading], targets: Sequence[str], case: Case) -> TextScore:
    def normalise(text: str) -> str:
        return _cased("".join(c for c in text if c.isascii() and c.isalnum()), case, sensitive=True)

    wanted = _survivors(targets, normalise)
    orders = [_nonempty(normalise(line) for line in lines) for lines in readings]
    candidates = {"".join(tokens) for tokens in orders}
    for tokens in orders:
        for size in range(1, _DEEPGEN_RUN + 1):
            candidates |= {"".join(tokens[start : start + size]) for start in range(len(tokens) - size + 1)}
    folded = {candidate.translate(_DEEPGEN_FOLD) for candidate in candidates}
    plain = [_best(candidates, target) for target in wanted]
    similarities = tuple(
        max(similarity, _best(folded, target.translate(_DEEPGEN_FOLD)))
        for similarity, target in zip(plain, wanted, strict=True)
    )
    extra = _extra("".join(orders[0]), wanted)
    return TextScore(_weighted(similarities, wanted), similarities, min(plain) == 1.0 and extra == 0.0, extra)


VARIANTS: dict[Variant, Callable[[Sequence[Reading], Sequence[str], Case], TextScore]] = {
    "multi": _multi,
    "flow_grpo": _flow_grpo,
    "strict": _strict,
    "deepgen_new": _deepgen_new,
}


class _Words:
    """The words of one reading, and how near their runs come to a target."""

    def __init__(self, words: Sequence[str]) -> None:
        self.text = "".join(words)
        self._edges = np.array([0, *accumulate(len(word) for word in words)])
        self._edge_set = frozenset(self._edges.tolist())
        self._codes = _code_points(self.text)
        places = np.arange(len(self.text) + 1)
        # What it costs to begin at the last edge before a place and to leave out what lies between.
        self._from_edge = places - self._edges[np.searchsorted(self._edges, places, side="right") - 1]

    def has(self, target: str) -> bool:
        """Whether a run of words is the target."""
        at = self.text.find(target)
        while at >= 0 and not (at in self._edge_set and at + len(target) in self._edge_set):
            at = self.text.find(target, at + 1)
        return at >= 0

    def similarity(self, target: str) -> float:
        """The best `sim` over all runs of words, look-alikes counting as equal.

        Levenshtein's recurrence, a row for each character of the target over all places in the text, that may begin and
        end at any edge of a word (Sellers 1980). The cost is |target| times |text|, however many runs there are.
        """
        places = np.arange(len(self.text) + 1)
        differs = {each: ~np.isin(self._codes, _code_points(_alike(each))) for each in set(target)}
        row = self._from_edge
        for character in target:
            last = row
            row = last + 1
            np.minimum(row[1:], last[:-1] + differs[character], out=row[1:])
            # Leaving out characters of the text: each costs 1, so the cheapest way in is a running minimum of row - place.
            row = np.minimum.accumulate(row - places) + places
        distance = min(int(row[self._edges].min()), len(target))
        return 1.0 - distance / len(target)


def _alike(character: str) -> str:
    """The character and those that look like it."""
    return character + "".join(alike for alike in _LOOK_ALIKES if character in alike)


def _code_points(text: str) -> NDArray[np.uint32]:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)


def _split(line: str) -> list[str]:
    """The words of a line; a character of a script without spaces is one by itself."""
    return [part for word in line.split() for part in _WORD.findall(word)]


def _letters(text: str) -> str:
    """NFKC without separators (Z), punctuation (P), control or format characters (C) and variation selectors."""
    normal = unicodedata.normalize("NFKC", text)
    return "".join(c for c in normal if unicodedata.category(c)[0] not in "ZPC" and not "\ufe00" <= c <= "\ufe0f")


def _cased(text: str, case: Case, *, sensitive: bool) -> str:
    return text if case == "sensitive" or (case == "variant" and sensitive) else text.lower()


def _survivors(targets: Sequence[str], normalise: Callable[[str], str]) -> list[str]:
    wanted = _nonempty(normalise(target) for target in targets)
    if not wanted:
        raise NoTargetError(f"targets {list(targets)!r} hold no letter, digit or symbol")
    return wanted


def _nonempty(texts: Iterable[str]) -> list[str]:
    return [text for text in texts if text]


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
