"""Given conversations as tokens: where the assistant speaks is known, and what it says stands as if it had been drawn there.

Each answer begins where the policy would begin to write one, and its tokens are made apart from those before it. So what is
learnt is what will be sampled, whatever the tokenizer would have joined across that border.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor

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

    def processed(self, where: str, text: str, paths: Sequence[str]) -> tuple[Tensor, dict[str, Tensor]]: ...

    def encode(self, text: str) -> list[int]: ...

    @property
    def tokenizer(self) -> Any: ...

    @property
    def image_ids(self) -> Sequence[int]: ...


def given_text(model: ReadsTurns, conversation: Conversation) -> GivenText:
    """The conversation up to the end of its last answer; `policy.system_prompt` begins one without a system turn.

    Raises:
        ConfigError: it has no answer, shows an image in one, its images or its beginning cannot be read, or the chat template
            rewrites turns once others follow.
    """
    where, turns = f"conversation {conversation.id}", list(conversation.turns)
    if model.config.system_prompt is not None and turns[0].role != "system":
        turns.insert(0, Turn("system", model.config.system_prompt))
    answers = [number for number, turn in enumerate(turns) if turn.role == "assistant"]
    if not answers or answers[0] == 0:
        raise ConfigError(f"{where} has no answer of an assistant to a user; leave the row out")
    first, last = answers[0], answers[-1]
    images = conversation.images
    if images and any(IMAGE_MARK in turns[number].text for number in answers):
        raise ConfigError(f"{where} shows an image in an answer, which this policy cannot write; leave the row out")
    marks = [turn.text.count(IMAGE_MARK) for turn in turns]
    # Without marks all images stand in the first user turn.
    shown = [sum(marks[: number + 1]) if any(marks) else len(images) for number in range(len(turns))]
    reading = model.read_turns(where, turns[:first], images[: shown[first - 1]])
    done = model.rendered(where, turns[:first], shown[first - 1], is_asked=True)
    tokens: list[int] = []
    learnt: list[bool] = []
    for number, turn in enumerate(turns[first : last + 1], first):
        is_asked = turn.role != "assistant" and turns[number + 1].role == "assistant"
        whole = model.rendered(where, turns[: number + 1], shown[number], is_asked=is_asked)
        if not whole.startswith(done):
            raise ConfigError(
                f"{where}: the chat template writes the first {number} turns otherwise once another follows, so that no answer in "
                "them can be learnt as it will be written; give one answer a conversation"
            )
        written = whole.removeprefix(done)
        if marks[number]:
            ids = _with_images(model, where, written, images[shown[number - 1] : shown[number]])
            counts = [False] * len(ids)
        else:
            ids, counts = _turn(model, where, turn, written, is_last=number == last)
        tokens, learnt, done = tokens + ids, learnt + counts, whole
    needed = 0
    if any(marks[first : last + 1]):
        reading, needed = _with_later_images(model, where, reading, tokens, done, images[: shown[last]])
    return GivenText(reading, tuple(tokens), tuple(learnt), len(reading.ids_T) + len(tokens), needed)


def _with_images(model: ReadsTurns, where: str, written: str, paths: Sequence[str]) -> list[int]:
    """A turn with images as tokens, without what the tokenizer puts before a whole text."""
    ids_T, _ = model.processed(where, written, paths)
    ids: list[int] = ids_T.tolist()
    start: list[int] = model.tokenizer("")["input_ids"]
    return ids[len(start) :] if ids[: len(start)] == start else ids


def _with_later_images(
    model: ReadsTurns, where: str, reading: Reading, tokens: Sequence[int], text: str, paths: Sequence[str]
) -> tuple[Reading, int]:
    """The reading with what the processor makes of all images, and how many tokens behind it reach to the last of them.

    Turns are made into tokens one by one, so some processors would write an image otherwise than beside the others: they cut
    several images less finely than one, or number them. Raises ConfigError there.
    """
    whole_T, made = model.processed(where, text, paths)
    ours_T = torch.cat([reading.ids_T, torch.tensor(tokens)])
    (whole_end, whole_text), (end, own_text) = (_to_last_image(model, ids_T) for ids_T in (whole_T, ours_T))
    if whole_text != own_text:
        raise ConfigError(
            f"{where} shows an image after its first answer, and this model's processor writes an image otherwise where others "
            "stand beside it; cut the row into conversations, or leave it out"
        )
    for name, tensor in made.items():
        if name == "mm_token_type_ids":
            types_T = torch.isin(ours_T[:end], torch.tensor(list(model.image_ids))).long()
            made[name] = types_T[None].to(tensor.dtype)
    assert whole_end, "a processor writes placeholders for every image"
    return replace(reading, inputs=made, images=tuple(paths), seen=None, later=True), end - len(reading.ids_T)


def _to_last_image(model: ReadsTurns, ids_T: Tensor) -> tuple[int, str]:
    """How many tokens there are up to the last image, and their text."""
    places = torch.isin(ids_T, torch.tensor(list(model.image_ids))).nonzero()[:, 0].tolist()
    end = places[-1] + 1 if places else 0
    return end, str(model.tokenizer.decode(ids_T[:end].tolist(), skip_special_tokens=False))


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
