"""`python -m trainer from-pairuni` and `from-t2i-r1`: a command line, or the script that has it, as a recipe of ours."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from trainer.migration.command_line import check_recipe, flag_lines, read_command_line
from trainer.migration.janus_grpo.flags import Program, flags_of
from trainer.migration.recipe_text import render

ENTRY = "grpo.py"
_NAMES: dict[Program, str] = {"pairuni": "PairUni", "t2i-r1": "T2I-R1"}


def from_command_line(program: Program, arguments: Sequence[str]) -> str:
    """The recipe, as YAML with comments. What was given and does not act is said there and on stderr.

    Args:
        arguments: the flags, with or without torchrun before them; or the path of the script alone.

    Raises:
        ConfigError: a flag that is not known, a value that we have nothing for, a file that is not here, or a recipe that could not
            be used.
    """
    from trainer.migration.janus_grpo.translation import translate  # which counts rows, and needs numpy for it

    lines, said = translate(read_command_line(program, flags_of(program), ENTRY, arguments))
    for sentence in said:
        print(f"from-{program}: {sentence}", file=sys.stderr)
    said = [*said, "Nothing is held out there: name held-out prompts under evaluation.sets, each with its task."]
    head = f"Translated from a command line of {_NAMES[program]}. A comment says what differs; docs/migration_pairuni.md why."
    text = render(lines, said, head=head, of="command line")
    check_recipe(program, flags_of(program), text)
    return text


def flags_help(program: Program) -> str:
    """Every flag, for --help."""
    head = f"Flags of {_NAMES[program]}, after torchrun or without it, or the path of the script that has them:"
    return "\n".join([head, *flag_lines(flags_of(program))])
