"""A wrong URL, a wrong reward name or a constant reward is found at the start, with a sentence that says what to do."""

from __future__ import annotations

import re
import time
from typing import Any

import pytest

from tests.support.ports import free_port
from tests.support.reward_servers import SCORER, Reply, good
from trainer.rewards import RewardServiceError
from trainer.rewards.asked import Asked, Requests
from trainer.rewards.canary import probes

CANARY = {"r": {"canary": "differ"}}


def told_apart(request: dict[str, Any]) -> Reply:
    return good(request, lambda item: 1.0 if item["id"] == "canary-right" else 0.0)


def constant(request: dict[str, Any]) -> Reply:
    return good(request, lambda _: 0.5)


def failing(code: str) -> Any:
    def behave(request: dict[str, Any]) -> Reply:
        reply = good(request)
        for result in reply.body["results"]:
            result |= {"score": None, "error": {"code": code, "message": "because"}}
        return reply

    return behave


def problem(client: Any) -> str:
    with pytest.raises(RewardServiceError) as caught:
        client.start()
    return str(caught.value)


def test_the_canary_shows_the_word_in_the_colour_and_neither(scripted: Any, connect: Any) -> None:
    server = scripted(told_apart)
    client = connect(server, columns=CANARY)
    (request,) = server.requests
    assert [item["id"] for item in request["items"]] == ["canary-right", "canary-wrong"]
    assert len({item["group_id"] for item in request["items"]}) == 1  # so that pairwise scorers can compare them
    assert request["items"][0]["targets"] == ["HELLO"]
    right, wrong = (probe.images[0] for probe in probes())
    assert right is not None and wrong is not None
    red, blue = right.reshape(-1, 3).astype(int), wrong.reshape(-1, 3).astype(int)
    assert (red[:, 0] - red[:, 2]).max() > 100 > (red[:, 2] - red[:, 0]).max()
    assert (blue[:, 2] - blue[:, 0]).max() > 100 > (blue[:, 0] - blue[:, 2]).max()
    assert client.scorers.state()["r"] == {
        **SCORER,
        "template_sha256": None,
        "higher_is_better": True,
        "grouped": False,
    }
    assert "scripted" in client.said("ready")[0]


def test_a_constant_reward_is_found(scripted: Any, connect: Any) -> None:
    text = problem(connect(scripted(constant), columns=CANARY, start=False))
    assert "reward r" in text
    assert "both probes score 0.5" in text
    assert "`canary: score`" in text


def test_a_constant_reward_passes_where_it_is_declared(scripted: Any, connect: Any) -> None:
    client = connect(scripted(constant), columns={"r": {"canary": "score"}})
    assert "scripted" in client.said("ready")[0] and client.said("warning") == []


def test_canary_off(scripted: Any, connect: Any) -> None:
    server = scripted(constant)
    connect(server, columns=CANARY, rewards={"canary": False})
    assert server.requests == []


@pytest.mark.parametrize("code", ["internal", "upstream", "non_finite", "parse_error"])
def test_a_reward_that_gives_no_score_is_found(scripted: Any, connect: Any, code: str) -> None:
    text = problem(connect(scripted(failing(code)), columns={"r": {"canary": "score"}}, start=False))
    assert f"a probe has no score: {code}: because" in text


@pytest.mark.parametrize("code", ["not_applicable", "bad_input"])
def test_a_reward_the_probes_do_not_suit_is_a_warning(scripted: Any, connect: Any, code: str) -> None:
    client = connect(scripted(failing(code)), columns=CANARY)
    assert f"the probes could not be judged ({code}: because)" in client.said("warning")[0]


def test_a_score_outside_the_declared_range_is_found(scripted: Any, connect: Any) -> None:
    def behave(request: dict[str, Any]) -> Reply:
        reply = told_apart(request)
        reply.body["scorer"] = {**SCORER, "range": [0, 0.9]}
        return reply

    text = problem(connect(scripted(behave), columns=CANARY, start=False))
    assert "a probe scores 1.0, outside the range [0.0, 0.9]" in text


@pytest.mark.parametrize(
    ("grouped", "limits", "told"),
    [
        (
            True,
            {"max_group_items": 16, "max_items": 64},
            "group_size is 24, and the service takes at most 16 items of one",
        ),
        (
            True,
            {"max_group_items": 64, "max_items": 8},
            "group_size is 24, and the service takes at most 8 items in one",
        ),
        (
            False,
            {"max_group_items": 2, "max_items": 47},
            "micro_batch_size is 48, and the service takes at most 47 items",
        ),
        (False, {"max_group_items": 2, "max_items": 48}, None),
        (True, {"max_group_items": 24, "max_items": 24}, None),
        (True, {}, None),
    ],
)
def test_a_service_that_takes_less_than_training_sends_is_found(
    scripted: Any, connect: Any, grouped: bool, limits: dict[str, int], told: str | None
) -> None:
    server = scripted()
    server.info.body |= {"limits": limits, "rewards": [{**SCORER, "grouped": grouped}]}
    client = connect(server, start=False)
    client._requests = Requests({"r": (Asked(24, 48),)})
    if told is None:
        client.start()
        return
    text = problem(client)
    assert f"reward r (service svc at {server.url}): sampling.{told}" in text
    name = told.partition(" ")[0]
    assert f"lower sampling.{name} to " in text and "or start the service with --max-" in text


