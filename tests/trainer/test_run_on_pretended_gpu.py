"""A whole run on a pretended GPU, stopped and gone on with: start, evaluations, steps, averages, checkpoints and their way back."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.pretended_events import lines
from tests.support.pretended_gpu import GPU, pretended_gpu
from trainer.__main__ import main
from trainer.checkpoint import Checkpoint
from trainer.processes import distributed


@pytest.mark.slow
def test_a_run_waits_for_its_images_and_the_end_of_its_updates(
    recipe: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = recipe(policy={"type": "tiny", "num_layers": 1, "num_heads": 2, "head_dim": 16}, logging__progress=False)
    monkeypatch.setattr(distributed, "pick_device", lambda name: GPU)
    with pretended_gpu() as gpu:
        assert main(["train", str(path), "max_steps=2"]) == 0
        assert main(["train", str(path), "max_steps=3"]) == 0
    assert lines(gpu.events, "mixing") == {}
    found = Counter(event.where.partition(":")[0].removeprefix("trainer/") for event in gpu.events)
    checkpoint = Checkpoint.open(next((path.parent / "outputs" / "run" / "checkpoints").glob("step_*")))
    steps, evaluations = 3, 3
    copies = 5 + 1  # of each step, at each end with what its evaluation found, and taken up once
    assert found.pop("update/tally.py") == 2 * steps
    assert found.pop("policies/flow/policy.py") == found.pop("records/phases.py") == 2 * (steps + evaluations)
    tensors = sum(len(checkpoint.read(name)) for name in checkpoint.names)
    moved = sum(found.pop(f"{file}.py", 0) for file in ("engine/host", "engine/local", "update/ema"))
    assert moved == steps + copies * tensors  # a norm a step, and every tensor once each way
    assert found.keys() == {"policies/flow/tiny.py"}, found  # the weights, at each start
