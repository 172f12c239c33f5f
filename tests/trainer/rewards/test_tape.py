"""The tape by itself: what is on it, how it is cut, and what a replay says of what is not on it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support import reward_servers
from tests.support.reward_servers import SCORER, Reply, ScriptedServer, good, make_samples
from trainer.config import Config, RewardsConfig
from trainer.doctor.services import check_services
from trainer.rewards import RewardClient, RewardServiceError, TapeRecorder
from trainer.types import Sample, Scores

scripted = reward_servers.scripted  # the fixture


def config(*, failures: float = 1.0, **tape: Any) -> RewardsConfig:
    column = {"service": "svc", "canary": "none", "max_failure_rate": failures}
    return RewardsConfig.model_validate(
        {
            "services": {"svc": {"urls": ["http://127.0.0.1:9"], "max_attempts": 1}},
            "columns": {"a": column, "b": column},
            "canary": False,
            "tape": tape,
        }
    )


def recorder(
    folder: Path, *, rank: int = 0, world_size: int = 1, train: int = -1, evaluation: int = -1
) -> TapeRecorder:
    return TapeRecorder(folder, rank=rank, world_size=world_size, last_train=train, last_evaluation=evaluation)


def score(client: RewardClient, samples: list[Sample], step: int, columns: list[str] | None = None) -> Scores:
    batch = client.batch(columns, step=step)
    batch.submit(samples)
    return batch.collect()


def every_third_fails(request: dict[str, Any]) -> Reply:
    reply = good(request, lambda item: int(item["id"][1:]) / 7)
    for result in reply.body["results"]:
        if int(result["id"][1:]) % 3 == 0:
            result |= {"score": None, "error": {"code": "parse_error", "message": "unreadable"}}
        else:
            result |= {"components": {"sharp": 0.5}, "details": {"read": "Äß"}, "cached": True}
    return reply


def record(folder: Path, server: ScriptedServer, steps: int = 2) -> list[Scores]:
    """Steps of six samples each, and an evaluation of one reward after the last."""
    with RewardClient(config(mode="record"), urls={"svc": [server.url]}, tape=recorder(folder)) as client:
        found = [score(client, make_samples(6, {"a": 1.0, "b": 1.0}, first=step), step) for step in range(1, steps + 1)]
        return [*found, score(client, make_samples(6, {}), steps, ["b"])]


def replay(folder: Path, **changes: Any) -> RewardClient:
    return RewardClient(config(mode="replay", path=str(folder), **changes), urls={})


def test_a_replay_gives_what_was_recorded_and_asks_nobody(tmp_path: Path, scripted: Callable[..., Any]) -> None:
    server = scripted(every_third_fails)
    before = record(tmp_path / "tape", server)
    asked = len(server.requests), len(server.gets)
    with replay(tmp_path / "tape") as client:
        after = [score(client, make_samples(6, {"a": 1.0, "b": 1.0}, first=step), step) for step in (1, 2)]
        after.append(score(client, make_samples(6, {}), 2, ["b"]))
        assert {name: scorer["revision"] for name, scorer in client.scorers.state().items()} == {"a": "1", "b": "1"}
    assert (len(server.requests), len(server.gets)) == asked
    for old, new in zip(before, after, strict=True):
        assert new.scores_BR.equal(old.scores_BR) and new.valid_BR.equal(old.valid_BR)
        assert (new.details, new.failures, new.cached) == (old.details, old.failures, old.cached)
    assert after[0].failures["a"] == {"parse_error": 2} and after[0].details[0]["a"]["read"] == "Äß"


def test_a_line_is_a_sample(tmp_path: Path, scripted: Callable[..., Any]) -> None:
    record(tmp_path / "tape", scripted(every_third_fails), steps=1)
    head, *lines = map(json.loads, (tmp_path / "tape" / "rank_0.jsonl").read_text(encoding="utf-8").splitlines())
    scorer = {**SCORER, "template_sha256": None, "higher_is_better": True, "grouped": False}
    assert head == {"tape": 2, "scorers": {"a": scorer, "b": scorer}}
    assert [(line["kind"], line["step"], line["id"]) for line in lines] == [
        *(("train", 1, f"s{n}") for n in range(1, 7)),
        *(("evaluation", 1, f"s{n}") for n in range(6)),
    ]
    pixels = np.full((4, 5, 3), 1, np.uint8).tobytes()
    told = {"score": 1 / 7, "components": {"sharp": 0.5}, "details": {"read": "Äß"}, "cached": True}
    assert lines[0] == {
        "kind": "train",
        "step": 1,
        "id": "s1",
        "sha256": hashlib.sha256(pixels).hexdigest(),
        "answers": {"a": told, "b": told},
    }
    assert lines[2]["answers"]["a"] == {"score": None, "code": "parse_error", "message": "unreadable"}


def test_what_is_not_on_the_tape_is_a_failure_with_a_reason(tmp_path: Path, scripted: Callable[..., Any]) -> None:
    record(tmp_path / "tape", scripted())
    samples = make_samples(6, {"a": 1.0}, first=1)
    samples[1] = replace(samples[1], images=(samples[1].images[0] + 1,))
    with replay(tmp_path / "tape") as client:
        other = score(client, samples, 1)
        stranger = score(client, make_samples(1, {"a": 1.0}, first=50), 1)
        later = score(client, make_samples(1, {"a": 1.0}), 3)
        unasked = score(client, make_samples(1, {}), 2, ["a"])
    assert other.failures["a"] == {"not_on_tape": 1} and other.valid_BR[:, 0].tolist() == [True, False, *[True] * 4]
    told = [
        scores.details[n]["a"]["error"]["message"]
        for scores, n in ((other, 1), (stranger, 0), (later, 0), (unasked, 0))
    ]
    assert "sample s2 in training step 1 is not what was recorded (SHA-256" in told[0]
    assert "sample s50 is not on the tape in training step 1" in told[1]
    assert "training step 3 is not on the tape at" in told[2]
    assert "sample s0 was not scored by a in the evaluation after step 2" in told[3]
    assert other.stop_reason is None


def test_too_many_that_are_not_on_the_tape_stop_the_run_at_once(tmp_path: Path, scripted: Callable[..., Any]) -> None:
    record(tmp_path / "tape", scripted())
    with replay(tmp_path / "tape", failures=0.2) as client:
        reason = score(client, make_samples(6, {"a": 1.0}, first=3), 1).stop_reason
    assert reason is not None and reason.startswith("reward a: 2 of 6 scores are not on the tape; the first: sample s7")


def test_failures_on_the_tape_do_not_stop_a_replay(tmp_path: Path, scripted: Callable[..., Any]) -> None:
    """The recorded run went on with them, after whatever pause."""
    record(tmp_path / "tape", scripted(every_third_fails))
    with replay(tmp_path / "tape", failures=0.0) as client:
        assert score(client, make_samples(6, {"a": 1.0}, first=1), 1).stop_reason is None


def test_a_resume_cuts_later_steps_and_a_torn_line(tmp_path: Path, scripted: Callable[..., Any]) -> None:
    record(tmp_path / "tape", scripted(), steps=3)
    path = tmp_path / "tape" / "rank_0.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    with path.open("ab") as file:
        file.write(b'{"kind": "train", "step": 1, "id"')
    recorder(tmp_path / "tape", train=2, evaluation=2).close()
    assert path.read_bytes() == b"".join(lines[: 1 + 2 * 6])
    recorder(tmp_path / "tape", train=2, evaluation=-1).close()
    assert path.read_bytes() == b"".join(lines[: 1 + 2 * 6])
    recorder(tmp_path / "tape").close()
    assert path.read_bytes() == b""
    assert [p.name for p in path.parent.iterdir()] == ["rank_0.jsonl"]


def test_ranks_that_are_gone_are_cut_by_rank_0_and_found_by_any(tmp_path: Path, scripted: Callable[..., Any]) -> None:
    server = scripted()
    for rank in (0, 1):
        tape = recorder(tmp_path / "tape", rank=rank, world_size=2)
        with RewardClient(config(mode="record"), urls={"svc": [server.url]}, tape=tape) as client:
            for step in (1, 2):
                score(client, make_samples(2, {"a": 1.0}, first=10 * rank), step)
    with replay(tmp_path / "tape") as client:
        samples = [*make_samples(2, {"a": 1.0}, first=10), *make_samples(2, {"a": 1.0})]
        assert score(client, samples, 2).scores_BR[:, 0].tolist() == [10.0, 11.0, 0.0, 1.0]
    recorder(tmp_path / "tape", train=1).close()
    assert b'"step": 2' not in (tmp_path / "tape" / "rank_1.jsonl").read_bytes()
    assert b'"step": 1' in (tmp_path / "tape" / "rank_1.jsonl").read_bytes()


def test_a_recorder_that_was_killed_at_its_first_line_leaves_no_tape(tmp_path: Path) -> None:
    (tmp_path / "rank_0.jsonl").write_bytes(b'{"tape": 1, "revi')
    with pytest.raises(RewardServiceError, match="holds no tape"):
        RewardClient(config(mode="replay", path=str(tmp_path)), urls={}).start()


def test_a_folder_without_a_tape_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        RewardServiceError, match=r"rewards.tape.path = .* holds no tape; give the `tape` folder of a run"
    ):
        replay(tmp_path).start()


def test_a_replay_without_a_path_is_refused() -> None:
    with pytest.raises(ValueError, match="replay needs `path`"):
        config(mode="replay")


def test_the_doctor_looks_at_the_tape_and_at_no_service(tmp_path: Path, scripted: Callable[..., Any]) -> None:
    record(tmp_path / "tape", scripted())
    findings = []
    for folder in ("tape", "nowhere"):
        rewards = config(mode="replay", path=str(tmp_path / folder))
        whole = Config.model_validate(
            {
                "run_name": "again",
                "max_steps": 1,
                "rewards": rewards.model_dump(),
                "data": {"train": ({"path": "train.txt", "rewards": {"a": 1.0}},)},
            }
        )
        findings += [(finding.status, finding.message) for finding in check_services(whole, {})]
    assert [status for status, _ in findings] == ["OK", "FAIL"]
    assert "no service is asked" in findings[0][1] and "holds no tape" in findings[1][1]
