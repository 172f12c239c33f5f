"""What is worth knowing of a run's prompts before it starts: words that are not read, negative prompts that do not act."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

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
    # Held-out prompts have no weights: they are scored by all rewards or by those that the evaluation names.
    read = [bool(readers & prompt.weights.keys()) if prompt.weights else bool(readers) for prompt in prompts]
    notes = [_lost_words(limit, limits, prompts, read) for limit in limits]
    return [note for note in (*notes, _idle_negative_prompts(config, prompts)) if note is not None]


def _lost_words(
    limit: TextLimit, limits: Sequence[TextLimit], prompts: Sequence[Prompt], read: Sequence[bool]
) -> Note | None:
    """Of the prompts that an encoder does not read to their end; `read`: whether OCR looks for the texts of each."""
    losing: list[Prompt] = []
    unread: list[tuple[Prompt, str]] = []
    for prompt, is_read in zip(prompts, read, strict=True):
        place = limit.lost_from(prompt.text)
        if place is not None:
            lost = _lost_targets(prompt, place) if is_read else []
            unread += [(prompt, text) for text in lost]
        if place is not None or (prompt.negative_prompt and limit.lost_from(prompt.negative_prompt) is not None):
            losing.append(prompt)
    if not losing:
        return None
    sets = ", ".join(f"{name} {count}" for name, count in Counter(prompt.dataset for prompt in losing).items())
    wider = limits[limits.index(limit) + 1 :]
    others = "".join(f"; {other.encoder} reads {other.tokens}" for other in wider)
    sentence = f"{len(losing)} of {len(prompts)} prompts lose words after {limit.tokens} tokens ({limit.encoder}{others}): {sets}"
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


def _idle_negative_prompts(config: Config, prompts: Sequence[Prompt]) -> Note | None:
    """Of negative prompts that nothing leads away from."""
    count = sum(prompt.negative_prompt is not None for prompt in prompts)
    if not count or not isinstance(config.sampling, FlowSamplingConfig) or config.sampling.guidance_scale != 1.0:
        return None
    return Note(
        f"{count} of {len(prompts)} prompts have a negative_prompt, and training has no guidance that leads away from it "
        "(sampling.guidance_scale = 1)",
        "set sampling.guidance_scale above 1, if they are to act",
    )
