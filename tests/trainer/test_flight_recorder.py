"""What is left of a run that crashed: by itself, and through the real loop."""

from __future__ import annotations

import gc
import json
import math
import os
import signal
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from tests.support import reward_servers
from tests.support.reward_servers import Reply, ScriptedServer, good
from tests.support.trainer_runs import ROOT
from trainer.__main__ import main
from trainer.config import Config
from trainer.config.file import load_config
from trainer.loop import train
from trainer.policies.base import SamplingPlan
from trainer.policies.flow.policy import FlowPolicy
from trainer.policies.tokens.draw import TokenPlan
from trainer.processes.distributed import World
from trainer.processes.failure import OtherRankError
from trainer.records.flight.recorder import KEPT_STEPS, MAX_PICTURES, FlightRecorder
from trainer.records.flight.summary import print_flight
from trainer.types import Prompt, Sample, Scores, StopTrainingError

scripted = reward_servers.scripted  # the fixture
PLAN = SamplingPlan(num_inference_steps=4, micro_batch_size=4, stochastic_steps=(0, 1), trained_steps=(0, 1))


def drawn(count: int, side: int = 8) -> tuple[list[Sample], list[int], dict[str, Any]]:
    """Groups of four samples; their pictures are as bright as their number."""
    samples = [
        Sample(
            id=f"p{n // 4}#{n % 4}",
            group_id=f"p{n // 4}",
            prompt=Prompt(id=f"p{n // 4}", text=f"prompt {n // 4}"),
            images=(np.full((side, side, 3), n % 256, np.uint8),),
        )
        for n in range(count)
    ]
    return samples, list(range(100, 100 + count)), vars(PLAN)


def written(count: int) -> list[Sample]:
    """Answers of four to a prompt; every second one is cut off."""
    return [
        Sample(
            id=f"p{n // 4}#{n % 4}",
            group_id=f"p{n // 4}",
            prompt=Prompt(f"p{n // 4}", f"question {n // 4}", targets=("red",), source_images=("cards/7.png",)),
            text=f"<think> number {n} </think>\nred" + " again" * (200 * (n == 1)),
            tokens=tuple(range(n + 1)),
            finished=n % 2 == 0,
        )
        for n in range(count)
    ]


