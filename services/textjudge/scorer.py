"""The text judge: one question about one answer, and the mark that the judge gives it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

from prometheus_client.registry import Collector

from services.kit.judge.answers import after_thinking, thinking_note
from services.kit.judge.client import JudgeClient, JudgeError, Part
from services.kit.judge.content import image_part, text_part
from services.kit.judge.metrics import JudgeMetrics
from services.kit.judge.templates import Template, load_template, own_template
from services.kit.samples import Sample
from services.kit.scorer import Failure, Item, Result, Score
from services.textjudge.marks import MATCH, QUALITY, NoMarkError, fill, read_mark
from services.textjudge.samples import samples
from services.textjudge.settings import TextJudgeSettings
from wire.schema import ErrorCode, ScorerInfo

# What the judge is shown and how its answer is read; a change changes this and every cached score's key.
REVISION = "1"
_SHOWN = 400  # characters of the judge's words that go into details and messages
_NEEDS = {"text_quality": ("{answer}",), "text_match": ("{answer}", "{reference}")}


class TextJudgeScorer:
    """Serves `text_quality` and, for items with targets, `text_match`. An `AsyncScorer`.

    Raises ValueError, with the remedy, when a template or the key file cannot be used.
    """

    def __init__(self, settings: TextJudgeSettings) -> None:
        self._settings = settings
        self._templates = {
            "text_quality": _load("text_quality", settings.template, "--template", QUALITY),
            "text_match": _load("text_match", settings.match_template, "--match-template", MATCH),
        }
        self._rewards = {name: self._info(name, template) for name, template in self._templates.items()}
        self._metrics = JudgeMetrics()
        self.client = JudgeClient(settings.endpoint(), self._metrics)

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
        """The judge's mark, and its words in the details."""
        return await asyncio.gather(*(self._score(reward, item, deadline) for item in items))

    def warmup(self) -> Sequence[tuple[str, Sequence[Item]]]:
        """A short answer for each question: a model that gives no mark is found at once."""
        if not self._settings.check_model:
            return []
        item = Item("warmup", "Which color has snow?", completion="White.", targets=("white",))
        return [(name, [item]) for name in self._rewards]

    async def close(self) -> None:
        await self.client.aclose()

    async def _score(self, reward: str, item: Item, deadline: float) -> Result:
        answer = after_thinking(item.completion or "").strip()
        if (known := self._without_asking(reward, item, answer)) is not None:
            return known
        content, longest = await self._content(reward, item, answer), self._settings.max_tokens
        try:
            said = await self.client.ask(content, max_tokens=longest, deadline=deadline)
        except JudgeError as error:
            return self._failed(reward, error.code, str(error))
        if said.truncated:
            return self._failed(reward, ErrorCode.TRUNCATED, f"stopped at {longest} tokens: {said.text}")
        try:
            mark = read_mark(said.text, self._settings.low, self._settings.high)
        except NoMarkError as error:
            reason = f"{error}{thinking_note(said.text)}; the judge said: {said.text}"
            return self._failed(reward, ErrorCode.PARSE_ERROR, reason)
        self._metrics.calls.labels(reward, "ok").inc()
        return Score(mark, details={"judge": _shortened(said.text)})

    def _without_asking(self, reward: str, item: Item, answer: str) -> Result | None:
        """What no judge is needed for: an item that lacks something, and an answer of no use by any measure."""
        if item.completion is None:
            return Failure(ErrorCode.BAD_INPUT, "a text is judged by the `completion`, and the item has none")
        if reward == "text_match" and not item.targets:
            return Failure(ErrorCode.NOT_APPLICABLE, "the item has no `targets` that the answer could be compared with")
        longest = self._settings.max_answer_characters
        if not answer:
            return Score(self._settings.low, details={"judge": "not asked: the answer is empty"})
        if len(answer) > longest:
            reason = f"not asked: {len(answer)} characters, more than {longest}"
            return Score(self._settings.low, details={"judge": reason})
        return None

    async def _content(self, reward: str, item: Item, answer: str) -> list[Part]:
        """The images of the prompt, then the question."""
        shown = item.source_images if self._settings.images else ()
        form = self._settings.image_format
        pictures = [await asyncio.to_thread(image_part, image, form) for image in shown]
        question = fill(
            self._templates[reward].text,
            prompt=item.prompt,
            answer=answer,
            references=(item.targets or ()) if reward == "text_match" else (),
            pictures=len(pictures),
            low=self._settings.low,
            high=self._settings.high,
        )
        return [*pictures, text_part(question)]

    def _failed(self, reward: str, code: ErrorCode, reason: str) -> Failure:
        self._metrics.calls.labels(reward, code.value).inc()
        return Failure(code, _shortened(reason))

    def _info(self, name: str, template: Template) -> ScorerInfo:
        settings = self._settings
        facts = {
            "model": settings.model,
            "template": template.name,
            "images": settings.image_format if settings.images else None,
            "max_tokens": settings.max_tokens,
            "longest": settings.max_answer_characters,
            "extra": json.loads(settings.extra_body),
        }
        return ScorerInfo(
            name=name,
            revision=f"{REVISION} {json.dumps(facts, sort_keys=True, separators=(',', ':'))}",
            template_sha256=template.sha256,
            range=(settings.low, settings.high),
        )


def _load(reward: str, path: Path | None, flag: str, own: str) -> Template:
    if path is None:
        return own_template(own)
    template = load_template(path, {})
    for place in _NEEDS[reward]:
        if place not in template.text:
            raise ValueError(f"{flag} {path} has no {place}: put it where the {place.strip('{}')} goes")
    return template


def _shortened(text: str) -> str:
    """The beginning and the end: reasons come first, marks last."""
    text = " ".join(text.split())
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN // 2]} … {text[-_SHOWN // 2 :]}"
