"""Settings of what asks a judge: a service, or a command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Self
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator
from pydantic_settings import BaseSettings

from services.kit.judge.client import JudgeEndpoint
from services.kit.judge.content import ImageFormat
from services.kit.settings import CaFile, ServiceSettings, without_password
from wire.hosts import is_loopback

MaxTokens = Annotated[int, Field(ge=1, description="Longest answer, in tokens.")]


class JudgeOptions(BaseSettings):
    """How the judge is reached and asked; subclasses give `judge_url` and `model` their defaults."""

    judge_url: str = Field(
        default="http://127.0.0.1:8001", pattern=r"^https?://\S+$", description="The judge's OpenAI-compatible server."
    )
    model: str = Field(default="judge", min_length=1, description="The model's served name.")
    judge_key_file: Path | None = Field(default=None, description="File with the judge's API key.")
    ca_file: CaFile = None
    judge_wait_s: float = Field(default=900.0, ge=0, description="How long to wait for the judge at start.")
    concurrency: int = Field(default=64, ge=1, le=4096, description="Most calls the judge sees at a time.")
    attempts: int = Field(default=3, ge=1, le=20, description="Tries of a call that is refused (429, 5xx).")
    call_timeout_s: float = Field(default=120.0, gt=0, le=3600, description="Longest one try of a call may take.")
    image_format: ImageFormat = Field(
        default="jpeg", description="How the judge gets images: jpeg (quality 95) or png."
    )
    extra_body: str = Field(
        default="{}",
        description='JSON put into every call, such as {"chat_template_kwargs": {"enable_thinking": false}}.',
    )

    @field_validator("judge_url")
    @classmethod
    def _has_no_password(cls, url: str) -> str:
        if "@" in urlsplit(url).netloc:
            raise ValueError("a password there would be shown in messages: give a key with --judge-key-file")
        return url

    @field_validator("judge_url")
    @classmethod
    def _has_a_port_that_can_be(cls, url: str) -> str:
        try:
            _ = urlsplit(url).port
        except ValueError as error:
            raise ValueError("its port is no number up to 65535: give one such as http://127.0.0.1:8001") from error
        return url

    @model_validator(mode="after")
    def _extra_body_is_an_object(self) -> Self:
        try:
            tree = json.loads(self.extra_body)
        except ValueError as error:
            raise ValueError(f"extra_body is not JSON: {error}") from error
        if not isinstance(tree, dict):
            raise ValueError(f"extra_body must be a JSON object, not {type(tree).__name__}")
        return self

    def endpoint(self) -> JudgeEndpoint:
        """Raises ValueError when the key file cannot be read."""
        try:
            key = self.judge_key_file.read_text("utf-8").strip() if self.judge_key_file else None
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"judge_key_file {self.judge_key_file} cannot be read: {error}") from error
        return JudgeEndpoint(
            url=self.judge_url,
            model=self.model,
            concurrency=self.concurrency,
            attempts=self.attempts,
            call_timeout_s=self.call_timeout_s,
            key=key,
            ca_file=self.ca_file,
            extra=json.loads(self.extra_body),
        )


class JudgeSettings(JudgeOptions, ServiceSettings):
    """Base of the settings of a service that asks a judge."""

    passthrough_limit: int = Field(
        default=64, ge=0, le=4096, description="Most calls of /v1/chat/completions passed through at a time."
    )

    @model_validator(mode="after")
    def _judge_is_another(self) -> Self:
        """A gateway that waits for itself answers itself 429 for ever, and never says why."""
        if self.port and _port_of(self.judge_url) == self.port and _same_host(self.judge_url, self.host):
            other = 8002 if self.port == 8001 else 8001
            raise ValueError(
                f"--judge-url {without_password(self.judge_url)} is this gateway's own address: start vLLM on another "
                f"port, such as {other}, and name that"
            )
        return self


def _port_of(url: str) -> int:
    parts = urlsplit(url)
    return parts.port or (443 if parts.scheme == "https" else 80)


def _same_host(url: str, host: str) -> bool:
    """Whether a URL's host is what a service listens on: the same name, or both are this machine's own."""
    asked = urlsplit(url).hostname or ""
    return asked == host.lower() or (_is_this_machine(asked) and _is_this_machine(host.lower()))


def _is_this_machine(host: str) -> bool:
    return is_loopback(host) or host in ("0.0.0.0", "::")
