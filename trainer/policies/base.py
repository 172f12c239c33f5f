"""What policies offer, as capabilities: a policy has those that fit it, an objective says which it needs.

Axes: P prompts, G group, B = P*G samples, S columns: stochastic denoising steps or tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainer.data.sequences import SequencePlan
from trainer.samplers.flow_sde import Kind
from trainer.samplers.guidance import Guidance, GuidanceGradient
from trainer.types import Conversation, Prompt, Replay, Rollout

Solver = Literal["euler", "dpm2m"]


class Plan(Protocol):
    """How one call of `sample` draws: each family of policies has its own plan, and only its policies look inside."""

    @property
    def micro_batch_size(self) -> int:
        """How many samples are drawn together."""
        ...


@dataclass(frozen=True)
class SamplingPlan:
    """How one call of `sample` denoises.

    Attributes:
        num_inference_steps: denoising steps.
        micro_batch_size: samples denoised together.
        kind: the SDE of the stochastic steps (`flow_sde`, `cps`, `dance_sde`).
        noise_level: eta of that SDE.
        stochastic_steps: indices of the SDE steps; all others are ODE steps. Empty: a deterministic sampler.
        trained_steps: the stochastic steps a replay will ask for; only their latents are kept.
        guidance_scale: classifier-free guidance; 1 is none.
        guidance: by the text and by source images, of a policy that is guided by both; `guidance_scale` is its `text`. None is by the text alone.
        shift: timestep shift of evenly spaced noise levels; None visits the model's own levels.
        height, width: pixels; None is the model's own size.
        solver: of the ODE steps.
        same_noise: the samples of a group start from one noise, that of the group's first seed. ODE steps before the
            first stochastic step are then the same for all of them and computed once per prompt.
        keep_means: keep the means of the trained steps, for a replay's `mean_shift_BS`.
        keep_final: keep the clean latents, for objectives of the forward process (`Denoises.clean`).
        guidance_gradient: where the gradient of a guided velocity goes: through `both` velocities, or through the `conditional` one, with the
            other a constant that no graph is kept of. Sampling computes the two as their replay will.
    """

    num_inference_steps: int
    micro_batch_size: int
    kind: Kind = "cps"
    noise_level: float = 0.0
    stochastic_steps: Sequence[int] = ()
    trained_steps: Sequence[int] = ()
    guidance_scale: float = 1.0
    guidance: Guidance | None = None
    shift: float | None = 1.0
    height: int | None = None
    width: int | None = None
    solver: Solver = "euler"
    same_noise: bool = False
    keep_means: bool = False
    keep_final: bool = False
    guidance_gradient: GuidanceGradient = "both"


@runtime_checkable
class Policy(Protocol):
    """A generator. Flat: no policy inherits from another, none knows of rewards."""

    @property
    def trainable(self) -> nn.Module:
        """The module whose parameters with `requires_grad` are trained, averaged and saved."""
        ...

    @property
    def about(self) -> str:
        """A paragraph for the report: what the starting weights are and how they were made."""
        ...

    def check_prompts(self, prompts: Sequence[Prompt]) -> None:
        """Raises ConfigError naming the first prompt this policy cannot take."""
        ...


@runtime_checkable
class Samples(Policy, Protocol):
    """A policy that draws samples for prompts."""

    def sample(
        self, prompts_P: Sequence[Prompt], group_size: int, seeds_B: Sequence[int], plan: Any
    ) -> Iterator[Rollout]:
        """Yield micro-batches as they are decoded, in order: B = P * group_size, a group's samples side by side.

        Sample i depends on its prompt, `seeds_B[i]` (with `plan.same_noise` also its group's first seed) and the plan
        alone, never on its neighbours. `plan` is what the policy's family makes (`trainer.policies.registry.Family`).
        """
        ...


@runtime_checkable
class Replays(Policy, Protocol):
    """A policy whose samples have log-probabilities that can be computed again: what policy gradients are made of."""

    def parts(self, rollout: Rollout) -> Sequence[slice]:
        """The S columns cut into what one forward and backward pass computes, in order, each column once.

        A denoising step is a pass of its own, so a flow gives one slice a step; all tokens of a text come out of a single
        pass, so a text policy gives one slice.
        """
        ...

    def replay(self, rollout: Rollout, part: slice, *, reference: bool = False) -> Replay:
        """The columns `part` of the rollout under the present weights.

        Before the first update `logp_BS` equals `rollout.logp_BS[:, part]` bit for bit, when the micro-batch is the sampled
        one.

        Args:
            reference: compare with the starting weights, too; needs a policy built with `keep_reference`.
        """
        ...


@runtime_checkable
class Denoises(Policy, Protocol):
    """A policy that predicts the velocity of a rectified flow at any noise level: what forward-process losses need."""

    def check_size(self, height: int | None, width: int | None) -> None:
        """Raises ConfigError where images of this size, in pixels, cannot be drawn; None is the model's own."""
        ...

    def clean(self, rollout: Rollout) -> Tensor:
        """The final clean latents x0 (B, ...), float32; needs `plan.keep_final`."""
        ...

    def encode_images(self, pixels_BHWC: Tensor) -> Tensor:
        """Clean latents x0 (B, ...), float32, of images (B, H, W, 3), uint8."""
        ...

    def predict(self, prompts_B: Sequence[Prompt], x: Tensor, sigma_B: Tensor, *, reference: bool = False) -> Tensor:
        """Velocity v(x, sigma | prompt) (B, ...), float32, without guidance.

        Args:
            x: latents (B, ...) at noise levels `sigma_B` in (0, 1], as x = (1 - sigma) x0 + sigma * noise makes them.
            reference: under the frozen starting weights, without gradient.
        """
        ...


@runtime_checkable
class KeepsCopy(Protocol):
    """A policy that may keep a frozen network beside the trained one."""

    @property
    def copy(self) -> nn.Module | None:
        """The network with its starting weights; None where none is kept, or adapters are left out in its place."""
        ...


@runtime_checkable
class Expects(Protocol):
    """A policy, or its model, with frozen encoders: what they are asked one after another they can read together."""

    def expect(self, batches: Sequence[Sequence[Prompt]]) -> None:
        """The prompts that are needed next, batch by batch. Nothing is encoded before the first batch that lacks something."""
        ...


@dataclass(frozen=True)
class GivenText:
    """A conversation as a policy reads it: how it begins, and S tokens after that, of which some are learnt.

    Attributes:
        reading: how it begins, with the pixels of all its images; nobody but the policy that made it looks inside.
        tokens: the S tokens that follow, up to the end of the last answer.
        learnt: which of them the assistant says, the tokens that end its turns included.
        length: tokens of it all, the places of images included.
        needed: of the S tokens, how many must stay when a text is cut: those up to its last image.
        most: tokens of it all that the policy has positions for; None is any number.
    """

    reading: Any
    tokens: tuple[int, ...]
    learnt: tuple[bool, ...]
    length: int
    needed: int = 0
    most: int | None = None


@runtime_checkable
class ReadsTokens(Policy, Protocol):
    """A policy that reads given texts: the turns of a conversation, or the two answers of a preference."""

    def read_conversation(self, conversation: Conversation) -> GivenText:
        """The conversation as tokens. Raises ConfigError, naming it, where it cannot be read."""
        ...

    def logp(self, readings_B: Sequence[Any], answers_B: Sequence[Sequence[int]], *, reference: bool = False) -> Tensor:
        """logp_BS (B, S), float32, differentiable: the log-probability of each token of the answers given all before it, S the
        longest answer. A row does not depend on its neighbours; what lies behind its end means nothing.

        Args:
            reference: under the frozen starting weights, without gradient.
        """
        ...


@dataclass(frozen=True)
class Laying:
    """How a row is laid out once: what chance decides of it, and how strongly it is noised.

    Attributes:
        seed: of all that is random in it: what is dropped, noise levels, noise.
        drop_text, drop_clean, drop_seen: probability that a droppable item of this use is left out, in [0, 1].
        shift: s of the noise level t = s u / (1 + (s - 1) u), with u = sigmoid(N(0, 1)).
        copies: how many noised copies of each drawn image share the row's context, each with noise and level of its own.
        levels: noise levels of the copies in (0, 1], in place of random ones; as many as `copies`.
    """

    seed: int
    drop_text: float = 0.0
    drop_clean: float = 0.0
    drop_seen: float = 0.0
    shift: float = 1.0
    copies: int = 1
    levels: tuple[float, ...] | None = None


class Laid(Protocol):
    """A row as a policy's tokens. Nobody but the policy that made it looks further inside."""

    @property
    def id(self) -> str: ...

    @property
    def length(self) -> int:
        """Tokens of the pack that it takes up, text and images."""
        ...

    @property
    def learnt(self) -> tuple[int, ...]:
        """Predicted tokens of each learnt text, in order."""
        ...

    @property
    def drawn(self) -> int:
        """Noised latent tokens, those of all copies."""
        ...


@dataclass(frozen=True)
class PackOutput:
    """What a policy says of a packed sequence, before any weight and any mean.

    Attributes:
        cross_entropy_T: float32, of each text token that is predicted: row by row, text by text, in order.
        squared_error_L: float32, of each noised latent token, the mean over its channels.
    """

    cross_entropy_T: Tensor
    squared_error_L: Tensor


@runtime_checkable
class ReadsPacks(Policy, Protocol):
    """A policy that reads packs: rows of texts and images side by side in one sequence, none of which sees another."""

    def lay(self, plan: SequencePlan, laying: Laying) -> Laid:
        """The row as tokens, images loaded. It depends on the plan and `laying` alone. Called by several threads at once.

        Raises:
            ConfigError: it cannot be read; the row is named, with the remedy.
        """
        ...

    def read(self, pack: Sequence[Any]) -> PackOutput:
        """Errors of the tokens of these rows, `Laid` by this policy, under the present weights, unreduced, differentiable. A row does
        not depend on its neighbours.

        All trained modules run, in the same order, and all trained parameters have a gradient, if only 0, whatever the pack holds:
        ranks gather sharded weights and add up gradients as they come, so that a rank whose pack has no image would leave the others
        waiting, and one that ran its modules in another order would have its gradients added to those of other parameters.
        """
        ...


def missing(policy: Policy, capability: type) -> list[str]:
    """What `capability` asks for and the policy does not have, by name; empty where it fits."""
    names = [name for name in dir(capability) if not name.startswith("_")]
    return [name for name in names if not hasattr(policy, name)]


@runtime_checkable
class NamesGroups(Protocol):
    """A policy that names groups of its parameters, so that `optim.groups` can give each a rate of its own."""

    @property
    def group_of(self) -> Mapping[str, str]:
        """The group's name by the name of a trained parameter of `trainable`; read before the engine cuts any of them."""
        ...


def regroup(rollouts: Sequence[Rollout], size: int | None) -> list[Rollout]:
    """The same samples, in order, in micro-batches of `size` (the last may be smaller); None keeps them as sampled.

    A micro-batch that was not sampled as such is marked as `resized`. Rows of unequal length are padded: log-probabilities
    by 0, the mask by False, the trace as the policy says.
    """
    if size is None:
        return list(rollouts)
    total = sum(len(rollout) for rollout in rollouts)
    batches = []
    for start in range(0, total, size):
        pieces, base = [], 0
        for rollout in rollouts:
            first, last = max(start - base, 0), min(start + size - base, len(rollout))
            if first < last:
                pieces.append(rollout if last - first == len(rollout) else _rows(rollout, slice(first, last)))
            base += len(rollout)
        batches.append(pieces[0] if len(pieces) == 1 else _join(pieces))
    return batches


def select(rollout: Rollout, rows: Sequence[int]) -> Rollout:
    """These samples of a rollout alone, at least one, in rising order."""
    if len(rows) == len(rollout):
        return rollout
    pieces, first = [], 0
    for last in range(1, len(rows) + 1):
        if last == len(rows) or rows[last] != rows[last - 1] + 1:
            pieces.append(_rows(rollout, slice(rows[first], rows[last - 1] + 1)))
            first = last
    return pieces[0] if len(pieces) == 1 else _join(pieces)


def _rows(rollout: Rollout, rows: slice) -> Rollout:
    return replace(
        rollout,
        samples=rollout.samples[rows],
        group_B=rollout.group_B[rows],
        logp_BS=rollout.logp_BS[rows],
        mask_BS=None if rollout.mask_BS is None else rollout.mask_BS[rows],
        scale_BS=None if rollout.scale_BS is None else rollout.scale_BS[rows],
        trace=rollout.trace.rows(rows),
        resized=True,
        seconds={},
    )


def _join(pieces: Sequence[Rollout]) -> Rollout:
    first, *others = pieces
    width = max(piece.logp_BS.shape[1] for piece in pieces)
    is_scaled = any(piece.scale_BS is not None for piece in pieces)
    is_ragged = any(piece.mask_BS is not None or piece.logp_BS.shape[1] != width for piece in pieces)
    return replace(
        first,
        samples=[sample for piece in pieces for sample in piece.samples],
        group_B=torch.cat([piece.group_B for piece in pieces]),
        logp_BS=torch.cat([_widened(piece.logp_BS, width) for piece in pieces]),
        mask_BS=torch.cat([_widened(_mask(piece), width) for piece in pieces]) if is_ragged else None,
        scale_BS=torch.cat([_widened(_scale(piece), width) for piece in pieces]) if is_scaled else None,
        trace=first.trace.join([piece.trace for piece in others]),
        resized=True,
        seconds={},
    )


def _mask(rollout: Rollout) -> Tensor:
    return torch.ones_like(rollout.logp_BS, dtype=torch.bool) if rollout.mask_BS is None else rollout.mask_BS


def _scale(piece: Rollout) -> Tensor:
    return torch.ones_like(piece.logp_BS) if piece.scale_BS is None else piece.scale_BS


def _widened(values_BS: Tensor, width: int) -> Tensor:
    """With columns of 0 (False) on the right up to `width`."""
    return functional.pad(values_BS, (0, width - values_BS.shape[1]))
