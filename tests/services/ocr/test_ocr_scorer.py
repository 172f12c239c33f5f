"""The scorer with the real engine, without HTTP."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pytest
from PIL import Image, ImageDraw, ImageFont

from services.kit.scorer import Failure, Item, Score, Scorer
from services.ocr.engines import ENGINES, EngineOptions, Line
from services.ocr.scorer import OcrScorer
from services.ocr.scoring import MAX_TARGETS
from wire.schema import ErrorCode

REWARDS = ("multi", "flow_grpo", "strict", "deepgen_new")


def line_of(text: str) -> Image.Image:
    image = Image.new("RGB", (192, 48), "white")
    ImageDraw.Draw(image).text((96, 24), text, font=ImageFont.load_default(32), fill="black", anchor="mm")
    return image


def item(prompt: str, *images: Image.Image, targets: tuple[str, ...] | None = None) -> Item:
    return Item(id="i", prompt=prompt, images=images, targets=targets)


@pytest.fixture(scope="module")
def scorer() -> Scorer:
    made = OcrScorer("rapidocr", EngineOptions(mode="line"))
    made.load()
    return made


def score_of(scorer: Scorer, reward: str, one: Item) -> Score:
    [result] = scorer.score(reward, [one])
    assert isinstance(result, Score), result
    return result


def failure_of(scorer: Scorer, reward: str, one: Item) -> Failure:
    [result] = scorer.score(reward, [one])
    assert isinstance(result, Failure), result
    return result


@pytest.mark.parametrize("reward", REWARDS)
def test_a_right_image_scores_one_and_says_what_was_read(scorer: Scorer, reward: str) -> None:
    score = score_of(scorer, reward, item('a sign "OPEN"', line_of("OPEN")))
    assert score.value == 1.0
    assert score.components == {"exact": 1.0, "extra_text": 0.0, "similarity_0": 1.0}
    details = json.loads(json.dumps(score.details))
    assert details["targets"] == ["OPEN"]
    [image] = details["images"]
    assert image["score"] == 1.0
    [line] = image["lines"]
    assert line["text"] == "OPEN"
    assert 0.9 < line["confidence"] <= 1.0
    assert line["box"] == [[0, 0], [192, 0], [192, 48], [0, 48]]


@pytest.mark.parametrize("reward", REWARDS)
def test_a_wrong_image_scores_its_similarity(scorer: Scorer, reward: str) -> None:
    score = score_of(scorer, reward, item('a sign "OPEN"', line_of("OVEN")))
    assert score.value == 0.75
    assert score.components["exact"] == 0.0


@pytest.mark.parametrize("reward", REWARDS)
def test_an_image_without_text_scores_zero(scorer: Scorer, reward: str) -> None:
    score = score_of(scorer, reward, item('a sign "OPEN"', Image.new("RGB", (96, 48), "white")))
    assert score.value == 0.0
    assert score.details["images"] == [{"score": 0.0, "lines": []}]


def test_explicit_targets_win(scorer: Scorer) -> None:
    assert score_of(scorer, "multi", item('a sign "OPEN"', line_of("SHUT"), targets=("SHUT",))).value == 1.0


def test_several_images_get_their_mean(scorer: Scorer) -> None:
    score = score_of(scorer, "multi", item('"OPEN" "24"', line_of("OPEN 24"), line_of("OPEN")))
    # The second image misses 2 of 6 characters.
    assert score.value == pytest.approx((1 + 4 / 6) / 2)
    assert score.components["similarity_0"] == 1.0
    assert score.components["similarity_1"] == 0.5
    assert score.components["exact"] == 0.5
    images = score.details["images"]
    assert isinstance(images, list) and len(images) == 2


@pytest.mark.parametrize("reward", REWARDS)
@pytest.mark.parametrize(("prompt", "targets"), [("a plain prompt", None), ('""', None), ('"x"', ()), ("", (" ",))])
def test_nothing_to_look_for_is_not_applicable(
    scorer: Scorer, reward: str, prompt: str, targets: tuple[str, ...] | None
) -> None:
    assert failure_of(scorer, reward, item(prompt, line_of("OPEN"), targets=targets)).code is ErrorCode.NOT_APPLICABLE


def test_a_target_without_letters_is_not_applicable(scorer: Scorer) -> None:
    failure = failure_of(scorer, "multi", item("", line_of("OPEN"), targets=("?!",)))
    assert failure.code is ErrorCode.NOT_APPLICABLE
    assert "?!" in failure.message


def test_no_image_and_too_many_targets_are_bad_input(scorer: Scorer) -> None:
    failure = failure_of(scorer, "multi", Item(id="i", prompt='"x"', completion="x"))
    assert failure.code is ErrorCode.BAD_INPUT
    assert "images" in failure.message
    many = tuple(str(number) for number in range(MAX_TARGETS + 1))
    assert failure_of(scorer, "multi", item("", line_of("1"), targets=many)).code is ErrorCode.BAD_INPUT


class _FailsOnSquares:
    """Raises for square images, reads OPEN in all others."""

    def __init__(self, options: EngineOptions) -> None:
        self.revision = "fails-on-squares-1"
        self.characters = None

    def load(self) -> None:
        pass

    def read(self, images: Sequence[Image.Image]) -> list[list[Line]]:
        if any(image.width == image.height for image in images):
            raise MemoryError("no room for a square")
        return [[Line("OPEN", 1.0, ((0, 0), (1, 0), (1, 1), (0, 1)))] for _ in images]


def test_an_engine_error_is_that_items_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ENGINES, "fails_on_squares", _FailsOnSquares)
    scorer = OcrScorer("fails_on_squares")
    square, wide = Image.new("RGB", (32, 32)), Image.new("RGB", (64, 32))
    results = scorer.score("multi", [item('"OPEN"', wide), item('"OPEN"', wide, square), item('"OPEN"', wide)])
    assert [type(result) for result in results] == [Score, Failure, Score]
    failure = results[1]
    assert isinstance(failure, Failure)
    assert failure.code is ErrorCode.INTERNAL
    assert "32x32" in failure.message and "no room for a square" in failure.message


def test_names_ranges_and_revisions() -> None:
    scorer = OcrScorer("rapidocr", EngineOptions(mode="line"), default_reward="strict")
    assert next(iter(scorer.rewards)) == "strict"
    assert set(scorer.rewards) == set(REWARDS)
    for name, info in scorer.rewards.items():
        assert (info.name, info.range, info.higher_is_better) == (name, (0.0, 1.0), True)
        assert "rapidocr-" in info.revision and " line" in info.revision
    assert next(iter(OcrScorer().rewards)) == "multi"
    other = OcrScorer("rapidocr", EngineOptions(mode="line"), case="insensitive")
    assert other.rewards["multi"].revision != scorer.rewards["multi"].revision


def test_the_case_setting_reaches_the_score() -> None:
    scorer = OcrScorer("rapidocr", EngineOptions(mode="line"), case="insensitive")
    scorer.load()
    assert score_of(scorer, "multi", item('"open"', line_of("OPEN"))).value == 1.0


@pytest.mark.parametrize("mode", ["line", "page"])
def test_the_warm_up_item_is_read(mode: str) -> None:
    scorer = OcrScorer("rapidocr", EngineOptions(mode=mode))  # type: ignore[arg-type]
    scorer.load()
    [(reward, one)] = scorer.warmup()
    assert reward == "multi"
    assert score_of(scorer, reward, one).value == 1.0
    scorer.close()
