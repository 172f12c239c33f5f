"""What was built, in sentences: how many pairs of which kind, what is left over and why, and how similar they are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from trainer.data.pairs.building.matching import Match, Medoids, Pairing
from trainer.data.pairs.building.sources import Picture, Source

_BINS = 20  # of width 0.05
_BAR = 40
_SHOWN = 3


@dataclass(frozen=True)
class Built:
    """Pairs of pictures.

    Attributes:
        pictures: what they are made of.
        more: rows that say more of an image than its first caption and its first question.
        medoids: the aligned pairs, and what was in the way of others.
        pairs: all pairs, the aligned ones first; with random pairing all are shuffled.
    """

    pictures: Sequence[Picture]
    more: int
    medoids: Medoids
    pairs: Sequence[Match]
    pairing: Pairing
    threshold: float

    @property
    def retrieved(self) -> Sequence[Match]:
        return [each for each in self.pairs if each.drawn != each.asked]


def summary(built: Built, sources: Sequence[Source]) -> str:
    """All of it, a sentence a line."""
    return "".join(f"{line}\n" for line in [*_read(built, sources), *_made(built), *histogram(built.pairs)])


def _read(built: Built, sources: Sequence[Source]) -> Iterator[str]:
    for source in sources:
        yield f"{source.kind}: {len(source.rows)} of {source.total} rows of {source.path}"
        for problem in source.problems[:_SHOWN]:
            yield f"  left out: {problem}"
        if len(source.problems) > _SHOWN:
            yield f"  left out: {len(source.problems) - _SHOWN} more"
    complete = sum(each.is_complete for each in built.pictures)
    yield f"images: {len(built.pictures)}, of which {complete} have a caption and a question"
    if built.more:
        yield f"  left out: {built.more} more captions and questions about an image that has one; no image is used twice"


def _made(built: Built) -> Iterator[str]:
    medoids = built.medoids
    if built.pairing == "random":
        yield f"pairs: {len(built.pairs)}, captions and questions dealt to each other at random"
    else:
        yield (
            f"pairs: {len(built.pairs)}, of which {len(medoids.pairs)} aligned and {len(built.retrieved)} retrieved (similarity "
            f"at least {built.threshold:g})"
        )
    if medoids.passed_over:
        yield (
            f"  in {medoids.passed_over} clusters the image nearest the centroid lacks a caption or a question, and the nearest one "
            "that has both is taken"
        )
    if medoids.incomplete:
        names = "; ".join(
            f"{built.pictures[n].image} needs {missing(built.pictures[n])}" for n in medoids.incomplete[:_SHOWN]
        )
        yield (
            f"  {len(medoids.incomplete)} clusters make no aligned pair: none of their images has both a caption and a question. "
            f"Complete these (--to-complete writes all): {names}"
        )
    used = {n for each in built.pairs for n in (each.drawn, each.asked)}
    for what, has in (("captions", "caption"), ("questions", "question")):
        unused = sum(getattr(each, has) is not None and n not in used for n, each in enumerate(built.pictures))
        yield f"unused: {unused} images with {what}"


def missing(picture: Picture) -> str:
    """What an image needs to be an aligned pair with itself."""
    return "a question with its answer" if picture.question is None else "a caption"


def histogram(pairs: Sequence[Match]) -> Iterator[str]:
    """The similarities in steps of 0.05, a line each; steps without a pair at the ends are left out."""
    counts = [0] * _BINS
    for each in pairs:
        counts[min(int(each.similarity * _BINS + 1e-9), _BINS - 1)] += 1
    filled = [place for place, count in enumerate(counts) if count]
    if not filled:
        return
    most = max(counts)
    yield "similarity:"
    for place in range(filled[0], filled[-1] + 1):
        bar = "#" * (-(-counts[place] * _BAR // most))
        yield f"  {place / _BINS:.2f}-{(place + 1) / _BINS:.2f} {counts[place]:>7} {bar}".rstrip()
