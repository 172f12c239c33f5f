"""Run folders as training leaves them, without the training: a configuration, and a checkpoint of moved weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from tests.support.checkpoints import write_checkpoint
from trainer.config import Config
from trainer.config.file import dump_config
from trainer.policies.registry import build_model

PROMPTS = "assets/quickstart/train.jsonl"


def make_run(folder: Path, policy: dict[str, Any], *, step: int = 3, **sections: Any) -> Path:
    """Write `folder/run` of this policy: trained weights moved a little from where they start, averages half as far.

    Args:
        sections: others of the configuration.
    """
    config = Config.model_validate(
        {
            "run_name": "run",
            "output_dir": str(folder),
            "max_steps": step,
            "policy": policy,
            "rewards": {
                "services": {"rules": {"urls": ("http://127.0.0.1:9",)}},
                "columns": {"color": {"service": "rules", "reward": "color_match"}},
            },
            "data": {"train": ({"path": PROMPTS, "rewards": {"color": 1.0}},)},
            **sections,
        },
        strict=True,
    )
    model = build_model(config.policy, torch.device("cpu"))
    generator = torch.Generator().manual_seed(step)
    parameters = {}
    for name, parameter in model.network.named_parameters():
        if parameter.requires_grad:
            start = parameter.detach().float()
            move = 0.05 * torch.randn(start.shape, generator=generator)
            parameters[name] = {"weight": start + move, "average": start + move / 2}
    write_checkpoint(config.run_dir / "checkpoints", step, parameters)
    (config.run_dir / "config.yaml").write_text(dump_config(config), encoding="utf-8")
    return config.run_dir
