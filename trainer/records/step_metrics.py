"""Metrics of one step from what the reward client collected: rewards, advantages, latencies, failures, all ranks."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from trainer.advantages import signal_sums, standardize
from trainer.config import AdvantageConfig
from trainer.processes.distributed import World
from trainer.records import keys
from trainer.types import Scores


def reward_metrics(scores: Scores, world: World) -> dict[str, float]:
    """`reward/<name>/mean|std|valid_share`, `failed/<name>/<code>`, `latency_ms/<name>/p50|p95|max`, `cached/<name>`; with
    several data sets in the step also `dataset/<data set>/<name>/mean`.
    """
    valid = scores.valid_BR.double()
    values = scores.scores_BR.double() * valid
    own = torch.stack([valid.sum(0), values.sum(0), (values**2).sum(0), scores.asked_BR.double().sum(0)])
    reports = world.gather(
        [
            _plain(scores.failures),
            {n: list(v) for n, v in scores.latency_ms.items()},
            dict(scores.cached),
            _dataset_sums(scores),
            own.tolist(),
        ]
    )
    sums = torch.tensor([report[4] for report in reports], dtype=torch.float64).sum(0)
    row: dict[str, float] = {}
    for r, name in enumerate(scores.names):
        count, total, squares, asked = sums[:, r].tolist()
        if asked:
            row[keys.reward(name, "valid_share")] = count / asked
        if count:
            mean = total / count
            row[keys.reward(name, "mean")] = mean
            row[keys.reward(name, "std")] = math.sqrt(max(squares / count - mean**2, 0.0) * count / max(count - 1, 1))
    for name in scores.names:
        failures: Counter[str] = Counter()
        for report in reports:
            failures.update(report[0].get(name, {}))
        row |= {keys.failed(name, code): float(count) for code, count in sorted(failures.items())}
        latencies = [ms for report in reports for ms in report[1].get(name, [])]
        if latencies:
            p50, p95 = np.percentile(latencies, [50, 95])
            for quantile, ms in (("p50", p50), ("p95", p95), ("max", max(latencies))):
                row[keys.latency(name, quantile)] = ms
        cached = sum(report[2].get(name, 0) for report in reports)
        if cached:
            row[keys.cached(name)] = float(cached)
    return row | _dataset_means([report[3] for report in reports])


def advantage_metrics(
    scores: Scores,
    group_B: Tensor,
    adv_B: Tensor,
    weight_B: Tensor,
    std_floor_R: Tensor | None,
    config: AdvantageConfig,
    world: World,
) -> dict[str, float]:
    """`adv/mean|std|abs_mean|clip_share|trained_share`, and per reward `adv/<name>/abs_mean|zero_group_share`.

    `adv_B` is taken before clamping. All ranks together.
    """
    adv, trains = adv_B.double(), (weight_B > 0).double()
    clipped = (adv.abs() > config.adv_clip).double()
    parts = torch.stack(
        [
            torch.tensor(float(len(adv)), dtype=torch.float64, device=adv.device),
            trains.sum(),
            (adv * trains).sum(),
            (adv**2 * trains).sum(),
            (adv.abs() * trains).sum(),
            (clipped * trains).sum(),
        ]
    )
    relative = standardize(
        scores.scores_BR,
        scores.valid_BR,
        group_B,
        eps=config.eps,
        min_valid=config.min_valid,
        std_floor=std_floor_R,
    )
    signal = torch.stack(list(signal_sums(relative, group_B)))  # (4, R)
    sums = world.sum(torch.cat([parts.cpu(), signal.flatten()]))
    everyone, trained, total, squares, absolute, clips = sums[: len(parts)].tolist()
    count = max(trained, 1.0)
    signal = sums[len(parts) :].view_as(signal)
    row = {
        "adv/mean": total / count,
        "adv/std": math.sqrt(max(squares / count - (total / count) ** 2, 0.0)),
        "adv/abs_mean": absolute / count,
        "adv/clip_share": clips / count,
        "adv/trained_share": trained / everyone,
    }
    for name, (abs_z, samples, groups, flat) in zip(scores.names, signal.T.tolist(), strict=True):
        if samples:
            row[keys.signal(name, "abs_mean")] = abs_z / samples
            row[keys.signal(name, "zero_group_share")] = flat / groups
    return row


def wait_metrics(scores: Scores, step_s: float, world: World) -> dict[str, float]:
    """How long the slowest rank stood still for rewards, and how much of it was more than the last answer's latency."""
    reports = world.gather([scores.waited_s, scores.last_latency_s])
    waited = max(report[0] for report in reports)
    last = max(report[1] for report in reports)
    return {
        "reward_wait_share": waited / step_s,
        "wait/last_latency_s": last,
        "wait/excess_s": max(waited - last, 0.0),
    }


def _dataset_sums(scores: Scores) -> dict[str, dict[str, list[float]]]:
    """Data set to reward to the sum and the number of this rank's valid scores."""
    sums: dict[str, dict[str, list[float]]] = {}
    for dataset in dict.fromkeys(scores.datasets):
        rows = torch.tensor([name == dataset for name in scores.datasets])[:, None] & scores.valid_BR
        totals_R, counts_R = (scores.scores_BR.double() * rows).sum(0).tolist(), rows.sum(0).tolist()
        sums[dataset] = {name: [t, n] for name, t, n in zip(scores.names, totals_R, counts_R, strict=True) if n}
    return sums


def _dataset_means(reports: Sequence[Mapping[str, Mapping[str, Sequence[float]]]]) -> dict[str, float]:
    datasets = sorted({dataset for report in reports for dataset in report})
    if len(datasets) < 2:
        return {}  # it would only say again what reward/<name>/mean says
    row = {}
    for dataset in datasets:
        for name in dict.fromkeys(name for report in reports for name in report.get(dataset, {})):
            parts = [report[dataset][name] for report in reports if name in report.get(dataset, {})]
            row[keys.dataset_mean(dataset, name)] = sum(t for t, _ in parts) / sum(n for _, n in parts)
    return row


def _plain(failures: Mapping[str, Counter[str]]) -> dict[str, dict[str, int]]:
    return {name: dict(counts) for name, counts in failures.items()}
