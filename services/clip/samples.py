"""What CLIP's rewards score well: a picture of what the prompt says, an edit that kept its source, a group that differs."""

from __future__ import annotations

from collections.abc import Mapping

from services.kit.samples import BLUE, CIRCLE_PROMPT, Sample, circle, disc, sign


def samples() -> Mapping[str, Sample]:
    """By reward."""
    edit = Sample(
        CIRCLE_PROMPT,
        (disc(),),
        source_images=(disc(BLUE),),
        metadata={"source_prompt": "a blue circle on white ground"},
    )
    return {
        "clip_sim": circle(),
        "aesthetic": circle(),
        "image_similarity": Sample(CIRCLE_PROMPT, (disc(),), good=0.999, source_images=(disc(),)),
        "clip_direction": edit,
        "diversity": Sample("anything red", (disc(), sign("RED", size=(192, 192)))),
        **dict.fromkeys(("pickscore", "pickscore_26", "pickscore_cosine"), circle()),
    }
