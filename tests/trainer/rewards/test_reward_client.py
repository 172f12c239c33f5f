"""The client as the training loop uses it, against a scripted server: what is sent, what comes back, in which order."""

from __future__ import annotations

import random
import threading
import time
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from tests.support.reward_servers import Reply, good, make_samples
from tests.support.waiting import wait_until
from trainer.config import RewardsConfig
from trainer.rewards import RewardClient, RewardServiceError
from trainer.rewards.payload import make_call


def test_scores_come_back_in_the_order_of_submission(scripted: Any, connect: Any) -> None:
    def behave(request: dict[str, Any]) -> Reply:
        reply = good(request)
        reply.body["results"].reverse()
        reply.delay_s = 0.3 if request["items"][0]["id"] == "s0" else 0.0  # the first micro-batch answers last
        return reply

    client = connect(scripted(behave))
    batch = client.batch()
    for first in (0, 4, 8):
        batch.submit(make_samples(4, {"r": 2.0}, first=first))
    scores = batch.collect()
    assert scores.ids == [f"s{i}" for i in range(12)]
    assert scores.scores_BR[:, 0].tolist() == [float(i) for i in range(12)]
    assert scores.valid_BR.all()
    assert scores.weights_BR[:, 0].tolist() == [2.0] * 12
    assert len(scores.latency_ms["r"]) == 3
    assert scores.latency_ms["r"][0] >= 300 > scores.latency_ms["r"][2]
    assert scores.last_latency_s == pytest.approx(scores.latency_ms["r"][2] / 1000)
    assert 0.25 < scores.waited_s < 3


def test_one_request_per_micro_batch_and_reward(scripted: Any, connect: Any) -> None:
    server = scripted()
    client = connect(server, columns={"a": {"reward": "scripted"}, "b": {}})
    batch = client.batch()
    batch.submit(make_samples(6, {"a": 1.0, "b": 1.0}))
    batch.submit(make_samples(2, {"a": 1.0}, first=6))
    scores = batch.collect()
    assert sorted((r.get("reward") or "-", len(r["items"])) for r in server.requests) == [
        ("-", 6),
        ("scripted", 2),
        ("scripted", 6),
    ]
    assert scores.asked_BR.tolist() == [[True, True]] * 6 + [[True, False]] * 2


