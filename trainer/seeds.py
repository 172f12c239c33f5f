"""Seeds that depend on names and numbers alone, so that a restart, another rank or another order draws the same."""

from __future__ import annotations

import hashlib


def sample_seed(seed: int, *names: str | int) -> int:
    """A 63-bit seed from the run's seed and whatever tells one use from another (step, index)."""
    text = "/".join(str(part) for part in (seed, *names))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1