def test_a_crash_leaves_the_last_prompts_and_answers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With their scores and advantages, from the best to the worst; of older steps the numbers alone."""
    flight = FlightRecorder(tmp_path, World(0, 1, torch.device("cpu")), print)
    writing = TokenPlan(micro_batch_size=4, max_new_tokens=9)  # a plan within the plan is spelled as well
    plan = {"micro_batch_size": 4, "max_new_tokens": 16, "temperature": 1.0, "stop_ids": (), "think": writing}
    for step in (1, 2):
        flight.add(step, written(24), list(range(24)), plan, scored(24))
        flight.add_advantages(torch.linspace(-1, 1, 24), torch.ones(24), {"text/length": 4.5, "text/entropy": 0.25})
    flight.write(RuntimeError("boom"))
    [first, last] = json.loads((tmp_path / "flight" / "step_000002.json").read_text())["steps"]
    assert last["plan"]["think"]["max_new_tokens"] == 9
    assert "text" not in first["samples"][0] and last["samples"][2]["text"] == "<think> number 2 </think>\nred"
    capsys.readouterr()
    print_flight(tmp_path)
    lines = capsys.readouterr().out.splitlines()
    assert any(line.split()[-3:] == ["tokens", "entropy", "failed"] for line in lines)
    assert any("micro_batch_size 4, max_new_tokens 16, temperature 1; random state" in line for line in lines)
    start = lines.index("Prompts and answers of step 2:")
    assert lines[start + 1 : start + 6] == [
        "  question 0",
        "    images: cards/7.png",
        "    right answer: red",
        "     -0.7391  <think> number 3 </think> red  [ocr 6, hps 7, 4 tokens, cut off]",
        "     -0.8261  <think> number 2 </think> red  [ocr 4, hps 5, 3 tokens]",
    ]
    assert "characters)  [ocr 2, hps 3, 2 tokens, cut off]" in lines[start + 6]
    assert lines[start + 7].endswith("[ocr 0, hps timeout, 1 tokens]")
    assert lines[start + 8] == "  question 5" and "  and 2 more prompts; the record has them all" in lines
    assert not any("Pictures" in line for line in lines)


def scored(count: int) -> Scores:
    """Two rewards; the second timed out for the first sample."""
    valid_BR = torch.ones(count, 2, dtype=torch.bool)
    valid_BR[0, 1] = False
    return Scores(
        names=["ocr", "hps"],
        ids=[f"p{n // 4}#{n % 4}" for n in range(count)],
        scores_BR=torch.arange(2.0 * count).reshape(count, 2) * valid_BR,
        valid_BR=valid_BR,
        asked_BR=torch.ones(count, 2, dtype=torch.bool),
        weights_BR=torch.ones(count, 2),
        details=[
            {"ocr": {}, "hps": {"error": {"code": "timeout", "message": "late"}} if n == 0 else {}}
            for n in range(count)
        ],
        failures={"hps": Counter(timeout=1)},
    )


def add(flight: FlightRecorder, step: int, count: int, adv_B: Tensor, weight_B: Tensor, row: dict[str, Any]) -> None:
    """A whole step up to its update."""
    flight.add(step, *drawn(count), scored(count))
    flight.add_advantages(adv_B, weight_B, row)


def recorder(run_dir: Path, notes: list[str] | None = None, rank: int = 0) -> FlightRecorder:
    world = World(rank=rank, size=2, device=torch.device("cpu"))
    return FlightRecorder(run_dir, world, (notes if notes is not None else []).append)


def test_a_crash_leaves_the_last_steps_whole(tmp_path: Path) -> None:
    notes: list[str] = []
    flight = recorder(tmp_path, notes)
    for step in range(1, KEPT_STEPS + 6):
        row: dict[str, Any] = {"adv/std": 1.0}
        adv_B = torch.tensor([math.nan, 0.5, -1.5, math.inf])
        add(flight, step, 4, adv_B, torch.tensor([0.0, 1.0, 1.0, 1.0]), row)
        row |= {"grad_norm": float("nan"), "lr": 1e-4}  # the step goes on after it was added
    with pytest.raises(RuntimeError), flight.on_crash():
        raise RuntimeError("the device fell off the bus")
    path = tmp_path / "flight" / "step_000055.json"
    assert str(path) in notes[0]
    record = json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert record["error"]["message"] == "the device fell off the bus"
    assert "test_flight_recorder.py" in record["error"]["traceback"]
    assert [step["step"] for step in record["steps"]] == list(range(6, 56))
    last = record["steps"][-1]
    assert last["row"] == {"adv/std": 1.0, "grad_norm": "nan", "lr": 1e-4}
    assert last["plan"]["trained_steps"] == [0, 1] and last["prompts"] == {"p0": "prompt 0"}
    assert last["samples"][0] == {
        "id": "p0#0",
        "prompt_id": "p0",
        "seed": 100,
        "adv": "nan",
        "weight": 0.0,
        "scores": {"ocr": 0.0, "hps": None},
        "errors": {"hps": "timeout"},
    }
    assert last["samples"][3]["adv"] == "inf" and last["samples"][3]["scores"] == {"ocr": 6.0, "hps": 7.0}
    assert len(last["rng"]) == 16


def test_pictures_are_small_few_and_of_the_last_step(tmp_path: Path) -> None:
    flight = recorder(tmp_path)
    for count in (8, 80):
        flight.add(1, *drawn(count, side=200), scored(count))
    flight.write(RuntimeError("x"))
    with Image.open(tmp_path / "flight" / "step_000001.png") as sheet:
        assert sheet.size == (8 * 69 - 2, MAX_PICTURES // 8 * 69 - 2)  # every third of 200 pixels is 67, and a gap of 2
        assert sheet.getpixel((0, 0)) == (0, 0, 0) and sheet.getpixel((69, 69)) == (9, 9, 9)


def test_no_picture_of_a_step_stays_in_memory(tmp_path: Path) -> None:
    flight, step = recorder(tmp_path), drawn(4)
    gone = weakref.ref(step[0][0].images[0])
    flight.add(1, *step, scored(4))
    del step
    gc.collect()
    assert gone() is None


def test_ranks_write_files_of_their_own(tmp_path: Path) -> None:
    for rank in (0, 1):
        flight = recorder(tmp_path, rank=rank)
        flight.add(3, *drawn(4), scored(4))
        flight.write(StopTrainingError("x"))
    names = [path.name for path in sorted((tmp_path / "flight").glob("*.json"))]
    assert names == ["step_000003.json", "step_000003_rank1.json"]


def test_a_record_that_cannot_be_written_hides_nothing(tmp_path: Path) -> None:
    (tmp_path / "flight").write_text("a file in the way")
    notes: list[str] = []
    flight = recorder(tmp_path, notes)
    with pytest.raises(ZeroDivisionError), flight.on_crash():
        _ = 1 / 0
    assert "the flight record was not written (FileExistsError" in notes[0]


def test_the_summary_says_what_matters(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flight = recorder(tmp_path)
    for step in (1, 2):
        row = {"grad_norm": 0.25, "reward/ocr/mean": 0.5, "failed/hps/timeout": 1.0} if step == 1 else {}
        add(flight, step, 4, torch.tensor([math.nan, 0.5, -1.5, 9.0]), torch.tensor([1.0, 1, 1, 0]), row)
    flight.write(StopTrainingError("the gradient is not finite"))
    assert main(["flight", str(tmp_path)]) == 0
    told = capsys.readouterr().out
    lines = told.splitlines()
    assert lines[1] == "StopTrainingError: the gradient is not finite"
    assert lines[3].split() == [
        "step",
        "loss",
        "grad",
        "norm",
        "ratio",
        "max",
        "clipped",
        "kl",
        "trained",
        "ocr",
        "failed",
    ]
    assert lines[4].split() == ["1", "-", "0.25", "-", "-", "-", "-", "0.5", "1"]
    assert lines[5].split() == ["2", "-", "-", "-", "-", "-", "-", "-", "0"]  # it crashed in its update
    assert "Step 2: 4 samples of 1 prompts; 4 denoising steps" in told and "trained steps 0, 1;" in told
    assert "Scores that are missing: hps: timeout (1)" in told
    assert "Advantages that are not finite: p0#0" in told
    first, second = [line for line in lines if line.startswith("  p0#")][:2]
    assert first == "  p0#0: advantage nan, weight 1, ocr 0, hps timeout, seed 100, 'prompt 0'"
    assert second == "  p0#2: advantage -1.5, weight 1, ocr 4, hps 5, seed 102, 'prompt 0'"  # p0#3 trains nothing
    assert str(tmp_path / "flight" / "step_000002.png") in told


def test_a_folder_without_a_record_is_said_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["flight", str(tmp_path)]) == 2
    assert "no flight record under" in capsys.readouterr().err


def test_adding_a_large_step_is_quick(tmp_path: Path) -> None:
    """512 pictures of 512 x 512: a step that takes minutes to sample. The bound is generous; see docs for the number."""
    flight, step, scores = recorder(tmp_path), drawn(512, side=512), scored(512)
    started = time.perf_counter()
    flight.add(1, *step, scores)
    assert time.perf_counter() - started < 5


@pytest.fixture
def small(
    recipe: Callable[..., Path], scripted: Callable[..., ScriptedServer], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Config]]:
    """The config of a short run against a scripted server."""
    monkeypatch.chdir(ROOT)
    threads = torch.get_num_threads()

    def make(behave: Callable[[dict[str, Any]], Reply], **changes: Any) -> Config:
        rewards = {
            "services": {"svc": {"urls": [scripted(behave).url], "max_attempts": 1}},
            "columns": {"r": {"service": "svc", "canary": "none", "on_failure": "stop"}},
        }
        data = {"train": [{"path": "assets/quickstart/train.jsonl", "rewards": {"r": 1.0}}]}
        logging = {"report_to": [], "progress": False}
        path = recipe("run", rewards=rewards, data=data, logging=logging, evaluation={}, max_steps=3, **changes)
        return load_config(path, Config)

    yield make
    torch.set_num_threads(threads)


def test_a_gradient_that_is_not_finite_leaves_its_own_step(
    small: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The record holds the step whose update was refused, with the scores and advantages that led to it."""
    config = small(lambda request: good(request, lambda item: (sum(item["id"].encode()) % 17) / 17))
    monkeypatch.setattr("torch.nn.utils.clip_grad_norm_", lambda *_, **__: torch.tensor(math.nan))
    assert train(config) == 1
    record = json.loads((config.run_dir / "flight" / "step_000001.json").read_text())
    assert record["error"]["type"] == "StopTrainingError" and "not finite" in record["error"]["message"]
    (step,) = record["steps"]
    assert len(step["samples"]) == 16 and step["samples"][0]["scores"]["r"] is not None
    assert "grad_norm" not in step["row"] and "adv/std" in step["row"]
    with Image.open(config.run_dir / "flight" / "step_000001.png") as sheet:
        assert sheet.width > sheet.height


