"""The loss of given pairs of answers: a section of `objective`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from trainer.config.base import Positive, Section

_SMOOTHED = ("sigmoid", "robust", "exo_pair", "aot", "aot_unpaired")


class DpoConfig(Section):
    """DPO and its relatives, on pairs of answers that are given (program: preference)."""

    type: Literal["dpo"] = Field(description="Which objective of trainer/objectives.")
    kind: Literal[
        "sigmoid", "sigmoid_norm", "hinge", "ipo", "ipo_sum", "robust", "exo_pair", "discopop", "nca_pair", "sppo_hard",
        "apo_zero", "apo_down", "bco_pair", "aot", "aot_unpaired", "sft",
    ] = Field(
        "sigmoid",
        description="sigmoid is DPO, sigmoid_norm the same of means over tokens; hinge SLiC; ipo compares means over tokens (as TRL), "
        "ipo_sum sums (as NanoVLM-Lab); robust is unbiased where a share `smoothing` of the labels is wrong; exo_pair, discopop, "
        "nca_pair, sppo_hard, apo_zero and apo_down, bco_pair, aot and aot_unpaired are the published losses of these names; sft is "
        "cross-entropy on the chosen answers alone.",
    )  # fmt: skip
    beta: Positive = Field(0.1, description="Strength of the tie to the starting weights.")
    smoothing: float = Field(
        0.0,
        ge=0,
        lt=0.5,
        description="Share of the labels that are taken for wrong, in the kinds sigmoid, robust, exo_pair (which needs it above 0), aot and "
        "aot_unpaired.",
    )
    divergence: Literal["reverse_kl", "forward_kl", "js_divergence"] = Field(
        "reverse_kl",
        description="What ties the policy to the reference (f-DPO): reverse_kl is DPO's; the others act in kind sigmoid alone.",
    )
    ld_alpha: float = Field(
        1.0,
        ge=0,
        le=1,
        description="Weight of an answer's tokens beyond the length that both answers of its pair have (LD-DPO); 1 is DPO.",
    )
    reference: Literal["kept", "precomputed"] = Field(
        "kept",
        description="kept: the starting weights stay in memory, as a frozen copy or, with policy.lora, by switching the adapters off; "
        "precomputed: their log-probabilities are computed before the first step and kept in the run folder.",
    )

    @model_validator(mode="after")
    def _options_act(self) -> DpoConfig:
        if self.smoothing and self.kind not in _SMOOTHED:
            raise ValueError(
                f"smoothing = {self.smoothing:g} acts in kind = {', '.join(_SMOOTHED)} alone, not in {self.kind}; leave it out"
            )
        if self.kind == "exo_pair" and not self.smoothing:
            raise ValueError("kind = exo_pair takes the logarithm of smoothing, which is 0; give it one, such as 0.001")
        if self.divergence != "reverse_kl" and self.kind != "sigmoid":
            raise ValueError(
                f"divergence = {self.divergence} acts in kind = sigmoid alone, not in {self.kind}; leave it out"
            )
        if self.ld_alpha != 1 and self.kind in ("ipo", "sigmoid_norm", "sft"):
            raise ValueError(
                f"ld_alpha = {self.ld_alpha:g} weighs tokens of sums, but kind = {self.kind} takes means over tokens; leave it out"
            )
        return self
