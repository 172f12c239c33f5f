"""Which images become pairs: medoids of clusters with themselves, then nearest neighbours, each image once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from tqdm import tqdm

from trainer.data.pairs.building.clusters import k_means
from trainer.data.pairs.building.features import Features
from trainer.data.pairs.building.sources import Picture
from trainer.data.prompts.checks import DataError

_AT_ONCE = 1024  # captioned images whose similarities to all questions are in memory at once

Pairing = Literal["nearest", "random"]


@dataclass(frozen=True)
class Match:
    """A pair: the numbers of the image that is drawn and of the one that is asked about, and their similarity."""

    drawn: int
    asked: int
    similarity: float


@dataclass(frozen=True)
class Medoids:
    """Aligned pairs.

    Attributes:
        pairs: one a cluster, of the image nearest its centroid that has a caption and a question.
        passed_over: clusters whose very nearest image lacks one of them, so that the next one was taken.
        incomplete: of clusters without any image that has both, the nearest one.
    """

    pairs: tuple[Match, ...]
    passed_over: int
    incomplete: tuple[int, ...]


def aligned(pictures: Sequence[Picture], features_Nd: Features, clusters: int, seed: int) -> Medoids:
    """Raises DataError: more clusters than images."""
    if clusters > len(pictures):
        raise DataError(f"--aligned {clusters} is more than the {len(pictures)} images there are; lower it")
    if not clusters:
        return Medoids((), 0, ())
    labels_N, centroids_Kd = k_means(features_Nd, clusters, seed)
    distance_N = ((features_Nd - centroids_Kd[labels_N]) ** 2).sum(axis=1)
    members: dict[int, list[int]] = {}
    for number in np.lexsort((np.arange(len(pictures)), distance_N)):  # the nearest first, ties by the order of paths
        members.setdefault(int(labels_N[number]), []).append(int(number))
    pairs, incomplete, passed_over = [], [], 0
    for _, found in sorted(members.items()):
        whole = next((number for number in found if pictures[number].is_complete), None)
        if whole is None:
            incomplete.append(found[0])
            continue
        passed_over += whole != found[0]
        pairs.append(Match(whole, whole, 1.0))
    return Medoids(tuple(pairs), passed_over, tuple(incomplete))


def retrieved(
    pictures: Sequence[Picture], features_Nd: Features, taken: set[int], *, threshold: float, neighbours: int
) -> list[Match]:
    """Captioned images with the questions' images nearest to them, the most similar pair first, no image twice.

    Args:
        taken: images that are pairs already.
        threshold: the least cosine.
        neighbours: n: only the n nearest of an image are looked at.
    """
    drawn = [n for n, each in enumerate(pictures) if each.caption is not None and n not in taken]
    asked = [n for n, each in enumerate(pictures) if each.question is not None and n not in taken]
    if not drawn or not asked:
        return []
    found = sorted(
        _candidates(features_Nd, drawn, asked, threshold, neighbours),
        key=lambda each: (-each.similarity, each.drawn, each.asked),
    )
    used: set[int] = set()
    pairs = []
    for each in found:
        if each.drawn not in used and each.asked not in used:
            used |= {each.drawn, each.asked}
            pairs.append(each)
    return pairs


def _candidates(
    features_Nd: Features, drawn: Sequence[int], asked: Sequence[int], threshold: float, neighbours: int
) -> Iterator[Match]:
    others_Ud = features_Nd[asked]
    place_of = {number: place for place, number in enumerate(asked)}
    for start in tqdm(range(0, len(drawn), _AT_ONCE), desc="neighbours", unit="block", disable=None):
        part = drawn[start : start + _AT_ONCE]
        cosines = features_Nd[part] @ others_Ud.T
        for number, row in zip(part, cosines, strict=True):
            if number in place_of:  # an image with both is no neighbour of itself: that would be an aligned pair
                row[place_of[number]] = -np.inf
            # All that are as near as the n-th, so that ties at the edge go by the order of paths.
            edge = max(threshold, float(np.partition(row, -min(neighbours, len(row)))[-min(neighbours, len(row))]))
            near = np.flatnonzero(row >= edge)
            for place in near[np.lexsort((near, -row[near]))][:neighbours]:
                yield Match(number, asked[place], float(row[place]))


def shuffled(pairs: Sequence[Match], features_Nd: Features, seed: int) -> list[Match]:
    """The same captions and questions, dealt to each other at random: the control for what the pairing is worth.

    No image meets itself; the similarity is what the cosine is, at least 0.

    Raises:
        DataError: fewer than two pairs.
    """
    if len(pairs) < 2:
        raise DataError(f"--pairing random needs at least 2 pairs to exchange, and there are {len(pairs)}")
    order = np.random.default_rng(seed).permutation(len(pairs))
    for place in range(len(pairs)):
        after = (place + 1) % len(pairs)
        if pairs[place].drawn == pairs[order[place]].asked:
            order[[place, after]] = order[[after, place]]
    dealt = [(pairs[place].drawn, pairs[order[place]].asked) for place in range(len(pairs))]
    return [Match(d, a, max(0.0, float(features_Nd[d] @ features_Nd[a]))) for d, a in dealt]
