"""Given conversations as tokens: where the assistant speaks is known, and what it says stands as if it had been drawn there.

Each answer begins where the policy would begin to write one, and its tokens are made apart from those before it. So what is
learnt is what will be sampled, whatever the tokenizer would have joined across that border.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from trainer.config import ConfigError
from trainer.config.network import LanguageSettings
from trainer.policies.base import GivenText
from trainer.policies.tokens.draw import Reading
from trainer.types import Conversation, Turn

IMAGE_MARK = "<image>"


class ReadsTurns(Protocol):
    """What a `TokenModel` has for it."""

    @property
    def config(self) -> LanguageSettings: ...

    @property
    def ends(self) -> Sequence[int]: ...

    def read_turns(self, where: str, turns: Sequence[Turn], paths: Sequence[str]) -> Reading: ...

    def rendered(self, where: str, turns: Sequence[Turn], num_images: int, *, is_asked: bool) -> str: ...

    def encode(self, text: str) -> list[int]: ...


def given_text(model: ReadsTurns, conversation: Conversation) -> GivenText:
    """The conversation up to the end of its last answer; `policy.system_prompt` begins one without a system turn.

    Raises:
        ConfigError: it has no answer, shows an image after one, its images or its beginning cannot be read, or the chat
            template rewrites turns once others follow.
    """
    where, turns = f"conversation {conversation.id}", list(conversation.turns)
    if model.config.system_prompt is not None and turns[0].role != "system":
        turns.insert(0, Turn("system", model.config.system_prompt))
    answers = [number for number, turn in enumerate(turns) if turn.role == "assistant"]
    if not answers or answers[0] == 0:
        raise ConfigError(f"{where} has no answer of an assistant to a user; leave the row out")
    first, last = answers[0], answers[-1]
    if conversation.images and any(IMAGE_MARK in turn.text for turn in turns[first:]):
        raise ConfigError(
            f"{where} shows an image after its first answer; images stand before it: cut the row into conversations, or leave it "
            "out"
        )
    reading = model.read_turns(where, turns[:first], conversation.images)
    count = len(conversation.images)
    done = model.rendered(where, turns[:first], count, is_asked=True)
    tokens: list[int] = []
    learnt: list[bool] = []
    for number, turn in enumerate(turns[first : last + 1], first):
        is_asked = turn.role != "assistant" and turns[number + 1].role == "assistant"
        whole = model.rendered(where, turns[: number + 1], count, is_asked=is_asked)
        if not whole.startswith(done):
            raise ConfigError(
                f"{where}: the chat template writes the first {number} turns otherwise once another follows, so that no answer in "
                "them can be learnt as it will be written; give one answer a conversation"
            )
        ids, counts = _turn(model, where, turn, whole.removeprefix(done), is_last=number == last)
        tokens, learnt, done = tokens + ids, learnt + counts, whole
    return GivenText(reading, tuple(tokens), tuple(learnt), len(reading.ids_T) + len(tokens))


def _turn(model: ReadsTurns, where: str, turn: Turn, written: str, *, is_last: bool) -> tuple[list[int], list[bool]]:
    """The tokens of a turn as it is written, and which are learnt: an answer, and the token that ends it."""
    if turn.role != "assistant":
        ids = model.encode(written)
        return ids, [False] * len(ids)
    text = turn.text if turn.text in written else turn.text.strip()  # some templates strip
    before, found, after = written.partition(text)
    if not found or before.strip():
        raise ConfigError(
            f"{where}: the chat template does not write the assistant's turn as it is ({written[:60]!r} for {text[:60]!r}), so "
            "it cannot be told which tokens are the answer; take another template"
        )
    answer, behind = model.encode(before + text), model.encode(after)
    ended = behind[:1] if behind and behind[0] in model.ends else [model.ends[0]] if is_last else []
    rest = [] if is_last else behind[len(ended) :]
    learnt = [True] * (len(answer) + len(ended)) + [False] * len(rest)
    return [*answer, *ended, *rest], learnt
