"""TensorBoard event files under `logs/tensorboard`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch.utils.tensorboard import SummaryWriter

from trainer.records.pictures import contact_sheet
from trainer.records.reporters.base import Picture, RunIdentity


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

    def close(self, *, crashed: bool) -> None:
        self._writer.close()
