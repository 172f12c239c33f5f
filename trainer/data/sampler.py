"""Which prompts a step draws, and which of them are this rank's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer.config import ConfigError
from trainer.data.datasets import Dataset
from trainer.data.prompts import DataError
from trainer.data.prompts.stored import fingerprint_of, in_order_of_ids
from trainer.seeds import sample_seeds
from trainer.types import Prompt


@dataclass
class _Position:
    """Where a data set is: `drawn` over the whole run, `epoch`, `offset` in its order, and the ids that come last in it."""

    drawn: int = 0
    epoch: int = 0
    offset: int = 0
    late: tuple[str, ...] = ()


class PromptSampler:
    """Draws P distinct prompts a step, of which this rank gets a slice: a group lives wholly on one rank.

    Data sets take turns so that after any number of draws each has had its share by weight, to within one prompt or so.
    Each data set is gone through in seeded orders, another one each epoch, and none of its prompts comes again before
    all have come. What a step draws depends on the data, the seed and the step, not on the number of ranks or on the
    order of lines in a file.
    """

    def __init__(self, datasets: Sequence[Dataset], *, prompts_per_step: int, seed: int, rank: int, world: int) -> None:
        """
        Args:
            datasets: with prompt ids that are unique over all of them.
            prompts_per_step: P, over all ranks.
            rank, world: this process among all; rank r gets prompts r*P/world to (r+1)*P/world of the P.

        Raises:
            ConfigError: P is no multiple of `world`.
            DataError: P is more than there are prompts, or than a data set has for its share.
        """
        if prompts_per_step % world:
            near = max(world, round(prompts_per_step / world) * world)
            raise ConfigError(
                f"sampling.prompts_per_step = {prompts_per_step} cannot be dealt evenly to {world} ranks, and a group "
                f"must live wholly on one; set it to a multiple of {world}, such as {near}"
            )
        self._datasets = tuple(datasets)
        self._shares = _shares(self._datasets, prompts_per_step)
        self._prompts_per_step, self._seed = prompts_per_step, seed
        count = prompts_per_step // world
        self._mine = slice(rank * count, (rank + 1) * count)
        self._fingerprints = {d.name: fingerprint_of(d.prompts) for d in datasets}
        self._step = 0
        self._positions = [_Position() for _ in datasets]
        self._orders = [self._order(d) for d in range(len(datasets))]

    @property
    def step(self) -> int:
        """How many steps were drawn."""
        return self._step

    def draw(self) -> list[Prompt]:
        """This rank's P/world prompts of the next step."""
        taken: list[list[str]] = [[] for _ in self._datasets]
        drawn = [self._next(self._turn(taken), taken) for _ in range(self._prompts_per_step)]
        self._step += 1
        return drawn[self._mine]

    def _turn(self, taken: Sequence[Sequence[str]]) -> int:
        """The data set that is most behind its share, of those that still have a prompt this step has not drawn."""
        total = sum(position.drawn for position in self._positions) + 1
        free = [d for d, dataset in enumerate(self._datasets) if len(taken[d]) < len(dataset.prompts)]
        return max(free, key=lambda d: (self._shares[d] * total - self._positions[d].drawn, -d))

    def _next(self, d: int, taken: Sequence[list[str]]) -> Prompt:
        position = self._positions[d]
        if position.offset == len(self._datasets[d].prompts):
            # The step goes on in a new epoch: what it has drawn already comes last there, so P stays P distinct prompts.
            position.epoch, position.offset, position.late = position.epoch + 1, 0, tuple(taken[d])
            self._orders[d] = self._order(d)
        prompt = self._datasets[d].prompts[int(self._orders[d][position.offset])]
        position.offset += 1
        position.drawn += 1
        taken[d].append(prompt.id)
        return prompt

    def _order(self, d: int) -> NDArray[np.int64]:
        """The order of the data set's present epoch, as places in it: by a hash, so it is the same on every platform and version."""
        dataset, position = self._datasets[d], self._positions[d]
        by_id, ids = in_order_of_ids(dataset.prompts)
        late = {each.encode() for each in position.late}
        keys = np.empty((2, len(by_id)), np.uint64)
        seeds = sample_seeds(ids, self._seed, "epoch", dataset.name, position.epoch)
        keys[0] = np.fromiter(seeds, np.uint64, len(by_id))
        keys[1] = [each in late for each in in_order_of_ids(dataset.prompts)[1]] if late else 0
        order: NDArray[np.int64] = by_id[
            np.lexsort(keys)
        ]  # the last key counts most; equal ones stay in the order of ids
        return order

    def state_dict(self) -> dict[str, Any]:
        """The position, as JSON, with what it is a position in."""
        return {
            "step": self._step,
            "seed": self._seed,
            "datasets": {
                dataset.name: {
                    "drawn": position.drawn,
                    "epoch": position.epoch,
                    "offset": position.offset,
                    "late": list(position.late),
                    "weight": dataset.weight,
                    "fingerprint": self._fingerprints[dataset.name],
                }
                for dataset, position in zip(self._datasets, self._positions, strict=True)
            },
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on exactly where `state` was taken; the number of ranks may have changed.

        Raises:
            DataError: another seed, other data sets, another weight, or a prompt file that has changed.
        """
        remedy = "put it back, or start a new run with another run_name"
        if state["seed"] != self._seed:
            raise DataError(f"the run was started with seed = {state['seed']}, now it is {self._seed}; {remedy}")
        if set(state["datasets"]) != set(self._fingerprints):
            before, now = (", ".join(sorted(names)) for names in (state["datasets"], self._fingerprints))
            raise DataError(f"the run was started with the data sets {before}; now they are {now}; {remedy}")
        for dataset in self._datasets:
            saved = state["datasets"][dataset.name]
            if saved["fingerprint"] != self._fingerprints[dataset.name]:
                raise DataError(
                    f"the prompts of data set {dataset.name!r} have changed since the run was started (fingerprint "
                    f"{saved['fingerprint'][:12]}, now {self._fingerprints[dataset.name][:12]}); {remedy}"
                )
            if saved["weight"] != dataset.weight:
                raise DataError(
                    f"data set {dataset.name!r} had the weight {saved['weight']} when the run was started, now "
                    f"{dataset.weight}; {remedy}"
                )
        self._step = state["step"]
        for d, dataset in enumerate(self._datasets):
            saved = state["datasets"][dataset.name]
            self._positions[d] = _Position(saved["drawn"], saved["epoch"], saved["offset"], tuple(saved["late"]))
            self._orders[d] = self._order(d)


def _shares(datasets: Sequence[Dataset], prompts_per_step: int) -> list[float]:
    """Each data set's share of the draws. Raises DataError when a step asks for more distinct prompts than there are."""
    total = sum(len(dataset.prompts) for dataset in datasets)
    if prompts_per_step > total:
        raise DataError(
            f"sampling.prompts_per_step = {prompts_per_step}, but the training data holds {total} prompts and a step "
            "draws distinct ones; lower it or add prompts"
        )
    shares = [dataset.weight / sum(other.weight for other in datasets) for dataset in datasets]
    for dataset, share in zip(datasets, shares, strict=True):
        if share * prompts_per_step > len(dataset.prompts) + 1e-9:
            raise DataError(
                f"data set {dataset.name!r} holds {len(dataset.prompts)} prompts, but its weight {dataset.weight} asks "
                f"for {share * prompts_per_step:.1f} distinct ones of sampling.prompts_per_step = {prompts_per_step}; "
                "lower one of the two or add prompts"
            )
    return shares
