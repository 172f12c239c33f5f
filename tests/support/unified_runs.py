"""The recipe of a small run of a policy that reads and draws: pairs, a reward for each task, random weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tests.support.pair_rows import pair, side, write_pairs
from tests.support.reward_servers import Reply, ScriptedServer, good
from tests.support.tiny_janus import make_janus

COLORS = ("red", "blue", "green", "black")


def by_letters(request: dict[str, Any]) -> Reply:
    """A reward that every answer has another one of."""
    return good(request, lambda item: (sum(item["completion"].encode()) % 17) / 17)


SIMILARITIES = (0.9, 0.5, 0.0, 0.7, 0.25, 0.64, 0.81, 0.36)


def unified_changes(
    folder: Path,
    scripted: Callable[..., ScriptedServer],
    rules_url: str,
    similarities: Sequence[float] = SIMILARITIES,
) -> dict[str, Any]:
    """What such a run has in place of the sections of `recipe`: eight pairs, four a step, both tasks, groups of two sizes."""
    make_janus(folder / "model")
    rows = [
        pair(
            similarity,
            f"{'abcd'[n % 4]}.png",
            f"{'bcda'[n % 4]}.png",
            generate_ann=side(f"{'abcd'[n % 4]}.png", f"draw a {COLORS[n % 4]} disc {n}"),
            understand_ann=side(f"{'bcda'[n % 4]}.png", question=f"what color {n} ? {chr(10)}A. red{chr(10)}B. blue"),
        )
        for n, similarity in enumerate(similarities)
    ]
    data = write_pairs(folder, *rows)
    return {
        "policy": {"type": "janus", "pretrained": str(folder / "model"), "dtype": "float32", "freeze": []},
        "sampling": {
            "prompts_per_step": 4,
            "tasks": {
                "understand": {
                    "group_size": 2,
                    "micro_batch_size": 4,
                    "max_new_tokens": 6,
                    "rewards": {"words": 1.0},
                },
                "generate": {
                    "group_size": 4,
                    "micro_batch_size": 8,
                    "guidance_scale": 2.0,
                    "rewards": {"pixels": 1.0},
                },
            },
        },
        "objective": {"type": "dapo", "kl_beta": 0.05},
        "rewards": {
            "services": {"letters": {"urls": [scripted(by_letters).url]}, "rules": {"urls": [rules_url]}},
            "columns": {
                "words": {"service": "letters", "canary": "none"},
                "pixels": {"service": "rules", "reward": "jpeg_compressibility"},
            },
        },
        "data": {"train": [{"path": str(data), "format": "pairs"}]},
        "optim": {"lr": 3e-4, "schedule": "constant", "updates_per_rollout": 2},
        "evaluation": {},
    }


def with_task(changes: dict[str, Any], task: str, **fields: Any) -> dict[str, Any]:
    """The same with other fields of a task."""
    sampling = changes["sampling"]
    tasks = sampling["tasks"]
    return changes | {"sampling": sampling | {"tasks": tasks | {task: tasks[task] | fields}}}
