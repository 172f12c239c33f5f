"""`python -m services.geneval [serve|run] ...`; each command's --help names its flags."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence

from services.geneval.settings import GenevalSettings, RunSettings, make_scorer
from services.kit.commands import Command, dispatch
from services.kit.run import serve
from services.kit.settings import load_settings

USAGE = """\
usage: python -m services.geneval [serve] --detector FOLDER --clip FOLDER [flags]   serve the scores (the default)
       python -m services.geneval run --prompts FILE --images DIR --out DIR --detector FOLDER --clip FOLDER
                                                              the benchmark's table; resumes where it stopped

Each command's --help names its flags; each flag is also a variable, such as GENEVAL_DETECTOR."""


def serve_command(arguments: Sequence[str]) -> None:
    settings = load_settings(GenevalSettings, arguments, prog="python -m services.geneval")
    serve(lambda: make_scorer(settings), settings, "geneval")


def run_command(arguments: Sequence[str]) -> None:
    """Raises ValueError or OSError."""
    settings = load_settings(RunSettings, arguments, prog="python -m services.geneval run")
    from services.geneval.runner import run
    from services.geneval.table import table_text

    try:
        report = run(settings, settings.scorer())
    except KeyboardInterrupt:
        print("\nstopped; what was judged is kept: the same command goes on from here", file=sys.stderr)
        raise SystemExit(130) from None
    print(table_text(report.lines))
    if report.failed:
        reasons = ", ".join(f"{count} {code}" for code, count in Counter(r["code"] for r in report.failed).items())
        print(f"{len(report.failed)} images without a verdict ({reasons})", file=sys.stderr)
    print(f"written: {settings.out}/table.csv, table.json, results.jsonl")
    if len(report.failed) == len(report.records):
        raise SystemExit(1)


COMMANDS: dict[str, Command] = {"serve": serve_command, "run": run_command}


def main(arguments: Sequence[str]) -> None:
    dispatch("services.geneval", USAGE, COMMANDS, arguments)


if __name__ == "__main__":
    main(sys.argv[1:])
