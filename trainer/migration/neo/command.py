"""`python -m trainer from-neo`: a command line, the script that has it, or one of the published stages, as a recipe of ours."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from trainer.migration.command_line import CommandLine, check_recipe, flag_lines, read_command_line
from trainer.migration.neo.flags import ENTRY, PRESETS, flags
from trainer.migration.recipe_text import render


def from_neo(arguments: Sequence[str]) -> str:
    """The recipe, as YAML with comments. What was given and does not act is said there and on stderr.

    Args:
        arguments: the flags, with or without torchrun before them; or the path of the script alone; or the name of a published
            script, such as 2B_1PT, and flags that change it.

    Raises:
        ConfigError: a flag that is not known, a value that we have nothing for, a file that is not here, or a recipe that
            could not be used.
    """
    from trainer.migration.neo.translation import translate  # which reads the registry

    lines, said = translate(read_neo(arguments))
    for sentence in said:
        print(f"from-neo: {sentence}", file=sys.stderr)
    said = [*said, "Nothing is held out there: packed.hold_out keeps rows of each set, whose loss is then measured."]
    head = "Translated from a command line of NEO. A comment says what differs; docs/migration_neo.md why."
    text = render(lines, said, head=head, of="command line")
    check_recipe("NEO", flags(), text)
    return text


def read_neo(arguments: Sequence[str]) -> CommandLine:
    """The flags that were typed; those of a published script before them, where its name comes first. Raises ConfigError."""
    return read_command_line("NEO", flags(), ENTRY, arguments, PRESETS)


def neo_help() -> str:
    """Every flag, for --help."""
    head = "Flags of NEO, after torchrun or without it; the path of the script that has them; or a published script's name first:"
    stages = [f"  {name}: {text}" for name, text in PRESETS.items()]
    return "\n".join([head, *stages, *flag_lines(flags())])
