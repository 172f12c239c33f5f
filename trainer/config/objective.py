"""The loss that turns advantages into a gradient: one section per objective of trainer/objectives, told apart by `type`.

A section has the fields that act with its objective and no others. Those of images are here, those of text answers in
`trainer.config.token_objective` and `trainer.config.preference_objective`.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from trainer.config.base import Positive, Section, by_type
from trainer.config.own import Code, Options
from trainer.config.preference_objective import DpoConfig
from trainer.config.token_objective import (
    BnpoConfig,
    CispoConfig,
    DapoConfig,
    DrGrpoLossConfig,
    GrpoConfig,
    LuspoConfig,
    SapoConfig,
    TokenSection,
    VespoConfig,
)

ClipRange = Positive | tuple[float, float]
KlType = Literal["velocity", "latent"]
TimestepDistribution = Literal["uniform", "logit_normal"]


class ObjectiveSection(Section):
    """What all objectives of images have."""

    kl_beta: float = Field(
        0.0,
        ge=0,
        description="Weight of the KL divergence from the starting weights, which is added to the loss; 0 is none.",
    )


class ClippedSection(ObjectiveSection):
    """What objectives with a clipped probability ratio have."""

    clip_range: ClipRange = Field(
        1e-4,
        description="The ratio is clipped to 1 - this and 1 + this; [lo, hi] is from 1 + lo to 1 + hi. It is small because "
        "log-probabilities are means over an image's numbers. Published: flow_grpo 1e-4, with kind cps 1e-5, grpo_guard 2e-6, "
        "awm 1.",
    )

    @model_validator(mode="after")
    def _clip_is_around_one(self) -> ClippedSection:
        if isinstance(self.clip_range, tuple) and not -1 < self.clip_range[0] < 0 < self.clip_range[1]:
            raise ValueError(
                f"clip_range = [{self.clip_range[0]:g}, {self.clip_range[1]:g}] means ratios from 1 + lo to 1 + hi: it "
                "needs -1 < lo < 0 < hi"
            )
        return self


class StochasticSection(ClippedSection):
    """What objectives on the sampler's own stochastic steps have."""

    kl_type: KlType = Field(
        "velocity",
        description="What the KL compares: velocity compares predicted velocities, latent the means of the stochastic steps.",
    )

    @model_validator(mode="after")
    def _kl_acts(self) -> StochasticSection:
        if self.kl_type == "latent" and not self.kl_beta:
            raise ValueError("kl_type = latent acts only with a kl_beta above 0; set kl_beta or leave kl_type out")
        return self


class FlowGrpoConfig(StochasticSection):
    """Flow-GRPO and DanceGRPO: the clipped surrogate on each stochastic step."""

    type: Literal["flow_grpo"] = Field("flow_grpo", description="Which objective of trainer/objectives.")
    importance_cap: float = Field(
        5.0,
        ge=1,
        description="Largest importance weight of a rollout one update behind (sampling.pipeline one_step_off).",
    )


class GrpoGuardConfig(StochasticSection):
    """GRPO-Guard: Flow-GRPO with ratios normalised by the size of the step's noise."""

    type: Literal["grpo_guard"] = Field(description="Which objective of trainer/objectives.")
    guard_reweight: bool = Field(False, description="Divide each step's loss by the step's length.")


class TimestepSection(ObjectiveSection):
    """What objectives on the forward process have: they noise clean images again and need no stochastic step."""

    timestep_draws: int = Field(1, ge=1, le=1000, description="How many noise levels each sample is trained at.")
    timestep_distribution: TimestepDistribution = Field("uniform", description="Distribution of these noise levels.")
    timestep_shift: Positive = Field(
        1.0, description="Shift of these noise levels; 1 is none, and more makes them noisier."
    )


class AveragedSection(TimestepSection):
    """What objectives have whose samples may be drawn by a moving average of the trained weights."""

    old_decay: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Decay of the sampling policy, a moving average of the trained one; 0 samples with the trained weights.",
    )
    old_decay_steps: int = Field(
        0, ge=0, description="Training steps over which this decay rises from 0 to old_decay; 0 has it from the start."
    )

    old_decay_start: int = Field(
        0, ge=0, description="Training steps before this rise, in which the decay is 0 and samples are on-policy."
    )

    @model_validator(mode="after")
    def _old_decay_rises(self) -> AveragedSection:
        for name in ("old_decay_steps", "old_decay_start"):
            if getattr(self, name) and not self.old_decay:
                raise ValueError(
                    f"{name} = {getattr(self, name)} is part of the rise to old_decay, which is 0; set old_decay or leave "
                    f"{name} out"
                )
        return self


