"""`python -m services.geneval --detector FOLDER --clip FOLDER`; --help names all flags."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from services.common.run import serve
from services.common.settings import load_settings
from services.geneval.settings import GenevalSettings, make_scorer


def main(arguments: Sequence[str]) -> None:
    settings = load_settings(GenevalSettings, arguments, prog="python -m services.geneval")
    serve(lambda: make_scorer(settings), settings, "geneval")


if __name__ == "__main__":
    main(sys.argv[1:])
