"""The vocabulary of the trainer.

Axes, as suffixes: P prompts, G group (rollouts per prompt), B = P*G samples, S steps (denoising steps or tokens),
R rewards. A group is known by its `group_id`, never by prompt text or position.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol, Self

if TYPE_CHECKING:  # prompt files are read and their mistakes said without waiting for torch
    import numpy as np
    from torch import Tensor


@dataclass(frozen=True)
class Prompt:
    """One row of a prompt file.

    `weights` maps reward names to the weights of the row's data set; a reward that is not in it is never asked for.
    `source_images` are files, in order: what an edit starts from, or what a question is about. Classifier-free guidance leads
    away from `negative_prompt`; None is the empty text. `place` is the file and the row, for messages.

    Of a policy with tasks `task` says which one a prompt is for. A pair is dealt as one prompt whose `sides` are a prompt for
    each task; `similarity`, from 0 to 1, says how near they are (1: they are about the same image).
    """

    id: str
    text: str
    dataset: str = "default"
    weights: Mapping[str, float] = field(default_factory=dict)
    targets: tuple[str, ...] | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    source_images: tuple[str, ...] = ()
    negative_prompt: str | None = None
    place: str = field(default="", compare=False)
    task: str = ""
    sides: tuple[Prompt, ...] = ()
    similarity: float = 1.0

    def side(self, task: str) -> Prompt:
        """The prompt of this task: a side of a pair, or the prompt itself where it is no pair."""
        return next((each for each in self.sides if each.task == task), self)


@dataclass(frozen=True)
class Sample:
    """What the policy made of a prompt, once: images, a text, or both. The reward client takes it in this form.

    Attributes:
        images: uint8 (H, W, 3), each of its own size, in the order they were made.
        text: the answer, without the tokens that only frame it.
        tokens: what was drawn for the text, with the token that ended it.
        finished: whether the text ended by itself; False where it was cut off at the longest length.
    """

    id: str
    group_id: str
    prompt: Prompt
    images: tuple[np.ndarray, ...] = ()
    text: str | None = None
    tokens: tuple[int, ...] = ()
    finished: bool = True


@dataclass(frozen=True)
class Turn:
    """One turn of a conversation. In a user's text `<image>` stands where an image is shown."""

    role: Literal["system", "user", "assistant"]
    text: str


@dataclass(frozen=True)
class Conversation:
    """Turns that a policy learns to continue: what the assistant says is trained on.

    `images` are files, in the order in which they are shown; where no text says where, all come before the first user turn.
    """

    id: str
    turns: tuple[Turn, ...]
    images: tuple[str, ...] = ()


@dataclass(frozen=True)
class AnswerPair:
    """Two answers to a prompt, of which `chosen` is the better one."""

    prompt: Prompt
    chosen: str
    rejected: str


class Trace(Protocol):
    """What a policy keeps of a micro-batch in order to replay it. Nobody but the policy that made it looks inside."""

    def rows(self, rows: slice) -> Self:
        """The trace of these samples alone."""
        ...

    def join(self, others: Sequence[Self]) -> Self:
        """One trace of this micro-batch's samples and those of the others, in order. What is ragged is padded here, by the
        policy, which knows with what."""
        ...


@dataclass(eq=False)
class Rollout:
    """A micro-batch of B samples, as a policy yields it, with all that a replay needs.

    Attributes:
        samples: B samples in order.
        group_B: int64 group numbers, equal within a group, unique in the step over all ranks.
        logp_BS: float32 log-probabilities of what was drawn: of S stochastic denoising steps, each a mean over the latent
            dimensions, or of S tokens.
        mask_BS: bool, False behind the end of a shorter text; None where all S count. It is known as soon as the samples
            are, so that a loss can be divided by what counts before anything is computed again.
        trace: the policy's own record of the samples.
        behind: how many updates the weights have had since they drew these samples.
        version: how many updates the weights had that drew them, where another engine did, with copies of the weights and
            numbers of its own; None where the policy itself did.
        resized: whether this is another micro-batch than the sampled one. The same log-probability, computed with other
            neighbours, may differ in the last bits.
        rounds_apart: a replay may differ in the last bits from what was drawn, as it does where blocks are compiled: graphs with a gradient
            are other graphs.
        sampled_is_old: first ratios are to `logp_BS` as it was drawn, also where a first replay may differ from it.
        scale_BS: float32, what the advantage is multiplied by in each column; None is 1 everywhere.
        seconds: how long the phases of sampling took (`encode`, `denoise`, `decode`), where the policy has such.
    """

    samples: Sequence[Sample]
    group_B: Tensor
    logp_BS: Tensor
    mask_BS: Tensor | None
    trace: Trace
    behind: int = 0
    version: int | None = None
    resized: bool = False
    sampled_is_old: bool = False
    scale_BS: Tensor | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)
    rounds_apart: bool = False

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def prompts(self) -> list[Prompt]:
        """The prompt of each sample."""
        return [sample.prompt for sample in self.samples]


