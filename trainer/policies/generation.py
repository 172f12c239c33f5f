"""What `python -m trainer generate` asks of a policy that writes and draws in turns, and what comes of a prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

from trainer.config.generation import GenerationConfig
from trainer.types import Prompt

if TYPE_CHECKING:
    import numpy as np

Purpose = Literal["thought", "suggestion", "answer"]


@dataclass(frozen=True)
class Written:
    """A text.

    Attributes:
        purpose: a thought before an image, a suggestion how to mend one, or an answer.
        finished: whether it ended by itself; False where it was cut off at the longest length.
    """

    purpose: Purpose
    text: str
    finished: bool = True


@dataclass(frozen=True)
class Instructions:
    """The fixed sentences before prompts that are thought about, and before those whose images are looked at and drawn again."""

    think: str
    refine: str


@dataclass(frozen=True)
class Made:
    """What came of a prompt, once: texts and images (H, W, 3), uint8, in the order in which they were made."""

    steps: tuple[Written | np.ndarray, ...]

    @property
    def images(self) -> tuple[np.ndarray, ...]:
        return tuple(step for step in self.steps if not isinstance(step, Written))

    @property
    def texts(self) -> tuple[Written, ...]:
        return tuple(step for step in self.steps if isinstance(step, Written))


@runtime_checkable
class Generates(Protocol):
    """A policy that goes on from texts and images with more of both."""

    def check_generation(self, settings: GenerationConfig) -> None:
        """Raises ConfigError where it cannot do what is asked for."""
        ...

    def generate(
        self,
        prompts_B: Sequence[Prompt],
        seeds_B: Sequence[int],
        settings: GenerationConfig,
        instructions: Instructions,
    ) -> list[Made]:
        """What comes of each prompt. It depends on the prompt, its seed and the settings alone, not on its neighbours."""
        ...
