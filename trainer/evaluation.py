"""Held-out evaluation: the same prompts, the same noise, the deterministic ODE, the averaged weights, every time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trainer.config import EvaluationConfig, SamplingConfig
from trainer.distributed import World
from trainer.policies.base import Policy, SamplingPlan
from trainer.rewards import RewardClient
from trainer.seeds import sample_seed
from trainer.types import Prompt, Sample, Scores


@dataclass(frozen=True)
class Evaluation:
    """Means over all ranks' valid scores, with this rank's samples and scores for the pictures."""

    means: dict[str, float]
    valid_share: dict[str, float]
    samples: Sequence[Sample]
    scores: Scores

    def metrics(self) -> dict[str, float]:
        """Row entries `eval/<name>` and `eval/<name>/valid_share`."""
        row = {f"eval/{name}": mean for name, mean in self.means.items()}
        return row | {f"eval/{name}/valid_share": share for name, share in self.valid_share.items()}


def evaluate(
    policy: Policy,
    prompts: Sequence[Prompt],
    client: RewardClient,
    columns: Sequence[str],
    config: EvaluationConfig,
    sampling: SamplingConfig,
    world: World,
) -> Evaluation:
    """Sample one picture per prompt and score it by `columns`; each rank takes its share of the prompts."""
    # In one piece, so that rank 0's first pictures are of the same prompts however many ranks there are.
    mine = range(world.rank * len(prompts) // world.size, (world.rank + 1) * len(prompts) // world.size)
    plan = SamplingPlan(
        num_inference_steps=config.num_inference_steps,
        micro_batch_size=config.batch_size,
        guidance_scale=sampling.guidance_scale,
        shift=sampling.shift,
    )
    batch = client.batch(columns)
    samples: list[Sample] = []
    seeds = [sample_seed(config.seed, "evaluation", i) for i in mine]
    for rollout in policy.sample([prompts[i] for i in mine], 1, seeds, plan):
        batch.submit(rollout.samples)
        samples.extend(rollout.samples)
    scores = batch.collect()
    means, shares = _means(scores, world)
    return Evaluation(means=means, valid_share=shares, samples=samples, scores=scores)


def _means(scores: Scores, world: World) -> tuple[dict[str, float], dict[str, float]]:
    """Per reward: mean over all ranks' valid scores, and the share of samples that had one. No valid score: no mean."""
    sums = world.sum((scores.scores_BR.double() * scores.valid_BR).sum(0)).tolist()
    valid = world.sum(scores.valid_BR.double().sum(0)).tolist()
    asked = world.sum(scores.asked_BR.double().sum(0)).tolist()
    means = {name: s / n for name, s, n in zip(scores.names, sums, valid, strict=True) if n}
    shares = {name: n / a for name, n, a in zip(scores.names, valid, asked, strict=True) if a}
    return means, shares


def picture_rows(evaluation: Evaluation, count: int) -> list[dict[str, object]]:
    """The first `count` samples as `Recorder.save_samples` takes them."""
    scores = evaluation.scores
    rows: list[dict[str, object]] = []
    for i, sample in enumerate(evaluation.samples[:count]):
        pixels: np.ndarray | None = sample.image_HWC
        values = {
            name: float(scores.scores_BR[i, r]) if bool(scores.valid_BR[i, r]) else None
            for r, name in enumerate(scores.names)
        }
        rows.append(
            {
                "id": sample.id,
                "prompt_id": sample.prompt.id,
                "prompt": sample.prompt.text,
                "image_HWC": pixels,
                "scores": values,
                "targets": list(sample.prompt.targets) if sample.prompt.targets else None,
                "read": _read(scores.details[i]) if scores.details else None,
            }
        )
    return rows


def _read(details: Mapping[str, Mapping[str, Any]]) -> str | None:
    """What the first OCR reward of this sample read: the text of the `lines` of its `images`; None without one."""
    for reward in details.values():
        images = reward.get("images")
        if isinstance(images, list):
            lines = [line for image in images if isinstance(image, dict) for line in image.get("lines", [])]
            return " ".join(str(line["text"]) for line in lines if isinstance(line, dict) and "text" in line)
    return None
