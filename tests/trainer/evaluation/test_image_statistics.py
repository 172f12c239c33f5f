"""Statistics of pictures against numbers worked out by hand."""

from __future__ import annotations

import colorsys
import time

import numpy as np
import pytest
import torch

from trainer.evaluation.artefacts.image_statistics import (
    EDGE,
    STATISTICS,
    diversity,
    image_statistics,
    mean_statistics,
    thumbnail,
)
from trainer.evaluation.rollout_statistics import rollout_statistics
from trainer.policies.base import SamplingPlan
from trainer.policies.flow.trace import FlowTrace
from trainer.processes.distributed import World
from trainer.types import Prompt, Rollout, Sample

ALONE = World(rank=0, size=1, device=torch.device("cpu"))


def plain(*rgb: int, height: int = 32, width: int = 48) -> np.ndarray:
    return np.full((height, width, 3), rgb, np.uint8)


def noise(seed: int = 0, side: int = 64) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)


def test_a_plain_picture_by_hand() -> None:
    found = image_statistics(plain(200, 100, 50))
    assert set(found) == set(STATISTICS)
    assert found["saturation"] == pytest.approx(150 / 200)
    assert found["brightness"] == pytest.approx((0.2126 * 200 + 0.7152 * 100 + 0.0722 * 50) / 255, rel=1e-5)
    for name in ("contrast", "edge_density", "sharpness"):
        assert found[name] == pytest.approx(0, abs=1e-6)
    assert found["colour_entropy"] == 0
    assert image_statistics(plain(0, 0, 0))["saturation"] == 0, "black has no hue and no saturation"


def test_half_black_half_white_by_hand() -> None:
    """One vertical edge: Sobel answers in the two columns beside it, of 46 x 30 inner pixels."""
    image = plain(0, 0, 0)
    image[:, 24:] = 255
    found = image_statistics(image)
    assert found["brightness"] == pytest.approx(0.5) and found["contrast"] == pytest.approx(0.5)
    assert found["edge_density"] == pytest.approx(2 / 46)
    assert found["colour_entropy"] == pytest.approx(1.0)
    assert found["sharpness"] == pytest.approx(2 / 46, rel=1e-4), "the Laplacian is 1 and -1 beside the edge, mean 0"


def test_saturation_and_filters_agree_with_other_implementations() -> None:
    image = noise(side=24)
    found = image_statistics(image)
    hsv = [colorsys.rgb_to_hsv(*(pixel / 255))[1] for pixel in image.reshape(-1, 3)]
    assert found["saturation"] == pytest.approx(np.mean(hsv), rel=1e-5)
    luma = image @ np.array([0.2126, 0.7152, 0.0722]) / 255
    sobel = torch.tensor([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]]) / 8
    laplace = torch.tensor([[0.0, 1, 0], [1, -4, 1], [0, 1, 0]])
    kernels = torch.stack([sobel, sobel.T, laplace])[:, None].double()
    x, y, curvature = torch.nn.functional.conv2d(torch.tensor(luma)[None, None], kernels)[0].numpy()
    gradient = np.hypot(x, y)
    assert found["edge_density"] == pytest.approx((gradient > EDGE).mean(), abs=2e-3)
    assert found["sharpness"] == pytest.approx(curvature.var(), rel=1e-4)


def test_thumbnails_are_block_means_and_odd_sizes_are_cut() -> None:
    image = plain(10, 20, 30, height=35, width=50)
    cells = thumbnail(image).reshape(16, 16, 3)
    assert cells[3, 7] == pytest.approx(np.array([10, 20, 30]) / 255)
    assert thumbnail(plain(1, 1, 1, height=8, width=40)).shape == (8 * 16 * 3,)


def test_diversity_by_hand() -> None:
    black, white, grey = (thumbnail(plain(v, v, v)) for v in (0, 255, 51))
    assert diversity([black, black]) == 0
    assert diversity([black, white]) == pytest.approx(1)
    assert diversity([black, white, grey]) == pytest.approx((1 + 0.2 + 0.8) / 3)
    assert diversity([black]) is None and diversity([]) is None


def test_means_and_spreads_are_over_the_pictures_that_have_the_number() -> None:
    assert mean_statistics([{"a": 1.0}, {"a": 3.0, "b": 5.0}, {}]) == {"a": (2.0, 2**0.5), "b": (5.0, 0.0)}


def rollout(images: dict[str, list[np.ndarray]]) -> Rollout:
    samples = [
        Sample(f"{group}#{n}", group, Prompt(group, "p"), images=(image,))
        for group, group_images in images.items()
        for n, image in enumerate(group_images)
    ]
    return Rollout(
        samples, torch.zeros(len(samples)), torch.zeros(len(samples), 0), None, FlowTrace(SamplingPlan(1, 1))
    )


def test_a_group_is_known_by_its_id_over_micro_batches() -> None:
    halves = [rollout({"a": [plain(0, 0, 0)]}), rollout({"a": [plain(255, 255, 255)], "b": [plain(0, 0, 0)] * 2})]
    row = rollout_statistics(halves, ALONE)
    assert row["stats/diversity"] == pytest.approx(0.5), "group a is 1 apart, group b is all alike"
    assert row["stats/brightness"] == pytest.approx(0.25)
    assert set(row) == {f"stats/{name}" for name in (*STATISTICS, "diversity")}


def test_text_rollouts_have_no_picture_statistics() -> None:
    text = Rollout(
        [Sample("a#0", "a", Prompt("a", "p"), text="x")],
        torch.zeros(1),
        torch.zeros(1, 0),
        None,
        FlowTrace(SamplingPlan(1, 1)),
    )
    assert rollout_statistics([text], ALONE) == {}


def test_what_is_computed_in_a_step_does_not_grow_with_it() -> None:
    """Eight pictures of 512 x 512 at most, and four groups: well under a second even on a busy core."""
    big = np.repeat(np.repeat(noise(), 8, 0), 8, 1)
    groups = {str(n): [big] * 8 for n in range(24)}
    started = time.perf_counter()
    rollout_statistics([rollout(groups)], ALONE)
    assert time.perf_counter() - started < 5
