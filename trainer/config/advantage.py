"""How scores become advantages: one section per estimator of trainer/advantages, told apart by `type`."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from trainer.config.base import Section, by_type


class AdvantageSection(Section):
    """What all estimators have."""

    min_valid: int = Field(
        2, ge=2, description="A group with fewer valid scores of a reward than this gets no advantage from it."
    )
    adv_clip: float = Field(5.0, gt=0, description="Advantages are clamped to plus and minus this.")


class DividingSection(AdvantageSection):
    """What estimators have that divide by a standard deviation."""

    eps: float = Field(1e-4, gt=0, description="Added to a standard deviation before dividing by it.")
    std_floor: float = Field(
        0.0,
        ge=0,
        le=1,
        description="The least divisor of a group, as a share of the reward's running spread in the steps before; 0 sets no limit.",
    )


class GroupedSection(AdvantageSection):
    """What estimators have that compare samples within their group."""

    skip_flat_groups: bool = Field(
        False,
        description="Leave groups out of the loss in which all advantages are 0. They add no policy term, but they do add KL, and "
        "count in the divisor: the more of them, the weaker the rewards are beside objective.kl_beta.",
    )


class CentringSection(GroupedSection):
    """What estimators have that divide by nothing."""

    eps: ClassVar[float] = 1e-4  # for the metrics of each reward, which divide
    std_floor: ClassVar[float] = 0.0


class GdpoConfig(GroupedSection, DividingSection):
    """GDPO: each reward is normalised in its group, then they are added by weight and normalised over the batch."""

    type: Literal["gdpo"] = Field("gdpo", description="Which estimator of trainer/advantages.")


class GrpoConfig(GroupedSection, DividingSection):
    """GRPO: the weighted sum of the rewards, normalised in its group."""

    type: Literal["grpo"] = Field(description="Which estimator of trainer/advantages.")


class GrpoGlobalStdConfig(GroupedSection, DividingSection):
    """GRPO as Flow-GRPO computes it: centred in its group, divided by the standard deviation of the batch."""

    type: Literal["grpo_global_std"] = Field(description="Which estimator of trainer/advantages.")


class DrGrpoConfig(CentringSection):
    """Dr. GRPO: centred in its group and divided by nothing."""

    type: Literal["dr_grpo"] = Field(description="Which estimator of trainer/advantages.")


class ReinforcePpConfig(DividingSection):
    """REINFORCE++: normalised over the batch; groups play no part."""

    type: Literal["reinforce_pp"] = Field(description="Which estimator of trainer/advantages.")


AdvantageConfig = Annotated[
    GdpoConfig | GrpoConfig | GrpoGlobalStdConfig | DrGrpoConfig | ReinforcePpConfig, Field(discriminator="type")
]
ESTIMATORS: dict[str, type[AdvantageSection]] = by_type(AdvantageConfig)
