"""The report's table of what was measured: a verdict only where the interval allows one, equally many figures."""

from __future__ import annotations

import json
from pathlib import Path

from trainer.report.evaluation import Measured, evaluation_part
from trainer.report.result import headlines
from trainer.report.run_folder import load_run
from trainer.report.tables import evaluations


def test_intervals_gains_and_verdicts(tmp_path: Path) -> None:
    def column(name: str, value: float, low: float, high: float, *gain: float) -> dict[str, float]:
        row = {f"eval/{name}": value, f"eval/{name}/low": low, f"eval/{name}/high": high}
        if gain:
            row |= dict(zip((f"eval/{name}/{key}" for key in ("gain", "gain_low", "gain_high")), gain, strict=True))
        return row

    row = column("ocr", 0.9, 0.85, 0.95, 0.301, 0.25, 0.352) | column("color", 0.5, 0.4, 0.6, -0.1, -0.2, -0.05)
    row |= column("hps", 0.2, 0.1, 0.3, 0.0, -0.1, 0.1) | column("unigenbench", 66.25, 60.0, 100.0)
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": 10, "eval/step": 10, **row}) + "\n", encoding="utf-8")
    part = evaluation_part(load_run(tmp_path))
    assert part.step == 10
    assert part.measured == (
        Measured("ocr", "0.900", "0.850 to 0.950", "+0.301 (+0.250 to +0.352)", "up"),
        Measured("color", "0.500", "0.400 to 0.600", "−0.100 (−0.200 to −0.050)", "down"),
        Measured("hps", "0.200", "0.100 to 0.300", "0.000 (−0.100 to +0.100)", ""),
        Measured("unigenbench", "66.25", "60.00 to 100.00", "–", ""),
    )


def test_results_that_come_later_are_shown_at_the_step_whose_weights_they_are_of(tmp_path: Path) -> None:
    """`evaluation.wait: false`: the row of step 20 has what the weights after step 10 did."""
    rows = [
        {"step": 0, "eval/ocr": 0.5, "stats/heldout/saturation": 0.3},
        {"step": 20, "eval/step": 10, "eval/ocr": 0.6, "stats/heldout/saturation": 0.2, "stats/saturation": 0.1},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    run = load_run(tmp_path)
    assert run.evaluated(["eval/ocr"]) == ([0, 10], [[0.5, 0.6]])
    assert run.evaluated(["stats/heldout/saturation"])[0] == [0, 10]
    assert run.trained("stats/saturation").steps == [20], "a rollout's"
    [headline] = headlines(run)
    assert headline.change == "+0.100 at step 10"
    assert [step for step, _ in evaluations(run)[1]] == [0, 10]


def test_one_evaluation_is_no_comparison_whatever_the_summary_says(tmp_path: Path) -> None:
    """A run that was stopped before its second one: its summary has the first as the newest, too."""
    rows = [{"step": 0, "eval/ocr": 0.6}, {"step": 5}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    summary = {"steps": 5, "eval": {"before": {"ocr": 0.6}, "after": {"ocr": 0.6}}}
    (tmp_path / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    [headline] = headlines(load_run(tmp_path))
    assert (headline.after, headline.verdict) == (None, "unknown")
