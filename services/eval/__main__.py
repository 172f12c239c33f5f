"""`python -m services.eval [serve|run|compare|table] ...`; each command's --help names its flags."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from services.eval import table
from services.eval.report import comparison_text, load_results, table_text, write_report
from services.eval.runner import run
from services.eval.settings import CompareSettings, EvalSettings, RunSettings, TableSettings, make_scorer
from services.kit.commands import Command, dispatch
from services.kit.judge.client import JudgeError
from services.kit.judge.passthrough import PassThrough
from services.kit.run import serve
from services.kit.settings import load_settings

USAGE = """\
usage: python -m services.eval [serve] [flags]                    serve the judge as a reward (the default)
       python -m services.eval run --prompts FILE --images DIR --out DIR [flags]
                                                                  judge a folder of images; resumes where it stopped
       python -m services.eval table RUN [flags]                  write a run's table and page again
       python -m services.eval compare A B [flags]                differences of two runs, paired by image

Each command's --help names its flags; each flag is also a variable, such as EVAL_JUDGE_URL."""


def serve_command(arguments: Sequence[str]) -> None:
    settings = load_settings(EvalSettings, arguments, prog="python -m services.eval")
    try:
        scorer = make_scorer(settings)
    except (OSError, ValueError) as error:
        raise SystemExit(f"eval did not start: {error}") from error
    passing = PassThrough(scorer.client, settings.passthrough_limit)
    serve(lambda: scorer, settings, "eval", passing.add_routes)


def run_command(arguments: Sequence[str]) -> None:
    settings = load_settings(RunSettings, arguments, prog="python -m services.eval run")
    try:
        report = run(settings)
    except KeyboardInterrupt:
        print("\nstopped; what was judged is kept: the same command goes on from here", file=sys.stderr)
        raise SystemExit(130) from None
    except JudgeError as error:
        raise SystemExit(f"services.eval run: {error}") from error
    print(table_text(report.rows))
    failed = report.results.failed
    if failed:
        reasons = ", ".join(f"{count} {code}" for code, count in report.results.failures.items())
        print(f"{len(failed)} images without verdicts ({reasons}): the same command asks again", file=sys.stderr)
    print(f"written: {settings.out}/table.csv, table.json, page.html, results.jsonl")
    if len(failed) == len(report.results.records):
        raise SystemExit(1)


def table_command(arguments: Sequence[str]) -> None:
    settings = load_settings(TableSettings, arguments, prog="python -m services.eval table")
    print(table_text(write_report(settings.run, settings).rows))


def compare_command(arguments: Sequence[str]) -> None:
    settings = load_settings(CompareSettings, arguments, prog="python -m services.eval compare")
    a, b = load_results(settings.a), load_results(settings.b)
    rows, pairs = table.compare(a.images, b.images, resamples=settings.resamples, seed=settings.seed)
    print(comparison_text(rows))
    print(f"{pairs} images judged in both, of {len(a.images)} in A and {len(b.images)} in B")
    for what, one, other in (("model", a.plan.model, b.plan.model), ("method", a.plan.revision, b.plan.revision)):
        if one != other:
            print(f"the {what} differs, so the judge explains a part of it: A {one} | B {other}", file=sys.stderr)


COMMANDS: dict[str, Command] = {
    "serve": serve_command,
    "run": run_command,
    "table": table_command,
    "compare": compare_command,
}


def main(arguments: Sequence[str]) -> None:
    dispatch("services.eval", USAGE, COMMANDS, arguments)


if __name__ == "__main__":
    main(sys.argv[1:])
