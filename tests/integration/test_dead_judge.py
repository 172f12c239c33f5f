"""Two gateways, one before a judge whose engine is dead: the trainer's client loses no sample, and leaves that URL."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import uvicorn

from services.kit.app import create_app
from services.kit.testing.scripted_judge import Reply
from services.unifiedreward.scorer import UnifiedRewardScorer
from services.unifiedreward.settings import UnifiedRewardSettings
from tests.support.gateways import wait_for_status
from tests.support.judges import judging
from tests.support.ports import free_port
from tests.support.reward_servers import make_samples
from trainer.config import RewardsConfig
from trainer.rewards import RewardClient

POINTS = Reply("Alignment Score: 4\nCoherence Score: 4\nStyle Score: 4")
SAMPLES, PER_BATCH = 96, 8


@contextmanager
def gateway(judge_url: str) -> Iterator[str]:
    """The URL of a gateway in a thread of its own."""
    settings = UnifiedRewardSettings(judge_url=judge_url, model="judge", family="v2", check_model=False)
    app = create_app(UnifiedRewardScorer(settings), "unifiedreward", settings)
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=free_port(), log_level="critical"))
    thread = threading.Thread(target=lambda: asyncio.run(server.serve()), daemon=True)
    thread.start()
    url = f"http://127.0.0.1:{server.config.port}"
    try:
        while not server.started:
            assert thread.is_alive(), "the gateway did not start"
            threading.Event().wait(0.005)
        wait_for_status(url, 200, 30)
        yield url
    finally:
        server.should_exit = server.force_exit = True
        thread.join(timeout=10)


def test_no_sample_is_lost_to_a_judge_whose_engine_is_dead() -> None:
    replies = [POINTS]
    with (
        judging(lambda _question: replies[-1]) as dying,
        judging(lambda _question: POINTS) as living,
        gateway(dying.url) as first,  # type: ignore[attr-defined]
        gateway(living.url) as second,  # type: ignore[attr-defined]
    ):
        urls = [first, second]
        tree = {
            "services": {"svc": {"urls": urls, "timeout_s": 60.0, "breaker_failures": 2, "breaker_reset_s": 60.0}},
            "columns": {"r": {"service": "svc", "reward": "pointwise", "canary": "none", "max_failure_rate": 1.0}},
        }
        client = RewardClient(RewardsConfig.model_validate(tree), urls={"svc": tuple(urls)})
        client.start()
        try:
            replies.append(Reply("EngineDeadError", status=500))
            batch = client.batch()
            for start in range(0, SAMPLES, PER_BATCH):
                batch.submit(make_samples(PER_BATCH, {"r": 1.0}, first=start))
            scores = batch.collect()
        finally:
            client.close()
        assert httpx.get(f"{first}/ready", timeout=10, trust_env=False).status_code == 503
        assert httpx.get(f"{second}/ready", timeout=10, trust_env=False).status_code == 200
    assert scores.failures["r"].total() == 0
    assert scores.scores_BR[:, 0].tolist() == [4.0] * SAMPLES
    assert living.calls == SAMPLES, "all were judged by the one that works"
