"""ZeRO's stages on one card: there is nothing to share out, so the weights are those without it, up to rounding."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.first_gpu.rows import Row
from benchmarks.first_gpu.runs import STEPS, apart, metrics, run, tensors
from benchmarks.first_gpu.setting import Setting

LARGEST = 1e-3


def measure(setting: Setting) -> Iterator[Row]:
    def weights(name: str, *words: str) -> tuple[dict[str, object], float]:
        folder = run(setting, name, *words)
        kept = {key: value for key, value in tensors(folder).items() if key.endswith(" weight")}
        return kept, metrics(folder)[-1]["time/total"]

    plain, took = weights("plain")
    yield setting.row("without ZeRO, s a step", took)
    for stage in (1, 2, 3):
        shared, took = weights(f"zero{stage}", f"distributed.deepspeed=configs/deepspeed/zero{stage}.json")
        different = apart(shared, plain)
        yield setting.row(
            f"stage {stage}: weights after {STEPS} steps, largest relative difference",
            different,
            goal=f"<= {LARGEST:g}",
            reached=different <= LARGEST,
            note=f"{took:.3g} s a step",
        )
