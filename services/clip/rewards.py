"""Each reward as a function of a backbone's unit vectors. Axes: N rows (an image each), E the embedding."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from pydantic import JsonValue
from torch.nn import functional

from services.kit.models.backbone import Backbone, cosines
from services.kit.models.linear_head import LinearHead
from services.kit.scorer import Failure, Item, Result, Score
from wire.schema import ErrorCode

Reward = Callable[[Backbone, Sequence[Item]], list[Result]]
"""Scores items, each with at least one image: one result per item, in order."""

_FLOW_GRPO_PICKSCORE = 26.0  # flow_grpo and DeepGen-RL divide the logit by it, which brings scores near 1


def likeness(unit: Callable[[Backbone, float], float]) -> Reward:
    """The cosine of image and prompt in some unit. Several images of an item are scored each and averaged.

    Component: `truncated_tokens`, how many of the prompt's tokens the model did not see.
    """

    def score(backbone: Backbone, items: Sequence[Item]) -> list[Result]:
        prompts = backbone.prompts([item.prompt for item in items])
        images = [image for item in items for image in item.images]
        rows = [row for row, item in enumerate(items) for _ in item.images]
        found = iter(cosines(backbone.images(images), prompts.features_NE[rows]))
        results = []
        for item, truncated in zip(items, prompts.truncated, strict=True):
            values = [unit(backbone, next(found)) for _ in item.images]
            results.append(_mean(values, {"truncated_tokens": float(truncated)}))
        return results

    return score


def cosine(backbone: Backbone, value: float) -> float:
    """CLIP similarity as it is: for ViT-L/14 mostly 0.1 to 0.35."""
    return value


def logit(backbone: Backbone, value: float) -> float:
    """PickScore's own unit: the cosine times the model's learned scale (about 100), mostly 17 to 24."""
    return backbone.scale * value


def logit_over_26(backbone: Backbone, value: float) -> float:
    """PickScore as flow_grpo and DeepGen-RL train on it."""
    return logit(backbone, value) / _FLOW_GRPO_PICKSCORE


def aesthetic(head: LinearHead) -> Reward:
    """The predictor's rating of the image alone. The prompt plays no part."""

    def score(backbone: Backbone, items: Sequence[Item]) -> list[Result]:
        ratings = iter(head(backbone.images([image for item in items for image in item.images])))
        return [_mean([next(ratings) for _ in item.images], {}) for item in items]

    return score


def image_similarity(backbone: Backbone, items: Sequence[Item]) -> list[Result]:
    """The cosine of an edited image and the image it was made from: how much of it was kept."""
    results: list[Result] = []
    for item in items:
        problem = _source_problem(item)
        if problem is not None:
            results.append(problem)
            continue
        edited_NE = backbone.images(item.images)
        source_NE = backbone.images(item.source_images[:1]).expand_as(edited_NE)
        results.append(_mean(cosines(edited_NE, source_NE), {}))
    return results


def clip_direction(backbone: Backbone, items: Sequence[Item]) -> list[Result]:
    """Does the image move where the caption moves? The cosine of (edited - source) and (caption after - caption before).

    The source's caption is `metadata.source_prompt`; the caption after the edit is `metadata.target_prompt`, else the
    prompt. An image that did not move at all has the score 0. Source: Gal et al., StyleGAN-NADA, 2021, eq. 1.
    """
    results: list[Result] = []
    for item in items:
        before, after = item.metadata.get("source_prompt"), item.metadata.get("target_prompt", item.prompt)
        problem = _source_problem(item)
        if problem is None and not (isinstance(before, str) and isinstance(after, str)):
            message = "clip_direction needs the source's caption as metadata.source_prompt, a text"
            problem = Failure(ErrorCode.NOT_APPLICABLE, message)
        if problem is None and before == after:
            problem = Failure(ErrorCode.NOT_APPLICABLE, "the captions before and after are the same: no direction")
        if problem is not None:
            results.append(problem)
            continue
        captions = backbone.prompts([str(before), str(after)])
        moved_E = captions.features_NE[1] - captions.features_NE[0]
        edited_NE = backbone.images(item.images)
        moved_NE = edited_NE - backbone.images(item.source_images[:1])
        # normalize leaves a row of zeros as it is, so an unmoved image has the cosine 0 and not 0/0.
        values = cosines(
            functional.normalize(moved_NE, dim=-1), functional.normalize(moved_E, dim=-1).expand_as(moved_NE)
        )
        results.append(_mean(values, {"truncated_tokens": float(sum(captions.truncated))}))
    return results


def diversity(backbone: Backbone, items: Sequence[Item]) -> list[Result]:
    """One group: each image's mean distance (1 - cosine) to the others. Their mean is the mean pairwise distance."""
    if len(items) < 2:
        alone = Failure(ErrorCode.NOT_APPLICABLE, "diversity compares the images of a group, and this group has one")
        return [alone for _ in items]
    several = [item for item in items if len(item.images) != 1]
    if several:
        message = f"diversity needs one image an item; item {several[0].id} of the group has {len(several[0].images)}"
        return [Failure(ErrorCode.BAD_INPUT, message) for _ in items]
    rows_NE = backbone.images([item.images[0] for item in items])
    distance_NN = (1 - rows_NE @ rows_NE.T).clamp(0, 2)
    distance_NN.fill_diagonal_(0)  # to itself, of which rounding may leave something
    mean_N = distance_NN.sum(-1) / (len(items) - 1)
    return [_mean([float(value)], {}) for value in mean_N]


def _source_problem(item: Item) -> Failure | None:
    if len(item.source_images) == 1:
        return None
    message = (
        f"this reward compares an edit with the one image it was made from; source_images has {len(item.source_images)}"
    )
    return Failure(ErrorCode.NOT_APPLICABLE, message)


def _mean(values: Sequence[float], components: dict[str, float]) -> Result:
    if not all(math.isfinite(value) for value in values):
        return Failure(
            ErrorCode.NON_FINITE, f"the scores are {list(values)}: the weights are damaged, or try --dtype fp32"
        )
    images: list[JsonValue] = list(values)
    return Score(sum(values) / len(values), components, {"images": images} if len(values) > 1 else {})
