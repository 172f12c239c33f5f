"""The benchmark in short: workers are killed and Redis loses its end under load, and nothing is lost or doubled."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[4]


@pytest.mark.slow
def test_every_job_is_answered_exactly_once_whoever_dies(shared_redis, tmp_path):
    out = tmp_path / "rows.json"
    command = [sys.executable, "benchmarks/redis_scale.py", "--jobs=600", "--kill-every-s=1", "--latency-ms=100"]
    command += ["--workers=3", "--fronts=2", "--visibility-s=1", f"--out={out}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    with_redis, alone = json.loads(out.read_text())["rows"]
    for row in (with_redis, alone):
        assert row["items"] == row["answered_once"] == 720
        assert (row["answered_twice"], row["wrong"], row["failed"]) == (0, 0, {})
        assert row["cache_hit_ratio"] > 0.1
    assert with_redis["kills"] >= 2 and with_redis["restarts"] == 1 and with_redis["left_in_streams"] == 0
    assert alone["refused_429"] > 0 and not alone["crashed"] and not alone["grew_too_much"]
