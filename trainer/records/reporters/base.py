"""What a place that shows a run's numbers must offer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class RunIdentity:
    """Who reports.

    Attributes:
        run_dir: reporters write under its `logs`.
        run_id: the same at every start of a run, so that a resumed run is one curve where that can be.
        project, name: how it is filed; None takes the reporter's own variable, then a default.
        first_step: the first step that will be reported now; what was reported of it and of later steps is void.
        config: the resolved configuration.
    """

    run_dir: Path
    run_id: str
    project: str | None
    name: str | None
    first_step: int
    config: Mapping[str, Any] = field(default_factory=dict)

    def part(self, name: str, written: int) -> tuple[str, str]:
        """Id and name of an offline part, of which `written` are there already.

        What was written offline cannot be taken back when a resumed run makes steps again: uploaded under one id, these would
        be there twice, mixed. Each start is a part of its own, and the run's id groups them.
        """
        if not written:
            return self.run_id, name
        return f"{self.run_id}_{written + 1}", f"{name} (part {written + 1}, from step {self.first_step})"


@dataclass(frozen=True)
class Picture:
    """A sample as it is shown: uint8 pixels (H, W, 3) and a line of text."""

    pixels_HWC: np.ndarray
    caption: str


@dataclass(frozen=True)
class Answer:
    """A text as it is shown, with its prompt.

    Attributes:
        scores: reward to number; None where there is none.
        length: tokens.
        finished: False where it was cut off.
        images: those of the prompt, uint8 (H, W, 3), small.
    """

    prompt: str
    text: str
    scores: Mapping[str, float | None]
    length: int
    finished: bool
    images: Sequence[np.ndarray] = ()


def table_of(answers: Sequence[Answer]) -> tuple[list[str], list[list[str | float | None]]]:
    """Column names and rows of a table of answers, without images: prompt, answer, each reward's score, length, finished."""
    rewards = list(dict.fromkeys(name for answer in answers for name in answer.scores))
    rows = [
        [
            answer.prompt,
            answer.text,
            *(answer.scores.get(name) for name in rewards),
            float(answer.length),
            "yes" if answer.finished else "cut off",
        ]
        for answer in answers
    ]
    return ["prompt", "answer", *rewards, "tokens", "finished"], rows


class Reporter(Protocol):
    """Takes a run's numbers, images and texts as they come. Any method may raise: the run goes on without the reporter."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """The finite numbers of a row, at least one."""
        ...

    def pictures(self, step: int, pictures: Sequence[Picture]) -> None:
        """Held-out samples of an evaluation that are images, at least one."""
        ...

    def texts(self, step: int, answers: Sequence[Answer]) -> None:
        """Held-out samples of an evaluation that are texts, at least one."""
        ...

    def close(self, *, crashed: bool) -> None:
        """Flush and end. `crashed`: an exception ended the run."""
        ...
