"""The quickstart on this device, as a person starts it: sampling, services that the trainer starts, update, checkpoint."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator

from benchmarks.first_gpu.rows import Row
from benchmarks.first_gpu.runs import metrics
from benchmarks.first_gpu.setting import Setting

STEPS = 3


def measure(setting: Setting) -> Iterator[Row]:
    reads = not setting.tiny and all(map(importlib.util.find_spec, ("rapidocr", "onnxruntime", "cv2")))
    services = (
        "{ocr: {module: ocr, args: {mode: line, workers: 2}}, rules: {module: rules}}"
        if reads
        else "{rules: {module: rules}}"
    )
    first = (
        "ocr: {service: ocr, reward: flow_grpo}" if reads else "small: {service: rules, reward: jpeg_compressibility}"
    )
    columns = f"{{color: {{service: rules, reward: color_match}}, {first}}}"
    names = ["color", "ocr" if reads else "small"]
    rewards = ", ".join(f"{name}: 1.0" for name in names)
    small = (
        [
            "sampling.prompts_per_step=2",
            "sampling.group_size=4",
            "sampling.micro_batch_size=8",
            "optim.micro_batch_size=8",
        ]
        if setting.tiny
        else []
    )
    setting.trainer(
        "train",
        "configs/quickstart.yaml",
        "run_name=tiny_run",
        f"output_dir={setting.scratch}",
        f"max_steps={STEPS}",
        f"rewards.services={services}",
        f"rewards.columns={columns}",
        f"data.train=[{{path: assets/quickstart/train.jsonl, rewards: {{{rewards}}}}}]",
        "evaluation={}",
        "logging={report_to: [], report_every: 100000}",
        *small,
    )
    rows = [row for row in metrics(setting.scratch / "tiny_run") if "reward/color/mean" in row]
    last = rows[-1]
    yield setting.row(
        "steps taken", len(rows), goal=str(STEPS), reached=len(rows) == STEPS, note=f"rewards: {', '.join(names)}"
    )
    for name in names:
        yield setting.row(f"mean reward {name}", last[f"reward/{name}/mean"])
    for key in (
        "time/total",
        "reward_wait_share",
        "perf/mfu_rollout",
        "perf/mfu_update",
        "memory/peak_gib",
        "ratio/replay_error",
    ):
        if key in last:
            yield setting.row(f"{key} of the last step", last[key])
