"""Probes that nearly every reward must tell apart: a right sample and a wrong one of one prompt.

Of images: the asked word in the asked colour, and neither. Of texts: a right answer in its tags, and a long one that says
nothing, to a question for a letter, one for a number, and one for JSON; a reward has only to tell one of these pairs apart, for
none reads all three.
"""

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
_OF_IMAGES = "the asked word in the asked colour and a plain disc"
_OF_TEXTS = "a right answer and one that says nothing"

# Each right text is as long as `length` asks for, and each wrong one beyond what `overlong` bears, by their metadata.
_LIMITS = {"target_length": 12, "max_length": 24, "overlong_buffer": 8}
_SHORT, _LONG = tuple(range(12)), tuple(range(48))
_RAMBLE = "That is hard to say, for there is much that speaks for it, and as much that does not. " * 3
_QUESTIONS = (
    (
        "letter",
        "Which of these is a color? A: seven, B: red, C: under. Answer with its letter.",
        "B",
        "<think>Red is a color.</think><answer>B</answer>",
    ),
    (
        "number",
        "How many legs have two cats? Answer with a number.",
        "8",
        "<think>Two times four.</think><answer>8</answer>",
    ),
    ("json", "Which color has snow? Answer with JSON of one key, color.", '{"color": "white"}', '{"color": "white"}'),
)


def probes(*, texts: bool = False) -> list[Sample]:
    """Pairs of a right and a wrong sample, one after the other: one pair of images, or three of texts."""
    return _of_texts() if texts else _of_images()


def _of_images() -> list[Sample]:
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


def _of_texts() -> list[Sample]:
    samples = []
    for name, question, target, right in _QUESTIONS:
        keys = {"json_keys": ["color"]} if name == "json" else {}
        prompt = Prompt(f"canary-{name}", question, targets=(target,), metadata={"canary": True, **_LIMITS, **keys})
        group = f"canary-{name}"
        samples.append(Sample(f"{group}-right", group, prompt, text=right, tokens=_SHORT))
        samples.append(Sample(f"{group}-wrong", group, prompt, text=_RAMBLE, tokens=_LONG))
    return samples


def canary_call(encoding: str, reward: str | None, *, texts: bool = False) -> Call:
    """The probes as a request."""
    samples = probes(texts=texts)
    call, refused = make_call(samples, encode_samples(samples, encoding), encoding, reward)
    assert call is not None and not refused
    return call


def judge(answers: Mapping[str, Answer], must_differ: bool) -> tuple[str | None, str | None]:
    """(what is wrong with the reward, what could not be judged); both None when all is well.

    A number outside the reward's range is wrong wherever it is. Beside that, one pair that is well is enough.
    """
    outside = [answer.message for answer in answers.values() if answer.code == ClientCode.OUT_OF_RANGE]
    if outside:
        return f"a probe {outside[0]}", None
    pairs = [name.removesuffix("-right") for name in answers if name.endswith("-right")]
    shown = _OF_IMAGES if len(pairs) == 1 else _OF_TEXTS
    found = [_judge_pair(answers[f"{pair}-right"], answers[f"{pair}-wrong"], must_differ, shown) for pair in pairs]
    if (None, None) in found:
        return None, None
    wrong = next((wrong for wrong, _ in found if wrong), None)
    return (wrong, None) if wrong else found[0]


def _judge_pair(right: Answer, wrong: Answer, must_differ: bool, shown: str) -> tuple[str | None, str | None]:
    codes = {answer.code for answer in (right, wrong) if answer.score is None}
    if codes and codes <= _NOT_JUDGED:
        return None, f"the probes could not be judged ({', '.join(sorted(codes))}: {right.message or wrong.message})"
    if right.score is None or wrong.score is None:
        failed = right if right.score is None else wrong
        return f"a probe has no score: {failed.code}: {failed.message}", None
    if must_differ and right.score == wrong.score:
        return (
            f"both probes score {right.score}, {shown}: the reward looks constant, so nothing could be learned from it. If "
            "equal scores are right for it, set its `canary: score`"
        ), None
    return None, None
