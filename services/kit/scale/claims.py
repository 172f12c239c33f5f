"""One consumer's dealings with the job streams: reading, claiming what others left, keeping and handing back."""

from __future__ import annotations

import os
import socket
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from services.kit.scale import scripts
from services.kit.scale.connection import Command, RedisRefused
from services.kit.scale.keys import GROUP
from services.kit.scale.plane import Plane
from services.kit.scale.watch import StreamWatch

_BLOCK_MS = 500
_FORGOTTEN_MS = 3_600_000


@dataclass(frozen=True)
class Overdue:
    """A job whose worker has said nothing for the visibility timeout; `deliveries` is how often it was given out."""

    reward: str
    entry_id: bytes
    deliveries: int

    @property
    def place(self) -> tuple[str, bytes]:
        return self.reward, self.entry_id


@dataclass(frozen=True)
class Delivery:
    """A job given to this consumer. `deliveries` counts this one, too."""

    reward: str
    entry_id: bytes
    fields: Mapping[bytes, bytes]
    deliveries: int = 1

    @property
    def place(self) -> tuple[str, bytes]:
        """Where the job is: ids are unique in their stream only."""
        return self.reward, self.entry_id

    @property
    def sent_ms(self) -> int:
        """When Redis took the job, by its clock."""
        return int(self.entry_id.partition(b"-")[0])


class Claims:
    """A consumer of all of a service's streams. Its methods raise RedisAway and RedisRefused."""

    def __init__(self, plane: Plane, watch: StreamWatch, visibility_timeout_s: float) -> None:
        self.consumer = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self._connection = plane.connection
        self._keys = plane.keys
        self._rewards = plane.rewards
        self._watch = watch
        self._visibility_ms = int(visibility_timeout_s * 1000)
        self._streams = {name: plane.keys.jobs(info) for name, info in plane.rewards.items()}
        self._reward_of = {stream.encode(): name for name, stream in self._streams.items()}

    async def read(self, most: int) -> list[Delivery]:
        """New jobs, at most about `most`; waits for the first a moment."""
        count = max(1, most // len(self._streams))  # COUNT is per stream
        streams = [*self._streams.values(), *(">" for _ in self._streams)]
        found = await self._connection.call(
            "XREADGROUP", "GROUP", GROUP, self.consumer, "COUNT", count, "BLOCK", _BLOCK_MS, "STREAMS", *streams
        )
        return [
            Delivery(self._reward_of[stream], entry_id, fields)
            for stream, entries in found or ()
            for entry_id, fields in entries
        ]

    async def overdue(self, most: int) -> list[Overdue]:
        """Jobs that may be claimed, at most `most` per reward."""
        found: list[Overdue] = []
        for reward, stream in self._streams.items():
            pending = await self._connection.call(
                "XPENDING", stream, GROUP, "IDLE", self._visibility_ms, "-", "+", most, parse_detail=True
            )
            found += [Overdue(reward, each["message_id"], each["times_delivered"]) for each in pending]
        return found

    async def claim(self, overdue: Sequence[Overdue]) -> list[Delivery]:
        """Those of the jobs that nobody else has claimed or finished meanwhile."""
        taken: list[Delivery] = []
        for reward, stream in self._streams.items():
            wanted = {each.entry_id: each.deliveries for each in overdue if each.reward == reward}
            if wanted:
                entries = await self._connection.call(
                    "XCLAIM", stream, GROUP, self.consumer, self._visibility_ms, *wanted
                )
                taken += [Delivery(reward, entry_id, fields, wanted[entry_id] + 1) for entry_id, fields in entries]
        return taken

    def report(self, held: Iterable[tuple[str, bytes]], *, takes_jobs: bool) -> list[Command]:
        """Commands that say that this worker still works on `held`, (reward, entry id) pairs, and whether it takes more."""
        until = int(self._watch.now_ms()) + self._visibility_ms
        commands: list[Command] = []
        by_reward: dict[str, list[bytes]] = {name: [] for name in self._streams}
        for reward, entry_id in held:
            by_reward[reward].append(entry_id)
        for reward, info in self._rewards.items():
            if takes_jobs:
                commands.append(("ZADD", self._keys.workers(info), until, self.consumer))
            if by_reward[reward]:
                commands.append(scripts.keep(self._streams[reward], self.consumer, by_reward[reward]))
        return commands

    async def leave(self) -> None:
        """Be no longer counted among the live workers."""
        await self._connection.pipeline(
            [("ZREM", self._keys.workers(info), self.consumer) for info in self._rewards.values()]
        )

    async def hand_back(self) -> int:
        """Let others claim at once whatever this worker still has. Returns how many jobs."""
        answers = await self._connection.pipeline(
            [scripts.hand_back(stream, self.consumer, self._visibility_ms) for stream in self._streams.values()]
        )
        return sum(answer for answer in answers if not isinstance(answer, RedisRefused))

    async def forget_the_dead(self) -> None:
        """Remove what earlier workers left behind: consumers without jobs, and reports of an hour ago."""
        for reward, stream in self._streams.items():
            consumers: list[dict[str, Any]] = await self._connection.call("XINFO CONSUMERS", stream, GROUP)
            dead = [each["name"] for each in consumers if each["pending"] == 0 and each["idle"] > _FORGOTTEN_MS]
            before = int(self._watch.now_ms()) - _FORGOTTEN_MS
            await self._connection.pipeline(
                [
                    *(("XGROUP", "DELCONSUMER", stream, GROUP, name) for name in dead),
                    ("ZREMRANGEBYSCORE", self._keys.workers(self._rewards[reward]), "-inf", before),
                ]
            )
