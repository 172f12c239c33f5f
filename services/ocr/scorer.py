"""The OCR scorer: an engine reads the images, `scoring` compares the reading with the texts that were asked for."""

from __future__ import annotations

import logging
import unicodedata
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import cast

from PIL import Image, ImageDraw, ImageFont
from pydantic import JsonValue

from services.kit.samples import Sample
from services.kit.scorer import Failure, Item, Result, Score
from services.ocr.alphabet import Alphabet, refusal
from services.ocr.engines import EngineOptions, Line, build_engine
from services.ocr.layout import reading_orders
from services.ocr.samples import samples
from services.ocr.scoring import (
    VARIANTS,
    Case,
    NoTargetError,
    TextScore,
    Variant,
    find_targets,
    folds_case,
    score_text,
)
from wire.schema import ErrorCode, ScorerInfo

logger = logging.getLogger("services.ocr")

# How images are read and texts are scored; a change of either changes this, and with it every cached score's key.
SCORING_REVISION = "4"

# Images are read one by one, so a batch saves only the way to a worker: a few items where reading takes
# milliseconds, two where it takes a tenth of a second, so that no worker waits long for the last batch.
_BATCH = {"line": 8, "page": 2}


class OcrScorer:
    """Serves the rewards `multi`, `flow_grpo`, `strict` and `deepgen_new` from one engine. A `Scorer`.

    `multi` is the default: it scores every quoted text, in any script, and does not take a part of another word for
    the text. Several images of one item are scored each for itself and the item gets their mean. An item without a
    text to look for, or with one in letters that the engine cannot write, is `not_applicable`; one whose image cannot be
    read by the engine is `internal`. `multi` and `strict` leave out symbols that the engine cannot write, such as emoji.
    Raises ValueError or EngineUnavailableError, with the remedy, when the engine cannot be built.
    """

    def __init__(
        self,
        engine: str = "rapidocr",
        options: EngineOptions | None = None,
        *,
        default_reward: Variant = "multi",
        case: Case = "variant",
    ) -> None:
        self._options = options or EngineOptions()
        self._engine = build_engine(engine, self._options)
        self._case = case
        names = sorted(VARIANTS, key=lambda name: name != default_reward)
        self._rewards: dict[str, ScorerInfo] = {name: self._info(name) for name in names}

    @property
    def rewards(self) -> Mapping[str, ScorerInfo]:
        return self._rewards

    @cached_property
    def about(self) -> Mapping[str, JsonValue]:
        """For /v1/info: `scripts` (letters of each that the engine writes), `characters` (code points); null: unknown."""
        if self._alphabet is None:
            return {"scripts": None, "characters": None}
        return {"scripts": dict(self._alphabet.scripts()), "characters": self._alphabet.ranges()}

    @cached_property
    def samples(self) -> Mapping[str, Sample]:
        return samples()

    @property
    def max_batch(self) -> int:
        return _BATCH[self._options.mode]

    def load(self) -> None:
        self._engine.load()
        _ = self._alphabet  # read once, before the first item

    def score(self, reward: str, items: Sequence[Item]) -> Sequence[Result]:
        """Components, means over the item's images: `exact` (1: read without a fault and nothing else was read),
        `extra_text` (share of the read characters beyond the targets' length) and `similarity_<i>` of each target.

        Details: `targets`, `not_compared` (symbols in them that were left out, if any), and per image its `score` and its `lines` (text, confidence, box in pixels) in reading order.
        """
        variant = cast(Variant, reward)  # the kit admits only names from `rewards`
        return [self._score_item(variant, item) for item in items]

    def warmup(self) -> Sequence[tuple[str, Item]]:
        image = Image.new("RGB", (192, 48), "white")
        font = ImageFont.load_default(32)
        ImageDraw.Draw(image).text((96, 24), "READY", fill="black", font=font, anchor="mm")
        return [(next(iter(self._rewards)), Item(id="warmup", prompt="", images=(image,), targets=("READY",)))]

    def close(self) -> None:
        """Nothing to do: the models go with the process."""

    def _info(self, name: str) -> ScorerInfo:
        revision = f"{SCORING_REVISION} case={self._case} {self._engine.revision}"
        return ScorerInfo(name=name, revision=revision, range=(0.0, 1.0))

    def _score_item(self, variant: Variant, item: Item) -> Result:
        if not item.images:
            return Failure(ErrorCode.BAD_INPUT, "OCR needs an image: `images` is empty")
        try:
            targets = find_targets(variant, item.prompt, item.targets)
            self._check_writable(variant, targets)
            wanted, left_out = self._without_symbols(variant, targets)
            readings = [self._read(image) for image in item.images]
            scores = [self._score_reading(variant, orders, wanted) for orders in readings]
        except NoTargetError as error:
            return Failure(ErrorCode.NOT_APPLICABLE, str(error))
        except _ReadError as error:
            return Failure(ErrorCode.INTERNAL, str(error))
        except ValueError as error:
            return Failure(ErrorCode.BAD_INPUT, str(error))
        return _to_score(targets, left_out, [orders[0] for orders in readings], scores)

    @cached_property
    def _alphabet(self) -> Alphabet | None:
        characters = self._engine.characters
        return None if characters is None else Alphabet(characters)

    def _check_writable(self, variant: Variant, targets: Sequence[str]) -> None:
        """Raises NoTargetError for a text that the engine could not write if it saw it."""
        if self._alphabet is None or variant == "deepgen_new":  # which looks at ASCII alone
            return
        for target in targets:
            if missing := self._alphabet.missing(target, fold_case=folds_case(variant, self._case)):
                raise NoTargetError(refusal(target, missing, self._alphabet.scripts()))

    def _without_symbols(self, variant: Variant, targets: Sequence[str]) -> tuple[Sequence[str], list[str]]:
        """The texts without the symbols that the engine cannot write, and these: they would cost every image the same.

        The other variants are held to the definitions they come from. Raises NoTargetError when nothing else is there.
        """
        if self._alphabet is None or variant not in ("multi", "strict"):
            return targets, []
        left_out = list(dict.fromkeys(c for target in targets for c in self._alphabet.missing_symbols(target)))
        if not left_out:
            return targets, []
        drop = str.maketrans(dict.fromkeys(left_out, ""))
        wanted = [unicodedata.normalize("NFKC", target).translate(drop) for target in targets]
        if not any(c.isalnum() or unicodedata.category(c)[0] == "S" for target in wanted for c in target):
            raise NoTargetError(f"the OCR model cannot write {' '.join(left_out)}, and {targets!r} holds nothing else")
        return wanted, left_out

    def _score_reading(self, variant: Variant, orders: Sequence[Sequence[Line]], targets: Sequence[str]) -> TextScore:
        lines, *others = ([line.text for line in order] for order in orders)
        return score_text(variant, lines, targets, self._case, other_orders=others)

    def _read(self, image: Image.Image) -> list[list[Line]]:
        """The lines of an image in their plausible orders, the reading order first."""
        try:
            [lines] = self._engine.read([image])
        except Exception as error:  # engines raise their libraries' many types; each means this image was not read
            logger.exception("the engine failed on an image", extra={"width": image.width, "height": image.height})
            size = f"{image.width}x{image.height}"
            raise _ReadError(f"the OCR engine failed on a {size} image: {type(error).__name__}: {error}") from error
        orders = reading_orders([line.box for line in lines])
        return [[lines[place] for place in order] for order in orders]


class _ReadError(RuntimeError):
    """The engine raised on one image."""


def _to_score(
    targets: Sequence[str], left_out: list[str], readings: Sequence[Sequence[Line]], scores: Sequence[TextScore]
) -> Score:
    components = {
        "exact": _mean([float(score.exact) for score in scores]),
        "extra_text": _mean([score.extra_text for score in scores]),
    }
    for number in range(len(scores[0].similarities)):
        components[f"similarity_{number}"] = _mean([score.similarities[number] for score in scores])
    images: list[JsonValue] = [
        {"score": score.value, "lines": [_line_json(line) for line in lines]}
        for score, lines in zip(scores, readings, strict=True)
    ]
    details: dict[str, JsonValue] = {"targets": list(targets), "images": images}
    if left_out:
        details["not_compared"] = list(left_out)
    return Score(_mean([score.value for score in scores]), components, details)


def _line_json(line: Line) -> JsonValue:
    return {"text": line.text, "confidence": line.confidence, "box": [list(point) for point in line.box]}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
