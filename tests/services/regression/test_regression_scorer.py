"""HPSv3's and EditReward's recipes on small random weights, against the computation written out, and what is refused."""

from __future__ import annotations

from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from services.kit.models.pixels import to_rgb
from services.kit.models.sources import SourceError, inspect_file
from services.kit.scorer import Failure, Item, Result, Score
from services.regression.inputs import resize
from services.regression.recipe import RECIPES, Recipe, RecipeError, read_recipe
from services.regression.scorer import RegressionScorer
from tests.support.service_process import ready_service
from tests.support.tiny_reward_vlm import PIXELS, REWARD, TEMPLATE, State, plain_number, random_state, write_backbone
from wire.images import to_ref
from wire.schema import ErrorCode

HPSV3 = RECIPES["hpsv3"].model_copy(update={"pixels": PIXELS})
EDIT = RECIPES["editreward"].model_copy(update={"pixels": PIXELS})


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_backbone(tmp_path_factory.mktemp("qwen2vl") / "tiny-qwen2-vl")


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("template") / "text.txt"
    path.write_text(TEMPLATE)
    return path


@pytest.fixture(scope="module")
def state(backbone: Path) -> State:
    return random_state(backbone, 0, ["rm_head"])


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory, state: State) -> Path:
    path = tmp_path_factory.mktemp("weights") / "HPSv3.safetensors"
    save_file({key: value.contiguous() for key, value in state.items()}, path)
    return path


def load(
    recipe: Recipe, backbone: Path, weights: Path, *templates: Path, max_batch: int | None = None
) -> RegressionScorer:
    scorer = RegressionScorer(
        recipe, backbone, inspect_file(weights, "--weights"), templates, device="cpu", dtype="fp32", max_batch=max_batch
    )
    scorer.load()
    return scorer


@pytest.fixture(scope="module")
def scorer(backbone: Path, weights: Path, template: Path) -> RegressionScorer:
    return load(HPSV3, backbone, weights, template)


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(width * 1000 + height).integers(0, 256, (height, width, 3), np.uint8))


def item(*images: Image.Image, prompt: str = "a cat", source: Image.Image | None = None) -> Item:
    return Item("0", prompt, images, source_images=(source,) if source else ())


def value(result: Result) -> float:
    assert isinstance(result, Score), result
    return result.value


@pytest.mark.parametrize(("width", "height"), [(32, 32), (64, 16), (16, 64)])
@pytest.mark.parametrize("prompt", ["a cat", "", "two dogs and a long sentence behind them"])
def test_scores_equal_the_computation_written_out(
    scorer: RegressionScorer, state: State, backbone: Path, width: int, height: int, prompt: str
) -> None:
    image = noise(width, height)
    [found] = scorer.score("hpsv3", [item(image, prompt=prompt)])
    assert value(found) == pytest.approx(plain_number(state, backbone, image, prompt), abs=1e-5)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "L", "P", "1"])
def test_images_of_every_mode_are_scored_as_their_colours(scorer: RegressionScorer, mode: str) -> None:
    image = noise(40, 30)
    image = image.quantize(16) if mode == "P" else image.convert(mode)
    [found], [plain] = scorer.score("hpsv3", [item(image)]), scorer.score("hpsv3", [item(to_rgb(image))])
    assert value(found) == value(plain)


def test_scores_tell_images_and_prompts_apart(scorer: RegressionScorer) -> None:
    items = [item(noise(32 + n, 32), prompt=prompt) for n in range(2) for prompt in ("a", "b", "c c c")]
    assert np.diff(sorted(map(value, scorer.score("hpsv3", items)))).min() > 1e-4


