"""The commands of docs/legacy_clients.md, started as they stand there: each gives the scores of what it replaces."""

from __future__ import annotations

import asyncio
import base64
import re
import shlex
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest
from PIL import Image, ImageDraw, ImageFont
from rapidfuzz.distance.Levenshtein import distance

from tests.support.legacy_clients import deepgen_rl, flow_factory, jpeg, verl_omni
from tests.support.service_process import ready_service

ROOT = Path(__file__).resolve().parents[3]
Client = Callable[[str, list[Image.Image], list[str]], list[float]]


def sign(text: str) -> Image.Image:
    image = Image.new("RGB", (320, 96), "white")
    ImageDraw.Draw(image).text((160, 48), text, font=ImageFont.load_default(40), fill="black", anchor="mm")
    return image


# What is drawn, and the prompt: right, another case, accents, inside a word, a typo, punctuation, two texts, two quotes.
CASES = [
    ("OPEN", 'a sign "OPEN"'),
    ("OPEN", 'a sign "Open"'),
    ("Café", 'a sign "café"'),
    ("Cafe", 'a sign "Café"'),
    ("party", 'a sign "art"'),
    ("HOTEI", 'a sign "HOTEL"'),
    ("Hello world", 'a sign "Hello, world!"'),
    ("OPEN", 'signs "OPEN" and "SHUT"'),
    ("SHUT", 'a “curly” sign "SHUT"'),
    ("SALE", 'a sign "KEEP CALM AND CARRY ON"'),
]
IMAGES = [sign(drawn) for drawn, _ in CASES]
PROMPTS = [prompt for _, prompt in CASES]


def flow_grpo_rule(read: list[str], prompt: str) -> float:
    """flow_grpo/ocr.py of yifan123/flow_grpo: no spaces, lower case, contained is right, capped at the text's length."""
    target, text = (part.replace(" ", "").lower() for part in (prompt.split('"')[1], "".join(read)))
    return 1 - (0 if target in text else min(distance(text, target), len(target))) / len(target)


def deepgen_new_rule(read: list[str], prompt: str) -> float:
    """ocr.py of DeepGen-RL's OCR service, for one line and without look-alikes, which these cases do not have."""

    def kept(text: str) -> str:
        return "".join(re.findall("[A-Za-z0-9]", text))

    [text], targets = read, [kept(target) for target in re.findall('"([^"]+)"', prompt)]
    right = sum(len(target) - min(distance(kept(text), target), len(target)) for target in targets)
    return right / sum(map(len, targets))


def verl_omni_all(url: str, images: list[Image.Image], prompts: list[str]) -> list[float]:
    async def ask() -> list[float]:
        return [await verl_omni(url, *pair) for pair in zip(images, prompts, strict=True)]

    return asyncio.run(ask())


REPLACED: dict[str, tuple[Client, Callable[[list[str], str], float]]] = {
    "DeepGen-RL": (deepgen_rl, flow_grpo_rule),
    "DeepGen-RL with `OCR_SCORER_IMPL=new`": (deepgen_rl, deepgen_new_rule),
    "verl-omni": (verl_omni_all, flow_grpo_rule),
    "Flow-Factory": (flow_factory, flow_grpo_rule),
}


def documented() -> dict[str, tuple[str, ...]]:
    """The flags of the OCR service's commands, by trainer."""
    page = (ROOT / "docs/legacy_clients.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (.+?) \| `python -m services\.ocr (.+?)` \|", page, re.M)
    return {trainer: tuple(shlex.split(flags)) for trainer, flags in rows}


@pytest.fixture(scope="module")
def serve() -> Iterator[Callable[[tuple[str, ...]], str]]:
    """The URL of a service with these flags; one process for each set of them."""
    running: dict[tuple[str, ...], str] = {}
    with ExitStack() as services:

        def start(flags: tuple[str, ...]) -> str:
            if flags not in running:
                running[flags] = services.enter_context(ready_service("ocr", *flags))
            return running[flags]

        yield start


def read_lines(url: str, data: bytes, media_type: str) -> list[str]:
    image = {"data": base64.b64encode(data).decode(), "media_type": media_type}
    item = {"id": "a", "prompt": "", "targets": ["x"], "images": [image]}
    answer = httpx.post(f"{url}/v1/score", json={"items": [item]}, timeout=300).json()
    return [line["text"] for line in answer["results"][0]["details"]["images"][0]["lines"]]


def test_every_command_of_the_page_is_known() -> None:
    assert set(documented()) == set(REPLACED)


@pytest.mark.parametrize(
    "trainer", [each if "new" not in each else pytest.param(each, marks=pytest.mark.slow) for each in REPLACED]
)
def test_a_documented_command_gives_the_reward_it_replaces(
    serve: Callable[[tuple[str, ...]], str], trainer: str
) -> None:
    url = serve(documented()[trainer])
    client, rule = REPLACED[trainer]
    # The rule is applied to what the service itself read; Flow-Factory's PNGs are read like the JPEGs.
    read = [read_lines(url, jpeg(image), "image/jpeg") for image in IMAGES]
    assert [len(lines) for lines in read] == [1] * len(CASES)
    expected = [rule(lines, prompt) for lines, prompt in zip(read, PROMPTS, strict=True)]
    assert client(url, IMAGES, PROMPTS) == pytest.approx(expected, abs=1e-12)
    assert len(set(expected)) > 3, "the cases tell rules apart"
