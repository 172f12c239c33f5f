"""k-means by Lloyd's algorithm on features of length 1. Axes: N images, K clusters, d numbers."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from trainer.data.pairs.building.features import Features

_ROUNDS = 50
_AT_ONCE = 4096  # rows whose distances to all centroids are in memory at once


def k_means(features_Nd: Features, clusters: int, seed: int) -> tuple[NDArray[np.int64], Features]:
    """Each image's cluster, and the centroids (K, d).

    The first centroids are images, each drawn with a chance in proportion to its squared distance from those before
    (k-means++). A cluster that loses all its images takes the one that lies farthest from its centroid. It ends when no image
    changes its cluster, after 50 rounds at the latest.
    """
    rng = np.random.default_rng(seed)
    centroids_Kd = _first(features_Nd, clusters, rng)
    labels_N = np.full(len(features_Nd), -1, dtype=np.int64)
    for _ in tqdm(range(_ROUNDS), desc="k-means", unit="round", disable=None):
        nearest_N, distance_N = nearest(features_Nd, centroids_Kd)
        if (nearest_N == labels_N).all():
            break
        labels_N = nearest_N
        counts_K = np.bincount(labels_N, minlength=clusters)
        for empty in np.flatnonzero(counts_K == 0):
            far = int(np.argmax(np.where(counts_K[labels_N] > 1, distance_N, -1.0)))
            counts_K[labels_N[far]] -= 1
            labels_N[far], distance_N[far], counts_K[empty] = empty, 0.0, 1
        centroids_Kd = _means(features_Nd, labels_N, counts_K)
    return labels_N, centroids_Kd


def nearest(features_Nd: Features, centroids_Kd: Features) -> tuple[NDArray[np.int64], Features]:
    """Per image the nearest centroid, the first of equally near ones, and the squared distance to it."""
    squares_K = np.einsum("kd,kd->k", centroids_Kd, centroids_Kd)
    labels, distances = [], []
    for start in range(0, len(features_Nd), _AT_ONCE):
        part = features_Nd[start : start + _AT_ONCE]
        away = squares_K - 2 * part @ centroids_Kd.T  # without |x|^2, which is the same for all centroids
        label = away.argmin(axis=1)
        labels.append(label)
        distances.append(np.einsum("nd,nd->n", part, part) + away[np.arange(len(part)), label])
    return np.concatenate(labels).astype(np.int64), np.maximum(np.concatenate(distances), 0)


def _first(features_Nd: Features, clusters: int, rng: np.random.Generator) -> Features:
    chosen = [int(rng.integers(len(features_Nd)))]
    squares_N = np.einsum("nd,nd->n", features_Nd, features_Nd)
    distance_N = np.full(len(features_Nd), np.inf)
    for _ in tqdm(range(1, clusters), desc="k-means++", unit="centroid", disable=None):
        last = features_Nd[chosen[-1]]
        away = squares_N + last @ last - 2 * features_Nd @ last
        distance_N = np.minimum(distance_N, np.maximum(away, 0))
        distance_N[chosen] = 0
        total = float(distance_N.sum())
        if total > 0:
            place = int(np.searchsorted(np.cumsum(distance_N), rng.random() * total, side="right"))
            chosen.append(min(place, len(distance_N) - 1))
        else:  # fewer different images than clusters: the next that is not taken
            chosen.append(int(np.setdiff1d(np.arange(len(features_Nd)), chosen)[0]))
    return features_Nd[chosen].copy()


def _means(features_Nd: Features, labels_N: NDArray[np.int64], counts_K: NDArray[np.int64]) -> Features:
    """Of the images of each cluster, none of which is empty."""
    order = np.argsort(labels_N, kind="stable")
    starts = np.concatenate([[0], np.cumsum(counts_K)[:-1]])
    sums = np.add.reduceat(features_Nd[order], starts, axis=0, dtype=np.float64)
    return (sums / counts_K[:, None]).astype(np.float32)
