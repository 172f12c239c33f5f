"""The losses of rows that no step of packed training draws: at fixed noise levels, with the same noise every time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from trainer.config.base import UserError
from trainer.data.packing.groups import PackGroup
from trainer.data.sequences import ImageItem, Plans
from trainer.objectives.packed import PackBatch, SupervisedPacks, by_group
from trainer.policies.base import Laid, Laying
from trainer.processes.distributed import World, even_share
from trainer.seeds import sample_seed
from trainer.update.tally import accumulate

LEVELS = (0.25, 0.5, 0.75, 0.95)  # noise levels at which held-out images are measured


@dataclass(frozen=True)
class _Place:
    group: int
    plans: Plans
    number: int


class HeldOut:
    """Measures what is held out, with nothing left out of any row.

    Each level is a pass of its own, so that what it shows does not depend on how a policy orders several copies of an image.
    """

    def __init__(self, objective: SupervisedPacks, groups: Sequence[PackGroup], seed: int) -> None:
        self.objective, self.groups, self.seed = objective, groups, seed
        self.places = [_Place(n, plans, row) for n, group in enumerate(groups) for plans, row in group.held_out()]

    def losses(self, world: World) -> dict[str, float | None]:
        """`heldout/ce`, `heldout/mse` over all levels, `heldout/mse/<level>`, and `heldout/<group>/ce` and `mse`; empty where no row
        is held out. All ranks together. Rows that cannot be used are told to the objective."""
        if not self.places:
            return {}
        found = [self._measure(level, world) for level in LEVELS]
        # No noised image stands before a text, so its error is the same at every level: the first pass measures it.
        row = {"heldout/ce": found[0].get("ce")}
        row |= {f"heldout/mse/{level:g}": each.get("mse") for level, each in zip(LEVELS, found, strict=True)}
        for name in ("mse", *(f"{group.name}/mse" for group in self.groups)):
            values = [each[name] for each in found if name in each]
            if values or name == "mse":
                row[f"heldout/{name}"] = sum(values) / len(values) if values else None
        return row | {f"heldout/{name}": value for name, value in found[0].items() if name.endswith("/ce")}

    def _measure(self, level: float, world: World) -> dict[str, float]:
        """`ce` and `mse`, as the objective weighs them, and plain ones by group; those that have tokens. Images at this noise level."""
        share = even_share(len(self.places), world.rank, world.size)
        own = list(self._packs([self.places[index] for index in share.indices[: share.real]], level))
        # Sharded weights are gathered by all ranks in each forward pass, so those with fewer packs repeat one without weight.
        most = max(world.gather(len(own)))
        if len(own) < most:
            filler = own[-1] if own else next(self._packs(self.places, level))
            own += [filler.weightless()] * (most - len(own))
        if not own:
            return {}  # no row at this level on any rank
        sums: dict[str, Tensor] = {}
        counts: Counter[str] = Counter()
        for batch in own:
            terms, stats = self.objective.terms(batch, 0)
            accumulate(sums, {**stats.totals, **{f"sum of {term.over}": term.sum for term in terms}})
            counts.update(self.objective.counts(batch))
        totals = world.totals(sums, counts)
        found = by_group(totals, self.objective.groups)
        for name, over in (("ce", "text_tokens"), ("mse", "latent_tokens")):
            if totals[over]:
                found[name] = totals[f"sum of {over}"] / totals[over]
        return found

    def _packs(self, places: Sequence[_Place], level: float) -> Iterator[PackBatch]:
        """Packs of rows that follow one another, as long as training's."""
        rows: list[Laid] = []
        groups: list[int] = []
        for group, row in self._laid(places, level):
            if rows and sum(each.length for each in rows) + row.length > self.objective.config.max_tokens:
                yield PackBatch(rows, groups)
                rows, groups = [], []
            rows.append(row)
            groups.append(group)
        if rows:
            yield PackBatch(rows, groups)

    def _laid(self, places: Sequence[_Place], level: float) -> Iterator[tuple[int, Laid]]:
        """The rows with their groups' numbers; those without a drawn image at the first level alone."""
        config = self.objective.config
        for place in places:
            name = self.groups[place.group].name
            seed = sample_seed(self.seed, "heldout", name, place.plans.name, place.number)
            try:
                plan = place.plans.plan(place.number)
                draws = any(isinstance(item, ImageItem) and item.use == "drawn" for item in plan.items)
                if draws or level == LEVELS[0]:
                    row = self.objective.policy.lay(plan, Laying(seed, levels=(level,)))
                    if row.length <= config.longest_row:
                        yield place.group, row
                    else:
                        self.objective.left_out.append(config.too_long(row.id, row.length))
            except UserError as error:
                self.objective.left_out.append(str(error))
