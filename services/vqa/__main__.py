"""`python -m services.vqa`: a gateway before a judge that runs already; --help names the flags."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from services.kit import run
from services.kit.judge.passthrough import PassThrough
from services.kit.settings import load_settings
from services.vqa.scorer import VqaScorer
from services.vqa.settings import VqaSettings


def main(arguments: Sequence[str]) -> None:
    """Serve until SIGTERM."""
    settings = load_settings(VqaSettings, arguments, prog="python -m services.vqa")
    try:
        scorer = VqaScorer(settings)
        passing = PassThrough(scorer.client, settings.passthrough_limit)
        run.serve(lambda: scorer, settings, "vqa", passing.add_routes)
    except (ValueError, OSError) as error:
        raise SystemExit(f"vqa did not start: {error}") from error


if __name__ == "__main__":
    main(sys.argv[1:])
