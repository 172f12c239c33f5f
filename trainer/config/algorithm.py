"""From scores to a gradient."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field, model_validator

from trainer.config.base import FilePath, Positive, Section, Share

ObjectiveName = Literal["flow_grpo", "grpo_guard", "diffusion_nft", "awm", "diffusion_dpo"]

FORWARD_OBJECTIVES = ("diffusion_nft", "awm", "diffusion_dpo")  # they need no stochastic step of the sampler
_CLIPPED = ("flow_grpo", "grpo_guard", "awm")

# Fields that act with these objectives alone; with any other they must keep their default.
_ACTS_WITH: Mapping[str, tuple[str, ...]] = {
    "clip_range": _CLIPPED,
    "guard_reweight": ("grpo_guard",),
    "nft_beta": ("diffusion_nft",),
    "nft_adv_clip": ("diffusion_nft",),
    "dpo_beta": ("diffusion_dpo",),
    "old_decay": ("diffusion_nft", "awm"),
    "old_decay_steps": ("diffusion_nft", "awm"),
    "timestep_draws": FORWARD_OBJECTIVES,
    "timestep_distribution": FORWARD_OBJECTIVES,
    "timestep_shift": FORWARD_OBJECTIVES,
    "importance_cap": ("flow_grpo",),
}
_ACTS_WITH_SFT = ("timestep_distribution", "timestep_shift")


class SftSetConfig(Section):
    """One of several files of pictures and texts."""

    path: FilePath = Field(description="A JSON array or JSON lines of {image_path, txt}.")
    image_folder: FilePath | None = Field(
        None, description="Where the image paths start; null is that of algorithm.sft, or the folder of `path`."
    )
    weight: Positive = Field(1.0, description="How often an entry is drawn, relative to those of the other files.")


class SftLossConfig(Section):
    """Flow matching on pictures and their texts, beside the objective: (1 - coef) * RL + coef * SFT."""

    path: FilePath | None = Field(None, description="A JSON array or JSON lines of {image_path, txt}.")
    sets: tuple[SftSetConfig, ...] = Field((), description="Several such files with weights, in place of path.")
    image_folder: FilePath | None = Field(
        None, description="Where the image paths start; null is the folder of `path`."
    )
    coef: float = Field(1e-4, gt=0, le=1, description="Share of this loss in the sum.")
    batch_size: int = Field(8, ge=1, description="Pictures of an update, over all ranks.")
    micro_batch_size: int | None = Field(None, ge=1, description="Pictures per forward pass; null takes all of a rank.")
    every: int = Field(1, ge=1, description="Training steps from one with this loss to the next.")
    size: tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]] | None = Field(
        None, description="[height, width]: pictures are scaled to cover it and cut; null takes them as they are."
    )
    prompt_dropout: Share = Field(0.1, description="Share of the texts that are left empty, for guidance.")

    @model_validator(mode="after")
    def _has_files(self) -> SftLossConfig:
        if (self.path is None) == (not self.sets):
            raise ValueError("give `path`, a file of pictures and texts, or several files as `sets`: one of the two")
        return self

    @property
    def files(self) -> tuple[SftSetConfig, ...]:
        """`sets`, or `path` as the only one."""
        return self.sets if self.path is None else (SftSetConfig(path=self.path),)

    @model_validator(mode="after")
    def _micro_batch_fits(self) -> SftLossConfig:
        if self.micro_batch_size is not None and self.micro_batch_size > self.batch_size:
            raise ValueError(
                f"micro_batch_size = {self.micro_batch_size} is more than batch_size = {self.batch_size}, all pictures of "
                "an update; lower it or leave it out"
            )
        return self


class AlgorithmConfig(Section):
    """From scores to a gradient."""

    type: Literal["gdpo", "grpo", "grpo_global_std", "dr_grpo", "reinforce_pp"] = Field(
        "gdpo", description="The advantage estimator."
    )
    objective: ObjectiveName = Field("flow_grpo", description="The loss that turns advantages into a gradient.")
    clip_range: Positive | tuple[float, float] = Field(
        1e-4,
        description="Clip of the probability ratio, small as log-probabilities are means; published: flow_grpo 1e-4, with "
        "kind cps 1e-5, grpo_guard 2e-6, awm 1. [lo, hi] is 1 + lo to 1 + hi.",
    )
    adv_clip: float = Field(5.0, gt=0, description="Advantages are clamped to plus and minus this.")
    eps: float = Field(1e-4, gt=0, description="Added to a standard deviation before dividing.")
    min_valid: int = Field(2, ge=2, description="Fewer valid scores in a group than this: the group's advantage is 0.")
    std_floor: float = Field(
        0.0, ge=0, le=1, description="Least divisor of a group, as a share of the reward's running spread; 0 is off."
    )
    kl_beta: float = Field(0.0, ge=0, description="Weight of the KL to the starting weights.")
    kl_type: Literal["velocity", "latent"] = Field(
        "velocity", description="What the KL compares: predicted velocities, or the means of the stochastic steps."
    )
    updates_per_rollout: int = Field(1, ge=1, le=16, description="Optimizer steps on one set of rollouts.")
    guard_reweight: bool = Field(False, description="grpo_guard: divide each step's loss by the step's length.")
    nft_beta: Positive = Field(0.1, description="diffusion_nft: how far the branches lie from the sampling policy.")
    nft_adv_clip: Positive = Field(5.0, description="diffusion_nft: the advantage that counts as surely good.")
    dpo_beta: Positive = Field(100.0, description="diffusion_dpo: strength of the tie to the starting weights.")
    old_decay: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Decay of the sampling policy, a moving average of the trained one; 0 is on-policy.",
    )
    old_decay_steps: int = Field(
        0, ge=0, description="Training steps over which this decay rises from 0 to old_decay; 0 is from the start."
    )
    timestep_draws: int = Field(1, ge=1, le=1000, description="Noise levels a sample is trained at (forward process).")
    timestep_distribution: Literal["uniform", "logit_normal"] = Field(
        "uniform", description="Distribution of these noise levels."
    )
    timestep_shift: Positive = Field(1.0, description="Shift of these noise levels; 1 is none, more is noisier.")
    importance_cap: float = Field(
        5.0, ge=1, description="Largest importance weight of a rollout one update behind (pipeline one_step_off)."
    )
    sft: SftLossConfig | None = Field(None, description="Supervised loss beside the objective; null is none.")

    @model_validator(mode="after")
    def _floor_acts(self) -> AlgorithmConfig:
        if self.std_floor and self.type == "dr_grpo":
            raise ValueError(
                f"std_floor = {self.std_floor:g} is the least divisor, but type = dr_grpo divides by none; set std_floor "
                "to 0 or choose another type"
            )
        return self

    @model_validator(mode="after")
    def _objective_fields_act(self) -> AlgorithmConfig:
        for name, objectives in _ACTS_WITH.items():
            value = getattr(self, name)
            used = self.objective in objectives or (self.sft is not None and name in _ACTS_WITH_SFT)
            if value != type(self).model_fields[name].default and not used:
                raise ValueError(
                    f"{name} = {value} acts only with objective = {' or '.join(objectives)}, but objective = "
                    f"{self.objective}; leave {name} out or choose another objective"
                )
        return self

    @model_validator(mode="after")
    def _old_decay_rises(self) -> AlgorithmConfig:
        if self.old_decay_steps and not self.old_decay:
            raise ValueError(
                f"old_decay_steps = {self.old_decay_steps} raises the decay to old_decay, which is 0; set old_decay or leave "
                "old_decay_steps out"
            )
        return self

    @model_validator(mode="after")
    def _clip_is_around_one(self) -> AlgorithmConfig:
        if isinstance(self.clip_range, tuple) and not -1 < self.clip_range[0] < 0 < self.clip_range[1]:
            raise ValueError(
                f"clip_range = [{self.clip_range[0]:g}, {self.clip_range[1]:g}] means ratios from 1 + lo to 1 + hi: it "
                "needs -1 < lo < 0 < hi"
            )
        return self

    @model_validator(mode="after")
    def _kl_acts(self) -> AlgorithmConfig:
        if self.kl_type == "latent" and not self.kl_beta:
            raise ValueError("kl_type = latent acts only with a kl_beta above 0; set kl_beta or leave kl_type out")
        if self.kl_type == "latent" and self.objective in FORWARD_OBJECTIVES:
            raise ValueError(
                f"kl_type = latent compares stochastic steps, of which objective = {self.objective} has none; use "
                "kl_type = velocity"
            )
        return self
