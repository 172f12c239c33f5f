"""What kinds have in common when they ask: checked and encoded items, one call, its outcome."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from PIL import Image

from services.kit.judge.answers import thinking_note
from services.kit.judge.client import JudgeClient, JudgeError, Part
from services.kit.judge.content import ImageFormat, image_part, text_part
from services.kit.judge.metrics import JudgeMetrics
from services.kit.scorer import Failure, Item
from services.unifiedreward.parsing.common import ParseError
from services.unifiedreward.texts import Text
from wire.schema import ErrorCode

T = TypeVar("T")

_SHOWN = 400  # characters of the judge's words that go into details and messages
_LONGEST_MARGIN_S = 1.0


@dataclass(frozen=True)
class Encoded:
    """The images of one item as they are sent: the one to judge and, for edits, the source."""

    image: Part
    source: Part | None

    @property
    def before(self) -> tuple[Part, ...]:
        """What is shown before the image."""
        return () if self.source is None else (self.source,)


@dataclass(frozen=True)
class Said(Generic[T]):
    """What one call gave: a reading, or the code of its failure. `text` are the judge's words or the reason."""

    reading: T | None
    failure: ErrorCode | None
    text: str


class Asker:
    """Asks the judge through the service's one pool."""

    def __init__(self, client: JudgeClient, metrics: JudgeMetrics, max_tokens: int, image_format: ImageFormat) -> None:
        self._client = client
        self._metrics = metrics
        self._max_tokens = max_tokens
        self._image_format = image_format

    async def encode(self, items: Sequence[Item], with_source: bool) -> list[Encoded]:
        """Each image once, in a thread. Items whose sources have the pixels of the first one's share its part."""
        return await asyncio.to_thread(self._encode, items, with_source)

    async def ask_each(
        self, reward: str, text: Text[T], shown: Sequence[Sequence[Part]], prompt: str, deadline: float
    ) -> list[Said[T]]:
        """One call for each set of images, in order. A call is made when a slot is free for it, not before.

        So a group of thousands of comparisons is one waiter and not thousands, and those that the deadline overtakes
        cost nothing.
        """
        slots = self._client.slots
        ticket = slots.ticket()
        tasks: list[asyncio.Task[Said[T]]] = []
        try:
            async with asyncio.TaskGroup() as group:
                for images in shown:
                    try:
                        async with asyncio.timeout(deadline - time.monotonic()):
                            await slots.acquire(ticket)
                    except TimeoutError:
                        break
                    call = self.ask(reward, text, images, prompt, deadline, has_slot=True)
                    tasks.append(group.create_task(call))
                    tasks[-1].add_done_callback(lambda _done: slots.release())
        except ExceptionGroup as errors:  # a bug; the others are cancelled by now
            raise errors.exceptions[0] from errors
        late: Said[T] = Said(None, ErrorCode.TIMEOUT, "the deadline passed before the judge had room for the question")
        missed = len(shown) - len(tasks)
        self._metrics.calls.labels(reward, ErrorCode.TIMEOUT.value).inc(missed)
        return [*(task.result() for task in tasks), *[late] * missed]

    async def ask(
        self,
        reward: str,
        text: Text[T],
        images: Sequence[Part],
        prompt: str,
        deadline: float,
        *,
        has_slot: bool = False,
    ) -> Said[T]:
        """One call: the images in this order, then the text. Never raises for what the judge does."""
        content = [*images, text_part(text.template.fill(prompt))]
        try:
            answer = await self._client.ask(
                content, max_tokens=self._max_tokens, deadline=deadline, schema=text.schema, has_slot=has_slot
            )
        except JudgeError as error:
            return self._failed(reward, error.code, str(error))
        if answer.truncated:
            return self._failed(reward, ErrorCode.TRUNCATED, f"stopped at {self._max_tokens} tokens: {answer.text}")
        try:
            reading = text.question.read(answer.text)
        except ParseError as error:
            reason = f"{error}{thinking_note(answer.text)}; the judge said: {answer.text}"
            return self._failed(reward, ErrorCode.PARSE_ERROR, reason)
        return Said(reading, None, shorten(answer.text))

    def _failed(self, reward: str, code: ErrorCode, reason: str) -> Said[T]:
        self._metrics.calls.labels(reward, code.value).inc()
        return Said(None, code, shorten(reason))

    def _encode(self, items: Sequence[Item], with_source: bool) -> list[Encoded]:
        first: tuple[Image.Image, Part] | None = None
        encoded = []
        for item in items:
            source = None
            if with_source:
                image = item.source_images[0]
                if first is None:
                    first = image, image_part(image, self._image_format)
                same = image is first[0] or image == first[0]  # mode, size and pixels
                source = first[1] if same else image_part(image, self._image_format)
            encoded.append(Encoded(image_part(item.images[0], self._image_format), source))
        return encoded


def check_item(item: Item, needs_source: bool) -> Failure | None:
    """Why the item cannot be judged, if so."""
    if len(item.images) != 1:
        return Failure(ErrorCode.BAD_INPUT, f"one image is judged at a time; `images` has {len(item.images)}")
    if needs_source and len(item.source_images) != 1:
        found = len(item.source_images)
        return Failure(ErrorCode.BAD_INPUT, f"an edit is judged beside its source; `source_images` has {found}, not 1")
    return None


def dominant(failures: Sequence[ErrorCode]) -> ErrorCode:
    """The most frequent code; of equally frequent ones, the first."""
    return Counter(failures).most_common(1)[0][0]


def before(deadline: float, now: float) -> float:
    """When to stop asking, so that what is known by then still reaches the caller: a tenth earlier, at most 1 s."""
    return deadline - min(_LONGEST_MARGIN_S, 0.1 * max(0.0, deadline - now))


def content_seed(prompt: str, parts: Sequence[Part]) -> int:
    """A number that depends on the prompt and the pixels alone."""
    digest = hashlib.sha256(prompt.encode())
    for part in parts:
        digest.update(part["image_url"]["url"].encode())
    return int.from_bytes(digest.digest()[:8], "big")


def shorten(text: str) -> str:
    """The beginning and the end: reasons come first, verdicts last."""
    text = " ".join(text.split())
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN // 2]} … {text[-_SHOWN // 2 :]}"