def test_rewards_of_the_same_samples_send_what_was_built_once(
    scripted: Any, connect: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[int] = []

    def counted(samples: Any, *others: Any) -> Any:
        built.append(len(samples))
        return make_call(samples, *others)

    server = scripted()
    client = connect(server, columns={"a": {"reward": "scripted"}, "b": {}, "c": {"reward": "scripted"}})
    monkeypatch.setattr("trainer.rewards.batch.make_call", counted)
    batch = client.batch()
    batch.submit(make_samples(4, {"a": 1.0, "b": 1.0}) + make_samples(2, {"c": 1.0}, first=4))
    assert batch.collect().valid_BR.tolist() == [[True, True, False]] * 4 + [[False, False, True]] * 2
    assert sorted(built) == [2, 4]
    asked = sorted((len(r["items"]), r.get("reward") or "-") for r in server.requests)
    assert asked == [(2, "scripted"), (4, "-"), (4, "scripted")]
    one, other = [r["items"] for r in server.requests if len(r["items"]) == 4]
    assert one == other


def test_each_sample_goes_only_to_its_prompts_rewards(scripted: Any, connect: Any) -> None:
    server = scripted()
    client = connect(server, columns={"a": {}, "b": {}, "c": {}})
    batch = client.batch()
    batch.submit(make_samples(2, {"a": 1.0}) + make_samples(2, {"b": 0.0}, first=2))
    scores = batch.collect()
    assert scores.names == ["a", "b", "c"]
    assert scores.asked_BR.tolist() == [[True, False, False]] * 2 + [[False, True, False]] * 2
    assert torch.equal(scores.valid_BR, scores.asked_BR)
    assert sorted(item["id"] for r in server.requests for item in r["items"]) == ["s0", "s1", "s2", "s3"]


def test_explicit_columns_ask_all_samples_for_those_alone(scripted: Any, connect: Any) -> None:
    client = connect(scripted(), columns={"a": {}, "b": {}, "c": {}})
    batch = client.batch(["c", "b"])
    batch.submit(make_samples(3, {"a": 1.0, "b": 0.5}))
    scores = batch.collect()
    assert scores.names == ["c", "b"]
    assert scores.valid_BR.all()
    assert scores.weights_BR.tolist() == [[0.0, 0.5]] * 3


def test_what_the_service_is_sent(scripted: Any, connect: Any, tmp_path: Any) -> None:
    (tmp_path / "token").write_text("s3cret\n")
    server = scripted()
    client = connect(server, timeout_s=20.0, token_file=str(tmp_path / "token"))
    batch = client.batch()
    samples = make_samples(2, {"r": 1.0}, targets=("HI",), metadata={"color": "red"})
    batch.submit(samples)
    batch.collect()
    (request,), (parts,), (headers,) = server.requests, server.parts, server.headers
    item = request["items"][1]
    assert (item["group_id"], item["targets"], item["metadata"]) == ("g0", ["HI"], {"color": "red"})
    assert 15_000 < request["deadline_ms"] < 20_000  # what is left of the deadline, with time for the answer to travel
    assert parts[item["images"][0]["part"]] == samples[1].images[0].tobytes()
    assert headers["authorization"] == "Bearer s3cret"
    assert not any("s3cret" in message for message in client.said("failure"))


def test_submit_does_not_wait(scripted: Any, connect: Any) -> None:
    """The service answers when all are submitted, and not before."""
    submitted = threading.Event()

    def behave(request: dict[str, Any]) -> Reply:
        assert submitted.wait(60)
        return good(request)

    batch = connect(scripted(behave), timeout_s=60.0).batch()
    batch.submit(make_samples(16, {"r": 1.0}, size=256))
    submitted.set()
    assert batch.collect().valid_BR.all()


def test_the_order_of_answers_and_jitter_change_nothing(scripted: Any, connect: Any) -> None:
    """Two servers, random latencies, every seventh request refused with 503: the matrices are those of a quiet run."""

    def run(noise: random.Random | None) -> Any:
        count = iter(range(10_000))

        def behave(request: dict[str, Any]) -> Reply:
            if noise is None:
                return good(request)
            if next(count) % 7 == 0:
                return Reply({}, 503)
            return replace(good(request), delay_s=noise.uniform(0, 0.05))

        client = connect(scripted(behave), scripted(behave), columns={"a": {}, "b": {}}, max_attempts=20)
        batch = client.batch()
        for first in range(0, 32, 4):
            batch.submit(make_samples(4, {"a": 1.0, "b": 1.0} if first % 8 else {"b": 1.0}, first=first))
        return batch.collect()

    quiet, loud, louder = run(None), run(random.Random(1)), run(random.Random(2))
    for other in (loud, louder):
        assert other.ids == quiet.ids
        assert torch.equal(other.scores_BR, quiet.scores_BR)
        assert torch.equal(other.valid_BR, quiet.valid_BR)
        assert other.failures == quiet.failures


def test_the_trainers_random_numbers_are_left_alone(scripted: Any, connect: Any) -> None:
    random.seed(7)
    torch.manual_seed(7)
    expected = (random.random(), torch.rand(1).item())
    random.seed(7)
    torch.manual_seed(7)
    client = connect(scripted(lambda _: Reply({}, 503)), max_attempts=2)
    batch = client.batch()
    batch.submit(make_samples(2, {"r": 1.0}))
    batch.collect()
    assert (random.random(), torch.rand(1).item()) == expected


def test_shuffle_control_is_for_training_alone(scripted: Any, connect: Any) -> None:
    client = connect(scripted(), rewards={"shuffle_control": True})
    results = []
    for columns in (None, ["r"]):
        batch = client.batch(columns)
        batch.submit(make_samples(30, {"r": 1.0}))
        results.append(batch.collect().scores_BR[:, 0].tolist())
    straight = [float(i) for i in range(30)]
    assert results[0] != straight
    assert sorted(results[0]) == straight
    assert results[1] == straight


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": (np.zeros((4, 4, 3), np.float32),)}, "must be uint8"),
        ({"images": (np.zeros((3, 4, 4), np.uint8),)}, r"must be uint8 \(H, W, 3\); got uint8 \(3, 4, 4\)"),
        ({"id": "s0"}, "'s0' was submitted before"),
        ({"prompt": make_samples(1, {"nope": 1.0})[0].prompt}, "asks for the reward 'nope'; rewards.columns has: r"),
    ],
)
def test_wrong_samples_are_refused_at_once(scripted: Any, connect: Any, change: dict[str, Any], message: str) -> None:
    batch = connect(scripted()).batch()
    samples = make_samples(2, {"r": 1.0})
    with pytest.raises(ValueError, match=message):
        batch.submit([samples[0], replace(samples[1], **change)])


