"""What every policy offers. The trainer knows no modality: a denoising step and a token are both a step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn

from trainer.types import Prompt, Replay, Rollout


@dataclass(frozen=True)
class SamplingPlan:
    """How one call of `sample` denoises.

    Attributes:
        num_inference_steps: denoising steps.
        micro_batch_size: samples denoised together.
        kind: the SDE of the stochastic steps (`flow_sde`, `cps`, `dance_sde`).
        noise_level: eta of that SDE.
        stochastic_steps: indices of the SDE steps; all others are Euler ODE steps. Empty: a deterministic sampler.
        trained_steps: the stochastic steps a replay will ask for; only their latents are kept.
        guidance_scale: classifier-free guidance; 1 is none.
        shift: timestep shift of the sigma schedule.
    """

    num_inference_steps: int
    micro_batch_size: int
    kind: str = "cps"
    noise_level: float = 0.0
    stochastic_steps: Sequence[int] = ()
    trained_steps: Sequence[int] = ()
    guidance_scale: float = 1.0
    shift: float = 1.0


class Policy(Protocol):
    """A generator that can be sampled and replayed. Flat: no policy inherits from another, none knows of rewards."""

    @property
    def trainable(self) -> nn.Module:
        """The module whose parameters are trained, averaged and saved."""
        ...

    @property
    def about_base(self) -> str:
        """A paragraph for the report: what the starting weights are and how they were made."""
        ...

    def check_prompts(self, prompts: Sequence[Prompt]) -> None:
        """Raises ConfigError naming the first prompt this policy cannot draw."""
        ...

    def sample(
        self, prompts_P: Sequence[Prompt], group_size: int, seeds_B: Sequence[int], plan: SamplingPlan
    ) -> Iterator[Rollout]:
        """Yield micro-batches as they are decoded, in order: B = P * group_size, a group's samples side by side.

        Sample i depends on its prompt, `seeds_B[i]` and the plan alone, never on its neighbours.
        """
        ...

    def replay(self, rollout: Rollout, columns: Sequence[int]) -> Replay:
        """Log-probabilities of the stored steps `rollout.steps[c]`, c in `columns`, under the present weights.

        Before the first update they equal `rollout.logp_BS` bit for bit, when the micro-batch is the sampled one.
        """
        ...


def slice_rollout(rollout: Rollout, start: int, stop: int) -> Rollout:
    """Samples [start, stop) of a micro-batch, marked `sliced`. Tensors of the state are batch-first; the rest is shared."""
    size = len(rollout)
    state: Mapping[str, object] = {
        key: value[start:stop] if isinstance(value, Tensor) and value.dim() and value.shape[0] == size else value
        for key, value in rollout.state.items()
    }
    return Rollout(
        samples=rollout.samples[start:stop],
        group_B=rollout.group_B[start:stop],
        logp_BS=rollout.logp_BS[start:stop],
        steps=rollout.steps,
        state={**state, "sliced": True},
    )
