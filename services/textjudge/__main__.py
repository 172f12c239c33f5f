"""`python -m services.textjudge`: a gateway before a judge that runs already; --help names the flags."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from services.kit import run
from services.kit.judge.passthrough import PassThrough
from services.kit.settings import load_settings
from services.textjudge.scorer import TextJudgeScorer
from services.textjudge.settings import TextJudgeSettings


def main(arguments: Sequence[str]) -> None:
    """Serve until SIGTERM."""
    settings = load_settings(TextJudgeSettings, arguments, prog="python -m services.textjudge")
    try:
        scorer = TextJudgeScorer(settings)
        passing = PassThrough(scorer.client, settings.passthrough_limit)
        run.serve(lambda: scorer, settings, "textjudge", passing.add_routes)
    except (ValueError, OSError) as error:
        raise SystemExit(f"textjudge did not start: {error}") from error


if __name__ == "__main__":
    main(sys.argv[1:])
