"""Conversations and pairs of answers of unequal length, and steps of the bigram policy on them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from tests.support.bigram import Bigram
from tests.support.tiny_updates import WORLD
from trainer.config import DistributedConfig, OptimConfig
from trainer.config.given_texts import AnswersConfig, ConversationsConfig
from trainer.config.preference_objective import DpoConfig
from trainer.data.dealt import Dealt
from trainer.engine import build_engine
from trainer.objectives import Objective
from trainer.objectives.tokens.preference import TokenDpo
from trainer.objectives.tokens.supervised import SupervisedTokens
from trainer.processes.distributed import World
from trainer.types import AnswerPair, Conversation, Prompt, Turn
from trainer.update.updater import Updater

RowT = TypeVar("RowT")
TEXTS = ("red", "a blue disc", "ab", "three", "e", "cross and bar", "what", "no")


def conversations(count: int = 8) -> list[Conversation]:
    """Each has its own length; every second one goes on for another turn."""
    found = []
    for number in range(count):
        turns = [Turn("user", f"q{number}"), Turn("assistant", TEXTS[number % 8])]
        if number % 2:
            turns += [Turn("user", "and then"), Turn("assistant", TEXTS[(number + 3) % 8])]
        found.append(Conversation(f"row {number}", tuple(turns)))
    return found


def answer_pairs(count: int = 8) -> list[AnswerPair]:
    """Chosen answers begin with `b`, rejected ones with `a`, so that a bigram can learn which is which."""
    return [
        AnswerPair(Prompt(f"pair {n}", f"q{n}"), f"b{TEXTS[n % 8]}", f"a{TEXTS[(n + 3) % 8]}") for n in range(count)
    ]


def supervised(
    policy: Bigram, rows: Sequence[Conversation], share: tuple[int, int] = (0, 1), **fields: Any
) -> Objective:
    config = ConversationsConfig.model_validate({"path": "rows.json", "batch_size": len(rows), **fields})
    return SupervisedTokens(policy, config, Dealt(rows, 1, "conversations"), share=share)


def preference(
    policy: Bigram,
    rows: Sequence[AnswerPair],
    share: tuple[int, int] = (0, 1),
    *,
    dpo: dict[str, Any] | None = None,
    **fields: Any,
) -> TokenDpo:
    given = AnswersConfig.model_validate({"type": "answers", "path": "rows.json", "batch_size": len(rows), **fields})
    config = DpoConfig.model_validate({"type": "dpo", **(dpo or {})})
    return TokenDpo(policy, config, given, Dealt(rows, 1, "preferences"), share=share)


def updater_of(
    policy: Bigram, objective: Objective, *, lr: float = 1e-2, group: World = WORLD, deepspeed: str | None = None
) -> Updater:
    optim = OptimConfig(lr=lr, schedule="constant", max_grad_norm=1e9)
    engine = build_engine(policy.trainable, optim, DistributedConfig(device="cpu", deepspeed=deepspeed), group)
    return Updater(objective, engine, optim, group, max_steps=100)
