"""Configurations of runs with tasks, as trees and checked, for tests that only read them."""

from __future__ import annotations

from typing import Any

from trainer.config import Config

UNDERSTAND = {"group_size": 4, "micro_batch_size": 8, "temperature": 0.7, "rewards": {"letter": 1.0}}
GENERATE = {"group_size": 2, "micro_batch_size": 4, "guidance_scale": 3.0, "rewards": {"hps": 1.0}}


def task_tree(tasks: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    """A run of both tasks, or of those given, that trains on pairs."""
    return {
        "run_name": "run",
        "max_steps": 2,
        "policy": {"type": "janus", "pretrained": "model"},
        "sampling": {
            "prompts_per_step": 4,
            "tasks": {"understand": UNDERSTAND, "generate": GENERATE} if tasks is None else tasks,
        },
        "rewards": {
            "services": {"rules": {"urls": ["http://127.0.0.1:9"]}},
            "columns": {name: {"service": "rules"} for name in ("letter", "hps", "other")},
        },
        "data": {"train": [{"path": "train.jsonl", "format": "pairs"}]},
        **changes,
    }


def task_config(tasks: dict[str, Any] | None = None, **changes: Any) -> Config:
    return Config.model_validate(task_tree(tasks, **changes))


def held_out(name: str, task: str | None, *rewards: str, **fields: Any) -> dict[str, Any]:
    """A held-out set of pairs."""
    return {"name": name, "path": "heldout.jsonl", "format": "pairs", "task": task, "rewards": list(rewards), **fields}