@pytest.mark.parametrize("on_failure", ["mask", "drop_group", "stop"])
def test_what_an_early_update_sees_has_no_failure_and_stays_as_it_is(
    scripted: Any, connect: Any, on_failure: str
) -> None:
    """Whole groups whose every reward answered: of one with a failure nothing is seen, which may drop the group later."""
    gate = threading.Event()

    def behave(request: dict[str, Any]) -> Reply:
        name = request["items"][0]["id"]
        if name == "s8":
            gate.wait(20)
        reply = good(request)
        if name == "s4":
            reply.body["results"][1] |= {"score": None, "error": {"code": "x", "message": "unreadable"}}
        return reply

    client = connect(scripted(behave), columns={"r": {"on_failure": on_failure, "max_failure_rate": 1.0}})
    batch = client.batch()
    for first in (0, 4, 8):
        batch.submit(make_samples(4, {"r": 1.0}, first=first))
    wait_until(lambda: all(future.done() for future in batch._futures[:2]), "two groups answered")
    early = batch.peek(slice(0, 4))
    assert early is not None
    assert [batch.peek(rows) for rows in (slice(4, 8), slice(0, 8), slice(8, 12))] == [None] * 3
    gate.set()
    scores = batch.collect()
    assert torch.equal(early.scores_BR, scores.scores_BR[:4]) and torch.equal(early.valid_BR, scores.valid_BR[:4])
    assert scores.valid_BR[4:8, 0].tolist() == [on_failure != "drop_group", False, *[on_failure != "drop_group"] * 2]
    assert batch.peek(slice(4, 8)) is None and batch.peek(slice(8, 12)) is not None


def test_a_batch_is_collected_once(scripted: Any, connect: Any) -> None:
    client = connect(scripted())
    batch = client.batch()
    assert batch.collect().scores_BR.shape == (0, 1)
    with pytest.raises(RuntimeError, match="collected already"):
        batch.collect()
    with pytest.raises(RuntimeError, match="collected already"):
        batch.submit(make_samples(1, {"r": 1.0}))
    with pytest.raises(ValueError, match=r"no reward column 'x'; rewards\.columns has: r"):
        client.batch(["x"])


def test_close_gives_up_what_is_under_way_and_ends_the_thread(scripted: Any, connect: Any) -> None:
    server = scripted(lambda request: replace(good(request), delay_s=20.0))
    client = connect(server, timeout_s=60.0)
    asked = len(server.requests)
    client.batch().submit(make_samples(2, {"r": 1.0}))
    until = time.monotonic() + 30
    while len(server.requests) == asked:
        assert time.monotonic() < until, "the service was not asked"
        time.sleep(0.01)
    started = time.perf_counter()
    client.close()
    assert time.perf_counter() - started < 15.0, "it waited for the answer"
    assert not any(thread.name == "reward-client" for thread in threading.enumerate())
    client.close()
    with pytest.raises(RuntimeError, match="closed"):
        client.batch()


