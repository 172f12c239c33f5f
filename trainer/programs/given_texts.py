"""What the programs on given texts share: which rows are trained on, which are held out, and what is said of rows that cannot be
read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor

from trainer.checkpoint.saver import Kept, Stateful
from trainer.config import Config, ConfigError
from trainer.data.given_texts import GivenTexts
from trainer.objectives.base import LooksFirst, Objective
from trainer.objectives.tokens.given import GivenRows
from trainer.policies.base import Policy, ReadsTokens
from trainer.processes.distributed import World, even_share
from trainer.programs.base import Material
from trainer.programs.given import GivenProgram, given_material
from trainer.programs.session import Row, Session
from trainer.programs.sight import prove_on_texts
from trainer.types import AnswerPair, Conversation, Prompt
from trainer.update.tally import accumulate

Text = TypeVar("Text", Conversation, AnswerPair)


@dataclass(frozen=True)
class TextMaterial(Material, Generic[Text]):
    """The rows of a run beside their prompts, those that are held out, too, left out of training."""

    rows: GivenTexts[Text]

    @property
    def notes(self) -> Sequence[str]:
        """What a preprocessing file makes of the first row, and which rows are left out."""
        return self.rows.notes

    @property
    def checked(self) -> Sequence[Prompt]:
        """None: rows are read as they come, and what cannot be read is passed over."""
        return ()


def text_material(config: Config, rows: GivenTexts[Text], prompts: Sequence[Prompt]) -> TextMaterial[Text]:
    """The rows without those whose prompts are held out, too; a prompt has its row's id. Raises DataError where none is left."""
    found = given_material(config, prompts)
    kept = rows.without(found.overlap.ids())
    return TextMaterial(found.prompts, found.sets, found.overlap, found.num_train, kept)


def token_reader(policy: Policy, config: Config) -> ReadsTokens:
    """The policy, once it is known that it can be trained on texts. Raises ConfigError."""
    if not isinstance(policy, ReadsTokens):
        raise ConfigError(
            f"program = {config.program} trains on texts, which policy.type = {config.policy.type} cannot"
        )
    return policy


class OnGivenRows(Objective, Protocol):
    """An objective on given texts."""

    @property
    def given(self) -> GivenRows[Any, Any]: ...

    def batches_of(self, rows: Sequence[Any]) -> Sequence[Any]:
        """Micro-batches of other rows."""
        ...


class TextProgram(GivenProgram):
    """A run on given texts. Every row that is passed over is named once; the loss on those held out is measured at the start, at
    the end, and every `evaluation.every` steps, with the averaged weights.

    Args:
        objective: of whose rows `rows` are.
        rows: for what was left out and what is held out.
    """

    def __init__(self, session: Session, objective: OnGivenRows, size: int, rows: GivenTexts[Any]) -> None:
        super().__init__(session, objective, size, counted="texts")
        self.objective, self.rows = objective, rows
        self._named: set[str] = set()

    def states(self) -> Mapping[str, Stateful]:
        """Also what the rows were, so that a changed file is noticed."""
        rows = self.rows.fingerprint()
        return {**super().states(), "rows": Kept(lambda: rows, lambda before: self._check_same_rows(before, rows))}

    def begin(self) -> None:
        """Prove that the policy sees its images, and measure the loss before training."""
        session = self.session
        if session.step == 0:
            prove_on_texts(session, self.objective.batches(None, 0))
        if session.step == 0 and session.row is not None:
            session.row |= self.held_out_loss()

    def step(self) -> Row | None:
        row = super().step()
        assert row is not None
        if any(value for name, value in row.items() if name.endswith("/skipped")):  # the same number on all ranks
            told = [
                sentence for each in self.session.world.gather(list(self.objective.given.refused)) for sentence in each
            ]
            for sentence in dict.fromkeys(told):
                if sentence not in self._named:
                    self.session.recorder.note(f"passed over: {sentence}")
            self._named.update(told)
        config = self.session.config
        if self.session.step % config.evaluation.every == 0 or self.session.step == config.max_steps:
            row |= self.held_out_loss()
        return row

    def held_out_loss(self) -> dict[str, float | None]:
        """`heldout/loss` of the rows that `hold_out` keeps from training, and what the objective shows; nothing without any."""
        if not self.rows.held_out:
            return {}
        with torch.no_grad(), self.session.ema.applied():
            return held_out_metrics(self.objective, self.rows.held_out, self.session.world)

    def _check_same_rows(self, before: str, now: str) -> None:
        if before != now:
            self.session.recorder.note(
                f"The rows of {self.rows.path} have changed since the checkpoint: steps from here on draw from other rows"
            )


def held_out_metrics(objective: OnGivenRows, rows: Sequence[Any], world: World) -> dict[str, float | None]:
    """The objective's loss on rows that are not trained on, over all ranks: `heldout/loss`, and with `heldout/` before its name what
    else it shows as a mean."""
    share = even_share(len(rows), world.rank, world.size)
    batches = list(objective.batches_of([rows[index] for index in share.indices[: share.real]]))
    own = len(batches)
    # Sharded weights are gathered by all ranks in each forward pass, so those with fewer repeat one without weight.
    most = max(world.gather(own))
    filler = batches[-1] if batches else objective.batches(None, 0)[0]
    batches += [filler.weightless()] * (most - own)
    sums: dict[str, Tensor] = {}
    counts: dict[str, Tensor] = {}
    divisor = 0.0
    batches = [each.to(world.device) for each in batches]
    if isinstance(objective, LooksFirst):
        objective.look(batches, world.gather)
    for batch in batches:
        terms, stats = objective.terms(batch, 0)
        accumulate(sums, {"loss": terms[0].sum, **stats.sums})
        accumulate(counts, {"count of terms": stats.count})
        divisor += objective.counts(batch)[terms[0].over]
    totals = world.totals({**sums, **counts}, {"count of loss": divisor})
    row: dict[str, float | None] = {}
    for name in sums:
        count = totals["count of loss" if name == "loss" else "count of terms"]
        row[f"heldout/{name}"] = totals[name] / count if count else None
    return row
