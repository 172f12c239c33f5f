"""One image judged: asked, read, and asked again where the answer cannot be read."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from PIL import Image

from services.eval.parsing import ParseError, parse_reasons, parse_verdicts
from services.eval.prompting import Instructions
from services.eval.prompts import Prompt
from services.kit.judge.answers import Answer, thinking_note
from services.kit.judge.client import JudgeClient, JudgeError
from services.kit.judge.content import ImageFormat, image_part, text_part
from services.kit.judge.metrics import JudgeMetrics
from wire.schema import ErrorCode

REWARD = "unigenbench"

# What changes verdicts apart from the wording; a change of what is shown, of the parser or of retries changes it.
REVISION = "4"
# Greedy decoding would repeat the answer that could not be read, so retries are sampled, each with a seed of its own.
RESAMPLE_TEMPERATURE = 0.7


@dataclass(frozen=True)
class Judgement:
    """Verdicts by position, 0 or 1, with the judge's reasons (none where they could not be told apart).

    `resampled`: the greedy answer could not be read, and a sampled one was.
    """

    verdicts: tuple[int, ...]
    reasons: tuple[str, ...]
    answer: str
    resampled: bool = False


@dataclass(frozen=True)
class Missing:
    """Why an image has no verdicts, and the judge's last answer, if any."""

    code: ErrorCode
    message: str
    answer: str = ""


@dataclass(frozen=True)
class JudgeMethod:
    """How an image is judged, apart from the model: all that its verdicts depend on."""

    instructions: Instructions
    max_tokens: int = 4096
    parse_retries: int = 2
    image_format: ImageFormat = "jpeg"
    extra_body: str = "{}"

    @property
    def revision(self) -> str:
        extra = "" if self.extra_body == "{}" else f" extra_body={self.extra_body}"
        return (
            f"{REVISION} {self.instructions.revision} image={self.image_format} max_tokens={self.max_tokens} "
            f"parse_retries={self.parse_retries}@temperature={RESAMPLE_TEMPERATURE}{extra}"
        )


async def judge_image(
    client: JudgeClient,
    metrics: JudgeMetrics,
    method: JudgeMethod,
    image: Image.Image,
    prompt: Prompt,
    deadline: float,
) -> Judgement | Missing:
    """Ask about one image: the image first, then the text. `deadline` is in `time.monotonic()` seconds."""
    text = method.instructions.ask(prompt)
    content = [await asyncio.to_thread(image_part, image, method.image_format), text_part(text)]
    unreadable: Missing | None = None
    for attempt in range(1 + method.parse_retries):
        try:
            answer = await client.ask(
                content,
                max_tokens=method.max_tokens,
                deadline=deadline,
                temperature=RESAMPLE_TEMPERATURE if attempt else 0,
                seed=attempt or None,
            )
        except JudgeError as error:
            metrics.calls.labels(REWARD, error.code.value).inc()
            return unreadable or Missing(error.code, str(error))
        result = read_answer(answer, len(prompt.points), resampled=attempt > 0)
        metrics.calls.labels(REWARD, "ok" if isinstance(result, Judgement) else result.code.value).inc()
        if isinstance(result, Judgement):
            return result
        unreadable = result
    assert unreadable is not None  # there is at least one attempt
    return unreadable


def read_answer(answer: Answer, count: int, *, resampled: bool = False) -> Judgement | Missing:
    """The verdicts of an answer; `truncated` where its end is missing, whatever it holds; or `parse_error`."""
    if answer.truncated:
        message = f"the answer was cut at max_tokens after {answer.completion_tokens} tokens"
        return Missing(ErrorCode.TRUNCATED, message, answer.text)
    try:
        verdicts = parse_verdicts(answer.text, count)
    except ParseError as error:
        return Missing(ErrorCode.PARSE_ERROR, f"{error}{thinking_note(answer.text)}", answer.text)
    return Judgement(verdicts, parse_reasons(answer.text, count), answer.text, resampled)
