"""The losses of text answers that turn advantages into a gradient: sections of `objective`, told apart by `type`.

The arithmetic is `trainer.losses.policy_loss`'s, where each kind is explained.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from trainer.config.base import Positive, Section

Level = Literal["token", "sequence"]


class TokenSection(Section):
    """What all of them have."""

    kl_beta: float = Field(
        0.0,
        ge=0,
        description="Weight of the KL divergence from the starting weights, estimated from the drawn tokens (k3); 0 is none.",
    )
    kl_importance: bool = Field(
        False,
        description="Weigh the KL's terms by the probability ratio. TRL does so since 1.16; TRL before and NanoVLM-Lab do not.",
    )
    mask_truncated: bool = Field(
        False,
        description="Answers that were cut off at the most tokens they may have teach nothing; their tokens count for none.",
    )
    off_policy: float | None = Field(
        None,
        gt=0,
        description="Leave out answers of negative advantage whose mean log-probability fell by more than this (DeepSeek-V3.2).",
    )
    importance_cap: float = Field(
        5.0,
        ge=1,
        description="Largest importance weight of an answer that other weights or another engine drew.",
    )

    @model_validator(mode="after")
    def _kl_importance_acts(self) -> TokenSection:
        if self.kl_importance and not self.kl_beta:
            raise ValueError("kl_importance acts only with a kl_beta above 0; set kl_beta or leave kl_importance out")
        return self


class LevelSection(TokenSection):
    """What objectives have whose ratio may be one of a whole answer."""

    level: Level = Field(
        "token",
        description="token: each token has its ratio; sequence: all tokens of an answer have one, the mean of theirs (GSPO).",
    )


class ClippedTokenSection(LevelSection):
    """What objectives with a clipped ratio have."""

    clip_range: Positive | tuple[float, float] = Field(
        (-0.2, 0.28),
        description="The ratio is clipped to 1 - this and 1 + this; [lo, hi] is from 1 + lo to 1 + hi. GSPO's is 3e-4 to 4e-4.",
    )
    delta: float | None = Field(
        None,
        gt=1,
        description="Largest unclipped ratio, so that an answer with a negative advantage cannot outweigh all others "
        "(two-sided clip); null is no bound.",
    )

    @model_validator(mode="after")
    def _clip_is_around_one(self) -> ClippedTokenSection:
        if isinstance(self.clip_range, tuple) and not -1 < self.clip_range[0] < 0 < self.clip_range[1]:
            raise ValueError(
                f"clip_range = [{self.clip_range[0]:g}, {self.clip_range[1]:g}] means ratios from 1 + lo to 1 + hi: it "
                "needs -1 < lo < 0 < hi"
            )
        return self


class GrpoConfig(ClippedTokenSection):
    """GRPO: the mean over each answer's tokens, then over the answers."""

    type: Literal["grpo"] = Field(description="Which objective of trainer/objectives.")


class BnpoConfig(ClippedTokenSection):
    """BNPO: the mean over all tokens of the update."""

    type: Literal["bnpo"] = Field(description="Which objective of trainer/objectives.")


class DrGrpoLossConfig(ClippedTokenSection):
    """Dr. GRPO: the sum over tokens, divided by answers times the longest length, so that no length is favoured."""

    type: Literal["dr_grpo"] = Field(description="Which objective of trainer/objectives.")
    longest: int | None = Field(
        None, ge=1, description="The length that is divided by; null is sampling.max_new_tokens."
    )


class DapoConfig(ClippedTokenSection):
    """DAPO: every token of the update weighs the same, and the ratio may rise further than it may fall."""

    type: Literal["dapo"] = Field(description="Which objective of trainer/objectives.")


class LuspoConfig(ClippedTokenSection):
    """LUSPO: one ratio an answer, and the sum over its tokens, so that length multiplies."""

    type: Literal["luspo"] = Field(description="Which objective of trainer/objectives.")
    level: Level = Field(
        "sequence", description="token: each token has its ratio; sequence: all tokens of an answer have one."
    )


class SapoConfig(LevelSection):
    """SAPO: a soft gate in place of the clip."""

    type: Literal["sapo"] = Field(description="Which objective of trainer/objectives.")
    tau: tuple[Positive, Positive] = Field(
        (1.0, 1.05), description="How fast the gate closes, of advantages above 0 and of the others."
    )


class CispoConfig(LevelSection):
    """CISPO: REINFORCE with a truncated importance weight; no token loses its gradient."""

    type: Literal["cispo"] = Field(description="Which objective of trainer/objectives.")
    cap: float = Field(5.0, ge=1, description="Largest ratio.")


class VespoConfig(TokenSection):
    """VESPO: a gamma kernel on the ratio of the whole answer."""

    type: Literal["vespo"] = Field(description="Which objective of trainer/objectives.")
