"""A run that is stopped and taken up again has the weights of one that was not, and two equal runs have equal ones."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.first_gpu.rows import Row
from benchmarks.first_gpu.runs import STEPS, alike, apart, metrics, run, tensors
from benchmarks.first_gpu.setting import Setting


def measure(setting: Setting) -> Iterator[Row]:
    first = run(setting, "straight")
    straight, twin = tensors(first), tensors(run(setting, "twin"))
    again = alike(straight, twin)
    note = f"{STEPS} steps, weights, moments and averages; else a kernel adds up in another order each time"
    yield setting.row("two runs are alike bit for bit", again, goal="True", reached=again, note=note)
    run(setting, "stopped", steps=STEPS // 2)
    folder = run(setting, "stopped")
    same = alike(straight, tensors(folder))
    yield setting.row(
        "stopped and resumed: alike bit for bit",
        same,
        goal="True",
        reached=same if again or same else None,
        note=f"largest difference {apart(straight, tensors(folder)):.2g} of a tensor's largest number",
    )
    blocked = [row["time/checkpoint"] for row in metrics(first) if row.get("time/checkpoint")]
    yield setting.row(
        "seconds that a checkpoint held training up", max(blocked, default=None), note="2.4 M parameters; see sd3_full"
    )
