"""A text policy small enough to read at once: it draws ragged answers token by token, each token given the one before it.

It is a double for tests of what holds for every text policy. Behind the end of a row it gives NaN wherever it gives a number,
so whoever looks under a mask is found out. Axes: B samples, S tokens.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from trainer.config import ConfigError
from trainer.policies.base import GivenText, SamplingPlan
from trainer.types import Conversation, Prompt, Replay, Rollout, Sample

VOCABULARY, END = 7, 0


@dataclass(frozen=True, eq=False)
class Tokens:
    """The trace: each token, and the one before it. What lies behind the end of a row is END."""

    before_BS: Tensor
    token_BS: Tensor

    def rows(self, rows: slice) -> Tokens:
        return Tokens(self.before_BS[rows], self.token_BS[rows])

    def join(self, others: Sequence[Tokens]) -> Tokens:
        width = max(each.token_BS.shape[1] for each in (self, *others))
        return Tokens(
            *(
                torch.cat([_widened(each, width) for each in (getattr(t, name) for t in (self, *others))])
                for name in ("before_BS", "token_BS")
            )
        )


class Bigram:
    """Implements `Samples`, `Replays` and `ReadsTokens`. An answer has at most `plan.num_inference_steps` tokens, its END included."""

    about = "random"

    def __init__(self, *, device: str = "cpu") -> None:
        torch.manual_seed(0)
        self.trainable = nn.Sequential(nn.Embedding(VOCABULARY, 5), nn.Tanh(), nn.Linear(5, VOCABULARY)).to(device)
        self.start, self.forwards = copy.deepcopy(self.trainable), 0

    def check_prompts(self, prompts: Sequence[Prompt]) -> None: ...

    @torch.no_grad()
    def sample(
        self, prompts_P: Sequence[Prompt], group_size: int, seeds_B: Sequence[int], plan: SamplingPlan
    ) -> Iterator[Rollout]:
        prompts_B = [prompt for prompt in prompts_P for _ in range(group_size)]
        for first in range(0, len(prompts_B), plan.micro_batch_size):
            rows = range(first, min(first + plan.micro_batch_size, len(prompts_B)))
            drawn = [self._draw(prompts_B[i], seeds_B[i], plan.num_inference_steps) for i in rows]
            before, token = ([torch.tensor(answer[at]) for answer in drawn] for at in (slice(0, -1), slice(1, None)))
            mask_BS = pad_sequence([torch.ones(len(row), dtype=torch.bool) for row in token], batch_first=True)
            trace = Tokens(pad_sequence(before, batch_first=True), pad_sequence(token, batch_first=True))
            samples = [
                Sample(
                    f"{prompts_B[i].id}#{i % group_size}",
                    prompts_B[i].id,
                    prompts_B[i],
                    text=str(answer[1:]),
                    tokens=tuple(answer[1:]),
                    finished=answer[-1] == END,
                )
                for i, answer in zip(rows, drawn, strict=True)
            ]
            groups = torch.tensor([i // group_size for i in rows])
            yield Rollout(samples, groups, _logp(self.trainable, trace, mask_BS), mask_BS, trace)

    def parts(self, rollout: Rollout) -> list[slice]:
        return [slice(0, rollout.logp_BS.shape[1])]  # all tokens come out of one forward pass

    def replay(self, rollout: Rollout, part: slice, *, reference: bool = False) -> Replay:
        assert part == self.parts(rollout)[0] and rollout.mask_BS is not None and isinstance(rollout.trace, Tokens)
        self.forwards += 1
        with torch.no_grad():
            reference_BS = _logp(self.start, rollout.trace, rollout.mask_BS) if reference else None
        return Replay(_logp(self.trainable, rollout.trace, rollout.mask_BS), reference_BS=reference_BS)

    def read_conversation(self, conversation: Conversation) -> GivenText:
        """A character is a token, END ends a turn; a conversation with the word `unreadable` cannot be read."""
        if any("unreadable" in turn.text for turn in conversation.turns):
            raise ConfigError(f"{conversation.id} cannot be read")
        first, *others = conversation.turns
        tokens = [(token, turn.role == "assistant") for turn in others for token in [*_ids(turn.text), END]]
        reading = (*_ids(first.text), END)
        answers, learnt = zip(*tokens, strict=True)
        return GivenText(reading, answers, learnt, len(reading) + len(tokens))

    def logp(
        self, readings_B: Sequence[Sequence[int]], answers_B: Sequence[Sequence[int]], *, reference: bool = False
    ) -> Tensor:
        self.forwards += 1
        before = [
            torch.tensor([reading[-1], *answer[:-1]]) for reading, answer in zip(readings_B, answers_B, strict=True)
        ]
        mask_BS = pad_sequence([torch.ones(len(row), dtype=torch.bool) for row in before], batch_first=True)
        trace = Tokens(
            pad_sequence(before, batch_first=True),
            pad_sequence([torch.tensor(answer) for answer in answers_B], batch_first=True),
        )
        with torch.set_grad_enabled(not reference and torch.is_grad_enabled()):
            return _logp(self.start if reference else self.trainable, trace, mask_BS)

    def _draw(self, prompt: Prompt, seed: int, longest: int) -> list[int]:
        """The prompt as a token, and the answer after it."""
        answer, generator = [1 + len(prompt.text) % (VOCABULARY - 1)], torch.Generator().manual_seed(seed)
        while len(answer) <= longest and (len(answer) == 1 or answer[-1] != END):
            shares = self.trainable(torch.tensor([answer[-1]]))[0].softmax(0)
            answer.append(int(torch.multinomial(shares, 1, generator=generator)))
        return answer


def _ids(text: str) -> list[int]:
    return [1 + ord(character) % (VOCABULARY - 1) for character in text]


def _logp(network: nn.Module, trace: Tokens, mask_BS: Tensor) -> Tensor:
    logp_BSV = network(trace.before_BS).log_softmax(-1)
    return torch.where(mask_BS, logp_BSV.gather(-1, trace.token_BS[..., None])[..., 0], torch.nan)


def _widened(tokens_BS: Tensor, width: int) -> Tensor:
    return functional.pad(tokens_BS, (0, width - tokens_BS.shape[1]), value=END)
