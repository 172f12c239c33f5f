"""Each kind of detector, small and random, against its published post-processing written a second time on raw outputs."""

from __future__ import annotations

import gzip
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from services.geneval.detector import ALSO_CALLED, FLOOR, Detector, Found, load_detector
from services.geneval.owlv2_pixels import owlv2_pixels
from services.geneval.scorer import GenevalScorer
from services.geneval.settings import DETECTOR_KINDS
from services.kit.models.sources import SourceError, inspect_folder
from services.kit.scorer import Failure, Item, Score
from tests.support.tiny_detectors import (
    CLASSES,
    CONTEXT,
    OWL_MEAN,
    OWL_STD,
    SIDE,
    write_grounding_dino,
    write_mask2former,
    write_owlv2,
)
from wire.schema import ErrorCode

CASES = json.loads(gzip.decompress(Path(__file__).with_name("published_verdicts.json.gz").read_bytes()))
WRITERS = {"mask2former": write_mask2former, "grounding-dino": write_grounding_dino, "owlv2": write_owlv2}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("detectors")
    return {kind: write(root / kind, 0) for kind, write in WRITERS.items()}


def load(folder: Path) -> Detector:
    return load_detector(inspect_folder(folder, "--detector", DETECTOR_KINDS), torch.device("cpu"))


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    """With large patches, so that small networks see more than an even grey."""
    small = np.random.default_rng(seed).integers(0, 256, (5, 7, 3), np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def boxes(found: list[Found]) -> list[tuple[float, ...]]:
    return sorted(each.box for each in found)


@pytest.mark.parametrize("size", [(130, 90), (64, 64), (40, 150)])
def test_a_mask2former_is_read_as_mmdet_reads_it(folders: dict[str, Path], size: tuple[int, int]) -> None:
    """The pairs of query and class with the highest chances, as many as queries; masks above one half; their confidence."""
    from transformers import AutoImageProcessor, Mask2FormerModel

    image, folder = noise(*size), folders["mask2former"]
    state = load_file(folder / "model.safetensors")
    assert "criterion.empty_weight" in state, "a published file has it"
    model, loading = Mask2FormerModel.from_pretrained(folder, output_loading_info=True)
    assert not loading["missing_keys"]
    inputs = AutoImageProcessor.from_pretrained(folder, backend="pil")(images=[image], return_tensors="pt")
    assert inputs["pixel_mask"].all(), "no padding, so a mask lies on its image but for the scale"
    with torch.no_grad():
        raw = model(inputs["pixel_values"])
    logits = raw.transformer_decoder_last_hidden_state[0] @ state["class_predictor.weight"].T
    chances = (logits + state["class_predictor.bias"]).softmax(-1)[:, : len(CLASSES)]
    pairs = sorted(((float(p), query, c) for query, row in enumerate(chances) for c, p in enumerate(row)), reverse=True)
    expected: dict[str, list[tuple[float, ...]]] = {name: [] for name in CLASSES}
    for chance, query, label in pairs[: len(chances)]:
        mask = torch.nn.functional.interpolate(
            raw.masks_queries_logits[-1][0, query][None, None], (image.height, image.width), mode="bilinear"
        )[0, 0]
        rows, columns = (mask > 0).nonzero(as_tuple=True)
        if not len(rows):
            continue
        sure = float(torch.sigmoid(mask[mask > 0]).mean())
        box = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        expected[CLASSES[label]].append((*map(float, box), chance * sure))
    found = load(folder).detect(image, CLASSES)
    assert len(chances) == 6 and sum(map(len, expected.values())) >= 4
    for name in CLASSES:
        kept = sorted(box for box in expected[name] if box[4] > FLOOR)
        assert len(found[name]) == len(kept)
        assert np.array(boxes(found[name])) == pytest.approx(np.array(kept), abs=1e-4)
        for each in found[name]:
            assert each.mask is not None and each.mask.shape == (image.height, image.width)


def test_one_query_may_be_two_things(folders: dict[str, Path], tmp_path: Path) -> None:
    """With equal chances for all classes, the surest pairs have queries twice, as mmdet's have."""
    even = {"class_predictor.weight": torch.zeros(4, 32), "class_predictor.bias": torch.tensor([2.0, 2.0, 0.0, 0.0])}
    found = load(write_mask2former(tmp_path / "even", 0, **even)).detect(noise(64, 64), CLASSES)
    assert len(found["dog"]) + len(found["cup"]) == 6 and not found["remote"]
    assert min(len(found["dog"]), len(found["cup"])) >= 1


def test_genevals_names_find_the_folders_own(folders: dict[str, Path]) -> None:
    """Its rows say "tv remote" and COCO's folders "remote"; no row may go unjudged for that."""
    detector = load(folders["mask2former"])
    assert detector.classes == {"dog", "cup", "remote", "tv remote"}
    found = detector.detect(noise(64, 64), ["tv remote", "remote", "dog"])
    assert list(found) == ["tv remote", "remote", "dog"] and boxes(found["tv remote"]) == boxes(found["remote"])
    asked = {each["class"] for case in CASES for each in case["metadata"]["include"]}
    unusual = {name for name in asked if name in ALSO_CALLED}
    assert unusual == set(ALSO_CALLED), "each of them is asked for in the published rows"


@pytest.mark.parametrize("size", [(130, 90), (64, 64), (40, 150)])
def test_a_grounding_dinos_boxes_are_those_of_its_outputs(folders: dict[str, Path], size: tuple[int, int]) -> None:
    """Centre, width and height as shares of the image; the best token's chance; the name in small letters with a dot."""
    from transformers import AutoProcessor, GroundingDinoForObjectDetection

    image, folder = noise(*size), folders["grounding-dino"]
    model = GroundingDinoForObjectDetection.from_pretrained(folder)
    processor = AutoProcessor.from_pretrained(folder, backend="pil")
    found = load(folder).detect(image, ["Dining Table", "dog"])
    for name, text in (("Dining Table", "dining table."), ("dog", "dog.")):
        inputs = processor(text=text, images=image, return_tensors="pt")
        assert processor.tokenizer.decode(inputs["input_ids"][0]).replace(" ", "") == f"[CLS]{text}[SEP]".replace(
            " ", ""
        )
        with torch.no_grad():
            raw = model(**inputs)
        expected = []
        for logits, (x, y, width, height) in zip(raw.logits[0], raw.pred_boxes[0].tolist(), strict=True):
            score = max(1 / (1 + math.exp(-float(value))) for value in logits if math.isfinite(value))
            if score > FLOOR:
                left, top = (x - width / 2) * image.width, (y - height / 2) * image.height
                expected.append((left, top, left + width * image.width, top + height * image.height, score))
        assert expected and np.array(boxes(found[name])) == pytest.approx(np.array(sorted(expected)), abs=1e-3)
    assert boxes(found["dog"]) != boxes(found["Dining Table"])


@pytest.mark.parametrize("size", [(130, 90), (48, 48), (40, 150)])
def test_an_owlv2s_boxes_are_those_of_its_outputs_in_the_images_square(
    folders: dict[str, Path], size: tuple[int, int]
) -> None:
    from transformers import AutoTokenizer, Owlv2ForObjectDetection

    image, folder = noise(*size), folders["owlv2"]
    model, tokenizer = Owlv2ForObjectDetection.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    text = tokenizer(
        ["a photo of a dog"], padding="max_length", max_length=CONTEXT, truncation=True, return_tensors="pt"
    )
    with torch.no_grad():
        raw = model(**text, pixel_values=owlv2_pixels(image, SIDE, OWL_MEAN, OWL_STD))
    expected = []
    for logit, (x, y, width, height) in zip(raw.logits[0, :, 0].tolist(), raw.pred_boxes[0].tolist(), strict=True):
        score, longest = 1 / (1 + math.exp(-logit)), max(image.size)
        if score > FLOOR:
            corners = [x - width / 2, y - height / 2, x + width / 2, y + height / 2]
            expected.append((*(corner * longest for corner in corners), score))
    found = load(folder).detect(image, ["dog"])["dog"]
    assert expected and np.array(boxes(found)) == pytest.approx(np.array(sorted(expected)), abs=1e-3)


@pytest.mark.parametrize("size", [(6, 4), (9, 9), (5, 17), (1, 40), (1, 1), (40, 30)])
def test_owlv2s_pixels_are_the_published_blur_and_interpolation(size: tuple[int, int]) -> None:
    """Written out pixel by pixel, in double precision: black to a square, a Gaussian of (factor - 1) / 2 whose tail is cut
    after four deviations and whose row is mirrored about its ends, linear between centres."""
    side, image = 9, noise(*size)
    longest = max(size)
    square = np.zeros((longest, longest, 3))
    square[: image.height, : image.width] = np.asarray(image) / 255
    factor = longest / side
    sigma = max(0.0, (factor - 1) / 2)
    reach = int(4 * sigma + 0.5)

    def mirrored(place: int) -> int:
        period = max(2 * (longest - 1), 1)
        return min(place % period, period - place % period) if longest > 1 else 0

    def scaled(row: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
        weights = [math.exp(-(k**2) / (2 * sigma**2)) if sigma else 1.0 for k in range(-reach, reach + 1)]
        blurred = [
            sum(w * row[mirrored(place + k)] for k, w in zip(range(-reach, reach + 1), weights, strict=True))
            for place in range(longest)
        ]
        row = np.stack(blurred) / sum(weights)
        made = []
        for number in range(side):
            centre = (number + 0.5) * factor - 0.5
            left = math.floor(centre)
            made.append(row[mirrored(left)] * (left + 1 - centre) + row[mirrored(left + 1)] * (centre - left))
        return np.stack(made)

    wide = np.stack([scaled(row) for row in square])
    expected = (np.stack([scaled(column) for column in wide.transpose(1, 0, 2)], 1) - OWL_MEAN) / OWL_STD
    found = owlv2_pixels(image, side, OWL_MEAN, OWL_STD)[0].permute(1, 2, 0).numpy()
    assert found == pytest.approx(expected, abs=2e-5)


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("image", [noise(1, 1), noise(3, 60), noise(60, 40).convert("P"), noise(60, 40).convert("LA")])
def test_every_detector_takes_every_image(folders: dict[str, Path], kind: str, image: Image.Image) -> None:
    detector = load(folders[kind])
    found = detector.detect(image, ["dog", "cup"])
    assert set(found) == {"dog", "cup"}
    assert all(math.isfinite(number) for some in found.values() for each in some for number in each.box)
    assert boxes(detector.detect(image, ["cup"])["cup"]) == boxes(found["cup"]), "whatever else is looked for"


@pytest.mark.parametrize("kind", WRITERS)
def test_every_detector_serves_the_scores(folders: dict[str, Path], kind: str) -> None:
    scorer = GenevalScorer(inspect_folder(folders[kind], "--detector", DETECTOR_KINDS), device="cpu", dtype="fp32")
    scorer.load()
    metadata = {"tag": "two_object", "include": [{"class": "dog", "count": 1}, {"class": "cup", "count": 1}]}
    items = [Item(str(n), "a dog and a cup", (noise(90, 60, n),), metadata=metadata) for n in range(3)]
    together = scorer.score("geneval_soft", items)
    scorer._seen.clear()
    alone = [scorer.score("geneval_soft", [item])[0] for item in items]
    assert all(isinstance(each, Score) for each in together) and together == alone
    [(reward, item)] = scorer.warmup()
    assert isinstance(scorer.score(reward, [item])[0], Score)


def test_what_a_detector_cannot_look_for_is_a_sentence(folders: dict[str, Path]) -> None:
    scorer = GenevalScorer(inspect_folder(folders["owlv2"], "--detector", DETECTOR_KINDS), device="cpu", dtype="fp32")
    scorer.load()

    def message(name: str, image: Image.Image) -> str:
        metadata = {"tag": "single_object", "include": [{"class": name, "count": 1}]}
        [result] = scorer.score("geneval", [Item("0", "", (image,), metadata=metadata)])
        assert isinstance(result, Failure) and result.code is ErrorCode.BAD_INPUT, result
        return result.message

    assert "'many long words here' has 28 tokens with its sentence, and the detector reads 24" in message(
        "many long words here", noise(9, 9)
    )
    assert "is 1x900: one side may be at most 200 times the other" in message("dog", noise(1, 900))


def test_weights_that_lack_a_tensor_are_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    copy = write_mask2former(tmp_path / "copy", 1)
    state = load_file(copy / "model.safetensors")
    del state["class_predictor.weight"]
    save_file(state, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(SourceError, match=r"its weights are not those of its config.json"):
        load(copy)


def test_weights_in_half_precision_are_computed_in_float32(tmp_path: Path) -> None:
    folder = write_mask2former(tmp_path / "half", 0)
    state = {key: value.bfloat16() for key, value in load_file(folder / "model.safetensors").items()}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"dtype": "bfloat16"}))
    assert sum(map(len, load(folder).detect(noise(64, 64), CLASSES).values())) >= 4


def test_a_network_that_needs_another_package_is_a_sentence(tmp_path: Path) -> None:
    copy = write_grounding_dino(tmp_path / "copy", 1)
    settings = json.loads((copy / "config.json").read_text())
    settings |= {"backbone_config": {"model_type": "timm_backbone", "backbone": "swin_tiny"}}
    (copy / "config.json").write_text(json.dumps(settings))
    with pytest.raises(SourceError, match=r"needs a package that is not installed .*timm"):
        load(copy)
