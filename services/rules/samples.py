"""What the rules score well: drawings that are what was asked for, and answers that are right and well formed."""

from __future__ import annotations

from collections.abc import Mapping

from PIL import Image, ImageDraw
from pydantic import JsonValue

from services.kit.samples import BLUE, CIRCLE_PROMPT, RED, Sample, disc
from services.rules.lengths import Unit

_QUESTION = "What is 6 + 7?"
_THOUGHT = "<think>Six and seven make thirteen.</think><answer>{}</answer>"
_SENTENCE = "The sum is thirteen."


def samples(unit: Unit = "tokens") -> Mapping[str, Sample]:
    """By reward. `unit` is what the service counts a length in."""
    number = Sample(_QUESTION, completion=_THOUGHT.format("13"), targets=("13",), good=1.0)
    option = Sample(f"{_QUESTION} (A) 12 (B) 13", completion=_THOUGHT.format("(B)"), targets=("B",), good=1.0)
    form = Sample(_QUESTION, completion=number.completion, good=1.0)
    count = len(_SENTENCE) if unit == "characters" else len(_SENTENCE.split())
    limits: dict[str, JsonValue] = {
        "completion_ids": list(range(11, 11 + len(_SENTENCE.split()))),
        "target_length": count,
        "max_length": 2 * count,
        "overlong_buffer": count,
    }
    sides = Sample(
        "a red disc on the left, a blue square on the right",
        (_side_by_side(),),
        good=1.0,
        metadata={"left": "red disc", "right": "blue square"},
    )
    keys = Sample(
        "Name the color of snow as JSON.",
        completion='{"color": "white"}',
        good=1.0,
        metadata={"json_keys": {"color": "string"}},
    )
    return {
        "color_match": Sample("a circle in red", (disc(),), good=0.99),
        "side_by_side": sides,
        "jpeg_compressibility": Sample(CIRCLE_PROMPT, (disc(),), good=-8.0),
        "jpeg_incompressibility": Sample(CIRCLE_PROMPT, (disc(),), good=1.0),
        "option_letter": option,
        "number": number,
        "exact_answer": number,
        "answer": number,
        "think_format": form,
        "answer_format": form,
        "tag_count": form,
        "length": Sample(_QUESTION, completion=_SENTENCE, good=1.0, metadata=limits),
        "overlong": Sample(_QUESTION, completion=_SENTENCE, good=0.0, metadata=limits),
        "json_valid": keys,
    }


def _side_by_side() -> Image.Image:
    image = Image.new("RGB", (192, 96), "white")
    pen = ImageDraw.Draw(image)
    pen.ellipse((24, 24, 72, 72), fill=RED)
    pen.rectangle((120, 24, 167, 71), fill=BLUE)
    return image
