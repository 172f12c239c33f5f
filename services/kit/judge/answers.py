"""What of a chat completion counts: whether it is whole, and what it says apart from its reasoning."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# How a server says that the model came to its own end. Some name no reason at all.
WHOLE = frozenset({None, "stop"})
CUT = "length"  # at `max_tokens`: the same question would be cut there again

_ROUNDING = 1e-3  # by which a server's log-probability of something certain may be above 0

_THOUGHT_BEGINS = re.compile(r"<think(?:ing)?>", re.IGNORECASE)
_THOUGHT_ENDS = re.compile(r"</think(?:ing)?>", re.IGNORECASE)
# U+FF01 to U+FF5E are the ASCII characters as East Asian keyboards write them; judges mix both.
_ASCII = {0xFF01 + place: 0x21 + place for place in range(94)} | {0x3000: " ", 0x3002: ".", 0xFE55: ":", 0x2236: ":"}


class BrokenOffError(ValueError):
    """The answer ended before the model was done, and not at `max_tokens`: the server sleeps, stops or failed."""


@dataclass(frozen=True)
class Answer:
    """What the judge said. `truncated`: it stopped at `max_tokens`, so the end is missing.

    Reasoning that the server sent apart stands before the text, in `<think>` tags, as where it is sent within.
    `first_token`: the likeliest first tokens, each with its log-probability, if they were asked for.
    """

    text: str
    truncated: bool
    attempts: int = 1
    seconds: float = 0.0
    completion_tokens: int = 0
    first_token: Sequence[tuple[str, float]] = ()


def read_completion(tree: Any, attempts: int = 1, seconds: float = 0.0) -> Answer:
    """The first choice of a chat completion.

    Raises BrokenOffError, and KeyError, IndexError, TypeError, AttributeError or ValueError when it is none.
    """
    choice = tree["choices"][0]
    reason = choice.get("finish_reason")
    if reason not in WHOLE and reason != CUT:
        raise BrokenOffError(f"the judge broke its answer off (finish_reason {reason!r:.40})")
    tokens = int((tree.get("usage") or {}).get("completion_tokens") or 0)
    return Answer(_text(choice["message"]), reason == CUT, attempts, seconds, tokens, _first_token(choice))


def to_ascii(text: str) -> str:
    """Full-width letters, digits and signs in their ASCII form, such as `Score：４` in that of `Score:4`."""
    return text.translate(_ASCII)


def after_thinking(text: str) -> str:
    """What is said beside the reasoning. That may have begun in the question; if it does not end, nothing follows it."""
    return _THOUGHT_BEGINS.split(_THOUGHT_ENDS.split(text)[-1])[0]


def thinking_note(text: str) -> str:
    """A clause for a message when an answer holds reasoning that never ends, else nothing."""
    if not _THOUGHT_BEGINS.search(_THOUGHT_ENDS.split(text)[-1]):
        return ""
    return (
        "; its reasoning does not end, and reasoning is no answer: if the judge does not reason, start its server "
        "without --reasoning-parser"
    )


def _text(message: Mapping[str, Any]) -> str:
    """vLLM's --reasoning-parser moves the reasoning to `reasoning` (`reasoning_content` before 0.12)."""
    content = str(message.get("content") or "")
    thought = message.get("reasoning_content") or message.get("reasoning")
    if not thought:
        return content
    return f"<think>\n{thought}\n</think>\n{content}" if content.strip() else f"<think>\n{thought}"


def _first_token(choice: Mapping[str, Any]) -> tuple[tuple[str, float], ...]:
    """Empty where the server sent no log-probabilities."""
    places = (choice.get("logprobs") or {}).get("content") or []
    tops = places[0].get("top_logprobs") or [] if places else []
    named = tuple((str(top["token"]), float(top["logprob"])) for top in tops)
    if not all(logprob <= _ROUNDING for _, logprob in named):  # false for NaN, too
        raise ValueError("a log-probability is above 0")
    return named
