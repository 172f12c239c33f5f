"""A policy that reads and draws, small enough to read at once, and no Janus: what knows of tasks must work with it as well.

It writes letters and draws images of 2 x 2 squares, each token given the one before it and where it started: at the question with
its image, or at the prompt. Both halves stand on one embedding, so that training one of them moves the other. Behind the end of an
answer it gives NaN wherever it gives a number. Axes: B samples, S tokens, C tokens to choose from.
"""

from __future__ import annotations

import copy
import json
import sys
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from trainer.policies.registry import Entry, Family, Sizes
from trainer.policies.tokens.draw import TokenPlan
from trainer.policies.unified.draw import ImagePlan
from trainer.policies.unified.plans import comparison_plan, evaluation_plan, training_plan
from trainer.samplers.guidance import guided_logits
from trainer.samplers.tokens import draw_tokens, uniforms
from trainer.types import Prompt, Replay, Rollout, Sample

LETTERS = "ABC"
END = len(LETTERS)  # the token that ends an answer
COLOURS = np.array([[220, 20, 20], [20, 160, 60], [30, 60, 220], [240, 200, 40]], np.uint8)
NAMES = ("red", "green", "blue", "yellow")
GRID, SIDE = 2, 8  # squares in a row, and pixels of a square
STARTS = 16
_NOTHING = torch.empty(0, dtype=torch.int64)


@dataclass(frozen=True, eq=False)
class Tokens:
    """The trace: which half drew it (`write` or `draw`), where each row started, its tokens, and the plan that they came from."""

    half: str
    start_B: Tensor
    token_BS: Tensor
    temperature: float
    guidance_scale: float

    def rows(self, rows: slice) -> Tokens:
        return Tokens(self.half, self.start_B[rows], self.token_BS[rows], self.temperature, self.guidance_scale)

    def join(self, others: Sequence[Tokens]) -> Tokens:
        traces = (self, *others)
        width = max(each.token_BS.shape[1] for each in traces)
        token_BS = torch.cat([functional.pad(t.token_BS, (0, width - t.token_BS.shape[1]), value=END) for t in traces])
        return Tokens(
            self.half, torch.cat([t.start_B for t in traces]), token_BS, self.temperature, self.guidance_scale
        )


class TwoTasks:
    """Implements `Samples` and `Replays`."""

    about = "A bigram of letters and squares with random weights."

    def __init__(self) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.trainable = nn.ModuleDict(
                {
                    "start": nn.Embedding(STARTS, 8),
                    "before": nn.Embedding(1 + max(END + 1, len(COLOURS)), 8),
                    "write": nn.Linear(8, END + 1),
                    "draw": nn.Linear(8, len(COLOURS)),
                }
            )
        self.first = copy.deepcopy(self.trainable)

    def check_prompts(self, prompts: Sequence[Prompt]) -> None: ...

    @torch.no_grad()
    def sample(
        self, prompts_P: Sequence[Prompt], group_size: int, seeds_B: Sequence[int], plan: TokenPlan | ImagePlan
    ) -> Iterator[Rollout]:
        rows = [(p, g) for p in range(len(prompts_P)) for g in range(group_size)]
        for first in range(0, len(rows), plan.micro_batch_size):
            chunk = rows[first : first + plan.micro_batch_size]
            prompts_B = [prompts_P[p] for p, _ in chunk]
            trace = self._draw(prompts_B, seeds_B[first : first + len(chunk)], plan)
            mask_BS = _inside(trace)
            samples = [
                _sample(f"{prompts_P[p].id}#{g}", prompts_P[p], trace.half, token_S[inside_S].tolist())
                for (p, g), token_S, inside_S in zip(chunk, trace.token_BS, mask_BS, strict=True)
            ]
            yield Rollout(
                samples,
                torch.tensor([p for p, _ in chunk]),
                self._logp(self.trainable, trace),
                mask_BS if trace.half == "write" else None,
                trace,
            )

    def parts(self, rollout: Rollout) -> list[slice]:
        return [slice(0, rollout.logp_BS.shape[1])]

    def replay(self, rollout: Rollout, part: slice, *, reference: bool = False) -> Replay:
        assert isinstance(rollout.trace, Tokens)
        with torch.no_grad():
            reference_BS = self._logp(self.first, rollout.trace) if reference else None
        return Replay(self._logp(self.trainable, rollout.trace), reference_BS=reference_BS)

    def _draw(self, prompts_B: Sequence[Prompt], seeds_B: Sequence[int], plan: TokenPlan | ImagePlan) -> Tokens:
        draws = isinstance(plan, ImagePlan)
        longest = GRID**2 if isinstance(plan, ImagePlan) else plan.max_new_tokens
        scale = plan.guidance_scale if isinstance(plan, ImagePlan) else 1.0
        start_B = torch.tensor([start_of(prompt) for prompt in prompts_B])
        uniform_BS = uniforms(seeds_B, longest)
        token_BS = torch.zeros(len(prompts_B), 0, dtype=torch.int64)
        ended_B = torch.zeros(len(prompts_B), dtype=torch.bool)
        while token_BS.shape[1] < longest and not bool(ended_B.all()):
            trace = Tokens("draw" if draws else "write", start_B, token_BS, plan.temperature, scale)
            logits_BC = self._logits(self.trainable, trace)[:, -1]
            uniform_B = uniform_BS[:, token_BS.shape[1]] if plan.temperature else None
            token_B, _, _ = draw_tokens(
                logits_BC, uniform_B, banned_N=_NOTHING, temperature=plan.temperature, top_p=1.0, top_k=0
            )
            token_BS = torch.cat([token_BS, torch.where(ended_B, END, token_B)[:, None]], 1)
            ended_B = ended_B | (token_B == END) & (not draws)
        return Tokens("draw" if draws else "write", start_B, token_BS, plan.temperature, scale)

    def _logits(self, network: nn.Module, trace: Tokens) -> Tensor:
        """(B, S + 1, C): of each token and of the one to come; `start` 0 is the unconditional branch."""
        before_BS = functional.pad(trace.token_BS + 1, (1, 0))

        def branch(start_B: Tensor) -> Tensor:
            seen_BSd = torch.tanh(network["start"](start_B)[:, None] + network["before"](before_BS))  # type: ignore[index]
            logits: Tensor = network[trace.half](seen_BSd)  # type: ignore[index]
            return logits

        cond_BSC = branch(trace.start_B)
        if trace.guidance_scale == 1:
            return cond_BSC
        return guided_logits(cond_BSC, branch(torch.zeros_like(trace.start_B)), trace.guidance_scale)

    def _logp(self, network: nn.Module, trace: Tokens) -> Tensor:
        logp_BSC = (self._logits(network, trace)[:, :-1] / (trace.temperature or 1.0)).log_softmax(-1)
        logp_BS = logp_BSC.gather(-1, trace.token_BS[..., None])[..., 0]
        return torch.where(_inside(trace), logp_BS, torch.nan)


