"""DeepGen-RL's rewards: which of our services gives each, and why some are given by none."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Served:
    """A reward of a service of ours. `remark`: how the score differs; advantages are divided by the spread."""

    service: str
    reward: str
    remark: str = ""


PORTS = {"ocr": 18082, "hps": 18083, "rules": 18084, "unifiedreward": 18087, "eval": 18088}

_NO_SERVICE = "no service of ours gives it"
_NEVER_WORKED = "it cannot work in DeepGen-RL either, which takes 0 for it"

REWARDS: dict[str, Served | str] = {
    "ocr": Served(
        "ocr",
        "flow_grpo",
        "DeepGen-RL's default formula (its `new` one is our `deepgen_new`); a prompt without quotes is not applicable, not 0",
    ),
    "unifiedreward_think": Served("unifiedreward", "think_pairwise", "the published template; a failed pair is no tie"),
    "unifiedreward": Served("unifiedreward", "pointwise", "needs a service of family v1 or v2; no part is made up"),
    "hps": Served("hps", "hpsv2.1", "the cosine, not twice the cosine"),
    "jpeg_compressibility": Served("rules", "jpeg_compressibility", "in kilobytes, not divided by 500"),
    "jpeg_incompressibility": Served("rules", "jpeg_incompressibility", "in kilobytes"),
    **dict.fromkeys(
        ("clip_sim", "ocr_vllm", "unifiedreward_sglang", "pickscore", "image_reward", "aesthetic", "deqa"), _NO_SERVICE
    ),
    **dict.fromkeys(("recon", "gen_eval", "sim_direction", "format", "editreward"), _NEVER_WORKED),
}
