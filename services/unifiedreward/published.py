"""The texts published with the checkpoints, known by their sha256. The texts themselves are not part of this project.

From CodeGoat24/UnifiedReward at ff6f5202. The hash is that of the text with the placeholder where the caption or the
instruction goes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from services.unifiedreward.parsing.numbers import read_final_score
from services.unifiedreward.parsing.verdicts import read_edit_scores


@dataclass(frozen=True)
class Published:
    """A published text: its name, the question it asks (None: not one about images), and its reader if that differs."""

    name: str
    question: str | None
    read: Callable[[str], Any] | None = None


PUBLISHED: Mapping[str, Published] = {
    "515146e5f794b78e1fdab83cd40fc051447da336ad57dfc6166689d1aea2f60d": Published(
        "think_qwen3vl_pair_t2i", "think_pairwise"
    ),
    "ac5edf9afc3f99846bdc6ba84684233f0ce63a6928778a8dc04556d34080ddf2": Published(
        "think_qwen25vl_pair_t2i", "think_pairwise"
    ),
    "971f7701625093ca974b00b2b5a71e99bee513161864c1dd7bd4ddc8f1b48ce0": Published("ur1_pair_rank_t2i", "pair_rank"),
    "9af94670815053d774f6066be47ea8abb75871864ff860d8961a92cd74fd2f3e": Published("flex_pair_t2i", "flex"),
    "ad9b6b35125cf187e8b7cdbbad62362907f711f24be1557c2e02f81ec9d6a5b6": Published("ur2_pair_score_t2i", "pair_score"),
    "596a9ad2990e5980277f517357a1b4c8a42bb12ea8a937a151bfdf9e30f02186": Published("ur2_point_ACS_t2i", "pointwise"),
    "681acad08ab13da4ba22dbac5c665cdd82e3f93b110d4bdc349c02f55b33ee78": Published(
        "ur1_point_ACS_wordwise_t2i", "pointwise"
    ),
    "023c9dd7995d7ca9cb6e63a7ae7d19b943e549bc6327434c608a114e44d2f6f2": Published(
        "ur1_point_t2i", "pointwise", read_final_score
    ),
    "5d9c961e900e2047cb4117dbe71c3e897bec45c3f15290d448e56638dc5e8c28": Published("edit_pair_rank", "edit_pair"),
    "9c7296e22e1df4088d9fee64e8c0738f039a0f6293467ba465c6ec2a7b60e3d9": Published(
        "edit_pair_score", "edit_pair", read_edit_scores
    ),
    "feef0e082a49a9c435069c57935c9c61966473efec736219e95a1d424cf89733": Published(
        "edit_point_if", "edit_pointwise_instruction"
    ),
    "ddb40baa511dbf2fd619474e5a0fcd043c6325f976bfc8fd1f8b9fbf4c521113": Published(
        "edit_point_quality", "edit_pointwise_quality"
    ),
    "fed8a3ebfff01d21a30e766b48a6f427b0888c0fded573e2ce3119ec3f6494e8": Published("think_qwen3vl_pair_video", None),
    "3e8db5c50f91830f413140730ef23bf3e27ddfb9d0542e8a5e7558884442bb53": Published("flex_pair_video", None),
}

NAMES: Mapping[str, str] = {sha256: text.name for sha256, text in PUBLISHED.items()}
