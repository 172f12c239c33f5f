"""ImageReward against its published computation written a second time, and what it promises about files and failures."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
from PIL import Image

from services.imagereward.scorer import ImageRewardScorer
from services.kit.models.pixels import to_rgb
from services.kit.models.sources import SourceError, inspect_file
from services.kit.scorer import Failure, Item, Result, Score
from tests.support.service_process import ready_service
from tests.support.tiny_imagereward import WORDS, State, plain_score, random_state, write_vocabulary
from wire.images import to_ref
from wire.schema import ErrorCode


@pytest.fixture(scope="module")
def state() -> State:
    return random_state(seed=0)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory, state: State) -> Path:
    path = tmp_path_factory.mktemp("imagereward") / "ImageReward.pt"
    torch.save(state, path)
    return path


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_vocabulary(tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="module")
def scorer(published: Path, vocabulary: Path) -> ImageRewardScorer:
    made = ImageRewardScorer(inspect_file(published, "--weights"), vocabulary, device="cpu", dtype="fp32")
    made.load()
    return made


def noise(width: int, height: int, mode: str = "RGB") -> Image.Image:
    pixels = np.random.default_rng(width * 10_000 + height).integers(0, 256, (height, width, 4), np.uint8)
    image = Image.fromarray(pixels)
    return image.quantize(16) if mode == "P" else image.convert(mode)


def item(*images: Image.Image, prompt: str = "a red cat") -> Item:
    return Item("0", prompt, images)


def value(result: Result) -> float:
    assert isinstance(result, Score), result
    return result.value


def ids(prompt: str) -> list[int]:
    """BERT's tokens of words that are whole in the vocabulary."""
    found = [WORDS.index(word) if word in WORDS else 1 for word in prompt.lower().split()]
    return [2, *found[:33], 3]


@pytest.mark.parametrize(
    ("image", "prompt"),
    [
        pytest.param(noise(32, 32), "a red cat", id="own size"),
        pytest.param(noise(300, 300), "a red cat", id="square"),
        pytest.param(noise(200, 91), "a red cat", id="wide, an odd rest"),
        pytest.param(noise(45, 170), "A Red CAT", id="tall"),
        pytest.param(noise(20, 11), "dog", id="smaller"),
        pytest.param(noise(1, 1), "dog", id="1 pixel"),
        pytest.param(noise(80, 60, "RGBA"), "two unknown", id="RGBA"),
        pytest.param(noise(80, 60, "P"), "a", id="palette"),
        pytest.param(noise(80, 60, "L"), "a", id="L"),
        pytest.param(noise(80, 60), "", id="no prompt"),
        pytest.param(noise(80, 60), "a cat of two " * 20, id="a long prompt"),
    ],
)
def test_scores_equal_the_published_computation(
    scorer: ImageRewardScorer, state: State, image: Image.Image, prompt: str
) -> None:
    [result] = scorer.score("imagereward", [item(image, prompt=prompt)])
    assert value(result) == pytest.approx(plain_score(state, to_rgb(image), ids(prompt)), abs=1e-5)
    assert isinstance(result, Score)
    assert result.components["raw"] == pytest.approx(result.value * 1.0333394966054072 + 0.16717362830052426)
    assert result.components["truncated_tokens"] == max(len(prompt.split()) - 33, 0)


def test_scores_tell_images_and_prompts_apart(scorer: ImageRewardScorer) -> None:
    prompts = ["a red cat", "two dog", ""]
    items = [item(image, prompt=prompt) for image in (noise(60, 60), noise(61, 60)) for prompt in prompts]
    assert np.diff(sorted(map(value, scorer.score("imagereward", items)))).min() > 1e-3


