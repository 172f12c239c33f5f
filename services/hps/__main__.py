"""`python -m services.hps [serve|convert|vocabulary] ...`; each command's --help names its flags."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from services.hps.commands import convert_command, vocabulary_command
from services.hps.settings import HpsSettings, make_scorer
from services.kit.commands import Command, dispatch
from services.kit.run import serve
from services.kit.settings import load_settings

USAGE = """\
usage: python -m services.hps [serve] --checkpoint PATH [flags]   serve HPSv2 or HPSv2.1 (the default)
       python -m services.hps convert SOURCE OUT [flags]          write a published checkpoint as a folder
       python -m services.hps vocabulary OUT                      download CLIP's vocabulary

Each command's --help names its flags; each flag is also a variable, such as HPS_CHECKPOINT."""


def serve_command(arguments: Sequence[str]) -> None:
    settings = load_settings(HpsSettings, arguments, prog="python -m services.hps")
    serve(lambda: make_scorer(settings), settings, "hps")


COMMANDS: dict[str, Command] = {
    "serve": serve_command,
    "convert": convert_command,
    "vocabulary": vocabulary_command,
}


def main(arguments: Sequence[str]) -> None:
    dispatch("services.hps", USAGE, COMMANDS, arguments)


if __name__ == "__main__":
    main(sys.argv[1:])
