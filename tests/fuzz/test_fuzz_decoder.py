"""The fuzz target on its seeds and on damaged seeds."""

from __future__ import annotations

import random
import warnings

import pytest

from tests.fuzz.fuzz_decoder import DECODERS, check, seeds

SEEDS = list(seeds())


def test_every_decoder_has_a_seed():
    assert {DECODERS[seed[0]] for seed in SEEDS} == set(DECODERS)


@pytest.mark.parametrize("number", range(len(SEEDS)))
def test_seeds(number):
    check(SEEDS[number])


@pytest.mark.parametrize("decoder", range(len(DECODERS)), ids=DECODERS)
def test_damaged_seeds(decoder):
    """A few hundred inputs that differ from a seed in some bytes, always the same ones."""
    dice = random.Random(decoder)
    own = [seed for seed in SEEDS if seed[0] == decoder]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns about damaged metadata and reads on
        for _ in range(400):
            data = bytearray(dice.choice(own))
            for _ in range(dice.randint(1, 4)):
                place = dice.randrange(1, len(data))
                change = dice.choice(("flip", "insert", "cut", "repeat"))
                if change == "flip":
                    data[place] ^= 1 << dice.randrange(8)
                elif change == "insert":
                    data[place:place] = dice.randbytes(dice.randint(1, 4))
                elif change == "cut":
                    del data[place : place + dice.randint(1, 8)]
                    data = data if len(data) > 1 else bytearray(own[0])
                else:
                    data[place:place] = data[place : place + dice.randint(1, 64)]
            check(bytes(data))
