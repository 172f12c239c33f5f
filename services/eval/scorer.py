"""The UniGenBench judge as a reward: the share of an item's test points that its image passes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import get_args

from PIL import Image
from prometheus_client.registry import Collector
from pydantic import JsonValue

from services.eval.dimensions import DIMENSIONS, Language
from services.eval.judge import REWARD, Judgement, JudgeMethod, Missing, judge_image
from services.eval.parsing import official_verdicts
from services.eval.prompts import Point, PointsError, Prompt, read_points
from services.eval.samples import samples
from services.kit.judge.client import JudgeClient, JudgeEndpoint
from services.kit.judge.metrics import JudgeMetrics
from services.kit.samples import Sample
from services.kit.scorer import Failure, Item, Result, Score
from wire.schema import ErrorCode, ScorerInfo

# What an answer tells beside the score; a change of it changes this, as kept answers would lack it.
DETAILS_REVISION = "2"
MAX_POINTS = 64  # published prompts have up to 10


class EvalScorer:
    """Serves the reward `unigenbench` by asking a judge. An `AsyncScorer`.

    An item has one image, its prompt, and in `metadata` the lists `testpoints` and `descriptions` of a UniGenBench row,
    in English or Chinese. Components: `point_<i>`, 1 or 0. Details: per point its name, dimension, verdict and reason; and
    `official`, the verdicts as the benchmark's own tool reads the answer (null where it cannot).
    An answer that cannot be read is `parse_error`, one that was cut is `truncated`; neither is a score of 0.
    """

    form: Mapping[str, JsonValue] = {
        "title": "Test points",
        "columns": [
            {"field": "testpoints", "label": "Dimension", "choices": [dimension.name for dimension in DIMENSIONS]},
            {"field": "descriptions", "label": "What must be seen"},
        ],
    }

    def __init__(self, endpoint: JudgeEndpoint, method: JudgeMethod, *, wait_s: float = 900.0) -> None:
        self._method = method
        self._wait_s = wait_s
        self._metrics = JudgeMetrics()
        self.client = JudgeClient(endpoint, self._metrics)
        self._info = ScorerInfo(
            name=REWARD,
            revision=f"model={endpoint.model} {method.revision} details={DETAILS_REVISION}",
            template_sha256=method.instructions.templates["en"].sha256,
            range=(0.0, 1.0),
        )

    @property
    def rewards(self) -> Mapping[str, ScorerInfo]:
        return {REWARD: self._info}

    @cached_property
    def samples(self) -> Mapping[str, Sample]:
        return samples()

    @property
    def collectors(self) -> Sequence[Collector]:
        return self._metrics.collectors

    @property
    def failure(self) -> str | None:
        return self.client.failure

    async def load(self) -> None:
        """Wait until the judge answers. Raises JudgeError."""
        await self.client.wait(self._wait_s)

    async def recover(self) -> None:
        await self.client.recover()

    async def score(self, reward: str, items: Sequence[Item], deadline: float) -> Sequence[Result]:
        return [await self._score(item, deadline) for item in items]

    def warmup(self) -> Sequence[tuple[str, Sequence[Item]]]:
        """A red image: a model that cannot answer in the format is found before the service says it is ready."""
        metadata: dict[str, JsonValue] = {"testpoints": ["Attribute - Color"], "descriptions": ["red"]}
        image = Image.new("RGB", (64, 64), (220, 30, 30))
        return [(REWARD, [Item(id="warmup", prompt="a plain red surface", images=(image,), metadata=metadata)])]

    async def close(self) -> None:
        await self.client.aclose()

    async def _score(self, item: Item, deadline: float) -> Result:
        try:
            prompt = prompt_of(item)
        except ValueError as error:
            return Failure(ErrorCode.BAD_INPUT, str(error))
        if len(item.images) != 1:
            return Failure(ErrorCode.BAD_INPUT, f"the judge looks at one image; `images` has {len(item.images)}")
        result = await judge_image(self.client, self._metrics, self._method, item.images[0], prompt, deadline)
        return Failure(result.code, result.message) if isinstance(result, Missing) else to_score(result, prompt.points)


def prompt_of(item: Item) -> Prompt:
    """An item's prompt with the test points in its metadata. Raises ValueError naming the field."""
    for field in ("testpoints", "descriptions"):
        if field not in item.metadata:
            raise ValueError(
                f"metadata.{field} is missing: send `testpoints` and `descriptions` of the prompt's row, two lists"
            )
    names, language = item.metadata["testpoints"], item.metadata.get("language")
    if isinstance(names, list) and len(names) > MAX_POINTS:
        raise ValueError(f"metadata.testpoints has {len(names)} entries; the limit is {MAX_POINTS}")
    try:
        points, found = read_points(names, item.metadata["descriptions"])
    except PointsError as error:
        field = "testpoints" if error.field == "names" else "descriptions"
        raise ValueError(f"metadata.{field}: {error}") from error
    if language is not None and language != found:
        known = " or ".join(get_args(Language))
        raise ValueError(f"metadata.language is {language!r}, the test points are in {found!r}: send {known} to match")
    return Prompt(0, item.prompt, points, found)


def to_score(judgement: Judgement, points: Sequence[Point]) -> Score:
    """The share of passed points, with each point's verdict."""
    verdicts = judgement.verdicts
    reasons = judgement.reasons or ("",) * len(points)
    details: list[JsonValue] = [
        {"testpoint": point.name, "dimension": point.dimension.name, "passed": bool(verdict), "reason": reason}
        for point, verdict, reason in zip(points, verdicts, reasons, strict=True)
    ]
    return Score(
        sum(verdicts) / len(verdicts),
        {f"point_{number}": float(verdict) for number, verdict in enumerate(verdicts)},
        {"points": details, "official": _official(judgement, len(points)), "resampled": judgement.resampled},
    )


def _official(judgement: Judgement, count: int) -> JsonValue:
    read = official_verdicts(judgement.answer, count)
    return None if read is None else list(read)