@dataclass
class Replay:
    """What a policy computes again under its present weights, for a part of the S columns of a rollout.

    Attributes:
        logp_BS: float32, differentiable. What stands where the rollout's mask is False means nothing.
        reference_BS: float32 log-probabilities under the starting weights, without gradient; None when they were not asked
            for, or the policy gives its KL itself.
        kl_BS: float32, differentiable: the KL to the reference in closed form, by what it compares (`velocity`, `latent`);
            empty when none was asked for, or the policy has none.
        mean_shift_BS: float32, mean over latents of (mean - sampled mean)^2 of each Gaussian step, differentiable; None
            where the rollout kept no means.
        std_S: standard deviation of each step's noise (sqrt(-dt) included); empty for steps that are no Gaussians.
        sigma_S: noise levels (sigma, sigma_next) of each step; empty likewise.
    """

    logp_BS: Tensor
    reference_BS: Tensor | None = None
    kl_BS: Mapping[str, Tensor] = field(default_factory=dict)
    mean_shift_BS: Tensor | None = None
    std_S: Sequence[float] = ()
    sigma_S: Sequence[tuple[float, float]] = ()


@dataclass(frozen=True)
class Captioned:
    """Images (B, H, W, 3), uint8, with their texts, and how many were passed over for being broken."""

    pixels_BHWC: Tensor
    texts: Sequence[str]
    skipped: int


@dataclass(frozen=True)
class PreferredPairs:
    """N pairs as they were drawn.

    Attributes:
        pixels_BHWC: uint8 (2N, H, W, 3); 2n is the preferred image of pair n, 2n + 1 the rejected one.
        texts: their N prompts.
        skipped: how many entries were passed over because an image of them is broken.
    """

    pixels_BHWC: Tensor
    texts: Sequence[str]
    skipped: int


@dataclass
class Scores:
    """What the reward client collected for B samples and R rewards, in the order of submission.

    `valid_BR` is False where a reward failed, did not apply, was not asked for, or its group was dropped; the number
    in `scores_BR` there is 0 and means nothing.

    Attributes:
        names: the R rewards; a training batch has every column of the config, asked for or not.
        scores_BR, valid_BR, asked_BR, weights_BR: float32, bool, bool, float32.
        details: per sample, reward name to what the service saw (recognised texts, boxes), with `components` where the
            score has parts and `error` {code, message} where there is none.
        failures: per reward, failed scores by code.
        not_applicable: per reward, samples to which it does not apply; they are no failures.
        latency_ms: per reward, from submit to answer, one number per micro-batch in the order of submission.
        cached: per reward, scores that came from the service's cache.
        waited_s: how long `collect` blocked.
        last_latency_s: the slowest latency among the requests of the last micro-batch.
        stop_reason: why the run must stop at this step and what to do; None to go on.
        datasets: each sample's data set.
    """

    names: Sequence[str]
    ids: Sequence[str]
    scores_BR: Tensor
    valid_BR: Tensor
    asked_BR: Tensor
    weights_BR: Tensor
    details: Sequence[Mapping[str, Mapping[str, Any]]] = field(default_factory=list)
    failures: Mapping[str, Counter[str]] = field(default_factory=dict)
    not_applicable: Mapping[str, int] = field(default_factory=dict)
    latency_ms: Mapping[str, Sequence[float]] = field(default_factory=dict)
    cached: Mapping[str, int] = field(default_factory=dict)
    waited_s: float = 0.0
    last_latency_s: float = 0.0
    stop_reason: str | None = None
    datasets: Sequence[str] = ()


class StopTrainingError(RuntimeError):
    """The run must stop at this step; the message says why and what to do.

    A checkpoint is written first, unless the weights are `midway`: some updates of the step were made, others were not.
    """

    def __init__(self, message: str, *, midway: bool = False) -> None:
        super().__init__(message)
        self.midway = midway


def group_numbers(group_ids: Sequence[str], base: int = 0) -> Tensor:
    """int64 numbers for group ids, in order of first appearance, starting at `base`."""
    import torch

    numbers: dict[str, int] = {}
    return torch.tensor([base + numbers.setdefault(g, len(numbers)) for g in group_ids], dtype=torch.int64)