def test_what_is_not_trained_on_has_no_groups_to_compare(scripted: Any, connect: Any) -> None:
    server = scripted()
    server.info.body |= {"limits": {"max_items": 4}, "rewards": [SCORER]}
    client = connect(server, start=False)
    client._requests = Requests({"other": (Asked(24, 48),)})
    client.start()
    assert "scripted" in client.said("ready")[0]


def test_a_wrong_reward_name_lists_what_is_there(scripted: Any, connect: Any) -> None:
    client = connect(scripted(), columns={"r": {"reward": "flow_grpo"}}, start=False)
    text = problem(client)
    assert "rewards.columns.r" in text
    assert "has no reward 'flow_grpo'; it serves: scripted" in text


def test_nobody_answers(connect: Any) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    client = connect(url, start=False, rewards={"ready_timeout_s": 0.6})
    started = time.monotonic()
    text = problem(client)
    assert time.monotonic() - started < 20
    assert f"service svc at {url} was not ready within 0.6 s" in text
    assert "Start it, correct rewards.services.svc.urls, or raise rewards.ready_timeout_s" in text


def test_something_else_answers(scripted: Any, connect: Any) -> None:
    server = scripted()
    server.ready = Reply(b"<html>not found</html>", 404)
    started = time.monotonic()
    text = problem(connect(server, start=False, rewards={"ready_timeout_s": 60.0}))
    assert time.monotonic() - started < 30  # 404 will not become a reward service: no waiting
    assert "/ready answered 404" in text
    assert "Something else answers there; correct rewards.services.svc.urls" in text


def test_a_loading_service_is_waited_for(scripted: Any, connect: Any) -> None:
    server = scripted()
    server.ready = Reply({"error": {"code": "x", "message": "loading weights"}}, 503)
    text = problem(connect(server, start=False, rewards={"ready_timeout_s": 0.6}))
    assert "/ready answered 503: loading weights" in text
    assert len(server.gets) >= 2


def test_info_that_is_not_of_this_contract(scripted: Any, connect: Any) -> None:
    server = scripted()
    server.info = Reply({"hello": "world"})
    assert "does not follow wire v1" in problem(connect(server, start=False))
    server.info = Reply(
        {"service": "s", "rewards": [SCORER], "default_reward": "scripted", "limits": {}, "schema_version": "2"}
    )
    assert "speaks wire 2, this client 1" in problem(connect(server, start=False))


def test_a_refused_token(scripted: Any, connect: Any) -> None:
    server = scripted()
    server.info = Reply({"error": {"code": "unauthorized", "message": "no"}}, 401)
    assert "refuses the token (401); set rewards.services.svc.token_file" in problem(connect(server, start=False))


@pytest.mark.parametrize(
    ("content", "message"), [("", "one ASCII token"), ("a b", "one ASCII token"), (None, "cannot be read")]
)
def test_a_token_file_that_holds_no_token(
    scripted: Any, connect: Any, tmp_path: Any, content: str | None, message: str
) -> None:
    path = tmp_path / "token"
    if content is not None:
        path.write_text(content)
    text = problem(connect(scripted(), start=False, token_file=str(path)))
    assert message in text
    assert "rewards.services.svc.token_file" in text


def test_replicas_of_different_revisions_are_refused(scripted: Any, connect: Any) -> None:
    one, two = scripted(), scripted()
    two.info = Reply({**two.info.body, "rewards": [{**SCORER, "revision": "2"}]})
    text = problem(connect(one, two, start=False))
    assert re.search(r"would score differently \(.*has 1, .*has 2\): run one revision", text)


def test_several_problems_are_listed_together(scripted: Any, connect: Any) -> None:
    one, two = scripted(), scripted()
    one.ready, two.ready = Reply(b"", 404), Reply(b"", 404)
    text = problem(connect(one, two, start=False))
    assert one.url in text
    assert two.url in text


def test_a_client_that_did_not_start_is_closed(scripted: Any, connect: Any) -> None:
    server = scripted()
    server.ready = Reply(b"", 404)
    client = connect(server, start=False)
    problem(client)
    with pytest.raises(RuntimeError, match="closed"):
        client.batch()
