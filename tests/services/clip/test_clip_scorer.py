"""Each reward against its published formula, computed a second time on the same weights, and what it promises."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from services.clip.scorer import ClipScorer
from services.kit.models.pixels import to_rgb
from services.kit.models.sources import inspect_folder
from services.kit.scorer import Failure, Item, Result, Score
from tests.support.tiny_clip import CONTEXT, PlainClip, spell
from wire.schema import ErrorCode


def noise(width: int, height: int, mode: str = "RGB") -> Image.Image:
    pixels = np.random.default_rng(width * 10_000 + height).integers(0, 256, (height, width, 4), np.uint8)
    image = Image.fromarray(pixels)
    return image.quantize(16) if mode == "P" else image.convert(mode)


def item(*images: Image.Image, prompt: str = "a red cat", source: Image.Image | None = None, **metadata: str) -> Item:
    return Item("0", prompt, images, source_images=(source,) if source else (), metadata=metadata)


def value(result: Result) -> float:
    assert isinstance(result, Score), result
    return result.value


def code(result: Result) -> ErrorCode:
    assert isinstance(result, Failure), result
    return result.code


IMAGES = [
    pytest.param(noise(32, 32), id="own size"),
    pytest.param(noise(300, 300), id="square"),
    pytest.param(noise(200, 90), id="wide"),
    pytest.param(noise(45, 170), id="tall"),
    pytest.param(noise(20, 11), id="smaller"),
    pytest.param(noise(1, 1), id="1 pixel"),
    pytest.param(noise(80, 60, "RGBA"), id="RGBA"),
    pytest.param(noise(80, 60, "P"), id="palette"),
    pytest.param(noise(80, 60, "LA"), id="LA"),
    pytest.param(noise(80, 60, "L"), id="L"),
    pytest.param(noise(80, 60, "1"), id="1 bit"),
]


@pytest.mark.parametrize("image", IMAGES)
def test_clip_sim_and_aesthetic_equal_the_plain_computation(
    clip_scorer: ClipScorer, plain: PlainClip, head_state: dict[str, Tensor], image: Image.Image
) -> None:
    row = plain.image(to_rgb(image))
    [found] = clip_scorer.score("clip_sim", [item(image)])
    assert value(found) == pytest.approx(float(row @ plain.text(spell("a red cat"))), abs=2e-6)
    for number in (0, 2, 4, 6, 7):
        row = head_state[f"layers.{number}.weight"] @ row + head_state[f"layers.{number}.bias"]
    [rated] = clip_scorer.score("aesthetic", [item(image)])
    assert value(rated) == pytest.approx(float(row[0]), rel=2e-5)


@pytest.mark.parametrize("prompt", ["", "a", "cat " * 3, "a long prompt with more letters than fit"])
def test_prompts_of_every_length_equal_the_plain_computation(
    clip_scorer: ClipScorer, plain: PlainClip, prompt: str
) -> None:
    image = noise(60, 50)
    [found] = clip_scorer.score("clip_sim", [item(image, prompt=prompt)])
    assert value(found) == pytest.approx(float(plain.image(image) @ plain.text(spell(prompt))), abs=2e-6)
    assert isinstance(found, Score)
    assert found.components["truncated_tokens"] == max(len(spell(prompt)) + 2 - CONTEXT, 0)


def test_pickscore_has_its_three_published_units(clip_scorer: ClipScorer, plain_pickscore: PlainClip) -> None:
    image = noise(70, 50)
    cosine = float(plain_pickscore.image(image) @ plain_pickscore.text(spell("a red cat")))
    units: dict[str, Callable[[float], float]] = {
        "pickscore": lambda x: plain_pickscore.scale * x,
        "pickscore_26": lambda x: plain_pickscore.scale * x / 26,
        "pickscore_cosine": lambda x: x,
    }
    for name, unit in units.items():
        assert value(clip_scorer.score(name, [item(image)])[0]) == pytest.approx(unit(cosine), rel=1e-5)
    assert abs(cosine) > 1e-3


def test_scores_tell_images_and_prompts_apart(clip_scorer: ClipScorer) -> None:
    """Equal scores for all would pass a comparison of two wrong computations."""
    prompts = ["a red cat", "two dogs", ""]
    items = [item(image, prompt=prompt) for image in (noise(60, 60), noise(61, 60)) for prompt in prompts]
    gaps = np.diff(sorted(map(value, clip_scorer.score("clip_sim", items))))
    assert gaps.min() > 1e-3


@pytest.mark.parametrize("max_batch", [1, 3, 64])
@pytest.mark.parametrize("reward", ["clip_sim", "aesthetic", "pickscore"])
def test_a_batch_equals_its_items_one_by_one(clip_scorer: ClipScorer, reward: str, max_batch: int) -> None:
    prompts = ["a red cat", "x", "a red cat", "", "a dog " * 9]
    items = [item(noise(20 + 17 * n, 70 - 6 * n), prompt=prompts[n % 5]) for n in range(11)]
    other = ClipScorer(
        clip_scorer._model, clip_scorer._pickscore, clip_scorer._aesthetic, device="cpu", max_batch=max_batch
    )
    other.load()
    single = [value(clip_scorer.score(reward, [each])[0]) for each in items]
    assert [value(each) for each in other.score(reward, items)] == pytest.approx(single, rel=1e-5, abs=1e-6)


def test_several_images_are_scored_each_and_averaged(clip_scorer: ClipScorer) -> None:
    first, second = noise(50, 50), noise(70, 30)
    alone = [value(result) for result in clip_scorer.score("clip_sim", [item(first), item(second)])]
    [both] = clip_scorer.score("clip_sim", [item(first, second)])
    assert isinstance(both, Score)
    assert both.details["images"] == pytest.approx(alone, abs=1e-6)
    assert both.value == pytest.approx(sum(alone) / 2, abs=1e-6)


def test_an_edit_is_compared_with_its_source(clip_scorer: ClipScorer, plain: PlainClip) -> None:
    before, after = noise(64, 64), noise(80, 48)
    a, b = plain.image(before), plain.image(after)
    [kept] = clip_scorer.score("image_similarity", [item(after, source=before)])
    assert value(kept) == pytest.approx(float(a @ b), abs=2e-6)
    [same] = clip_scorer.score("image_similarity", [item(before, source=before)])
    assert value(same) == pytest.approx(1, abs=1e-6) and value(same) <= 1
    captions = plain.text(spell("a dog")) - plain.text(spell("a cat"))
    expected = float((b - a) @ captions / ((b - a).norm() * captions.norm()))
    edit = item(after, source=before, prompt="make it a dog", source_prompt="a cat", target_prompt="a dog")
    assert value(clip_scorer.score("clip_direction", [edit])[0]) == pytest.approx(expected, abs=1e-5)
    unmoved = item(before, source=before, prompt="a dog", source_prompt="a cat")
    assert value(clip_scorer.score("clip_direction", [unmoved])[0]) == 0


def test_a_groups_diversity_is_its_mean_pairwise_distance(clip_scorer: ClipScorer, plain: PlainClip) -> None:
    images = [noise(40 + 9 * n, 60) for n in range(4)]
    rows = [plain.image(image) for image in images]
    distances = [float(1 - rows[i] @ rows[j]) for i in range(4) for j in range(i)]
    found = [value(result) for result in clip_scorer.score("diversity", [item(image) for image in images])]
    assert sum(found) / 4 == pytest.approx(sum(distances) / 6, abs=2e-6)
    assert found[0] == pytest.approx(sum(float(1 - rows[0] @ row) for row in rows[1:]) / 3, abs=2e-6)
    equal = clip_scorer.score("diversity", [item(images[0]), item(images[0])])
    assert [value(result) for result in equal] == pytest.approx([0, 0], abs=1e-6)


@pytest.mark.parametrize("image", IMAGES)
def test_rewards_of_edits_and_groups_take_images_of_every_kind(
    clip_scorer: ClipScorer, plain: PlainClip, image: Image.Image
) -> None:
    source = noise(64, 40)
    a, b = plain.image(source), plain.image(to_rgb(image))
    [kept] = clip_scorer.score("image_similarity", [item(image, source=source)])
    assert value(kept) == pytest.approx(float(a @ b), abs=2e-6)
    [spread, _] = clip_scorer.score("diversity", [item(image), item(source)])
    assert value(spread) == pytest.approx(float(1 - a @ b), abs=2e-6)
    captions = plain.text(spell("a dog")) - plain.text(spell("a cat"))
    expected = float((b - a) @ captions / ((b - a).norm() * captions.norm()))
    edit = item(image, source=source, source_prompt="a cat", target_prompt="a dog")
    assert value(clip_scorer.score("clip_direction", [edit])[0]) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("reward", ["image_similarity", "clip_direction"])
def test_edits_scored_together_are_as_alone(clip_scorer: ClipScorer, reward: str) -> None:
    items = [
        item(noise(20 + 9 * n, 50), source=noise(50, 20 + 7 * n), prompt="a dog " * (n + 1), source_prompt="a cat")
        for n in range(5)
    ]
    alone = [value(clip_scorer.score(reward, [each])[0]) for each in items]
    assert [value(each) for each in clip_scorer.score(reward, items)] == pytest.approx(alone, abs=1e-6)


def test_what_does_not_apply_has_no_score(clip_scorer: ClipScorer) -> None:
    image = noise(30, 30)
    assert code(clip_scorer.score("clip_sim", [item()])[0]) is ErrorCode.BAD_INPUT
    assert code(clip_scorer.score("image_similarity", [item(image)])[0]) is ErrorCode.NOT_APPLICABLE
    assert code(clip_scorer.score("clip_direction", [item(image, source=image)])[0]) is ErrorCode.NOT_APPLICABLE
    standing = item(image, source=image, prompt="a cat", source_prompt="a cat")
    assert code(clip_scorer.score("clip_direction", [standing])[0]) is ErrorCode.NOT_APPLICABLE
    assert code(clip_scorer.score("diversity", [item(image)])[0]) is ErrorCode.NOT_APPLICABLE
    assert [code(each) for each in clip_scorer.score("diversity", [item(image), item()])] == [ErrorCode.BAD_INPUT] * 2
    mixed = clip_scorer.score("clip_sim", [item(), item(image), item()])
    assert isinstance(mixed[1], Score) and code(mixed[0]) is code(mixed[2]) is ErrorCode.BAD_INPUT


def test_rewards_that_look_at_the_image_alone_do_not_change_with_the_prompt(clip_scorer: ClipScorer) -> None:
    for reward, info in clip_scorer.rewards.items():
        group = [noise(30, 30), noise(31, 30)]
        first, second = (
            [
                value(each)
                for each in clip_scorer.score(
                    reward, [item(i, prompt=p, source=group[0], source_prompt="x") for i in group]
                )
            ]
            for p in ("a red cat", "two dogs")
        )
        assert (first == second) is (reward in clip_scorer.image_only), info.name


def test_damaged_weights_are_not_a_score(clip_folder: Path) -> None:
    broken = ClipScorer(inspect_folder(clip_folder, "--model"), device="cpu", dtype="fp32")
    broken.load()
    [backbone] = broken.backbones.values()
    with torch.no_grad():
        backbone._towers._model.visual_projection.weight[0, 0] = float("nan")
    for name in ("clip_sim", "image_similarity"):
        assert code(broken.score(name, [item(noise(9, 9), source=noise(9, 8))])[0]) is ErrorCode.NON_FINITE


def test_three_rewards_encode_each_image_once(
    clip_folder: Path, clip_scorer: ClipScorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    scorer = ClipScorer(clip_scorer._model, None, clip_scorer._aesthetic, device="cpu", dtype="fp32")
    scorer.load()
    [backbone] = scorer.backbones.values()
    backbone.image_cache._rows.clear()
    encoded: list[int] = []
    original = backbone._towers.images
    monkeypatch.setattr(backbone._towers, "images", lambda pixels: (encoded.append(len(pixels)), original(pixels))[1])
    items = [item(noise(30 + n, 40)) for n in range(5)]
    for reward in ("clip_sim", "aesthetic", "diversity"):
        scorer.score(reward, items)
    assert encoded == [5]


def test_a_small_memory_drops_the_oldest_and_scores_the_same(clip_folder: Path, clip_scorer: ClipScorer) -> None:
    scorer = ClipScorer(inspect_folder(clip_folder, "--model"), device="cpu", dtype="fp32", entries=2)
    scorer.load()
    [backbone] = scorer.backbones.values()
    items = [item(noise(30 + n, 40), prompt=f"{n} cats") for n in range(5)]
    for _ in range(2):
        assert list(map(value, scorer.score("clip_sim", items))) == pytest.approx(
            list(map(value, clip_scorer.score("clip_sim", items))), abs=1e-6
        )
    assert len(backbone.image_cache._rows) == len(backbone.text_cache._rows) == 2


@pytest.mark.parametrize("size", [(3, 4000), (4000, 3), (1, 30_000)])
def test_a_long_strip_is_scored_by_its_middle_without_scaling_all_of_it(
    clip_scorer: ClipScorer, monkeypatch: pytest.MonkeyPatch, size: tuple[int, int]
) -> None:
    """Scaled whole, 1 x 30,000 pixels would be 32 x 960,000, of which 32 x 32 are looked at."""
    [backbone] = [each for source, each in clip_scorer.backbones.items() if source == clip_scorer._model]
    seen: list[tuple[int, int]] = []
    original = backbone._middle
    monkeypatch.setattr(backbone, "_middle", lambda image: (made := original(image), seen.append(made.size))[0])
    value(clip_scorer.score("clip_sim", [item(noise(*size))])[0])
    assert max(seen[0]) <= 8 * min(seen[0])


def test_a_siglip_is_read_too(siglip_folder: Path) -> None:
    from transformers import AutoModel

    scorer = ClipScorer(inspect_folder(siglip_folder, "--model"), device="cpu", dtype="fp32")
    scorer.load()
    image = noise(32, 32)  # of the model's size, so nothing is scaled
    scores = [value(each) for each in scorer.score("clip_sim", [item(image), item(image, prompt="dog " * 30)])]
    model = AutoModel.from_pretrained(siglip_folder)
    pixels = (torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)[None] / 255 - 0.5) / 0.5
    ids = torch.tensor([[3, 4, 5] + [0] * (CONTEXT - 3), [6] * CONTEXT])
    with torch.no_grad():
        a, b = model.get_image_features(pixels).pooler_output, model.get_text_features(ids).pooler_output
    expected = torch.nn.functional.cosine_similarity(a, b).tolist()
    assert scores == pytest.approx(expected, abs=2e-6)
