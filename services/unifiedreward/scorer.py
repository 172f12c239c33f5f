"""The UnifiedReward scorer: named rewards that one judge model answers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from functools import cached_property

from PIL import Image, ImageDraw
from prometheus_client.registry import Collector

from services.kit.judge.client import JudgeClient
from services.kit.judge.metrics import JudgeMetrics
from services.kit.judge.templates import Template
from services.kit.samples import Sample
from services.kit.scorer import Item, Result
from services.unifiedreward.asking import Asker
from services.unifiedreward.groups import GroupJudge
from services.unifiedreward.kinds import PAIR_QUESTIONS, RANGES
from services.unifiedreward.points import PointJudge
from services.unifiedreward.samples import samples
from services.unifiedreward.settings import UnifiedRewardSettings
from services.unifiedreward.texts import Texts, template_sha256
from wire.schema import ErrorCode, ScorerInfo

# What the judge is shown, how answers are read and scores are made; a change changes this and every cached score's key.
REVISION = "4"


class UnifiedRewardScorer:
    """Serves the kinds that the settings name. An `AsyncScorer`.

    Raises ValueError, with the remedy, when a template or the key file cannot be used.
    """

    # Of a group's comparisons: how many there were, how they ended, and a strength that is no share.
    off_scale = (
        *("wins", "ties", "n_valid", "n_asked", "position_flips", "bradley_terry"),
        *(f"n_{code.value}" for code in ErrorCode),
    )

    def __init__(self, settings: UnifiedRewardSettings) -> None:
        self._settings = settings
        self._metrics = JudgeMetrics()
        self.client = JudgeClient(settings.endpoint(), self._metrics)
        texts = Texts(settings.served_kinds, settings.template, settings.structured)
        asker = Asker(self.client, self._metrics, settings.max_tokens, settings.image_format)
        self._groups: dict[str, GroupJudge] = {}
        self._points: dict[str, PointJudge] = {}
        self._rewards: dict[str, ScorerInfo] = {}
        for kind in settings.served_kinds:
            if kind in PAIR_QUESTIONS:
                pair = texts.pair(kind)
                self._groups[kind] = GroupJudge(
                    kind, pair, asker, self._metrics, settings.tournament(), settings.flex_weights()
                )
                self._rewards[kind] = self._info(kind, [pair.template], pair.schema is not None)
            else:
                points = texts.points(kind)
                self._points[kind] = PointJudge(kind, points, asker, self._metrics)
                held = any(text.schema is not None for text in points)
                self._rewards[kind] = self._info(kind, [text.template for text in points], held)

    @property
    def rewards(self) -> Mapping[str, ScorerInfo]:
        return self._rewards

    @cached_property
    def samples(self) -> Mapping[str, Sample]:
        return samples()

    @property
    def collectors(self) -> Sequence[Collector]:
        return self._metrics.collectors

    @property
    def failure(self) -> str | None:
        """A sentence while the judge does not answer, else None."""
        return self.client.failure

    async def recover(self) -> None:
        await self.client.recover()

    async def load(self) -> None:
        """Wait until the judge is up and serves the model."""
        await self.client.wait(self._settings.judge_wait_s)

    async def score(self, reward: str, items: Sequence[Item], deadline: float) -> Sequence[Result]:
        """For kinds that compare, the score of each image is its mean share of the comparisons that were decided
        (flex: see `FlexWeights`); components and details are described in `GroupJudge`. For the others it is the mean
        of the numbers the judge gave, which are the components.
        """
        group = self._groups.get(reward)
        if group is not None:
            return await group.score(items, deadline)
        judge = self._points[reward]
        return await asyncio.gather(*(judge.score(item, deadline) for item in items))

    def warmup(self) -> Sequence[tuple[str, Sequence[Item]]]:
        """Two drawn images for each kind: a model that cannot answer in its format is found at once."""
        if not self._settings.check_model:
            return []
        items = [_drawn("good", "red"), _drawn("bad", "gray")]
        return [(kind, items if kind in self._groups else items[:1]) for kind in self._rewards]

    async def close(self) -> None:
        await self.client.aclose()

    def _info(self, kind: str, templates: Sequence[Template], structured: bool) -> ScorerInfo:
        settings = self._settings
        facts = {
            "model": settings.model,
            "template": "+".join(template.name for template in templates),
            "images": settings.image_format,
            "max_tokens": settings.max_tokens,
            "structured": structured,
            "extra": json.loads(settings.extra_body),
        }
        if kind in PAIR_QUESTIONS:
            facts["order"] = settings.order
            facts["pairs"] = settings.pairs if settings.pairs == "all" else f"{settings.pairs}-{settings.opponents}"
        if kind == "flex":
            facts["weights"] = [settings.flex_overall_weight, settings.flex_dim_weight, *settings.flex_category_weights]
        return ScorerInfo(
            name=kind,
            revision=f"{REVISION} {json.dumps(facts, sort_keys=True, separators=(',', ':'))}",
            template_sha256=template_sha256(templates),
            range=RANGES[kind],
            grouped=kind in PAIR_QUESTIONS,
        )


def _drawn(name: str, colour: str) -> Item:
    """A circle of that colour; asked for is a red one."""
    image = Image.new("RGB", (256, 256), "white")
    ImageDraw.Draw(image).ellipse((48, 48, 208, 208), fill=colour)
    source = Image.new("RGB", (256, 256), "white")
    prompt = "a red circle on white ground"
    return Item(id=name, prompt=prompt, images=(image,), source_images=(source,), group_id="warmup")