@pytest.mark.parametrize("max_batch", [1, 3, 64])
def test_a_batch_equals_its_items_one_by_one(
    published: Path, vocabulary: Path, scorer: ImageRewardScorer, max_batch: int
) -> None:
    other = ImageRewardScorer(
        inspect_file(published, "--weights"), vocabulary, device="cpu", dtype="fp32", max_batch=max_batch
    )
    other.load()
    prompts = ["a red cat", "dog", "", "a " * 50]
    items = [item(noise(20 + 17 * n, 70 - 6 * n), prompt=prompts[n % 4]) for n in range(7)]
    single = [value(scorer.score("imagereward", [each])[0]) for each in items]
    assert [value(each) for each in other.score("imagereward", items)] == pytest.approx(single, abs=1e-5)


def test_several_images_are_averaged_and_none_is_no_score(scorer: ImageRewardScorer) -> None:
    first, second = noise(50, 50), noise(70, 30)
    alone = [value(result) for result in scorer.score("imagereward", [item(first), item(second)])]
    both, none = scorer.score("imagereward", [item(first, second), item()])
    assert isinstance(both, Score) and both.value == pytest.approx(sum(alone) / 2, abs=1e-6)
    assert both.details["images"] == pytest.approx(alone, abs=1e-6)
    assert isinstance(none, Failure) and none.code is ErrorCode.BAD_INPUT


def test_a_long_strip_is_scored_by_its_middle(scorer: ImageRewardScorer) -> None:
    """Scaled whole, 1 x 60,000 pixels would be 32 x 1,920,000."""
    assert np.isfinite(value(scorer.score("imagereward", [item(noise(1, 60_000))])[0]))


def test_damaged_weights_are_not_a_score(state: State, vocabulary: Path, tmp_path: Path) -> None:
    path = tmp_path / "nan.pt"
    torch.save(state | {"mlp.layers.7.bias": torch.tensor([float("nan")])}, path)
    broken = ImageRewardScorer(inspect_file(path, "--weights"), vocabulary, device="cpu", dtype="fp32")
    broken.load()
    [result] = broken.score("imagereward", [item(noise(9, 9))])
    assert isinstance(result, Failure) and result.code is ErrorCode.NON_FINITE


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"blip.text_encoder.encoder.layer.1.output.dense.bias": None}, "are missing or of another shape"),
        ({"blip.visual_encoder.cls_token": None}, "there is no 'embeddings.class_embedding'"),
        ({"other.weight": torch.zeros(1)}, "1 keys are not ImageReward's, such as 'other.weight'"),
        ({"mlp.layers.7.bias": None}, "has the keys"),
    ],
)
def test_another_models_weights_are_refused(
    state: State, vocabulary: Path, tmp_path: Path, change: dict[str, torch.Tensor | None], sentence: str
) -> None:
    changed = {key: value for key, value in (state | change).items() if value is not None}
    torch.save(changed, tmp_path / "other.pt")
    scorer = ImageRewardScorer(inspect_file(tmp_path / "other.pt", "--weights"), vocabulary, device="cpu")
    with pytest.raises(SourceError, match=sentence):
        scorer.load()


def test_another_vocabulary_is_refused(published: Path, tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("\n".join([*WORDS, *(f"word{n}" for n in range(50))]))
    scorer = ImageRewardScorer(inspect_file(published, "--weights"), tmp_path, device="cpu")
    with pytest.raises(SourceError, match="has 63 words, the model 15"):
        scorer.load()


@pytest.mark.slow  # tests/services/kit/test_whole_services.py serves it in every run
def test_the_command_converts_and_serves(published: Path, vocabulary: Path, state: State, tmp_path: Path) -> None:
    out = tmp_path / "imagereward.safetensors"
    command = [sys.executable, "-m", "services.imagereward", "convert", str(published), str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0 and "parameters, from" in done.stdout, done.stderr
    flags = ("--device", "cpu", "--threads", "1", "--weights", out, "--tokenizer", vocabulary)
    image = noise(40, 60)
    with ready_service("imagereward", *flags) as url:
        reference = to_ref(image, "image/png").model_dump(exclude_none=True)
        body = {"items": [{"id": "0", "prompt": "a red cat", "images": [reference]}]}
        [result] = httpx.post(f"{url}/v1/score", json=body, timeout=300).json()["results"]
    assert result["score"] == pytest.approx(plain_score(state, image, ids("a red cat")), abs=1e-5)
