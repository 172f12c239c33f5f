"""Clients and scripted servers for the tests of this folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.support.reward_servers import ScriptedServer, scripted
from trainer.config import RewardsConfig
from trainer.rewards import RewardClient, RewardEvent

__all__ = ["scripted"]


class Client(RewardClient):
    """A client that keeps its events."""

    events: list[RewardEvent]

    def said(self, kind: str) -> list[str]:
        return [event.message for event in self.events if event.kind == kind]


@pytest.fixture
def connect() -> Iterator[Callable[..., Client]]:
    """Makes started clients of one service `svc` at some servers: `connect(server, ..., timeout_s=1.0)`.

    Keyword arguments go to the service (or, as `rewards={...}`, to the rewards section; as `columns={...}`, there).
    """
    clients: list[Client] = []

    def make(
        *servers: ScriptedServer | str,
        columns: dict[str, dict[str, Any]] | None = None,
        rewards: dict[str, Any] | None = None,
        start: bool = True,
        **service: Any,
    ) -> Client:
        urls = tuple(s if isinstance(s, str) else s.url for s in servers)
        service = {"timeout_s": 5.0, "connect_timeout_s": 0.5, **service}
        columns = columns or {"r": {}}
        tree = {
            "services": {"svc": {"urls": urls, **service}},
            "columns": {
                name: {"service": "svc", "canary": "none", "max_failure_rate": 1.0, **column}
                for name, column in columns.items()
            },
            "ready_timeout_s": 5.0,
            **(rewards or {}),
        }
        events: list[RewardEvent] = []
        client = Client(RewardsConfig.model_validate(tree), urls={"svc": urls}, on_event=events.append)
        client.events = events
        clients.append(client)
        if start:
            client.start()
        return client

    yield make
    for client in clients:
        client.close()
