"""The report's table of what was measured: a verdict only where the interval allows one, equally many figures."""

from __future__ import annotations

import json
from pathlib import Path

from trainer.report.evaluation import Measured, evaluation_part
from trainer.report.run_folder import load_run


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
        Measured("color", "0.500", "0.400 to 0.600", "-0.100 (-0.200 to -0.050)", "down"),
        Measured("hps", "0.200", "0.100 to 0.300", "+0.000 (-0.100 to +0.100)", ""),
        Measured("unigenbench", "66.2", "60.0 to 100.0", "–", ""),
    )
