"""From the section `packed` to the groups of rows that it names."""

from __future__ import annotations

from importlib import import_module

from trainer.config.packed import PackedConfig, PackGroupConfig, PackSetConfig
from trainer.data.packing.groups import PackGroup, open_groups
from trainer.data.sequences import Plans


def read_groups(packed: PackedConfig, seed: int) -> list[PackGroup]:
    """The groups of `packed.groups`, or of UniReason's grouping file, with their files opened.

    Raises:
        DataError: a file cannot be used, with the remedy.
    """

    def open_plans(group: PackGroupConfig, each: PackSetConfig) -> Plans:
        module = "neo" if each.format == "conversations" else "unireason"
        plans: Plans = import_module(f"trainer.data.formats.{module}").open_plans(group, each, packed)
        return plans

    sections = packed.groups
    if packed.grouping is not None:
        sections = import_module("trainer.data.formats.grouping").read_grouping(packed)
    return open_groups(sections, open_plans, packed, seed)
