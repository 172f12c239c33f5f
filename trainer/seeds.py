"""Seeds that depend on names and numbers alone, so that a restart, another rank or another order draws the same."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator


def sample_seed(seed: int, *names: str | int) -> int:
    """A 63-bit seed from the run's seed and whatever tells one use from another (step, index)."""
    text = "/".join(str(part) for part in (seed, *names))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def sample_seeds(last: Iterable[bytes], seed: int, *names: str | int) -> Iterator[int]:
    """`sample_seed(seed, *names, each)` of many last names, given in UTF-8."""
    start = hashlib.blake2b("".join(f"{part}/" for part in (seed, *names)).encode(), digest_size=8)
    for each in last:
        whole = start.copy()
        whole.update(each)
        yield int.from_bytes(whole.digest(), "big") >> 1
