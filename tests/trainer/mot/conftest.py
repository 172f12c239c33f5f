"""One small model for all that only reads with it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.support.small_mot import four_rows, small_mot
from trainer.data.sequences import SequencePlan
from trainer.policies.unified.mot.policy import MotPolicy


@pytest.fixture(scope="session")
def policy() -> MotPolicy:
    return small_mot()


@pytest.fixture(scope="session")
def plans(tmp_path_factory: pytest.TempPathFactory) -> Sequence[SequencePlan]:
    folder: Path = tmp_path_factory.mktemp("pictures")
    return four_rows(folder)