class DiffusionNftConfig(AveragedSection):
    """DiffusionNFT: a positive and a negative branch, weighed by the advantage."""

    type: Literal["diffusion_nft"] = Field(description="Which objective of trainer/objectives.")
    nft_beta: Positive = Field(0.1, description="How far the two branches lie from the sampling policy.")
    nft_adv_clip: Positive = Field(5.0, description="The advantage that counts as surely good.")


class AwmConfig(ClippedSection, AveragedSection):
    """Advantage-weighted matching: the clipped surrogate on the flow-matching error."""

    type: Literal["awm"] = Field(description="Which objective of trainer/objectives.")
    awm_power: float | None = Field(
        None,
        gt=0,
        le=1,
        description="Weigh this power of the matching error by the noise level, as its published recipes do with 0.25; null "
        "takes the error itself at every noise level, as its paper does.",
    )
    old_kl_beta: float = Field(
        0.0,
        ge=0,
        description="Weight of the squared distance of velocities from the sampling policy's, beside kl_beta.",
    )

    @model_validator(mode="after")
    def _old_kl_acts(self) -> AwmConfig:
        if self.old_kl_beta and not self.old_decay:
            raise ValueError(
                f"old_kl_beta = {self.old_kl_beta:g} ties to the moving average that old_decay makes, but old_decay is 0; set "
                "old_decay or leave old_kl_beta out"
            )
        return self


class DiffusionDpoConfig(TimestepSection):
    """Diffusion-DPO: each group's best image is preferred to its worst."""

    type: Literal["diffusion_dpo"] = Field(description="Which objective of trainer/objectives.")
    dpo_beta: Positive = Field(100.0, description="Strength of the tie to the starting weights.")


class OwnConfig(ObjectiveSection):
    """An objective of your own, on the drawn steps or tokens: a function of their log-probabilities."""

    type: Literal["own"] = Field(description="Which objective of trainer/objectives.")
    code: Code = Field(
        description="FILE.py:NAME, or module:NAME: a function of logp_BS, old_logp_BS, ratio_BS and adv_B1, or some of them, that "
        "gives a loss for each (B, S) (docs/tutorials/objective.md)."
    )
    options: Options = Field(
        default_factory=dict, description="Values for further parameters of the function, by name."
    )
    kl_type: KlType = Field("velocity", description="Of a policy that denoises: what the KL compares, as in flow_grpo.")

    @model_validator(mode="after")
    def _kl_acts(self) -> OwnConfig:
        if self.kl_type == "latent" and not self.kl_beta:
            raise ValueError("kl_type = latent acts only with a kl_beta above 0; set kl_beta or leave kl_type out")
        return self


class OwnForwardConfig(TimestepSection):
    """An objective of your own, on the forward process: a function of predicted velocities at noised images."""

    type: Literal["own_forward"] = Field(description="Which objective of trainer/objectives.")
    code: Code = Field(
        description="FILE.py:NAME, or module:NAME: a function of v, x, x0, noise, sigma_B, error_B and adv_B, or some of them, that "
        "gives a loss for each sample (B,) (docs/tutorials/objective.md)."
    )
    options: Options = Field(
        default_factory=dict, description="Values for further parameters of the function, by name."
    )


ObjectiveConfig = Annotated[
    FlowGrpoConfig
    | GrpoGuardConfig
    | DiffusionNftConfig
    | AwmConfig
    | DiffusionDpoConfig
    | GrpoConfig
    | BnpoConfig
    | DrGrpoLossConfig
    | DapoConfig
    | LuspoConfig
    | SapoConfig
    | CispoConfig
    | VespoConfig
    | DpoConfig
    | OwnConfig
    | OwnForwardConfig,
    Field(discriminator="type"),
]
OBJECTIVES: dict[str, type[ObjectiveSection | TokenSection | DpoConfig]] = by_type(ObjectiveConfig)
