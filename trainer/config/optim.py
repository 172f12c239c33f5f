"""The optimizer."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from trainer.config.base import Beta, Name, Section, Share


class GroupConfig(Section):
    """A group of parameters that the policy names."""

    lr: float = Field(ge=0, description="Peak learning rate of the group, on optim.schedule; 0 freezes it.")
    optimizer: Literal["adamw", "muon"] = Field(
        "adamw", description="muon takes matrices alone, and needs a run without DeepSpeed."
    )
    weight_decay: float | None = Field(None, ge=0, description="Decoupled weight decay; null takes optim.weight_decay.")


class OptimConfig(Section):
    """The optimizer."""

    lr: float = Field(1e-4, gt=0, description="Peak learning rate (AdamW).")
    groups: dict[Name, GroupConfig] = Field(
        default_factory=dict,
        description="By the policy's name of a group of parameters; a group left out has optim.lr and AdamW.",
    )
    schedule: Literal["constant", "linear", "cosine"] = Field(
        "linear",
        description="constant keeps the rate after the warm-up; linear and cosine let it fall to min_lr at max_steps, in a line or "
        "in half a wave.",
    )
    min_lr: float = Field(
        0.0,
        ge=0,
        description="linear, cosine: where the fall ends, at max_steps; of a group, the same share of its rate.",
    )
    warmup_steps: int = Field(0, ge=0, description="In so many first steps the rate rises in a line to lr.")
    decay_share: Share = Field(
        1.0, description="linear, cosine: share of the steps, at the end, in which the rate falls."
    )
    betas: tuple[Beta, Beta] = Field(
        (0.9, 0.999), description="AdamW's decay rates of the gradient's first and second moment."
    )
    weight_decay: float = Field(0.0, ge=0, description="Decoupled weight decay.")
    max_grad_norm: float = Field(1.0, gt=0, description="The gradient's global norm is clipped to this.")
    ema_decay: float = Field(
        0.9,
        ge=0,
        lt=1,
        description="Decay of the moving average of the weights, which evaluation uses; 0 keeps no average.",
    )
    updates_per_rollout: int = Field(
        1, ge=1, le=16, description="Optimizer steps on the rollouts of one training step, each on all of them."
    )
    early_gradient: Literal["auto", "always", "never"] = Field(
        "auto",
        description="Compute the gradient of groups whose scores are there while others are awaited. auto: where that costs nothing, with "
        "advantage.type grpo or dr_grpo, or with gdpo or grpo_global_std and no KL; without sft and tasks. always: also with gdpo or "
        "grpo_global_std and a KL, which goes backward by itself: up to two fifths more of an update, and a second gradient in memory; "
        "worth it where rewards are slow, and not with DeepSpeed. never: wait. A run's log says why where it waits. true and false are read as "
        "auto and never.",
    )
    micro_batch_size: int | None = Field(
        None,
        ge=1,
        description="How many samples a forward pass of the update takes; null takes sampling.micro_batch_size.",
    )

    @field_validator("early_gradient", mode="before")
    @classmethod
    def _early_as_before(cls, given: Any) -> Any:
        """Recipes from before there was `always` say true or false."""
        return given if not isinstance(given, bool) else "auto" if given else "never"

    @model_validator(mode="after")
    def _decay_acts(self) -> OptimConfig:
        if self.schedule == "constant" and self.decay_share != 1:
            raise ValueError(
                f"decay_share = {self.decay_share:g} is when the rate begins to fall, but schedule = constant never "
                "does; leave decay_share out or set schedule to linear or cosine"
            )
        if self.schedule == "constant" and self.min_lr:
            raise ValueError(
                f"min_lr = {self.min_lr:g} is where the rate ends, but schedule = constant never lets it fall; leave min_lr out or "
                "set schedule to linear or cosine"
            )
        if self.min_lr > self.lr:
            raise ValueError(
                f"min_lr = {self.min_lr:g} is more than lr = {self.lr:g}, from which the rate falls; lower it"
            )
        return self
