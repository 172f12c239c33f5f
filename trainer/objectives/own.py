"""Objectives of the user's own: a function of tensors gives a loss for each sample, and everything around it is here.

What divides a loss, masks and weights, micro-batches, ranks, the KL to the starting weights: as in every other objective. The
function says what is minimised, nothing else. Axes: B samples, S columns (denoising steps or tokens).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from machine.own import Own, raised
from trainer.config import ConfigError
from trainer.config.objective import OwnConfig, OwnForwardConfig
from trainer.config.own import found, own_function
from trainer.losses import Stats, highest, matching_error
from trainer.losses.terms import counting_terms, lowest, total, weighted_sum
from trainer.objectives.base import Entry, PlanNeeds, RolloutBatch, Term
from trainer.objectives.flow.forward import ForwardObjective
from trainer.objectives.flow.grpo import StochasticObjective
from trainer.objectives.replayed import Replayed
from trainer.policies.base import Denoises, Replays

STEPS = ("logp_BS", "old_logp_BS", "ratio_BS", "adv_B1")
FORWARD = ("v", "x", "x0", "noise", "sigma_B", "error_B", "adv_B")


class Loss:
    """A user's function with its options, and what is checked of what it gives.

    Args:
        offered: the tensors that it may take, by name.
        moved: those of them that depend on the weights; the loss must depend on one of these.
        shape: of what it gives, as it is written in names.

    Raises ConfigError: it is no such function, or gives something else on a few random numbers.
    """

    def __init__(
        self, config: OwnConfig | OwnForwardConfig, offered: Sequence[str], moved: Sequence[str], shape: str
    ) -> None:
        returns = f"Tensor {shape}"
        self._own: Own = found(config.code, "objective.code")
        self._call: Callable[..., Any] = own_function(config.code, "objective.code", offered, returns, config.options)
        self._moved, self._shape = moved, shape

    def __call__(self, wanted: torch.Size, **given: Tensor) -> Tensor:
        """The losses, float32, of the `wanted` shape. Raises ConfigError."""
        try:
            found = self._call(**given)
        except Exception as error:  # the user's code; whatever it raises is said with its line
            shapes = ", ".join(f"{name} {tuple(each.shape)}" for name, each in given.items())
            raise ConfigError(str(raised(self._own, error, f"on {shapes}"))) from error
        if not isinstance(found, Tensor) or found.shape != wanted:
            gave = tuple(found.shape) if isinstance(found, Tensor) else f"a {type(found).__name__}"
            raise self._error(
                f"{self._own.name} gave {gave}, and a loss for each {self._shape} is needed, {tuple(wanted)}: neither sum nor "
                "mean, which are taken over all ranks"
            )
        return found.float()

    def prove(self, wanted: torch.Size, given: dict[str, Tensor]) -> None:
        """On random numbers: the loss depends on the weights, is finite, and a sample's does not depend on the others'."""
        for name in self._moved:
            given[name] = given[name].clone().requires_grad_(True)
        whole = self(wanted, **given)
        if not whole.isfinite().all():
            raise self._error(
                f"{self._own.name} gave {whole.flatten().tolist()} on numbers that are all finite and near 1"
            )
        if not whole.requires_grad:
            raise self._error(
                f"what {self._own.name} gives has no gradient: use {' or '.join(self._moved)}, and neither detach nor item() them"
            )
        alone = [
            self(torch.Size([1, *wanted[1:]]), **{name: each[n : n + 1] for name, each in given.items()})
            for n in range(wanted[0])
        ]
        if not torch.allclose(torch.cat(alone), whole, rtol=1e-4, atol=1e-5):
            n = int((torch.cat(alone) - whole).abs().reshape(len(alone), -1).amax(1).argmax())
            raise self._error(
                f"{self._own.name} gives sample {n} {whole[n].flatten()[0].item():.6g} among {wanted[0]} and "
                f"{alone[n].flatten()[0].item():.6g} alone: a sample's loss may not depend on its neighbours, which change with "
                "the micro-batch and the number of ranks"
            )

    def _error(self, problem: str) -> ConfigError:
        return ConfigError(str(self._own.error(problem)))


def steps_loss(config: OwnConfig) -> Loss:
    """The function of `objective.type: own`, tried on three samples of two columns. Raises ConfigError."""
    loss = Loss(config, STEPS, ("logp_BS", "ratio_BS"), "(B, S)")
    draw = torch.Generator().manual_seed(0)
    old_BS = torch.randn(3, 2, generator=draw)
    logp_BS = old_BS + 0.01 * torch.randn(3, 2, generator=draw)
    adv_B1 = torch.tensor([[1.0], [-1.0], [0.5]])
    given = {"logp_BS": logp_BS, "old_logp_BS": old_BS, "ratio_BS": (logp_BS - old_BS).exp(), "adv_B1": adv_B1}
    loss.prove(old_BS.shape, given)
    return loss


def forward_loss(config: OwnForwardConfig) -> Loss:
    """The function of `objective.type: own_forward`, tried on three samples. Raises ConfigError."""
    loss = Loss(config, FORWARD, ("v", "error_B"), "(B,)")
    draw = torch.Generator().manual_seed(0)
    v, x0, noise = (torch.randn(3, 4, 2, 2, generator=draw) for _ in range(3))
    sigma_B, adv_B = torch.tensor([0.2, 0.5, 0.9]), torch.tensor([1.0, -1.0, 0.5])
    given = {
        "v": v,
        "x": x0,
        "x0": x0,
        "noise": noise,
        "sigma_B": sigma_B,
        "error_B": matching_error(v, x0, noise),
        "adv_B": adv_B,
    }
    loss.prove(adv_B.shape, given)
    return loss


class OwnSteps(StochasticObjective[OwnConfig]):
    """A user's function of the log-probabilities of drawn steps or tokens; the mean over all that count."""

    scales: ClassVar[bool] = False  # nobody knows what a function of one's own does with the advantage

    def __init__(self, policy: Replays, config: OwnConfig, *, micro_batch_size: int | None, seed: int) -> None:
        super().__init__(policy, config, micro_batch_size=micro_batch_size, seed=seed)
        self._loss = steps_loss(config)

    def _surrogate(self, batch: RolloutBatch, found: Replayed) -> tuple[Tensor, Stats]:
        counts_BS = counting_terms(found.replay.logp_BS, batch.weight_N, found.mask_BS)
        # What a mask leaves out may be NaN, whose gradient would be, too: the function sees 0 there, a ratio of 1.
        logp_BS = torch.where(counts_BS, found.replay.logp_BS.float(), 0.0)
        old_BS = torch.where(counts_BS, found.old_BS.float(), 0.0)
        ratio_BS = (logp_BS - old_BS).exp()
        adv_B1 = batch.adv_B.float().detach()[:, None]
        loss_BS = self._loss(logp_BS.shape, logp_BS=logp_BS, old_logp_BS=old_BS, ratio_BS=ratio_BS, adv_B1=adv_B1)
        stats = Stats(
            counts_BS.sum().float(),
            {"ratio/mean": total(ratio_BS, counts_BS), "ratio/square": total((ratio_BS - 1) ** 2, counts_BS)},
            {"ratio/min": lowest(ratio_BS, counts_BS)},
            {"ratio/max": highest(ratio_BS, counts_BS)},
        )
        return weighted_sum(torch.where(counts_BS, loss_BS, 0.0), batch.weight_N, counts_BS), stats


