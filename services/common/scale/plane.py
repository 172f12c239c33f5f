"""What the parts of a process that meet in Redis have in common."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from services.common.scale.connection import Connection
from services.common.scale.keys import Keys
from services.common.scale.metrics import ScaleMetrics
from wire.schema import ScorerInfo


@dataclass(frozen=True)
class Plane:
    """The way to Redis, the names there, the service's rewards by name, and what is measured."""

    connection: Connection
    keys: Keys
    rewards: Mapping[str, ScorerInfo]
    metrics: ScaleMetrics
