"""Each reward is probed with what it scores, texts or images, and has room for what its own task sends."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.reward_servers import Reply, good
from tests.support.task_configs import GENERATE, UNDERSTAND, held_out, task_config
from trainer.config import Config
from trainer.doctor.load import _work
from trainer.rewards import RewardServiceError
from trainer.rewards.asked import Asked, Requests, texts_of


def test_what_a_column_scores_goes_by_the_task_that_asks_for_it() -> None:
    config = task_config(evaluation={"sets": [held_out("a", "understand", "other"), held_out("i", "generate", "hps")]})
    asked = Requests.of(config)
    assert asked.columns == {
        "letter": (Asked(4, 8, "sampling.tasks.understand"),),
        "hps": (Asked(2, 4, "sampling.tasks.generate"),),
    }
    assert asked.texts == {"letter", "other"}


def test_also_of_a_task_that_is_only_evaluated() -> None:
    sets = [held_out("a", "understand", "letter"), held_out("i", "generate", "hps")]
    config = task_config({"generate": GENERATE}, evaluation={"sets": sets})
    assert texts_of(config) == {"letter"} and list(Requests.of(config).columns) == ["hps"]


def test_policies_of_one_kind_are_asked_as_ever() -> None:
    columns = {
        "services": {"s": {"urls": ["http://127.0.0.1:9"]}},
        "columns": {"r": {"service": "s"}, "q": {"service": "s"}},
    }
    data = {"train": [{"path": "x.jsonl", "rewards": {"r": 1.0}}]}
    tree = {"run_name": "run", "max_steps": 1, "rewards": columns, "data": data}
    images = Config.model_validate(tree)
    texts = Config.model_validate({**tree, "policy": {"type": "vlm", "pretrained": "m"}})
    assert (texts_of(images), texts_of(texts)) == (frozenset(), {"r", "q"})
    assert list(Requests.of(images).columns) == list(Requests.of(texts).columns) == ["r"]


def test_the_step_of_a_reward_that_both_tasks_ask_for_is_all_of_it() -> None:
    """4 x 4 answers in 2 requests and 4 x 2 images in 2."""
    both = {"understand": UNDERSTAND, "generate": {**GENERATE, "rewards": {"letter": 1.0}}}
    config = task_config(both)
    assert (
        _work(config, "letter", 0.1, compares=False).items,
        _work(config, "letter", 0.1, compares=False).requests,
    ) == (24, 4)
    assert _work(task_config(), "hps", 0.1, compares=False).items == 8
    compared = _work(config, "letter", 0.1, compares=True)
    assert (compared.requests, compared.units) == (8, 4 * 6 + 4 * 1)


def test_each_canary_is_of_the_right_kind(connect: Any, scripted: Any) -> None:
    server = scripted(lambda request: good(request, lambda item: float("right" in item["id"])))
    client = connect(server, columns={"letter": {"canary": "differ"}, "hps": {"canary": "differ"}}, start=False)
    client._requests = Requests({"letter": (Asked(4, 4),), "hps": (Asked(4, 4),)}, frozenset({"letter"}))
    client.start()
    sent = [request["items"] for request in server.requests]
    kinds = sorted(
        ("completion" in items[0] and items[0]["completion"] is not None, bool(items[0].get("images")))
        for items in sent
    )
    assert kinds == [(False, True), (True, False)]


def test_what_a_task_sends_is_compared_with_what_the_service_takes(connect: Any, scripted: Any) -> None:
    server = scripted(lambda request: good(request, lambda item: float("right" in item["id"])))
    server.info = Reply({**server.info.body, "limits": {"max_items": 6}})
    client = connect(server, columns={"letter": {}}, start=False)
    client._requests = Requests({"letter": (Asked(4, 8, "sampling.tasks.understand"),)}, frozenset({"letter"}))
    with pytest.raises(RewardServiceError, match=r"sampling\.tasks\.understand\.micro_batch_size is 8"):
        client.start()
