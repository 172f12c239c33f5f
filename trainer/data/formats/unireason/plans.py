"""Each of UniReason's rows as a sequence of texts and images, in the order in which its published checkpoints were trained."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from trainer.data.formats.fields import Images, image_field, image_fields, optional_text, text_field
from trainer.data.formats.unireason.instructions import Instructions
from trainer.data.formats.unireason.trace import read_trace
from trainer.data.rows.offsets import OffsetRows
from trainer.data.sequences import Item, SequencePlan, TextItem

Row = Mapping[str, Any]


@dataclass(frozen=True)
class UniReasonPlans:
    """The rows of a file as plans (`trainer.data.sequences.Plans`).

    Attributes:
        name: of the data set.
        kind: what its rows are.
        images: where images lie, and how they are scaled.
        instructions: the sentences before rows with reasoning.
    """

    name: str
    kind: str
    rows: OffsetRows
    images: Images
    instructions: Instructions

    def __len__(self) -> int:
        return len(self.rows)

    def plan(self, number: int) -> SequencePlan:
        """Row `number`, from 0. Raises DataError: it cannot be used."""
        where = self.rows.where(number)
        items = KINDS[self.kind](where, self.rows.row(number), self.images, self.instructions)
        return SequencePlan(where, tuple(items))


def _t2i(where: str, row: Row, images: Images, said: Instructions) -> list[Item]:
    """A text, then its image."""
    return [_given(text_field(where, row, "txt")), images.target(image_field(where, row, "image_path", images))]


def _edit(where: str, row: Row, images: Images, said: Instructions) -> list[Item]:
    """What is to change, the image it is to change in, then the changed one."""
    return [
        _given(text_field(where, row, "instruction")),
        *_inputs(where, row, images),
        images.target(image_field(where, row, "output_image", images)),
    ]


def _t2i_reason(where: str, row: Row, images: Images, said: Instructions) -> list[Item]:
    """As t2i, with a thought before the image."""
    return [
        _given(said.think),
        _given(text_field(where, row, "txt")),
        _thought(text_field(where, row, "Reasoning")),
        images.target(image_field(where, row, "image_path", images)),
    ]


def _edit_reason(where: str, row: Row, images: Images, said: Instructions) -> list[Item]:
    """As edit, with a thought before the changed image."""
    return [
        _given(said.think),
        _given(text_field(where, row, "instruction")),
        *_inputs(where, row, images),
        _thought(text_field(where, row, "reasoning")),
        images.target(image_field(where, row, "output_image", images)),
    ]


def _t2i_refine(where: str, row: Row, images: Images, said: Instructions) -> list[Item]:
    """A text, the plan of a draft and the draft, then the trace. The draft and its plan are not learnt."""
    plan = optional_text(where, row, "explanation").strip()
    return [
        _given(said.refine),
        _given(text_field(where, row, "prompt")),
        *([_given(plan)] if plan else []),
        *images.condition(image_field(where, row, "img_path", images)),
        *_refined(where, row, images),
    ]


def _edit_refine(where: str, row: Row, images: Images, said: Instructions) -> list[Item]:
    """What is to change, the image, a thought and the first attempt, then the trace. The attempt and its thought are not learnt."""
    return [
        _given(said.refine),
        _given(text_field(where, row, "prompt")),
        *images.condition(image_field(where, row, "before_image_path", images)),
        _given(f"<think>{optional_text(where, row, 'explanation').strip()}</think>"),
        *images.condition(image_field(where, row, "after_image_path", images)),
        *_refined(where, row, images),
    ]


def _refined(where: str, row: Row, images: Images) -> list[Item]:
    """A suggestion, the image that follows it, which is then looked at, and so on; last the suggestion after the last image.

    That one is mostly empty, which is how the model says that nothing is left to change. Every suggestion ends as if an image
    followed, the last one, too: the published checkpoints were trained so.
    """
    texts, paths = read_trace(where, row, images)
    items: list[Item] = []
    for n, text in enumerate(texts):
        items.append(TextItem(f"<sugg>{text}</sugg>", learnt=True, droppable=True, then_image=True))
        if n < len(paths):
            items += [images.target(paths[n]), *images.condition(paths[n])]
    return items


def _given(text: str) -> TextItem:
    return TextItem(text, droppable=True)


def _thought(text: str) -> TextItem:
    return TextItem(f"<think>{text.strip()}</think>", learnt=True, droppable=True)


def _inputs(where: str, row: Row, images: Images) -> list[Item]:
    """The images of an edit, all of them, each read as latents and seen."""
    return [item for path in image_fields(where, row, "input_image", images) for item in images.condition(path)]


KINDS: Mapping[str, Callable[[str, Row, Images, Instructions], list[Item]]] = {
    "t2i": _t2i,
    "edit": _edit,
    "t2i_reason": _t2i_reason,
    "edit_reason": _edit_reason,
    "t2i_refine": _t2i_refine,
    "edit_refine": _edit_refine,
}
