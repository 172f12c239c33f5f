"""Names of the keys in Redis. All of a service's keys share one hash tag, so they lie on one node of a cluster."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from wire.schema import SCHEMA_VERSION, ScorerInfo

GROUP = "workers"  # the consumer group of every job stream
FRONT_TTL_MS = 60_000  # how long the keys of a front outlive it


@dataclass(frozen=True)
class Keys:
    """The keys of one service under one prefix."""

    prefix: str
    service: str

    def jobs(self, info: ScorerInfo) -> str:
        """Stream of a reward's jobs. Another revision has another stream: its workers would score differently."""
        return self._name("jobs", info.name, _fingerprint(info))

    def workers(self, info: ScorerInfo) -> str:
        """Sorted set of a reward's workers by when they are presumed dead, in milliseconds of Redis's clock."""
        return self._name("workers", info.name, _fingerprint(info))

    def answered(self, info: ScorerInfo) -> str:
        """Count of a reward's answered jobs."""
        return self._name("answered", info.name, _fingerprint(info))

    def open_jobs(self, front: str) -> str:
        """Set of the ids of a front's jobs that have no answer yet."""
        return self._name("open", front)

    def replies(self, front: str) -> str:
        """Stream of answers to a front."""
        return self._name("replies", front)

    def probe(self) -> str:
        """What every process writes now and then, to learn whether Redis takes writes."""
        return self._name("probe")

    def scores(self, key: bytes) -> str:
        """Scores in the shared cache, by the job's content hash."""
        return self._name("scores", key.hex())

    def _name(self, *parts: str) -> str:
        return ":".join((self.prefix, f"{{{self.service}}}", f"v{SCHEMA_VERSION}", *parts))


def _fingerprint(info: ScorerInfo) -> str:
    return hashlib.sha256(info.model_dump_json().encode()).hexdigest()[:12]
