"""TensorBoard event files under `logs/tensorboard`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch.utils.tensorboard import SummaryWriter

from trainer.records.pictures import contact_sheet
from trainer.records.reporters.base import Answer, Picture, RunIdentity, table_of


class TensorBoardReporter:
    """Implements `Reporter`. What is made again after a resume replaces what was there."""

    def __init__(self, identity: RunIdentity) -> None:
        folder = identity.run_dir / "logs" / "tensorboard"
        self._writer = SummaryWriter(str(folder), purge_step=identity.first_step)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        for key, value in values.items():
            self._writer.add_scalar(key, value, global_step=step)
        self._writer.flush()

    def pictures(self, step: int, pictures: Sequence[Picture]) -> None:
        sheet_HWC = contact_sheet([picture.pixels_HWC for picture in pictures])
        self._writer.add_image("samples", sheet_HWC, global_step=step, dataformats="HWC")
        self._writer.add_text("samples", "\n\n".join(picture.caption for picture in pictures), global_step=step)
        self._writer.flush()

    def texts(self, step: int, answers: Sequence[Answer]) -> None:
        columns, rows = table_of(answers)
        lines = [columns, ["---"] * len(columns), *([_cell(value) for value in row] for row in rows)]
        self._writer.add_text("answers", "\n".join(f"| {' | '.join(line)} |" for line in lines), global_step=step)
        images = [image for answer in answers for image in answer.images[:1]]
        if images:
            self._writer.add_image("prompts", contact_sheet(images), global_step=step, dataformats="HWC")
        self._writer.flush()

    def close(self, *, crashed: bool) -> None:
        self._writer.close()


def _cell(value: str | float | None) -> str:
    """A cell of a Markdown table. Texts are quoted as code, so that no tag of theirs is taken for one of the page's."""
    if value is None:
        return "no score"
    if isinstance(value, float):
        return f"{value:.3g}"
    text = value.replace("|", "\\|").replace("`", "'").replace("\n", " ")
    return f"`{text}`" if text.strip() else ""
