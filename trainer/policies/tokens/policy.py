"""The policy that all models that write share: it draws answers, and says how likely they are under its present weights.

Axes: P prompts, G group, B = P*G answers, S tokens of an answer, V vocabulary.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from machine.transfers import sent
from trainer.config import ConfigError
from trainer.policies.base import GivenText
from trainer.policies.lora import frozen_copy, keep_start, start_weights
from trainer.policies.tokens.conversations import given_text
from trainer.policies.tokens.draw import Answer, Drawer, Reading, TokenPlan
from trainer.policies.tokens.generate import GenerateDrawer
from trainer.policies.tokens.llama.drawer import LlamaDrawer
from trainer.policies.tokens.llama.inputs import see
from trainer.policies.tokens.llama.layout import supports, text_model
from trainer.policies.tokens.logits import answer_logits
from trainer.policies.tokens.model import TokenModel
from trainer.policies.tokens.parts import part_of
from trainer.policies.tokens.trace import AnswerTrace
from trainer.samplers.tokens import allowed_logits, log_probs
from trainer.types import Conversation, Prompt, Replay, Rollout, Sample

_NAMED = 3  # prompts that cannot be read that a message names
_NOTHING = torch.empty(0, dtype=torch.int64)
# Of a model, its network or a copy of it, and B answers: logits (N, V) of all their tokens behind one another.
AnswerLogits = Callable[[Any, nn.Module, AnswerTrace], Tensor]


class TokenPolicy:
    """Implements `Samples`, `Replays`, `ReadsTokens` and `NamesGroups` of `trainer.policies.base` for any TokenModel."""

    def __init__(
        self,
        model: TokenModel,
        *,
        keep_reference: bool,
        drawer: Drawer | None = None,
        logits: AnswerLogits = answer_logits,
        copy: nn.Module | None = None,
    ) -> None:
        """
        Args:
            logits: of given answers, of a model that is none of transformers'.
            copy: the network with its starting weights, where somebody keeps one already.
        """
        self.model, self._given_drawer, self._answer_logits = model, drawer, logits
        self._keeps_reference = keep_reference
        self._longest: Reading | None = None  # of the prompts that were checked
        has_adapter = hasattr(model.network, "disable_adapter")
        self.copy = copy or (frozen_copy(model.network) if keep_reference and not has_adapter else None)
        if keep_reference and has_adapter:
            keep_start(model.network)

    @property
    def drawer(self) -> Drawer:
        """The one that was given, or the fastest that can compute the network as it is now: an engine may cut its weights."""
        if self._given_drawer is not None:
            return self._given_drawer
        return LlamaDrawer(self.model) if supports(self.model.network) is None else GenerateDrawer(self.model)

    def draw_by(self, drawer: Drawer) -> None:
        """Let another one draw from now on."""
        self._given_drawer = drawer

    @property
    def trainable(self) -> nn.Module:
        return self.model.network

    @property
    def about(self) -> str:
        return self.model.about

    @property
    def group_of(self) -> Mapping[str, str]:
        """`vision`, `projector` and `language`: the parts of the model, each of which may have its own learning rate."""
        return {name: part_of(name) for name, _ in self.trainable.named_parameters()}

    def check_prompts(self, prompts: Sequence[Prompt]) -> None:
        """Raises ConfigError naming the first prompts that cannot be read, and their number. Each is read once for it."""
        problems = []
        for prompt in prompts:
            try:
                reading = self.model.read(prompt)
                if self._longest is None or len(reading.ids_T) > len(self._longest.ids_T):
                    self._longest = reading
            except ConfigError as error:
                problems.append(str(error))
        if problems:
            listed = "\n  ".join(list(dict.fromkeys(problems))[:_NAMED])
            raise ConfigError(f"{len(problems)} of {len(prompts)} prompts cannot be read. The first:\n  {listed}")

    def check_room(self, count: int) -> None:
        """Raises ConfigError where an answer of `count` tokens has no place behind the longest prompt that was checked."""
        if self._longest is not None:
            self.model.check_length(self._longest, count)

    @torch.no_grad()
    def sample(
        self, prompts_P: Sequence[Prompt], group_size: int, seeds_B: Sequence[int], plan: TokenPlan
    ) -> Iterator[Rollout]:
        rows = [(p, g) for p in range(len(prompts_P)) for g in range(group_size)]
        readings: dict[int, Reading] = {}
        for first in range(0, len(rows), plan.micro_batch_size):
            chunk = rows[first : first + plan.micro_batch_size]
            for p in dict.fromkeys(p for p, _ in chunk):
                readings[p] = readings.get(p) or self.model.read(prompts_P[p])
                self.model.check_length(readings[p], plan.max_new_tokens)
            readings = self._seen(readings)
            answers = self.write(chunk, readings, seeds_B[first : first + len(chunk)], plan)
            yield self._rollout(prompts_P, chunk, readings, answers, plan)
            readings = {p: readings[p] for p in {chunk[-1][0]}}  # of a group that goes on in the next micro-batch

    def parts(self, rollout: Rollout) -> list[slice]:
        return [slice(0, rollout.logp_BS.shape[1])]  # all tokens come out of one forward pass

    def replay(self, rollout: Rollout, part: slice, *, reference: bool = False) -> Replay:
        trace = cast(AnswerTrace, rollout.trace)
        logp_BS = widened(self._logp(self.model.network, trace), part.stop)
        if not reference:
            return Replay(logp_BS)
        with torch.no_grad(), self.reference() as network:
            return Replay(logp_BS, reference_BS=widened(self._logp(network, trace), part.stop))

    def read_conversation(self, conversation: Conversation) -> GivenText:
        """Raises ConfigError, naming the conversation, where it cannot be read."""
        return replace(given_text(self.model, conversation), most=self.model.longest)

    def logp(
        self, readings_B: Sequence[Reading], answers_B: Sequence[Sequence[int]], *, reference: bool = False
    ) -> Tensor:
        """Of the model's own distribution, of which nothing is banned: what is given may hold any token, and to learn a text
        is also to unlearn what does not belong into it."""
        tokens_B = [torch.tensor(answer, dtype=torch.int64) for answer in answers_B]
        for reading, answer in zip(readings_B, answers_B, strict=True):
            self.model.check_length(reading, len(answer))
        trace = AnswerTrace(readings_B, tokens_B, 1.0, [None] * len(tokens_B))
        if not reference:
            return self._logp(self.model.network, trace, banned_N=_NOTHING)
        with torch.no_grad(), self.reference() as network:
            return self._logp(network, trace, banned_N=_NOTHING)

    def _seen(self, readings: Mapping[int, Reading]) -> dict[int, Reading]:
        """The readings of a micro-batch, with what is made of their images where that stays as it is: the updates of its step and
        the reference then need not make it again. It is kept no longer: in another batch it may differ in the last bits, and a run
        that was resumed would then differ from one that was not."""
        new = {p: reading for p, reading in readings.items() if reading.seen is None}
        if not new or not isinstance(self.drawer, LlamaDrawer):
            return dict(readings)
        with self.model.computing():
            found = see(self.model, text_model(self.model.network), list(new.values()))
        return {**readings, **dict(zip(new, found, strict=True))}

    def write(
        self, chunk: Sequence[tuple[int, int]], readings: Mapping[int, Reading], seeds: Sequence[int], plan: TokenPlan
    ) -> list[Answer]:
        """The answers of a micro-batch: whole groups together, or a part of one.

        Args:
            chunk: of each row the number of its prompt, and which of its group it is.
            readings: of these prompts.
        """
        sizes = [len(list(group)) for _, group in itertools.groupby(chunk, key=lambda row: row[0])]
        prompts = list(dict.fromkeys(p for p, _ in chunk))
        if len(set(sizes)) == 1:
            return self.drawer.draw([readings[p] for p in prompts], sizes[0], seeds, plan)
        answers, start = [], 0
        for p, size in zip(prompts, sizes, strict=True):  # the last micro-batch of an evaluation may cut a group
            answers += self.drawer.draw([readings[p]], size, seeds[start : start + size], plan)
            start += size
        return answers

    def _rollout(
        self,
        prompts_P: Sequence[Prompt],
        chunk: Sequence[tuple[int, int]],
        readings: Mapping[int, Reading],
        answers: Sequence[Answer],
        plan: TokenPlan,
    ) -> Rollout:
        texts: dict[tuple[int, ...], str] = {}  # many answers of a short question are the same
        samples = [
            Sample(
                f"{prompts_P[p].id}#{g}",
                prompts_P[p].id,
                prompts_P[p],
                text=self._text(answer, texts),
                tokens=tuple(answer.tokens_S.tolist()),
                finished=answer.finished,
            )
            for (p, g), answer in zip(chunk, answers, strict=True)
        ]
        trace = AnswerTrace(
            [readings[p] for p, _ in chunk],
            [answer.tokens_S for answer in answers],
            plan.temperature,
            [answer.kept_SV for answer in answers],
        )
        return Rollout(
            samples=samples,
            group_B=torch.tensor([p for p, _ in chunk]),
            logp_BS=pad_sequence([answer.logp_S for answer in answers], batch_first=True),
            mask_BS=pad_sequence([torch.ones(len(a.tokens_S), dtype=torch.bool) for a in answers], batch_first=True),
            trace=trace,
            # Tokens written one by one and all tokens read at once differ in the last bits: ratios are to what is read.
            resized=True,
            version=answers[0].version,
        )

    def _text(self, answer: Answer, texts: dict[tuple[int, ...], str]) -> str:
        tokens = tuple(answer.tokens_S.tolist())
        if tokens not in texts:
            texts[tokens] = self.model.decode(answer.tokens_S)
        return texts[tokens]

    def _logp(self, network: nn.Module, trace: AnswerTrace, banned_N: Tensor | None = None) -> Tensor:
        """(B, S) float32 log-probabilities of the answers' tokens, 0 behind their ends. None bans what is never drawn."""
        device = self.model.device
        banned_N = self.model.banned_N if banned_N is None else banned_N
        with self.model.computing():
            logits_NV = allowed_logits(self._answer_logits(self.model, network, trace), banned_N)
        kept = [kept_SV for kept_SV in trace.kept_B if kept_SV is not None]
        logp_NV = log_probs(logits_NV / (trace.temperature or 1.0), sent(torch.cat(kept), device) if kept else None)
        logp_N = logp_NV.gather(-1, sent(torch.cat(list(trace.tokens_B)), device)[:, None])[:, 0]
        return pad_sequence(logp_N.split([len(tokens_S) for tokens_S in trace.tokens_B]), batch_first=True)

    @contextmanager
    def reference(self) -> Iterator[nn.Module]:
        """The network with its starting weights."""
        if not self._keeps_reference:
            raise ValueError("this policy was built without a reference; build it with keep_reference=True")
        if self.copy is not None:
            yield self.copy
            return
        with start_weights(self.model.network):
            yield self.model.network


def widened(logp_BS: Tensor, width: int) -> Tensor:
    """With columns of 0 up to `width`: rows cut out of a micro-batch may all be shorter than its longest."""
    return functional.pad(logp_BS, (0, width - logp_BS.shape[1]))
