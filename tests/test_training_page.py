"""docs/training.md: its table has every policy, with how it is drawn and what it is exported to."""

from __future__ import annotations

import re

from tests.support.documents import ROOT
from trainer.config.policy import sections


def test_the_table_has_every_policy_of_the_registry() -> None:
    text = (ROOT / "docs/training.md").read_text(encoding="utf-8")
    rows = [
        line.split("|")[1:-1] for line in text.partition("| `policy.type` |")[2].partition("\n\n")[0].splitlines()[2:]
    ]
    told = {row[0].strip(" `"): tuple(tuple(re.findall(r"`(\w+)`", row[column])) for column in (2, 3)) for row in rows}
    assert told == {name: (section.draws_by, section.formats) for name, section in sections().items()}
