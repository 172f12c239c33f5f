"""Scores of single images from the numbers the judge gives."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

from pydantic import JsonValue

from services.kit.judge.metrics import JudgeMetrics
from services.kit.scorer import Failure, Item, Result, Score
from services.unifiedreward.asking import Asker, Encoded, Said, before, check_item
from services.unifiedreward.kinds import Numbers
from services.unifiedreward.ratings import mean
from services.unifiedreward.texts import Text


class PointJudge:
    """Scores images one by one for one reward: the mean of all numbers its questions give, each a component."""

    def __init__(self, reward: str, texts: Sequence[Text[Numbers]], asker: Asker, metrics: JudgeMetrics) -> None:
        self._reward = reward
        self._texts = texts
        self._asker = asker
        self._metrics = metrics
        self._needs_source = any(text.question.shows_source for text in texts)

    async def score(self, item: Item, deadline: float) -> Result:
        """All questions at once. One that is not answered fails the item: a part is not the whole."""
        failure = check_item(item, self._needs_source)
        if failure is not None:
            return failure
        [encoded] = await self._asker.encode([item], self._needs_source)
        until = before(deadline, time.monotonic())
        answers = await asyncio.gather(*(self._ask(text, encoded, item.prompt, until) for text in self._texts))
        numbers: dict[str, float] = {}
        for said in answers:
            if said.reading is None:
                assert said.failure is not None
                return Failure(said.failure, said.text)
            numbers |= said.reading
        texts: list[JsonValue] = [said.text for said in answers]
        return Score(mean(list(numbers.values())), numbers, {"judge": texts})

    async def _ask(self, text: Text[Numbers], encoded: Encoded, prompt: str, deadline: float) -> Said[Numbers]:
        images = [*(encoded.before if text.question.shows_source else ()), encoded.image]
        said = await self._asker.ask(self._reward, text, images, prompt, deadline)
        if said.reading is not None:
            self._metrics.calls.labels(self._reward, "ok").inc()
        return said
