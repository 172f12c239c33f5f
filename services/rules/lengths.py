"""Rewards of how long a text is: near a length that was asked for, or not beyond one.

The length is counted in tokens, words or characters, as the service was told. Tokens are those of `metadata.completion_ids`,
which the trainer sends with every text that a policy has drawn token by token; nothing else says how many there were. Limits
come from the item's metadata or, where it names none, from the service's flags.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Final, Literal

from services.kit.scorer import Failure, Item, Result, Score
from services.rules.answers import no_completion
from wire.schema import ErrorCode

Unit = Literal["tokens", "words", "characters"]
REVISION: Final = "1"


@dataclass(frozen=True)
class Lengths:
    """What is counted, and the limits of items whose metadata names none; None where only the metadata does."""

    unit: Unit = "tokens"
    target: int | None = None
    longest: int | None = None
    buffer: int | None = None

    @property
    def revision(self) -> str:
        """Names all of it: another limit is another reward."""
        named = "-".join(f"{key}-{value}" for key, value in asdict(self).items() if value is not None)
        return f"{REVISION}+{named}"

    def length(self, item: Item) -> Result:
        """1 - |length - target| / target, at least 0: how near the text is to `metadata.target_length`, or --target-length.

        0 from twice the target on, and for an empty text. Without a target: `not_applicable`.
        """
        limits, count = self._limits(item, target_length=self.target), self._count(item)
        if isinstance(limits, Failure):
            return limits
        if isinstance(count, Failure):
            return count
        [target] = limits
        return Score(max(0.0, 1.0 - abs(count - target) / target), {self.unit: float(count)}, {"target": target})

    def overlong(self, item: Item) -> Result:
        """DAPO's penalty of long texts (arXiv 2503.14476, equation 13): from 0 down to -1 on the last stretch, and -1 beyond.

        The stretch is the `metadata.overlong_buffer` (--overlong-buffer) before `metadata.max_length` (--max-length).
        Without the two: `not_applicable`.
        """
        limits, count = self._limits(item, max_length=self.longest, overlong_buffer=self.buffer), self._count(item)
        if isinstance(limits, Failure):
            return limits
        if isinstance(count, Failure):
            return count
        longest, buffer = limits
        if buffer > longest:
            return Failure(
                ErrorCode.BAD_INPUT,
                f"overlong_buffer is {buffer}, more than max_length {longest}: lower it to be part of it",
            )
        penalty = min(0.0, max(-1.0, (longest - buffer - count) / buffer))
        return Score(penalty, {self.unit: float(count)}, {"max_length": longest, "overlong_buffer": buffer})

    def _count(self, item: Item) -> int | Failure:
        if item.completion is None:
            return no_completion()
        if self.unit == "characters":
            return len(item.completion)
        if self.unit == "words":
            return len(item.completion.split())
        ids = item.metadata.get("completion_ids")
        if not isinstance(ids, list):
            return Failure(
                ErrorCode.BAD_INPUT,
                "length is counted in tokens, and `metadata.completion_ids` is not there: send the ids of the completion's "
                "tokens, or start the service with --length-unit words or characters",
            )
        return len(ids)

    @staticmethod
    def _limits(item: Item, **defaults: int | None) -> list[int] | Failure:
        """The limits by the names they have in the metadata, in order."""
        found = []
        for name, default in defaults.items():
            value = item.metadata.get(name, default)
            if value is None:
                flag = name.replace("_", "-")
                return Failure(
                    ErrorCode.NOT_APPLICABLE, f"neither `metadata.{name}` nor --{flag} says how long the text shall be"
                )
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                return Failure(
                    ErrorCode.BAD_INPUT, f"`metadata.{name}` is {value!r:.80}, and a whole number from 1 on is needed"
                )
            found.append(value)
        return found
