"""`python -m trainer from-unireason`: a command line, the script that has it, or a stage of the paper, as a recipe of ours."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from trainer.migration.command_line import CommandLine, check_recipe, flag_lines, read_command_line
from trainer.migration.recipe_text import render
from trainer.migration.unireason.flags import ENTRY, PRESETS, flags


def from_unireason(arguments: Sequence[str]) -> str:
    """The recipe, as YAML with comments. What was given and does not act is said there and on stderr.

    Args:
        arguments: the flags, with or without torchrun before them; or the path of the script alone; or the name of a stage, and
            flags that change it.

    Raises:
        ConfigError: a flag that is not known, a value that we have nothing for, a file that is not here, or a recipe that
            could not be used.
    """
    from trainer.migration.unireason.translation import translate  # which looks for files

    lines, said = translate(read_unireason(arguments))
    for sentence in said:
        print(f"from-unireason: {sentence}", file=sys.stderr)
    said = [*said, "Nothing is held out there: packed.hold_out keeps rows of each set, whose loss is then measured."]
    head = "Translated from a command line of UniReason. A comment says what differs; docs/migration_unireason.md why."
    text = render(lines, said, head=head, of="command line")
    check_recipe("UniReason", flags(), text)
    return text


def read_unireason(arguments: Sequence[str]) -> CommandLine:
    """The flags that were typed; those of a stage before them, where its name comes first. Raises ConfigError."""
    return read_command_line("UniReason", flags(), ENTRY, arguments, PRESETS)


def unireason_help() -> str:
    """Every flag, for --help."""
    head = "Flags of UniReason, after torchrun or without it; the path of the script that has them; or a stage first, and what differs:"
    stages = [f"  {name}: {text}" for name, text in PRESETS.items()]
    return "\n".join([head, *stages, *flag_lines(flags())])
