"""The VQA scorer: one question about one image, scored by the probabilities of the answer's first token."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

from PIL import Image, ImageDraw
from prometheus_client.registry import Collector

from services.kit.judge.client import JudgeClient, JudgeError
from services.kit.judge.content import image_part, text_part
from services.kit.judge.metrics import JudgeMetrics
from services.kit.judge.templates import Template, load_template, own_template
from services.kit.samples import Sample
from services.kit.scorer import Failure, Item, Result, Score
from services.vqa.questions import (
    FLOOR,
    PLACEHOLDER,
    QUALITY,
    READINGS,
    YES_NO,
    NoAnswerError,
    Reading,
    likeliest,
    probabilities,
)
from services.vqa.samples import samples
from services.vqa.settings import VqaSettings
from wire.schema import ErrorCode, ScorerInfo

# What the judge is shown and how its answer is read; a change changes this and every cached score's key.
REVISION = "1"
_TOP = 20  # tokens; the most that vLLM gives without being told otherwise
_LONGEST_MESSAGE = 400


class VqaScorer:
    """Serves `vqa_yes`, `vqa_yes_ratio`, `deqa` and `deqa_over_5`. An `AsyncScorer`.

    Raises ValueError, with the remedy, when a template or the key file cannot be used.
    """

    image_only = tuple(name for name, reading in READINGS.items() if not reading.takes_prompt)

    def __init__(self, settings: VqaSettings) -> None:
        self._settings = settings
        yes_no = _load(settings.template, "--template", YES_NO, takes_prompt=True)
        quality = _load(settings.deqa_template, "--deqa-template", QUALITY, takes_prompt=False)
        self._templates = {name: yes_no if reading.takes_prompt else quality for name, reading in READINGS.items()}
        self._rewards = {name: self._info(name, reading) for name, reading in READINGS.items()}
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
        """Components: the probability of each word that was asked for, of the whole vocabulary's 1."""
        return await asyncio.gather(*(self._score(reward, item, deadline) for item in items))

    def warmup(self) -> Sequence[tuple[str, Sequence[Item]]]:
        """Each question once: a model that answers in other words is found at once."""
        if not self._settings.check_model:
            return []
        image = Image.new("RGB", (256, 256), "white")
        ImageDraw.Draw(image).ellipse((48, 48, 208, 208), fill="red")
        item = Item("warmup", "a red circle on white ground", (image,))
        return [("vqa_yes", [item]), ("deqa", [item])]

    async def close(self) -> None:
        await self.client.aclose()

    async def _score(self, reward: str, item: Item, deadline: float) -> Result:
        reading, template = READINGS[reward], self._templates[reward]
        if len(item.images) != 1:
            return Failure(ErrorCode.BAD_INPUT, f"one image is judged at a time; `images` has {len(item.images)}")
        if reading.takes_prompt and not item.prompt.strip():
            return Failure(ErrorCode.NOT_APPLICABLE, "the prompt is empty: there is nothing to ask about the image")
        image = await asyncio.to_thread(image_part, item.images[0], self._settings.image_format)
        question = text_part(template.text.replace(PLACEHOLDER, item.prompt) if reading.takes_prompt else template.text)
        try:
            answer = await self.client.ask([image, question], max_tokens=1, deadline=deadline, top_logprobs=_TOP)
            found = probabilities(answer.first_token, reading.words)
        except JudgeError as error:
            return self._failed(reward, error.code, str(error))
        except NoAnswerError as error:
            return self._failed(reward, ErrorCode.PARSE_ERROR, str(error))
        self._metrics.calls.labels(reward, "ok").inc()
        return Score(reading.score(found), found, {"likeliest": likeliest(answer.first_token)})

    def _failed(self, reward: str, code: ErrorCode, reason: str) -> Failure:
        self._metrics.calls.labels(reward, code.value).inc()
        return Failure(code, reason[:_LONGEST_MESSAGE])

    def _info(self, name: str, reading: Reading) -> ScorerInfo:
        settings, template = self._settings, self._templates[name]
        facts = {
            "model": settings.model,
            "template": template.name,
            "images": settings.image_format,
            "top": _TOP,
            "floor": FLOOR,
            "extra": json.loads(settings.extra_body),
        }
        return ScorerInfo(
            name=name,
            revision=f"{REVISION} {json.dumps(facts, sort_keys=True, separators=(',', ':'))}",
            template_sha256=template.sha256,
            range=reading.range,
        )


def _load(path: Path | None, flag: str, own: str, *, takes_prompt: bool) -> Template:
    if path is None:
        return own_template(own)
    template = load_template(path, {})
    if takes_prompt and PLACEHOLDER not in template.text:
        raise ValueError(f"{flag} {path} has no {PLACEHOLDER}: put it where the prompt goes")
    if not takes_prompt and PLACEHOLDER in template.text:
        raise ValueError(f"{flag} {path} has a {PLACEHOLDER}, and quality is asked about the image alone: take it out")
    return template
