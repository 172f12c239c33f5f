"""A client of the reward services: images and prompts in, typed rows out. It needs no torch.

    from wire.client import RewardClient

    with RewardClient("http://127.0.0.1:18082") as client:
        for row in client.score(images=["sign.png"], prompts='a sign that says "OPEN"'):
            print(row.score if row.score is not None else f"{row.code}: {row.message}")

docs/client.md has more, and the same by curl and in JavaScript.
"""

from wire.client.client import AsyncRewardClient, RewardClient
from wire.client.errors import (
    DeadlineError,
    InvalidAnswerError,
    NoServiceError,
    NotAServiceError,
    NotReadyError,
    OverloadedError,
    RefusedError,
    RewardClientError,
    UnauthorizedError,
)
from wire.client.rows import Row, Scores

__all__ = [
    "AsyncRewardClient",
    "DeadlineError",
    "InvalidAnswerError",
    "NoServiceError",
    "NotAServiceError",
    "NotReadyError",
    "OverloadedError",
    "RefusedError",
    "RewardClient",
    "RewardClientError",
    "Row",
    "Scores",
    "UnauthorizedError",
]
