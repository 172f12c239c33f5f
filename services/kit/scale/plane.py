"""What the parts of a process that meet in Redis have in common."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from services.kit.scale.connection import Connection
from services.kit.scale.keys import Keys
from services.kit.scale.metrics import ScaleMetrics
from wire.schema import ScorerInfo


@dataclass(frozen=True)
class Plane:
    """The way to Redis, the names there, the service's rewards by name, and what is measured."""

    connection: Connection
    keys: Keys
    rewards: Mapping[str, ScorerInfo]
    metrics: ScaleMetrics