def test_a_batch_equals_its_images_one_by_one(
    scorer: RegressionScorer, backbone: Path, weights: Path, template: Path
) -> None:
    images = [noise(32, 32), noise(90, 20), noise(20, 90), noise(7, 5)]
    alone = [value(scorer.score("hpsv3", [item(image)])[0]) for image in images]
    together = load(HPSV3, backbone, weights, template, max_batch=8).score("hpsv3", [item(*images)])[0]
    assert isinstance(together, Score)
    assert together.details["images"] == pytest.approx(alone, abs=1e-5)
    assert together.value == pytest.approx(sum(alone) / 4, abs=1e-5)


def test_keys_of_todays_release_are_read_too(
    scorer: RegressionScorer, backbone: Path, template: Path, tmp_path: Path
) -> None:
    new = random_state(backbone, 0, ["rm_head"], old_keys=False)
    torch.save({"model": new}, tmp_path / "model.pth")
    again = load(HPSV3, backbone, tmp_path / "model.pth", template)
    image = item(noise(40, 30))
    assert value(again.score("hpsv3", [image])[0]) == pytest.approx(value(scorer.score("hpsv3", [image])[0]), abs=1e-6)


def test_an_edit_goes_through_two_heads_with_a_text_each(backbone: Path, template: Path, tmp_path: Path) -> None:
    """EditReward: the source, then the edit; the model's own positions; the mean of both heads' first numbers."""
    from transformers import Qwen2VLForConditionalGeneration

    state = random_state(backbone, 1, EDIT.heads, old_keys=False)
    torch.save(state, tmp_path / "model.pth")
    other = tmp_path / "other.txt"
    other.write_text("Quality of {prompt}?" + REWARD)
    scorer = load(EDIT, backbone, tmp_path / "model.pth", template, other)
    source, edited = noise(32, 32), noise(16, 64)
    [found] = scorer.score("editreward", [item(edited, source=source)])
    assert isinstance(found, Score) and scorer._model is not None
    maker = scorer._model.inputs
    config = scorer._model._model.config
    model = Qwen2VLForConditionalGeneration(Qwen2VLForConditionalGeneration.config_class(**config.to_dict()))
    model.load_state_dict({key: value for key, value in state.items() if not key.startswith("rm_heads")})
    expected = []
    for head, text in zip(
        EDIT.heads, [TEMPLATE.replace("{text_prompt}", "a cat"), "Quality of a cat?" + REWARD], strict=True
    ):
        given = maker.make([source, edited], text, PIXELS)
        with torch.no_grad():
            hidden = model.train(False).model(
                input_ids=given.ids[None],
                pixel_values=given.pixels,
                image_grid_thw=given.grids,
                mm_token_type_ids=given.kinds[None],
            )
        row = hidden.last_hidden_state[0, given.ids == maker.added_id][0]
        for number in (0, 3, 5):
            row = state[f"{head}.{number}.weight"] @ row + state[f"{head}.{number}.bias"]
            row = row.relu() if number != 5 else row
        expected.append(float(row[0]))
    assert [found.components["pass_0"], found.components["pass_1"]] == pytest.approx(expected, abs=1e-5)
    assert found.value == pytest.approx(sum(expected) / 2, abs=1e-5)
    [none] = scorer.score("editreward", [item(edited)])
    assert isinstance(none, Failure) and none.code is ErrorCode.NOT_APPLICABLE


@pytest.mark.parametrize(
    ("size", "pixels", "expected"),
    [
        ((1024, 1024), 256 * 28 * 28, (448, 448)),
        ((512, 512), 256 * 28 * 28, (448, 448)),
        ((1920, 1080), 256 * 28 * 28, (588, 336)),
        ((100, 300), 256 * 28 * 28, (280, 784)),
        ((28, 28), 28 * 28, (28, 28)),
    ],
)
def test_images_are_scaled_as_the_models_own_tools_do(
    size: tuple[int, int], pixels: int, expected: tuple[int, int]
) -> None:
    assert resize(Image.new("RGB", size), 28, pixels).size == expected


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (item(), "needs an image"),
        (item(noise(3, 900)), "one side may be at most 200 times the other"),
        (item(noise(32, 32), prompt=f"a {REWARD}"), "is 2 times in the text; it must be there once"),
        (item(noise(32, 32), prompt="a <|image_pad|>"), "take it out of the prompt"),
    ],
)
def test_what_cannot_be_scored_has_a_sentence(scorer: RegressionScorer, given: Item, sentence: str) -> None:
    [result] = scorer.score("hpsv3", [given])
    assert isinstance(result, Failure) and result.code is ErrorCode.BAD_INPUT and sentence in result.message


