"""Settings of the UnifiedReward service."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, field_validator, model_validator
from pydantic_settings import NoDecode, SettingsConfigDict

from services.kit.judge.settings import JudgeSettings, MaxTokens
from services.kit.settings import Port
from services.unifiedreward.groups import FlexWeights, Tournament
from services.unifiedreward.kinds import FAMILY_KINDS, Family, KindName
from services.unifiedreward.schedules import Order, PairsMode
from services.unifiedreward.texts import Structured

Weight = Annotated[float, Field(ge=0, le=1000)]


class UnifiedRewardSettings(JudgeSettings):
    """Flags and environment variables (`UNIFIEDREWARD_MODEL`, `UNIFIEDREWARD_PORT`, ...) of the gateway."""

    model_config = SettingsConfigDict(env_prefix="UNIFIEDREWARD_")

    port: Port = 18087
    model: str = Field(
        default="UnifiedReward",
        min_length=1,
        description="The model by the name it is served under; `serve` and `vllm-command` load it: a folder or hub name.",
    )
    family: Family = Field(default="think", description="The checkpoint's family; it decides the kinds of rewards.")
    kinds: Annotated[tuple[KindName, ...], NoDecode] = Field(
        default=(),
        description="Rewards to serve, separated by commas, the first is the default; unset: those of the family.",
    )
    template: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(), description="KIND=FILE: the text to ask with in place of ours. Repeatable, or separated by commas."
    )
    order: Order = Field(
        default="single",
        description="single: each pair once, every image first about as often as second; lower-first: each pair once, "
        "the earlier image first; swap: each pair in both orders.",
    )
    pairs: PairsMode = Field(
        default="all", description="all pairs, or fewer: opponents drawn at random, or in Swiss rounds by score."
    )
    opponents: int = Field(default=4, ge=1, le=64, description="Opponents of each image for random and swiss.")
    min_valid: int = Field(
        default=1, ge=1, description="Fewest decided comparisons an image needs for a score; where it has fewer, all."
    )
    flex_overall_weight: Weight = Field(default=0.3, description="Weight of the overall win rate.")
    flex_dim_weight: Weight = Field(default=0.7, description="Weight of the categories' win rates.")
    flex_category_weights: Annotated[tuple[Weight, Weight, Weight], NoDecode] = Field(
        default=(1.0, 0.7, 0.7), description="Weights of the categories A, B and C, separated by commas."
    )
    max_tokens: MaxTokens = 4096
    structured: Structured = Field(
        default="auto",
        description="Hold JSON answers to their schema: auto only with our own texts, on with published ones too.",
    )
    check_model: bool = Field(
        default=True, description="At start, judge two drawn images per kind; a model that cannot does not start."
    )

    @field_validator("kinds", "template", "flex_category_weights", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value

    @model_validator(mode="after")
    def _weights_count(self) -> Self:
        if self.flex_overall_weight + self.flex_dim_weight == 0:
            raise ValueError("flex_overall_weight and flex_dim_weight are both 0: raise one")
        if self.flex_dim_weight > 0 and sum(self.flex_category_weights) == 0:
            raise ValueError("flex_category_weights are all 0 and flex_dim_weight is not: raise one, or set that to 0")
        return self

    @property
    def served_kinds(self) -> tuple[KindName, ...]:
        return self.kinds or FAMILY_KINDS[self.family]

    def tournament(self) -> Tournament:
        return Tournament(self.pairs, self.opponents, self.order, self.min_valid)

    def flex_weights(self) -> FlexWeights:
        return FlexWeights(self.flex_overall_weight, self.flex_dim_weight, self.flex_category_weights)
