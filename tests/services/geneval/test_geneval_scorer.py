"""The scorer: a detector's boxes and a CLIP's colours become scores with reasons, and what cannot be judged has none."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.shapes_detector import SHAPES, draw
from services.geneval.colors import ColorClassifier
from services.geneval.detector import Found
from services.geneval.scorer import GenevalScorer
from services.geneval.specification import COLORS
from services.kit.models.backbone import Backbone
from services.kit.models.sources import SourceError, inspect_folder
from services.kit.scorer import Failure, Item, Result, Score
from tests.support.tiny_clip import CONTEXT, PlainClip, spell, write_clip
from wire.schema import ErrorCode

DETECTOR = Path(__file__).with_name("shapes_detector")


class DetectorOfGivenBoxes:
    """Finds what it was told, and counts how often it was asked."""

    classes: frozenset[str] | None = frozenset({"dog", "cup"})

    def __init__(self, **boxes: Sequence[tuple[float, float, float, float, float]]) -> None:
        self._found = {name: [Found(box) for box in some] for name, some in boxes.items()}
        self.asked = 0

    def detect(self, image: Image.Image, names: Sequence[str]) -> dict[str, list[Found]]:
        self.asked += 1
        return {name: self._found.get(name, []) for name in names}


class RedEverything:
    """Calls every object red."""

    def classify(self, image: Image.Image, name: str, found: Sequence[Found]) -> list[str]:
        return ["red"] * len(found)


def value(result: Result) -> float:
    assert isinstance(result, Score), result
    return result.value


def wanted(tag: str, *include: dict[str, Any]) -> dict[str, Any]:
    return {"tag": tag, "include": list(include)}


def clause(name: str, count: int = 1, **more: Any) -> dict[str, Any]:
    return {"class": name, "count": count, **more}


def item(metadata: dict[str, Any], image: Image.Image | None = None) -> Item:
    return Item("0", "a prompt", (image or Image.new("RGB", (64, 64)),), metadata=metadata)


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clip") / "tiny-clip", seed=0)


@pytest.fixture(scope="module")
def shapes() -> GenevalScorer:
    """A real OWL-ViT, small, trained on drawn shapes by benchmarks/shapes_detector.py."""
    scorer = GenevalScorer(inspect_folder(DETECTOR, "--detector", ("owlvit",)), device="cpu", dtype="fp32")
    scorer.load()
    return scorer


@pytest.fixture
def told(shapes: GenevalScorer) -> GenevalScorer:
    scorer = GenevalScorer(shapes._sources[0], device="cpu", dtype="fp32")
    scorer._detector = DetectorOfGivenBoxes(
        dog=[(0, 0, 10, 10, 0.9)], cup=[(40, 0, 50, 10, 0.8), (40, 40, 50, 50, 0.4)]
    )
    return scorer


@pytest.mark.parametrize(
    ("names", "metadata", "right"),
    [
        (["circle"], wanted("single_object", clause("circle")), 1),
        (["square"], wanted("single_object", clause("circle")), 0),
        (["circle", "triangle"], wanted("two_object", clause("circle"), clause("triangle")), 1),
        (["circle", "circle", "circle"], wanted("two_object", clause("circle", 3)), 1),
        (["circle", "circle"], wanted("two_object", clause("circle", 3)), 0),
        ([], wanted("single_object", clause("square")), 0),
    ],
)
def test_drawn_shapes_are_found_by_a_real_detector(
    shapes: GenevalScorer, names: list[str], metadata: dict[str, Any], right: int
) -> None:
    images = [draw(seed, names)[0].resize((200, 200)) for seed in range(5)]
    scores = [value(each) for each in shapes.score("geneval", [item(metadata, image) for image in images])]
    assert sum(scores) >= 4 if right else sum(scores) <= 1, scores


def test_places_of_drawn_shapes_are_judged(shapes: GenevalScorer) -> None:
    for seed in range(20):
        image, drawn = draw(seed, ["circle", "square"])
        (_, circle), (_, square) = drawn
        if abs(circle[0] - square[0]) > 30 and abs(circle[1] - square[1]) < 15:
            break
    side = "left of" if circle[0] < square[0] else "right of"
    other = "right of" if side == "left of" else "left of"
    asked = [clause("square"), clause("circle", 1, position=[side, 0])]
    [score] = shapes.score("geneval", [item(wanted("position", *asked), image)])
    assert value(score) == 1
    asked[1] = clause("circle", 1, position=[other, 0])
    [wrong] = shapes.score("geneval", [item(wanted("position", *asked), image)])
    assert isinstance(wrong, Score) and wrong.value == 0
    assert f"expected circle {other} target, found" in str(wrong.details["clauses"])


def test_boxes_come_back_in_the_images_own_pixels(shapes: GenevalScorer) -> None:
    image, [(_, box)] = draw(3, ["square"])
    large = image.resize((640, 320))
    [score] = shapes.score("geneval", [item(wanted("single_object", clause("square")), large)])
    assert isinstance(score, Score)
    [placed] = score.details["images"][0]["objects"]  # type: ignore[index, call-overload]
    (x1, y1), _, (x2, y2), _ = placed["box"]
    expected = [box[0] * 10, box[1] * 5, (box[2] + 1) * 10, (box[3] + 1) * 5]
    assert [x1, y1, x2, y2] == pytest.approx(expected, abs=40)


def test_every_score_and_reason_of_an_image(told: GenevalScorer) -> None:
    metadata = wanted("two_object", clause("dog"), clause("cup", 1))
    marks = {name: value(told.score(name, [item(metadata)])[0]) for name in told.rewards if name != "gdino"}
    assert marks == {"geneval": 1, "geneval_strict": 0, "geneval_soft": 0.5, "geneval_soft_plain": 0.5}
    [score] = told.score("geneval", [item(metadata)])
    assert isinstance(score, Score)
    assert score.components == {"correct": 1, "strict": 0, "soft": 0.5, "soft_plain": 0.5}
    assert [each["reason"] for each in score.details["clauses"]] == ["", ""]  # type: ignore[index, call-overload, union-attr]


def test_an_image_is_looked_at_once_for_all_rewards(told: GenevalScorer) -> None:
    metadata = wanted("two_object", clause("dog"), clause("cup", 1))
    for name in ("geneval", "geneval_strict", "geneval_soft"):
        told.score(name, [item(metadata)])
    detector = told._detector
    assert isinstance(detector, DetectorOfGivenBoxes) and detector.asked == 1
    told.score("geneval", [item(metadata, Image.new("RGB", (64, 64), "red"))])
    assert detector.asked == 2


def test_t2i_r1s_gdino(told: GenevalScorer) -> None:
    metadata = {"task_type": "spatial", "spatial_info": {"obj1": "dog", "locality": "left of", "obj2": "cup"}}
    assert value(told.score("gdino", [item(metadata)])[0]) == pytest.approx(0.9)
    assert value(told.score("gdino", [item({"task_type": "attribute", "nouns": ["dog", "cup"]})])[0]) == 1


@pytest.mark.parametrize(
    ("reward", "metadata", "code", "sentence"),
    [
        ("geneval", {}, ErrorCode.NOT_APPLICABLE, "metadata has no include"),
        ("gdino", {}, ErrorCode.NOT_APPLICABLE, "metadata has no task_type"),
        ("gdino", {"task_type": "attribute", "nouns": []}, ErrorCode.NOT_APPLICABLE, "nothing to look for"),
        ("geneval", {"include": []}, ErrorCode.BAD_INPUT, "metadata.tag is None"),
        ("geneval", wanted("colors", clause("dog", 1, color="red")), ErrorCode.NOT_APPLICABLE, "without --clip"),
        ("geneval", wanted("x", clause("zebra")), ErrorCode.NOT_APPLICABLE, "does not know 'zebra'"),
    ],
)
def test_what_cannot_be_judged_has_no_score(
    told: GenevalScorer, reward: str, metadata: dict[str, Any], code: ErrorCode, sentence: str
) -> None:
    [result] = told.score(reward, [item(metadata)])
    assert isinstance(result, Failure) and result.code is code and sentence in result.message


def test_an_item_needs_one_image(told: GenevalScorer) -> None:
    [result] = told.score("geneval", [Item("0", "a", (), metadata=wanted("x", clause("dog")))])
    assert isinstance(result, Failure) and result.code is ErrorCode.BAD_INPUT


def test_colours_are_asked_of_the_clip(told: GenevalScorer) -> None:
    told._colors = RedEverything()  # type: ignore[assignment]
    red = wanted("colors", clause("dog", 1, color="red"))
    assert value(told.score("geneval", [item(red)])[0]) == 1
    blue = wanted("colors", clause("dog", 1, color="blue"))
    [score] = told.score("geneval", [item(blue)])
    assert isinstance(score, Score) and score.value == 0
    assert "expected 1 blue dog, found 1 red" in str(score.details)


def test_a_colour_is_the_nearest_mean_of_three_sentences(clip_folder: Path) -> None:
    """GenEval's classifier computed a second time: cut out on grey, unit vectors, three sentences a colour."""
    classifier = ColorClassifier(
        Backbone(inspect_folder(clip_folder, "--clip"), torch.device("cpu"), "fp32", batch=4, entries=64)
    )
    plain = PlainClip.read(clip_folder)
    pixels = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)
    image = Image.fromarray(pixels)
    mask = np.zeros((60, 80), bool)
    mask[10:50, 20:70] = True
    found = [Found((15.7, 5.2, 75.1, 55.9, 0.9), mask), Found((0, 0, 40, 60, 0.9))]
    cut = Image.composite(image, Image.new("RGB", image.size, "#999999"), Image.fromarray(mask))
    crops = [cut.crop((15.7, 5.2, 75.1, 55.9)), image.crop((0, 0, 40, 60))]
    means = []
    for color in COLORS:
        sentences = [f"a photo of a {color} dog", f"a photo of a {color}-colored dog", f"a photo of a {color} object"]
        rows = torch.stack([plain.text(spell_with_hyphen(sentence)) for sentence in sentences])
        means.append(torch.nn.functional.normalize(rows.mean(0), dim=-1))
    expected = [COLORS[int((torch.stack(means) @ plain.image(crop)).argmax())] for crop in crops]
    assert classifier.classify(image, "dog", found) == expected
    assert classifier.classify(image, "dog", []) == []


def spell_with_hyphen(sentence: str) -> list[str]:
    """CLIP's splitting takes a hyphen for a word of its own."""
    return spell(sentence.replace("-", " - "))[: CONTEXT - 2]


def test_a_folder_of_another_kind_is_refused(clip_folder: Path) -> None:
    with pytest.raises(SourceError, match="model_type is 'clip', not one of mask2former"):
        inspect_folder(clip_folder, "--detector", ("mask2former", "owlvit"))


def test_the_small_detector_is_right_about_most_new_pictures(shapes: GenevalScorer) -> None:
    assert shapes._detector is not None
    right = 0
    for seed in range(1000, 1040):
        image, drawn = draw(seed)
        found = shapes._detector.detect(image, SHAPES)
        counts = [sum(each.box[4] > 0.3 for each in found[name]) for name in SHAPES]
        right += counts == [sum(name == each for each, _ in drawn) for name in SHAPES]
    assert right >= 32