def test_wrong_templates_are_refused(backbone: Path, weights: Path, template: Path, tmp_path: Path) -> None:
    source = inspect_file(weights, "--weights")
    with pytest.raises(SourceError, match="has 1 passes and 2 --templates are given"):
        RegressionScorer(HPSV3, backbone, source, [template, template], device="cpu")
    (tmp_path / "a.txt").write_text("no place " + REWARD)
    with pytest.raises(SourceError, match=r"\{prompt\} is 0 times in it"):
        RegressionScorer(HPSV3, backbone, source, [tmp_path / "a.txt"], device="cpu")
    (tmp_path / "b.txt").write_text("{prompt}")
    with pytest.raises(SourceError, match=r"<\|Reward\|> is 0 times in it"):
        RegressionScorer(HPSV3, backbone, source, [tmp_path / "b.txt"], device="cpu")


def test_weights_without_the_head_or_of_another_size_are_refused(
    backbone: Path, state: State, template: Path, tmp_path: Path
) -> None:
    save_file(
        {key: value.contiguous() for key, value in state.items() if "rm_head" not in key}, tmp_path / "bare.safetensors"
    )
    with pytest.raises(SourceError, match="there is no head rm_head"):
        load(HPSV3, backbone, tmp_path / "bare.safetensors", template)
    less = {key: value.contiguous() for key, value in state.items() if key != "model.norm.weight"}
    save_file(less, tmp_path / "less.safetensors")
    with pytest.raises(SourceError, match="do not fit"):
        load(HPSV3, backbone, tmp_path / "less.safetensors", template)
    with pytest.raises(SourceError, match="output 7 is none"):
        save_file({key: value.contiguous() for key, value in state.items()}, tmp_path / "all.safetensors")
        load(HPSV3.model_copy(update={"output": 7}), backbone, tmp_path / "all.safetensors", template)


def test_a_recipe_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("name: mine\nheads: [score]\nreward_token: null\ncombine: min\n")
    assert read_recipe(str(path)) == Recipe(name="mine", heads=("score",), reward_token=None, combine="min")
    path.write_text("name: mine\nhead: [score]\n")
    with pytest.raises(RecipeError, match=r"mine.yaml: head: Extra inputs"):
        read_recipe(str(path))
    with pytest.raises(RecipeError, match="none of hpsv3, editreward, nor a YAML file"):
        read_recipe("hpsv4")


@pytest.mark.slow
def test_the_process_serves_a_recipe(
    backbone: Path, weights: Path, template: Path, state: State, tmp_path: Path
) -> None:
    recipe = tmp_path / "small.yaml"
    recipe.write_text(f"name: small\npositions: sequential\npixels: {PIXELS}\n")
    flags = ("--device", "cpu", "--threads", "1", "--recipe", recipe, "--backbone", backbone)
    image = noise(32, 32)
    with ready_service("regression", *flags, "--weights", weights, "--templates", template) as url:
        [info] = httpx.get(f"{url}/v1/info", timeout=30).json()["rewards"]
        reference = to_ref(image, "image/png").model_dump(exclude_none=True)
        body = {"items": [{"id": "0", "prompt": "a cat", "images": [reference]}]}
        [result] = httpx.post(f"{url}/v1/score", json=body, timeout=300).json()["results"]
    assert info["name"] == "small" and info["range"] == [None, None] and len(info["template_sha256"]) == 64
    assert result["score"] == pytest.approx(plain_number(state, backbone, image, "a cat"), abs=1e-5)
