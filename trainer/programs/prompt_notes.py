"""What is worth knowing of a run's prompts before it starts: words that are not read, negative prompts that do not act."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from trainer.config import Config, FlowSamplingConfig
from trainer.config.paths import located
from trainer.data.overlap import readers_of_targets
from trainer.policies.registry import TextLimit, entry_of
from trainer.types import Prompt
from wire.quotes import quoted_texts


@dataclass(frozen=True)
class Note:
    """A sentence, and what can be done about it."""

    sentence: str
    remedy: str


def prompt_notes(config: Config, prompts: Sequence[Prompt]) -> list[Note]:
    """What is to be said of training and held-out prompts together.

    Raises:
        ConfigError: the tokenizers of `policy.pretrained` cannot be loaded.
    """
    limits = entry_of(config.policy).text_limits(located(config.policy))
    readers = readers_of_targets(config.rewards)
    found = [_Lost(limit) for limit in limits]
    num_negative = 0
    for prompt in prompts:  # once: those of a large file are parsed as they come
        # Held-out prompts have no weights: they are scored by all rewards or by those that the evaluation names.
        is_read = bool(readers & prompt.weights.keys()) if prompt.weights else bool(readers)
        num_negative += prompt.negative_prompt is not None
        for each in found:
            each.look(prompt, is_read)
    notes = [each.note(limits, len(prompts)) for each in found]
    return [note for note in (*notes, _idle_negative_prompts(config, num_negative, len(prompts))) if note is not None]


@dataclass
class _Lost:
    """Of the prompts that an encoder does not read to their end: all, and those texts in them that OCR looks for."""

    limit: TextLimit
    losing: list[Prompt] = field(default_factory=list)
    unread: list[tuple[Prompt, str]] = field(default_factory=list)

    def look(self, prompt: Prompt, is_read: bool) -> None:
        """`is_read`: whether OCR looks for the texts of the prompt."""
        place = self.limit.lost_from(prompt.text)
        if place is not None and is_read:
            self.unread += [(prompt, text) for text in _lost_targets(prompt, place)]
        if place is not None or (prompt.negative_prompt and self.limit.lost_from(prompt.negative_prompt) is not None):
            self.losing.append(prompt)

    def note(self, limits: Sequence[TextLimit], num_prompts: int) -> Note | None:
        limit, losing, unread = self.limit, self.losing, self.unread
        if not losing:
            return None
        sets = ", ".join(f"{name} {count}" for name, count in Counter(prompt.dataset for prompt in losing).items())
        wider = limits[limits.index(limit) + 1 :]
        others = "".join(f"; {other.encoder} reads {other.tokens}" for other in wider)
        sentence = f"{len(losing)} of {num_prompts} prompts lose words after {limit.tokens} tokens ({limit.encoder}{others}): {sets}"
        if unread:
            prompt, text = unread[0]
            count = len({id(each) for each, _ in unread})
            sentence += f"; in {count} of them that is a text that OCR looks for, first {text!r} of {prompt.id}"
        more = f"raise {limit.setting}, or shorten them" if limit.setting else "put first what matters"
        return Note(sentence, f"{more}; pictures cannot show what is not read" if unread and not wider else more)


def _lost_targets(prompt: Prompt, place: int) -> list[str]:
    """The texts OCR looks for that do not end before `place`, where they first stand in the prompt."""
    lost = []
    for text in prompt.targets or quoted_texts(prompt.text):
        start = prompt.text.find(text)
        start = prompt.text.lower().find(text.lower()) if start < 0 else start
        if start >= 0 and start + len(text) > place:
            lost.append(text)
    return lost


def _idle_negative_prompts(config: Config, count: int, num_prompts: int) -> Note | None:
    """Of negative prompts that nothing leads away from."""
    if not count or not isinstance(config.sampling, FlowSamplingConfig) or config.sampling.guidance_scale != 1.0:
        return None
    return Note(
        f"{count} of {num_prompts} prompts have a negative_prompt, and training has no guidance that leads away from it "
        "(sampling.guidance_scale = 1)",
        "set sampling.guidance_scale above 1, if they are to act",
    )
