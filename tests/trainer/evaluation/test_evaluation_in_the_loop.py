"""Evaluation beside training, in this process, against scripted services: nothing lost, nothing twice, no stand-still."""

from __future__ import annotations

import csv
import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support import reward_servers
from tests.support.reward_servers import SCORER, Reply, ScriptedServer, good
from tests.support.trainer_runs import ROOT, read_metrics
from trainer.config import Config, ConfigError
from trainer.config.file import load_config
from trainer.evaluation.files import read_outcomes
from trainer.loop import train
from trainer.programs.rl import RlProgram

Request = dict[str, Any]
scripted = reward_servers.scripted  # the fixture
JUDGE = {**SCORER, "name": "unigenbench"}
INKS = ("red", "green", "blue")


@pytest.fixture(autouse=True)
def _from_the_root(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(ROOT)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def is_bench(request: Request) -> bool:
    return "testpoints" in request["items"][0].get("metadata", {})


def judge(request: Request) -> Reply:
    """A verdict per test point that depends on the item alone; the prompt whose index is 2 is never readable."""

    def result(item: dict[str, Any]) -> dict[str, Any]:
        if item["id"].startswith("bench-2#"):
            return {"id": item["id"], "score": None, "error": {"code": "parse_error", "message": "no <score>"}}
        names = item["metadata"]["testpoints"]
        passed = [(sum(item["id"].encode()) + n) % 2 for n in range(len(names))]
        return {
            "id": item["id"],
            "score": sum(passed) / len(passed),
            "components": {f"point_{n}": float(p) for n, p in enumerate(passed)},
            "details": {"points": [{"testpoint": name, "dimension": name} for name in names]},
        }

    reply = good(request)
    reply.body["scorer"] = JUDGE
    reply.body["results"] = [result(item) for item in request["items"]]
    return reply


def by_item(request: Request) -> Reply:
    if is_bench(request):
        return judge(request)
    return good(request, lambda item: (sum(item["id"].encode()) % 17) / 17)


@pytest.fixture
def benchmark(tmp_path: Path) -> Path:
    """Six rows in the benchmark's own columns, whose prompts the tiny policy can draw."""
    path = tmp_path / "test_prompts_en.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["index", "prompt_en", "sub_dims_en"])
        for index in range(6):
            points = ["Style", "Attribute - Color", "Text Generation"][: 1 + index % 3]
            dims = json.dumps({"Testpoints": points, "Testpoint Description": ["d"] * len(points)})
            writer.writerow([index, f'the word "QX{index + 2}Z" in {INKS[index % 3]}'.replace("5", "W"), dims])
    return path


@pytest.fixture
def small(recipe: Callable[..., Path], benchmark: Path) -> Callable[..., Config]:
    """The config of a run of six steps that is evaluated every second one, on held-out words and on the benchmark."""

    def make(server: ScriptedServer, name: str = "run", **changes: Any) -> Config:
        server.info.body["rewards"] = [SCORER, JUDGE]
        service = {"urls": [server.url], "max_attempts": 1, "timeout_s": 20.0, "max_in_flight": 4}
        reward = {"service": "svc", "canary": "none", "max_failure_rate": 1.0}
        changes = {"evaluation__alarms": {"saturation_z": None, "edge_density_z": None}, "max_steps": 6} | changes
        bench = {"name": "bench", "path": str(benchmark), "scoring": "unigenbench/en", "rewards": ["judge"]}
        bench |= {"duplicates": 2, "num_inference_steps": 2}
        path = recipe(
            name,
            rewards={
                "services": {"svc": service},
                "columns": {"r": reward, "judge": {**reward, "reward": "unigenbench"}},
            },
            data={"train": [{"path": "assets/quickstart/train.jsonl", "rewards": {"r": 1.0}}]},
            logging={"report_every": 1000, "report_to": [], "progress": False},
            **{"evaluation__sets": [bench], **changes},
        )
        return load_config(path, Config)

    return make


def evaluations(config: Config) -> dict[int, dict[str, float]]:
    """What the rows say of each evaluated step, by the step the weights are of."""
    found: dict[int, dict[str, float]] = {}
    for row in read_metrics(config.run_dir):
        numbers = {
            key: value for key, value in row.items() if key.startswith(("eval/", "stats/heldout", "stats/bench"))
        }
        if numbers:
            step = int(numbers.pop("eval/step", row["step"]))
            assert step not in found, "an evaluation came twice"
            found[step] = numbers
    return found


def pictures(config: Config) -> dict[str, list[str]]:
    folder = config.run_dir / "eval"
    return {each.name: sorted(path.name for path in each.glob("bench/*.png")) for each in sorted(folder.iterdir())}


def test_a_named_set_has_its_table_its_pictures_and_its_own_numbers(
    small: Callable[..., Config], scripted: Callable[..., ScriptedServer]
) -> None:
    config = small(scripted(by_item), max_steps=4)
    assert train(config) == 0
    found = evaluations(config)
    assert sorted(found) == [0, 2, 4]
    table = json.loads((config.run_dir / "eval/step_000004/bench/unigenbench.json").read_text())
    assert (table["pictures"], table["answered"], table["failures"]) == (12, 10, {"parse_error": 2})
    for row in found.values():
        assert row["eval/bench/overall"] == pytest.approx(table["overall_accuracy"])
        assert row["eval/bench/answered_share"] == pytest.approx(10 / 12) == row["eval/bench/judge/valid_share"]
        assert "eval/r" in row and "eval/bench/r" not in row and "stats/bench/diversity" in row
    assert "eval/r/gain" not in found[0] and found[4]["eval/r/gain"] == 0 == found[4]["eval/bench/judge/gain"]
    names = [f"{index}.{duplicate}.png" for index in range(6) for duplicate in range(2)]
    assert pictures(config) == {"step_000000": names, "step_000002": names, "step_000004": names}, "best: the first"
    outcomes = read_outcomes(config.run_dir / "eval" / "step_000004")
    assert len(outcomes) == 8 + 12 and outcomes[-1].place == ("bench", 5, 1)
    summary = json.loads((config.run_dir / "summary.json").read_text())
    assert summary["eval"]["after"]["bench/overall"] == pytest.approx(table["overall_accuracy"])
    assert (
        summary["eval"]["gain"]["r"] == {"gain": 0, "low": 0, "high": 0} and len(summary["eval"]["interval"]["r"]) == 2
    )


def test_in_the_background_the_numbers_are_those_of_waiting(
    small: Callable[..., Config], scripted: Callable[..., ScriptedServer]
) -> None:
    waiting = small(scripted(by_item), "waiting")
    server = scripted(by_item)
    background = small(server, "background", evaluation__wait=False, evaluation__max_in_flight=4)
    assert train(waiting) == train(background) == 0
    assert evaluations(background) == evaluations(waiting)
    assert [row["step"] for row in read_metrics(background.run_dir)] == list(range(7))
    sizes = [len(request["items"]) for request in server.requests if is_bench(request)]
    assert max(sizes[:-3]) == 2, "in the background few at a time; the last evaluation is waited for, four at a time"
    assert len(pictures(background)["step_000006"]) == 12 and not pictures(background)["step_000002"]


def test_training_goes_on_while_a_judge_thinks(
    small: Callable[..., Config], scripted: Callable[..., ScriptedServer]
) -> None:
    """The judge answers the first evaluation only after training has asked for the rewards of the second step: a
    trainer that waited would wait for ever."""
    trained = threading.Event()
    steps = 0.0

    def slow(request: Request) -> Reply:
        nonlocal steps
        steps += len(request["items"]) / 16 if len(request["items"]) == 8 else 0  # a step has two micro-batches of 8
        if steps > 1:
            trained.set()
        if is_bench(request) and not trained.wait(15):
            return Reply({"error": {"code": "internal", "message": "training stood still"}}, status=500)
        return by_item(request)

    config = small(scripted(slow), evaluation__wait=False, evaluation__max_in_flight=2, evaluation__every=100)
    assert train(config) == 0
    rows = read_metrics(config.run_dir)
    [late] = [row for row in rows if row.get("eval/step") == 0]
    assert late["step"] >= 1 and late["eval/bench/answered_share"] == pytest.approx(10 / 12)
    assert sorted(evaluations(config)) == [0, 6]


@pytest.mark.parametrize(
    ("ending", "save_every", "max_steps"),
    [("terminated", 100, 5), ("terminated", 100, 4), ("crashed", 2, 5), ("crashed", 3, 5)],
)
def test_an_end_while_pictures_are_scored_loses_nothing(
    small: Callable[..., Config],
    scripted: Callable[..., ScriptedServer],
    monkeypatch: pytest.MonkeyPatch,
    ending: str,
    save_every: int,
    max_steps: int,
) -> None:
    """The run ends after step 3, perhaps the one before the last, while the judge holds the pictures of step 2. From a
    checkpoint of step 3 they are sent again; from one of step 2 they are drawn again. The numbers are those of a run in
    one piece."""
    changes = {"evaluation__wait": False, "checkpoint": {"save_every": save_every}, "max_steps": max_steps}
    whole = small(scripted(by_item), "whole", **changes)
    assert train(whole) == 0
    ended = threading.Event()
    seen = 0

    def hold(request: Request) -> Reply:
        nonlocal seen
        seen += len(request["items"]) if is_bench(request) else 0
        if is_bench(request) and seen > 12:  # the first twelve are of step 0
            ended.wait(20)
        return by_item(request)

    step = RlProgram.step

    def end(program: RlProgram) -> dict[str, float | None] | None:
        if program.session.step == 3 and not ended.is_set():
            raise RuntimeError("out of memory")
        if program.session.step == 2 and not ended.is_set() and ending == "terminated":
            os.kill(os.getpid(), signal.SIGTERM)
        return step(program)

    config = small(scripted(hold), "ended", **changes)
    monkeypatch.setattr(RlProgram, "step", end)
    if ending == "terminated":
        assert train(config) == 0
    else:
        with pytest.raises(RuntimeError, match="out of memory"):
            train(config)
    assert read_metrics(config.run_dir)[-1]["step"] == 3 and sorted(evaluations(config)) == [0]
    ended.set()
    assert train(config) == 0
    assert evaluations(config) == evaluations(whole) and sorted(evaluations(whole)) == [0, 2, max_steps]
    assert [row["step"] for row in read_metrics(config.run_dir)] == list(range(max_steps + 1))


def test_a_judge_that_is_down_stops_the_run_and_is_made_up_for(
    small: Callable[..., Config], scripted: Callable[..., ScriptedServer]
) -> None:
    server = scripted(by_item)
    config = small(server, evaluation__wait=False)
    tree = config.model_dump(mode="json")
    tree["rewards"]["columns"]["judge"]["on_failure"] = "stop"
    path = config.run_dir.parent.parent / "stop.yaml"
    path.write_text(json.dumps(tree))
    config = load_config(path, Config)
    server.behave = lambda request: Reply("down", status=500) if is_bench(request) else by_item(request)
    assert train(config) == 1
    assert "on_failure is stop" in json.loads((config.run_dir / "summary.json").read_text())["stopped"]

    def recovered(request: Request) -> Reply:
        reply = good(request, lambda _: 0.5)
        reply.body["scorer"] = JUDGE if is_bench(request) else SCORER
        return reply

    server.behave = recovered
    assert train(config) == 0
    assert sorted(evaluations(config)) == [0, 2, 4, 6]


def test_a_scoring_without_a_judge_is_refused(
    small: Callable[..., Config], scripted: Callable[..., ScriptedServer]
) -> None:
    server = scripted(by_item)
    with pytest.raises(ConfigError, match=r"evaluation\.sets\.0\.scoring needs the judge's verdicts .* there are 0"):
        small(server, evaluation__sets=[{"name": "b", "path": "b.csv", "scoring": "unigenbench/en", "rewards": ["r"]}])
