"""`python -m services.regression --recipe hpsv3 ...`; --help names all flags."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from services.kit.run import serve
from services.kit.settings import load_settings
from services.regression.settings import RegressionSettings, make_scorer


def main(arguments: Sequence[str]) -> None:
    settings = load_settings(RegressionSettings, arguments, prog="python -m services.regression")
    serve(lambda: make_scorer(settings), settings, "regression")


if __name__ == "__main__":
    main(sys.argv[1:])
