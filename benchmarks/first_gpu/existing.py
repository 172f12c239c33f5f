"""Benchmarks of whole models that stand by themselves, asked for what fits into minutes."""

from __future__ import annotations

import json
from collections.abc import Iterator

from benchmarks import gpu_bagel, gpu_janus
from benchmarks.first_gpu.rows import Row
from benchmarks.first_gpu.setting import Setting

TOLERANCE, GOAL_MEMORY = gpu_bagel.TOLERANCE, 0.1
_WHOLE = {
    "janus": ["--batch=32", "--rounds=2", "--answer=64"],
    "mot": ["--layers=2", "--tokens=20000", "--compare-tokens=4000", "--rounds=2"],
    "neo": ["--layers=2", "--tokens=20000", "--compare-tokens=4000", "--rounds=2"],
}
_TINY = {
    "janus": ["--tiny", "--batch=8", "--rounds=1", "--micro-batch=8", "--answer=4"],
    "mot": ["--tiny", "--tokens=400", "--compare-tokens=150", "--rounds=1"],
    "neo": ["--tiny", "--tokens=400", "--compare-tokens=150", "--rounds=1"],
}


def measure(setting: Setting, *, model: str) -> Iterator[Row]:
    out = setting.scratch / "facts.json"
    words = [*(_TINY if setting.tiny else _WHOLE)[model], f"--device={setting.device.type}", f"--out={out}"]
    if model == "janus":
        gpu_janus.main(words)
    else:
        gpu_bagel.main([*words, f"--model={model}"])
    (facts,) = json.loads(out.read_text(encoding="utf-8"))["rows"]
    for name, value in facts.items():
        if value is None or isinstance(value, dict):
            continue
        goal, reached = "", None
        if name == "peak_by_forecast":
            goal, reached = "0.9 to 1.1", setting.on_a_gpu(abs(value - 1) <= GOAL_MEMORY)
        elif name.startswith("flex_") and isinstance(value, float):
            goal, reached = f"<= {TOLERANCE:g}", value <= TOLERANCE
        elif name == "fits":
            goal, reached = "True", setting.on_a_gpu(value)
        yield setting.row(name, value, goal=goal, reached=reached)
