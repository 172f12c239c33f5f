"""Which images of a group are compared. G images, each pair at most once; the number of comparisons is the cost.

| schedule | pairs | rounds that wait for one another |
|---|---|---|
| all | G(G-1)/2 | 1 |
| random | about G k/2, a random regular graph | 1 |
| swiss | about G k/2, images with like scores meet | k |
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from typing import Literal, Protocol

Pair = tuple[int, int]
PairsMode = Literal["all", "random", "swiss"]
Order = Literal["single", "lower-first", "swap"]


class Schedule(Protocol):
    """Gives the pairs of one round after another. `points` are what each image has won so far, ties counting half."""

    rounds: int

    def next_round(self, points: Sequence[float]) -> list[Pair]: ...


def make_schedule(mode: PairsMode, k: int, count: int, seed: int) -> Schedule:
    """A schedule for `count` images and `k` opponents each. Where k opponents are all there are, all pairs."""
    if mode == "all" or k >= count - 1:
        return Fixed(list(itertools.combinations(range(count), 2)))
    if mode == "random":
        return Fixed(random_regular(count, k, random.Random(seed)))
    return Swiss(count, k, random.Random(seed))


class Fixed:
    """Pairs known from the start, all in one round."""

    rounds = 1

    def __init__(self, pairs: list[Pair]) -> None:
        self._pairs = pairs

    def next_round(self, points: Sequence[float]) -> list[Pair]:
        return self._pairs


class Swiss:
    """Each round pairs neighbours in the current order of points that have not met, equal points in random order."""

    def __init__(self, count: int, k: int, chance: random.Random) -> None:
        self.rounds = k
        self._count = count
        self._chance = chance
        self._met: set[Pair] = set()
        self._games = [0] * count

    def next_round(self, points: Sequence[float]) -> list[Pair]:
        """With an odd count one image rests: one that has had the most games."""
        order = list(range(self._count))
        self._chance.shuffle(order)
        order.sort(key=lambda image: -points[image])
        if self._count % 2:
            order.remove(max(reversed(order), key=lambda image: self._games[image]))
        pairs: list[Pair] = []
        while order:
            image = order.pop(0)
            rival = next((other for other in order if self._new(image, other)), None)
            if rival is not None:
                order.remove(rival)
                pairs.append(_pair(image, rival))
            elif order:  # it has met all that are left: it changes places with one that is already paired
                self._exchange(pairs, image, order)
        self._met.update(pairs)
        for image in itertools.chain.from_iterable(pairs):
            self._games[image] += 1
        return pairs

    def _new(self, a: int, b: int) -> bool:
        return _pair(a, b) not in self._met

    def _exchange(self, pairs: list[Pair], image: int, left: list[int]) -> None:
        """Of the pairs, the latest first, break one up so that both `image` and one that is left find a rival."""
        for place in reversed(range(len(pairs))):
            for a, b in (pairs[place], pairs[place][::-1]):
                other = next((other for other in left if self._new(image, a) and self._new(other, b)), None)
                if other is not None:
                    left.remove(other)
                    pairs[place : place + 1] = [_pair(image, a), _pair(other, b)]
                    return


def random_regular(count: int, k: int, chance: random.Random) -> list[Pair]:
    """A random connected graph in which every image has k rivals; if count and k are odd, one has k + 1. k < count - 1.

    The images stand on a ring in random order and meet those at k/2 random distances, the distance 1 among them,
    which connects the ring. An odd k adds a matching across the ring.
    """
    ring = list(range(count))
    chance.shuffle(ring)
    across = count // 2
    distances = range(2, (count + 1) // 2 - (k % 2 and count % 2))
    chosen = [1, *chance.sample(distances, k // 2 - 1)] if k > 1 else []
    places = [(place, place + distance) for distance in chosen for place in range(count)]
    if k % 2 and count % 2 == 0:
        places += [(place, place + across) for place in range(across)]
    elif k % 2:  # steps of (count - 1)/2 visit the whole ring; every other step, and one more, touches each image
        places += [(step * across, (step + 1) * across) for step in range(0, count, 2)]
    return sorted({_pair(ring[a % count], ring[b % count]) for a, b in places})


class FirstPlaces:
    """Decides which image of a pair is shown first.

    `single`: the one that was less often first, so that a judge who favours a place favours no image. `lower-first`:
    the earlier in the group, as in Pref-GRPO's reference. `swap`: each pair is asked in both orders.
    """

    def __init__(self, order: Order, count: int) -> None:
        self._order = order
        self._surplus = [0] * count  # times shown first less times shown second

    def orient(self, pairs: Sequence[Pair]) -> list[Pair]:
        """The pairs as they are shown, those with the same first image together: a judge keeps its beginning."""
        shown = [seen for pair in pairs for seen in self._shown(*pair)]
        return sorted(shown)

    def _shown(self, a: int, b: int) -> list[Pair]:
        if self._order == "swap":
            return [(a, b), (b, a)]
        if self._order == "single" and self._surplus[b] < self._surplus[a]:
            a, b = b, a
        self._surplus[a] += 1
        self._surplus[b] -= 1
        return [(a, b)]


def _pair(a: int, b: int) -> Pair:
    return (a, b) if a < b else (b, a)
