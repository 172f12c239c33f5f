"""From the section `packed` to the groups of rows that it names."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from trainer.config.packed import PackedConfig, PackGroupConfig, PackSetConfig, ResizeConfig
from trainer.data.formats.fields import Images
from trainer.data.formats.neo.conversations import ConversationPlans
from trainer.data.formats.unireason.grouping import read_grouping
from trainer.data.formats.unireason.instructions import Instructions, read_instructions
from trainer.data.formats.unireason.plans import UniReasonPlans
from trainer.data.packing.groups import PackGroup, open_groups
from trainer.data.rows.offsets import OffsetRows
from trainer.data.sequences import Plans, Resize


def read_groups(packed: PackedConfig, seed: int) -> list[PackGroup]:
    """The groups of `packed.groups`, or of UniReason's grouping file, with their files opened. No row is parsed.

    Raises:
        DataError: a file cannot be used, with the remedy.
    """
    sections, _ = _sections(packed)
    return open_groups(sections, partial(open_plans, read_instructions(packed)), packed, seed)


def group_notes(packed: PackedConfig) -> tuple[str, ...]:
    """What is to be said before training: which instructions are those of published checkpoints, and what of a foreign table
    does nothing. Raises DataError, likewise."""
    _, idle = _sections(packed)
    return (*read_instructions(packed).notes, *idle)


def open_plans(instructions: Instructions, group: PackGroupConfig, config: PackSetConfig) -> Plans:
    """The rows of a file. Raises DataError: it is not there, or rows cannot be found in it."""
    path = Path(config.path)
    name = config.name or path.stem
    images = Images(
        path.parent if config.image_folder is None else Path(config.image_folder),
        _resize(group.image_size),
        _resize(group.seen_size),
    )
    if config.format == "conversations":
        return ConversationPlans(name, OffsetRows(path, lists=True), images, config.frames)
    return UniReasonPlans(name, config.format, OffsetRows(path), images, instructions)


def _sections(packed: PackedConfig) -> tuple[tuple[PackGroupConfig, ...], tuple[str, ...]]:
    """The groups' sections, and what is to be said of them."""
    if packed.grouping is None or packed.registry is None:
        return packed.groups, ()
    return read_grouping(Path(packed.grouping), Path(packed.registry))


def _resize(config: ResizeConfig | None) -> Resize | None:
    return None if config is None else Resize(config.stride, config.longest, config.shortest)
