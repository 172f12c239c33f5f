"""The scorer against open_clip's computation written a second time, and what it promises about batches and failures."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.hps_reference import SMALL, State, score
from services.hps.checkpoint import CheckpointError, inspect
from services.hps.scorer import HpsScorer
from services.hps.tokenizer import Tokenizer
from services.hps.vocabulary import VocabularyError
from services.kit.dispatch.workers import ProcessPool
from services.kit.models.pixels import to_rgb
from services.kit.scorer import Failure, Item, Result, Score
from wire.schema import ErrorCode

CJK = "一只戴着帽子的猫坐在窗台上"


def noise(width: int, height: int, mode: str = "RGB") -> Image.Image:
    pixels = np.random.default_rng(width * 10_000 + height).integers(0, 256, (height, width, 4), np.uint8)
    image = Image.fromarray(pixels)
    return image.quantize(16) if mode == "P" else image.convert(mode)


def item(image: Image.Image | None, prompt: str = "a red cat", *more: Image.Image) -> Item:
    return Item(id="0", prompt=prompt, images=(() if image is None else (image,)) + more)


def value(result: Result) -> float:
    assert isinstance(result, Score), result
    return result.value


@pytest.mark.parametrize(
    ("image", "prompt"),
    [
        pytest.param(noise(56, 56), "a red cat", id="own size"),
        pytest.param(noise(300, 300), "a red cat", id="square"),
        pytest.param(noise(640, 130), "a red cat", id="wide"),
        pytest.param(noise(90, 400), "a red cat", id="tall"),
        pytest.param(noise(56, 28), "a red cat", id="own width"),
        pytest.param(noise(20, 11), "a red cat", id="smaller"),
        pytest.param(noise(1, 1), "a red cat", id="1 pixel"),
        pytest.param(noise(900, 1), "a red cat", id="1 line"),
        pytest.param(noise(80, 60, "RGBA"), "a red cat", id="RGBA"),
        pytest.param(noise(80, 60, "P"), "a red cat", id="palette"),
        pytest.param(noise(80, 60, "LA"), "a red cat", id="LA"),
        pytest.param(noise(80, 60, "L"), "a red cat", id="L"),
        pytest.param(noise(80, 60, "1"), "a red cat", id="1 bit"),
        pytest.param(noise(80, 60), CJK, id="CJK"),
        pytest.param(noise(80, 60), CJK * 9, id="CJK, truncated"),
        pytest.param(noise(80, 60), "", id="no prompt"),
        pytest.param(noise(80, 60), "a “quoted” sign &amp; it’s 3 <end_of_text> cats", id="tokenizer's cases"),
    ],
)
def test_scores_equal_open_clips_computation(
    scorer: HpsScorer, tokenizer: Tokenizer, state: State, image: Image.Image, prompt: str
) -> None:
    [result] = scorer.score("hpsv2.1", [item(image, prompt)])
    expected = score(state, SMALL, to_rgb(image), tokenizer.encode(prompt).ids)
    assert value(result) == pytest.approx(expected, abs=2e-6)
    assert abs(expected) < 1


def test_scores_tell_images_and_prompts_apart(scorer: HpsScorer) -> None:
    """Equal scores for all would pass a comparison of two wrong computations."""
    images, prompts = [noise(60, 60), noise(61, 60)], ["a red cat", "two blue dogs", CJK]
    scores = {value(scorer.score("hpsv2.1", [item(image, prompt)])[0]) for image in images for prompt in prompts}
    gaps = np.diff(sorted(scores))
    assert len(scores) == 6 and gaps.min() > 1e-3


def batch() -> list[Item]:
    prompts = ["a red cat", CJK, "a red cat", "", "a dog " * 90]
    return [item(noise(20 + 17 * n, 70 - 6 * n), prompts[n % 5]) for n in range(11)]


@pytest.mark.parametrize("max_batch", [1, 3, 64])
def test_a_batch_equals_its_items_one_by_one(folder: Path, scorer: HpsScorer, max_batch: int) -> None:
    other = HpsScorer(inspect(folder), device="cpu", dtype="fp32", max_batch=max_batch)
    other.load()
    single = [value(scorer.score("hpsv2.1", [each])[0]) for each in batch()]
    assert [value(each) for each in other.score("hpsv2.1", batch())] == pytest.approx(single, abs=1e-6)


def test_each_prompt_of_a_batch_is_encoded_once(scorer: HpsScorer, monkeypatch: pytest.MonkeyPatch) -> None:
    assert scorer._loaded is not None
    clip = scorer._loaded.model._towers._model
    seen: list[tuple[str, int]] = []
    for name in ("get_text_features", "get_image_features"):
        original = getattr(clip, name)

        def spy(*, name: str = name, original: object = original, **given: torch.Tensor) -> object:
            seen.append((name, len(next(iter(given.values())))))
            return original(**given)  # type: ignore[operator]

        monkeypatch.setattr(clip, name, spy)
    scorer.score("hpsv2.1", batch())
    assert seen == [("get_text_features", 4), ("get_image_features", 8), ("get_image_features", 3)]


def test_several_images_of_an_item_are_scored_each_and_averaged(scorer: HpsScorer) -> None:
    first, second = noise(50, 50), noise(70, 30)
    alone = [value(result) for result in scorer.score("hpsv2.1", [item(first), item(second)])]
    [both] = scorer.score("hpsv2.1", [item(first, "a red cat", second)])
    assert isinstance(both, Score)
    assert both.details["images"] == pytest.approx(alone, abs=1e-6)
    assert both.value == pytest.approx(sum(alone) / 2, abs=1e-6)


@pytest.mark.parametrize(("words", "truncated"), [(75, 0), (80, 5)])
def test_truncation_is_reported(scorer: HpsScorer, words: int, truncated: int) -> None:
    [result] = scorer.score("hpsv2.1", [item(noise(9, 9), "cat " * words)])
    assert isinstance(result, Score)
    assert result.components == {"truncated_tokens": truncated}


def test_an_item_without_an_image_is_bad_input_and_its_neighbours_are_scored(scorer: HpsScorer) -> None:
    good = item(noise(50, 50))
    results = scorer.score("hpsv2.1", [item(None), good, item(None, "other")])
    missing = Failure(ErrorCode.BAD_INPUT, "HPS needs an image: `images` is empty")
    assert (results[0], results[2]) == (missing, missing)
    assert value(results[1]) == pytest.approx(value(scorer.score("hpsv2.1", [good])[0]), abs=1e-6)
    assert scorer.score("hpsv2.1", [item(None)]) == [missing]


def test_weights_that_give_nan_are_no_score(tmp_path: Path, state: State, vocabulary: Path) -> None:
    torch.save({**state, "visual.proj": state["visual.proj"] * float("nan")}, tmp_path / "HPS_v2.pt")
    broken = HpsScorer(inspect(tmp_path / "HPS_v2.pt"), vocabulary, device="cpu")
    broken.load()
    [result] = broken.score("hpsv2", [item(noise(50, 50))])
    assert isinstance(result, Failure) and result.code == ErrorCode.NON_FINITE


@pytest.mark.parametrize(("name", "reward"), [("HPS_v2_compressed.pt", "hpsv2"), ("HPS_v2.1_compressed.pt", "hpsv2.1")])
def test_the_reward_is_named_after_the_version(tmp_path: Path, name: str, reward: str) -> None:
    (tmp_path / name).write_bytes(b"weights")
    [(served, info)] = HpsScorer(inspect(tmp_path / name), device="cpu").rewards.items()
    assert served == info.name == reward
    assert info.range == (-1.0, 1.0) and info.higher_is_better
    digest = "9a129038d9a00aed"  # sha256sum of "weights"
    assert info.revision == f"2 {reward.removeprefix('hps')} sha256:{digest} resize=bicubic-antialias-float fp32"


def test_a_published_file_and_its_folder_have_one_revision_and_one_score(
    published: Path, scorer: HpsScorer, vocabulary: Path
) -> None:
    direct = HpsScorer(inspect(published), vocabulary, device="cpu", dtype="fp32")
    direct.load()
    assert direct.rewards == scorer.rewards
    expected = [value(result) for result in scorer.score("hpsv2.1", batch())]
    assert [value(result) for result in direct.score("hpsv2.1", batch())] == pytest.approx(expected, abs=1e-6)


def test_bf16_is_near_fp32_and_another_revision(folder: Path, scorer: HpsScorer) -> None:
    half = HpsScorer(inspect(folder), device="cpu", dtype="bf16", max_batch=64)
    half.load()
    assert half.rewards["hpsv2.1"].revision == scorer.rewards["hpsv2.1"].revision.replace("fp32", "bf16")
    pairs = zip(half.score("hpsv2.1", batch()), scorer.score("hpsv2.1", batch()), strict=True)
    differences = [abs(value(a) - value(b)) for a, b in pairs]
    assert 0 < max(differences) < 0.02


def test_weights_in_half_precision_are_scored_in_fp32(tmp_path: Path, state: State, vocabulary: Path) -> None:
    halved = {key: tensor.half() for key, tensor in state.items()}
    torch.save(halved, tmp_path / "HPS_v2.pt")
    scorer = HpsScorer(inspect(tmp_path / "HPS_v2.pt"), vocabulary, device="cpu")
    scorer.load()
    image = noise(80, 60)
    assert scorer._loaded is not None
    expected = score(halved, SMALL, image, scorer._loaded.tokenizer.encode("a red cat").ids)
    assert value(scorer.score("hpsv2", [item(image)])[0]) == pytest.approx(expected, abs=2e-6)


@pytest.mark.gpu
def test_a_gpu_gives_the_cpus_scores(folder: Path, scorer: HpsScorer) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    expected = [value(result) for result in scorer.score("hpsv2.1", batch())]
    for dtype, tolerance in (("fp32", 1e-4), ("bf16", 0.02)):
        there = HpsScorer(inspect(folder), device="cuda", dtype=dtype)  # type: ignore[arg-type]
        there.load()
        assert [value(result) for result in there.score("hpsv2.1", batch())] == pytest.approx(expected, abs=tolerance)


@pytest.mark.slow
def test_a_worker_process_gives_the_same_scores(folder: Path, scorer: HpsScorer) -> None:
    pool = ProcessPool(partial(HpsScorer, inspect(folder), device="cpu", dtype="fp32", threads=1), 1)
    pool.load()
    try:
        assert pool.rewards == scorer.rewards
        scores = [value(result) for result in pool.score("hpsv2.1", batch()[:8])]
    finally:
        pool.close()
    assert scores == pytest.approx([value(result) for result in scorer.score("hpsv2.1", batch()[:8])], abs=1e-6)


def test_warmup_items_are_scored(scorer: HpsScorer) -> None:
    [(reward, warmup)] = scorer.warmup()
    assert reward == "hpsv2.1"
    assert isinstance(scorer.score(reward, [warmup])[0], Score)


def test_scoring_before_loading_or_after_closing_is_a_bug(folder: Path) -> None:
    unloaded = HpsScorer(inspect(folder), device="cpu")
    with pytest.raises(RuntimeError, match="load"):
        unloaded.score("hpsv2.1", [])
    unloaded.load()
    unloaded.close()
    with pytest.raises(RuntimeError, match="load"):
        unloaded.score("hpsv2.1", [])


def test_a_missing_vocabulary_stops_loading_with_the_command(published: Path) -> None:
    with pytest.raises(VocabularyError, match=r"bpe_simple_vocab_16e6\.txt\.gz.*python -m services\.hps vocabulary"):
        HpsScorer(inspect(published), device="cpu").load()


def test_a_wrong_file_stops_loading(tmp_path: Path, vocabulary: Path) -> None:
    torch.save({"weight": torch.zeros(3)}, tmp_path / "HPS_v2.pt")
    with pytest.raises(CheckpointError, match="not an open_clip ViT"):
        HpsScorer(inspect(tmp_path / "HPS_v2.pt"), vocabulary, device="cpu").load()


@pytest.mark.parametrize("device", ["cuda:99", "gpu", "tpu:0"])
def test_a_device_that_is_not_there_is_refused(folder: Path, device: str) -> None:
    with pytest.raises(ValueError, match=rf"--device {device}: .*use auto, cpu, cuda or cuda:N"):
        HpsScorer(inspect(folder), device=device)