def test_a_reward_that_stops_the_run_leaves_the_codes_of_its_step(
    small: Callable[..., Config], capsys: pytest.CaptureFixture[str]
) -> None:
    def one_fails(request: dict[str, Any]) -> Reply:
        reply = good(request, lambda item: 0.5)
        reply.body["results"][0] |= {"score": None, "error": {"code": "parse_error", "message": "unreadable"}}
        return reply

    config = small(one_fails)
    assert train(config) == 1
    record = json.loads((config.run_dir / "flight" / "step_000001.json").read_text())
    assert "on_failure is stop" in record["error"]["message"]
    samples = record["steps"][0]["samples"]
    assert [sample["errors"] for sample in samples].count({"r": "parse_error"}) == 2  # of two micro-batches
    assert all(sample["adv"] is None for sample in samples)
    print_flight(config.run_dir)
    told = capsys.readouterr().out
    assert "Scores that are missing: r: parse_error (2)" in told and "It crashed before its advantages:" in told


def test_an_exception_leaves_the_steps_before_with_their_whole_rows(
    small: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small(lambda request: good(request, lambda item: (sum(item["id"].encode()) % 17) / 17))
    original, calls = FlowPolicy.sample, 0

    def fail_third(self: FlowPolicy, *args: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise MemoryError("out of memory")
        return original(self, *args)

    monkeypatch.setattr(FlowPolicy, "sample", fail_third)
    with pytest.raises(MemoryError):
        train(config)
    record = json.loads((config.run_dir / "flight" / "step_000002.json").read_text())
    assert [step["row"]["step"] for step in record["steps"]] == [1, 2]
    rows = [json.loads(line) for line in (config.run_dir / "metrics.jsonl").read_text().splitlines()]
    assert record["steps"][0]["row"]["grad_norm"] == rows[1]["grad_norm"]


def test_sigterm_is_no_crash(small: Callable[..., Config]) -> None:
    asked = 0

    def terminate(request: dict[str, Any]) -> Reply:
        nonlocal asked
        asked += 1
        if asked == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return good(request, lambda item: (sum(item["id"].encode()) % 17) / 17)

    config = small(terminate)
    assert train(config) == 0
    assert not (config.run_dir / "flight").exists()


@pytest.mark.parametrize("first", [2, 20])
def test_a_newer_record_is_shown_first(first: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also one of a lower step: the run had gone back to a checkpoint."""
    for step in (first, 10):
        flight = recorder(tmp_path)
        add(flight, step, 4, torch.zeros(4), torch.ones(4), {})
        flight.write(RuntimeError(f"crash {step}"))
    older = tmp_path / "flight" / f"step_{first:06d}.json"
    record = json.loads(older.read_text())
    record["written"] = "2026-01-02T03:04:05+00:00"
    older.write_text(json.dumps(record))
    print_flight(tmp_path)
    told = capsys.readouterr().out
    assert "RuntimeError: crash 10" in told and f"Other records: {older.name}" in told


def test_of_several_ranks_that_failed_the_first_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The other met what the first had left."""
    for rank, error in ((0, RuntimeError("out of memory")), (1, RuntimeError("a broken pipe"))):
        flight = recorder(tmp_path, rank=rank)
        add(flight, 3, 4, torch.zeros(4), torch.ones(4), {})
        flight.write(error)
    for path in (tmp_path / "flight").glob("*.json"):
        record = json.loads(path.read_text())
        record["written"] = f"2026-01-02T03:04:0{3 * record['rank']}+00:00"
        path.write_text(json.dumps(record))
    print_flight(tmp_path)
    assert "RuntimeError: out of memory" in capsys.readouterr().out


def test_of_several_ranks_the_one_that_failed_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for rank, error in ((0, OtherRankError("rank 1 failed")), (1, KeyError("missing"))):
        flight = recorder(tmp_path, rank=rank)
        add(flight, 3, 4, torch.zeros(4), torch.ones(4), {})
        flight.write(error)
    print_flight(tmp_path)
    told = capsys.readouterr().out
    assert "KeyError: 'missing'" in told and "Other records: step_000003.json" in told


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b'{"step": 4, "rank": 0, "wri', "Unterminated string"),
        (b"", "Expecting value"),
        (b"\xff\xfe", "can't decode"),
        (b"[]", "it is no JSON object"),
        (b'{"step": 4, "rank": 0, "world_size": 1, "error": {}}', "it has no steps, written"),
    ],
)
def test_a_record_that_was_cut_off_is_left_out_and_named(
    tmp_path: Path, content: bytes, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "flight").mkdir()
    (tmp_path / "flight" / "step_000004.json").write_bytes(content)
    assert main(["flight", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: no flight record under {tmp_path / 'flight'} can be read: step_000004.json (")
    assert reason in error and "look at what it printed" in error and error.count("\n") == 1

    flight = recorder(tmp_path)
    add(flight, 3, 4, torch.zeros(4), torch.ones(4), {})
    flight.write(RuntimeError("boom"))
    assert main(["flight", str(tmp_path)]) == 0
    first, second, third = capsys.readouterr().out.splitlines()[:3]
    assert first.startswith("Records that cannot be read: step_000004.json (") and reason in first
    assert "step_000003.json: rank 0" in second and third == "RuntimeError: boom"
