"""Two probes that nearly every image reward must tell apart: the asked word in the asked colour, and neither."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from trainer.rewards.answers import Answer, ClientCode
from trainer.rewards.payload import Call, encode_samples, make_call
from trainer.types import Prompt, Sample
from wire.schema import ErrorCode

_WORD = "HELLO"
_NOT_JUDGED = {ErrorCode.NOT_APPLICABLE, ErrorCode.BAD_INPUT}


def probes() -> list[Sample]:
    """One prompt, two pictures: one shows what was asked for, the other a blue disc and no word."""
    prompt = Prompt(
        id="canary", text=f'the word "{_WORD}" in red', targets=(_WORD,), metadata={"color": "red", "canary": True}
    )
    right = Image.new("RGB", (256, 96), "white")
    ImageDraw.Draw(right).text((28, 12), _WORD, fill=(220, 20, 20), font=ImageFont.load_default(60))
    wrong = Image.new("RGB", (256, 96), "white")
    ImageDraw.Draw(wrong).ellipse((98, 18, 158, 78), fill=(20, 40, 220))
    return [
        Sample(id=f"canary-{name}", group_id="canary", prompt=prompt, images=(np.asarray(image),))
        for name, image in (("right", right), ("wrong", wrong))
    ]


def canary_call(encoding: str, reward: str | None) -> Call:
    """The probes as a request."""
    samples = probes()
    call, refused = make_call(samples, encode_samples(samples, encoding), encoding, reward)
    assert call is not None and not refused
    return call


def judge(answers: Mapping[str, Answer], must_differ: bool) -> tuple[str | None, str | None]:
    """(what is wrong with the reward, what could not be judged); both None when all is well."""
    right, wrong = (answers[f"canary-{name}"] for name in ("right", "wrong"))
    codes = {answer.code for answer in (right, wrong) if answer.score is None}
    if codes and codes <= _NOT_JUDGED:
        return None, f"the probes could not be judged ({', '.join(sorted(codes))}: {right.message or wrong.message})"
    if right.score is None or wrong.score is None:
        failed = right if right.score is None else wrong
        if failed.code == ClientCode.OUT_OF_RANGE:
            return f"a probe {failed.message}", None
        return f"a probe has no score: {failed.code}: {failed.message}", None
    if must_differ and right.score == wrong.score:
        return (
            f"both probes score {right.score}, the asked word in the asked colour and a plain disc: the reward looks "
            f"constant, so nothing could be learned from it. If equal scores are right for it, set its `canary: score`"
        ), None
    return None, None
