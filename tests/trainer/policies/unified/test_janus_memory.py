"""What the doctor says a step of Janus takes: held to the bytes that torch allocates at small size, and what it is for real sizes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.allocations import peak_bytes
from tests.support.tiny_deepseek import published_fields
from tests.support.tiny_janus import make_janus
from trainer.config import Config
from trainer.doctor.machine import check_memory
from trainer.doctor.weights import held_bytes, sizes, working
from trainer.policies.registry import build_policy
from trainer.policies.unified.draw import ImagePlan
from trainer.policies.unified.images import ImagePolicy
from trainer.policies.unified.janus.memory import PROMPT_TOKENS
from trainer.types import Prompt

ROWS = 8
# A trunk whose activations are most of what is allocated, as in a real one.
WIDE = {"hidden_size": 128, "intermediate_size": 352, "num_hidden_layers": 4, "num_attention_heads": 2}


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_janus(tmp_path_factory.mktemp("wide"), text=WIDE)


def config_of(folder: Path, tasks: dict[str, Any], **policy: Any) -> Config:
    return Config.model_validate(
        {
            "run_name": "forecast",
            "output_dir": "outputs",
            "max_steps": 1,
            "policy": {"type": "janus", "pretrained": str(folder), **policy},
            "sampling": {"type": "tasks", "prompts_per_step": 1, "tasks": tasks},
            "rewards": {
                "services": {"rules": {"urls": ["http://127.0.0.1:1"]}},
                "columns": {"pixels": {"service": "rules"}},
            },
            "data": {"train": [{"path": "pairs.jsonl", "format": "pairs"}]},
            "optim": {"lr": 1e-3},
            "evaluation": {},
        }
    )


LORA = {"rank": 2, "alpha": 4.0}
CASES = [("float32", None, False), ("float32", LORA, False), ("bfloat16", None, False), ("bfloat16", LORA, False)]


@pytest.mark.parametrize(("dtype", "lora", "again"), [*CASES, ("float32", None, True)])
def test_what_a_step_takes_is_what_is_told(wide: Path, dtype: str, lora: Any, again: bool) -> None:
    task = {"group_size": ROWS, "micro_batch_size": ROWS, "guidance_scale": 5.0, "rewards": {"pixels": 1.0}}
    config = config_of(wide, {"generate": task}, dtype=dtype, lora=lora, gradient_checkpointing=again)
    told = working(config)
    policy = build_policy(config.policy, torch.device("cpu"), keep_reference=False)
    images: ImagePolicy = policy.images
    prompt = Prompt(id="p", text="draw " * (PROMPT_TOKENS - 6), task="generate")
    assert len(images.model.read_drawing(prompt).cond_T) == PROMPT_TOKENS
    plan = ImagePlan(ROWS, 5.0)
    drawn: list[Any] = []
    if not again:  # drawn by transformers' own forward pass then, whose cache grows
        found = peak_bytes(lambda: drawn.extend(policy.sample([prompt], ROWS, list(range(ROWS)), plan)))
        # A CPU's products in bfloat16 convert keys and values into float32, a layer's at a time, of which there are few here.
        assert found == pytest.approx(told["drawing images"], rel=0.2 if dtype == "float32" else 0.3)
    else:
        drawn.extend(policy.sample([prompt], ROWS, list(range(ROWS)), plan))
    for parameter in policy.trainable.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)  # counted as held

    def train() -> None:
        images.logp(policy.trainable, drawn[0].trace).sum().backward()

    assert peak_bytes(train) == pytest.approx(told["training on images"], rel=0.2)


GIB = 1 << 30


PUBLISHED = [
    (False, None, 32.4, 4.2, 30.5),
    (False, {"rank": 32, "alpha": 64.0}, 4.4, 4.2, 25.3),
    (True, None, 130.6, 16.1, 80.1),
    (True, {"rank": 32, "alpha": 64.0}, 15.2, 16.1, 61.3),
]


@pytest.mark.parametrize(("large", "lora", "held", "drawing", "images"), PUBLISHED)
def test_forecast_of_the_published_sizes(
    large: bool, lora: Any, held: float, drawing: float, images: float, tmp_path: Path
) -> None:
    """8 + 8 rollouts of 576 tokens with guidance, from config.json alone: nothing is downloaded for it."""
    (tmp_path / "config.json").write_text(json.dumps(published_fields(large=large)))
    each = {"group_size": 8, "micro_batch_size": 8, "rewards": {"pixels": 1.0}}
    tasks = {"understand": {**each, "max_new_tokens": 512}, "generate": {**each, "guidance_scale": 5.0}}
    config = config_of(tmp_path, tasks, lora=lora)
    found = sizes(config)
    assert found is not None
    told, more = held_bytes(config, found, ranks=1), working(config)
    assert sum(told.device.values()) / GIB == pytest.approx(held, abs=0.06)
    assert more["drawing images"] / GIB == pytest.approx(drawing, abs=0.06)
    assert more["training on images"] / GIB == pytest.approx(images, abs=0.06)
    assert more.keys() == {"writing answers", "training on answers", "drawing images", "training on images"}
    (said,) = [each for each in check_memory(config) if "training on images" in each.message]
    assert said.status == "WARN" and f"training on images {images:.1f}" in said.message
    # Layers that are computed again keep their inputs alone.
    again = working(config_of(tmp_path, tasks, lora=lora, gradient_checkpointing=True))
    assert again["training on images"] < more["training on images"] / 2
