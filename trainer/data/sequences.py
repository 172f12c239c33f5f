"""What a row of packed training says, before any model reads it: texts and images in order, and which of them are learnt.

Every format of `trainer.data.formats` gives plans; a policy (`trainer.policies.base.ReadsPacks`) lays them out as tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

# seen: by the vision encoder, or by a native model's patches; clean: by its latents, without noise; drawn: its noised latents, whose
# velocity is learnt.
Use = Literal["seen", "clean", "drawn"]
Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True)
class Resize:
    """How an image is scaled before it is cut into patches: both sides end as multiples of `stride`.

    Attributes:
        stride: pixels.
        longest: the longer side is at most so many pixels.
        shortest: the shorter side is at least so many pixels, as far as `longest` lets it.
    """

    stride: int
    longest: int
    shortest: int


@dataclass(frozen=True)
class TextItem:
    """A piece of text.

    Attributes:
        text: what it says; the policy frames it as its checkpoints were trained.
        learnt: its tokens are predicted, with the one that ends it.
        droppable: a condition that may be left out, so that the model also learns to draw without it.
        then_image: the token that ends it is learnt as the start of an image.
        role: in a conversation, a turn of this speaker begins with this text, which may be empty where the turn begins with an image;
            None where the turn goes on, and in rows that are no conversations.
    """

    text: str
    learnt: bool = False
    droppable: bool = False
    then_image: bool = False
    role: Role | None = None


@dataclass(frozen=True)
class ImageItem:
    """An image, read in one way. One that is read in two ways is two items.

    Attributes:
        path: the file.
        use: how it is read.
        droppable: as for texts.
        resize: how it is scaled; None is the policy's own way.
        among: how many images of its conversation share the pixels that one alone may have; a policy says how.
    """

    path: str
    use: Use
    droppable: bool = False
    resize: Resize | None = None
    among: int = 1


Item = TextItem | ImageItem


@dataclass(frozen=True)
class SequencePlan:
    """A row: its items in order.

    Attributes:
        id: file and row, for messages.
        items: at least one of them is learnt or drawn.
    """

    id: str
    items: tuple[Item, ...]


class Plans(Protocol):
    """The rows of a data set, read one at a time: memory does not grow with the file."""

    @property
    def name(self) -> str:
        """The data set, for messages and metrics."""
        ...

    def __len__(self) -> int: ...

    def plan(self, number: int) -> SequencePlan:
        """Row `number`, from 0; the same each time. Called by several threads at once. Raises DataError naming file, row and field
        where it cannot be used."""
        ...