class OwnForward(ForwardObjective[OwnForwardConfig]):
    """A user's function of velocities on the forward process; the mean over samples and noise levels."""

    requires: ClassVar[type] = Denoises

    def __init__(self, policy: Denoises, config: OwnForwardConfig, *, micro_batch_size: int | None, seed: int) -> None:
        super().__init__(policy, config, micro_batch_size=micro_batch_size, seed=seed)
        self._loss = forward_loss(config)

    def terms(self, batch: RolloutBatch, part: int) -> tuple[list[Term], Stats]:
        point = self.draw(batch, part)
        v = self.predict(batch, point)
        loss_B = self._loss(
            batch.adv_B.shape,
            v=v,
            x=point.x,
            x0=point.x0,
            noise=point.noise,
            sigma_B=point.sigma_B,
            error_B=matching_error(v, point.x0, point.noise),
            adv_B=batch.adv_B.float().detach(),
        )
        counts_B = batch.weight_N != 0
        loss = (batch.weight_N * torch.where(counts_B, loss_B, 0.0)).sum()
        return self.losses(batch, point, v, loss), Stats(count=counts_B.sum().float())


OWN: dict[str, Entry] = {
    "own": Entry(OwnSteps, PlanNeeds()),
    "own_forward": Entry(OwnForward, PlanNeeds(keep_final=True, deterministic=True)),
}


def check_objective_code(config: Any) -> None:
    """Try the function of an objective of the user's own, where it is one. Raises ConfigError."""
    if isinstance(config, OwnConfig):
        steps_loss(config)
    elif isinstance(config, OwnForwardConfig):
        forward_loss(config)
