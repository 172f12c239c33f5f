"""A judge that says what it is told to: an OpenAI-compatible server for tests and measurements. Not a model.

`python -m services.kit.testing.scripted_judge --answer "<answer>Image {brighter} is better</answer>" --latency-ms 50`
"""

from __future__ import annotations

import asyncio
import base64
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from PIL import Image, ImageStat
from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict
from starlette.responses import JSONResponse, Response

from services.kit.settings import Port, load_settings


@dataclass(frozen=True)
class Reply:
    """One answer: a completion, or an error when `status` is not 200. `reasoning` is sent apart from the text.

    `first_token`: the likeliest first tokens and their log-probabilities, sent to who asks for them.
    """

    text: str | None = ""
    finish_reason: str | None = "stop"
    status: int = 200
    delay_s: float = 0.0
    reasoning: str | None = None
    first_token: Sequence[tuple[str, float]] = ()


@dataclass(frozen=True)
class Question:
    """What the judge was asked: the images and texts of the last message, in order, and the whole body."""

    images: tuple[Image.Image, ...]
    text: str
    body: dict[str, Any]


Behave = Callable[[Question], Reply]


@dataclass
class ScriptedJudge:
    """The app and all it was asked. `at_once` is the most calls it saw at a time."""

    behave: Behave
    model: str = "judge"
    keep: bool = True
    questions: list[Question] = field(default_factory=list)
    calls: int = 0
    at_once: int = 0
    _now: int = 0

    def app(self) -> FastAPI:
        app = FastAPI()

        @app.get("/v1/models")
        async def models() -> dict[str, Any]:
            return {"object": "list", "data": [{"id": self.model, "object": "model"}]}

        @app.post("/v1/chat/completions")
        async def complete(request: Request) -> Response:
            body = json.loads(await request.body())
            self.calls += 1
            self._now += 1
            self.at_once = max(self.at_once, self._now)
            try:
                question = read_question(body)
                if self.keep:
                    self.questions.append(question)
                reply = self.behave(question)
                await asyncio.sleep(reply.delay_s)
                return _to_response(reply, self.model, body.get("top_logprobs") if body.get("logprobs") else None)
            finally:
                self._now -= 1

        return app


def read_question(body: dict[str, Any]) -> Question:
    """Decode the images of a chat request."""
    images: list[Image.Image] = []
    texts: list[str] = []
    content = body["messages"][-1]["content"]
    parts: list[dict[str, Any]] = [{"type": "text", "text": content}] if isinstance(content, str) else content
    for part in parts:
        if part["type"] == "text":
            texts.append(part["text"])
        else:
            data = part["image_url"]["url"].partition(";base64,")[2]
            images.append(Image.open(io.BytesIO(base64.b64decode(data))))
    return Question(tuple(images), "\n".join(texts), body)


def brightness(images: Sequence[Image.Image]) -> list[float]:
    """Mean grey of each image, 0 to 1."""
    return [ImageStat.Stat(image.convert("L")).mean[0] / 255 for image in images]


def answer_about(template: str, question: Question) -> str:
    """Fill `{brighter}` (the number of the brightest image, from 1) and `{brightness}` (of the first, 0 to 1)."""
    if "{bright" not in template:
        return template
    grey = brightness(question.images) or [0.0]
    best = 1 + max(range(len(grey)), key=lambda n: grey[n])
    return template.replace("{brighter}", str(best)).replace("{brightness}", f"{grey[0]:.4f}")


def _to_response(reply: Reply, model: str, top_logprobs: int | None) -> Response:
    if reply.status != 200:
        return JSONResponse({"error": {"message": reply.text}}, status_code=reply.status)
    message = {"role": "assistant", "content": reply.text}
    if reply.reasoning is not None:
        message["reasoning_content"] = reply.reasoning
    choice: dict[str, Any] = {"index": 0, "message": message, "finish_reason": reply.finish_reason}
    if top_logprobs is not None and reply.first_token:
        tops = [{"token": token, "logprob": logprob} for token, logprob in reply.first_token]
        choice["logprobs"] = {"content": [{**tops[0], "top_logprobs": tops[:top_logprobs]}]}
    usage = {"prompt_tokens": 1, "completion_tokens": len((reply.text or "").split())}
    body = {"object": "chat.completion", "model": model, "choices": [choice], "usage": usage}
    # As Python writes JSON: a log-probability that is NaN or infinite is sent as that, where JSONResponse would fail.
    return Response(json.dumps(body), media_type="application/json")


class ScriptedSettings(BaseSettings):
    """Serve a judge that says what it is told to, to try a service without a model."""

    model_config = SettingsConfigDict(env_prefix="SCRIPTED_JUDGE_", cli_kebab_case=True)

    port: Port = 8001
    model: str = Field(default="judge", description="The served model's name.")
    answer: str = Field(
        default="<answer>Image {brighter} is better</answer>",
        description="What it always says. {brighter}: the number of the brightest image, from 1; {brightness}: the first "
        "image's mean grey, 0 to 1.",
    )
    latency_ms: float = Field(default=0.0, ge=0, description="Time of a call; all calls run side by side.")


def main(arguments: Sequence[str] | None = None) -> None:
    settings = load_settings(ScriptedSettings, arguments, prog="python -m services.kit.testing.scripted_judge")
    reply_after = settings.latency_ms / 1000
    judge = ScriptedJudge(
        lambda question: Reply(answer_about(settings.answer, question), delay_s=reply_after), settings.model, keep=False
    )
    uvicorn.run(judge.app(), host="127.0.0.1", port=settings.port, log_level="warning", timeout_keep_alive=60)


if __name__ == "__main__":
    main()
