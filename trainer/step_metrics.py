"""Metrics of one step from what the reward client collected: rewards, advantages, latencies, failures, all ranks."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from trainer.distributed import World
from trainer.types import Scores


def reward_metrics(scores: Scores, world: World) -> dict[str, float]:
    """`reward/<name>/mean|std|valid_share`, `failed/<name>/<code>`, `latency_ms/<name>/p50|p95|max`, `cached/<name>`."""
    valid = scores.valid_BR.double()
    values = scores.scores_BR.double() * valid
    sums = world.sum(torch.stack([valid.sum(0), values.sum(0), (values**2).sum(0), scores.asked_BR.double().sum(0)]))
    row: dict[str, float] = {}
    for r, name in enumerate(scores.names):
        count, total, squares, asked = sums[:, r].tolist()
        if asked:
            row[f"reward/{name}/valid_share"] = count / asked
        if count:
            mean = total / count
            row[f"reward/{name}/mean"] = mean
            row[f"reward/{name}/std"] = math.sqrt(max(squares / count - mean**2, 0.0) * count / max(count - 1, 1))
    reports = world.gather(
        [_plain(scores.failures), {n: list(v) for n, v in scores.latency_ms.items()}, dict(scores.cached)]
    )
    for name in scores.names:
        failures: Counter[str] = Counter()
        for report in reports:
            failures.update(report[0].get(name, {}))
        row |= {f"failed/{name}/{code}": float(count) for code, count in sorted(failures.items())}
        latencies = [ms for report in reports for ms in report[1].get(name, [])]
        if latencies:
            p50, p95 = np.percentile(latencies, [50, 95])
            row |= {
                f"latency_ms/{name}/p50": p50,
                f"latency_ms/{name}/p95": p95,
                f"latency_ms/{name}/max": max(latencies),
            }
        cached = sum(report[2].get(name, 0) for report in reports)
        if cached:
            row[f"cached/{name}"] = float(cached)
    return row


def advantage_metrics(adv_B: Tensor, weight_B: Tensor, clipped_B: Tensor, world: World) -> dict[str, float]:
    """`adv/mean|std|abs_mean|clip_share` over all ranks' samples that train, and their share of all samples."""
    adv, weight = adv_B.double(), (weight_B > 0).double()
    parts = [weight.sum(), (adv * weight).sum(), (adv**2 * weight).sum(), (adv.abs() * weight).sum()]
    parts += [(clipped_B.double() * weight).sum(), torch.tensor(float(len(adv)), dtype=torch.float64)]
    count, total, squares, absolute, clipped, everyone = world.sum(torch.stack(parts)).tolist()
    count = max(count, 1.0)
    return {
        "adv/mean": total / count,
        "adv/std": math.sqrt(max(squares / count - (total / count) ** 2, 0.0)),
        "adv/abs_mean": absolute / count,
        "adv/clip_share": clipped / count,
        "adv/trained_share": count / max(everyone, 1.0),
    }


def _plain(failures: Mapping[str, Counter[str]]) -> dict[str, dict[str, int]]:
    return {name: dict(counts) for name, counts in failures.items()}
