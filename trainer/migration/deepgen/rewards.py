"""DeepGen-RL's rewards: which of our services gives each, and why some are given by none."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Served:
    """A reward of a service of ours. `remark`: how the score differs; advantages are divided by the spread."""

    service: str
    reward: str
    remark: str = ""


# By the names that a recipe gives the services. One CLIP service may stand for three; deqa is the VQA service.
PORTS = {
    "clip": 18080,
    "aesthetic": 18080,
    "pickscore": 18080,
    "imagereward": 18081,
    "ocr": 18082,
    "hps": 18083,
    "rules": 18084,
    "geneval": 18085,
    "editreward": 18086,
    "unifiedreward": 18087,
    "unifiedreward_sglang": 18087,
    "eval": 18088,
    "deqa": 18089,
}

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
    "clip_sim": Served(
        "clip", "clip_sim", "by a service, not by every rank; prompts of more than 77 tokens are counted"
    ),
    "aesthetic": Served("aesthetic", "aesthetic", "our CLIP service with `--aesthetic`"),
    "pickscore": Served("pickscore", "pickscore_26", "our CLIP service with `--pickscore`; divided by 26 as there"),
    "image_reward": Served("imagereward", "imagereward"),
    "gen_eval": Served("geneval", "geneval_soft", f"{_NEVER_WORKED}; prompts need GenEval's rows as metadata"),
    "editreward": Served("editreward", "editreward", f"{_NEVER_WORKED}; our regression service, for edits alone"),
    "sim_direction": Served("clip", "clip_direction", f"{_NEVER_WORKED}; edits need metadata.source_prompt"),
    "deqa": Served(
        "deqa", "deqa_over_5", "our VQA service: the formula by a judge that vLLM serves, not DeQA-Score's model"
    ),
    "unifiedreward_sglang": Served(
        "unifiedreward_sglang",
        "pointwise",
        "our UnifiedReward service with `--family v1 --template pointwise=FILE`, FILE the published text that ends in a final "
        "score; 1 to 5, not a fifth of it; an answer without a score is none, not 0",
    ),
    "ocr_vllm": "no service of ours gives it: `ocr` reads the same texts with an OCR engine; name it in data.ignore_rewards",
    **dict.fromkeys(("recon", "format"), _NEVER_WORKED),
}
