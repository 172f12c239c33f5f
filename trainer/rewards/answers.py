"""What came back for one sample and one reward: a score, or a code that says why there is none."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal

from trainer.config.base import UserError
from wire.schema import ErrorCode

_MOST_TEXT = 1000  # characters of a service's message that are kept: it goes to the screen, the tape and the report


class ClientCode(StrEnum):
    """Failures that the client itself found. A service's own codes are wire.schema.ErrorCode."""

    UNREACHABLE = "unreachable"  # no connection, or it broke
    UNAVAILABLE = "unavailable"  # 502, 503 or 504 until the attempts ran out
    REFUSED = "refused"  # another 4xx: the request is wrong and stays wrong
    SERVER_ERROR = "server_error"  # 500 or another status nobody asked for
    INVALID_RESPONSE = "invalid_response"  # a 200 that breaks the contract
    OUT_OF_RANGE = "out_of_range"  # a number outside the range that the scorer declares
    CHANGED_SCORER = "changed_scorer"  # from another scorer than the one the run began with
    CLIENT_QUEUE = "client_queue"  # never sent: this client's own queue was full for too long
    NOT_ON_TAPE = "not_on_tape"  # a replayed run asks for what was not recorded


@dataclass(frozen=True, slots=True)
class Answer:
    """One cell of the score matrix: a finite `score`, or None with `code` and `message`."""

    score: float | None
    code: str = ""
    message: str = ""
    components: Mapping[str, float] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)
    cached: bool = False

    @property
    def not_applicable(self) -> bool:
        """The reward does not apply to this sample: no score, and nobody's fault."""
        return self.code == ErrorCode.NOT_APPLICABLE

    @property
    def failed(self) -> bool:
        """There should be a score and there is none."""
        return self.score is None and not self.not_applicable


def all_failed(ids: Sequence[str], code: str, message: str) -> dict[str, Answer]:
    """The same failure for every id."""
    answer = Answer(None, code, message)
    return dict.fromkeys(ids, answer)


def readable(text: str) -> str:
    """A service's own words, fit for a screen and a file: on one line, no control characters, not too long."""
    line = " ".join(text[: 4 * _MOST_TEXT].split())
    line = "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in line)
    return line if len(line) <= _MOST_TEXT else f"{line[:_MOST_TEXT]}…"


EventKind = Literal[
    "ready",
    "hint",
    "waiting",
    "warning",
    "failure",
    "changed",
    "breaker",
    "pause",
    "resume",
    "stop",
    "restart",
    "encoding",
]


@dataclass(frozen=True, slots=True)
class RewardEvent:
    """Something a person may want to know: `subject` is a service or a reward, `message` a sentence."""

    kind: EventKind
    subject: str
    message: str


OnEvent = Callable[[RewardEvent], None]


class RewardServiceError(UserError, RuntimeError):
    """A reward service cannot be used; the message names the service, the URL and the remedy."""
