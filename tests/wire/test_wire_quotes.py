"""What a prompt quotes, and what is an apostrophe."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from trainer.data.prompts.lines import read_quoting_txt
from trainer.report.images import _shot
from wire.quotes import quoted_texts

QUOTED = [
    ('a sign "OPEN" and "24 h"', ["OPEN", "24 h"]),
    ("a sign “OPEN” and ‘24 h’", ["OPEN", "24 h"]),
    ("写着「你好」和『世界』的牌子", ["你好", "世界"]),
    ("„Hallo“, „Tag” und «Bonjour»", ["Hallo", "Tag", "Bonjour"]),
    ("»Hallo«, ‹Tag›, ›Nacht‹, ‚Moin‘ und ‚los’", ["Hallo", "Tag", "Nacht", "Moin", "los"]),
    ("写着＂开门＂的牌子", ["开门"]),
    ("‘don’t stop’ on the dog’s collar", ["don’t stop"]),
    ('a sign "OPEN', []),
    ('"" and " " and "x"', ["x"]),
    ("no quotes", []),
    # Straight single quotes, as in a twentieth of UniGenBench's prompts with text.
    ("a sign 'OPEN' and '24 h'", ["OPEN", "24 h"]),
    ("a map with the words 'Around the World' hanging on the man's wall", ["Around the World"]),
    ("the art word 'Protect Green Home'on the top of the poster.", ["Protect Green Home"]),
    ("('OPEN'), 'SHUT'. A third: 'SALE'", ["OPEN", "SHUT", "SALE"]),
    ("\"OPEN\" and '24 h' in the dogs' park", ["OPEN", "24 h"]),
    ("\"say 'hi' now\"", ["say 'hi' now"]),
    ("'don't stop' it's late", ["don't stop"]),
    ("a board of 'JOE'S DINER' at 5 o'clock", ["JOE'S DINER"]),
    ("a sign that says 'Farmers' Market' in green", ["Farmers' Market"]),
    ("'farmers' market' on a board", ["farmers' market"]),
    ("'CATS' and the dogs' bowl", ["CATS"]),
    ("rock 'n' roll of the '90s, live: 'LIVE'", ["LIVE"]),
    ("the class of '98 before 'OPEN'", ["OPEN"]),
]
APOSTROPHES = [
    "it's a dog's life",
    "the dogs' bowls and the cats' toys",
    "Jess' and James' house",
    "'tis the dogs' life",
    "rock 'n' roll",
    "the '80s and the '90s",
    "5' tall and 6' wide",
    "O'Neill's at 5 o'clock, l'amour d'été",
    "don't, won't, y'all",
    "a ' alone",
    "'' and ' '",
]


@pytest.mark.parametrize(("prompt", "texts"), QUOTED)
def test_quotations(prompt: str, texts: list[str]) -> None:
    assert quoted_texts(prompt) == texts


@pytest.mark.parametrize("prompt", APOSTROPHES)
def test_an_apostrophe_quotes_nothing(prompt: str) -> None:
    assert quoted_texts(prompt) == []


def test_straight_double_quotes_can_come_first() -> None:
    prompt = 'a “curly” sign, \'single\' and "one", "two"'
    assert quoted_texts(prompt) == ["curly", "single", "one", "two"]
    assert quoted_texts(prompt, straight_first=True) == ["one", "two", "curly", "single"]


@pytest.mark.parametrize(("prompt", "texts"), QUOTED)
def test_the_trainer_finds_the_same_texts(prompt: str, texts: list[str], tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text(prompt + "\n", encoding="utf-8")
    [(_, row)] = read_quoting_txt(tmp_path / "train.txt")
    assert sorted(row["targets"] or []) == sorted(texts)
    shot = _shot(tmp_path, "before", {"prompt": prompt, "read": "".join(texts)}, [])
    assert shot.right is (True if texts else None)


@pytest.mark.parametrize(
    "mark",
    ['"', "“", "‘", "「", "‘a’", "’a", "“‘「『", "'", "'a", "a'b ", "s' ", "'s' ", "„«", "»", "»‹", "‚", "‚’a", "›＂"],
)
def test_hostile_prompts_are_scanned_in_linear_time(mark: str) -> None:
    started = time.process_time()
    quoted_texts("‘'" + mark * (60_000 // len(mark)))
    assert time.process_time() - started < 2.0  # a quadratic scan takes minutes
