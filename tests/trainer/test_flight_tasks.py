"""A flight record of a policy with tasks: both halves of a step are in it, each sample with its own advantage."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from trainer.policies.unified.draw import ImagePlan
from trainer.processes.distributed import World
from trainer.records.flight.recorder import FlightRecorder
from trainer.records.flight.summary import print_flight
from trainer.types import Prompt, Sample, Scores


def scored(name: str, *values: float) -> Scores:
    valid = torch.ones(len(values), 1, dtype=torch.bool)
    scores_BR = torch.tensor(values)[:, None]
    return Scores(
        [name], [f"{name}{n}" for n in range(len(values))], scores_BR, valid, valid, torch.ones_like(scores_BR)
    )


def test_both_halves_of_each_step_are_kept_with_their_own_advantages(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flight = FlightRecorder(tmp_path, World(0, 1, torch.device("cpu")), print)
    question, prompt = (
        Prompt("p/understand", "what color ?", task="understand"),
        Prompt("p/generate", "draw red", task="generate"),
    )
    pixels = np.full((4, 4, 3), 200, np.uint8)
    answers = [Sample(f"a{n}", "p", question, text=f"red {n}", tokens=(n,)) for n in range(3)]
    images = [Sample(f"i{n}", "p", prompt, images=(pixels,)) for n in range(2)]
    for step in (1, 2):
        row: dict[str, float] = {"understand/loss/policy": 0.125, "generate/loss/policy": 0.25}
        flight.add(step, answers, [1, 2, 3], {"max_new_tokens": 4}, scored("letter", 1.0, 0.0, 0.0), "understand")
        flight.add(step, images, [1, 2], vars(ImagePlan(2, guidance_scale=5.0)), scored("hps", 0.2, 0.3), "generate")
        flight.add_advantages(torch.tensor([1.5, -0.75, -0.75]), torch.ones(3), row, "understand")
        flight.add_advantages(torch.tensor([-1.0, 1.0]), torch.ones(2), row, "generate")
    flight.write(RuntimeError("boom"))
    record = json.loads((tmp_path / "flight" / "step_000002.json").read_text(encoding="utf-8"))
    assert [step["step"] for step in record["steps"]] == [1, 2]
    last = record["steps"][-1]
    told = [(sample["task"], sample["adv"], sample["scores"]) for sample in last["samples"]]
    assert told == [
        ("understand", 1.5, {"letter": 1.0}),
        ("understand", -0.75, {"letter": 0.0}),
        ("understand", -0.75, {"letter": 0.0}),
        ("generate", -1.0, {"hps": pytest.approx(0.2)}),
        ("generate", 1.0, {"hps": pytest.approx(0.3)}),
    ]
    assert last["plan"]["generate"]["guidance_scale"] == 5.0 and last["plan"]["understand"] == {"max_new_tokens": 4}
    assert [sample.get("text") for sample in last["samples"]] == ["red 0", "red 1", "red 2", None, None]
    assert (tmp_path / "flight" / "step_000002.png").is_file()
    print_flight(tmp_path)
    shown = capsys.readouterr().out
    assert "understand: max_new_tokens 4; generate: micro_batch_size 2, guidance_scale 5" in shown
    assert "understand loss" in shown and "0.125" in shown and "generate loss" in shown and "0.25" in shown
