"""A reward stays the one the run began with: its range, and what scores it, are held against every answer and every start."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.support.reward_servers import SCORER, Reply, ScriptedServer, good, make_samples
from trainer.config import RewardsConfig
from trainer.rewards import RewardClient, RewardServiceError, TapeRecorder
from trainer.rewards.identity import ScorerChange
from trainer.types import Scores

CHANGES = {
    "name": "something_else",
    "revision": "2",
    "range": [None, 9.0],
    "higher_is_better": False,
}
PATIENT = {"patience_s": 600.0, "max_failure_rate": 0.0}  # a pause would never end


class Changing:
    """A scripted server whose answers come from another scorer from some moment on."""

    def __init__(self, server: ScriptedServer, **scorer: Any) -> None:
        self.server, self.scorer = server, {**SCORER, "higher_is_better": True, "range": [0.0, 9.0], **scorer}
        server.info.body["rewards"] = [dict(self.scorer)]
        server.behave = self.answer

    def answer(self, request: dict[str, Any]) -> Reply:
        reply = good(request, lambda item: float("right" in item["id"]) if "canary" in item["id"] else 0.5)
        reply.body["scorer"] = dict(self.scorer)
        return reply


def ask(
    client: Any, *, first: int = 0, step: int = 1, micro_batches: int = 2, columns: list[str] | None = None
) -> Scores:
    batch = client.batch(columns, step=step)
    for n in range(micro_batches):
        batch.submit(make_samples(4, {"r": 1.0}, first=first + 4 * n))
    return batch.collect()


@pytest.mark.parametrize("score", [1000.0, -50.0, 1e30, 3e38, -3e38, 9.01])
def test_a_score_outside_its_range_is_no_score(scripted: Any, connect: Any, score: float) -> None:
    """Honest for the canary, and from then on one of four scores is not."""
    changing = Changing(scripted())
    client = connect(changing.server, columns={"r": {"canary": "differ"}})

    def lying(request: dict[str, Any]) -> Reply:
        reply = changing.answer(request)
        reply.body["results"][1]["score"] = score
        return reply

    changing.server.behave = lying
    scores = ask(client)
    assert scores.valid_BR[:, 0].tolist() == [True, False, True, True] * 2
    assert scores.scores_BR[:, 0].tolist() == [0.5, 0.0, 0.5, 0.5] * 2
    assert scores.failures["r"] == Counter(out_of_range=2)
    told = scores.details[1]["r"]["error"]
    assert told["code"] == "out_of_range" and "outside the range [0.0, 9.0] that scripted declares" in told["message"]
    assert f"out_of_range: scores {score}" in client.said("failure")[0]


def test_too_many_of_them_pause_and_then_stop_the_run_as_other_failures_do(scripted: Any, connect: Any) -> None:
    changing = Changing(scripted())
    client = connect(changing.server, columns={"r": {"canary": "score", "max_failure_rate": 0.5, "patience_s": 20.0}})

    def lying(request: dict[str, Any]) -> Reply:
        honest = "canary" in request["items"][0]["id"]
        reply = changing.answer(request)
        for result in reply.body["results"]:
            result["score"] = result["score"] if honest else -1.0
        return reply

    changing.server.behave = lying
    reason = ask(client).stop_reason
    assert reason is not None and "out_of_range: scores -1.0, outside the range [0.0, 9.0]" in reason


@pytest.mark.parametrize("field", CHANGES)
def test_a_scorer_that_changes_stops_the_run_at_once(scripted: Any, connect: Any, field: str) -> None:
    """Not after a pause: waiting does not make it the old one again. None of its scores is trained on."""
    changing = Changing(scripted())
    client = connect(changing.server, columns={"r": {"canary": "differ", **PATIENT}})
    assert ask(client).valid_BR.all()
    old, changing.scorer[field] = changing.scorer[field], CHANGES[field]
    scores = ask(client, first=8, step=2)
    assert not scores.valid_BR.any() and scores.failures["r"] == Counter(changed_scorer=8)
    reason = scores.stop_reason
    assert reason is not None
    for piece in (
        "reward r",
        f"{field} {old}, now {CHANGES[field]}",
        changing.server.url,
        "rewards.columns.r.on_change: accept",
    ):
        assert piece in reason
    assert len(client.said("changed")) == 1 and client.said("pause") == []
    assert client.scorers.changes == []


@pytest.mark.parametrize("field", CHANGES)
def test_a_change_that_is_accepted_is_said_once_and_kept(scripted: Any, connect: Any, field: str) -> None:
    changing = Changing(scripted())
    client = connect(changing.server, columns={"r": {"canary": "differ", "on_change": "accept", **PATIENT}})
    assert ask(client).valid_BR.all()
    old, changing.scorer[field] = changing.scorer[field], CHANGES[field]
    for step in (2, 3):
        scores = ask(client, first=8 * step, step=step)
        assert scores.valid_BR.all() and scores.stop_reason is None
    assert client.scorers.changes == [ScorerChange("r", 2, {field: old}, {field: CHANGES[field]})]
    assert client.scorers.state()["r"][field] == CHANGES[field]
    (said,) = client.said("changed")
    assert f"since step 2 the reward r comes from another scorer: {field} {old}, now {CHANGES[field]}" in said


def test_of_a_batch_with_two_scorers_one_counts(scripted: Any, connect: Any) -> None:
    """Whichever is accepted last: scores of two cannot be compared."""
    changing = Changing(scripted())

    def in_the_middle(request: dict[str, Any]) -> Reply:
        reply = changing.answer(request)
        if request["items"][0]["id"] == "s4":
            changing.scorer["revision"] = reply.body["scorer"]["revision"] = "2"
        return reply

    changing.server.behave = in_the_middle
    client = connect(changing.server, columns={"r": {"on_change": "accept"}}, max_in_flight=1)
    scores = ask(client)
    assert scores.valid_BR[:, 0].tolist() == [False] * 4 + [True] * 4
    assert scores.failures["r"] == Counter(changed_scorer=4)
    assert ask(client, first=8).valid_BR.all()


def test_two_replicas_that_take_turns_are_said_once(scripted: Any, connect: Any) -> None:
    changing = Changing(scripted())
    client = connect(changing.server, columns={"r": {"on_change": "accept", "canary": "score"}})
    for step in range(1, 7):
        changing.scorer["revision"] = str(1 + step % 2)
        assert ask(client, first=8 * step, step=step, micro_batches=1).valid_BR.all()
    assert len(client.said("changed")) == len(client.scorers.changes) == 1


def test_an_evaluation_stops_for_it_too(scripted: Any, connect: Any) -> None:
    changing = Changing(scripted())
    client = connect(changing.server, columns={"r": {"canary": "differ", **PATIENT}})
    changing.scorer["revision"] = "2"
    scores = ask(client, columns=["r"])
    assert not scores.valid_BR.any() and "revision 1, now 2" in str(scores.stop_reason)


def test_a_service_that_comes_back_from_an_outage_as_another_stops_the_run(scripted: Any, connect: Any) -> None:
    changing = Changing(scripted())
    column = {"canary": "differ", "max_failure_rate": 0.5, "patience_s": 20.0}
    client = connect(changing.server, columns={"r": column}, max_attempts=1)

    def gone_once(request: dict[str, Any]) -> Reply:
        changing.server.behave = changing.answer
        changing.scorer["revision"] = "2"
        return Reply({}, 503)

    changing.server.behave = gone_once
    assert "revision 1, now 2" in str(ask(client, micro_batches=1).stop_reason)


def test_a_url_that_differs_from_the_others_is_found_in_the_run(scripted: Any, connect: Any) -> None:
    one, other = Changing(scripted()), Changing(scripted())
    client = connect(one.server, other.server, columns={"r": PATIENT}, max_in_flight=1)
    assert ask(client).valid_BR.all()
    other.scorer["revision"] = one.scorer["revision"] = "1 patched"
    scores = ask(client, first=8)
    assert "revision 1, now 1 patched" in str(scores.stop_reason)


@pytest.mark.parametrize("field", ["name", "range", "higher_is_better"])
def test_urls_that_differ_are_refused_at_the_start(scripted: Any, connect: Any, field: str) -> None:
    reward = {} if field == "name" else {"reward": "scripted"}
    one, other = Changing(scripted()), Changing(scripted(), **{field: CHANGES[field]})
    if field == "name":
        other.server.info.body["default_reward"] = CHANGES["name"]
    client = connect(one.server, other.server, start=False, columns={"r": reward})
    with pytest.raises(
        RewardServiceError, match=rf"{field}: {one.server.url} has .*, {other.server.url} has .*one revision"
    ):
        client.start()


def test_answers_from_another_scorer_than_info_names_are_refused_by_the_canary(scripted: Any, connect: Any) -> None:
    changing = Changing(scripted())
    changing.scorer["revision"] = "2"
    client = connect(changing.server, start=False, columns={"r": {"canary": "differ"}})
    with pytest.raises(RewardServiceError, match=r"another scorer than /v1/info names \(revision 1, now 2\)"):
        client.start()


def test_without_a_canary_the_first_answer_says_what_scores(scripted: Any, connect: Any) -> None:
    changing = Changing(scripted())
    changing.scorer["revision"] = "2"
    client = connect(changing.server, columns={"r": PATIENT})
    assert ask(client).valid_BR.all()
    assert "another scorer than /v1/info names (revision 1, now 2" in client.said("warning")[0]
    changing.scorer["revision"] = "3"
    assert "revision 2, now 3" in str(ask(client, first=8).stop_reason)


@pytest.mark.parametrize("ends", [[float("nan"), 1.0], [1.0, 0.0], [0.0, float("inf")]])
def test_a_range_that_no_score_can_be_outside_of_is_refused(scripted: Any, connect: Any, ends: list[float]) -> None:
    changing = Changing(scripted(), range=ends)
    client = connect(changing.server, start=False)
    with pytest.raises(RewardServiceError, match=r"declares the range .*lowest and the highest score, finite"):
        client.start()


def state(**changes: Any) -> dict[str, Any]:
    return {"r": {**SCORER, "range": [0.0, 9.0], "higher_is_better": True, "template_sha256": None, **changes}}


def test_going_on_compares_with_what_a_checkpoint_was_trained_against(scripted: Any, connect: Any) -> None:
    changing = Changing(scripted())
    differ = {"canary": "differ"}
    assert connect(changing.server, columns={"r": differ}).go_on(state(), [], 5) == []
    for field, value in CHANGES.items():
        with pytest.raises(RewardServiceError, match=rf"reward r .*until step 5 \({field} .*on_change=accept"):
            connect(changing.server, columns={"r": differ}).go_on(state(**{field: value}), [], 5)
    client = connect(changing.server, columns={"r": {**differ, "on_change": "accept"}})
    earlier = ScorerChange("r", 2, {"revision": "-1"}, {"revision": "0"})
    assert client.go_on(state(revision="0"), [earlier.as_dict()], 5) == ["r"]
    assert client.scorers.changes == [earlier, ScorerChange("r", 6, {"revision": "0"}, {"revision": "1"})]


def test_going_on_without_a_canary_compares_the_first_answer(scripted: Any, connect: Any) -> None:
    changing = Changing(scripted())
    client = connect(changing.server, columns={"r": PATIENT})
    assert client.go_on(state(revision="0"), [], 5) == []
    assert "revision 0, now 1" in str(ask(client, step=6).stop_reason)


def tape_config(on_change: str, **tape: Any) -> RewardsConfig:
    column = {"service": "svc", "on_change": on_change, "reward": "scripted", **PATIENT}
    return RewardsConfig.model_validate(
        {"services": {"svc": {"urls": ["http://127.0.0.1:9"]}}, "columns": {"r": column}, "tape": tape}
    )


def record_a_change(folder: Path, changing: Changing) -> list[Scores]:
    tape = TapeRecorder(folder, rank=0, world_size=1, last_train=-1, last_evaluation=-1)
    urls = {"svc": [changing.server.url]}
    with RewardClient(tape_config("accept", mode="record"), urls=urls, tape=tape) as client:
        first = ask(client, step=1)
        changing.scorer["revision"] = "2"
        return [first, ask(client, first=8, step=2)]


def test_a_change_is_on_the_tape_and_a_replay_makes_it_again(scripted: Any, tmp_path: Path) -> None:
    recorded = record_a_change(tmp_path, Changing(scripted()))
    lines = (tmp_path / "rank_0.jsonl").read_text(encoding="utf-8").splitlines()
    told = {"reward": "r", "before": {"revision": "1"}, "after": {"revision": "2"}}
    assert [line for line in lines if '"change"' in line] == [lines[9]]
    assert json.loads(lines[9]) == {"kind": "change", "step": 2, **told}
    with RewardClient(tape_config("accept", mode="replay", path=str(tmp_path)), urls={}) as client:
        again = [ask(client, step=1), ask(client, first=8, step=2)]
        assert client.scorers.changes == [ScorerChange("r", 2, {"revision": "1"}, {"revision": "2"})]
    assert [scores.scores_BR.tolist() for scores in again] == [scores.scores_BR.tolist() for scores in recorded]
    with RewardClient(tape_config("stop", mode="replay", path=str(tmp_path)), urls={}) as client:
        assert ask(client, step=1).stop_reason is None
        assert "revision 1, now 2" in str(ask(client, first=8, step=2).stop_reason)
    with RewardClient(tape_config("stop", mode="replay", path=str(tmp_path)), urls={}) as client:
        assert client.go_on(state(revision="2"), [], 2) == [], "after step 2 the tape is of revision 2"
        assert ask(client, first=8, step=2).stop_reason is None
    TapeRecorder(tmp_path, rank=0, world_size=1, last_train=1, last_evaluation=1).close()
    assert "change" not in (tmp_path / "rank_0.jsonl").read_text(encoding="utf-8"), "it is noticed again after a resume"


@pytest.mark.parametrize("score", ["NaN", "Infinity", "1000.0", "-50.0"])
def test_a_number_that_the_recorded_scorer_cannot_give_is_no_score(scripted: Any, tmp_path: Path, score: str) -> None:
    """A tape that was made by something else, or changed by hand."""
    record_a_change(tmp_path, Changing(scripted()))
    path = tmp_path / "rank_0.jsonl"
    path.write_text(path.read_text(encoding="utf-8").replace('"score": 0.5', f'"score": {score}', 1), encoding="utf-8")
    with RewardClient(tape_config("accept", mode="replay", path=str(tmp_path)), urls={}) as client:
        scores = ask(client, step=1)
    assert scores.failures["r"] == Counter(out_of_range=1) and int(scores.valid_BR.sum()) == 7


def test_a_tape_of_another_reward_is_refused(scripted: Any, tmp_path: Path) -> None:
    record_a_change(tmp_path, Changing(scripted()))
    tree = tape_config("stop", mode="replay", path=str(tmp_path)).model_dump()
    tree["columns"]["r"]["reward"] = "multi"
    with pytest.raises(
        RewardServiceError, match=r"columns.r.reward = 'multi', and the tape at .* has answers of scripted"
    ):
        RewardClient(RewardsConfig.model_validate(tree), urls={}).start()