def test_a_service_without_urls_is_named() -> None:
    config = RewardsConfig.model_validate({"launch": "local", "services": {"ocr": {"module": "ocr"}}})
    with pytest.raises(RewardServiceError, match="service ocr has no URL"):
        RewardClient(config, urls={})


def test_a_text_completion_is_scored(scripted: Any, connect: Any) -> None:
    server = scripted()
    batch = connect(server).batch()
    batch.submit([replace(make_samples(1, {"r": 1.0})[0], images=(), text="an answer")])
    assert batch.collect().valid_BR.all()
    assert server.requests[0]["items"][0]["completion"] == "an answer"


@pytest.mark.parametrize("encoding", ["png", "webp", "jpeg"])
def test_other_encodings(scripted: Any, connect: Any, encoding: str) -> None:
    server = scripted()
    batch = connect(server, image_encoding=encoding).batch()
    batch.submit(make_samples(2, {"r": 1.0}))
    assert batch.collect().valid_BR.all()
    assert server.requests[0]["items"][0]["images"][0]["media_type"] == f"image/{encoding}"


def grouped_server(scripted: Any) -> Any:
    """`scripted` scores items alone, `pairs` compares: its score is the number of items in the request."""

    def behave(request: dict[str, Any]) -> Reply:
        alone = request["reward"] == "scripted"
        return good(request, None if alone else lambda _item: float(len(request["items"])))

    server = scripted(behave)
    plain = {"name": "scripted", "revision": "1", "range": [None, None]}
    server.info.body["rewards"] = [plain, {**plain, "name": "pairs", "grouped": True}]
    return server


def requests_of(server: Any, reward: str) -> list[list[str]]:
    return sorted([item["id"] for item in each["items"]] for each in server.requests if each["reward"] == reward)


def test_a_reward_that_compares_gets_whole_groups_however_they_were_sampled(scripted: Any, connect: Any) -> None:
    server = grouped_server(scripted)
    client = connect(server, columns={"alone": {"reward": "scripted"}, "pairs": {"reward": "pairs"}})
    batch = client.batch(group_size=4)
    for first, count in ((0, 3), (3, 3), (6, 2)):  # the groups are s0..s3 and s4..s7
        batch.submit(make_samples(count, {"alone": 1.0, "pairs": 1.0}, first=first))
        if first == 3:
            until = time.monotonic() + 5
            while not requests_of(server, "pairs") and time.monotonic() < until:
                time.sleep(0.01)
            assert requests_of(server, "pairs") == [["s0", "s1", "s2", "s3"]], "sent as soon as it is complete"
    scores = batch.collect()
    assert requests_of(server, "pairs") == [["s0", "s1", "s2", "s3"], ["s4", "s5", "s6", "s7"]]
    assert requests_of(server, "scripted") == [["s0", "s1", "s2"], ["s3", "s4", "s5"], ["s6", "s7"]]
    assert scores.ids == [f"s{i}" for i in range(8)]
    assert scores.scores_BR.tolist() == [[float(i), 4.0] for i in range(8)]
    assert scores.valid_BR.all()


def test_a_group_that_never_fills_is_sent_by_collect(scripted: Any, connect: Any) -> None:
    server = grouped_server(scripted)
    client = connect(server, columns={"pairs": {"reward": "pairs"}})
    batch = client.batch()
    batch.submit(make_samples(6, {"pairs": 1.0}))
    scores = batch.collect()
    assert requests_of(server, "pairs") == [["s0", "s1", "s2", "s3"], ["s4", "s5"]]
    assert scores.scores_BR[:, 0].tolist() == [4.0] * 4 + [2.0] * 2