def start_of(prompt: Prompt) -> int:
    """Where a prompt starts: by its text, and by how bright its images are. Never 0."""
    bright = sum(int(np.asarray(Image.open(name).convert("L")).mean()) // 16 for name in prompt.source_images)
    return 1 + (sum(map(ord, prompt.text)) + bright) % (STARTS - 1)


def _inside(trace: Tokens) -> Tensor:
    """Bool (B, S): up to the first END of a text, and all of an image."""
    if trace.half == "draw":
        return torch.ones_like(trace.token_BS, dtype=torch.bool)
    ends_BS = trace.token_BS == END
    return ends_BS.cumsum(1) - ends_BS.long() == 0


def _sample(name: str, prompt: Prompt, half: str, tokens: Sequence[int]) -> Sample:
    if half == "draw":
        squares = COLOURS[np.array(tokens).reshape(GRID, GRID)]
        return Sample(name, prompt.id, prompt, images=(squares.repeat(SIDE, 0).repeat(SIDE, 1),))
    text = "".join(LETTERS[token] for token in tokens if token != END)
    finished = bool(tokens) and tokens[-1] == END
    return Sample(name, prompt.id, prompt, text=text, tokens=tuple(tokens), finished=finished)


def _kept(policy: TwoTasks, *, keep_reference: bool) -> TwoTasks:
    return policy


def _no_check(config: Any, policy: TwoTasks) -> None: ...


FAMILY = Family(
    policy=_kept,
    check_plans=_no_check,
    training_plan=training_plan,
    evaluation_plan=evaluation_plan,
    comparison_plan=comparison_plan,
)


@pytest.fixture
def two_tasks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    """The section `policy` of a run with this policy. It takes the place of the one whose section has tasks; of that policy's own
    module nothing is left."""
    module = types.ModuleType("trainer.policies.unified.janus")
    entry = Entry(
        family=FAMILY,
        build=lambda section, device: TwoTasks(),
        exporters=dict.fromkeys(_formats(), None),  # type: ignore[arg-type]
        sizes=lambda section: Sizes(trained=500, network=0, others=0),
    )
    module.ENTRY = entry  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "trainer.policies.unified.janus", module)
    monkeypatch.setitem(sys.modules, "trainer.policies.unified.janus.model", None)  # type: ignore[arg-type]
    (tmp_path / "no_model").mkdir()
    return {"type": "janus", "pretrained": str(tmp_path / "no_model"), "dtype": "float32"}


def _formats() -> tuple[str, ...]:
    from trainer.config import JanusConfig

    return JanusConfig.formats


def write_pairs(folder: Path, name: str, numbers: Sequence[int]) -> Path:
    """A file of pairs with a picture each, about one colour: the question of its letter, the prompt to draw it."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [_pair(folder, number) for number in numbers]
    path = folder / f"{name}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def _pair(folder: Path, number: int) -> Mapping[str, Any]:
    colour = number % len(LETTERS)
    squares = np.tile(COLOURS[colour] - np.uint8(number % 16), (GRID * SIDE, GRID * SIDE, 1))
    image = folder / f"{number}.png"
    Image.fromarray(squares.astype(np.uint8)).save(image)
    side = {
        "image_path": str(image),
        "prompt": f"draw {number} {NAMES[colour]} squares",
        "question": f"What color are the squares of {number}?\nA. red\nB. green\nC. blue\nAnswer with its letter.",
        "answer": LETTERS[colour],
        "tag": "squares",
    }
    return {"similarity": 1.0, "generate_ann": side, "understand_ann": side}


def score(request: Mapping[str, Any], item: Mapping[str, Any]) -> float:
    """Whether an answer begins with the right letter, or which share of an image has the colour that its prompt names."""
    if item.get("completion") is not None:
        return float(item["completion"][:1] == item["targets"][0])
    colour = next(n for n, name in enumerate(NAMES) if name in item["prompt"])
    pixels = np.frombuffer(request["parts"][item["images"][0]["part"]], np.uint8).reshape(-1, 3).astype(int)
    nearest = np.abs(pixels[:, None] - COLOURS.astype(int)).sum(2).argmin(1)
    return float((nearest == colour).mean())
