"""The doctor reckons whether a service can answer what a step asks of it before its deadlines."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from tests.support import reward_servers
from tests.support.reward_servers import Reply, ScriptedServer, good
from trainer.config import Config, ServiceConfig
from trainer.doctor.findings import Finding
from trainer.doctor.load import Work, check_load, judge_load
from trainer.rewards.transport import ServiceCaller
from wire.schema import ScorerInfo

scripted = reward_servers.scripted  # the fixture


def work(seconds: float, requests: int = 8) -> Work:
    return Work("r", items=96, requests=requests, unit_s=seconds / 96, units=96, compares=False)


def service(**fields: Any) -> ServiceConfig:
    return ServiceConfig.model_validate({"urls": ["http://127.0.0.1:9"], "timeout_s": 60.0, **fields})


def test_a_step_that_is_done_in_time_is_well() -> None:
    found = judge_load("ocr", service(), [work(9.6)], urls=1)
    assert found.status == "OK"
    assert "r 96 items at 100 ms: 9.6 s, one after the other, in 8 requests; timeout_s is 60" in found.message


def test_a_step_that_is_longer_than_the_deadline_is_not_where_all_of_it_is_under_way_at_once() -> None:
    """Two rewards, 96 items each at 0.5 s: 96 s; with 8 of 16 requests under way the last waits 48 s."""
    rewards = [work(48.0), work(48.0)]
    found = judge_load("ocr", service(), rewards, urls=1)
    assert found.status == "WARN" and "answered after 96 s, and timeout_s is 60" in found.message
    assert "rewards.services.ocr.timeout_s" in found.remedy and "max_in_flight" in found.remedy
    assert judge_load("ocr", service(max_in_flight=8), rewards, urls=1).status == "OK"
    assert judge_load("ocr", service(), rewards, urls=2).status == "OK"
    assert judge_load("ocr", service(timeout_s=100.0), rewards, urls=1).status == "OK"


def test_a_step_that_is_longer_than_queue_and_deadline_is_not() -> None:
    found = judge_load("ocr", service(max_in_flight=1, queue_timeout_s=100.0), [work(170.0)], urls=1)
    assert found.status == "WARN" and "queue_timeout_s = 100 and timeout_s = 60" in found.message


def looked_at(server: ScriptedServer, *, grouped: bool = False, **fields: Any) -> list[Finding]:
    tree = {
        "run_name": "run",
        "max_steps": 1,
        "sampling": {"prompts_per_step": 8, "group_size": 4, "micro_batch_size": 8},
        "rewards": {
            "services": {"svc": {"urls": [server.url], "timeout_s": 5.0, "connect_timeout_s": 1.0, **fields}},
            "columns": {"r": {"service": "svc"}, "unused": {"service": "svc"}},
        },
        "data": {"train": [{"path": "train.txt", "rewards": {"r": 1.0}}]},
    }
    config = Config.model_validate(tree)

    async def look() -> list[Finding]:
        caller = ServiceCaller("svc", config.rewards.services["svc"], [server.url], lambda event: None)
        scorer = ScorerInfo(name="scripted", revision="1", range=(None, None), grouped=grouped)
        try:
            return [finding async for finding in check_load(config, caller, {"r": scorer, "unused": scorer})]
        finally:
            await caller.aclose()

    return asyncio.run(look())


def test_a_service_is_measured_on_probes_that_no_cache_knows(scripted: Callable[..., ScriptedServer]) -> None:
    """32 items at 0.2 s each are 6.4 s, and the deadline is 5 s."""
    server = scripted(lambda request: replace(good(request), delay_s=0.4))
    (finding,) = looked_at(server)
    assert finding.status == "WARN" and "in 4 requests" in finding.message and "r 32 items" in finding.message
    first, second = server.parts
    assert all(first[name] != second[name] for name in first), "pixels differ from request to request"


def test_a_reward_that_compares_is_reckoned_by_its_comparisons(scripted: Callable[..., ScriptedServer]) -> None:
    """8 groups of 4 are 48 comparisons, in a request a group."""
    (finding,) = looked_at(scripted(), grouped=True)
    assert finding.status == "OK" and "r 32 items 48 comparisons of" in finding.message
    assert "in 8 requests" in finding.message


@pytest.mark.parametrize("reply", [Reply({}, 500), None])
def test_what_could_not_be_measured_is_not_called_fast(
    scripted: Callable[..., ScriptedServer], reply: Reply | None
) -> None:
    def failing(request: dict[str, Any]) -> Reply:
        if reply is not None:
            return reply
        answer = good(request)
        for result in answer.body["results"]:
            result |= {"score": None, "error": {"code": "not_applicable", "message": "no target"}}
        return answer

    (finding,) = looked_at(scripted(failing))
    assert finding.status == "NOT CHECKED" and "how long svc needs for r" in finding.message
