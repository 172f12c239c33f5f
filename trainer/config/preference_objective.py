"""The loss of given pairs of answers: a section of `objective`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from trainer.config.base import Positive, Section


class DpoConfig(Section):
    """DPO and its relatives, on pairs of answers that are given (program: preference)."""

    type: Literal["dpo"] = Field(description="Which objective of trainer/objectives.")
    kind: Literal["sigmoid", "hinge", "ipo", "ipo_sum", "robust"] = Field(
        "sigmoid",
        description="sigmoid is DPO; hinge SLiC; ipo compares means over tokens (as TRL), ipo_sum sums (as NanoVLM-Lab); robust is "
        "unbiased where a share `smoothing` of the labels is wrong.",
    )
    beta: Positive = Field(0.1, description="Strength of the tie to the starting weights.")
    smoothing: float = Field(
        0.0,
        ge=0,
        lt=0.5,
        description="Share of the labels that are taken for wrong; of kinds sigmoid and robust alone.",
    )
    reference: Literal["kept", "precomputed"] = Field(
        "kept",
        description="kept: the starting weights stay in memory, as a frozen copy or, with policy.lora, by switching the adapters off; "
        "precomputed: their log-probabilities are computed before the first step and kept in the run folder.",
    )

    @model_validator(mode="after")
    def _smoothing_acts(self) -> DpoConfig:
        if self.smoothing and self.kind not in ("sigmoid", "robust"):
            raise ValueError(
                f"smoothing = {self.smoothing:g} acts in kind = sigmoid and robust alone, not in {self.kind}; leave it out"
            )
        return self
