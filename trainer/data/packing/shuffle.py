"""An order of any number of rows that is computed and not stored."""

from __future__ import annotations

from trainer.seeds import sample_seed

_ROUNDS = 4


class Shuffle:
    """A permutation of 0 to `count` - 1, drawn by a seed and names. It has no table, so a million rows cost nothing to shuffle.

    It is a Feistel network of four rounds over the numbers of 2 * h bits, applied again while the result lies outside: cycle
    walking (Black and Rogaway 2002, "Ciphers with Arbitrary Finite Domains", method 2). A network is a bijection whatever its
    round function is; this one's is a hash.
    """

    def __init__(self, count: int, seed: int, *names: str | int) -> None:
        self.count, self._seed, self._names = count, seed, names
        self._half = max(1, ((count - 1).bit_length() + 1) // 2)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, place: int) -> int:
        """The row at `place`. Raises IndexError outside of 0 to count - 1."""
        if not 0 <= place < self.count:
            raise IndexError(f"place {place} of {self.count} rows")
        row = self._permuted(place)
        while row >= self.count:
            row = self._permuted(row)
        return row

    def _permuted(self, number: int) -> int:
        low = (1 << self._half) - 1
        left, right = number >> self._half, number & low
        for turn in range(_ROUNDS):
            left, right = right, left ^ (sample_seed(self._seed, *self._names, turn, right) & low)
        return left << self._half | right
